"""Reads columns of parquet files."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from arnn_lightning.errors import MissingColumnError, UserError


def read_parquet(file: Path, columns: Sequence[str], name: object) -> pl.DataFrame:
    """Columns of a parquet file, fields of nested ones as ``column.field``; errors name the file ``name``.

    Raises:
        UserError: not a parquet file, or a column that it does not have.
    """
    try:
        table = pl.scan_parquet(file, glob=False)
        available: dict[str, pl.Expr] = {}
        for column, dtype in table.collect_schema().items():
            available |= _fields(column, pl.col(column), dtype)
        for column in columns:
            if column not in available:
                raise MissingColumnError(name, column, available)
        return table.select(available[column].alias(column) for column in columns).collect()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{name}: not a readable parquet file: {str(error).splitlines()[0]}") from error


def _fields(name: str, column: pl.Expr, dtype: object) -> dict[str, pl.Expr]:
    """A column, or the fields of a nested one as ``column.field``."""
    if not isinstance(dtype, pl.Struct):
        return {name: column}
    fields: dict[str, pl.Expr] = {}
    for field, inner in dtype.to_schema().items():
        fields |= _fields(f"{name}.{field}", column.struct.field(field), inner)
    return fields

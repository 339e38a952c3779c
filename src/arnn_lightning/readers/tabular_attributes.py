"""The tables of users and of items: ids and attributes."""

from collections.abc import Callable, Mapping, Sequence

import polars as pl

from arnn_lightning.errors import UserError
from arnn_lightning.readers.delimited import require_not_null
from arnn_lightning.readers.tabular_files import TableFile, concat_files, file_and_row
from arnn_lightning.readers.tabular_format import TableFormat


def read_attributes(
    files: Sequence[TableFile],
    table_format: TableFormat,
    id_name: str,
    kinds: Mapping[str, str],
    columns: Mapping[str, str],
) -> tuple[pl.DataFrame, Callable[[int], str]]:
    """The id and the attributes (name -> kind) of every row; and the location of a row, for errors.

    ``columns``: the column of the id, and those of attributes that have another name.

    Raises:
        UserError: a missing column or id, an invalid value, or columns that differ between files.
    """
    names = {name: columns.get(name, name) for name in kinds}
    id_column = columns[id_name]
    parts = []
    for file in files:
        frame = table_format.read(file, [id_column, *names.values()], [id_column])
        require_not_null(frame, id_column, file, file.first_row)
        attributes = [
            table_format.parse_attribute(frame[names[name]], kind, file).alias(name) for name, kind in kinds.items()
        ]
        parts.append(frame.select(pl.col(id_column).alias(id_name), *attributes))

    def row_location(row: int) -> str:
        index, row = file_and_row(row, [part.height for part in parts])
        return f"{files[index]}, row {row + files[index].first_row}"

    return concat_files(parts, files), row_location


def align_id_types(
    table: pl.DataFrame, events: pl.DataFrame, column: str, name: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Casts the ids of both tables to one type where their types differ: Int64 of integers, else String.

    Raises:
        UserError: no id of the events is in the table.
    """
    types = {table[column].dtype, events[column].dtype}
    if len(types) > 1:
        are_integers = all(dtype.is_integer() for dtype in types) and not types & {pl.UInt64, pl.Int128}
        cast = pl.col(column).cast(pl.Int64 if are_integers else pl.String)
        table, events = table.with_columns(cast), events.with_columns(cast)
    if events.height and not table[column].is_in(events[column].implode()).any():
        raise UserError(
            f"data.{name}: no {column} of the events is in this table; its ids are like {table[column].first()!r}, "
            f"those of the events like {events[column].first()!r}"
        )
    return table, events

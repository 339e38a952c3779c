"""Typed reading of delimited files, with errors that name file, column, row and value."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from arnn_lightning.errors import UserError, nearest


def require_files(folder: Path, expected: Mapping[str, str], origin: str) -> list[Path]:
    """The paths of ``expected`` (file name -> what it holds) in ``folder``.

    Raises:
        UserError: the folder or one of the files is missing; says which files are expected and where they come from.
    """
    wanted = ", ".join(f"{name} ({what})" for name, what in expected.items())
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}: it should hold {wanted}; {origin}; point data.raw_dir (or ARNN_DATA) at your copy"
        )
    missing = [name for name in expected if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}: expected are {wanted}; {origin}")
    return [folder / name for name in expected]


def read_delimited(
    path: Path,
    columns: Mapping[str, pl.DataType | type[pl.DataType]],
    *,
    separator: str,
    aliases: Mapping[str, Sequence[str]] | None = None,
    null_values: Sequence[str] = ("NULL", ""),
) -> pl.DataFrame:
    """Reads the named ``columns`` of one delimited file with a header.

    Args:
        path: the file; a header such as ``table.user_id`` is taken as ``user_id``.
        columns: name -> type of the columns to read; the result has them in this order.
        separator: the field separator.
        aliases: name -> other names that the column bears in the wild.
        null_values: texts that mean a missing value.

    Raises:
        UserError: a missing column (the nearest name is suggested), or a value that does not parse (named with its
            row, the header being row 1).
    """
    header = _header(path, separator)
    plain = [name.rsplit(".", 1)[-1] for name in header]
    source: dict[str, str] = {}
    for name in columns:
        found = [known for known in (name, *(aliases or {}).get(name, ())) if known in plain]
        if not found:
            raise UserError(f"{path}: no column {name!r}{nearest(name, plain)}; it has {', '.join(plain)}")
        source[name] = header[plain.index(found[0])]

    def scan(types: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.LazyFrame:
        return pl.scan_csv(
            path,
            separator=separator,
            quote_char=None if separator == "\t" else '"',
            schema=dict.fromkeys(header, pl.String) | {source[name]: types[name] for name in columns},
            null_values=list(null_values),
            has_header=True,
        ).select(pl.col(original).alias(name) for name, original in source.items())

    try:
        return scan(columns).collect()
    except pl.exceptions.PolarsError as error:
        raise _explain(path, scan(dict.fromkeys(columns, pl.String())), columns, error) from error


def _header(path: Path, separator: str) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        line = file.readline().rstrip("\r\n")
    if not line:
        raise UserError(f"{path}: the file is empty; a header line is expected")
    return line.split(separator)


def _explain(
    path: Path,
    text: pl.LazyFrame,
    columns: Mapping[str, pl.DataType | type[pl.DataType]],
    error: pl.exceptions.PolarsError,
) -> UserError:
    """Finds the first value that does not parse, by reading the file again as text."""
    try:
        frame = text.collect()
    except pl.exceptions.PolarsError:
        return UserError(f"{path}: not a table that can be read: {str(error).splitlines()[0]}")
    for name, dtype in columns.items():
        bad = (frame[name].is_not_null() & frame[name].str.strip_chars().cast(dtype, strict=False).is_null()).arg_true()
        if len(bad):
            row = bad[0]
            wanted = "a whole number" if dtype.is_integer() else str(dtype)
            return UserError(
                f"{path}: column {name!r}, row {row + 2}: {frame[name][row]!r} is not {wanted}; mend or remove the row"
            )
    return UserError(f"{path}: {str(error).splitlines()[0]}")

"""The files of a table: found by path, glob or list, plain or compressed, and none of them twice."""

import glob
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import cast

import polars as pl

from arnn_lightning.errors import UserError, nearest_file
from arnn_lightning.readers.delimited import FIRST_ROW, PACKED, file_format, find_file, unreadable_archives
from arnn_lightning.readers.schema import decimal_years


@dataclass(frozen=True)
class TableFile:
    """A file of a table.

    Attributes:
        path: where it is.
        member: its name in the zip archive ``path``, if that contains several files; None: ``path`` is the file.
        header: names of its columns; None: they are in its first line.
        rows: indices of the rows that are read; None: all.
    """

    path: Path
    member: str | None
    header: Sequence[str] | None
    rows: pl.Series | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return str(self.path if self.member is None else self.path / self.member)

    @property
    def first_row(self) -> int:
        """The number of the first row of data: in a text file, the header is row 1."""
        return FIRST_ROW if self.header is None and file_format(self.path) != "parquet" else 1

    def row_number(self, row: int) -> int:
        """The number in the file of a row that is read."""
        return self.first_row + (row if self.rows is None else int(self.rows[row]))

    def location(self, column: str, row: int) -> str:
        return f"{self}: column {column!r}, row {self.row_number(row)}"


def resolve_files(
    name: str, table: str | Sequence[str] | None, header: Sequence[str] | None, hint: str
) -> list[TableFile]:
    """The files of a table, in the order in which they are listed; ``hint`` completes the error of a missing one.

    Raises:
        UserError: no file, or one that is listed twice.
    """
    patterns = [table] if isinstance(table, str) else table
    is_optional = patterns is None and name != "events"
    if not is_optional and not (patterns and all(isinstance(pattern, str) for pattern in patterns)):
        raise UserError(f"data.{name}={table}: must be a path, a glob, or a list of them")
    files: list[TableFile] = []
    for pattern in patterns or []:
        # The name of an existing file is not a pattern. Path.glob does not support absolute patterns.
        path = Path(pattern).expanduser()
        names = [str(path)] if path.is_file() else sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        matches = [TableFile(Path(name), None, header) for name in names if Path(name).is_file()]
        if not matches and not path.is_dir() and (packed := find_file(path)) is not None:
            matches = [TableFile(packed, path.name if packed.suffix == ".zip" else None, header)]
        if not matches:
            what = "a folder" if path.is_dir() else f"not a file{nearest_file(path)}{unreadable_archives(path.parent)}"
            raise UserError(f"data.{name}: {pattern} is {what}; give a path or a glob of files{hint}")
        files += matches
    _require_distinct(name, files)
    return files


def _require_distinct(name: str, files: Sequence[TableFile]) -> None:
    """Raises UserError for a file that is listed twice: by two paths, or plain and compressed."""
    by_name: dict[tuple[Path, str | None], TableFile] = {}
    for file in files:
        path = file.path.resolve()
        other = by_name.setdefault((path.with_suffix("") if path.suffix[1:] in PACKED else path, file.member), file)
        if other is not file:
            also = "" if other.path == file.path else f" (also as {other})"
            raise UserError(f"data.{name}: {file} is listed more than once{also}; its rows would be counted twice")


def file_and_row(row: int, n_rows: Sequence[int]) -> tuple[int, int]:
    """The file of a row of ``concat_files``, and the row in it; ``n_rows``: of every file.

    >>> file_and_row(3, [3, 0, 2])
    (2, 0)
    """
    starts = list(accumulate(n_rows, initial=0))
    index = bisect_right(starts, row) - 1
    return index, row - starts[index]


def concat_files(parts: Sequence[pl.DataFrame], files: Sequence[TableFile]) -> pl.DataFrame:
    """The rows of all files; raises UserError where their columns are of different types."""
    dates = {name for part in parts for name, dtype in part.schema.items() if dtype == pl.Date}
    for name in dates:
        columns = [part[name] for part in parts]
        is_dates = all(column.dtype == pl.Date or column.null_count() == len(column) for column in columns)
        columns = [column.cast(pl.Date) if is_dates else decimal_years(column) for column in columns]
        parts = [part.with_columns(column) for part, column in zip(parts, columns, strict=True)]
    try:
        table = pl.concat(parts, how="vertical_relaxed")  # integers of different widths are compatible
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{', '.join(map(str, files))}: their columns differ: {str(error).splitlines()[0]}") from error
    # The common type of UInt64 and signed integers has twice the width that their values need.
    wide = [column for column in table if column.dtype == pl.Int128 and cast(int, column.max() or 0) < 2**63]
    return table.with_columns(column.cast(pl.Int64) for column in wide)

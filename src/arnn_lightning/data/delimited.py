"""Typed reading of delimited files, plain, gz or zip, with errors that name file, column, row and value."""

import csv
import gzip
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from arnn_lightning.errors import UserError, nearest

DType = pl.DataType | type[pl.DataType]
SEPARATORS = (",", ";", "\t", "|")
TOO_LONG = "(too long)"


def require_files(
    folder: Path, expected: Mapping[str, str], origin: str, optional: Collection[str] = ()
) -> dict[str, Path]:
    """Where each of ``expected`` (file name -> what it holds) lies in ``folder``: plain, gz, or in a zip archive.

    A zip archive that holds several of them stands for each. Those of ``optional`` may be missing.

    Raises:
        UserError: the folder or one of the files is missing; says which files are expected and where they come from.
    """
    wanted = ", ".join(f"{name} ({what})" for name, what in expected.items())
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}: it should hold {wanted}; {origin}; point data.raw_dir (or ARNN_DATA) at your copy"
        )
    found = {name: path for name in (*expected, *optional) if (path := _locate(folder, name)) is not None}
    missing = [name for name in expected if name not in found]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}: expected are {wanted}, plain, gz or zip; {origin}")
    return found


def _locate(folder: Path, name: str) -> Path | None:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    for archive in sorted(folder.glob("*.zip")):
        if any(Path(member).name == name for member in _members(archive)):
            return archive
    return None


def _members(archive: Path) -> list[str]:
    try:
        with zipfile.ZipFile(archive) as file:
            return [member for member in file.namelist() if not member.endswith("/")]
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive}: not a zip archive that can be read ({error}); fetch or make it again") from error


@contextmanager
def plain_file(path: Path, name: str | None = None) -> Iterator[Path]:
    """``path`` itself, or what it holds, unpacked into a temporary folder for the time being.

    Args:
        path: a plain file, a ``.gz`` file, or a ``.zip`` archive.
        name: which file of the archive is meant; may be left out where it holds one file only.

    Raises:
        UserError: a damaged file, or an archive that does not hold the file.
    """
    if path.suffix not in (".gz", ".zip"):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="arnn-") as folder:
        unpacked = Path(folder) / "unpacked"
        try:
            if path.suffix == ".gz":
                with gzip.open(path) as packed, unpacked.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
            else:
                members = [member for member in _members(path) if name is None or Path(member).name == name]
                if len(members) != 1:
                    raise UserError(f"{path}: holds {len(members)} files of which one is wanted; unpack it yourself")
                with zipfile.ZipFile(path) as archive, archive.open(members[0]) as packed, unpacked.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
            raise UserError(f"{path}: cannot be unpacked ({error}); fetch or make it again") from error
        yield unpacked


def read_delimited(
    path: Path,
    columns: Mapping[str, DType],
    *,
    separator: str | None,
    name: str | None = None,
    header: Sequence[str] | None = None,
    aliases: Mapping[str, Sequence[str]] | None = None,
    required: Collection[str] = (),
    null_values: Sequence[str] = ("NULL", ""),
) -> pl.DataFrame:
    """Reads the named ``columns`` of one delimited file, in UTF-8.

    Args:
        path: the file, plain, gz or zip; a header such as ``table.user_id`` is taken as ``user_id``.
        columns: name -> type of the columns to read; the result has them in this order.
        separator: the field separator; None: comma, semicolon, tab or bar, whichever the header line has most of.
            Quotes shield it, except between tabs.
        name: the file's name within a zip archive.
        header: the names of all columns, for a file without a header line.
        aliases: name -> other names that the column bears in the wild.
        required: columns that hold a value in every row.
        null_values: texts that mean a missing value.

    Raises:
        UserError: a missing column (the nearest name is suggested) or one that the header names twice; a value that
            is missing or does not parse, or a row with too many fields, named with its row (the header is row 1).
    """
    with plain_file(path, name) as file:
        if separator is None:
            separator = max(SEPARATORS, key=lambda one: len(_header(file, one, path)))
        names = list(header) if header is not None else _header(file, separator, path)
        place = {column: _place(path, column, (aliases or {}).get(column, ()), names) for column in columns}
        first_row = 1 if header is not None else 2

        def scan(types: Mapping[str, DType]) -> pl.LazyFrame:
            # Columns go by their place, since a header may repeat a name that nobody asked for. One more than there
            # are catches rows that are too long.
            schema: dict[str, DType] = {str(index): pl.String() for index in range(len(names) + 1)}
            schema |= {str(place[column]): dtype for column, dtype in types.items()}
            return pl.scan_csv(
                file,
                separator=separator,
                quote_char=None if separator == "\t" else '"',
                schema=schema,
                null_values=list(null_values),
                has_header=False,
                skip_rows=0 if header is not None else 1,
                missing_columns="insert",
            ).select(
                *(pl.col(str(place[column])).alias(column) for column in types),
                pl.col(str(len(names))).is_not_null().alias(TOO_LONG),
            )

        try:
            frame = scan(columns).collect()
        except pl.exceptions.PolarsError as error:
            raise _explain(path, scan(dict.fromkeys(columns, pl.String())), columns, first_row, error) from error
    if frame[TOO_LONG].any():
        row = frame[TOO_LONG].arg_true()[0] + first_row
        raise UserError(f"{path}: row {row} has more fields than the {len(names)} columns; mend or remove it")
    frame = frame.drop(TOO_LONG)
    for column in required:
        require_filled(frame, column, path, first_row)
    return frame


def require_filled(frame: pl.DataFrame, column: str, path: Path, first_row: int) -> None:
    """Raises UserError naming the first row in which ``column`` holds nothing."""
    if frame[column].has_nulls():
        empty = frame[column].is_null().arg_true()
        raise UserError(
            f"{path}: column {column!r} is empty in {len(empty):,} rows, the first is row {empty[0] + first_row}; "
            "fill or remove them"
        )


def require_values(
    frame: pl.DataFrame, column: str, allowed: Collection[int | str], path: Path, first_row: int = 2
) -> None:
    """Raises UserError naming the first value of ``column`` that is none of ``allowed`` (nor missing)."""
    strange = (~frame[column].is_in(list(allowed))).fill_null(False).arg_true()
    if len(strange):
        listed = ", ".join(map(str, allowed))
        raise UserError(
            f"{path}: column {column!r}, row {strange[0] + first_row}: {frame[column][strange[0]]!r} is none of "
            f"{listed}; mend or remove the row"
        )


def _header(file: Path, separator: str, path: Path) -> list[str]:
    """The names in the first line of ``file``; errors call it ``path``."""
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        line = lines.readline().rstrip("\r\n")
    if not line:
        raise UserError(f"{path}: the file is empty; a header line is expected")
    if separator == "\t":
        return line.split(separator)
    return next(csv.reader([line], delimiter=separator))


def _place(path: Path, column: str, aliases: Sequence[str], names: Sequence[str]) -> int:
    """Which column is meant: one of that very name, or else one that bears it behind a prefix."""
    bare = [title.rsplit(".", 1)[-1] for title in names]
    for known in (column, *aliases):
        for titles in (names, bare):
            places = [index for index, title in enumerate(titles) if title == known]
            if len(places) > 1:
                listed = ", ".join(names[place] for place in places)
                raise UserError(f"{path}: {len(places)} columns are called {known!r} ({listed}); rename all but one")
            if places:
                return places[0]
    raise UserError(f"{path}: no column {column!r}{nearest(column, bare)}; it has {', '.join(bare)}")


def _explain(
    path: Path, text: pl.LazyFrame, columns: Mapping[str, DType], first_row: int, error: pl.exceptions.PolarsError
) -> UserError:
    """Finds the first value that does not parse, by reading the file again as text."""
    typed = {column: dtype for column, dtype in columns.items() if dtype != pl.String}
    bad = {
        column: pl.col(column).is_not_null() & pl.col(column).str.strip_chars().cast(dtype, strict=False).is_null()
        for column, dtype in typed.items()
    }
    numbered = text.with_row_index("(row)")
    try:
        first = numbered.select(pl.col("(row)").filter(wrong).min().alias(name) for name, wrong in bad.items())
        found = [(row, name) for name, row in first.collect().to_dicts()[0].items() if row is not None]
        if found:
            row, column = min(found)
            value = text.select(column).slice(row, 1).collect().item()
            wanted = f"a whole number ({typed[column]})" if typed[column].is_integer() else str(typed[column])
            return UserError(
                f"{path}: column {column!r}, row {row + first_row}: {value!r} is not {wanted}; mend or remove the row"
            )
    except pl.exceptions.PolarsError:
        pass  # not even text can be read: what was said at first is what there is to say
    return UserError(f"{path}: not a table that can be read: {str(error).splitlines()[0]}")

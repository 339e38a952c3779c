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
TOO_LONG = "\0too long"  # no name in a file
FIRST_ROW = 2  # the header is row 1


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
            # Finder adds a hidden twin for every file.
            return [name for name in file.namelist() if not name.endswith("/") and not Path(name).name.startswith(".")]
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive}: not a zip archive that can be read ({error}); fetch or make it again") from error


def packing(path: Path) -> str | None:
    """``gz``, ``zip``, ``parquet``, or None for anything else, told by the first bytes: names mislead."""
    with path.open("rb") as file:
        start = file.read(4)
    known = {b"\x1f\x8b": "gz", b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"PAR1": "parquet"}
    return next((kind for magic, kind in known.items() if start.startswith(magic)), None)


@contextmanager
def plain_file(path: Path, name: str | None = None) -> Iterator[Path]:
    """``path`` itself, or what it holds, unpacked into a temporary folder for the time being.

    Args:
        path: a plain file, a ``.gz`` file, or a ``.zip`` archive.
        name: which file of the archive is meant; may be left out where it holds one file only.

    Raises:
        UserError: a damaged file, or an archive that does not hold the file.
    """
    kind = packing(path)
    if kind is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="arnn-") as folder:
        unpacked = Path(folder) / "unpacked"
        try:
            if kind == "gz":
                with gzip.open(path) as packed, unpacked.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
            else:
                members = [member for member in _members(path) if name is None or Path(member).name == name]
                if len(members) != 1:
                    raise UserError(f"{path}: an archive of {len(members)} files where one is wanted; unpack it")
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
    quote: str | None = '"',
    name: str | None = None,
    aliases: Mapping[str, Sequence[str]] | None = None,
    required: Collection[str] = (),
    null_values: Sequence[str] = ("NULL", ""),
) -> pl.DataFrame:
    """Reads the named ``columns`` of one delimited file, in UTF-8.

    Args:
        path: the file, plain, gz or zip; a header such as ``table.user_id`` is taken as ``user_id``.
        columns: name -> type of the columns to read; the result has them in this order.
        separator: the field separator; None: comma, semicolon, tab or bar, whichever finds most of the columns.
        quote: what shields a separator within a field; None: nothing does.
        name: the file's name within a zip archive.
        aliases: name -> other names that the column bears in the wild.
        required: columns that hold a value in every row.
        null_values: texts that mean a missing value.

    Raises:
        UserError: a missing column (the nearest name is suggested) or one that the header names twice; a value that
            is missing or does not parse, or a row with too many fields, named with its row (the header is row 1).
    """
    with plain_file(path, name) as file:
        if separator is None:
            separator = max(SEPARATORS, key=lambda one: _fit(_header(file, one, quote, path), columns))
        names = _header(file, separator, quote, path)
        place = {column: _place(path, column, (aliases or {}).get(column, ()), names) for column in columns}

        def scan(types: Mapping[str, DType], spare: bool = True, nulls: bool = True) -> pl.LazyFrame:
            # Columns go by their place, since a header may repeat a name that nobody asked for. A spare one, behind
            # all that there are, catches rows that are too long.
            schema: dict[str, DType] = {str(index): pl.String() for index in range(len(names) + spare)}
            schema |= {str(place[column]): dtype for column, dtype in types.items()}
            too_long = pl.col(str(len(names))).is_not_null() if spare else pl.lit(False)
            return pl.scan_csv(
                file,
                separator=separator,
                quote_char=quote,
                schema=schema,
                null_values=list(null_values) if nulls else None,
                has_header=False,
                skip_rows=1,
                missing_columns="insert",
                glob=False,  # a name may hold brackets
            ).select(*(pl.col(str(place[column])).alias(column) for column in types), too_long.alias(TOO_LONG))

        try:
            try:
                # Polars itself raises for a row with more fields where all are read, and for texts among whole numbers.
                all_read = len(columns) == len(names)
                numbers = all(dtype.is_integer() for dtype in columns.values())
                texts = not any(character.isdigit() for value in null_values for character in value)
                frame = scan(columns, spare=not all_read, nulls=not (numbers and texts)).collect()
            except pl.exceptions.PolarsError:
                frame = scan(columns).collect()  # the field too many may be empty, the text a null value
        except pl.exceptions.PolarsError as error:
            text = scan(dict.fromkeys(columns, pl.String()))
            raise _explain(path, file, text, columns, separator, quote, len(names), error) from error
    if frame[TOO_LONG].any():
        row = frame[TOO_LONG].arg_true()[0] + FIRST_ROW
        raise UserError(f"{path}: row {row} has more fields than the {len(names)} columns; mend or remove it")
    frame = frame.drop(TOO_LONG)
    for column in required:
        require_filled(frame, column, path)
    return frame


def require_filled(frame: pl.DataFrame, column: str, path: Path, first_row: int = FIRST_ROW) -> None:
    """Raises UserError naming the first row in which ``column`` holds nothing."""
    if frame[column].has_nulls():
        empty = frame[column].is_null().arg_true()
        raise UserError(
            f"{path}: column {column!r} is empty in {len(empty):,} rows, the first is row {empty[0] + first_row}; "
            "fill or remove them"
        )


def require_values(frame: pl.DataFrame, column: str, allowed: Collection[int | str], path: Path) -> None:
    """Raises UserError naming the first value of ``column`` that is none of ``allowed`` (nor missing)."""
    strange = (~frame[column].is_in(list(allowed))).fill_null(False).arg_true()
    if len(strange):
        listed = ", ".join(map(str, allowed))
        raise UserError(
            f"{path}: column {column!r}, row {strange[0] + FIRST_ROW}: {frame[column][strange[0]]!r} is none of "
            f"{listed}; mend or remove the row"
        )


def _header(file: Path, separator: str, quote: str | None, path: Path) -> list[str]:
    """The names in the first line of ``file``; errors call it ``path``."""
    with file.open("rb") as lines:
        if lines.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{path}: UTF-16 where UTF-8 is expected; convert it (iconv -f utf-16 -t utf-8)")
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        names = next(csv.reader(lines, delimiter=separator, quotechar=quote), [])
    if not names:
        raise UserError(f"{path}: the file is empty, or its first line is; a header line is expected")
    return names


def _fit(names: Sequence[str], columns: Collection[str]) -> tuple[int, int]:
    return len(set(columns) & {*names, *(title.rsplit(".", 1)[-1] for title in names)}), len(names)


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
    path: Path,
    file: Path,
    text: pl.LazyFrame,
    columns: Mapping[str, DType],
    separator: str,
    quote: str | None,
    width: int,
    error: pl.exceptions.PolarsError,
) -> UserError:
    """Finds the first row or value that cannot be read, by reading the file again."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return UserError(
                    f"{path}: line {number} is not UTF-8: {line[:80]!r}; convert the file (iconv -f latin1 -t utf-8)"
                )
    typed = {column: dtype for column, dtype in columns.items() if dtype != pl.String}
    bad = {
        column: pl.col(column).is_not_null() & pl.col(column).str.strip_chars().cast(dtype, strict=False).is_null()
        for column, dtype in typed.items()
    }
    numbered = text.with_row_index("(row)")
    try:
        first = numbered.select(pl.col("(row)").filter(wrong).min().alias(name) for name, wrong in bad.items())
        found = (
            [(row, name) for name, row in first.collect().row(0, named=True).items() if row is not None] if bad else []
        )
        if found:
            row, column = min(found)
            value = text.select(column).slice(row, 1).collect().item()
            wanted = f"a whole number that fits {typed[column]}" if typed[column].is_integer() else str(typed[column])
            return UserError(
                f"{path}: column {column!r}, row {row + FIRST_ROW}: {value!r} is not {wanted}; mend or remove the row"
            )
    except pl.exceptions.PolarsError:
        pass  # not even text can be read: a row too long, or a quote that is not closed
    with file.open(encoding="utf-8-sig", newline="") as rows:
        try:
            for number, fields in enumerate(csv.reader(rows, delimiter=separator, quotechar=quote, strict=True), 1):
                if len(fields) > width:
                    return UserError(
                        f"{path}: row {number} has {len(fields)} fields for {width} columns; mend or remove it"
                    )
        except csv.Error as cause:
            return UserError(f"{path}: after row {number}: {cause}; is a quote left open?")
    return UserError(f"{path}: not a table that can be read: {str(error).splitlines()[0]}")

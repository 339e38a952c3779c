"""Typed reading of delimited files, plain, gz or zip, with errors that name file, column, row and value."""

import csv
import gzip
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from arnn_lightning.errors import UserError, nearest

DType = pl.DataType | type[pl.DataType]
SEPARATORS = (",", ";", "\t", "|")
TOO_MANY_FIELDS = "\0too many fields"  # not a name that a file can contain
FIRST_ROW = 2  # the header is row 1


def require_files(
    folder: Path, expected: Mapping[str, str], source_hint: str, optional: Collection[str] = ()
) -> dict[str, Path]:
    """The path of each of ``expected`` (file name -> its contents) in ``folder``: plain, gz, or in a zip archive.

    A zip archive that contains several of them is the path of each. Files of ``optional`` may be missing.

    Raises:
        UserError: the folder or a file is missing; names the files expected and ``source_hint``, where to get them.
    """
    contents = ", ".join(f"{name} ({what})" for name, what in expected.items())
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; expected: {contents}; {source_hint}; set data.raw_dir or ARNN_DATA")
    paths = {name: path for name in (*expected, *optional) if (path := _find_file(folder, name)) is not None}
    missing = [name for name in expected if name not in paths]
    if missing:
        raise UserError(f"{folder}: no {', '.join(missing)}; expected: {contents}, plain, gz or zip; {source_hint}")
    return paths


def _find_file(folder: Path, name: str) -> Path | None:
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
            # macOS adds a hidden twin for every file.
            return [name for name in file.namelist() if not name.endswith("/") and not Path(name).name.startswith(".")]
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive}: not a readable zip archive ({error}); download or create it again") from error


def file_format(path: Path) -> str | None:
    """``gz``, ``zip``, ``parquet`` or None; detected from magic bytes, since extensions are unreliable."""
    with path.open("rb") as file:
        start = file.read(4)
    magic_bytes = {b"\x1f\x8b": "gz", b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"PAR1": "parquet"}
    return next((kind for magic, kind in magic_bytes.items() if start.startswith(magic)), None)


@contextmanager
def decompressed(path: Path, name: str | None = None) -> Iterator[Path]:
    """``path`` itself, or its contents in a temporary file that exists inside the context.

    Args:
        path: a plain file, a ``.gz`` file, or a ``.zip`` archive.
        name: the file of the archive; None: the only one.

    Raises:
        UserError: a damaged file, or an archive that does not contain the file.
    """
    kind = file_format(path)
    if kind is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="arnn-") as folder:
        plain = Path(folder) / "plain"
        try:
            if kind == "gz":
                with gzip.open(path) as packed, plain.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
            else:
                members = [member for member in _members(path) if name is None or Path(member).name == name]
                if len(members) != 1:
                    raise UserError(f"{path}: expected an archive of one file, not of {len(members)}; unpack it")
                with zipfile.ZipFile(path) as archive, archive.open(members[0]) as packed, plain.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
            raise UserError(f"{path}: cannot be decompressed ({error}); download or create it again") from error
        yield plain


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
        path: the file, plain, gz or zip; a header such as ``table.user_id`` is read as ``user_id``.
        columns: name -> type of the columns to read; the result has them in this order.
        separator: the field separator; None: the one of SEPARATORS that yields most of the columns.
        quote: the quote character; None: quotes have no meaning.
        name: the file's name within a zip archive.
        aliases: name -> alternative names of the column.
        required: columns without missing values.
        null_values: strings that mean a missing value.

    Raises:
        UserError: a missing column (with the nearest name) or one that occurs twice in the header; a value that is
            missing or invalid, or a row with too many fields, with its number (the header is row 1).
    """
    with decompressed(path, name) as file:
        if separator is None:
            separator = max(SEPARATORS, key=lambda s: _count_matching_columns(_header(file, s, quote, path), columns))
        header = _header(file, separator, quote, path)
        index = {column: _column_index(path, column, (aliases or {}).get(column, ()), header) for column in columns}
        table = _Table(path, file, separator, quote, len(header), index, null_values).read(columns)
    for column in required:
        require_not_null(table, column, path)
    return table


@dataclass(frozen=True)
class _Table:
    """A decompressed text ``file`` (errors name ``path``) of ``width`` columns; ``index`` of those that are read."""

    path: Path
    file: Path
    separator: str
    quote: str | None
    width: int
    index: Mapping[str, int]
    null_values: Sequence[str]

    def read(self, columns: Mapping[str, DType]) -> pl.DataFrame:
        try:
            frame = self._collect(columns)
        except pl.exceptions.PolarsError as error:
            raise self._diagnose(columns, error) from error
        if frame[TOO_MANY_FIELDS].any():
            row = frame[TOO_MANY_FIELDS].arg_true()[0] + FIRST_ROW
            raise UserError(f"{self.path}: row {row} has more fields than the {self.width} columns; fix or remove it")
        return frame.drop(TOO_MANY_FIELDS)

    def _collect(self, columns: Mapping[str, DType]) -> pl.DataFrame:
        # Polars raises for a row with more fields where all columns are read, and for text in an integer column; only
        # then is the slower scan needed, for the extra field may be empty, and the text a null value.
        all_read = len(columns) == self.width
        only_integers = all(dtype.is_integer() for dtype in columns.values())
        null_digits = any(character.isdigit() for value in self.null_values for character in value)
        try:
            return self._scan(columns, extra_column=not all_read, nulls=null_digits or not only_integers).collect()
        except pl.exceptions.PolarsError:
            return self._scan(columns).collect()

    def _scan(self, columns: Mapping[str, DType], extra_column: bool = True, nulls: bool = True) -> pl.LazyFrame:
        """``columns`` and TOO_MANY_FIELDS. An extra column behind all others collects surplus fields."""
        # Columns are addressed by index, since names of columns that are not read may repeat.
        schema: dict[str, DType] = {str(index): pl.String() for index in range(self.width + extra_column)}
        schema |= {str(self.index[column]): dtype for column, dtype in columns.items()}
        too_many = pl.col(str(self.width)).is_not_null() if extra_column else pl.lit(False)
        table = pl.scan_csv(
            self.file,
            separator=self.separator,
            quote_char=self.quote,
            schema=schema,
            null_values=list(self.null_values) if nulls else None,
            has_header=False,
            skip_rows=1,
            missing_columns="insert",
            glob=False,  # a file name may contain brackets
        )
        named = (pl.col(str(self.index[column])).alias(column) for column in columns)
        return table.select(*named, too_many.alias(TOO_MANY_FIELDS))

    def _diagnose(self, columns: Mapping[str, DType], error: pl.exceptions.PolarsError) -> UserError:
        """Reads the file again to find the first line, value or row that is invalid."""
        try:
            problem = self._not_utf8() or self._invalid_value(columns)
        except pl.exceptions.PolarsError:
            problem = None  # not readable as strings either: a row too long, or an unclosed quote
        problem = problem or self._malformed_row() or f"not a readable table: {str(error).splitlines()[0]}"
        return UserError(f"{self.path}: {problem}")

    def _not_utf8(self) -> str | None:
        with self.file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    line.decode()
                except UnicodeDecodeError:
                    return f"line {number} is not UTF-8: {line[:80]!r}; convert the file (iconv -f latin1 -t utf-8)"
        return None

    def _invalid_value(self, columns: Mapping[str, DType]) -> str | None:
        typed = {column: dtype for column, dtype in columns.items() if dtype != pl.String}
        if not typed:
            return None
        text = self._scan(dict.fromkeys(columns, pl.String()))
        is_invalid = {
            column: pl.col(column).is_not_null() & pl.col(column).str.strip_chars().cast(dtype, strict=False).is_null()
            for column, dtype in typed.items()
        }
        first = text.with_row_index("(row)").select(
            pl.col("(row)").filter(invalid).min().alias(column) for column, invalid in is_invalid.items()
        )
        rows = [(row, name) for name, row in first.collect().row(0, named=True).items() if row is not None]
        if not rows:
            return None
        row, column = min(rows)
        value = text.select(column).slice(row, 1).collect().item()
        dtype = typed[column]
        expected = f"an integer that fits {dtype}" if dtype.is_integer() else str(dtype)
        return f"column {column!r}, row {row + FIRST_ROW}: {value!r} is not {expected}; fix or remove the row"

    def _malformed_row(self) -> str | None:
        with self.file.open(encoding="utf-8-sig", newline="") as lines:
            number = 0
            try:
                rows = csv.reader(lines, delimiter=self.separator, quotechar=self.quote, strict=True)
                for number, fields in enumerate(rows, 1):
                    if len(fields) > self.width:
                        return f"row {number} has {len(fields)} fields for {self.width} columns; fix or remove it"
            except csv.Error as cause:
                return f"after row {number}: {cause}; check for an unclosed quote"
        return None


def require_not_null(frame: pl.DataFrame, column: str, path: Path, first_row: int = FIRST_ROW) -> None:
    """Raises UserError naming the first row in which ``column`` is missing."""
    if frame[column].has_nulls():
        empty = frame[column].is_null().arg_true()
        raise UserError(
            f"{path}: column {column!r} is empty in {len(empty):,} rows, the first is row {empty[0] + first_row}; "
            "fill or remove them"
        )


def require_one_of(frame: pl.DataFrame, column: str, allowed: Collection[int | str], path: Path) -> None:
    """Raises UserError naming the first value of ``column`` that is neither in ``allowed`` nor missing."""
    invalid = (~frame[column].is_in(list(allowed))).fill_null(False).arg_true()
    if len(invalid):
        raise UserError(
            f"{path}: column {column!r}, row {invalid[0] + FIRST_ROW}: {frame[column][invalid[0]]!r} is not one of "
            f"{', '.join(map(str, allowed))}; fix or remove the row"
        )


def _header(file: Path, separator: str, quote: str | None, path: Path) -> list[str]:
    """The names in the first line of ``file``; errors name ``path``."""
    with file.open("rb") as lines:
        if lines.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{path}: encoded in UTF-16, must be UTF-8; convert it (iconv -f utf-16 -t utf-8)")
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        names = next(csv.reader(lines, delimiter=separator, quotechar=quote), [])
    if not names:
        raise UserError(f"{path}: the file or its first line is empty; the first line must be a header")
    return names


def _unprefixed(header: Sequence[str]) -> list[str]:
    return [name.rsplit(".", 1)[-1] for name in header]


def _count_matching_columns(header: Sequence[str], columns: Collection[str]) -> tuple[int, int]:
    return len(set(columns) & {*header, *_unprefixed(header)}), len(header)


def _column_index(path: Path, column: str, aliases: Sequence[str], header: Sequence[str]) -> int:
    """The index of a column: by its full name, else by its name without prefix, else by its aliases."""
    unprefixed = _unprefixed(header)
    for name in (column, *aliases):
        for names in (header, unprefixed):
            matches = [index for index, candidate in enumerate(names) if candidate == name]
            if len(matches) > 1:
                listed = ", ".join(header[index] for index in matches)
                raise UserError(f"{path}: {len(matches)} columns are named {name!r} ({listed}); rename all but one")
            if matches:
                return matches[0]
    raise UserError(f"{path}: no column {column!r}{nearest(column, unprefixed)}; its columns: {', '.join(unprefixed)}")

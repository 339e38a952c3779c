"""Typed reading of delimited files, plain or compressed, with errors that name file, column, row and value."""

import bz2
import codecs
import contextlib
import csv
import errno
import gzip
import lzma
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from arnn_lightning.errors import MissingColumnError, UserError, nearest

DType = pl.DataType | type[pl.DataType]
SEPARATORS = (",", ";", "\t", "|", "::")
UTF_8 = ("utf-8", "utf8", "utf-8-sig")
UNIT_SEPARATOR = "\x1f"  # polars separates by one character: this one replaces a longer separator
TOO_MANY_FIELDS = "\0too many fields"  # not a name that a file can contain
FIRST_ROW = 2  # the header is row 1
SCAN_BYTES = 1 << 20
MAX_LINES = 100  # of the first row
QUOTES = "double a quote within quotes; where quotes are ordinary characters, set data.quote=null"
SKIPPABLE_FRAME = b"\x50\x2a\x4d\x18"  # of zstd; polars reads no file that begins with one
SQLITE, SPREADSHEET = b"SQLite format 3", b"\xd0\xcf\x11\xe0"  # the latter: .xls
MAGIC_BYTES = {
    b"\x1f\x8b": "gz",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"PAR1": "parquet",
}
OPEN: dict[str, Callable[..., Any]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
PACKED = (*OPEN, "zst")


def require_files(
    raw_dir: str | Path | None, expected: Mapping[str, str], source_hint: str, optional: Collection[str] = ()
) -> dict[str, Path]:
    """The path of each of ``expected`` (file name -> its contents) in ``raw_dir``, plain, compressed or in a zip file.

    A zip archive that contains several of them is the path of each. Files of ``optional`` may be missing.

    Raises:
        UserError: the folder or a file is missing; names the files expected and ``source_hint``, where to get them.
    """
    contents = ", ".join(f"{name} ({what})" for name, what in expected.items())
    if raw_dir is None:
        raise UserError(f"data.raw_dir=null: must be the folder of the raw files: {contents}; {source_hint}")
    folder = Path(raw_dir).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; expected: {contents}; {source_hint}; set data.raw_dir or ARNN_DATA")
    paths = {name: path for name in (*expected, *optional) if (path := find_file(folder / name)) is not None}
    missing = [name for name in expected if name not in paths]
    if missing:
        where = "plain, compressed (gz, bz2, xz, zst), or in a zip archive"
        raise UserError(
            f"{folder}: no {', '.join(missing)}{unreadable_archives(folder)}; expected: {contents}, {where}; "
            f"{source_hint}"
        )
    return paths


def find_file(path: Path) -> Path | None:
    """The file ``path``, else its compressed form (``log.csv.gz``), else the zip archive of its folder that has it.

    Raises:
        UserError: several archives have it.
    """
    for suffix in ("", *(f".{kind}" for kind in PACKED)):
        if (candidate := path.with_name(path.name + suffix)).is_file():
            return candidate
    archives = []
    for archive in sorted(path.parent.glob("*.zip")):
        with contextlib.suppress(zipfile.BadZipFile):  # of another file, perhaps: see unreadable_archives
            if any(Path(member).name == path.name for member in _members(archive)):
                archives.append(archive)
    if len(archives) > 1:
        names = ", ".join(archive.name for archive in archives)
        raise UserError(f"{path} is in {len(archives)} archives ({names}); remove all but one, or unpack one")
    return archives[0] if archives else None


def member_path(path: Path, name: str | None) -> Path:
    """How errors name the file ``name`` of a zip archive that contains several files; any other path as it is."""
    return path / name if name is not None and path.suffix == ".zip" else path


def unreadable_archives(folder: Path) -> str:
    """A remark on the damaged zip archives of a folder in which a file is missing; empty if there are none."""
    damaged = [archive.name for archive in sorted(folder.glob("*.zip")) if not zipfile.is_zipfile(archive)]
    return f" (damaged, download or create again: {', '.join(damaged)})" if damaged else ""


def _members(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as file:
        # macOS adds a hidden twin for every file.
        return [name for name in file.namelist() if not name.endswith("/") and not Path(name).name.startswith(".")]


def file_format(path: Path) -> str | None:
    """How a file is compressed, ``parquet``, or None; detected from magic bytes, since extensions are unreliable."""
    with path.open("rb") as file:
        start = file.read(6)
    return next((kind for magic, kind in MAGIC_BYTES.items() if start.startswith(magic)), None)


@contextmanager
def decompressed(path: Path, name: str | None = None) -> Iterator[Path]:
    """``path`` itself, or its contents in a temporary file that exists inside the context.

    Args:
        path: a plain file, one compressed by gzip, bzip2, xz or zstd, or a ``.zip`` archive.
        name: the file of the archive; None: the only one.

    Raises:
        UserError: a damaged file, an archive that does not contain the file, or a parquet file.
    """
    kind = file_format(path)
    if kind is None:
        yield path
        return
    if kind == "parquet":
        raise UserError(f"{path}: is a parquet file; this file must be text, such as CSV")
    with tempfile.TemporaryDirectory(prefix="arnn-") as folder:
        plain = Path(folder) / "plain"
        try:
            if kind == "zst":  # the standard library has it from Python 3.14 on
                pl.scan_lines(path, glob=False).sink_csv(plain, include_header=False, quote_style="never")
            elif kind == "zip":
                if "[Content_Types].xml" in _members(path):
                    raise UserError(f"{path}: a spreadsheet; export it as CSV")
                members = [member for member in _members(path) if name is None or Path(member).name == name]
                if not members:
                    raise UserError(f"{path}: contains no {name or 'file'}")
                if len(members) > 1:
                    raise UserError(f"{path}: must contain one file, not {len(members)}; unpack it")
                with zipfile.ZipFile(path) as archive, archive.open(members[0]) as packed, plain.open("wb") as file:
                    shutil.copyfileobj(packed, file, SCAN_BYTES)
            else:
                with OPEN[kind](path) as packed, plain.open("wb") as file:
                    shutil.copyfileobj(packed, file, SCAN_BYTES)
        except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                where = Path(folder).parent
                raise UserError(f"{path}: cannot be decompressed in {where}, which is full; set TMPDIR") from error
            raise UserError(f"{path}: cannot be decompressed ({error}); download or create it again") from error
        except pl.exceptions.PolarsError as error:
            reason = str(error).splitlines()[0]
            if "utf8" in reason:
                raise UserError(f"{path}: zst is read in UTF-8 only; decompress it (zstd -d {path.name})") from error
            raise UserError(f"{path}: cannot be decompressed ({reason}); download or create it again") from error
        yield plain


@contextmanager
def _as_utf8(file: Path, path: Path, encoding: str, separator: str, quote: str | None) -> Iterator[tuple[Path, str]]:
    """A text file in UTF-8 with a separator of one character, and this separator; errors name ``path``."""
    if encoding.lower() in UTF_8 and len(separator) == 1:
        yield file, separator
        return
    short, shorten = _one_character_separator(separator, quote)
    with tempfile.TemporaryDirectory(prefix="arnn-") as folder:
        recoded = Path(folder) / "recoded"
        with (
            file.open(encoding=encoding, newline="") as lines,
            recoded.open("w", encoding="utf-8", newline="") as output,
        ):
            try:
                output.writelines(map(shorten, lines))
            except UnicodeError as error:
                raise UserError(f"{path}: is not in data.encoding={encoding}: {error}") from error
        yield recoded, short


def _one_character_separator(separator: str, quote: str | None) -> tuple[str, Callable[[str], str]]:
    """A separator of one character, and what puts it in the place of ``separator``, except within quotes of a line."""
    if len(separator) == 1:
        return separator, lambda line: line
    s, q = re.escape(separator), re.escape(quote or UNIT_SEPARATOR)
    quoted_or_separator = re.compile(f"(?:^|(?<={s})){q}(?:[^{q}]|{q}{q})*{q}(?={s}|\\s*$)|{s}")

    def shorten(line: str) -> str:
        if quote is None or quote not in line:
            return line.replace(separator, UNIT_SEPARATOR)
        return quoted_or_separator.sub(lambda match: UNIT_SEPARATOR if match[0] == separator else match[0], line)

    return UNIT_SEPARATOR, shorten


def read_delimited(
    path: Path,
    columns: Mapping[str, DType],
    *,
    separator: str | None,
    quote: str | None = '"',
    header: Sequence[str] | None = None,
    encoding: str = "utf-8",
    name: str | None = None,
    aliases: Mapping[str, Sequence[str]] | None = None,
    required: Collection[str] = (),
    null_values: Sequence[str] = ("NULL", ""),
) -> pl.DataFrame:
    """Reads the named ``columns`` of one delimited file.

    Blank lines at the end of the file are no rows.

    Args:
        path: the file, plain or compressed; a header such as ``table.user_id`` is read as ``user_id``.
        columns: name -> type of the columns to read; the result has them in this order.
        separator: the field separator; None: the one of SEPARATORS that yields most of the columns.
        quote: the quote character; None: quotes have no meaning.
        header: the names of all columns of a file without a header line.
        encoding: of the text, as Python names it.
        name: the file's name within a zip archive.
        aliases: name -> alternative names of the column.
        required: columns without missing values.
        null_values: strings that mean a missing value.

    Raises:
        UserError: a missing column (with the nearest name) or one that occurs twice in the header; a value that is
            missing or invalid, a row with too many fields or a misplaced quote, with its number (the first line is
            row 1).
    """
    with decompressed(path, name) as file:
        path = member_path(path, name)
        with file.open("rb") as lines:
            start = lines.read(512)
        if start.startswith(codecs.BOM_UTF8):
            encoding = "utf-8"  # whatever the encoding of the other files
        _require_text(start, encoding.lower() in UTF_8, path, header is None)
        separators = SEPARATORS if separator is None else (separator,)
        first_rows = {separator: _read_first_row(file, separator, quote, encoding) for separator in separators}
        separator = max(first_rows, key=lambda separator: _rate_separator(first_rows[separator], columns, header))
        names = _checked_fields(first_rows[separator], path)
        if header is not None:
            if len(names) > len(header) or len(names) == 1 < len(header):
                raise UserError(
                    f"{path}: the header has {len(header)} columns, but row 1 has {len(names)} fields, separated by "
                    f"{separator!r}: {names}; name all columns in their order"
                )
            if set(names) <= set(header):
                raise UserError(f"{path}: row 1 is a header: {', '.join(names)}; remove data.header")
            names = list(header)
        index = {column: _column_index(path, column, (aliases or {}).get(column, ()), names) for column in columns}
        with _as_utf8(file, path, encoding, separator, quote) as (file, separator):
            first_row = FIRST_ROW if header is None else 1
            table = _Table(path, file, separator, quote, len(names), first_row, index, null_values).read(columns)
    for column in required:
        require_not_null(table, column, path, first_row)
    return table


def read_header(path: Path, columns: Collection[str]) -> list[str]:
    """The names in the header of a delimited file; its separator is the one that yields most of ``columns``.

    Raises:
        UserError: it is no text, or empty.
    """
    with decompressed(path) as file:
        with file.open("rb") as lines:
            _require_text(lines.read(512), True, path, True)
        rows = [_read_first_row(file, separator, '"', "utf-8") for separator in SEPARATORS]
    return _checked_fields(max(rows, key=lambda row: _rate_separator(row, columns, None)), path)


@dataclass(frozen=True)
class _Table:
    """A decompressed text ``file`` (errors name ``path``) of ``width`` columns; ``index`` of those that are read."""

    path: Path
    file: Path
    separator: str
    quote: str | None
    width: int
    first_row: int  # the number of the first row of data
    index: Mapping[str, int]
    null_values: Sequence[str]

    def read(self, columns: Mapping[str, DType]) -> pl.DataFrame:
        try:
            frame = self._collect(columns)
        except pl.exceptions.PolarsError as error:
            raise self._diagnose(columns, error) from error
        if self.quote is not None and self._has_doubtful_quotes(frame.height) and (problem := self._malformed_row()):
            raise UserError(f"{self.path}: {problem}")
        if frame[TOO_MANY_FIELDS].any():
            row = frame[TOO_MANY_FIELDS].arg_true()[0] + self.first_row
            raise UserError(f"{self.path}: row {row} has more fields than the {self.width} columns; fix or remove it")
        return frame.drop(TOO_MANY_FIELDS).head(frame.height - self._trailing_blank_lines())

    @cached_property
    def _end_of_line(self) -> str:
        with self.file.open("rb") as lines:
            start = lines.read(SCAN_BYTES)
        return "\r" if b"\r" in start and b"\n" not in start else "\n"

    def _trailing_blank_lines(self) -> int:
        with self.file.open("rb") as lines:
            lines.seek(-min(self.file.stat().st_size, SCAN_BYTES), 2)
            end = lines.read()
        blank = end[len(end.rstrip(b" \r\n")) :]
        ends = self._end_of_line.encode()
        return blank.count(ends) - blank.endswith(ends)

    def _has_doubtful_quotes(self, n_rows: int) -> bool:
        """Whether some quoted field spans lines, as one does that a misplaced quote opens, or contains a backslash."""
        quote, end = str(self.quote).encode(), ord(self._end_of_line)
        if not any(quote in chunk for chunk in self._chunks()):
            return False
        n_lines, last = 0, b""
        for chunk in self._chunks():
            if b"\\" + quote in last[-1:] + chunk:
                return True
            n_lines += int(np.count_nonzero(np.frombuffer(chunk, np.uint8) == end))
            last = chunk
        return n_lines + (last[-1] != end) != n_rows + self.first_row - 1

    def _chunks(self) -> Iterator[bytes]:
        with self.file.open("rb", buffering=0) as file:
            yield from iter(partial(file.read, SCAN_BYTES), b"")

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
            skip_rows=self.first_row - 1,
            eol_char=self._end_of_line,
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
                    advice = "convert the file (iconv -f latin1 -t utf-8) or set data.encoding"
                    return f"line {number} is not UTF-8: {line[:80]!r}; {advice}"
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
        return f"column {column!r}, row {row + self.first_row}: {value!r} is not {expected}; fix or remove the row"

    def _malformed_row(self) -> str | None:
        """The first row with too many fields or a misplaced quote."""
        lines: list[str] = []  # of the current row
        n_rows = 0

        def read_lines(file: Iterable[str]) -> Iterator[str]:
            for line in file:
                lines.append(line)
                yield line

        with self.file.open(encoding="utf-8-sig", errors="replace", newline="") as file, _fields_of_any_length():
            rows = csv.reader(read_lines(file), delimiter=self.separator, quotechar=self.quote, strict=True)
            try:
                for n_rows, fields in enumerate(rows, 1):
                    if len(fields) > self.width:
                        return f"row {n_rows} has more fields than the {self.width} columns; fix or remove it"
                    # A row of several lines, each of which has the fields of a row, is several rows.
                    if len(lines) > 1 and {line.count(self.separator) for line in lines} == {self.width - 1}:
                        text, count = lines[0].strip()[:80], len(lines)
                        return f"row {n_rows}: a quote opens in {text!r} and joins {count} rows; {QUOTES}"
                    if self.quote and sum(line.count(self.quote) for line in lines) % 2:
                        return f"row {n_rows}: a quote within the field in {lines[0].strip()[:80]!r}; {QUOTES}"
                    lines.clear()
            except csv.Error as cause:
                text = lines[0].strip()[:80] if lines else ""
                return f"row {n_rows + 1}, {text!r}: {cause}; {QUOTES}"
        return None


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Python's csv module refuses fields of more than 131,072 characters, which polars reads."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def file_rows(files: Mapping[str, Path], first_row: int = FIRST_ROW) -> Callable[[str, int], str]:
    """The ``row_location`` of RawData for tables of one file each; ``files``: as errors name them."""
    return lambda table, row: f"{files[table]}, row {row + first_row}"


def describe_missing(is_missing: pl.Series, first_row: int) -> str:
    """Where a column is empty, as the predicate of an error."""
    rows = is_missing.arg_true()
    first = f"row {rows[0] + first_row}"
    return f"is empty in {first}" if len(rows) == 1 else f"is empty in {len(rows):,} rows, the first is {first}"


def require_not_null(frame: pl.DataFrame, column: str, path: object, first_row: int = FIRST_ROW) -> None:
    """Raises UserError naming the first row in which ``column`` is missing."""
    if frame[column].has_nulls():
        where = describe_missing(frame[column].is_null(), first_row)
        raise UserError(f"{path}: column {column!r} {where}; fill in the empty values or remove their rows")


def require_one_of(frame: pl.DataFrame, column: str, allowed: Collection[int | str], path: Path) -> None:
    """Raises UserError naming the first value of ``column`` that is neither in ``allowed`` nor missing."""
    invalid = (~frame[column].is_in(list(allowed))).fill_null(False).arg_true()
    if len(invalid):
        raise UserError(
            f"{path}: column {column!r}, row {invalid[0] + FIRST_ROW}: {frame[column][invalid[0]]!r} is not one of "
            f"{', '.join(map(str, allowed))}; fix or remove the row"
        )


def _require_text(start: bytes, is_utf8: bool, path: Path, has_header: bool) -> None:
    """Raises UserError if the first bytes of a file are not those of a table in delimited text."""
    if is_utf8 and (start.startswith((b"\xff\xfe", b"\xfe\xff")) or (start[:2].count(0) == 1 and len(start) > 1)):
        # Without a byte order mark, every other byte of ASCII letters is 0.
        encoding = "utf-16" if start[0] >= 0xFE else "utf-16-le" if start[1] == 0 else "utf-16-be"
        raise UserError(
            f"{path}: encoded in UTF-16, must be UTF-8; convert it (iconv -f {encoding} -t utf-8) or set "
            f"data.encoding={encoding}"
        )
    if start.startswith(b"PAR1"):
        raise UserError(f"{path}: a parquet file in a compressed file or an archive; unpack it")
    if start[257:262] == b"ustar":
        raise UserError(f"{path}: a tar archive; unpack it (tar -xf) and name its file")
    if start.startswith(SKIPPABLE_FRAME):
        raise UserError(f"{path}: zstd with frames of another program, such as pzstd; decompress it (zstd -d)")
    if start.startswith(SQLITE):
        raise UserError(f"{path}: an SQLite database; export the table as CSV")
    if start.startswith(SPREADSHEET):
        raise UserError(f"{path}: a spreadsheet or another document of MS Office; export it as CSV")
    if is_utf8 and b"\0" in start:
        raise UserError(f"{path}: a binary file, starting with {start[:8]!r}; export it as CSV or parquet")
    text = start.removeprefix(codecs.BOM_UTF8).lstrip()
    if has_header and re.match(rb'\[?\s*\{\s*("|$)', text):
        raise UserError(f"{path}: JSON; convert it to CSV or parquet, as with polars' read_ndjson or read_json")
    if (has_header and re.match(rb"#[^,;\t|]*\r?\n", text)) or re.match(rb"(?i)sep=.\r?\n", text):
        line = text.splitlines()[0][:80].decode(errors="replace")
        raise UserError(f"{path}: row 1 is {line!r}; it must be the header; remove the lines before it (tail -n +2)")


class _FirstRow(NamedTuple):
    """The first row of a file, split by some separator.

    Attributes:
        fields: without spaces around them.
        lines: the lines that the row extends over; of a quote that does not close, all that were read.
        is_closed: whether every quote closes.
    """

    fields: list[str]
    lines: list[str]
    is_closed: bool


def _read_first_row(file: Path, separator: str, quote: str | None, encoding: str) -> _FirstRow:
    is_utf8 = encoding.lower() in UTF_8
    short, shorten = _one_character_separator(separator, quote)
    with file.open(encoding="utf-8-sig" if is_utf8 else encoding, errors="replace", newline="") as lines:
        first = list(islice(lines, MAX_LINES))
    rows = csv.reader(map(shorten, first), delimiter=short, quotechar=quote)
    with _fields_of_any_length():
        fields = [field.strip() for field in next(rows, [])]
    return _FirstRow(fields, first[: rows.line_num], not 1 < rows.line_num == len(first))


def _checked_fields(row: _FirstRow, path: Path) -> list[str]:
    """The fields of the first row of ``path``; raises UserError if a quote does not close or there is none."""
    if not row.is_closed:
        raise UserError(f"{path}: row 1: a quote opens in {row.lines[0].strip()[:80]!r} and does not close; {QUOTES}")
    if not any(row.fields):
        raise UserError(f"{path}: the file or its first line is empty; the first line must be a header or a row")
    return row.fields


def _unprefixed(header: Sequence[str]) -> list[str]:
    return [name.rsplit(".", 1)[-1] or name for name in header]


def _rate_separator(
    row: _FirstRow, columns: Collection[str], header: Sequence[str] | None
) -> tuple[int, bool, int, int]:
    """Greater for a separator that splits the first row into more of the columns, or into as many as a header has.

    Among equals, a quote that does not close or that joins lines belongs to a field of another separator.
    """
    names = {*row.fields, *_unprefixed(row.fields)}
    n_fitting = len(set(columns) & names) if header is None else int(len(row.fields) == len(header))
    return n_fitting, row.is_closed, -len(row.lines), len(row.fields)


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
    hint = nearest(column, unprefixed)
    if not hint and any(name.isdigit() for name in unprefixed):
        hint = " (is the first line a header? if not, set data.header)"
    raise MissingColumnError(path, column, unprefixed, hint)

"""How values are written in the files of a table, and their canonical types."""

import ast
import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from arnn_lightning.errors import UserError
from arnn_lightning.readers.delimited import file_format, read_delimited
from arnn_lightning.readers.parquet import read_parquet
from arnn_lightning.readers.schema import parse_dates, to_dates, with_decimal_point
from arnn_lightning.readers.tabular_files import TableFile


@dataclass(frozen=True)
class TableFormat:
    """Reads columns of delimited text or parquet, and parses their values.

    Attributes:
        quote, encoding, null_values, list_separator, date_format, decimal: as of ``TabularReader``.
    """

    quote: str | None
    encoding: str
    null_values: Sequence[str]
    list_separator: str
    date_format: str | None
    decimal: str

    def read(self, file: TableFile, columns: Sequence[str], ids: Sequence[str]) -> pl.DataFrame:
        """The named columns of one file; ``ids`` are integers or strings."""
        columns = list(dict.fromkeys(columns))
        if file_format(file.path) != "parquet":
            frame = read_delimited(
                file.path,
                dict.fromkeys(columns, pl.String()),
                separator=None,
                quote=self.quote,
                header=file.header,
                encoding=self.encoding,
                name=file.member,
                null_values=self.null_values,
            )
            for column in ids:
                _require_digits(frame[column], file)
            return frame.with_columns(strip_text(frame[column]) for column in ids)
        frame = read_parquet(file.path, columns, file)
        return frame.with_columns(self._normalize_parquet(column, column.name in ids, file) for column in frame)

    def parse_attribute(self, column: pl.Series, kind: str, file: TableFile) -> pl.Series:
        """An attribute in its canonical type: String, List(String), and Float64 or Date for a numeric one."""
        value_type = column.dtype.inner if isinstance(column.dtype, pl.List | pl.Array) else None
        if kind == "multi":
            lists = (
                column.cast(pl.List(value_type)).list.eval(pl.element().map_batches(plain_text, pl.String))
                if value_type is not None
                else _split_lists(column.cast(pl.String), self.list_separator)
            )
            element = pl.element().str.strip_chars()
            is_known = ~element.is_in(["", *self.null_values])
            return lists.list.eval(element.filter(is_known)).list.unique(maintain_order=True)
        if value_type is not None:
            raise UserError(
                f"{file}: column {column.name!r} is a list; name it in data.contexts.multi (users) or "
                "data.item_contexts.multi (items)"
            )
        if kind == "numeric":
            dates = parse_dates(column, self.date_format)
            if dates.dtype == pl.Date:
                return dates
            self._require_no_invalid_date(column, file)
            return self.parse_number(column, file).cast(pl.Float64)
        text = plain_text(column)
        return text.set(text.is_in(["", *self.null_values]), None)

    def _require_no_invalid_date(self, column: pl.Series, file: TableFile) -> None:
        """Raises UserError for the first text that is not a date in a column of which most texts are dates."""
        if column.dtype != pl.String:
            return
        dates = to_dates(column, self.date_format)
        is_invalid = dates.is_null() & column.is_not_null() & (column.str.strip_chars() != "")
        if 0 < int(is_invalid.sum()) < len(dates) - dates.null_count():
            row = is_invalid.arg_true()[0]
            expected = "an ISO 8601 date" if self.date_format is None else f"in the format {self.date_format}"
            raise UserError(
                f"{file.location(column.name, row)}: {column[row]!r} is not {expected}; fix or remove it, "
                "or set data.date_format"
            )

    def parse_number(self, column: pl.Series, file: TableFile) -> pl.Series:
        """A column of numbers as Int64 or Float64, null where missing; dates in nanoseconds since 1970."""
        if column.dtype == pl.String:
            text = column.str.strip_chars()
            text = text.set(text == "", None)
            number = text.cast(pl.Int64, strict=False)
            if number.null_count() > text.null_count():
                number = with_decimal_point(text, self.decimal).cast(pl.Float64, strict=False)
        elif column.dtype == pl.Date or isinstance(column.dtype, pl.Datetime):
            text, number = column, column.cast(pl.Datetime("ns"), strict=False).to_physical()
        elif column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null):
            text, number = column, column if column.dtype.is_integer() else column.cast(pl.Float64)
        else:
            raise UserError(f"{file}: column {column.name!r} contains {column.dtype}; must be numbers")
        is_invalid = text.is_not_null() & (number.is_null() | number.cast(pl.Float64).is_infinite())
        if is_invalid.any():
            row = is_invalid.arg_true()[0]
            value = str(column[row])
            keys = {
                r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?": "remove its commas if they separate thousands",
                r"[+-]?[\d.]*,\d*": "set data.decimal=',' if the comma is the decimal separator",
                r"\d{1,4}([./-])\d{1,2}\1\d{1,4}.*": "set data.date_format",
            }
            advice = "".join(f", or {key}" for form, key in keys.items() if re.fullmatch(form, value.strip()))
            raise UserError(f"{file.location(column.name, row)}: {value!r} is not a number; fix or remove it{advice}")
        return number.fill_nan(None) if number.dtype.is_float() else number

    def _normalize_parquet(self, column: pl.Series, is_id: bool, file: TableFile) -> pl.Series:
        """A parquet column as read from a text file: categories are strings, NaN and null strings are missing."""
        value_type = getattr(column.dtype, "inner", column.dtype)  # of a list
        if value_type.is_nested() or value_type in (pl.Duration, pl.Object):
            raise UserError(f"{file}: column {column.name!r} contains {column.dtype}; store it as text or numbers")
        if isinstance(column.dtype, pl.Categorical | pl.Enum):
            column = column.cast(pl.String)
        if column.dtype == pl.Binary:
            try:
                column = column.cast(pl.String)
            except pl.exceptions.PolarsError as error:
                problem = "contains bytes that are not UTF-8 text; store it as text, such as hexadecimal digits"
                raise UserError(f"{file}: column {column.name!r} {problem}") from error
        if column.dtype == pl.String:
            column = strip_text(column) if is_id else column
            return column.set(column.is_in(list(self.null_values)), None)
        if is_id and isinstance(column.dtype, pl.Decimal):
            integers = column.cast(pl.Int64, strict=False)
            return integers if integers.cast(column.dtype, strict=False).equals(column) else column
        if not column.dtype.is_float():
            return column
        column = column.fill_nan(None)
        if not is_id:
            return column
        # pandas stores integers as floats where a value is missing.
        limit = 2**24 if column.dtype == pl.Float32 else 2**53
        for is_invalid, problem in (
            ((column != column.floor()) | column.is_infinite(), "not a valid id; ids must be integers or strings"),
            (column.abs() > limit, f"a float above {limit}, where ids are not exact; store integers or strings"),
        ):
            if is_invalid.any():
                row = is_invalid.arg_true()[0]
                raise UserError(f"{file.location(column.name, row)}: {column[row]} is {problem}")
        return column.cast(pl.Int64)


def strip_text(text: pl.Series) -> pl.Series:
    """Text without spaces around it; null for spaces only."""
    if not (text.str.starts_with(" ") | text.str.ends_with(" ")).any():
        return text  # stripping copies all of it
    stripped = text.str.strip_chars()
    return stripped.set(stripped == "", None)


def _require_digits(ids: pl.Series, file: TableFile) -> None:
    """Raises UserError for an id in the scientific notation of spreadsheets, which keeps some of its digits only."""
    if not ids.str.contains("+", literal=True).any():
        return
    is_scientific = ids.str.contains(r"^\s*\d([.,]\d+)?[eE]\+\d{2,}\s*$").fill_null(False)
    if is_scientific.any():
        row = is_scientific.arg_true()[0]
        raise UserError(
            f"{file.location(ids.name, row)}: {ids[row]!r} is in scientific notation, without some digits of the id; "
            "export the column as text"
        )


def _split_lists(text: pl.Series, separator: str) -> pl.Series:
    """Lists of strings: the values between separators, or those of a list or set of JSON, Python or Postgres."""
    is_bracketed = text.str.contains(r"(?s)^\s*(\[.*\]|\{.*\}|set\(\))\s*$").fill_null(False)
    lists = text.str.split(separator)
    if not is_bracketed.any():
        return lists
    values = text.filter(is_bracketed).unique()
    parsed = pl.Series([_parse_list(value, separator) for value in values], dtype=pl.List(pl.String))
    table = pl.DataFrame({"text": values, "parsed": parsed})
    joined = pl.DataFrame({"text": text, "list": lists}).join(table, on="text", how="left", maintain_order="left")
    return joined.select(pl.coalesce("parsed", "list")).to_series()


def _parse_list(text: str, separator: str) -> list[str]:
    """The values of a list in brackets, or of a set or a Postgres array in braces.

    >>> _parse_list('["folk", "rock, hard"]', ","), _parse_list("['folk' 'rock']", ","), _parse_list("[folk;3]", ";")
    (['folk', 'rock, hard'], ['folk', 'rock'], ['folk', '3'])
    >>> _parse_list('{folk,"rock, hard",NULL}', ","), _parse_list("{'folk'}", ","), _parse_list("set()", ",")
    (['folk', 'rock, hard'], ['folk'], [])
    """
    if text.strip() == "set()":
        return []
    for parse in (json.loads, _parse_python_list):
        try:
            # Of a mapping, the keys; NaN is the only value that differs from itself.
            return [as_text(value) for value in parse(text.strip()) if value is not None and value == value]
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # the latter: deeply nested
            continue
    inner = text.strip()[1:-1]
    if re.search(r"[][{}]", re.sub(r'"[^"]*"', "", inner)):  # brackets within the text, such as [Live] Rock [Remix]
        return text.split(separator)
    if text.strip().startswith("{"):  # Postgres separates by commas and quotes values that contain one
        return [value for value in next(csv.reader([inner], escapechar="\\"), []) if value != "NULL"]
    return inner.split(separator)


def _parse_python_list(text: str) -> list[object]:
    # numpy writes no commas, and Python would join the strings.
    tree = ast.parse(re.sub(r"""(?<=['"])\s+(?=['"])""", ", ", text), mode="eval")
    value = ast.literal_eval(_WithoutNaN().visit(tree))
    return sorted(value, key=str) if isinstance(value, set) else list(value)


class _WithoutNaN(ast.NodeTransformer):
    """Replaces the ``nan`` that pandas writes for a missing value in a list."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(None) if node.id == "nan" else node


def plain_text(column: pl.Series) -> pl.Series:
    """A column as text without spaces around the values, whole numbers as integers.

    >>> plain_text(pl.Series([3.0, 3.5, None])).to_list(), plain_text(pl.Series([" de", "3.0"])).to_list()
    (['3', '3.5', None], ['de', '3.0'])
    """
    if isinstance(column.dtype, pl.Decimal):
        column = column.cast(pl.Float64)
    text = column.cast(pl.String).str.strip_chars()
    if column.dtype.is_float():  # pandas stores integers as floats where a value is missing
        whole = column.set(column != column.floor(), None).cast(pl.Int64, strict=False)
        text = whole.cast(pl.String).zip_with(whole.is_not_null(), text)
    return text


def as_text(value: object, is_number: bool = False) -> str:
    """A value as it is written in text files; with ``is_number``, as ``plain_text`` writes it.

    >>> as_text(True), as_text(3.0), as_text("view"), as_text(3.0, is_number=True)
    ('true', '3.0', 'view', '3')
    """
    if is_number and isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else str(value)

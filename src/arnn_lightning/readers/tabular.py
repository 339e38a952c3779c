"""Reader of your own tables: events and, optionally, users and items, as CSV or parquet."""

import glob
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import polars as pl

from arnn_lightning.errors import UserError, nearest
from arnn_lightning.readers.delimited import FIRST_ROW, file_format, read_delimited, require_not_null
from arnn_lightning.readers.schema import ITEM, SESSION, TIME, TITLE, USER, RawData

MIN_MILLISECONDS = 10**11  # as seconds, the year 5138
MAX_MILLISECONDS = 10**14  # as milliseconds, the year 5138
# A date and, optionally, the time of day with a fraction, and the offset from UTC.
ISO8601 = r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}):(\d{2})(?::(\d{2})(?:[.,]\d+)?)?)?\s*(Z|[+-]\d{2}:?\d{2})?$"


@dataclass(frozen=True)
class TabularReader:
    """Reads tables whose columns are named in the config.

    A table is one file, a glob, or a list of them: parquet, or delimited text (plain, gz, zip) with a header line,
    from which the separator (comma, semicolon, tab or bar) is detected. Ids in text files are strings: ``007`` and
    ``7`` are different users. The files of a glob are read in the order of their names.

    Without a users table, attributes are columns of the events that are constant within a user.

    Attributes:
        events: the files of events.
        users: the files of users; None: no users table.
        titles: the files of items, with ids and titles; None: no titles.
        columns: names of the columns: ``user``, ``item``, ``time``, ``session`` (used if ``session`` is ``given``),
            ``user_in_users``, ``item_in_titles``, ``title``.
        session: gap, day or given, as in the data config.
        time_format: strftime format of the time column; None: unix seconds, unix milliseconds or ISO 8601. Times
            without an offset are UTC.
        single: single-valued attributes.
        multi: multi-valued attributes.
        list_separator: separates the values of a multi-valued attribute in text.
        null_values: strings that mean a missing value.
    """

    events: str | Sequence[str]
    users: str | Sequence[str] | None
    titles: str | Sequence[str] | None
    columns: Mapping[str, str]
    session: str
    time_format: str | None
    single: Sequence[str]
    multi: Sequence[str]
    list_separator: str
    null_values: Sequence[str]

    def __post_init__(self) -> None:
        for name in ("single", "multi", "null_values"):
            values = getattr(self, name)
            is_list = isinstance(values, Sequence) and not isinstance(values, str)
            if not is_list or not all(isinstance(value, str) for value in values):
                key = name if name == "null_values" else f"contexts.{name}"
                raise UserError(f"data.{key}={values}: must be a list of strings, as in [country,age] or ['','NULL']")
        if not isinstance(self.list_separator, str) or not self.list_separator:
            raise UserError(f"data.list_separator={self.list_separator!r}: must be a string, such as ','")
        if not isinstance(self.time_format, str | None):
            raise UserError(f"data.time_format={self.time_format}: must be a string, such as '%m/%d/%Y'")
        for name, column in self.columns.items():
            if not isinstance(column, str):
                raise UserError(f"data.columns.{name}={column}: must be the name of a column")

    def files(self) -> dict[str, Path]:
        """All files by table and index, events first; raises UserError for one that is missing or listed twice."""
        tables = {"events": self.events, "users": self.users, "titles": self.titles}
        return {
            f"{name}/{number}/{file.name}": file
            for name, table in tables.items()
            for number, file in enumerate(_resolve_files(name, table), 1)
        }

    def read(self) -> RawData:
        """The canonical tables.

        Raises:
            UserError: a missing column, a missing id, an invalid time, or an attribute that changes within a user;
                names file, column, row and value.
        """
        attributes = [name for name in (*self.single, *self.multi) if name != USER]
        event_attributes = {} if self.users is not None else {name: _attribute_column(name) for name in attributes}
        files = _resolve_files("events", self.events)
        parts = [self._read_events(file, event_attributes) for file in files]
        events = _concat_files(parts, files)
        if self.users is not None:
            users = self._read_users(self.users, attributes)
        else:
            users = _attributes_from_events(events, event_attributes, parts, files)
        users, events = _align_id_types(users, events, USER, "users")
        load_items = None
        if self.titles is not None:
            items, events = _align_id_types(self._read_titles(self.titles), events, ITEM, "titles")
            load_items = lambda: items  # noqa: E731
        return RawData(events.drop(event_attributes.values()), events.height, users.lazy, load_items)

    def _read_events(self, file: Path, attributes: Mapping[str, str]) -> pl.DataFrame:
        """Canonical events of one file; ``attributes``: name -> column in the result."""
        columns = {USER: self.columns["user"], ITEM: self.columns["item"]}
        if self.session == "given":
            columns[SESSION] = self.columns["session"]
        time = self.columns["time"]
        frame = self._read_file(file, [*columns.values(), time, *attributes], ids=list(columns.values()))
        require_not_null(frame, time, file, _first_row(file))
        return frame.select(
            *(pl.col(column).alias(name) for name, column in columns.items()),
            _to_unix_seconds(frame[time], self.time_format, file).alias(TIME),
            *(self._parse_attribute(frame, name).alias(column) for name, column in attributes.items()),
        )

    def _read_users(self, table: str | Sequence[str], attributes: Sequence[str]) -> pl.DataFrame:
        id_column = self.columns["user_in_users"]
        files = _resolve_files("users", table)
        frames = (self._read_file(file, [id_column, *attributes], ids=[id_column]) for file in files)
        parts = [
            frame.select(
                pl.col(id_column).alias(USER),
                *(self._parse_attribute(frame, name).alias(name) for name in attributes),
            )
            for frame in frames
        ]
        return _concat_files(parts, files)

    def _read_titles(self, table: str | Sequence[str]) -> pl.DataFrame:
        id_column, title = self.columns["item_in_titles"], self.columns["title"]
        files = _resolve_files("titles", table)
        frames = (self._read_file(file, [id_column, title], ids=[id_column]) for file in files)
        columns = pl.col(id_column).alias(ITEM), pl.col(title).cast(pl.String).alias(TITLE)
        return _concat_files([frame.select(columns) for frame in frames], files)

    def _parse_attribute(self, frame: pl.DataFrame, name: str) -> pl.Series:
        """An attribute in its canonical type: String, or List(String)."""
        column = frame[name]
        is_list = isinstance(column.dtype, pl.List)
        if name in self.multi:
            values = column if is_list else column.cast(pl.String).str.split(self.list_separator)
            element = pl.element().cast(pl.String).str.strip_chars()
            return (
                pl.select(values.cast(pl.List(pl.String)))
                .to_series()
                .list.eval(element.filter(~element.is_in(list(self.null_values))))
                .list.unique(maintain_order=True)
            )
        if is_list:
            raise UserError(f"data.contexts: attribute {name!r} is a list and must be listed under data.contexts.multi")
        text = column.cast(pl.String)
        return text.set(text.is_in(list(self.null_values)), None)

    def _read_file(self, file: Path, columns: Sequence[str], ids: Sequence[str]) -> pl.DataFrame:
        """The named columns of one file; raises UserError for missing values in those of ``ids``."""
        columns = list(dict.fromkeys(columns))
        if file_format(file) != "parquet":
            types = dict.fromkeys(columns, pl.String())
            return read_delimited(file, types, separator=None, required=ids, null_values=self.null_values)
        try:
            schema = pl.read_parquet_schema(file)
            for column in columns:
                if column not in schema:
                    hint = nearest(column, schema)
                    raise UserError(f"{file}: no column {column!r}{hint}; its columns: {', '.join(schema)}")
            frame = pl.read_parquet(file, columns=columns, glob=False)
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{file}: not a readable parquet file: {str(error).splitlines()[0]}") from error
        frame = frame.with_columns(self._normalize_parquet(column, column.name in ids, file) for column in frame)
        for column in ids:
            require_not_null(frame, column, file, _first_row(file))
        return frame

    def _normalize_parquet(self, column: pl.Series, is_id: bool, file: Path) -> pl.Series:
        """A parquet column as read from a text file: categories are strings, NaN and null strings are missing."""
        if isinstance(column.dtype, pl.Categorical | pl.Enum):
            column = column.cast(pl.String)
        if column.dtype == pl.String:
            return column.set(column.is_in(list(self.null_values)), None)
        if not column.dtype.is_float():
            return column
        column = column.fill_nan(None)
        if not is_id:
            return column
        # pandas stores integers as floats where a value is missing.
        invalid = (column != column.floor()).fill_null(False).arg_true()
        if len(invalid):
            raise UserError(
                f"{file}: column {column.name!r}, row {invalid[0] + 1}: {column[invalid[0]]} is not a valid id; "
                "ids must be integers or strings"
            )
        return column.cast(pl.Int64)


def _resolve_files(name: str, table: str | Sequence[str] | None) -> list[Path]:
    """The files of a table, in the order in which they are listed."""
    patterns = [table] if isinstance(table, str) else table
    if (name == "events" and not patterns) or not all(isinstance(pattern, str) for pattern in patterns or []):
        raise UserError(f"data.{name}={table}: must be a path, a glob, or a list of them")
    files: list[Path] = []
    for pattern in patterns or []:
        # The name of an existing file is not a pattern. Path.glob does not support absolute patterns.
        path = Path(pattern).expanduser()
        names = [str(path)] if path.is_file() else sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        matches = [Path(name) for name in names if Path(name).is_file()]
        if not matches:
            what = "a folder" if path.is_dir() else "not a file"
            raise UserError(f"data.{name}: {pattern} is {what}; give a path or a glob of files")
        files += matches
    duplicates = [file for file, count in Counter(files).items() if count > 1]
    if duplicates:
        raise UserError(f"data.{name}: {duplicates[0]} is listed more than once; its rows would be counted twice")
    return files


def _first_row(file: Path) -> int:
    """The number of the first row of data: in a text file, the header is row 1."""
    return 1 if file_format(file) == "parquet" else FIRST_ROW


def _concat_files(parts: Sequence[pl.DataFrame], files: Sequence[Path]) -> pl.DataFrame:
    try:
        return pl.concat(parts, how="vertical_relaxed")  # integers of different widths are compatible
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{', '.join(map(str, files))}: their columns differ: {str(error).splitlines()[0]}") from error


def _align_id_types(
    table: pl.DataFrame, events: pl.DataFrame, column: str, name: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Casts the ids of both tables to strings where their types differ.

    Raises:
        UserError: no id of the events is in the table.
    """
    if table[column].dtype != events[column].dtype:
        as_string = pl.col(column).cast(pl.String)
        table, events = table.with_columns(as_string), events.with_columns(as_string)
    if events.height and not table[column].is_in(events[column].implode()).any():
        raise UserError(
            f"data.{name}: no {column} of the events is in this table; its ids are like {table[column].first()!r}, "
            f"those of the events like {events[column].first()!r}"
        )
    return table, events


def _attribute_column(name: str) -> str:
    return f"attribute.{name}"


def _attributes_from_events(
    events: pl.DataFrame, attributes: Mapping[str, str], parts: Sequence[pl.DataFrame], files: Sequence[Path]
) -> pl.DataFrame:
    """One row per user with the attributes (name -> column) of the user's events, missing values ignored."""
    for name, column in attributes.items():
        # The order of a list carries no information.
        value = pl.col(column).list.sort() if events[column].dtype == pl.List else pl.col(column)
        known_values = events.select(USER, value).with_row_index("event").filter(pl.col(column).is_not_null())
        first = known_values.group_by(USER, maintain_order=True).agg(pl.col(column, "event").first())
        changes = known_values.join(first, on=USER, suffix=".first", maintain_order="left").filter(
            pl.col(column) != pl.col(f"{column}.first")
        )
        if changes.height:
            change = changes.row(0, named=True)
            before, after = (_row_location(change[event], parts, files) for event in ("event.first", "event"))
            raise UserError(
                f"{after}: column {name!r} changes within user {change[USER]!r}: {change[column]!r} here, "
                f"{change[f'{column}.first']!r} in {before}; contexts must be constant: remove it from data.contexts, "
                "or give a users table (data.users)"
            )
    return events.group_by(USER, maintain_order=True).agg(
        pl.col(column).drop_nulls().first().alias(name) for name, column in attributes.items()
    )


def _row_location(event: int, parts: Sequence[pl.DataFrame], files: Sequence[Path]) -> str:
    """File and row of an event of all files."""
    starts = list(accumulate((part.height for part in parts), initial=0))
    index = bisect_right(starts, event) - 1
    return f"{files[index]}, row {event - starts[index] + _first_row(files[index])}"


def _to_unix_seconds(column: pl.Series, time_format: str | None, file: Path) -> pl.Series:
    """A time column of any type as Int64 unix seconds, rounded down."""
    dtype = column.dtype
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        return column.dt.epoch("s")
    if dtype.is_numeric() and time_format is not None:
        column = column.cast(pl.String)  # such as 20151103 with %Y%m%d
    elif dtype.is_numeric():
        return _parse_unix_time(column.cast(pl.Float64), column, file)
    elif dtype != pl.String:
        raise UserError(f"{file}: column {column.name!r} contains {dtype}; must be numbers, strings or date-times")
    text = column.str.strip_chars()
    if time_format is not None:
        try:
            time = text.str.to_datetime(time_format, strict=False)
            seconds = time.dt.epoch("s").set(time.dt.year() < 1000, None)  # %Y accepts two digits too
        except pl.exceptions.PolarsError as error:
            raise UserError(f"data.time_format={time_format}: {str(error).splitlines()[0]}") from error
        expected, advice = f"in the format {time_format}", "fix the row or data.time_format"
    elif (number := text.cast(pl.Float64, strict=False)).null_count() <= len(text) / 2:
        return _parse_unix_time(number, column, file)
    else:
        seconds = _parse_iso8601(text)
        expected, advice = "an ISO 8601 time (2015-11-03 17:05) or a unix time", "fix it or set data.time_format"
    if seconds.has_nulls():
        raise _invalid_time_error(column, seconds.is_null(), f"not {expected}", advice, file)
    return seconds


def _parse_iso8601(text: pl.Series) -> pl.Series:
    """Unix seconds of ISO 8601 strings, null for any other; UTC where there is no offset."""
    # A regular expression, since polars' inference accepts ambiguous dates such as 03/11/2015.
    fields = ("date", "hour", "minute", "second", "offset")
    parts = text.str.extract_groups(ISO8601).struct.rename_fields(fields).struct.unnest()
    hour, minute, second = (pl.col(name).cast(pl.Int64).fill_null(0) for name in fields[1:4])
    digits = pl.col("offset").str.replace("Z", "+0000").str.replace(":", "")
    minutes = 60 * digits.str.slice(1, 2).cast(pl.Int64) + digits.str.slice(3, 2).cast(pl.Int64)
    utc_offset = pl.when(digits.str.starts_with("-")).then(-minutes).otherwise(minutes).fill_null(0)
    midnight = pl.col("date").str.to_date("%Y-%m-%d", strict=False).dt.epoch("s")
    seconds = midnight + 3_600 * hour + 60 * (minute - utc_offset) + second
    return parts.select(pl.when((hour < 24) & (minute < 60) & (second <= 60)).then(seconds)).to_series()


def _parse_unix_time(number: pl.Series, column: pl.Series, file: Path) -> pl.Series:
    """Unix seconds or milliseconds as seconds; the whole column must have one unit."""
    invalid = ~(number.abs() < MAX_MILLISECONDS).fill_null(False)  # includes NaN and infinity
    if invalid.any():
        problem = "not a unix time in seconds or milliseconds"
        raise _invalid_time_error(column, invalid, problem, "fix or remove the row, or set data.time_format", file)
    if len(number) and number.is_between(19_000_101, 21_001_231).all():
        problem = "ambiguous: could be a date (YYYYMMDD), not a unix time"
        raise _invalid_time_error(column, number.is_not_null(), problem, "set data.time_format, as '%Y%m%d'", file)
    is_milliseconds = number.abs() >= MIN_MILLISECONDS
    if is_milliseconds.any() and not is_milliseconds.all():
        minority = is_milliseconds if is_milliseconds.sum() <= len(column) / 2 else ~is_milliseconds
        problem = "not in the unit of the other rows (some are unix seconds, some milliseconds)"
        raise _invalid_time_error(column, minority, problem, "use one unit", file)
    # Float64 represents every millisecond of the next 280,000 years.
    return (number / (1_000 if is_milliseconds.any() else 1)).floor().cast(pl.Int64)


def _invalid_time_error(column: pl.Series, invalid: pl.Series, problem: str, advice: str, file: Path) -> UserError:
    row = invalid.arg_true()[0]
    return UserError(
        f"{file}: column {column.name!r}, row {row + _first_row(file)}: {column[row]!r} is {problem}; {advice}"
    )

"""Reader of anybody's own tables: events, and if there are any users and items, as CSV or parquet."""

import glob
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import polars as pl

from arnn_lightning.errors import UserError, nearest
from arnn_lightning.readers.delimited import FIRST_ROW, packing, read_delimited, require_filled
from arnn_lightning.readers.schema import ITEM, SESSION, TIME, TITLE, USER, RawData

MILLISECONDS_FROM = 10**11  # as seconds, the year 5138
MILLISECONDS_BELOW = 10**14  # as milliseconds, the year 5138
# The date, and if it is there the time of day, its fraction, and the offset from UTC.
ISO = r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}):(\d{2})(?::(\d{2})(?:[.,]\d+)?)?)?\s*(Z|[+-]\d{2}:?\d{2})?$"


@dataclass(frozen=True)
class TabularReader:
    """Reads tables whose columns the config names.

    A table is one file, a glob, or a list of those: parquet, or delimited text (plain, gz, zip) with a header line,
    whose separator - comma, semicolon, tab or bar - is found in that line. Ids in text files are text, as written:
    ``007`` and ``7`` are two users. The files of a glob are taken in the order of their names.

    Without a users table, attributes are columns of the events that do not change within a user.

    Attributes:
        events: the events' files.
        users: the users' files; None: there are none.
        titles: the items' files, ids and titles; None likewise.
        columns: names of the columns: ``user``, ``item``, ``time``, ``session`` (used where ``session`` is ``given``),
            ``user_in_users``, ``item_in_titles``, ``title``.
        session: gap, day or given, as in the data config.
        time_format: how texts in the time column are written (strftime's codes), None for unix seconds, unix
            milliseconds, and ISO 8601. Times without an offset are taken as UTC.
        single: attributes with one value each.
        multi: attributes that are lists.
        list_separator: what separates the values of a list in a text.
        null_values: texts that mean a missing value.
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
            if (
                not isinstance(values, Sequence)
                or isinstance(values, str)
                or not all(isinstance(v, str) for v in values)
            ):
                key = name if name == "null_values" else f"contexts.{name}"
                raise UserError(f"data.{key}={values}: must be a list of texts, as in [country,age] or ['','NULL']")
        if not isinstance(self.list_separator, str) or not self.list_separator:
            raise UserError(f"data.list_separator={self.list_separator!r}: must be a text, such as ','")
        if not isinstance(self.time_format, str | None):
            raise UserError(f"data.time_format={self.time_format}: must be a text, such as '%m/%d/%Y'")
        for name, column in self.columns.items():
            if not isinstance(column, str):
                raise UserError(f"data.columns.{name}={column}: must be the name of a column")

    def files(self) -> dict[str, Path]:
        """All files by table and place, the events' first; raises UserError where one is missing or named twice."""
        tables = {"events": self.events, "users": self.users, "titles": self.titles}
        return {
            f"{name}/{number}/{file.name}": file
            for name, table in tables.items()
            for number, file in enumerate(_find(name, table), 1)
        }

    def read(self) -> RawData:
        """The canonical tables.

        Raises:
            UserError: a missing column, a missing id, a time that does not parse, an attribute that changes within a
                user, each with file, column, row and value.
        """
        attributes = [name for name in (*self.single, *self.multi) if name != USER]
        within = {} if self.users is not None else {name: _attribute(name) for name in attributes}
        wanted = {USER: self.columns["user"], ITEM: self.columns["item"], TIME: self.columns["time"]}
        if self.session == "given":
            wanted[SESSION] = self.columns["session"]
        files = _find("events", self.events)
        parts = []
        for file in files:
            frame = self._read(file, [*wanted.values(), *within], ids=[wanted[name] for name in wanted if name != TIME])
            require_filled(frame, wanted[TIME], file, _first_row(file))
            parts.append(
                frame.select(
                    *(pl.col(column).alias(name) for name, column in wanted.items() if name != TIME),
                    _seconds(frame[wanted[TIME]], self.time_format, file).alias(TIME),
                    *(self._values(frame, name).alias(alias) for name, alias in within.items()),
                )
            )
        events = _stack(parts, files)
        users = (
            self._users(attributes) if self.users is not None else _constant_attributes(events, within, parts, files)
        )
        users, events = _matched(users, events, USER, "users")
        items = self._items()
        if items is not None:
            items, events = _matched(items, events, ITEM, "titles")
        read_items = None if items is None else lambda: items
        return RawData(events.drop(within.values()), events.height, users.lazy, read_items)

    def _users(self, attributes: Sequence[str]) -> pl.DataFrame:
        own = self.columns["user_in_users"]
        parts = []
        files = _find("users", self.users)
        for file in files:
            frame = self._read(file, [own, *attributes], ids=[own])
            parts.append(
                frame.select(pl.col(own).alias(USER), *(self._values(frame, name).alias(name) for name in attributes))
            )
        return _stack(parts, files)

    def _items(self) -> pl.DataFrame | None:
        if self.titles is None:
            return None
        own, title = self.columns["item_in_titles"], self.columns["title"]
        files = _find("titles", self.titles)
        parts = [
            self._read(file, [own, title], ids=[own]).select(
                pl.col(own).alias(ITEM), pl.col(title).cast(pl.String).alias(TITLE)
            )
            for file in files
        ]
        return _stack(parts, files)

    def _values(self, frame: pl.DataFrame, name: str) -> pl.Series:
        """An attribute as the canonical tables have it: String, or List(String)."""
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
            raise UserError(f"data.contexts: attribute {name!r} is a list and belongs under data.contexts.multi")
        text = column.cast(pl.String)
        return text.set(text.is_in(list(self.null_values)), None)

    def _read(self, file: Path, columns: Sequence[str], ids: Sequence[str]) -> pl.DataFrame:
        """The named columns of one file; ``ids`` hold a value in every row."""
        columns = list(dict.fromkeys(columns))
        if packing(file) != "parquet":
            types = dict.fromkeys(columns, pl.String())
            return read_delimited(file, types, separator=None, required=ids, null_values=self.null_values)
        try:
            known = pl.read_parquet_schema(file)
            for column in columns:
                if column not in known:
                    raise UserError(f"{file}: no column {column!r}{nearest(column, known)}; it has {', '.join(known)}")
            frame = pl.read_parquet(file, columns=columns, glob=False)
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{file}: not a parquet file that can be read: {str(error).splitlines()[0]}") from error
        frame = frame.with_columns(self._plain(column, column.name in ids, file) for column in frame)
        for column in ids:
            require_filled(frame, column, file, _first_row(file))
        return frame

    def _plain(self, column: pl.Series, is_id: bool, file: Path) -> pl.Series:
        """A column of a parquet file as text files have it: categories are texts, NaN and null texts are missing."""
        if isinstance(column.dtype, pl.Categorical | pl.Enum):
            column = column.cast(pl.String)
        if column.dtype == pl.String:
            return column.set(column.is_in(list(self.null_values)), None)
        if not column.dtype.is_float():
            return column
        column = column.fill_nan(None)
        if not is_id:
            return column
        # pandas turns whole numbers into floats where one is missing.
        broken = (column != column.floor()).fill_null(False).arg_true()
        if len(broken):
            raise UserError(
                f"{file}: column {column.name!r}, row {broken[0] + 1}: {column[broken[0]]} is no id; write ids as "
                "whole numbers or texts"
            )
        return column.cast(pl.Int64)


def _find(name: str, table: str | Sequence[str] | None) -> list[Path]:
    """The files of a table, in the order in which they are named."""
    patterns = [table] if isinstance(table, str) else table
    if (name == "events" and not patterns) or not all(isinstance(pattern, str) for pattern in patterns or []):
        raise UserError(f"data.{name}={table}: give a path, a glob, or a list of them")
    found: list[Path] = []
    for pattern in patterns or []:
        # A name that is a file's is no pattern. Not Path.glob, which takes no absolute pattern.
        plain = Path(pattern).expanduser()
        names = [str(plain)] if plain.is_file() else sorted(glob.glob(str(plain), recursive=True))  # noqa: PTH207
        matches = [Path(name) for name in names if Path(name).is_file()]
        if not matches:
            what = "a folder" if plain.is_dir() else "no file"
            raise UserError(f"data.{name}: {pattern} is {what}; give a path or a glob of files")
        found += matches
    twice = [file for file, times in Counter(found).items() if times > 1]
    if twice:
        raise UserError(f"data.{name}: {twice[0]} is named more than once; its rows would count twice")
    return found


def _first_row(file: Path) -> int:
    """The number of the first row: a text file's header is row 1."""
    return 1 if packing(file) == "parquet" else FIRST_ROW


def _stack(parts: Sequence[pl.DataFrame], files: Sequence[Path]) -> pl.DataFrame:
    try:
        return pl.concat(parts, how="vertical_relaxed")  # whole numbers of two widths are whole numbers
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{', '.join(map(str, files))}: their columns differ: {str(error).splitlines()[0]}") from error


def _matched(table: pl.DataFrame, events: pl.DataFrame, column: str, name: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Ids of both tables as one type: as texts, where they are numbers here and texts there.

    Raises:
        UserError: no id of the events is in the table, which is a mistake and not a coincidence.
    """
    if table[column].dtype != events[column].dtype:
        as_text = pl.col(column).cast(pl.String)
        table, events = table.with_columns(as_text), events.with_columns(as_text)
    if events.height and not table[column].is_in(events[column].implode()).any():
        raise UserError(
            f"data.{name}: no {column} of the events is in this table; its ids look like {table[column].first()!r}, "
            f"theirs like {events[column].first()!r}"
        )
    return table, events


def _attribute(name: str) -> str:
    return f"attribute.{name}"


def _constant_attributes(
    events: pl.DataFrame, within: Mapping[str, str], parts: Sequence[pl.DataFrame], files: Sequence[Path]
) -> pl.DataFrame:
    """One row per user with what the events say of it; a missing value is no change."""
    for name, alias in within.items():
        # A list is a set: its order says nothing.
        value = pl.col(alias).list.sort() if events[alias].dtype == pl.List else pl.col(alias)
        told = events.select(USER, value).with_row_index("event").filter(pl.col(alias).is_not_null())
        first = told.group_by(USER, maintain_order=True).agg(pl.col(alias, "event").first())
        changed = told.join(first, on=USER, suffix=".first", maintain_order="left").filter(
            pl.col(alias) != pl.col(f"{alias}.first")
        )
        if changed.height:
            at = changed.row(0, named=True)
            before, after = (_place(at[event], parts, files) for event in ("event.first", "event"))
            raise UserError(
                f"{after}: column {name!r} changes within user {at[USER]!r}: {at[alias]!r} here, "
                f"{at[f'{alias}.first']!r} in {before}; contexts must be constant: take it out of data.contexts, or "
                "give a users table (data.users)"
            )
    return events.group_by(USER, maintain_order=True).agg(
        pl.col(alias).drop_nulls().first().alias(name) for name, alias in within.items()
    )


def _place(event: int, parts: Sequence[pl.DataFrame], files: Sequence[Path]) -> str:
    """File and row of an event among all files'."""
    starts = list(accumulate((part.height for part in parts), initial=0))
    at = bisect_right(starts, event) - 1
    return f"{files[at]}, row {event - starts[at] + _first_row(files[at])}"


def _seconds(column: pl.Series, time_format: str | None, file: Path) -> pl.Series:
    """A time column of any kind as Int64 unix seconds; fractions are cut off."""
    dtype = column.dtype
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        return column.dt.epoch("s")
    if dtype.is_numeric() and time_format is not None:
        column = column.cast(pl.String)  # such as 20151103 with %Y%m%d
    elif dtype.is_numeric():
        return _unix(column.cast(pl.Float64), column, file)
    elif dtype != pl.String:
        raise UserError(f"{file}: column {column.name!r} holds {dtype}; times are numbers, texts, dates or date-times")
    text = column.str.strip_chars()
    if time_format is not None:
        try:
            moment = text.str.to_datetime(time_format, strict=False)
            parsed = moment.dt.epoch("s").set(moment.dt.year() < 1000, None)  # %Y takes two digits too
        except pl.exceptions.PolarsError as error:
            raise UserError(f"data.time_format={time_format}: {str(error).splitlines()[0]}") from error
        wanted, advice = f"written as {time_format}", "mend the row or data.time_format"
    elif (number := text.cast(pl.Float64, strict=False)).null_count() <= len(text) / 2:
        return _unix(number, column, file)
    else:
        parsed = _iso(text)
        wanted, advice = (
            "an ISO 8601 date or time (2015-11-03 17:05), nor unix time",
            "mend it or give data.time_format",
        )
    if parsed.has_nulls():
        raise _bad_time(column, parsed.is_null(), wanted, advice, file)
    return parsed


def _iso(text: pl.Series) -> pl.Series:
    """Seconds of ISO 8601 texts, null where a text is none. Texts without an offset are UTC."""
    # Taken apart here, since a parser that guesses would take 03/11/2015 for a date too.
    fields = ("date", "hour", "minute", "second", "offset")
    parts = text.str.extract_groups(ISO).struct.rename_fields(fields).struct.unnest()
    hour, minute, second = (pl.col(name).cast(pl.Int64).fill_null(0) for name in fields[1:4])
    digits = pl.col("offset").str.replace("Z", "+0000").str.replace(":", "")
    ahead = 60 * digits.str.slice(1, 2).cast(pl.Int64) + digits.str.slice(3, 2).cast(pl.Int64)
    ahead = pl.when(digits.str.starts_with("-")).then(-ahead).otherwise(ahead).fill_null(0)
    midnight = pl.col("date").str.to_date("%Y-%m-%d", strict=False).dt.epoch("s")
    moment = midnight + 3_600 * hour + 60 * (minute - ahead) + second
    return parts.select(pl.when((hour < 24) & (minute < 60) & (second <= 60)).then(moment)).to_series()


def _unix(number: pl.Series, column: pl.Series, file: Path) -> pl.Series:
    """Unix seconds or milliseconds as seconds; the whole column must be of one unit."""
    strange = ~(number.abs() < MILLISECONDS_BELOW).fill_null(False)  # NaN and infinity are strange too
    if strange.any():
        wanted = "a unix time in seconds or milliseconds"
        raise _bad_time(column, strange, wanted, "mend or remove the row, or give data.time_format", file)
    if len(number) and number.is_between(19_000_101, 21_001_231).all():
        wanted = "surely a unix time, it may be a date"
        raise _bad_time(column, number.is_not_null(), wanted, "give data.time_format, such as '%Y%m%d'", file)
    late = number.abs() >= MILLISECONDS_FROM
    if late.any() and not late.all():
        minority = late if late.sum() <= len(late) / 2 else ~late
        wanted = "in the unit of the others (some are unix seconds, some milliseconds)"
        raise _bad_time(column, minority, wanted, "write all in one unit", file)
    # Float64 holds every millisecond of the next 280,000 years.
    return (number / (1_000 if late.any() else 1)).floor().cast(pl.Int64)


def _bad_time(column: pl.Series, bad: pl.Series, wanted: str, advice: str, file: Path) -> UserError:
    row = bad.arg_true()[0]
    return UserError(
        f"{file}: column {column.name!r}, row {row + _first_row(file)}: {column[row]!r} is not {wanted}; {advice}"
    )

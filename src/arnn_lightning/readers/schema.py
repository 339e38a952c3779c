"""The canonical tables that every reader returns, and their validation.

``events``: ``user``, ``item`` (any type that sorts), ``time`` (Int64, unix seconds) and, where the data set defines
sessions, ``session``; one row per event, in the order of the file. Where times are finer than seconds, or another
column orders events, also ``instant``: integers that are equal for events of equal time and order.
``users``: ``user`` and one column per attribute: String for a single-valued attribute, Float64 or Date for a numeric
one, List(String) for a multi-valued one; null (or an empty list) means unknown.
``items``, where the data set has an items table: ``item``, ``title`` (String) where there are titles, and one column
per attribute, as of users.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Protocol, cast

import polars as pl

from arnn_lightning.errors import UserError, nearest

MAX_UNIX_SECONDS = 10**11  # the year 5138; larger numbers are milliseconds
USER, ITEM, TIME, SESSION, TITLE = "user", "item", "time", "session", "title"
INSTANT = "instant"


def row_of_table(table: str, row: int) -> str:
    """The default location of a row in an error; ``row`` counts from 0."""
    return f"the {table} table, row {row + 1} without its header"


@dataclass(frozen=True)
class RawData:
    """The tables that a reader returns. Users and items are read while the events are filtered.

    Attributes:
        events: canonical events of the kind that is modelled (clicks), in file order.
        rows: number of rows of the events file, before the reader's filter.
        load_users: reads the canonical users; lazily, so that lists are parsed only for users that are kept.
        load_items: reads the canonical items; None where there is no items table.
        row_location: file and row of an index of a table, ``users`` or ``items``, for errors.
        dropped: reason -> number of rows that the reader dropped.
        notes: remarks on settings that look wrong, one line each.
    """

    events: pl.DataFrame
    rows: int
    load_users: Callable[[], pl.LazyFrame]
    load_items: Callable[[], pl.DataFrame] | None = None
    row_location: Callable[[str, int], str] = row_of_table
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def users(self) -> pl.LazyFrame:
        """The canonical users, validated.

        Raises:
            UserError: no ids, ids of another type than in the events, or a user that occurs twice.
        """
        users = self.load_users()
        self._require_ids(users, USER, "users")
        return users

    def items(self) -> pl.DataFrame | None:
        """The canonical items, if there is an items table.

        Raises:
            UserError: no ids, ids of another type than in the events, or an item that occurs twice.
        """
        items = self.load_items() if self.load_items is not None else None
        if items is not None:
            self._require_ids(items.lazy(), ITEM, "items")
        return items

    def _require_ids(self, table: pl.LazyFrame, column: str, name: str) -> None:
        """Raises UserError unless every row of a table has an id of its own, of the type of those of the events."""
        schema = table.collect_schema()
        if column not in schema:
            raise UserError(f"the {name} table has no column {column!r}{nearest(column, schema.names())}")
        if schema[column] != self.events[column].dtype:
            raise UserError(
                f"{column} ids are {self.events[column].dtype} in the events but {schema[column]} in the {name} table; "
                "convert them to the same type"
            )
        ids, an_id = table.select(column).collect()[column], f"{'an' if column == ITEM else 'a'} {column}"
        if ids.has_nulls():
            raise UserError(f"the {name} table has {ids.null_count()} rows without {an_id}; remove them")
        if ids.n_unique() < len(ids):
            value = ids.filter(ids.is_duplicated())[0]
            first, second = (self.row_location(name, row) for row in (ids == value).arg_true()[:2])
            raise UserError(f"{second}: {column} {value!r} is also in {first}; keep one row per {column}")


class Reader(Protocol):
    """Reads the raw files of one data set."""

    def files(self) -> Mapping[str, Path]:
        """Name -> path of each raw file, the one of events first; raises UserError for a missing file."""
        ...

    def read(self) -> RawData:
        """The canonical tables."""
        ...


def validate_events(raw: RawData, source: Path) -> RawData:
    """Validates the canonical events; returns ``raw`` unchanged. ``source``: the file that errors name.

    Raises:
        UserError: a missing column, a null id or time, a time that is not an integer, or no events.
    """
    for name in (USER, ITEM, TIME):
        if name not in raw.events.columns:
            raise UserError(f"{source}: the events have no column {name!r}{nearest(name, raw.events.columns)}")
        nulls = raw.events[name].is_null()
        if nulls.any():
            row = nulls.arg_true()[0]
            raise UserError(
                f"{source}: {nulls.sum()} events have no {name}, the first is event {row + 1}; "
                "remove these rows or fill the column (events are counted after the reader's filter)"
            )
    if SESSION in raw.events.columns and raw.events[SESSION].has_nulls():
        raise UserError(f"{source}: {raw.events[SESSION].null_count()} events have no session; fill the column")
    for name in (USER, ITEM, SESSION):
        if name in raw.events.columns and raw.events[name].dtype.is_nested():
            raise UserError(
                f"{source}: column {name!r} contains {raw.events[name].dtype}; ids must be integers or strings"
            )
    time = raw.events[TIME]
    if time.dtype != pl.Int64:
        raise UserError(f"{source}: event times must be Int64 unix seconds, not {time.dtype}")
    if cast(int, time.max() or 0) >= MAX_UNIX_SECONDS:
        row = (time >= MAX_UNIX_SECONDS).arg_true()[0]
        raise UserError(
            f"{source}: time {time[row]} of event {row + 1} is not a valid unix timestamp in seconds; fix the column"
        )
    if raw.events.is_empty():
        raise UserError(f"{source}: no events left after reading {raw.rows} rows; is this the right file?")
    return raw


def parse_dates(column: pl.Series, date_format: str | None) -> pl.Series:
    """Dates, or a text column of them, as pl.Date; any other column is returned as it is.

    Args:
        column: numbers, strings or dates.
        date_format: strftime format of dates in text; None: ISO 8601.

    Raises:
        UserError: an invalid ``date_format``.
    """
    dates = column
    if column.dtype == pl.String:
        column = column.set(column.str.strip_chars() == "", None)
        dates = to_dates(column, date_format)
        if dates.null_count() == len(dates) or dates.null_count() > column.null_count():
            return column
    return dates.dt.date() if dates.dtype == pl.Date or isinstance(dates.dtype, pl.Datetime) else column


def to_dates(column: pl.Series, date_format: str | None) -> pl.Series:
    """A text column as pl.Date, null where it is not a date; arguments and errors as of ``parse_dates``."""
    text = column.str.strip_chars() if date_format else column.str.strip_chars().str.slice(0, 10)
    try:
        dates = text.str.to_datetime(date_format or "%Y-%m-%d", strict=False).dt.date()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"data.date_format={date_format}: {str(error).splitlines()[0]}") from error
    return dates.set(dates.dt.year() < 1000, None)  # %Y accepts two digits too


def decimal_years(column: pl.Series) -> pl.Series:
    """Dates as numbers such as 1985.5; any other column is returned as it is.

    >>> decimal_years(parse_dates(pl.Series(["1985-07-02", None, "2000-01-01 12:00"]), None)).round(1).to_list()
    [1985.5, None, 2000.0]
    """
    if column.dtype != pl.Date:
        return column
    return column.dt.year() + (column.dt.ordinal_day() - 1) / (365 + column.dt.is_leap_year().cast(pl.Int32))


def first_day(years: float) -> str:
    """The first day that is not before a decimal year; a year where this is its first day.

    >>> first_day(1960), first_day(1985.5), first_day(1985 + 181 / 365)
    ('1960', '1985-07-03', '1985-07-01')
    """
    year = math.floor(years)
    start, end = date(year, 1, 1), date(year + 1, 1, 1)
    day = start + timedelta(days=math.ceil((years - year) * (end - start).days - 1e-6))
    return str(day.year) if (day.month, day.day) == (1, 1) else day.isoformat()


def with_decimal_point(text: pl.Series, decimal: str) -> pl.Series:
    """Numbers in text; if ``decimal`` is a comma, dots between thousands are removed, and it becomes a point.

    >>> with_decimal_point(pl.Series(["1.234.567,8", "3,5", "12.000", "1.5"]), ",").to_list()
    ['1234567.8', '3.5', '12000', '1.5']
    """
    if decimal == ".":
        return text
    is_grouped = text.str.contains(r"^[+-]?\d{1,3}(\.\d{3})+(,\d*)?$").fill_null(False)
    plain = text.str.replace_all(".", "", literal=True).zip_with(is_grouped, text)
    return plain.str.replace(",", ".", literal=True)

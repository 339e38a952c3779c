"""The canonical tables that every reader hands over, and the check at their door.

``events``: ``user``, ``item`` (any type that sorts), ``time`` (Int64, unix seconds) and, where the data set has
sessions of its own, ``session``; one row per event, in the order of the file.
``users``: ``user`` and one column per attribute: String for a single-valued attribute, List(String) for a
multi-valued one; null (or an empty list) means unknown.
``items``, where the data set has names for its items: ``item`` and ``title`` (String).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import polars as pl

from arnn_lightning.errors import UserError, nearest

LATEST = 10**11  # unix seconds, the year 5138: milliseconds lie beyond
USER, ITEM, TIME, SESSION, TITLE = "user", "item", "time", "session", "title"


@dataclass(frozen=True)
class RawData:
    """What a reader returns. Users and items are read when they are asked for: the funnel needs the events alone.

    Attributes:
        events: canonical events of the kind that is modelled (clicks), in file order.
        rows: rows of the events file before the reader's own filter.
        read_users: reads the canonical users; lazily, so that lists are taken apart for those users alone whose events
            are kept.
        read_items: reads the canonical item titles, if there are any.
    """

    events: pl.DataFrame
    rows: int
    read_users: Callable[[], pl.LazyFrame]
    read_items: Callable[[], pl.DataFrame] | None = None

    def users(self) -> pl.LazyFrame:
        """The canonical users, checked.

        Raises:
            UserError: no ids, ids of another type than the events', or a user listed twice.
        """
        users = self.read_users()
        schema = users.collect_schema()
        if USER not in schema:
            raise UserError(f"the users table has no column {USER!r}{nearest(USER, schema.names())}")
        if schema[USER] != self.events[USER].dtype:
            raise UserError(
                f"user ids are {self.events[USER].dtype} in the events but {schema[USER]} in the users table; "
                "make them one type"
            )
        ids = users.select(USER).collect()
        if ids[USER].has_nulls():
            raise UserError(f"the users table has {ids[USER].null_count()} rows without a user; remove them")
        _once(ids, USER, "users")
        return users

    def items(self) -> pl.DataFrame | None:
        """The canonical item titles, checked; raises UserError where an item is listed twice."""
        items = self.read_items() if self.read_items is not None else None
        if items is not None:
            _once(items, ITEM, "items")
        return items


class Reader(Protocol):
    """The only place that knows one data set's files."""

    def files(self) -> Mapping[str, Path]:
        """What each raw file is -> where it lies, the events' file first; raises UserError where one is missing."""
        ...

    def read(self) -> RawData:
        """The canonical tables; users and items may still have to be read."""
        ...


def check(raw: RawData, source: Path) -> RawData:
    """Checks the canonical events; returns ``raw`` unchanged. ``source`` is the file named in errors.

    Raises:
        UserError: a missing column, a null id or time, a time that is no integer, or no events.
    """
    for name in (USER, ITEM, TIME):
        if name not in raw.events.columns:
            raise UserError(f"{source}: the events have no column {name!r}{nearest(name, raw.events.columns)}")
        nulls = raw.events[name].is_null()
        if nulls.any():
            row = nulls.arg_true()[0]
            raise UserError(
                f"{source}: {nulls.sum()} events have no {name}, the first is event {row + 1}; "
                "remove those rows or fill the column (events are counted after the reader's filter)"
            )
    if SESSION in raw.events.columns and raw.events[SESSION].has_nulls():
        raise UserError(f"{source}: {raw.events[SESSION].null_count()} events have no session; fill the column")
    for name in (USER, ITEM, SESSION):
        if name in raw.events.columns and raw.events[name].dtype.is_nested():
            raise UserError(f"{source}: column {name!r} holds {raw.events[name].dtype}; ids must be numbers or texts")
    time = raw.events[TIME]
    if time.dtype != pl.Int64:
        raise UserError(f"{source}: event times must be Int64 unix seconds, not {time.dtype}")
    if cast(int, time.max() or 0) >= LATEST:
        row = (time >= LATEST).arg_true()[0]
        raise UserError(f"{source}: time {time[row]} of event {row + 1} is no time in unix seconds; mend the column")
    if raw.events.is_empty():
        raise UserError(f"{source}: no events left after reading {raw.rows} rows; is this the right file?")
    return raw


def _once(table: pl.DataFrame, column: str, name: str) -> None:
    """Raises UserError where an id stands twice in a table, with its rows."""
    if table[column].n_unique() < table.height:
        value = table[column].filter(table[column].is_duplicated())[0]
        rows = (table[column] == value).arg_true()
        raise UserError(
            f"{column} {value!r} stands more than once in the {name} table, in its rows {rows[0] + 1} and "
            f"{rows[1] + 1} (the header not counted); keep one row per {column}"
        )

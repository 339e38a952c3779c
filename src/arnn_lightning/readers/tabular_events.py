"""The events of a table: rows that are kept, ids, times, and attributes of users that are columns of the events."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import polars as pl

from arnn_lightning.errors import UserError, nearest
from arnn_lightning.readers.delimited import describe_missing
from arnn_lightning.readers.schema import INSTANT, TIME, USER
from arnn_lightning.readers.tabular_files import TableFile, concat_files, file_and_row
from arnn_lightning.readers.tabular_format import TableFormat, as_text, plain_text, strip_text
from arnn_lightning.readers.times import NANOSECOND, TimeParser

ORDER = "order"


@dataclass(frozen=True)
class _Part:
    """The events of one file.

    Attributes:
        file: with the rows that are kept.
        events: canonical events of these rows.
        n_rows: number of rows of the file.
        dropped: what was required -> number of rows that were dropped.
        no_match_error: the error if no file has a row that ``data.where`` keeps; empty where this one has some.
        unseen_values: values of ``data.where`` that no row has, as COLUMN=VALUE -> a hint.
    """

    file: TableFile
    events: pl.DataFrame
    n_rows: int
    dropped: Mapping[str, int]
    no_match_error: str
    unseen_values: Mapping[str, str]


@dataclass(frozen=True)
class EventLog:
    """The events of all files.

    Attributes:
        events: canonical events, in file order; in order of time, if times are finer
            than seconds or there is a column for the order.
        users: one row per user, with the attributes that are columns of the events; None: they have a table.
        n_rows: number of rows of the files.
        dropped: what was required -> number of rows that were dropped.
        notes: what looks wrong in the settings, one line each.
    """

    events: pl.DataFrame
    users: pl.DataFrame | None
    n_rows: int
    dropped: Mapping[str, int]
    notes: Sequence[str]


@dataclass(frozen=True)
class EventTable:
    """Reads the events of one or several files.

    Attributes:
        ids: canonical name -> column, of user, item and, where sessions are given, session.
        time: the column of the time.
        order: the column of numbers that order events of equal times; None: there is none.
        attributes: column -> kind of the attributes of users; None: users have a table.
        where: column -> value or values: only these rows are kept.
        incomplete: error or drop: what happens to a row without id, time or order.
        table_format: of the files.
        time_parser: of the times.
    """

    ids: Mapping[str, str]
    time: str
    order: str | None
    attributes: Mapping[str, str] | None
    where: Mapping[str, object]
    incomplete: str
    table_format: TableFormat
    time_parser: TimeParser

    def read(self, files: Sequence[TableFile]) -> EventLog:
        """All events.

        Raises:
            UserError: as of ``TabularReader.read``.
        """
        parts = [self._read_part(file) for file in files]
        _require_no_copies(parts)
        events = _concat(parts)
        if events.is_empty() and (
            no_match_error := next((part.no_match_error for part in parts if part.no_match_error), "")
        ):
            raise UserError(no_match_error)
        dropped: Counter[str] = Counter()
        for part in parts:
            dropped.update(part.dropped)
        unseen_values = set.intersection(*(set(part.unseen_values) for part in parts))
        notes = [
            f"data.where: no row has {label}{hint}"
            for label, hint in parts[0].unseen_values.items()
            if label in unseen_values
        ]
        columns = {name: _attribute_column(name) for name in self.attributes or {}}
        users = None if self.attributes is None else _attributes_of_users(events, columns, parts)
        in_order = _in_order(events.drop(columns.values()))
        return EventLog(in_order, users, sum(part.n_rows for part in parts), dropped, notes)

    def _read_part(self, file: TableFile) -> _Part:
        ids, orders = list(dict.fromkeys(self.ids.values())), [] if self.order is None else [self.order]
        attributes = self.attributes or {}
        frame = self.table_format.read(file, [*ids, self.time, *orders, *self.where, *attributes], ids)
        texts = [name for name in (self.time, *orders) if frame[name].dtype == pl.String]
        frame = frame.with_columns(strip_text(frame[name]) for name in texts)  # as ids are
        n_rows = frame.height
        kept, dropped, no_match_error, unseen_values = self._keep_rows(frame, [*ids, self.time, *orders], file)
        if kept is not None:  # before values are parsed: those of other rows need not be valid
            file, frame = replace(file, rows=kept.arg_true()), frame.filter(kept)
        seconds, nanosecond = self.time_parser.parse(frame[self.time], partial(file.location, self.time))
        events = frame.select(
            *(pl.col(column).alias(name) for name, column in self.ids.items()),
            seconds.alias(TIME),
            *(self.table_format.parse_number(frame[order], file).alias(ORDER) for order in orders),
            *(
                self.table_format.parse_attribute(frame[name], kind, file).alias(_attribute_column(name))
                for name, kind in attributes.items()
            ),
            *([] if nanosecond is None else [nanosecond.alias(NANOSECOND)]),
        )
        return _Part(file, events, n_rows, dropped, no_match_error, unseen_values)

    def _keep_rows(
        self, frame: pl.DataFrame, required: Sequence[str], file: TableFile
    ) -> tuple[pl.Series | None, dict[str, int], str, dict[str, str]]:
        """Which rows ``data.where`` and ``data.incomplete`` keep, None for all; and as in _Part.

        Raises:
            UserError: a missing value of a ``required`` column that ``data.incomplete`` does not allow.
        """
        kept = pl.repeat(True, frame.height, dtype=pl.Boolean, eager=True)
        dropped: dict[str, int] = {}
        no_match_error, unseen_values = "", dict[str, str]()
        for column, values in self.where.items():
            is_number = frame[column].dtype.is_numeric()
            allowed = [as_text(value, is_number) for value in as_list(values)]
            text, before = plain_text(frame[column]), kept
            booleans = [as_text(value) for value in as_list(values) if isinstance(value, bool)]
            if booleans:  # YAML reads True as true
                lower = text.str.to_lowercase()
                text = text.zip_with(~lower.is_in(booleans), lower)
            is_allowed = text.is_in(allowed).fill_null(False)
            kept = before & is_allowed
            if unseen := set(allowed) - set(text.filter(is_allowed).unique()):
                present = [value for value in text.unique().sort().head(1_000) if value is not None]
                unseen_values |= {f"{column}={value}": nearest(value, present) for value in allowed if value in unseen}
            label = f"{column}={' or '.join(allowed)}"
            if not kept.any() and not no_match_error:
                frequent = text.filter(before).drop_nulls().value_counts(sort=True)[column].head(10).to_list()
                given = f" {' and '.join(dropped)}" if dropped else ""
                no_match_error = (
                    f"{file}: data.where: no row{given} has {label}; its values: {', '.join(map(str, frequent))}"
                )
            dropped[f"with {label}"] = int(before.sum()) - int(kept.sum())
        n_before = int(kept.sum())
        for column in required:
            missing = frame[column].is_null() & kept if frame[column].has_nulls() else None
            if missing is not None and missing.any():
                if self.incomplete == "error" and missing.all():
                    raise UserError(
                        f"{file}: column {column!r} is empty in all rows; is the header delimited like the rows?"
                    )
                if self.incomplete == "error":
                    where = describe_missing(missing, file.first_row)
                    raise UserError(
                        f"{file}: column {column!r} {where}; fill in the empty values or remove their rows, or set "
                        "data.incomplete=drop"
                    )
                kept &= ~missing
        if self.incomplete == "drop":
            dropped["without missing values"] = n_before - int(kept.sum())
        return None if kept.all() else kept, dropped, no_match_error, unseen_values


def _require_no_copies(parts: Sequence[_Part]) -> None:
    """Raises UserError for a file with the events of another one, compressed or not."""
    similar: dict[object, list[_Part]] = defaultdict(list)
    for part in parts:
        if part.events.height:
            others = similar[part.n_rows, str(part.events.row(0)), str(part.events.row(-1))]
            for other in others:
                if other.events.equals(part.events):
                    raise UserError(
                        f"data.events: {part.file} is a copy of {other.file}; its rows would be counted twice"
                    )
            others.append(part)


def _concat(parts: Sequence[_Part]) -> pl.DataFrame:
    frames, zero = [part.events for part in parts], pl.lit(0, pl.Int64).alias(NANOSECOND)
    if any(NANOSECOND in frame.columns for frame in frames):
        frames = [frame if NANOSECOND in frame.columns else frame.with_columns(zero) for frame in frames]
    return concat_files(frames, [part.file for part in parts])


def _in_order(events: pl.DataFrame) -> pl.DataFrame:
    """Events by time and order, where seconds do not order them; stable, since preprocessing sorts by seconds only."""
    keys = [name for name in (NANOSECOND, ORDER) if name in events.columns]
    if not keys:
        return events
    is_new = pl.any_horizontal(pl.col(TIME, *keys).ne_missing(pl.col(TIME, *keys).shift()))
    ordered = events.sort(TIME, *keys, maintain_order=True)
    return ordered.with_columns(is_new.cum_sum().cast(pl.UInt32).alias(INSTANT)).drop(keys)


def _attribute_column(name: str) -> str:
    return f"attribute.{name}"


def _attributes_of_users(events: pl.DataFrame, attributes: Mapping[str, str], parts: Sequence[_Part]) -> pl.DataFrame:
    """One row per user with the attributes (name -> column) of the user's events, missing values ignored."""
    lists = [pl.col(column) for column in attributes.values() if events[column].dtype == pl.List]
    events = events.with_columns(pl.when(column.list.len() > 0).then(column) for column in lists)
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
            before, after = (_row_location(change[event], parts) for event in ("event.first", "event"))
            raise UserError(
                f"{after}: column {name!r} changes within user {change[USER]!r}: {change[column]!r} here, "
                f"{change[f'{column}.first']!r} in {before}; contexts must be constant: remove it from data.contexts, "
                "or give a users table (data.users)"
            )
    return events.group_by(USER, maintain_order=True).agg(
        pl.col(column).drop_nulls().first().alias(name) for name, column in attributes.items()
    )


def _row_location(event: int, parts: Sequence[_Part]) -> str:
    """File and row of an event of all files."""
    index, row = file_and_row(event, [part.events.height for part in parts])
    return f"{parts[index].file}, row {parts[index].file.row_number(row)}"


def as_list(values: object) -> list[object]:
    return list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values]

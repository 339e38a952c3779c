"""Reader of anybody's own tables: events, and if there are any users and items, as CSV or parquet."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from arnn_lightning.data.delimited import read_delimited, require_filled
from arnn_lightning.data.events import ITEM, SESSION, TIME, TITLE, USER, RawData
from arnn_lightning.errors import UserError, nearest

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

    def files(self) -> list[Path]:
        """All files, the events' first; raises UserError where one is missing."""
        return [file for table in (self.events, self.users, self.titles) for file in _find(table)]

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
        parts = []
        for file in _find(self.events):
            frame = self._read(file, [*wanted.values(), *within], required=list(wanted.values()))
            parts.append(
                frame.select(
                    *(pl.col(column).alias(name) for name, column in wanted.items() if name != TIME),
                    _seconds(frame[self.columns["time"]], self.time_format, file).alias(TIME),
                    *(self._values(frame, name).alias(alias) for name, alias in within.items()),
                )
            )
        events = _stack(parts, _find(self.events))
        if self.users is not None:
            users = self._users(attributes)
        else:
            users = _constant_attributes(events, within, _find(self.events)[0])
        users, events = _same_type(users, events, USER)
        items = self._items()
        if items is not None:
            items, events = _same_type(items, events, ITEM)
        return RawData(events.drop(within.values()), users, events.height, items)

    def _users(self, attributes: Sequence[str]) -> pl.DataFrame:
        own = self.columns["user_in_users"]
        parts = []
        for file in _find(self.users):
            frame = self._read(file, [own, *(name for name in attributes if name != own)], required=[own])
            parts.append(
                frame.select(pl.col(own).alias(USER), *(self._values(frame, name).alias(name) for name in attributes))
            )
        return _stack(parts, _find(self.users))

    def _items(self) -> pl.DataFrame | None:
        if self.titles is None:
            return None
        own, title = self.columns["item_in_titles"], self.columns["title"]
        parts = [
            self._read(file, [own, title], required=[own]).select(
                pl.col(own).alias(ITEM), pl.col(title).cast(pl.String).alias(TITLE)
            )
            for file in _find(self.titles)
        ]
        return _stack(parts, _find(self.titles))

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

    def _read(self, file: Path, columns: Sequence[str], required: Sequence[str]) -> pl.DataFrame:
        columns = list(dict.fromkeys(columns))
        if _is_parquet(file):
            return _read_parquet(file, columns, required)
        types = dict.fromkeys(columns, pl.String())
        return read_delimited(file, types, separator=None, required=required, null_values=self.null_values)


def _find(table: str | Sequence[str] | None) -> list[Path]:
    found: list[Path] = []
    for pattern in [table] if isinstance(table, str) else table or []:
        # Not Path.glob, which takes no absolute pattern.
        names = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        matches = [Path(name) for name in names if Path(name).is_file()]
        if not matches:
            raise UserError(f"no file {pattern}; give data.events, data.users and data.titles a path or a glob")
        found += matches
    return found


def _is_parquet(file: Path) -> bool:
    return file.suffix in (".parquet", ".pq")


def _read_parquet(file: Path, columns: Sequence[str], required: Sequence[str]) -> pl.DataFrame:
    try:
        known = pl.read_parquet_schema(file)
        for column in columns:
            if column not in known:
                raise UserError(f"{file}: no column {column!r}{nearest(column, known)}; it has {', '.join(known)}")
        frame = pl.read_parquet(file, columns=list(columns))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{file}: not a parquet file that can be read: {str(error).splitlines()[0]}") from error
    frame = frame.with_columns(
        column.cast(pl.String) if isinstance(column.dtype, pl.Categorical | pl.Enum) else column.fill_nan(None)
        for column in frame
        if column.dtype.is_float() or isinstance(column.dtype, pl.Categorical | pl.Enum)
    )
    for column in required:
        require_filled(frame, column, file, first_row=1)
    return frame


def _stack(parts: Sequence[pl.DataFrame], files: Sequence[Path]) -> pl.DataFrame:
    for part, file in zip(parts, files, strict=True):
        if part.schema != parts[0].schema:
            raise UserError(
                f"{file}: its columns are {part.schema}, those of {files[0]} {parts[0].schema}; make them one"
            )
    return pl.concat(parts)


def _same_type(table: pl.DataFrame, events: pl.DataFrame, column: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Ids of both tables as texts, where they are of two types (a number here, a text there)."""
    if table[column].dtype == events[column].dtype:
        return table, events
    as_text = pl.col(column).cast(pl.String)
    return table.with_columns(as_text), events.with_columns(as_text)


def _attribute(name: str) -> str:
    return f"attribute.{name}"


def _constant_attributes(events: pl.DataFrame, within: Mapping[str, str], file: Path) -> pl.DataFrame:
    """One row per user with what the events say of it; a missing value is no change."""
    for name, alias in within.items():
        told = events.with_row_index("event").filter(pl.col(alias).is_not_null())
        first = told.group_by(USER, maintain_order=True).agg(pl.col(alias, "event").first())
        changed = told.join(first, on=USER, suffix=".first", maintain_order="left").filter(
            pl.col(alias) != pl.col(f"{alias}.first")
        )
        if changed.height:
            at = changed.row(0, named=True)
            raise UserError(
                f"{file}: column {name!r} changes within user {at[USER]!r}: {at[f'{alias}.first']!r} in event "
                f"{at['event.first'] + 1}, {at[alias]!r} in event {at['event'] + 1}; contexts must be constant: "
                "take it out of data.contexts, or give a users table (data.users)"
            )
    return events.group_by(USER, maintain_order=True).agg(
        pl.col(alias).drop_nulls().first().alias(name) for name, alias in within.items()
    )


def _seconds(column: pl.Series, time_format: str | None, file: Path) -> pl.Series:
    """A time column of any kind as Int64 unix seconds; fractions are cut off."""
    dtype = column.dtype
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        return column.dt.epoch("s")
    if dtype.is_numeric():
        return _unix(column.cast(pl.Float64), column, file)
    if dtype != pl.String:
        raise UserError(f"{file}: column {column.name!r} holds {dtype}; times are numbers, texts, dates or date-times")
    text = column.str.strip_chars()
    if time_format is not None:
        try:
            parsed = text.str.to_datetime(time_format, strict=False).dt.epoch("s")
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
    late = number.abs() >= MILLISECONDS_FROM
    if late.any() and not late.all():
        minority = late if late.sum() <= len(late) / 2 else ~late
        wanted = "in the unit of the others (some are unix seconds, some milliseconds)"
        raise _bad_time(column, minority, wanted, "write all in one unit", file)
    # Float64 holds every millisecond of the next 280,000 years.
    return (number / (1_000 if late.any() else 1)).floor().cast(pl.Int64)


def _bad_time(column: pl.Series, bad: pl.Series, wanted: str, advice: str, file: Path) -> UserError:
    row = bad.arg_true()[0]
    number = row + (1 if _is_parquet(file) else 2)
    return UserError(f"{file}: column {column.name!r}, row {number}: {column[row]!r} is not {wanted}; {advice}")

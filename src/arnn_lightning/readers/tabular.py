"""Reader of your own tables: events and, optionally, users and items, as delimited text or parquet."""

import ast
import codecs
import filecmp
import glob
import json
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, combinations
from pathlib import Path

import polars as pl

from arnn_lightning.errors import UserError, nearest, nearest_file
from arnn_lightning.readers.delimited import (
    FIRST_ROW,
    PACKED,
    file_format,
    find_file,
    read_delimited,
    require_not_null,
)
from arnn_lightning.readers.schema import ITEM, SESSION, TIME, TITLE, USER, RawData, decimal_years, with_decimal_point
from arnn_lightning.readers.times import NANOSECOND, TimeParser

ORDER = "order"
TABLES = ("events", "users", "titles")


@dataclass(frozen=True)
class _File:
    """A file of a table.

    Attributes:
        path: where it is.
        member: its name in the zip archive ``path`` that contains it beside others; None: ``path`` is the file.
        header: names of its columns; None: they are in its first line.
    """

    path: Path
    member: str | None
    header: Sequence[str] | None

    def __str__(self) -> str:
        return str(self.path if self.member is None else self.path / self.member)

    @property
    def first_row(self) -> int:
        """The number of the first row of data: in a text file, the header is row 1."""
        return FIRST_ROW if self.header is None and file_format(self.path) != "parquet" else 1

    def location(self, column: str, row: int) -> str:
        return f"{self}: column {column!r}, row {row + self.first_row}"


@dataclass(frozen=True)
class _Part:
    """The events of one file.

    Attributes:
        events: canonical events, those of the rows that are kept.
        n_rows: number of rows of the file.
        rows: indices of the rows that are kept; None: all.
        dropped: what was required -> number of rows that were dropped.
        unmatched: the error if no file has a row that ``data.where`` keeps; empty where this one has some.
        absent: values of ``data.where`` that no row has, as COLUMN=VALUE -> a hint.
    """

    file: _File
    events: pl.DataFrame
    n_rows: int
    rows: pl.Series | None
    dropped: Mapping[str, int]
    unmatched: str
    absent: Mapping[str, str]

    def location(self, event: int) -> str:
        row = event if self.rows is None else int(self.rows[event])
        return f"{self.file}, row {row + self.file.first_row}"


@dataclass(frozen=True)
class TabularReader:
    """Reads tables whose columns are named in the config.

    A table is one file, a glob, or a list of them: parquet, or delimited text, whose separator is detected, plain or
    packed (gz, bz2, xz, zst, zip). Ids in text files are strings: ``007`` and ``7`` are different users. The files of a
    glob are read in the order of their names.

    Without a users table, attributes are columns of the events that are constant within a user. Events are in file
    order; where their times are finer than seconds, or there is a column for the order, in order of time.

    Attributes:
        events: the files of events.
        users: the files of users; None: no users table.
        titles: the files of items, with ids, titles and attributes; None: no items table.
        source: where the files come from, for the error of a missing file.
        header: names of the columns of events files without a header line; None: they have one. Likewise
            ``users_header`` and ``titles_header``.
        columns: names of the columns: ``user`` (None: the log has no users, every session is one), ``item``, ``time``,
            ``order`` (numbers that order events of equal times; or None), ``session`` (used if ``session`` is
            ``given``), ``user_in_users``, ``item_in_titles``, ``title`` (None: the items table has no titles).
        session: gap, day or given, as in the data config.
        where: column -> value or values: only these rows are read.
        incomplete: error or drop: what happens to a row without user, item, session, time or order.
        time_format, time_unit, timezone, years: see TimeParser.
        date_format: strftime format of dates among the numeric attributes; None: ISO 8601.
        decimal: the decimal separator of numbers in text, a point or a comma.
        single: single-valued attributes of users.
        multi: multi-valued attributes of users.
        numeric: numeric attributes of users, as the keys of a mapping.
        item_single, item_multi, item_numeric: likewise of items.
        quote: the quote character; None: quotes have no meaning.
        encoding: of text files, as Python names it.
        list_separator: separates the values of a multi-valued attribute in text, unless they are JSON or Python lists.
        null_values: strings that mean a missing value.
    """

    events: str | Sequence[str]
    users: str | Sequence[str] | None
    titles: str | Sequence[str] | None
    source: str | None
    header: Sequence[str] | None
    users_header: Sequence[str] | None
    titles_header: Sequence[str] | None
    columns: Mapping[str, str | None]
    session: str
    where: Mapping[str, object] | None
    incomplete: str
    time_format: str | None
    time_unit: str
    timezone: str
    years: Sequence[int] | None
    date_format: str | None
    decimal: str
    single: Sequence[str]
    multi: Sequence[str]
    numeric: Mapping[str, object] | None
    item_single: Sequence[str]
    item_multi: Sequence[str]
    item_numeric: Mapping[str, object] | None
    quote: str | None
    encoding: str
    list_separator: str
    null_values: Sequence[str]

    def __post_init__(self) -> None:
        lists = ("single", "multi", "item_single", "item_multi", "null_values")
        for name in (*lists, "header", "users_header", "titles_header"):
            values = getattr(self, name)
            if name.endswith("header") and values is None:
                continue
            is_list = isinstance(values, Sequence) and not isinstance(values, str)
            if not is_list or not all(isinstance(value, str) for value in values):
                key = re.sub(r"^(item_)?(single|multi)$", r"\1contexts.\2", name)
                raise UserError(f"data.{key}={values}: must be a list of strings, as in [country,age] or ['','NULL']")
        if not isinstance(self.list_separator, str) or not self.list_separator:
            raise UserError(f"data.list_separator={self.list_separator!r}: must be a string, such as ','")
        if not isinstance(self.time_format, str | None):
            raise UserError(f"data.time_format={self.time_format}: must be a string, such as '%m/%d/%Y'")
        for name, column in self.columns.items():
            optional = name in ("order", "user", "title") or (name == "user_in_users" and self.columns["user"] is None)
            if not isinstance(column, str) and not (column is None and optional):
                raise UserError(
                    f"data.columns.{name}={'null' if column is None else column}: must be the name of a column"
                )
        if self.where is not None and not isinstance(self.where, Mapping):
            raise UserError(f"data.where={self.where}: must be columns with their values, as in {{event: [view]}}")
        for column, values in (self.where or {}).items():
            if not _as_list(values) or not all(isinstance(value, str | int | float) for value in _as_list(values)):
                raise UserError(f"data.where.{column}: must be a value or a list of values, as in {{{column}: [view]}}")
        try:
            codecs.lookup(self.encoding)
        except LookupError as error:
            raise UserError(f"data.encoding={self.encoding}: no such encoding; set for example latin-1") from error
        if self.columns["user"] is None:
            self._require_anonymous()
        if self.titles is None and self._item_kinds:
            raise UserError(
                f"data.item_contexts: {', '.join(self._item_kinds)}: needs a table of items (data.titles=items.csv)"
            )

    @property
    def _user_kinds(self) -> dict[str, str]:
        return _kinds(self.single, self.multi, self.numeric)

    @property
    def _item_kinds(self) -> dict[str, str]:
        return _kinds(self.item_single, self.item_multi, self.item_numeric)

    def _require_anonymous(self) -> None:
        if self.session != "given":
            raise UserError(
                f"data.columns.user=null needs data.session=given, not {self.session}: without users, sessions must be "
                "a column of the log (data.columns.session)"
            )
        if self.users is not None or self._user_kinds:
            attributes = ", ".join(self._user_kinds)
            key = f"data.users={self.users}" if self.users is not None else f"data.contexts: {attributes}"
            raise UserError(f"{key}: a log without users (data.columns.user=null) has no contexts; remove them")

    def files(self) -> dict[str, Path]:
        """All files by table and index, events first; raises UserError for one that is missing or listed twice."""
        return {
            f"{name}/{number}/{file.member or file.path.name}": file.path
            for name in TABLES
            for number, file in enumerate(self._files(name), 1)
        }

    def _files(self, table: str) -> list[_File]:
        header = self.header if table == "events" else getattr(self, f"{table}_header")
        hint = f"; {self.source}; put it there or set data.raw_dir" if self.source else ""
        files = _resolve_files(table, getattr(self, table), header, hint)
        _require_distinct(table, files)
        return files

    def read(self) -> RawData:
        """The canonical tables.

        Raises:
            UserError: a missing column, a missing or ambiguous id, an invalid or ambiguous time, or an attribute that
                changes within a user; names file, column, row and value.
        """
        kinds = {name: kind for name, kind in self._user_kinds.items() if name != USER}
        event_attributes = {} if self.users is not None else {name: _attribute_column(name) for name in kinds}
        parts = [self._read_events(file, event_attributes) for file in self._files("events")]
        events = _concat([part.events for part in parts], [part.file for part in parts])
        if events.is_empty() and (unmatched := next((part.unmatched for part in parts if part.unmatched), "")):
            raise UserError(unmatched)
        dropped: Counter[str] = Counter()
        for part in parts:
            dropped.update(part.dropped)
        if self.users is not None:
            users = self._read_table("users", USER, "user_in_users", kinds)
        else:
            users = _attributes_from_events(events, event_attributes, parts)
        users, events = _align_id_types(users, events, USER, "users")
        absent = set.intersection(*(set(part.absent) for part in parts))
        notes = [f"data.where: no row has {label}{hint}" for label, hint in parts[0].absent.items() if label in absent]
        load_items = None
        if self.titles is not None:
            items, events = _align_id_types(self._read_items(), events, ITEM, "titles")
            load_items = lambda: items  # noqa: E731
        events = _in_order(events.drop(event_attributes.values()))
        return RawData(events, sum(part.n_rows for part in parts), users.lazy, load_items, dropped, notes)

    def _read_events(self, file: _File, attributes: Mapping[str, str]) -> _Part:
        """Canonical events of one file; ``attributes``: name -> column in the result."""
        columns = {USER: self.columns["user"], ITEM: self.columns["item"]}
        if self.session == "given":
            columns[SESSION] = self.columns["session"]
        ids = {name: column for name, column in columns.items() if column is not None}
        time, order = str(self.columns["time"]), self.columns["order"]
        where = self.where or {}
        orders = [] if order is None else [order]
        frame = self._read_file(file, [*ids.values(), time, *orders, *where, *attributes], list(ids.values()))
        parser = TimeParser(self.time_format, self.time_unit, self.timezone, self.years)
        seconds, nanosecond = parser.parse(frame[time], partial(file.location, time))
        events = frame.select(
            *(pl.col(column).alias(name) for name, column in ids.items()),
            seconds.alias(TIME),
            *([] if nanosecond is None else [nanosecond.alias(NANOSECOND)]),
            *(self._parse_number(frame[order], file).alias(ORDER) for order in orders),
            *(
                self._parse_attribute(frame[name], self._user_kinds[name], file).alias(column)
                for name, column in attributes.items()
            ),
        )
        kept, dropped, unmatched, absent = self._keep_rows(frame, [*ids.values(), time, *orders], file)
        rows = None
        if kept is not None:
            rows, events = kept.arg_true(), events.filter(kept)
        if USER not in ids:
            events = events.with_columns(pl.col(SESSION).alias(USER))
        return _Part(file, events, frame.height, rows, dropped, unmatched, absent)

    def _keep_rows(
        self, frame: pl.DataFrame, required: Sequence[str], file: _File
    ) -> tuple[pl.Series | None, dict[str, int], str, dict[str, str]]:
        """Which rows ``data.where`` and ``data.incomplete`` keep, None for all; and as in _Part.

        Raises:
            UserError: a missing value of a ``required`` column that ``data.incomplete`` does not allow.
        """
        kept = pl.repeat(True, frame.height, dtype=pl.Boolean, eager=True)
        dropped: dict[str, int] = {}
        unmatched, absent = "", dict[str, str]()
        for column, values in (self.where or {}).items():
            allowed = [_as_text(value) for value in _as_list(values)]
            text, before = frame[column].cast(pl.String).str.strip_chars(), int(kept.sum())
            is_allowed = text.is_in(allowed).fill_null(False)
            kept &= is_allowed
            if unseen := set(allowed) - set(text.filter(is_allowed).unique()):
                present = [value for value in text.unique().sort().head(1_000) if value is not None]
                absent |= {f"{column}={value}": nearest(value, present) for value in allowed if value in unseen}
            label = f"{column}={' or '.join(allowed)}"
            dropped[f"with {label}"] = before - int(kept.sum())
            if not kept.any() and not unmatched:
                frequent = text.value_counts(sort=True)[column].head(10).to_list()
                unmatched = f"{file}: data.where: no row has {label}; its values: {', '.join(map(str, frequent))}"
        n_before = int(kept.sum())
        for column in required:
            missing = frame[column].is_null() & kept if frame[column].has_nulls() else None
            if missing is not None and missing.any():
                if self.incomplete == "error":
                    raise UserError(
                        f"{file}: column {column!r} is empty in {missing.sum():,} rows, the first is row "
                        f"{missing.arg_true()[0] + file.first_row}; fill or remove them, or set data.incomplete=drop"
                    )
                kept &= ~missing
        if self.incomplete == "drop":
            dropped["without missing values"] = n_before - int(kept.sum())
        return None if kept.all() else kept, dropped, unmatched, absent

    def _read_items(self) -> pl.DataFrame:
        title = self.columns["title"]
        titles = {} if title is None else {TITLE: title}
        return self._read_table("titles", ITEM, "item_in_titles", self._item_kinds, titles)

    def _read_table(
        self, table: str, id_name: str, id_key: str, kinds: Mapping[str, str], texts: Mapping[str, str] | None = None
    ) -> pl.DataFrame:
        """The ids, named ``id_name``, and attributes of a table; raises UserError for a missing id.

        ``kinds``: the kind of every attribute; ``texts``: columns to add, by their names in the result.
        """
        id_column, files, texts = str(self.columns[id_key]), self._files(table), texts or {}
        parts = []
        for file in files:
            frame = self._read_file(file, [id_column, *texts.values(), *kinds], [id_column])
            require_not_null(frame, id_column, file, file.first_row)
            values = [
                self._parse_attribute(frame[column], "single", file).alias(name) for name, column in texts.items()
            ]
            values += [self._parse_attribute(frame[name], kind, file).alias(name) for name, kind in kinds.items()]
            parts.append(frame.select(pl.col(id_column).alias(id_name), *values))
        return _concat(parts, files)

    def _parse_attribute(self, column: pl.Series, kind: str, file: _File) -> pl.Series:
        """An attribute in its canonical type: String, List(String), or Float64 for a numeric one."""
        is_list = isinstance(column.dtype, pl.List | pl.Array)
        if kind == "multi":
            lists = (
                column.cast(pl.List(pl.String))
                if is_list
                else _split_lists(column.cast(pl.String), self.list_separator)
            )
            element = pl.element().str.strip_chars()
            is_known = ~element.is_in(["", *self.null_values])
            return lists.list.eval(element.filter(is_known)).list.unique(maintain_order=True)
        if is_list:
            raise UserError(
                f"{file}: column {column.name!r} is a list and must be listed under data.contexts.multi, that of items "
                "under data.item_contexts.multi"
            )
        if kind == "numeric":
            return self._parse_number(decimal_years(column, self.date_format), file).cast(pl.Float64)
        if column.dtype.is_float() and ((column == column.floor()) & column.is_finite()).all():
            column = column.cast(pl.Int64)  # pandas stores integers as floats where a value is missing
        text = column.cast(pl.String).str.strip_chars()
        return text.set(text.is_in(["", *self.null_values]), None)

    def _parse_number(self, column: pl.Series, file: _File) -> pl.Series:
        """A column of numbers as Int64 or Float64, null where missing; dates in days since 1970."""
        if column.dtype == pl.String:
            text = column.str.strip_chars()
            text = text.set(text == "", None)
            number = text.cast(pl.Int64, strict=False)
            if number.null_count() > text.null_count():
                number = with_decimal_point(text, self.decimal).cast(pl.Float64, strict=False)
        elif isinstance(column.dtype, pl.Datetime):
            text, number = column, column.dt.epoch("us") / 86_400_000_000
        elif column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Date):
            text = column
            number = (
                column.cast(pl.Int32 if column.dtype == pl.Date else pl.Float64)
                if not column.dtype.is_integer()
                else column
            )
        else:
            raise UserError(f"{file}: column {column.name!r} contains {column.dtype}; must be numbers")
        is_invalid = text.is_not_null() & (number.is_null() | number.cast(pl.Float64).is_infinite())
        if is_invalid.any():
            row = is_invalid.arg_true()[0]
            value = str(column[row])
            keys = {r"[+-]?[\d.]*,\d*": "data.decimal=','", r"\d{1,4}([./-])\d{1,2}\1\d{1,4}.*": "data.date_format"}
            advice = next((f", or set {key}" for form, key in keys.items() if re.fullmatch(form, value.strip())), "")
            raise UserError(f"{file.location(column.name, row)}: {value!r} is not a number; fix or remove it{advice}")
        return number.fill_nan(None) if number.dtype.is_float() else number

    def _read_file(self, file: _File, columns: Sequence[str], ids: Sequence[str]) -> pl.DataFrame:
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
            return frame
        try:
            schema = pl.read_parquet_schema(file.path)
            for column in columns:
                if column not in schema:
                    hint = nearest(column, schema)
                    raise UserError(f"{file}: no column {column!r}{hint}; its columns: {', '.join(schema)}")
            frame = pl.read_parquet(file.path, columns=columns, glob=False).cast({pl.Binary: pl.String})
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{file}: not a readable parquet file: {str(error).splitlines()[0]}") from error
        return frame.with_columns(self._normalize_parquet(column, column.name in ids, file) for column in frame)

    def _normalize_parquet(self, column: pl.Series, is_id: bool, file: _File) -> pl.Series:
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
        limit = 2**24 if column.dtype == pl.Float32 else 2**53
        for is_invalid, problem in (
            ((column != column.floor()) | column.is_infinite(), "not a valid id; ids must be integers or strings"),
            (column.abs() > limit, f"a float beyond {limit}, which stands for several ids; store integers or strings"),
        ):
            if is_invalid.any():
                row = is_invalid.arg_true()[0]
                raise UserError(f"{file.location(column.name, row)}: {column[row]} is {problem}")
        return column.cast(pl.Int64)


def _kinds(single: Sequence[str], multi: Sequence[str], numeric: Mapping[str, object] | None) -> dict[str, str]:
    """Attribute -> single, multi or numeric."""
    return {
        **dict.fromkeys(single, "single"),
        **dict.fromkeys(multi, "multi"),
        **dict.fromkeys(numeric or {}, "numeric"),
    }


def _resolve_files(
    name: str, table: str | Sequence[str] | None, header: Sequence[str] | None, hint: str
) -> list[_File]:
    """The files of a table, in the order in which they are listed; ``hint`` completes the error of a missing one."""
    patterns = [table] if isinstance(table, str) else table
    if (name == "events" and not patterns) or not all(isinstance(pattern, str) for pattern in patterns or []):
        raise UserError(f"data.{name}={table}: must be a path, a glob, or a list of them")
    files: list[_File] = []
    for pattern in patterns or []:
        # The name of an existing file is not a pattern. Path.glob does not support absolute patterns.
        path = Path(pattern).expanduser()
        names = [str(path)] if path.is_file() else sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        matches = [_File(Path(name), None, header) for name in names if Path(name).is_file()]
        if not matches and not path.is_dir() and (packed := find_file(path)) is not None:
            matches = [_File(packed, path.name if packed.suffix == ".zip" else None, header)]
        if not matches:
            what = "a folder" if path.is_dir() else f"not a file{nearest_file(path)}"
            raise UserError(f"data.{name}: {pattern} is {what}; give a path or a glob of files{hint}")
        files += matches
    return files


def _require_distinct(name: str, files: Sequence[_File]) -> None:
    """Raises UserError for a file that is listed twice: by two paths, plain and packed, or as a copy."""
    by_name: dict[tuple[Path, str | None], _File] = {}
    by_size: defaultdict[int, list[_File]] = defaultdict(list)
    for file in files:
        path = file.path.resolve()
        other = by_name.setdefault((path.with_suffix("") if path.suffix[1:] in PACKED else path, file.member), file)
        if other is not file:
            also = "" if other.path == file.path else f" (also as {other})"
            raise UserError(f"data.{name}: {file} is listed more than once{also}; its rows would be counted twice")
        if file.member is None:
            by_size[path.stat().st_size].append(file)
    for first, second in (pair for same_size in by_size.values() for pair in combinations(same_size, 2)):
        # Days without events have equal files: a header alone.
        if filecmp.cmp(first.path, second.path, shallow=False) and first.path.read_bytes().count(b"\n") > 1:
            raise UserError(f"data.{name}: {second} is a copy of {first}; its rows would be counted twice")


def _concat(parts: Sequence[pl.DataFrame], files: Sequence[_File]) -> pl.DataFrame:
    is_finer = [NANOSECOND in part.columns for part in parts]
    if any(is_finer) and not all(is_finer):
        columns = parts[is_finer.index(True)].columns
        parts = [
            (part if NANOSECOND in part.columns else part.with_columns(pl.lit(0, pl.Int64).alias(NANOSECOND))).select(
                columns
            )
            for part in parts
        ]
    try:
        return pl.concat(parts, how="vertical_relaxed")  # integers of different widths are compatible
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{', '.join(map(str, files))}: their columns differ: {str(error).splitlines()[0]}") from error


def _in_order(events: pl.DataFrame) -> pl.DataFrame:
    """Events by time and order, where seconds do not order them; stable, since preprocessing sorts by seconds only."""
    keys = [name for name in (NANOSECOND, ORDER) if name in events.columns]
    return events.sort(TIME, *keys, maintain_order=True).drop(keys) if keys else events


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
    events: pl.DataFrame, attributes: Mapping[str, str], parts: Sequence[_Part]
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
    starts = list(accumulate((part.events.height for part in parts), initial=0))
    index = bisect_right(starts, event) - 1
    return parts[index].location(event - starts[index])


def _require_digits(ids: pl.Series, file: _File) -> None:
    """Raises UserError for an id in the scientific notation of spreadsheets, which keeps some of its digits only."""
    if not ids.str.contains("+", literal=True).any():
        return
    is_scientific = ids.str.contains(r"^\d\.\d+[eE]\+\d+$").fill_null(False)
    if is_scientific.any():
        row = is_scientific.arg_true()[0]
        raise UserError(
            f"{file.location(ids.name, row)}: {ids[row]!r} lacks digits of the id; export the column as text"
        )


def _split_lists(text: pl.Series, separator: str) -> pl.Series:
    """Lists of strings: the values between separators, or those of a JSON or Python list."""
    is_bracketed = text.str.contains(r"(?s)^\s*\[.*\]\s*$").fill_null(False)
    lists = text.str.split(separator)
    if not is_bracketed.any():
        return lists
    values = text.filter(is_bracketed).unique()
    parsed = pl.Series([_parse_list(value, separator) for value in values], dtype=pl.List(pl.String))
    table = pl.DataFrame({"text": values, "parsed": parsed})
    joined = pl.DataFrame({"text": text, "list": lists}).join(table, on="text", how="left", maintain_order="left")
    return joined.select(pl.coalesce("parsed", "list")).to_series()


def _parse_list(text: str, separator: str) -> list[str]:
    """The values of a list in brackets.

    >>> _parse_list('["folk", "rock, hard"]', ","), _parse_list("['folk' 'rock']", ","), _parse_list("[folk;3]", ";")
    (['folk', 'rock, hard'], ['folk', 'rock'], ['folk', '3'])
    """
    for parse in (json.loads, _parse_python_list):
        try:
            return [_as_text(value) for value in parse(text.strip()) if value is not None]
        except (ValueError, SyntaxError):
            continue
    return text.strip()[1:-1].split(separator)


def _parse_python_list(text: str) -> list[object]:
    # numpy writes no commas, and Python would join the strings.
    return list(ast.literal_eval(re.sub(r"""(?<=['"])\s+(?=['"])""", ", ", text)))


def _as_list(values: object) -> list[object]:
    return list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values]


def _as_text(value: object) -> str:
    """A value as text files have it.

    >>> _as_text(True), _as_text(3), _as_text("view")
    ('true', '3', 'view')
    """
    return str(value).lower() if isinstance(value, bool) else str(value)

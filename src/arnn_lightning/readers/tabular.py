"""Reader of your own tables: events and, optionally, users and items, as delimited text or parquet.

``tabular_files.py`` finds the files, ``tabular_format.py`` reads their values, ``tabular_events.py`` the events, and
``tabular_attributes.py`` users and items.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from arnn_lightning.errors import MissingColumnError, UserError
from arnn_lightning.readers.schema import ITEM, SESSION, TITLE, USER, RawData
from arnn_lightning.readers.tabular_attributes import align_id_types, read_attributes
from arnn_lightning.readers.tabular_events import EventTable, as_list
from arnn_lightning.readers.tabular_files import TableFile, resolve_files
from arnn_lightning.readers.tabular_format import TableFormat
from arnn_lightning.readers.times import TimeParser

TABLES = ("events", "users", "titles")


@dataclass(frozen=True)
class TabularReader:
    """Reads tables whose columns are named in the config.

    A table is one file, a glob, or a list of them: parquet, or delimited text, whose separator is detected, plain or
    compressed (gz, bz2, xz, zst, zip). Ids in text files are strings: ``007`` and ``7`` are different users. The files
    of a glob are read in the order of their names.

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
        _require_columns(self)
        if self.columns["user"] is None:
            _require_anonymous(self)
        _require_item_attributes(self)

    @property
    def _user_kinds(self) -> dict[str, str]:
        return _kinds(self.single, self.multi, self.numeric)

    @property
    def _user_attributes(self) -> dict[str, str]:
        """The attributes that are columns of a table, as the user's id is not."""
        return {name: kind for name, kind in self._user_kinds.items() if name != USER}

    @property
    def _item_kinds(self) -> dict[str, str]:
        return _kinds(self.item_single, self.item_multi, self.item_numeric)

    def files(self) -> dict[str, Path]:
        """All files by table and index, events first; raises UserError for one that is missing or listed twice."""
        return {
            f"{name}/{number}/{file.member or file.path.name}": file.path
            for name in TABLES
            for number, file in enumerate(self._files(name), 1)
        }

    def _files(self, table: str) -> list[TableFile]:
        header = self.header if table == "events" else getattr(self, f"{table}_header")
        hint = f"; {self.source}; put it there or set data.raw_dir" if self.source else ""
        return resolve_files(table, getattr(self, table), header, hint)

    @property
    def _format(self) -> TableFormat:
        return TableFormat(
            self.quote, self.encoding, self.null_values, self.list_separator, self.date_format, self.decimal
        )

    @property
    def _event_table(self) -> EventTable:
        columns = {name: str(column) for name, column in self.columns.items()}
        ids = {USER: columns["session" if self.columns["user"] is None else "user"], ITEM: columns["item"]}
        if self.session == "given":
            ids[SESSION] = columns["session"]
        return EventTable(
            ids=ids,
            time=columns["time"],
            order=self.columns["order"],
            attributes=self._user_attributes if self.users is None else None,
            where=self.where or {},
            incomplete=self.incomplete,
            table_format=self._format,
            time_parser=TimeParser(self.time_format, self.time_unit, self.timezone, self.years),
        )

    def read(self) -> RawData:
        """The canonical tables.

        Raises:
            UserError: a missing column, a missing or ambiguous id, an invalid or ambiguous time, or an attribute that
                changes within a user; names file, column, row and value.
        """
        keys = ["user", "item", "time", "order", *(["session"] if self.session == "given" else [])]
        contexts = {"data.contexts": self._user_kinds}
        with _naming_settings(self.columns, keys, {"data.where": self.where or {}, **contexts}):
            log = self._event_table.read(self._files("events"))
        users, row_location = log.users, dict[str, Callable[[int], str]]()
        if users is None:
            columns = {USER: str(self.columns["user_in_users"])}
            with _naming_settings(self.columns, ["user_in_users"], contexts):
                users, row_location["users"] = read_attributes(
                    self._files("users"), self._format, USER, self._user_attributes, columns
                )
        users, events = align_id_types(users, log.events, USER, "users")
        load_items = None
        if self.titles is not None:
            title, kinds = self.columns["title"], self._item_kinds
            columns = {ITEM: str(self.columns["item_in_titles"]), TITLE: str(title)}
            attributes = kinds if title is None or TITLE in kinds else {TITLE: "single", **kinds}
            with _naming_settings(self.columns, ["item_in_titles", "title"], {"data.item_contexts": kinds}):
                items, row_location["items"] = read_attributes(
                    self._files("titles"), self._format, ITEM, attributes, columns
                )
            items, events = align_id_types(items, events, ITEM, "titles")
            load_items = lambda: items  # noqa: E731
        return RawData(
            events,
            log.n_rows,
            users.lazy,
            load_items,
            row_location=lambda table, row: row_location[table](row),
            dropped=log.dropped,
            notes=log.notes,
        )


def _kinds(single: Sequence[str], multi: Sequence[str], numeric: Mapping[str, object] | None) -> dict[str, str]:
    """Attribute -> single, multi or numeric."""
    return dict.fromkeys(single, "single") | dict.fromkeys(multi, "multi") | dict.fromkeys(numeric or {}, "numeric")


def _require_columns(reader: TabularReader) -> None:
    """Raises UserError for a column or a condition of a wrong type, and for an unknown encoding."""
    for name, column in reader.columns.items():
        optional = name in ("order", "user", "title") or (name == "user_in_users" and reader.columns["user"] is None)
        if not isinstance(column, str) and not (column is None and optional):
            raise UserError(f"data.columns.{name}={'null' if column is None else column}: must be the name of a column")
    if reader.where is not None and not isinstance(reader.where, Mapping):
        raise UserError(f"data.where={reader.where}: must be columns with their values, as in {{event: [view]}}")
    for column, values in (reader.where or {}).items():
        if not as_list(values) or not all(isinstance(value, str | int | float) for value in as_list(values)):
            raise UserError(f"data.where.{column}: must be a value or a list of values, as in {{{column}: [view]}}")
    try:
        "".encode(reader.encoding)
    except LookupError as error:  # also of base64 and others that are not of text
        raise UserError(f"data.encoding={reader.encoding}: no such encoding; set for example latin-1") from error


def _require_anonymous(reader: TabularReader) -> None:
    """Raises UserError for settings that need users."""
    if reader.session != "given":
        raise UserError(
            f"data.columns.user=null needs data.session=given, not {reader.session}: without users, sessions must be "
            "a column of the log (data.columns.session)"
        )
    if reader.users is not None or reader._user_kinds:
        attributes = ", ".join(reader._user_kinds)
        key = f"data.users={reader.users}" if reader.users is not None else f"data.contexts: {attributes}"
        raise UserError(f"{key}: a log without users (data.columns.user=null) has no contexts; remove them")


def _require_item_attributes(reader: TabularReader) -> None:
    """Raises UserError for attributes of items without a table, or with the name of their id or title."""
    if reader.titles is None and reader._item_kinds:
        raise UserError(
            f"data.item_contexts: {', '.join(reader._item_kinds)}: needs a table of items (data.titles=items.csv)"
        )
    if ITEM in reader._item_kinds:
        column = reader.columns["item_in_titles"]
        raise UserError(
            f"data.item_contexts: {ITEM!r} is the item's id (data.columns.item_in_titles={column}); remove it, or "
            "rename the column"
        )
    column = reader.columns["title"]
    if TITLE in reader._item_kinds and not (column == TITLE and reader._item_kinds[TITLE] == "single"):
        raise UserError(
            f"data.item_contexts: {TITLE!r} is the item's title (data.columns.title={column or 'null'}); list it "
            f"under data.item_contexts.single and set data.columns.title={TITLE}, or rename the column"
        )


@contextmanager
def _naming_settings(
    columns: Mapping[str, str | None], keys: Sequence[str], lists: Mapping[str, Collection[str]]
) -> Iterator[None]:
    """Adds to the error of a missing column its setting: one of ``keys`` of ``columns``, or one of ``lists``."""
    try:
        yield
    except MissingColumnError as error:
        missing = [key for key in keys if columns[key] not in (None, *error.columns)]
        key = next((key for key in missing if columns[key] == error.column), None)
        if key is None:
            setting = next(setting for setting, listed in lists.items() if error.column in listed)
            raise UserError(f"{error}; {setting} names it") from error
        optional = " (null: a log without users)" if key == "user" else ""
        others = ", ".join(f"data.columns.{other}" for other in missing if other != key)
        setting = f"data.columns.{key}{optional}{f'; likewise {others}' if others else ''}"
        raise UserError(f"{error}; if the column has another name, set {setting}") from error

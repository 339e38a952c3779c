"""Requests for recommendations: frames of any library -> codes of items and contexts. S sessions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl

from arnn_lightning.errors import UserError, nearest
from arnn_lightning.readers.schema import USER
from arnn_lightning.readers.times import TimeParser
from arnn_lightning.serving.profiles import ProfileReader
from arnn_lightning.serving.vocabulary import Vocabulary

SESSION_ID, ITEM_ID, TIME, USER_ID = "session_id", "item_id", "time", "user_id"


def to_polars(frame: Any, name: str) -> pl.DataFrame:
    """A frame of polars, pandas, pyarrow or another library that narwhals supports, as polars.

    Raises:
        UserError: no frame, a lazy one, or a column of mixed types; ``name`` is the argument that it was given as.
    """
    if isinstance(frame, pl.DataFrame):
        return frame
    try:
        table: pl.DataFrame = nw.from_native(frame, eager_only=True).to_polars()
        return table
    except TypeError as error:
        kind = f"{type(frame).__module__.partition('.')[0]}.{type(frame).__qualname__}".removeprefix("builtins.")
        raise UserError(f"{name}: must be a polars or pandas DataFrame or a pyarrow Table, not {kind}") from error
    except ModuleNotFoundError as error:
        raise UserError(f"{name}: {error}; pip install pyarrow, or pass a polars frame") from error
    except Exception as error:  # a class of the frame's library
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error


def like(frame: pl.DataFrame, original: Any) -> Any:
    """``frame`` in the library of ``original``; polars where that is no frame."""
    if isinstance(original, pl.DataFrame | list | tuple | Mapping):
        return frame
    backend = nw.from_native(original, eager_only=True).implementation
    return nw.from_arrow(frame, backend=backend).to_native()


def plain_ids(ids: pl.Series) -> pl.Series:
    """Categories as strings, and floats as integers where they are whole: pandas has floats where a value is missing.

    >>> plain_ids(pl.Series([7.0, float("nan")])).to_list()
    [7, None]
    """
    if isinstance(ids.dtype, pl.Categorical | pl.Enum):
        return ids.cast(pl.String)
    if not ids.dtype.is_float():
        return ids
    ids = ids.fill_nan(None)
    whole = ids.cast(pl.Int64, strict=False)
    return whole if (whole == ids).fill_null(ids.is_null()).all() else ids.cast(pl.String)


def cast_ids(ids: pl.Series, dtype: pl.DataType, name: str) -> pl.Series:
    """Ids as ``dtype``, the type of the vocabulary's; null for those that have no such form.

    >>> cast_ids(pl.Series([7.0, None]), pl.String(), "item_id").to_list()
    ['7', None]

    Raises:
        UserError: a type that is none of ids.
    """
    ids = plain_ids(ids)
    if ids.dtype == dtype or ids.dtype == pl.Null:
        return ids.cast(dtype)
    if not (ids.dtype.is_integer() or ids.dtype == pl.String):
        raise UserError(f"{name}: ids must be integers or strings, not {ids.dtype}")
    return ids.cast(dtype, strict=False)


def to_ids(ids: Any, name: str) -> pl.Series:
    """A list of ids as a column; raises UserError where it is none.

    >>> to_ids([1, "a"], "items").to_list()
    ['1', 'a']
    """
    if isinstance(ids, str | bytes):
        raise UserError(f"{name}={ids!r}: must be a list of ids")
    try:
        return stripped(ids if isinstance(ids, pl.Series) else _column(list(ids)))
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{name}: must be a list of ids: {str(error).splitlines()[0]}") from error


def _column(ids: list[Any]) -> pl.Series:
    try:
        return pl.Series(ids, dtype=None if ids else pl.Null)
    except (TypeError, OverflowError):  # of both types, or an integer of more than 128 bits
        if not all(type(value) in (int, str) for value in ids):
            raise
        return pl.Series([*map(str, ids)])


def find_codes(ids: pl.Series, known: pl.Series, name: str) -> pl.Series:
    """The code (place in ``known``) of every id, null for unknown ones."""
    table = pl.DataFrame({"id": known}).with_row_index("code")
    wanted = pl.DataFrame({"id": cast_ids(ids, known.dtype, name)})
    return wanted.join(table, on="id", how="left", maintain_order="left")["code"]


def stripped(ids: pl.Series) -> pl.Series:
    """Ids of the log without spaces around them, as in reading the data."""
    return ids.str.strip_chars() if ids.dtype == pl.String else ids


def check_length(k: Any) -> None:
    """Raises UserError where ``k`` is no length of a list."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise UserError(f"k={k!r}: must be an integer of at least 1")


@dataclass
class Unknown:
    """What a session has that the model does not know, and ignores.

    Attributes:
        items: ids that are not in the catalogue, one per event.
        attributes: attributes that the model does not use.
        values: (attribute, value) where the value is no category.
        users: ids of users who have no profile: neither the training data nor the request have one.
    """

    items: list[Any] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    values: list[tuple[str, str]] = field(default_factory=list)
    users: list[Any] = field(default_factory=list)

    def error_text(self, used: Sequence[str]) -> str | None:
        """One line about what ``on_unknown="raise"`` refuses. Users without a profile it does not: they may be new.

        Args:
            used: the model's attributes.
        """
        parts = []
        if self.items:
            events = "1 event" if len(self.items) == 1 else f"{len(self.items):,} events"
            parts.append(f"items that are not in the catalogue ({events}), such as {self.items[0]!r}")
        if self.attributes:
            names = ", ".join(self.attributes)
            hint = nearest(self.attributes[0], used) if used else " (it uses none)"
            parts.append(f"attributes that the model does not use: {names}{hint}")
        if self.values:
            name, value = self.values[0]
            parts.append(f"attribute values not seen in training ({len(self.values):,}), such as {name}={value!r}")
        return "; ".join(parts) or None

    def warning_text(self, used: Sequence[str]) -> str | None:
        """One line about what is ignored; None where everything is known."""
        users = [f"users without a profile ({len(self.users):,}), such as {self.users[0]!r}"] if self.users else []
        return "; ".join(filter(None, [self.error_text(used), *users])) or None


@dataclass
class UnknownRows(Unknown):
    """The same of many sessions, and what their frames have besides.

    Attributes:
        unmatched: ids of ``users`` that no session has.
        all_unmatched: whether these are all rows of ``users``, so that its ids are probably mistyped.
        no_click: number of sessions without an item of the catalogue.
        columns: columns of the sessions that are attributes of the model, which only profiles have.
    """

    unmatched: list[Any] = field(default_factory=list)
    all_unmatched: bool = False
    no_click: int = 0
    columns: list[str] = field(default_factory=list)

    def warning_text(self, used: Sequence[str]) -> str | None:
        parts = [super().warning_text(used)]
        if self.all_unmatched:
            parts.append(
                f"all {len(self.unmatched):,} rows of users, since no session has their ids, such as "
                f"{self.unmatched[0]!r}"
            )
        if self.columns:
            names = ", ".join(self.columns)
            parts.append(f"columns of the sessions that are attributes of the model (give them in users): {names}")
        return "; ".join(filter(None, parts)) or None


@dataclass(frozen=True)
class Request:
    """Sessions as codes.

    Attributes:
        session_id: (S,) in the order of their first events.
        item: item codes of all sessions, one after the other, unknown ones left out.
        offset: (S + 1,) where each session starts.
        contexts: (S,) row of ``profiles`` of each session; -1: unknown contexts.
        profiles: context codes, as ``EncodedContexts.users``.
        unknown: what is ignored.
    """

    session_id: pl.Series
    item: np.ndarray
    offset: np.ndarray
    contexts: np.ndarray
    profiles: pl.DataFrame
    unknown: UnknownRows


class RequestReader:
    """Reads frames of sessions and profiles.

    Args:
        vocabulary: the checkpoint's.
        profile_reader: of the same vocabulary.
        uses_contexts: whether the model reads contexts; where not, all attributes are unknown.
        user_columns: names of columns of user ids in the log, for errors.
        time_parser: of times that are strings, as in the log.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        profile_reader: ProfileReader,
        uses_contexts: bool,
        user_columns: Iterable[str | None],
        time_parser: TimeParser,
    ) -> None:
        self.vocabulary = vocabulary
        self.profile_reader = profile_reader
        self.uses_contexts = uses_contexts
        self._attributes = vocabulary.attributes if uses_contexts else []
        self.user_columns = user_columns
        self.time_parser = time_parser

    def read(self, sessions: Any, users: Any) -> Request:
        """Codes of sessions and their users.

        Args:
            sessions: a frame with session_id and item_id, and where needed time and user_id; or the ids of one session.
            users: None, or a frame with session_id or user_id and the columns of attributes.

        Raises:
            UserError: a missing column, ids of a wrong type, a session of two users, a user who occurs twice.
        """
        events, others = _read_events(sessions)
        given, key = self._read_users(users, events, others)
        if key is not None:  # a column without a value has no type
            events = events.with_columns(events[key].cast(given[key].dtype))
        session_id = events[SESSION_ID].unique(maintain_order=True)
        if key == SESSION_ID:  # sessions without an event so far
            session_id = pl.concat([session_id, given[key].filter(~given[key].is_in(session_id.implode()))])
        numbers = pl.DataFrame({SESSION_ID: session_id}).with_row_index("number")
        events = events.join(numbers, on=SESSION_ID, how="left", maintain_order="left")
        order = self._order(events[TIME]) if TIME in events.columns else []
        events = events.sort("number", *order, maintain_order=True)
        user_id = _user_of_each_session(events, len(session_id))
        item = find_codes(events[ITEM_ID], self.vocabulary.items["id"], f"sessions: {ITEM_ID}")
        unknown_items = events.filter(item.is_null() & events[ITEM_ID].is_not_null())[ITEM_ID].to_list()
        events = events.select("number", item=item).drop_nulls("item")
        lengths = np.bincount(events["number"].to_numpy(), minlength=len(session_id))
        contexts, profiles, unknown = self._contexts(session_id, user_id, given, key)
        unknown.items, unknown.no_click = unknown_items, int((lengths == 0).sum())
        unknown.columns = [name for name in others if name in self._attributes and name not in given.columns]
        return Request(
            session_id=session_id,
            item=events["item"].to_numpy().astype(np.int64),
            offset=np.append(0, lengths.cumsum()),
            contexts=contexts,
            profiles=profiles,
            unknown=unknown,
        )

    def _read_users(self, users: Any, events: pl.DataFrame, others: list[str]) -> tuple[pl.DataFrame, str | None]:
        """``users`` with valid ids, and the column that these are in; ``others``: other columns of the sessions."""
        if users is None:
            return pl.DataFrame(), None
        users = to_polars(users, "users")
        key = next((name for name in (SESSION_ID, USER_ID) if name in users.columns), None)
        if key is None or key not in events.columns:
            where, names = ("users", users.columns) if key is None else ("sessions", others)
            renamed = next((f"its column {name}" for name in self.user_columns if name in names), None)
            raise UserError(
                f"{where}: no column {key or 'session_id or user_id'}; profiles are matched by it; rename "
                f"{renamed or 'the column of user ids'} to user_id"
            )
        if USER_ID in users.columns:
            users = users.with_columns(stripped(plain_ids(users[USER_ID])))
        dtype = events[key].dtype if events[key].count() else plain_ids(users[key]).dtype
        ids = cast_ids(users[key], dtype, f"users: {key}")
        if ids.has_nulls():
            row = ids.is_null().arg_true()[0]
            raise UserError(f"users: column {key}, row {row + 1}: {users[key][row]!r} is not a valid id")
        if ids.n_unique() < len(ids):
            twice = ids.filter(ids.is_duplicated())[0]
            raise UserError(f"users: {key} {twice!r} occurs more than once; keep one row of it")
        return users.with_columns(ids.alias(key)), key

    def _contexts(
        self, session_id: pl.Series, user_id: pl.Series | None, users: pl.DataFrame, key: str | None
    ) -> tuple[np.ndarray, pl.DataFrame, UnknownRows]:
        """The contexts and profiles of a Request, by the users of sessions and by ``users``; and what is unknown."""
        known = (*self._attributes, SESSION_ID, USER_ID)
        unknown = UnknownRows(attributes=[name for name in users.columns if name not in known])
        contexts, profiles = np.full(len(session_id), -1), self.vocabulary.users.drop("id")
        if not self.uses_contexts:
            return contexts, profiles, unknown
        if user_id is not None:
            contexts = _places(find_codes(user_id, self.vocabulary.users["id"], f"sessions: {USER_ID}"))
        if key is not None:
            if user_id is not None and USER_ID not in users.columns:
                users = users.with_columns(user_id.gather(find_codes(users[key], session_id, key)).alias(USER_ID))
            if USER in self.vocabulary.single and USER not in users.columns and USER_ID in users.columns:
                users = users.with_columns(pl.col(USER_ID).cast(pl.String).alias(USER))
            given, unknown.values = self.profile_reader.encode(users)
            owner = session_id if user_id is None or key == SESSION_ID else user_id
            place = _places(find_codes(owner, users[key], key))
            contexts = np.where(place >= 0, place + profiles.height, contexts)
            profiles = pl.concat([profiles, given])
            if key == USER_ID:
                unknown.unmatched = users[key].filter(~users[key].is_in(owner.implode())).to_list()
                unknown.all_unmatched = 0 < users.height == len(unknown.unmatched)
        if user_id is not None:
            unknown.users = user_id.filter(contexts < 0).drop_nulls().unique(maintain_order=True).to_list()
        return contexts, profiles, unknown

    def _order(self, time: pl.Series) -> list[pl.Series]:
        """The sort keys of events by time; strings are read as numbers or, if one is none, as times."""
        if isinstance(time.dtype, pl.Categorical | pl.Enum):
            time = time.cast(pl.String)
        if time.dtype != pl.String:
            return [time]
        for dtype in (pl.Int64, pl.Float64):
            number = time.str.strip_chars().cast(dtype, strict=False)
            if not number.has_nulls():
                return [number]
        try:
            parts = self.time_parser.parse(time, lambda row: f"sessions: column {TIME}, row {row + 1}")
        except UserError as error:
            problem = str(error).rpartition("; ")[0]
            raise UserError(f"{problem}; write numbers, ISO 8601 times or times in the log's format") from error
        return [part for part in parts if part is not None]


def _read_events(sessions: Any) -> tuple[pl.DataFrame, list[str]]:
    """The columns of ``sessions`` that are read, validated; the names of the others."""
    if isinstance(sessions, str | bytes):
        raise UserError(f"sessions: must be a DataFrame or the list of one session's item ids, not {sessions!r}")
    if isinstance(sessions, list | tuple):
        hint = "pass one session as a list of item ids, several as a DataFrame with session_id and item_id"
        try:
            items = pl.Series(sessions or [None])
        except (TypeError, pl.exceptions.PolarsError) as error:
            raise UserError(f"sessions: {str(error).splitlines()[0]}; {hint}") from error
        if items.dtype.is_nested():
            raise UserError(f"sessions: {hint}")
        number = pl.repeat(0, len(items), dtype=pl.Int64, eager=True)
        return pl.DataFrame({SESSION_ID: number, ITEM_ID: stripped(plain_ids(items))}), []
    events = to_polars(sessions, "sessions")
    for name in (SESSION_ID, ITEM_ID):
        if name not in events.columns:
            hint = nearest(name, events.columns)
            raise UserError(f"sessions: no column {name}{hint}; its columns: {', '.join(events.columns)}")
    others = [name for name in events.columns if name not in (SESSION_ID, ITEM_ID, TIME, USER_ID)]
    events = events.drop(others)
    ids = [name for name in (ITEM_ID, USER_ID) if name in events.columns]
    events = events.with_columns(stripped(plain_ids(events[name])) for name in ids)
    for name, kind in ((SESSION_ID, "ids must be integers or strings"), (TIME, "must be numbers, dates or strings")):
        if name not in events.columns:
            continue
        column = events[name]
        if column.dtype.is_nested() or column.dtype == pl.Object:
            raise UserError(f"sessions: {name}: {kind}, not {column.dtype}")
        is_missing = column.fill_nan(None).is_null() if column.dtype.is_float() else column.is_null()
        if is_missing.any():
            raise UserError(f"sessions: column {name}, row {is_missing.arg_true()[0] + 1}: no value")
    return events, others


def _places(codes: pl.Series) -> np.ndarray:
    return codes.cast(pl.Int64).fill_null(-1).to_numpy()


def _user_of_each_session(events: pl.DataFrame, n_sessions: int) -> pl.Series | None:
    """(S,) the user of each session, null without one; None where ``events`` (sorted by number) have no users."""
    if USER_ID not in events.columns:
        return None
    known = events.drop_nulls(USER_ID).group_by("number", maintain_order=True)
    users = known.agg(pl.col(USER_ID).first(), different=pl.col(USER_ID).n_unique(), session=pl.col(SESSION_ID).first())
    several = users.filter(pl.col("different") > 1)
    if several.height:
        raise UserError(
            f"sessions: session {several['session'][0]!r} has {several['different'][0]} users; a session must "
            "belong to one user"
        )
    numbers = pl.DataFrame({"number": pl.int_range(n_sessions, dtype=pl.UInt32, eager=True)})
    return numbers.join(users, on="number", how="left", maintain_order="left")[USER_ID]

"""Sessions: how a log is divided into them (paper 4.2.2), and those of one split as arrays."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from arnn_lightning.errors import UserError
from arnn_lightning.readers.schema import ITEM, SESSION, TIME, USER

SESSION_ID = "session_id"
DAY = 86_400
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": DAY}


@dataclass(frozen=True)
class Sessions:
    """The sessions of one split as arrays; ``E`` events, ``S`` sessions.

    Attributes:
        item: (E,) item codes, session after session.
        offset: (S + 1,) index of each session's first event, and E at the end.
        session: (S,) session codes.
        user: (S,) user codes.
        time: (S,) the time of each session's last event, in unix seconds.
    """

    item: np.ndarray
    offset: np.ndarray
    session: np.ndarray
    user: np.ndarray
    time: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offset)

    @property
    def n_predictions(self) -> int:
        """Number of next-item predictions: one for every event but the last of each session."""
        return len(self.item) - len(self.session)


@dataclass(frozen=True)
class SessionRule:
    """Two consecutive events of a user are in one session if ``position`` grows by at most ``max_gap`` between them.

    Attributes:
        sort_by: sorts events by user and, within a user, by session and time.
        position: increases along ``sort_by`` within a user.
        sort_key: increases as user and ``position`` do; by more than ``max_gap`` from one user's last event to the next
            user's first one.
        max_gap: in the unit of ``position``.
    """

    sort_by: list[pl.Expr]
    position: pl.Expr
    sort_key: pl.Expr
    max_gap: int


def parse_duration(text: str | int | None) -> int:
    """Seconds of a duration such as ``30m``; raises UserError for anything else.

    >>> parse_duration("1h"), parse_duration("30m"), parse_duration(90)
    (3600, 1800, 90)
    """
    value = str(text).strip()
    number, unit = (value[:-1], value[-1]) if value[-1:] in _UNITS else (value, "s")
    if not (number.isascii() and number.isdigit()):
        raise UserError(
            f"data.gap={'null' if text is None else text}: not a duration; write for example 90s, 30m, 1h or 1d"
        )
    return int(number) * _UNITS[unit]


def local_day(timezone: str) -> pl.Expr:
    """The calendar day in a time zone, in days since 1970, of the column ``time``."""
    if timezone == "UTC":
        return pl.col(TIME).floordiv(DAY)
    seconds = pl.from_epoch(pl.col(TIME).cast(pl.Int64)).dt.replace_time_zone("UTC")
    return seconds.dt.convert_time_zone(timezone).dt.date().to_physical().cast(pl.Int64)


def midnight(day: int, timezone: str) -> int:
    """The unix second at which a calendar day begins in a time zone.

    >>> midnight(1, "UTC"), midnight(1, "Europe/Berlin")
    (86400, 82800)
    """
    start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)
    return int((start if timezone == "UTC" else start.replace(tzinfo=ZoneInfo(timezone))).timestamp())


def session_rule(log: pl.DataFrame, session: str, gap: str | int | None, timezone: str) -> SessionRule:
    """The rule of ``data.session``, valid for all events of ``log`` and for any subset of them.

    ``gap``: a pause of a user longer than ``gap`` starts a session. ``day``: each calendar day in ``timezone`` is a
    session. ``given``: the sessions of the data set itself.

    Raises:
        UserError: a ``gap`` that is not a duration, or no sessions where they are ``given``.
    """
    if session == "given" and SESSION not in log.columns:
        raise UserError("data.session=given: this data set does not define sessions; use gap or day")
    positions = {"given": pl.col(SESSION), "gap": pl.col(TIME), "day": local_day(timezone)}
    max_gap = parse_duration(gap) if session == "gap" else 0
    sort_key = _composite_key(log, positions[session], max_gap)
    # One key of 64 bits sorts three times as fast as two columns do.
    orders = {"given": [sort_key, pl.col(TIME)], "gap": [sort_key], "day": [_composite_key(log, pl.col(TIME), 0)]}
    return SessionRule(orders[session], positions[session], sort_key, max_gap)


def _composite_key(log: pl.DataFrame, position: pl.Expr, max_gap: int) -> pl.Expr:
    """One number that sorts as (user, position) does and grows by more than ``max_gap`` from user to user."""
    position = position.cast(pl.Int64)
    low, high = log.lazy().select(position.min(), position.max().alias("high")).collect().row(0)
    span = high - low + max_gap + 1
    n_users = cast(int, log[USER].max()) + 1
    if n_users * span >= 2**63:
        raise UserError(
            f"timestamps range from {low} to {high}, which is not plausible for unix seconds; fix the time column"
        )
    key: pl.Expr = pl.col(USER).cast(pl.Int64) * span + (position - low)
    return key.cast(pl.UInt32) if n_users * span < 2**32 else key  # half as wide, sorted in half the time


def assign_session_ids(log: pl.DataFrame, start: int, rule: SessionRule) -> pl.DataFrame:
    """The events from second ``start`` on by user, session and time, stably in file order, with their session's id."""
    events = _sort_stably(log.filter(pl.col(TIME) >= start).rechunk(), rule.sort_by)
    is_new = (pl.col(USER) != pl.col(USER).shift()) | (rule.position.diff() > rule.max_gap)
    return events.with_columns(is_new.fill_null(False).cum_sum().cast(pl.UInt32).alias(SESSION_ID))


def _sort_stably(events: pl.DataFrame, sort_by: list[pl.Expr]) -> pl.DataFrame:
    """The events by ``sort_by``; those of equal keys keep their order."""
    is_user = np.bincount(events[USER].to_numpy()) > 0
    dense_code = pl.Series((np.cumsum(is_user) - 1).astype(np.uint32))  # sorts as users do
    key = events.with_columns(dense_code.gather(events[USER]).alias(USER)).select(sort_by[0]).to_series()
    n_events = len(key)
    if len(sort_by) > 1 or (cast(int, key.max() or 0) + 1) * n_events >= 2**64:
        return events.sort(sort_by, maintain_order=True)
    # Numbers that contain their row sort several times as fast as rows do by their numbers.
    packed = key.to_numpy().astype(np.uint64)
    packed *= n_events
    packed += np.arange(n_events, dtype=np.uint64)
    packed.sort()
    packed %= n_events
    return events[pl.Series(packed.astype(np.uint32))]


def count_sessions_before(log: pl.DataFrame, start: int, window: pl.DataFrame, rule: SessionRule) -> int:
    """How many sessions of ``log`` end before ``start``; ``window``: the events since, with their session ids."""
    # Lazily: of a large log, only the sorted keys are materialised as a whole.
    keys_before = log.lazy().filter(pl.col(TIME) < start).select(rule.sort_key).collect().to_series().to_numpy()
    if not len(keys_before):
        return 0
    keys_before = np.sort(keys_before)
    n_sessions = 1 + int(np.count_nonzero(keys_before[1:] - keys_before[:-1] > rule.max_gap))
    first_events = window.drop(ITEM, SESSION_ID)[session_starts(window[SESSION_ID].to_numpy())]
    first_keys = first_events.select(rule.sort_key).to_series().to_numpy()
    last_before = np.searchsorted(keys_before, first_keys, side="right") - 1
    continued = (last_before >= 0) & (first_keys - keys_before[last_before] <= rule.max_gap)
    return n_sessions - int(np.count_nonzero(continued))


def cut_long_sessions(events: pl.DataFrame, max_length: int) -> pl.DataFrame:
    """Cuts every session of more than ``max_length`` events into the fewest pieces, of equal lengths or one apart.

    Args:
        events: sorted by session, with session ids.
        max_length: the most events of a piece.

    Returns:
        the events, each piece with a session id of its own.
    """
    first = session_starts(events[SESSION_ID].to_numpy())
    length = np.diff(first, append=events.height)
    if events.is_empty() or length.max() <= max_length:
        return events
    n_pieces = -(-length // max_length)
    position = np.arange(events.height) - np.repeat(first, length)
    piece = position * np.repeat(n_pieces, length) // np.repeat(length, length)
    piece += np.repeat(np.cumsum(n_pieces) - n_pieces, length)
    return events.with_columns(pl.Series(SESSION_ID, piece.astype(np.uint32)))


def session_starts(session: np.ndarray) -> np.ndarray:
    """Index of the first event of each session, for events (E,) that are sorted by session."""
    is_start = np.ones(len(session), bool)
    is_start[1:] = session[1:] != session[:-1]
    return np.flatnonzero(is_start)

"""The funnel of paper 4.2: which events of a log a data set keeps - window, sessions, popular items, splits.

Everything works on integer codes of users and items: they are small, whatever the ids are, and count with ``bincount``.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing import contexts
from arnn_lightning.readers.schema import ITEM, SESSION, TIME, USER

SPLITS = ("train", "val", "test")
DAY = 86_400
PIECE = 1 << 21  # rows; as numbers of 64 bits, what glibc still takes from memory that it holds
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": DAY}

Progress = Callable[[str], None]


class Funnel:
    """What every step leaves of the events, and the errors of steps that leave too little.

    ``of_item`` (n_items,) is how often each item occurs in what the last step left.

    Args:
        source: the events' file, for errors.
        rows: rows in it.
        n_users: number of user codes.
        n_items: number of item codes.
        progress: is told of every step.
    """

    def __init__(self, source: Path, rows: int, n_users: int, n_items: int, progress: Progress) -> None:
        self.source = source
        self.n_users, self.n_items = n_users, n_items
        self.of_item = np.zeros(n_items, np.int64)
        self.progress = progress
        self.steps: list[dict[str, Any]] = [
            {"step": "rows in the file", "events": rows, "sessions": None, "users": None, "items": None}
        ]
        progress(f"rows in the file: {rows:,}")

    def count(self, step: str, events: pl.DataFrame, users: int | None = None) -> pl.DataFrame:
        """Counts and returns ``events``: sorted by user and session, or else with the number of their ``users``."""
        last = self.steps[-1]
        if users is None and events.height == last["events"] and last["sessions"] is not None:
            counts = last | {"step": step}  # steps only drop events: as many are the same ones
        else:
            self.of_item = tally(events[ITEM], self.n_items)
            counts = {
                "step": step,
                "events": events.height,
                "sessions": len(starts(events["sid"].to_numpy())) if users is None else None,
                "users": len(starts(events[USER].to_numpy())) if users is None else users,
                "items": int(np.count_nonzero(self.of_item)),
            }
        self.steps.append(counts)
        self.progress(f"{step}: {events.height:,} events")
        if events.is_empty():
            raise UserError(f"{self.source}: no event is left after the step {step!r}; funnel: {self}")
        return events

    def require_splits(self, events: pl.DataFrame, split: Mapping[str, Any]) -> None:
        """Raises UserError where a split that should hold events holds none."""
        for code, name in enumerate(SPLITS):
            if not (events["split"] == code).any() and (name != "val" or split["val_days"]):
                days = ", ".join(f"data.split.{key}={value}" for key, value in split.items())
                raise UserError(f"{self.source}: the {name} split is empty with {days}; funnel: {self}")

    def __str__(self) -> str:
        return ", ".join(f"{step['step']} {step['events']:,}" for step in self.steps)


def keep(log: pl.DataFrame, data: Mapping[str, Any], funnel: Funnel, background: Executor) -> pl.DataFrame:
    """The events of a log that the data config ``data`` keeps.

    Args:
        log: user and item codes, time, and ``session`` where the data set has its own; in file order.
        data: the data config.
        funnel: counts every step.
        background: for what no step waits for.

    Returns:
        the events sorted by user, session and time, with the number of their session (``sid``) and ``split``, the
        index of theirs in SPLITS.

    Raises:
        UserError: a setting of no meaning, or a step that leaves nothing.
    """
    rule = _rule(log, data["session"], data["gap"])
    start = _window_starts(log, data["window_days"])
    frame = _mark_sessions(log, start, rule)
    before = background.submit(_sessions_before, log, start, frame, rule)
    in_log = tally(log[USER], funnel.n_users) > 0
    funnel.count("events of the modelled kind", log, users=int(np.count_nonzero(in_log)))
    items_of_log = funnel.of_item
    del log
    funnel.count("in the time window", frame)
    of_log, of_window = funnel.steps[-2:]
    # Once, before anything is dropped: a later look would let the splits move with what the steps below leave.
    frame = _assign_split(frame, data["split"])
    funnel.require_splits(frame, data["split"])
    if data["held_out_users"]:
        frame = funnel.count("of held-out users after training", _hold_out(frame, data["held_out_users"], in_log))
    times = {"log": items_of_log, "window": funnel.of_item}
    frame = funnel.count("of popular items", _popular_items(frame, data["items"], times))
    shortest = int(data["min_session_length"])
    frame = funnel.count(f"in sessions of {shortest} events or more", _long_sessions(frame, shortest))
    funnel.require_splits(frame, data["split"])
    in_train = tally(frame.filter(pl.col("split") == 0)[ITEM], funnel.n_items) > 0
    frame = funnel.count("of items seen in training", frame.filter(pl.Series(in_train).gather(frame[ITEM])))
    frame = funnel.count("in sessions still long enough", _long_sessions(frame, shortest))
    funnel.require_splits(frame, data["split"])
    of_log["sessions"] = of_window["sessions"] + before.result()
    return frame


def seconds(text: str | int) -> int:
    """Parses a duration.

    >>> seconds("1h"), seconds("30m"), seconds(90)
    (3600, 1800, 90)
    """
    value = str(text).strip()
    number, unit = (value[:-1], value[-1]) if value[-1:] in _UNITS else (value, "s")
    if not (number.isascii() and number.isdigit()):
        raise UserError(f"data.gap={text}: not a duration; write for example 90s, 30m, 1h or 1d")
    return int(number) * _UNITS[unit]


def _window_starts(frame: pl.DataFrame, days: int | None) -> int:
    """When the last ``days`` calendar days (UTC) begin, the day of the last event included; None keeps everything."""
    if days is None:
        return cast(int, frame[TIME].min())
    return (cast(int, frame[TIME].max()) // DAY - days + 1) * DAY


@dataclass(frozen=True)
class _Rule:
    """What makes a session. Two events of a user are of one session if ``place`` grows by no more than ``pause``.

    Attributes:
        order: sorts events by user, and those of a user so that sessions lie together, each in the order of time.
        place: grows with ``order``; from one user's last event to the next one's first by more than ``pause``.
        pause: in the unit of ``place``.
    """

    order: list[pl.Expr]
    place: pl.Expr
    pause: int


def _rule(log: pl.DataFrame, session: str, gap: str | int) -> _Rule:
    """``gap``: a pause longer than ``gap`` within a user starts a session (4.2.2). ``day``: a new calendar day (UTC).

    ``given``: the reader's own sessions. The rule is made for all events of ``log`` and holds for some of them too.
    """
    if session == "given" and SESSION not in log.columns:
        raise UserError("data.session=given: this data set has no sessions of its own; choose gap or day")
    places = {"given": pl.col(SESSION), "gap": pl.col(TIME), "day": pl.col(TIME).floordiv(DAY)}
    if session not in places:
        raise UserError(f"data.session={session}: choose gap, day or given")
    pause = seconds(gap) if session == "gap" else 0
    place = _by_user(log, places[session].cast(pl.Int64), pause)
    # One key of 64 bits sorts three times as fast as two columns do.
    orders = {"given": [place, pl.col(TIME)], "gap": [place], "day": [_by_user(log, pl.col(TIME), 0)]}
    return _Rule(orders[session], place, pause)


def _by_user(log: pl.DataFrame, where: pl.Expr, pause: int) -> pl.Expr:
    """One number that sorts as (user, where) do; from a user to the next it grows by more than ``pause``."""
    low, high = log.lazy().select(where.min(), where.max().alias("high")).collect().row(0)
    span = high - low + pause + 1
    users = cast(int, log[USER].max()) + 1
    if users * span >= 2**63:
        raise UserError(f"event times reach from {low} to {high}: these are no unix seconds; mend the time column")
    place: pl.Expr = pl.col(USER).cast(pl.Int64) * span + (where - low)
    return place.cast(pl.UInt32) if users * span < 2**32 else place  # half as wide, and sorted in half the time


def _mark_sessions(log: pl.DataFrame, start: int, rule: _Rule) -> pl.DataFrame:
    """The events from ``start`` on, by user, session and time, stably in file order (E7); ``sid`` numbers sessions."""
    new = (rule.place.diff() > rule.pause).fill_null(False)
    window = log.lazy().filter(pl.col(TIME) >= start).sort(rule.order, maintain_order=True)
    return window.with_columns(sid=new.cum_sum().cast(pl.UInt32)).collect().rechunk()


def _sessions_before(log: pl.DataFrame, start: int, window: pl.DataFrame, rule: _Rule) -> int:
    """How many sessions of ``log`` end before ``start``; ``window`` are the events after it, sorted and marked."""
    # Lazily, piece by piece: of a large log only the sorted column is ever there as a whole.
    earlier = log.lazy().filter(pl.col(TIME) < start).select(rule.place).collect().to_series().sort().to_numpy()
    if not len(earlier):
        return 0
    ended = 1 + int(np.count_nonzero(earlier[1:] - earlier[:-1] > rule.pause))
    first = window.drop(ITEM, "sid")[starts(window["sid"].to_numpy())].select(rule.place).to_series().to_numpy()
    before = np.searchsorted(earlier, first, side="right") - 1
    begun = (before >= 0) & (first - earlier[before] <= rule.pause)
    return ended - int(np.count_nonzero(begun))


def _popular_items(frame: pl.DataFrame, items: Mapping[str, Any], times: Mapping[str, np.ndarray]) -> pl.DataFrame:
    """Keeps the most popular items (4.2.3), counted over the whole log, the window, or its training days.

    ``times``: how often each item occurs, (n_items,), in the ``log`` and in the ``window``.
    """
    over, coverage = items["counted_over"], float(items["coverage"])
    if int(items["min_events"]) < 1:
        raise UserError(f"data.items.min_events={items['min_events']}: at least 1")
    if over not in ("log", "window", "train"):
        raise UserError(f"data.items.counted_over={over}: choose log, window or train")
    trained = frame.filter(pl.col("split") == 0) if over == "train" else None
    counts = times[over] if trained is None else tally(trained[ITEM], len(times["log"]))
    table = pl.DataFrame({ITEM: np.arange(len(counts)), "events": counts}).filter(pl.col("events") > 0)
    kept = contexts.popular(table, coverage).filter(pl.col("events") >= int(items["min_events"]))
    is_kept = tally(kept[ITEM], len(counts)) > 0
    return frame.filter(pl.Series(is_kept).gather(frame[ITEM]))


def _long_sessions(frame: pl.DataFrame, shortest: int) -> pl.DataFrame:
    is_long = np.bincount(frame["sid"].to_numpy()) >= shortest
    return frame.filter(pl.Series(is_long).gather(frame["sid"]))


def _assign_split(frame: pl.DataFrame, split: Mapping[str, Any]) -> pl.DataFrame:
    """A session belongs to the split in which it starts: the last days are test, those before them validation.

    The last day is the one in which the window's last session starts. ``split`` is an index into SPLITS.
    """
    day = frame[TIME].to_numpy()[starts(frame["sid"].to_numpy())] // DAY
    age = day.max() - day
    test_days, val_days = int(split["test_days"]), int(split["val_days"])
    of_session = np.where(age < test_days, 2, np.where(age < test_days + val_days, 1, 0)).astype(np.uint8)
    return frame.with_columns(split=pl.Series(of_session).gather(frame["sid"]))


def _hold_out(frame: pl.DataFrame, share: float, in_log: np.ndarray) -> pl.DataFrame:
    """A share of the users is tested on and never trained on: they keep their later sessions, all others the earlier.

    They are drawn once, from all users of the log (``in_log``, by code), the same for the same log.
    """
    held, n_users = np.zeros(len(in_log), bool), int(in_log.sum())
    held[in_log] = np.random.default_rng(0).permutation(n_users) < round(share * n_users)
    trains = frame["split"] == SPLITS.index("train")
    return frame.filter(pl.Series(held).gather(frame[USER]) != trains)


def _pieces(column: pl.Series) -> Iterator[np.ndarray]:
    """A column in pieces, so that what is computed from it need not fit the memory once more."""
    return (column.slice(start, PIECE).to_numpy() for start in range(0, len(column), PIECE))


def tally(codes: pl.Series, size: int) -> np.ndarray:
    """(size,) how often each code occurs."""
    total = np.zeros(size, np.int64)
    for piece in _pieces(codes):
        total += np.bincount(piece, minlength=size)
    return total


def starts(session: np.ndarray) -> np.ndarray:
    """Where each session starts among sorted events."""
    return np.append(0, np.flatnonzero(session[1:] != session[:-1]) + 1)

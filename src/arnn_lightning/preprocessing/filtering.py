"""Which events of a log a data set keeps (paper 4.2): time window, sessions, popular items, splits.

All steps work on integer codes of users and items: small whatever the ids are, and counted with ``bincount``.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.contexts import most_popular
from arnn_lightning.preprocessing.encoding import count_codes
from arnn_lightning.preprocessing.sessions import (
    DAY,
    SESSION_ID,
    SessionRule,
    assign_session_ids,
    count_sessions_before,
    session_rule,
    session_starts,
)
from arnn_lightning.preprocessing.splitting import SPLIT, SPLITS, assign_splits, hold_out_users
from arnn_lightning.readers.schema import ITEM, TIME, USER

Progress = Callable[[str], None]


class FilterLog:
    """Counts of what each step keeps, and the errors of steps that keep too little.

    ``item_counts`` (n_items,): how often each item occurs after the last step.

    Args:
        source: the file of events, for errors.
        n_rows: number of its rows.
        n_users: number of user codes.
        n_items: number of item codes.
        progress: called with a line of text at every step.
    """

    def __init__(self, source: Path, n_rows: int, n_users: int, n_items: int, progress: Progress) -> None:
        self.source = source
        self.n_users, self.n_items = n_users, n_items
        self.item_counts = np.zeros(n_items, np.int64)
        self.progress = progress
        self.steps: list[dict[str, Any]] = [
            {"step": "rows in the file", "events": n_rows, "sessions": None, "users": None, "items": None}
        ]
        progress(f"rows in the file: {n_rows:,}")

    def record(self, step: str, events: pl.DataFrame, n_users: int | None = None) -> pl.DataFrame:
        """Counts ``events`` and returns them; raises UserError where none are left.

        ``n_users``: the number of their users, for events that are not yet sorted by user and session.
        """
        last = self.steps[-1]
        if n_users is None and events.height == last["events"] and last["sessions"] is not None:
            counts = last | {"step": step}  # steps only drop events: equal numbers are equal events
        else:
            self.item_counts = count_codes(events[ITEM], self.n_items)
            counts = {
                "step": step,
                "events": events.height,
                "sessions": len(session_starts(events[SESSION_ID].to_numpy())) if n_users is None else None,
                "users": len(session_starts(events[USER].to_numpy())) if n_users is None else n_users,
                "items": int(np.count_nonzero(self.item_counts)),
            }
        self.steps.append(counts)
        self.progress(f"{step}: {events.height:,} events")
        if events.is_empty():
            raise UserError(f"{self.source}: no events left after step {step!r}; {self}")
        return events

    def require_splits(self, events: pl.DataFrame, days: Mapping[str, Any]) -> None:
        """Raises UserError where a split that ``days`` define is empty."""
        for code, name in enumerate(SPLITS):
            if not (events[SPLIT] == code).any() and (name != "val" or days["val_days"]):
                settings = ", ".join(f"data.split.{key}={value}" for key, value in days.items())
                first, last = (date.isoformat() for date in _date_range(events))
                raise UserError(
                    f"{self.source}: the {name} split is empty with {settings}, events from {first} to {last}; {self}"
                )

    def __str__(self) -> str:
        return "events: " + ", ".join(f"{step['step']} {step['events']:,}" for step in self.steps)


def filter_events(
    log: pl.DataFrame, data: Mapping[str, Any], filter_log: FilterLog, executor: Executor
) -> pl.DataFrame:
    """The events of a log that the data config ``data`` keeps.

    Args:
        log: user and item codes, time, and ``session`` where the data set defines sessions; in file order.
        data: the data config.
        filter_log: records every step.
        executor: runs what no step waits for.

    Returns:
        the events sorted by user, session and time, with ``session_id`` and ``split`` (an index into SPLITS).

    Raises:
        UserError: an invalid setting, or a step that keeps nothing.
    """
    rule = session_rule(log, data["session"], data["gap"])
    start, events, start_day = _cut_window(log, data["window_days"], rule)
    n_before = executor.submit(count_sessions_before, log, start, events, rule)
    in_log = count_codes(log[USER], filter_log.n_users) > 0
    filter_log.record("events of the modelled kind", log, n_users=int(np.count_nonzero(in_log)))
    log_item_counts = filter_log.item_counts
    filter_log.record("in the time window", events)
    log_step, window_step = filter_log.steps[-2:]
    # Splits are assigned before anything is dropped, so that they do not depend on what later steps keep.
    events = assign_splits(events, start_day, data["split"])
    filter_log.require_splits(events, data["split"])
    if data["held_out_user_share"]:
        events = hold_out_users(events, data["held_out_user_share"], in_log)
        filter_log.record("of held-out users after training", events)
    item_counts = {"log": log_item_counts, "window": filter_log.item_counts}
    events = filter_log.record("of popular items", _keep_popular_items(events, data["items"], item_counts))
    min_length = int(data["min_session_length"])
    events = filter_log.record(f"in sessions of {min_length} events or more", _drop_short_sessions(events, min_length))
    filter_log.require_splits(events, data["split"])
    in_train = count_codes(events.filter(pl.col(SPLIT) == 0)[ITEM], filter_log.n_items) > 0
    events = filter_log.record("of items seen in training", events.filter(pl.Series(in_train).gather(events[ITEM])))
    events = filter_log.record("in sessions still long enough", _drop_short_sessions(events, min_length))
    filter_log.require_splits(events, data["split"])
    log_step["sessions"] = window_step["sessions"] + n_before.result()
    return events


def _cut_window(log: pl.DataFrame, days: int | None, rule: SessionRule) -> tuple[int, pl.DataFrame, np.ndarray]:
    """The last ``days`` calendar days (UTC) of a log, None for all; the last day is that of the last session's start.

    The end of a session past midnight belongs to the window, but is not a day of it: splits go by session starts too.

    Returns:
        the first second of the window; its events, sorted and with session ids; (sessions,) the days of their starts.
    """
    last_day = cast(int, log[TIME].max()) // DAY
    while True:
        start = cast(int, log[TIME].min()) if days is None else (last_day - days + 1) * DAY
        events = assign_session_ids(log, start, rule)
        start_day = events[TIME].to_numpy()[session_starts(events[SESSION_ID].to_numpy())] // DAY
        if days is None or start_day.max() == last_day:
            return start, events, start_day
        last_day = int(start_day.max())


def _date_range(events: pl.DataFrame) -> tuple[Any, ...]:
    seconds = events.select(pl.col(TIME).min(), pl.col(TIME).max().alias("last"))
    return seconds.select(pl.from_epoch(pl.all()).dt.date()).row(0)


def _keep_popular_items(
    events: pl.DataFrame, items: Mapping[str, Any], item_counts: Mapping[str, np.ndarray]
) -> pl.DataFrame:
    """Keeps the most popular items (4.2.3), counted over the whole log, the window, or its training days.

    ``item_counts``: how often each item occurs, (n_items,), in the ``log`` and in the ``window``.
    """
    scope, n_items = items["popularity_scope"], len(item_counts["log"])
    counts = count_codes(events.filter(pl.col(SPLIT) == 0)[ITEM], n_items) if scope == "train" else item_counts[scope]
    table = pl.DataFrame({ITEM: np.arange(n_items), "events": counts}).filter(pl.col("events") > 0)
    kept = most_popular(table, float(items["popularity_coverage"])).filter(pl.col("events") >= int(items["min_events"]))
    is_kept = count_codes(kept[ITEM], n_items) > 0
    return events.filter(pl.Series(is_kept).gather(events[ITEM]))


def _drop_short_sessions(events: pl.DataFrame, min_length: int) -> pl.DataFrame:
    is_long = np.bincount(events[SESSION_ID].to_numpy()) >= min_length
    return events.filter(pl.Series(is_long).gather(events[SESSION_ID]))

"""Which events of a log a data set keeps (paper 4.2): time window, sessions, popular items, splits.

All steps work on integer codes of users and items: small whatever the ids are, and counted with ``bincount``.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, cast

import numpy as np
import polars as pl

from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.contexts import top_by_coverage
from arnn_lightning.preprocessing.encoding import count_codes
from arnn_lightning.preprocessing.sessions import (
    SESSION_ID,
    SessionRule,
    assign_session_ids,
    count_sessions_before,
    cut_long_sessions,
    local_day,
    midnight,
    session_rule,
    session_starts,
)
from arnn_lightning.preprocessing.splitting import SPLIT, SPLITS, assign_splits, hold_out_users
from arnn_lightning.preprocessing.summary import (
    count_duplicates,
    day_range,
    drop_duplicates,
    drop_repeats,
    summarize_log,
)
from arnn_lightning.readers.schema import ITEM, TIME, USER

Progress = Callable[[str], None]
MIN_LENGTH = 2  # the lowest value of data.min_session_length


class FilterLog:
    """Counts of what each step keeps, and the errors of steps that keep too little.

    ``item_counts`` (n_items,): how often each item occurs after the last step.

    Args:
        source: the files of events, for errors.
        n_rows: number of its rows.
        dropped: what the reader dropped -> number of rows.
        n_users: number of user codes.
        n_items: number of item codes.
        progress: called with a line of text at every step.
    """

    def __init__(
        self,
        source: str,
        n_rows: int,
        dropped: Mapping[str, int],
        n_users: int,
        n_items: int,
        progress: Progress,
    ) -> None:
        self.source = source
        self.n_users, self.n_items = n_users, n_items
        self.item_counts = np.zeros(n_items, np.int64)
        self.progress = progress
        self.steps: list[dict[str, Any]] = []
        for step, n_dropped in {"rows in the file": 0, **dropped}.items():
            n_rows -= n_dropped
            self.steps.append({"step": step, "events": n_rows, "sessions": None, "users": None, "items": None})
        progress(f"rows in the file: {self.steps[0]['events']:,}")

    def record(
        self, step: str, events: pl.DataFrame, n_users: int | None = None, settings: str = "data"
    ) -> pl.DataFrame:
        """Counts ``events`` and returns them; raises UserError where none are left.

        Args:
            step: what the events are.
            events: those that are left.
            n_users: the number of their users, for events that are not sorted by user and session: sessions are then
                not counted.
            settings: what the step depends on, for the error.
        """
        last = self.steps[-1]
        if n_users is None and events.height == last["events"] and last["sessions"] is not None:
            # Nothing was dropped since the last step, so users and items are the same; sessions may have been cut.
            counts = last | {"step": step, "sessions": len(session_starts(events[SESSION_ID].to_numpy()))}
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
            raise UserError(f"{self.source}: no events left after step {step!r}; change {settings}; {self}")
        return events

    def require_splits(self, events: pl.DataFrame, data: Mapping[str, Any]) -> None:
        """Raises UserError where a split that ``data.split`` defines is empty."""
        split = data["split"]
        for code, name in enumerate(SPLITS):
            if not (events[SPLIT] == code).any() and (name != "val" or split["val_days"] or split["val_share"]):
                given = {key: value for key, value in split.items() if value is not None}
                settings = ", ".join(f"data.split.{key}={value}" for key, value in given.items())
                first, last = day_range(events, data["timezone"])
                by_share = "test_days=null val_days=null test_share=0.1 val_share=0.1".replace(" ", " data.split.")
                hint = f", or, for a short log, set data.split.{by_share}" if split["test_days"] else ""
                raise UserError(
                    f"{self.source}: the {name} split is empty with {settings}, events from {first} to {last}; "
                    f"change these settings{hint}; {self}"
                )

    def __str__(self) -> str:
        return "events: " + ", ".join(f"{step['step']} {step['events']:,}" for step in self.steps)


def filter_events(
    log: pl.DataFrame, data: Mapping[str, Any], filter_log: FilterLog, executor: Executor, has_attributes: np.ndarray
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The events of a log that the data config ``data`` keeps.

    Args:
        log: user and item codes, time, and ``session`` where the data set defines sessions; in file order.
        data: the data config.
        filter_log: records every step.
        executor: runs what no step waits for.
        has_attributes: (n_items,) whether an item's events after training are kept without a training event.

    Returns:
        the events sorted by user, session and time, with ``session_id`` and ``split`` (an index into SPLITS); the
        profile of the log, see ``summarize_log``.

    Raises:
        UserError: an invalid setting, or a step that keeps nothing.
    """
    timezone = data["timezone"]
    rule = session_rule(log, data["session"], data["gap"], timezone)
    window = executor.submit(_cut_window, log, data["window_days"], rule, timezone)
    user_counts = count_codes(log[USER], filter_log.n_users)
    in_log = user_counts > 0
    filter_log.record("events kept by the reader", log, n_users=int(np.count_nonzero(in_log)))
    log_item_counts = filter_log.item_counts
    start, events, start_time = window.result()
    n_before = executor.submit(count_sessions_before, log, start, events, rule)
    n_duplicates = executor.submit(count_duplicates, events)
    filter_log.record("in the time window", events)
    log_step, window_step = filter_log.steps[-2:]
    profile = executor.submit(summarize_log, log, events, user_counts, filter_log.item_counts, timezone)
    # Splits are assigned before anything is dropped, so that they do not depend on what later steps keep.
    events = assign_splits(events, start_time, data["split"], timezone)
    filter_log.require_splits(events, data)
    if data["duplicates"] == "drop":
        events = filter_log.record("without duplicate rows", drop_duplicates(events))
    if data["repeats"] == "drop":
        events = filter_log.record("without immediate repeats", drop_repeats(events))
    if data["held_out_user_share"]:
        events = hold_out_users(events, data["held_out_user_share"], in_log)
        filter_log.record("after holding out users", events)
    item_counts = {"log": log_item_counts, "window": filter_log.item_counts}  # window: without the rows dropped above
    is_popular = _popular_items(events, data["items"], item_counts)
    # Other items with attributes keep their events after training (data.items.cold=keep).
    is_in_catalogue = is_popular | has_attributes
    events = filter_log.record(
        "of popular items", _keep_items(events, is_popular, is_in_catalogue), settings="data.items"
    )
    max_length = data["max_session_length"]
    if max_length is not None:
        events = filter_log.record(f"in sessions cut to {max_length} events", cut_long_sessions(events, max_length))
    min_length = int(data["min_session_length"])
    of_sessions = "data.min_session_length"
    if min_length == MIN_LENGTH:
        of_sessions = "data.session or data.gap" if data["session"] == "gap" else "data.session"
    events = _drop_short_sessions(events, min_length)
    filter_log.record(f"in sessions of {min_length} events or more", events, settings=of_sessions)
    filter_log.require_splits(events, data)
    in_train = count_codes(events.filter(pl.col(SPLIT) == 0)[ITEM], filter_log.n_items) > 0
    events = filter_log.record("of items seen in training", _keep_items(events, in_train, in_train | has_attributes))
    events = _drop_short_sessions(events, min_length)
    filter_log.record("in sessions still long enough", events, settings=of_sessions)
    filter_log.require_splits(events, data)
    log_step["sessions"] = window_step["sessions"] + n_before.result()
    return events, profile.result() | {"duplicates": n_duplicates.result()}


def _cut_window(
    log: pl.DataFrame, days: int | None, rule: SessionRule, timezone: str
) -> tuple[int, pl.DataFrame, pl.Series]:
    """The last ``days`` calendar days of a log, None for all; the last day is that of the last session's start.

    The end of a session past midnight belongs to the window, but is not a day of it: splits go by session starts too.

    Returns:
        the first second of the window; its events, sorted and with session ids; (sessions,) when they start.
    """
    start = cast(int, log[TIME].min())
    if days is not None:
        last_day = _last_day(log, timezone)
        first_day: int = log.select(pl.col(TIME).min()).select(local_day(timezone)).item()

        def first_second() -> int:
            return midnight(max(last_day - days + 1, first_day), timezone)

        while not _has_session_start(log, last_day, start := first_second(), rule, timezone):
            last_day = _last_day(log.filter(pl.col(TIME) < midnight(last_day, timezone)), timezone)
    events = assign_session_ids(log, start, rule)
    return start, events, events[TIME].gather(session_starts(events[SESSION_ID].to_numpy()))


def _has_session_start(log: pl.DataFrame, day: int, start: int, rule: SessionRule, timezone: str) -> bool:
    """Whether any of the sessions from second ``start`` on starts on ``day`` or later."""
    late = log[USER].filter(log[TIME] >= midnight(day, timezone))
    of_late_users = pl.Series(count_codes(late, cast(int, log[USER].max()) + 1) > 0).gather(log[USER])
    events = assign_session_ids(log.filter(of_late_users), start, rule)
    start_time = events[TIME].gather(session_starts(events[SESSION_ID].to_numpy()))
    return _last_day(start_time.to_frame(), timezone) >= day


def _last_day(events: pl.DataFrame, timezone: str) -> int:
    last: int = events.select(pl.col(TIME).max()).select(local_day(timezone)).item()
    return last


def _popular_items(events: pl.DataFrame, items: Mapping[str, Any], item_counts: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n_items,) the most popular items (4.2.3), counted over the whole log, the window, or its training days.

    Of equally popular items all are kept, or none.

    ``item_counts``: how often each item occurs, (n_items,), in the ``log`` and in what is left of the ``window``.
    """
    scope, n_items = items["popularity_scope"], len(item_counts["log"])
    counts = count_codes(events.filter(pl.col(SPLIT) == 0)[ITEM], n_items) if scope == "train" else item_counts[scope]
    table = pl.DataFrame({ITEM: np.arange(n_items), "events": counts}).filter(pl.col("events") > 0)
    kept = top_by_coverage(table, float(items["popularity_coverage"])).filter(
        pl.col("events") >= int(items["min_events"])
    )
    if items.get("most_popular") is not None:
        kept = kept.filter(pl.col("events") >= table["events"].top_k(int(items["most_popular"])).min())
    is_kept = np.zeros(n_items, bool)
    is_kept[kept[ITEM].to_numpy()] = True
    return is_kept


def _keep_items(events: pl.DataFrame, in_training: np.ndarray, after_training: np.ndarray) -> pl.DataFrame:
    """The events of the items that training has, and after it of those that the catalogue has; (n_items,) each."""
    is_kept = pl.Series(in_training).gather(events[ITEM])
    if not np.array_equal(in_training, after_training):
        is_kept |= (events[SPLIT] > 0) & pl.Series(after_training).gather(events[ITEM])
    return events.filter(is_kept)


def _drop_short_sessions(events: pl.DataFrame, min_length: int) -> pl.DataFrame:
    is_long = np.bincount(events[SESSION_ID].to_numpy()) >= min_length
    return events.filter(pl.Series(is_long).gather(events[SESSION_ID]))

"""A summary of a log and its attributes, and remarks on what looks wrong."""

import math
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl

from arnn_lightning.preprocessing.contexts import OTHER, PREFIX, attribute_names
from arnn_lightning.preprocessing.sessions import SESSION_ID, local_day, session_starts
from arnn_lightning.readers.schema import INSTANT, ITEM, TIME, USER

TOP_VALUES = 3
LONG_SESSION = 1_000
OLDEST_YEAR = 1990
_IN_SESSION = pl.col(SESSION_ID) == pl.col(SESSION_ID).shift()
_IS_REPEAT = (_IN_SESSION & (pl.col(ITEM) == pl.col(ITEM).shift())).fill_null(False)


def day_range(events: pl.DataFrame, timezone: str) -> tuple[str, str]:
    """The first and the last day of events in a time zone, as ISO dates."""
    ends = pl.DataFrame({TIME: [events[TIME].min(), events[TIME].max()]}).select(local_day(timezone)).to_series()
    first, last = ((date(1970, 1, 1) + timedelta(days=day)).isoformat() for day in ends)
    return first, last


def drop_repeats(events: pl.DataFrame) -> pl.DataFrame:
    """Events without those that have the item of the event before in their session; sorted by session."""
    return events.filter(~_IS_REPEAT)


def drop_duplicates(events: pl.DataFrame) -> pl.DataFrame:
    """Events without those that equal an earlier one in session, item and time; sorted by session and time."""
    rows, key = _tied_events(events)
    is_dropped = np.zeros(events.height, bool)
    is_dropped[rows.filter(~key.is_first_distinct()).to_numpy()] = True
    return events.filter(pl.Series(~is_dropped))


def count_duplicates(events: pl.DataFrame) -> int:
    """The number of events that ``drop_duplicates`` drops."""
    _, key = _tied_events(events)
    return len(key) - key.n_unique()


def _is_tied(events: pl.DataFrame) -> pl.Expr:
    """Whether an event has the time of the event before in its session, at the log's full precision."""
    time = pl.col(INSTANT if INSTANT in events.columns else TIME)
    return (_IN_SESSION & (time == time.shift())).fill_null(False)


def _tied_events(events: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """The rows of events that share session and time with another one, and a key of session, time and item."""
    is_tied = events.select(_is_tied(events)).to_series()
    rows = (is_tied | is_tied.shift(-1, fill_value=False)).arg_true()
    group = (~is_tied).cum_sum().gather(rows).cast(pl.UInt64)
    return rows, group * 2**32 + events[ITEM].gather(rows)


def summarize_log(
    log: pl.DataFrame, events: pl.DataFrame, user_events: np.ndarray, item_events: np.ndarray, timezone: str
) -> dict[str, Any]:
    """Counts that describe a log, before anything is dropped.

    Args:
        log: all events.
        events: those in the time window, sorted by session and time.
        user_events: (user codes,) events of every user in the log.
        item_events: (item codes,) events of every item in the window.
        timezone: of the days.

    Returns:
        ``first_day``, ``last_day``, ``last_second``; ``log_events``, ``users``, ``largest_user`` (its code) and
        ``largest_user_events`` of the log; and of the window ``events``, ``sessions``, ``longest_session``,
        ``shortest_session``, ``single_event_sessions``, ``tied_times`` (events at the time of the event before in their
        session), ``repeats`` (with its item), ``top_items`` (the number of items in the most popular 1 %),
        ``top_items_events``, ``top_item`` (the code of the most popular one) and ``top_item_events``.
    """
    first_day, last_day = day_range(log, timezone)
    length = np.diff(session_starts(events[SESSION_ID].to_numpy()), append=events.height)
    most_frequent = np.sort(item_events)[::-1]
    n_top = math.ceil(np.count_nonzero(item_events) / 100)
    tied, repeats = events.lazy().select(_is_tied(events).sum().alias("tied"), _IS_REPEAT.sum()).collect().row(0)
    return {
        "first_day": first_day,
        "last_day": last_day,
        "last_second": log[TIME].max(),
        "log_events": log.height,
        "users": int(np.count_nonzero(user_events)),
        "largest_user": int(user_events.argmax()),
        "largest_user_events": int(user_events.max()),
        "events": events.height,
        "sessions": len(length),
        "longest_session": int(length.max()),
        "shortest_session": int(length.min()),
        "single_event_sessions": int(np.count_nonzero(length == 1)),
        "tied_times": tied,
        "repeats": repeats,
        "top_items": n_top,
        "top_item": int(item_events.argmax()),
        "top_items_events": int(most_frequent[:n_top].sum()),
        "top_item_events": int(most_frequent[0]),
    }


def summarize_attributes(
    users: pl.DataFrame, vocabulary: pl.DataFrame, contexts: Mapping[str, Any], train_events: int
) -> list[dict[str, Any]]:
    """Every attribute's categories, unknowns and most frequent values, in the order of ``attribute_names``.

    Args:
        users: of the prepared data set, or its items, with their codes.
        vocabulary: the categories behind the codes, of these.
        contexts: ``data.contexts``.
        train_events: the number of training events.

    Returns:
        per attribute ``name``; ``kind``; ``categories``, without "unknown" and "other"; ``known`` and ``unknown``, the
        numbers of users; ``top``, pairs of a value and its share of the training events; for multi-valued ones
        ``several``, the number of users with two values or more.
    """
    profiles = []
    for name in attribute_names(contexts):
        rows = vocabulary.filter(pl.col("attribute") == name)
        is_multi = name in contexts["multi"]
        if is_multi:
            is_of_attribute = pl.element().is_between(rows["code"].min(), rows["code"].max())
            n_values = users["active"].list.eval(is_of_attribute).list.sum() if rows.height else pl.Series([0])
            known, several = int((n_values > 0).sum()), int((n_values > 1).sum())
        else:
            known = int((users[f"{PREFIX}{name}"] > 0).sum())
        categories = rows.filter(pl.col("category") != OTHER)
        top = categories.sort("events", descending=True, maintain_order=True).head(TOP_VALUES)
        profiles.append(
            {
                "name": name,
                "kind": "multi" if is_multi else "single" if name in contexts["single"] else "numeric",
                "categories": categories.height,
                "known": known,
                "unknown": users.height - known,
                "top": [[value, count / train_events] for value, count in top.select("category", "events").iter_rows()],
                **({"several": several} if is_multi else {}),
            }
        )
    return profiles


def log_remarks(log: Mapping[str, Any], data: Mapping[str, Any], today: date) -> dict[str, str]:
    """Remarks on what looks wrong in a log: count -> remark. ``data``: the settings of the preparation."""
    remarks = {}
    events, sessions = log["events"], log["sessions"]
    if date.fromisoformat(log["first_day"]).year < OLDEST_YEAR:
        remarks["first_day"] = f"before {OLDEST_YEAR}: is this the time column, in the right unit?"
    if date.fromisoformat(log["last_day"]) > today:
        remarks["last_day"] = "in the future: is this the time column, in the right unit?"
    if log["users"] > 5 and log.get("largest_user_events", 0) >= log["log_events"] / 5:
        remarks["largest_user_events"] = "a fifth of the log or more: is it a placeholder or a crawler?"
    if sessions > 1 and log["shortest_session"] == log["longest_session"]:
        remarks["longest_session"] = f"every session has {log['longest_session']}: is data.session right?"
    elif log["longest_session"] > LONG_SESSION and data["max_session_length"] is None:
        remarks["longest_session"] = "a crawler? see data.max_session_length"
    if log["single_event_sessions"] > sessions / 2:
        remarks["single_event_sessions"] = "most sessions are lost: see data.session, data.gap"
    if log["tied_times"] > events / 2:
        remarks["tied_times"] = "kept in the order of the file"
    if log["duplicates"] > events / 100 and data["duplicates"] == "keep":
        remarks["duplicates"] = "data.duplicates=drop drops them"
    if log["repeats"] > events / 4 and data["repeats"] == "keep":
        remarks["repeats"] = "data.repeats=drop drops them"
    if log["top_item_events"] > events / 10 and log["top_items"] > 1:
        remarks["top_item_events"] = "a placeholder?"
    return remarks


def attribute_remarks(attributes: Sequence[Mapping[str, Any]], owner: str = "user") -> dict[str, str]:
    """Remarks on what looks wrong in attributes: name -> remark. ``owner``: user or item."""
    remarks = {}
    section = "data.contexts" if owner == USER else f"data.{owner}_contexts"
    for attribute in attributes:
        name, known, categories = attribute["name"], attribute["known"], attribute["categories"]
        if attribute["unknown"] > known:
            remarks[name] = f"unknown for most {owner}s"
        elif (
            attribute["kind"] == "single" and not name == owner == USER and categories >= 20 and categories > known / 2
        ):
            remarks[name] = f"nearly a category per {owner}: is it an id? Numbers and dates belong in {section}.numeric"
        elif categories > 1 and attribute.get("several") == 0:
            remarks[name] = f"no {owner} has two values: is data.list_separator right?"
        elif categories == 1 and not attribute["unknown"]:
            remarks[name] = f"the same for all {owner}s"
    return remarks

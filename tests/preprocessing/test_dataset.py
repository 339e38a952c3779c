"""Filtering against a reference in plain Python, and the contents of the prepared folder."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import arnn_lightning
from arnn_lightning.config import check_settings
from arnn_lightning.config.schema import RULES
from arnn_lightning.errors import UserError
from arnn_lightning.loading.schedule import session_parallel_schedule
from arnn_lightning.preprocessing.dataset import FORMAT_VERSION, PreparedDataset, prepare
from arnn_lightning.preprocessing.sessions import SESSION_ID, assign_session_ids, parse_duration, session_rule
from arnn_lightning.preprocessing.splitting import SPLIT, SPLITS, assign_splits, hold_out_users
from arnn_lightning.preprocessing.summary import attribute_remarks, count_duplicates, log_remarks, summarize_attributes
from arnn_lightning.readers.schema import ITEM, SESSION, TIME, USER, RawData
from helpers import compose_config

DAY = 86_400
FIRST = 16_000 * DAY  # midnight (UTC) of the logs' first day
SINGLE = ("career_level", "country")
MULTI = ("jobroles", "edu_fieldofstudies")
HEADER = (
    "id",
    "jobroles",
    "career_level",
    "discipline_id",
    "industry_id",
    "country",
    "region",
    "experience_n_entries_class",
    "experience_years_experience",
    "experience_years_in_current",
    "edu_degree",
    "edu_fieldofstudies",
)


class Row(NamedTuple):
    """One row of interactions.csv."""

    user: int
    item: int
    kind: int
    time: int


class Event(NamedTuple):
    """One event of the reference; ``row`` is its place in the file."""

    user: int
    item: int
    time: int
    row: int
    session: int = 0


NO_CUTS = {"timezone": "UTC", "duplicates": "keep", "repeats": "keep", "max_session_length": None}
Profiles = dict[int, dict[str, str]]  # user id -> texts of its columns


def clicks(*rows: tuple[int, int, float]) -> list[Row]:
    """Clicks from (user, item, days after FIRST)."""
    return [Row(user, item, 1, FIRST + round(days * DAY)) for user, item, days in rows]


def write_xing(folder: Path, log: Iterable[Row], people: Profiles) -> Path:
    lines = ["user_id\titem_id\tinteraction_type\tcreated_at", *("\t".join(map(str, row)) for row in log)]
    (folder / "interactions.csv").write_text("\n".join(lines) + "\n")
    profiles = [[str(user), *(texts.get(name, "0") for name in HEADER[1:])] for user, texts in people.items()]
    (folder / "users.csv").write_text("".join("\t".join(line) + "\n" for line in [list(HEADER), *profiles]))
    return folder


def config(raw: Path, **changes: Any) -> dict[str, Any]:
    """conf/data/xing.yaml, resolved, with the settings of small logs."""
    defaults = {
        "name": "xing",
        "raw_dir": str(raw),
        "reader": {
            "_target_": "arnn_lightning.readers.xing.XingReader",
            "raw_dir": str(raw),
            "item_single": [],
            "item_multi": [],
        },
        "window_days": 30,
        "session": "gap",
        "gap": "1h",
        "items": items_of(1.0),
        "min_session_length": 2,
        "split": {"test_days": 1, "val_days": 0},
        "held_out_user_share": 0.0,
        "contexts": {"single": list(SINGLE), "multi": list(MULTI), "coverage": 0.75, "assignment": "own"},
    }
    data = defaults | NO_CUTS | changes
    data["split"] = dict.fromkeys(("test_days", "val_days", "test_share", "val_share")) | data["split"]
    for section in ("contexts", "item_contexts"):
        data[section] = {"single": [], "multi": [], "numeric": None, "min_events": 1, "coverage": 0.75} | data.get(
            section, {}
        )
    data["items"] = {"cold": "drop"} | data["items"]
    return data


def items_of(
    coverage: float, popularity_scope: str = "window", min_events: int = 1, most_popular: int | None = None
) -> dict[str, Any]:
    return {
        "popularity_coverage": coverage,
        "most_popular": most_popular,
        "popularity_scope": popularity_scope,
        "min_events": min_events,
    }


# --- the reference: the filtering of paper 4.2 in dicts and lists ---


class EmptyResult(Exception):  # noqa: N818 (an outcome, not an error)
    """A step or a split of the reference has no events."""


def day(event: Event) -> int:
    return event.time // DAY


def cut_sessions(events: Sequence[Event], kind: str, gap: int) -> list[list[Event]]:
    starts: dict[str, Callable[[Event, Event], bool]] = {
        "gap": lambda last, event: event.time - last.time > gap,
        "day": lambda last, event: day(last) != day(event),
        "given": lambda last, event: last.session != event.session,
    }
    sessions: list[list[Event]] = []
    for event in sorted(events, key=lambda e: (e.user, e.session if kind == "given" else 0, e.time, e.row)):
        last = sessions[-1][-1] if sessions else None
        if last is None or last.user != event.user or starts[kind](last, event):
            sessions.append([])
        sessions[-1].append(event)
    return sessions


def most_popular(counts: Mapping[Any, int], coverage: float) -> set[Any]:
    """Whole levels of equal counts from the top, until they cover ``coverage`` of the sum."""
    kept: set[Any] = set()
    covered = 0
    for level in sorted(set(counts.values()), reverse=True):
        if kept and covered >= Fraction(coverage) * sum(counts.values()):
            break
        tied = {key for key, count in counts.items() if count == level}
        kept |= tied
        covered += level * len(tied)
    return kept


def split_names(sessions: Sequence[Sequence[Event]], split: Mapping[str, Any]) -> list[str]:
    starts = [session[0].time for session in sessions]
    if split["test_share"] is not None:
        later = sorted(starts, reverse=True)
        n_test, n_val = (round(split[name] * len(later)) for name in ("test_share", "val_share"))
        test, val = set(later[:n_test]), set(later[n_test : n_test + n_val])
        return ["test" if start in test else "val" if start in val else "train" for start in starts]
    last = max(day(session[0]) for session in sessions)
    ages = [last - day(session[0]) for session in sessions]
    test_days, val_days = split["test_days"], split["test_days"] + split["val_days"]
    return ["test" if age < test_days else "val" if age < val_days else "train" for age in ages]


def without_duplicates(session: Sequence[Event]) -> list[Event]:
    return [e for place, e in enumerate(session) if all((e.item, e.time) != (f.item, f.time) for f in session[:place])]


def without_repeats(session: Sequence[Event]) -> list[Event]:
    return [
        event for last, event in zip([None, *session], session, strict=False) if not last or last.item != event.item
    ]


def pieces(session: Sequence[Event], length: int) -> list[list[Event]]:
    """The fewest pieces that are not too long, the sizes of any two at most one apart."""
    count = -(-len(session) // length)
    cuts = [-(-len(session) * piece // count) for piece in range(count + 1)]
    return [list(session[start:end]) for start, end in pairwise(cuts)]


def window(events: Sequence[Event], days: int, kind: str, gap: int) -> list[Event]:
    """The events since day ``last - days + 1``, for the largest ``last`` on which the last session of these starts."""
    for last in sorted(set(map(day, events)), reverse=True):
        kept = [event for event in events if last - day(event) < days]
        if max(day(session[0]) for session in cut_sessions(kept, kind, gap)) == last:
            break
    return kept


def only(sessions: Iterable[Sequence[Event]], items: set[int]) -> list[list[Event]]:
    kept = ([event for event in session if event.item in items] for session in sessions)
    return [session for session in kept if session]


def reference(rows: int, events: Sequence[Event], people: Profiles, data: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a prepared folder holds, as plain values; raises EmptyResult."""
    shortest, longest = data["min_session_length"], data["max_session_length"]
    nothing: dict[str, Any] = {"sessions": None, "users": None, "items": None}
    steps: list[dict[str, Any]] = [{"step": "rows in the file", "events": rows, **nothing}]

    def count(step: str, sessions: list[list[Event]]) -> list[list[Event]]:
        steps.append({"step": step, **sizes(sessions)})
        if not steps[-1]["events"]:
            raise EmptyResult
        return sessions

    gap = {"1h": 3600, None: 0}[data["gap"]]
    count("events kept by the reader", cut_sessions(events, data["session"], gap))
    in_log = Counter(event.item for event in events)
    if data["window_days"] is not None:
        events = window(events, data["window_days"], data["session"], gap)
    sessions = count("in the time window", cut_sessions(events, data["session"], gap))
    found = {
        "duplicates": sum(len(session) - len(without_duplicates(session)) for session in sessions),
        "repeats": sum(len(session) - len(without_repeats(session)) for session in sessions),
        "tied_times": sum(a.time == b.time for session in sessions for a, b in pairwise(session)),
        "longest_session": max(map(len, sessions)),
    }
    split_of = {id(e): name for s, name in zip(sessions, split_names(sessions, data["split"]), strict=True) for e in s}
    if data["duplicates"] == "drop":
        sessions = count("without duplicate rows", list(map(without_duplicates, sessions)))
    if data["repeats"] == "drop":
        sessions = count("without immediate repeats", list(map(without_repeats, sessions)))
    counted = sessions
    if data["items"]["popularity_scope"] == "train":
        counted = [session for session in sessions if split_of[id(session[0])] == "train"]
    counts = Counter(event.item for session in counted for event in session)
    if data["items"]["popularity_scope"] == "log":
        counts = in_log
    fewest = data["items"]["min_events"]
    if data["items"]["most_popular"] is not None:
        fewest = max([fewest, *sorted(counts.values(), reverse=True)[: data["items"]["most_popular"]][-1:]])
    popular = {item for item in most_popular(counts, data["items"]["popularity_coverage"]) if counts[item] >= fewest}
    sessions = count("of popular items", only(sessions, popular))
    if longest is not None:
        sessions = [piece for session in sessions for piece in pieces(session, longest)]
        count(f"in sessions cut to {longest} events", sessions)
    step = f"in sessions of {shortest} events or more"
    sessions = count(step, [session for session in sessions if len(session) >= shortest])
    names = [split_of[id(session[0])] for session in sessions]
    known = {e.item for session, name in zip(sessions, names, strict=True) if name == "train" for e in session}
    named = [(name, kept) for session, name in zip(sessions, names, strict=True) for kept in only([session], known)]
    count("of items seen in training", [session for _, session in named])
    named = [(name, session) for name, session in named if len(session) >= shortest]
    count("in sessions still long enough", [session for _, session in named])

    items = sorted({event.item for _, session in named for event in session})
    users = sorted({session[0].user for _, session in named})
    named.sort(key=lambda pair: pair[1][0].time)  # stable: sessions that start together keep the order of users
    splits: dict[str, list[dict[str, int]]] = {"train": [], "val": [], "test": []}
    for number, (name, session) in enumerate(named):
        splits[name] += [
            {SESSION: number, USER: users.index(e.user), ITEM: items.index(e.item), TIME: e.time} for e in session
        ]
    for name, part in splits.items():
        if not part and (name != "val" or data["split"]["val_days"] or data["split"]["val_share"]):
            raise EmptyResult
    train_events = Counter(session[0].user for name, session in named if name == "train" for _ in session)
    return {
        "funnel": steps,
        "log": found,
        "splits": {name: sizes([s for own, s in named if own == name]) for name in splits},
        **splits,
        "items": [{"item": code, "id": item} for code, item in enumerate(items)],
        **encode(users, train_events, people, data["contexts"]),
    }


def sizes(sessions: Sequence[Sequence[Event]]) -> dict[str, Any]:
    flat = [event for session in sessions for event in session]
    return {
        "events": len(flat),
        "sessions": len(sessions),
        "users": len({event.user for event in flat}),
        "items": len({event.item for event in flat}),
    }


def encode(users: list[int], events: Counter[int], people: Profiles, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The context codes, fitted on users with training events."""
    unknown = {
        "career_level": ("0", "NULL", ""),
        "country": ("NULL", ""),
        "age_range": ("0", "NULL", ""),
        "gender": ("2", "NULL", ""),
    }
    rows: list[dict[str, Any]] = [{"user": code, "id": user} for code, user in enumerate(users)]
    known, active = [0] * len(users), [set[int]() for _ in users]
    vocabulary, single_sizes, n_binary = [], [], 0
    for name in attributes["single"]:
        texts = [people.get(user, {}).get(name, "NULL" if user not in people else "0") for user in users]
        if name == "user":
            texts = list(map(str, users))
        values_of_users = [None if text in unknown.get(name, ()) else text for text in texts]
        counts = Counter[str]()
        for user, value in zip(users, values_of_users, strict=True):
            if value is not None and events[user]:
                counts[value] += events[user]
        ordered = sorted(counts, key=int if name == "user" else str)
        codes = {value: 1 + code for code, value in enumerate(ordered)}
        vocabulary += [(name, "single", codes[value], value, counts[value], None) for value in ordered]
        single_sizes.append(1 + len(codes))
        for row_of_user, value in enumerate(values_of_users):
            rows[row_of_user][f"context.{name}"] = 0 if value is None else codes.get(value, 0)
            known[row_of_user] += value is not None
    for name in attributes["multi"]:
        lists = [
            [value for value in people.get(user, {}).get(name, "").split(",") if value not in ("", "0", "NULL")]
            for user in users
        ]
        counts = Counter[str]()
        for user, values in zip(users, lists, strict=True):
            for value in values:
                counts[value] += events[user]
        counts = +counts  # without the categories of users that training never saw
        for row_of_user, values in enumerate(lists):
            known[row_of_user] += bool(values)
        if not counts:
            continue
        popular = sorted(most_popular(counts, attributes["coverage"]))
        codes = {value: n_binary + code for code, value in enumerate(popular)}
        other = n_binary + len(popular)
        n_binary = other + 1
        vocabulary += [(name, "multi", codes[value], value, counts[value], None) for value in popular]
        rest = sum(counts.values()) - sum(counts[v] for v in popular)
        vocabulary.append((name, "multi", other, "(other)", rest, None))
        for row_of_user, values in enumerate(lists):
            # Without a training event, the field of other values has only initial weights.
            active[row_of_user] |= {codes.get(value, other) for value in values if value in codes or rest}
    for row_of_user, row in enumerate(rows):
        row |= {"active": sorted(active[row_of_user]), "n_known": known[row_of_user]}
    return {
        "users": rows,
        "contexts": vocabulary,
        "dims": {"single_sizes": single_sizes, "n_binary": n_binary},
        "fields": len(single_sizes) + n_binary + 1,
    }


def written(prepared: PreparedDataset) -> dict[str, Any]:
    """What a prepared folder holds, in the reference's shape."""
    manifest = prepared.manifest
    tables = {
        name: pl.read_parquet(prepared.folder / f"{name}.parquet").to_dicts()
        for name in ("train", "val", "test", "items", "users")
    }
    return {
        "funnel": manifest["funnel"],
        "log": {name: manifest["log"][name] for name in ("duplicates", "repeats", "tied_times", "longest_session")},
        "splits": manifest["splits"],
        "dims": {key: manifest["dims"][key] for key in ("single_sizes", "n_binary")},
        "fields": manifest["fields"],
        "contexts": pl.read_parquet(prepared.folder / "contexts.parquet").rows(),
        **tables,
    }


def expected(log: Sequence[Row], people: Profiles, data: Mapping[str, Any]) -> dict[str, Any]:
    events = [Event(row.user, row.item, row.time, place) for place, row in enumerate(log) if row.kind == 1]
    return reference(len(log), events, people, data)


def agree(log: Sequence[Row], people: Profiles, **changes: Any) -> bool:
    """Prepares ``log`` both ways; True where something was left, False where both refused."""
    with tempfile.TemporaryDirectory() as name:
        raw = write_xing(Path(name), log, people)
        data = config(raw, **changes)
        try:
            tables = expected(log, people, data)
        except EmptyResult:
            with pytest.raises(UserError, match=r"interactions\.csv"):
                prepare(data, raw / "data")
            return False
        assert written(prepare(data, raw / "data")) == tables
        return True


def random_log(seed: int, rows: int, users: int = 40, items: int = 30, days: int = 9) -> list[Row]:
    """Bursts of interactions in random order, some across midnight, more often with the popular items."""
    rng = random.Random(seed)
    end = FIRST + days * DAY - 1
    log: list[Row] = []
    while len(log) < rows:
        user = rng.randrange(users)
        time = FIRST + rng.randrange(days) * DAY + rng.choice([0, 40_000, 80_000, 86_000, rng.randrange(DAY)])
        for _ in range(rng.randint(1, 6)):
            log.append(Row(user, int(items * rng.random() ** 2), rng.choice([1, 1, 1, 1, 2, 4]), min(time, end)))
            time += rng.choice([0, 0, 60, 600, 3_600, 3_601])
    rng.shuffle(log)
    return log[:rows]


def random_profiles(seed: int, users: int = 40) -> Profiles:
    """Profiles of five in six users, and of some who never click."""
    rng = random.Random(seed)

    def roles() -> str:
        chosen = rng.sample(range(1, 9), rng.randint(1, 3))
        return rng.choice(["0", "NULL", "", *[",".join(map(str, chosen))] * 4])

    return {
        user: {
            "career_level": rng.choice(["NULL", *"0123"]),
            "country": rng.choice(["de", "at", "0", "NULL"]),
            "jobroles": roles(),
            "edu_fieldofstudies": roles(),
        }
        for user in range(users + 5)
        if user % 6
    }


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return write_xing(folder, random_log(3, 900), random_profiles(3))


@dataclass(frozen=True)
class LogReader:
    """Reads a log with sessions: rows of user, item, time, session. Ids are of type ``ids``."""

    raw_dir: str
    ids: str = "Int64"

    def files(self) -> dict[str, Path]:
        return {"log.json": Path(self.raw_dir) / "log.json"}

    def read(self) -> RawData:
        rows = json.loads(self.files()["log.json"].read_text())
        events = pl.DataFrame(rows, dict.fromkeys((USER, ITEM, TIME, SESSION), pl.Int64), orient="row")
        events = events.cast(dict.fromkeys((USER, ITEM), getattr(pl, self.ids)))
        users = events.select(pl.col(USER).unique()).with_columns(
            career_level=pl.when(pl.col(USER).cast(pl.Int64) % 3 > 0).then(
                pl.col(USER).cast(pl.Int64).mod(3).cast(pl.String)
            ),
            age=pl.col(USER).cast(pl.Float64),
            height=pl.col(USER).cast(pl.Float64),
        )
        return RawData(events, len(rows), load_users=users.lazy)


@dataclass(frozen=True)
class RepeatingReader(LogReader):
    """Reads every event ``events`` times."""

    events: int = 1

    def read(self) -> RawData:
        data = super().read()
        return replace(data, events=pl.concat([data.events] * self.events))


# --- filtering against the reference ---


@pytest.mark.parametrize("session", ["gap", "day"])
@pytest.mark.parametrize("popularity_scope", ["log", "window", "train"])
@pytest.mark.parametrize(("coverage", "shortest", "val_days"), [(0.5, 2, 0), (0.75, 2, 2), (0.5, 3, 1)])
def test_filtering_equals_its_reference(
    session: str, popularity_scope: str, coverage: float, shortest: int, val_days: int
) -> None:
    for seed in range(2):
        assert agree(
            random_log(seed, 900),
            random_profiles(seed),
            session=session,
            window_days=7,
            items=items_of(coverage, popularity_scope, min_events=3),
            min_session_length=shortest,
            split={"test_days": 2, "val_days": val_days},
        )


@st.composite
def small_logs(draw: st.DrawFn) -> list[Row]:
    bursts = draw(
        st.lists(
            st.tuples(
                st.integers(1, 4),  # user
                st.integers(0, 5),  # day
                st.sampled_from([0, 1, 40_000, 82_000, 86_399]),  # second
                st.lists(
                    st.tuples(st.integers(1, 5), st.sampled_from([1, 1, 1, 2]), st.sampled_from([0, 1, 3_600, 3_601])),
                    min_size=1,
                    max_size=5,
                ),
            ),
            min_size=4,
            max_size=16,
        )
    )
    log = []
    for user, at, second, interactions in bursts:
        pauses = accumulate((pause for *_, pause in interactions), initial=0)
        for (item, kind, _), late in zip(interactions, pauses, strict=False):
            log.append(Row(user, item, kind, FIRST + at * DAY + second + late))
    if draw(st.booleans()):  # most small logs leave some split empty, so half of them get sessions that help
        log += clicks(*[(user, item, user + 0.4) for user in range(6) for item in (1, 2, 3)])
    draw(st.randoms(use_true_random=False)).shuffle(log)
    return log


@settings(max_examples=80, deadline=None)
@given(
    log=small_logs(),
    people=st.integers(0, 99).map(lambda seed: random_profiles(seed, users=4)),
    window_days=st.sampled_from([None, 2, 4, 30]),
    session=st.sampled_from(["gap", "day"]),
    items=st.builds(
        items_of,
        st.sampled_from([0.5, 0.75, 1.0]),
        st.sampled_from(["log", "window", "train"]),
        st.sampled_from([1, 2]),
        st.sampled_from([None, None, 1, 3]),
    ),
    shortest=st.sampled_from([2, 2, 3]),
    split=st.one_of(
        st.fixed_dictionaries({"test_days": st.integers(1, 2), "val_days": st.integers(0, 1)}),
        st.fixed_dictionaries({"test_share": st.sampled_from([0.1, 0.3, 0.5]), "val_share": st.sampled_from([0, 0.2])}),
    ),
    duplicates=st.sampled_from(["keep", "drop"]),
    repeats=st.sampled_from(["keep", "drop"]),
    pieces_above_the_minimum=st.sampled_from([None, None, 0, 1]),
)
def test_filtering_equals_its_reference_on_any_small_log(
    log: list[Row],
    people: Profiles,
    window_days: int | None,
    session: str,
    items: dict[str, Any],
    shortest: int,
    split: dict[str, Any],
    duplicates: str,
    repeats: str,
    pieces_above_the_minimum: int | None,
) -> None:
    agree(
        log,
        people,
        window_days=window_days,
        session=session,
        items=items,
        min_session_length=shortest,
        split=split,
        duplicates=duplicates,
        repeats=repeats,
        max_session_length=None if pieces_above_the_minimum is None else 2 * shortest - 1 + pieces_above_the_minimum,
    )


class TmallRow(NamedTuple):
    """One row of user_log_format1.csv."""

    user: int
    item: int
    stamp: str
    kind: int


@st.composite
def tmall_logs(draw: st.DrawFn) -> list[TmallRow]:
    """Users one after the other, their days in any order, the end of a month among them."""
    days = ["829", "830", "831", "901", "902", "1111", "1112"]
    log = []
    for user in draw(st.permutations(range(1, 5))):
        for stamp in draw(st.lists(st.sampled_from(days), max_size=7, unique=True)):
            items = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
            log += [TmallRow(user, item, stamp, draw(st.sampled_from([0, 0, 0, 2, 3]))) for item in items]
    if draw(st.booleans()):  # sessions in training and in test
        log += [TmallRow(user, item, stamp, 0) for user in (5, 6) for stamp in ("1112", "1030") for item in (1, 2, 3)]
    return log


def write_tmall(folder: Path, log: Iterable[TmallRow], people: Profiles, seller: str) -> Path:
    header = f"user_id,item_id,cat_id,{seller},brand_id,time_stamp,action_type"
    lines = [header, *(f"{row.user},{row.item},7,8,,{row.stamp},{row.kind}" for row in log)]
    (folder / "user_log_format1.csv").write_text("\n".join(lines) + "\n")
    profiles = [f"{user},{texts['age_range']},{texts['gender']}" for user, texts in people.items()]
    (folder / "user_info_format1.csv").write_text("\n".join(["user_id,age_range,gender", *profiles]) + "\n")
    return folder


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    log=tmall_logs(),
    profiles=st.lists(st.tuples(st.sampled_from(["", "0", "3", "8"]), st.sampled_from("012")), max_size=5),
    window_days=st.sampled_from([None, 3, 30, 75]),
    coverage=st.sampled_from([0.5, 1.0]),
    seller=st.sampled_from(["seller_id", "merchant_id"]),
)
def test_filtering_of_tmall_equals_its_reference(
    log: list[TmallRow], profiles: list[tuple[str, str]], window_days: int | None, coverage: float, seller: str
) -> None:
    people = {user: {"age_range": age, "gender": gender} for user, (age, gender) in enumerate(profiles, 1)}
    with tempfile.TemporaryDirectory() as name:
        folder = write_tmall(Path(name), log, people, seller)
        data = config(
            folder,
            name="tmall",
            reader={"_target_": "arnn_lightning.readers.tmall.TmallReader", "raw_dir": str(folder)},
            session="day",
            gap=None,
            window_days=window_days,
            items=items_of(coverage),
            contexts={"single": ["user", "age_range", "gender"], "multi": [], "coverage": 0.75, "assignment": "own"},
        )

        def seconds(stamp: str) -> int:
            day = date(2014, int(stamp[:-2]), int(stamp[-2:]))
            return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())

        events = [
            Event(row.user, row.item, seconds(row.stamp), place) for place, row in enumerate(log) if row.kind == 0
        ]
        try:
            if not events:
                raise EmptyResult
            tables = reference(len(log), events, people, data)
        except EmptyResult:
            with pytest.raises(UserError, match=r"user_log_format1\.csv"):
                prepare(data, folder / "data")
        else:
            assert written(prepare(data, folder / "data")) == tables


@pytest.mark.parametrize("step", [3_000, 2**50], ids=["key and row fit 64 bits", "too wide"])
def test_events_of_equal_times_keep_the_order_of_the_file(step: int) -> None:
    rng = np.random.default_rng(0)
    users, times = rng.integers(0, 200, 2_000).tolist(), (rng.integers(0, 5, 2_000) * step).tolist()
    columns = {USER: pl.Series(users, dtype=pl.UInt32), ITEM: pl.int_range(2_000, dtype=pl.UInt32, eager=True)}
    log = pl.DataFrame({**columns, TIME: times})
    events = assign_session_ids(log, 0, session_rule(log, "gap", "1h", "UTC"))
    in_order = sorted(range(2_000), key=lambda row: (users[row], times[row]))
    assert events[ITEM].to_list() == in_order
    is_new = [users[row] != users[last] or times[row] - times[last] > 3_600 for last, row in pairwise(in_order)]
    assert events[SESSION_ID].to_list() == [0, *accumulate(is_new)]


@pytest.mark.parametrize("window_days", [30, 3])
@pytest.mark.parametrize("seed", range(3))
def test_filtering_equals_its_reference_with_given_sessions(tmp_path: Path, seed: int, window_days: int) -> None:
    rng = random.Random(seed)
    rows = [
        (rng.randrange(8), rng.randrange(12), FIRST + rng.randrange(6 * DAY // 3_600) * 3_600, rng.randrange(9))
        for _ in range(400)
    ]
    (tmp_path / "log.json").write_text(json.dumps(rows))
    data = config(
        tmp_path,
        reader={"_target_": f"{__name__}.LogReader", "raw_dir": str(tmp_path)},
        session="given",
        window_days=window_days,
        gap=None,
        items=items_of(0.75),
        split={"test_days": 2, "val_days": 0},
        contexts={"single": ["career_level"], "multi": [], "coverage": 0.75, "assignment": "own"},
    )
    people = {user: {"career_level": str(user % 3)} for user in range(8)}
    events = [Event(user, item, time, row, session) for row, (user, item, time, session) in enumerate(rows)]
    assert written(prepare(data, tmp_path)) == reference(len(rows), events, people, data)


@pytest.mark.parametrize("ids", ["Int8", "Int16", "UInt8", "UInt16", "UInt32", "UInt64", "Int128", "String"])
def test_ids_may_be_of_any_type_that_sorts(tmp_path: Path, ids: str) -> None:
    rng = random.Random(7)
    low, high = (0, 255) if ids.startswith("U") else (100, 999) if ids == "String" else (-128, 127)
    rows = [(rng.randint(low, high), rng.choice([low, 120, high]), FIRST + 3_600 * place, 0) for place in range(600)]
    (tmp_path / "log.json").write_text(json.dumps([(*row[:3], place // 5) for place, row in enumerate(rows)]))
    datasets = []
    for name in ("Int64", ids):
        reader = {"_target_": f"{__name__}.LogReader", "raw_dir": str(tmp_path), "ids": name}
        contexts = {"single": ["career_level"], "multi": [], "coverage": 0.75, "assignment": "own"}
        data = config(tmp_path, reader=reader, session="day", min_session_length=2, contexts=contexts)
        datasets.append(prepare(data, tmp_path / name))
    plain, typed = datasets
    assert files_of(plain, "t*.parquet") == files_of(typed, "t*.parquet")
    users = [prepared.users().cast({"id": pl.String}) for prepared in datasets]
    assert users[0].equals(users[1])


@pytest.mark.parametrize("window_days", [4, 30])
@pytest.mark.parametrize(
    ("user", "item", "later"),
    [
        (lambda user: 997 * user + 5, lambda item: 10**9 - item, 0),  # numbers of 64 bits, items far from zero
        (lambda user: 10**7 * user, lambda item: 7 * 10**7 * item, 0),  # too far apart for a table
        (lambda user: user, lambda item: item, 2**31 - FIRST - 5 * DAY),  # on both sides of 2038
    ],
)
def test_filtering_equals_its_reference_for_any_ids_and_times(
    user: Callable[[int], int], item: Callable[[int], int], later: int, window_days: int
) -> None:
    log = [row for row in random_log(5, 1_500) if row.user or row.time >= FIRST + 5 * DAY]  # one is new in the window
    log = [Row(user(row.user), item(row.item), row.kind, row.time + later) for row in log]
    people = {user(code): texts for code, texts in random_profiles(5).items()}
    split = {"test_days": 2, "val_days": 0}
    assert agree(log, people, window_days=window_days, items=items_of(0.75), split=split)
    assert agree(log, dict(reversed(people.items())), window_days=window_days, session="day", split=split)


# --- the steps one by one ---


def sessions_of(prepared: PreparedDataset, split: str) -> list[list[int]]:
    """The item ids of every session of a split."""
    ids = pl.read_parquet(prepared.folder / "items.parquet")["id"].to_list()
    grouped: dict[int, list[int]] = {}
    for session, item in pl.read_parquet(prepared.folder / f"{split}.parquet")[SESSION, ITEM].iter_rows():
        grouped.setdefault(session, []).append(ids[item])
    return list(grouped.values())


def step(prepared: PreparedDataset, name: str) -> dict[str, Any]:
    (step_counts,) = [counts for counts in prepared.manifest["funnel"] if counts["step"] == name]
    return step_counts  # type: ignore[no-any-return]


def prepared_from(folder: Path, log: Sequence[Row], **changes: Any) -> PreparedDataset:
    return prepare(config(write_xing(folder, log, {}), **changes), folder / "data")


# One training session and one test session of items 1 and 2, for logs that need some.
PAIRS = clicks((90, 1, 0.5), (90, 2, 0.5), (91, 1, 3.5), (91, 2, 3.5))


def test_the_window_consists_of_whole_days(tmp_path: Path) -> None:
    edge = FIRST + 2 * DAY  # with two days, of days 2 and 3, this second is the first
    log = [*PAIRS, Row(1, 1, 1, edge - 1), Row(1, 1, 1, edge), Row(1, 2, 1, edge + 1)]
    prepared = prepared_from(tmp_path, log, window_days=2)
    assert step(prepared, "in the time window")["events"] == 4
    assert sessions_of(prepared, "train") == [[1, 2]]
    assert pl.read_parquet(prepared.folder / "train.parquet")[TIME].to_list() == [edge, edge + 1]


@pytest.mark.parametrize("end", [-60, 60, DAY + 60], ids=["before midnight", "after midnight", "after two midnights"])
def test_30_days_are_27_training_days_and_3_test_days(tmp_path: Path, end: int) -> None:
    """The last session starts on day 39, wherever it ends."""
    log = clicks(*[(user, item, at + 0.5) for at in range(40) for user in (1, 2) for item in (1, 2)])
    night = [Row(3, 1, 1, FIRST + 40 * DAY + late) for late in range(-1_860, end, 1_800)]
    log += [*night, Row(3, 2, 1, FIRST + 40 * DAY + end)]
    prepared = prepared_from(tmp_path, log, window_days=30, split={"test_days": 3, "val_days": 0})
    train, test = (pl.read_parquet(prepared.folder / f"{split}.parquet") for split in ("train", "test"))
    start_days = [set((split.group_by(SESSION).min()[TIME] - FIRST) // DAY) for split in (train, test)]
    assert start_days == [set(range(10, 37)), {37, 38, 39}]
    assert test.height == 12 + len(night) + 1


@pytest.mark.parametrize(("pause", "sessions"), [(3_600, 1), (3_601, 2)])
def test_only_a_pause_longer_than_the_gap_starts_a_session(tmp_path: Path, pause: int, sessions: int) -> None:
    start = FIRST + 1_000
    log = [*PAIRS, *(Row(1, item, 1, start + late) for item, late in [(1, 0), (2, 0), (1, pause), (2, pause)])]
    assert len(sessions_of(prepared_from(tmp_path, log), "train")) == 1 + sessions


def test_day_sessions_start_at_midnight_and_ignore_pauses(tmp_path: Path) -> None:
    log = [*PAIRS, *clicks((1, 1, 0.0), (1, 2, 0.9), (1, 2, 0.999), (1, 1, 1.0), (1, 2, 1.0))]
    prepared = prepared_from(tmp_path, log, session="day", gap=None)
    assert sessions_of(prepared, "train") == [[1, 2, 2], [1, 2], [1, 2]]


def test_items_tied_at_the_threshold_are_kept(tmp_path: Path) -> None:
    # Counts 4, 4, 2, 2, 1: half of 13 needs items 1 and 2; three quarters need one of 3 and 4, and both stay.
    log = [*PAIRS, *PAIRS, *clicks((1, 3, 1), (1, 4, 1), (1, 3, 1), (1, 4, 1), (1, 5, 1))]
    for coverage, kept in [(0.5, [1, 2]), (0.75, [1, 2, 3, 4]), (1.0, [1, 2, 3, 4, 5])]:
        prepared = prepared_from(tmp_path, log, items=items_of(coverage))
        assert pl.read_parquet(prepared.folder / "items.parquet")["id"].to_list() == kept


def test_items_need_min_events_too(tmp_path: Path) -> None:
    log = [*PAIRS, *PAIRS, *clicks((1, 3, 1), (1, 4, 1), (1, 3, 1))]
    prepared = prepared_from(tmp_path, log, items=items_of(1.0, min_events=2))
    assert pl.read_parquet(prepared.folder / "items.parquet")["id"].to_list() == [1, 2, 3]


def test_a_session_belongs_to_the_split_in_which_it_starts(tmp_path: Path) -> None:
    late = FIRST + 3 * DAY  # midnight before the test day
    log = [*PAIRS, Row(1, 1, 1, late - 60), Row(1, 2, 1, late + 60), Row(2, 2, 1, late), Row(2, 1, 1, late + 60)]
    prepared = prepared_from(tmp_path, log)
    assert sessions_of(prepared, "train") == [[1, 2], [1, 2]]
    assert sessions_of(prepared, "test") == [[2, 1], [1, 2]]


def test_V3_validation_holds_the_days_before_the_test_days(tmp_path: Path) -> None:
    log = [row for at in range(6) for row in clicks((1, 1, at + 0.5), (1, 2, at + 0.5))]
    prepared = prepared_from(tmp_path, log, split={"test_days": 1, "val_days": 2})
    days = {
        split: sorted({(time - FIRST) // DAY for time in pl.read_parquet(prepared.folder / f"{split}.parquet")[TIME]})
        for split in ("train", "val", "test")
    }
    assert days == {"train": [0, 1, 2], "val": [3, 4], "test": [5]}


def test_held_out_users_are_the_only_ones_validated_and_tested(tmp_path: Path) -> None:
    log, people = random_log(3, 3_000), random_profiles(3)
    raw = write_xing(tmp_path, log, people)
    settings: dict[str, Any] = {"split": {"test_days": 2, "val_days": 1}, "items": items_of(1.0)}
    prepared = prepare(config(raw, held_out_user_share=0.3, **settings), tmp_path)
    everybody = prepare(config(raw, **settings), tmp_path)
    users = {
        split: set(pl.read_parquet(prepared.folder / f"{split}.parquet")[USER].unique())
        for split in ("train", "val", "test")
    }
    assert users["train"].isdisjoint(users["val"] | users["test"])
    assert len(users["val"] & users["test"]) > 3
    users_of_log = {row.user for row in log}
    assert len(users["val"] | users["test"]) <= round(0.3 * len(users_of_log))
    assert 0 < step(prepared, "after holding out users")["events"] < step(everybody, "of popular items")["events"]
    known = pl.read_parquet(prepared.folder / "contexts.parquet").filter(pl.col("attribute") == "country")
    train_users = pl.read_parquet(prepared.folder / "users.parquet").filter(pl.col("user").is_in(list(users["train"])))
    assert (
        known.height == train_users["context.country"].filter(train_users["context.country"] > 0).n_unique()
    )  # fitted on them alone


def test_held_out_users_do_not_depend_on_gaps_between_ids(tmp_path: Path) -> None:
    log, written = random_log(4, 1_000), []
    for step in (1, 3):
        folder = tmp_path / str(step)
        folder.mkdir()
        spread = [row._replace(user=step * row.user) for row in log]
        prepared = prepared_from(folder, spread, held_out_user_share=0.3, items=items_of(1.0))
        written.append(files_of(prepared, "t*.parquet"))
    assert written[0] == written[1]


@pytest.mark.parametrize(("share", "n_held_out"), [(0.3, 2), (0.5, 2), (0.12, 1), (0.05, 0)])
def test_the_number_of_held_out_users_is_rounded(share: float, n_held_out: int) -> None:
    users = np.arange(5)  # each has a training session and a test session
    events = pl.DataFrame({USER: np.tile(users, 2), SPLIT: np.repeat([0, 2], 5).astype(np.uint8)})
    kept = hold_out_users(events, share, np.ones(5, bool))
    assert kept.filter(pl.col(SPLIT) == 2).height == n_held_out
    assert kept.height == 5


@pytest.mark.parametrize("share", [1, -0.1, "some", True])
def test_held_out_user_share_must_be_below_one(share: Any, raw: Path) -> None:
    with pytest.raises(UserError, match=r"data\.held_out_user_share="):
        prepare(config(raw, held_out_user_share=share), raw)


def test_a_dropped_first_event_determines_the_split(tmp_path: Path) -> None:
    late = FIRST + 3 * DAY
    log = [*PAIRS, *PAIRS, Row(1, 7, 1, late - 60), Row(1, 1, 1, late), Row(1, 2, 1, late + 60)]
    prepared = prepared_from(tmp_path, log, items=items_of(0.75))
    assert [1, 2] in sessions_of(prepared, "train")
    assert sessions_of(prepared, "test") == [[1, 2, 1, 2]]


def test_a_last_day_without_session_starts_is_not_the_test_day(tmp_path: Path) -> None:
    night = FIRST + 4 * DAY
    log = [*PAIRS, Row(1, 1, 1, night - 60), Row(1, 2, 1, night + 60)]
    prepared = prepared_from(tmp_path, log)
    assert [1, 2] in sessions_of(prepared, "test")


def test_E6_sessions_that_shrink_to_one_event_are_dropped(tmp_path: Path) -> None:
    # Sessions [1, 7] and [2, 8] lose an unpopular item; test session [1, 9] loses an item that training never saw.
    log = [*PAIRS, *clicks((1, 1, 1), (1, 7, 1), (2, 2, 1), (2, 8, 1), *[(3, 9, 3)] * 4, (4, 1, 3), (4, 9, 3))]
    prepared = prepared_from(tmp_path, log, items=items_of(0.75))
    assert sessions_of(prepared, "train") == [[1, 2]]
    assert sessions_of(prepared, "test") == [[1, 2]]
    assert step(prepared, "in sessions of 2 events or more")["sessions"] == 4
    assert step(prepared, "in sessions still long enough")["sessions"] == 2


def test_E7_events_of_equal_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    order = [3, 1, 2, 2, 3, 1, 1, 3, 2]
    log = [
        Row(user, item, 1, FIRST + at * DAY) for item in order for user, at in ((5, 0), (4, 3), (5, 3), (4, 0))
    ]  # the rows of four sessions take turns
    prepared = prepared_from(tmp_path, log)
    assert sessions_of(prepared, "train") == [order, order]
    assert sessions_of(prepared, "test") == [order, order]


def test_E15_V3_items_unseen_in_training_are_dropped_and_counted(tmp_path: Path) -> None:
    log = [
        *PAIRS,
        *clicks((1, 1, 2), (1, 8, 2), (1, 2, 2)),  # validation: 8 is unseen
        *clicks((2, 8, 3), (2, 9, 3), (2, 1, 3), (2, 2, 3)),  # test: 8 stays unseen, though validation has it
    ]
    prepared = prepared_from(tmp_path, log, split={"test_days": 1, "val_days": 1})
    assert pl.read_parquet(prepared.folder / "items.parquet")["id"].to_list() == [1, 2]
    assert sessions_of(prepared, "val") == [[1, 2]]
    assert sessions_of(prepared, "test") == [[1, 2], [1, 2]]
    before, after = step(prepared, "in sessions of 2 events or more"), step(prepared, "of items seen in training")
    assert (before["events"], after["events"]) == (11, 8)


def test_every_item_occurs_in_training(raw: Path) -> None:
    prepared = prepare(config(raw), raw)
    items = pl.read_parquet(prepared.folder / "items.parquet")
    assert set(pl.read_parquet(prepared.folder / "train.parquet")[ITEM]) == set(items[ITEM])
    assert prepared.dims["n_items"] == items.height


@pytest.mark.parametrize(("scope", "kept"), [("train", [1, 2]), ("window", [1, 2, 7]), ("log", [1, 2, 7])])
@pytest.mark.parametrize("setting", [{"coverage": 0.5}, {"coverage": 1.0, "min_events": 2}], ids="/".join)
def test_V3_popularity_in_train_is_of_training_events(
    tmp_path: Path, setting: dict[str, Any], scope: str, kept: list[int]
) -> None:
    log = clicks(*[(90, item, 1) for item in (1, 2) * 4], (90, 7, 1), *[(91, item, 3) for item in (7, 7, 7, 7, 1, 2)])
    prepared = prepared_from(tmp_path, log, items=items_of(popularity_scope=scope, **setting))
    assert pl.read_parquet(prepared.folder / "items.parquet")["id"].to_list() == kept


# Where sessions and days are of items that are dropped: a session that starts in training with such an item goes on in
# the test period, and of the last days nothing stays.
_BASE = clicks(*[(90, item, 1) for item in (1, 2) * 4], *[(91, 7, 1)] * 3, (92, 1, 3), (92, 2, 3))
_ACROSS = [*_BASE, Row(93, 99, 1, FIRST + 3 * DAY - 60), *clicks((93, 7, 3), (93, 7, 3))]
_MOVED = [*_BASE, *clicks((93, 7, 2), (93, 7, 2), (94, 99, 4), (94, 98, 4))]


@pytest.mark.parametrize(
    ("log", "test_days"), [(_ACROSS, 1), (_MOVED, 2)], ids=["session across midnight", "last day without popular items"]
)
def test_splits_are_those_of_the_log_before_items_are_dropped(tmp_path: Path, log: list[Row], test_days: int) -> None:
    split = {"test_days": test_days, "val_days": 0}
    prepared = prepared_from(tmp_path, log, items=items_of(0.5, "train"), split=split)
    assert pl.read_parquet(prepared.folder / "items.parquet")["id"].to_list() == [1, 2, 7]
    assert sessions_of(prepared, "train") == [[1, 2] * 4, [7, 7, 7], [7, 7]]
    assert sessions_of(prepared, "test") == [[1, 2]]


def test_codes_follow_sorted_ids_and_sessions_follow_their_start(tmp_path: Path) -> None:
    log = clicks(*[(user, item, at) for user, at in ((30, 0.5), (4, 1.5), (200, 0.2), (4, 3)) for item in (11, 5, 100)])
    prepared = prepared_from(tmp_path, log)
    assert pl.read_parquet(prepared.folder / "items.parquet").rows() == [(0, 5), (1, 11), (2, 100)]
    assert prepared.users()["user", "id"].rows() == [(0, 4), (1, 30), (2, 200)]
    train = pl.read_parquet(prepared.folder / "train.parquet")
    assert train[SESSION, USER].unique(maintain_order=True).rows() == [(0, 2), (1, 1), (2, 0)]
    assert pl.read_parquet(prepared.folder / "test.parquet")[SESSION].unique().to_list() == [3]


def test_sessions_read_back_are_those_of_the_parquet_file(raw: Path) -> None:
    prepared = prepare(config(raw, split={"test_days": 2, "val_days": 0}), raw)
    for split in ("train", "val", "test"):
        sessions, table = prepared.sessions(split), pl.read_parquet(prepared.folder / f"{split}.parquet")
        lengths = [b - a for a, b in zip(sessions.offset[:-1], sessions.offset[1:], strict=True)]
        assert sessions.time.tolist() == table.group_by(SESSION, maintain_order=True).last()[TIME].to_list()
        assert sessions.item.tolist() == table[ITEM].to_list()
        for column, values in ((SESSION, sessions.session), (USER, sessions.user)):
            assert [value for value, n in zip(values, lengths, strict=True) for _ in range(n)] == table[
                column
            ].to_list()
    assert prepared.sessions("val").offset.tolist() == [0]


def test_V3_contexts_are_fitted_on_training_users_only(tmp_path: Path) -> None:
    people: Profiles = {
        90: {"career_level": "3", "country": "de", "jobroles": "7"},
        91: {"career_level": "5", "country": "de", "jobroles": "8,7"},  # clicks in the test days alone
    }
    prepared = prepare(config(write_xing(tmp_path, PAIRS, people)), tmp_path / "data")
    users = prepared.users()
    assert users["context.career_level"].to_list() == [1, 0]
    assert users["context.country"].to_list() == [1, 1]
    assert users["active"].to_list() == [[0], [0]]  # 7; training has no 8, nor any other value
    assert prepared.dims["single_sizes"] == [2, 2]


def test_the_papers_config_has_the_user_id_as_a_context(tmp_path: Path) -> None:
    write_xing(tmp_path, random_log(1, 3_000, days=12), random_profiles(1))
    composed = compose_config("data=xing", f"data.raw_dir={tmp_path}", f"paths.data={tmp_path}")
    data: Any = OmegaConf.to_container(composed.data, resolve=True)
    prepared = prepare(data, tmp_path)
    trained = pl.read_parquet(prepared.folder / "train.parquet")[USER].n_unique()
    assert prepared.dims["single_sizes"][0] == 1 + trained
    assert len(prepared.dims["single_sizes"]) == 10


# --- duplicates, repeats, long sessions ---


def test_duplicates_and_repeats_are_counted_and_kept(tmp_path: Path) -> None:
    log = [
        *PAIRS,
        *clicks((1, 1, 1), (1, 2, 1), (1, 1, 1), (1, 1, 1)),
        *clicks((2, 1, 2), (2, 1, 2.0005), (2, 2, 2.01)),
    ]
    prepared = prepared_from(tmp_path, log)
    assert sessions_of(prepared, "train") == [[1, 2], [1, 2, 1, 1], [1, 1, 2]]
    assert (prepared.manifest["log"]["duplicates"], prepared.manifest["log"]["repeats"]) == (2, 2)


def test_dropped_duplicates_and_repeats_are_steps(tmp_path: Path) -> None:
    log = [
        *PAIRS,
        *clicks((1, 1, 1), (1, 2, 1), (1, 1, 1), (1, 1, 1)),
        *clicks((2, 1, 2), (2, 1, 2.0005), (2, 2, 2.01)),
    ]
    prepared = prepared_from(tmp_path, log, duplicates="drop", repeats="drop")
    assert sessions_of(prepared, "train") == [[1, 2], [1, 2], [1, 2]]
    counts = [step(prepared, name)["events"] for name in ("in the time window", "without duplicate rows")]
    assert [*counts, step(prepared, "without immediate repeats")["events"]] == [11, 9, 8]


def test_exports_that_overlap_are_counted_once(tmp_path: Path) -> None:
    """Rows that two exports have in common equal each other in user, item and time."""
    log = random_log(6, 900)
    once = prepared_from(tmp_path, log, duplicates="drop")
    twice = tmp_path / "twice"
    twice.mkdir()
    both = prepared_from(twice, [*log, *log[300:500]], duplicates="drop")
    assert files_of(once, "t*.parquet") == files_of(both, "t*.parquet")
    clicks_twice = sum(row.kind == 1 for row in log[300:500])
    assert both.manifest["log"]["duplicates"] == once.manifest["log"]["duplicates"] + clicks_twice


@pytest.mark.parametrize("order", [None, "place"], ids=["fractions", "order"])
def test_duplicates_and_ties_are_those_of_the_full_precision(order: str | None, tmp_path: Path) -> None:
    """Of three clicks on an item within a second, two have equal times (or equal places)."""
    events = [
        (user, item, f"2024-01-0{day}T10:00:0{place}.0", place)
        for user, day in ((1, 1), (2, 2))
        for place, item in enumerate("ab")
    ]
    burst = [(1, "a", f"2024-01-01T10:00:05.{fraction}", place) for fraction, place in ((1, 5), (2, 6), (2, 6))]
    rows = [(user, item, time if order is None else time[:19], place) for user, item, time, place in [*events, *burst]]
    frame = pl.DataFrame(rows, schema=["user", "item", "time", "place"], orient="row")
    frame.write_csv(tmp_path / "log.csv")
    overrides = [f"data.columns.order={order or 'null'}", "data.split={test_days: 1, val_days: 0}"]
    for duplicates, expected in (("keep", "abaaa"), ("drop", "abaa")):
        options = (*overrides, "data.items.min_events=1", f"data.duplicates={duplicates}")
        data = compose_config("data=tabular", f"data.events={tmp_path}/log.csv", *options).data
        prepared = prepare(OmegaConf.to_container(data, resolve=True), tmp_path / "data")
        assert (prepared.manifest["log"]["duplicates"], prepared.manifest["log"]["tied_times"]) == (1, 1)
        ids = pl.read_parquet(prepared.folder / "items.parquet")["id"]
        assert "".join(ids.gather(pl.read_parquet(prepared.folder / "train.parquet")["item"])) == expected


def test_long_sessions_are_cut_into_equal_pieces(tmp_path: Path) -> None:
    log = [*PAIRS, *(Row(1, 1 + place % 2, 1, FIRST + DAY + place) for place in range(11))]
    prepared = prepared_from(tmp_path, log, max_session_length=5)
    assert [len(session) for session in sessions_of(prepared, "train")] == [2, 4, 4, 3]
    assert step(prepared, "in sessions cut to 5 events")["sessions"] == 5
    times = pl.read_parquet(prepared.folder / "train.parquet").filter(pl.col(USER) == 0)[TIME]
    assert times.to_list() == [FIRST + DAY + place for place in range(11)]  # no event is lost


def test_pieces_stay_in_the_split_of_their_session(tmp_path: Path) -> None:
    start = FIRST + 3 * DAY - 5
    log = [*PAIRS, *(Row(1, 1 + place % 2, 1, start + place) for place in range(10))]
    prepared = prepared_from(tmp_path, log, max_session_length=3)
    assert len(sessions_of(prepared, "train")) == 1 + 4
    assert len(sessions_of(prepared, "test")) == 1


def test_a_session_of_a_crawler_does_not_hold_up_an_epoch(tmp_path: Path) -> None:
    crawler = [Row(1, 1 + place % 2, 1, FIRST + DAY + place) for place in range(20_000)]
    offset = {
        length: prepared_from(tmp_path, [*PAIRS, *crawler], max_session_length=length).sessions("train").offset
        for length in (None, 200)
    }
    steps = {length: len(session_parallel_schedule(starts, 50).event) for length, starts in offset.items()}
    assert steps[None] >= 19_999
    assert steps[200] <= 3 * 200


# --- splits by share, time zones ---


@given(
    starts=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    test_share=st.floats(0, 0.6),
    val_share=st.floats(0, 0.39),
)
def test_splits_by_share_are_those_of_sorting(starts: list[int], test_share: float, val_share: float) -> None:
    split = {"test_days": None, "val_days": None, "test_share": test_share, "val_share": val_share}
    events = pl.DataFrame({SESSION_ID: pl.Series(range(len(starts)), dtype=pl.UInt32)})
    assigned = assign_splits(events, pl.Series(starts), split, "UTC")[SPLIT]
    sessions = [[Event(1, 1, start, 0)] for start in starts]
    assert [SPLITS[code] for code in assigned] == split_names(sessions, split)
    test = [start for start, code in zip(starts, assigned, strict=True) if SPLITS[code] == "test"]
    assert len(test) >= round(test_share * len(starts))
    assert {start for start, code in zip(starts, assigned, strict=True) if SPLITS[code] != "test"}.isdisjoint(test)


def test_a_log_of_one_day_is_split_by_share(tmp_path: Path) -> None:
    log = [Row(user, item, 1, FIRST + 1_000 * user + item) for user in range(10) for item in (1, 2)]
    prepared = prepared_from(tmp_path, log, split={"test_share": 0.2, "val_share": 0.1})
    assert {name: counts["sessions"] for name, counts in prepared.manifest["splits"].items()} == {
        "train": 7,
        "val": 1,
        "test": 2,
    }
    times = {name: pl.read_parquet(prepared.folder / f"{name}.parquet")[TIME] for name in ("train", "val", "test")}
    assert times["train"].max() < times["val"].min()  # type: ignore[operator]
    assert times["val"].max() < times["test"].min()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (
            {"test_days": 1, "val_days": 0, "test_share": 0.1},
            ["data.split.test_share=0.1", "data.split.test_days=null"],
        ),
        ({"test_days": 1, "val_share": 0.1}, ["data.split.val_share=0.1", "data.split.test_days=null"]),
        ({"test_share": 0.6, "val_share": 0.4}, ["test_share + val_share is 1", "below 1"]),
        ({"val_days": 1}, ["set test_days and val_days, or test_share and val_share"]),
        ({"test_share": 1.5}, ["data.split.test_share=1.5", "in [0, 1)"]),
    ],
    ids=["both", "mixed", "all", "none", "over"],
)
def test_a_split_is_by_days_or_by_shares(raw: Path, split: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        prepare(config(raw, split=split), raw)
    assert [word for word in words if word not in str(error.value)] == []


def test_an_empty_split_names_the_days_of_the_log(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"test split is empty with data\.split\.test_days=0.* from 2013-10-22 to 2013-10-25"
    ):
        prepared_from(tmp_path, PAIRS, split={"test_days": 0, "val_days": 1})
    with pytest.raises(UserError, match=r"train split is empty .*short log, set .* data\.split\.test_share=0\.1"):
        prepared_from(tmp_path, PAIRS, split={"test_days": 9, "val_days": 1})


@pytest.mark.parametrize("timezone", ["America/New_York", "Asia/Kolkata", "Europe/Berlin"])
@pytest.mark.parametrize("window_days", [None, 4])
def test_days_are_those_of_the_time_zone(tmp_path: Path, timezone: str, window_days: int | None) -> None:
    zone = ZoneInfo(timezone)
    start = int(datetime(2013, 10, 24, tzinfo=zone).timestamp())  # Berlin's clocks go back on the 27th
    rng = random.Random(2)
    times = sorted(start + rng.randrange(9 * DAY) for _ in range(3_000))
    log = [Row(rng.randrange(20), rng.randrange(9), 1, time) for time in times]
    days = {"session": "day", "gap": None, "timezone": timezone, "window_days": window_days}
    prepared = prepared_from(tmp_path, log, split={"test_days": 1, "val_days": 1}, **days)
    local: dict[str, set[date]] = {}
    for name in ("train", "val", "test"):
        table = pl.read_parquet(prepared.folder / f"{name}.parquet")
        dates = {(row[0], datetime.fromtimestamp(row[1], zone).date()) for row in table[SESSION, TIME].iter_rows()}
        assert len(dates) == table[SESSION].n_unique()  # a session is within a day
        local[name] = {day for _, day in dates}
    last = datetime.fromtimestamp(times[-1], zone).date()
    assert (local["test"], local["val"]) == ({last}, {last - timedelta(days=1)})
    assert min(local["train"]) == (date(2013, 10, 24) if window_days is None else last - timedelta(days=3))


def test_numeric_contexts_of_a_reader_become_one_field(tmp_path: Path) -> None:
    rows = [(user, item, FIRST + user * 3_600 + DAY * at, 0) for user in range(8) for at in (0, 1) for item in (1, 2)]
    (tmp_path / "log.json").write_text(json.dumps([(*row[:3], row[2]) for row in rows]))
    reader = {"_target_": f"{__name__}.LogReader", "raw_dir": str(tmp_path)}
    contexts = {"single": ["career_level"], "multi": [], "numeric": {"age": 2}, "coverage": 0.75}
    prepared = prepare(config(tmp_path, reader=reader, session="given", gap=None, contexts=contexts), tmp_path)
    assert prepared.users()["context.age"].to_list() == [1] * 4 + [2] * 4
    assert prepared.dims["single_sizes"] == [3, 3]
    assert prepared.manifest["fields"] == 3


# --- the look at the log and its attributes ---


def test_the_profile_of_a_log_equals_counting(tmp_path: Path) -> None:
    log = [*PAIRS, *clicks((5, 1, 1), (5, 1, 1), (5, 1, 1), (5, 2, 1), (5, 2, 2), (6, 2, 3))]
    profile = prepared_from(tmp_path, log, timezone="Asia/Tokyo", window_days=3).manifest["log"]
    assert profile == {
        "first_day": "2013-10-22",
        "last_day": "2013-10-25",
        "last_second": FIRST + 7 * DAY // 2,
        "log_events": 10,
        "users": 4,
        "largest_user": "5",
        "largest_user_events": 5,
        "events": 8,
        "sessions": 4,
        "longest_session": 4,
        "shortest_session": 1,
        "single_event_sessions": 2,
        "tied_times": 4,
        "repeats": 2,
        "top_items": 1,
        "top_item": "1",
        "top_items_events": 4,
        "top_item_events": 4,
        "duplicates": 2,
    }


def remarks_of(counts: Mapping[str, Any], **settings: Any) -> set[str]:
    log = {
        **{"first_day": "2015-01-01", "last_day": "2015-02-01", "log_events": 1_000, "users": 50, "events": 1_000},
        **{"largest_user_events": 30, "sessions": 300, "longest_session": 20, "shortest_session": 1},
        **{"single_event_sessions": 50, "tied_times": 0, "duplicates": 0, "repeats": 9, "top_items": 2},
        "top_item_events": 40,
    }
    data = {"max_session_length": None, "duplicates": "keep", "repeats": "keep"}
    return set(log_remarks(log | counts, data | settings, date(2020, 1, 1)))


@pytest.mark.parametrize(
    ("count", "normal", "odd"),
    [
        ("first_day", "1990-01-01", "1989-12-31"),
        ("last_day", "2020-01-01", "2020-01-02"),
        ("largest_user_events", 199, 200),
        ("longest_session", 1_000, 1_001),
        ("shortest_session", 2, 20),
        ("single_event_sessions", 150, 151),
        ("tied_times", 500, 501),
        ("duplicates", 10, 11),
        ("repeats", 250, 251),
        ("top_item_events", 100, 101),
    ],
)
def test_what_looks_wrong_in_a_log_is_marked(count: str, normal: Any, odd: Any) -> None:
    assert remarks_of({count: normal}) == set()
    assert remarks_of({count: odd}) == {count.replace("shortest", "longest")}


def test_dropped_rows_and_cut_sessions_are_not_marked() -> None:
    assert remarks_of({"duplicates": 900, "repeats": 900}, duplicates="drop", repeats="drop") == set()
    assert remarks_of({"longest_session": 5_000}, max_session_length=200) == set()


def test_attributes_are_profiled_and_marked(tmp_path: Path) -> None:
    people = {
        user: {
            "career_level": str(user),  # a category per user
            "country": "de",
            "discipline_id": "3" if user < 10 else "NULL",
            "region": str(1 + user % 2),
            "jobroles": "1,2" if user < 40 else "0",
        }
        for user in range(50)
    }
    log = clicks(*[(user, item, at + 0.5) for user in range(50) for at in (0, 1) for item in (1, 2)])
    contexts = {"single": [*SINGLE, "discipline_id", "region", "user"], "multi": ["jobroles"], "coverage": 1.0}
    prepared = prepare(config(write_xing(tmp_path, log, people), contexts=contexts), tmp_path)
    settings = prepared.manifest["config"]["contexts"]
    profiles = summarize_attributes(prepared.users(), prepared.vocabulary(), settings, 100)
    assert [profile["name"] for profile in profiles] == ["jobroles", *contexts["single"]]
    counts = {p["name"]: (p["kind"], p["categories"], p["known"], p["unknown"]) for p in profiles}
    assert counts["jobroles"] == ("multi", 2, 40, 10)
    assert counts["discipline_id"] == ("single", 1, 10, 40)
    assert counts["career_level"] == ("single", 49, 49, 1)  # 0 is unknown
    assert {p["name"]: p["top"] for p in profiles}["region"] == [["1", 0.5], ["2", 0.5]]
    marked = {"career_level": "an id", "country": "the same for all", "discipline_id": "unknown for most"}
    remarks = attribute_remarks(profiles)
    assert remarks.keys() == marked.keys()
    assert all(words in remarks[name] for name, words in marked.items())


@pytest.mark.parametrize(("unknown", "marked"), [(5, False), (6, True)])
def test_an_attribute_is_marked_where_most_are_unknown(unknown: int, marked: bool) -> None:
    profile = {"name": "age", "kind": "single", "categories": 2, "known": 5, "unknown": unknown}
    assert bool(attribute_remarks([profile])) == marked


@pytest.mark.parametrize(("owner", "section"), [("user", "data.contexts"), ("item", "data.item_contexts")])
def test_an_attribute_like_an_id_names_the_setting_of_its_owner(owner: str, section: str) -> None:
    profile = {"name": "price", "kind": "single", "categories": 20, "known": 20, "unknown": 0}
    assert attribute_remarks([profile], owner)["price"].endswith(
        f"is it an id? Numbers and dates belong in {section}.numeric"
    )
    assert bool(attribute_remarks([profile | {"name": "user"}], owner)) == (owner == "item")


def test_duplicates_are_of_one_session_however_many_items_there_are() -> None:
    events = pl.DataFrame({SESSION_ID: [0, 0, 1, 1], TIME: 0, ITEM: [1, 1 << 16, 0, 2]}).cast(pl.UInt32)
    assert count_duplicates(events) == 0
    assert count_duplicates(events.with_columns(pl.lit(7, pl.UInt32).alias(ITEM))) == 2


@pytest.mark.parametrize(("active", "marked"), [([[3], [4], [3, 4]], False), ([[3], [4], [0, 4]], True)])
def test_lists_of_at_most_one_value_are_marked(active: list[list[int]], marked: bool) -> None:
    values = pl.DataFrame({"attribute": "tags", "category": ["a", "b"], "code": [3, 4], "events": [2, 2]})
    contexts = {"single": [], "multi": ["tags"], "numeric": None}
    (profile,) = summarize_attributes(pl.DataFrame({"active": active}), values, contexts, 4)
    expected = {"tags": "no item has two values: is data.list_separator right?"}
    assert attribute_remarks([profile], "item") == (expected if marked else {})


# --- the folder ---


def files_of(prepared: PreparedDataset, pattern: str = "*") -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(prepared.folder.glob(pattern))}


def test_preparing_twice_gives_identical_bytes(tmp_path: Path) -> None:
    write_xing(tmp_path, random_log(5, 40_000, users=3_000, items=500, days=20), random_profiles(5, users=3_000))
    first, second = (prepare(config(tmp_path), tmp_path / name) for name in ("one", "two"))
    assert first.folder.name == second.folder.name
    tables = files_of(first, "*.parquet")
    assert len(tables) == 7
    assert tables == files_of(second, "*.parquet")
    assert first.manifest | {"seconds": None} == second.manifest | {"seconds": None}


def test_a_folder_is_reused_while_nothing_changes(raw: Path) -> None:
    first = prepare(config(raw), raw)
    before = {file.name: (file.stat().st_mtime_ns, file.stat().st_ino) for file in first.folder.iterdir()}
    messages: list[str] = []
    assert prepare(config(raw), raw, messages.append) == first
    assert {file.name: (file.stat().st_mtime_ns, file.stat().st_ino) for file in first.folder.iterdir()} == before
    assert [text.split(",")[0] for text in messages] == ["hashing interactions.csv", "hashing users.csv"]


def test_another_source_of_an_own_reader_gives_another_folder(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "own_reader.py"
    module.write_text("from arnn_lightning.readers.xing import XingReader\n\nclass Own(XingReader):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = config(raw)
    settings["reader"] = settings["reader"] | {"_target_": "own_reader.Own"}
    first = prepare(settings, raw)
    assert prepare(settings, raw) == first
    module.write_text(module.read_text() + "\n# now different\n")
    assert prepare(settings, raw).folder != first.folder


def test_any_option_of_an_own_reader_gives_another_folder(tmp_path: Path) -> None:
    """Whatever its name: `events` is no path here."""
    (tmp_path / "log.json").write_text(json.dumps([(*row[:2], row.time, row.time // DAY) for row in PAIRS]))
    reader = {"_target_": f"{__name__}.RepeatingReader", "raw_dir": str(tmp_path)}
    for times in (1, 2):
        prepared = prepare(config(tmp_path, reader=reader | {"events": times}, contexts={}), tmp_path)
        assert prepared.manifest["log"]["log_events"] == times * len(PAIRS)


def test_another_order_of_numeric_attributes_gives_another_folder(tmp_path: Path) -> None:
    """`n_attributes` keeps the first ones."""
    (tmp_path / "log.json").write_text(json.dumps([(*row[:2], row.time, row.time // DAY) for row in PAIRS]))
    reader = {"_target_": f"{__name__}.LogReader", "raw_dir": str(tmp_path)}
    for names in (["age", "height"], ["height", "age"]):
        contexts = {"numeric": dict.fromkeys(names, 2)}
        prepared = prepare(config(tmp_path, reader=reader, contexts=contexts), tmp_path)
        assert f"context.{names[0]}" in prepared.user_contexts(1)[0].columns


def test_a_file_that_grows_while_it_is_read_is_an_error(raw: Path) -> None:
    def append(text: str) -> None:
        if text == "coding and writing":
            with (raw / "interactions.csv").open("a") as file:
                file.write("1\t1\t2\t1\n")

    with pytest.raises(UserError, match=r"interactions\.csv changed while it was read; prepare it again"):
        prepare(config(raw), raw, append)
    assert [path for path in (raw / "prepared").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("name", ["interactions.csv", "users.csv"])
def test_another_raw_file_gives_another_folder(raw: Path, name: str) -> None:
    first = prepare(config(raw), raw)
    with (raw / name).open("a") as file:
        file.write("1\t1\t2\t1\n" if name == "interactions.csv" else "999" + "\t0" * 11 + "\n")
    second = prepare(config(raw), raw)
    assert first.folder != second.folder
    assert first.manifest["raw"][name] != second.manifest["raw"][name]
    assert {folder.name for folder in (first.folder, second.folder)} <= {
        path.name for path in (raw / "prepared").iterdir()
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"window_days": 5},
        {"session": "day"},
        {"gap": "30m"},
        {"items": items_of(0.5)},
        {"items": items_of(1.0, "train")},
        {"items": items_of(1.0, min_events=2)},
        {"items": items_of(1.0, most_popular=3)},
        {"min_session_length": 3},
        {"max_session_length": 3},
        {"duplicates": "drop"},
        {"repeats": "drop"},
        {"timezone": "Asia/Tokyo"},
        {"split": {"test_days": 2, "val_days": 0}},
        {"split": {"test_days": 1, "val_days": 1}},
        {"contexts": {"single": ["country"], "multi": list(MULTI), "coverage": 0.75, "assignment": "own"}},
        {"contexts": {"single": list(SINGLE), "multi": [], "coverage": 0.75, "assignment": "own"}},
        {"contexts": {"single": list(SINGLE), "multi": list(MULTI), "coverage": 0.5, "assignment": "own"}},
    ],
    ids=lambda changes: ",".join(f"{key}={value}" for key, value in changes.items()),
)
def test_another_setting_gives_another_folder(raw: Path, changes: dict[str, Any]) -> None:
    assert prepare(config(raw), raw).folder != prepare(config(raw, **changes), raw).folder


@pytest.mark.parametrize("assignment", ["per_session", "permuted", "unknown"])
def test_assignment_and_n_attributes_do_not_change_the_folder(raw: Path, assignment: str) -> None:
    changed = config(raw) | {
        "contexts": {**config(raw)["contexts"], "assignment": assignment, "n_attributes": 1, "dropout": 0.1}
    }
    assert prepare(config(raw), raw) == prepare(changed, raw)


def test_the_path_of_the_raw_files_does_not_change_the_folder(raw: Path, tmp_path: Path) -> None:
    first = prepare(config(raw), tmp_path)
    moved = raw.rename(tmp_path / "moved")
    assert prepare(config(moved), tmp_path) == first


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_exception_in_the_middle_leaves_no_folder(raw: Path, error: type[BaseException]) -> None:
    def interrupt(text: str) -> None:
        if text == "coding and writing":
            raise error

    with pytest.raises(error):
        prepare(config(raw), raw, interrupt)
    assert [path for path in (raw / "prepared").iterdir() if path.is_dir()] == []
    assert prepare(config(raw), raw).manifest["name"] == "xing"


def test_an_error_after_the_splits_are_written_leaves_no_folder(raw: Path) -> None:
    contexts = {"single": ["shoe_size"], "multi": [], "coverage": 0.75, "assignment": "own"}
    with pytest.raises(UserError, match="no attribute 'shoe_size'"):
        prepare(config(raw, contexts=contexts), raw)
    assert [path for path in (raw / "prepared").iterdir() if path.is_dir()] == []


def test_files_of_a_killed_process_are_removed(raw: Path, tmp_path: Path) -> None:
    done = prepare(config(raw), tmp_path / "elsewhere")
    left = tmp_path / "prepared" / f".{done.manifest['name']}.tmp"
    left.mkdir(parents=True)
    (left / "half.parquet").write_bytes(b"PAR1")
    prepared = prepare(config(raw), tmp_path)
    assert files_of(prepared, "*.parquet") == files_of(done, "*.parquet")
    assert not left.exists()


@pytest.mark.parametrize("name", ["train.parquet", "contexts.parquet", "manifest.json"])
@pytest.mark.parametrize("cut", [True, False], ids=["cut", "missing"])
def test_a_damaged_data_set_is_prepared_again(
    name: str, cut: bool, raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = prepare(config(raw), tmp_path)
    before, file = files_of(prepared, "*.parquet"), prepared.folder / name
    if cut:
        file.write_bytes(file.read_bytes()[:-9])
    else:
        file.unlink()
    assert prepare(config(raw), tmp_path).folder == prepared.folder
    assert files_of(prepared, "*.parquet") == before
    assert name in caplog.text
    assert "it is prepared again" in caplog.text


def test_V15_the_manifest_contains_the_origin_of_the_data(raw: Path) -> None:
    data = config(raw, split={"test_days": 1, "val_days": 2})
    prepared = prepare(data, raw)
    manifest = prepared.manifest
    assert manifest["raw"] == {
        name: hashlib.sha256((raw / name).read_bytes()).hexdigest() for name in ("interactions.csv", "users.csv")
    }
    assert manifest["config"] == {
        "reader": {"_target_": data["reader"]["_target_"], "item_single": [], "item_multi": []},
        "item_contexts": data["item_contexts"],
        "contexts": {key: value for key, value in data["contexts"].items() if key != "assignment"},
        **{key: data[key] for key in ("window_days", "session", "gap", "items", "min_session_length", "split")},
        **NO_CUTS,
        "held_out_user_share": 0.0,
    }
    assert (manifest["name"], manifest["layout"]) == ("xing", FORMAT_VERSION)
    assert manifest["version"] == arnn_lightning.__version__
    assert [counts["step"] for counts in manifest["funnel"]] == [
        "rows in the file",
        "events kept by the reader",
        "in the time window",
        "of popular items",
        "in sessions of 2 events or more",
        "of items seen in training",
        "in sessions still long enough",
    ]
    assert all(set(counts) == {"step", "events", "sessions", "users", "items"} for counts in manifest["funnel"])
    assert sum(counts["events"] for counts in manifest["splits"].values()) == manifest["funnel"][-1]["events"]
    assert manifest["fields"] == len(manifest["dims"]["single_sizes"]) + manifest["dims"]["n_binary"] + 1
    assert set(manifest["seconds"]) == {"hash", "read", "prepare"}
    assert prepared.manifest_sha256 == hashlib.sha256((prepared.folder / "manifest.json").read_bytes()).hexdigest()


def test_two_processes_that_prepare_at_once_agree(raw: Path, tmp_path: Path) -> None:
    script = """
import json, sys, time
from pathlib import Path
from arnn_lightning.preprocessing.dataset import prepare
data, root, own, other = json.loads(sys.argv[1]), *map(Path, sys.argv[2:])
own.touch()
while not other.exists():
    time.sleep(0.01)
sys.stdout.write(str(prepare(data, root).folder))
"""
    ready = [tmp_path / "first", tmp_path / "second"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, json.dumps(config(raw)), str(tmp_path), str(own), str(other)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own, other in (ready, ready[::-1])
    ]
    outputs = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    (folder,) = {Path(out) for out, _ in outputs}
    assert [path for path in (tmp_path / "prepared").iterdir() if path.is_dir()] == [folder]
    assert files_of(PreparedDataset(folder), "*.parquet") == files_of(prepare(config(raw), raw), "*.parquet")


def test_two_settings_of_one_data_set_may_be_prepared_at_once(raw: Path, tmp_path: Path) -> None:
    both = [config(raw, gap=gap) for gap in ("1h", "10s")]
    with ThreadPoolExecutor() as pool:
        datasets = list(pool.map(lambda data: prepare(data, tmp_path), both))
    for data, prepared in zip(both, datasets, strict=True):
        alone = prepare(data, tmp_path / data["gap"])
        assert alone.folder.name == prepared.folder.name
        assert files_of(prepared, "*.parquet") == files_of(alone, "*.parquet")
    assert datasets[0].folder != datasets[1].folder


def test_a_killed_process_leaves_no_data_set_and_no_lock(raw: Path, tmp_path: Path) -> None:
    script = """
import json, sys, time
from pathlib import Path
from arnn_lightning.preprocessing.dataset import prepare

def progress(text):
    if text == "coding and writing":
        print("now", flush=True)
        time.sleep(60)

prepare(json.loads(sys.argv[1]), Path(sys.argv[2]), progress)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(config(raw)), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert all(path.name.startswith(".") for path in (tmp_path / "prepared").iterdir() if path.is_dir())
    prepared = prepare(config(raw), tmp_path)
    assert [path for path in (tmp_path / "prepared").iterdir() if path.is_dir()] == [prepared.folder]
    assert files_of(prepared, "*.parquet") == files_of(prepare(config(raw), raw), "*.parquet")


@pytest.mark.slow
def test_the_number_of_threads_does_not_change_a_byte(tmp_path: Path) -> None:
    overrides = ["task=generate", "schema=tmall", "events=200000", f"output={tmp_path / 'raw'}"]
    command = [sys.executable, "-m", "arnn_lightning"]
    subprocess.run([*command, *overrides, f"hydra.run.dir={tmp_path / 'out'}"], check=True, capture_output=True)
    written = []
    for threads in ("1", "5"):
        root = tmp_path / threads
        overrides = ["task=prepare", "data=tmall", f"data.raw_dir={tmp_path / 'raw'}", f"paths.data={root}"]
        environment = os.environ | {"POLARS_MAX_THREADS": threads}
        done = [*command, *overrides, f"hydra.run.dir={root / 'out'}"]
        subprocess.run(done, check=True, capture_output=True, env=environment)
        (folder,) = (path for path in (root / "prepared").iterdir() if path.is_dir())
        written.append(files_of(PreparedDataset(folder), "*.parquet"))
    assert len(written[0]) == 7
    assert written[0] == written[1]


# --- errors ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": {"test_days": 0, "val_days": 0}}, ["test split", "data.split.test_days=0"]),
        ({"split": {"test_days": 20, "val_days": 1}}, ["data.split.test_days=20"]),
        ({"min_session_length": 1}, ["data.min_session_length=1", "at least 2"]),
        (
            {"max_session_length": 4, "min_session_length": 3},
            ["data.max_session_length=4", "at least 5", "data.min_session_length=3"],
        ),
        ({"gap": "1x"}, ["data.gap=1x", "30m"]),
        ({"gap": None}, ["data.gap=null"]),
        ({"session": "week"}, ["data.session=week", "gap, day, given"]),
        ({"session": "given"}, ["data.session=given", "does not define sessions"]),
        ({"items": items_of(1.0, "test")}, ["data.items.popularity_scope=test", "window, train"]),
        ({"items": items_of(0.0)}, ["data.items.popularity_coverage=0.0", "(0, 1]"]),
        ({"items": items_of(1.0, most_popular=0)}, ["data.items.most_popular=0", "at least 1"]),
        ({"items": items_of(1.0, min_events=0)}, ["data.items.min_events=0", "at least 1"]),
        ({"contexts": {"single": [], "multi": [], "coverage": 1.5}}, ["data.contexts.coverage=1.5", "(0, 1]"]),
        ({"contexts": {"numeric": {"age": [3, 1]}}}, ["data.contexts.numeric.age=[3,1]", "ascending order"]),
        (
            {"items": items_of(1.0, min_events=10_000)},
            ["interactions.csv", "no events left", "'of popular items'; change data.items; "],
        ),
        (
            {"min_session_length": 1_000},
            ["no events left", "'in sessions of 1000 events or more'; change data.min_session_length; "],
        ),
    ],
    ids=[
        "no test days",
        "only test days",
        "short sessions",
        "short pieces",
        "gap 1x",
        "no gap",
        "week",
        "given",
        "over",
        "no coverage",
        "no items",
        "no events",
        "too many contexts",
        "edges",
        "items",
        "long",
    ],
)
def test_invalid_or_too_strict_settings_are_named(raw: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        prepare(config(raw, **changes), raw)
    assert [word for word in words if word not in str(error.value)] == []
    assert "\n" not in str(error.value)


def test_events_without_sessions_name_the_number_of_files_and_the_gap(tmp_path: Path) -> None:
    for day in range(3):
        (tmp_path / f"{day}.csv").write_text(f"user,item,time\nu,a,{FIRST + day * DAY}\n")
    split = "data.split={test_days: 1, val_days: null}"
    composed = compose_config("data=tabular", f"data.events={tmp_path}/*.csv", "data.items.min_events=1", split)
    words = (
        r"0\.csv and 2 more files: no events left after step 'in sessions of 2 .*; change data\.session or data\.gap;"
    )
    with pytest.raises(UserError, match=words):
        prepare(OmegaConf.to_container(composed.data, resolve=True), tmp_path)  # type: ignore[arg-type]


def test_a_window_longer_than_the_log_is_the_log(raw: Path) -> None:
    whole, longer = (prepare(config(raw, window_days=days), raw) for days in (None, 10**6))
    assert files_of(whole, "*.parquet") == files_of(longer, "*.parquet")


def test_empty_validation_split_is_an_error_with_val_days(tmp_path: Path) -> None:
    assert prepared_from(tmp_path, PAIRS).manifest["splits"]["val"]["events"] == 0
    with pytest.raises(UserError, match=r"val split is empty .*data\.split\.val_days=1"):
        prepared_from(tmp_path, PAIRS, split={"test_days": 1, "val_days": 1})


@pytest.mark.parametrize("gap", ["2h", "120m", "7200s", "7200", 7200])
def test_a_gap_may_be_written_in_any_unit(tmp_path: Path, gap: str | int) -> None:
    log = [*PAIRS, *(Row(1, item, 1, FIRST + late) for item, late in [(1, 0), (2, 7_200), (1, 14_401), (2, 14_402)])]
    assert sessions_of(prepared_from(tmp_path, log, gap=gap), "train") == [[1, 2], [1, 2], [1, 2]]


def test_digits_of_a_gap_are_ascii() -> None:
    with pytest.raises(UserError, match=r"data\.gap=\u00b2m: not a duration"):
        parse_duration("\u00b2m")


NULLABLE = [key for key, rule in RULES.items() if re.fullmatch(r"data\.(?!raw_dir)[\w.]+", key) and rule.accepts(None)]
NULLABLE += [f"data.columns.{name}" for name in ("user", "item", "time", "session", "user_in_users", "title")]


@pytest.mark.parametrize("key", NULLABLE)
def test_null_is_a_value_or_refused_in_one_line(tmp_path: Path, key: str) -> None:
    rows = [f"{user},{item},{FIRST + DAY * day + item}" for user in range(3) for day in range(6) for item in range(3)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time", *rows]))
    composed = compose_config("data=tabular", f"data.events={tmp_path}/log.csv", "data.items.min_events=1")
    OmegaConf.update(composed, key, None)
    check_settings(composed, [], [])
    data: Any = OmegaConf.to_container(composed.data, resolve=True)
    refusal = None
    try:
        prepare(data, tmp_path)
    except UserError as error:
        refusal = str(error)
    assert refusal is None or (key.rpartition(".")[2] in refusal and "None" not in refusal)


def test_validation_days_of_null_are_none(tmp_path: Path) -> None:
    log = clicks(*((user, item, day + item / 100) for user in range(3) for day in range(4) for item in range(3)))
    raw = write_xing(tmp_path, log, {})
    splits = [{"test_days": 1, "val_days": days} for days in (None, 0)]
    manifests = [prepare(config(raw, split=split), tmp_path).manifest for split in splits]
    assert manifests[0]["splits"] == manifests[1]["splits"]
    assert manifests[0]["splits"]["val"]["sessions"] == 0


@pytest.mark.parametrize("name", ["xing", "tmall"])
def test_raw_files_need_a_folder(tmp_path: Path, name: str) -> None:
    data: Any = OmegaConf.to_container(compose_config(f"data={name}", "data.raw_dir=null").data, resolve=True)
    with pytest.raises(UserError, match=r"^data\.raw_dir=null: must be the folder"):
        prepare(data, tmp_path)

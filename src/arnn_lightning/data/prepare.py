"""Raw data -> prepared data set: the funnel of paper 4.2, written once and reused while its manifest matches.

A prepared data set is a folder: ``manifest.json``, ``train.parquet``, ``val.parquet``, ``test.parquet`` (session,
user, item, time: integer codes, sorted by session start, then by position), ``items.parquet`` (item, id),
``users.parquet`` (user, id, contexts) and ``contexts.parquet`` (the categories behind the context codes).
"""

import hashlib
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from filelock import FileLock

from arnn_lightning import __version__
from arnn_lightning.data import contexts, events
from arnn_lightning.data.events import ITEM, SESSION, TIME, USER, RawData, Reader
from arnn_lightning.data.window import Sessions
from arnn_lightning.errors import UserError
from arnn_lightning.instantiate import instantiate

LAYOUT = 2  # raised whenever the same configuration would write other bytes
SPLITS = ("train", "val", "test")
DAY = 86_400
ROW_GROUP = 1 << 18  # stated, so that the files' bytes do not depend on the number of threads
PIECE = 1 << 22  # rows
PATHS = ("raw_dir", "events", "users", "titles")  # settings of readers that say where files lie, not what they mean
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": DAY}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A prepared data set on disk."""

    folder: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_bytes())
        return manifest

    @property
    def manifest_sha256(self) -> str:
        return hashlib.sha256((self.folder / "manifest.json").read_bytes()).hexdigest()

    @property
    def dims(self) -> dict[str, Any]:
        """The sizes that models measure from data: the ``dims`` block of their configs."""
        dims: dict[str, Any] = self.manifest["dims"]
        return dims

    def sessions(self, split: str) -> Sessions:
        frame = pl.read_parquet(self.folder / f"{split}.parquet", columns=[SESSION, USER, ITEM])
        session = frame[SESSION].to_numpy()
        first = np.flatnonzero(np.diff(session, prepend=-1))
        return Sessions(
            item=frame[ITEM].to_numpy().astype(np.int64),
            offset=np.append(first, len(session)).astype(np.int64),
            session=session[first].astype(np.int64),
            user=frame[USER].to_numpy()[first].astype(np.int64),
        )

    def users(self) -> pl.DataFrame:
        return pl.read_parquet(self.folder / "users.parquet")

    def told(self, shown: int | None) -> tuple[pl.DataFrame, dict[str, Any]]:
        """Users and sizes as models see them that are told ``shown`` attributes; None for all."""
        if shown is None:
            return self.users(), self.dims
        vocabulary = pl.read_parquet(self.folder / "contexts.parquet")
        return contexts.show(self.users(), self.dims, vocabulary, self.manifest["config"]["contexts"], shown)


def prepare(data: Mapping[str, Any], root: Path, progress: Progress = lambda _: None) -> Prepared:
    """Prepares the data set of config ``data`` under ``root``/prepared, or reuses what is there.

    The folder's name carries a hash of the raw files' sha256 and of the configuration, so changed files or settings
    give another folder. Many processes may call this at once: one prepares, the others wait; a dead one blocks nobody.

    Raises:
        UserError: raw files that are missing or cannot be read, or settings that leave nothing to learn from.
    """
    _check(data)
    reader: Reader = instantiate(data["reader"])
    files = reader.files()
    started = time.perf_counter()
    raw = _hashes(files, progress)
    hashed = time.perf_counter() - started
    config = _preparation_config(data)
    key = json.dumps([LAYOUT, raw, config], sort_keys=True).encode()
    folder = root / "prepared" / f"{data['name']}-{hashlib.sha256(key).hexdigest()[:10]}"
    if (folder / "manifest.json").is_file():
        return Prepared(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    progress("waiting for another process that prepares this data set")
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "manifest.json").is_file():
            unfinished = folder.with_name(f".{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)  # one that has lost its manifest
            unfinished.mkdir()
            manifest = {"raw": raw, "config": config, "seconds": {"hash": round(hashed, 3)}}
            try:
                _build(reader, next(iter(files.values())), data, unfinished, manifest, progress)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            unfinished.replace(folder)
    return Prepared(folder)


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


def _preparation_config(data: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the data config that decides what is written: no paths, and no settings of the training."""
    reader = {key: value for key, value in data["reader"].items() if key not in PATHS}
    fields = {key: value for key, value in data["contexts"].items() if key not in ("draw", "shown")}
    kept = ("window_days", "session", "gap", "items", "min_session_length", "split", "held_out_users")
    steps = {key: data[key] for key in kept}
    return {"reader": reader, "contexts": fields, **steps}


def _check(data: Mapping[str, Any]) -> None:
    """Raises UserError for a setting of the wrong kind."""
    whole = {
        "data.min_session_length": data["min_session_length"],
        "data.items.min_events": data["items"]["min_events"],
    }
    whole |= {f"data.split.{name}": days for name, days in data["split"].items()}
    if data["window_days"] is not None:
        whole["data.window_days"] = data["window_days"]
        if isinstance(data["window_days"], int) and data["window_days"] < 1:
            raise UserError(f"data.window_days={data['window_days']}: at least 1, or null for the whole log")
    for name, value in whole.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UserError(f"{name}={value}: must be a whole number, not negative")
    share = data["held_out_users"]
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share < 1:
        raise UserError(f"data.held_out_users={share}: a share of the users, in [0, 1)")
    for name in ("items", "contexts"):
        coverage = data[name]["coverage"]
        if not isinstance(coverage, int | float) or not 0 < coverage <= 1:
            raise UserError(f"data.{name}.coverage={coverage}: must lie in (0, 1]")
    attributes: list[str] = []
    for kind in ("single", "multi"):
        names = data["contexts"][kind]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"data.contexts.{kind}={names}: must be a list of names, as in [country,age]")
        attributes += names
    twice = [name for name, times in Counter(attributes).items() if times > 1]
    if twice:
        raise UserError(f"data.contexts: attribute {twice[0]!r} is named more than once")
    if not re.fullmatch(r"[\w.-]+", str(data["name"])):
        raise UserError(f"data.name={data['name']}: letters, digits, dots and dashes only, since it names folders")


def _hashes(files: Mapping[str, Path], progress: Progress) -> dict[str, str]:
    """sha256 of every file; an archive that stands for several is read once."""
    hashes: dict[Path, str] = {}
    for file in dict.fromkeys(files.values()):
        progress(f"hashing {file.name}, {file.stat().st_size / 1e6:,.0f} MB")
        with file.open("rb") as opened:
            hashes[file] = hashlib.file_digest(opened, "sha256").hexdigest()
    return {name: hashes[file] for name, file in files.items()}


def _build(
    reader: Reader, source: Path, data: Mapping[str, Any], folder: Path, manifest: dict[str, Any], progress: Progress
) -> None:
    started = time.perf_counter()
    funnel: list[dict[str, Any]] = []

    def count(step: str, frame: pl.DataFrame, sessions: int | None = None) -> pl.DataFrame:
        counts = {
            "events": frame.height,
            "sessions": len(_starts(frame["sid"].to_numpy())) if "sid" in frame.columns else sessions,
            "users": int(np.count_nonzero(_tally(frame[USER], len(user_ids)))),
            "items": int(np.count_nonzero(_tally(frame[ITEM], len(item_ids)))),
        }
        funnel.append({"step": step, **counts})
        progress(f"{step}: {frame.height:,} events")
        if frame.is_empty():
            raise UserError(f"{source}: no event is left after the step {step!r}; funnel: {_funnel_text(funnel)}")
        return frame

    def require(split: str, frame: pl.DataFrame) -> None:
        if not (frame["split"] == SPLITS.index(split)).any() and (split != "val" or data["split"]["val_days"]):
            days = ", ".join(f"data.split.{key}={value}" for key, value in data["split"].items())
            raise UserError(f"{source}: the {split} split is empty with {days}; funnel: {_funnel_text(funnel)}")

    progress(f"reading {source.name}")
    raw, frame, user_ids, item_ids = _read(reader, source)
    funnel.append({"step": "rows in the file", "events": raw.rows, "sessions": None, "users": None, "items": None})
    progress(f"rows in the file: {raw.rows:,}")
    read = time.perf_counter()
    frame = count("events of the modelled kind", frame, _count_sessions(frame, data["session"], data["gap"]))
    log_items = _tally(frame[ITEM], len(item_ids)) if data["items"]["counted_over"] == "log" else None

    frame = _window(frame, data["window_days"])
    frame = count("in the time window", _mark_sessions(frame, data["session"], data["gap"]))
    # Once, before anything is dropped: a later look would let the splits move with what the steps below leave.
    frame = _assign_split(frame, data["split"])
    for name in SPLITS:
        require(name, frame)
    if data["held_out_users"]:
        frame = count("of held-out users after training", _hold_out(frame, data["held_out_users"], len(user_ids)))
    frame = count("of popular items", _popular_items(frame, data["items"], len(item_ids), log_items))
    shortest = int(data["min_session_length"])
    if shortest < 2:
        raise UserError(
            f"data.min_session_length={shortest}: a session of one event has nothing to predict; at least 2"
        )
    frame = count(f"in sessions of {shortest} events or more", _long_sessions(frame, shortest))
    for name in SPLITS:
        require(name, frame)
    in_train = _tally(frame.filter(pl.col("split") == 0)[ITEM], len(item_ids)) > 0
    frame = count("of items seen in training", frame.filter(pl.Series(in_train[frame[ITEM].to_numpy()])))
    frame = count("in sessions still long enough", _long_sessions(frame, shortest))

    progress("coding and writing")
    coded, users, items = _encode(frame, user_ids, item_ids)
    del frame
    splits: dict[str, dict[str, int]] = {}
    train_events = pl.Series("events", np.zeros(len(users), np.int64))
    for code, name in enumerate(SPLITS):
        require(name, coded)
        part = coded.filter(pl.col("split") == code).drop("split")
        splits[name] = {
            "events": part.height,
            "sessions": part[SESSION].n_unique(),
            "users": int(np.count_nonzero(_tally(part[USER], len(users)))),
            "items": int(np.count_nonzero(_tally(part[ITEM], len(items)))),
        }
        if name == "train":
            train_events = pl.Series("events", _tally(part[USER], len(users)))
        part.write_parquet(folder / f"{name}.parquet", row_group_size=ROW_GROUP)
    in_log = raw.users.filter(pl.col(USER).is_in(users.implode())).height
    attributes = pl.DataFrame({USER: users}).join(raw.users, on=USER, how="left", maintain_order="left")
    encoded = contexts.encode(
        attributes,
        train_events,
        data["contexts"]["single"],
        data["contexts"]["multi"],
        float(data["contexts"]["coverage"]),
    )
    catalogue = pl.DataFrame({"item": pl.int_range(len(items), dtype=pl.UInt32, eager=True), "id": items})
    if raw.items is not None:
        catalogue = catalogue.join(raw.items.rename({ITEM: "id"}), on="id", how="left", maintain_order="left")
    catalogue.write_parquet(folder / "items.parquet")
    people = pl.DataFrame({"user": pl.int_range(len(users), dtype=pl.UInt32, eager=True), "id": users})
    pl.concat([people, encoded.table], how="horizontal").write_parquet(folder / "users.parquet")
    encoded.vocabulary.write_parquet(folder / "contexts.parquet")
    finished = time.perf_counter()
    manifest["seconds"] |= {"read": round(read - started, 3), "prepare": round(finished - read, 3)}
    manifest |= {
        "name": data["name"],
        "layout": LAYOUT,
        "version": __version__,
        "funnel": funnel,
        "splits": splits,
        "users": {"all": len(users), "without_profile": len(users) - in_log},
        "fields": len(encoded.single_sizes) + encoded.n_binary + 1,
        "dims": {
            "n_items": len(items),
            "single_sizes": encoded.single_sizes,
            "n_binary": encoded.n_binary,
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _funnel_text(funnel: list[dict[str, Any]]) -> str:
    return ", ".join(f"{step['step']} {step['events']:,}" for step in funnel)


def _read(reader: Reader, source: Path) -> tuple[RawData, pl.DataFrame, pl.Series, pl.Series]:
    """The raw tables but for the events, the events with ids as codes, and the sorted ids of users and items.

    Everything after works on codes: they are small, whatever the ids are, and count with ``bincount``.
    """
    raw = events.check(reader.read(), source)
    with ThreadPoolExecutor() as pool:
        (user, user_ids), (item, item_ids) = pool.map(_codes, (raw.events[USER], raw.events[ITEM]))
    frame = pl.DataFrame({USER: user, ITEM: item, TIME: raw.events[TIME].rechunk()})
    if SESSION in raw.events.columns:
        frame = frame.with_columns(_codes(raw.events[SESSION])[0].alias(SESSION))
    return replace(raw, events=raw.events.clear()), frame, user_ids, item_ids


def _codes(ids: pl.Series) -> tuple[pl.Series, pl.Series]:
    """The place of every id among the sorted distinct ids (UInt32), and those."""
    low, high = cast(Any, ids.min()), cast(Any, ids.max())
    if not ids.dtype.is_integer() or high >= 2**63 or high - low > 4 * len(ids) + 1_000_000:
        return ids.rank("dense") - 1, ids.unique().sort()
    # Ids that lie close together need no sorting: a table over their range tells which are there.
    there = np.zeros(high - low + 1, bool)
    for piece in _pieces(ids):
        there[piece.astype(np.int64) - low] = True
    code = (np.cumsum(there) - 1).astype(np.uint32)
    coded = np.concatenate([code[piece.astype(np.int64) - low] for piece in _pieces(ids)])
    return pl.Series(coded), pl.Series(np.flatnonzero(there) + low, dtype=ids.dtype)


def _pieces(column: pl.Series) -> Iterator[np.ndarray]:
    """A column in pieces, so that what is computed from it need not fit the memory once more."""
    return (column.slice(start, PIECE).to_numpy() for start in range(0, len(column), PIECE))


def _tally(codes: pl.Series, size: int) -> np.ndarray:
    """(size,) how often each code occurs."""
    total = np.zeros(size, np.int64)
    for piece in _pieces(codes):
        total += np.bincount(piece, minlength=size)
    return total


def _window(frame: pl.DataFrame, days: int | None) -> pl.DataFrame:
    """The last ``days`` calendar days (UTC), the day of the last event included; None keeps everything."""
    if days is None:
        return frame
    last = cast(int, frame[TIME].max()) // DAY
    return frame.filter(pl.col(TIME) >= (last - days + 1) * DAY)


def _rule(frame: pl.DataFrame, session: str, gap: str | int) -> tuple[pl.Expr, int]:
    """(where, pause): two events of a user, one after the other, are of one session if ``where`` grows by no more.

    ``gap``: a pause longer than ``gap`` within a user starts a session (4.2.2). ``day``: a new calendar day (UTC) does.
    ``given``: the reader's own sessions.
    """
    if session == "given" and SESSION not in frame.columns:
        raise UserError("data.session=given: this data set has no sessions of its own; choose gap or day")
    places = {"given": pl.col(SESSION), "gap": pl.col(TIME), "day": pl.col(TIME).floordiv(DAY)}
    if session not in places:
        raise UserError(f"data.session={session}: choose gap, day or given")
    return places[session].cast(pl.Int64), seconds(gap) if session == "gap" else 0


def _by_user(frame: pl.DataFrame, where: pl.Expr, pause: int) -> pl.Expr:
    """One number that sorts as (user, where) do; from a user to the next it grows by more than ``pause``."""
    low, high = frame.lazy().select(where.min(), where.max().alias("high")).collect().row(0)
    span = high - low + pause + 1
    users = cast(int, frame[USER].max()) + 1
    if users * span >= 2**63:
        raise UserError(f"event times reach from {low} to {high}: these are no unix seconds; mend the time column")
    place: pl.Expr = pl.col(USER).cast(pl.Int64) * span + (where - low)
    return place.cast(pl.UInt32) if users * span < 2**32 else place  # half as wide, and sorted in half the time


def _count_sessions(frame: pl.DataFrame, session: str, gap: str | int) -> int:
    where, pause = _rule(frame, session, gap)
    # Lazily, piece by piece: of a large log only the sorted column is ever there as a whole.
    places = frame.lazy().select(_by_user(frame, where, pause)).collect().to_series().sort().to_numpy()
    return int(np.count_nonzero(places[1:] - places[:-1] > pause)) + 1


def _mark_sessions(frame: pl.DataFrame, session: str, gap: str | int) -> pl.DataFrame:
    """The log sorted by (user, session, time), stably in file order (E7), sessions numbered in ``sid``."""
    where, pause = _rule(frame, session, gap)
    # One key of 64 bits sorts three times as fast as two columns do.
    keys = [USER, SESSION, TIME] if session == "given" else [_by_user(frame, pl.col(TIME), 0)]
    new = (pl.col(USER) != pl.col(USER).shift()) | (where.diff() > pause)
    return frame.sort(keys, maintain_order=True).select(
        USER, ITEM, TIME, sid=new.fill_null(True).cum_sum().cast(pl.UInt32) - 1
    )


def _popular_items(
    frame: pl.DataFrame, items: Mapping[str, Any], n_items: int, in_log: np.ndarray | None
) -> pl.DataFrame:
    """Keeps the most popular items (4.2.3), counted over the whole log, the window, or its training days.

    ``in_log`` (n_items,): the counts over the whole log, where they are asked for.
    """
    over, coverage = items["counted_over"], float(items["coverage"])
    if int(items["min_events"]) < 1:
        raise UserError(f"data.items.min_events={items['min_events']}: at least 1")
    if over not in ("log", "window", "train"):
        raise UserError(f"data.items.counted_over={over}: choose log, window or train")
    counted = frame.filter(pl.col("split") == 0) if over == "train" else frame
    counts = _tally(counted[ITEM], n_items) if in_log is None else in_log
    table = pl.DataFrame({ITEM: np.arange(len(counts)), "events": counts}).filter(pl.col("events") > 0)
    kept = contexts.popular(table, coverage).filter(pl.col("events") >= int(items["min_events"]))
    is_kept = _tally(kept[ITEM], len(counts)) > 0
    return frame.filter(pl.Series(is_kept[frame[ITEM].to_numpy()]))


def _long_sessions(frame: pl.DataFrame, shortest: int) -> pl.DataFrame:
    session = frame["sid"].to_numpy()
    return frame.filter(pl.Series((np.bincount(session) >= shortest)[session]))


def _assign_split(frame: pl.DataFrame, split: Mapping[str, Any]) -> pl.DataFrame:
    """A session belongs to the split in which it starts: the last days are test, those before them validation.

    The last day is the one in which the window's last session starts. ``split`` is an index into SPLITS.
    """
    session = frame["sid"].to_numpy()
    day = frame[TIME].to_numpy()[_starts(session)] // DAY
    age = day.max() - day
    test_days, val_days = int(split["test_days"]), int(split["val_days"])
    of_session = np.where(age < test_days, 2, np.where(age < test_days + val_days, 1, 0)).astype(np.uint8)
    return frame.with_columns(split=pl.Series(of_session[session]))


def _hold_out(frame: pl.DataFrame, share: float, n_users: int) -> pl.DataFrame:
    """A share of the users is tested on and never trained on: they keep their later sessions, all others the earlier.

    They are drawn once, from all users of the log, the same for the same log.
    """
    held = np.random.default_rng(0).permutation(n_users) < round(share * n_users)
    trains = (frame["split"] == SPLITS.index("train")).to_numpy()
    return frame.filter(pl.Series(held[frame[USER].to_numpy()] != trains))


def _starts(session: np.ndarray) -> np.ndarray:
    """Where each session starts among sorted events."""
    return np.append(0, np.flatnonzero(session[1:] != session[:-1]) + 1)


def _encode(frame: pl.DataFrame, users: pl.Series, items: pl.Series) -> tuple[pl.DataFrame, pl.Series, pl.Series]:
    """Codes of the users and items that are left; sessions numbered by (start, user, position in the sorted log).

    Returns:
        the events, the users' ids and the items' ids by code.
    """
    first = _starts(frame["sid"].to_numpy())
    length = np.diff(first, append=frame.height)
    order = np.argsort(frame[TIME].to_numpy()[first], kind="stable")
    first, length = first[order], length[order]
    within = np.arange(frame.height) - np.repeat(np.cumsum(length) - length, length)
    frame = frame[np.repeat(first, length) + within]
    there = {USER: _tally(frame[USER], len(users)) > 0, ITEM: _tally(frame[ITEM], len(items)) > 0}
    code = {column: (np.cumsum(seen) - 1).astype(np.uint32) for column, seen in there.items()}
    coded = frame.select(
        pl.Series(SESSION, np.repeat(np.arange(len(first), dtype=np.uint32), length)),
        *(pl.Series(column, code[column][frame[column].to_numpy()]) for column in (USER, ITEM)),
        TIME,
        "split",
    )
    return coded, users.filter(pl.Series(there[USER])), items.filter(pl.Series(there[ITEM]))

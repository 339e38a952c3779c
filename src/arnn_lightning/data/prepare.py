"""Raw data -> prepared data set: the funnel of paper 4.2, written once and reused while its manifest matches.

A prepared data set is a folder: ``manifest.json``, ``train.parquet``, ``val.parquet``, ``test.parquet`` (session,
user, item, time: integer codes, sorted by session start, then by position), ``items.parquet`` (item, id),
``users.parquet`` (user, id, contexts) and ``contexts.parquet`` (the categories behind the context codes).
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from filelock import FileLock

from arnn_lightning import __version__
from arnn_lightning.data import contexts, events
from arnn_lightning.data.events import ITEM, SESSION, TIME, USER, Reader
from arnn_lightning.data.window import Sessions
from arnn_lightning.errors import UserError
from arnn_lightning.instantiate import instantiate

LAYOUT = 1  # raised whenever the same configuration would write other bytes
SPLITS = ("train", "val", "test")
DAY = 86_400
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


def prepare(data: Mapping[str, Any], root: Path, progress: Progress = lambda _: None) -> Prepared:
    """Prepares the data set of config ``data`` under ``root``/prepared, or reuses what is there.

    The folder's name carries a hash of the raw files' sha256 and of the configuration, so changed files or settings
    give another folder. Many processes may call this at once: one prepares, the others wait; a dead one blocks nobody.

    Raises:
        UserError: raw files that are missing or cannot be read, or settings that leave nothing to learn from.
    """
    reader: Reader = instantiate(data["reader"])
    files = reader.files()
    progress("hashing raw files")
    raw = {file.name: _sha256(file) for file in files}
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
            try:
                _build(reader, files[0], data, unfinished, {"raw": raw, "config": config}, progress)
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
    reader = {key: value for key, value in data["reader"].items() if key != "raw_dir"}
    fields = {key: value for key, value in data["contexts"].items() if key != "draw"}
    steps = {key: data[key] for key in ("window_days", "session", "gap", "items", "min_session_length", "split")}
    return {"reader": reader, "contexts": fields, **steps}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(
    reader: Reader, source: Path, data: Mapping[str, Any], folder: Path, manifest: dict[str, Any], progress: Progress
) -> None:
    started = time.perf_counter()
    funnel: list[dict[str, Any]] = []

    def count(step: str, frame: pl.DataFrame) -> pl.DataFrame:
        counts = {
            "events": frame.height,
            "sessions": frame["sid"].n_unique() if "sid" in frame.columns else None,
            "users": frame[USER].n_unique(),
            "items": frame[ITEM].n_unique(),
        }
        funnel.append({"step": step, **counts})
        progress(f"{step}: {frame.height:,} events")
        if frame.is_empty():
            raise UserError(f"{source}: no event is left after the step {step!r}; funnel: {_funnel_text(funnel)}")
        return frame

    def require(split: str, frame: pl.DataFrame) -> None:
        if not (frame["split"] == split).any() and (split != "val" or data["split"]["val_days"]):
            days = ", ".join(f"data.split.{key}={value}" for key, value in data["split"].items())
            raise UserError(f"{source}: the {split} split is empty with {days}; funnel: {_funnel_text(funnel)}")

    progress(f"reading {source.name}")
    raw = events.check(reader.read(), source)
    funnel.append({"step": "rows in the file", "events": raw.rows, "sessions": None, "users": None, "items": None})
    frame = count("events of the modelled kind", raw.events)
    read = time.perf_counter()

    frame = _window(frame, data["window_days"])
    frame = count("in the time window", _mark_sessions(frame, data["session"], data["gap"]))
    # Once, before anything is dropped: a later look would let the splits move with what the steps below leave.
    frame = _assign_split(frame, data["split"])
    frame = count("of popular items", _popular_items(frame, data["items"]))
    shortest = int(data["min_session_length"])
    if shortest < 2:
        raise UserError(
            f"data.min_session_length={shortest}: a session of one event has nothing to predict; at least 2"
        )
    frame = count(f"in sessions of {shortest} events or more", _long_sessions(frame, shortest))
    for name in SPLITS:
        require(name, frame)
    in_train = frame.filter(pl.col("split") == "train")[ITEM].unique()
    frame = count("of items seen in training", frame.filter(pl.col(ITEM).is_in(in_train.implode())))
    frame = count("in sessions still long enough", _long_sessions(frame, shortest))

    progress("coding and writing")
    items = pl.DataFrame({"id": frame[ITEM].unique().sort()}).with_row_index("item")
    users = pl.DataFrame({"id": frame[USER].unique().sort()}).with_row_index("user")
    coded = _encode(frame, items, users)
    splits: dict[str, dict[str, int]] = {}
    train_events = pl.Series("events", np.zeros(users.height, np.int64))
    for name in SPLITS:
        part = coded.filter(pl.col("split") == name).drop("split")
        splits[name] = {
            "events": part.height,
            "sessions": part[SESSION].n_unique(),
            "users": part[USER].n_unique(),
            "items": part[ITEM].n_unique(),
        }
        require(name, coded)
        if name == "train":
            train_events = pl.Series("events", np.bincount(part[USER].to_numpy(), minlength=users.height))
        part.write_parquet(folder / f"{name}.parquet")
    attributes = users.select("id").join(raw.users.rename({USER: "id"}), on="id", how="left", maintain_order="left")
    encoded = contexts.encode(
        attributes.with_columns(pl.col("id").alias(USER)),
        train_events,
        data["contexts"]["single"],
        data["contexts"]["multi"],
        float(data["contexts"]["coverage"]),
    )
    items.write_parquet(folder / "items.parquet")
    pl.concat([users, encoded.table], how="horizontal").write_parquet(folder / "users.parquet")
    encoded.vocabulary.write_parquet(folder / "contexts.parquet")
    finished = time.perf_counter()
    manifest |= {
        "name": data["name"],
        "layout": LAYOUT,
        "version": __version__,
        "funnel": funnel,
        "splits": splits,
        "fields": len(encoded.single_sizes) + encoded.n_binary + 1,
        "dims": {
            "n_items": items.height,
            "single_sizes": encoded.single_sizes,
            "n_binary": encoded.n_binary,
        },
        "seconds": {"read": round(read - started, 3), "prepare": round(finished - read, 3)},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _funnel_text(funnel: list[dict[str, Any]]) -> str:
    return ", ".join(f"{step['step']} {step['events']:,}" for step in funnel)


def _day() -> pl.Expr:
    return pl.col(TIME).floordiv(DAY)


def _window(frame: pl.DataFrame, days: int | None) -> pl.DataFrame:
    """The last ``days`` calendar days (UTC), the day of the last event included; None keeps everything."""
    return frame if days is None else frame.filter(_day() > _day().max() - days)


def _mark_sessions(frame: pl.DataFrame, session: str, gap: str | int) -> pl.DataFrame:
    """Sorts by (user, session, time), stably in file order (E7), and numbers the sessions in ``sid``.

    ``gap``: a pause longer than ``gap`` within a user starts a session (4.2.2). ``day``: so does a new calendar day.
    ``given``: the reader's own sessions.
    """
    if session == "given" and SESSION not in frame.columns:
        raise UserError("data.session=given: this data set has no sessions of its own; choose gap or day")
    keys = [USER, SESSION, TIME] if session == "given" else [USER, TIME]
    starts = {
        "given": lambda: pl.col(SESSION) != pl.col(SESSION).shift(),
        "gap": lambda: pl.col(TIME) - pl.col(TIME).shift() > seconds(gap),
        "day": lambda: _day() != _day().shift(),
    }
    if session not in starts:
        raise UserError(f"data.session={session}: choose gap, day or given")
    new = (pl.col(USER) != pl.col(USER).shift()) | starts[session]()
    return frame.sort(keys, maintain_order=True).select(
        USER, ITEM, TIME, sid=new.fill_null(True).cum_sum().cast(pl.UInt32)
    )


def _popular_items(frame: pl.DataFrame, items: Mapping[str, Any]) -> pl.DataFrame:
    """Keeps the most popular items (4.2.3), counted over the whole window or over training days only."""
    if items["counted_over"] not in ("window", "train"):
        raise UserError(f"data.items.counted_over={items['counted_over']}: choose window or train")
    counted = frame.filter(pl.col("split") == "train") if items["counted_over"] == "train" else frame
    counts = counted.group_by(ITEM).len("events")
    kept = contexts.popular(counts.with_columns(pl.col("events").cast(pl.Int64)), float(items["coverage"]))
    kept = kept.filter(pl.col("events") >= int(items["min_events"]))
    return frame.filter(pl.col(ITEM).is_in(kept[ITEM].implode()))


def _long_sessions(frame: pl.DataFrame, shortest: int) -> pl.DataFrame:
    return frame.filter(pl.len().over("sid") >= shortest)


def _assign_split(frame: pl.DataFrame, split: Mapping[str, Any]) -> pl.DataFrame:
    """A session belongs to the split in which it starts: the last days are test, those before them validation.

    The last day is the one in which the window's last session starts.
    """
    start_day = pl.col(TIME).first().over("sid").floordiv(DAY)
    age = start_day.max() - start_day
    test_days, val_days = int(split["test_days"]), int(split["val_days"])
    return frame.with_columns(
        split=pl.when(age < test_days)
        .then(pl.lit("test"))
        .when(age < test_days + val_days)
        .then(pl.lit("val"))
        .otherwise(pl.lit("train"))
    )


def _encode(frame: pl.DataFrame, items: pl.DataFrame, users: pl.DataFrame) -> pl.DataFrame:
    """Integer codes; sessions numbered by (start, user, position in the sorted log)."""
    order = (
        frame.group_by("sid", maintain_order=True)
        .agg(pl.col(TIME).first())
        .sort(TIME, "sid")
        .select("sid", session=pl.int_range(pl.len(), dtype=pl.UInt32))
    )
    return (
        frame.join(order, on="sid", maintain_order="left")
        .join(items.rename({"id": ITEM, "item": "item_code"}), on=ITEM, maintain_order="left")
        .join(users.rename({"id": USER, "user": "user_code"}), on=USER, maintain_order="left")
        .sort(SESSION, maintain_order=True)
        .select(SESSION, pl.col("user_code").alias(USER), pl.col("item_code").alias(ITEM), TIME, "split")
    )

"""Raw data -> prepared data set, written once and reused while its manifest matches.

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
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from filelock import FileLock

from arnn_lightning import __version__
from arnn_lightning.config import instantiate
from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing import contexts
from arnn_lightning.preprocessing.filtering import SPLITS, Funnel, Progress, keep, starts, tally
from arnn_lightning.preprocessing.sessions import Sessions
from arnn_lightning.readers import schema as events
from arnn_lightning.readers.schema import ITEM, SESSION, TIME, USER, RawData, Reader

LAYOUT = 3  # raised whenever the same configuration would write other bytes
ROW_GROUP = 1 << 18  # stated, so that the files' bytes do not depend on the number of threads
PARQUET: dict[str, Any] = {"compression": "lz4", "statistics": False}  # a third larger than zstd, and twice as fast
PATHS = ("raw_dir", "events", "users", "titles")  # settings of readers that say where files lie, not what they mean


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
    home, config = root / "prepared", _preparation_config(data)
    home.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as background:
        hashes = background.submit(_hashes, files, progress)

        def folder() -> Path:
            key = json.dumps([LAYOUT, hashes.result(), config], sort_keys=True).encode()
            return home / f"{data['name']}-{hashlib.sha256(key).hexdigest()[:10]}"

        def is_there() -> bool:
            # Where nothing of this name has been prepared, reading need not wait for the hashes.
            others = home.glob(f"{data['name']}-*/manifest.json")
            return any(others) and (folder() / "manifest.json").is_file()

        started = time.perf_counter()
        if is_there():
            return Prepared(folder())
        hashed = time.perf_counter() - started
        progress("waiting for another process that prepares this data set")
        with FileLock(home / f"{data['name']}.lock"):
            if is_there():
                return Prepared(folder())
            unfinished = home / f".{data['name']}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                built = _build(reader, next(iter(files.values())), data, unfinished, progress)
                started = time.perf_counter()
                manifest: dict[str, Any] = {"raw": hashes.result(), "config": config, "seconds": {}} | built
                manifest["seconds"]["hash"] = round(hashed + time.perf_counter() - started, 3)
                (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
                shutil.rmtree(folder(), ignore_errors=True)  # one that has lost its manifest
                unfinished.replace(folder())
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
    return Prepared(folder())


def _preparation_config(data: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the data config that decides what is written: no paths, and no settings of the training."""
    reader = {key: value for key, value in data["reader"].items() if key not in PATHS}
    fields = {key: value for key, value in data["contexts"].items() if key not in ("assignment", "n_attributes")}
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
    if data["min_session_length"] < 2:
        raise UserError(
            f"data.min_session_length={data['min_session_length']}: a session of one event has nothing to predict; "
            "at least 2"
        )
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


def _build(reader: Reader, source: Path, data: Mapping[str, Any], folder: Path, progress: Progress) -> dict[str, Any]:
    """Writes all tables into ``folder``; returns what the manifest says of them."""
    started = time.perf_counter()
    progress(f"reading {source.name}")
    raw, log, user_ids, item_ids = _read(reader, source)
    read = time.perf_counter()
    with ThreadPoolExecutor() as background:
        funnel = Funnel(source, raw.rows, len(user_ids), len(item_ids), progress)
        profiles, titles = background.submit(raw.users), background.submit(raw.items)
        kept = keep(log, data, funnel, background)
        del log
        progress("coding and writing")
        there = {USER: tally(kept[USER], len(user_ids)) > 0, ITEM: tally(kept[ITEM], len(item_ids)) > 0}
        users, items = user_ids.filter(pl.Series(there[USER])), item_ids.filter(pl.Series(there[ITEM]))
        trained = tally(kept.filter(pl.col("split") == 0)[USER], len(user_ids))[there[USER]]
        about_users = background.submit(_write_users, folder, profiles, users, trained, data["contexts"])
        about_items = background.submit(_write_items, folder, titles, items)
        splits = _write_events(folder, _encode(kept, there), len(users), len(items))
        (encoded, without_profile), _ = about_users.result(), about_items.result()
    finished = time.perf_counter()
    return {
        "seconds": {"read": round(read - started, 3), "prepare": round(finished - read, 3)},
        "name": data["name"],
        "layout": LAYOUT,
        "version": __version__,
        "funnel": funnel.steps,
        "splits": splits,
        "users": {"all": len(users), "without_profile": without_profile},
        "fields": len(encoded.single_sizes) + encoded.n_binary + 1,
        "dims": {
            "n_items": len(items),
            "single_sizes": encoded.single_sizes,
            "n_binary": encoded.n_binary,
        },
    }


def _read(reader: Reader, source: Path) -> tuple[RawData, pl.DataFrame, pl.Series, pl.Series]:
    """The raw tables but for the events, the events with ids as codes, and the ids of users and items by code."""
    raw = events.check(reader.read(), source)
    with ThreadPoolExecutor() as pool:
        (user, user_ids), (item, item_ids) = pool.map(_codes, (raw.events[USER], raw.events[ITEM]))
    moment = raw.events[TIME]
    if cast(int, moment.min()) >= -(2**31) and cast(int, moment.max()) < 2**31:
        moment = moment.cast(pl.Int32)  # half as wide, until 2038
    frame = pl.DataFrame({USER: user, ITEM: item, TIME: moment})
    if SESSION in raw.events.columns:
        frame = frame.with_columns(_codes(raw.events[SESSION])[0].alias(SESSION))
    return replace(raw, events=raw.events.clear()), frame, user_ids, item_ids


def _codes(ids: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Codes (UInt32) that sort as the ids do, and the id of every code; there may be codes that nothing has."""
    low, high = cast(Any, ids.min()), cast(Any, ids.max())
    if not ids.dtype.is_integer() or high >= 2**63 or low < -(2**63) or high - low > len(ids) // 2 + 1_000_000:
        return ids.rank("dense") - 1, ids.unique().sort()
    # Ids that lie close together need no sorting: their places in their range are codes.
    wide = ids if ids.dtype in (pl.Int32, pl.UInt32, pl.Int64, pl.UInt64) else ids.cast(pl.Int64)
    return (wide - low).cast(pl.UInt32), pl.int_range(low, high + 1, dtype=pl.Int64, eager=True).cast(ids.dtype)


def _encode(events: pl.DataFrame, there: Mapping[str, np.ndarray]) -> pl.DataFrame:
    """Codes of the users and items that are ``there``; sessions numbered by (start, user, position in the log)."""
    first = starts(events["sid"].to_numpy())
    length = np.diff(first, append=events.height)
    start = events.select(pl.col(TIME).gather(first))
    order = start.select(pl.arg_sort_by(TIME, maintain_order=True)).to_series().to_numpy()
    first, length = first[order], length[order]
    within = np.arange(events.height) - np.repeat(np.cumsum(length) - length, length)
    events = events[np.repeat(first, length) + within]
    code = {column: (np.cumsum(seen) - 1).astype(np.uint32) for column, seen in there.items()}
    return events.select(
        pl.Series(SESSION, np.repeat(np.arange(len(first), dtype=np.uint32), length)),
        *(pl.Series(column, code[column]).gather(events[column]) for column in (USER, ITEM)),
        pl.col(TIME).cast(pl.Int64),
        "split",
    )


def _write_events(folder: Path, events: pl.DataFrame, n_users: int, n_items: int) -> dict[str, dict[str, int]]:
    """Writes every split's events; returns their counts."""
    counts: dict[str, dict[str, int]] = {}
    for code, name in enumerate(SPLITS):
        part = events.filter(pl.col("split") == code).drop("split")
        counts[name] = {
            "events": part.height,
            "sessions": len(starts(part[SESSION].to_numpy())) if part.height else 0,
            "users": int(np.count_nonzero(tally(part[USER], n_users))),
            "items": int(np.count_nonzero(tally(part[ITEM], n_items))),
        }
        part.write_parquet(folder / f"{name}.parquet", row_group_size=ROW_GROUP, **PARQUET)
    return counts


def _write_users(
    folder: Path, profiles: Future[pl.LazyFrame], users: pl.Series, trained: np.ndarray, fields: Mapping[str, Any]
) -> tuple[contexts.EncodedContexts, int]:
    """Writes every user's contexts, and what their codes mean; returns them, and how many users have no profile.

    ``trained``: training events of each user.
    """
    known = profiles.result().filter(pl.col(USER).is_in(users.implode())).collect()
    unknown = users.filter(~users.is_in(known[USER].implode())).to_frame(USER)
    attributes = pl.concat([known, unknown], how="diagonal")
    if not attributes[USER].is_sorted():
        attributes = attributes.sort(USER)
    encoded = contexts.encode(
        attributes, pl.Series(trained), fields["single"], fields["multi"], float(fields["coverage"])
    )
    people = pl.DataFrame({"user": pl.int_range(len(users), dtype=pl.UInt32, eager=True), "id": users})
    pl.concat([people, encoded.table], how="horizontal").write_parquet(folder / "users.parquet", **PARQUET)
    encoded.vocabulary.write_parquet(folder / "contexts.parquet", **PARQUET)
    return encoded, unknown.height


def _write_items(folder: Path, read: Future[pl.DataFrame | None], items: pl.Series) -> None:
    titles = read.result()
    catalogue = pl.DataFrame({"item": pl.int_range(len(items), dtype=pl.UInt32, eager=True), "id": items})
    if titles is not None:
        catalogue = catalogue.join(titles.rename({ITEM: "id"}), on="id", how="left", maintain_order="left")
    catalogue.write_parquet(folder / "items.parquet", **PARQUET)

"""Raw data -> prepared data set, written once and reused while its manifest matches.

A prepared data set is a folder: ``manifest.json``, ``train.parquet``, ``val.parquet``, ``test.parquet`` (session,
user, item, time: integer codes, sorted by session start, then by position), ``items.parquet`` (item, id, contexts),
``users.parquet`` (user, id, contexts), ``contexts.parquet`` and ``item_contexts.parquet`` (the categories behind the
context codes).
"""

import hashlib
import json
import logging
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import polars as pl
from filelock import FileLock

from arnn_lightning import __version__
from arnn_lightning.config import check_values, instantiate
from arnn_lightning.errors import UserError, nearest
from arnn_lightning.io import atomic_path, staging_directory, write_json
from arnn_lightning.preprocessing.contexts import (
    PREFIX,
    UNKNOWN,
    EncodedContexts,
    attribute_names,
    count_known,
    encode_contexts,
    field_names,
    numeric_bins,
    require_attributes,
    select_attributes,
    unused_label,
)
from arnn_lightning.preprocessing.encoding import count_codes, encode_ids, recode_events
from arnn_lightning.preprocessing.filtering import FilterLog, Progress, filter_events
from arnn_lightning.preprocessing.sessions import Sessions, session_starts
from arnn_lightning.preprocessing.splitting import SPLIT, SPLITS
from arnn_lightning.readers.schema import INSTANT, ITEM, SESSION, TIME, TITLE, USER, Reader, validate_events

FORMAT_VERSION = 11  # raised whenever equal settings would write other bytes
ROW_GROUP = 1 << 18  # fixed, so that the files' bytes do not depend on the number of threads
PARQUET: dict[str, Any] = {"compression": "lz4", "statistics": False}  # a third larger than zstd, twice as fast
PATH_KEYS = ("raw_dir", "events", "users", "titles")  # of this package's readers: where files are, not what they mean
RUN_KEYS = ("assignment", "dropout", "n_attributes")  # settings of contexts that a run applies to the prepared data set
CONTEXTS, ITEM_CONTEXTS = "contexts.parquet", "item_contexts.parquet"
TABLES = ("train.parquet", "val.parquet", "test.parquet", "items.parquet", "users.parquet", CONTEXTS, ITEM_CONTEXTS)
Value = TypeVar("Value")
PREPARATION_KEYS = (
    *("timezone", "window_days", "session", "gap", "duplicates", "repeats", "items"),
    *("min_session_length", "max_session_length", "split", "held_out_user_share"),
)


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared data set on disk."""

    folder: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_bytes())
        return manifest

    def damage(self) -> str | None:
        """A description of missing or truncated files; None if the data set is complete."""
        if not (self.folder / "manifest.json").is_file():
            return "no manifest.json"
        try:
            if "dims" not in self.manifest:
                return "manifest.json is damaged"
            for name in TABLES:
                pl.scan_parquet(self.folder / name, glob=False).collect_schema()  # at a file's end
        except ValueError:
            return "manifest.json is damaged"
        except (OSError, pl.exceptions.PolarsError):
            return f"{name} is missing or damaged"
        return None

    @property
    def manifest_sha256(self) -> str:
        return hashlib.sha256((self.folder / "manifest.json").read_bytes()).hexdigest()

    @property
    def raw_sha256(self) -> str:
        """Of the contents of the raw files, whatever their names and the settings that prepared them."""
        return hashlib.sha256("".join(sorted(self.manifest["raw"].values())).encode()).hexdigest()

    @cached_property
    def dims(self) -> dict[str, Any]:
        """The sizes that models measure from data: the ``dims`` block of their configs."""
        multi = self.item_vocabulary().filter(pl.col("kind") == "multi").sort("code")["attribute"]
        return {**self.manifest["dims"], "item_multi_sizes": multi.rle().struct.field("len").to_list()}

    def sessions(self, split: str) -> Sessions:
        """The sessions of ``train``, ``val`` or ``test``."""
        frame = pl.read_parquet(self.folder / f"{split}.parquet", columns=[SESSION, USER, ITEM, TIME], glob=False)
        session = frame[SESSION].to_numpy()
        first = session_starts(session)
        offset = np.append(first, len(session)).astype(np.int64)
        return Sessions(
            item=frame[ITEM].to_numpy().astype(np.int64),
            offset=offset,
            session=session[first].astype(np.int64),
            user=frame[USER].to_numpy()[first].astype(np.int64),
            time=frame[TIME].to_numpy()[offset[1:] - 1].astype(np.int64),
        )

    def write_id_tables(self, folder: Path) -> None:
        """Writes every split as FOLDER/SPLIT.parquet: session_id, position, user_id, item_id (the log's ids), time.

        ``session_id`` is the session's code, which test_ranks.parquet has too; ``position`` is the number of preceding
        events of the session.
        """
        users, items = self.users().select(USER, user_id="id"), self.items()
        for split in SPLITS:
            events = pl.read_parquet(self.folder / f"{split}.parquet", glob=False)
            coded = events.select(USER, ITEM, TIME, session_id=SESSION, position=pl.int_range(pl.len()).over(SESSION))
            with_ids = coded.join(users, on=USER, maintain_order="left").join(
                items.select(ITEM, item_id="id"), on=ITEM, maintain_order="left"
            )
            with atomic_path(folder / f"{split}.parquet") as path:
                with_ids.select("session_id", "position", "user_id", "item_id", TIME).write_parquet(path)

    def users(self) -> pl.DataFrame:
        """One row per user: user, id, and the columns of ``EncodedContexts.users``."""
        return pl.read_parquet(self.folder / "users.parquet", glob=False)

    def vocabulary(self) -> pl.DataFrame:
        """The categories behind the codes of contexts; see ``fit_vocabulary``."""
        return pl.read_parquet(self.folder / CONTEXTS, glob=False)

    def items(self) -> pl.DataFrame:
        """One row per item: item, id; where there are, title and the columns of ``EncodedContexts.users``."""
        return pl.read_parquet(self.folder / "items.parquet", glob=False)

    def item_vocabulary(self) -> pl.DataFrame:
        """The categories behind the codes of the items' contexts; see ``fit_vocabulary``."""
        return pl.read_parquet(self.folder / ITEM_CONTEXTS, glob=False)

    def attribute(self, name: str) -> tuple[np.ndarray, list[str]]:
        """Every user's code of a single-valued or numeric attribute (U,), and its categories by code, "unknown" first.

        Where "unknown" is a category of the log, the first label is "(unknown)".

        Raises:
            UserError: not the name of such an attribute.
        """
        names = field_names(self.manifest["config"]["contexts"])
        if name not in names:
            known = f"the data set has {', '.join(names)}" if names else "the data set has none (data.contexts)"
            raise UserError(f"{name} is not a single-valued or numeric attribute{nearest(name, names)}; {known}")
        categories = self.vocabulary().filter(pl.col("attribute") == name).sort("code")["category"].to_list()
        return self.users().sort("user")[f"{PREFIX}{name}"].to_numpy(), [unused_label(UNKNOWN, categories), *categories]

    def user_contexts(self, n_attributes: int | None) -> tuple[pl.DataFrame, dict[str, Any]]:
        """Users and model sizes with the first ``n_attributes`` attributes, None for all; see `select_attributes`."""
        if n_attributes is None:
            return self.users(), self.dims
        contexts = self.manifest["config"]["contexts"]
        return select_attributes(self.users(), self.dims, self.vocabulary(), contexts, n_attributes)

    def item_popularity(self) -> np.ndarray:
        """(I,) number of training events of every item."""
        return count_codes(
            pl.read_parquet(self.folder / "train.parquet", columns=[ITEM], glob=False)[ITEM], self.dims["n_items"]
        )

    def binary_attributes(self) -> pl.Series:
        """(M,) the multi-valued attribute that each binary field belongs to; fields of one are adjacent."""
        return self.vocabulary().filter(pl.col("kind") == "multi").sort("code")["attribute"]


@dataclass(frozen=True)
class WithoutAttribute(PreparedDataset):
    """A prepared data set in which one attribute of all users is unknown."""

    hidden_attribute: str

    def users(self) -> pl.DataFrame:
        users, vocabulary = super().users(), self.vocabulary()
        column = f"{PREFIX}{self.hidden_attribute}"
        if column in users.columns:
            return users.with_columns(pl.lit(0, users.schema[column]).alias(column))
        codes = vocabulary.filter(pl.col("attribute") == self.hidden_attribute, pl.col("kind") == "multi")["code"]
        return users.with_columns(pl.col("active").list.filter(~pl.element().is_in(codes.implode())))


def _is_own(reader: Reader) -> bool:
    """Whether a reader is this package's."""
    return type(reader).__module__.startswith("arnn_lightning.")


def _source_hash(reader: Reader) -> list[str]:
    """The sha256 of the module of a reader that is not this package's; empty for those that are."""
    if _is_own(reader):
        return []
    file = getattr(sys.modules[type(reader).__module__], "__file__", None)
    return [] if file is None else [hashlib.sha256(Path(file).read_bytes()).hexdigest()]


def prepare(data: Mapping[str, Any], root: Path, progress: Progress = lambda _: None) -> PreparedDataset:
    """Prepares the data set of config ``data`` under ``root``/prepared, or reuses the existing one.

    The folder's name contains a hash of the raw files' sha256, of the configuration, and of the module of a reader that
    is not this package's, so changed files, settings or readers give another folder. Processes may call this
    concurrently: one prepares, the others wait for its lock, which the system releases if that process is killed.

    Raises:
        UserError: raw files that are missing, unreadable or changed while they are read, invalid settings, or settings
            that keep no events.
    """
    _validate_config(data)
    reader: Reader = instantiate(data["reader"])
    files = reader.files()
    states = file_states(files)
    prepared_dir, config, source = root / "prepared", _preparation_config(data, reader), _source_hash(reader)
    # n_attributes keeps the first attributes, so the order of a mapping has a meaning.
    order = [[*numeric_bins(config[section])] for section in ("contexts", "item_contexts")]
    prepared_dir.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as executor:
        hashes = executor.submit(hash_files, files, progress)

        def target_dir() -> Path:
            key = json.dumps([FORMAT_VERSION, hashes.result(), config, order, *source], sort_keys=True).encode()
            return prepared_dir / f"{data['name']}-{hashlib.sha256(key).hexdigest()[:10]}"

        def is_prepared() -> bool:
            # Where nothing of this name has been prepared, reading need not wait for the hashes.
            same_name = prepared_dir.glob(f"{data['name']}-*/manifest.json")
            return any(same_name) and PreparedDataset(target_dir()).damage() is None

        is_ready, hash_seconds = _timed(is_prepared)
        if is_ready:
            return PreparedDataset(target_dir())
        progress("waiting for the lock (another process is preparing this data set)")
        with FileLock(prepared_dir / f"{data['name']}.lock"):
            if is_prepared():
                return PreparedDataset(target_dir())
            with staging_directory(prepared_dir / data["name"]) as folder:
                contents = _write_tables(reader, files, data, folder, progress)
                raw, waited = _timed(hashes.result)
                require_unchanged(files, states)
                contents["seconds"]["hash"] = round(hash_seconds + waited, 3)
                write_json(folder / "manifest.json", {"raw": raw, "config": config, **contents})
                if target_dir().is_dir():
                    damage = PreparedDataset(target_dir()).damage()
                    logging.getLogger(__name__).warning(f"{target_dir()}: {damage}; it is prepared again")
                shutil.rmtree(target_dir(), ignore_errors=True)
                folder.replace(target_dir())
    return PreparedDataset(target_dir())


def _timed(function: Callable[[], Value]) -> tuple[Value, float]:
    """The function's value, and the seconds that it took."""
    started = time.perf_counter()
    return function(), time.perf_counter() - started


def _preparation_config(data: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
    """The part of the data config that determines what is written: no settings of a run, and no paths."""
    contexts = ("contexts", "item_contexts")
    # What any other option of somebody else's reader means is unknown, whatever its name.
    without_effect = (*PATH_KEYS, "source") if _is_own(reader) else ("raw_dir",)
    return {
        "reader": {key: value for key, value in data["reader"].items() if key not in without_effect},
        **{kind: {key: value for key, value in data[kind].items() if key not in RUN_KEYS} for kind in contexts},
        **{key: data[key] for key in PREPARATION_KEYS},
    }


def _validate_config(data: Mapping[str, Any]) -> None:
    """Raises UserError for a setting that its rule does not accept, and for settings that exclude each other."""
    check_values("data", data)
    split = data["split"]
    days, shares = (
        {f"data.split.{name}": split[name] for name in names if split[name] is not None}
        for names in (("test_days", "val_days"), ("test_share", "val_share"))
    )
    if days and shares:
        raise UserError(
            f"{', '.join(f'{key}={value}' for key, value in shares.items())}: a split is by days or by shares; add "
            f"{' '.join(f'{key}=null' for key in days)}"
        )
    if not {"data.split.test_days", "data.split.test_share"} & {*days, *shares}:
        raise UserError("data.split: set test_days and val_days, or test_share and val_share")
    if sum(shares.values()) >= 1:
        raise UserError(f"data.split: test_share + val_share is {sum(shares.values()):g}; must be below 1")
    for section in ("contexts", "item_contexts"):
        for name, count in Counter(attribute_names(data[section])).items():
            if count > 1:
                raise UserError(f"data.{section}: attribute {name!r} is listed more than once")
    longest, shortest = data["max_session_length"], data["min_session_length"]
    if longest is not None and longest < 2 * shortest - 1:
        raise UserError(
            f"data.max_session_length={longest}: must be at least {2 * shortest - 1} with data.min_session_length="
            f"{shortest}, since shorter pieces of a session would be dropped"
        )
    if data["items"]["cold"] == "keep" and not attribute_names(data["item_contexts"]):
        raise UserError("data.items.cold=keep: needs attributes of items; set data.item_contexts")


def file_states(files: Mapping[str, Path]) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of every file."""
    return {name: (state.st_size, state.st_mtime_ns) for name, state in ((n, p.stat()) for n, p in files.items())}


def require_unchanged(files: Mapping[str, Path], states: Mapping[str, tuple[int, int]]) -> None:
    """Raises UserError for a file of another state than in ``states``: what was read is not what was hashed."""
    for name, state in file_states(files).items():
        if state != states[name]:
            raise UserError(f"{files[name]} changed while it was read; prepare it again when it is complete")


def hash_files(files: Mapping[str, Path], progress: Progress) -> dict[str, str]:
    """sha256 of every file; an archive that contains several of them is read once."""
    hashes: dict[Path, str] = {}
    for path in dict.fromkeys(files.values()):
        progress(f"hashing {path.name}, {path.stat().st_size / 1e6:,.0f} MB")
        with path.open("rb") as file:
            hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return {name: hashes[path] for name, path in files.items()}


def _write_tables(
    reader: Reader, files: Mapping[str, Path], data: Mapping[str, Any], folder: Path, progress: Progress
) -> dict[str, Any]:
    """Writes all tables into ``folder``; returns what the manifest contains about them."""
    started = time.perf_counter()
    source = next(iter(files.values()))
    n_more = sum(name.startswith("events/") for name in files) - 1  # as TabularReader names them
    events_name = f"{source} and {n_more} more file{'s' * (n_more > 1)}" if n_more > 0 else str(source)
    progress(f"reading {source.name}")
    raw = validate_events(reader.read(), source)
    with ThreadPoolExecutor() as executor:
        raw_events, raw = raw.events, replace(raw, events=raw.events.clear())
        users_future, items_future = executor.submit(raw.users), executor.submit(raw.items)
        log, user_ids, item_ids, has_attributes = _encode_log(raw_events, items_future.result, data)
        del raw_events
        read_at = time.perf_counter()
        filter_log = FilterLog(events_name, raw.rows, raw.dropped, len(user_ids), len(item_ids), progress)
        events, profile = filter_events(log, data, filter_log, executor, has_attributes)
        del log
        progress("coding and writing")
        is_kept = {
            USER: count_codes(events[USER], len(user_ids)) > 0,
            ITEM: (count_codes(events[ITEM], len(item_ids)) > 0) | has_attributes,
        }
        users, items = user_ids.filter(pl.Series(is_kept[USER])), item_ids.filter(pl.Series(is_kept[ITEM]))
        training = events.filter(pl.col(SPLIT) == 0)
        n_train_events = {key: count_codes(training[key], len(is_kept[key]))[is_kept[key]] for key in (USER, ITEM)}
        users_done = executor.submit(
            lambda: _write_users(folder, users_future.result(), users, n_train_events[USER], data["contexts"])
        )
        items_done = executor.submit(
            lambda: _write_items(folder, items_future.result(), items, n_train_events[ITEM], data["item_contexts"])
        )
        splits = _write_events(folder, recode_events(events, is_kept), len(users), len(items))
        (encoded, without_profile), (of_items, without_row) = users_done.result(), items_done.result()
    return {
        "seconds": {"read": round(read_at - started, 3), "prepare": round(time.perf_counter() - read_at, 3)},
        "name": data["name"],
        "layout": FORMAT_VERSION,
        "version": __version__,
        **({"notes": list(raw.notes)} if raw.notes else {}),
        "funnel": filter_log.steps,
        "log": profile
        | {"largest_user": str(user_ids[profile["largest_user"]]), "top_item": str(item_ids[profile["top_item"]])},
        "splits": splits,
        "users": {"all": len(users), "without_profile": without_profile},
        "items": {
            "all": len(items),
            "without_row": without_row,
            "without_training_event": int(np.count_nonzero(n_train_events[ITEM] == 0)),
        },
        "fields": len(encoded.single_sizes) + encoded.n_binary + 1,
        "dims": {
            "n_items": len(items),
            "single_sizes": encoded.single_sizes,
            "n_binary": encoded.n_binary,
            "item_single_sizes": of_items.single_sizes,
            "n_item_binary": of_items.n_binary,
        },
    }


def _encode_log(
    events: pl.DataFrame, items: Callable[[], pl.DataFrame | None], data: Mapping[str, Any]
) -> tuple[pl.DataFrame, pl.Series, pl.Series, np.ndarray]:
    """The events with ids as codes, and the ids of users and items by code.

    Also whether each item stays in the catalogue without a training event (``data.items.cold=keep``).
    """
    with_attributes = events[ITEM].clear()
    if data["items"]["cold"] == "keep":
        with_attributes = _items_with_attributes(items(), with_attributes, data["item_contexts"])
    with ThreadPoolExecutor() as executor:
        ids = (events[USER], pl.concat([events[ITEM], with_attributes]))
        (user, user_ids), (item, item_ids) = executor.map(encode_ids, ids)
    has_attributes = count_codes(item[events.height :], len(item_ids)) > 0
    item = item[: events.height]
    seconds = events[TIME]
    if cast(int, seconds.min()) >= -(2**31) and cast(int, seconds.max()) < 2**31:
        seconds = seconds.cast(pl.Int32)  # half as wide, until 2038
    log = pl.DataFrame({USER: user, ITEM: item, TIME: seconds})
    if SESSION in events.columns:
        log = log.with_columns(encode_ids(events[SESSION])[0].alias(SESSION))
    if INSTANT in events.columns:
        log = log.with_columns(events[INSTANT])
    return log, user_ids, item_ids, has_attributes


def _items_with_attributes(items: pl.DataFrame | None, no_items: pl.Series, contexts: Mapping[str, Any]) -> pl.Series:
    """The ids of the items of which an attribute is known."""
    items = no_items.to_frame() if items is None else items
    require_attributes(items, contexts, ITEM)
    return items.filter(count_known(contexts) > 0)[ITEM]


def _write_events(folder: Path, events: pl.DataFrame, n_users: int, n_items: int) -> dict[str, dict[str, int]]:
    """Writes the events of every split; returns their counts."""
    counts: dict[str, dict[str, int]] = {}
    for code, name in enumerate(SPLITS):
        split = events.filter(pl.col(SPLIT) == code).drop(SPLIT)
        counts[name] = {
            "events": split.height,
            "sessions": len(session_starts(split[SESSION].to_numpy())),
            "users": int(np.count_nonzero(count_codes(split[USER], n_users))),
            "items": int(np.count_nonzero(count_codes(split[ITEM], n_items))),
        }
        split.write_parquet(folder / f"{name}.parquet", row_group_size=ROW_GROUP, **PARQUET)
    return counts


def _write_users(
    folder: Path, profiles: pl.LazyFrame, users: pl.Series, n_train_events: np.ndarray, contexts: Mapping[str, Any]
) -> tuple[EncodedContexts, int]:
    """Writes every user's contexts and the categories of their codes.

    Returns:
        the contexts, and the number of users without a row in ``profiles``.
    """
    known = profiles.filter(pl.col(USER).is_in(users.implode())).collect()
    unknown = users.filter(~users.is_in(known[USER].implode())).to_frame(USER)
    attributes = pl.concat([known, unknown], how="diagonal", rechunk=True)  # texts in one chunk are coded faster
    if not attributes[USER].is_sorted():
        attributes = attributes.sort(USER)
    encoded = encode_contexts(attributes, pl.Series(n_train_events), contexts)
    ids = pl.DataFrame({"user": pl.int_range(len(users), dtype=pl.UInt32, eager=True), "id": users})
    pl.concat([ids, encoded.users], how="horizontal").write_parquet(folder / "users.parquet", **PARQUET)
    encoded.vocabulary.write_parquet(folder / CONTEXTS, **PARQUET)
    return encoded, unknown.height


def _write_items(
    folder: Path, table: pl.DataFrame | None, items: pl.Series, n_train_events: np.ndarray, contexts: Mapping[str, Any]
) -> tuple[EncodedContexts, int]:
    """Writes every item's title and contexts, and the categories of their codes.

    Returns:
        the contexts, and the number of items without a row in ``table``, if there is one.
    """
    known = items.to_frame(ITEM).clear() if table is None else table
    n_missing = 0 if table is None else len(items) - int(items.is_in(known[ITEM].implode()).sum())
    attributes = items.to_frame(ITEM).join(known, on=ITEM, how="left", maintain_order="left")
    encoded = encode_contexts(attributes, pl.Series(n_train_events), contexts, ITEM)
    catalogue = pl.DataFrame({"item": pl.int_range(len(items), dtype=pl.UInt32, eager=True), "id": items})
    titles = [attributes[TITLE]] if attributes.schema.get(TITLE) == pl.String else []
    columns = encoded.users if attribute_names(contexts) else pl.DataFrame()
    catalogue = pl.concat([catalogue.with_columns(titles), columns], how="horizontal")
    catalogue.write_parquet(folder / "items.parquet", **PARQUET)
    encoded.vocabulary.write_parquet(folder / ITEM_CONTEXTS, **PARQUET)
    return encoded, n_missing

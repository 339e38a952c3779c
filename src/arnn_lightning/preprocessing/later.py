"""Prepares a later log as the test split of a trained data set, with its codes."""

import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from arnn_lightning.config import instantiate
from arnn_lightning.errors import UserError
from arnn_lightning.io import staging_directory, write_json
from arnn_lightning.preprocessing.contexts import count_known, encode_profiles, field_names, require_attributes
from arnn_lightning.preprocessing.dataset import (
    CONTEXTS,
    ITEM_CONTEXTS,
    PreparedDataset,
    file_states,
    hash_files,
    require_unchanged,
)
from arnn_lightning.preprocessing.encoding import encode_ids, recode_events
from arnn_lightning.preprocessing.sessions import SESSION_ID, assign_session_ids, cut_long_sessions, session_rule
from arnn_lightning.preprocessing.splitting import SPLIT, SPLITS
from arnn_lightning.preprocessing.summary import drop_duplicates, drop_repeats
from arnn_lightning.readers.schema import INSTANT, ITEM, SESSION, TIME, USER, RawData, Reader, validate_events

TRAINING_LOG = ("notes", "log", "users", "items", "seconds")  # what a manifest contains about that log alone


def prepare_later_log(data: Mapping[str, Any], trained: PreparedDataset, folder: Path) -> str:
    """Writes a log as the test split of a data set with the items and users of ``trained``.

    Sessions are cut, and their events dropped, by the settings of training. Sessions that start before ``trained`` ends
    are left out: a log may contain the trained one. Profiles of new users are coded by the categories of training.

    Args:
        data: the data config of training, with the paths of the later log.
        trained: the data set of training.
        folder: where the data set is written.

    Returns:
        One line on what is new in it, and what is dropped.

    Raises:
        UserError: no session is later, or none is left; a missing attribute; a file that changes while it is read.
    """
    reader: Reader = instantiate(data["reader"])
    files = reader.files()
    states = file_states(files)
    source = next(iter(files.values()))
    data_read = validate_events(reader.read(), source)
    raw = data_read.events
    items, users = trained.items(), trained.users()
    user, new_ids = _encode(raw[USER], users["id"])
    item, _ = _encode(raw[ITEM], items["id"])
    log = raw.select(user, item, TIME, *{INSTANT} & {*raw.columns})
    if SESSION in raw.columns:
        log = log.with_columns(encode_ids(raw[SESSION])[0].alias(SESSION))
    rule = session_rule(log, data["session"], data["gap"], data["timezone"])
    events = assign_session_ids(log, cast(int, log[TIME].min()), rule)
    last = _last_second(trained)
    end = f"the end of the training log ({datetime.fromtimestamp(last, ZoneInfo(data['timezone'])):%Y-%m-%d %H:%M:%S})"
    later = events.filter(pl.col(TIME).min().over(SESSION_ID) > last)
    if later.is_empty():
        raise UserError(
            f"{source}: no session starts after {end}; set the path of a later log, or leave out all paths "
            "of raw files (data.events, data.raw_dir) to test on the test split"
        )
    test = _kept_events(later, data, len(items))
    if test.is_empty():
        raise UserError(
            f"{source}: no later session has enough events of items known from training (data.min_session_length="
            f"{data['min_session_length']}); check the ids, or train on a newer log"
        )
    is_kept = {USER: np.ones(len(users) + len(new_ids), bool), ITEM: np.ones(len(items), bool)}
    test = recode_events(test.with_columns(pl.lit(2).alias(SPLIT)), is_kept)
    everyone = _with_new_users(users, data_read, new_ids, trained)
    counts = {"events": test.height, "sessions": test[SESSION].n_unique(), "users": test[USER].n_unique()}
    n_sessions, n_later = events[SESSION_ID].n_unique(), later[SESSION_ID].n_unique()
    funnel = [
        {"step": "rows in the file", "events": data_read.rows, "sessions": None, "users": None, "items": None},
        {
            "step": "in sessions after the training log",
            "events": later.height,
            "sessions": n_later,
            "users": later[USER].n_unique(),
            "items": later[ITEM].n_unique(),
        },
    ]
    of_splits = {"train": {"events": 0}, "val": {"events": 0}, "test": counts | {"items": test[ITEM].n_unique()}}
    with staging_directory(folder) as temporary:
        test.drop(SPLIT).write_parquet(temporary / "test.parquet")
        everyone.write_parquet(temporary / "users.parquet")
        for name in ("train.parquet", "items.parquet", CONTEXTS, ITEM_CONTEXTS):
            shutil.copyfile(trained.folder / name, temporary / name)
        raw_files = hash_files(files, lambda _: None)
        require_unchanged(files, states)
        changed = {"raw": raw_files, "funnel": funnel, "splits": of_splits, "new_users": len(new_ids)}
        of_training = {name: value for name, value in trained.manifest.items() if name not in TRAINING_LOG}
        write_json(temporary / "manifest.json", of_training | changed)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    early = f"{n_sessions - n_later:,} of {n_sessions:,} sessions are dropped, since they start before {end}; "
    n_unknown, of_users = (later[ITEM] >= len(items)).sum(), later[USER].unique()
    return (
        f"{source}: {early if n_later < n_sessions else ''}{n_unknown:,} of {later.height:,} events are dropped, since "
        f"training did not contain their items; {(of_users >= len(users)).sum():,} of {len(of_users):,} users are new"
    )


def _last_second(trained: PreparedDataset) -> int:
    """The time of the last event of the training log; of a data set prepared earlier, of the last one kept."""
    last = trained.manifest["log"].get("last_second")
    if last is None:
        splits = [pl.read_parquet(trained.folder / f"{name}.parquet", columns=[TIME], glob=False) for name in SPLITS]
        last = pl.concat(splits)[TIME].max()
    return cast(int, last)


def _kept_events(events: pl.DataFrame, data: Mapping[str, Any], n_items: int) -> pl.DataFrame:
    """What the settings of training keep of events with session ids, in the order of ``filter_events``."""
    if data["duplicates"] == "drop":
        events = drop_duplicates(events)
    if data["repeats"] == "drop":
        events = drop_repeats(events)
    events = events.filter(pl.col(ITEM) < n_items)
    if data["max_session_length"] is not None:
        events = cut_long_sessions(events, data["max_session_length"])
    return events.filter(pl.len().over(SESSION_ID) >= data["min_session_length"])


def _encode(ids: pl.Series, trained: pl.Series) -> tuple[pl.Series, pl.Series]:
    """The codes of ids, those that training did not have after all others, in order; and the latter ids as texts."""
    texts, trained = ids.cast(pl.String), trained.cast(pl.String)
    new = texts.unique().sort()
    new = new.filter(~new.is_in(trained.implode()))
    all_ids = pl.concat([trained, new])
    codes = pl.int_range(len(all_ids), dtype=pl.UInt32, eager=True)
    return texts.replace_strict(all_ids, codes, return_dtype=pl.UInt32), new


def _with_new_users(users: pl.DataFrame, raw: RawData, new_ids: pl.Series, trained: PreparedDataset) -> pl.DataFrame:
    """The table of users, those of ``new_ids`` after those of training."""
    codes = pl.DataFrame({"user": range(len(users), len(users) + len(new_ids)), "id": new_ids})
    new_users = pl.concat([codes, _contexts_of_new_users(raw, new_ids, trained)], how="horizontal")
    types: Any = {name: users.schema[name] for name in users.columns if name != "id"} | {"id": pl.String}
    return pl.concat([table.select(users.columns).cast(types) for table in (users, new_users)])


def _contexts_of_new_users(raw: RawData, new_ids: pl.Series, trained: PreparedDataset) -> pl.DataFrame:
    contexts = trained.manifest["config"]["contexts"]
    is_new = pl.col(USER).cast(pl.String).is_in(new_ids.implode())
    profiles = raw.users().filter(is_new).collect().with_columns(pl.col(USER).cast(pl.String))
    profiles = new_ids.to_frame(USER).join(profiles, on=USER, how="left", maintain_order="left")
    require_attributes(profiles, contexts, USER)
    codes, _ = encode_profiles(profiles, field_names(contexts), trained.vocabulary())
    return codes.with_columns(profiles.with_columns(n_known=count_known(contexts))["n_known"])

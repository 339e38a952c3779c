"""A later log of a trained catalogue, with the codes of training, as test data of a checkpoint."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import polars as pl

from arnn_lightning.config import instantiate
from arnn_lightning.errors import UserError
from arnn_lightning.io import staging_directory, write_json
from arnn_lightning.preprocessing.contexts import encode_profiles, field_names
from arnn_lightning.preprocessing.dataset import CONTEXTS, ITEM_CONTEXTS, PreparedDataset, hash_files
from arnn_lightning.preprocessing.encoding import recode_events
from arnn_lightning.preprocessing.sessions import SESSION_ID, assign_session_ids, session_rule
from arnn_lightning.preprocessing.splitting import SPLIT
from arnn_lightning.readers.schema import ITEM, SESSION, TIME, USER, RawData, Reader, validate_events


def prepare_later_log(data: Mapping[str, Any], trained: PreparedDataset, folder: Path) -> str:
    """Writes a log as the test split of a data set with the items and users of ``trained``.

    Sessions are cut as in training, before events of items that training did not have are dropped. Profiles of new
    users are coded by the categories of training.

    Args:
        data: the data config of training, with the paths of the later log.
        trained: the data set of training.
        folder: where the data set is written.

    Returns:
        One line on what is new in it.

    Raises:
        UserError: no session is left.
    """
    reader: Reader = instantiate(data["reader"])
    files = reader.files()
    source = next(iter(files.values()))
    data_read = validate_events(reader.read(), source)
    raw = data_read.events
    items, users = trained.items(), trained.users()
    new_ids = raw[USER].cast(pl.String).unique().sort().to_frame("id")
    new_ids = new_ids.join(users.select(pl.col("id").cast(pl.String)), on="id", how="anti", maintain_order="left")
    ids = {ITEM: items["id"].cast(pl.String), USER: pl.concat([users["id"].cast(pl.String), new_ids["id"]])}
    log = raw.select(_code(USER, ids[USER]), _code(ITEM, ids[ITEM]), TIME, *{SESSION} & {*raw.columns})
    rule = session_rule(log, data["session"], data["gap"], data["timezone"])
    events = assign_session_ids(log, cast(int, log[TIME].min()), rule)
    events = events.drop_nulls(ITEM).filter(pl.len().over(SESSION_ID) >= data["min_session_length"])
    if events.is_empty():
        raise UserError(f"{source}: no session with {data['min_session_length']} events of items known from training")
    test = recode_events(events.with_columns(pl.lit(2).alias(SPLIT)), {key: [True] * len(ids[key]) for key in ids})  # type: ignore[misc]
    new_users = pl.DataFrame({"user": range(len(users), len(ids[USER])), "id": new_ids["id"]})
    new_users = pl.concat([new_users, _contexts_of_new_users(data_read, new_ids, trained)], how="horizontal")
    types = {name: users.schema[name] for name in users.columns if name != "id"} | {"id": pl.String}
    everyone = pl.concat([table.select(users.columns).cast(types) for table in (users, new_users)])  # type: ignore[arg-type]
    counts = {"events": test.height, "sessions": test[SESSION].n_unique(), "users": test[USER].n_unique()}
    splits = {"train": {"events": 0}, "val": {"events": 0}, "test": counts | {"items": test[ITEM].n_unique()}}
    with staging_directory(folder) as temporary:
        test.drop(SPLIT).write_parquet(temporary / "test.parquet")
        everyone.write_parquet(temporary / "users.parquet")
        for name in ("train.parquet", "items.parquet", CONTEXTS, ITEM_CONTEXTS):
            shutil.copyfile(trained.folder / name, temporary / name)
        raw_files = hash_files(files, lambda _: None)
        write_json(temporary / "manifest.json", trained.manifest | {"raw": raw_files, "splits": splits})
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    n_dropped = log[ITEM].null_count()
    return (
        f"{source}: {n_dropped:,} of {log.height:,} events are dropped, since training did not contain their items; "
        f"{len(new_ids):,} of {log[USER].n_unique():,} users are new"
    )


def _contexts_of_new_users(raw: RawData, new_ids: pl.DataFrame, trained: PreparedDataset) -> pl.DataFrame:
    contexts = trained.manifest["config"]["contexts"]
    is_new = pl.col(USER).cast(pl.String).is_in(new_ids["id"].implode())
    profiles = raw.users().filter(is_new).collect().with_columns(pl.col(USER).cast(pl.String))
    profiles = new_ids.join(profiles, left_on="id", right_on=USER, how="left", maintain_order="left")
    codes, _ = encode_profiles(profiles, field_names(contexts), trained.vocabulary())
    known = [pl.col(name) > 0 for name in codes.columns if name != "active"]
    multi = [name for name in contexts["multi"] if name in profiles.columns]
    has_values = profiles.select(pl.col(name).list.len().fill_null(0) > 0 for name in multi)
    n_known = codes.select(pl.sum_horizontal(pl.lit(0, pl.UInt8), *known)).to_series()
    if multi:
        n_known = n_known + has_values.sum_horizontal()
    return codes.with_columns(n_known=n_known.cast(pl.UInt8))


def _code(column: str, ids: pl.Series) -> pl.Expr:
    """The index of every id in ``ids``; null where it is none of them."""
    codes = pl.int_range(len(ids), dtype=pl.UInt32, eager=True)
    return pl.col(column).cast(pl.String).replace_strict(ids, codes, default=None, return_dtype=pl.UInt32)

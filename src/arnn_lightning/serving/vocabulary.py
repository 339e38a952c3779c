"""The items, contexts and users that a checkpoint stores, so that recommending needs no data set.

Each table is a parquet file as a tensor of bytes, which ``torch.load(weights_only=True)`` accepts.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from arnn_lightning.errors import UserError
from arnn_lightning.loading.contexts import Assignment, assign_item_contexts, single_attributes
from arnn_lightning.preprocessing.contexts import PREFIX
from arnn_lightning.preprocessing.dataset import PreparedDataset

ITEMS, CONTEXTS, SINGLE, USERS, ITEM_CONTEXTS = "items", "contexts", "single", "users", "item_contexts"


def store_vocabulary(
    prepared: PreparedDataset,
    n_attributes: int | None,
    store_users: bool,
    item_assignment: Assignment = "own",
    seed: int = 0,
) -> dict[str, Tensor]:
    """The tables of a prepared data set that recommending needs, in the form in which a checkpoint stores them.

    Args:
        prepared: the data set.
        n_attributes: how many attributes the model uses; None for all.
        store_users: whether the ids and context codes of the data set's users are among them.
        item_assignment, seed: which item's contexts each item has in training, as in ``assign_item_contexts``.
    """
    users, dims = prepared.user_contexts(n_attributes)
    single = [name.removeprefix(PREFIX) for name in users.columns if name.startswith(PREFIX)]
    train_events = np.bincount(prepared.sessions("train").item, minlength=dims["n_items"])
    items = assign_item_contexts(prepared.items(), item_assignment, seed).drop("item")
    is_binary = (pl.col("kind") == "multi") & (pl.col("code") < dims["n_binary"])
    is_used = is_binary | ((pl.col("kind") != "multi") & pl.col("attribute").is_in(single))
    tables = {
        ITEMS: items.with_columns(events=train_events),
        CONTEXTS: pl.read_parquet(prepared.folder / "contexts.parquet", glob=False).filter(is_used),
        SINGLE: pl.DataFrame({"attribute": single}, schema={"attribute": pl.String}),
        ITEM_CONTEXTS: prepared.item_vocabulary(),
    }
    if store_users:
        tables[USERS] = users.select("id", *(f"{PREFIX}{name}" for name in single), "active")
    return {name: _to_bytes(table) for name, table in tables.items()}


def _to_bytes(table: pl.DataFrame) -> Tensor:
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", statistics=False)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


class Vocabulary:
    """The stored tables of a checkpoint.

    Args:
        stored: the checkpoint's ``vocabulary``.
        source: the checkpoint, for errors.

    Attributes:
        items: one row per item code: id, events (in training) and, where there are, title and context codes.
        contexts: attribute, kind, code, category and low, as in the data set's contexts.parquet.
        item_contexts, item_single: as ``contexts`` and ``single``, of the items.
        single: the attributes of one field each (single-valued and numeric), in the order of their fields.
        attributes: all attributes that the model uses.
        users: one row per user of the data set: id, context codes (``context.<name>``, active); empty where the
            checkpoint stores no users.

    Raises:
        UserError: the checkpoint stores no vocabulary, or a damaged one.
    """

    def __init__(self, stored: Mapping[str, Tensor], source: Any) -> None:
        if not {ITEMS, CONTEXTS, SINGLE, ITEM_CONTEXTS} <= stored.keys():
            raise UserError(f"{source}: stores no item ids; train again to recommend with it")
        try:
            tables = {name: pl.read_parquet(io.BytesIO(table.numpy().tobytes())) for name, table in stored.items()}
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UserError(f"{source}: the stored vocabulary is damaged: {str(error).splitlines()[0]}") from error
        self.items = tables[ITEMS]
        self.contexts, self.item_contexts = tables[CONTEXTS], tables[ITEM_CONTEXTS]
        self.item_single = single_attributes(self.items)
        self.single: list[str] = tables[SINGLE]["attribute"].to_list()
        self.attributes = list(dict.fromkeys([*self.single, *self.contexts["attribute"]]))
        columns = {"id": pl.String, **{f"{PREFIX}{name}": pl.UInt32 for name in self.single}}
        self.users = tables.get(USERS, pl.DataFrame(schema={**columns, "active": pl.List(pl.UInt32)}))

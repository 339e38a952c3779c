"""Starts a training from the weights and the optimizer state of another run, row by row by the log's ids.

Items and categories that both runs have keep their rows. New ones start at a neutral place: an item at the mean of all
items, a category of a single-valued attribute at "unknown", where the earlier model had its users, and a binary
field with random embeddings and weights 0, so that it changes no prediction before it is trained. Their optimizer state
is 0.

M binary fields, S single-valued fields.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from arnn_lightning.encoders import ConcatEncoder
from arnn_lightning.errors import UserError
from arnn_lightning.models.trained import SessionRecommender
from arnn_lightning.nn.contexts import ContextEmbedding
from arnn_lightning.nn.product import ProductLayer
from arnn_lightning.nn.table import EmbeddingTable, ItemAttributes
from arnn_lightning.training.checkpoint import TRAINING_KEYS

log = logging.getLogger(__name__)
NEW = -1  # the source of a row that the earlier run did not have
# Keys of a model's config that two runs may have different values of.
FREE_KEYS = (
    *("dims", "name", "loss", "optimizer", "scheduler", "scheduler_interval", "clip_norm"),
    *("dropout", "dropout_embedding", "dropout_hidden", "carry_dropout", "product_method", *TRAINING_KEYS),
)
# Keys that change what the same weights compute, and the shape of none.
SHAPELESS_KEYS = ("heads", "last_n_events")


@dataclass(frozen=True)
class TableRows:
    """The meaning of the rows of a model's tables.

    Attributes:
        items: (I,) ids of the items.
        single: the single-valued attributes, in the order of their fields.
        contexts: attribute, kind (single | numeric | multi), code, category.
        of_items: likewise of the items' contexts; None: items have none.
    """

    items: pl.Series
    single: list[str]
    contexts: pl.DataFrame
    of_items: "TableRows | None" = None

    @property
    def multi(self) -> list[str]:
        multi = self.contexts.filter(pl.col("kind") == "multi")
        return multi["attribute"].unique(maintain_order=True).to_list()

    def rows(self, kind: str) -> list[tuple[str, str]]:
        """(attribute, category) of every row of the categories' table (single), of every binary field (multi)."""
        is_multi = pl.col("kind") == "multi"
        by_attribute = self.contexts.filter(is_multi if kind == "multi" else ~is_multi).sort("code")
        pairs: list[tuple[str, str]] = []
        for name in self.single if kind == "single" else self.multi:
            categories = by_attribute.filter(pl.col("attribute") == name)["category"].to_list()
            pairs += [(name, "")] if kind == "single" else []  # code 0 is "unknown"
            pairs += [(name, f"={category}") for category in categories]
        return pairs

    @property
    def item_rows(self) -> list[tuple[str, str]]:
        """(attribute, category) of every row of ``ItemAttributes``, of which the last is padding."""
        of_items = self.of_items
        return [] if of_items is None else [*of_items.rows("single"), *of_items.rows("multi"), ("", "")]


@dataclass(frozen=True)
class Rows:
    """Which earlier row each row of a weight starts as.

    Attributes:
        source_row: (n,) the earlier row; of a new row the one that it is a copy of, or NEW.
        is_known: (n,) whether the earlier run had the row.
        start: where a row without a source starts: at the mean of the earlier ones, at 0, or at its own initial value.
    """

    source_row: Tensor
    is_known: Tensor
    start: Literal["mean", "zero", "initial"] = "zero"

    def weight(self, earlier: Tensor, initial: Tensor) -> Tensor:
        mean = earlier.mean(0, keepdim=True) if self.start == "mean" else earlier.new_zeros(1, *earlier.shape[1:])
        rows = torch.cat([earlier, mean])[self.source_row]
        is_initial = (self.source_row == NEW) & (self.start == "initial")
        return torch.where(is_initial.view(-1, *[1] * (rows.dim() - 1)), initial.to(rows.device), rows)

    def state(self, earlier: Tensor) -> Tensor:
        rows = torch.cat([earlier, earlier.new_zeros(1, *earlier.shape[1:])])
        return rows[torch.where(self.is_known, self.source_row, NEW)]


class InitialWeights(Callback):
    """Loads another run's weights and optimizer state before the first step; a resumed training has its own.

    Args:
        model: the model that is trained, not yet frozen.
        config: its config.
        ids: the meaning of its rows.
        checkpoint: of the earlier run.
        earlier: the meaning of the earlier rows.
        file: the checkpoint's file.
        excluded: parameters of parts that were trained before the model.

    Raises:
        UserError: a checkpoint of another model, of other sizes or attributes.
    """

    def __init__(
        self,
        model: SessionRecommender,
        config: Mapping[str, Any],
        ids: TableRows,
        checkpoint: Mapping[str, Any],
        earlier: TableRows,
        file: Path,
        excluded: nn.Module | None = None,
    ) -> None:
        earlier_config = checkpoint["metadata"]["model"]
        if earlier_config["_target_"] != config["_target_"]:
            raise UserError(
                f"init_from: {file} is a checkpoint of {earlier_config['name']}, but this run trains {config['name']}"
            )
        fields = {"contexts": (ids, earlier)} if model.uses_contexts else {}
        if model.has_item_fields and ids.of_items is not None and earlier.of_items is not None:
            fields["item_contexts"] = ids.of_items, earlier.of_items
        for section, (current, before) in fields.items():
            for kind in ("single", "multi"):
                current_listed, earlier_listed = ",".join(getattr(current, kind)), ",".join(getattr(before, kind))
                if current_listed != earlier_listed:
                    raise UserError(
                        f"init_from: {file} was trained with data.{section}.{kind}=[{earlier_listed}], but this run "
                        f"has [{current_listed}]"
                    )
        self.file = file
        self._weights: dict[str, Tensor] = checkpoint["state_dict"]
        self._optimizer = checkpoint.get("optimizer_states") or [None]
        self._same_optimizer = earlier_config["optimizer"]["_target_"] == config["optimizer"]["_target_"]
        self._rows = RowMapping(ids, earlier)
        excluded_weights = (
            {id(tensor) for tensor in (*excluded.parameters(), *excluded.buffers())} if excluded else set()
        )
        self._names = [
            name
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if name in model.state_dict() and name != "mini_batches" and id(tensor) not in excluded_weights
        ]
        for name in self._names:  # before anything is trained
            earlier_weight = self._weights.get(name)
            if earlier_weight is None or self._start(model, name).shape != model.state_dict()[name].shape:
                models = (
                    ""
                    if earlier_config["name"] == config["name"]
                    else f" ({earlier_config['name']} in the checkpoint, {config['name']} in this run)"
                )
                raise UserError(
                    f"init_from: {file}: {name} does not fit this model{models}{_differing(earlier_config, config)}"
                )
        require_same_scores(earlier_config, config, f"init_from: {file}")

    @property
    def summary(self) -> str:
        """How many items and categories are known, new and removed."""
        return "; ".join(f"{name} {text}" for name, text in self._rows.counts.items())

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is None:
            with torch.no_grad():
                tensors = pl_module.state_dict()
                for name in self._names:
                    tensors[name].copy_(self._start(pl_module, name))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is not None:
            return
        (saved,) = self._optimizer
        optimizer = trainer.optimizers[0]
        weights = {name: weight for name, weight in pl_module.named_parameters() if weight.requires_grad}
        n_saved = len(saved["param_groups"][0]["params"]) if saved is not None else 0
        if not self._same_optimizer or n_saved != len(weights):
            log.info(f"{self.file}: the optimizer's state is not used: the optimizer or its weights differ")
            return
        assert saved is not None
        for index, (name, weight) in enumerate(weights.items()):
            if name in self._names and index in saved["state"]:
                rows, shape = self._rows.of(pl_module, name), self._weights[name].shape
                optimizer.state[weight] = {
                    key: _mapped(value, rows, shape).to(weight.device) for key, value in saved["state"][index].items()
                }

    def _start(self, model: nn.Module, name: str) -> Tensor:
        """The value that a weight or buffer starts at."""
        rows, initial = self._rows.of(model, name), model.state_dict()[name]
        if rows is None or initial.shape[1:] != self._weights[name].shape[1:]:
            return self._weights[name]
        return rows.weight(self._weights[name], initial)


def _mapped(value: Tensor, rows: Rows | None, shape: torch.Size) -> Tensor:
    return value.clone() if rows is None or value.shape != shape else rows.state(value)


class RowMapping:
    """Which earlier row each row of a table is, by table."""

    def __init__(self, ids: TableRows, earlier: TableRows) -> None:
        categories = [row for row in ids.rows("single") if row[1]], [row for row in earlier.rows("single") if row[1]]
        item = _source_rows(ids.items.cast(pl.String).to_list(), earlier.items.cast(pl.String).to_list())
        single = _source_rows(ids.rows("single"), earlier.rows("single"))
        binary = _source_rows(ids.rows("multi"), earlier.rows("multi"))
        self.counts = {"items": _count(item, len(earlier.items))}
        n_fields, n_earlier = len(ids.single), len(earlier.rows("multi"))
        if categories[0]:
            self.counts["categories"] = _count(_source_rows(*categories), len(categories[1]))
        if len(binary):
            self.counts["binary fields"] = _count(binary, n_earlier)
        unknown = {name: place for place, (name, category) in enumerate(earlier.rows("single")) if not category}
        neutral = torch.tensor([unknown.get(name, NEW) for name, _ in ids.rows("single")], dtype=torch.int64)
        self.n_items = len(item)
        self.item = Rows(item, item != NEW, "mean")
        self.item_category = _rows_of(_source_rows(ids.item_rows, earlier.item_rows))  # new ones at 0: no effect
        self.single = Rows(torch.where(single == NEW, neutral, single), single != NEW)
        self.values, self.binary = Rows(binary, binary != NEW, "initial"), _rows_of(binary)
        first, second = np.triu_indices(len(binary), 1)
        low, high = np.sort([binary.numpy()[first], binary.numpy()[second]], 0)
        pair = np.where(low == NEW, NEW, low * n_earlier - low * (low + 1) // 2 + high - low - 1)
        self.pairs = _rows_of(torch.from_numpy(pair))
        fields = torch.arange(n_fields) + n_earlier
        self.item_pairs = _rows_of(torch.cat([binary, fields]))
        self.padded = _rows_of(torch.cat([binary, torch.tensor([n_earlier])]))

    def of(self, model: nn.Module, name: str) -> Rows | None:
        """The rows of a weight, or None if none of them belongs to an id."""
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, EmbeddingTable):
            return self.item if module.ids == "item" else self.single
        if isinstance(module, ItemAttributes):
            return self.item_category
        if isinstance(module, ProductLayer):
            # Weights of 0 get gradients only where the embeddings are not 0, too.
            binary = {"values": self.values, "binary_fields": self.binary, "cross_pairs": self.binary}
            return (binary | {"binary_pairs": self.pairs, "item_pairs": self.item_pairs}).get(last)
        if isinstance(module, ConcatEncoder | ContextEmbedding) and last == "binary_embedding":
            return self.padded
        if isinstance(module, nn.Embedding) and module.num_embeddings == self.n_items:
            return self.item
        return None


def _rows_of(source_row: Tensor) -> Rows:
    return Rows(source_row, source_row != NEW)


def _source_rows(ids: list[Any], earlier: list[Any]) -> Tensor:
    """(n,) where each id was, NEW for those that were not."""
    place_of = {value: place for place, value in enumerate(earlier)}
    return torch.tensor([place_of.get(value, NEW) for value in ids], dtype=torch.int64)


def _count(source_row: Tensor, n_earlier: int) -> str:
    n_known = int((source_row != NEW).sum())
    return f"{n_known:,} known, {len(source_row) - n_known:,} new, {n_earlier - n_known:,} removed"


def _differing(
    earlier: Mapping[str, Any], current: Mapping[str, Any], path: str = "model", only: Sequence[str] = ()
) -> str:
    """The first setting of the model, or of its parts, that is another one; ``only``: of these keys."""
    for key, value in current.items():
        earlier_value = earlier.get(key)
        if key in FREE_KEYS or earlier_value == value:
            continue
        if isinstance(earlier_value, Mapping) and isinstance(value, Mapping):
            if text := _differing(earlier_value, value, f"{path}.{key}", only):
                return text
        elif not only or key in only:
            return f": {path}.{key} is {earlier_value} in the checkpoint and {value} in this run"
    return ""


def require_same_scores(
    earlier: Mapping[str, Any], current: Mapping[str, Any], source: str, path: str = "model"
) -> None:
    """Raises UserError where a model computes other scores than another one with the same weights.

    Args:
        earlier: the config of the model whose weights are taken.
        current: the config of the model that takes them.
        source: of the weights, for the message.
        path: of the model's config, for the message.
    """
    if text := _differing(earlier, current, path, SHAPELESS_KEYS):
        raise UserError(f"{source}: its weights cannot be used in this model{text}")

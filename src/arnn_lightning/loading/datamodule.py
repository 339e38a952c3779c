"""One DataModule for every model: session-parallel chunks of the train, validation and test sessions."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from arnn_lightning.batch import BatchChunk, ChunkSpec, Contexts, TrainChunk
from arnn_lightning.errors import UserError
from arnn_lightning.loading.contexts import (
    Assignment,
    AttributeDropout,
    assign_contexts,
    assign_item_contexts,
    context_codes,
    item_context_codes,
    single_attributes,
)
from arnn_lightning.loading.datasets import (
    ChunkIndex,
    NegativeScope,
    SessionParallelDataset,
    TrainDataset,
)
from arnn_lightning.loading.negatives import PopularitySampler
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.preprocessing.sessions import Sessions


class ChunkSampler(Sampler[ChunkIndex]):
    """The chunks of an epoch in their order, with the number of the epoch."""

    def __init__(self, n_chunks: int) -> None:
        self.n_chunks = n_chunks
        self.epoch = 0
        self.resume_at = 0  # the chunk at which a resumed epoch starts
        self.n_yielded = 0

    def set_epoch(self, epoch: int) -> None:  # called by Lightning
        self.epoch = epoch

    def __iter__(self) -> Iterator[ChunkIndex]:
        first, self.resume_at = self.resume_at, 0
        for index in range(first, self.n_chunks):
            self.n_yielded = index + 1
            yield self.epoch, index

    def __len__(self) -> int:
        return self.n_chunks


class ResumableDataLoader(DataLoader[Any]):
    """Chunks in their order, made in this process; Lightning saves and restores its place in the epoch."""

    def __init__(self, dataset: SessionParallelDataset | TrainDataset) -> None:
        self.chunks = ChunkSampler(len(dataset))
        # No workers: polars and forked workers can deadlock, and a chunk takes under 1 ms. A generator of its own: each
        # epoch's iterator would otherwise take a seed from the generator that dropout uses.
        super().__init__(
            dataset,
            batch_size=None,
            sampler=self.chunks,
            num_workers=0,
            collate_fn=_identity_collate,
            generator=torch.Generator(),
        )

    def state_dict(self) -> dict[str, int]:
        return {"chunk": self.chunks.n_yielded % self.chunks.n_chunks}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.chunks.resume_at = state["chunk"]


class SessionDataModule(LightningDataModule):
    """Chunks of a prepared data set.

    Args:
        prepared: the data set.
        batch_size: batch slots B of a training mini-batch on one device; each mini-batch is one optimizer step.
        steps_per_chunk: mini-batches K of a chunk.
        evaluation_batch_size: batch slots in validation and test; changes the speed only.
        n_sample: extra negatives per step.
        sample_alpha: exponent of the popularity by which they are sampled.
        negatives: on many devices, whether the negatives are ``global`` (of all devices) or ``local`` (the slot's own).
        assignment: whose contexts a session gets.
        item_assignment: which item's contexts an item gets.
        attribute_dropout: share of the attributes that are hidden in training.
        n_attributes: how many attributes are used; None for all.
        seed: seed of the samples.
        device: which of the ``n_devices`` this one is; each takes its own slots.
        n_devices: their number.

    Raises:
        UserError: a value out of range, or no negatives at all.
    """

    def __init__(
        self,
        prepared: PreparedDataset,
        *,
        batch_size: int,
        steps_per_chunk: int,
        evaluation_batch_size: int,
        n_sample: int,
        sample_alpha: float,
        negatives: NegativeScope,
        assignment: Assignment,
        item_assignment: Assignment,
        attribute_dropout: float,
        n_attributes: int | None,
        seed: int,
        device: int = 0,
        n_devices: int = 1,
    ) -> None:
        super().__init__()
        if negatives not in ("global", "local"):
            raise UserError(f"model.negatives={negatives}: choose global or local")
        for name, value, minimum in (
            ("model.batch_size", batch_size, 1),
            ("performance.steps_per_execution", steps_per_chunk, 1),
            ("evaluation.batch_size", evaluation_batch_size, 1),
            ("model.n_sample", n_sample, 0),
            ("model.sample_alpha", sample_alpha, 0),
        ):
            if not value >= minimum:
                raise UserError(f"{name}={value}: must be {minimum} or more")
        self.prepared = prepared
        self.batch_size = batch_size
        self.steps_per_chunk = steps_per_chunk
        self.evaluation_batch_size = evaluation_batch_size
        self.n_sample = n_sample
        self.sample_alpha = sample_alpha
        self.negatives: NegativeScope = negatives
        self.assignment: Assignment = assignment
        self.item_assignment: Assignment = item_assignment
        self.attribute_dropout = attribute_dropout
        self.seed = seed
        self.device = device
        self.n_devices = n_devices
        self._users, self.dims = prepared.user_contexts(n_attributes)
        self._contexts: Contexts | None = None

    def user_contexts(self) -> Contexts:
        """Every user's context codes (U + 1 rows), the last row for unknown contexts."""
        if self._contexts is None:
            self._contexts = context_codes(self._users, self.dims["single_sizes"])
        return self._contexts

    def item_contexts(self) -> Contexts:
        """Every item's context codes (I rows)."""
        items = assign_item_contexts(self.prepared.items(), self.item_assignment, self.seed)
        return item_context_codes(items, self.dims)

    def item_events(self) -> torch.Tensor:
        """(I,) training events of every item."""
        return torch.from_numpy(self.prepared.item_popularity())

    def category_events(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(C,) training events of every category of the single-valued fields, and (C,) the field it belongs to."""
        sizes, single = self.dims["single_sizes"], self.user_contexts().single
        sessions = self.sessions("train")
        user_events = torch.from_numpy(np.bincount(sessions.user, sessions.lengths, minlength=len(single)))
        events = torch.zeros(sum(sizes), dtype=torch.float64)
        events.index_add_(0, single.flatten(), user_events.repeat_interleave(len(sizes)))
        events *= 1 - self.attribute_dropout
        events[single[-1]] += self.attribute_dropout * user_events.sum()
        return events, torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))

    def unknown_shares(self, split: str) -> dict[str, float]:
        """Attribute -> share of the split's events whose user's value is unknown; attribute dropout not included."""
        sessions = self.sessions(split)
        events = np.bincount(sessions.user, sessions.lengths, minlength=self._users.height + 1)
        single, active = self.user_contexts()
        is_unknown = dict(zip(single_attributes(self._users), (single == single[-1]).T, strict=True))
        for name in self._binary_attributes().unique(maintain_order=True):
            codes = torch.from_numpy((self._binary_attributes() == name).arg_true().to_numpy().astype(np.int64))
            is_unknown[name] = ~torch.isin(active, codes).any(1)
        total = events.sum()
        return {name: float(events[unknown.numpy()].sum() / total) for name, unknown in is_unknown.items()}

    def _binary_attributes(self) -> pl.Series:
        n_binary = self.dims["n_binary"]
        return self.prepared.binary_attributes()[:n_binary] if n_binary else pl.Series(dtype=pl.String)

    def sessions(self, split: str) -> Sessions:
        """The sessions of a split, each with the user whose contexts it gets."""
        sessions = self.prepared.sessions(split)
        n_new = self.prepared.manifest.get("new_users", 0)
        users = assign_contexts(sessions.user, self._users.height, self.assignment, self.seed, n_new)
        return replace(sessions, user=users)

    def chunks(self, split: str, batch_size: int) -> SessionParallelDataset:
        """The chunks of ``train``, ``val`` or ``test``."""
        sessions = self.sessions(split)
        return SessionParallelDataset(sessions, batch_size, self.steps_per_chunk, self.device, self.n_devices)

    def train_dataset(self, spec: ChunkSpec) -> TrainDataset:
        """The training chunks of a model with ``spec``."""
        n_slots = self.batch_size * (self.n_devices if self.negatives == "global" else 1)
        if n_slots == 1 and not self.n_sample and not spec.full_catalogue:
            raise UserError(
                "model.batch_size=1 leaves no negatives: increase it or model.n_sample, or use "
                "model/loss=cross_entropy_full"
            )
        chunks = self.chunks("train", self.batch_size)
        n_items = int(self.dims["n_items"])
        item_events = np.bincount(chunks.sessions.item, minlength=n_items)
        sampler = PopularitySampler(item_events, self.n_sample, self.sample_alpha, self.seed)
        contexts = self.user_contexts()
        dropout = None
        if self.attribute_dropout:
            n_sessions, attributes = len(chunks.sessions.session), self._binary_attributes()
            dropout = AttributeDropout(self.attribute_dropout, contexts, attributes, n_sessions, self.seed)
        return TrainDataset(chunks, sampler, contexts, spec, n_items, self.batch_size, self.negatives, dropout)

    def train_dataloader(self) -> DataLoader[TrainChunk]:
        assert self.trainer is not None
        return ResumableDataLoader(self.train_dataset(self.trainer.lightning_module.chunk_spec))  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[BatchChunk] | list[Any]:
        return ResumableDataLoader(self.chunks("val", self.evaluation_batch_size)) if self.has_validation else []

    def test_dataloader(self) -> DataLoader[BatchChunk]:
        return ResumableDataLoader(self.chunks("test", self.evaluation_batch_size))

    @property
    def has_validation(self) -> bool:
        return bool(self.prepared.manifest["splits"]["val"]["events"])


def _identity_collate(chunk: Any) -> Any:
    return chunk

"""The types that cross between packages. K steps in a chunk, B batch slots, S single-valued fields, A active fields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

State = tuple[Tensor, ...]  # each (..., B, H): batch slots are the last dimension but one
# Which ids index a table: of items, or of the categories of all single-valued fields.
IdKind = Literal["item", "single"]
# Which rows of a table a training step reads: those of its input items (of each slot's last events, where the encoder
# reads them), its candidates, both (one table that embeds and scores), or its users' categories.
RowSource = Literal["item", "candidate", "item_and_candidate", "single"]


class Contexts(NamedTuple):
    """Context codes, one row per user or batch slot.

    Attributes:
        single: (N, S) rows of one table with the categories of all single-valued fields, one field after the other.
        active: (N, A) binary fields that are present, padded with -1.
    """

    single: Tensor
    active: Tensor


class StepInput(NamedTuple):
    """One mini-batch as an encoder gets it: one event in each of B batch slots.

    Attributes:
        item: (B,) the input items.
        contexts: the users' contexts, B rows.
        valid: (B,) False for empty slots, whose values are arbitrary and read nowhere; None: all slots are valid.
        user_terms: (B, ...) the encoder's ``user_terms`` of each slot, where they were computed beforehand.
        features: (B, W) the outputs of ARNN's frozen encoders, where they were computed beforehand.
        input_term: (B, sum of the encoder's ``input_sizes``) added to what it computes of the item, before any state.
        prefix: (B, P, H) P vectors as wide as a query that a window encoder reads before those of the session's items.
    """

    item: Tensor
    contexts: Contexts
    valid: Tensor | None
    user_terms: Tensor | None = None
    features: Tensor | None = None
    input_term: Tensor | None = None
    prefix: Tensor | None = None


class Candidates(NamedTuple):
    """The C columns that a training step scores, and each slot's positive among them.

    Attributes:
        positive: (B,) the column of each slot's target.
        counts: (C,) how often a column's item was sampled, as a target or as an extra negative; 0 for padding. None:
            the columns are the whole catalogue, once each.
        columns: (C,) which rows of the scorer's table the columns are; None: all rows in their order.
        log_q: (C,) log-probability that a sampled column shows the item, for losses that correct for it.
    """

    positive: Tensor
    counts: Tensor | None
    columns: Tensor | None
    log_q: Tensor | None


class BatchChunk(NamedTuple):
    """K consecutive session-parallel mini-batches of B slots; every field is (K, B).

    ``is_session_start``: the hidden state is reset before this event (E1). Empty slots are not ``valid``; they repeat
    the item and the user of a valid slot of their step.
    """

    item: Tensor
    target: Tensor
    user: Tensor  # whose contexts the session gets (data.contexts.assignment)
    session: Tensor
    position: Tensor  # events already seen: 1 at the first prediction of a session
    is_session_start: Tensor
    valid: Tensor


class Ragged(NamedTuple):
    """K arrays of different lengths, one after the other; ``padded``, where set, has them as (K, capacity)."""

    flat: Tensor
    sizes: np.ndarray
    padded: Tensor | None = None

    def split(self) -> tuple[Tensor, ...]:
        if self.padded is not None:
            return self.padded.unbind()
        parts: tuple[Tensor, ...] = self.flat.split(self.sizes.tolist())
        return parts

    def pad(self, capacity: int, repeat_last: bool = False) -> Ragged:
        """The same, padded with zeros, or with the last element of every array."""
        sizes = torch.from_numpy(self.sizes)
        padded = self.flat.new_zeros(len(self.sizes), capacity)
        if repeat_last and len(self.flat):
            padded += self.flat[sizes.cumsum(0) - 1][:, None]
        padded[torch.arange(capacity) < sizes[:, None]] = self.flat
        return Ragged(self.flat, self.sizes, padded)


class TrainChunk(NamedTuple):
    """K training steps, and which rows of which table each reads.

    Attributes:
        number: of the chunk in its epoch; equal numbers show the same events in every epoch.
        item: (K, B) the input items.
        user: (K, B) whose contexts the session gets.
        contexts: codes (K, B, S) and (K, B, A) where some attributes are hidden; None: those of ``user``.
        positive: (K, B) columns of the targets.
        is_session_start: (K, B) as in BatchChunk.
        valid: (K, B) as in BatchChunk.
        all_valid: (K,) on the host: whether no slot of the step is empty.
        rows: by source, the ids of the rows that each step reads, each once; empty where the optimizer updates whole
            tables. Those of ``item_and_candidate`` are the candidates and then the other input items.
        counts, columns, log_q: as in Candidates, for every step.
    """

    number: int
    item: Tensor
    user: Tensor
    contexts: Contexts | None
    positive: Tensor
    is_session_start: Tensor
    valid: Tensor
    all_valid: np.ndarray
    rows: dict[RowSource, Ragged]
    counts: Ragged | None
    columns: Ragged | None
    log_q: Ragged | None

    def steps(self) -> Iterator[tuple[Candidates, dict[RowSource, Tensor]]]:
        """The candidates of every step, and the rows that it reads."""
        n_steps = len(self.item)
        columns = (
            [None] * n_steps if ragged is None else ragged.split() for ragged in (self.counts, self.columns, self.log_q)
        )
        rows = zip(*(ragged.split() for ragged in self.rows.values()), strict=True) if self.rows else [()] * n_steps
        for candidates, ids in zip(map(Candidates, self.positive.unbind(), *columns), rows, strict=True):
            yield candidates, dict(zip(self.rows, ids, strict=True))


@dataclass(frozen=True)
class ChunkSpec:
    """The inputs that a model's training step reads, see ``TrainChunk``.

    Attributes:
        row_sources: the rows that the optimizer updates alone; empty: it updates whole tables.
        full_catalogue: whether all items are scored.
        log_q: whether the loss corrects for the sampling of the columns.
        padded: whether all steps have the same number of rows and columns, as a compiled step needs it.
        last_n_events: how many of a session's last events the encoder reads the items of.
    """

    row_sources: frozenset[RowSource]
    full_catalogue: bool
    log_q: bool
    padded: bool = False
    last_n_events: int = 1


def no_contexts(n: int, device: torch.device | str = "cpu") -> Contexts:
    """Contexts of ``n`` rows without any field."""
    return Contexts(*(torch.empty(n, 0, dtype=torch.int64, device=device) for _ in range(2)))

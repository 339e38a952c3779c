"""Session-parallel chunks of one split. K steps in a chunk, B batch slots, N extra negatives, I items."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from arnn_lightning.batch import BatchChunk, ChunkSpec, Contexts, Ragged, RowSource, TrainChunk
from arnn_lightning.loading.contexts import AttributeDropout
from arnn_lightning.loading.negatives import PopularitySampler
from arnn_lightning.loading.schedule import EMPTY, session_parallel_schedule
from arnn_lightning.preprocessing.sessions import Sessions

ChunkIndex = tuple[int, int]  # (epoch, chunk)
NegativeScope = Literal["global", "local"]


class SessionParallelDataset(Dataset[BatchChunk]):
    """The chunks of one split: the schedule of an epoch, cut every ``steps_per_chunk`` steps.

    Each of ``n_devices`` computes the same schedule of all their slots; ``device`` takes its ``batch_size`` of them.
    """

    def __init__(
        self,
        sessions: Sessions,
        batch_size: int,
        steps_per_chunk: int,
        device: int = 0,
        n_devices: int = 1,
    ) -> None:
        self.sessions = sessions
        self.steps_per_chunk = steps_per_chunk
        self.device = device
        self.n_devices = n_devices
        self.local_slots = slice(device * batch_size, (device + 1) * batch_size)
        self.schedule = session_parallel_schedule(sessions.offset, n_devices * batch_size)

    def __len__(self) -> int:
        return -(-len(self.schedule.event) // self.steps_per_chunk)

    def __getitem__(self, index: ChunkIndex) -> BatchChunk:
        """The chunk of this device's slots; the same in every epoch."""
        return BatchChunk(*(field[:, self.local_slots] for field in self.global_chunk(index[1])))

    def session_index(self, chunk: int) -> np.ndarray:
        """(K, slots) the session in every slot of all devices, an index into those of the split.

        Empty slots repeat a valid one, so that they read no row of their own (E29).
        """
        return self._repeat_valid(chunk, self.schedule.session)

    def input_items(self, chunk: int, last_n_events: int) -> Tensor:
        """(K, slots * L) the items of the last L events in every slot of all devices, the current one included.

        The first item of a session with fewer events is repeated. Empty slots repeat a valid one.
        """
        event = self._repeat_valid(chunk, self.schedule.event)[:, :, None] - np.arange(last_n_events)
        first = self.sessions.offset[self.session_index(chunk)][:, :, None]
        return torch.from_numpy(self.sessions.item[np.maximum(event, first)]).flatten(1)

    def _repeat_valid(self, chunk: int, values: np.ndarray) -> np.ndarray:
        values = values[self._steps(chunk)]
        valid = values != EMPTY
        slot = np.where(valid, np.arange(values.shape[1]), valid.argmax(1)[:, None])
        return np.take_along_axis(values, slot, 1)

    def _steps(self, chunk: int) -> slice:
        return slice(chunk * self.steps_per_chunk, (chunk + 1) * self.steps_per_chunk)

    def global_chunk(self, chunk: int) -> BatchChunk:
        """The chunk of all devices' slots."""
        valid = self.schedule.event[self._steps(chunk)] != EMPTY
        event, session = self._repeat_valid(chunk, self.schedule.event), self.session_index(chunk)
        fields = {
            "item": self.sessions.item[event],
            # A session's last event is never an input, so event + 1 is in the same session.
            "target": self.sessions.item[event + 1],
            "user": self.sessions.user[session],
            "session": np.where(valid, self.sessions.session[session], EMPTY),
            "position": np.where(valid, event - self.sessions.offset[session] + 1, 0),
            "is_session_start": self.schedule.is_session_start[self._steps(chunk)],
            "valid": valid,
        }
        return BatchChunk(**{name: torch.from_numpy(values) for name, values in fields.items()})


class TrainDataset(Dataset[TrainChunk]):
    """Training chunks: candidates, and the rows that each step reads, computed for a chunk at once.

    The columns of a step's scores are the distinct items among its slots' targets and the extra negatives.

    log q: a column chosen at random beside a slot's positive, of B - 1 other slots' targets and N extra items, shows an
    item with probability q = ((B - 1) p + N s) / (B - 1 + N), p its share of the training targets and s its share under
    popularity^alpha. One q for all columns, whichever way an item came in: a positive and a negative that are the same
    item must be corrected equally.

    Args:
        chunks: the training split.
        sampler: of the extra negatives.
        contexts: every user's context codes.
        spec: what the model reads.
        n_items: I.
        batch_size: B of one device.
        negatives: on many devices, whether a slot's negatives are ``global`` or of its own device (``local``).
        dropout: hides attributes; None: none is hidden.
    """

    def __init__(
        self,
        chunks: SessionParallelDataset,
        sampler: PopularitySampler,
        contexts: Contexts,
        spec: ChunkSpec,
        n_items: int,
        batch_size: int,
        negatives: NegativeScope = "global",
        dropout: AttributeDropout | None = None,
    ) -> None:
        self.dropout = dropout
        self.chunks = chunks
        self.sampler = sampler
        self.contexts = contexts
        self.spec = spec
        self.n_items = n_items
        self.batch_size = batch_size
        self.local = negatives == "local" and chunks.n_devices > 1
        n_slots = batch_size * (1 if self.local else chunks.n_devices)
        self.log_q: Tensor | None = None
        if spec.log_q:
            sessions, n_sample = chunks.sessions, sampler.n_sample
            # Every event but a session's first is a target.
            targets = np.bincount(np.delete(sessions.item, sessions.offset[:-1]), minlength=n_items)
            q = ((n_slots - 1) * targets / targets.sum() + n_sample * sampler.probability) / (n_slots - 1 + n_sample)
            with np.errstate(divide="ignore"):  # an item that no column shows
                self.log_q = torch.from_numpy(np.log(q)).to(torch.get_default_dtype())

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: ChunkIndex) -> TrainChunk:
        batch = self.chunks.global_chunk(index[1])
        local, sources = self.chunks.local_slots, self.spec.row_sources
        rows: dict[RowSource, Ragged] = {}
        columns = ScoredColumns(batch.target[:, local])
        if not self.spec.full_catalogue:
            candidates, columns = self._candidates(index, batch)
            if sources & {"candidate", "item_and_candidate"}:  # a tied scorer's biases are read as candidates
                rows["candidate"] = candidates
            if "item_and_candidate" in sources:
                rows["item_and_candidate"] = _append_missing_ids(candidates, self._input_ids(index[1]), self.n_items)
        if "item" in sources:
            rows["item"] = self._input_ids(index[1])
        contexts = None
        if self.dropout is not None:
            hidden = self.dropout.hidden(index[0])[self.chunks.session_index(index[1])]
            contexts = self.dropout.apply(Contexts(*(codes[batch.user] for codes in self.contexts)), hidden)
        if "single" in sources:
            single = self.contexts.single[batch.user] if contexts is None else contexts.single
            rows["single"] = unique_ids(single.flatten(1)).ids
        if self.spec.padded:
            rows = {source: ids.pad(self._capacity(source), repeat_last=True) for source, ids in rows.items()}
            columns = columns.pad(self._capacity("candidate"))
        valid = batch.valid[:, local]
        return TrainChunk(
            number=index[1],
            item=batch.item[:, local],
            user=batch.user[:, local],
            contexts=None if contexts is None else Contexts(*(codes[:, local] for codes in contexts)),
            is_session_start=batch.is_session_start[:, local],
            valid=valid,
            all_valid=valid.all(1).numpy(),
            rows=rows,
            **columns._asdict(),
        )

    def _input_ids(self, chunk: int) -> Ragged:
        return unique_ids(self.chunks.input_items(chunk, self.spec.last_n_events)).ids

    def _capacity(self, source: RowSource) -> int:
        """The largest number of rows that a step can read."""
        n_slots = self.chunks.n_devices * self.batch_size
        n_inputs, n_fields = n_slots * self.spec.last_n_events, self.contexts.single.shape[1]
        n_candidates = n_slots + self.sampler.n_sample
        return {
            "item": min(n_inputs, self.n_items),
            "candidate": min(n_candidates, self.n_items),
            "item_and_candidate": min(n_candidates + n_inputs, self.n_items),
            "single": n_slots * n_fields,
        }[source]

    def _candidates(self, index: ChunkIndex, batch: BatchChunk) -> tuple[Ragged, "ScoredColumns"]:
        """The scorer's rows of every step, and which columns this device's slots are scored on."""
        epoch, chunk = index
        n_steps, first_step = len(batch.target), chunk * self.chunks.steps_per_chunk
        # With local negatives every device samples its own, and its part of the rows are its columns.
        n_parts, part = (self.chunks.n_devices, self.chunks.device) if self.local else (1, 0)
        sampled = [
            torch.from_numpy(self.sampler.sample(epoch, first_step, n_steps, device)) for device in range(n_parts)
        ]
        targets = batch.target.chunk(n_parts, 1)
        valid = batch.valid.chunk(n_parts, 1)
        if self.local:
            targets = tuple(map(_fill_empty_slots, targets, valid))
        parts = [torch.cat(pair, 1) for pair in zip(targets, sampled, strict=True)]
        rows = unique_ids(torch.cat(parts, 1))
        # In a step without a valid slot nothing of the part matters, but it must have some column.
        counted_KB = valid[part] | ~valid[part].any(1, keepdim=True)
        weight = torch.cat([counted_KB, torch.ones_like(sampled[part], dtype=torch.bool)], 1).float()
        ids, columns, distinct = rows.ids.flat, None, rows
        if self.local:  # the rows are those of all devices
            distinct = unique_ids(rows.position.chunk(n_parts, 1)[part])
            columns = distinct.ids
            ids = ids[columns.flat + torch.from_numpy(np.repeat(_starts(rows.ids), columns.sizes))]
        sizes = distinct.ids.sizes
        counted = distinct.position + torch.from_numpy(_starts(distinct.ids))[:, None]
        counts = torch.zeros(len(ids), dtype=weight.dtype).index_add_(0, counted.flatten(), weight.flatten())
        if not self.spec.row_sources:  # tables are read whole
            columns = Ragged(ids, sizes)
        log_q = None if self.log_q is None else Ragged(self.log_q[ids], sizes)
        slots = slice(0, self.batch_size) if self.local else self.chunks.local_slots
        return rows.ids, ScoredColumns(distinct.position[:, slots], Ragged(counts, sizes), columns, log_q)


class ScoredColumns(NamedTuple):
    """The columns that the slots of one device are scored on, as in ``Candidates``, for a chunk's steps.

    Of a loss over the full catalogue there are the positives alone, as item ids.
    """

    positive: Tensor
    counts: Ragged | None = None
    columns: Ragged | None = None
    log_q: Ragged | None = None

    def pad(self, n_columns: int) -> "ScoredColumns":
        """Steps of equal sizes, for a compiled step; ``columns`` is None there, as the rows are the columns."""
        counts, log_q = (None if ragged is None else ragged.pad(n_columns) for ragged in (self.counts, self.log_q))
        return self._replace(counts=counts, log_q=log_q)


class UniqueIds(NamedTuple):
    """The distinct ids of every step, sorted, and the (K, C) position of every element among its step's ids."""

    ids: Ragged
    position: Tensor


def unique_ids(ids_KC: Tensor) -> UniqueIds:
    """Distinct ids of every step, all steps at once."""
    n_steps = len(ids_KC)
    stride = int(ids_KC.max()) + 1 if ids_KC.numel() else 1
    key = ids_KC + torch.arange(n_steps)[:, None] * stride
    if stride <= 8 * ids_KC.shape[1]:  # marking all ids is faster than sorting
        is_present = torch.zeros(n_steps * stride, dtype=torch.bool)
        is_present[key] = True
        unique, inverse = is_present.nonzero()[:, 0], (is_present.cumsum(0) - 1)[key]
    else:
        unique, inverse = torch.unique(key, return_inverse=True)
    step_of = unique // stride
    bounds = torch.searchsorted(step_of, torch.arange(n_steps + 1))
    return UniqueIds(Ragged(unique - step_of * stride, bounds.diff().numpy()), inverse - bounds[:-1, None])


def _append_missing_ids(first: Ragged, second: Ragged, n_ids: int) -> Ragged:
    """Every step's ids of ``first``, then those of ``second`` that are not in ``first``; both sorted within a step.

    >>> first, second = Ragged(torch.tensor([1, 4]), np.array([2])), Ragged(torch.tensor([2, 4]), np.array([2]))
    >>> _append_missing_ids(first, second, 5).flat
    tensor([1, 4, 2])
    """
    step_1, step_2 = (np.repeat(np.arange(len(ids.sizes)), ids.sizes) for ids in (first, second))
    key_1, key_2 = first.flat.numpy() + step_1 * n_ids, second.flat.numpy() + step_2 * n_ids
    place = np.searchsorted(key_1, key_2).clip(max=len(key_1) - 1)
    is_other = key_1[place] != key_2
    n_others = np.bincount(step_2[is_other], minlength=len(first.sizes))
    flat = torch.empty(len(key_1) + int(n_others.sum()), dtype=torch.int64)
    flat[torch.from_numpy(np.arange(len(key_1)) + (np.cumsum(n_others) - n_others)[step_1])] = first.flat
    others = np.cumsum(first.sizes)[step_2[is_other]] + np.arange(int(n_others.sum()))
    flat[torch.from_numpy(others)] = second.flat[torch.from_numpy(is_other)]
    return Ragged(flat, first.sizes + n_others)


def _fill_empty_slots(values_KB: Tensor, valid_KB: Tensor) -> Tensor:
    """Empty slots get the value of a valid one, if any: the loss takes the log of how often a positive counts."""
    slot_KB = torch.where(valid_KB, torch.arange(valid_KB.shape[1]), valid_KB.int().argmax(1, keepdim=True))
    return values_KB.gather(1, slot_KB)


def _starts(ragged: Ragged) -> np.ndarray:
    """Where each step's part starts."""
    starts: np.ndarray = np.cumsum(ragged.sizes) - ragged.sizes
    return starts

"""One DataModule for every model: session-parallel windows of the train, validation and test sessions."""

import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from arnn_lightning.batch import Contexts, Lookup, TrainingWindow, Window
from arnn_lightning.errors import UserError
from arnn_lightning.loading.contexts import Assignment, assign_contexts
from arnn_lightning.loading.schedule import DEAD, schedule
from arnn_lightning.preprocessing.contexts import PREFIX
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.preprocessing.sessions import Sessions

Place = tuple[int, int]  # (epoch, window)
Negatives = Literal["global", "local"]


class WindowOrder(Sampler[Place]):
    """The windows of an epoch in their order; knows the epoch, so that its negatives depend on nothing else."""

    def __init__(self, windows: int) -> None:
        self.windows = windows
        self.epoch = 0
        self.start = 0  # where a resumed epoch goes on
        self.given = 0  # windows of the epoch that were handed out

    def set_epoch(self, epoch: int) -> None:  # called by Lightning
        self.epoch = epoch

    def __iter__(self) -> Iterator[Place]:
        first, self.start = self.start, 0
        for index in range(first, self.windows):
            self.given = index + 1
            yield self.epoch, index

    def __len__(self) -> int:
        return self.windows


class WindowLoader(DataLoader[Any]):
    """Windows in their order, made in the process itself; Lightning saves and restores its place in the epoch."""

    def __init__(self, dataset: Dataset[Any], windows: int) -> None:
        self.order = WindowOrder(windows)
        # No workers: polars and forked ones can deadlock, and a window takes under 1 ms. A generator of its own, or
        # each epoch's iterator would draw a seed from the one that dropout draws from.
        super().__init__(
            dataset,
            batch_size=None,
            sampler=self.order,
            num_workers=0,
            collate_fn=_as_it_is,
            generator=torch.Generator(),
        )

    def state_dict(self) -> dict[str, int]:
        return {"window": self.order.given % self.order.windows}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.order.start = state["window"]


class Windows(Dataset[Window]):
    """The windows of one split: the schedule of an epoch, cut every ``steps`` mini-batches.

    Every one of ``devices`` makes the same schedule of all their lanes, and ``device`` takes its own ``lanes`` of it.
    """

    def __init__(
        self, sessions: Sessions, users: np.ndarray, lanes: int, steps: int, device: int = 0, devices: int = 1
    ) -> None:
        self.sessions = sessions
        self.users = users
        self.steps = steps
        self.device = device
        self.devices = devices
        self.own = slice(device * lanes, (device + 1) * lanes)
        self.schedule = schedule(sessions.offset, devices * lanes)

    def __len__(self) -> int:
        return -(-len(self.schedule.event) // self.steps)

    def __getitem__(self, place: Place) -> Window:
        return self.take_own(self.of_all_devices(place))

    def take_own(self, window: Window) -> Window:
        return window if self.devices == 1 else Window(*(field[:, self.own] for field in window))

    def of_all_devices(self, place: Place) -> Window:
        cut = slice(place[1] * self.steps, (place[1] + 1) * self.steps)
        event, session = self.schedule.event[cut], self.schedule.session[cut]
        alive = event != DEAD
        item = np.where(alive, self.sessions.item[event], 0)
        # A session's last event is never shown, so event + 1 is in the same session; DEAD + 1 = 0 is masked.
        target = np.where(alive, self.sessions.item[event + 1], 0)
        return Window(
            item=torch.from_numpy(item),
            target=torch.from_numpy(target),
            user=torch.from_numpy(np.where(alive, self.users[session], 0)),
            session=torch.from_numpy(np.where(alive, self.sessions.session[session], DEAD)),
            position=torch.from_numpy(np.where(alive, event - self.sessions.offset[session] + 1, 0)),
            start=torch.from_numpy(self.schedule.start[cut]),
            alive=torch.from_numpy(alive),
        )


class TrainingWindows(Dataset[TrainingWindow]):
    """Windows with each step's unique rows and extra negatives, drawn in bulk by popularity^alpha.

    Extra negatives are drawn with replacement, whatever the lanes' targets are; alpha 0 draws all items alike, those
    without a training event included.

    log q: a column chosen at random among those scored beside a lane's own, B - 1 other lanes' targets and N extra
    items, shows an item with probability q = ((B - 1) p + N s) / (B - 1 + N), p its share of the training targets and
    s its share under popularity^alpha. One q for all columns, whichever way an item came in: a positive and a negative
    that are the same item must be corrected alike.
    """

    def __init__(
        self,
        windows: Windows,
        n_items: int,
        lanes: int,
        n_sample: int,
        sample_alpha: float,
        score_all: bool,
        log_q: bool,
        seed: int,
        negatives: Negatives = "global",
    ) -> None:
        self.windows = windows
        self.apart = negatives == "local" and windows.devices > 1
        lanes *= 1 if self.apart else windows.devices
        self.n_sample = n_sample
        self.score_all = score_all
        self.seed = seed
        sessions = windows.sessions
        popularity = np.bincount(sessions.item, minlength=n_items).astype(np.float64) ** sample_alpha
        share = popularity / popularity.sum()
        self.cumulated = np.cumsum(share)
        self.log_q: Tensor | None = None
        if log_q:
            targets = np.bincount(np.delete(sessions.item, sessions.offset[:-1]), minlength=n_items)
            q = ((lanes - 1) * targets / targets.sum() + n_sample * share) / (lanes - 1 + n_sample)
            with np.errstate(divide="ignore"):  # an item that no column shows
                self.log_q = torch.from_numpy(np.log(q)).float()

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, place: Place) -> TrainingWindow:
        whole = self.windows.of_all_devices(place)
        window = self.windows.take_own(whole)
        items = lookups(whole.item, whole.alive)
        if self.windows.devices > 1:
            items = [Lookup(one.rows, one.inverse[self.windows.own]) for one in items]
        full = window.alive.all(1).tolist()
        if self.score_all:
            return TrainingWindow(place[1], window, full, items, [], [], [], None)
        if self.apart:
            found, counts, own = self._own_candidates(place, whole)
        else:
            found, counts = _counted(*self._with_negatives(place, whole.target, whole.alive))
            if self.windows.devices > 1:
                lanes = whole.item.shape[1]
                found = [
                    Lookup(one.rows, torch.cat([one.inverse[self.windows.own], one.inverse[lanes:]])) for one in found
                ]
            own = []
        log_q = None
        if self.log_q is not None:
            log_q = [self.log_q[one.rows[own[k]] if own else one.rows] for k, one in enumerate(found)]
        return TrainingWindow(place[1], window, full, items, found, counts, own, log_q)

    def _with_negatives(self, place: Place, target: Tensor, alive: Tensor, device: int = 0) -> tuple[Tensor, Tensor]:
        """Targets and extra negatives (K, B + N), and which of them are real."""
        if not self.n_sample:
            return target, alive
        shape = (len(target), self.n_sample)
        # Epoch and window seed the draw, so that it depends on no history.
        seed = [self.seed, *place, device] if device else [self.seed, *place]
        chance = np.random.default_rng(seed).random(shape)
        negatives = np.searchsorted(self.cumulated, chance, side="right").clip(max=len(self.cumulated) - 1)
        there = torch.ones(shape, dtype=torch.bool)
        return torch.cat([target, torch.from_numpy(negatives)], 1), torch.cat([alive, there], 1)

    def _own_candidates(self, place: Place, whole: Window) -> tuple[list[Lookup], list[Tensor], list[Tensor]]:
        """Rows of all devices' candidates; counts and places among the rows of this device's own."""
        pieces = zip(
            whole.target.chunk(self.windows.devices, 1), whole.alive.chunk(self.windows.devices, 1), strict=True
        )
        drawn = [self._with_negatives(place, *piece, device) for device, piece in enumerate(pieces)]
        everything = lookups(*(torch.cat(one, 1) for one in zip(*drawn, strict=True)))
        ids, real = drawn[self.windows.device]
        # In a step in which this device has nothing alive, any row will do: nothing of it counts.
        nothing = ~real.any(1, keepdim=True)
        first = torch.stack([one.rows[0] for one in everything])[:, None]
        found, counts = _counted(torch.where(nothing, first, ids), real | nothing)
        own = [torch.searchsorted(one.rows, mine.rows) for one, mine in zip(everything, found, strict=True)]
        rows = [Lookup(one.rows, mine.inverse) for one, mine in zip(everything, found, strict=True)]
        return rows, counts, own


def _counted(ids_KC: Tensor, real_KC: Tensor) -> tuple[list[Lookup], list[Tensor]]:
    """The Lookup of every step, and how often each row is real in it."""
    found, there_KC = lookups(ids_KC, real_KC), real_KC.float()
    return found, [
        there_KC.new_zeros(len(one.rows)).index_add_(0, one.inverse, there_KC[k]) for k, one in enumerate(found)
    ]


def lookups(ids_KC: Tensor, real_KC: Tensor) -> list[Lookup]:
    """Unique rows and inverse of every step at once; ids that are not ``real`` take the first row's place."""
    steps = len(ids_KC)
    stride = int(ids_KC.max()) + 1
    first_K1 = torch.where(real_KC, ids_KC, stride).amin(1, keepdim=True)  # some real row of the step
    key = torch.where(real_KC, ids_KC, first_K1) + torch.arange(steps)[:, None] * stride
    if stride <= 8 * ids_KC.shape[1]:  # a table over all items is shorter than sorting
        there = torch.zeros(steps * stride, dtype=torch.bool)
        there[key] = True
        unique, inverse = there.nonzero()[:, 0], (there.cumsum(0) - 1)[key]
    else:
        unique, inverse = torch.unique(key, return_inverse=True)
    step_of = unique // stride
    bounds = torch.searchsorted(step_of, torch.arange(steps + 1)).tolist()
    rows = unique - step_of * stride
    return [Lookup(rows[bounds[k] : bounds[k + 1]], inverse[k] - bounds[k]) for k in range(steps)]


class SessionDataModule(LightningDataModule):
    """Serves windows of a prepared data set.

    Args:
        prepared: the data set.
        lanes: lanes B of a training mini-batch; each mini-batch is one optimizer step.
        steps: mini-batches K of a window.
        evaluation_lanes: lanes in validation and test; changes the speed only.
        n_sample: extra negatives per step.
        sample_alpha: exponent of the popularity by which they are drawn.
        score_all: True where the loss scores the whole catalogue, so that no rows need finding.
        log_q: True where the loss corrects scores by how likely their columns are.
        assignment: whose contexts a session gets.
        n_attributes: how many attributes are used; None for all.
        seed: seed of the draws.
        negatives: on many devices, whether the negatives are ``global`` (of all devices) or ``local`` (of the slot's own).
        device: which of the ``devices`` this one is; each shows its own lanes.
        devices: their number.

    Raises:
        UserError: unknown choice, no lane, a negative number of negatives, or a loss that would never see a negative.
    """

    def __init__(
        self,
        prepared: PreparedDataset,
        *,
        lanes: int,
        steps: int,
        evaluation_lanes: int,
        n_sample: int,
        sample_alpha: float,
        score_all: bool,
        log_q: bool,
        assignment: Assignment,
        n_attributes: int | None,
        seed: int,
        negatives: Negatives = "global",
        device: int = 0,
        devices: int = 1,
    ) -> None:
        super().__init__()
        if negatives not in ("global", "local"):
            raise UserError(f"model.negatives={negatives}: choose global or local")
        for name, value, least in (
            ("model.batch_size", lanes, 1),
            ("performance.steps_per_execution", steps, 1),
            ("evaluation.batch_size", evaluation_lanes, 1),
            ("model.n_sample", n_sample, 0),
            ("model.sample_alpha", sample_alpha, 0),
        ):
            if not value >= least:
                raise UserError(f"{name}={value}: must be {least} or more")
        self.prepared = prepared
        self.lanes = lanes
        self.steps = steps
        self.evaluation_lanes = evaluation_lanes
        self.n_sample = n_sample
        self.sample_alpha = sample_alpha
        self.score_all = score_all
        self.log_q = log_q
        self.assignment: Assignment = assignment
        self.n_attributes = n_attributes
        self.seed = seed
        self.negatives: Negatives = negatives
        self.device = device
        self.devices = devices

    def _windows(self, split: str, lanes: int) -> Windows:
        sessions = self.prepared.sessions(split)
        users = assign_contexts(sessions.user, self.prepared.users().height, self.assignment, self.seed)
        return Windows(sessions, users, lanes, self.steps, self.device, self.devices)

    def train_dataloader(self) -> DataLoader[TrainingWindow]:
        among = self.lanes * (self.devices if self.negatives == "global" else 1)
        if among == 1 and not self.n_sample and not self.score_all:
            raise UserError(
                "model.batch_size=1 leaves no negatives: add lanes or model.n_sample, or take model/loss=cross_entropy_full"
            )
        windows = TrainingWindows(
            self._windows("train", self.lanes),
            int(self.prepared.dims["n_items"]),
            self.lanes,
            self.n_sample,
            self.sample_alpha,
            self.score_all,
            self.log_q,
            self.seed,
            self.negatives,
        )
        return _loader(windows)

    def val_dataloader(self) -> DataLoader[Window] | list[Any]:
        return _loader(self._windows("val", self.evaluation_lanes)) if self.has_validation else []

    def test_dataloader(self) -> DataLoader[Window]:
        return _loader(self._windows("test", self.evaluation_lanes))

    @property
    def has_validation(self) -> bool:
        return bool(self.prepared.manifest["splits"]["val"]["events"])

    def contexts(self) -> Contexts:
        """Every user's context codes, with a last row for "everything unknown"."""
        users, _ = self.prepared.user_contexts(self.n_attributes)
        active = users["active"].to_list()
        width = max(map(len, active), default=0)
        padded = np.full((users.height + 1, max(width, 1)), -1, np.int64)
        lengths = users["active"].list.len().to_numpy().astype(np.int64)
        rows = np.repeat(np.arange(users.height), lengths)
        columns = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        padded[rows, columns] = users["active"].explode().drop_nulls().to_numpy()
        single = users.select(pl.col(f"^{re.escape(PREFIX)}.*$")).to_numpy().astype(np.int64)
        single = single.reshape(users.height, -1)  # a frame without columns has no rows
        unknown = np.zeros((1, single.shape[1]), np.int64)
        return Contexts(torch.from_numpy(np.concatenate([single, unknown])), torch.from_numpy(padded))


def _loader(dataset: Windows | TrainingWindows) -> WindowLoader:
    return WindowLoader(dataset, len(dataset))


def _as_it_is(window: Any) -> Any:
    return window

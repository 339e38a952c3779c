"""One DataModule for every model: session-parallel windows of the train, validation and test sessions."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from arnn_lightning.data.contexts import PREFIX, Draw, draw_users
from arnn_lightning.data.lanes import DEAD, schedule
from arnn_lightning.data.prepare import Prepared
from arnn_lightning.data.window import Contexts, Lookup, Sessions, TrainingWindow, Window
from arnn_lightning.errors import UserError

Place = tuple[int, int]  # (epoch, window)


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
    """The windows of one split: the schedule of an epoch, cut every ``steps`` mini-batches."""

    def __init__(self, sessions: Sessions, users: np.ndarray, lanes: int, steps: int) -> None:
        self.sessions = sessions
        self.users = users
        self.steps = steps
        self.schedule = schedule(sessions.offset, lanes)

    def __len__(self) -> int:
        return -(-len(self.schedule.event) // self.steps)

    def __getitem__(self, place: Place) -> Window:
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
    ) -> None:
        self.windows = windows
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
        window = self.windows[place]
        items = lookups(window.item, window.alive)
        full = window.alive.all(1).tolist()
        if self.score_all:
            return TrainingWindow(place[1], window, full, items, [], [], None)
        scored, real = window.target, window.alive
        if self.n_sample:
            shape = (len(scored), self.n_sample)
            # Epoch and window seed the draw, so that it depends on no history.
            chance = np.random.default_rng([self.seed, *place]).random(shape)
            negatives = np.searchsorted(self.cumulated, chance, side="right").clip(max=len(self.cumulated) - 1)
            scored = torch.cat([scored, torch.from_numpy(negatives)], 1)
            real = torch.cat([real, torch.ones(shape, dtype=torch.bool)], 1)
        found = lookups(scored, real)
        there_KC = real.float()
        counts = [torch.zeros(len(one.rows)).index_add_(0, one.inverse, there_KC[k]) for k, one in enumerate(found)]
        log_q = None if self.log_q is None else [self.log_q[one.rows] for one in found]
        return TrainingWindow(place[1], window, full, items, found, counts, log_q)


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
        draw: whose contexts a session sees.
        shown: how many attributes of a user the model is told; None for all.
        seed: seed of the draws.

    Raises:
        UserError: no lane, a negative number of negatives, or a loss that would never see a negative.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        lanes: int,
        steps: int,
        evaluation_lanes: int,
        n_sample: int,
        sample_alpha: float,
        score_all: bool,
        log_q: bool,
        draw: Draw,
        shown: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("model.lanes", lanes, 1),
            ("window_steps", steps, 1),
            ("evaluation.lanes", evaluation_lanes, 1),
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
        self.draw: Draw = draw
        self.shown = shown
        self.seed = seed

    def _windows(self, split: str, lanes: int) -> Windows:
        sessions = self.prepared.sessions(split)
        users = draw_users(sessions.user, self.prepared.users().height, self.draw, self.seed)
        return Windows(sessions, users, lanes, self.steps)

    def train_dataloader(self) -> DataLoader[TrainingWindow]:
        if self.lanes == 1 and not self.n_sample and not self.score_all:
            raise UserError(
                "model.lanes=1 leaves no negatives: add lanes or model.n_sample, or take model/loss=cross_entropy_full"
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
        users, _ = self.prepared.told(self.shown)
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

"""SessionModel: from a window of mini-batches to losses, ranks, logs and optimizer steps.

Shapes: K steps in a window, B lanes, I items, H the width of a query, L layers of a hidden state.
Every mini-batch is one optimizer step, as in the paper; a window only lets one ``training_step`` run K of them,
because Lightning's loop costs more than a small step does.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from arnn_lightning.batch import Contexts, Step, TrainingWindow, Window
from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.metrics import compute_metrics
from arnn_lightning.evaluation.ranking import (
    count_higher_and_tied,
    count_higher_and_tied_blockwise,
    count_recommendations,
    rank,
)
from arnn_lightning.losses.losses import Objective, mean_over_lanes
from arnn_lightning.nn.collectives import gather, gather_rows, sum_gradients, sum_over_devices, world
from arnn_lightning.nn.gru import GRUStep
from arnn_lightning.nn.table import ItemScorer, RowTable
from arnn_lightning.preprocessing.sessions import Sessions

State = tuple[Tensor, ...]  # each (..., B, H): lanes are the last dimension but one
OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
LAYOUT = 2  # of a checkpoint: 1 had no such number, and the state of one device only


class SessionModel(LightningModule):
    """What every model shares. A model says how a step becomes a query, and how queries score items.

    Args:
        name: the model's name in tables.
        n_items: size of the catalogue.
        optimizer: makes the optimizer from the parameters; None for models that are counted, not trained.
        loss: the objective; None likewise.
    """

    scorer: ItemScorer | None
    hidden_size: int  # width of a query

    def __init__(
        self,
        name: str,
        n_items: int,
        optimizer: OptimizerFactory | None = None,
        loss: Objective | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.scorer = None
        self.name = name
        self.n_items = n_items
        self.optimizer_factory = optimizer
        self.objective = loss
        self.compiled_objective: Callable[..., Tensor] | None = None
        self.frozen = False  # a part of ARNN that learns no more
        self.prefix = ""  # "session/" and "context/" for ARNN's parts
        self.ties = "conservative"
        self.metric_names = ["recall@20", "mrr@20"]  # computed in validation and test
        self.headline_metrics = self.metric_names  # shown while training
        self.keeps_lists = False  # a second pass in evaluation counts how often each item is recommended
        self.bf16 = False  # matrix products of training in bfloat16; losses, updates and ranks stay in float32
        self.about: dict[str, Any] = {}  # plain values that travel in the checkpoint: config, manifest
        self.register_buffer("mini_batches", torch.zeros((), dtype=torch.int64))
        self.mini_batches: Tensor
        self._training_state: State | None = None
        self._evaluation_state: State | None = None
        self._counts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.evaluated: dict[str, Tensor] = {}  # the last evaluation: session, position, higher, equal
        self.listed: Tensor | None = None  # (I,) how often each item was recommended in it
        self.events_trained = 0
        self.seconds_trained = 0.0
        self._epoch_loss = (0.0, 0)  # sum over events, events
        self._resumed: dict[str, Any] | None = None  # where a resumed run goes on

    # What a model is

    @property
    def parts(self) -> Mapping[str, "SessionModel"]:
        """Models by role that are trained before this one."""
        return {}

    def assemble(self) -> None:
        """Called once the parts are trained, before this model is trained or its checkpoint is read."""

    def count(self, sessions: Sessions) -> None:
        """Fits what is counted from the training sessions; for models without gradients."""

    def set_contexts(self, contexts: Contexts) -> None:
        """Receives every user's contexts; for models that look at users."""

    def initial_state(self, lanes: int) -> State:
        """Hidden state of ``lanes`` fresh lanes; empty for models without memory."""
        return ()

    def represent(self, step: Step, state: State) -> tuple[Tensor, State]:
        """One event in every lane -> (query (B, H), next state). Resets are already done."""
        raise NotImplementedError(f"{type(self).__name__} must say how a step becomes a query")

    def remembers(self, step: Step) -> bool:
        """Whether ``represent`` knows what comes of a training step without looking at the state before it."""
        return False

    def score(self, query_NH: Tensor) -> Tensor:
        """Raw scores (N, I) of all items."""
        assert self.scorer is not None
        return self.scorer.all(query_NH)

    # Training

    def configure_optimizers(self) -> Optimizer:
        assert self.optimizer_factory is not None
        optimizer = self.optimizer_factory([weight for weight in self.parameters() if weight.requires_grad])
        for module in self.modules():
            if isinstance(module, RowTable):
                module.sparse = getattr(optimizer, "sparse_gradients", False)
        return optimizer

    def compile_inner(self) -> None:
        """Compiles what repeats at every step: the recurrent cells and the loss; names of weights stay.

        No more than that: Inductor cannot lower the tables' sparse gradients.
        """
        for module in self.modules():
            if isinstance(module, GRUStep):
                module.compile()
        if self.objective is not None:
            self.compiled_objective = torch.compile(self.objective)

    def on_train_start(self) -> None:
        self.events_trained, self.seconds_trained = 0, 0.0
        if self._resumed is not None:
            device, devices = world()
            self._epoch_loss = self._resumed["epoch_loss"]
            self._training_state = self._resumed["state"]
            if self._training_state is not None:
                own = (part.chunk(devices, -2)[device] for part in self._training_state)
                self._training_state = tuple(part.to(self.device) for part in own)

    def on_train_epoch_start(self) -> None:
        self._training_state = None  # an epoch's schedule starts every lane afresh
        self._epoch_loss = (0.0, 0)

    def training_step(self, batch: TrainingWindow, index: int) -> None:
        started = time.perf_counter()
        if self._resumed is not None:  # not earlier: whatever starts a run may draw numbers too
            torch.set_rng_state(self._resumed["rng"][world()[0]].cpu().clone())  # a view crashes torch
            self._resumed = None
        devices = world()[1]
        optimizer = cast(LightningOptimizer, self.optimizers())
        raw = optimizer.optimizer
        weights = [weight for group in raw.param_groups for weight in group["params"]]
        steps, lanes = batch.window.item.shape
        state = self._training_state if self._training_state is not None else self.initial_state(lanes)
        losses = torch.empty(steps, device=self.device)
        for k in range(steps):
            loss, state = self.step_loss(batch, k, state)
            losses[k] = loss.detach()
            if devices > 1:
                (loss / devices).backward()  # of all lanes' mean, E25
                sum_gradients(weights)
            else:
                loss.backward()
            # Lightning counts the last step of each window: global_step counts windows, and checkpoints get saved.
            (raw if k < steps - 1 else optimizer).step()
            for weight in weights:  # zero_grad(), without its hooks
                weight.grad = None
        self._training_state = state
        events = int(batch.window.alive.sum())
        if devices > 1:
            told = sum_over_devices(torch.cat([losses / devices, losses.new_tensor([events])]).double())
            losses, events = told[:-1], int(told[-1])
        self._check_losses(losses)
        self.mini_batches += steps
        if index or self.trainer.current_epoch:  # the first window pays for warming up
            self.events_trained += events
            self.seconds_trained += time.perf_counter() - started
        # Per event, so that windows with fewer lanes alive compare with the others.
        total = float(losses.sum()) * lanes * devices
        self._epoch_loss = (self._epoch_loss[0] + total, self._epoch_loss[1] + events)
        self.log(f"{self.prefix}train/loss", total / events, on_step=True, on_epoch=False, prog_bar=True)
        self.log(f"{self.prefix}steps", self.mini_batches.float(), on_step=True, on_epoch=False)

    def step_loss(self, batch: TrainingWindow, k: int, state: State) -> tuple[Tensor, State]:
        """Loss (scalar) of mini-batch ``k`` of a window, and the state after it, cut off from the graph.

        Back-propagation has length 1, as in GRU4Rec: a step's gradient does not reach the steps before.
        """
        assert self.objective is not None
        assert self.scorer is not None
        window = batch.window
        alive_B = window.alive[k]
        alive = None if batch.full[k] else alive_B
        step = Step(window.item[k], window.user[k], alive, batch.items[k], (batch.place, k))
        if not self.remembers(step):
            state = reset(state, window.start[k])
        scored = None if self.objective.candidates == "all" else batch.scored[k]
        products = torch.autocast(alive_B.device.type, torch.bfloat16) if self.bf16 else nullcontext()
        with products:
            query_BH, state = self.represent(step, state)
            raw_BC = (
                self.scorer.all(query_BH)
                if scored is None
                else self.scorer.some(query_BH, scored.rows, batch.own[k] if batch.own else None)
            )
        raw_BC = raw_BC.float() if self.bf16 else raw_BC
        if scored is None:
            positive_B, drawn_C = window.target[k], raw_BC.new_ones(self.n_items)
        else:
            positive_B, drawn_C = scored.inverse[: len(alive_B)], batch.counts[k]
        objective = self.compiled_objective or self.objective
        loss_B = objective(raw_BC, positive_B, drawn_C, None if batch.log_q is None else batch.log_q[k])
        return mean_over_lanes(loss_B, alive), tuple(part.detach() for part in state)

    def _check_losses(self, losses_K: Tensor) -> None:
        finite_K = torch.isfinite(losses_K)
        if not finite_K.all():
            step = int(self.mini_batches) + int((~finite_K).nonzero()[0]) + 1
            raise UserError(
                f"the loss of {self.prefix}{self.name} is {losses_K[~finite_K][0].item()} at mini-batch {step} "
                f"(epoch {self.trainer.current_epoch + 1}); the last good checkpoint is kept: "
                "lower model.optimizer.lr or choose another loss"
            )

    @property
    def epoch_loss(self) -> float:
        """Mean loss per event of the epoch so far."""
        total, events = self._epoch_loss
        return total / max(events, 1)

    @property
    def train_events_per_second(self) -> float | None:
        """Events trained per second inside training windows, the first window left out."""
        return self.events_trained / self.seconds_trained if self.seconds_trained else None

    # Evaluation

    def evaluation_step(self, window: Window) -> tuple[Tensor, Tensor]:
        """Queries (N, H) and targets (N,) of the lanes alive in a window, step by step, lane by lane."""
        steps, lanes = window.item.shape
        state = self._evaluation_state if self._evaluation_state is not None else self.initial_state(lanes)
        queries = []
        for k in range(steps):
            state = reset(state, window.start[k])
            query_BH, state = self.represent(Step(window.item[k], window.user[k], window.alive[k]), state)
            queries.append(query_BH[window.alive[k]])
        self._evaluation_state = state
        return torch.cat(queries), window.target[window.alive]

    def count_ranks(self, query_NH: Tensor, target_N: Tensor) -> Tensor:
        """(N, 2): how many items score higher than the target, and how many the same."""
        if self.scorer is None:
            return count_higher_and_tied(self.score, query_NH, target_N, self.n_items)
        weight, bias = self.scorer.items.weight, self.scorer.bias.weight[:, 0]
        return count_higher_and_tied_blockwise(query_NH, target_N, weight, bias)

    def _start_evaluation(self) -> None:
        self._evaluation_state = None
        self._counts = []
        self.listed = None

    def _evaluate(self, window: Window) -> None:
        query_NH, target_N = self.evaluation_step(window)
        counts = self.count_ranks(query_NH, target_N)
        self._counts.append((window.session[window.alive], window.position[window.alive], counts))
        if self.listed is not None:
            self.listed += count_recommendations(self.score, query_NH, self.n_items)

    def _end_evaluation(self) -> dict[str, float | int]:
        session, position, counts = (torch.cat(column) for column in zip(*self._counts, strict=True))
        if world()[1] > 1:
            everywhere = gather_rows(torch.cat([session[:, None], position[:, None], counts], 1))
            session, position, counts = everywhere[:, 0], everywhere[:, 1], everywhere[:, 2:]
            if self.listed is not None:
                sum_over_devices(self.listed)
        if self.listed is not None:
            self.listed = self.listed.cpu()
        session, position, counts = session.cpu(), position.cpu(), counts.cpu()
        self.evaluated = {"session": session, "position": position, "higher": counts[:, 0], "equal": counts[:, 1]}
        self._counts = []
        ranks = rank(self.evaluated["higher"], self.evaluated["equal"], self.ties)
        return compute_metrics(ranks.numpy(), session.numpy(), self.metric_names)

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation()

    def validation_step(self, batch: Window, index: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        for name, value in self._end_evaluation().items():
            if name not in ("events", "sessions"):
                self.log(f"{self.prefix}val/{name}", value, prog_bar=name in self.headline_metrics)

    def on_test_epoch_start(self) -> None:
        self._start_evaluation()
        if self.keeps_lists:
            self.listed = torch.zeros(self.n_items, dtype=torch.int64, device=self.device)

    def test_step(self, batch: Window, index: int) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        for name, value in self._end_evaluation().items():
            if name not in ("events", "sessions"):
                self.log(f"{self.prefix}test/{name}", value)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["layout"] = LAYOUT
        checkpoint["about"] = self.about
        state, rng = self._training_state, torch.get_rng_state()[None]
        devices = world()[1]
        if devices > 1:  # lanes and random states of all, device by device
            rng = gather(rng[0].to(self.device)).cpu()
            if state is not None:
                state = tuple(torch.cat(gather(part).unbind(), -2) for part in state)
        checkpoint["progress"] = {"epoch_loss": self._epoch_loss, "devices": devices, "state": state, "rng": rng}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint["progress"]
        before, now = self._resumed["devices"], world()[1]
        if before != now:
            raise UserError(
                f"this run was started on {before} device(s) and cannot go on with {now}: "
                f"give trainer.devices and trainer.num_nodes as before"
            )


def reset(state: State, start_B: Tensor) -> State:
    """Forgets the hidden state of lanes that start a session: once, before its first event (E1)."""
    keep_B1 = ~start_B[:, None]
    return tuple(part * keep_B1 for part in state)

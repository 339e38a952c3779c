"""The training step of ``optim/step.py`` as one compiled graph: gather, loss, gradients, update, write back.

Rows and columns are padded to a fixed number, so that every shape is static: rows by repeating a step's last row,
columns by columns that count 0 times. The first steps are run both ways and compared (E30).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import Optimizer
from torch.utils._pytree import tree_flatten, tree_unflatten

from arnn_lightning.batch import Candidates, RowSource, State, StepInput
from arnn_lightning.nn.collectives import rank_and_world_size
from arnn_lightning.nn.dropout import random_state, recorded_noise, sample_noise, set_random_state, supplied_noise
from arnn_lightning.nn.tracing import tracing
from arnn_lightning.optim.adagrad import RowAdagrad
from arnn_lightning.optim.step import StepLoss, TrainStep

log = logging.getLogger(__name__)
_CHECKED_STEPS = 3
_RTOL, _ATOL = 1e-3, 1e-6
_RUNNING = ("running_mean", "running_var")  # of a batch norm


def _steps(mutables: Sequence[Tensor], before: Sequence[Tensor], n_weights: int) -> list[Tensor]:
    """The size of every weight's gradient, and its step weighed by it; running statistics as they are.

    Adagrad makes a step of full size out of the rounding error of a gradient that is 0: such steps weigh nothing here.
    """
    sums = mutables[n_weights : 2 * n_weights]
    sizes = [(new - old).clamp(min=0).sqrt() for new, old in zip(sums, before[n_weights:], strict=False)]
    steps = [(new - old) * size for new, old, size in zip(mutables, before, sizes, strict=False)]
    return [*sizes, *steps, *mutables[2 * n_weights :]]


def _is_close(ours: Tensor, reference: Tensor) -> bool:
    """Whether two tensors differ by less than ``_RTOL`` of their size."""
    return bool((ours - reference).double().norm() <= _RTOL * reference.double().norm() + _ATOL)


class CompiledTrainStep(TrainStep):
    """A TrainStep that proves itself: where a compiled step differs from the eager one, training stays eager.

    Args:
        loss, optimizer, clip_norm: as in TrainStep; the optimizer is a RowAdagrad without momentum.
    """

    optimizer: RowAdagrad
    needs_padding = True

    def __init__(self, loss: StepLoss, optimizer: Optimizer, clip_norm: float | None) -> None:
        super().__init__(loss, optimizer, clip_norm)
        self._names = list(self.tables)
        dense = {id(weight) for weight in self._dense}
        self._dense_names = [name for name, weight in loss.named_parameters() if id(weight) in dense]
        self._buffer_names = [name for name, _ in loss.named_buffers() if name.endswith(_RUNNING)]
        self._mutable: list[Tensor] | None = None
        self._lr = (0.0, torch.zeros(()))
        self._graph: Callable[..., Sequence[Tensor]] | None = None
        self._stays_eager = False
        self._checks_left = _CHECKED_STEPS
        self._noise: list[tuple[torch.Size, float]] = []
        self._sizes: list[dict[RowSource, int]] = []
        self._size_tensors: list[tuple[Tensor, ...]] = []
        self._k = 0

    @staticmethod
    def unsupported(optimizer: Optimizer) -> str | None:
        """Why a run cannot be compiled, or None."""
        if not isinstance(optimizer, RowAdagrad) or optimizer.param_groups[0]["momentum"]:
            return "only model/optimizer=adagrad without momentum can be compiled"
        return "a run on several devices cannot be compiled" if rank_and_world_size()[1] > 1 else None

    @property
    def is_compiled(self) -> bool:
        """Whether the graph passed its checks and runs in place of the eager step."""
        return self._graph is not None and not self._stays_eager and not self._checks_left

    def start_chunk(self, n_rows: Mapping[RowSource, Any]) -> None:
        """Stores how many of the padded rows of each step are real."""
        device = next(self.loss.parameters()).device
        self._sizes = [dict(zip(n_rows, step, strict=True)) for step in zip(*n_rows.values(), strict=True)]
        columns = [torch.as_tensor(n_rows[self.tables[name]], device=device).unbind() for name in self._names]
        self._size_tensors = list(zip(*columns, strict=True))
        self._k = 0

    def __call__(
        self,
        step: StepInput,
        candidates: Candidates,
        state: State,
        rows: Mapping[RowSource, Tensor],
        update: Callable[..., Any] | None = None,
    ) -> tuple[Tensor, State]:
        k, self._k = self._k, self._k + 1
        if self._stays_eager or self._checks_left:
            return self._checked_step(k, step, candidates, state, rows, update)
        loss, state = self._run(k, self._mutables(), step, candidates, state, rows)
        if update is not None:
            update()  # no gradient is set: this counts the step
        return loss, state

    def _checked_step(
        self,
        k: int,
        step: StepInput,
        candidates: Candidates,
        state: State,
        rows: Mapping[RowSource, Tensor],
        update: Callable[..., Any] | None,
    ) -> tuple[Tensor, State]:
        """The eager step, the reference; the first steps are compared with the graph's, which gets copies."""
        sizes = self._sizes[k] if self._sizes else {}
        real = candidates
        if candidates.counts is not None:
            n = sizes["candidate"]
            log_q = None if candidates.log_q is None else candidates.log_q[:n]
            real = candidates._replace(counts=candidates.counts[:n], log_q=log_q)
        real_rows = {source: ids[: sizes[source]] for source, ids in rows.items()}
        if self._stays_eager:
            return super().__call__(step, real, state, real_rows, update)
        copies, rng = [tensor.clone() for tensor in self._mutables()], random_state(step.item.device)
        with recorded_noise() as self._noise:
            loss, next_state = super().__call__(step, real, state, real_rows, update)
        rng_after = random_state(step.item.device)
        set_random_state(rng, step.item.device)
        before = [tensor.clone() for tensor in copies]
        try:
            ours_loss, ours_state = self._run(k, copies, step, candidates, state, rows)
        except Exception as error:  # of many kinds: no compiler, an operation that cannot be compiled
            cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            self._stay_eager(f"torch.compile does not work here ({cause})")
        else:
            alike = [*zip((ours_loss, *ours_state), (loss, *next_state), strict=True)]
            n_weights = len(self._names) + len(self._dense_names)
            alike += [*zip(_steps(copies, before, n_weights), _steps(self._mutables(), before, n_weights), strict=True)]
            if all(_is_close(a, b) for a, b in alike):
                self._checks_left -= 1
            else:
                self._stay_eager("the compiled step differs from the eager one")
        set_random_state(rng_after, step.item.device)
        return loss, next_state

    def _stay_eager(self, reason: str) -> None:
        log.warning(f"performance.compile: {reason}; training continues without compilation")
        self._stays_eager = True

    def _mutables(self) -> list[Tensor]:
        """Everything that a step changes in place: weights, their accumulators, and running statistics."""
        if self._mutable is None:
            tables = [self.loss.get_parameter(f"{name}.weight") for name in self._names]
            weights = [*tables, *(self.loss.get_parameter(name) for name in self._dense_names)]
            sums = [self.optimizer.accumulator_of(weight) for weight in weights]
            buffers = [self.loss.get_buffer(name) for name in self._buffer_names]
            self._mutable = [*(weight.detach() for weight in weights), *sums, *buffers]
        return self._mutable

    def _run(
        self,
        k: int,
        mutables: list[Tensor],
        step: StepInput,
        candidates: Candidates,
        state: State,
        rows: Mapping[RowSource, Tensor],
    ) -> tuple[Tensor, State]:
        if step.valid is None:  # one graph for steps with and without empty slots
            step = step._replace(valid=torch.ones_like(step.item, dtype=torch.bool))
        lr = self.optimizer.param_groups[0]["lr"]
        if lr != self._lr[0]:
            self._lr = (lr, torch.tensor(lr, device=step.item.device))
        sizes = self._size_tensors[k] if self._size_tensors else ()
        # Not in the graph: torch 2.13 fuses this write with the lookups that read it, and reads old values.
        with torch.no_grad():
            for source, position in self._positions.items():
                n = self._sizes[k][source]
                position.index_copy_(0, rows[source][:n], self._arange[:n])
        ids = [rows[self.tables[name]] for name in self._names]
        positions = [self._positions.get(self.tables[name]) for name in self._names]
        # Sampled in the eager step's order, not in the graph: torch 2.13's Inductor loses bernoulli_.
        noise = [sample_noise(mutables[0], shape, p) for shape, p in self._noise]
        inputs, structure = tree_flatten((step, candidates, state, ids, sizes, positions, noise, self._lr[1]))
        tensors = [*mutables, *(value for value in inputs if value is not None)]
        if self._graph is None:
            is_none = [value is None for value in inputs]

            def flat_step(*flat: Tensor) -> list[Tensor]:
                given = iter(flat[len(mutables) :])
                values = [None if none else next(given) for none in is_none]
                return self._pure_step(list(flat[: len(mutables)]), *tree_unflatten(values, structure))

            with tracing(), torch.no_grad():
                traced = make_fx(flat_step, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)
            self._graph = torch._inductor.compile(traced, tensors)
        with torch.no_grad():
            loss, *next_state = self._graph(*tensors)
        return loss, tuple(next_state)

    def _pure_step(
        self,
        mutables: list[Tensor],
        step: StepInput,
        candidates: Candidates,
        state: State,
        ids: list[Tensor],
        sizes: Sequence[Tensor],
        positions: list[Tensor | None],
        noise: list[Tensor],
        lr: Tensor,
    ) -> list[Tensor]:
        """Loss and next state; changes ``mutables`` and nothing else."""
        n_tables, n_weights = len(self._names), len(self._names) + len(self._dense_names)
        weights, sums, buffers = mutables[:n_weights], mutables[n_weights : 2 * n_weights], mutables[2 * n_weights :]
        # Padding rows of a step have the place of its last row: they are written with the same values.
        places = [torch.arange(len(i), device=i.device).minimum(n - 1) for i, n in zip(ids, sizes, strict=True)]
        values = [weight.index_select(0, i) for weight, i in zip(weights, ids, strict=False)]

        def loss_of(inputs: list[Tensor], buffers: list[Tensor]) -> tuple[Tensor, tuple[State, list[Tensor]]]:
            buffers = [buffer.clone() for buffer in buffers]
            names = [*(f"{name}.weight" for name in self._names), *self._dense_names, *self._buffer_names]
            substitutes = dict(zip(names, [*inputs, *buffers], strict=True))
            for name, position, row_ids in zip(self._names, positions, ids, strict=True):
                substitutes[f"{name}.row_ids"] = row_ids
                if position is not None:
                    substitutes[f"{name}.positions"] = position
            with supplied_noise(noise):
                arguments = (step, candidates, state)
                loss, next_state = functional_call(self.loss, substitutes, arguments, tie_weights=False)
            return loss, (next_state, buffers)

        inputs = [*values, *weights[n_tables:]]
        gradients, (loss, (next_state, new_buffers)) = grad_and_value(loss_of, has_aux=True)(inputs, buffers)
        if self.clip_norm is not None:
            norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
            gradients = [gradient * (self.clip_norm / (norm + 1e-6)).clamp(max=1) for gradient in gradients]
        group = self.optimizer.param_groups[0]
        old_sums = [*(whole.index_select(0, i) for whole, i in zip(sums, ids, strict=False)), *sums[n_tables:]]
        for n, (value, gradient, old_sum) in enumerate(zip(inputs, gradients, old_sums, strict=True)):
            if group["weight_decay"]:
                gradient = gradient + group["weight_decay"] * value
            new_sum = old_sum + gradient * gradient
            new_value = value - lr * gradient / (new_sum.sqrt() + group["eps"])
            if n < n_tables:
                weights[n].index_copy_(0, ids[n], new_value.index_select(0, places[n]))
                sums[n].index_copy_(0, ids[n], new_sum.index_select(0, places[n]))
            else:
                weights[n].copy_(new_value)
                sums[n].copy_(new_sum)
        for buffer, new_buffer in zip(buffers, new_buffers, strict=True):
            buffer.copy_(new_buffer)
        return [loss, *next_state]


def make_train_step(loss: StepLoss, optimizer: Optimizer, clip_norm: float | None, compile: bool) -> TrainStep:
    """The function that trains on one mini-batch; eager where ``compile`` is not possible, with a warning."""
    if compile:
        reason = CompiledTrainStep.unsupported(optimizer)
        if reason is None:
            return CompiledTrainStep(loss, optimizer, clip_norm)
        log.warning(f"performance.compile: {reason}; training continues without compilation")
    return TrainStep(loss, optimizer, clip_norm)

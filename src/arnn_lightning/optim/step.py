"""One optimizer step as a pure function of the rows that it reads.

Every table is read by a step in a few rows, known beforehand (TrainChunk.rows). The step gathers those rows, works on
them as if they were the whole table - ids are positions among the rows - and writes them back:

    rows = table[ids]                                              # for every table
    loss, state, gradients = f(rows, dense weights, state, step)
    rows, dense weights, accumulators = update(...);  table[ids] = rows

So no gradient is as wide as a table (E8), and rows that no valid slot reads are never touched (E29). An optimizer
without ``updates_rows`` gets dense gradients of whole tables instead.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from arnn_lightning.batch import Candidates, RowSource, State, StepInput
from arnn_lightning.losses.base import RankingLoss, mean_over_batch
from arnn_lightning.nn.collectives import all_reduce_gradients, rank_and_world_size
from arnn_lightning.nn.table import EmbeddingTable, ItemScorer
from arnn_lightning.optim.adagrad import RowUpdate


class StepLoss(nn.Module):
    """Encoder, scorer and loss of one step: what is differentiated.

    Args:
        encoder: a SessionEncoder.
        scorer: scores the candidates.
        loss: the ranking loss.
        bf16: runs the matrix products in bfloat16; the loss stays in float32.
    """

    def __init__(self, encoder: nn.Module, scorer: ItemScorer, loss: RankingLoss, bf16: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.scorer = scorer
        self.loss = loss
        self.bf16 = bf16

    def forward(self, step: StepInput, candidates: Candidates, state: State) -> tuple[Tensor, State]:
        """The loss of a mini-batch, a scalar, and the state after it."""
        with autocast(self.bf16, step.item.device):
            query_BH, state = self.encoder.encode(step, state)  # type: ignore[operator]
            logits_BC = self.scorer(query_BH, candidates.columns)
        logits_BC = logits_BC.float() if self.bf16 else logits_BC
        loss_B = self.loss(logits_BC, candidates.positive, candidates.counts, candidates.log_q)
        return mean_over_batch(loss_B, step.valid), state

    def row_tables(self) -> dict[str, RowSource]:
        """The tables of which a step reads a few rows, and which rows these are."""
        embedding = {id(module) for module in self.encoder.modules()}
        scoring = {id(module) for module in self.scorer.modules()}
        sources: dict[str, RowSource] = {}
        for name, module in self.named_modules():
            if not isinstance(module, EmbeddingTable) or not module.weight.requires_grad:
                continue
            source: RowSource = module.ids
            if id(module) in scoring:
                source = "item_and_candidate" if id(module) in embedding else "candidate"
            if not (self.loss.scores_full_catalogue and id(module) in scoring):
                sources[name] = source
        return sources


def autocast(bf16: bool, device: torch.device) -> Any:
    """bfloat16 matrix products, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


class TrainStep:
    """Gradient, exchange and update of one mini-batch, eagerly: the reference.

    Back-propagation has length 1, as in GRU4Rec: a step's gradient does not reach the steps before.

    Args:
        loss: the loss of a step.
        optimizer: its optimizer.
        clip_norm: the largest norm of all gradients together; None: no clipping.

    Attributes:
        tables: names of the tables of which single rows are updated, and which rows; empty where the optimizer updates
            whole tables.
    """

    def __init__(self, loss: StepLoss, optimizer: Optimizer, clip_norm: float | None) -> None:
        self.loss = loss
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.tables = loss.row_tables() if getattr(optimizer, "updates_rows", False) else {}
        self._weights = {name: loss.get_parameter(f"{name}.weight") for name in self.tables}
        in_tables = {id(weight) for weight in self._weights.values()}
        self._dense = [weight for weight in loss.parameters() if weight.requires_grad and id(weight) not in in_tables]
        # Position of every id among the rows of the step at hand, -1 for all other ids; scoring needs none.
        self._positions = {
            source: torch.full((len(self._weights[name]),), -1, device=self._weights[name].device)
            for name, source in self.tables.items()
            if source != "candidate"
        }

    def __call__(
        self,
        step: StepInput,
        candidates: Candidates,
        state: State,
        rows: Mapping[RowSource, Tensor],
        update: Callable[..., Any] | None = None,
    ) -> tuple[Tensor, State]:
        """Trains on one mini-batch; returns its loss (of this device's slots) and the state after it.

        ``update`` is called in place of ``optimizer.step``.
        """
        values = self._gather(rows)
        substitutes = {f"{name}.weight": value for name, value in values.items()}
        for source, positions in self._positions.items():
            positions.index_copy_(0, rows[source], torch.arange(len(rows[source]), device=positions.device))
        substitutes |= {
            f"{name}.positions": self._positions[source]
            for name, source in self.tables.items()
            if source in self._positions
        }
        loss, state = functional_call(self.loss, substitutes, (step, candidates, state), tie_weights=False)
        for source, positions in self._positions.items():
            positions.index_fill_(0, rows[source], -1)
        gradients = self._gradients(loss, [*values.values(), *self._dense])
        updates = {
            self._weights[name]: RowUpdate(rows[source], values[name], gradient)
            for (name, source), gradient in zip(self.tables.items(), gradients, strict=False)
            if gradient is not None
        }
        for weight, gradient in zip(self._dense, gradients[len(self.tables) :], strict=True):
            weight.grad = gradient
        step_optimizer: Callable[..., Any] = update or self.optimizer.step
        if updates:
            step_optimizer(rows=updates)
        else:
            step_optimizer()
        for weight in self._dense:
            weight.grad = None
        return loss.detach(), tuple(part.detach() for part in state)

    @torch.no_grad()
    def _gather(self, rows: Mapping[RowSource, Tensor]) -> dict[str, Tensor]:
        """Copies of the rows that the step reads, by table."""
        return {
            name: self._weights[name].index_select(0, rows[source]).requires_grad_()
            for name, source in self.tables.items()
        }

    def _gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Gradients of the mean over all devices' slots (E25), clipped."""
        n_devices = rank_and_world_size()[1]
        gradients = torch.autograd.grad(loss / n_devices if n_devices > 1 else loss, inputs, allow_unused=True)
        used = [gradient for gradient in gradients if gradient is not None]
        if n_devices > 1:
            all_reduce_gradients(used)
        if self.clip_norm is not None:
            scale = (self.clip_norm / (torch.nn.utils.get_total_norm(used) + 1e-6)).clamp(max=1)
            torch._foreach_mul_(used, scale)
        return gradients

"""One optimizer step as a pure function of the rows that it reads.

Every table is read by a step in a few rows, known beforehand (TrainChunk.rows). The step gathers those rows, works on
them as if they were the whole table - ids are positions among the rows - and the optimizer writes them back:

    rows = table[ids]                                              # for every table
    loss, state, gradients = f(rows, dense weights, state, step)
    rows, dense weights, accumulators = update(...);  table[ids] = rows

So no gradient is as wide as a table (E8), and rows that no valid slot reads are never touched (E29; the laws with such
numbers are in docs/invariants.md). An optimizer without ``updates_rows`` gets dense gradients of whole tables instead,
and a loss over the full catalogue gets those of the scorer.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from arnn_lightning.batch import Candidates, RowSource, State, StepInput
from arnn_lightning.errors import UserError
from arnn_lightning.losses.base import RankingLoss, mean_over_batch
from arnn_lightning.nn.collectives import all_reduce_gradients, rank_and_world_size
from arnn_lightning.nn.table import EmbeddingTable, ItemScorer
from arnn_lightning.optim.adagrad import RowUpdate


class StepLoss(nn.Module):
    """The loss of one step as a function of encoder, scorer and candidates, to be differentiated.

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
            logits_BC: Tensor = self.scorer(query_BH, candidates.columns)
        if self.bf16:  # only then: tests run in float64
            logits_BC = logits_BC.float()
        loss_B = self.loss(logits_BC, candidates.positive, candidates.counts, candidates.log_q)
        if loss_B.shape != logits_BC.shape[:1]:  # others would be broadcast
            wanted, got = (tuple(shape) for shape in (logits_BC.shape[:1], loss_B.shape))
            raise UserError(f"{type(self.loss).__name__}.loss: must return one value per slot, {wanted}, not {got}")
        return mean_over_batch(loss_B, step.valid), state

    def row_tables(self) -> dict[str, RowSource]:
        """The tables of which a step reads a few rows, and which rows these are."""
        in_encoder = {id(module) for module in self.encoder.modules()}
        in_scorer = {id(module) for module in self.scorer.modules()}  # a table in both is tied: it embeds and scores
        sources: dict[str, RowSource] = {}
        for name, module in self.named_modules():
            if not isinstance(module, EmbeddingTable) or not module.weight.requires_grad:
                continue
            if id(module) not in in_scorer:
                sources[name] = module.ids
            elif not self.loss.scores_full_catalogue:
                sources[name] = "item_and_candidate" if id(module) in in_encoder else "candidate"
        return sources


def autocast(bf16: bool, device: torch.device) -> Any:
    """bfloat16 matrix products, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


class TrainStep:
    """Gradient, exchange and update of one mini-batch in eager mode; the reference of the compiled step.

    Back-propagation has length 1, as in GRU4Rec: a step's gradient does not reach the steps before.

    Args:
        loss: the loss of a step.
        optimizer: its optimizer.
        clip_norm: the largest norm of all gradients together; None: no clipping.

    Attributes:
        tables: names of the tables of which single rows are updated, and which rows; empty where the optimizer updates
            whole tables.
    """

    needs_padding = False  # whether all steps must have the same number of rows and columns

    def __init__(self, loss: StepLoss, optimizer: Optimizer, clip_norm: float | None) -> None:
        self.loss = loss
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.tables = loss.row_tables() if getattr(optimizer, "updates_rows", False) else {}
        modules = {name: cast(EmbeddingTable, loss.get_submodule(name)) for name in self.tables}
        in_tables = {id(module.weight) for module in modules.values()}
        self._dense = [weight for weight in loss.parameters() if weight.requires_grad and id(weight) not in in_tables]
        # Position of every id among the rows of the step at hand, -1 for all other ids. Tables that only score need
        # none: their rows are the columns of the scores, in the same order.
        self._positions: dict[RowSource, Tensor] = {
            source: torch.full((len(modules[name].weight),), -1, device=modules[name].weight.device)
            for name, source in self.tables.items()
            if source != "candidate"
        }
        longest = max(map(len, self._positions.values()), default=0)
        self._arange = torch.arange(longest, device=next(loss.parameters()).device)
        # Attributes of modules are looked up once: at every step they would take a tenth of its time.
        self._entries = [
            (source, module.weight, module._parameters, module._buffers, self._positions.get(source))
            for source, module in ((source, modules[name]) for name, source in self.tables.items())
        ]

    def start_chunk(self, n_rows: Mapping[RowSource, Any]) -> None:
        """Called before the steps of a chunk; ``n_rows``: how many rows each of them reads, (K,) by source."""

    def __call__(
        self,
        step: StepInput,
        candidates: Candidates,
        state: State,
        rows: Mapping[RowSource, Tensor],
        update: Callable[..., Any] | None = None,
    ) -> tuple[Tensor, State]:
        """Trains on one mini-batch; returns its loss (of this device's slots) and the state after it.

        ``update`` replaces the optimizer's method: ``update(rows=...)`` where it updates rows, else ``step()``.
        """
        try:
            values = self._install_rows(rows)
            loss, state = self.loss.forward(step, candidates, state)
        finally:
            for _, weight, parameters, buffers, _ in self._entries:
                parameters["weight"], buffers["positions"], buffers["row_ids"] = weight, None, None
            for source, positions in self._positions.items():
                positions.index_fill_(0, rows[source], -1)
        gradients = self._gradients(loss, values)
        for weight, gradient in zip(self._dense, gradients[len(values) :], strict=True):
            weight.grad = gradient
        if values:
            updates = [
                RowUpdate(weight, rows[source], value, gradient)
                for (source, weight, *_), value, gradient in zip(
                    self._entries, values, gradients[: len(values)], strict=True
                )
                if gradient is not None
            ]
            (update or self.optimizer.update)(rows=updates)  # type: ignore[attr-defined]
        else:
            (update or self.optimizer.step)()
        for weight in self._dense:
            weight.grad = None
        return loss.detach(), tuple([part.detach() for part in state])

    def _install_rows(self, rows: Mapping[RowSource, Tensor]) -> list[Tensor]:
        """Copies of the rows that the step reads, put in the tables' places, as in ``torch.func.functional_call``."""
        values = []
        with torch.no_grad():
            for source, positions in self._positions.items():
                ids = rows[source]
                positions.index_copy_(0, ids, self._arange[: ids.shape[0]])
            for source, weight, parameters, buffers, positions_of in self._entries:
                value = weight.index_select(0, rows[source]).requires_grad_()
                parameters["weight"], buffers["positions"] = value, positions_of  # type: ignore[assignment]
                buffers["row_ids"] = rows[source]
                values.append(value)
        return values

    def _gradients(self, loss: Tensor, values: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Gradients of the mean over all devices' slots (E25), clipped; of the rows, then of the dense weights."""
        inputs, n_devices = [*values, *self._dense], rank_and_world_size()[1]
        gradients = torch.autograd.grad(loss / n_devices if n_devices > 1 else loss, inputs, allow_unused=True)
        if n_devices > 1 or self.clip_norm is not None:
            used = [gradient for gradient in gradients if gradient is not None]
            if n_devices > 1:
                all_reduce_gradients(used)
            if self.clip_norm is not None:
                scale = (self.clip_norm / (torch.nn.utils.get_total_norm(used) + 1e-6)).clamp(max=1)
                torch._foreach_mul_(used, scale)
        return gradients

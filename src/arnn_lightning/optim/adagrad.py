"""Adagrad that touches only the rows of a sparse gradient."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from arnn_lightning.errors import UserError
from arnn_lightning.nn.table import may_look

_FIRST = torch.ones(())


class RowAdagrad(Optimizer):
    """Adagrad (Duchi et al. 2011) with initial accumulator 0 and no learning-rate decay (E13).

    accumulator += g^2;  step = -lr * g / (sqrt(accumulator) + eps): eps stands outside the root, as in torch.
    A sparse gradient updates its own rows only, which without weight decay and momentum equals dense Adagrad (E21).
    Weight decay (added to the gradient) and momentum then act on touched rows only, where dense Adagrad moves every
    row: that is this project's stated choice.

    Args:
        params: parameters or groups.
        lr: learning rate.
        eps: added to the root.
        weight_decay: L2 factor.
        momentum: velocity = momentum * velocity + step, as in GRU4Rec.

    Raises:
        UserError: a negative or not finite setting.
    """

    sparse_gradients = True

    def __init__(self, params: Iterable[Any], lr: float, eps: float, weight_decay: float, momentum: float) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay), ("momentum", momentum)):
            if not 0 <= value < float("inf"):
                raise UserError(f"optimizer.{name}={value}: must be zero or more")
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if self._fused(group):
                self._step_fused(group)
                continue
            dense = []
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["accumulator"] = torch.zeros_like(weight)
                    if group["momentum"]:
                        state["velocity"] = torch.zeros_like(weight)
                if weight.grad.is_sparse:
                    self._update_rows(weight, weight.grad, state, group)
                else:
                    dense.append(weight)
            if dense:
                self._update_dense(dense, group)
        return loss

    def _fused(self, group: dict[str, Any]) -> bool:
        return not group["momentum"] and all(weight.device.type == "cpu" for weight in group["params"])

    def _step_fused(self, group: dict[str, Any]) -> None:
        """One pass over the processor's memory instead of five, and one call for all weights and rows."""
        found = [weight for weight in group["params"] if weight.grad is not None]
        weights: list[Tensor] = []
        gradients, accumulators, gathered = [], [], []
        for weight in found:
            state = self.state[weight]
            if not state:
                state["accumulator"] = torch.zeros_like(weight)
            accumulator = state["accumulator"]
            if weight.grad.is_sparse:
                rows, gradient = _unique_rows(weight, weight.grad)
                gathered.append((weight, accumulator, rows, len(weights)))
                weights.append(weight.index_select(0, rows))
                accumulators.append(accumulator.index_select(0, rows))
                gradients.append(gradient)
            else:
                weights.append(weight)
                accumulators.append(accumulator)
                gradients.append(weight.grad)
        if not found:
            return
        torch._fused_adagrad_(
            weights,
            gradients,
            accumulators,
            [_FIRST] * len(weights),  # the count of steps matters for a decay of the learning rate alone
            lr=group["lr"],
            lr_decay=0.0,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for weight, accumulator, rows, place in gathered:
            weight.index_copy_(0, rows, weights[place])
            accumulator.index_copy_(0, rows, accumulators[place])

    def _update_dense(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [cast(Tensor, weight.grad) for weight in weights]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
        accumulators = [self.state[weight]["accumulator"] for weight in weights]
        torch._foreach_addcmul_(accumulators, gradients, gradients)
        divisors = torch._foreach_sqrt(accumulators)
        torch._foreach_add_(divisors, group["eps"])
        if not group["momentum"]:
            torch._foreach_addcdiv_(weights, gradients, divisors, value=-group["lr"])
            return
        velocities = [self.state[weight]["velocity"] for weight in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_addcdiv_(velocities, gradients, divisors, value=-group["lr"])
        torch._foreach_add_(weights, velocities)

    def _update_rows(self, weight: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        rows, values = _unique_rows(weight, gradient)
        if group["weight_decay"]:
            values = values.add(weight.index_select(0, rows), alpha=group["weight_decay"])
        accumulator = state["accumulator"].index_select(0, rows).addcmul_(values, values)
        state["accumulator"].index_copy_(0, rows, accumulator)
        step = values.div(accumulator.sqrt_().add_(group["eps"])).mul_(-group["lr"])
        if group["momentum"]:
            step.add_(state["velocity"].index_select(0, rows), alpha=group["momentum"])
            state["velocity"].index_copy_(0, rows, step)
        # Rows that are there twice have the same step twice, and are written, not added up.
        weight.index_copy_(0, rows, weight.index_select(0, rows).add_(step))


def _unique_rows(weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and values of a sparse gradient, duplicates added: every row once, or every time with its whole value."""
    rows, values = gradient._indices()[0], gradient._values()
    known = getattr(weight, "unique_rows", None)  # nn/table.py
    # The same memory, so the same rows: known without looking at them, for which a GPU would have to wait.
    if known is not None and rows.data_ptr() == known.data_ptr() and len(rows) == len(known):
        return rows, values
    # Anything else (two reads of one table, raw ids) is added up here.
    if may_look(rows):
        gradient = gradient.coalesce()
        return gradient.indices()[0], gradient.values()
    in_order, order = rows.sort()
    first = torch.cat([in_order.new_zeros(1), (in_order[1:] != in_order[:-1]).long()])
    group = torch.empty_like(order).scatter_(0, order, first.cumsum(0))
    return rows, torch.zeros_like(values).index_add_(0, group, values).index_select(0, group)

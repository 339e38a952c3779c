"""Adagrad that updates only the rows of a table that a step read."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from arnn_lightning.errors import UserError


class RowUpdate(NamedTuple):
    """Rows of a table and their gradient.

    Attributes:
        weight: the table (rows, width).
        ids: (R,) which rows, each once.
        values: (R, width) the rows before the update.
        gradient: (R, width) the gradient of the loss with respect to them.
    """

    weight: nn.Parameter
    ids: Tensor
    values: Tensor
    gradient: Tensor


class RowAdagrad(Optimizer):
    """Adagrad (Duchi et al. 2011) with initial accumulator 0 and no learning-rate decay (E13).

    accumulator += g^2;  step = -lr * g / (sqrt(accumulator) + eps): eps is outside the root, as in torch.
    Rows passed to ``step`` are updated alone, which without weight decay and momentum equals dense Adagrad (E21).
    Weight decay (added to the gradient) and momentum then act on these rows only, where dense Adagrad moves all.

    Args:
        params: parameters or groups.
        lr: learning rate.
        eps: added to the root.
        weight_decay: L2 factor.
        momentum: velocity = momentum * velocity + step, as in GRU4Rec.

    Raises:
        UserError: a negative or not finite setting.
    """

    updates_rows = True

    def __init__(self, params: Iterable[Any], lr: float, eps: float, weight_decay: float, momentum: float) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay), ("momentum", momentum)):
            if not 0 <= value < float("inf"):
                raise UserError(f"optimizer.{name}={value}: must be zero or more")
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay, "momentum": momentum})

        self._groups = {id(weight): group for group in self.param_groups for weight in group["params"]}

    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, rows: Sequence[RowUpdate] = ()
    ) -> float | None:
        """Updates every parameter with a gradient, and rows of tables.

        Args:
            closure: recomputes the loss, as in torch; None: the gradients are there already.
            rows: rows of tables with their gradients; other rows of these tables do not change.

        Returns:
            what ``closure`` returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update(rows)
        return loss

    @torch.no_grad()
    def update(self, rows: Sequence[RowUpdate] = ()) -> None:
        """``step`` without the hooks and the profiler's marks of torch's optimizers, a tenth of a small step."""
        for group in self.param_groups:
            in_group = rows if len(self.param_groups) == 1 else [r for r in rows if self._groups[id(r.weight)] is group]
            if group["momentum"] or group["params"][0].device.type not in ("cpu", "cuda"):
                self._update_with_momentum(group, in_group)
            else:
                self._update_fused(group, in_group)

    def _update_fused(self, group: dict[str, Any], rows: Sequence[RowUpdate]) -> None:
        """One pass over memory instead of five, and one call for all tensors."""
        weights: list[Tensor] = []
        gradients, accumulators, wholes = [], [], []
        for weight, ids, values, gradient in rows:
            whole = self._state_of(weight, group)["accumulator"]
            wholes.append(whole)
            weights.append(values.detach())
            gradients.append(gradient)
            accumulators.append(whole.index_select(0, ids))
        for weight in group["params"]:
            dense = weight.grad
            if dense is not None:
                weights.append(weight)
                gradients.append(dense)
                accumulators.append(self._state_of(weight, group)["accumulator"])
        if not weights:
            return
        torch._fused_adagrad_(
            weights,
            gradients,
            accumulators,
            [_one(weights[0].device)] * len(weights),  # the number of steps matters to a learning-rate decay only
            lr=group["lr"],
            lr_decay=0.0,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for (weight, ids, _, _), whole, values, accumulator in zip(rows, wholes, weights, accumulators, strict=False):
            weight.index_copy_(0, ids, values)
            whole.index_copy_(0, ids, accumulator)

    def _update_with_momentum(self, group: dict[str, Any], rows: Sequence[RowUpdate]) -> None:
        for weight, ids, values, gradient in rows:
            state = self._state_of(weight, group)
            row_state = {name: whole.index_select(0, ids) for name, whole in state.items()}
            _update(values.detach(), gradient, row_state, group)
            weight.index_copy_(0, ids, values)
            for name, whole in state.items():
                whole.index_copy_(0, ids, row_state[name])
        for weight in group["params"]:
            if weight.grad is not None:
                _update(weight, weight.grad, self._state_of(weight, group), group)

    def accumulator_of(self, weight: nn.Parameter) -> Tensor:
        """The sum of squared gradients of a parameter."""
        return self._state_of(weight, self._groups[id(weight)])["accumulator"]

    def _state_of(self, weight: nn.Parameter, group: Mapping[str, Any]) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            state["accumulator"] = torch.zeros_like(weight)
            if group["momentum"]:
                state["velocity"] = torch.zeros_like(weight)
        return state


def _update(weight: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Mapping[str, Any]) -> None:
    """Adagrad with momentum of one tensor, in place."""
    if group["weight_decay"]:
        gradient = gradient.add(weight, alpha=group["weight_decay"])
    divisor = state["accumulator"].addcmul_(gradient, gradient).sqrt().add_(group["eps"])
    step = gradient.div(divisor).mul_(-group["lr"])
    if group["momentum"]:
        step = state["velocity"].mul_(group["momentum"]).add_(step)
    weight.add_(step)


_ONES: dict[torch.device, Tensor] = {}


def _one(device: torch.device) -> Tensor:
    if device not in _ONES:
        _ONES[device] = torch.ones((), dtype=torch.float32, device=device)
    return _ONES[device]

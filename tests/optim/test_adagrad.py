"""Row-wise Adagrad against torch's dense one."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from arnn_lightning.errors import UserError
from arnn_lightning.optim import RowAdagrad
from arnn_lightning.optim.adagrad import RowUpdate

SETTINGS: dict[str, Any] = {"lr": 0.1, "eps": 1e-10, "weight_decay": 0.0, "momentum": 0.0}


def adagrad(weights: Any, **settings: Any) -> RowAdagrad:
    return RowAdagrad(weights, **(SETTINGS | settings))


def train(make: Callable[[nn.Parameter, nn.Linear], Optimizer], rows: bool) -> list[Tensor]:
    """Weights after five steps over a table, read with repeated ids, and a linear layer."""
    torch.manual_seed(0)
    table, linear = nn.Parameter(torch.randn(20, 4).double()), nn.Linear(4, 3).double()
    optimizer = make(table, linear)
    for _ in range(5):
        unique, position = torch.randint(0, 20, (12,)).unique(return_inverse=True)
        values = table.detach()[unique].requires_grad_()
        loss = linear(values[position] if rows else table[unique][position]).square().sum()
        if rows:
            gradient, linear.weight.grad, linear.bias.grad = torch.autograd.grad(
                loss, [values, linear.weight, linear.bias]
            )
            assert isinstance(optimizer, RowAdagrad)
            optimizer.step(rows=[RowUpdate(table, unique, values, gradient)])
        else:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [weight.detach() for weight in (table, *linear.parameters())]


def reference_step(weight: Tensor, gradient: Tensor, state: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """The formulas, on whole tensors."""
    gradient = gradient + settings["weight_decay"] * weight
    state["sum"] += gradient**2
    step = -settings["lr"] * gradient / (state["sum"] ** 0.5 + settings["eps"])
    state["velocity"] *= settings["momentum"]
    state["velocity"] += step
    weight += state["velocity"]


def test_E21_updates_of_rows_equal_dense_adagrad() -> None:
    ours = train(lambda table, linear: adagrad([table, *linear.parameters()]), rows=True)
    theirs = train(lambda table, linear: torch.optim.Adagrad([table, *linear.parameters()], 0.1), rows=False)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_E21_groups_have_settings_of_their_own() -> None:
    def groups(table: nn.Parameter, linear: nn.Linear) -> list[dict[str, Any]]:
        return [{"params": [table]}, {"params": list(linear.parameters()), "lr": 0.02, "weight_decay": 0.3}]

    ours = train(lambda *weights: adagrad(groups(*weights)), rows=True)
    theirs = train(lambda *weights: torch.optim.Adagrad(groups(*weights), 0.1), rows=False)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("momenta", [(0.0, 0.0), (0.0, 0.5), (0.5, 0.0), (0.3, 0.6)])
def test_decay_and_momentum_act_on_updated_rows_only(momenta: tuple[float, float]) -> None:
    torch.manual_seed(0)
    tables = [nn.Parameter(torch.randn(9, 2).double()) for _ in range(2)]
    settings = [SETTINGS | {"weight_decay": 0.3 * n, "momentum": momentum} for n, momentum in enumerate(momenta, 1)]
    optimizer = adagrad([{"params": [table], **group} for table, group in zip(tables, settings, strict=True)])
    expected = [table.detach().clone() for table in tables]
    states = [{name: torch.zeros_like(table) for name in ("sum", "velocity")} for table in tables]
    for _ in range(6):
        updates = []
        for table, weight, state, group in zip(tables, expected, states, settings, strict=True):
            ids, gradient = torch.randperm(9)[:4], torch.randn(4, 2).double()
            updates.append(RowUpdate(table, ids, table.detach()[ids], gradient))
            rows = weight[ids]
            row_state = {name: whole[ids] for name, whole in state.items()}
            reference_step(rows, gradient, row_state, group)
            weight[ids] = rows
            for name, whole in state.items():
                whole[ids] = row_state[name]
        optimizer.step(rows=updates)
        for table, weight in zip(tables, expected, strict=True):
            assert torch.allclose(table, weight, atol=1e-12)


def test_rows_that_are_not_updated_keep_their_bits() -> None:
    table = nn.Parameter(torch.randn(6, 2))
    optimizer = adagrad([table], weight_decay=0.5, momentum=0.9)
    for ids in ([0, 1], [1, 5], [3]):
        before, index = table.detach().clone(), torch.tensor(ids)
        optimizer.step(rows=[RowUpdate(table, index, table.detach()[index], torch.randn(len(ids), 2))])
        assert (table != before).all(1).nonzero()[:, 0].tolist() == ids
        assert (table == before).all(1).sum() == 6 - len(ids)


def test_E13_every_setting_changes_the_update() -> None:
    def weights(**settings: Any) -> list[Tensor]:
        return train(lambda table, linear: adagrad([table, *linear.parameters()], **settings), rows=True)

    base = weights()
    for name, value in {"lr": 0.2, "eps": 0.5, "weight_decay": 0.3, "momentum": 0.5}.items():
        assert not any(torch.allclose(a, b) for a, b in zip(base, weights(**{name: value}), strict=True)), name


def test_E13_the_accumulator_starts_at_0_without_decay() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = adagrad([weight], eps=0.0)
    expected = 0.0
    for step in range(1, 5):
        weight.grad = torch.ones(1)
        optimizer.step()
        expected -= 0.1 / step**0.5
        assert weight.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("value", [-1, float("inf"), float("nan")])
def test_a_setting_out_of_range_is_a_users_error(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"optimizer\.{name}={value}: must be zero or more"):
        adagrad([nn.Parameter(torch.zeros(1))], **{name: value})


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_fused_update_equals_the_plain_one(weight_decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights() -> list[Tensor]:
        return train(
            lambda table, linear: adagrad([table, *linear.parameters()], eps=1e-3, weight_decay=weight_decay), True
        )

    fused = weights()
    monkeypatch.setattr(RowAdagrad, "_update_fused", RowAdagrad._update_with_momentum)
    for a, b in zip(fused, weights(), strict=True):
        assert torch.allclose(a, b, atol=1e-14)


def test_the_optimizers_state_is_saved_and_restored() -> None:
    tables = [nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    optimizers = [adagrad([table], momentum=0.5) for table in tables]

    def step(number: int) -> None:
        table, ids = tables[number], torch.tensor([0, 2])
        optimizers[number].step(rows=[RowUpdate(table, ids, table.detach()[ids], torch.ones(2, 2))])

    step(0)
    tables[1].data.copy_(tables[0].data)
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    step(0)
    step(1)
    assert torch.equal(*tables)

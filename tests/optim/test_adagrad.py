"""Row-wise Adagrad against torch's dense one."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arnn_lightning.errors import UserError
from arnn_lightning.loading.datamodule import lookups
from arnn_lightning.nn.table import ItemScorer, RowTable
from arnn_lightning.optim.adagrad import RowAdagrad


def run(optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer], sparse: bool, unique: bool) -> list[Tensor]:
    """Five steps over a table with repeated ids and a dense matrix."""
    torch.manual_seed(0)
    table, dense = RowTable(20, 4).double(), nn.Linear(4, 3).double()
    nn.init.normal_(table.weight)
    table.sparse = sparse
    made = optimizer([*table.parameters(), *dense.parameters()])
    for _ in range(5):
        ids = torch.randint(0, 20, (1, 30))
        (rows,) = lookups(ids, torch.ones_like(ids, dtype=torch.bool))
        made.zero_grad()
        dense(table(ids[0], rows if unique else None)).square().sum().backward()
        made.step()
    return [table.weight.detach(), *(weight.detach() for weight in dense.parameters())]


@pytest.mark.parametrize("unique", [True, False])
def test_E21_repeated_items_gradients_are_added_before_they_are_squared(unique: bool) -> None:
    ours = run(lambda weights: RowAdagrad(weights, 0.1, 1e-10, 0.0, 0.0), sparse=True, unique=unique)
    theirs = run(lambda weights: torch.optim.Adagrad(weights, 0.1), sparse=False, unique=unique)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_E21_two_reads_of_one_table_in_a_step_are_added_too() -> None:
    def trained(sparse: bool) -> Tensor:
        table = RowTable(6, 2).double()
        nn.init.constant_(table.weight, 0.5)
        table.sparse = sparse
        optimizer = RowAdagrad(table.parameters(), 0.1, 1e-10, 0.0, 0.0)
        (first,) = lookups(torch.tensor([[1, 2, 2]]), torch.ones(1, 3, dtype=torch.bool))
        (second,) = lookups(torch.tensor([[2, 5]]), torch.ones(1, 2, dtype=torch.bool))
        (table(first.rows, first).sum() + (table(second.rows, second) ** 2).sum()).backward()
        optimizer.step()
        return table.weight.detach()

    assert torch.allclose(trained(sparse=True), trained(sparse=False), atol=1e-15)


def test_E21_rows_of_an_earlier_read_are_not_taken_for_those_of_raw_ids() -> None:
    def trained(sparse: bool) -> Tensor:
        table = RowTable(6, 2).double()
        table.sparse = sparse
        optimizer = RowAdagrad(table.parameters(), 0.1, 1e-10, 0.0, 0.0)
        (rows,) = lookups(torch.tensor([[1, 2, 4]]), torch.ones(1, 3, dtype=torch.bool))
        raw, other = torch.tensor([3, 3, 1]), torch.tensor([3, 1, 1])  # as many as rows were
        for ids, known in ((rows.rows, rows), (raw, None), (rows.rows, rows), (other, None)):
            optimizer.zero_grad()
            table(ids, known).sum().backward()
            optimizer.step()
        return table.weight.detach()

    assert torch.allclose(trained(sparse=True), trained(sparse=False), atol=1e-15)


def test_E21_a_tied_embedding_and_its_scorer_are_added_up_too() -> None:
    def trained(optimizer: Callable[..., torch.optim.Optimizer], sparse: bool) -> list[Tensor]:
        torch.manual_seed(0)
        scorer = ItemScorer(20, 5).double()
        scorer.items.sparse = scorer.bias.sparse = sparse
        made = optimizer(scorer.parameters())
        for _ in range(5):
            ids = torch.randint(0, 20, (2, 9))
            read, scored = lookups(ids, torch.ones_like(ids, dtype=torch.bool))
            made.zero_grad()
            scorer.some(scorer.items(ids[0], read), scored.rows).square().sum().backward()
            made.step()
        return [weight.detach() for weight in scorer.parameters()]

    ours = trained(lambda weights: RowAdagrad(weights, 0.1, 1e-10, 0.0, 0.0), sparse=True)
    theirs = trained(lambda weights: torch.optim.Adagrad(weights, 0.1), sparse=False)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_E13_every_setting_reaches_the_update() -> None:
    settings = {"lr": 0.1, "eps": 1e-10, "weight_decay": 0.0, "momentum": 0.0}
    base = run(lambda weights: RowAdagrad(weights, **settings), sparse=True, unique=True)
    for name, value in {"lr": 0.2, "eps": 0.5, "weight_decay": 0.3, "momentum": 0.5}.items():
        other = run(lambda weights, new={name: value}: RowAdagrad(weights, **(settings | new)), True, True)  # type: ignore[misc]
        assert not any(torch.allclose(a, b) for a, b in zip(base, other, strict=True)), name


def test_E13_the_accumulator_starts_at_0_and_the_rate_does_not_decay() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = RowAdagrad([weight], lr=0.1, eps=0.0, weight_decay=0.0, momentum=0.0)
    expected = 0.0
    for step in range(1, 5):
        weight.grad = torch.ones(1)
        optimizer.step()
        expected -= 0.1 / step**0.5
        assert weight.item() == pytest.approx(expected, rel=1e-6)


def test_decay_and_momentum_act_on_touched_rows_only() -> None:
    table = RowTable(3, 2)
    nn.init.ones_(table.weight)
    optimizer = RowAdagrad(table.parameters(), lr=0.1, eps=1e-10, weight_decay=0.5, momentum=0.9)
    for ids in ([0, 1], [1]):
        optimizer.zero_grad()
        table(torch.tensor(ids)).sum().backward()
        before = table.weight.detach().clone()
        optimizer.step()
        moved = (table.weight != before).all(1).tolist()
        assert moved == [row in ids for row in range(3)]


def test_momentum_follows_its_formula() -> None:
    table = RowTable(2, 1)
    optimizer = RowAdagrad(table.parameters(), lr=1.0, eps=0.0, weight_decay=0.0, momentum=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        F.embedding(torch.tensor([1]), table.weight, sparse=True).sum().backward()
        optimizer.step()
    second = -0.5 - 1 / 2**0.5  # momentum * first step (-1) + second step
    assert table.weight[1].item() == pytest.approx(-1 + second)


def test_a_negative_rate_is_a_users_error() -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr=-1"):
        RowAdagrad([nn.Parameter(torch.zeros(1))], lr=-1, eps=0.0, weight_decay=0.0, momentum=0.0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_fused_update_is_the_one_that_momentum_and_other_devices_take(
    weight_decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = lambda weights: RowAdagrad(weights, 0.1, 1e-3, weight_decay, 0.0)  # noqa: E731
    fused = run(make, sparse=True, unique=True)
    monkeypatch.setattr(RowAdagrad, "_fused", lambda self, group: False)
    for a, b in zip(fused, run(make, sparse=True, unique=True), strict=True):
        assert torch.allclose(a, b, atol=1e-14)

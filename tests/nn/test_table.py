"""Tables, the scorer, and the GRU step."""

import pytest
import torch
from torch import nn

from arnn_lightning.loading.datamodule import lookups
from arnn_lightning.nn.gru import GATES, GRUStep
from arnn_lightning.nn.table import ItemScorer, RowTable, glorot_


def test_E12_glorot_fills_its_bounds_evenly() -> None:
    weight = torch.empty(200, 100)
    glorot_(weight, 200, 100)
    bound = (6 / 300) ** 0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_a_lookup_reads_the_same_as_the_ids_and_its_gradient_has_its_rows_only() -> None:
    table = RowTable(50, 3)
    nn.init.normal_(table.weight)
    ids = torch.tensor([[7, 3, 7, 20]])
    (lookup,) = lookups(ids, torch.ones_like(ids, dtype=torch.bool))
    out = table(ids[0], lookup)
    assert torch.equal(out, table(ids[0]))
    out.sum().backward()
    assert table.weight.grad.is_sparse
    assert table.weight.grad._indices()[0].tolist() == [3, 7, 20]
    assert table.weight.grad._values()[:, 0].tolist() == [1, 2, 1]


def test_the_gradient_of_one_read_lies_on_the_rows_that_the_table_remembers_and_of_two_reads_elsewhere() -> None:
    table = RowTable(50, 3)
    nn.init.normal_(table.weight)
    first, second = lookups(torch.tensor([[7, 3, 7], [3, 9, 9]]), torch.ones(2, 3, dtype=torch.bool))
    mixed = torch.randn(3, 2)
    (table(second.rows, second) @ mixed).sum().backward()
    assert table.weight.grad._indices().data_ptr() == table.weight.unique_rows.data_ptr() == second.rows.data_ptr()
    table.zero_grad()
    ((table(first.rows, first) + table(second.rows, second)) @ mixed).sum().backward()
    assert table.weight.grad._indices().data_ptr() not in (first.rows.data_ptr(), second.rows.data_ptr())


def test_some_scores_are_the_same_as_among_all() -> None:
    scorer = ItemScorer(40, 6).double()
    nn.init.normal_(scorer.bias.weight)
    query = torch.randn(5, 6, dtype=torch.float64)
    ids = torch.randint(0, 40, (1, 12))
    (lookup,) = lookups(ids, torch.ones_like(ids, dtype=torch.bool))
    assert torch.allclose(scorer.some(query, lookup.rows), scorer.all(query)[:, lookup.rows], atol=1e-12)


def test_E22_the_step_is_torchs_gru_cell() -> None:
    torch.manual_seed(0)
    cell, step = nn.GRUCell(4, 6).double(), GRUStep(6).double()
    with torch.no_grad():
        step.weight.copy_(cell.weight_hh)
        step.bias.copy_(cell.bias_hh)
    x, h = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    gates = torch.nn.functional.linear(x, cell.weight_ih, cell.bias_ih)
    assert torch.allclose(step(gates, h), cell(x, h), atol=1e-12)


def test_E12_every_gate_has_its_own_fan() -> None:
    step = GRUStep(64)
    bound = (6 / 128) ** 0.5
    for block in step.weight.chunk(GATES):
        assert 0.97 * bound < block.abs().max() <= bound
    assert not step.bias.any()

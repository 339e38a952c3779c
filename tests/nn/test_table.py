"""Tables, the scorer, and the GRU cell."""

import pytest
import torch
from torch import nn

from arnn_lightning.batch import Contexts
from arnn_lightning.nn.gru import GATES, GRUCell, OneHotInput
from arnn_lightning.nn.table import EmbeddingTable, ItemAttributes, ItemFields, ItemScorer


def fill(table: EmbeddingTable) -> EmbeddingTable:
    torch.manual_seed(0)
    nn.init.normal_(table.weight)
    return table


@pytest.mark.parametrize("ids", [[7, 3, 7, 20], [[7, 3], [7, 20]]], ids=["one dimension", "two"])
def test_a_lookup_returns_rows_and_adds_up_their_gradients(ids: list) -> None:
    table, index = fill(EmbeddingTable(50, 3)), torch.tensor(ids)
    out = table(index)
    assert torch.equal(out, table.weight[index])
    out.sum().backward()
    assert table.weight.grad[:, 0].nonzero()[:, 0].tolist() == [3, 7, 20]
    assert table.weight.grad[[3, 7, 20], 0].tolist() == [1, 2, 1]


def test_positions_map_ids_to_gathered_rows() -> None:
    table, rows = fill(EmbeddingTable(50, 3)), torch.tensor([3, 7, 20])
    positions = torch.full((50,), -1).index_copy(0, rows, torch.arange(3))
    for ids in (torch.tensor([7, 3, 7, 20]), torch.tensor([[7, 3], [7, 20]])):
        substitutes = {"weight": table.weight[rows], "positions": positions}
        assert torch.equal(torch.func.functional_call(table, substitutes, ids), table(ids))
        with pytest.raises(IndexError):
            torch.func.functional_call(table, substitutes, ids + 1)  # ids that were not gathered


def test_scores_of_columns_equal_those_among_all() -> None:
    scorer = ItemScorer(40, 6).double()
    nn.init.normal_(scorer.bias.weight)
    query = torch.randn(5, 6, dtype=torch.float64)
    columns = torch.randint(0, 40, (12,))
    assert torch.allclose(scorer(query, columns), scorer(query)[:, columns], atol=1e-12)
    assert torch.allclose(scorer(query), query @ scorer.items.weight.T + scorer.bias.weight, atol=1e-12)


def test_rows_that_embed_and_score_have_the_candidates_first() -> None:
    scorer = ItemScorer(40, 6).double()
    nn.init.normal_(scorer.bias.weight)
    query, candidates, others = torch.randn(5, 6).double(), torch.tensor([4, 9, 30]), torch.tensor([1, 2])
    substitutes = {
        "items.weight": scorer.items.weight[torch.cat([candidates, others])],
        "bias.weight": scorer.bias.weight[candidates],
    }
    some = torch.func.functional_call(scorer, substitutes, query)
    assert torch.allclose(some, scorer(query)[:, candidates], atol=1e-12)


def test_E28_items_without_event_stand_at_the_mean_of_others() -> None:
    events, one_field = torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3, dtype=torch.int64)
    for width in (2, None):
        table = fill(EmbeddingTable(3, width)) if width else EmbeddingTable(3, None)
        table.weight.data += torch.tensor([1.0, 5.0, 3.0]).view(3, *[1] * (table.weight.dim() - 1))
        before = table.weight.detach().clone()
        table.place_unseen(events, one_field)
        assert table.weight[[0, 2]].equal(before[[0, 2]])
        torch.testing.assert_close(table.weight[1].detach(), before[[0, 2]].mean(0))


def test_E28_a_category_without_event_stands_at_its_fields_mean() -> None:
    """Items have categories 1, 1, 2, 0 and the binary fields none, 0, 0, 1; the last item has no event."""
    attributes = ItemAttributes([3], 2, 4)
    nn.init.normal_(attributes.weight)
    single, active = torch.tensor([[1], [1], [2], [0]]), torch.tensor([[-1, -1], [0, -1], [0, -1], [1, -1]])
    attributes.set_codes(Contexts(single, active))
    before = attributes.weight.detach().clone()
    assert attributes(torch.tensor([1, 3])).allclose(torch.stack([before[1] + before[3], before[0] + before[4]]))
    attributes.place_unseen(torch.tensor([1.0, 1.0, 4.0, 0.0]))
    assert attributes.weight[[1, 2, 3]].equal(before[[1, 2, 3]])
    torch.testing.assert_close(attributes.weight[0].detach(), before[1] / 3 + before[2] * 2 / 3)  # "unknown"
    assert not attributes.weight[4].any()  # absent from training: no effect


def test_each_attribute_of_an_item_is_a_field_of_its_own() -> None:
    """Single-valued attributes of 3 and 2 categories, multi-valued ones of 2 and 1, of which item 0 has none."""
    table = ItemFields(4, 5, [3, 2], [2, 1])
    single, active = torch.tensor([[1, 4], [1, 3], [2, 3], [0, 4]]), torch.tensor([[-1, -1], [0, 1], [2, 0], [2, -1]])
    table.fields.set_codes(Contexts(single, active))
    vectors = table.fields.weight
    for item, (tags, marks) in enumerate([([], []), ([0, 1], []), ([0], [2]), ([], [2])]):
        expected = [table.weight[item], vectors[single[item, 0]], vectors[single[item, 1]]]
        expected += [sum((vectors[5 + code] for code in codes), torch.zeros(5)) for codes in (tags, marks)]
        assert table(torch.tensor([item]))[0].T.allclose(torch.stack(expected), atol=1e-7)
    assert table(torch.tensor([[0, 1], [2, 3]])).equal(table(torch.arange(4)).view(2, 2, 5, 5))
    table.add_attributes([3, 2], 3)
    assert table.attributes is None  # they are fields, and not added to the item's as well


def test_E22_the_cell_is_torchs_gru_cell() -> None:
    torch.manual_seed(0)
    theirs, ours = nn.GRUCell(4, 6).double(), GRUCell(6).double()
    with torch.no_grad():
        ours.weight.copy_(theirs.weight_hh)
        ours.bias.copy_(theirs.bias_hh)
    x, h = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    gates = torch.nn.functional.linear(x, theirs.weight_ih, theirs.bias_ih)
    assert torch.allclose(ours(gates, h), theirs(x, h), atol=1e-12)


def test_E28_only_rows_without_an_event_are_placed_at_their_mean() -> None:
    table = EmbeddingTable(5, 2, "single")
    with torch.no_grad():
        table.weight.copy_(torch.tensor([[9.0, 9.0], [1.0, 2.0], [5.0, 6.0], [9.0, 9.0], [3.0, 4.0]]))
    table.place_unseen(torch.tensor([0, 1, 3, 0, 7]), torch.tensor([0, 0, 0, 1, 1]))
    expected = [[4.0, 5.0], [1.0, 2.0], [5.0, 6.0], [3.0, 4.0], [3.0, 4.0]]
    assert torch.allclose(table.weight, torch.tensor(expected))


def test_E28_without_contexts_no_row_is_placed() -> None:
    table = EmbeddingTable(0, 2, "single")
    table.place_unseen(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert table.weight.shape == (0, 2)


def test_E12_the_scorer_is_glorot_uniform_with_biases_0() -> None:
    scorer = ItemScorer(200, 100)
    bound = (6 / 300) ** 0.5
    assert scorer.items.weight.abs().max() <= bound
    assert scorer.items.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not scorer.bias.weight.any()


def test_E12_every_gate_has_its_own_fan() -> None:
    cell, one_hot = GRUCell(64), OneHotInput(500, 64)
    blocks = [(64 + 64, block) for block in cell.weight.chunk(GATES)]
    blocks += [(500 + 64, block) for block in one_hot.gates.weight.chunk(GATES, 1)]
    for fans, block in blocks:
        assert 0.97 * (6 / fans) ** 0.5 < block.abs().max() <= (6 / fans) ** 0.5
    assert not cell.bias.any()
    assert not one_hot.bias.any()

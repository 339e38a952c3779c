"""Laws of ranks and metrics."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arnn_lightning.errors import UserError
from arnn_lightning.evaluation import ranking as ranks
from arnn_lightning.evaluation.bootstrap import interval
from arnn_lightning.evaluation.metrics import metrics
from arnn_lightning.evaluation.ranking import count_ranks, count_ranks_of_products, rank


def reference_rank(score: np.ndarray, target: int, ties: str) -> float:
    better = (score > score[target]).sum()
    same = (score == score[target]).sum()
    return {"standard": better + 1, "conservative": better + same, "median": better + (same + 1) / 2}[ties]


@given(st.integers(0, 10_000), st.sampled_from(ranks.TIES))
def test_V4_V5_ranks_equal_a_numpy_reference_with_ties(seed: int, ties: str) -> None:
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 4, (9, 7)).astype(np.float32)
    target = rng.integers(0, 7, 9)
    counts = count_ranks(lambda block: block.clone(), torch.from_numpy(score), torch.from_numpy(target), 7)
    expected = [reference_rank(row, t, ties) for row, t in zip(score, target, strict=True)]
    assert rank(counts[:, 0], counts[:, 1], ties).tolist() == expected


def test_ranks_do_not_depend_on_how_queries_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, weight = torch.randn(200, 16), torch.randn(300, 16)
    target = torch.randint(0, 300, (200,))
    whole = count_ranks(lambda block: block @ weight.T, query, target, 300)
    monkeypatch.setattr(ranks, "BLOCK", 300 * 7)
    monkeypatch.setattr(ranks, "SMALLEST_BLOCK", 1)
    assert torch.equal(count_ranks(lambda block: block @ weight.T, query, target, 300), whole)


@pytest.mark.parametrize(("queries", "piece"), [(256, 1 << 19), (7, 7 * 11), (1, 1), (64, 64 * 300)])
def test_products_in_pieces_have_the_ranks_of_all_scores_at_once(
    queries: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    # Whole numbers: every product is exact, so that ties are ties however they are computed.
    weight = torch.from_numpy(rng.integers(-2, 3, (300, 4)).astype(np.float32))
    query = torch.from_numpy(rng.integers(-2, 3, (100, 4)).astype(np.float32))
    bias, target = (
        torch.from_numpy(rng.integers(0, 2, 300).astype(np.float32)),
        torch.from_numpy(rng.integers(0, 300, 100)),
    )
    whole = count_ranks(lambda block: block @ weight.T + bias, query, target, 300)
    monkeypatch.setattr(ranks, "QUERIES", queries)
    monkeypatch.setattr(ranks, "PIECE", piece)
    assert whole[:, 1].max() > 1
    assert torch.equal(count_ranks_of_products(query, target, weight, bias), whole)
    assert count_ranks_of_products(query[:0], target[:0], weight, bias).shape == (0, 2)


def test_a_target_whose_own_score_was_rounded_otherwise_is_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, weight, bias, target = torch.randn(50, 8), torch.randn(90, 8), torch.zeros(90), torch.arange(50)
    right = count_ranks(lambda block: block @ weight.T, query, target, 90)
    usual = torch.addmm

    def rounded(bias_C: torch.Tensor, *products: torch.Tensor, **where: torch.Tensor) -> torch.Tensor:
        result = usual(bias_C, *products, **where)
        return result if where else result * (1 + 1e-3 * (result.shape == (50, 50)))  # the targets' own product

    monkeypatch.setattr(torch, "addmm", rounded)
    assert torch.equal(count_ranks_of_products(query, target, weight, bias), right)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("where", ["query", "weight", "bias"])
def test_V8_products_that_are_not_finite_raise(bad: float, where: str) -> None:
    values = {"query": torch.full((3, 4), 10.0), "weight": torch.ones(5, 4), "bias": torch.zeros(5)}
    values[where][1:2] = bad
    arguments = values["query"], torch.zeros(3, dtype=torch.int64), values["weight"], values["bias"]
    if (where, bad) == ("bias", 1e38):
        assert count_ranks_of_products(*arguments).tolist() == [[1, 4]] * 3
        return
    with pytest.raises(UserError, match="NaN or infinite"):
        count_ranks_of_products(*arguments)


def test_V5_a_constant_model_has_conservative_recall_0_and_an_oracle_1() -> None:
    target = torch.arange(50)
    constant = count_ranks(lambda block: torch.ones(len(block), 50), torch.zeros(50, 1), target, 50)
    oracle = count_ranks(lambda block: block.clone(), torch.eye(50), target, 50)
    session = np.arange(50)
    assert metrics(rank(*constant.T, "conservative").numpy(), session, [20])["recall@20"] == 0
    assert metrics(rank(*oracle.T, "conservative").numpy(), session, [20]) == {
        "recall@20": 1,
        "mrr@20": 1,
        "macro_recall@20": 1,
        "macro_mrr@20": 1,
        "events": 50,
        "sessions": 50,
    }


def test_V5_saturating_activations_would_tie_but_raw_scores_do_not() -> None:
    raw = torch.tensor([[9.1, 12.0]])
    assert torch.tanh(raw[0, 0]) == torch.tanh(raw[0, 1])
    assert count_ranks(lambda block: block.clone(), raw, torch.tensor([0]), 2).tolist() == [[1, 1]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_V8_a_score_that_is_not_finite_raises(bad: float) -> None:
    score = torch.zeros(3, 5)
    score[1, 2] = bad
    with pytest.raises(UserError, match="NaN or infinite"):
        count_ranks(lambda block: block.clone(), score, torch.zeros(3, dtype=torch.int64), 5)


def test_E16_rank_20_is_a_hit_at_20_and_rank_21_is_not() -> None:
    result = metrics(np.array([20.0, 21.0]), np.array([0, 1]), [20])
    assert result["recall@20"] == 0.5
    assert result["mrr@20"] == pytest.approx(0.05 / 2)


def test_E17_V11_micro_weighs_events_and_macro_sessions() -> None:
    result = metrics(np.array([1.0, 1.0, 1.0, 99.0]), np.array([7, 7, 7, 8]), [20])
    assert result["recall@20"] == 0.75
    assert result["macro_recall@20"] == 0.5
    assert (result["events"], result["sessions"]) == (4, 2)


def test_unknown_tie_mode_is_a_users_error() -> None:
    with pytest.raises(UserError, match=r"evaluation\.ties=luck"):
        rank(torch.tensor([1]), torch.tensor([1]), "luck")


def test_V14_whole_users_are_drawn() -> None:
    value = np.repeat([0.0, 1.0], 500)
    low, high = interval(value, np.repeat([0, 1], 500), resamples=200, confidence=0.95, seed=1)
    assert (low, high) == (0.0, 1.0)  # two users: resamples hold one of them alone
    narrow = interval(value, np.arange(1000), resamples=200, confidence=0.95, seed=1)
    assert 0.46 < narrow[0] < 0.5 < narrow[1] < 0.54


def test_V14_intervals_repeat_with_their_seed() -> None:
    value = np.random.default_rng(0).random(300)
    user = np.arange(300) // 3
    assert interval(value, user, 50, 0.95, 4) == interval(value, user, 50, 0.95, 4)
    assert interval(value, user, 50, 0.95, 4) != interval(value, user, 50, 0.95, 5)

"""Ranks and metrics."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arnn_lightning.errors import UserError
from arnn_lightning.evaluation import ranking
from arnn_lightning.evaluation.bootstrap import interval
from arnn_lightning.evaluation.metrics import (
    METRICS,
    TIE_MODES,
    compute_metrics,
    list_metrics,
    metric_names,
    parse_metric,
    per_prediction,
    rank,
)
from arnn_lightning.evaluation.ranking import (
    BestItems,
    RecommendationCounts,
    count_higher_and_tied,
    count_higher_and_tied_blockwise,
    top_items,
)


def reference_rank(score: np.ndarray, target: int, ties: str) -> float:
    better = (score > score[target]).sum()
    same = (score == score[target]).sum()
    return {"standard": better + 1, "conservative": better + same, "median": better + (same + 1) / 2}[ties]


@given(st.integers(0, 10_000), st.sampled_from(TIE_MODES))
def test_V4_V5_ranks_equal_a_numpy_reference_with_ties(seed: int, ties: str) -> None:
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 4, (9, 7)).astype(np.float32)
    target = rng.integers(0, 7, 9)
    counts = count_higher_and_tied(lambda block: block.clone(), torch.from_numpy(score), torch.from_numpy(target), 7)
    expected = [reference_rank(row, t, ties) for row, t in zip(score, target, strict=True)]
    assert rank(*counts.numpy().T, ties).tolist() == expected


def test_ranks_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, weight = torch.randn(200, 16), torch.randn(300, 16)
    target = torch.randint(0, 300, (200,))
    expected = count_higher_and_tied(lambda block: block @ weight.T, query, target, 300)
    monkeypatch.setattr(ranking, "BLOCK_SCORES", 300 * 7)
    monkeypatch.setattr(ranking, "MIN_BLOCK_QUERIES", 1)
    assert torch.equal(count_higher_and_tied(lambda block: block @ weight.T, query, target, 300), expected)


@pytest.mark.parametrize(("queries", "scores"), [(256, 1 << 19), (7, 7 * 11), (1, 1), (64, 64 * 300)])
def test_blockwise_counts_equal_those_of_all_scores(queries: int, scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    # Integers: every product is exact, so that ties are ties however they are computed.
    weight = torch.from_numpy(rng.integers(-2, 3, (300, 4)).astype(np.float32))
    query = torch.from_numpy(rng.integers(-2, 3, (100, 4)).astype(np.float32))
    bias, target = (
        torch.from_numpy(rng.integers(0, 2, 300).astype(np.float32)),
        torch.from_numpy(rng.integers(0, 300, 100)),
    )
    expected = count_higher_and_tied(lambda block: block @ weight.T + bias, query, target, 300)
    monkeypatch.setattr(ranking, "BLOCK_QUERIES", queries)
    monkeypatch.setattr(ranking, "CPU_BLOCK_SCORES", scores)
    assert expected[:, 1].max() > 1
    assert torch.equal(count_higher_and_tied_blockwise(query, target, weight, bias), expected)
    assert count_higher_and_tied_blockwise(query[:0], target[:0], weight, bias).shape == (0, 2)


def test_inexact_target_scores_are_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, weight, bias, target = torch.randn(50, 8), torch.randn(90, 8), torch.zeros(90), torch.arange(50)
    right = count_higher_and_tied(lambda block: block @ weight.T, query, target, 90)
    usual = torch.addmm

    def rounded(bias_C: torch.Tensor, *products: torch.Tensor, **where: torch.Tensor) -> torch.Tensor:
        result = usual(bias_C, *products, **where)
        return result if where else result * (1 + 1e-3 * (result.shape == (50, 50)))  # the targets' own product

    monkeypatch.setattr(torch, "addmm", rounded)
    assert torch.equal(count_higher_and_tied_blockwise(query, target, weight, bias), right)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e38, -1e38])
@pytest.mark.parametrize("where", ["query", "weight", "bias"])
def test_V8_non_finite_products_raise(bad: float, where: str) -> None:
    values = {"query": torch.full((3, 4), 10.0), "weight": torch.ones(5, 4), "bias": torch.zeros(5)}
    values[where][1:2] = bad
    arguments = values["query"], torch.zeros(3, dtype=torch.int64), values["weight"], values["bias"]
    if where == "bias" and abs(bad) == 1e38:
        assert count_higher_and_tied_blockwise(*arguments).tolist() == [[int(bad > 0), 4]] * 3
        return
    with pytest.raises(UserError, match="NaN or infinite"):
        count_higher_and_tied_blockwise(*arguments)


def test_V5_constant_model_has_recall_0_and_oracle_1() -> None:
    target = torch.arange(50)
    constant = count_higher_and_tied(lambda block: torch.ones(len(block), 50), torch.zeros(50, 1), target, 50)
    oracle = count_higher_and_tied(lambda block: block.clone(), torch.eye(50), target, 50)
    session = np.arange(50)
    assert compute_metrics(rank(*constant.numpy().T, "conservative"), session, ["recall@20"])["recall@20"] == 0
    assert compute_metrics(rank(*oracle.numpy().T, "conservative"), session, ["recall@20", "mrr@20"]) == {
        "recall@20": 1,
        "mrr@20": 1,
        "macro_recall@20": 1,
        "macro_mrr@20": 1,
        "events": 50,
        "sessions": 50,
    }


def test_V5_raw_scores_do_not_tie_where_tanh_saturates() -> None:
    raw = torch.tensor([[9.1, 12.0]])
    assert torch.tanh(raw[0, 0]) == torch.tanh(raw[0, 1])
    assert count_higher_and_tied(lambda block: block.clone(), raw, torch.tensor([0]), 2).tolist() == [[1, 1]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_V8_non_finite_scores_raise(bad: float) -> None:
    score = torch.zeros(3, 5)
    score[1, 2] = bad
    with pytest.raises(UserError, match="NaN or infinite"):
        count_higher_and_tied(lambda block: block.clone(), score, torch.zeros(3, dtype=torch.int64), 5)


def test_E16_rank_20_is_a_hit_at_20_and_rank_21_is_not() -> None:
    result = compute_metrics(np.array([20.0, 21.0]), np.array([0, 1]), ["recall@20", "mrr@20"])
    assert result["recall@20"] == 0.5
    assert result["mrr@20"] == pytest.approx(0.05 / 2)


def test_E17_V11_micro_weighs_events_and_macro_sessions() -> None:
    result = compute_metrics(np.array([1.0, 1.0, 1.0, 99.0]), np.array([7, 7, 7, 8]), ["recall@20", "mrr@20"])
    assert result["recall@20"] == 0.75
    assert result["macro_recall@20"] == 0.5
    assert (result["events"], result["sessions"]) == (4, 2)


def test_unknown_tie_mode_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"evaluation\.ties=luck"):
        rank(np.array([1]), np.array([1]), "luck")


def test_V14_whole_users_are_resampled() -> None:
    value = np.repeat([0.0, 1.0], 500)
    low, high = interval(value, np.arange(1000) // 100, resamples=200, confidence=0.95, seed=1)
    assert low < 0.3 < 0.7 < high  # ten users, each with all its predictions
    narrow = interval(value, np.arange(1000), resamples=200, confidence=0.95, seed=1)
    assert 0.46 < narrow[0] < 0.5 < narrow[1] < 0.54


def test_nine_users_are_too_few_for_an_interval() -> None:
    assert np.isnan(interval(np.arange(90.0), np.arange(90) % 9, resamples=20, confidence=0.95, seed=1)).all()


def test_V14_intervals_are_reproducible_by_seed() -> None:
    value = np.random.default_rng(0).random(300)
    user = np.arange(300) // 3
    assert interval(value, user, 50, 0.95, 4) == interval(value, user, 50, 0.95, 4)
    assert interval(value, user, 50, 0.95, 4) != interval(value, user, 50, 0.95, 5)


METRIC_REFERENCES: dict[str, Callable[[int, int], float]] = {
    "recall": lambda position, k: float(position <= k),
    "mrr": lambda position, k: 1 / position if position <= k else 0.0,
    # DCG / IDCG over the whole list, with binary relevance.
    "ndcg": lambda position, k: sum((place == position) / math.log2(place + 1) for place in range(1, k + 1)),
}


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("k", [1, 3, 20])
def test_every_metric_equals_an_independent_reference(kind: str, k: int) -> None:
    positions = range(1, 41)
    values = per_prediction(np.array(positions, dtype=np.float64), f"{kind}@{k}")
    assert values.dtype == np.float64
    expected = [METRIC_REFERENCES[kind](position, k) for position in positions]
    assert values.tolist() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("name", ["recall", "recall@0", "recall@-5", "recall@2.5", "hits@20", "recal@20", "@5"])
def test_invalid_metric_names_are_user_errors(name: str) -> None:
    with pytest.raises(UserError, match=f'^"{name}" is not a metric.*known: recall@K, mrr@K, ndcg@K') as error:
        parse_metric(name)
    assert ("did you mean" in str(error.value)) == (name == "recal@20")
    with pytest.raises(UserError):
        metric_names([name.partition("@")[0]], [name.partition("@")[2]])


def test_a_split_without_predictions_is_a_user_error() -> None:
    with pytest.raises(UserError, match="no predictions to evaluate"):
        compute_metrics(np.zeros(0), np.zeros(0), ["recall@20"])


def test_counting_overwrites_the_scores_it_is_given() -> None:
    """The documented trap: what ``score`` returns is destroyed."""
    scores = torch.tensor([[0.1, 0.9, 0.5]])
    assert count_higher_and_tied(lambda query: query, scores, torch.tensor([2]), 3).tolist() == [[1, 1]]
    assert scores.tolist() != [[0.1, 0.9, 0.5]]


@pytest.mark.parametrize("n_items", [1, 5, 700, 9_000, 30_000])
@pytest.mark.parametrize("n_values", [2, 50, 10**6])
def test_V5_top_items_are_sorted_by_score_and_then_by_item(n_items: int, n_values: int) -> None:
    """Few values make many ties, at the end of a list too; some items are left out."""
    generator = torch.Generator().manual_seed(n_items)
    score = torch.randint(n_values, (7, n_items), generator=generator).float()
    score[:, ::3] = -math.inf
    for k in (1, 20, 40_000):
        values, items = top_items(score, k)
        expected = score.sort(dim=1, descending=True, stable=True)
        assert torch.equal(values, expected.values[:, :k])
        assert torch.equal(items, expected.indices[:, :k])


@pytest.mark.parametrize("item", [0, 255, 256, 29_951, 29_952, 29_999])  # the last whole block of 256 ends at 29,951
def test_the_best_item_may_be_at_any_place_of_a_block(item: int) -> None:
    score = -torch.arange(30_000.0)[None]
    score[0, item] = 1
    assert top_items(score, 3)[1][0, 0] == item


def test_queries_with_many_ties_stay_without_a_list() -> None:
    best = BestItems(3, 2)
    tied, distinct = torch.zeros(512), torch.arange(512.0)
    best.add(torch.stack([tied, distinct, distinct]), 0)
    best.add(torch.stack([distinct, distinct - 1000, tied + 1000]), 512)
    items, skipped = best.lists()
    assert items.tolist() == [511, 510]
    assert skipped.tolist() == [0, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("n_items", [5, 30_000])
def test_V8_lists_of_scores_that_are_not_finite_raise(value: float, n_items: int) -> None:
    score = torch.randn(3, n_items)
    score[1, n_items // 2] = value
    with pytest.raises(UserError, match="NaN or infinite"):
        top_items(score, 3)


@pytest.mark.parametrize("n_items", [1, 21, 330, 5000])
@pytest.mark.parametrize("n_values", [1, 3, 2000])
def test_V5_recommendations_are_counted_as_lists_order_ties(n_items: int, n_values: int) -> None:
    """In blocks of items and in whole rows; whole numbers are exact in every product, and make many ties."""
    generator = torch.Generator().manual_seed(n_items)
    query = torch.randint(-3, 4, (300, 6), generator=generator).float() * (n_values > 1)
    weight = torch.randint(-3, 4, (n_items, 6), generator=generator).float()
    bias = torch.randint(n_values, (n_items,), generator=generator).float()
    target = torch.zeros(300, dtype=torch.long)
    listed = top_items(torch.addmm(bias, query, weight.T), 20)[1]
    expected = torch.bincount(listed.flatten(), minlength=n_items)
    whole, blocks = (RecommendationCounts(n_items, 20, torch.device("cpu")) for _ in range(2))
    count_higher_and_tied(lambda block: torch.addmm(bias, block, weight.T), query, target, n_items, whole)
    count_higher_and_tied_blockwise(query, target, weight, bias, blocks)
    assert torch.equal(whole.count_I, expected)
    assert torch.equal(blocks.count_I, expected)


def test_list_metrics_equal_independent_references() -> None:
    count, popularity = np.array([7, 0, 3, 10, 0]), np.array([4, 1, 0, 15, 5])
    lists = [item for item, times in enumerate(count) for _ in range(times)]
    measured = list_metrics(count, popularity, 4)
    assert measured["coverage@4"] == len(set(lists)) / 5
    assert measured["mean_popularity@4"] == pytest.approx(np.mean([popularity[item] for item in lists]))
    bits = [math.log2(25 / max(popularity[item], 1)) for item in lists]
    assert measured["novelty@4"] == pytest.approx(np.mean(bits))
    # Gini's mean absolute difference of all pairs, relative to twice the mean; n / (n - 1) for a finite population.
    pairs = [abs(int(a) - int(b)) for a in count for b in count]
    assert measured["gini@4"] == pytest.approx(np.mean(pairs) / (2 * np.mean(count)) * 5 / 4)
    assert list_metrics(np.zeros(5, int), popularity, 4) == {}


def test_metrics_of_lists_are_not_of_single_predictions() -> None:
    with pytest.raises(UserError, match="coverage@20 is a metric of lists"):
        parse_metric("coverage@20")
    assert metric_names(["recall", "gini"], [20]) == ["recall@20", "gini@20"]

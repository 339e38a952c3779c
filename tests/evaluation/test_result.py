"""Joining a model's counts with the test split."""

import numpy as np
import polars as pl
import pytest
import torch

from arnn_lightning.evaluation.result import RANKS, EvaluationResult, metric_intervals, next_item_targets

TEST = pl.DataFrame({"session": [4, 4, 4, 5, 5], "user": [1, 1, 1, 0, 0], "item": [7, 8, 9, 7, 9], "time": [0] * 5})
COUNTED = {
    "session": torch.tensor([5, 4, 4]),
    "position": torch.tensor([1, 2, 1]),
    "higher": torch.tensor([0, 3, 5]),
    "equal": torch.tensor([1, 2, 1]),
}
BOOTSTRAP = {"unit": "user", "resamples": 20, "confidence": 0.95}


def test_counts_are_joined_by_session_and_position() -> None:
    ranks = EvaluationResult.from_counts("m", COUNTED, TEST, "conservative").ranks
    assert tuple(ranks.columns) == RANKS
    assert ranks.rows() == [(4, 1, 1, 8, 5, 1, 6.0), (4, 2, 1, 9, 3, 2, 5.0), (5, 1, 0, 9, 0, 1, 1.0)]


@pytest.mark.parametrize("keep", [[0, 1], [0, 1, 2, 2]])
def test_V16_missing_or_repeated_predictions_raise(keep: list[int]) -> None:
    with pytest.raises(RuntimeError, match="once on each of the test split's 3 targets"):
        EvaluationResult.from_counts("m", {name: column[keep] for name, column in COUNTED.items()}, TEST, "standard")


def test_paired_difference_to_itself_is_zero() -> None:
    ranks = {"session": range(10), "position": 1, "user": range(10), "rank": [1.0, 30.0] * 5}
    result = EvaluationResult("m", pl.DataFrame(ranks))
    assert result.paired_difference(result, "recall@20", BOOTSTRAP, 1) == (0.0, 0.0, 0.0)


def test_paired_difference_needs_the_same_predictions() -> None:
    result = EvaluationResult.from_counts("m", COUNTED, TEST, "conservative")
    other = EvaluationResult("n", result.ranks.head(2))
    with pytest.raises(ValueError, match="same predictions"):
        result.paired_difference(other, "recall@20", BOOTSTRAP, 1)


@pytest.mark.parametrize("unit", ["user", "session"])
def test_intervals_of_several_results_are_those_of_each(unit: str) -> None:
    events = {"session": np.repeat(range(18), 2), "user": np.repeat(range(12), 3), "item": 0}
    targets = next_item_targets(pl.DataFrame(events))
    ranks = [np.random.default_rng(seed).integers(1, 40, targets.height) for seed in (1, 2)]
    results = [EvaluationResult("m", targets.with_columns(rank=rank.astype(np.float64))) for rank in ranks]
    names, bootstrap = ["recall@20", "mrr@20"], BOOTSTRAP | {"unit": unit}
    low, high = metric_intervals(results, names, bootstrap, 1)
    each = [[result.interval(name, bootstrap, 1) for name in names] for result in results]
    assert np.stack([low, high], -1) == pytest.approx(np.array(each))

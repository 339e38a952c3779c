"""What the charts and tables of a section share."""

from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.reporting.comparison import N_ATTRIBUTES, Row, Section, SectionView, Variant

TRAINED = {"optimizer.lr": 0.1}


def result(rank: int) -> EvaluationResult:
    return EvaluationResult("arnn", pl.DataFrame({"rank": [rank]}))


def view(*variants: Variant, **settings: Any) -> SectionView:
    contexts = {"single": ["age", "zip"], "multi": ["roles"]}
    data = SimpleNamespace(manifest={"config": {"contexts": contexts}})
    runs: Any = [SimpleNamespace(data=data)]
    rows = [Row(variant, {}, {}, {}) for variant in variants]
    return SectionView(Section("data", settings, runs), rows, settings=None)  # type: ignore[arg-type]


def test_the_main_model_has_the_most_common_configuration() -> None:
    session = {1: result(2)}
    rare, common = (
        Variant("arnn", {}, is_most_common=is_common, session_results=session) for is_common in (False, True)
    )
    gru4rec = Variant("gru4rec", {}, is_most_common=True)
    main = view(gru4rec, rare, common).main_model
    assert main is not None
    assert main.variant is common
    alone = view(gru4rec, rare).main_model
    assert alone is not None
    assert alone.variant is rare
    assert view(gru4rec).main_model is None


def test_the_number_of_seeds_is_that_of_trained_models() -> None:
    counted = Variant("pop", {}, results={seed: result(seed) for seed in (1, 2, 3)})  # with random contexts
    trained = Variant("gru4rec", TRAINED, results={seed: result(seed) for seed in (1, 2)})
    assert view(counted, trained).n_seeds == 2
    assert view(counted).n_seeds == 0


def test_equal_results_are_those_of_one_seed() -> None:
    """With one, its results may differ, and so the differences to them."""
    results = {seed: result(1) for seed in (2, 1)}
    assert Variant("pop", {}, results=results).seeds == [1]
    assert Variant("arnn", TRAINED, results=results, session_results=results).seeds == [1, 2]


@pytest.mark.parametrize(("limit", "expected"), [(None, 3), (1, 1), ("2", 2), (5, 3)])
def test_attributes_are_those_that_there_are_up_to_the_limit(limit: Any, expected: int) -> None:
    assert view(**{N_ATTRIBUTES: limit}).n_attributes == expected

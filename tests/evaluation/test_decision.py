"""The rules of task=verdict on simulated rank gains, whose true effects are known."""

from collections import Counter

import numpy as np
import polars as pl
import pytest

from arnn_lightning.evaluation.bootstrap import bootstrap_means, seed_bootstrap_means
from arnn_lightning.evaluation.decision import Gain, check_claims, decide, group_gains, measure_gain, paired_values
from arnn_lightning.evaluation.result import EvaluationResult

BOOTSTRAP = {"resamples": 200, "confidence": 0.95}
SMALLEST, SESSION, USERS, TRIALS = 0.02, 0.2, 80, 1000


def simulate(gain: float, noise: float, n_seeds: int, rng: np.random.Generator) -> list[Gain]:
    """A gain measured in each of ``TRIALS`` worlds where it is truly a share ``gain`` of the session model's metric.

    Users, trainings and predictions differ; the latter as reciprocal ranks do, mostly by little, seldom by much.
    """
    cluster = np.repeat(np.arange(USERS), 2)
    by_user = rng.normal(0, 2 * noise, (USERS, TRIALS))[cluster]
    by_seed = rng.normal(0, noise / 5, (n_seeds, 1, TRIALS))
    value = SESSION * gain + by_user + by_seed + rng.laplace(0, 2 * noise, (n_seeds, len(cluster), TRIALS))
    low, high = np.quantile(seed_bootstrap_means(value, cluster, 400, 1), [0.025, 0.975], axis=0)
    limits = zip(value.mean((0, 1)).tolist(), low.tolist(), high.tolist(), strict=True)
    return [Gain(mean, low, high, 0.5, SESSION, (), 0.0, 0.0) for mean, low, high in limits]


def answers(over_session: float, over_control: float, noise: float = 0.02, n_seeds: int = 3) -> Counter[str]:
    """How often each answer is given, as a share of the worlds."""
    rng = np.random.default_rng(1)
    gains = [simulate(gain, noise, n_seeds, rng) for gain in (over_session, over_control)]
    given = Counter(decide(*measured, SMALLEST) for measured in zip(*gains, strict=True))
    return Counter({answer: count / TRIALS for answer, count in given.items()})


@pytest.mark.parametrize("n_seeds", [2, 3])
def test_without_a_gain_yes_is_the_answer_in_at_most_5_percent(n_seeds: int) -> None:
    assert answers(0.0, 0.0, n_seeds=n_seeds)["yes"] <= 0.05


def test_a_gain_of_more_parameters_alone_is_not_a_yes() -> None:
    """Over the session model there is one, over the same model without information there is none."""
    given = answers(0.5, 0.0)
    assert given["yes"] <= 0.05
    assert answers(0.5, 0.5)["yes"] > 0.9


@pytest.mark.parametrize("noise", [0.02, 0.002])
def test_with_a_gain_that_matters_at_most_5_percent_of_answers_are_no(noise: float) -> None:
    assert answers(SMALLEST, SMALLEST, noise)["no"] <= 0.05


def test_clear_worlds_have_clear_answers() -> None:
    assert answers(0.3, 0.3, noise=0.01)["yes"] >= 0.95
    assert answers(0.0, 0.0, noise=0.0005)["no"] >= 0.95


def gain(low: float, high: float, p_value: float = 0.01, base: float = 1.0) -> Gain:
    return Gain((low + high) / 2, low, high, p_value, base, (), 0.0, 0.0)


def test_the_answer_follows_from_the_limits_of_both_gains() -> None:
    assert decide(gain(0.01, 0.3), gain(0.01, 0.3), 0.02) == "yes"
    assert decide(gain(-0.1, 0.3), gain(0.01, 0.3), 0.02) == "unclear"
    assert decide(gain(0.01, 0.3), gain(-0.1, 0.3), 0.02) == "unclear"
    assert decide(gain(0.01, 0.3), gain(-0.1, 0.01), 0.02) == "no"
    assert decide(gain(0.001, 0.01), gain(0.01, 0.3), 0.02) == "no"  # too small to matter
    assert decide(gain(0.01, 0.3), gain(0.01, 0.03, base=2.0), 0.02) == "yes"  # a share of the session model's metric


@pytest.mark.parametrize("swap", [False, True])
def test_a_limit_that_is_a_bound_of_the_rules_decides_nothing(swap: bool) -> None:
    clear = gain(0.01, 0.3)
    for limits, answer in (((0.0, 0.3), "unclear"), ((0.01, 0.02), "yes"), ((-0.1, 0.02), "unclear")):
        gains = [gain(*limits), clear]
        assert decide(*(reversed(gains) if swap else gains), 0.02) == answer


def test_a_gain_over_a_model_without_hits_is_no_share() -> None:
    assert gain(0.1, 0.3, base=0.0).relative is None
    assert gain(0.1, 0.3, base=0.5).relative == pytest.approx(0.4)


def test_claims_are_corrected_for_their_number() -> None:
    claims = {"first": gain(0.1, 0.2, 0.03), "second": gain(0.1, 0.2, 0.04), "below 0": gain(-0.2, -0.1, 0.001)}
    checked = check_claims(claims, 0.95)
    assert {name: claim["adjusted_p_value"] for name, claim in checked.items()} == pytest.approx(
        {"first": 0.06, "second": 0.06, "below 0": 0.003}
    )
    assert [claim["result"] for claim in checked.values()] == ["not significant", "not significant", "below 0"]
    assert check_claims({"first": gain(0.1, 0.2, 0.03)}, 0.95)["first"]["result"] == "above 0"
    assert check_claims(claims, 0.9)["second"]["result"] == "above 0"
    assert check_claims({"first": gain(0.1, 0.2, 0.25)}, 0.75)["first"]["result"] == "not significant"


def test_standard_errors_are_those_of_users_and_of_seeds() -> None:
    rng = np.random.default_rng(4)
    cluster = np.repeat(np.arange(300), 2)
    value = rng.normal(0, 1, 300)[cluster] + rng.normal(0, 0.5, (3, 600))
    measured = measure_gain(value, np.zeros_like(value), cluster, BOOTSTRAP, 5)
    over_users = bootstrap_means(value.mean(0)[:, None], cluster, 400, 5)[:, 0]
    assert measured.user_error == pytest.approx(over_users.std(), rel=0.1)
    assert measured.seed_error == pytest.approx(value.mean(1).std(ddof=1) / 3**0.5)


def test_groups_have_the_gains_of_their_predictions() -> None:
    rng = np.random.default_rng(3)
    cluster = rng.integers(0, 9, 60)
    value, base = rng.random((2, 60)), rng.random((2, 60))
    members = {"low": cluster < 4, "none": cluster > 9, "all": cluster < 9}
    frame = group_gains(value, base, members, cluster, BOOTSTRAP, 5)
    assert frame["group"].to_list() == ["low", "all"]
    assert frame["users"].to_list() == [4, 9]
    whole = measure_gain(value, base, cluster, BOOTSTRAP, 5)
    low = measure_gain(value[:, cluster < 4], base[:, cluster < 4], cluster[cluster < 4], BOOTSTRAP, 5)
    assert frame["mean"].to_list() == pytest.approx([low.mean, whole.mean])
    assert frame["base"].to_list() == pytest.approx([low.base, whole.base])


def test_a_group_of_fewer_than_10_users_has_no_interval() -> None:
    cluster = np.arange(40) % 20
    value, base = np.random.default_rng(3).random((2, 2, 40))
    rows = group_gains(value, base, {"9": cluster < 9, "10": cluster < 10}, cluster, BOOTSTRAP, 5).to_dicts()
    assert [row["users"] for row in rows] == [9, 10]
    assert (rows[0]["low"], rows[0]["high"]) == (None, None)
    assert rows[1]["low"] < rows[1]["mean"] < rows[1]["high"]


def test_results_of_other_predictions_are_not_compared() -> None:
    def result(sessions: list[int]) -> EvaluationResult:
        columns = {"session": sessions, "position": [1] * len(sessions), "rank": [1.0] * len(sessions)}
        return EvaluationResult("model", pl.DataFrame(columns))

    value, base = paired_values([result([1, 2])] * 3, [result([1, 2])], "mrr@20")
    assert value.shape == base.shape == (3, 2)
    with pytest.raises(ValueError, match="different seeds or predictions"):
        paired_values([result([1, 2])], [result([1, 3])], "mrr@20")
    with pytest.raises(ValueError, match="different seeds or predictions"):
        paired_values([result([1, 2])] * 3, [result([1, 2])] * 2, "mrr@20")


def test_a_p_value_equal_to_the_level_is_not_significant() -> None:
    """1 - 0.95 is slightly more than 0.05 in floating point."""
    gain = Gain(0.1, 0.01, 0.2, 0.05, 0.5, (0.1,), 0.04, 0.0)
    assert check_claims({"session": gain}, 0.95)["session"]["result"] == "not significant"

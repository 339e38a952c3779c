"""Intervals over users and seeds, and Holm's correction, against worlds with a known mean."""

import numpy as np
import pytest

from arnn_lightning.evaluation.bootstrap import bootstrap_means, holm, p_value, seed_bootstrap_means

USERS, SESSIONS, SEEDS = 60, 3, 3


def world(rng: np.random.Generator, user_sd: float, seed_sd: float) -> tuple[np.ndarray, np.ndarray]:
    """(S, N, 1) differences whose true mean is 0, with effects of users, of seeds and of predictions; (N,) users."""
    cluster = np.repeat(np.arange(USERS), SESSIONS)
    effects = rng.normal(0, user_sd, USERS)[cluster] + rng.normal(0, seed_sd, (SEEDS, 1))
    return (effects + rng.normal(0, 0.5, (SEEDS, len(cluster))))[:, :, None], cluster


@pytest.mark.parametrize(("user_sd", "seed_sd"), [(1.0, 0.0), (0.3, 1.0), (1.0, 0.15)])
def test_V14_intervals_over_users_and_seeds_cover_the_mean(user_sd: float, seed_sd: float) -> None:
    rng, missed = np.random.default_rng(1), 0
    for trial in range(200):
        low, high = np.quantile(seed_bootstrap_means(*world(rng, user_sd, seed_sd), 200, trial), [0.025, 0.975])
        missed += not low <= 0 <= high
    assert missed <= 20  # 10 are expected of 95 % intervals; over 20 in one of 1,000 tests


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_V14_intervals_of_one_seed_and_of_a_group_cover(n_seeds: int) -> None:
    """The second column is a group: 40 of the users, each with a part of their predictions."""
    rng, missed = np.random.default_rng(1), np.zeros(2)
    for trial in range(200):
        value, cluster = world(rng, 1.0, 0.3 if n_seeds > 1 else 0.0)
        is_in = (cluster < 40) & (rng.random(len(cluster)) < 0.7)
        columns = np.concatenate([value, np.where(is_in[None, :, None], value, np.nan)], 2)[:n_seeds]
        low, high = np.nanquantile(seed_bootstrap_means(columns, cluster, 200, trial), [0.025, 0.975], axis=0)
        missed += ~((low <= 0) & (high >= 0))
    assert (missed <= 20).all()
    assert (missed > 0).all()  # intervals without end would cover, too


def test_V14_intervals_over_users_alone_ignore_the_seeds() -> None:
    """What the second level is for: the same world, resampled over users only."""
    rng, missed = np.random.default_rng(1), 0
    for trial in range(50):
        value, cluster = world(rng, 0.3, 1.0)
        low, high = np.quantile(bootstrap_means(value.mean(0), cluster, 200, trial), [0.025, 0.975])
        missed += not low <= 0 <= high
    assert missed > 25


def test_equal_seeds_give_the_bootstrap_over_users() -> None:
    value, cluster = world(np.random.default_rng(2), 1.0, 0.0)
    expected = bootstrap_means(value[0], cluster, 50, 7)
    np.testing.assert_allclose(seed_bootstrap_means(np.repeat(value[:1], 4, 0), cluster, 50, 7), expected)
    np.testing.assert_allclose(seed_bootstrap_means(value[:1], cluster, 50, 7), expected)


def test_predictions_outside_a_column_do_not_count() -> None:
    value, cluster = world(np.random.default_rng(3), 1.0, 1.0)
    part = np.where(cluster[None, :, None] < 20, value, np.nan)
    whole = seed_bootstrap_means(np.concatenate([value, part], 2), cluster, 100, 7)
    np.testing.assert_allclose(whole[:, 0], seed_bootstrap_means(value, cluster, 100, 7)[:, 0])
    assert whole[:, 1].mean() == pytest.approx(np.nanmean(part), abs=0.3)


def test_a_resample_without_a_value_of_a_column_has_no_mean() -> None:
    rng = np.random.default_rng(7)
    has_value = [bool((rng.integers(0, 2, 2) == 0).any()) for _ in range(40)]
    means = bootstrap_means(np.array([[3.0], [np.nan]]), np.arange(2), 40, 7)
    np.testing.assert_array_equal(means[:, 0], np.where(has_value, 3.0, np.nan))


def test_resamples_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    value, cluster = world(np.random.default_rng(2), 1.0, 0.0)
    expected = bootstrap_means(value[0], cluster, 50, 7)
    monkeypatch.setattr("arnn_lightning.evaluation.bootstrap._MAX_WEIGHT_ENTRIES", 7 * USERS)
    np.testing.assert_allclose(bootstrap_means(value[0], cluster, 50, 7), expected)


def test_holm_rejects_a_true_family_in_alpha_of_cases() -> None:
    p_values = np.random.default_rng(4).random((4000, 5))
    rejected = np.mean([holm(family).min() <= 0.05 for family in p_values])
    assert 0.04 < rejected < 0.06
    assert holm(np.array([0.5, 0.9])).tolist() == [1.0, 1.0]


def test_p_values_are_two_sided() -> None:
    means = np.random.default_rng(5).normal(2.0, 1.0, 100_000)
    assert p_value(means) == pytest.approx(0.0455, abs=0.002)
    assert p_value(-means) == p_value(means)
    assert p_value(np.zeros(10)) == 1.0

"""Confidence intervals by cluster bootstrap (V14): whole users are resampled, since a user's sessions share contexts
and are not independent. With several seeds of one model, trainings vary, too: ``seed_bootstrap_means``."""

import numpy as np
from scipy.special import stdtrit

MIN_CLUSTERS = 10  # users or sessions; with fewer, a percentile interval is too narrow
_MAX_WEIGHT_ENTRIES = 1 << 22  # of the matrix of how often each cluster was sampled


def bootstrap_means(value: np.ndarray, cluster: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(R, M) means of (N, M) values over R resamples of whole clusters; NaN where a resample has no value of a column.

    Values are summed per cluster first; the sums of many resamples are then one matrix product with how often each
    cluster was sampled. A value of NaN is not part of its column's mean, so that one call handles many groups of
    predictions, all with the same resamples.

    Args:
        value: (N, M) values of N predictions.
        cluster: (N,) the user (or session) of every prediction.
        resamples: R.
        seed: of the resampling; equal seeds sample the same clusters whatever the values, so results can be paired.
    """
    _, cluster_index = np.unique(cluster, return_inverse=True)
    is_valid, columns = ~np.isnan(value), value.shape[1]
    zero_filled = np.where(is_valid, value, 0.0)
    counted = is_valid.T[:1] if is_valid.all() else is_valid.T  # one count serves all columns if none lacks a value
    sums = np.stack([np.bincount(cluster_index, column) for column in (*zero_filled.T, *counted)], 1)
    total, count = np.split(resampled_sums(sums, resamples, seed), [columns], axis=1)
    means: np.ndarray = np.divide(total, count, where=count > 0, out=np.full_like(total, np.nan))
    return means


def resampled_sums(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(R, Q) sums over R resamples of C clusters, from the (C, Q) sums of every cluster; see ``bootstrap_means``."""
    n = len(sums)
    rng = np.random.default_rng(seed)
    resampled = np.empty((resamples, sums.shape[1]))
    step = max(1, _MAX_WEIGHT_ENTRIES // n)
    for first in range(0, resamples, step):
        rows = range(first, min(first + step, resamples))
        weights = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in rows]).astype(np.float64)
        resampled[rows.start : rows.stop] = weights @ sums
    return resampled


def percentile_limits(means: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals (...,), (...,) of (R, ...) resampled means; NaN are ignored."""
    low, high = np.nanquantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def intervals(
    value: np.ndarray, cluster: np.ndarray, resamples: int, confidence: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals (M,), (M,) of the means of (N, M) values; see ``bootstrap_means``.

    NaN with fewer than ``MIN_CLUSTERS`` clusters.
    """
    if not has_intervals(cluster):
        return np.full(value.shape[1], np.nan), np.full(value.shape[1], np.nan)
    return percentile_limits(bootstrap_means(value, cluster, resamples, seed), confidence)


def has_intervals(cluster: np.ndarray) -> bool:
    """Whether the (N,) clusters of the predictions are ``MIN_CLUSTERS`` at least."""
    return len(np.unique(cluster)) >= MIN_CLUSTERS


def interval(
    value: np.ndarray, cluster: np.ndarray, resamples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Percentile interval of the mean of ``value`` (N,) when whole clusters are resampled; NaN with too few clusters.

    For a paired comparison pass the difference of two models' values on the same predictions.
    """
    low, high = intervals(value[:, None], cluster, resamples, confidence, seed)
    return float(low[0]), float(high[0])


def seed_bootstrap_means(value: np.ndarray, cluster: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(R, M) means of (S, N, M) values over users **and** trainings: S seeds of a model on the same N predictions.

    Two levels: users are resampled, the same ones for all seeds, since every seed is tested on the same users; and each
    resample is shifted by how much the mean over S trainings varies, the standard error over the seeds' means times a
    t value of S - 1 degrees of freedom. Resampling two to five seeds themselves would understate their variance by
    (S - 1) / S, and its tails more. With one seed the means vary over users only.

    Args:
        value: (S, N, M), NaN where a prediction is not part of a column, equally in all seeds. For a comparison: paired
            differences of two models, each pair trained with one seed.
        cluster: (N,) the user of every prediction.
        resamples: R.
        seed: of the resampling.

    Returns:
        (R, M); columns have the same users and independent t values.
    """
    means = bootstrap_means(value.mean(0), cluster, resamples, seed)
    means += seed_shifts(np.nanmean(value, axis=1), resamples, seed)
    return means


def seed_shifts(by_seed: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(R, M) by how much means over S trainings vary, from the (S, M) means of every seed; see above."""
    n_seeds, columns = by_seed.shape
    if n_seeds == 1:
        return np.zeros((resamples, columns))
    # The quantiles of the t distribution in random order: its exact tails, which a thousand samples would not have.
    quantiles = stdtrit(n_seeds - 1, (np.arange(resamples) + 0.5) / resamples)
    order = np.random.default_rng([seed, n_seeds])
    shifts = np.stack([order.permutation(quantiles) for _ in range(columns)], 1)
    shifts *= by_seed.std(0, ddof=1) / np.sqrt(n_seeds)
    return shifts


def significance_level(confidence: float) -> float:
    """Alpha of a level of confidence, without the error of a subtraction: a p value may be equal to it.

    >>> significance_level(0.95), 1 - 0.95
    (0.05, 0.050000000000000044)
    """
    return round(1 - confidence, 12)


def p_value(means: np.ndarray) -> float:
    """Two-sided p value of the hypothesis that the mean is 0, from its resamples (R,).

    >>> p_value(np.arange(1.0, 100.0))
    0.02
    """
    tail = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    return min(1.0, float(2 * (tail + 1) / (len(means) + 1)))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm-adjusted p values (Holm 1979): rejecting those below alpha controls the family-wise error rate at alpha.

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    factors = np.arange(len(p_values), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted

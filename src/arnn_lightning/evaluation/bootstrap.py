"""Confidence intervals by bootstrap over users (V14): a user's sessions share contexts, so they are no free draws."""

import numpy as np

_WEIGHTS_AT_ONCE = 1 << 22  # numbers held by the matrix of how often each cluster was drawn


def resampled_means(value: np.ndarray, cluster: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(R, M) means of (N, M) values when whole clusters are drawn with replacement, R times; NaN where none was drawn.

    Values are added up per cluster first; then the sums of many resamples are one matrix product of how often each
    cluster was drawn. An attempt whose value is NaN is no part of its column's mean, so that one call does many groups
    of attempts, all with the same draws.

    Args:
        value: (N, M) values of N recommendation attempts.
        cluster: (N,) the user (or session) of every attempt.
        resamples: R.
        seed: of the draws; equal seeds draw the same clusters whatever the values, so that results can be paired.
    """
    _, of = np.unique(cluster, return_inverse=True)
    there, columns = ~np.isnan(value), value.shape[1]
    filled = np.where(there, value, 0.0)
    counted = there.T[:1] if there.all() else there.T  # once for all columns where none lacks a row
    sums = np.stack([np.bincount(of, column) for column in (*filled.T, *counted)], 1)
    n = len(sums)
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, sums.shape[1]))
    step = max(1, _WEIGHTS_AT_ONCE // n)
    for first in range(0, resamples, step):
        rows = range(first, min(first + step, resamples))
        weights = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in rows]).astype(np.float64)
        drawn[rows.start : rows.stop] = weights @ sums
    total, count = np.split(drawn, [columns], axis=1)
    return np.divide(total, count, where=count > 0, out=np.full_like(total, np.nan))


def intervals(
    value: np.ndarray, cluster: np.ndarray, resamples: int, confidence: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals (M,), (M,) of the means of (N, M) values; see ``resampled_means``."""
    means = resampled_means(value, cluster, resamples, seed)
    low, high = np.nanquantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def interval(
    value: np.ndarray, cluster: np.ndarray, resamples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Percentile interval of the mean of ``value`` (N,) when whole clusters are drawn with replacement.

    For a paired comparison give the difference of two models' values on the same events.
    """
    low, high = intervals(value[:, None], cluster, resamples, confidence, seed)
    return float(low[0]), float(high[0])

"""Confidence intervals by cluster bootstrap (V14): whole users are resampled, since a user's sessions share contexts
and are not independent."""

import numpy as np

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
    n = len(sums)
    rng = np.random.default_rng(seed)
    resampled = np.empty((resamples, sums.shape[1]))
    step = max(1, _MAX_WEIGHT_ENTRIES // n)
    for first in range(0, resamples, step):
        rows = range(first, min(first + step, resamples))
        weights = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in rows]).astype(np.float64)
        resampled[rows.start : rows.stop] = weights @ sums
    total, count = np.split(resampled, [columns], axis=1)
    return np.divide(total, count, where=count > 0, out=np.full_like(total, np.nan))


def intervals(
    value: np.ndarray, cluster: np.ndarray, resamples: int, confidence: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals (M,), (M,) of the means of (N, M) values; see ``bootstrap_means``."""
    means = bootstrap_means(value, cluster, resamples, seed)
    low, high = np.nanquantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def interval(
    value: np.ndarray, cluster: np.ndarray, resamples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Percentile interval of the mean of ``value`` (N,) when whole clusters are resampled.

    For a paired comparison pass the difference of two models' values on the same predictions.
    """
    low, high = intervals(value[:, None], cluster, resamples, confidence, seed)
    return float(low[0]), float(high[0])

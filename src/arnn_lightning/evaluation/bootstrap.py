"""Confidence intervals by bootstrap over users (V14): a user's sessions share contexts, so they are no free draws."""

import numpy as np


def interval(
    value: np.ndarray, cluster: np.ndarray, resamples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Percentile interval of the mean of ``value`` when whole clusters are drawn with replacement.

    For a paired comparison give the difference of two models' values on the same events.

    Args:
        value: (N,) one value per recommendation attempt.
        cluster: (N,) the user (or session) of every attempt.
        resamples: number of bootstrap resamples.
        confidence: such as 0.95.
        seed: of the draws; equal seeds draw the same users for every model.
    """
    _, of = np.unique(cluster, return_inverse=True)
    total, count = np.bincount(of, value), np.bincount(of).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for index in range(resamples):
        drawn = rng.integers(0, len(total), len(total))
        means[index] = total[drawn].sum() / count[drawn].sum()
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)

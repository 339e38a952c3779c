"""Whether profiles help: gains over users and seeds, and the rules that turn them into yes, no or unclear.

S seeds, N predictions, M groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from arnn_lightning.evaluation.bootstrap import (
    MIN_CLUSTERS,
    holm,
    p_value,
    percentile_limits,
    seed_bootstrap_means,
    significance_level,
)
from arnn_lightning.evaluation.result import EvaluationResult

Answer = Literal["yes", "no", "unclear"]


@dataclass(frozen=True)
class Gain:
    """A mean paired difference of two models over seeds and predictions.

    Attributes:
        mean: of the differences.
        low, high: its interval over users and seeds.
        p_value: of the hypothesis that it is 0, two-sided.
        base: the mean of the reference model.
        by_seed: the mean of every seed.
        user_error, seed_error: standard errors of the mean, over users and over seeds (0 with one seed).
    """

    mean: float
    low: float
    high: float
    p_value: float
    base: float
    by_seed: tuple[float, ...]
    user_error: float
    seed_error: float

    @property
    def relative(self) -> float | None:
        """The mean as a share of the base; None where the base is 0."""
        return self.mean / self.base if self.base else None


def paired_values(
    results: Sequence[EvaluationResult], bases: Sequence[EvaluationResult], metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """(S, N) values of the models' predictions, and of those that they are compared with, seed by seed.

    Args:
        results: of one model, a seed each.
        bases: of another, with the same seeds; or one result, of a model without a seed.
        metric: such as ``mrr@20``.

    Raises:
        ValueError: other predictions, or other numbers of seeds.
    """
    bases = [*bases] * len(results) if len(bases) == 1 else bases
    keys = [result.ranks.select("session", "position") for result in (*results, *bases)]
    if len(bases) != len(results) or not all(key.equals(keys[0]) for key in keys):
        raise ValueError(f"{results[0].name} and {bases[0].name} have different seeds or predictions")
    values = [np.stack([result.per_prediction(metric) for result in models]) for models in (results, bases)]
    return values[0], values[1]


def measure_gain(
    value: np.ndarray, base: np.ndarray, cluster: np.ndarray, bootstrap: Mapping[str, Any], seed: int
) -> Gain:
    """The gain of (S, N) values over those of a base.

    Args:
        value, base: of the same predictions and seeds.
        cluster: (N,) the unit of resampling, the user of every prediction.
        bootstrap: ``resamples`` and ``confidence``.
        seed: of the resampling.
    """
    difference = value - base
    means = seed_bootstrap_means(difference[:, :, None], cluster, bootstrap["resamples"], seed)[:, 0]
    by_seed = difference.mean(1)
    low, high = percentile_limits(means, bootstrap["confidence"])
    _, index = np.unique(cluster, return_inverse=True)
    from_mean = np.bincount(index, difference.mean(0) - by_seed.mean())  # per user, summed
    return Gain(
        float(by_seed.mean()),
        float(low),
        float(high),
        p_value(means),
        float(base.mean()),
        tuple(by_seed.tolist()),
        float(np.sqrt((from_mean**2).sum()) / len(cluster)),
        float(by_seed.std(ddof=1) / np.sqrt(len(by_seed))) if len(by_seed) > 1 else 0.0,
    )


def group_gains(
    value: np.ndarray,
    base: np.ndarray,
    groups: Mapping[str, np.ndarray],
    cluster: np.ndarray,
    bootstrap: Mapping[str, Any],
    seed: int,
) -> pl.DataFrame:
    """The gain in every group of predictions that is not empty.

    Args:
        value, base, cluster, bootstrap, seed: as of ``measure_gain``.
        groups: name -> (N,) whether a prediction is in it; groups may overlap.

    Returns:
        group, predictions, users, base, mean, low, high; groups in their order. Limits are null with fewer than
        ``MIN_CLUSTERS`` users.
    """
    groups = {name: is_in for name, is_in in groups.items() if is_in.any()}
    if not groups:
        return pl.DataFrame()
    is_in = np.stack(list(groups.values()), 1)
    difference = np.where(is_in, (value - base)[:, :, None], np.nan)
    means = seed_bootstrap_means(difference, cluster, bootstrap["resamples"], seed)
    low, high = percentile_limits(means, bootstrap["confidence"])
    has_limits = pl.col("users") >= MIN_CLUSTERS
    return pl.DataFrame(
        {
            "group": list(groups),
            "predictions": is_in.sum(0),
            "users": [len(np.unique(cluster[member])) for member in is_in.T],
            "base": [float(base[:, member].mean()) for member in is_in.T],
            "mean": np.nanmean(difference, axis=(0, 1)),
            "low": low,
            "high": high,
        }
    ).with_columns(pl.when(has_limits).then(pl.col("low", "high")))


def decide(over_session: Gain, over_control: Gain, smallest_gain: float) -> Answer:
    """Whether profiles help.

    ``yes``: the intervals of both gains are above 0, over the session model and over the same model with profiles that
    carry no information. Both must hold, so neither needs a correction for the other. ``no``: the upper limit of one
    of them is below the smallest gain that matters, a yes then being too small to matter. ``unclear``: neither.

    Args:
        over_session: the gain over the session model.
        over_control: the gain over the same model with another user's profile in every session.
        smallest_gain: as a share of the session model's mean.
    """
    smallest = smallest_gain * over_session.base
    if over_session.high < smallest or over_control.high < smallest:
        return "no"
    return "yes" if over_session.low > 0 and over_control.low > 0 else "unclear"


def check_claims(claims: Mapping[str, Gain], confidence: float) -> dict[str, dict[str, Any]]:
    """Which gains differ from 0, corrected for their number (Holm).

    Returns:
        by claim: ``p_value``, ``adjusted_p_value`` and ``result``: "above 0", "below 0" or "not significant".
    """
    adjusted = holm(np.array([gain.p_value for gain in claims.values()]))
    alpha = significance_level(confidence)
    return {
        name: {
            "p_value": gain.p_value,
            "adjusted_p_value": float(p),
            "result": "not significant" if p >= alpha else "above 0" if gain.mean > 0 else "below 0",
        }
        for (name, gain), p in zip(claims.items(), adjusted, strict=True)
    }

"""Metrics of next-item recommendation, computed from ranks (paper 4.4.1).

Every prediction has one relevant item, the one that came next; a metric maps its rank to a number, and its value on a
split is the mean over the predictions (micro, the paper's) or over the sessions' means (macro). A new metric is one
entry of ``METRICS``: configs, tables, loggers and reports read everything else from there.

Metrics of lists are functions of how often each item was recommended, whether it was right or not.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from arnn_lightning.errors import UserError, nearest

TIE_MODES = ("conservative", "standard", "median")


def rank(higher: np.ndarray, equal: np.ndarray, ties: str) -> np.ndarray:
    """Rank of the target, 1 the best, from the two counts (V5); float64, since a median rank may be a half.

    Args:
        higher: (N,) items with a higher score.
        equal: (N,) items with the same score, the target included.
        ties: one of ``TIE_MODES``: the target comes first, last or in the middle of the items with its score
            (standard, conservative, median).

    Raises:
        UserError: an unknown tie mode.

    >>> [rank(np.array([3]), np.array([4]), ties).item() for ties in ("standard", "conservative", "median")]
    [4.0, 7.0, 5.5]
    """
    if ties not in TIE_MODES:
        raise UserError(f"evaluation.ties={ties}: must be one of {', '.join(TIE_MODES)}")
    place = {"standard": np.ones(len(equal)), "conservative": equal, "median": (equal + 1) / 2}[ties]
    result: np.ndarray = np.add(higher, place, dtype=np.float64)
    return result


def hit_at_k(rank: np.ndarray, k: int) -> np.ndarray:
    """(N,) 1 where the rank is at most K, else 0 (E16); its mean is Recall@K, or hit rate.

    >>> hit_at_k(np.array([1, 20, 21]), 20)
    array([1., 1., 0.])
    """
    return (rank <= k).astype(np.float64)


def reciprocal_rank_at_k(rank: np.ndarray, k: int) -> np.ndarray:
    """(N,) 1 / rank where the rank is at most K, else 0; its mean is MRR@K.

    >>> reciprocal_rank_at_k(np.array([1, 4, 21]), 20)
    array([1.  , 0.25, 0.  ])
    """
    return np.where(rank <= k, 1.0 / rank, 0.0)


def discounted_gain_at_k(rank: np.ndarray, k: int) -> np.ndarray:
    """(N,) 1 / log2(rank + 1) where the rank is at most K, else 0; its mean is NDCG@K, as the ideal gain is 1.

    >>> discounted_gain_at_k(np.array([1, 3, 21]), 20)
    array([1. , 0.5, 0. ])
    """
    return np.where(rank <= k, 1.0 / np.log2(rank + 1.0), 0.0)


@dataclass(frozen=True)
class Metric:
    """A metric at a cutoff.

    Attributes:
        label: its name in tables and charts.
        value: (rank (N,), K) -> (N,) float64, the value of every prediction; 0 beyond K. Ranks start at 1 and are
            halves where ties have their median rank.
    """

    label: str
    value: Callable[[np.ndarray, int], np.ndarray]


METRICS = {
    "recall": Metric("Recall", hit_at_k),
    "mrr": Metric("MRR", reciprocal_rank_at_k),
    "ndcg": Metric("NDCG", discounted_gain_at_k),
}


def coverage(count: np.ndarray, popularity: np.ndarray) -> float:
    """Share of the catalogue that is recommended at least once (catalogue coverage, Ge et al. 2010).

    >>> coverage(np.array([5, 1, 0, 0]), np.array([3, 2, 1, 1]))
    0.5
    """
    return float(np.count_nonzero(count)) / len(count)


def novelty(count: np.ndarray, popularity: np.ndarray) -> float:
    """Mean self-information of a recommended item in bits: -log2 of its share of training events (Zhou et al. 2010).

    An item without training events counts as one with a single event.

    >>> novelty(np.array([3, 1, 0]), np.array([2, 1, 1]))
    1.25
    """
    return float(count @ -np.log2(np.maximum(popularity, 1) / popularity.sum()) / count.sum())


def gini(count: np.ndarray, popularity: np.ndarray) -> float:
    """Gini index of the recommendation counts over the catalogue (Shani & Gunawardana 2011).

    0 where all items are recommended equally often, 1 where one item is recommended always.

    >>> gini(np.array([4, 4, 4]), np.array([1, 1, 1])), gini(np.array([0, 7, 0]), np.array([1, 1, 1]))
    (0.0, 1.0)
    """
    n = len(count)
    weight = 2 * np.arange(1, n + 1) - n - 1
    return float(weight @ np.sort(count) / (max(n - 1, 1) * count.sum()))


def mean_popularity(count: np.ndarray, popularity: np.ndarray) -> float:
    """Mean number of training events of a recommended item (average recommendation popularity, Yin et al. 2012).

    >>> mean_popularity(np.array([3, 1]), np.array([10, 2]))
    8.0
    """
    return float(count @ popularity / count.sum())


@dataclass(frozen=True)
class ListMetric:
    """A metric of the recommended lists of one length.

    Attributes:
        label: its name in tables.
        value: (how often each item was recommended (I,), its number of training events (I,)) -> its value.
    """

    label: str
    value: Callable[[np.ndarray, np.ndarray], float]


LIST_METRICS = {
    "coverage": ListMetric("Coverage", coverage),
    "novelty": ListMetric("Novelty", novelty),
    "gini": ListMetric("Gini", gini),
    "mean_popularity": ListMetric("Mean popularity", mean_popularity),
}


def list_metrics(count: np.ndarray, popularity: np.ndarray, k: int) -> dict[str, float]:
    """Every metric of lists of length K: coverage@K, novelty@K, gini@K and mean_popularity@K.

    Args:
        count: (I,) how often each item was recommended.
        popularity: (I,) training events of each item.
        k: length of the lists.

    Returns:
        Empty where no item was recommended.
    """
    if not count.any():
        return {}
    return {f"{kind}@{k}": metric.value(count, popularity) for kind, metric in LIST_METRICS.items()}


def is_of_lists(name: str) -> bool:
    """Whether a name such as ``coverage@20`` is that of a metric of lists."""
    return str(name).partition("@")[0] in LIST_METRICS


def parse_metric(name: str) -> tuple[Metric, int]:
    """The metric and the cutoff of a name such as ``recall@20``.

    Raises:
        UserError: not the name of a metric.

    >>> metric, k = parse_metric("ndcg@5")
    >>> metric.label, k
    ('NDCG', 5)
    """
    metric, k = _parse(name, METRICS)
    if isinstance(metric, Metric):
        return metric, k
    raise UserError(f"{name} is a metric of lists, not of single predictions; known: {_known(METRICS)}")


def _parse(name: str, known: Iterable[str]) -> tuple[Metric | ListMetric, int]:
    kind, _, cutoff = str(name).partition("@")
    metric = (METRICS | LIST_METRICS).get(kind)
    if metric is None or not re.fullmatch(r"[1-9]\d*", cutoff):
        hint = "" if metric else nearest(kind, known)
        raise UserError(
            f'"{name}" is not a metric{hint}; known: {_known(known)}, K a positive integer, as in recall@20'
        )
    return metric, int(cutoff)


def _known(kinds: Iterable[str]) -> str:
    return ", ".join(f"{kind}@K" for kind in kinds)


def metric_label(name: str) -> str:
    """The name of a metric in tables and charts.

    >>> metric_label("recall@20"), metric_label("mean_popularity@5")
    ('Recall@20', 'Mean popularity@5')
    """
    metric, k = _parse(name, METRICS | LIST_METRICS)
    return f"{metric.label}@{k}"


def interval_text(low: float, high: float, form: str, separator: str = " to ") -> str:
    """An interval; empty if it is NaN, as with too few users.

    >>> interval_text(0.25, 0.5, "+.2f"), interval_text(float("nan"), float("nan"), ".2f")
    ('+0.25 to +0.50', '')
    """
    return "" if math.isnan(low) else f"{low:{form}}{separator}{high:{form}}"


def metric_names(kinds: Iterable[str], cutoffs: Iterable[int]) -> list[str]:
    """Names of metrics at every cutoff, for ``evaluation.metrics`` and ``evaluation.cutoffs``.

    Raises:
        UserError: an unknown metric, or a cutoff that is not a positive integer.

    >>> metric_names(["recall", "mrr"], [5, 20])
    ['recall@5', 'mrr@5', 'recall@20', 'mrr@20']
    """
    kinds = list(kinds)
    names = [f"{kind}@{k}" for k in cutoffs for kind in kinds]
    for name in names:
        _parse(name, METRICS | LIST_METRICS)
    return names


def per_prediction(rank: np.ndarray, name: str) -> np.ndarray:
    """(N,) value of every prediction for a metric such as ``recall@20``; ``rank``: (N,).

    >>> per_prediction(np.array([1.0, 2.0, 30.0]), "mrr@20")
    array([1. , 0.5, 0. ])
    """
    metric, k = parse_metric(name)
    return metric.value(rank, k)


def session_means(value: np.ndarray, session: np.ndarray) -> np.ndarray:
    """(S,) mean of every session's predictions, by session code: a macro average is the mean of these (V11).

    >>> session_means(np.array([1.0, 0.0, 1.0]), np.array([7, 7, 9]))
    array([0.5, 1. ])
    """
    _, index, count = np.unique(session, return_inverse=True, return_counts=True)
    return np.bincount(index, value) / count


def compute_metrics(rank: np.ndarray, session: np.ndarray, names: Iterable[str]) -> dict[str, float | int]:
    """Metrics of one split: sums divided once (E17), over predictions (micro) and over sessions (macro) (V11).

    Args:
        rank: (N,) rank of the target of every prediction.
        session: (N,) session of every prediction.
        names: such as ``recall@20``.

    Returns:
        ``NAME`` and ``macro_NAME`` for every name, ``events`` (predictions) and ``sessions``.

    Raises:
        UserError: no predictions, or not the name of a metric.

    >>> compute_metrics(np.array([1.0, 30.0, 2.0]), np.array([0, 0, 1]), ["mrr@20"])
    {'mrr@20': 0.5, 'macro_mrr@20': 0.5, 'events': 3, 'sessions': 2}
    """
    if len(rank) == 0:
        raise UserError("no predictions to evaluate: every session of the split needs at least 2 events")
    result: dict[str, float | int] = {}
    for name in names:
        value = per_prediction(rank, name)
        result[name] = float(value.sum() / len(value))
        result[f"macro_{name}"] = float(session_means(value, session).mean())
    return result | {"events": len(rank), "sessions": len(np.unique(session))}

"""Recall@K and MRR@K (paper 4.4.1) from ranks: sums and counts, divided once (E17)."""

from collections.abc import Iterable

import numpy as np

from arnn_lightning.errors import UserError


def hits(rank: np.ndarray, k: int) -> np.ndarray:
    """1 where rank <= K (E16), as float64."""
    return (rank <= k).astype(np.float64)


def reciprocal(rank: np.ndarray, k: int) -> np.ndarray:
    """1 / rank where rank <= K, else 0."""
    return np.where(rank <= k, 1.0 / rank, 0.0)


METRICS = {"recall": hits, "mrr": reciprocal}


def values(rank: np.ndarray, metric: str) -> np.ndarray:
    """Every attempt's contribution to a metric named like ``recall@20``."""
    kind, k = metric.split("@")
    return METRICS[kind](rank, int(k))


def per_session(value: np.ndarray, session: np.ndarray) -> np.ndarray:
    """(S,) mean of every session's attempts, by session code: what a macro average is the mean of (V11)."""
    _, of, attempts = np.unique(session, return_inverse=True, return_counts=True)
    return np.bincount(of, value) / attempts


def metrics(rank: np.ndarray, session: np.ndarray, cutoffs: Iterable[int]) -> dict[str, float | int]:
    """Metrics of one split: micro averages (over attempts, the paper's) and macro ones (over sessions) (V11).

    Args:
        rank: (N,) rank of the target at every attempt.
        session: (N,) session of every attempt.
        cutoffs: the K's.

    Returns:
        ``recall@K``, ``mrr@K``, ``macro_recall@K``, ``macro_mrr@K``, ``events`` (attempts) and ``sessions``.
    """
    if len(rank) == 0:
        raise UserError("there is nothing to evaluate: the split has no recommendation attempt")
    result: dict[str, float | int] = {}
    for k in cutoffs:
        for kind, contribution in METRICS.items():
            value = contribution(rank, int(k))
            result[f"{kind}@{k}"] = float(value.sum() / len(value))
            result[f"macro_{kind}@{k}"] = float(per_session(value, session).mean())
    return result | {"events": len(rank), "sessions": len(np.unique(session))}

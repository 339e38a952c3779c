"""Where a model is right: attempts in groups, from ranks and the prepared data alone, without the model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from arnn_lightning.evaluation.bootstrap import intervals
from arnn_lightning.evaluation.metrics import values

POSITIONS = ((1, 1), (2, 2), (3, 4), (5, 9), (10, None))  # events already seen, both ends in
SEEN = ("unseen", "seen")
POPULARITY = ("head 1 %", "middle", "tail")
SMALLEST_GROUP = 0.05  # of the attempts; numbers of known attributes are put together until a group has as many


def by_position(position: pl.Series) -> pl.Series:
    """Label of every attempt: how many events of its session were already seen.

    >>> by_position(pl.Series([1, 2, 4, 9, 10, 300])).to_list()
    ['1', '2', '3-4', '5-9', '10+', '10+']
    """
    low = np.array([first for first, _ in POSITIONS])
    return _labelled(np.searchsorted(low, position.to_numpy(), side="right") - 1, [_span(*one) for one in POSITIONS])


def by_known(user: pl.Series, users: pl.DataFrame) -> pl.Series:
    """Label of every attempt: how many attributes of its user are known; neighbouring numbers share small groups.

    Args:
        user: (N,) user codes.
        users: the prepared data set's users (user, n_known).
    """
    known = _by_code(users["user"], users["n_known"])[user.to_numpy()]
    counts = np.bincount(known)
    spans: list[tuple[int, int]] = []
    for number in np.flatnonzero(counts).tolist():
        # A group that is still small takes the next number in.
        if spans and counts[spans[-1][0] : spans[-1][1] + 1].sum() < SMALLEST_GROUP * len(known):
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    if len(spans) > 1 and counts[spans[-1][0] :].sum() < SMALLEST_GROUP * len(known):
        spans[-2:] = [(spans[-2][0], spans[-1][1])]
    low = np.array([first for first, _ in spans])
    return _labelled(np.searchsorted(low, known, side="right") - 1, [_span(*one) for one in spans])


def by_seen(user: pl.Series, train: pl.DataFrame) -> pl.Series:
    """Label of every attempt: whether its user has an event in training (``train``: user, item)."""
    return _labelled(user.is_in(train["user"].unique().implode()).to_numpy().astype(np.int64), list(SEEN))


def by_popularity(item: pl.Series, train: pl.DataFrame, n_items: int) -> pl.Series:
    """Label of every attempt by its target's place among all items, the most often trained on first.

    ``head 1 %`` are the first hundredth of the catalogue (one item at least), ``tail`` its second half, ``middle`` the
    items between; equal counts are ordered by code.
    """
    order = np.argsort(-np.bincount(train["item"].to_numpy(), minlength=n_items), kind="stable")
    place = np.empty(n_items, np.int64)
    place[order] = np.arange(n_items)
    bounds = [-(-n_items // 100), -(-n_items // 2)]
    return _labelled(np.searchsorted(bounds, place[item.to_numpy()], side="right"), list(POPULARITY))


def breakdown(
    value: np.ndarray, label: pl.Series, cluster: np.ndarray, bootstrap: Mapping[str, Any], seed: int
) -> pl.DataFrame:
    """Mean of a metric in every group that has attempts, with its interval.

    Args:
        value: (N,) every attempt's contribution, or the paired difference of two models'.
        label: (N,) its group, from one of the functions above.
        cluster: (N,) what the bootstrap draws: the user or session of every attempt.
        bootstrap: ``resamples`` and ``confidence``.
        seed: of the draws.

    Returns:
        group, attempts, mean, low, high; groups in their order.
    """
    assert isinstance(label.dtype, pl.Enum)
    groups = label.dtype.categories
    code = label.to_physical().to_numpy()
    attempts = np.bincount(code, minlength=len(groups))
    there = np.flatnonzero(attempts)
    inside = code[:, None] == there
    low, high = intervals(
        np.where(inside, value[:, None], np.nan), cluster, bootstrap["resamples"], bootstrap["confidence"], seed
    )
    return pl.DataFrame(
        {
            "group": groups.gather(there),
            "attempts": attempts[there],
            "mean": np.bincount(code, value, len(attempts))[there] / attempts[there],
            "low": low,
            "high": high,
        }
    )


def means(ranks: pl.DataFrame, label: pl.Series) -> pl.DataFrame:
    """Recall@20 and MRR@20 in every group that has attempts, without intervals.

    Args:
        ranks: rank of every attempt.
        label: (N,) its group, of numbers: from ``by_position`` or ``by_known``.

    Returns:
        group, first (the smallest number in it), attempts, recall@20, mrr@20; groups in their order.
    """
    rank = ranks["rank"].to_numpy()
    return (
        pl.DataFrame({"group": label, **{name: values(rank, name) for name in ("recall@20", "mrr@20")}})
        .group_by("group")
        .agg(pl.len().alias("attempts"), pl.col("recall@20", "mrr@20").mean())
        .sort("group")
        .select(
            pl.col("group").cast(pl.String),
            pl.col("group").cast(pl.String).str.extract(r"^(\d+)").cast(pl.Int64).alias("first"),
            "attempts",
            "recall@20",
            "mrr@20",
        )
    )


def tie_rate(equal: pl.Series) -> float:
    """Share of attempts whose target has the very score of another item (``equal`` counts the target too)."""
    return float((equal > 1).sum()) / len(equal)


def list_metrics(times: np.ndarray, train: pl.DataFrame) -> dict[str, float]:
    """What a model recommends, whoever was right: from how often each item (I,) was in a list of the top 20.

    Returns:
        ``coverage@20``, the share of the catalogue that was recommended at least once, and ``mean_popularity@20``, the
        mean number of training events of a recommended item.
    """
    popularity = np.bincount(train["item"].to_numpy(), minlength=len(times))
    return {
        "coverage@20": float(np.count_nonzero(times)) / len(times),
        "mean_popularity@20": float((times * popularity).sum() / times.sum()),
    }


def _by_code(code: pl.Series, value: pl.Series) -> np.ndarray:
    table = np.zeros(len(code), np.int64)
    table[code.to_numpy()] = value.to_numpy()
    return table


def _labelled(code: np.ndarray, labels: list[str]) -> pl.Series:
    return pl.Series(code.astype(np.uint32)).replace_strict(range(len(labels)), labels, return_dtype=pl.Enum(labels))


def _span(first: int, last: int | None) -> str:
    if last is None:
        return f"{first}+"
    return str(first) if first == last else f"{first}-{last}"

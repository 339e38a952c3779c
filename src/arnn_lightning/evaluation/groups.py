"""Metrics by group of predictions, from ranks and the prepared data set alone, without the model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from arnn_lightning.evaluation.bootstrap import intervals
from arnn_lightning.evaluation.metrics import per_prediction

POSITIONS = ((1, 1), (2, 2), (3, 4), (5, 9), (10, None))  # numbers of preceding events, both ends inclusive
USER_GROUPS = ("unseen", "seen")
POPULARITY_GROUPS = ("head 1 %", "middle", "tail")
MIN_GROUP_SHARE = 0.05  # of the predictions; neighbouring numbers of known attributes are merged up to this share


def by_position(position: pl.Series) -> pl.Series:
    """Label of every prediction: how many events of its session precede it.

    >>> by_position(pl.Series([1, 2, 4, 9, 10, 300])).to_list()
    ['1', '2', '3-4', '5-9', '10+', '10+']
    """
    low = np.array([first for first, _ in POSITIONS])
    labels = [_range_label(first, last) for first, last in POSITIONS]
    return _to_enum(np.searchsorted(low, position.to_numpy(), side="right") - 1, labels)


def by_known_attributes(user: pl.Series, users: pl.DataFrame) -> pl.Series:
    """Label of every prediction: how many attributes of its user are known; small neighbouring groups are merged.

    Args:
        user: (N,) user codes.
        users: the prepared data set's users (user, n_known).
    """
    known = _lookup_table(users["user"], users["n_known"])[user.to_numpy()]
    counts = np.bincount(known)
    min_size = MIN_GROUP_SHARE * len(known)
    ranges: list[tuple[int, int]] = []
    for number in np.flatnonzero(counts).tolist():
        # A group that is still too small is extended by the next number.
        if ranges and counts[ranges[-1][0] : ranges[-1][1] + 1].sum() < min_size:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    if len(ranges) > 1 and counts[ranges[-1][0] :].sum() < min_size:
        ranges[-2:] = [(ranges[-2][0], ranges[-1][1])]
    low = np.array([first for first, _ in ranges])
    labels = [_range_label(first, last) for first, last in ranges]
    return _to_enum(np.searchsorted(low, known, side="right") - 1, labels)


def by_seen(user: pl.Series, train: pl.DataFrame) -> pl.Series:
    """Label of every prediction: whether its user has an event in training (``train``: user, item)."""
    return _to_enum(user.is_in(train["user"].unique().implode()).to_numpy().astype(np.int64), list(USER_GROUPS))


def by_popularity(item: pl.Series, train: pl.DataFrame, n_items: int) -> pl.Series:
    """Label of every prediction by the popularity rank of its target, the item with most training events first.

    ``head 1 %`` is the first hundredth of the catalogue (at least one item), ``tail`` its second half, ``middle`` the
    items between; equal counts are ordered by code.
    """
    order = np.argsort(-np.bincount(train["item"].to_numpy(), minlength=n_items), kind="stable")
    popularity_rank = np.empty(n_items, np.int64)
    popularity_rank[order] = np.arange(n_items)
    bounds = [-(-n_items // 100), -(-n_items // 2)]
    return _to_enum(np.searchsorted(bounds, popularity_rank[item.to_numpy()], side="right"), list(POPULARITY_GROUPS))


def group_metrics(
    value: np.ndarray, label: pl.Series, cluster: np.ndarray, bootstrap: Mapping[str, Any], seed: int
) -> pl.DataFrame:
    """Mean of a metric in every group that has predictions, with its interval.

    Args:
        value: (N,) every prediction's value, or the paired difference of two models' values.
        label: (N,) its group, from one of the functions above.
        cluster: (N,) the unit of resampling: the user or session of every prediction.
        bootstrap: ``resamples`` and ``confidence``.
        seed: of the resampling.

    Returns:
        group, predictions, mean, low, high; groups in their order.
    """
    assert isinstance(label.dtype, pl.Enum)
    groups = label.dtype.categories
    code = label.to_physical().to_numpy()
    count = np.bincount(code, minlength=len(groups))
    present = np.flatnonzero(count)
    in_group = code[:, None] == present
    low, high = intervals(
        np.where(in_group, value[:, None], np.nan), cluster, bootstrap["resamples"], bootstrap["confidence"], seed
    )
    return pl.DataFrame(
        {
            "group": groups.gather(present),
            "predictions": count[present],
            "mean": np.bincount(code, value, len(count))[present] / count[present],
            "low": low,
            "high": high,
        }
    )


def group_means(ranks: pl.DataFrame, label: pl.Series, names: Sequence[str]) -> pl.DataFrame:
    """Metrics in every group that has predictions, without intervals.

    Args:
        ranks: rank of every prediction.
        label: (N,) its group, of numbers: from ``by_position`` or ``by_known_attributes``.
        names: of the metrics, such as ``recall@20``.

    Returns:
        group, first (the smallest number in it), predictions, and a column per metric; groups in their order.
    """
    rank = ranks["rank"].to_numpy()
    return (
        pl.DataFrame({"group": label, **{name: per_prediction(rank, name) for name in names}})
        .group_by("group")
        .agg(pl.len().alias("predictions"), pl.col(names).mean())
        .sort("group")
        .with_columns(pl.col("group").cast(pl.String))
        .select(
            "group",
            pl.col("group").str.extract(r"^(\d+)").cast(pl.Int64).alias("first"),
            "predictions",
            *names,
        )
    )


def tie_rate(equal: pl.Series) -> float:
    """Share of predictions whose target is tied with another item (``equal`` counts the target too)."""
    return float((equal > 1).sum()) / len(equal)


def _lookup_table(code: pl.Series, value: pl.Series) -> np.ndarray:
    table = np.zeros(len(code), np.int64)
    table[code.to_numpy()] = value.to_numpy()
    return table


def _to_enum(code: np.ndarray, labels: list[str]) -> pl.Series:
    return pl.Series(code.astype(np.uint32)).replace_strict(range(len(labels)), labels, return_dtype=pl.Enum(labels))


def _range_label(first: int, last: int | None) -> str:
    if last is None:
        return f"{first}+"
    return str(first) if first == last else f"{first}-{last}"

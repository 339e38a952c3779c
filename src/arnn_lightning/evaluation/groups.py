"""Metrics by group of predictions, from ranks and the prepared data set alone, without the model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from arnn_lightning.evaluation.bootstrap import (
    MIN_CLUSTERS,
    holm,
    p_value,
    percentile_limits,
    resampled_sums,
    seed_shifts,
)

POSITIONS = ((1, 1), (2, 2), (3, 4), (5, 9), (10, None))  # numbers of preceding events, both ends inclusive
USER_GROUPS = ("unseen", "seen")
POPULARITY_GROUPS = ("head 1 %", "middle", "tail", "not in training")
OTHERS = "(others)"
MAX_CATEGORIES = 8  # of an attribute, by number of predictions; the others are one group
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
    known = users.sort("user")["n_known"].to_numpy()[user.to_numpy()]
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

    ``head 1 %`` is the first hundredth of the items that training has (at least one), ``tail`` their second half,
    ``middle`` the items between; equal counts are ordered by code. Items may have no training event
    (``data.items.cold=keep``).
    """
    events = np.bincount(train["item"].to_numpy(), minlength=n_items)
    n_trained = int(np.count_nonzero(events))
    popularity_rank = np.empty(n_items, np.int64)
    popularity_rank[np.argsort(-events, kind="stable")] = np.arange(n_items)
    bounds = [-(-n_trained // 100), -(-n_trained // 2), n_trained]
    return _to_enum(np.searchsorted(bounds, popularity_rank[item.to_numpy()], side="right"), list(POPULARITY_GROUPS))


def by_category(user: pl.Series, code_of_user: np.ndarray, categories: Sequence[str]) -> pl.Series:
    """Label of every prediction: its user's category of an attribute.

    Beyond ``MAX_CATEGORIES`` categories the rarest are one group, ``(others)``.

    Args:
        user: (N,) user codes.
        code_of_user: (U,) the code of every user's category.
        categories: by code; the first is that of users whose category is unknown.
    """
    code, names = code_of_user[user.to_numpy()], np.array(categories)
    if len(names) > MAX_CATEGORIES + 1:
        order = np.argsort(-np.bincount(code, minlength=len(names))[1:], kind="stable") + 1
        kept = [0, *np.sort(order[:MAX_CATEGORIES])]
        merged = np.full(len(names), len(kept))
        merged[kept] = range(len(kept))
        others = f"({OTHERS})" if OTHERS in categories else OTHERS
        names, code = np.array([*names[kept], others]), merged[code]
    return _to_enum(code, names.tolist())


Attributes = Mapping[str, tuple[np.ndarray, Sequence[str]]]  # by name: every user's code, and the categories


def attribute_labels(ranks: pl.DataFrame, attributes: Attributes) -> dict[str, pl.Series]:
    """The groups of every prediction by each attribute of its user; see ``by_category``."""
    return {name: by_category(ranks["user"], *attribute) for name, attribute in attributes.items()}


def group_labels(
    ranks: pl.DataFrame,
    users: pl.DataFrame,
    train: pl.DataFrame,
    n_items: int,
    attributes: Attributes,
) -> dict[str, pl.Series]:
    """Every way to group the predictions, by what it is by: position, known attributes, user, popularity, attributes.

    Args:
        ranks: position, user, item of every prediction.
        users: the prepared data set's users (user, n_known).
        train: user, item of every training event.
        n_items: size of the catalogue.
        attributes: of users; one with the name of another way to group is called "position (attribute)".
    """
    labels = {
        "position": by_position(ranks["position"]),
        "known attributes": by_known_attributes(ranks["user"], users),
        "user": by_seen(ranks["user"], train),
        "popularity": by_popularity(ranks["item"], train, n_items),
    }
    taken = {name.replace(" ", "_") for name in labels}
    shown = {name: f"{name} (attribute)" if name.replace(" ", "_") in taken else name for name in attributes}
    return labels | {shown[name]: label for name, label in attribute_labels(ranks, attributes).items()}


def group_metrics(
    values: Mapping[str, Sequence[np.ndarray]],
    label: pl.Series,
    cluster: np.ndarray,
    bootstrap: Mapping[str, Any] | None,
    seed: int,
) -> pl.DataFrame:
    """Metrics in every group that has predictions, and their gaps to all other predictions, with intervals.

    A gap is the mean of a group minus the mean of all predictions outside of it; with two groups, those of one are
    minus those of the other. Intervals are over users and seeds, see ``seed_bootstrap_means``. The p values of the
    hypotheses that the gaps of a metric are 0 are adjusted for the number of groups (Holm).

    Args:
        values: by name (N,) per seed: a metric of every prediction, or the paired difference of two models'.
        label: (N,) its group, from one of the functions above.
        cluster: (N,) the unit of resampling: the user or session of every prediction.
        bootstrap: ``resamples`` and ``confidence``; None for means and gaps alone.
        seed: of the resampling.

    Returns:
        group, predictions, clusters, and for every name NAME, NAME_low, NAME_high, NAME_gap, NAME_gap_low,
        NAME_gap_high and NAME_gap_p; groups in their order. What cannot be known is null: intervals of a group of
        fewer than ``MIN_CLUSTERS`` clusters, those of a gap also where all others have fewer, gaps of a single group.
    """
    assert isinstance(label.dtype, pl.Enum)
    present, code = np.unique(label.to_physical().to_numpy(), return_inverse=True)
    _, cluster_index = np.unique(cluster, return_inverse=True)
    n_groups, n_seeds = len(present), len(next(iter(values.values())))
    cell = cluster_index * n_groups + code
    columns = (None, *(value for by_seed in values.values() for value in by_seed))
    size = n_groups * (1 + int(cluster_index.max()))
    sums = np.stack([np.bincount(cell, column, size) for column in columns]).reshape(len(columns), -1, n_groups)
    clusters = np.count_nonzero(sums[0], axis=0)
    others = np.count_nonzero(sums[0].sum(1, keepdims=True) - sums[0], axis=0)
    has_interval = clusters >= MIN_CLUSTERS
    is_tested = has_interval & (others >= MIN_CLUSTERS)
    frame: dict[str, Any] = {
        "group": label.dtype.categories.gather(present),
        "predictions": sums[0].sum(0).astype(np.int64),
        "clusters": clusters,
    }
    point = _means_and_gaps(sums.sum(1)[None], n_seeds)[0]
    if bootstrap is not None:
        resamples = bootstrap["resamples"]
        resampled = resampled_sums(np.hstack(list(sums)), resamples, seed).reshape(resamples, -1, n_groups)
        means = _means_and_gaps(resampled, n_seeds).mean(1)
        means += seed_shifts(point.reshape(n_seeds, -1), resamples, seed).reshape(means.shape)
        if n_groups == 1:  # no gap; its limits are NaN below
            means[..., 1, :] = 0.0
        low, high = np.where([has_interval, is_tested], percentile_limits(means, bootstrap["confidence"]), np.nan)
    for index, name in enumerate(values):
        for quantity, suffix in enumerate(("", "_gap")):
            frame[f"{name}{suffix}"] = point.mean(0)[index, quantity]
            if bootstrap is not None:
                frame |= {f"{name}{suffix}_low": low[index, quantity], f"{name}{suffix}_high": high[index, quantity]}
        if bootstrap is not None:
            adjusted = np.full(n_groups, np.nan)
            p_values = np.array([p_value(gaps[~np.isnan(gaps)]) for gaps in means[:, index, 1, is_tested].T])
            # The gaps of two groups are one hypothesis.
            adjusted[is_tested] = holm(p_values) if n_groups > 2 else p_values
            frame[f"{name}_gap_p"] = adjusted
    return pl.DataFrame(frame).fill_nan(None)


def _means_and_gaps(sums: np.ndarray, n_seeds: int) -> np.ndarray:
    """(R, S, M, 2, G) means and gaps of every group, from (R, 1 + M S, G): counts, and sums by metric and seed."""
    count, total = sums[:, :1], sums[:, 1:]
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample without predictions of a group
        inside = total / count
        outside = (total.sum(2, keepdims=True) - total) / (count.sum(2, keepdims=True) - count)
    both = np.stack([inside, inside - outside], 2)
    return both.reshape(len(sums), -1, n_seeds, 2, sums.shape[2]).swapaxes(1, 2)


def tie_rate(equal: pl.Series) -> float:
    """Share of predictions whose target is tied with another item (``equal`` counts the target too)."""
    return float((equal > 1).sum()) / len(equal)


def _to_enum(code: np.ndarray, labels: list[str]) -> pl.Series:
    return pl.Series(code.astype(np.uint32)).replace_strict(range(len(labels)), labels, return_dtype=pl.Enum(labels))


def _range_label(first: int, last: int | None) -> str:
    if last is None:
        return f"{first}+"
    return str(first) if first == last else f"{first}-{last}"

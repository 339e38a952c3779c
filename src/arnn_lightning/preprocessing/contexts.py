"""User attributes -> PNN fields (paper 4.2.4).

A single-valued attribute is one field whose code 0 is "unknown" (missing, or not seen in training).
A multi-valued attribute gives one binary field (absent, present) per popular category - the smallest set of
categories that covers ``coverage`` of the training events, ties at the threshold included - and one field "other".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from arnn_lightning.errors import UserError, nearest
from arnn_lightning.readers.schema import USER

OTHER = "(other)"
PREFIX = "context."  # so that an attribute may have the name of any other column


@dataclass(frozen=True)
class EncodedContexts:
    """Contexts of every user as codes.

    Attributes:
        users: one row per user code: one UInt32 column ``context.<name>`` per single-valued attribute, ``active``
            (indices of the binary fields that are present), ``n_known`` (number of known attributes).
        vocabulary: attribute, kind (single | multi), code, category, events (in training).
        single_sizes: number of codes of each single-valued field, "unknown" included.
        n_binary: number of binary fields.
    """

    users: pl.DataFrame
    vocabulary: pl.DataFrame
    single_sizes: list[int]
    n_binary: int


def most_popular(counts: pl.DataFrame, coverage: float) -> pl.DataFrame:
    """The most popular rows of ``counts`` (column ``events``) that cover at least ``coverage`` of the sum.

    The threshold is the count of the last row that is needed; all rows tied with it are kept.

    >>> most_popular(pl.DataFrame({"item": [1, 2, 3, 4], "events": [5, 2, 2, 1]}), 0.6)["item"].to_list()
    [1, 2, 3]
    """
    if counts.is_empty():
        return counts
    ordered = counts["events"].sort(descending=True)
    covered = ordered.cum_sum()
    # In floating point .55 * 100 exceeds 55: counts within rounding of the target cover it.
    target = coverage * covered[-1] * (1 - 1e-12)
    last = min(int((covered < target).sum()), len(ordered) - 1)
    return counts.filter(pl.col("events") >= ordered[last])


def encode_contexts(
    users: pl.DataFrame, train_events: pl.Series, single: Sequence[str], multi: Sequence[str], coverage: float
) -> EncodedContexts:
    """Fits the fields on the training users and encodes every user.

    Args:
        users: one row per user code, sorted by id, with canonical attributes (null = unknown).
        train_events: number of training events of each user; the fit uses users with at least one, weighted by them.
        single: names of single-valued attributes; ``user`` is the user's id.
        multi: names of multi-valued attributes.
        coverage: share of an attribute's training events that its popular categories cover.

    Raises:
        UserError: an attribute that is not in ``users``, or is listed under the wrong kind.
    """
    _validate_attributes(users, single, multi)
    columns: dict[str, pl.Series] = {}
    vocabulary: list[pl.DataFrame] = []
    for name in single:
        columns[f"{PREFIX}{name}"], categories = _encode_single(users, train_events, name)
        vocabulary.append(_vocabulary_rows(categories, name, "single"))
    single_sizes = [categories.height + 1 for categories in vocabulary]
    lists: list[pl.DataFrame] = []
    n_binary = 0
    for name in multi:
        active, categories = _encode_multi(users, train_events, name, coverage, first_code=n_binary)
        if categories.is_empty():
            continue
        lists.append(active)
        vocabulary.append(_vocabulary_rows(categories, name, "multi"))
        n_binary += categories.height
    known = [pl.col(name).is_not_null() for name in single] + [pl.col(name).list.len() > 0 for name in multi]
    n_known = pl.sum_horizontal(pl.lit(0, pl.UInt8), *(flag.fill_null(False).cast(pl.UInt8) for flag in known))
    table = (
        pl.DataFrame({"row": pl.int_range(users.height, dtype=pl.UInt32, eager=True), **columns})
        .join(_active_fields(lists), on="row", how="left", maintain_order="left")
        .with_columns(pl.col("active").fill_null([]))
        .drop("row")
        .with_columns(n_known=users.with_columns(n_known=n_known)["n_known"].cast(pl.UInt8))
    )
    schema = {"attribute": pl.String, "kind": pl.String, "code": pl.UInt32, "category": pl.String, "events": pl.Int64}
    return EncodedContexts(
        users=table,
        vocabulary=pl.concat(vocabulary) if vocabulary else pl.DataFrame(schema=schema),
        single_sizes=single_sizes,
        n_binary=n_binary,
    )


def encode_profiles(
    profiles: pl.DataFrame, single: Sequence[str], vocabulary: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Codes of profiles by categories that are fitted already: those that ``encode_contexts`` gives the same users.

    Args:
        profiles: canonical attributes (String, List(String); null = unknown); one that is no column is unknown.
        single: the single-valued attributes, in the order of their fields.
        vocabulary: as ``EncodedContexts.vocabulary``.

    Returns:
        one row per profile, with the columns ``context.<name>`` and ``active`` of ``EncodedContexts.users``; and the
        values of single-valued attributes that are coded as "unknown": row, attribute, value. Those of multi-valued
        ones that are no category of their own are coded as "other", as rare ones are.
    """
    columns = {f"{PREFIX}{name}": pl.zeros(profiles.height, pl.UInt32, eager=True) for name in single}
    lists: list[pl.DataFrame] = []
    unseen = [pl.DataFrame(schema={"row": pl.UInt32, "attribute": pl.String, "value": pl.String})]
    for (name, kind), categories in vocabulary.group_by("attribute", "kind", maintain_order=True):
        if name not in profiles.columns:
            continue
        values = profiles.select(value=pl.col(str(name))).with_row_index("row")
        values = (values.explode("value") if kind == "multi" else values).drop_nulls("value")
        coded = values.join(categories.select("code", value="category"), on="value", how="left", maintain_order="left")
        if kind == "multi":
            lists.append(coded.select("row", pl.col("code").fill_null(categories["code"].max())))
        else:
            is_unseen = pl.col("code").is_null()
            unseen.append(coded.filter(is_unseen).select("row", pl.lit(name).alias("attribute"), "value"))
            columns[f"{PREFIX}{name}"] = columns[f"{PREFIX}{name}"].scatter(coded["row"], coded["code"].fill_null(0))
    table = pl.DataFrame({"row": pl.int_range(profiles.height, dtype=pl.UInt32, eager=True), **columns})
    table = table.join(_active_fields(lists), on="row", how="left", maintain_order="left")
    return table.select(pl.exclude("row", "active"), pl.col("active").fill_null([])), pl.concat(unseen)


def _validate_attributes(users: pl.DataFrame, single: Sequence[str], multi: Sequence[str]) -> None:
    for name in (*single, *multi):
        if name not in users.columns:
            raise UserError(f"data.contexts: the users table has no attribute {name!r}{nearest(name, users.columns)}")
        if (users[name].dtype == pl.List) != (name in multi):
            kind = "single" if name in multi else "multi"
            raise UserError(f"data.contexts: attribute {name!r} must be listed under data.contexts.{kind}")


def _encode_single(users: pl.DataFrame, train_events: pl.Series, name: str) -> tuple[pl.Series, pl.DataFrame]:
    """Codes of a single-valued attribute, one per user, and its categories (category, events, code)."""
    is_trained = train_events > 0
    seen = users.select(category=name, events=train_events).filter(is_trained).drop_nulls()
    if name != USER:  # ids are unique and sorted
        seen = seen.group_by("category").sum().sort("category")
    categories = seen.with_columns(code=pl.int_range(1, pl.len() + 1, dtype=pl.UInt32))
    if name == USER:
        return is_trained.cum_sum().set(~is_trained, 0).cast(pl.UInt32), categories
    coded = users.select(category=name).join(categories, on="category", how="left", maintain_order="left")
    return coded["code"].fill_null(0), categories


def _encode_multi(
    users: pl.DataFrame, train_events: pl.Series, name: str, coverage: float, first_code: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Codes of a multi-valued attribute as (row of the user, code), and its categories (category, events, code).

    The last category is "other"; there are none where no training user has a value.
    """
    values = users.select(category=name).with_row_index("row").explode("category").drop_nulls("category")
    events = train_events.gather(values["row"])
    counts = values.select("category", events=events).filter(events > 0).group_by("category").sum().sort("category")
    popular = most_popular(counts, coverage).with_columns(code=pl.int_range(pl.len(), dtype=pl.UInt32) + first_code)
    if counts.is_empty():
        return values.select("row", code=pl.lit(0, pl.UInt32)), popular
    other_code = first_code + popular.height
    n_other = int(counts["events"].sum()) - int(popular["events"].sum())
    other = pl.DataFrame({"category": [OTHER], "events": [n_other], "code": [other_code]}, schema=popular.schema)
    coded = values.join(popular, on="category", how="left", maintain_order="left")
    return coded.select("row", code=pl.col("code").fill_null(other_code)), pl.concat([popular, other])


def _active_fields(lists: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The sorted codes of every user who has any: row, active."""
    if not lists:
        return pl.DataFrame(schema={"row": pl.UInt32, "active": pl.List(pl.UInt32)})
    both = pl.col("row", "code")
    # Sorting all rows at once takes a quarter of the time of sorting each user's few codes.
    codes = pl.concat(lists).sort("row", "code").filter(pl.any_horizontal(both.ne_missing(both.shift())))
    return codes.group_by("row", maintain_order=True).agg(active="code")


def _vocabulary_rows(categories: pl.DataFrame, name: str, kind: str) -> pl.DataFrame:
    return categories.select(
        attribute=pl.lit(name),
        kind=pl.lit(kind),
        code=pl.col("code").cast(pl.UInt32),
        category=pl.col("category").cast(pl.String),
        events=pl.col("events").cast(pl.Int64),
    )


def select_attributes(
    users: pl.DataFrame,
    dims: Mapping[str, Any],
    vocabulary: pl.DataFrame,
    attributes: Mapping[str, Any],
    n_attributes: int,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Keeps the first ``n_attributes`` attributes of every user: multi-valued ones first, each kind as listed.

    Args:
        users: as ``EncodedContexts.users``.
        dims: the sizes that models measure from data, with all attributes.
        vocabulary: as ``EncodedContexts.vocabulary``.
        attributes: ``contexts`` of the data config, with the lists ``single`` and ``multi``.
        n_attributes: number of attributes to keep.

    Returns:
        users and sizes with the attributes that are kept.

    Raises:
        UserError: ``n_attributes`` is not a number of attributes.
    """
    multi, single = attributes["multi"], attributes["single"]
    if isinstance(n_attributes, bool) or not isinstance(n_attributes, int) or n_attributes < 0:
        raise UserError(
            f"data.contexts.n_attributes={n_attributes}: must be an integer, at least 0 (the data set has "
            f"{len(multi) + len(single)} attributes), or null for all"
        )
    kept = single[: max(n_attributes - len(multi), 0)]
    # Codes of binary fields follow the order of their attributes, so the first attributes have the lowest codes.
    is_kept = (pl.col("kind") == "multi") & pl.col("attribute").is_in(multi[:n_attributes])
    n_binary = vocabulary.filter(is_kept).height
    sizes = [size for name, size in zip(single, dims["single_sizes"], strict=True) if name in kept]
    selected = users.drop(f"{PREFIX}{name}" for name in single if name not in kept).with_columns(
        pl.col("active").list.filter(pl.element() < n_binary)
    )
    return selected, {**dims, "single_sizes": sizes, "n_binary": n_binary}

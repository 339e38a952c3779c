"""User attributes -> PNN fields (paper 4.2.4).

A single-valued attribute is one field whose code 0 is "unknown" (missing, or not seen in training).
A multi-valued attribute gives one two-valued field (absent, present) per popular category - the smallest set of
categories that covers ``coverage`` of the training events, ties at the threshold kept - and one field "other".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from arnn_lightning.errors import UserError, nearest
from arnn_lightning.readers.schema import USER

OTHER = "(other)"
PREFIX = "context."  # an attribute may be called as any other column is


@dataclass(frozen=True)
class EncodedContexts:
    """Contexts of every user as codes.

    Attributes:
        table: one row per user code: one UInt32 column ``context.<name>`` per single-valued attribute, ``active`` (the
            indices of the two-valued fields that are present), ``known`` (how many attributes are known).
        vocabulary: attribute, kind (single | multi), code, category, events (in training).
        single_sizes: number of codes of each single-valued field, "unknown" included.
        n_binary: number of two-valued fields.
    """

    table: pl.DataFrame
    vocabulary: pl.DataFrame
    single_sizes: list[int]
    n_binary: int


def popular(counts: pl.DataFrame, coverage: float) -> pl.DataFrame:
    """The most popular rows of ``counts`` (column ``events``) that cover at least ``coverage`` of the sum.

    The threshold is the count of the last row needed; every row tied with it is kept.

    >>> popular(pl.DataFrame({"item": [1, 2, 3, 4], "events": [5, 2, 2, 1]}), 0.6)["item"].to_list()
    [1, 2, 3]
    """
    if counts.is_empty():
        return counts
    ordered = counts["events"].sort(descending=True)
    covered = ordered.cum_sum()
    # In floating point .55 * 100 is a little more than 55: counts within rounding of the target cover it.
    target = coverage * covered[-1] * (1 - 1e-12)
    last = min(int((covered < target).sum()), len(ordered) - 1)
    return counts.filter(pl.col("events") >= ordered[last])


def encode(
    users: pl.DataFrame, train_events: pl.Series, single: Sequence[str], multi: Sequence[str], coverage: float
) -> EncodedContexts:
    """Fits the fields on the training users and encodes every user.

    Args:
        users: one row per user code, sorted by id, canonical attributes (null = unknown).
        train_events: training events of each user; the fit sees only users with at least one, weighted by them.
        single: names of single-valued attributes; ``user`` is the user's own id.
        multi: names of multi-valued attributes.
        coverage: share of the training events' categories that the popular ones of an attribute cover.

    Raises:
        UserError: an attribute that the users table lacks, or one that is not of the kind it is listed under.
    """
    for name in (*single, *multi):
        if name not in users.columns:
            raise UserError(f"data.contexts: the users have no attribute {name!r}{nearest(name, users.columns)}")
        if (users[name].dtype == pl.List) != (name in multi):
            kind = "single" if name in multi else "multi"
            raise UserError(f"data.contexts: attribute {name!r} belongs under data.contexts.{kind}")
    trained = train_events > 0
    columns: dict[str, pl.Series] = {}
    vocabulary: list[pl.DataFrame] = []
    sizes: list[int] = []
    for name in single:
        seen = users.select(category=name, events=train_events).filter(trained).drop_nulls()
        if name != USER:  # every user is there once, in order
            seen = seen.group_by("category").sum().sort("category")
        fields = seen.with_columns(code=pl.int_range(1, pl.len() + 1, dtype=pl.UInt32))
        vocabulary.append(_describe(fields, name, "single"))
        sizes.append(fields.height + 1)
        if name == USER:
            code = trained.cum_sum().set(~trained, 0).cast(pl.UInt32)
        else:
            coded = users.select(category=name).join(fields, on="category", how="left", maintain_order="left")
            code = coded["code"].fill_null(0)
        columns[f"{PREFIX}{name}"] = code
    lists: list[pl.DataFrame] = []
    n_binary = 0
    for name in multi:
        mentions = users.select(category=name).with_row_index("row").explode("category").drop_nulls("category")
        events = train_events.gather(mentions["row"])
        counts = (
            mentions.select("category", events=events).filter(events > 0).group_by("category").sum().sort("category")
        )
        if counts.is_empty():
            continue
        fields = popular(counts, coverage).with_columns(code=pl.int_range(pl.len(), dtype=pl.UInt32) + n_binary)
        other = n_binary + fields.height
        rest = int(counts["events"].sum()) - int(fields["events"].sum())
        other_row = pl.DataFrame({"category": [OTHER], "events": [rest], "code": [other]}, schema=fields.schema)
        vocabulary.append(_describe(pl.concat([fields, other_row]), name, "multi"))
        coded = mentions.join(fields, on="category", how="left", maintain_order="left")
        lists.append(coded.select("row", code=pl.col("code").fill_null(other)))
        n_binary = other + 1
    active = pl.DataFrame({"row": []}, schema={"row": pl.UInt32}).with_columns(active=pl.lit(None, pl.List(pl.UInt32)))
    if lists:
        both = pl.col("row", "code")
        # Sorted as a whole, which takes a quarter of what sorting every user's few codes does.
        codes = pl.concat(lists).sort("row", "code").filter(pl.any_horizontal(both.ne_missing(both.shift())))
        active = codes.group_by("row", maintain_order=True).agg(active="code")
    known = [pl.col(name).is_not_null() for name in single] + [pl.col(name).list.len() > 0 for name in multi]
    table = (
        pl.DataFrame({"row": pl.int_range(users.height, dtype=pl.UInt32, eager=True), **columns})
        .join(active, on="row", how="left", maintain_order="left")
        .with_columns(pl.col("active").fill_null([]))
        .drop("row")
        .with_columns(
            known=users.with_columns(
                known=pl.sum_horizontal(pl.lit(0, pl.UInt8), *(k.fill_null(False).cast(pl.UInt8) for k in known))
            )["known"].cast(pl.UInt8)
        )
    )
    schema = {"attribute": pl.String, "kind": pl.String, "code": pl.UInt32, "category": pl.String, "events": pl.Int64}
    return EncodedContexts(
        table=table,
        vocabulary=pl.concat(vocabulary) if vocabulary else pl.DataFrame(schema=schema),
        single_sizes=sizes,
        n_binary=n_binary,
    )


def _describe(fields: pl.DataFrame, name: str, kind: str) -> pl.DataFrame:
    return fields.select(
        attribute=pl.lit(name),
        kind=pl.lit(kind),
        code=pl.col("code").cast(pl.UInt32),
        category=pl.col("category").cast(pl.String),
        events=pl.col("events").cast(pl.Int64),
    )


def show(
    users: pl.DataFrame, dims: Mapping[str, Any], vocabulary: pl.DataFrame, fields: Mapping[str, Any], shown: int
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Leaves the first ``shown`` attributes of every user, as if there were no others.

    Args:
        users: as ``EncodedContexts.table``.
        dims: the sizes that models measure from data, with all attributes.
        vocabulary: as ``EncodedContexts.vocabulary``.
        fields: the data set's ``contexts``; the first attributes are its ``multi``, then its ``single`` ones.
        shown: how many attributes are left.

    Returns:
        users and sizes with the attributes left.

    Raises:
        UserError: ``shown`` is no number of attributes.
    """
    multi, single = fields["multi"], fields["single"]
    if isinstance(shown, bool) or not isinstance(shown, int) or shown < 0:
        raise UserError(
            f"data.contexts.n_attributes={shown}: how many of the {len(multi) + len(single)} attributes, or null for all"
        )
    left = single[: max(shown - len(multi), 0)]
    # Codes of two-valued fields follow the order of their attributes: the first attributes have the lowest.
    n_binary = vocabulary.filter((pl.col("kind") == "multi") & pl.col("attribute").is_in(multi[:shown])).height
    sizes = [size for name, size in zip(single, dims["single_sizes"], strict=True) if name in left]
    told = users.drop(f"{PREFIX}{name}" for name in single if name not in left).with_columns(
        pl.col("active").list.filter(pl.element() < n_binary)
    )
    return told, {**dims, "single_sizes": sizes, "n_binary": n_binary}

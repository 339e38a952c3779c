"""Attributes of users, and of items -> PNN fields (paper 4.2.4).

A single-valued attribute is one field whose code 0 is "unknown" (missing, or not seen in training); categories with
fewer than ``min_events`` training events share one code, "other". A numeric attribute is one field too: its codes from
1 on are intervals. A multi-valued attribute gives one binary field (absent, present) per popular category - the
smallest set of categories that covers ``coverage`` of the training events, ties at the threshold included - and one
field "other".
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from arnn_lightning.errors import UserError, nearest
from arnn_lightning.readers.schema import USER, decimal_years, first_day

UNKNOWN = "unknown"
OTHER = "(other)"
PREFIX = "context."  # so that an attribute may have the name of any other column
EVENTS = "\0events"  # not a name that an attribute can have
LAST_YEAR = 9998  # whose end is a date, too
VOCABULARY = {
    "attribute": pl.String,
    "kind": pl.String,
    "code": pl.UInt32,
    "category": pl.String,
    "events": pl.Int64,
    "low": pl.Float64,
}


@dataclass(frozen=True)
class EncodedContexts:
    """Contexts of every user, or of every item, as codes.

    Attributes:
        users: one row per user code (per item code), as returned by ``encode_profiles``, and ``n_known`` (number of
            known attributes).
        vocabulary: as returned by ``fit_vocabulary``.
        single_sizes: number of codes of each single-valued field, numeric ones last, "unknown" included.
        n_binary: number of binary fields.
    """

    users: pl.DataFrame
    vocabulary: pl.DataFrame
    single_sizes: list[int]
    n_binary: int


def numeric_bins(contexts: Mapping[str, Any]) -> dict[str, int | list[float]]:
    """The number of bins, or their edges, of every numeric attribute."""
    return dict(contexts.get("numeric") or {})


def field_names(contexts: Mapping[str, Any]) -> list[str]:
    """The attributes of one field each, in the order of their columns: single-valued, then numeric, as listed."""
    return [*contexts["single"], *numeric_bins(contexts)]


def attribute_names(contexts: Mapping[str, Any]) -> list[str]:
    """All attributes in the order of ``data.contexts.n_attributes``: multi-valued, single-valued, numeric."""
    return [*contexts["multi"], *field_names(contexts)]


def top_by_coverage(counts: pl.DataFrame, coverage: float) -> pl.DataFrame:
    """The most popular rows of ``counts`` (column ``events``) that cover at least ``coverage`` of the sum.

    The threshold is the count of the last row that is needed; all rows tied with it are kept.

    >>> top_by_coverage(pl.DataFrame({"item": [1, 2, 3, 4], "events": [5, 2, 2, 1]}), 0.6)["item"].to_list()
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
    users: pl.DataFrame, train_events: pl.Series, contexts: Mapping[str, Any], owner: str = USER
) -> EncodedContexts:
    """Fits the fields on the training users and encodes every user; likewise items.

    Args:
        users: one row per user code, sorted by id, with canonical attributes (null = unknown).
        train_events: number of training events of each user.
        contexts: ``data.contexts``, of items ``data.item_contexts``.
        owner: user or item, for errors.

    Raises:
        UserError: an attribute that is not in ``users``, or is listed under the wrong kind.
    """
    require_attributes(users, contexts, owner)
    vocabulary = fit_vocabulary(users, train_events, contexts, owner)
    sizes = dict(vocabulary.filter(pl.col("kind") != "multi").group_by("attribute").len().iter_rows())
    table, _ = encode_profiles(users, field_names(contexts), vocabulary)
    n_known = users.with_columns(n_known=count_known(contexts))["n_known"]
    return EncodedContexts(
        users=table.with_columns(n_known),
        vocabulary=vocabulary,
        single_sizes=[1 + sizes.get(name, 0) for name in field_names(contexts)],
        n_binary=int((vocabulary["kind"] == "multi").sum()),
    )


def count_known(contexts: Mapping[str, Any]) -> pl.Expr:
    """How many attributes of a canonical row are known."""
    known = [pl.col(name).is_not_null() for name in field_names(contexts)]
    known += [pl.col(name).list.len() > 0 for name in contexts["multi"]]
    return pl.sum_horizontal(pl.lit(0, pl.UInt8), *(flag.fill_null(False) for flag in known)).cast(pl.UInt8)


def fit_vocabulary(
    users: pl.DataFrame, train_events: pl.Series, contexts: Mapping[str, Any], owner: str
) -> pl.DataFrame:
    """The categories and intervals of every attribute; the fit uses users with training events only.

    Arguments as of ``encode_contexts``.

    Returns:
        attribute, kind (single | numeric | multi), code, category, events (in training) and low, the lower bound of an
        interval, which belongs to it; the first interval of an attribute begins at minus infinity.
    """
    parts = [pl.DataFrame(schema=VOCABULARY)]
    trained = users.with_columns(train_events.alias(EVENTS)).filter(pl.col(EVENTS) > 0)
    for name in contexts["single"]:
        is_id = name == owner == USER
        categories = _fit_single(trained, name, int(contexts["min_events"]), is_id)
        parts.append(_vocabulary_rows(categories, name, "single"))
    for name, bins in numeric_bins(contexts).items():
        parts.append(_vocabulary_rows(_fit_numeric(trained, name, bins), name, "numeric"))
    n_binary = 0
    for name in contexts["multi"]:
        categories = _fit_multi(trained, name, float(contexts["coverage"]), first_code=n_binary)
        parts.append(_vocabulary_rows(categories, name, "multi"))
        n_binary += categories.height
    return pl.concat(parts)


def encode_profiles(
    profiles: pl.DataFrame, single: Sequence[str], vocabulary: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The codes of any profiles, known in training or not, by categories and intervals that are fitted already.

    Args:
        profiles: canonical attributes, as in ``readers/schema.py``; one without a column is unknown.
        single: the attributes of one field each, as returned by ``field_names``.
        vocabulary: as returned by ``fit_vocabulary``.

    Returns:
        one row per profile, with a UInt32 column ``context.<name>`` per attribute of ``single`` and ``active``, the
        indices of the binary fields that are present; and the values that are coded as "unknown", since training does
        not contain them: row, attribute, value.
    """
    columns = {name: pl.zeros(profiles.height, pl.UInt32, eager=True) for name in single}
    lists: list[pl.DataFrame] = []
    unseen = [pl.DataFrame(schema={"row": pl.UInt32, "attribute": pl.String, "value": pl.String})]
    for (attribute, kind), categories in vocabulary.group_by("attribute", "kind", maintain_order=True):
        name = str(attribute)
        if name not in profiles.columns:
            continue
        if kind == "multi":
            codes, values = _encode_multi(profiles[name], categories)
            lists.append(codes)
            unseen.append(values.select("row", attribute=pl.lit(name), value="category"))
        elif name in columns:
            encode = _encode_number if kind == "numeric" else _encode_category
            columns[name] = encode(profiles[name], categories)
            rows = ((columns[name] == 0) & profiles[name].is_not_null()).arg_true()
            values = profiles.select(attribute=pl.lit(name), value=pl.col(name).gather(rows).cast(pl.String))
            unseen.append(pl.select(row=rows).hstack(values))
    row = pl.int_range(profiles.height, dtype=pl.UInt32, eager=True).alias("row")
    table = pl.DataFrame([row, *(codes.alias(f"{PREFIX}{name}") for name, codes in columns.items())])
    table = table.join(_active_fields(lists), on="row", how="left", maintain_order="left")
    return table.select(pl.exclude("row", "active"), pl.col("active").fill_null([])), pl.concat(unseen)


def require_attributes(users: pl.DataFrame, contexts: Mapping[str, Any], owner: str) -> None:
    """Raises UserError for an attribute that the table of users (of items) does not have, or of another kind."""
    section = "data.contexts" if owner == USER else f"data.{owner}_contexts"
    for name in attribute_names(contexts):
        if name not in users.columns:
            raise UserError(f"{section}: the {owner}s table has no attribute {name!r}{nearest(name, users.columns)}")
        kind = "multi" if users[name].dtype == pl.List else "single"
        if name in numeric_bins(contexts):
            if not (users[name].dtype.is_numeric() or users[name].dtype == pl.Date):
                raise UserError(
                    f"{section}.numeric: attribute {name!r} consists of {users[name].dtype}, not of numbers; list "
                    f"it under {section}.{kind}"
                )
            _require_years(users[name], numeric_bins(contexts)[name], f"{section}.numeric.{name}")
        elif (kind == "multi") != (name in contexts["multi"]):
            raise UserError(f"{section}: attribute {name!r} must be listed under {section}.{kind}")


def _require_years(values: pl.Series, bins: int | Sequence[float], key: str) -> None:
    """Raises UserError for edges of dates that are no years of a date."""
    if values.dtype == pl.Date and not isinstance(bins, int) and not all(1 <= edge <= LAST_YEAR for edge in bins):
        raise UserError(f"{key}={[*bins]}: edges of dates are years, as in [1960,1980]")


def _fit_single(trained: pl.DataFrame, name: str, min_events: int, is_id: bool) -> pl.DataFrame:
    """The categories of a single-valued attribute (category, events, code), "other" last if there are rarer ones."""
    seen = trained.select(events=EVENTS, category=name).drop_nulls()
    if not is_id:  # ids are unique and sorted
        seen = seen.group_by("category").sum().sort("category")
    seen = seen.with_columns(pl.col("category").cast(pl.String))
    is_kept = (pl.col("events") >= min_events) & (pl.col("category") != OTHER)
    return _with_other(seen, seen.filter(is_kept)).with_columns(code=pl.int_range(1, pl.len() + 1))


def _fit_multi(trained: pl.DataFrame, name: str, coverage: float, first_code: int) -> pl.DataFrame:
    """The categories of a multi-valued attribute (category, events, code), "other" last; none without any value."""
    values = trained.select(events=EVENTS, category=name).explode("category").drop_nulls()
    counts = values.group_by("category").sum().sort("category")
    if counts.is_empty():
        return counts.with_columns(code=pl.lit(0))
    popular = top_by_coverage(counts, coverage).filter(pl.col("category") != OTHER)
    return _with_other(counts, popular, always=True).with_columns(code=pl.int_range(pl.len()) + first_code)


def unused_label(label: str, categories: Iterable[str]) -> str:
    """``label``, in parentheses if it is a category of the log.

    >>> unused_label("unknown", ["m", "f"]), unused_label("unknown", ["m", "f", "unknown"])
    ('unknown', '(unknown)')
    """
    taken = set(categories)
    while label in taken:
        label = f"({label})"
    return label


def _with_other(counts: pl.DataFrame, kept: pl.DataFrame, always: bool = False) -> pl.DataFrame:
    if not always and kept.height == counts.height:
        return kept
    events = int(counts["events"].sum()) - int(kept["events"].sum())
    other = pl.DataFrame({"category": [OTHER], "events": [events]}).select(kept.columns)
    return pl.concat([kept, other], how="vertical_relaxed")


def _fit_numeric(trained: pl.DataFrame, name: str, bins: int | Sequence[float]) -> pl.DataFrame:
    """The intervals of a numeric attribute (category, events, code, low).

    ``bins``: their edges, or how many of equally many users each; fewer where many users share a value.
    """
    known = trained.select(events=EVENTS, value=_numbers(trained[name])).drop_nulls()
    if isinstance(bins, int):
        if known.is_empty():
            return pl.DataFrame(schema={column: VOCABULARY[column] for column in ("category", "events", "code", "low")})
        ordered = known["value"].sort()
        quantiles = ordered.gather([place * len(ordered) // bins for place in range(1, bins)])
        bins = quantiles.filter(quantiles > ordered[0]).unique().sort().to_list()
    bounds = [first_day(edge) if trained.schema[name] == pl.Date else f"{edge:.10g}" for edge in bins]
    between = [f"{low} to < {high}" for low, high in pairwise(bounds)]
    names = [f"< {bounds[0]}", *between, f">= {bounds[-1]}"] if bounds else ["any"]
    index = np.searchsorted(bins, known["value"].to_numpy(), side="right")
    events = np.bincount(index, known["events"].to_numpy(), minlength=len(names)).astype(np.int64)
    codes = range(1, len(names) + 1)
    return pl.DataFrame({"category": names, "events": events, "code": codes, "low": [-math.inf, *map(float, bins)]})


def _numbers(values: pl.Series) -> pl.Series:
    return decimal_years(values).cast(pl.Float64).fill_nan(None)


def _encode_number(values: pl.Series, intervals: pl.DataFrame) -> pl.Series:
    """Codes of a numeric attribute, 0 where the value is missing."""
    numbers = _numbers(values)
    edges = intervals["low"].to_numpy()  # the first is minus infinity
    index = np.searchsorted(edges, numbers.fill_null(0).to_numpy(), side="right").astype(np.uint32)
    return pl.Series(index).set(numbers.is_null(), 0)


def _encode_category(values: pl.Series, categories: pl.DataFrame) -> pl.Series:
    """Codes of a single-valued attribute: "other" or 0 where the value is no category, 0 where it is missing."""
    is_other = pl.col("category") == OTHER
    table, other = categories.filter(~is_other).select("category", "code"), categories.filter(is_other)["code"].sum()
    keys = values.cast(pl.String)
    if values.dtype.is_integer() and values.is_sorted():  # ids of users, which are joined far faster as sorted numbers
        numbers = table["category"].cast(values.dtype, strict=False)
        if numbers.is_sorted() and numbers.cast(pl.String).equals(table["category"]):  # not 007
            keys, table = values.set_sorted(), table.with_columns(numbers.set_sorted())
    codes = keys.alias("category").to_frame().join(table, on="category", how="left", maintain_order="left")["code"]
    return codes.fill_null(other).set(values.is_null(), 0)


def other_code(rows: pl.DataFrame) -> int | None:
    """The code of values without a category of a multi-valued attribute, the last; None: training has no such value.

    The field then has only initial weights, so that a value that is coded by it would have a random effect.
    """
    other = rows.sort("code").tail(1)
    return int(other["code"][0]) if other["events"].sum() else None


def _encode_multi(values: pl.Series, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Codes of a multi-valued attribute: row of the user, code; and the values without a code: row, category."""
    categories = values.alias("category").to_frame().with_row_index("row").explode("category").drop_nulls("category")
    coded = categories.join(rows.select("category", "code"), on="category", how="left", maintain_order="left")
    coded = coded.with_columns(pl.coalesce("code", pl.lit(other_code(rows), rows["code"].dtype)))
    return coded.select("row", "code").drop_nulls(), coded.filter(pl.col("code").is_null())


def _active_fields(lists: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The sorted codes of every user who has any: row, active."""
    if not lists:
        return pl.DataFrame(schema={"row": pl.UInt32, "active": pl.List(pl.UInt32)})
    # Sorting one number per row and code is four times as fast as sorting by both.
    both = pl.concat(lists).select(pl.col("row").cast(pl.UInt64) * 2**32 + pl.col("code")).to_series()
    both = pl.Series("row", np.sort(both.to_numpy()))
    codes = (
        both.filter(both.ne_missing(both.shift()))
        .to_frame()
        .select((pl.col("row") // 2**32).cast(pl.UInt32).set_sorted(), code=(pl.col("row") % 2**32).cast(pl.UInt32))
    )
    return codes.group_by("row", maintain_order=True).agg(active="code")


def _vocabulary_rows(categories: pl.DataFrame, name: str, kind: str) -> pl.DataFrame:
    low = pl.col("low") if kind == "numeric" else pl.lit(None)
    rows = categories.with_columns(attribute=pl.lit(name), kind=pl.lit(kind), low=low)
    return rows.select(pl.col(column).cast(dtype) for column, dtype in VOCABULARY.items())


def select_attributes(
    users: pl.DataFrame,
    dims: Mapping[str, Any],
    vocabulary: pl.DataFrame,
    contexts: Mapping[str, Any],
    n_attributes: int,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Keeps the first ``n_attributes`` of every user's attributes, in the order of ``attribute_names``.

    Args:
        users: as ``EncodedContexts.users``.
        dims: the sizes that models measure from data, with all attributes.
        vocabulary: as ``EncodedContexts.vocabulary``.
        contexts: ``data.contexts``.
        n_attributes: number of attributes to keep.

    Returns:
        users and sizes with the attributes that are kept.

    Raises:
        UserError: ``n_attributes`` is not a number of attributes.
    """
    multi, fields = contexts["multi"], field_names(contexts)
    if isinstance(n_attributes, bool) or not isinstance(n_attributes, int) or n_attributes < 0:
        raise UserError(
            f"data.contexts.n_attributes={n_attributes}: must be an integer, at least 0 (the data set has "
            f"{len(multi) + len(fields)} attributes), or null for all"
        )
    kept = fields[: max(n_attributes - len(multi), 0)]
    # Codes of binary fields follow the order of their attributes, so the first attributes have the lowest codes.
    is_kept = (pl.col("kind") == "multi") & pl.col("attribute").is_in(multi[:n_attributes])
    n_binary = vocabulary.filter(is_kept).height
    sizes = [size for name, size in zip(fields, dims["single_sizes"], strict=True) if name in kept]
    selected = users.drop(f"{PREFIX}{name}" for name in fields if name not in kept).with_columns(
        pl.col("active").list.filter(pl.element() < n_binary)
    )
    return selected, {**dims, "single_sizes": sizes, "n_binary": n_binary}

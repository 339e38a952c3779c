"""Ranks from lists of recommendations of any other program: a table with the columns of ``COLUMNS``."""

from pathlib import Path

import numpy as np
import polars as pl
import torch

from arnn_lightning.errors import UserError, nearest, nearest_file
from arnn_lightning.evaluation.result import EvaluationResult, next_item_targets

SESSION, POSITION, ITEM, SCORE = COLUMNS = ("session_id", "position", "item_id", "score")


def read_lists(file: Path) -> pl.DataFrame:
    """Reads a parquet or CSV file (with a header, separated by commas), every column as text.

    Raises:
        UserError: no such file, one that cannot be read, is empty or lacks a column.
    """
    if not file.is_file():
        raise UserError(f"lists: no file {file}{nearest_file(file)}")
    try:
        if file.suffix == ".parquet":
            lists = pl.read_parquet(file, glob=False)
        else:
            lists = pl.read_csv(file, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{file}: cannot be read: {str(error).partition(chr(10))[0]}") from error
    for column in COLUMNS:
        if column not in lists.columns:
            raise UserError(f"{file}: no column {column}{nearest(column, lists.columns)}; needs {', '.join(COLUMNS)}")
    if lists.is_empty():
        raise UserError(f"{file}: contains no rows")
    for column in COLUMNS:
        if lists.schema[column].is_nested():
            raise UserError(f"{file}: column {column} has several values in a row; needs a row for each item of a list")
    try:
        return lists.select(pl.col(COLUMNS).cast(pl.String))
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{file}: {str(error).partition(chr(10))[0]}") from error


def evaluate_lists(
    name: str, lists: pl.DataFrame, test: pl.DataFrame, item_ids: pl.Series, ties: str, k: int, file: Path
) -> tuple[EvaluationResult, int]:
    """The ranks that lists give to the targets of the test split.

    A rank is counted among the items of the prediction's list. A target that is not in it, or a prediction without a
    list, has the last rank of the catalogue, which no metric counts as a hit.

    Args:
        name: of the result, in tables.
        lists: as ``read_lists`` returns them, in any order.
        test: the test split (session, user, item, time).
        item_ids: (I,) the id of every item code.
        ties: how a target is ranked that has the score of other items of its list.
        k: how many items of every list are counted as recommended.
        file: that the lists were read from, for errors.

    Returns:
        The result, and the number of predictions without a list.

    Raises:
        UserError: a value that is not a number, a score that is NaN or infinite, an unknown item, a session and
            position that are not a prediction of the test split, or an item that is twice in a list.
    """
    targets = next_item_targets(test)
    rows = _match(lists, targets, item_ids, file)
    target_score = pl.col("score").filter(pl.col("item") == pl.col("target")).first()
    counts = targets.join(
        rows.group_by("session", "position").agg(
            pl.lit(True).alias("has_list"),
            target_score.alias("score"),
            higher=(pl.col("score") > target_score).sum(),
            equal=(pl.col("score") == target_score).sum(),
        ),
        on=["session", "position"],
        how="left",
    ).with_columns(
        higher=pl.when(pl.col("score").is_null()).then(len(item_ids) - 1).otherwise("higher"),
        equal=pl.when(pl.col("score").is_null()).then(1).otherwise("equal"),
    )
    columns = ("session", "position", "higher", "equal")
    tensors = {column: torch.from_numpy(counts[column].to_numpy().astype(np.int64)) for column in columns}
    result = EvaluationResult.from_counts(name, tensors, test, ties, _count_items(rows, len(item_ids), k))
    return result, int(counts["has_list"].null_count())


def _match(lists: pl.DataFrame, targets: pl.DataFrame, item_ids: pl.Series, file: Path) -> pl.DataFrame:
    """The rows of lists (session, position, score, item, target), ids as codes.

    Raises:
        UserError: as ``evaluate_lists``.
    """
    ids = pl.DataFrame({ITEM: item_ids.cast(pl.String), "item": np.arange(len(item_ids))})
    rows = (
        lists.select(
            ITEM,
            session=pl.col(SESSION).cast(pl.Int64, strict=False),
            position=pl.col(POSITION).cast(pl.Int64, strict=False),
            score=pl.col(SCORE).cast(pl.Float64, strict=False),
        )
        .join(ids, on=ITEM, how="left", maintain_order="left")
        .join(
            targets.select("session", "position", target="item"),
            on=["session", "position"],
            how="left",
            maintain_order="left",
        )
        .drop(ITEM)
    )
    sessions = targets["session"].unique(maintain_order=True)
    for is_wrong, column, message in (
        (pl.col("session").is_null(), SESSION, "must be an integer"),
        (pl.col("position").is_null(), POSITION, "must be an integer"),
        (~pl.col("score").is_finite().fill_null(False), SCORE, "must be a finite number"),
        (pl.col("item").is_null(), ITEM, f"is not in the catalogue of {len(item_ids)} items"),
        (
            ~pl.col("session").is_in(sessions.implode()),
            SESSION,
            f"is not a session of the test split ({sessions[0]} to {sessions[-1]})",
        ),
        (
            pl.col("target").is_null(),
            POSITION,
            "is not a prediction of its session (1 is the first, after one event)",
        ),
        (pl.struct("session", "position", "item").is_first_distinct().not_(), ITEM, "occurs twice in its list"),
    ):
        wrong = rows.select(is_wrong).to_series().arg_true()
        if len(wrong):
            row = wrong[0] + (1 if file.suffix == ".parquet" else 2)  # in a text file, the header is row 1
            raise UserError(f"{file}, row {row}: {column} {_show(lists[column][wrong[0]])} {message}")
    return rows


def _count_items(rows: pl.DataFrame, n_items: int, k: int) -> torch.Tensor:
    """(I,) how often each item is among the ``k`` best of a list; of equal scores the first in the catalogue are."""
    best = (
        rows.sort("score", "item", descending=[True, False])
        .group_by("session", "position", maintain_order=True)
        .head(k)
    )
    return torch.from_numpy(np.bincount(best["item"].to_numpy(), minlength=n_items))


def _show(value: str | None) -> str:
    return "(empty)" if value is None else value

"""Ranks of other programs' lists: equal to a model's where its scores are the list, and errors of one line."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.lists import evaluate_lists, read_lists
from arnn_lightning.evaluation.result import EvaluationResult, next_item_targets
from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import make_data, trainer
from models import BY_NAME

IDS = pl.Series([f"item-{code}" for code in range(12)])


def lists_of(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    schema = ["session_id", "position", "item_id", "score"]
    return pl.DataFrame(rows, schema=schema, orient="row", strict=False).cast(pl.String)


def evaluated(lists: pl.DataFrame, prepared: PreparedDataset, **settings: Any) -> tuple[EvaluationResult, int]:
    arguments = {"ties": "conservative", "k": 5, "file": Path("lists.csv")} | settings
    test = pl.read_parquet(prepared.folder / "test.parquet")
    return evaluate_lists("theirs", lists, test, IDS, **arguments)


@pytest.mark.parametrize("name", ["pop", "itemknn", "gru4rec"])
def test_lists_of_all_scores_give_the_models_ranks(name: str, small_dataset: PreparedDataset, tmp_path: Path) -> None:
    """Equal scores included: POP and ItemKNN have many."""
    model = BY_NAME[name].make(small_dataset, list_length=5).eval()
    data = make_data(small_dataset)
    trainer(tmp_path).test(model, datamodule=data, verbose=False)
    test = pl.read_parquet(small_dataset.folder / "test.parquet")
    counts = model.rank_counts, test, "conservative", model.recommended.count_I
    expected = EvaluationResult.from_counts("x", *counts)
    rows = []
    chunk = data.chunks("test", 1)
    model.requires_grad_(False)
    model.on_validation_epoch_start()
    for number in range(len(chunk)):
        batch = chunk[0, number]
        queries, _ = model.encode_chunk(batch)
        for session, position, scores in zip(
            batch.session[batch.valid], batch.position[batch.valid], model.score(queries), strict=True
        ):
            rows += [(int(session), int(position), IDS[item], float(score)) for item, score in enumerate(scores)]
    order = np.random.default_rng(0).permutation(len(rows))
    result, n_missing = evaluated(lists_of(rows)[order], small_dataset)
    assert result.ranks.equals(expected.ranks)
    assert n_missing == 0
    assert result.item_counts is not None
    assert expected.item_counts is not None
    assert result.item_counts.tolist() == expected.item_counts.tolist()


@pytest.mark.parametrize("ties", ["conservative", "standard", "median"])
def test_targets_without_a_place_in_a_list_are_no_hit(ties: str, small_dataset: PreparedDataset) -> None:
    targets = next_item_targets(pl.read_parquet(small_dataset.folder / "test.parquet"))
    session, position, _, item = targets.row(0)
    other = IDS[(item + 1) % len(IDS)]
    result, n_missing = evaluated(lists_of([(session, position, other, 1.0)]), small_dataset, ties=ties)
    assert n_missing == targets.height - 1
    assert result.metrics(["recall@11", "mrr@11"])["recall@11"] == 0
    assert result.ranks["rank"].unique().to_list() == [12]
    result, _ = evaluated(lists_of([(session, position, IDS[item], 1.0)]), small_dataset, ties=ties)
    assert result.ranks["rank"].to_list() == [1] + [12] * (targets.height - 1)


def test_of_equal_scores_the_first_items_are_recommended(small_dataset: PreparedDataset) -> None:
    session, position = next_item_targets(pl.read_parquet(small_dataset.folder / "test.parquet")).row(0)[:2]
    rows = [(session, position, IDS[code], score) for code, score in ((9, 0.5), (4, 0.5), (7, 0.5), (2, 0.1), (11, 1))]
    result, _ = evaluated(lists_of(rows), small_dataset, k=3)
    assert result.item_counts is not None
    assert np.flatnonzero(result.item_counts).tolist() == [4, 7, 11]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((32, 1, "item-99", 1.0), "row 3: item_id item-99 is not in the catalogue of 12 items"),
        ((32, 1, None, 1.0), r"row 3: item_id \(empty\) is not in the catalogue"),
        ((32, 1, "item-1", float("nan")), "row 3: score NaN must be a finite number"),
        ((32, 1, "item-1", float("inf")), "row 3: score inf must be a finite number"),
        ((32, 1, "item-1", "high"), "row 3: score high must be a finite number"),
        (("a", 1, "item-1", 1.0), "row 3: session_id a must be an integer"),
        ((32, None, "item-1", 1.0), r"row 3: position \(empty\) must be an integer"),
        ((3, 1, "item-1", 1.0), r"row 3: session_id 3 is not a session of the test split \(32 to 47\)"),
        ((32, 0, "item-1", 1.0), "row 3: position 0 is not a prediction of its session"),
        ((32, 50, "item-1", 1.0), "row 3: position 50 is not a prediction of its session"),
        ((32, 1, "item-0", 2.0), "row 3: item_id item-0 occurs twice in its list"),
    ],
)
def test_a_wrong_row_of_a_list_is_one_line(row: tuple[Any, ...], message: str, small_dataset: PreparedDataset) -> None:
    with pytest.raises(UserError, match=rf"^lists\.csv, {message}") as error:
        evaluated(lists_of([(32, 1, "item-0", 1.0), row]), small_dataset)
    assert "\n" not in str(error.value)


def test_rows_of_a_parquet_file_are_counted_from_its_first(small_dataset: PreparedDataset) -> None:
    """In a text file the header is row 1."""
    with pytest.raises(UserError, match=r"^lists\.parquet, row 1: score NaN"):
        evaluated(lists_of([(32, 1, "item-1", float("nan"))]), small_dataset, file=Path("lists.parquet"))


def test_files_of_lists_are_read_as_csv_or_parquet(tmp_path: Path) -> None:
    table = pl.DataFrame({"item_id": [7], "score": [0.5], "session_id": [1], "position": [2], "comment": ["x"]})
    table.write_csv(tmp_path / "lists.csv")
    table.write_parquet(tmp_path / "lists.parquet")
    expected = lists_of([(1, 2, 7, 0.5)])
    assert read_lists(tmp_path / "lists.csv").equals(expected)
    assert read_lists(tmp_path / "lists.parquet").equals(expected)
    with pytest.raises(UserError, match=r'lists: no file .*list\.csv \(did you mean "lists\.csv"\?\)$'):
        read_lists(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"lists: no file .*lists\.csv$"),
        (b"", r"lists\.csv: cannot be read"),
        (b"session_id,position,item_id,score\n", r"lists\.csv: contains no rows"),
        (b"session_id,position,item,score\n1,1,a,1\n", r'no column item_id \(did you mean "item"\?\)'),
        (b"\xff\xfe\x00,b\n1,2\n", r"lists\.csv: no column session_id; needs session_id, position"),
    ],
)
def test_files_that_are_no_lists_are_one_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "lists.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_lists(tmp_path / "lists.csv")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([["a", "b"]], r"lists\.parquet: column item_id has several values in a row; needs a row for each item"),
        ([b"\xff"], r"lists\.parquet: invalid utf8"),
    ],
)
def test_a_parquet_file_with_values_that_are_no_text_is_one_line(
    items: list[Any], message: str, tmp_path: Path
) -> None:
    table = pl.DataFrame({"item_id": items, "score": [0.5], "session_id": [1], "position": [2]})
    table.write_parquet(tmp_path / "lists.parquet")
    with pytest.raises(UserError, match=message):
        read_lists(tmp_path / "lists.parquet")


def test_a_parquet_file_of_lists_that_is_damaged_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "lists.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match=r"lists\.parquet: cannot be read") as error:
        read_lists(tmp_path / "lists.parquet")
    assert "\n" not in str(error.value)

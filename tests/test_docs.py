"""The documents against the repository: invariants have tests, named files exist, links and commands are valid."""

import json
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from arnn_lightning.config import check_settings
from arnn_lightning.run_folder.compare import MAY_DIFFER
from arnn_lightning.sweeps.space import quote_spaces
from commandline import arnn
from helpers import compose_config
from models import slow

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))]
EXPERIMENTS = ROOT / "experiments" / "README.md"
NOTEBOOK = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())
INVARIANTS = (ROOT / "docs" / "invariants.md").read_text()
QUICK = "max_epochs=1 max_seeds=2 evaluation.bootstrap.resamples=50"
NUMBERS = re.findall(r"^\| ([EV]\d+) \|", INVARIANTS, re.MULTILINE)
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
}


@pytest.mark.parametrize("number", NUMBERS)
def test_every_invariant_has_a_test_with_its_number(number: str) -> None:
    assert any(number in name.split("_") for name in TESTS)


def test_every_invariant_is_listed_once_with_its_tests() -> None:
    assert re.findall(r"`-k ([EV]\d+)_` \|$", INVARIANTS, re.MULTILINE) == NUMBERS
    assert len(set(NUMBERS)) == len(NUMBERS) > 30


def test_names_of_tests_are_short() -> None:
    assert not [name for name in TESTS if len(name.removeprefix("test_")) > 60]


def test_every_number_in_a_test_name_is_an_invariant() -> None:
    cited = {part for name in TESTS for part in name.split("_") if re.fullmatch(r"[EV]\d+", part)}
    assert cited <= set(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_command_of_an_invariant_runs_only_its_tests(number: str) -> None:
    selected = {name for name in TESTS if f"{number}_".lower() in name.lower()}  # as pytest -k: case is ignored
    assert selected == {name for name in TESTS if number in name.split("_")}


def text_of(document: Path) -> str:
    """A document as the site shows it, with the files that it includes."""
    return re.sub(
        r'^--8<-- "(.*)"$', lambda line: (ROOT / line[1]).read_text(), document.read_text(), flags=re.MULTILINE
    )


@pytest.mark.parametrize("document", [*DOCUMENTS, EXPERIMENTS], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_named_files_exist(document: Path) -> None:
    """Paths in backticks, below the root, the package or the document; those of a reader's own project are excepted."""
    named = re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml|md|csv|txt))`", document.read_text())
    places = (ROOT, ROOT / "src" / "arnn_lightning", document.parent)
    missing = [path for path in named if not any((place / path).exists() for place in places)]
    assert not [path for path in missing if not path.startswith("arnn_conf/")]


@pytest.mark.parametrize("document", ["README.md", "docs/architecture.md"])
def test_the_tree_lists_every_folder_once(document: str) -> None:
    """The indented block that starts with conf/: folders of the repository, packages of the source."""
    tree = re.search(r"^    conf/ .*\n(?:(?:    .*)?\n)*", (ROOT / document).read_text(), re.MULTILINE)
    assert tree is not None
    listed = re.findall(r"(?<![\w/])([a-z_]+)/(?!\w)", tree[0])
    packages = [file.parent.name for file in (ROOT / "src" / "arnn_lightning").glob("*/__init__.py")]
    assert sorted(listed) == sorted([*packages, "conf", "tests", "benchmarks", "docs", "experiments"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        path, _, heading = target.partition("#")
        if "://" in path:
            continue
        linked = document.parent / path if path else document
        assert linked.exists(), target
        assert document not in PAGES or linked.parent == document.parent, f"{target}: not a page of the site"
        if heading:
            headings = re.findall(r"^#+ (.*)$", text_of(linked), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings}, target


def test_every_page_is_in_the_navigation_and_llms_txt() -> None:
    pages = {page.name for page in PAGES}
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    assert set(re.findall(r"- ([\w-]+\.md)$", navigation, re.MULTILINE)) == pages
    listed = re.findall(r"^- \[[^]]+\]\((.*)\): ", (ROOT / "docs" / "llms.txt").read_text(), re.MULTILINE)
    assert set(listed) == pages - {"index.md"}
    assert len(set(listed)) == len(listed)


def test_pages_load_nothing_from_the_network() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["theme"]["font"] is False
    loaded = [link for page in PAGES for link in re.findall(r"!\[[^]]*\]\((.*?)\)|<(?:img|script)", page.read_text())]
    assert not [link for link in loaded if not (ROOT / "docs" / link).is_file()]


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as Jupyter does
    namespace: dict[str, Any] = {"command": lambda text: sys.stdout.write(arnn(tmp_path, *shlex.split(text)).stdout)}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace("\\\n", "").replace("max_epochs=2 max_seeds=3", QUICK)
            exec(re.sub(r"(?m)^!python -m arnn_lightning (.*?) \| .*$", r"""command('''\1''')""", source), namespace)
    output = capsys.readouterr().out
    assert re.search(r"\. (Profiles (do not )?help\.|Whether profiles help cannot be decided)", output)
    assert "\x1b" not in output  # control codes of a terminal
    (right,), (left,) = (
        re.findall("^garden (.*)$", output, re.MULTILINE),
        re.findall("^lamps (.*)$", output, re.MULTILINE),
    )
    assert right in ("['Product 21', 'Product 22']", "['Product 22', 'Product 21']")
    assert left in ("['Product 19', 'Product 18']", "['Product 18', 'Product 19']")
    assert namespace["session"].clicks == 2


def test_the_tutorial_shows_its_output() -> None:
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, 1 + len(cells)))
    shown = json.dumps([cell["outputs"] for cell in cells])
    assert all(cell["outputs"] for cell in cells)
    assert "error" not in {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert "\\u001b" not in shown
    assert len(shown) < 10_000


def commands(document: Path) -> list[list[str]]:
    """The arguments of every command of the project in an indented block, without the settings of Hydra."""
    text = document.read_text().replace("\\\n", " ").replace("--cfg job", "")
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
        choices = choices[:1] if override.key_or_group == "seed" else choices  # any integer is as valid
        values.append([f"{override.input_line.partition('=')[0]}={choice}" for choice in choices])
    n_jobs = max(map(len, values), default=1)
    return [[choices[job % len(choices)] for choices in values] for job in range(n_jobs)]


@pytest.mark.parametrize(
    "document",
    [*DOCUMENTS, slow(EXPERIMENTS)],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_commands_of_the_documents_have_valid_settings(document: Path) -> None:
    for overrides in (job for arguments in commands(document) for job in jobs(arguments)):
        check_command(tuple(overrides))


def test_what_a_resumed_run_may_change_is_listed() -> None:
    section = (ROOT / "docs" / "many-devices.md").read_text().partition("These may differ:")[2].partition("\n- ")[0]
    listed = set(re.findall(r"`([\w.]+)`", section)) - {"data.reader"}
    of_reader = {key.replace("data.", "data.reader.") for key in listed if key.startswith("data.")}
    assert {"resume", *listed, *of_reader} == {*MAY_DIFFER}


@cache
def check_command(overrides: tuple[str, ...]) -> None:
    """Composes a job; cached, since documents show the same commands."""
    config = compose_config(*overrides, with_hydra=True)
    check_settings(config, overrides, config.hydra.runtime.choices)

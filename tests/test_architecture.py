"""The import rule: cli -> task -> (data, report, evaluation); model -> (nn, evaluation, data.window)."""

import ast
from pathlib import Path

import pytest

import arnn_lightning

PACKAGE = Path(arnn_lightning.__file__).parent
ANYWHERE = {"errors", "instantiate", ""}
MAY_IMPORT = {
    "cli": {"task"},
    "task": {"task", "data", "report", "evaluation", "model.base", "model.checkpoint"},
    "data": {"data"},
    "model": {"model", "nn", "evaluation", "data.window"},
    "nn": {"nn", "data.window"},
    "evaluation": {"evaluation"},
    "report": {"report", "evaluation"},
    "logger": set(),
}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_one_way(room: str) -> None:
    files = [PACKAGE / "cli.py"] if room == "cli" else sorted((PACKAGE / room).glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.split(".")[0] == "arnn_lightning":
                    inner = name.removeprefix("arnn_lightning").strip(".")
                    allowed = inner in ANYWHERE or any(f"{inner}.".startswith(f"{one}.") for one in MAY_IMPORT[room])
                    assert allowed, f"{file.name} imports {name}"


def test_every_yaml_composes() -> None:
    """Every YAML of conf/ composes: nothing in it is stale."""
    from conftest import compose_config

    conf = PACKAGE.parents[1] / "conf"
    for group in ("data", "model", "trainer", "logger", "task"):
        for file in sorted((conf / group).glob("*.yaml")):
            compose_config(f"{group}={file.stem}")
    for group in ("optimizer", "loss"):
        for file in sorted((conf / "model" / group).glob("*.yaml")):
            compose_config("model=gru4rec", f"model/{group}={file.stem}")

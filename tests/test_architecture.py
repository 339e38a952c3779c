"""The import rule: cli -> task -> (data, report, evaluation); model -> (nn, evaluation, data.window)."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import arnn_lightning

PACKAGE = Path(arnn_lightning.__file__).parent
ANYWHERE = {"errors", "instantiate", ""}
MAY_IMPORT = {
    "cli": {"task", "sweep"},
    "task": {"task", "data", "report", "evaluation", "model.base", "model.checkpoint", "logger", "sweep"},
    "data": {"data"},
    "model": {"model", "nn", "evaluation", "data.window"},
    "nn": {"nn", "data.window"},
    "evaluation": {"evaluation"},
    "report": {"report", "evaluation"},
    "logger": set(),
    "sweep": {"sweep"},
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


def targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` of this package in a YAML."""
    if isinstance(node, dict):
        target = node.get("_target_")
        if isinstance(target, str) and target.startswith("arnn_lightning."):
            yield target
        for value in node.values():
            yield from targets(value)


def test_E14_no_setting_has_a_default_in_code() -> None:
    """Whatever a config makes gets every value from the config: none hides in a signature."""
    conf = PACKAGE.parents[1] / "conf"
    found = {
        target for file in conf.rglob("*.yaml") for target in targets(OmegaConf.to_container(OmegaConf.load(file)))
    }
    assert len(found) > 20
    for target in found:
        module, _, name = target.rpartition(".")
        made = getattr(importlib.import_module(module), name)
        hidden = [one.name for one in inspect.signature(made).parameters.values() if one.default is not one.empty]
        assert not hidden, f"{target} has defaults for {hidden}"


def test_every_yaml_composes() -> None:
    """Every YAML of conf/ composes: nothing in it is stale."""
    from conftest import compose_config

    conf = PACKAGE.parents[1] / "conf"
    for group in ("data", "model", "trainer", "logger", "task", "experiment"):
        for file in sorted((conf / group).glob("*.yaml")):
            compose_config(f"{group}={file.stem}")
    for group in ("optimizer", "loss"):
        for file in sorted((conf / "model" / group).glob("*.yaml")):
            compose_config("model=gru4rec", f"model/{group}={file.stem}")

"""The layers of the package: a module imports from lower layers, or from its package."""

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
# From the bottom up; packages of one layer do not import each other, save where a later one is named after "->".
LAYERS = (
    ("batch", "config", "errors", "io", "run_folder"),
    ("nn", "losses", "optim", "evaluation", "readers", "preprocessing", "simulation"),
    ("encoders", "models", "loading"),
    ("training", "serving", "reporting", "loggers"),
    ("tasks", "sweeps", "cli", "__main__", "__init__"),
)
WITHIN_A_LAYER = {  # importer -> what it may import of its layer
    "losses": {"nn"},
    "optim": {"nn", "losses"},
    "preprocessing": {"readers"},
    "simulation": {"readers"},
    "models": {"encoders"},
    "serving": {"training"},
    "tasks": {"sweeps"},
    "cli": {"tasks", "sweeps"},
    "__main__": {"cli"},
    "__init__": {"tasks"},
    "io": {"errors"},
    "config": {"errors", "io"},
    "run_folder": {"errors", "io"},
}
NO_TORCH = ("readers", "preprocessing", "simulation", "errors", "io", "run_folder")
LAYER_OF = {package: number for number, packages in enumerate(LAYERS) for package in packages}


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that ``file`` imports; name is empty for ``import module``."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def package_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if "conf" not in file.relative_to(PACKAGE).parts]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down_the_layers(file: Path) -> None:
    package = package_of(file)
    for module, name in imports(file):
        if module.split(".")[0] == "torch":
            assert package not in NO_TORCH, f"{file.name} imports {module}"
        if module.split(".")[0] != "arnn_lightning":
            continue
        inner = [*module.split(".")[1:], name]
        other = inner[0]
        if other == "__version__":
            continue
        allowed = other == package or LAYER_OF[other] < LAYER_OF[package] or other in WITHIN_A_LAYER.get(package, set())
        assert allowed, f"{file.name} imports {module}.{name}"
        if other != package:
            assert not any(part.startswith("_") for part in inner), f"{file.name} imports the private {module}.{name}"


READS = {"read_parquet", "scan_parquet", "read_csv", "scan_csv", "read_ndjson", "read_ipc", "read_parquet_schema"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_path_with_brackets_is_no_pattern_to_polars(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READS:
            is_path = "BytesIO" not in ast.unparse(node)
            assert not is_path or "glob" in {keyword.arg for keyword in node.keywords}, ast.unparse(node)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_brackets_in_printed_names_are_no_markup(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Console":
            assert "markup=False" in ast.unparse(node), ast.unparse(node)


def test_every_package_has_a_layer() -> None:
    assert {package_of(file) for file in FILES} <= LAYER_OF.keys()


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
        hidden = [
            parameter.name
            for parameter in inspect.signature(made).parameters.values()
            if parameter.default is not parameter.empty
        ]
        assert not hidden, f"{target} has defaults for {hidden}"

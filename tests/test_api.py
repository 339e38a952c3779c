"""The public names of the package, and the docstrings of the API reference."""

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import arnn_lightning as al

REFERENCE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
ENTRY = re.compile(r"^::: (\S+)\.(\w+)\n(?:    options:\n      members: (\[.*\])\n)?", re.MULTILINE)


def documented() -> Iterator[tuple[str, Any, str]]:
    """Name, object and docstring of everything in the API reference; that of a method includes its class's."""
    for module, name, members in ENTRY.findall(REFERENCE):
        part = getattr(import_module(module), name)
        yield name, part, part.__doc__ or ""
        if isinstance(part, type):
            public = re.findall(r"\w+", members) if members else [key for key in vars(part) if not key.startswith("_")]
            for member in public:
                value = inspect.getattr_static(part, member)
                value = value.fget if isinstance(value, property) else getattr(value, "func", value)
                if inspect.isfunction(value) or isinstance(value, cached_property):
                    yield f"{name}.{member}", value, f"{value.__doc__ or ''}\n{part.__doc__}"


DOCUMENTED = {name: (part, text) for name, part, text in documented()}


def test_every_public_name_can_be_imported() -> None:
    for name in al.__all__:
        assert getattr(al, name) is not None
        assert name in dir(al)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, arnn_lightning; sys.exit(bool({'torch', 'polars', 'hydra'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_in_the_reference() -> None:
    assert set(al.__all__) <= DOCUMENTED.keys()


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstrings_state_parameters_and_errors(name: str) -> None:
    part, text = DOCUMENTED[name]
    assert part.__doc__
    source: ast.AST = ast.parse(textwrap.dedent(inspect.getsource(part)))
    parameters = {}
    if not isinstance(part, type) or {"__init__", "_fields"} & vars(part).keys():
        parameters = inspect.signature(part).parameters.keys() - {"self", "args", "kwargs"}
    if isinstance(part, type):  # the methods are entries of their own
        init = [node for node in ast.walk(source) if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
        source = ast.Module(init, [])
    assert not [key for key in parameters if not re.search(rf"\b{key}\b", text)]
    section = re.search(r"\n *Args:\n(.*?)(?:\n\n|\Z)", inspect.cleandoc(part.__doc__), re.DOTALL)
    assert set(re.findall(r"^    (\S[^:]*):", section[1], re.MULTILINE) if section else ()) <= set(parameters)
    calls = [node.exc for node in ast.walk(source) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    raised = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    assert raised - {"NotImplementedError"} <= set(re.findall(r"\w+Error", text))

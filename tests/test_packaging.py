"""What is distributed: sdist and wheel, pinned versions, and the files that name Python versions and settings."""

import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import arnn_lightning
from arnn_lightning.config import check_settings
from helpers import compose_config

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def pins(name: str) -> dict[str, str]:
    """Package -> version of a file of pinned versions."""
    lines = re.findall(r"^([\w.-]+)==([^\s;\\]+)", (ROOT / name).read_text(), re.MULTILINE)
    return {canonicalize_name(package): version for package, version in lines}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], zipfile.ZipFile]:
    """The files of the sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (archive,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    return names, zipfile.ZipFile(wheel)


def test_the_wheel_has_the_package_and_its_configs(distributions: tuple[set[str], zipfile.ZipFile]) -> None:
    package = ROOT / "src" / "arnn_lightning"
    files = {f"arnn_lightning/{path.relative_to(package).as_posix()}" for path in package.rglob("*") if path.is_file()}
    files |= {f"arnn_lightning/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    expected = {name for name in files if "__pycache__" not in name} | {"arnn_lightning/conf/__init__.py"}
    assert {name for name in distributions[1].namelist() if ".dist-info/" not in name} == expected


def test_the_wheel_states_version_license_and_extras(distributions: tuple[set[str], zipfile.ZipFile]) -> None:
    wheel = distributions[1]
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = HeaderParser().parsestr(wheel.read(name).decode())
    assert metadata["Version"] == arnn_lightning.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert set(metadata.get_all("Provides-Extra") or ()) == PROJECT["optional-dependencies"].keys()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())


def test_the_sdist_has_what_its_tests_read(distributions: tuple[set[str], zipfile.ZipFile]) -> None:
    folders = ("benchmarks", "conf", "docs", "src", "tests")
    files = {
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".yaml")
    }
    read = {path.relative_to(ROOT).as_posix() for path in files if ".egg-info" not in str(path)}
    named = {"CHANGELOG.md", "CITATION.cff", "Dockerfile", "Makefile", "constraints.txt", "experiments/README.md"}
    assert read | named <= distributions[0]
    assert not [name for name in distributions[0] if name.startswith("experiments/results")]


def test_version_of_the_citation_is_the_package_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == arnn_lightning.__version__
    assert f"\n## [{arnn_lightning.__version__}] - " in (ROOT / "CHANGELOG.md").read_text()


def test_python_versions_are_those_that_ci_tests() -> None:
    stated = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert stated == WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={stated[0]}"
    assert re.findall(r"^FROM python:(\S+)-slim", DOCKERFILE, re.MULTILINE)[0] in stated


def installed(requirement: Requirement) -> Iterator[str]:
    """The packages that a requirement needs here, itself included, as far as they are installed."""
    todo, seen = [requirement], set()
    while todo:
        requirement = todo.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        try:
            needed = map(Requirement, requires(requirement.name) or ())
        except PackageNotFoundError:
            continue
        yield canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        todo += [r for r in needed if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras)]


def test_every_package_that_tests_use_is_pinned() -> None:
    needed = set(installed(Requirement("arnn-lightning[dev]"))) - {"arnn-lightning"}
    of_cuda = {name for name in needed if name.startswith(("nvidia-", "cuda-", "triton"))}  # torch's build for it
    assert needed - of_cuda <= pins("constraints.txt").keys()


def test_every_direct_dependency_is_pinned_in_its_range() -> None:
    pinned = pins("constraints.txt")
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        name = canonicalize_name(requirement.name)
        if name not in ("arnn-lightning", "tensorboard"):
            assert requirement.specifier.contains(pinned[name]), requirement


def test_hashed_versions_are_the_pinned_ones() -> None:
    pinned, hashed = pins("constraints.txt"), pins("requirements.lock")
    assert {name: version for name, version in hashed.items() if name != "colorama"}.items() <= pinned.items()
    needed = set(installed(Requirement("arnn-lightning[serve]"))) - set(installed(Requirement("torch")))
    assert needed - {"arnn-lightning"} <= hashed.keys()
    assert f"torch=={pinned['torch']}" in DOCKERFILE


def test_the_image_serves_with_valid_settings() -> None:
    command = json.loads(re.findall(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, re.MULTILINE)[0])
    assert command[0] in PROJECT["scripts"]
    config = compose_config(*command[1:])
    check_settings(config, command[1:], {"task": "serve"})
    assert config.host == "0.0.0.0"
    assert not config.public  # requires ARNN_TOKEN


def test_getting_started_lists_every_extra() -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", (ROOT / "docs" / "getting-started.md").read_text(), re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", " ".join(row))}
    assert PROJECT["optional-dependencies"].keys() <= listed

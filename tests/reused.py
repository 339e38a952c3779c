"""Work that commands repeat and tests need once in a process: parsing the package's YAML files, and simulating a log.

Files in arnn_conf or --config-dir are of another kind of source, and parsed each time. Simulators that tests call
themselves simulate.
"""

import atexit
import copy
import json
import multiprocessing
import shutil
import tempfile
from pathlib import Path
from typing import Any

import arnn_lightning.conf
from hydra import compose, initialize_config_module
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from arnn_lightning.simulation.simulator import ensure_simulated
from arnn_lightning.tasks import prepare

Plugins.instance()  # creates the classes that Hydra uses, which are not those imported before
Source: Any = SourcesRegistry.instance().types["pkg"]
parse = Source._read_config
parsed: dict[str, ConfigResult] = {}
simulated: dict[str, Path] = {}


def read(source: Any, file: Any) -> ConfigResult:
    if str(file) not in parsed:
        parsed[str(file)] = parse(source, file)
    return copy.deepcopy(parsed[str(file)])  # compositions change what they get


def simulate(settings: Any, name: str, raw_dir: Path, *_: Any) -> Path:
    """As ``ensure_simulated``: a copy of the files that were simulated first."""
    key = json.dumps([settings, name])
    if key not in simulated:
        simulated[key] = ensure_simulated(settings, name, _temporary())
    folder = raw_dir / simulated[key].name
    if not folder.is_dir():
        raw_dir.mkdir(parents=True, exist_ok=True)
        shutil.copytree(simulated[key], copied := Path(tempfile.mkdtemp(dir=raw_dir)), dirs_exist_ok=True)
        copied.rename(folder)
    return folder


def _temporary() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return folder


def reuse() -> None:
    Source._read_config = read
    prepare.ensure_simulated = simulate


def work_ahead() -> None:
    """Does the work of most commands now, for processes that are forked."""
    source, root = Source("main", "pkg://arnn_lightning.conf"), Path(arnn_lightning.conf.__path__[0])
    for path in root.rglob("*.yaml"):
        source.load_config(path.relative_to(root).as_posix())
    with initialize_config_module("arnn_lightning.conf", version_base="1.3"):
        data = compose("config", overrides=["data.generate.events=8000"]).data
    settings, folder = OmegaConf.to_container(data.generate, resolve=True), _temporary()
    # In a process of its own: where polars has started its threads, a forked process waits for them without end.
    process = multiprocessing.get_context("fork").Process(target=ensure_simulated, args=(settings, data.name, folder))
    process.start()
    process.join()
    (simulated[json.dumps([settings, data.name])],) = folder.glob("*/")

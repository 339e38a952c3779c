"""Work that commands repeat and that one process does for all: composing the chosen groups, and simulating a log.

With a folder arnn_conf or --config-dir, the groups are composed each time. Simulators that tests call themselves
simulate.
"""

import atexit
import hashlib
import json
import multiprocessing
import os
import pickle
import runpy
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import arnn_lightning.conf
from hydra import compose, initialize_config_module
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.default_element import InputDefault
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from lightning_fabric.utilities import registry
from omegaconf import DictConfig, OmegaConf

from arnn_lightning.simulation.simulator import ensure_simulated
from arnn_lightning.tasks import prepare

Plugins.instance()  # creates the classes that Hydra uses, which are not those imported before
Source: Any = SourcesRegistry.instance().types["pkg"]
parse = Source._read_config
list_defaults = config_loader_impl.create_defaults_list
map_choices = defaults_list._create_interpolation_map
compose_defaults = ConfigLoaderImpl._compose_config_from_defaults_list
results: dict[str, bytes] = {}  # pickled, since compositions change what they get
lists: dict[str, DefaultsList] = {}
SHARED = Path(os.environ["TESTS_SHARED_FOLDER"])  # of all processes of the tests


def read(source: Any, file: Any) -> ConfigResult:
    return _once(str(file), lambda: parse(source, file))


def list_defaults_once(
    repo: IConfigRepository, config_name: str, overrides_list: list[Override], **options: bool
) -> DefaultsList:
    """The groups of a command line; Hydra sets its values later."""
    if (packages := _packages(repo)) is None:
        return list_defaults(repo, config_name, overrides_list, **options)
    values = Overrides(repo, overrides_list).config_overrides
    groups = [override for override in overrides_list if not any(override is value for value in values)]
    key = repr([packages, config_name, [override.input_line for override in groups], options])
    if key not in lists:
        lists[key] = _once(key, lambda: list_defaults(repo, config_name, groups, **options))
    return replace(lists[key], config_overrides=values)


def map_choices_if_used(overrides: Overrides, defaults: list[InputDefault], self_added: bool) -> DictConfig | None:
    """What an interpolation in a defaults list can refer to, which Hydra collects for lists without one, too."""
    return map_choices(overrides, defaults, self_added) if any(d.is_interpolation() for d in defaults) else None


def compose_defaults_once(loader: ConfigLoaderImpl, defaults: list[Any], repo: IConfigRepository) -> DictConfig:
    if (packages := _packages(repo)) is None:
        return compose_defaults(loader, defaults, repo)
    return _once(repr([packages, defaults]), lambda: compose_defaults(loader, defaults, repo))


def _packages(repo: IConfigRepository) -> list[str] | None:
    """What the configs are read from, if that is packages alone; the folder arnn_conf is searched where it is, too."""
    sources = [source for source in repo.get_sources() if source.scheme() != "file" or Path(source.path).is_dir()]
    return None if any(source.scheme() == "file" for source in sources) else [source.path for source in sources]


def _once(key: str, make: Callable[[], Any]) -> Any:
    """A copy of what ``make`` returns, which the first process that needs it leaves to the others."""
    if key not in results:
        file = SHARED / _digest(key)
        if not file.exists():
            (temporary := file.with_suffix(f".{os.getpid()}")).write_bytes(pickle.dumps(make()))
            temporary.replace(file)
        results[key] = file.read_bytes()
    return pickle.loads(results[key])


def _digest(key: str) -> str:
    return hashlib.md5(key.encode()).hexdigest()


def simulate(settings: Any, name: str, raw_dir: Path, *_: Any) -> Path:
    """As ``ensure_simulated``: a copy of the files that were simulated first."""
    made = _simulated(settings, name)
    folder = raw_dir / made.name
    if not folder.is_dir():
        raw_dir.mkdir(parents=True, exist_ok=True)
        shutil.copytree(made, copied := Path(tempfile.mkdtemp(dir=raw_dir)), dirs_exist_ok=True)
        copied.rename(folder)
    return folder


def _simulated(settings: Any, name: str) -> Path:
    folder = SHARED / _digest(json.dumps([settings, name]))
    if not folder.is_dir():
        ensure_simulated(settings, name, temporary := Path(tempfile.mkdtemp(dir=SHARED)))
        with suppress(OSError):  # another process was first
            temporary.rename(folder)
    (made,) = folder.glob("*/")
    return made


def reuse() -> None:
    Source._read_config = read
    config_loader_impl.create_defaults_list = list_defaults_once
    defaults_list._create_interpolation_map = map_choices_if_used
    ConfigLoaderImpl._compose_config_from_defaults_list = compose_defaults_once
    prepare.ensure_simulated = simulate
    registry.entry_points = cache(entry_points)  # every Trainer reads what all installed packages register


def work_ahead() -> None:
    """Does the work of most commands now, for processes that are forked."""
    source, root = Source("main", "pkg://arnn_lightning.conf"), Path(arnn_lightning.conf.__path__[0])
    for path in root.rglob("*.yaml"):
        source.load_config(path.relative_to(root).as_posix())
    with initialize_config_module("arnn_lightning.conf", version_base="1.3"):
        data = compose("config", overrides=["data.generate.events=8000"]).data
    settings = OmegaConf.to_container(data.generate, resolve=True)
    # In a process of its own: where polars has started its threads, a forked process waits for them without end.
    process = multiprocessing.get_context("fork").Process(target=_simulated, args=(settings, data.name))
    process.start()
    process.join()


def run_command(folder: str, arguments: list[str], environment: dict[str, str], *streams: str) -> None:
    """``python -m arnn_lightning`` in a forked process; ``streams``: the files of stdout and stderr.

    All is as in a process of its own, but for ``reuse``, and that Hydra does not compose the config a second time for
    ``hydra.mode`` alone, which experiments set and nothing else does.
    """
    signal.alarm(300)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    atexit._clear()  # of the process that is forked
    os.setsid()
    for stream, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    of_tests = [Path(__file__).parents[1] / name for name in ("tests", "experiments", "src")]
    sys.path[:] = [folder, *(path for path in sys.path if not any(map(Path(path).is_relative_to, of_tests)))]
    sys.argv[1:] = arguments
    if "experiment=" not in str(arguments):
        Hydra.get_mode = lambda *_, **__: None
    try:
        runpy.run_module("arnn_lightning", run_name="__main__", alter_sys=True)
    finally:  # as at the end of a process
        threading._shutdown()
        atexit._run_exitfuncs()

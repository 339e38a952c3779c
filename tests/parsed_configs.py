"""The package's YAML files, parsed once in a process: Hydra parses them for every command.

Files in arnn_conf or --config-dir are of another kind of source, and parsed each time.
"""

import copy
from pathlib import Path
from typing import Any

import arnn_lightning.conf
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource as Source
from hydra.plugins.config_source import ConfigResult

parse = Source._read_config
parsed: dict[str, ConfigResult] = {}


def read(source: Source, file: Any) -> ConfigResult:
    if str(file) not in parsed:
        parsed[str(file)] = parse(source, file)
    return copy.deepcopy(parsed[str(file)])  # compositions change what they get


def parse_once(*, at_once: bool = False) -> None:
    """``at_once``: now, for processes that are forked."""
    Source._read_config = read
    if at_once:
        source, root = Source("main", "pkg://arnn_lightning.conf"), Path(arnn_lightning.conf.__path__[0])
        for path in root.rglob("*.yaml"):
            source.load_config(path.relative_to(root).as_posix())

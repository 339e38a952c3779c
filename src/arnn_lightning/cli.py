"""The command line: compose the config, run the task, turn a UserError into one line and exit code 2."""

import sys
from pathlib import Path

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from hydra.utils import get_method
from omegaconf import DictConfig

from arnn_lightning.config import USER_CONFIG_DIR
from arnn_lightning.errors import one_line
from arnn_lightning.sweeps.space import quote_spaces


@hydra.main(version_base="1.3", config_path="pkg://arnn_lightning.conf", config_name="config")
def _job(config: DictConfig) -> float | None:
    try:
        return _task(config)
    except Exception as error:  # a mistake of the user's is one line; anything else is raised again
        said = one_line(error)
        if said is None or HydraConfig.get().mode is RunMode.MULTIRUN:  # sweeps.jobs reports failed jobs
            raise
        sys.stderr.write(f"error: {said}\n")
        sys.exit(2)


def _task(config: DictConfig) -> float | None:
    config.paths.data = str(Path(config.paths.data).expanduser().absolute())
    objective: float | None = get_method(config.task._target_)(config)
    return objective


class OwnConfigs(SearchPathPlugin):
    """A folder ``arnn_conf`` where a run starts comes before the package's own configs, file by file.

    Registered by hand: Hydra does not find plugins of packages that are installed in place.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        # Also where it is missing: task=tune creates it.
        search_path.prepend("own", f"file://{USER_CONFIG_DIR.absolute()}", anchor="main")


def main() -> None:
    """Entry point of ``python -m arnn_lightning`` and ``arnn``."""
    Plugins.instance().register(OwnConfigs)
    sys.argv[1:] = quote_spaces(sys.argv[1:])
    try:
        _job()
    except KeyboardInterrupt:
        sys.exit(130)

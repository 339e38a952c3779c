"""The command line: compose the config, check it, run the task; a user's error is one line and exit code 2."""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from hydra.utils import get_method
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from arnn_lightning import __version__
from arnn_lightning.config import USER_CONFIG_DIR, check_settings, install_hint, no_key
from arnn_lightning.errors import nearest, one_line
from arnn_lightning.run_folder import add_stored_overrides, multirun_folder, own_multirun
from arnn_lightning.sweeps.space import quote_spaces


@hydra.main(version_base="1.3", config_path="pkg://arnn_lightning.conf", config_name="config")
def main_job(config: DictConfig) -> float | None:
    try:
        return run_task(config)
    except Exception as error:
        if HydraConfig.get().mode is not RunMode.MULTIRUN:  # sweeps/jobs.py reports failed jobs
            _exit_on_user_error(error)
        raise


def run_task(config: DictConfig) -> float | None:
    """Checks the settings of one job, imports its task and calls it."""
    job = HydraConfig.get()
    check_settings(config, job.overrides.task, job.runtime.choices)
    config.paths.data = str(Path(config.paths.data).expanduser().absolute())
    objective: float | None = get_method(config.task._target_)(config)
    return objective


class CheckSettings(Callback):
    """Checks the settings before Hydra makes the run's folder, or writes into one that exists."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        try:
            check_settings(config, config.hydra.overrides.task, config.hydra.runtime.choices)
            if config.hydra.mode is RunMode.MULTIRUN:
                own_multirun(config)
        except Exception as error:  # Hydra turns a callback's exceptions into warnings
            _exit_on_user_error(error)
            raise

    on_multirun_start = on_run_start


class UserConfigSearchPath(SearchPathPlugin):
    """A folder ``arnn_conf`` where a run starts takes precedence over the package's configs, file by file.

    Registered by hand: Hydra does not find plugins of packages that are installed in place.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        # Also where it is missing: task=tune creates it.
        search_path.prepend("user", f"file://{USER_CONFIG_DIR.absolute()}", anchor="main")


def main() -> None:
    """Entry point of ``python -m arnn_lightning`` and ``arnn``."""
    try:
        try:
            _main(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has what it wanted, as in "arnn --help | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _main(arguments: Sequence[str]) -> None:
    if "--version" in arguments:
        sys.stdout.write(f"arnn-lightning {__version__}\n")
        return
    if Path(sys.argv[0]).name == "__main__.py":
        sys.argv[0] = "arnn"  # the name in usage and help
    if not {"", str(Path.cwd())} & set(sys.path):  # a console script starts without the current folder
        sys.path.append(str(Path.cwd()))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them, over several lines
    Plugins.instance().register(UserConfigSearchPath)
    try:
        sys.argv[1:] = add_stored_overrides(quote_spaces(sys.argv[1:]))
        main_job()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenExecutor:  # of a parallel launcher, which ends all its processes then
        sys.stderr.write(
            "error: a process of this multirun was killed, possibly out of memory; resume with the same command plus "
            f"resume=true hydra.sweep.dir={multirun_folder()}\n"
        )
        sys.exit(1)
    except Exception as error:
        _exit_on_user_error(error)
        raise


def _exit_on_user_error(error: Exception) -> None:
    """Prints a user's error in one line and exits; returns where ``error`` is a defect."""
    message = one_line(error) or composition_error(error)
    if message is not None:
        sys.stderr.write(f"error: {message}\n")
        sys.exit(2)


def composition_error(error: Exception) -> str | None:
    """Hydra's error about the command line or a YAML in one line; None for any other error."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"no {group} {name}{nearest(name, error.options or [])}{install_hint(name)}"
    cause = error.__cause__
    if isinstance(error, CompactHydraException) and isinstance(cause, OmegaConfBaseException):
        if "not in struct" in str(cause) and isinstance(cause.parent_node, DictConfig):
            return str(no_key(str(cause.full_key), cause.parent_node))
        return " ".join(f"{error}: {cause.msg or cause}".split())
    if isinstance(error, CompactHydraException):
        override = f"{error.override}: " if isinstance(error, OverrideParseException) else ""
        return override + " ".join(str(error).partition("\nSee https")[0].split())
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return "a config group cannot be null or a number; name one of its configs, such as none (logger=none)"
    return None

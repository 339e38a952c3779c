"""The settings of a run, which its folder records once.

Hydra's own record (``hydra.output_subdir``) is turned off, since Hydra writes it before a task can refuse a folder.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from arnn_lightning.errors import UserError
from arnn_lightning.io import write_text
from arnn_lightning.run_folder.lock import locked
from arnn_lightning.run_folder.overrides import by_key

RECORD = ".hydra"  # Hydra's name for it, and its files: config.yaml, hydra.yaml, overrides.yaml
# Without these keys a file of the record is damaged.
STORED_KEYS = {"config": ("task._target_",), "hydra": ("hydra.runtime.choices",), "overrides": ()}
DAMAGED = "missing or damaged; start a new run in another folder"


def has_record(folder: Path) -> bool:
    """Whether ``folder`` is a run's."""
    return (folder / RECORD / "config.yaml").is_file()


def write_record(config: DictConfig, folder: Path) -> None:
    """Writes the settings of a run: its command line, Hydra's settings and, last, its config."""
    hydra = HydraConfig.get()
    overrides = [override.input_line for key, override in by_key(hydra.overrides.task).items() if key != "resume"]
    write_text(folder / RECORD / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(overrides)))
    write_text(folder / RECORD / "hydra.yaml", OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra})))
    write_text(folder / RECORD / "config.yaml", OmegaConf.to_yaml(config))


def stored_config(folder: Path, name: str = "config") -> Any:
    """A file of the record.

    Raises:
        UserError: it is missing or damaged.
    """
    return load(folder / RECORD / f"{name}.yaml", *STORED_KEYS[name])


def load(file: Path, *keys: str) -> Any:
    """A YAML file with ``keys``, or with a list where there are none; an empty file is an empty mapping."""
    try:
        content = OmegaConf.load(file)
        is_whole = all(OmegaConf.select(content, key) is not None for key in keys)
    except (OSError, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: {DAMAGED}") from error
    if not is_whole or (not keys and not OmegaConf.is_list(content)):
        raise UserError(f"{file}: {DAMAGED}")
    return content


def require_same_task(config: DictConfig, folder: Path) -> None:
    """Raises UserError where ``folder`` contains a run of another task."""
    if has_record(folder) and (task := stored_config(folder).task._target_) != config.task._target_:
        raise UserError(f"{folder} contains a run of task={task.split('.')[-2]}; use another hydra.run.dir")


@contextmanager
def task_folder(config: DictConfig) -> Iterator[Path]:
    """The run folder of a task, owned inside the context; its settings are recorded where the task succeeds.

    Raises:
        UserError: another process owns the folder, or it contains a run of another task.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    with locked(folder):
        require_same_task(config, folder)
        yield folder
        write_record(config, folder)

"""The command line: compose the config, run the task, turn a UserError into one line and exit code 2."""

import sys
from pathlib import Path

import hydra
from hydra.utils import get_method
from omegaconf import DictConfig
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from arnn_lightning.errors import UserError

_failed: list[Exception] = []


@hydra.main(version_base="1.3", config_path="pkg://arnn_lightning.conf", config_name="config")
def _job(config: DictConfig) -> float | None:
    try:
        config.paths.data = str(Path(config.paths.data).expanduser().absolute())
        objective: float | None = get_method(config.task._target_)(config)
        return objective
    except (UserError, OSError, OmegaConfBaseException) as error:
        said = _one_line(error)
        if said is None:
            raise
        # Told here and remembered for main, so that the other jobs of a multirun go on.
        _failed.append(error)
        sys.stderr.write(f"error: {said}\n")
        return None


def _one_line(error: Exception) -> str | None:
    """What a user can mend, in one line; None for anything else."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:  # no permission, no space, no such folder
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
        key = str(error.full_key).replace(".reader.", ".")
        return f"{key} is missing; give it on the command line"
    return None


def main() -> None:
    """Entry point of ``python -m arnn_lightning`` and ``arnn``."""
    _failed.clear()
    try:
        _job()
    except KeyboardInterrupt:
        sys.exit(130)
    if _failed:
        sys.exit(2)

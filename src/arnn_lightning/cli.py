"""The command line: compose the config, run the task, turn a UserError into one line and exit code 2."""

import sys
from pathlib import Path

import hydra
from hydra.utils import get_method
from omegaconf import DictConfig

from arnn_lightning.errors import UserError

_failed: list[UserError] = []


@hydra.main(version_base="1.3", config_path="pkg://arnn_lightning.conf", config_name="config")
def _job(config: DictConfig) -> float | None:
    config.paths.data = str(Path(config.paths.data).absolute())
    try:
        objective: float | None = get_method(config.task._target_)(config)
        return objective
    except UserError as error:
        # Told here and remembered for main, so that the other jobs of a multirun go on.
        _failed.append(error)
        sys.stderr.write(f"error: {error}\n")
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

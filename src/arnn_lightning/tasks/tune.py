"""task=tune: one study for each of several models, with as many trials each, and their tuned files."""

import subprocess
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from arnn_lightning.errors import UserError
from arnn_lightning.sweeps.study import study_file

OWN = ("task=", "models=", "trials=", "model=")


def run(config: DictConfig) -> None:
    """Calls the command line once for each study and once for its tuned file, so that the next model sees it."""
    hydra = HydraConfig.get()
    said = [one for one in hydra.overrides.task if not one.startswith(OWN)]
    sweeper = [one for one in hydra.overrides.hydra if not one.startswith(("hydra.mode=", "hydra.run.dir="))]
    for model in config.models:
        file = study_file(Path(config.paths.studies), hydra.runtime.choices["data"], model)
        trials = f"hydra.sweeper.n_trials={config.trials}"
        _arnn("-m", "hydra/sweeper=optuna", trials, f"model={model}", *said, *sweeper)
        _arnn("task=tuned", f"study={file}")


def _arnn(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "arnn_lightning", *arguments], check=False)
    # A failed trial has been told of and leaves the study usable; nothing but an unusable study ends the others.
    if done.returncode and "-m" not in arguments:
        raise UserError(f"{' '.join(arguments)} failed with exit code {done.returncode}, as it said above")

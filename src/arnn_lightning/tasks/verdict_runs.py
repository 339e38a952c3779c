"""The runs of task=verdict: each trains as task=train does, in a run folder of its own."""

import contextlib
import io
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from pytorch_lightning import Callback

from arnn_lightning.errors import UserError
from arnn_lightning.io import atomic_path, write_json
from arnn_lightning.preprocessing.dataset import PreparedDataset, WithoutAttribute
from arnn_lightning.reporting.verdict_text import format_duration
from arnn_lightning.run_folder import BEST_OF_RUN, has_record, require_equal_config, stored_config
from arnn_lightning.sweeps.plan import SECONDS_FILE, Job, spent_seconds
from arnn_lightning.tasks import train
from arnn_lightning.training.checkpoint import build_model, load_weights, read_checkpoint
from arnn_lightning.training.stage import evaluate_model, run_settings

log = logging.getLogger(__name__)
TASK_KEYS = ("task", "budget", "max_seeds", "smallest_gain", "non_neural", "seed")


class VerdictRuns:
    """Trains and tests the runs of a verdict, those that are not finished.

    Args:
        config: of the task.
        folder: of the runs.
        prepared: the data set of the runs.
    """

    def __init__(self, config: DictConfig, folder: Path, prepared: PreparedDataset) -> None:
        self.config, self.prepared = config, prepared
        overrides = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
        self.given = [
            str(override.input_line)
            for override in overrides
            if override.get_key_element().lstrip("+~").split(".")[0] not in TASK_KEYS
        ]
        self._folder = folder
        self._spent = spent_seconds(folder)
        self._earlier_seconds = sum(self._spent.values())
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """The seconds of all runs, those of earlier commands included."""
        return self._earlier_seconds + time.monotonic() - self._started

    def _has_raw_files_of(self, name: str) -> bool:
        """Whether another prepared data set was prepared from the same raw files."""
        other = PreparedDataset(self.prepared.folder.parent / name)
        return (other.folder / "manifest.json").is_file() and other.raw_sha256 == self.prepared.raw_sha256

    def require_comparable(self, jobs: Sequence[Job]) -> None:
        """Raises UserError for a run, finished or interrupted, of another log or with other settings than now."""
        for job in jobs:
            if has_record(job.folder):
                config = self._compose(job.overrides, job.seed, job.folder)
                require_equal_config(config, job.folder, unset=("hydra", "model.dims", "pretrained"))
            if not job.is_finished or job.metrics()["manifest"] == self.prepared.manifest_sha256:
                continue
            # The manifest of a data set that was prepared again has other seconds.
            name = read_checkpoint(job.folder)["metadata"]["prepared"]
            if name != self.prepared.folder.name and not (job.holds_out_users and self._has_raw_files_of(name)):
                raise UserError(
                    f"{job.folder}: was trained on another log, and a verdict is of one log; use a new hydra.run.dir, "
                    f"such as {os.path.relpath(job.folder.parent)}-2"
                )

    def _compose(self, overrides: Sequence[str], seed: int, folder: Path) -> DictConfig:
        given = self.given if any(text.startswith("logger=") for text in self.given) else [*self.given, "logger=csv"]
        job: DictConfig = compose(
            "config", overrides=[*given, *overrides, f"seed={seed}", "task=train"], return_hydra_config=True
        )
        with open_dict(job):
            job.baselines = {}  # runs of their own, with validation
            job.paths.data = self.config.paths.data  # absolute
            job.hydra.mode = RunMode.RUN
            job.hydra.run.dir = str(folder)
            job.resume = has_record(folder)
        return job

    def execute(self, job: Job, *callbacks: Callback) -> None:
        """Runs a job as task=train does, unless it is finished; resumes it where it was interrupted.

        Raises:
            UserError, TooSlowError: what the run raises.
        """
        if job.is_finished:
            return
        action = "resuming" if has_record(job.folder) else "training"
        log.info(f"[{format_duration(self.seconds)}] {action} {job.description}")
        config = self._compose(job.overrides, job.seed, job.folder)
        if job.session_from is not None:
            config.pretrained.session = str(job.session_from / BEST_OF_RUN)
        with self._timed(job.folder.name), _quiet():
            train.train_as_job(config, callbacks)

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Adds the seconds of what follows to those of ``name``, also where it is interrupted."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._spent[name] = self._spent.get(name, 0.0) + time.monotonic() - started
            write_json(self._folder / SECONDS_FILE, self._spent)

    def hide_attributes(self, job: Job, attributes: Sequence[str]) -> None:
        """Tests the model of a finished run without each attribute; the ranks are in its folder."""
        missing = {name: file for name in attributes if not (file := job.ranks_without(name, attributes)).is_file()}
        if not missing:
            return
        config, checkpoint = stored_config(job.folder), read_checkpoint(job.folder)
        model = build_model(checkpoint["metadata"]["model"], run_settings(config))
        load_weights(model, checkpoint, job.folder)
        for name, file in missing.items():
            with self._timed(f"{job.folder.name}, without attributes"):
                result = evaluate_model(model, WithoutAttribute(self.prepared.folder, name), config)
                with atomic_path(file) as path:
                    result.ranks.write_parquet(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what a run prints, and its lines of level INFO; lines of other modules, such as those of epochs, remain."""
    lines = logging.getLogger(train.__name__)
    level = lines.level
    lines.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        lines.setLevel(level)

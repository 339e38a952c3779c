"""The jobs of a multirun: a failing job does not stop the others, and a table of all jobs is printed at the end."""

import json
import shutil
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from arnn_lightning.errors import one_line
from arnn_lightning.evaluation.metrics import metric_label
from arnn_lightning.io import write_json

OUTCOMES = ".outcomes"  # a folder in that of the multirun: a refused job changes nothing in the folder of a run
KILLED = "not finished: its process, or another of the same launcher, was killed, possibly out of memory"


class JobSummary(Callback):
    """Hydra calls ``on_job_end`` in the process of the job, the other methods in the process that launches the jobs."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Removes the outcomes of an earlier multirun in this folder."""
        shutil.rmtree(Path(config.hydra.sweep.dir) / OUTCOMES, ignore_errors=True)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Writes what is true unless ``on_job_end`` is called."""
        if config.hydra.mode is RunMode.MULTIRUN:
            _write(config, {"value": None, "error": KILLED, "is_user_error": False})

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Writes the outcome."""
        if config.hydra.mode is not RunMode.MULTIRUN:
            return
        try:
            outcome = {"value": job_return.return_value, "error": None, "is_user_error": False}
        except Exception as error:
            message = one_line(error)
            if message is None:
                traceback.print_exc()
            else:
                sys.stderr.write(f"error: {message}\n")
            shown = message or " ".join(f"{type(error).__name__}: {error}".split())
            outcome = {"value": None, "error": shown, "is_user_error": message is not None}
            # Hydra's sweeper raises at a failed job: no further batch would start, nor on_multirun_end be called.
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        _write(config, outcome)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Prints the table.

        Raises:
            SystemExit: a job failed; code 2 if users can fix all that failed, else 1.
        """
        if failed := print_jobs(Path(config.hydra.sweep.dir)):
            sys.exit(2 if all(outcome["is_user_error"] for outcome in failed) else 1)


def print_jobs(folder: Path) -> list[dict[str, Any]]:
    """Prints the table of the jobs of a multirun that were started; returns the outcomes of those that failed."""
    outcomes = [json.loads(path.read_text()) for path in (folder / OUTCOMES).glob("*.json")]
    failed = [outcome for outcome in outcomes if outcome["error"] is not None]
    times = Counter(override for outcome in outcomes for override in outcome["overrides"])
    metrics = sorted({metric_label(outcome["metric"]) for outcome in outcomes if outcome["value"] is not None})
    table = Table("job", "overrides", f"validation {' or '.join(metrics)}".rstrip(), "status")
    for outcome in sorted(outcomes, key=lambda outcome: int(outcome["job"])):
        varied = [override for override in outcome["overrides"] if times[override] < len(outcomes)]
        value = "" if outcome["value"] is None else f"{outcome['value']:.4f}"
        status = "done" if outcome["error"] is None else f"failed: {outcome['error']}"
        table.add_row(str(outcome["job"]), " ".join(varied), value, status)
    console = Console(markup=False)
    console.print(f"{folder}: {len(outcomes)} jobs, {len(failed)} failed", soft_wrap=True, highlight=False)
    console.print(table)
    return failed


def _write(config: DictConfig, outcome: dict[str, Any]) -> None:
    job = {"job": config.hydra.job.num, "overrides": list(config.hydra.overrides.task)}
    job["metric"] = str(config.evaluation.monitor)
    write_json(Path(config.hydra.sweep.dir) / OUTCOMES / f"{job['job']}.json", job | outcome)

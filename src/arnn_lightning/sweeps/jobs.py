"""The jobs of a multirun: one's failure stops no other, and all are told of at the end.

Each job keeps ``outcome.json`` in its folder, from its first moment on, so that one that is killed is told of as well.
Launchers that start processes (joblib, submitit, ray) run each job in a fresh process of its own: a pool of workers
breaks as a whole when one of them is killed.
"""

import json
import pickle
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, setup_globals
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from arnn_lightning.errors import UserError, one_line
from arnn_lightning.sweeps import study

Task = Callable[[DictConfig], float | None]
OUTCOME = "outcome.json"
UNENDED = "it did not end: killed, or out of memory?"


class Outcome(NamedTuple):
    """What became of a job: its objective, or what went wrong in one line, and whether a user can mend that."""

    job: int
    overrides: list[str]
    value: float | None
    error: str | None
    mistake: bool
    seconds: float


class Multirun(Callback):
    """Hydra's callback in the process that starts the jobs: remembers which multirun is under way."""

    folder: Path | None = None
    before: Mapping[Path, int] = {}  # outcomes that an earlier multirun left there, and when they were written

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        try:
            if config.hydra.runtime.choices["hydra/sweeper"] == "optuna":
                if any(folder.rglob(OUTCOME)):
                    raise UserError(
                        f"{folder} holds the jobs of another multirun; a study goes on from its own file: "
                        "leave hydra.sweep.dir out"
                    )
                study.set_up(config)
        except Exception as error:  # Hydra would turn it into a warning
            said = one_line(error)
            if said is None:
                traceback.print_exc()
            sys.stderr.write(f"error: {said or error}\n")
            sys.exit(1 if said is None else 2)
        folder.mkdir(parents=True, exist_ok=True)
        Multirun.folder = folder
        Multirun.before = {path: path.stat().st_mtime_ns for path in folder.rglob(f"*{OUTCOME}")}


def run(task: Task, config: DictConfig) -> float | None:
    """Runs ``task`` as one job of a multirun; returns its objective, None if it failed."""
    hydra = HydraConfig.get()
    file = Path(hydra.runtime.output_dir) / OUTCOME
    overrides = [one for one in hydra.overrides.task if not one.startswith("resume=")]
    before = json.loads(file.read_text())["overrides"] if file.is_file() else overrides
    if before != overrides:
        refused = f"{file.parent} holds the job {' '.join(before)}: choose another hydra.sweep.dir"
        sys.stderr.write(f"error: {refused}\n")
        # Beside the other job's outcome.
        _write(file.with_name(f"refused_{OUTCOME}"), Outcome(hydra.job.num, overrides, None, refused, True, 0.0))
        return None
    started = time.perf_counter()
    outcome = Outcome(hydra.job.num, overrides, None, UNENDED, False, 0.0)
    _write(file, outcome)
    apart = hydra.runtime.choices["hydra/launcher"] != "basic"
    try:
        attempt = (_attempt_apart if apart else _attempt)(task, config, outcome)
    except Exception as error:  # of what lies between: no job may raise
        attempt = _defect(outcome, error)
    _write(file, attempt._replace(seconds=round(time.perf_counter() - started, 1)))
    return attempt.value


def _attempt(task: Task, config: DictConfig, outcome: Outcome) -> Outcome:
    try:
        return outcome._replace(value=task(config), error=None)
    except Exception as error:
        said = one_line(error)
        if said is not None:
            sys.stderr.write(f"error: {said}\n")
            return outcome._replace(error=said, mistake=True)
        return _defect(outcome, error)


def _defect(outcome: Outcome, error: Exception) -> Outcome:
    traceback.print_exception(error)
    return outcome._replace(error=" ".join(f"{type(error).__name__}: {error}".split()))


def _attempt_apart(task: Task, config: DictConfig, outcome: Outcome) -> Outcome:
    # Not by multiprocessing, whose children would start the way their pool's workers do.
    hydra = HydraConfig.get()
    # Plain, without the plugins' settings, whose classes do not pickle; folders resolved: a time in them is to stay.
    whole: Any = OmegaConf.to_container(
        OmegaConf.masked_copy(cast(DictConfig, HydraConfig.instance().cfg), "hydra"), resolve=False
    )
    whole["hydra"] |= {"launcher": None, "sweeper": None}
    whole["hydra"]["sweep"] |= {"dir": hydra.sweep.dir, "subdir": hydra.sweep.subdir}
    answer = Path(hydra.runtime.output_dir) / ".answer.pickle"
    handed_over = pickle.dumps((answer, task, config, outcome, whole))
    done = subprocess.run([sys.executable, "-m", "arnn_lightning.sweeps"], input=handed_over, check=False)
    try:
        attempt: Outcome = pickle.loads(answer.read_bytes()) if done.returncode == 0 else outcome
    finally:
        answer.unlink(missing_ok=True)
    return attempt


def run_handed_over() -> None:
    """What the fresh process of a job does."""
    answer, task, config, outcome, hydra = pickle.load(sys.stdin.buffer)
    setup_globals()
    HydraConfig.instance().cfg = OmegaConf.create(hydra)
    configure_log(cast(DictConfig, HydraConfig.get().job_logging), HydraConfig.get().verbose)
    try:
        answer.write_bytes(pickle.dumps(_attempt(task, config, outcome)))
    except KeyboardInterrupt:
        sys.exit(130)


def _write(file: Path, outcome: Outcome) -> None:
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(json.dumps(outcome._asdict(), indent=1) + "\n")
    unfinished.replace(file)


def tell() -> int:
    """Prints what became of a multirun's jobs, and a line for each that failed; returns the exit code."""
    folder = Multirun.folder
    Multirun.folder = None
    study.release()
    if folder is None:
        return 0
    files = [path for path in folder.rglob(f"*{OUTCOME}") if Multirun.before.get(path) != path.stat().st_mtime_ns]
    told = sorted(Outcome(**json.loads(path.read_text())) for path in files)
    times = Counter(override for one in told for override in one.overrides)
    # What all jobs share says nothing.
    own = {one.job: " ".join(each for each in one.overrides if times[each] < len(told)) for one in told}
    failed = [one for one in told if one.error is not None]
    if told:
        Console().print(f"{folder}: {len(told)} jobs, {len(failed)} failed", soft_wrap=True, highlight=False)
        Console().print(_table(told, own))
    for one in failed:
        sys.stderr.write(f"error: job {one.job} ({own[one.job] or ' '.join(one.overrides)}): {one.error}\n")
    if not failed:
        return 0
    return 2 if all(one.mistake for one in failed) else 1


def _table(told: list[Outcome], own: Mapping[int, str]) -> Table:
    table = Table("job", "overrides")
    table.add_column("validation MRR@20", justify="right")
    table.add_column("seconds", justify="right")
    for one in told:
        value = "failed" if one.error is not None else "" if one.value is None else f"{one.value:.4f}"
        table.add_row(str(one.job), own[one.job], value, f"{one.seconds:.0f}")
    return table

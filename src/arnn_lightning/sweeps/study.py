"""Optuna studies in SQLite that any number of processes work on, and that are resumed where they stopped.

A process locks a file for as long as a trial runs: a trial in state RUNNING whose file is not locked was interrupted.
"""

import logging
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, RangeSweep, Transformer
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState
from pytorch_lightning import Callback, LightningModule, Trainer

from arnn_lightning.errors import UserError, one_line

log = logging.getLogger(__name__)
optuna.logging.set_verbosity(logging.WARNING)
EXHAUSTED = "exhausted"  # of a study: the sampler that had tried all combinations


def distribution(key: str, space: str) -> BaseDistribution:
    """The Optuna distribution of a sweep in Hydra's override grammar.

    >>> distribution("model.neighbours", "tag(log, int(interval(20, 500)))")
    IntDistribution(high=500, log=True, low=20, step=1)
    >>> distribution("model.dropout", "range(0.0, 0.5, 0.1)")
    FloatDistribution(high=0.4, log=False, low=0.0, step=0.1)
    >>> distribution("model.batch_size", "choice(50, 100)")
    CategoricalDistribution(choices=(50, 100))

    Raises:
        UserError: ``space`` is a single value, or an empty interval.
    """
    override = OverridesParser.create().parse_override(f"{key}={space}")
    sweep: Any = override.value()
    if not override.is_sweep_override():
        raise UserError(f"the search space {key}={space} is a single value: use interval, choice or range")
    try:
        if isinstance(sweep, IntervalSweep):
            interval: Any = IntDistribution if isinstance(sweep.start, int) else FloatDistribution
            return interval(sweep.start, sweep.end, log="log" in sweep.tags)  # type: ignore[no-any-return]
        values: list[Any] = list(override.sweep_iterator(Transformer.encode))
        if isinstance(sweep, RangeSweep):
            steps: Any = IntDistribution if isinstance(values[0], int) else FloatDistribution
            return steps(min(values), max(values), step=abs(sweep.step))  # type: ignore[no-any-return]
        return CategoricalDistribution(values)
    except (ValueError, IndexError) as error:
        raise UserError(f"the search space {key}={space} is not valid: {error}") from error


def open_study(file: Path, settings: Mapping[str, Any], pruner: optuna.pruners.BasePruner) -> optuna.Study:
    """Creates the study of ``file``, or opens it for resuming.

    Args:
        file: the SQLite database, as in ``studies/synthetic_gru4rec.db``.
        settings: what all trials have in common, by dotted key.
        pruner: ends trials early.

    Raises:
        UserError: ``file`` cannot be written, is not a database of this Optuna, or its trials have other settings.
    """
    try:
        with _storage_errors(file), _lock(file, "study"):  # one process creates the tables
            url = f"sqlite:///file:{quote(quote(str(file)))}?uri=true"  # unquoted by SQLAlchemy, then by SQLite
            options = {"connect_args": {"timeout": 60}}
            storage = optuna.storages.RDBStorage(url, engine_kwargs=options)
            study = optuna.create_study(
                storage=storage, study_name=file.stem, direction="maximize", pruner=pruner, load_if_exists=True
            )
            stored = study.user_attrs.get("settings")
            if stored is None:
                study.set_user_attr("settings", dict(settings))
    except UserError:
        raise
    except OSError as error:  # of the folder of its locks
        raise UserError(f"{file}: {error.strerror}; set another folder with paths.studies=") from error
    except Exception as error:  # of SQLAlchemy and Optuna, of many kinds
        raise UserError(
            f"{file} is not a database of Optuna {optuna.__version__}: {str(error).splitlines()[0]}"
        ) from error
    for key in sorted(settings.keys() | (stored or settings).keys()):
        before, now = ((values or settings).get(key) for values in (stored, settings))
        if before != now:
            raise UserError(
                f"{file}: its trials have {key}={before}, not {now}, and are not comparable; "
                "delete the file, or set another folder with paths.studies="
            )
    return study


def optimize(
    study: optuna.Study,
    file: Path,
    n_trials: int,
    space: dict[str, BaseDistribution],
    sampler: Callable[[int], optuna.samplers.BaseSampler],
    objective: Callable[[Trial], float | None],
) -> None:
    """Runs trials until ``study`` has ``n_trials`` that ended, in any process, or its sampler has no more.

    Args:
        study: the study.
        file: its database.
        n_trials: the number of trials; interrupted ones are not counted, but run again once.
        space: the distribution of every searched key.
        sampler: the sampler for the number of a trial: were one used for all, every process would sample the same.
        objective: returns the value of a trial, or raises ``optuna.TrialPruned``.

    Raises:
        UserError: by ``objective`` before any trial is complete: all others are likely to raise it too; ``file``
            cannot be written.
    """
    with _storage_errors(file):
        while True:
            with _lock(file, "study"):
                _retry_interrupted(study, file)
                trials = study.get_trials(deepcopy=False)
                running = sum(trial.state is TrialState.RUNNING for trial in trials)
                study.sampler = sampler(len(trials))
                has_left = not _is_exhausted(study) or any(trial.state is TrialState.WAITING for trial in trials)
                start = has_left and running + sum(_has_ended(trial) for trial in trials) < n_trials
                if start:
                    trial = study.ask(space)
                    lock = _lock(file, trial.number)
                    lock.acquire()
            if start:
                try:
                    _evaluate(study, trial, objective)
                finally:
                    lock.release()
                    Path(lock.lock_file).unlink(missing_ok=True)
            elif running:  # in other processes: one may be interrupted
                time.sleep(1)
            else:
                return


def _has_ended(trial: FrozenTrial) -> bool:
    failed = trial.state is TrialState.FAIL and "error" in trial.user_attrs
    return failed or trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def _storage_errors(file: Path) -> Iterator[None]:
    """Raises UserError where SQLite could not write ``file``, as on a full disk: Optuna and SQLAlchemy wrap that."""
    try:
        yield
    except Exception as error:
        for cause in _causes(error):
            name = getattr(cause, "sqlite_errorname", "")
            if name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")):
                raise UserError(
                    f"{file}: cannot be written: {cause}; finished trials are kept: the same command runs the others"
                ) from error
        raise


def _lock(file: Path, name: str | int) -> FileLock:
    path = file.with_suffix(".locks") / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def _retry_interrupted(study: optuna.Study, file: Path) -> None:
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        try:
            with _lock(file, trial.number).acquire(timeout=0):
                if _state(study, trial.number) is not TrialState.RUNNING:  # it has ended since the trials were listed
                    continue
                _tell(study, trial.number, state=TrialState.FAIL)
        except Timeout:
            continue
        if "retry_of" not in trial.user_attrs:  # else it may be what kills the process, as by using too much memory
            study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})


def _state(study: optuna.Study, number: int) -> TrialState:
    return study.get_trials(deepcopy=False)[number].state


def _tell(study: optuna.Study, trial: Trial | int, value: float | None = None, state: TrialState | None = None) -> None:
    """``study.tell``, with samplers that end a study once all combinations were tried (grid, brute force)."""
    try:
        study.tell(trial, value, state)
    except RuntimeError as error:
        if "Study.stop" not in str(error):  # which only Optuna's own loop accepts; the trial is stored
            raise
        study.set_user_attr(EXHAUSTED, type(study.sampler).__name__)


def _is_exhausted(study: optuna.Study) -> bool:
    return study.user_attrs.get(EXHAUSTED) == type(study.sampler).__name__


def _evaluate(study: optuna.Study, trial: Trial, objective: Callable[[Trial], float | None]) -> None:
    try:
        value = objective(trial)
        if value is None or not math.isfinite(value):
            raise ValueError(f"the validation metric is {value}")
    except optuna.TrialPruned:
        _tell(study, trial, state=TrialState.PRUNED)
    except Exception as error:
        if any(isinstance(cause, OSError | sqlite3.Error) for cause in _causes(error)):
            raise  # the disk's error, not the trial's, which is run again as an interrupted one
        message = one_line(error)
        if message is not None and not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            _tell(study, trial, state=TrialState.FAIL)
            raise
        trial.set_user_attr("error", message or f"{type(error).__name__}: {error}")
        _tell(study, trial, state=TrialState.FAIL)
        log.error(f"trial {trial.number} failed: {message or error}", exc_info=error if message is None else None)
    else:
        _tell(study, trial, value)


class PruningCallback(Callback):
    """Reports a validation metric after every epoch, and ends a trial that the pruner of its study gives up."""

    def __init__(self, trial: Trial, monitor: str) -> None:
        self.trial, self.monitor = trial, monitor

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises ``optuna.TrialPruned``; the stages of ARNN's parts, which log another metric, are not pruned."""
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or value is None:
            return
        self.trial.report(float(value), trainer.current_epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned

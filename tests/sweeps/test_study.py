"""Optuna studies: shared by processes, resumed where they stopped, with unpromising trials pruned."""

import errno
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from pytorch_lightning import LightningModule
from torch.utils.data import DataLoader

from arnn_lightning.errors import UserError
from arnn_lightning.sweeps.space import quote_spaces
from helpers import CONF, compose_config, trainer

optuna = pytest.importorskip("optuna")
from arnn_lightning.sweeps import study as study_module  # noqa: E402
from arnn_lightning.sweeps.study import PruningCallback, distribution, open_study, optimize  # noqa: E402

SEARCH = sorted((CONF / "search").glob("[!_]*.yaml"))
NO_PRUNER = optuna.pruners.NopPruner()
SPACE = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}


def random_sampler(number: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=number)


def value_of_x(trial: optuna.Trial) -> float:
    return float(trial.params["x"])


def run_trials(file: Path, n_trials: int, objective=value_of_x, **settings: object) -> optuna.Study:
    study = open_study(file, settings, NO_PRUNER)
    optimize(study, file, n_trials, SPACE, random_sampler, objective)
    return study


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


def test_a_study_is_in_its_file_whatever_the_name(tmp_path: Path) -> None:
    file = tmp_path / "what? {50%} #1" / "x.db"
    run_trials(file, 1)
    assert len(open_study(file, {}, NO_PRUNER).trials) == 1
    assert {path.name for path in file.parent.iterdir()} == {"x.db", "x.locks"}
    assert [*tmp_path.iterdir()] == [file.parent]


@pytest.mark.parametrize("file", SEARCH, ids=lambda file: file.stem)
def test_every_key_of_a_search_space_exists(file: Path) -> None:
    config = compose_config(f"model={file.stem}", "data=xing")
    assert config.search
    for key, space in config.search.items():
        distribution(key, space)
        assert OmegaConf.select(config, key) is not None, key


def test_every_model_but_pop_and_spop_has_a_search_space() -> None:
    models = {file.stem for file in (CONF / "model").glob("[!_]*.yaml")}
    assert models - {file.stem for file in SEARCH} == {"pop", "spop"}


def test_only_the_spaces_of_a_command_line_are_moved() -> None:
    assert quote_spaces(["task=tune", "trials=3"]) == ["task=tune", "trials=3"]
    assert quote_spaces(["-m", "task=tune", "seed=1,2"]) == ["-m", "task=tune", "seed=1,2"]
    assert quote_spaces(["model.x=interval(0,1)"]) == ["model.x=interval(0,1)"]
    moved = quote_spaces(["task=tune", "model.lr=tag(log, interval(0.1, 1))", "model/loss=top1,bpr", "seed=2"])
    assert moved[:2] == ["task=tune", "seed=2"]
    config = compose_config(*moved)
    assert config.space == ["model.lr=tag(log, interval(0.1, 1))", "model/loss=top1,bpr"]
    assert quote_spaces(moved) == moved
    (parsed,) = OverridesParser.create().parse_overrides([config.space[1]])
    assert list(parsed.sweep_string_iterator()) == ["top1", "bpr"]


@pytest.mark.parametrize(
    ("space", "message"),
    [("0.5", "is a single value"), ("interval(1,0)", "is not valid"), ("tag(log,interval(0,1))", "is not valid")],
)
def test_an_invalid_search_space_is_an_error(space: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        distribution("model.dropout", space)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("interval(0, 1)", optuna.distributions.FloatDistribution(0.0, 1.0)),
        ("int(interval(1, 5))", optuna.distributions.IntDistribution(1, 5)),
        ("range(1, 5)", optuna.distributions.IntDistribution(1, 4)),  # without its end
        ("range(5, 1, -2)", optuna.distributions.IntDistribution(3, 5, step=2)),
    ],
)
def test_a_search_space_has_the_values_of_a_sweep(space: str, expected: optuna.distributions.BaseDistribution) -> None:
    assert distribution("model.x", space) == expected


def test_a_full_disk_ends_a_study_and_loses_no_trial(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    first = run_trials(file, 2).trials
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, before[1]))
    try:
        with pytest.raises(UserError, match=r"a\.db: cannot be written: .*; finished trials are kept"):
            run_trials(file, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    study = run_trials(file, 4)
    assert [trial.params for trial in study.trials[:2]] == [trial.params for trial in first]
    assert states(study).count("COMPLETE") == 4


@pytest.mark.parametrize("name", ["SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_READONLY", "SQLITE_CANTOPEN"])
def test_an_error_of_the_disk_is_named_however_it_is_wrapped(name: str) -> None:
    def fail(name: str) -> None:
        try:
            error = sqlite3.OperationalError("disk")
            error.sqlite_errorname = name
            raise error
        except sqlite3.Error:
            raise RuntimeError("rolled back")  # noqa: B904  as libraries do

    with pytest.raises(UserError, match=r"a\.db: cannot be written: disk"), study_module._storage_errors(Path("a.db")):
        fail(name)
    with pytest.raises(RuntimeError, match="rolled back"), study_module._storage_errors(Path("a.db")):
        fail("SQLITE_CORRUPT")


@pytest.mark.parametrize("cause", [OSError(errno.ENOSPC, "No space left"), sqlite3.OperationalError("disk I/O error")])
def test_a_trial_that_the_disk_ends_is_run_again(cause: Exception, tmp_path: Path) -> None:
    """With a complete trial, other errors are those of a trial, which counts."""

    def full(trial: optuna.Trial) -> float:
        try:
            raise cause
        except (OSError, sqlite3.Error) as error:
            raise UserError("last.ckpt: cannot be written: No space left on device") from error

    run_trials(tmp_path / "a.db", 1)
    with pytest.raises(UserError, match=r"^last\.ckpt: cannot be written"):
        run_trials(tmp_path / "a.db", 3, full)
    assert states(run_trials(tmp_path / "a.db", 3)).count("COMPLETE") == 3


def test_a_study_is_resumed_until_it_has_its_trials(tmp_path: Path) -> None:
    first = run_trials(tmp_path / "a.db", 3).trials
    study = run_trials(tmp_path / "a.db", 5)
    assert [trial.params for trial in study.trials[:3]] == [trial.params for trial in first]
    assert states(study) == ["COMPLETE"] * 5
    assert len({trial.params["x"] for trial in study.trials}) == 5, "a value was sampled twice"
    assert states(run_trials(tmp_path / "a.db", 2)) == ["COMPLETE"] * 5
    assert [file.name for file in (tmp_path / "a.locks").iterdir() if file.stem.isdigit()] == []


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_study_ends_once_its_sampler_has_tried_everything(tmp_path: Path) -> None:
    """Another sampler goes on."""
    file = tmp_path / "a.db"
    study = open_study(file, {}, NO_PRUNER)
    space: dict[str, optuna.distributions.BaseDistribution] = {
        "x": optuna.distributions.CategoricalDistribution([0.25, 0.5])
    }
    grid = lambda number: optuna.samplers.GridSampler({"x": [0.25, 0.5]}, seed=number)  # noqa: E731
    brute_force = lambda number: optuna.samplers.BruteForceSampler(seed=number)  # noqa: E731
    asked = [(grid, 9, 2), (grid, 9, 2), (random_sampler, 3, 3), (brute_force, 9, 4), (brute_force, 9, 4)]
    for sampler, n_trials, n_ended in asked:
        optimize(study, file, n_trials, space, sampler, value_of_x)
        assert states(study) == ["COMPLETE"] * n_ended
    assert study.best_value == 0.5


def test_a_waiting_trial_is_run_though_its_sampler_has_no_more(tmp_path: Path) -> None:
    """It is that of an interrupted one."""
    study = run_trials(tmp_path / "a.db", 1)
    study.set_user_attr(study_module.EXHAUSTED, "RandomSampler")
    study.enqueue_trial({"x": 0.25})
    assert states(run_trials(tmp_path / "a.db", 3)) == ["COMPLETE", "COMPLETE"]
    assert study.trials[1].params == {"x": 0.25}


def test_a_trial_that_another_process_runs_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.db"
    study = open_study(file, {}, NO_PRUNER)
    trial, lock = study.ask(SPACE), study_module._lock(file, 0)

    def end(seconds: float) -> None:
        study.tell(trial, 0.5)
        lock.release()

    monkeypatch.setattr(study_module.time, "sleep", end)
    with lock:
        optimize(study, file, 1, SPACE, random_sampler, value_of_x)
    assert states(study) == ["COMPLETE"]


def test_an_interrupted_trial_is_run_again_once(tmp_path: Path) -> None:
    def interrupt(trial: optuna.Trial) -> float:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_trials(tmp_path / "a.db", 2, interrupt)
    study = run_trials(tmp_path / "a.db", 2)
    assert states(study) == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    params = [trial.params["x"] for trial in study.trials]
    assert params[0] == params[1]  # the retry
    assert len(set(params[1:])) == 3


def test_a_trial_may_end_while_interrupted_ones_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends after the trials are listed, and before its lock is tried."""
    file = tmp_path / "a.db"
    study = open_study(file, {}, NO_PRUNER)
    study.ask(SPACE)
    lock = study_module._lock

    def end_and_lock(file: Path, name: str | int) -> FileLock:
        if name == 0 and study.trials[0].state is optuna.trial.TrialState.RUNNING:
            study.tell(0, 0.5)
        return lock(file, name)

    monkeypatch.setattr(study_module, "_lock", end_and_lock)
    assert states(run_trials(file, 2)) == ["COMPLETE", "COMPLETE"]


@pytest.mark.slow
def test_processes_share_a_study_and_retry_the_trial_of_a_killed_one(tmp_path: Path) -> None:
    file = tmp_path / "a.db"

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 0:  # another process asks for the same number of trials while this one runs
            script = "import test_study, pathlib; test_study.run_trials(pathlib.Path('a.db'), 3, test_study.kill_at_2)"
            environment = {"PYTHONPATH": str(Path(__file__).parent) + ":" + str(Path(__file__).parents[1])}
            done = subprocess.run(
                [sys.executable, "-c", script],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == -signal.SIGKILL, done.stderr
        return value_of_x(trial)

    study = run_trials(file, 3, objective)
    assert states(study) == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[3].params == study.trials[2].params


def kill_at_2(trial: optuna.Trial) -> float:
    if trial.number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return value_of_x(trial)


def test_a_failed_trial_does_not_end_the_study(tmp_path: Path) -> None:
    def fail(trial: optuna.Trial) -> float:
        if trial.number == 0:
            raise RuntimeError("out of memory")
        if trial.number == 3:
            raise UserError("model.epochs must be an integer")
        return float("nan") if trial.number == 2 else value_of_x(trial)

    study = run_trials(tmp_path / "a.db", 5, fail)
    assert states(study) == ["FAIL", "COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert [trial.user_attrs.get("error") for trial in study.trials] == [
        "RuntimeError: out of memory",
        None,
        "ValueError: the validation metric is nan",
        "model.epochs must be an integer",  # once a trial is complete
        None,
    ]


def test_an_error_of_the_user_ends_the_study_at_its_first_trial(tmp_path: Path) -> None:
    def fail(trial: optuna.Trial) -> float:
        raise UserError("model.epochs must be an integer")

    with pytest.raises(UserError, match="must be an integer"):
        run_trials(tmp_path / "a.db", 4, fail)
    assert states(run_trials(tmp_path / "a.db", 1)) == ["FAIL", "COMPLETE"]


def test_a_study_with_other_settings_is_refused(tmp_path: Path) -> None:
    run_trials(tmp_path / "a.db", 1, seed=1)
    with pytest.raises(UserError, match=r"a.db: its trials have seed=1, not 2, and are not comparable"):
        run_trials(tmp_path / "a.db", 2, seed=2)
    with pytest.raises(UserError, match=r"its trials have epochs=None, not 3"):
        run_trials(tmp_path / "a.db", 2, seed=1, epochs=3)
    with pytest.raises(UserError, match=r"its trials have seed=1, not None"):
        run_trials(tmp_path / "a.db", 2, epochs=None)


def test_a_file_that_is_no_study_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("no database")
    with pytest.raises(UserError, match=r"a\.db is not a database of Optuna"):
        run_trials(tmp_path / "a.db", 1)


def test_a_folder_of_studies_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "a.locks")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"a\.db: Permission denied; set another folder with paths\.studies="):
        run_trials(tmp_path / "a.db", 1)


class Constant(LightningModule):
    """Logs the same validation value after every epoch."""

    def __init__(self, value: float, name: str) -> None:
        super().__init__()
        self.value, self.name = value, name
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        return self.weight.sum()

    def validation_step(self, batch: torch.Tensor, _: int) -> None:
        self.log(self.name, self.value)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_trial_below_the_median_is_pruned_after_its_second_epoch(tmp_path: Path) -> None:
    study = optuna.create_study(
        direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=1)
    )
    data = DataLoader(torch.zeros(2, 1))

    def fit(value: float, name: str = "val/mrr@20") -> optuna.Trial:
        trial = study.ask()
        lightning = trainer(tmp_path, max_epochs=3, callbacks=[PruningCallback(trial, "val/mrr@20")])
        lightning.fit(Constant(value, name), data, data)
        study.tell(trial, value)
        return trial

    fit(0.2)
    assert study.trials[0].intermediate_values == pytest.approx({0: 0.2, 1: 0.2, 2: 0.2})
    with pytest.raises(optuna.TrialPruned):
        fit(0.1)
    assert list(study.trials[1].intermediate_values) == [0, 1]
    fit(0.3)
    fit(0.1, "session/val/mrr@20")  # the stage of a part is not pruned
    trial = study.ask()
    checking: Any = SimpleNamespace(sanity_checking=True, callback_metrics={"val/mrr@20": 0.1}, current_epoch=0)
    PruningCallback(trial, "val/mrr@20").on_validation_end(checking, None)  # type: ignore[arg-type]
    assert study.trials[trial.number].intermediate_values == {}

"""A run folder has one owner and a record that holds; a resumed run has the settings that it was started with."""

import hashlib
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from arnn_lightning.errors import UserError
from arnn_lightning.run_folder import (
    add_stored_overrides,
    as_override,
    locked,
    record,
    resumed_config,
    stored_config,
    write_record,
)
from arnn_lightning.run_folder.compare import require_growth
from arnn_lightning.tasks import train
from arnn_lightning.training.callbacks import EpochProgress
from commandline import NO_BASELINES, SMALL, arnn, arnn_here, metrics_of
from helpers import compose_config
from models import slow

GRU = [*SMALL, "model=gru4rec", *NO_BASELINES]
Run = tuple[int, str, str]


class Killed(BaseException):
    """What a test raises within a run."""


def kill(*_: Any) -> None:
    raise Killed


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of one epoch, one of them copied as interrupted, and a finished multirun."""
    folder = tmp_path_factory.mktemp("workspace")
    arnn(folder, *GRU, "evaluation.groups=[country]", "hydra.run.dir=run")
    shutil.copytree(folder / "run", folder / "interrupted")
    for name in ("metrics.json", "checkpoints/done"):
        (folder / "interrupted" / name).unlink()
    arnn(folder, "-m", *SMALL, "model=pop", "seed=1,2", "hydra.sweep.dir=grid")
    return folder


@pytest.fixture(autouse=True)
def in_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)


def contents(folder: Path) -> dict[Path, str]:
    return {path: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*GRU, "hydra.run.dir=run"], "contains a finished run; pass resume=true to show"),
        ([*GRU, "hydra.run.dir=interrupted"], "contains an interrupted run; pass resume=true to resume it"),
        (["resume=true"], "resume=true needs the folder to resume: add hydra.run.dir=FOLDER"),
        (["resume=true", "hydra.run.dir=rum"], "resume=true: rum contains no run; leave out resume=true"),
        (["resume=true", "hydra.run.dir=grid"], "contains no run but a multirun: add hydra.sweep.dir=grid instead"),
        (["resume=true", "hydra.run.dir=run", "seed=9"], "seed=9: "),
        (["resume=true", "hydra.run.dir=run", "performance.threads=2"], "was started with 1; resume"),
        (["resume=true", "hydra.run.dir=run", "model=pnn"], "model=pnn: run was started with gru4rec"),
        (["resume=true", "hydra.run.dir=run", "data=movielens"], "data=movielens: run was started with synthetic"),
        (["resume=true", "hydra.run.dir=interrupted", "model.optimizer.lr=0.5"], "was started with 0.07; resume it"),
        (["resume=true", "hydra.run.dir=run", "data.contexts.assignment=permuted"], "was started with own; resume"),
        (["resume=true", "hydra.run.dir=run", "performance.steps_per_execution=7"], "was started with 10; resume"),
        (
            ["resume=true", "hydra.run.dir=run", "checkpoint.users=false"],
            "resume it with that value, or use another folder; to share the model without users, export it",
        ),
        (["resume=true", "hydra.run.dir=run", "trainer=ddp"], "trainer=ddp: run was started with default"),
        ([*GRU, "hydra.run.dir=run", "resume=true", "model.epochs=1"], "a resumed run may train longer, not shorter"),
        (["task=report", "runs=run", "hydra.run.dir=run"], "contains a run of task=train; use another"),
        (["task=prepare", "resume=true", "hydra.run.dir=run"], "task=prepare has nothing to resume"),
        (["task=evaluate", "checkpoint=run", "hydra.run.dir=run"], "contains a run of task=train; use another"),
        (["-m", *SMALL, "model=itemknn", "hydra.sweep.dir=grid"], "grid contains a multirun: pass resume=true"),
        (["-m", "resume=true", "hydra.sweep.dir=grid", "seed=1,3"], "seed=1,3: grid was started with 1,2"),
        (["-m", "resume=true", "hydra.sweep.dir=run"], "resume=true: run contains no multirun"),
        (["-m", "resume=true"], "add hydra.sweep.dir=FOLDER"),
        (["--multirun", "resume=true", "hydra.run.dir=run"], "add hydra.sweep.dir=FOLDER"),
        (["resume=true", "hydra.run.dir=null"], "resume=true needs the folder to resume: add hydra.run.dir=FOLDER"),
        (
            ["-m", "resume=true", "hydra.sweep.dir=grid", "performance.threads=2"],
            "grid was started with its default; resume",
        ),
        (["resume=true", "hydra.sweep.dir=grid", "seed=1,3"], "seed=1,3: grid was started with 1,2"),
        ([*GRU, "init_from=nothing", "hydra.run.dir=new/inner/run"], "no checkpoint at nothing"),
        (["data=gowalla", "data.raw_dir=null"], "data.raw_dir=null: must be the folder of loc-gowalla_totalCheckins"),
        (["data=tabular", "data.events=no.csv", "model=pop"], "data.events: no.csv is not a file"),
    ],
)
def test_a_refused_command_changes_no_byte_of_a_folder(
    arguments: list[str],
    message: str,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = contents(workspace)
    assert arnn_here(arguments, monkeypatch) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert contents(workspace) == before
    assert not Path("new").exists()
    assert not Path("outputs").exists()


def test_a_refused_command_keeps_the_folders_that_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine").mkdir()
    assert arnn_here([*GRU, "init_from=nothing", "hydra.run.dir=mine/new/run"], monkeypatch) == 2
    assert not list(Path("mine").iterdir())


@pytest.mark.parametrize("arguments", [["seed=1"], ["resume=false", "seed=1"], ["-m", "resume=null"]])
def test_without_resume_a_command_line_stays_as_it_is(arguments: list[str]) -> None:
    assert add_stored_overrides(arguments) == arguments


def test_a_record_ends_with_what_makes_the_folder_a_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed before has left nothing to resume."""
    written: list[str] = []
    config = compose_config(with_hydra=True)
    monkeypatch.setattr(HydraConfig, "get", lambda: config.hydra)
    monkeypatch.setattr(record, "write_text", lambda file, _: written.append(file.name))
    write_record(config, Path("run"))
    assert written == ["overrides.yaml", "hydra.yaml", "config.yaml"]


def test_a_record_of_other_bytes_is_damaged(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"config\.yaml: missing or damaged"):
        stored_config(tmp_path)


def test_a_task_that_succeeds_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arnn_here(["task=report", "runs=run", "hydra.run.dir=report"], monkeypatch) == 0
    assert stored_config(Path("report")).task._target_ == "arnn_lightning.tasks.report.run"


@pytest.mark.parametrize(
    ("name", "length", "command"),
    [
        ("grid/multirun.yaml", 0, ["resume=true", "hydra.sweep.dir=grid"]),
        ("grid/multirun.yaml", 0, [*SMALL, "-m", "resume=true", "hydra.sweep.dir=grid", "seed=1,2"]),
        ("grid/multirun.yaml", "  runtime:", ["resume=true", "hydra.sweep.dir=grid"]),
        ("interrupted/.hydra/config.yaml", 0, ["resume=true", "hydra.run.dir=interrupted"]),
        ("interrupted/.hydra/hydra.yaml", 0, ["resume=true", "hydra.run.dir=interrupted"]),
        ("interrupted/.hydra/overrides.yaml", 0, ["resume=true", "hydra.run.dir=interrupted"]),
        ("interrupted/.hydra/weights.json", 0, ["resume=true", "hydra.run.dir=interrupted"]),
        ("run/.hydra/config.yaml", 0, ["task=report", "runs=grid", "hydra.run.dir=run"]),
    ],
)
def test_an_incomplete_record_is_one_line(
    name: str, length: int | str, command: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = Path(name)
    content = file.read_text() if file.is_file() else None
    file.write_text((content or "")[: length if isinstance(length, int) else (content or "").index(length)])
    try:
        assert arnn_here(command, monkeypatch) == 2
    finally:
        if content is None:
            file.unlink()
        else:
            file.write_text(content)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.endswith(f"{name}: missing or damaged; start a new run in another folder")


def test_a_job_in_the_folder_of_another_run_changes_nothing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(Path("run"))
    job = ["-m", *SMALL, "model=pop", "hydra.sweep.dir=other", "hydra.sweep.subdir=../run"]
    assert arnn_here(job, monkeypatch) == 2
    assert contents(Path("run")) == before


@pytest.mark.parametrize(
    "command",
    [
        ["hydra.run.dir=run", "resume=true"],
        ["-m", "hydra.sweep.dir=grid", "resume=true"],
        ["-m", *SMALL, "model=pop", "hydra.sweep.dir=grid", "seed=1,2"],
    ],
)
def test_a_folder_in_use_is_refused_at_once(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = next(text for text in command if text.startswith("hydra.")).partition("=")[2]
    lock = Path(folder, ".lock")
    with FileLock(lock):
        for owner in ("process 7 on laptop", ""):
            lock.write_text(owner)
            assert arnn_here(command, monkeypatch) == 2
            assert f"is in use by {owner or 'another process'}; use another hydra." in capfd.readouterr().err


def test_the_owner_of_a_folder_is_named(tmp_path: Path) -> None:
    owner = rf"{tmp_path} is in use by process {os.getpid()} on \S+; use another hydra\.run\.dir"
    with locked(tmp_path), pytest.raises(UserError, match=owner), locked(tmp_path):
        pass


def test_a_folder_without_a_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}: Is a directory$"), locked(tmp_path):
        pass


def test_resume_with_a_folder_alone_shows_the_finished_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(Path("run"))
    free = ["evaluation.bootstrap.resamples=9", "logger=none", "evaluation.batch_size=7"]  # cannot change a result
    assert arnn_here(["resume=true", "hydra.run.dir=run", *free], monkeypatch) == 0
    printed = capfd.readouterr().out
    assert "gru4rec" in printed
    assert "run folder: run\n" in printed
    assert contents(Path("run")) == before
    assert arnn_here(["resume=true", "hydra.sweep.dir=grid"], monkeypatch) == 0
    assert "grid: 2 jobs, 0 failed" in capfd.readouterr().out


def test_groups_shown_again_have_the_bootstrap_of_their_intervals(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """They are not computed again, while the table of results is."""
    confidence = "evaluation.bootstrap.confidence=0.5"
    assert arnn_here(["resume=true", "hydra.run.dir=run", confidence], monkeypatch) == 0
    results, groups = capfd.readouterr().out.split("by country")
    assert "50 %" in results
    assert "95 %" in groups
    assert "50 %" not in groups


@pytest.mark.parametrize("name", ["metrics.json", "test_ranks.parquet", "test_lists.parquet"])
def test_damaged_results_of_a_finished_run_are_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = Path("run", name)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    try:
        assert arnn_here(["resume=true", "hydra.run.dir=run"], monkeypatch) == 2
    finally:
        file.write_bytes(content)
    (line,) = capfd.readouterr().err.splitlines()
    assert "run: its results are missing or damaged" in line


@pytest.mark.parametrize("damage", [{"first_items": {"answer": "pnn"}}, {"groups": {"age": [1]}}, {"baselines": 3}])
def test_results_of_another_form_are_one_line(
    damage: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = Path("run", "metrics.json")
    content = file.read_text()
    file.write_text(json.dumps(json.loads(content) | damage))
    try:
        assert arnn_here(["resume=true", "hydra.run.dir=run"], monkeypatch) == 2
    finally:
        file.write_text(content)
    (line,) = capfd.readouterr().err.splitlines()
    assert "run: its results are missing or damaged" in line


def test_the_command_that_resumes_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("my runs, new/1").absolute()
    runtime = SimpleNamespace(output_dir=str(folder))
    config = SimpleNamespace(runtime=runtime, mode=RunMode.RUN, sweep=SimpleNamespace(dir="grid 1"))
    monkeypatch.setattr(train, "HydraConfig", SimpleNamespace(get=lambda: config))
    monkeypatch.setattr(train, "has_record", lambda _: True)
    for mode, key, path in (
        (RunMode.RUN, "hydra.run.dir", "my runs, new/1"),
        (RunMode.MULTIRUN, "hydra.sweep.dir", "grid 1"),
    ):
        config.mode = mode
        override = OverridesParser.create().parse_override(shlex.split(train._how_to_resume())[-1])
        assert (override.key_or_group, override.value()) == (key, path)


@pytest.mark.parametrize(
    "path", ["runs/1", "20261129_103200", "1e3", "null", "true", "-1", "a b,c", 'a"b', 'a\\"b', "a\\", "a\\\\", "C:\\x"]
)
def test_paths_of_overrides_are_read_as_written(path: str) -> None:
    override = OverridesParser.create().parse_override(as_override("hydra.run.dir", path))
    assert override.value() == path


def test_a_resumed_run_may_set_a_path_to_null(monkeypatch: pytest.MonkeyPatch) -> None:
    hydra = SimpleNamespace(runtime=SimpleNamespace(choices={}), overrides=SimpleNamespace(task=["data.titles=null"]))
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    config = OmegaConf.load("run/.hydra/config.yaml")
    shutil.copytree("run/.hydra", "titled/.hydra")
    OmegaConf.update(config, "data.titles", "items.csv", force_add=True)
    OmegaConf.save(config, "titled/.hydra/config.yaml")
    config.data.titles = None
    resumed, is_longer = resumed_config(config, Path("titled"))
    assert (resumed.data.titles, is_longer) == (None, False)


def test_an_error_in_a_folder_that_vanished_is_raised(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()

    def remove() -> None:
        with locked(folder):
            shutil.rmtree(folder)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        remove()


def test_a_trial_that_is_resumed_has_no_table(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("run", "trial")
    metrics = {"data": "synthetic", "model": "gru4rec", "seed": 1, "val": {"mrr@20": 0.1}}
    Path("trial/metrics.json").write_text(json.dumps(metrics))
    assert arnn_here(["resume=true", "hydra.run.dir=trial"], monkeypatch) == 0
    assert "trial is a trial: its validation metrics are in metrics.json, it has no test" in capfd.readouterr().out
    Path("trial/metrics.json").write_text("{}")
    assert arnn_here(["resume=true", "hydra.run.dir=trial"], monkeypatch) == 2
    assert "trial: its results are missing or damaged" in capfd.readouterr().err


def test_what_ends_before_its_record_cannot_be_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is a job of a multirun."""
    runtime = SimpleNamespace(output_dir="unrecorded")
    config = SimpleNamespace(runtime=runtime, mode=RunMode.RUN, sweep=SimpleNamespace(dir="grid"))
    monkeypatch.setattr(train, "HydraConfig", SimpleNamespace(get=lambda: config))
    assert train._how_to_resume() == "Interrupted before training started: there is nothing to resume.\n"
    config.mode = RunMode.MULTIRUN
    assert train._how_to_resume().endswith("resume=true hydra.sweep.dir=grid\n")


def test_a_multirun_is_not_resumed_with_fewer_epochs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("grid", "long")
    record = Path("long/multirun.yaml")
    record.write_text(record.read_text().replace("trainer.max_epochs=1", "trainer.max_epochs=3"))
    assert arnn_here(["resume=true", "hydra.sweep.dir=long", "trainer.max_epochs=2"], monkeypatch) == 2
    assert "trainer.max_epochs=2: long has 3; a resumed run may train longer" in capfd.readouterr().err


def test_no_limit_is_more_epochs_than_any(tmp_path: Path) -> None:
    require_growth("model.epochs", 3, None, tmp_path)
    with pytest.raises(UserError, match=r"model\.epochs=3: .* has null; a resumed run may train longer"):
        require_growth("model.epochs", None, 3, tmp_path)


def resumed(stored: list[str], given: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, bool]:
    """The config of a run with the settings ``stored`` that is resumed with those ``given``, and whether it is longer.

    The record lacks a setting, as one of an older version does.
    """
    for overrides in (stored, [*stored, *given]):
        config = compose_config(*overrides, with_hydra=True)
        hydra = config.hydra
        monkeypatch.setattr(HydraConfig, "get", lambda hydra=hydra: hydra)
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        if overrides is stored:
            del config.trainer["deterministic"]
            config.model.hidden_size = 9  # of a file that is no more
            write_record(config, folder)
    return resumed_config(config, folder)


def test_an_encoder_may_be_trained_for_more_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, is_longer = resumed(["model.session.epochs=1"], ["model.session.epochs=2"], tmp_path, monkeypatch)
    assert is_longer
    assert config.model.session.epochs == 2


def test_a_resumed_run_has_the_loggers_that_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, is_longer = resumed(["logger=csv"], ["logger=none"], tmp_path, monkeypatch)
    assert not is_longer
    assert (config.logger, config.model.hidden_size) == ({}, 9)


def test_a_resumed_run_keeps_its_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^baselines\.pop=null: .* was started with "):
        resumed([], ["~baselines.pop"], tmp_path, monkeypatch)


def test_a_setting_newer_than_the_record_has_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = resumed([], [], tmp_path, monkeypatch)
    assert config.trainer == compose_config().trainer


def test_settings_that_changed_since_are_those_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree("interrupted", "older")
    tuned = Path("arnn_conf/tuned/synthetic_gru4rec_top1_adagrad.yaml")
    tuned.parent.mkdir(parents=True)
    tuned.write_text("hidden_size: 9\n")
    assert arnn_here(["resume=true", "hydra.run.dir=older"], monkeypatch) == 0
    shutil.rmtree("arnn_conf")
    assert metrics_of(Path("older"))["test"] == metrics_of(Path("run"))["test"]


def test_a_run_resumes_without_the_run_it_started_from(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its weights are in the run's checkpoint; before there is one, the same weights are needed."""
    shutil.copytree("run", "source")
    best = Path("source/checkpoints/best.ckpt")
    assert arnn_here([*GRU, "init_from=source", "hydra.run.dir=started"], monkeypatch) == 0
    whole = metrics_of(Path("started"))
    assert whole["init_from"]["model"]["sha256"] == hashlib.sha256(best.read_bytes()).hexdigest()
    for name in ("metrics.json", "checkpoints/done"):
        Path("started", name).unlink()
    shutil.copytree("started", "unbegun")
    shutil.rmtree("source")
    assert arnn_here(["resume=true", "hydra.run.dir=started"], monkeypatch) == 0
    resumed = metrics_of(Path("started"))
    assert [resumed[key] for key in ("test", "init_from")] == [whole[key] for key in ("test", "init_from")]
    Path("unbegun/checkpoints/last.ckpt").unlink()
    capfd.readouterr()
    assert arnn_here(["resume=true", "hydra.run.dir=unbegun"], monkeypatch) == 2
    assert "error: no checkpoint at source" in capfd.readouterr().err
    best.parent.mkdir(parents=True)
    shutil.copy("started/checkpoints/best.ckpt", best)
    assert arnn_here(["resume=true", "hydra.run.dir=unbegun"], monkeypatch) == 2
    assert "init_from.model: source/checkpoints/best.ckpt has changed since" in capfd.readouterr().err


@pytest.mark.parametrize("model", ["gru4rec", slow("arnn")])
def test_a_finished_run_is_trained_for_more_epochs(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ARNN's encoders too; what was trained on top of them is trained anew."""
    settings = [*GRU, f"model={model}"]
    assert arnn_here([*settings, f"hydra.run.dir=short_{model}"], monkeypatch) == 0
    shutil.move(f"short_{model}", f"longer_{model}")  # the best score survives a move
    longer, whole = Path(f"longer_{model}"), Path(f"whole_{model}")
    assert arnn_here(["resume=true", f"hydra.run.dir={longer}", "trainer.max_epochs=2"], monkeypatch) == 0
    assert arnn_here([*settings, "trainer.max_epochs=2", f"hydra.run.dir={whole}"], monkeypatch) == 0
    assert metrics_of(longer)["test"] == metrics_of(whole)["test"]
    assert metrics_of(longer)["encoders"] == metrics_of(whole)["encoders"]
    ranks = [pl.read_parquet(folder / "test_ranks.parquet") for folder in (longer, whole)]
    assert ranks[0].equals(ranks[1])
    assert OmegaConf.load(longer / ".hydra" / "config.yaml").trainer.max_epochs == 2
    overrides = [OmegaConf.load(folder / ".hydra" / "overrides.yaml") for folder in (longer, whole)]
    assert sorted(overrides[0]) == sorted(overrides[1])


def test_a_longer_run_that_is_killed_has_no_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of fewer epochs are not its checkpoints' any more; resume=true alone trains to the end."""
    shutil.copytree("run", "killed")
    longer = ["resume=true", "hydra.run.dir=killed", "trainer.max_epochs=3"]
    with monkeypatch.context() as patch:
        patch.setattr(EpochProgress, "on_train_epoch_end", kill)
        with pytest.raises(Killed):
            arnn_here(longer, monkeypatch)
    assert not Path("killed/metrics.json").exists()
    assert arnn_here(["resume=true", "hydra.run.dir=killed"], monkeypatch) == 0
    assert metrics_of(Path("killed"))["resumed"]
    assert "resumed" not in metrics_of(Path("run"))
    assert arnn_here([*GRU, "hydra.run.dir=three", "trainer.max_epochs=3"], monkeypatch) == 0
    assert metrics_of(Path("killed"))["test"] == metrics_of(Path("three"))["test"]


def test_a_longer_run_that_is_refused_keeps_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree("run", "damaged")
    Path("damaged/checkpoints/last.ckpt").write_text("")
    before = contents(Path("damaged"))
    assert arnn_here(["resume=true", "hydra.run.dir=damaged", "trainer.max_epochs=3"], monkeypatch) == 2
    after = contents(Path("damaged"))
    changed = {path.name for path in before if after.get(path) != before[path]}
    assert changed <= {"cli.log", "metrics.csv"}

"""A multirun: a failing job does not stop the others, and a table of all is printed at the end."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from arnn_lightning.cli import check
from arnn_lightning.run_folder import add_stored_overrides
from arnn_lightning.sweeps.jobs import KILLED
from commandline import SMALL, arnn, arnn_here, error_line, metrics_of
from helpers import compose_config

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=4", "hydra.sweep.dir=sweep"]


def outcomes(folder: Path) -> list[dict[str, Any]]:
    outcomes = [json.loads(path.read_text()) for path in (folder / ".outcomes").iterdir()]
    return sorted(outcomes, key=lambda outcome: outcome["job"])


def test_a_failed_job_does_not_stop_the_others_of_its_multirun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    sweep = ["-m", *SMALL, "hydra.sweep.dir=sweep", "model=pop,itemknn", "evaluation.ties=luck,median"]
    assert arnn_here([*sweep, "evaluation.monitor=recall@10"], monkeypatch) == 2
    captured = capfd.readouterr()
    assert captured.err.count("error: evaluation.ties=luck: must be one of") == 2
    assert "Traceback" not in captured.err
    assert "sweep: 4 jobs, 2 failed" in captured.out
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in captured.out.split("jobs, 2 failed")[1].splitlines()
    ]
    table = [row for row in rows if len(row) == 4]
    assert [row[1] for row in table] == [
        f"model={model} evaluation.ties={ties}" for model in ("pop", "itemknn") for ties in ("luck", "median")
    ]
    assert [row[3].split(":")[0] for row in table] == ["failed", "done"] * 2
    values = [outcome["value"] for outcome in outcomes(tmp_path / "sweep")]
    assert values[0] is None
    assert values[1] == metrics_of(tmp_path / "sweep/1")["val"]["recall@10"]
    assert "validation Recall@10" in captured.out
    assert table[1][2] == f"{values[1]:.4f}"
    assert [metrics_of(tmp_path / "sweep" / job)["model"] for job in ("1", "3")] == ["pop", "itemknn"]


def test_batches_of_jobs_after_a_failed_job_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = ["task._target_=operator.neg,builtins.len", "hydra.sweeper.max_batch_size=1"]
    assert arnn_here(["-m", *jobs, "hydra.sweep.dir=sweep"], monkeypatch) == 1
    captured = capfd.readouterr()
    assert "TypeError: bad operand type for unary -" in captured.err
    assert [outcome["error"] is None for outcome in outcomes(tmp_path / "sweep")] == [False, True]


def test_a_resumed_multirun_has_the_jobs_and_folders_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Jobs in their order, with the launcher and the names of folders that it was started with."""
    monkeypatch.chdir(tmp_path)
    name = "hydra.sweep.subdir=${hydra:job.override_dirname}"
    task = ["task._target_=builtins.len", "seed=1,2", "model=pop,sr", "data.note='seed ${seed}'"]
    overrides = {"task": task, "hydra": [name, "hydra/launcher=joblib", "hydra.mode=MULTIRUN", "hydra.sweep.dir=sweep"]}
    excluded = {"config": {"override_dirname": {"exclude_keys": ["data.note"]}}}
    sweep = {"dir": "sweep", "subdir": name.partition("=")[2]}
    record = {"overrides": overrides, "job": excluded, "sweep": sweep, "verbose": False}
    Path("sweep").mkdir()
    OmegaConf.save(OmegaConf.create({"hydra": record}), "sweep/multirun.yaml")
    assert add_stored_overrides(["-m", "logger=none", "model=pop,sr", "resume=true", "hydra.sweep.dir=sweep"]) == [
        *("-m", "-m", *task, name, "hydra/launcher=joblib", "hydra.sweep.dir=sweep"),
        "hydra.job.config.override_dirname.exclude_keys=[data.note,resume,logger]",  # new folders otherwise
        *("logger=none", "resume=true"),
    ]
    again = ["resume=true", "hydra.sweep.dir=sweep", "hydra/launcher=basic", "hydra.sweep.subdir=other"]
    assert arnn_here(again, monkeypatch) == 2
    assert "hydra.sweep.subdir=other: sweep was started with ${hydra:job.override_dirname}" in capfd.readouterr().err


def test_an_unexpected_error_of_a_job_shows_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert arnn_here(["-m", "task._target_=json.dumps", "seed=1,2", "hydra.sweep.dir=sweep"], monkeypatch) == 1
    assert capfd.readouterr().err.count("Traceback") >= 2
    assert ["not JSON serializable" in outcome["error"] for outcome in outcomes(tmp_path / "sweep")] == [True, True]


@pytest.mark.slow
def test_the_summary_leaves_out_jobs_of_other_multiruns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seeds, folder in (("1,2,3", "sweeps/first"), ("1,2", "sweeps")):
        jobs = ["-m", "task._target_=builtins.len", f"seed={seeds}", f"hydra.sweep.dir={folder}"]
        assert arnn_here(jobs, monkeypatch) == 0
    assert "sweeps: 2 jobs, 0 failed" in capfd.readouterr().out
    assert len(outcomes(tmp_path / "sweeps/first")) == 3


@pytest.mark.slow
def test_a_killed_process_of_a_multirun_keeps_the_others_results(tmp_path: Path) -> None:
    """It is one line; the multirun is resumed by its folder alone."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "job.py").write_text(
        "import os, pathlib, signal, time\n"
        "def run(config):\n"
        "    while config.seed == 2 and not config.resume:\n"
        "        if any('1.0' in file.read_text() for file in pathlib.Path('sweep/.outcomes').glob('0.json')):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        time.sleep(0.1)\n"
        "    return float(config.seed)\n"
    )
    done = arnn(tmp_path, "-m", *JOBLIB, "task._target_=job.run", "seed=1,2", code=1)
    assert error_line(done).endswith("resume with the same command plus resume=true hydra.sweep.dir=sweep")
    assert "sweep: 2 jobs, 1 failed" in done.stdout
    assert [outcome["error"] for outcome in outcomes(tmp_path / "sweep")] == [None, KILLED]
    assert "sweep: 2 jobs, 0 failed" in arnn(tmp_path, "resume=true", "hydra.sweep.dir=sweep").stdout


@pytest.mark.slow
def test_four_parallel_jobs_share_one_prepared_data_set(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = arnn(tmp_path, "-m", *JOBLIB, *SMALL, "task=prepare", "seed=1,2,3,4")
    assert "sweep: 4 jobs, 0 failed" in done.stdout
    assert len(list((tmp_path / "data" / "prepared").glob("synthetic-*/manifest.json"))) == 1


@pytest.mark.slow
def test_a_failed_job_of_joblib_does_not_stop_the_others(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = arnn(tmp_path, "-m", *JOBLIB, *SMALL, "task=prepare", "data.min_session_length=1,2", code=2)
    assert "sweep: 2 jobs, 1 failed" in done.stdout
    assert error_line(done).startswith("error: data.min_session_length=1")


@pytest.mark.slow
def test_the_experiment_of_table_2_is_the_grid_of_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = Path(__file__).parents[2] / "conf" / "experiment" / "table2.yaml"
    assert OmegaConf.load(conf).hydra.sweeper.params.model == "itemknn,gru4rec,pnn,arnn"
    monkeypatch.chdir(tmp_path)
    grid = ["experiment=table2", *SMALL, "data=synthetic", "model=itemknn,pop", "seed=1,2", "hydra.sweep.dir=table2"]
    assert arnn_here(grid, monkeypatch) == 0
    metrics = [metrics_of(tmp_path / "table2" / str(job)) for job in range(4)]
    assert [(run["model"], run["seed"]) for run in metrics] == [("itemknn", 1), ("itemknn", 2), ("pop", 1), ("pop", 2)]


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "experiments/wandb").glob("*.yaml")))
def test_every_key_swept_by_weights_and_biases_has_an_effect(file: Path) -> None:
    sweep: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    fixed = [argument for argument in sweep["command"] if "=" in argument]
    assert sweep["command"][-1] == "${args_no_hyphens}"
    config = compose_config(*fixed)
    assert sweep["metric"] == {"name": "val/mrr@20", "goal": "maximize"}
    for key, space in sweep["parameters"].items():
        assert not OmegaConf.is_config(OmegaConf.select(config, key)), "it would hide a block of the config"
        first, *_, last = space["values"] if "values" in space else (space["min"], space["max"])
        for value in (first, last):
            run = compose_config(*fixed, f"{key}={value}", with_hydra=True)
            assert OmegaConf.select(run, key) == value
            check(run, run.hydra)

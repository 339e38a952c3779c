"""A multirun: one job's failure stops no other, and all are told of at the end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from commandline import SMALL, arnn, arnn_here, metrics_of
from helpers import compose_config

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=8", "hydra.sweep.dir=sweep"]


def outcomes(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in folder.glob("*/outcome.json")]
    return sorted(found, key=lambda one: one["job"])


def test_the_jobs_beside_a_failed_one_go_on_and_all_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARNN_DATA", raising=False)
    sweep = ["-m", *SMALL, "hydra.sweep.dir=sweep", "model=pop,itemknn", "evaluation.ties=luck,median"]
    assert arnn_here(sweep, monkeypatch) == 2
    shown = capfd.readouterr()
    assert "sweep: 4 jobs, 2 failed" in shown.out
    assert shown.err.count("error: evaluation.ties=luck") == 2  # at once
    told = [line for line in shown.err.splitlines() if line.startswith("error: job ")]  # and at the end
    assert told[0].startswith("error: job 0 (model=pop evaluation.ties=luck): evaluation.ties=luck: must be")
    assert told[1].startswith("error: job 2 (model=itemknn evaluation.ties=luck): ")
    assert "Traceback" not in shown.err
    assert [metrics_of(tmp_path / "sweep" / job)["model"] for job in ("1", "3")] == ["pop", "itemknn"]
    values = [one["value"] for one in outcomes(tmp_path / "sweep")]
    assert values[0] is None
    assert values[1] == metrics_of(tmp_path / "sweep/1")["val"]["mrr@20"]
    # The same command goes on with it; another's jobs are refused.
    mended = ["-m", *SMALL, "hydra.sweep.dir=sweep", "model=pop,itemknn", "evaluation.ties=median"]
    assert arnn_here([*mended, "resume=true"], monkeypatch) == 2
    assert "holds the job" in capfd.readouterr().err
    assert arnn_here([*sweep, "resume=true"], monkeypatch) == 2
    assert [one["value"] for one in outcomes(tmp_path / "sweep")] == values


def test_a_defect_shows_its_trace_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert arnn_here(["-m", "task._target_=nowhere.run", "seed=1,2", "hydra.sweep.dir=sweep"], monkeypatch) == 1
    shown = capfd.readouterr().err
    assert shown.count("Traceback") >= 2
    assert "error: job 1 (seed=2): " in shown


def test_eight_jobs_at_once_share_one_preparation(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = arnn(tmp_path, "-m", *JOBLIB, *SMALL, "task=prepare", "seed=1,2,3,4,5,6,7,8")
    assert "sweep: 8 jobs, 0 failed" in done.stdout
    assert len(list((tmp_path / "data" / "prepared").glob("synthetic-*/manifest.json"))) == 1
    assert not [path for path in tmp_path.rglob("*") if "unfinished" in path.name]


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="who holds a lock is read from /proc")
def test_when_the_preparing_job_is_killed_the_others_prepare(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    jobs = [*JOBLIB, *SMALL[1:], "data.generate.events=300000", "task=prepare", "seed=1,2,3,4"]
    started = subprocess.Popen(
        [sys.executable, "-m", "arnn_lightning", "-m", *jobs],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not (holder := lock_holder(tmp_path)):
        assert started.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(holder, signal.SIGKILL)
    shown, errors = started.communicate(timeout=120)
    assert started.returncode == 1, errors
    assert "sweep: 4 jobs, 1 failed" in shown
    (line,) = [line for line in errors.splitlines() if line.startswith("error: job ")]
    assert "it did not end: killed" in line
    assert sum(one["error"] is None for one in outcomes(tmp_path / "sweep")) == 3


def lock_holder(folder: Path) -> int | None:
    """The process that writes the raw files or the prepared data set."""
    inodes = {path.stat().st_ino for path in folder.glob("data/*/*.lock")}
    if not list(folder.glob("data/*/.*unfinished*")):
        return None
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "->" not in words and int(words[5].split(":")[2]) in inodes:
            return int(words[4])
    return None


def test_table2_is_the_papers_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = Path(__file__).parents[2] / "conf" / "experiment" / "table2.yaml"
    assert OmegaConf.load(conf).hydra.sweeper.params.model == "itemknn,gru4rec,pnn,arnn"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARNN_DATA", raising=False)
    grid = ["experiment=table2", *SMALL, "data=synthetic", "model=itemknn,pop", "seed=1,2", "hydra.sweep.dir=table2"]
    assert arnn_here(grid, monkeypatch) == 0
    found = [metrics_of(tmp_path / "table2" / str(job)) for job in range(4)]
    assert [(one["model"], one["seed"]) for one in found] == [("itemknn", 1), ("itemknn", 2), ("pop", 1), ("pop", 2)]


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "experiments/wandb").glob("*.yaml")))
def test_every_key_that_weights_and_biases_sweeps_is_declared(file: Path) -> None:
    sweep: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    fixed = [one for one in sweep["command"] if "=" in one]
    assert sweep["command"][-1] == "${args_no_hyphens}"
    config = compose_config(*fixed)
    assert sweep["metric"] == {"name": "val/mrr@20", "goal": "maximize"}
    for key, values in sweep["parameters"].items():
        value = values["values"][-1] if "values" in values else values["max"]
        assert OmegaConf.select(compose_config(*fixed, f"{key}={value}"), key) == value
        assert not OmegaConf.is_config(OmegaConf.select(config, key)), "it would hide a block of the config"

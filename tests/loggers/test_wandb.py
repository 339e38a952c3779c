"""What Weights & Biases receives, read back from its offline files."""

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from arnn_lightning.errors import UserError
from arnn_lightning.loggers import make_logger
from arnn_lightning.loggers import wandb as wandb_module
from arnn_lightning.loggers.wandb import is_logged_in, is_reachable, override_summary
from commandline import SMALL, arnn
from helpers import CONF
from wandb_file import Read, read

SMALL_WITH_WANDB = [override for override in SMALL if override != "logger=csv"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder, without an account: neither a key nor a netrc file."""
    folder = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(folder / "house"))
        target = "model._target_=arnn_lightning.models.itemknn.ItemKNN,nowhere.Model"  # the second fails
        two = ["model=itemknn", "seed=2", target, "hydra.sweep.dir=two"]
        done = arnn(folder, "-m", *SMALL_WITH_WANDB, *two, code=2)
        assert "Traceback" not in done.stderr
        assert "wandb" not in done.stdout.lower()
        done = arnn(
            folder,
            *(override for override in SMALL_WITH_WANDB if not override.startswith("data.generate")),
            "model=arnn",
            *(f"~baselines.{name}" for name in ("itemknn", "sr", "vsknn")),
            "hydra.run.dir=one",
            "logger.wandb.artifacts=true",
            f"data.raw_dir={raw(folder)}",
        )
        assert "wandb:" not in done.stdout + done.stderr  # its warnings would be every user's first lines
    return folder


def raw(folder: Path) -> Path:
    """The generated files, by an absolute path."""
    (made,) = (folder / "data" / "raw").glob("synthetic-*/")
    return made


@pytest.fixture(scope="module")
def arnn_run(workspace: Path) -> Read:
    return read(workspace / "one")


@pytest.mark.slow
def test_each_job_of_a_multirun_is_one_run_of_its_group(workspace: Path) -> None:
    runs = [read(workspace / "two" / str(job)) for job in range(2)]
    assert len({run.run.run_id for run in runs}) == 2
    assert {run.run.run_group for run in runs} == {"two"}
    assert {run.run.job_type for run in runs} == {"itemknn"}
    names = [run.run.display_name for run in runs]
    assert all(name.startswith("itemknn synthetic seed=2 ") for name in names)
    assert " _target_=arnn_lightning" in names[0]
    assert [run.exit_code for run in runs] == [0, 1]  # each is ended, the failed one as failed


def test_config_is_complete_and_without_absolute_paths(workspace: Path, arnn_run: Read) -> None:
    config = arnn_run.config
    assert config["model"]["session"]["optimizer"]["lr"] > 0
    assert config["model"]["dims"]["n_items"] > 20
    assert config["seed"] == 1
    assert config["data"]["raw_dir"].startswith("data/raw/synthetic-")
    staged = str(workspace / "house/.local/share/wandb/artifacts/staging").encode()  # tables to upload
    assert str(workspace).encode() not in arnn_run.text.replace(staged, b"")
    assert arnn_run.run.host == ""
    files = {path.name for path in (workspace / "one" / "wandb").glob("*/files/*") if path.is_file()}
    assert not files & {"requirements.txt", "wandb-metadata.json", "output.log"}


def test_each_stage_has_its_step_axis(arnn_run: Read) -> None:
    axes = {metric.glob_name or metric.name: metric.step_metric for metric in arnn_run.metrics}
    for stage in ("", "session/", "context/"):
        assert axes[f"{stage}val/*"] == f"{stage}steps"
        assert axes[f"{stage}train/*"] == f"{stage}steps"
        lines = [line for line in arnn_run.history if f"{stage}val/mrr@20" in line]
        assert lines
        assert all(line[f"{stage}steps"] > 0 for line in lines)
        assert all(
            line[f"{other}steps"] == line[f"{stage}steps"]
            for line in lines
            for other in ("", "session/", "context/")
            if f"{other}steps" in line
        ), "a line is on one axis alone"


def test_losses_rates_speed_and_metrics_are_logged(arnn_run: Read) -> None:
    logged = set().union(*arnn_run.history)
    for stage in ("", "session/", "context/"):
        for name in ("train/loss", "train/epoch_loss", "train/lr", "val/recall@20", "test/mrr@20", "test/recall@20"):
            assert stage + name in logged
    lr = next(line["train/lr"] for line in arnn_run.history if "train/lr" in line)
    assert lr == pytest.approx(arnn_run.config["model"]["optimizer"]["lr"])
    assert any(line.get("train/events_per_second", 0) > 0 for line in arnn_run.history)


@pytest.mark.parametrize("by", ["position", "known_attributes"])
def test_group_metrics_are_a_table_and_charts(by: str, workspace: Path, arnn_run: Read) -> None:
    (table,) = (workspace / "one" / "wandb").glob(f"*/files/media/table/test/by_{by}_*.table.json")
    shown = json.loads(table.read_text())
    statistics = ["", "_low", "_high", "_gap", "_gap_low", "_gap_high", "_gap_p"]
    numbers = [f"{metric}{statistic}" for metric in ("recall@20", "mrr@20") for statistic in statistics]
    assert shown["columns"] == ["model", "group", "predictions", "clusters", *numbers]
    rows = [row for row in shown["data"] if row[0] == "arnn"]
    if by == "position":
        assert [row[1] for row in rows] == ["1", "2", "3-4", "5-9", "10+"]
    metrics = json.loads((workspace / "one" / "metrics.json").read_text())["test"]
    assert sum(row[2] for row in rows) == metrics["events"]
    assert sum(row[2] * row[4] for row in rows) / metrics["events"] == pytest.approx(metrics["recall@20"])
    assert sum(row[2] * row[11] for row in rows) / metrics["events"] == pytest.approx(metrics["mrr@20"])
    assert {row[0] for row in shown["data"]} == {"pop", "gru4rec", "pnn", "arnn"}
    for quantity in ("recall@20", "gain_recall@20"):
        assert any(key.startswith(f"_wandb/visualize/test/{quantity}_by_{by}") for key in arnn_run.config)


def test_results_with_intervals_and_lists_are_a_table(workspace: Path) -> None:
    (table,) = (workspace / "one" / "wandb").glob("*/files/media/table/test/results_*.table.json")
    shown = json.loads(table.read_text())
    metrics = json.loads((workspace / "one" / "metrics.json").read_text())["test"]
    row = dict(zip(shown["columns"], shown["data"][-1], strict=True))
    assert row["model"] == "arnn"
    assert row["coverage@20"] == pytest.approx(metrics["coverage@20"])
    assert row["mrr@20_low"] < row["mrr@20"] < row["mrr@20_high"]


def test_checkpoint_and_manifest_are_optional_artifacts(workspace: Path, arnn_run: Read) -> None:
    kinds = {f"arnn-{arnn_run.run.run_id}-{kind}" for kind in ("model", "data")}
    assert kinds <= set(arnn_run.artifacts)
    without = read(workspace / "two" / "0").artifacts
    assert not [name for name in without if name.endswith(("-model", "-data"))]


@pytest.mark.slow
def test_resumed_run_keeps_its_id(workspace: Path) -> None:
    job = workspace / "two" / "0"
    run_id = read(job).run.run_id
    (job / "metrics.json").unlink()
    arnn(workspace, *SMALL_WITH_WANDB, "model=itemknn", "hydra.run.dir=two/0", "resume=true")
    files = [file.name for file in (job / "wandb").glob("offline-run-*/*.wandb")]
    assert files == [f"run-{run_id}.wandb"] * 2


def test_the_name_of_a_run_has_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "data.events=[/home/me/a.csv,/home/me/my logs/b.csv]": "events=[.../a.csv,.../b.csv]",
        "data.users='/home/me, you/o\\'b/a.csv'": "users='.../a.csv'",
        "data.titles=file:///home/me/titles.csv": "titles=.../titles.csv",
        "+callbacks.x={_target_: m.C, path: /home/me/x, y: ['~/a/b']}": "x={_target_: m.C, path: .../x, y: ['.../b']}",
        "+logger.x.url=https://host/a/b": "url=https://host/a/b",
        "data.note='1 / 2 and 3/4'": "note='1 / 2 and 3/4'",
        "~baselines.vsknn": "~vsknn",
        "++seed=3": "",
    }
    for text, shown in texts.items():
        config = SimpleNamespace(overrides=SimpleNamespace(task=[text]))
        monkeypatch.setattr(
            wandb_module, "HydraConfig", SimpleNamespace(initialized=lambda: True, get=lambda c=config: c)
        )
        assert override_summary() == shown


@pytest.mark.parametrize("tags", ["baseline", None, 3])
def test_tags_that_are_no_list_are_a_users_error(tags: Any, tmp_path: Path) -> None:
    config = OmegaConf.load(CONF / "logger" / "wandb.yaml").wandb
    config.update(tags=tags, title="x", job_type="pop")
    with pytest.raises(UserError, match=r"^logger\.wandb\.tags: must be a list, as in \[baseline\]$"):
        make_logger(config, tmp_path)


def test_unresponsive_server_is_not_waited_for() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert not is_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.2)
    assert not is_reachable("http://127.0.0.1:9", 0.2)


def test_api_key_means_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    host = "https://wandb.invalid"
    assert not is_logged_in(host)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert is_logged_in(host)
    monkeypatch.setenv("WANDB_API_KEY", "no key")
    assert not is_logged_in(host)
    assert "WANDB_API_KEY" in os.environ

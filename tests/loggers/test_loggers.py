"""What every logger of a run receives, and what happens where one fails."""

import csv
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from pytorch_lightning.loggers import CSVLogger, Logger

from arnn_lightning.errors import UserError
from arnn_lightning.loggers import open_loggers
from arnn_lightning.loggers.csv import LongCSVLogger
from arnn_lightning.loggers.tensorboard import TensorBoardLogger
from arnn_lightning.loggers.wandb import relative_paths, without_folders
from arnn_lightning.reporting.runs import _curves
from commandline import SMALL, arnn, arnn_here, metrics_of


class RecordingLogger(Logger):
    """Records its calls; ``fail_at`` names the method that raises."""

    name, version = "recording", ""

    def __init__(self, calls: list[Any], fail_at: str) -> None:
        super().__init__()
        self.calls, self.fail_at = calls, fail_at

    def record(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] == self.fail_at:
            raise OSError("no service")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.record("log_hyperparams", params)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.record("log_metrics", metrics, step)

    def finalize(self, status: str) -> None:
        self.record("finalize", status)


RECORDING = {"_target_": f"{__name__}.RecordingLogger"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that a ``RecordingLogger`` made by a config receives."""
    recorded: list[Any] = []
    original = RecordingLogger.__init__
    monkeypatch.setattr(RecordingLogger, "__init__", lambda self, fail_at: original(self, recorded, fail_at))
    return recorded


def test_loggers_receive_hyperparameters_metrics_and_end(calls: list[Any], tmp_path: Path) -> None:
    with open_loggers({"x": {**RECORDING, "fail_at": ""}}, tmp_path, {"seed": 3}) as (logger,):
        logger.log_metrics({"train/loss": 0.5}, 7)
        logger.finalize("success")  # by the Trainer of one stage
        logger.log_tables({})  # this logger has no such method
    assert calls == [
        ("log_hyperparams", {"seed": 3}),
        ("log_metrics", {"train/loss": 0.5}, 7),
        ("finalize", "success"),
    ]


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "failed"), (KeyboardInterrupt, "aborted")])
def test_loggers_receive_how_the_run_ended(
    calls: list[Any], tmp_path: Path, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), open_loggers({"x": {**RECORDING, "fail_at": ""}}, tmp_path, {}):
        raise error
    assert calls[-1] == ("finalize", status)


@pytest.mark.parametrize("method", ["log_hyperparams", "log_metrics", "finalize"])
def test_a_failing_logger_warns_and_the_run_continues(
    calls: list[Any], tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    configs = {
        "x": {**RECORDING, "fail_at": method},
        "csv": {"_target_": "arnn_lightning.loggers.csv.LongCSVLogger"},
    }
    with caplog.at_level(logging.WARNING), open_loggers(configs, tmp_path, {}) as loggers:
        for step in range(3):
            for logger in loggers:
                logger.log_metrics({"loss": 1.0}, step)
    assert "logger.x failed and is not used any more (OSError: no service)" in caplog.text
    assert len([call for call in calls if call[0] == method]) == 1
    assert calls[-1][0] == "finalize"
    rows = list(csv.reader((tmp_path / "metrics.csv").open()))
    assert rows == [["epoch", "chunk", "metric", "value"], *(["", str(step), "loss", "1.0"] for step in range(3))]


def test_a_logger_that_cannot_start_does_not_end_a_trainer(
    calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = property(lambda logger: logger.record("start"))
    monkeypatch.setattr(RecordingLogger, "experiment", start, raising=False)
    with open_loggers({"x": {**RECORDING, "fail_at": "start"}}, tmp_path, {}) as (logger,):
        assert not hasattr(logger, "experiment")  # as a Trainer does before each stage
        assert not hasattr(logger, "experiment")
    assert calls.count(("start",)) == 1
    assert "logger.x failed and is not used any more (OSError: no service)" in caplog.text


def test_save_dir_is_the_run_folder_unless_configured(tmp_path: Path) -> None:
    target = {"_target_": "pytorch_lightning.loggers.CSVLogger"}
    configs = {"a": target, "b": {**target, "save_dir": str(tmp_path / "mine")}}
    with open_loggers(configs, tmp_path / "run", {}) as loggers:
        assert [logger.save_dir for logger in loggers] == [str(tmp_path / "run"), str(tmp_path / "mine")]
        assert all(isinstance(logger.logger, CSVLogger) for logger in loggers)


def test_a_logger_that_does_not_exist_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"), open_loggers({"x": {"_target_": "nowhere.Logger"}}, tmp_path, {}):
        pass


@pytest.mark.slow
def test_an_unwritable_home_does_not_lose_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))  # no folder can be made below it
    small = [override for override in SMALL if override != "logger=csv"]
    done = arnn(tmp_path, *small, "model=pop", "hydra.run.dir=run")
    assert "logger.wandb failed" in done.stdout + done.stderr
    assert metrics_of(tmp_path / "run")["model"] == "pop"


def test_a_missing_extra_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for package in ("tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    monkeypatch.chdir(tmp_path)
    assert arnn_here([*SMALL, "logger=tensorboard", "model=pop"], monkeypatch) == 2
    assert capfd.readouterr().err.endswith("pip install 'arnn-lightning[tensorboard]'\n")


def test_tensorboard_writes_its_file(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    arnn(tmp_path, *SMALL, "logger=tensorboard", "model=pop", "hydra.run.dir=run")
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_a_line_that_a_killed_run_cut_is_removed(tmp_path: Path) -> None:
    LongCSVLogger(str(tmp_path)).log_metrics({"epoch": 0, "val/mrr@20": 0.25}, 3)
    whole = (tmp_path / "metrics.csv").read_bytes()
    (tmp_path / "metrics.csv").write_bytes(whole + b"1,6,val/m")
    LongCSVLogger(str(tmp_path)).log_metrics({"epoch": 1, "val/mrr@20": 0.5}, 6)
    lines = (tmp_path / "metrics.csv").read_bytes().removeprefix(whole).decode().split()
    assert lines == ["1,6,val/mrr@20,0.5"]


def test_the_epoch_of_a_row_is_empty_where_there_is_none(tmp_path: Path) -> None:
    logger = LongCSVLogger(str(tmp_path))
    for metrics in ({"epoch": 1, "val/mrr@20": 0.5}, {"lr-Adam": 0.1}, {"epoch": 0, "session/test/mrr@20": 0.5}):
        logger.log_metrics(metrics, 6)
    assert (tmp_path / "metrics.csv").read_text().split()[1:] == [
        *("1,6,val/mrr@20,0.5", ",6,lr-Adam,0.1", ",6,session/test/mrr@20,0.5"),
    ]
    assert _curves(tmp_path / "metrics.csv") == {"val/mrr@20": {1: 0.5}}


def test_a_header_that_a_full_disk_cut_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(b"epoch,chu")
    LongCSVLogger(str(tmp_path)).log_metrics({"epoch": 1, "val/mrr@20": 0.5}, 6)
    assert (tmp_path / "metrics.csv").read_text().split() == ["epoch,chunk,metric,value", "1,6,val/mrr@20,0.5"]


def test_tensorboard_receives_tables_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a writer, which needs the extra."""
    texts: dict[str, str] = {}
    logger = object.__new__(TensorBoardLogger)
    monkeypatch.setattr(TensorBoardLogger, "experiment", SimpleNamespace(add_text=texts.__setitem__))
    logger.log_tables({"test/by_age": pl.DataFrame({"group": ["a|b"], "mrr@20": [0.25], "mrr@20_low": [None]})})
    assert texts["test/by_age"].splitlines()[2] == "| a\\|b | 0.2500 |  |"
    logger.log_tables({"test/by_age": pl.DataFrame({"group": ["<none>\n"]})})
    assert texts["test/by_age"].splitlines()[2:] == ["| &lt;none>  |"]


@pytest.mark.parametrize(
    ("folder", "text", "shown"),
    [
        ("", "[{}/a.csv,'{}/b c.csv']", "[a.csv,'b c.csv']"),
        ("", "/mnt{}/a.csv", ".../a.csv"),
        ("/", "{{x: /mnt/a.csv, y: https://me/x/y}}", "{{x: .../a.csv, y: https://me/x/y}}"),
    ],
)
def test_weights_and_biases_gets_no_folder_of_this_machine(
    folder: str, text: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder or tmp_path)
    assert without_folders(text.format(*[tmp_path] * text.count("{}"))) == shown.format()
    assert relative_paths(f"{tmp_path}/a.csv") == (".../a.csv" if folder else "a.csv")

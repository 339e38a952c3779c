"""The snippets of docs/extending.md: written as files into an empty folder and run as a reader would run them."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch

from commandline import NO_BASELINES, arnn, metrics_of
from models import slow

DOCUMENT = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
SECTIONS = dict(section.split("\n", 1) for section in DOCUMENT.split("\n## ")[1:])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUICKLY = " ".join(["trainer.max_epochs=1 evaluation.bootstrap.resamples=50", *NO_BASELINES])


def write_files(folder: Path) -> None:
    """Writes every Python and YAML block of the document; its first line is a comment with its path."""
    for language, content in BLOCK.findall(DOCUMENT):
        if language != "console":
            path = folder / content.split("\n", 1)[0].removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)


def console_of(section: str) -> list[tuple[str, list[str]]]:
    """Every command of a section, and the lines that it prints."""
    commands: list[tuple[str, list[str]]] = []
    for language, content in BLOCK.findall(SECTIONS[section]):
        for line in content.replace("\\\n", " ").splitlines() if language == "console" else ():
            if line.startswith("$ "):
                commands.append((line.removeprefix("$ "), []))
            else:
                commands[-1][1].append(line)
    return commands


def run(command: str, folder: Path, data: Path) -> str:
    """Output of a command of the document, on small data."""
    if "arnn_lightning" in command or "train.py" in command:
        command += f" paths.data={data}"
        if "task=" not in command:
            command += f" {QUICKLY}" + ("" if " data=" in command else " data.generate.events=8000")
            command += "" if " logger=" in command else " logger=csv"
    if command.startswith("python -m arnn_lightning "):
        done = arnn(folder, *shlex.split(command)[3:])
    else:
        command = re.sub("^python ", f"{sys.executable} ", command)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def masked(line: str) -> str:
    """A line with one sign for every number."""
    return " ".join(re.sub(r"[+-]?\d[\d.,]*%?", "#", line).split())


def is_printed(expected: str, output: str) -> bool:
    """Whether a line like ``expected`` is in ``output``; numbers may differ, and ``...`` stands for anything."""
    pattern = ".*".join(map(re.escape, masked(expected).split("...")))
    return any(re.fullmatch(pattern, masked(line)) for line in output.splitlines())


def test_is_printed_ignores_numbers_only() -> None:
    assert is_printed("loss 0.5, 1,000 events/s...", "x\nloss 12.25, 7 events/s, fast\n")
    assert not is_printed("loss 0.5", "mrr 0.5")
    assert not is_printed("loss 0.5", "loss 0.5, more")


def check_encoder(runs: Path) -> None:
    state = torch.load(runs / "lstm" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert state["encoder.cell.weight_ih"].shape[0] == 4 * state["encoder.cell.weight_hh"].shape[1]
    assert metrics_of(runs / "arnn_lstm")["encoders"]["session"]["model"] == "lstm"


def check_loss(runs: Path) -> None:
    loss = torch.load(runs / "hinge" / "checkpoints" / "best.ckpt", weights_only=True)["metadata"]["model"]["loss"]
    assert (loss["_target_"], loss["margin"]) == ("hinge.Hinge", 0.5)


def check_dataset(runs: Path) -> None:
    assert metrics_of(runs / "weblog")["data"] == "weblog"
    assert metrics_of(runs / "weblog")["encoders"]["context"]["model"] == "pnn"


def check_metric(runs: Path) -> None:
    metrics = metrics_of(runs / "rbp")
    rank = pl.read_parquet(runs / "rbp" / "test_ranks.parquet")["rank"].to_numpy()
    expected = (0.1 * 0.9 ** (rank - 1))[rank <= 20].sum() / len(rank)
    assert metrics["test"]["rbp@20"] == pytest.approx(expected)
    assert "rbp@20" in metrics["val"]


def logged(run_folder: Path, metric: str) -> list[float]:
    return pl.read_csv(run_folder / "metrics.csv").filter(pl.col("metric") == metric)["value"].to_list()


def check_callback(runs: Path) -> None:
    assert logged(runs / "norms", "train/item_norm")[0] > 0


def check_optimizer(runs: Path) -> None:
    metadata = torch.load(runs / "signsgd" / "checkpoints" / "best.ckpt", weights_only=True)["metadata"]
    assert metadata["model"]["optimizer"] == {"_target_": "signsgd.SignSGD", "_partial_": True, "lr": 0.0005}
    assert logged(runs / "signsgd", "train/lr") == pytest.approx([0.0005])


def check_schedule(runs: Path) -> None:
    (rate,) = logged(runs / "warm_up", "train/lr")
    (steps,) = logged(runs / "warm_up", "steps")[-1:]
    base = torch.load(runs / "warm_up" / "checkpoints" / "best.ckpt", weights_only=True)["metadata"]["model"]
    assert rate == pytest.approx(base["optimizer"]["lr"] * (steps + 1) / 500)


def check_logger(runs: Path) -> None:
    log = pl.read_ndjson(runs / "json" / "log.jsonl", infer_schema_length=None)
    assert log["hyperparameters"].struct.field("seed")[0] == 1
    assert log["train/epoch_loss"].drop_nulls().len() == 1
    assert log["test/mrr@20"].drop_nulls()[0] == pytest.approx(metrics_of(runs / "json")["test"]["mrr@20"])


def check_trusted(runs: Path) -> None:
    (evaluated,) = (runs.parent / "outputs" / "evaluate").iterdir()
    assert metrics_of(evaluated)["test"] == metrics_of(runs / "trusted")["test"]


CHECKS = {
    "An encoder": check_encoder,
    "A loss": check_loss,
    "A data set": check_dataset,
    "A metric": check_metric,
    "A callback": check_callback,
    "An optimizer": check_optimizer,
    "A learning-rate schedule": check_schedule,
    "A logger": check_logger,
    "Evaluating a checkpoint with your classes": check_trusted,
}


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated and prepared once for all sections."""
    return tmp_path_factory.mktemp("data")


def test_every_section_is_checked() -> None:
    assert list(CHECKS) == list(SECTIONS)


@pytest.mark.parametrize(
    ("section", "check"),
    [item if item[0] in ("An encoder", "A data set") else slow(*item) for item in CHECKS.items()],
    ids=[section.replace(" ", "_") for section in CHECKS],
)
def test_extension_runs_from_outside_the_package(
    section: str, check: Callable[[Path], None], tmp_path: Path, data_folder: Path
) -> None:
    write_files(tmp_path)
    for command, printed in console_of(section):
        output = run(command, tmp_path, data_folder)
        for line in printed:
            assert is_printed(line, output), f"{line}\nis not in the output of {command}:\n{output}"
    check(tmp_path / "runs")

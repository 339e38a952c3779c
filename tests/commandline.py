"""Runs the command line as users do, in a process of its own or in this one."""

import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, cast

import pytest
from hydra._internal.hydra import Hydra

from arnn_lightning.cli import main
from reused import run_command

# csv: what Weights & Biases receives has tests of its own, and its service costs each run two seconds.
SMALL = [
    "data.generate.events=8000",
    "performance.steps_per_execution=10",
    "trainer.max_epochs=1",
    "evaluation.bootstrap.resamples=50",
]
SMALL += ["logger=csv"]
NO_BASELINES = [f"~baselines.{name}" for name in ("pop", "itemknn", "sr", "vsknn")]


def start_server() -> None:
    """The process of which those of commands are forked: the import of torch takes longer than most commands do."""
    multiprocessing.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        forkserver.ensure_running()


class Command:
    """A running command line, which leads a process group of its own.

    ``variables`` of the environment replace those of this process; None leaves one out.
    """

    def __init__(self, folder: Path, *arguments: str, **variables: str | None) -> None:
        self.arguments = arguments
        self._streams = Path(tempfile.mkdtemp())
        (self._streams / "stdout").touch()
        os.mkfifo(self._streams / "stderr")  # its end is that of all processes which have it
        environment: dict[str, str | None] = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **variables}
        environment = {name: value for name, value in environment.items() if value is not None}
        streams = [str(self._streams / name) for name in ("stdout", "stderr")]
        start_server()
        arguments_of_run = (str(folder.absolute()), list(arguments), environment, *streams)
        self._process = multiprocessing.get_context("forkserver").Process(target=run_command, args=arguments_of_run)
        self._process.start()
        self.pid = cast(int, self._process.pid)
        self._stderr = (self._streams / "stderr").open()

    def is_running(self) -> bool:
        return Path(f"/proc/{self.pid}").exists()

    def wait(self) -> subprocess.CompletedProcess[str]:
        with self._stderr:
            stderr = self._stderr.read()
        self._process.join()
        code, stdout = cast(int, self._process.exitcode), (self._streams / "stdout").read_text()
        shutil.rmtree(self._streams)
        return subprocess.CompletedProcess(self.arguments, code, stdout, stderr)


def arnn(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = Command(folder, *arguments).wait()
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def arnn_here(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The same in this process, which saves the seconds of a start; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["arnn", *arguments])
    try:
        with pytest.MonkeyPatch.context() as patch:
            if "experiment=" not in str(arguments):
                patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
            main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:  # Hydra's log file of this run would receive the lines of later tests
        for handler in logging.root.handlers[:]:
            if isinstance(handler, logging.FileHandler):
                logging.root.removeHandler(handler)
                handler.close()
    return 0


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a UserError shows."""
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def metrics_of(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics

"""Runs the command line as users do, in a process of its own or in this one."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import IO, Any

import pytest
from hydra._internal.hydra import Hydra

from arnn_lightning.cli import main

# csv: what Weights & Biases receives has tests of its own, and its service costs each run two seconds.
SMALL = [
    "data.generate.events=8000",
    "performance.steps_per_execution=10",
    "trainer.max_epochs=1",
    "evaluation.bootstrap.resamples=50",
]
SMALL += ["logger=csv"]
NO_BASELINES = [f"~baselines.{name}" for name in ("pop", "itemknn", "sr", "vsknn")]
# A process that has imported the package and does nothing else is forked for each command, since the import of torch
# and Lightning takes longer than most commands do. From then on all is as with ``python -m arnn_lightning``, but that
# Hydra does not compose the config a second time for ``hydra.mode`` alone, which experiments set and nothing else does.
SERVER = """
import atexit, gc, importlib, json, multiprocessing, os, pkgutil, runpy, signal, sys, threading
import arnn_lightning.models, arnn_lightning.tasks
sys.path.insert(1, sys.argv[1])
import reused
del sys.path[1]
from hydra._internal.hydra import Hydra
for module in pkgutil.iter_modules(arnn_lightning.tasks.__path__, "arnn_lightning.tasks."):
    importlib.import_module(module.name)
reused.reuse()
reused.work_ahead()
gc.freeze()  # half a million objects that each full collection would walk through

def run(folder, arguments, environment, *streams):
    atexit._clear()  # of the process that is forked
    signal.alarm(300)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    os.setsid()
    for stream, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = os.getcwd()
    sys.argv[1:] = arguments
    if "experiment=" not in str(arguments):
        Hydra.get_mode = lambda *_, **__: None
    try:
        runpy.run_module("arnn_lightning", run_name="__main__", alter_sys=True)
    finally:  # as at the end of a process
        threading._shutdown()
        atexit._run_exitfuncs()

for line in sys.stdin:
    process = multiprocessing.get_context("fork").Process(target=run, args=json.loads(line))
    process.start()
    print(process.pid, flush=True)
    process.join()
    print(process.exitcode, flush=True)
"""


@cache
def server() -> tuple[IO[str], IO[str]]:
    """Its stdin and stdout."""
    pipe = subprocess.PIPE
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(Path(__file__).parent)], env=environment, stdin=pipe, stdout=pipe, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


class Command:
    """A running command line, which leads a process group of its own; one at a time.

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
        requests, self._replies = server()
        requests.write(json.dumps([str(folder.absolute()), arguments, environment, *streams]) + "\n")
        requests.flush()
        self.pid = int(self._replies.readline())
        self._stderr = (self._streams / "stderr").open()

    def is_running(self) -> bool:
        return Path(f"/proc/{self.pid}").exists()

    def wait(self) -> subprocess.CompletedProcess[str]:
        with self._stderr:
            stderr = self._stderr.read()
        code, stdout = int(self._replies.readline()), (self._streams / "stdout").read_text()
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

"""Runs the command line as users do, in a process of its own or in this one."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arnn_lightning.cli import main

# csv: what Weights & Biases receives has tests of its own, and its service costs each run two seconds.
SMALL = [
    "data.generate.events=20000",
    "performance.steps_per_execution=10",
    "trainer.max_epochs=1",
    "evaluation.bootstrap.resamples=50",
]
SMALL += ["logger=csv"]
NO_BASELINES = [f"~baselines.{name}" for name in ("pop", "itemknn", "sr", "vsknn")]


def arnn(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", "arnn_lightning", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def arnn_here(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The same in this process, which saves the seconds of a start; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["arnn", *arguments])
    try:
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

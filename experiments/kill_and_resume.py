"""Kills runs at random moments, resumes them, and compares their results with an uninterrupted run's.

    python experiments/kill_and_resume.py [--kills 20] [--seed 1] [--devices 2]

Each run trains ARNN and the models of both its encoders, with dropout and early stopping, on a small synthetic set, and
saves after every chunk. It is killed (SIGKILL) at a moment sampled uniformly from the uninterrupted run's time and
resumed; every third run is killed and resumed twice. All weights must be equal (torch.equal), all ranks byte by byte,
and metrics.json except for its times. With several devices (processes on a CPU) the first process is killed. Prints a
line per run; the exit code is 1 if any differs.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

OVERRIDES = [
    "data.generate.events=60000",
    "performance.steps_per_execution=4",
    "trainer.max_epochs=3",
    "logger=csv",
    "model.patience=2",
    "model.session.patience=2",
    "model.context.patience=2",
    "model.dropout=0.1",
    "model.context.dropout=0.1",
    "evaluation.bootstrap.resamples=20",
    "checkpoint.every_n_minutes=0",
]


def start(workspace: Path, folder: str, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "arnn_lightning", *OVERRIDES, f"hydra.run.dir={folder}", *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("ARNN_DATA", None)
    return subprocess.Popen(
        command, cwd=workspace, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(workspace: Path, folder: str, *overrides: str) -> float:
    """Seconds of a run to its end."""
    started = time.monotonic()
    process = start(workspace, folder, *overrides)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{folder}: exit code {process.returncode}\n{errors}")
    return time.monotonic() - started


def kill(workspace: Path, folder: str, seconds: float, *overrides: str) -> str:
    """Starts a run and kills it after ``seconds``; returns when and where."""
    process = start(workspace, folder, *overrides)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    process.communicate()
    return f"{seconds:.1f} s ({progress(workspace / folder / 'checkpoints')})"


def progress(checkpoints: Path) -> str:
    """The stage that a run reached."""
    for stage, folder in (("session", "session"), ("context", "context"), ("merging", "")):
        if not (checkpoints / folder / "done").is_file():
            saved = (checkpoints / folder / "last.ckpt").is_file()
            return f"{stage} stage, {'after' if saved else 'before'} its first save"
    return "after the last stage"


def differences(expected: Path, resumed: Path) -> list[str]:
    """The files of two run folders that differ."""
    differing = []
    for path in sorted(expected.glob("checkpoints/**/best.ckpt")):
        name = path.relative_to(expected)
        a, b = (torch.load(folder / name, weights_only=True)["state_dict"] for folder in (expected, resumed))
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            differing.append(str(name))
    for path in sorted(expected.glob("test_ranks*.parquet")):
        if path.read_bytes() != (resumed / path.name).read_bytes():
            differing.append(path.name)
    a, b = (json.loads((folder / "metrics.json").read_text()) for folder in (expected, resumed))
    for timed in ("seconds", "train_events_per_second"):
        del a[timed], b[timed]
    return differing + (["metrics.json"] if a != b else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--devices", type=int, default=1)
    options = parser.parse_args()
    if options.devices > 1:
        OVERRIDES.extend(["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={options.devices}"])
    rng = random.Random(options.seed)
    n_equal = 0
    with tempfile.TemporaryDirectory(prefix="arnn-") as name:
        workspace = Path(name)
        finish(workspace, "warm-up")  # prepares the data, so that the time below is that of training
        seconds = finish(workspace, "uninterrupted")
        for number in range(1, options.kills + 1):
            folder, resume = f"run-{number}", list[str]()
            kills = []
            for _ in range(2 if number % 3 == 0 else 1):
                kills.append(kill(workspace, folder, rng.uniform(0.15, 1) * seconds, *resume))
                resume = ["resume=true"]
            finish(workspace, folder, *resume)
            differing = differences(workspace / "uninterrupted", workspace / folder)
            n_equal += not differing
            verdict = f"DIFFERENT: {differing}" if differing else "equal"
            print(f"{folder}: killed at {', then '.join(kills)}: {verdict}", flush=True)
    print(f"{n_equal} of {options.kills} equal; an uninterrupted run takes {seconds:.1f} s")
    sys.exit(n_equal < options.kills)


if __name__ == "__main__":
    main()

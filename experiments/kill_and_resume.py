"""Kills runs at random moments, resumes them, and compares what they leave with an uninterrupted run's.

    python experiments/kill_and_resume.py [--kills 20] [--seed 1] [--devices 2]

Each run trains ARNN with both its parts, dropout and early stopping included, on a small synthetic set, saving after
every window. It is killed (SIGKILL) at a moment drawn uniformly from the uninterrupted run's time, then resumed, once
in three times killed and resumed once more. All weights must be equal (torch.equal), all ranks byte by byte, and
metrics.json but for its times. With several devices (processes on a CPU) the first process is killed. Prints a line per
kill and ends with exit code 1 if any run differs.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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


def start(home: Path, folder: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "arnn_lightning", *OVERRIDES, f"hydra.run.dir={folder}", *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=home, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(home: Path, folder: str, *more: str) -> None:
    process = start(home, folder, *more)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{folder}: exit code {process.returncode}\n{errors}")


def reached(folder: Path) -> str:
    """Where a run was when it was killed."""
    checkpoints = folder / "checkpoints"
    for stage, place in (
        ("session", checkpoints / "session"),
        ("context", checkpoints / "context"),
        ("merge", checkpoints),
    ):
        if not (place / "done").is_file():
            saved = "in mid-stage" if (place / "last.ckpt").is_file() else "before its first save"
            return f"{stage}, {saved}"
    return "after the last stage"


def differences(one: Path, other: Path) -> list[str]:
    found = []
    for path in sorted(one.glob("checkpoints/**/best.ckpt")):
        name = path.relative_to(one)
        ours, theirs = (torch.load(root / name, weights_only=True)["state_dict"] for root in (one, other))
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in ours):
            found.append(str(name))
    for path in sorted(one.glob("test_ranks*.parquet")):
        if path.read_bytes() != (other / path.name).read_bytes():
            found.append(path.name)
    ours, theirs = (json.loads((root / "metrics.json").read_text()) for root in (one, other))
    for timed in ("seconds", "train_events_per_second"):
        del ours[timed], theirs[timed]
    return found + (["metrics.json"] if ours != theirs else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--devices", type=int, default=1)
    options = parser.parse_args()
    if options.devices > 1:
        OVERRIDES.extend(["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={options.devices}"])
    rng = random.Random(options.seed)
    equal = 0
    with tempfile.TemporaryDirectory(prefix="arnn-") as name:
        home = Path(name)
        finish(home, "prepares")  # the data, so that the times below are those of training
        started = time.monotonic()
        finish(home, "whole")
        whole = time.monotonic() - started
        for number in range(1, options.kills + 1):
            folder, more = f"run-{number}", list[str]()
            moments: list[Any] = []
            for _ in range(2 if number % 3 == 0 else 1):
                process = start(home, folder, *more)
                moment = rng.uniform(0.15, 1) * whole
                try:
                    process.wait(moment)
                except subprocess.TimeoutExpired:
                    process.kill()
                process.communicate()
                moments.append(f"{moment:.1f} s ({reached(home / folder)})")
                more = ["resume=true"]
            finish(home, folder, *more)
            wrong = differences(home / "whole", home / folder)
            equal += not wrong
            print(f"{folder}: killed at {', then '.join(moments)}: {'equal' if not wrong else f'DIFFERENT: {wrong}'}")
    print(f"{equal} of {options.kills} equal; an uninterrupted run takes {whole:.1f} s")
    sys.exit(equal < options.kills)


if __name__ == "__main__":
    main()

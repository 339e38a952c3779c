"""Every launcher and Optuna's sweeper, each running the real program on a small synthetic set.

python experiments/launchers.py > experiments/results/launchers.md     # needs pip install -e '.[sweeps]'
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

SMALL = [
    "data.generate.events=20000",
    "performance.steps_per_execution=10",
    "trainer.max_epochs=1",
    "evaluation.bootstrap.resamples=50",
]
GRID = ["model=gru4rec", "model.optimizer.lr=0.03,0.07", "seed=1,2"]
PACKAGES = (
    "hydra-core",
    "hydra-joblib-launcher",
    "hydra-submitit-launcher",
    "hydra-ray-launcher",
    "hydra-optuna-sweeper",
)
ENGINES = ("joblib", "submitit", "ray", "optuna", "sqlalchemy", "torch", "pytorch-lightning", "wandb")
RUNS = {
    "basic": GRID,
    "joblib, eight jobs at once on an unprepared set": [
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=8",
        "model=gru4rec",
        "seed=1,2,3,4,5,6,7,8",
        "data.generate.seed=2",
    ],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10", *GRID],
    "ray": ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2", *GRID],
    "optuna": ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "model=gru4rec"],
    "optuna, gone on with": ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "model=gru4rec"],
    "optuna on joblib": [
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.n_jobs=2",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "model=itemknn",
    ],
}


def main() -> None:
    print(
        f"# Launchers\n\n`python experiments/launchers.py`, Python {platform.python_version()}, {platform.machine()}.\n"
    )
    for names in (PACKAGES, ENGINES):
        print(", ".join(f"{name} {version(name)}" for name in names), end=".\n\n")
    print("| | exit code | jobs | failed | seconds | validation MRR@20 |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as home:
        for number, (name, arguments) in enumerate(RUNS.items()):
            folder = f"multirun/{number}"
            command = ["-m", *SMALL, *arguments, f"hydra.sweep.dir={folder}"]
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "arnn_lightning", *command],
                cwd=home,
                capture_output=True,
                text=True,
                check=False,
            )
            seconds = time.perf_counter() - started
            jobs = [json.loads(path.read_text()) for path in sorted(Path(home, folder).glob("*/outcome.json"))]
            values = ", ".join("failed" if one["value"] is None else f"{one['value']:.4f}" for one in jobs)
            failed = sum(one["error"] is not None for one in jobs)
            print(f"| {name} | {done.returncode} | {len(jobs)} | {failed} | {seconds:.0f} | {values} |", flush=True)
            if done.returncode:
                sys.stderr.write(done.stdout + done.stderr)
        runs = len(list(Path(home, "multirun").glob("*/*/wandb/offline-run-*/*.wandb")))
    print(f"\n{runs} runs of Weights & Biases, one per job. Commands, with `{' '.join(SMALL)}` in front:\n")
    for name, arguments in RUNS.items():
        print(f"- {name}: `python -m arnn_lightning -m {' '.join(arguments)}`")


if __name__ == "__main__":
    main()

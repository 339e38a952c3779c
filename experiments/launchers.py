"""Every launcher, and studies of task=tune, each running the real program on a small synthetic set.

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
)
ENGINES = ("joblib", "submitit", "ray", "optuna", "sqlalchemy", "torch", "pytorch-lightning", "wandb")
MULTIRUNS = {
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
}
STUDIES = {
    "study": ["model=gru4rec", "trials=4"],
    "study, resumed": ["model=gru4rec", "trials=6"],
    "study with two workers": ["model=itemknn", "trials=4", "workers=2"],
}
COMMANDS = {name: ["-m", *arguments] for name, arguments in MULTIRUNS.items()}
COMMANDS |= {name: ["task=tune", *arguments] for name, arguments in STUDIES.items()}


def outcomes(folder: Path) -> list[float | None]:
    """The validation MRR@20 of every job or trial below a folder; None for a failed job."""
    jobs = [json.loads(path.read_text())["value"] for path in sorted(folder.glob(".outcomes/*.json"))]
    trials = [
        json.loads(path.read_text())["val"]["mrr@20"] for path in sorted(folder.rglob("synthetic_*/*/metrics.json"))
    ]
    return jobs or trials


def main() -> None:
    print(
        f"# Launchers\n\n`python experiments/launchers.py`, Python {platform.python_version()}, {platform.machine()}.\n"
    )
    for names in (PACKAGES, ENGINES):
        print(", ".join(f"{name} {version(name)}" for name in names), end=".\n\n")
    print("| | exit code | jobs or trials | failed | seconds | validation MRR@20 |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as home:
        for number, (name, arguments) in enumerate(COMMANDS.items()):
            folder = f"runs/{number}"
            command = [*arguments, *SMALL, f"hydra.{'sweep' if '-m' in arguments else 'run'}.dir={folder}"]
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "arnn_lightning", *command],
                cwd=home,
                capture_output=True,
                text=True,
                check=False,
            )
            seconds = time.perf_counter() - started
            values = outcomes(Path(home, folder))
            failed = values.count(None)
            shown = ", ".join("failed" if value is None else f"{value:.4f}" for value in values)
            print(f"| {name} | {done.returncode} | {len(values)} | {failed} | {seconds:.0f} | {shown} |", flush=True)
            if done.returncode:
                sys.stderr.write(done.stdout + done.stderr)
        runs = len(list(Path(home, "runs").rglob("wandb/offline-run-*/*.wandb")))
    print(f"\n{runs} runs of Weights & Biases, one per job. Commands, with `{' '.join(SMALL)}` at the end:\n")
    for name, arguments in COMMANDS.items():
        print(f"- {name}: `python -m arnn_lightning {' '.join(arguments)}`")


if __name__ == "__main__":
    main()

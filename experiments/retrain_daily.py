"""Daily retraining on a growing log: from scratch, or from the run of the day before (init_from).

The synthetic log is cut after each of its last days; the last day before the cut is the test split, without validation.
Writes one CSV row per day and way of training.

    .venv/bin/python experiments/retrain_daily.py outputs/retrain_daily --model gru4rec --days 3 --events 60000
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from omegaconf import OmegaConf

DAY = 86_400
PROGRAM = ("-m", "arnn_lightning")


def train(
    folder: Path, raw_dir: Path, arguments: argparse.Namespace, *overrides: str, program: Sequence[str] = PROGRAM
) -> dict[str, float]:
    """Trains one model, or reads its finished run; returns its test metrics and seconds of training."""
    settings = [
        f"model={arguments.model}",
        f"data.raw_dir={raw_dir}",
        "data.split.test_days=1",
        "data.split.val_days=0",
    ]
    settings += ["logger=none", f"paths.data={arguments.folder / 'data'}", f"seed={arguments.seed}", *overrides]
    if not (folder / "metrics.json").is_file():
        command = [sys.executable, *program, *settings, f"hydra.run.dir={folder}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    elif list(OmegaConf.load(folder / ".hydra" / "overrides.yaml")) != settings:
        sys.exit(f"{folder} contains a finished run of other settings; use another folder")
    metrics = json.loads((folder / "metrics.json").read_text())
    seconds = sum(value for stage, value in metrics["seconds"].items() if stage.startswith("train"))
    return {name: metrics["test"][name] for name in ("recall@20", "mrr@20", "events")} | {"train_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=lambda text: Path(text).absolute())
    parser.add_argument("--model", default="gru4rec")
    parser.add_argument("--days", type=int, default=3)
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 2], help="of a training that starts from a run")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    raw = arguments.folder / f"raw_{arguments.events}"
    command = [sys.executable, "-m", "arnn_lightning", "task=generate", "schema=xing", f"events={arguments.events}"]
    subprocess.run([*command, f"output={raw}"], check=True, stdout=subprocess.DEVNULL)
    log = pl.read_csv(raw / "interactions.csv", separator="\t", infer_schema=False)
    time = log["created_at"].cast(pl.Int64)
    last = int(time.max()) // DAY  # type: ignore[arg-type]
    runs = arguments.folder / f"{arguments.model}_{arguments.seed}"
    rows = []
    for day in range(arguments.days + 1):
        cut = arguments.folder / f"raw_{arguments.events}_{day}"
        cut.mkdir(exist_ok=True)
        end = (last - arguments.days + day + 1) * DAY
        log.filter(time < end).write_csv(cut / "interactions.csv", separator="\t")
        for name in ("users.csv", "items.csv"):
            if (raw / name).is_file():
                (cut / name).write_bytes((raw / name).read_bytes())
        results = {"scratch": train(runs / f"scratch_{day}", cut, arguments)}
        for epochs in arguments.epochs if day else ():
            way = f"init_from, {epochs} epochs"
            # A chain: each day starts from the day before, only the first from a run from scratch.
            earlier = runs / (f"init_{epochs}_{day - 1}" if day > 1 else "scratch_0")
            stages = ("model", "model.session", "model.context") if arguments.model.startswith("arnn") else ("model",)
            overrides = [f"{stage}.epochs={epochs}" for stage in stages]
            source = f"init_from={earlier / 'checkpoints' / 'best.ckpt'}"
            results[way] = train(runs / f"init_{epochs}_{day}", cut, arguments, source, *overrides)
        for way, result in results.items():
            rows.append({"model": arguments.model, "day": day, "way": way, **result})
            print(rows[-1], flush=True)
    pl.DataFrame(rows, infer_schema_length=None).write_csv(arguments.folder / f"{arguments.model}.csv")


if __name__ == "__main__":
    main()

"""Run folders -> one CSV row per run and model; and paired differences between two sets of runs.

python experiments/gather.py RUN [RUN ...] > experiments/results/NAME.csv
python experiments/gather.py --paired RUN_A RUN_B     # test_ranks of A minus those of B, bootstrap over users
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from arnn_lightning.evaluation.result import Result

COLUMNS = ("data", "context_strength", "draw", "loss", "seed", "run_model", "model", "recall@20", "mrr@20", "events")


def rows(run: Path) -> list[dict[str, Any]]:
    metrics = json.loads((run / "metrics.json").read_text())
    config: Any = OmegaConf.load(run / ".hydra" / "config.yaml")
    loss = config.model.get("loss")
    name = "" if loss is None else loss.function._target_.rsplit(".", 1)[-1]
    corrected = ", logQ" if loss is not None and loss.get("logq") else ""
    about = {
        "data": metrics["data"],
        "context_strength": config.data.get("context_strength", ""),
        "draw": config.data.contexts.draw,
        "loss": "" if loss is None else f"{name} on {loss.activation} over {loss.candidates}{corrected}",
        "seed": metrics["seed"],
        "run_model": metrics["model"],
    }
    models = [*metrics["baselines"].values(), *metrics["parts"].values(), {"model": metrics["model"]} | metrics["test"]]
    return [about | {name: one[name] for name in ("model", "recall@20", "mrr@20", "events")} for one in models]


def paired(a: Path, b: Path) -> dict[str, Any]:
    ours, theirs = (Result.read(run.name, run / "test_ranks.parquet") for run in (a, b))
    bootstrap = {"unit": "user", "resamples": 1000, "confidence": 0.95}
    result: dict[str, Any] = {"a": a.name, "b": b.name}
    for metric in ("recall@20", "mrr@20"):
        base = theirs.metrics([20])[metric]
        mean, low, high = ours.difference(theirs, metric, bootstrap, seed=1)
        result |= {metric: round(mean, 4), f"{metric} low": round(low, 4), f"{metric} high": round(high, 4)}
        result[f"{metric} ratio"] = round(1 + mean / base, 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--paired", action="store_true", help="compare the runs two by two")
    options = parser.parse_args()
    if options.paired:
        found = [paired(a, b) for a, b in zip(options.runs[::2], options.runs[1::2], strict=True)]
    else:
        found = [row for run in options.runs for row in rows(run)]
    writer = csv.DictWriter(sys.stdout, COLUMNS if not options.paired else list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)


if __name__ == "__main__":
    main()

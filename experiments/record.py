"""Records runs in a few small files, and restores them as run folders for task=report.

python experiments/record.py record RECORD DATA RUN [RUN ...]
python experiments/record.py restore RECORD FOLDER
python -m arnn_lightning task=report runs=FOLDER paths.data=FOLDER

DATA is the folder given as paths.data (ARNN_DATA) when the runs were made. A record is a folder per prepared data set:
runs.yaml (configs, command lines, the commit that is checked out, seconds, validation curves; a config with the keys of
the one before it as its differences), ranks.parquet and lists.parquet (equal columns once), and the manifest, train,
test and users of the data set as far as a report needs them. `pretrained.*` is not recorded: a part from a run of the
same seed and data is the one that would have been trained.
"""

import argparse
import copy
import hashlib
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from arnn_lightning.evaluation.result import RANKS, next_item_targets
from arnn_lightning.reporting.runs import find_run_dirs, flatten

SMALL: dict[str, Any] = {"compression": "zstd", "compression_level": 22, "statistics": False}
METRICS = ("data", "model", "seed", "commit", "seconds", "train_events_per_second")
DATA_COLUMNS = {"train": ["user", "item"], "test": ["session", "user", "item"], "users": ["user", "n_known"]}


class Tables:
    """Tables of equal columns, stored one below the other with a number each, equal ones once."""

    def __init__(self) -> None:
        self.tables: list[pl.DataFrame] = []

    def add(self, table: pl.DataFrame) -> int:
        table = table.cast(pl.UInt32)
        for number, other in enumerate(self.tables):
            if other.equals(table):
                return number
        self.tables.append(table)
        return len(self.tables) - 1

    def write(self, path: Path) -> None:
        if self.tables:
            numbered = [table.with_columns(number=pl.lit(n, pl.UInt16)) for n, table in enumerate(self.tables)]
            pl.concat(numbered).write_parquet(path, **SMALL)


def role_file(kind: str, role: str) -> str:
    return f"test_{kind}_{role}.parquet" if role else f"test_{kind}.parquet"


def record(target: Path, data: Path, patterns: list[str]) -> None:
    prepared = {
        hashlib.sha256(file.read_bytes()).hexdigest(): file.parent
        for file in (data / "prepared").glob("*/manifest.json")
    }
    by_manifest: dict[str, list[Path]] = {}
    for folder in find_run_dirs(patterns):
        if (folder / "metrics.json").is_file():
            manifest = json.loads((folder / "metrics.json").read_text())["manifest"]
            by_manifest.setdefault(manifest, []).append(folder)
    for manifest, folders in by_manifest.items():
        folder = target / prepared[manifest].name
        folder.mkdir(parents=True)
        shutil.copy(prepared[manifest] / "manifest.json", folder)
        for name, columns in DATA_COLUMNS.items():
            table = pl.read_parquet(prepared[manifest] / f"{name}.parquet", columns=columns)
            table = table.sort(columns) if name == "train" else table  # the order of training events is not needed
            table.write_parquet(folder / f"{name}.parquet", **SMALL)
        ranks, lists = Tables(), Tables()
        runs: list[dict[str, Any]] = []
        base: dict[str, Any] = {}
        for run_dir in folders:
            run, config = record_run(run_dir, ranks, lists)
            if flatten(config).keys() == flatten(base).keys():
                differing = {key: value for key, value in flatten(config).items() if flatten(base)[key] != value}
                runs.append(run | {"differs": differing})
            else:
                base = config
                runs.append(run | {"config": config})
        ranks.write(folder / "ranks.parquet")
        lists.write(folder / "lists.parquet")
        (folder / "runs.yaml").write_text(yaml.safe_dump(runs, sort_keys=False, width=120))


def record_run(folder: Path, ranks: Tables, lists: Tables) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's entry in runs.yaml, and its config."""
    config = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
    config["pretrained"] = dict.fromkeys(config["pretrained"])
    overrides = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["commit"] = metrics.get("commit") or head()
    roles = {
        kind: {role: result["model"] for role, result in metrics[kind].items()} for kind in ("encoders", "baselines")
    }
    monitor = config["evaluation"]["monitor"]
    curves = pl.read_csv(folder / "metrics.csv").filter(pl.col("metric").str.ends_with(f"val/{monitor}"))
    run: dict[str, Any] = {
        "folder": "/".join(folder.parts[-2:]),
        "overrides": [override for override in overrides if not override.startswith("pretrained.")],
        "metrics": {key: metrics[key] for key in METRICS} | roles,
        "curves": {
            str(metric): [round(value, 6) for value in rows.sort("epoch")["value"]]
            for (metric,), rows in curves.unique(["metric", "epoch"], keep="last").group_by("metric")
        },
        "ranks": {},
        "lists": {},
    }
    run["curves"] = dict(sorted(run["curves"].items()))
    for role in (*roles["baselines"], *roles["encoders"], ""):
        table = pl.read_parquet(folder / role_file("ranks", role), columns=["higher", "equal"])
        run["ranks"][role] = ranks.add(table)
        if (folder / role_file("lists", role)).is_file():
            run["lists"][role] = lists.add(pl.read_parquet(folder / role_file("lists", role), columns=["times"]))
    return run, config


@cache
def head() -> str:
    """The commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()


def restore(source: Path, target: Path) -> None:
    """Writes the run folders of every data set, and its prepared data, below ``target``."""
    for file in sorted(source.glob("*/runs.yaml")):
        prepared = target / "prepared" / file.parent.name
        prepared.mkdir(parents=True, exist_ok=True)
        for name in ("manifest.json", *(f"{table}.parquet" for table in DATA_COLUMNS)):
            shutil.copy(file.parent / name, prepared)
        targets = next_item_targets(pl.read_parquet(prepared / "test.parquet"))
        tables = {
            kind: pl.read_parquet(path).partition_by("number", include_key=False)
            for kind in ("ranks", "lists")
            if (path := file.parent / f"{kind}.parquet").is_file()
        }
        manifest = hashlib.sha256((prepared / "manifest.json").read_bytes()).hexdigest()
        base: dict[str, Any] = {}
        for run in yaml.safe_load(file.read_text()):
            base = run.get("config", base)
            restore_run(run, base, target / run["folder"], tables, targets, manifest)


def restore_run(
    run: dict[str, Any],
    base: dict[str, Any],
    folder: Path,
    tables: dict[str, list[pl.DataFrame]],
    targets: pl.DataFrame,
    manifest: str,
) -> None:
    config = copy.deepcopy(base)
    for key, value in run.get("differs", {}).items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(run["overrides"]))
    metrics = run["metrics"] | {"manifest": manifest}
    for kind in ("encoders", "baselines"):
        metrics[kind] = {role: {"model": name} for role, name in metrics[kind].items()}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
    lines = [f"{epoch},{name},{value}" for name, curve in run["curves"].items() for epoch, value in enumerate(curve)]
    (folder / "metrics.csv").write_text("\n".join(["epoch,metric,value", *lines]) + "\n")
    for role, number in run["ranks"].items():
        counts = tables["ranks"][number].cast(pl.Int64)
        rank = (counts["higher"] + counts["equal"]).cast(pl.Float64).alias("rank")  # conservative
        pl.concat([targets, counts], how="horizontal").with_columns(rank).select(RANKS).write_parquet(
            folder / role_file("ranks", role)
        )
    for role, number in run["lists"].items():
        times = tables["lists"][number]["times"].cast(pl.Int64)
        pl.DataFrame({"item": np.arange(len(times)), "times": times}).write_parquet(folder / role_file("lists", role))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("record", type=Path)
    recording.add_argument("data", type=Path)
    recording.add_argument("runs", nargs="+")
    restoring = commands.add_parser("restore")
    restoring.add_argument("record", type=Path)
    restoring.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.command == "record":
        record(options.record, options.data, options.runs)
    else:
        options.folder.mkdir(parents=True)  # never into a folder that exists
        restore(options.record, options.folder)


if __name__ == "__main__":
    main()

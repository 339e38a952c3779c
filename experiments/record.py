"""Keeps runs so small that they can be committed, as far as task=report needs them.

python experiments/record.py experiments/results/NAME DATA RUN [RUN ...]
python -m arnn_lightning task=report runs=experiments/results/NAME paths.data=experiments/results/NAME

DATA is the folder given as paths.data (ARNN_DATA) when the runs were made. Kept are the configs, metrics.json, the
validation lines of metrics.csv, (higher, equal) of every attempt, and of the prepared data the manifest, the test split
without times, who was trained on which item how often, and how many attributes are known. Ranks of a baseline that an
earlier run of the same data and seed has already are left out; so are `pretrained.*` overrides, since a part that is
taken over from a run of the same seed and data is the one that would have been trained.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import OmegaConf

from arnn_lightning.reporting.runs import find

SMALL: dict[str, Any] = {"compression": "zstd", "compression_level": 22, "statistics": False}


def record_data(folder: Path, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
    train = pl.read_parquet(folder / "train.parquet", columns=["user", "item"]).sort("user", "item")
    train.write_parquet(target / "train.parquet", **SMALL)
    pl.read_parquet(folder / "users.parquet", columns=["user", "n_known"]).write_parquet(
        target / "users.parquet", **SMALL
    )
    test = pl.read_parquet(folder / "test.parquet", columns=["session", "user", "item"])
    test.write_parquet(target / "test.parquet", **SMALL)


def record_run(folder: Path, target: Path, known: set[tuple[str, str, int]]) -> str:
    """Copies one run; returns its manifest's sha256. ``known``: recorded (manifest, baseline, seed)."""
    (target / ".hydra").mkdir(parents=True)
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    for part in config.pretrained:
        config.pretrained[part] = None
    OmegaConf.save(config, target / ".hydra" / "config.yaml")
    overrides = [
        one for one in OmegaConf.load(folder / ".hydra" / "overrides.yaml") if not one.startswith("pretrained.")
    ]
    OmegaConf.save(OmegaConf.create(overrides), target / ".hydra" / "overrides.yaml")
    metrics = json.loads((folder / "metrics.json").read_text())
    data, seed = metrics["manifest"], metrics["seed"]
    metrics["baselines"] = {name: one for name, one in metrics["baselines"].items() if (data, name, seed) not in known}
    known |= {(data, name, seed) for name in metrics["baselines"]}
    (target / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (target / "metrics.csv").write_text("".join(line for line in lines if "val/" in line or line == lines[0]))
    for role in ("", *metrics["parts"], *metrics["baselines"]):
        name = f"test_ranks_{role}.parquet" if role else "test_ranks.parquet"
        ranks = pl.read_parquet(folder / name, columns=["higher", "equal"]).cast(pl.UInt32)
        ranks.write_parquet(target / name, **SMALL)
    for lists in folder.glob("test_lists*.parquet"):
        pl.read_parquet(lists).cast(pl.UInt32).write_parquet(target / lists.name, **SMALL)
    return str(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", nargs="+")
    options = parser.parse_args()
    prepared = {
        hashlib.sha256(file.read_bytes()).hexdigest(): file.parent
        for file in (options.data / "prepared").glob("*/manifest.json")
    }
    known: set[tuple[str, str, int]] = set()
    needed: set[str] = set()
    for folder in find(options.runs):
        if (folder / "metrics.json").is_file():
            needed.add(record_run(folder, options.target / folder.parent.name / folder.name, known))
    for manifest in sorted(needed):
        record_data(prepared[manifest], options.target / "prepared" / prepared[manifest].name)


if __name__ == "__main__":
    main()

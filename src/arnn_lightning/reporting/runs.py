"""Run folders as data: which are finished, what they were configured to do, what they measured."""

import csv
import glob
import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # what OmegaConf.load lets through

from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.result import RANKS, EvaluationResult, next_item_targets

TRAINING = "arnn_lightning.tasks.train.train"
# What may differ between runs that are compared or averaged: places, speed, what is kept, and the seed.
NO_SETTING = (
    "seed",
    "model",  # a setting of each model, see `Entry.config`
    "baselines",
    "paths",
    "performance",
    "search",
    "evaluation",
    "pretrained",
    "resume",
    "checkpoint",
    "logger",
    "task",
    "trainer",
    "data.raw_dir",
    "data.reader",
    "data.paper",
)
OF_TRAINER = ("trainer.max_epochs", "trainer.max_steps")


@dataclass(frozen=True)
class DataSet:
    """A prepared data set as far as a report needs it.

    Attributes:
        manifest: its manifest.
        users: user, known.
        train: user, item of every training event.
        test: session, user, item of every test event.
    """

    manifest: Mapping[str, Any]
    users: pl.DataFrame
    train: pl.DataFrame
    test: pl.DataFrame

    @property
    def key(self) -> str:
        """The same for two preparations of the same files with the same settings, on whatever machine."""
        told = {key: value for key, value in self.manifest.items() if key != "seconds"}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @property
    def n_items(self) -> int:
        return int(self.manifest["dims"]["n_items"])

    @classmethod
    def read(cls, folder: Path) -> "DataSet":
        return cls(
            json.loads((folder / "manifest.json").read_bytes()),
            pl.read_parquet(folder / "users.parquet", columns=["user", "known"]),
            pl.read_parquet(folder / "train.parquet", columns=["user", "item"]),
            pl.read_parquet(folder / "test.parquet", columns=["session", "user", "item"]),
        )


@dataclass(frozen=True)
class Entry:
    """One model's test of one run.

    Attributes:
        role: empty for the run's own model, else that of a part or a baseline.
        config: the model's settings, flat, without sizes measured from data.
        result: its ranks.
    """

    role: str
    config: Mapping[str, Any]
    result: EvaluationResult


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        folder: where it lies.
        metrics: its metrics.json.
        config: its resolved config.
        overrides: what was given on its command line.
        data: the prepared data set; None where it is not to be found.
        entries: every model that it tested, its own last.
        curves: (metric, values by epoch) of the validation, such as ``session/val/mrr@20``.
    """

    folder: Path
    metrics: Mapping[str, Any]
    config: Mapping[str, Any]
    overrides: list[str]
    data: DataSet | None
    entries: list[Entry]
    curves: Mapping[str, list[float]]

    @property
    def seed(self) -> int:
        return int(self.metrics["seed"])

    @property
    def data_key(self) -> str:
        return self.data.key if self.data is not None else str(self.metrics["manifest"])

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the model that decides what comes out, flat."""
        told = flat(self.config)
        return {
            key: value
            for key, value in told.items()
            if key in OF_TRAINER or not any(f"{key}.".startswith(f"{one}.") for one in NO_SETTING)
        }

    @property
    def own(self) -> Entry:
        return self.entries[-1]

    def entry(self, role: str) -> Entry | None:
        return next((one for one in self.entries if one.role == role), None)

    @property
    def command(self) -> str:
        """What repeats this run; hydra.mode=RUN, since an experiment may ask for many. Parts are trained anew."""
        given = [one for one in self.overrides if not one.startswith(("pretrained.", "hydra.", "resume="))]
        return f"python -m arnn_lightning hydra.mode=RUN {shlex.join(given)}".strip()


@dataclass(frozen=True)
class LeftOut:
    """A folder that is no finished run, and why."""

    folder: Path
    why: str


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys.

    >>> flat({"a": {"b": 1, "c": [2]}, "d": {}})
    {'a.b': 1, 'a.c': [2]}
    """
    if not isinstance(config, Mapping):
        return {prefix: config}
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def find(patterns: Iterable[str]) -> list[Path]:
    """The run folders at or below every path or glob, in order, each once.

    Raises:
        UserError: a pattern that matches no folder, or no run below any.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        # A name with brackets is a folder before it is a pattern.
        places = (
            [Path(pattern)]
            if Path(pattern).is_dir()
            else sorted(
                map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207 (absolute patterns too)
            )
        )
        places = [place for place in places if place.is_dir()]
        if not places:
            raise UserError(f"runs: there is no folder {pattern}")
        for place in places:
            below = sorted(place.rglob(".hydra/config.yaml"), key=lambda file: _natural(file.parents[1]))
            found |= dict.fromkeys(file.parents[1] for file in below)
    if not found:
        raise UserError(f"runs: no run folder (with .hydra/config.yaml) in {', '.join(patterns)}")
    return list(found)


def data_place(folder: Path) -> Path | None:
    """Where a run had its data; None where that is a relative path, which means nothing here, or cannot be told."""
    try:
        place = OmegaConf.select(OmegaConf.load(folder / ".hydra" / "config.yaml"), "paths.data")
    except (OSError, OmegaConfBaseException, YAMLError):
        return None
    return Path(place) if isinstance(place, str) and Path(place).is_absolute() else None


def read(folder: Path, data_sets: Mapping[str, DataSet]) -> Run | LeftOut:
    """Reads one run folder; ``data_sets`` are those known, by the sha256 of their manifest's bytes."""
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml"), resolve=True)
        overrides = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "overrides.yaml"))
    except (OSError, OmegaConfBaseException, ValueError, YAMLError) as error:
        return LeftOut(folder, f"its .hydra cannot be read: {error}")
    assert isinstance(config, dict)
    assert isinstance(overrides, list)
    if flat(config).get("task._target_") != TRAINING:
        return LeftOut(folder, "not a training run")
    file = folder / "metrics.json"
    if not file.is_file():
        return LeftOut(folder, "incomplete: no metrics.json; the run is still going or was broken off")
    try:
        metrics = json.loads(file.read_text())
        data = data_sets.get(metrics["manifest"])
        roles = {"baselines": config["baselines"], "parts": config["model"]}
        entries = [
            _entry(folder, role, one["model"], configs[role], data)
            for kind, configs in roles.items()
            for role, one in metrics[kind].items()
        ]
        entries.append(_entry(folder, "", metrics["model"], config["model"], data))
    except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        return LeftOut(folder, f"incomplete: {type(error).__name__}: {error}")
    return Run(
        folder, metrics, {str(key): value for key, value in config.items()}, overrides, data, entries, _curves(folder)
    )


def _entry(folder: Path, role: str, name: str, config: Mapping[str, Any], data: DataSet | None) -> Entry:
    result = EvaluationResult.read(name, folder, role)
    if result.ranks.columns != list(RANKS):  # a record may leave out what the test split says already
        if data is None:
            raise ValueError("its ranks lack the attempts, and its prepared data set is not to be found")
        made = next_item_targets(data.test)
        if made.height != result.ranks.height:
            raise ValueError(f"{result.ranks.height} ranks for {made.height} attempts")
        higher, equal = result.ranks["higher"].cast(pl.Int64), result.ranks["equal"].cast(pl.Int64)
        blank = pl.Series("rank", np.zeros(made.height))  # the report ranks ties in its own way
        result = EvaluationResult(name, made.with_columns(higher, equal, blank).select(RANKS), result.item_counts)
    told = {key: value for key, value in flat(config).items() if "dims" not in key.split(".") and value is not None}
    return Entry(role, told, result)


def _curves(folder: Path) -> dict[str, list[float]]:
    """Validation metrics by epoch; of an epoch that was run twice, the last."""
    file = folder / "metrics.csv"
    values: dict[str, dict[int, float]] = {}
    if file.is_file():
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                if "val/" in row["metric"]:
                    values.setdefault(row["metric"], {})[int(row["epoch"])] = float(row["value"])
    return {metric: [by_epoch[epoch] for epoch in sorted(by_epoch)] for metric, by_epoch in values.items()}


def _natural(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sorts job 10 after job 9."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.parts)

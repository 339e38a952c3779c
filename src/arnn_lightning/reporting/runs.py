"""Run folders as data: configuration, test results and validation curves of finished training runs."""

import csv
import glob
import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # not caught by OmegaConf.load

from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.result import RANKS, EvaluationResult

TRAINING = "arnn_lightning.tasks.train."
# May differ between runs that are averaged: paths, speed, output. Data and models are identified by themselves, see
# `Run.data_key` and `Entry.config`; the keys below them are exceptions.
NON_SETTING_KEYS = (
    "seed",
    "model",
    "baselines",
    "data",
    "evaluation",
    "paths",
    "performance",
    "search",
    "pretrained",
    "resume",
    "checkpoint",
    "logger",
    "task",
    "trusted_modules",
    "published",
    *(f"trainer.{key}" for key in ("_target_", "accelerator", "strategy", "use_distributed_sampler", "deterministic")),
    *(f"trainer.{key}" for key in ("log_every_n_steps", "enable_model_summary", "enable_progress_bar")),
    *(f"trainer.{key}" for key in ("num_sanity_val_steps", "default_root_dir", "logger", "profiler", "benchmark")),
)
METRICS_KEYS = ("data", "model", "seed", "manifest", "seconds", "train_events_per_second", "parts", "baselines")
SETTING_KEYS = ("data.contexts.assignment", "data.contexts.n_attributes", "evaluation.monitor")


@dataclass(frozen=True)
class DataSet:
    """The parts of a prepared data set that a report needs.

    Attributes:
        manifest: its manifest.
        users: user, n_known (number of known attributes).
        train: user, item of every training event.
    """

    manifest: Mapping[str, Any]
    users: pl.DataFrame
    train: pl.DataFrame

    @property
    def key(self) -> str:
        """Equal for two preparations of the same files with the same settings, on whatever machine and path."""
        content = {key: value for key, value in self.manifest.items() if key != "seconds"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def n_items(self) -> int:
        return int(self.manifest["dims"]["n_items"])

    @classmethod
    def read(cls, folder: Path) -> "DataSet":
        manifest = json.loads((folder / "manifest.json").read_bytes())
        missing = [key for key in ("raw", "config", "funnel", "splits", "dims") if key not in manifest]
        if missing:
            raise ValueError(f"manifest.json lacks {', '.join(missing)}")
        return cls(
            manifest,
            pl.read_parquet(folder / "users.parquet", columns=["user", "n_known"]),
            pl.read_parquet(folder / "train.parquet", columns=["user", "item"]),
        )


@dataclass(frozen=True)
class Entry:
    """The test result of one model of a run.

    Attributes:
        role: empty for the run's main model, else that of a part or a baseline.
        config: the model's settings, flat, without the sizes measured from data.
        result: its ranks.
    """

    role: str
    config: Mapping[str, Any]
    result: EvaluationResult


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        folder: the run folder.
        metrics: its metrics.json.
        config: its resolved config.
        overrides: its command line.
        data: the prepared data set; None if it was not found.
        entries: every model that was tested, the main model last.
        curves: validation metric -> values by epoch, such as ``session/val/mrr@20``.
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
        """Everything besides data and models that determines the result, flat."""
        settings = {
            key: value
            for key, value in flatten(self.config).items()
            if key in SETTING_KEYS or not any(f"{key}.".startswith(f"{prefix}.") for prefix in NON_SETTING_KEYS)
        }
        if settings.get("trainer.num_nodes") == 1:  # the same as without the key
            del settings["trainer.num_nodes"]
        return settings

    @property
    def main(self) -> Entry:
        return self.entries[-1]

    @property
    def command(self) -> str:
        """Reproduces this run, with its parts trained again; hydra.mode=RUN, since an experiment may be a multirun."""
        skipped = ("pretrained.", "hydra.", "resume=")
        overrides = [override for override in self.overrides if not override.startswith(skipped)]
        return f"python -m arnn_lightning hydra.mode=RUN {shlex.join(overrides)}".strip()


@dataclass(frozen=True)
class SkippedRun:
    """A folder that is not a finished run or cannot be read, and the reason."""

    folder: Path
    reason: str


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys.

    >>> flatten({"a": {"b": 1, "c": [2]}, "d": {}})
    {'a.b': 1, 'a.c': [2]}
    """
    if not isinstance(config, Mapping):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def find_run_dirs(patterns: Iterable[str]) -> list[Path]:
    """The run folders at or below every path or glob, in order, each once.

    Raises:
        UserError: a pattern that matches no folder, or no run below any.
    """
    run_dirs: dict[Path, None] = {}
    for pattern in patterns:
        # A name with brackets may be a folder; only otherwise it is a pattern.
        paths = [pattern] if Path(pattern).is_dir() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        folders = [Path(path) for path in paths if Path(path).is_dir()]
        if not folders:
            raise UserError(f"runs: no folder matches {pattern}")
        for folder in folders:
            configs = sorted(folder.rglob(".hydra/config.yaml"), key=lambda file: _natural_sort_key(file.parents[1]))
            run_dirs |= dict.fromkeys(file.parents[1] for file in configs)
    if not run_dirs:
        raise UserError(f"runs: no run folder (with .hydra/config.yaml) in {', '.join(patterns)}")
    return list(run_dirs)


def load_data_sets(root: Path, run_dirs: Iterable[Path]) -> tuple[dict[str, DataSet], list[SkippedRun]]:
    """Prepared data sets below ``root`` and where the runs had theirs, by the sha256 of their manifest's bytes.

    Returns:
        The data sets, and those that cannot be read.
    """
    roots = {root, *(path for folder in run_dirs if (path := _data_dir(folder)) is not None)}
    data_sets, damaged = {}, []
    for data_dir in sorted(roots):
        for manifest in sorted((data_dir / "prepared").glob("*/manifest.json")):
            try:
                data_sets[hashlib.sha256(manifest.read_bytes()).hexdigest()] = DataSet.read(manifest.parent)
            except (OSError, ValueError, pl.exceptions.PolarsError) as error:
                reason = f"damaged prepared data set, prepare it again: {_first_line(error)}"
                damaged.append(SkippedRun(manifest.parent, reason))
    return data_sets, damaged


def _data_dir(folder: Path) -> Path | None:
    """The run's ``paths.data``; None if that cannot be read or is relative to an unknown folder."""
    try:
        path = OmegaConf.select(OmegaConf.load(folder / ".hydra" / "config.yaml"), "paths.data")
    except (OSError, OmegaConfBaseException, YAMLError):
        return None
    return Path(path) if isinstance(path, str) and Path(path).is_absolute() else None


def load_run(folder: Path, data_sets: Mapping[str, DataSet]) -> Run | SkippedRun:
    """Reads one run folder; ``data_sets`` by the sha256 of their manifest's bytes."""
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml"), resolve=True)
        overrides = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "overrides.yaml"))
    except (OSError, OmegaConfBaseException, ValueError, YAMLError) as error:
        return SkippedRun(folder, f"cannot read .hydra: {_first_line(error)}")
    if not isinstance(config, dict) or not str(flatten(config).get("task._target_")).startswith(TRAINING):
        return SkippedRun(folder, "not a training run")
    assert isinstance(overrides, list)
    file = folder / "metrics.json"
    if not file.is_file():
        return SkippedRun(folder, "incomplete: no metrics.json (the run is in progress or was interrupted)")
    try:
        metrics = json.loads(file.read_text())
        if "test" not in metrics:
            return SkippedRun(folder, "not tested: a trial of task=tune")
        missing = [key for key in METRICS_KEYS if key not in metrics]
        if missing:
            raise ValueError(f"metrics.json lacks {', '.join(missing)}")
        entries = _entries(folder, metrics, config)
        curves = _curves(folder / "metrics.csv")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pl.exceptions.PolarsError) as error:
        return SkippedRun(folder, f"incomplete: {type(error).__name__}: {_first_line(error)}")
    named = {str(key): value for key, value in config.items()}
    return Run(folder, metrics, named, overrides, data_sets.get(metrics["manifest"]), entries, curves)


def _entries(folder: Path, metrics: Mapping[str, Any], config: Mapping[Any, Any]) -> list[Entry]:
    """Every tested model; the configuration of a part from another run is that run's, not this one's."""
    main = _model_config(config["model"])
    configs = {role: _model_config(model) for role, model in config["baselines"].items()}
    for role in metrics["parts"]:
        part = _model_config(config["model"][role])
        checkpoint = (config.get("pretrained") or {}).get(role)
        if checkpoint is not None:
            part = _pretrained_config(Path(checkpoint), int(metrics["seed"]), part)
            main = {key: value for key, value in main.items() if not key.startswith(f"{role}.")}
            main |= {f"{role}.{key}": value for key, value in part.items()}
        configs[role] = part
    names = {role: entry["model"] for kind in ("baselines", "parts") for role, entry in metrics[kind].items()}
    entries = [Entry(role, configs[role], EvaluationResult.read(name, folder, role)) for role, name in names.items()]
    entries.append(Entry("", main, EvaluationResult.read(metrics["model"], folder)))
    for entry in entries:
        if entry.result.ranks.columns != list(RANKS):
            raise ValueError(f"test ranks of {entry.result.name}: columns must be {', '.join(RANKS)}")
    return entries


def _model_config(config: Any) -> dict[str, Any]:
    return {key: value for key, value in flatten(config).items() if "dims" not in key.split(".") and value is not None}


def _pretrained_config(checkpoint: Path, seed: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a part was trained with, from the run folder of its checkpoint.

    The part of another seed, or of an unknown run, is another configuration: means are over seeds alone.
    """
    for folder in checkpoint.parents:
        file = folder / ".hydra" / "config.yaml"
        if file.is_file():
            trained = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
            assert isinstance(trained, dict)
            role = checkpoint.parent.name  # RUN/checkpoints/best.ckpt, or RUN/checkpoints/ROLE/best.ckpt
            part = _model_config(trained["model"] if role == "checkpoints" else trained["model"][role])
            return part if trained["seed"] == seed else part | {"pretrained_seed": trained["seed"]}
    return {"name": config["name"], "pretrained": str(checkpoint)}


def _curves(file: Path) -> dict[str, list[float]]:
    """Validation metrics by epoch; of an epoch that was run twice, the last.

    Raises:
        ValueError: a line that is cut.
    """
    values: dict[str, dict[int, float]] = {}
    if file.is_file():
        with file.open(newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines), start=2):
                if None in row.values():
                    raise ValueError(f"{file.name}, line {number}, is cut")
                if "val/" in row["metric"]:
                    values.setdefault(row["metric"], {})[int(row["epoch"])] = float(row["value"])
    return {metric: [by_epoch[epoch] for epoch in sorted(by_epoch)] for metric, by_epoch in values.items()}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _natural_sort_key(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sorts job 10 after job 9."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.parts)

"""Run folders as data: configuration, test results and validation curves of finished training runs."""

import csv
import glob
import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np
import polars as pl
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from arnn_lightning.config.schema import RENAMED
from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.result import RANKS, EvaluationResult
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.run_folder import METRICS_FILE, RECORD, flatten

TRAINING, EVALUATION = "arnn_lightning.tasks.train.", "arnn_lightning.tasks.evaluate."
# May differ between runs that are averaged: paths, speed, output. Data and models are identified by their contents, see
# `Run.data_key` and `Entry.config`; the keys below them are exceptions.
NON_SETTING_KEYS = (
    "seed",
    "model",
    "baselines",
    "data",
    "evaluation",
    "paths",
    "performance.steps_per_execution",
    "performance.cache_mb",
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
METRICS_TYPES: Mapping[str, type | UnionType] = {
    "data": str,
    "model": str,
    "seed": int,
    "manifest": str,
    "seconds": dict,
    "train_events_per_second": float | None,
    "encoders": dict,
    "baselines": dict,
}
FIRST_ITEMS_TYPES: Mapping[str, type | UnionType] = {
    "answer": str,
    "encoder": str,
    "metric": str,
    "sessions": int,
    "popularity": float,
    "pnn": float,
}
ENCODERS = ("session", "context")
COUNTS = ("events", "sessions", "users", "items")
# What reading a damaged file raises.
DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    YAMLError,  # not caught by OmegaConf.load
    OmegaConfBaseException,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
)
NO_TRAINING = "not a training run"
SETTING_KEYS = ("data.contexts.assignment", "data.contexts.n_attributes", "evaluation.monitor")


@dataclass(frozen=True)
class DataSet:
    """The parts of a prepared data set that a report needs.

    Attributes:
        manifest: its manifest.
        users: user, n_known (number of known attributes).
        train: user, item of every training event.
        prepared: the folder with everything else.
    """

    manifest: Mapping[str, Any]
    users: pl.DataFrame
    train: pl.DataFrame
    prepared: PreparedDataset

    @property
    def key(self) -> str:
        """Equal for two preparations of the same files with the same settings, on whatever machine and path."""
        content = {key: value for key, value in self.manifest.items() if key != "seconds"}
        content["raw"] = list(content["raw"].values())
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def settings(self) -> dict[str, Any]:
        """How it was prepared, flat, by today's names of settings; of a class only its name, whose module may move."""
        return {
            RENAMED.get(key, key): str(value).rpartition(".")[2] if key.endswith("_target_") else value
            for key, value in flatten({"data": self.manifest["config"]}).items()
        }

    @property
    def n_items(self) -> int:
        return int(self.manifest["dims"]["n_items"])

    @cached_property
    def popularity(self) -> np.ndarray:
        """(I,) number of training events of every item."""
        return np.bincount(self.train["item"].to_numpy(), minlength=self.n_items)

    @classmethod
    def read(cls, folder: Path) -> "DataSet":
        manifest = json.loads((folder / "manifest.json").read_bytes())
        missing = [key for key in ("raw", "config", "funnel", "splits", "dims") if key not in manifest]
        if missing:
            raise ValueError(f"manifest.json lacks {', '.join(missing)}")
        for step in manifest["funnel"]:
            _check_types("manifest.json", step, dict.fromkeys(COUNTS, int | None))
        _check_types("manifest.json: splits", manifest["splits"], {"train": dict, "test": dict})
        for split in manifest["splits"].values():
            _check_types("manifest.json", split, dict.fromkeys(COUNTS, int))
        _check_types("manifest.json: config.contexts", manifest["config"]["contexts"], {"single": list, "multi": list})
        _check_types("manifest.json: dims", manifest["dims"], {"n_items": int})
        users = pl.read_parquet(folder / "users.parquet", columns=["user", "n_known"], glob=False)
        train = pl.read_parquet(folder / "train.parquet", columns=["user", "item"], glob=False)
        if train.is_empty() or not train["user"].is_in(users["user"].implode()).all():
            raise ValueError("train.parquet is empty, or has users that are not in users.parquet")
        return cls(manifest, users, train, PreparedDataset(folder))

    def attribute(self, name: str) -> tuple[np.ndarray, list[str]] | None:
        """See ``PreparedDataset.attribute``; None where the data set lacks it."""
        try:
            return self.prepared.attribute(name)
        except (UserError, *DAMAGE):
            return None


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
        curves: validation metric, such as ``session/val/mrr@20`` -> epoch -> value.
    """

    folder: Path
    metrics: Mapping[str, Any]
    config: Mapping[str, Any]
    overrides: list[str]
    data: DataSet | None
    entries: list[Entry]
    curves: Mapping[str, Mapping[int, float]]

    @property
    def seed(self) -> int:
        return int(self.metrics["seed"])

    @property
    def data_key(self) -> str:
        return self.data.key if self.data is not None else str(self.metrics["manifest"])

    @property
    def settings(self) -> dict[str, Any]:
        """Everything besides data and models that determines the result, flat."""
        return _settings(self.config)

    @property
    def is_external(self) -> bool:
        """Whether another program made the recommendations: no setting but the data applies to them."""
        return "lists" in self.metrics

    @property
    def main(self) -> Entry:
        return self.entries[-1]

    @property
    def command(self) -> str:
        """Reproduces this run, with its parts trained again."""
        skipped = ("pretrained.", "hydra.", "resume=", *(() if self.is_external else ("task=",)))
        overrides = [override for override in self.overrides if not override.startswith(skipped)]
        if any(override.startswith("experiment=") for override in overrides):  # it may be a multirun
            overrides.insert(0, "hydra.mode=RUN")
        return f"python -m arnn_lightning {shlex.join(overrides)}".strip()


@dataclass(frozen=True)
class SkippedRun:
    """A folder that is not a finished run or cannot be read, and the reason."""

    folder: Path
    reason: str


def find_run_dirs(patterns: Iterable[str], setting: str = "runs") -> list[Path]:
    """The run folders at or below every path or glob, in order, each once; ``setting`` names them in errors.

    Raises:
        UserError: a pattern that matches no folder, or no run below any.
    """
    run_dirs: dict[Path, Path] = {}  # by the resolved path: a folder may be given twice, relative and absolute
    for pattern in patterns:
        # A name with brackets may be a folder; only otherwise it is a pattern.
        paths = [pattern] if Path(pattern).is_dir() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        folders = [Path(path) for path in paths if Path(path).is_dir()]
        if not folders:
            raise UserError(f"{setting}: no folder matches {pattern}")
        for folder in folders:
            configs = sorted(folder.rglob(".hydra/config.yaml"), key=lambda file: _natural_sort_key(file.parents[1]))
            for file in configs:
                run_dirs.setdefault(file.parents[1].resolve(), file.parents[1])
    if not run_dirs:
        raise UserError(f"{setting}: no run folder (with .hydra/config.yaml) in {', '.join(patterns)}")
    return list(run_dirs.values())


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
            except DAMAGE as error:
                reason = f"damaged prepared data set, prepare it again: {_first_line(error)}"
                damaged.append(SkippedRun(manifest.parent, reason))
    return data_sets, damaged


def _data_dir(folder: Path) -> Path | None:
    """The run's ``paths.data``; None if that cannot be read or is relative to an unknown folder."""
    try:
        path = OmegaConf.select(OmegaConf.load(folder / RECORD / "config.yaml"), "paths.data")
    except DAMAGE:
        return None
    return Path(path) if isinstance(path, str) and Path(path).is_absolute() else None


def _read_config(file: Path) -> Any:
    """A stored config. It is stored before the sizes of the data are known: they, and what refers to them, are None."""

    def without_missing(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: without_missing(value) for key, value in node.items()}
        return None if node == MISSING else node

    config = OmegaConf.to_container(OmegaConf.load(file))
    return OmegaConf.to_container(OmegaConf.create(without_missing(config)), resolve=True)


def load_run(folder: Path, data_sets: Mapping[str, DataSet]) -> Run | SkippedRun:
    """Reads one run folder; ``data_sets`` by the sha256 of their manifest's bytes."""
    try:
        config = _read_config(folder / RECORD / "config.yaml")
        overrides = OmegaConf.to_container(OmegaConf.load(folder / RECORD / "overrides.yaml"))
    except DAMAGE as error:
        return SkippedRun(folder, f"cannot read .hydra: {_first_line(error)}")
    task = str(flatten(config).get("task._target_"))
    is_external = task.startswith(EVALUATION) and flatten(config).get("lists") is not None
    if not isinstance(config, dict) or not (task.startswith(TRAINING) or is_external):
        return SkippedRun(folder, NO_TRAINING)
    file = folder / METRICS_FILE
    if not file.is_file():
        return SkippedRun(folder, "incomplete: no metrics.json (the run is in progress or was interrupted)")
    try:
        _check_types("overrides.yaml", {"overrides": overrides}, {"overrides": list})
        lines = {f"line {number}": text for number, text in enumerate(list(overrides or ()), start=1)}
        _check_types("overrides.yaml", lines, dict.fromkeys(lines, str))
        for figures in (config.get("published") or {}).get("table2", {}).values():
            _check_types("config.yaml: published", figures, dict.fromkeys(figures, float))
        _check_types("config.yaml", config, {"evaluation": dict})
        _check_types("config.yaml: evaluation", config["evaluation"], {"cutoffs": list})
        metrics = json.loads(file.read_text())
        if "val" in metrics and "manifest" not in metrics:
            return SkippedRun(folder, "not tested: a trial of task=tune")
        _check_types(METRICS_FILE, metrics, METRICS_TYPES)
        _check_types("metrics.json: seconds", metrics["seconds"], dict.fromkeys(metrics["seconds"], float))
        if "first_items" in metrics:
            metrics["first_items"] = {"encoder": "PNN"} | metrics["first_items"]  # not in records of older runs
            _check_types("metrics.json: first_items", metrics["first_items"], FIRST_ITEMS_TYPES)
        entries, data = _entries(folder, metrics, config), data_sets.get(metrics["manifest"])
        for entry in entries:
            _check_lists(entry.result, data)
        curves = _curves(folder / "metrics.csv")
    except DAMAGE as error:
        return SkippedRun(folder, f"incomplete: {type(error).__name__}: {_first_line(error)}")
    named = {str(key): value for key, value in config.items()}
    assert isinstance(overrides, list)  # checked above
    return Run(folder, metrics, named, overrides, data, entries, curves)


def _entries(folder: Path, metrics: Mapping[str, Any], config: Mapping[Any, Any]) -> list[Entry]:
    """Every tested model; the configuration of a part from another run is that run's, not this one's."""
    if "lists" in metrics:
        result = EvaluationResult.read(metrics["model"], folder)
        return [Entry("", {"name": metrics["model"], "lists": True}, result)]
    main = _model_config(config["model"])
    configs = {role: _model_config(model) for role, model in config["baselines"].items()}
    for role in metrics["encoders"]:
        part = _model_config(config["model"][role])
        checkpoint = (config.get("pretrained") or {}).get(role)
        if checkpoint is not None:
            part = _pretrained_config(_working_folder(folder) / Path(checkpoint).expanduser(), role, config, part)
            main = {key: value for key, value in main.items() if not key.startswith(f"{role}.")}
            main |= {f"{role}.{key}": value for key, value in part.items()}
        configs[role] = part
    names = {role: entry["model"] for kind in ("baselines", "encoders") for role, entry in metrics[kind].items()}
    entries = [Entry(role, configs[role], EvaluationResult.read(name, folder, role)) for role, name in names.items()]
    entries.append(Entry("", main, EvaluationResult.read(metrics["model"], folder)))
    expected = ("session", "position", "user", "item")
    for entry in entries:
        ranks, name = entry.result.ranks, f"test ranks of {entry.result.name}"
        if ranks.columns != list(RANKS) or not all(dtype.is_numeric() for dtype in ranks.dtypes):
            raise ValueError(f"{name}: columns must be {', '.join(RANKS)}, all of them numbers")
        if ranks.is_empty() or any(ranks.null_count().row(0)):
            raise ValueError(f"{name}: empty, or values are missing")
        if not ranks.select(expected).equals(entries[-1].result.ranks.select(expected)):
            raise ValueError(f"{name}: other predictions than those of {entries[-1].result.name}")
    return entries


def _check_lists(result: EvaluationResult, data: DataSet | None) -> None:
    """Raises ValueError for a file of recommended items that does not have a count for every item."""
    counts = result.item_counts
    if counts is not None and (counts.dtype.kind not in "iu" or len(counts) != (data.n_items if data else len(counts))):
        raise ValueError(f"test lists of {result.name}: not a count for every item of the catalogue")


def _check_types(name: str, values: Any, types: Mapping[str, type | UnionType]) -> None:
    """Raises ValueError for a key that is missing or of another type; an integer is a number."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} is not a mapping")
    missing = [key for key in types if key not in values]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}")
    for key, kind in types.items():
        value = float(values[key]) if type(values[key]) is int and kind not in (int, int | None) else values[key]
        if not isinstance(value, kind):
            raise ValueError(f"{name}: {key} must not be {json.dumps(values[key])[:40]}")


def _settings(config: Mapping[Any, Any]) -> dict[str, Any]:
    settings = {
        key: value
        for key, value in flatten(config).items()
        if key in SETTING_KEYS or not any(f"{key}.".startswith(f"{prefix}.") for prefix in NON_SETTING_KEYS)
    }
    if settings.get("trainer.num_nodes") == 1:  # the same as without the key
        del settings["trainer.num_nodes"]
    if settings.get("init_from", "") is None:
        del settings["init_from"]
    return settings


def _model_config(config: Any) -> dict[str, Any]:
    return {key: value for key, value in flatten(config).items() if "dims" not in key.split(".") and value is not None}


def _working_folder(folder: Path) -> Path:
    """The folder that a run was started in, which its relative paths are relative to; "." if that is not recorded."""
    file = folder / RECORD / "hydra.yaml"
    return Path(OmegaConf.select(OmegaConf.load(file), "hydra.runtime.cwd") or "") if file.is_file() else Path()


def _pretrained_config(
    checkpoint: Path, role: str, config: Mapping[Any, Any], encoder: Mapping[str, Any]
) -> dict[str, Any]:
    """The configuration that an encoder was trained with, from the run folder of its checkpoint.

    An encoder of another seed, of other settings or of an unknown run is another configuration: means are over seeds
    alone. A session encoder reads no contexts, so that its run may have other ones.

    Args:
        checkpoint: of the encoder's model, or its run folder.
        role: of the encoder in this run.
        config: this run's.
        encoder: its configuration by ``config``, flat.
    """
    for folder in (checkpoint, *checkpoint.parents):
        file = folder / RECORD / "config.yaml"
        if file.is_file():
            trained = _read_config(file)
            assert isinstance(trained, dict)
            # RUN or RUN/checkpoints[/best.ckpt], or RUN/checkpoints/ROLE[/best.ckpt]
            stage = next((part for part in checkpoint.relative_to(folder).parts[1:] if part in ENCODERS), None)
            model = _model_config(trained["model"] if stage is None else trained["model"][stage])
            before, now = ({"seed": run["seed"]} | _settings(run) for run in (trained, config))
            differing = {
                f"pretrained_{key}": before.get(key)
                for key in sorted({*before, *now})
                if before.get(key) != now.get(key) and not (role == "session" and key.startswith("data.contexts."))
            }
            return model | differing
    return {"name": encoder["name"], "pretrained": str(checkpoint)}


def _curves(file: Path) -> dict[str, dict[int, float]]:
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
                if "val/" in row["metric"] and row["epoch"]:
                    values.setdefault(row["metric"], {})[int(row["epoch"])] = float(row["value"])
    return values


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _natural_sort_key(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sorts job 10 after job 9."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.parts)

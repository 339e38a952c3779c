"""task=train: prepare, train (a model's parts first), test, and end with one table."""

import json
import os
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import seed_everything
from pytorch_lightning.loggers import Logger
from rich.console import Console

from arnn_lightning.config import instantiate
from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.groups import by_known_attributes, by_position, group_means
from arnn_lightning.evaluation.metrics import metric_names, parse_metric
from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.loggers.wandb import WandbRun
from arnn_lightning.models.base import SessionModel
from arnn_lightning.preprocessing.dataset import Prepared
from arnn_lightning.reporting.console import paired_difference_line, results_table
from arnn_lightning.tasks.prepare import prepare_data
from arnn_lightning.training.checkpoint import build, check_data, load_weights, read_checkpoint
from arnn_lightning.training.distributed import agreed, device, first_once, together
from arnn_lightning.training.stage import BEST, datamodule, train_stage, trainer

METRICS_FILE = "metrics.json"


def train(config: DictConfig) -> float | None:
    """Runs one experiment; returns the validation metric `evaluation.monitor` (None without validation), which sweepers
    maximise."""
    with together(config, Path(HydraConfig.get().runtime.output_dir)) as folder:
        return _train(config, folder)


def _train(config: DictConfig, folder: Path) -> float | None:
    if agreed((folder / METRICS_FILE).is_file()):
        if not config.resume:
            raise UserError(
                f"{folder} holds a finished run; add resume=true to see it, or choose another hydra.run.dir"
            )
        return _show_finished(config, folder)
    clock = Clock()
    prepared = first_once(lambda: prepare_data(config))
    clock.lap("prepare")
    check_cutoffs(config, prepared)
    # Sizes measured from data have one place in the config, filled here.
    _, dims = prepared.told(config.data.contexts.n_attributes)
    config.model.dims = dims
    for baseline in config.baselines.values():
        baseline.dims = dims
    loggers = [instantiate(logger, save_dir=str(folder)) for logger in config.logger.values() if device() == 0]
    dashboards = [logger for logger in loggers if isinstance(logger, WandbRun)]
    failed = True
    try:
        for dashboard in dashboards:
            dashboard.log_hyperparams(plain(config))
        seed_everything(config.seed, verbose=False)
        model = build(plain(config.model))
        _set_up(model, config, config.model, prepared)
        parts: dict[str, EvaluationResult] = {}
        for role, part in model.parts.items():
            _set_up(part, config, config.model[role], prepared, role)
            _train_part(part, role, config, prepared, folder, loggers)
            clock.lap(f"train_{role}")
            parts[role] = test(part, config, prepared, loggers)  # now, while it has its scorer
            clock.lap(f"test_{role}")
        model.assemble()
        stage = plain(config.model)
        train_stage(model, datamodule(prepared, config, stage), config, stage, folder / "checkpoints", loggers)
        clock.lap("train")
        tested = test(model, config, prepared, loggers)
        baselines = {
            role: _baseline(baseline, config, prepared, folder / "checkpoints" / role)
            for role, baseline in config.baselines.items()
            if baseline.name != config.model.name
        }
        validation = _validation(model, config, prepared)
        labels = {
            "position": by_position(tested.ranks["position"]),
            "known_attributes": by_known_attributes(tested.ranks["user"], prepared.users()),
        }
        for dashboard in dashboards:
            for by, label in labels.items():
                results = (*baselines.values(), *parts.values(), tested)
                dashboard.log_groups(by, {one.name: group_means(one.ranks, label, headline(config)) for one in results})
            dashboard.log_files(model.name, folder / "checkpoints" / BEST, prepared.folder / "manifest.json")
        clock.lap("test")
        failed = False
    except KeyboardInterrupt:
        if device():
            raise
        hydra = HydraConfig.get()
        place = (
            f"sweep.dir={hydra.sweep.dir}" if hydra.mode is RunMode.MULTIRUN else f"run.dir={os.path.relpath(folder)}"
        )
        sys.stderr.write(f"interrupted; go on with the same command and resume=true hydra.{place}\n")
        raise
    finally:
        for dashboard in dashboards:
            dashboard.finish(failed)
    if device():
        return validation.get(config.evaluation.monitor)
    for role, one in [*parts.items(), *baselines.items()]:
        one.write(folder, role)
    tested.write(folder)
    names = metric_names(config.evaluation.metrics, config.evaluation.cutoffs)
    write_json(
        folder / METRICS_FILE,
        {
            "data": config.data.name,
            "model": config.model.name,
            "seed": config.seed,
            "test": tested.metrics(names),
            "val": validation,
            "parts": {role: {"model": one.name} | one.metrics(names) for role, one in parts.items()},
            "baselines": {role: {"model": one.name} | one.metrics(names) for role, one in baselines.items()},
            "manifest": prepared.manifest_sha256,
            "seconds": clock.seconds,
            "train_events_per_second": model.train_events_per_second,
        },
    )
    _print(config, folder, [*baselines.values(), *parts.values(), tested])
    return validation.get(config.evaluation.monitor)


class Clock:
    """Seconds of each part of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now


def plain(config: Any) -> Any:
    """A config as plain Python values, interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def paper_figures(config: DictConfig) -> Mapping[str, Mapping[str, float]]:
    """The paper's Table 2 where the data set is one of the paper's."""
    figures: Mapping[str, Mapping[str, float]] = (plain(config.data).get("paper") or {}).get("table2", {})
    return figures


def headline(config: DictConfig) -> list[str]:
    """The requested metrics at the largest cutoff: those that tables and logs show."""
    return metric_names(config.evaluation.metrics, [max(config.evaluation.cutoffs)])


def check_cutoffs(config: DictConfig, prepared: Prepared) -> None:
    """Raises UserError where a K is larger than the catalogue: every item would be a hit."""
    n_items = int(prepared.dims["n_items"])
    for k in config.evaluation.cutoffs:
        if k >= n_items:
            raise UserError(
                f"evaluation.cutoffs: {k} is not smaller than the catalogue of {n_items} items; "
                "set evaluation.cutoffs, as in [1,5]"
            )


@cache
def check_compiler(device: torch.device) -> None:
    """Raises UserError where torch.compile does not work, as without a C++ compiler."""
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # whatever it is, it is told before anything is trained
        cause = next(line for line in str(error).splitlines() if line.strip())
        raise UserError(
            f"performance.compile=true: torch.compile does not work here ({cause}); set performance.compile=false"
        ) from error


def about(config: DictConfig, model: DictConfig, prepared: Prepared) -> dict[str, Any]:
    """What a checkpoint says of itself, enough to evaluate it in another process and folder."""
    return {
        "model": plain(model),
        "data": OmegaConf.to_container(config.data, resolve=False),
        "prepared": prepared.folder.name,
        "seed": config.seed,
        "version": prepared.manifest["version"],
    }


def test(model: SessionModel, config: DictConfig, prepared: Prepared, loggers: list[Logger]) -> EvaluationResult:
    """Ranks of every prediction of the test split."""
    data = datamodule(prepared, config, {})
    trainer(config, Path(), loggers, []).test(model, data.test_dataloader(), verbose=False)
    split = pl.read_parquet(prepared.folder / "test.parquet")
    return EvaluationResult.from_counts(model.name, model.evaluated, split, config.evaluation.ties, model.listed)


def _set_up(model: SessionModel, config: DictConfig, stage: DictConfig, prepared: Prepared, role: str = "") -> None:
    model.prefix = f"{role}/" if role else ""
    if config.trainer.precision not in ("32-true", "bf16-mixed"):
        raise UserError(f"trainer.precision={config.trainer.precision}: choose 32-true or bf16-mixed")
    model.bf16 = config.trainer.precision == "bf16-mixed"
    if config.performance.compile:
        check_compiler(model.device)
        model.compile_inner()
    model.ties = config.evaluation.ties
    if hasattr(model, "cache_mb"):
        model.cache_mb = config.performance.cache_mb
    model.keeps_lists = config.evaluation.lists
    parse_metric(config.evaluation.monitor)
    names = metric_names(config.evaluation.metrics, config.evaluation.cutoffs)
    model.metric_names = list(dict.fromkeys([*names, config.evaluation.monitor]))
    model.headline_metrics = headline(config)
    model.about = about(config, stage, prepared)
    model.set_contexts(datamodule(prepared, config, {}).contexts())


def _train_part(
    part: SessionModel, role: str, config: DictConfig, prepared: Prepared, folder: Path, loggers: list[Logger]
) -> None:
    pretrained = config.pretrained[role]
    if pretrained is not None:
        checkpoint = read_checkpoint(pretrained)
        check_data(checkpoint, prepared.folder.name, f"pretrained.{role}: {pretrained}")
        load_weights(part, checkpoint, pretrained)
        return
    stage = plain(config.model[role])
    train_stage(part, datamodule(prepared, config, stage), config, stage, folder / "checkpoints" / role, loggers)


def _baseline(config_model: DictConfig, config: DictConfig, prepared: Prepared, folder: Path) -> EvaluationResult:
    model = build(plain(config_model))
    _set_up(model, config, config_model, prepared, config_model.name)
    model.count(prepared.sessions("train"))
    return test(model, config, prepared, [])


def _validation(model: SessionModel, config: DictConfig, prepared: Prepared) -> dict[str, float]:
    data = datamodule(prepared, config, {})
    if not data.has_validation:
        return {}
    (values,) = trainer(config, Path(), [], []).validate(model, data.val_dataloader(), verbose=False)
    return {name.removeprefix(f"{model.prefix}val/"): value for name, value in values.items()}


def _print(config: DictConfig, folder: Path, results: list[EvaluationResult]) -> None:
    if device():
        return
    console = Console()
    bootstrap = plain(config.evaluation.bootstrap)
    title = f"{config.data.name}, seed {config.seed}: {results[-1].ranks.height:,} predictions"
    console.print(results_table(results, headline(config), title, paper_figures(config), bootstrap, config.seed))
    if "session" in config.model:
        session = next(one for one in results if one.name == config.model.session.name)
        line = paired_difference_line(results[-1], session, headline(config), bootstrap, config.seed)
        console.print(line, soft_wrap=True)
    console.print(f"run folder: {os.path.relpath(folder)}", soft_wrap=True)


def _show_finished(config: DictConfig, folder: Path) -> float | None:
    metrics: Mapping[str, Any] = json.loads((folder / METRICS_FILE).read_text())
    roles = [*metrics["baselines"].items(), *metrics["parts"].items()]
    results = [EvaluationResult.read(one["model"], folder, role) for role, one in roles]
    results.append(EvaluationResult.read(metrics["model"], folder))
    _print(config, folder, results)
    value = metrics["val"].get(config.evaluation.monitor)
    return None if value is None else float(value)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON under a temporary name, then renames."""
    temporary = path.with_name(f".{path.name}.unfinished")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)

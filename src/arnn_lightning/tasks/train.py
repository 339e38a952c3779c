"""task=train: prepare, train (a model's encoders first), test, and end with one table."""

import copy
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, seed_everything

from arnn_lightning.config import applied_files, to_container
from arnn_lightning.evaluation.result import EvaluationResult, results_of
from arnn_lightning.io import write_json
from arnn_lightning.loggers import SafeLogger, open_loggers
from arnn_lightning.models import Recommender
from arnn_lightning.models.base import RunSettings
from arnn_lightning.models.trained import SessionRecommender
from arnn_lightning.nn.collectives import is_rank_zero
from arnn_lightning.preprocessing.dataset import PATH_KEYS, PreparedDataset
from arnn_lightning.reporting.console import first_items_line
from arnn_lightning.reporting.run_tables import groups_record
from arnn_lightning.run_folder import (
    BEST,
    CHECKPOINTS,
    METRICS_FILE,
    as_override,
    has_record,
    require_new_or_resumed,
    resumed_config,
    write_record,
)
from arnn_lightning.serving.vocabulary import store_vocabulary
from arnn_lightning.tasks.initial import Sources, load_pretrained, read_initial_weights
from arnn_lightning.tasks.prepare import prepare_data
from arnn_lightning.tasks.results import Results, print_results, run_tables
from arnn_lightning.tasks.start import check_evaluation, check_item_contexts, check_tuned, start_lines
from arnn_lightning.training.checkpoint import Metadata, build_model
from arnn_lightning.training.distributed import broadcast_from_rank_zero, distributed_run, rank_zero_first
from arnn_lightning.training.initial import InitialWeights
from arnn_lightning.training.stage import (
    all_metrics,
    evaluate_model,
    fit_counts,
    is_extended,
    restart_stage,
    run_settings,
    train_stage,
    validate_model,
    warn_of_untrained_unknowns,
)

log = logging.getLogger(__name__)


def run(config: DictConfig) -> float | None:
    """task=train; the value is what sweeps maximise."""
    try:
        return train(config, [])
    except KeyboardInterrupt:
        if is_rank_zero():
            sys.stderr.write(_how_to_resume())
        raise


def train(config: DictConfig, callbacks: Sequence[Callback], test: bool = True) -> float | None:
    """Runs one experiment; returns the validation value of the monitored metric (None without validation).

    Args:
        config: of the run; with ``resume``, the settings in the run folder apply in its place.
        callbacks: added to the main model's training.
        test: whether the models are tested, too.

    Raises:
        UserError: the folder is another run's, or a setting differs from that of the run that is resumed.
    """
    with distributed_run(config, Path(HydraConfig.get().runtime.output_dir)) as folder:
        if is_rank_zero():
            require_new_or_resumed(config, folder)
        is_resumed, is_finished = broadcast_from_rank_zero((has_record(folder), (folder / METRICS_FILE).is_file()))
        is_longer = False
        if is_resumed:
            config, is_longer = resumed_config(config, folder)
        if is_finished and not is_longer:
            return _print_saved_results(config, folder)
        settings = RecordedSettings(config, folder, is_resumed, is_pending=is_longer or not is_resumed)
        return _train(config, folder, callbacks, test, settings)


def train_as_job(config: DictConfig, callbacks: Sequence[Callback], test: bool = True) -> float | None:
    """``train`` in the run folder of a composed config, as a job of Hydra; raises what the training raises.

    Args:
        config: with that of Hydra, whose mode decides between ``hydra.run.dir`` and ``hydra.sweep``; a job of a
            multirun gets a log file in its folder.
        callbacks, test: as of ``train``.
    """

    def train_or_error(config: DictConfig) -> float | Exception | None:
        try:
            return train(config, callbacks, test)
        except Exception as error:  # raised below: Hydra would print it, a pruned trial's too
            return error

    is_multirun = config.hydra.mode is RunMode.MULTIRUN
    key, subfolder_key = ("hydra.sweep.dir", "hydra.sweep.subdir") if is_multirun else ("hydra.run.dir", None)
    context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
    job = run_job(train_or_error, config, key, subfolder_key, context, configure_logging=is_multirun)
    value: float | Exception | None = job.return_value
    if isinstance(value, Exception):
        raise value
    return value


class RecordedSettings(Callback):
    """Writes the settings of a run once, before it changes any weight.

    A finished run that is trained further keeps its results until then: they would not be those of its checkpoints.

    Args:
        config: of the run; copied, since a run completes it.
        folder: of the run.
        is_resumed: whether another process started the run.
        is_pending: whether the folder does not have these settings yet.
    """

    def __init__(self, config: DictConfig, folder: Path, is_resumed: bool, is_pending: bool) -> None:
        self.folder = folder
        self.is_resumed = is_resumed
        is_pending = is_pending and is_rank_zero()
        self._pending = copy.deepcopy(config) if is_pending else None

    def write(self) -> None:
        """Writes the settings, unless they are written, and removes results that another number of epochs gave."""
        if self._pending is not None:
            (self.folder / METRICS_FILE).unlink(missing_ok=True)
            write_record(self._pending, self.folder)
            self._pending = None

    def on_fit_start(self, *_: Any) -> None:
        self.write()


class Stopwatch:
    """Seconds of each part of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now


def _train(
    config: DictConfig, folder: Path, callbacks: Sequence[Callback], test: bool, recorded: RecordedSettings
) -> float | None:
    stopwatch = Stopwatch()
    prepared = rank_zero_first(lambda: prepare_data(config))
    stopwatch.lap("prepare")
    check_tuned(config, HydraConfig.get().runtime, prepared)
    check_evaluation(config, prepared)
    fill_dims(config, prepared)
    if is_rank_zero():
        for line in start_lines(config, prepared, HydraConfig.get()):
            log.info(line)
    with open_loggers(config.logger if is_rank_zero() else {}, folder, to_container(config)) as loggers:
        return TrainingRun(config, folder, prepared, loggers, recorded, stopwatch, test).train(callbacks)


@dataclass(frozen=True)
class TrainingRun:
    """One run, its data set prepared: the stages of a model, its baselines, and their results.

    Attributes:
        config: of the run, the sizes of the data set filled in.
        folder: of the run.
        prepared: the data set.
        loggers: of the run; none but in the process of rank 0.
        recorded: writes the run's settings.
        stopwatch: measures the parts of the run.
        test: whether the models are tested, too.
    """

    config: DictConfig
    folder: Path
    prepared: PreparedDataset
    loggers: Sequence[SafeLogger]
    recorded: RecordedSettings
    stopwatch: Stopwatch
    test: bool

    def train(self, callbacks: Sequence[Callback]) -> float | None:
        """Trains and, with ``test``, tests all models; returns the validation value of the monitored metric."""
        config, folder, prepared = self.config, self.folder, self.prepared
        seed_everything(config.seed, verbose=False)
        settings = self._settings()
        model = build_model(to_container(config.model), settings, metadata_maker(config, prepared))
        check_item_contexts(config.model, model)
        if model.uses_contexts and is_rank_zero():
            warn_of_untrained_unknowns(prepared, config)
        sources = Sources(folder)
        load_pretrained(model, prepared, config, sources)
        initial = read_initial_weights(model, config, settings.vocabulary, folder, sources)
        if not (folder / METRICS_FILE).is_file():
            self.recorded.write()
        if is_rank_zero():
            sources.write()
        encoders = self._train_encoders(model, initial)
        callbacks = [*callbacks, self.recorded, *([initial[""]] if "" in initial else [])]
        checkpoints = folder / CHECKPOINTS
        train_stage(model, prepared, config, to_container(config.model), checkpoints, self.loggers, callbacks)
        self.stopwatch.lap("train")
        self.recorded.write()  # of a model that is not fitted by a Trainer
        validation = validate_model(model, prepared, config)
        if self.test:
            result = evaluate_model(model, prepared, config, self.loggers)
            results = Results(result, encoders, self._evaluate_baselines())
            self.stopwatch.lap("test")
            if is_rank_zero():
                self._finish(model, results, validation, sources)
        elif is_rank_zero():
            of_trial = {"data": config.data.name, "model": config.model.name, "seed": config.seed, "val": validation}
            write_json(folder / METRICS_FILE, of_trial)
        return validation.get(config.evaluation.monitor)

    def _settings(self) -> RunSettings:
        config, settings = self.config, run_settings(self.config)
        settings.vocabulary = store_vocabulary(
            self.prepared,
            config.data.contexts.n_attributes,
            config.checkpoint.users,
            config.data.item_contexts.assignment,
            config.seed,
        )
        return settings

    def _train_encoders(self, model: Recommender, initial: Mapping[str, InitialWeights]) -> dict[str, EvaluationResult]:
        """Trains the stages before the model's, unless they are pretrained, and tests them."""
        config, results = self.config, {}
        checkpoints = self.folder / CHECKPOINTS
        for role, encoder in model.stages.items():
            if not self.test and not model.needs_stages:
                continue  # a control
            if config.pretrained[role] is None:
                stage = to_container(config.model[role])
                callbacks = [self.recorded, *([initial[role]] if role in initial else [])]
                if model.needs_stages and is_extended(config, stage, checkpoints / role):
                    restart_stage(checkpoints)  # of what is trained on top of this encoder
                train_stage(encoder, self.prepared, config, stage, checkpoints / role, self.loggers, callbacks)
            self.stopwatch.lap(f"train_{role}")
            if self.test:
                results[role] = evaluate_model(encoder, self.prepared, config, self.loggers)
                self.stopwatch.lap(f"test_{role}")
        return results

    def _evaluate_baselines(self) -> dict[str, EvaluationResult]:
        config, results = self.config, {}
        for role, baseline in config.baselines.items():
            if baseline.name != config.model.name:
                settings = run_settings(config)
                settings.log_prefix = f"{baseline.name}/"
                model = build_model(to_container(baseline), settings, metadata_maker(config, self.prepared))
                fit_counts(model, self.prepared, config)
                results[str(role)] = evaluate_model(model, self.prepared, config)
        return results

    def _finish(self, model: Recommender, results: Results, validation: Mapping[str, float], sources: Sources) -> None:
        """Writes and prints the results, and gives them to the loggers."""
        config, folder, tables = self.config, self.folder, run_tables(self.config, self.prepared)
        groups, bootstrap = tables.groups(results.in_order), to_container(config.evaluation.bootstrap)
        metrics = {
            "data": config.data.name,
            "model": config.model.name,
            "seed": config.seed,
            **results.metrics(all_metrics(config)),
            "val": validation,
            "manifest": self.prepared.manifest_sha256,
            "tuned": applied_files(config, HydraConfig.get().runtime),
            "seconds": self.stopwatch.seconds,
            "train_events_per_second": (
                model.progress.events_per_second if isinstance(model, SessionRecommender) else None
            ),
            "groups": groups_record(groups),
            "bootstrap": bootstrap,
        }
        if self.recorded.is_resumed:
            metrics["resumed"] = True
        if started_from := sources.of("init_from"):
            metrics["init_from"] = started_from
        if model.first_items is not None:
            metrics["first_items"] = model.first_items
        first_items = None if model.first_items is None else first_items_line(model.first_items)
        results.write(folder)
        write_json(folder / METRICS_FILE, metrics)
        print_results(config, folder, results, groups, bootstrap, first_items, not _is_multirun())
        # Last: a dashboard that fails or hangs costs no result.
        takes_tables = any(hasattr(logger.logger, "log_tables") for logger in self.loggers)
        shown = tables.all(results.in_order, results.encoders.get("session")) if takes_tables else {}
        for logger in self.loggers:
            logger.log_tables({f"test/{name}": table for name, table in shown.items()})
            logger.log_files(results.model.name, folder / CHECKPOINTS / BEST, self.prepared.folder / "manifest.json")


def fill_dims(config: DictConfig, prepared: PreparedDataset) -> None:
    """Writes the sizes that are measured from the data set into ``dims`` of the model and of every baseline."""
    _, dims = prepared.user_contexts(config.data.contexts.n_attributes)
    config.model.dims = dims
    for baseline in config.baselines.values():
        baseline.dims = dims


def metadata_maker(config: DictConfig, prepared: PreparedDataset) -> Metadata:
    """Makes the checkpoint metadata of a model: enough to evaluate it in another process and folder."""
    data = OmegaConf.to_container(config.data, resolve=False)
    assert isinstance(data, dict)
    for key in PATH_KEYS:  # absolute: a checkpoint is used from any folder
        if data.get(key) is not None:
            data[key] = _absolute(data[key], config.data[key])
    published = to_container(config.published)
    version = prepared.manifest["version"]
    return lambda model: {
        "model": model,
        "data": data,
        "published": published,
        "prepared": prepared.folder.name,
        "seed": config.seed,
        "version": version,
    }


def _absolute(written: Any, paths: Any) -> Any:
    """Absolute ``paths``, but for those that are written as ``${.raw_dir}/...``: these are where raw_dir is."""
    if isinstance(written, str) and "{.raw_dir}" in written:
        return written
    if isinstance(paths, str):
        return str(Path(paths).expanduser().absolute())
    return [*map(_absolute, written if isinstance(written, list) else [""] * len(paths), paths)]


def _is_multirun() -> bool:
    return HydraConfig.get().mode is RunMode.MULTIRUN


def _how_to_resume() -> str:
    hydra = HydraConfig.get()
    if not _is_multirun() and not has_record(Path(hydra.runtime.output_dir)):
        return "Interrupted before training started: there is nothing to resume.\n"
    folder = ("run.dir", os.path.relpath(hydra.runtime.output_dir))
    key, value = ("sweep.dir", hydra.sweep.dir) if _is_multirun() else folder
    added = shlex.quote(as_override(f"hydra.{key}", value))
    return f"Interrupted. Resume with the same command plus resume=true {added}\n"


def _print_saved_results(config: DictConfig, folder: Path) -> float | None:
    with results_of(folder):
        metrics: Mapping[str, Any] = json.loads((folder / METRICS_FILE).read_text())
        value = metrics["val"].get(config.evaluation.monitor)
        validation = None if value is None else float(value)
        if "test" not in metrics:
            log.info(
                f"{os.path.relpath(folder)} is a trial: its validation metrics are in {METRICS_FILE}, it has no test"
            )
            return validation
        results = Results.read(folder, metrics)
        # The metrics of groups are not computed again, which needs the data set.
        groups = {
            attribute: {model: pl.DataFrame(rows) for model, rows in models.items()}
            for attribute, models in metrics.get("groups", {}).items()
        }
        bootstrap = metrics.get("bootstrap") or to_container(config.evaluation.bootstrap)
        first_items = first_items_line(metrics["first_items"]) if "first_items" in metrics else None
    if is_rank_zero():
        print_results(config, folder, results, groups, bootstrap, first_items, not _is_multirun())
    return validation

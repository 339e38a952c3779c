"""One stage of training: a model with its own Trainer, callbacks, optimizer, loss and batch size."""

import logging
import re
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import Logger

from arnn_lightning.config import instantiate
from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.metrics import LIST_METRICS, METRICS, is_of_lists, metric_names, parse_metric
from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.io import write_text
from arnn_lightning.loading.datamodule import SessionDataModule
from arnn_lightning.models.base import Recommender, RunSettings
from arnn_lightning.models.trained import SessionRecommender
from arnn_lightning.nn.collectives import is_rank_zero, rank_and_world_size
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.run_folder import BEST
from arnn_lightning.training.callbacks import (
    AtomicCheckpointIO,
    EpochProgress,
    IntervalCheckpoint,
    RelocatableCheckpoint,
)
from arnn_lightning.training.checkpoint import (
    FIRST_ITEMS,
    load_weights,
    read_checkpoint,
    require_same_dataset,
    save_model,
)
from arnn_lightning.training.distributed import broadcast_from_rank_zero, make_trainer
from arnn_lightning.training.first_items import store_first_items

# Lightning's banners and hints on loaders would clutter the output; its other warnings stay.
for _name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(_name).setLevel(logging.WARNING)
for _warning in (
    "does not have many workers",
    "number of training batches",
    "LeafSpec",
    "in eval mode",
    "is not empty",
    "across ranks is zero",  # of a log without a validation split, which a line of our own reports
    "sync_dist=True",  # for values that are equal on all devices
    r"lr_scheduler.step\(\)",  # RowAdagrad's update within a chunk is not counted by torch
):
    warnings.filterwarnings("ignore", message=f".*{_warning}.*")
log = logging.getLogger(__name__)
LAST, DONE_MARKER = "last.ckpt", "done"
# Modules of Lightning whose errors are about the settings of the trainer or of callbacks.
SETTING_CHECKERS = re.compile(r"pytorch_lightning/(callbacks/\w+|loops/fit_loop)\.py")


def run_settings(config: DictConfig) -> RunSettings:
    """The settings of the run's config for every model.

    Raises:
        UserError: an unknown precision or metric.
    """
    if config.trainer.precision not in ("32-true", "bf16-mixed"):
        raise UserError(f"trainer.precision={config.trainer.precision}: choose 32-true or bf16-mixed")
    parse_metric(config.evaluation.monitor)
    return RunSettings(
        metrics=[name for name in all_metrics(config) if not is_of_lists(name)],
        shown=prediction_metrics(config),
        monitor=config.evaluation.monitor,
        tie_mode=config.evaluation.ties,
        list_length=max(config.evaluation.cutoffs),
        bf16=config.trainer.precision == "bf16-mixed",
        compile=config.performance.compile,
        cache_mb=config.performance.cache_mb,
    )


def all_metrics(config: DictConfig) -> list[str]:
    """The metrics in metrics.json: every metric at every cutoff, those of lists at the largest."""
    cutoffs = config.evaluation.cutoffs
    return metric_names(METRICS, cutoffs) + metric_names(LIST_METRICS, [max(cutoffs)])


def headline_metrics(config: DictConfig) -> list[str]:
    """The metrics in tables: ``evaluation.metrics`` at the largest cutoff."""
    return metric_names(config.evaluation.metrics, [max(config.evaluation.cutoffs)])


def prediction_metrics(config: DictConfig) -> list[str]:
    """Those of ``headline_metrics`` that single predictions have: what can be resampled, compared and grouped."""
    return [name for name in headline_metrics(config) if not is_of_lists(name)]


def make_datamodule(
    prepared: PreparedDataset, config: DictConfig, model: Mapping[str, Any] | None = None
) -> SessionDataModule:
    """The data of a run; for training, with the batch size and the negatives of ``model`` (a model's config)."""
    model = model or {}
    device, n_devices = rank_and_world_size()
    return SessionDataModule(
        prepared,
        batch_size=model.get("batch_size", config.evaluation.batch_size),
        steps_per_chunk=config.performance.steps_per_execution,
        evaluation_batch_size=config.evaluation.batch_size,
        n_sample=model.get("n_sample", 0),
        sample_alpha=model.get("sample_alpha", 0.0),
        negatives=model.get("negatives", "global"),
        assignment=config.data.contexts.assignment,
        item_assignment=config.data.item_contexts.assignment,
        attribute_dropout=model.get("attribute_dropout", 0.0),
        n_attributes=config.data.contexts.n_attributes,
        seed=config.seed,
        device=device,
        n_devices=n_devices,
    )


def warn_of_untrained_unknowns(prepared: PreparedDataset, config: DictConfig) -> None:
    """Warns of attributes that are unknown in some test events but in no training event, without attribute dropout."""
    data = make_datamodule(prepared, config, config.model)
    train, test = (data.unknown_shares(split) for split in ("train", "test"))
    lacking = [f"{name} {share:.1%}" for name, share in test.items() if share and not train[name]]
    if lacking and not data.attribute_dropout:
        log.warning(
            f"attributes that are unknown in some test events but in no training event: {', '.join(lacking)}; "
            "consider data.contexts.dropout=0.2, which trains the model on unknown attributes"
        )


def train_stage(
    model: Recommender,
    prepared: PreparedDataset,
    config: DictConfig,
    stage: Mapping[str, Any],
    folder: Path,
    loggers: Sequence[Logger],
    callbacks: Sequence[Callback] = (),
) -> None:
    """Trains ``model`` and leaves it with its best weights, and with what it lists before the first click.

    Args:
        model: the model; models that count (POP, ItemKNN, VSKNN) are fitted on the training sessions instead.
        prepared: its data.
        config: the run's config.
        stage: the model's own config: ``batch_size``, ``epochs``, ``patience`` ...
        folder: of ``best.ckpt``, ``last.ckpt`` and the marker ``done``, which contains the number of epochs; a stage
            with its marker is not repeated, unless it is to have more epochs.
        loggers: of the run.
        callbacks: added to the stage's own.

    Raises:
        UserError: a checkpoint of another data set, one that was trained longer, or a setting that Lightning refuses.
        KeyboardInterrupt: interrupted; ``last.ckpt`` resumes it.
    """
    is_done = config.resume and (folder / DONE_MARKER).is_file() and not is_extended(config, stage, folder)
    if not broadcast_from_rank_zero(is_done):
        folder.mkdir(parents=True, exist_ok=True)
        seed_everything(_rank_seed(config.seed, rank_and_world_size()[0]), verbose=False)
        if isinstance(model, SessionRecommender):
            _fit(model, prepared, config, stage, folder, loggers, callbacks)
        else:
            fit_counts(model, prepared, config)
            if is_rank_zero():
                save_model(model, folder / BEST)
                shutil.copyfile(folder / BEST, folder / LAST)
        if is_rank_zero():
            write_text(folder / DONE_MARKER, f"{n_epochs(config, stage)}\n")
        broadcast_from_rank_zero(None)  # the other processes wait for the files
    checkpoint = load_checkpoint_into(model, folder / BEST, prepared)
    broadcast_from_rank_zero(None)  # all have read it
    if is_rank_zero() and FIRST_ITEMS not in checkpoint and isinstance(model, SessionRecommender):
        store_first_items(model, make_datamodule(prepared, config), checkpoint, folder / BEST)


def fit_counts(model: Recommender, prepared: PreparedDataset, config: DictConfig) -> None:
    """Fits a non-neural model on the training sessions, with contexts as ``data.contexts.assignment`` gives them."""
    data = make_datamodule(prepared, config)
    model.set_contexts(data)
    model.fit(data.sessions("train"))


def n_epochs(config: DictConfig, stage: Mapping[str, Any]) -> int:
    """The largest number of epochs of a stage; 0 for a model without weights."""
    limits = (stage.get("epochs", 0), config.trainer.max_epochs)
    return min(int(limit) for limit in limits if limit is not None)


def is_extended(config: DictConfig, stage: Mapping[str, Any], folder: Path) -> bool:
    """Whether a completed stage must be trained for more epochs."""
    marker = folder / DONE_MARKER
    done = marker.read_text().strip() if config.resume and marker.is_file() else ""
    return done.isdigit() and int(done) < n_epochs(config, stage)


def restart_stage(folder: Path) -> None:
    """Makes ``train_stage`` start from the beginning."""
    if is_rank_zero():
        for name in (DONE_MARKER, LAST):
            (folder / name).unlink(missing_ok=True)


def load_checkpoint_into(model: Recommender, path: Path, prepared: PreparedDataset) -> dict[str, Any]:
    """Loads and returns a checkpoint that was trained on the same data set."""
    checkpoint = read_checkpoint(path)
    require_same_dataset(checkpoint, prepared.folder.name, path)
    load_weights(model, checkpoint, path)
    return checkpoint


def evaluate_model(
    model: Recommender, prepared: PreparedDataset, config: DictConfig, loggers: Sequence[Logger] = ()
) -> EvaluationResult:
    """Ranks of every prediction of the test split, and the metrics of the recommended lists."""
    trainer, data = _evaluation_trainer(config, loggers), make_datamodule(prepared, config)
    with _interruptible(trainer):
        trainer.test(model, datamodule=data, verbose=False)
    split = pl.read_parquet(prepared.folder / "test.parquet", glob=False)
    assert model.recommended is not None  # counted in every test
    result = EvaluationResult.from_counts(
        model.name, model.rank_counts, split, config.evaluation.ties, model.recommended.count_I.cpu()
    )
    return result.with_lists(prepared.item_popularity(), model.settings.list_length)


def validate_model(model: Recommender, prepared: PreparedDataset, config: DictConfig) -> dict[str, float]:
    """Metrics of the validation split; empty without one."""
    data = make_datamodule(prepared, config)
    if not data.has_validation:
        return {}
    trainer = _evaluation_trainer(config)
    with _interruptible(trainer):
        (values,) = trainer.validate(model, datamodule=data, verbose=False)
    return {name.removeprefix(f"{model.settings.log_prefix}val/"): value for name, value in values.items()}


def _evaluation_trainer(config: DictConfig, loggers: Sequence[Logger] = ()) -> Trainer:
    return _trainer(config, Path(), loggers, [])


def _rank_seed(seed: int, rank: int) -> int:
    """Dropout differs on every device; the first device samples like a run on one device."""
    return seed if rank == 0 else int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])


def _trainer(
    config: DictConfig,
    folder: Path,
    loggers: Sequence[Logger],
    callbacks: Sequence[Callback],
    **settings: Any,
) -> Trainer:
    """A Trainer with the run's settings; sets torch's number of threads, too."""
    if config.performance.threads is not None:
        torch.set_num_threads(int(config.performance.threads))
    return make_trainer(
        config,
        **settings,
        precision="32-true",  # trainer.precision is the models' own autocast, see optim/step.py
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        logger=list(loggers) or False,
        default_root_dir=str(folder),
    )


@contextmanager
def _interruptible(trainer: Trainer) -> Iterator[None]:
    """Raises KeyboardInterrupt on Ctrl-C, after which Lightning ignores SIGINT and exits with code 1."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from stop


@contextmanager
def _refused_settings() -> Iterator[None]:
    """Raises UserError where Lightning or one of its callbacks refuses a setting, with Lightning's reason.

    What is raised by anything else, models and callbacks of the user included, is a defect.
    """
    try:
        yield
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        raised_by = "/".join(Path(frames[-1].filename).parts[-3:])
        if not isinstance(error, MisconfigurationException) and not SETTING_CHECKERS.fullmatch(raised_by):
            raise
        raise UserError(f"trainer or callbacks: {' '.join(str(error).split())}") from error


def _fit(
    model: SessionRecommender,
    prepared: PreparedDataset,
    config: DictConfig,
    stage: Mapping[str, Any],
    folder: Path,
    loggers: Sequence[Logger],
    extra_callbacks: Sequence[Callback],
) -> None:
    data = make_datamodule(prepared, config, stage)
    monitor = f"{model.settings.log_prefix}val/{model.settings.monitor}" if data.has_validation else None
    epochs = n_epochs(config, stage)
    last = folder / LAST
    interval = IntervalCheckpoint(last, float(config.checkpoint.every_n_minutes))
    callbacks: list[Callback] = [
        RelocatableCheckpoint(folder, "best", monitor=monitor, mode="max", enable_version_counter=False),
        # After every epoch, validated or not, and with the state of "best" and of what validation has stopped.
        RelocatableCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False),
        EpochProgress(epochs, show_bar=sys.stdout.isatty() and is_rank_zero()),
        interval,
        *(instantiate(callback) for callback in config.callbacks.values()),
        *extra_callbacks,
    ]
    if stage["patience"] is not None and monitor is not None:
        callbacks.append(EarlyStopping(monitor, mode="max", patience=int(stage["patience"])))
    trainer = _trainer(config, folder, loggers, callbacks, max_epochs=epochs, plugins=[AtomicCheckpointIO()])
    resuming = broadcast_from_rank_zero(config.resume and last.is_file())
    if resuming:  # Lightning reads it too, with errors of its own
        checkpoint = load_checkpoint_into(model, last, prepared)
        if checkpoint["epoch"] >= epochs:
            raise UserError(
                f"{last} was trained for {checkpoint['epoch'] + 1} epochs, more than the {epochs} of its stage; "
                "raise its number of epochs, or use a new folder"
            )
        has_stopped = any(state.get("stopping_reason") for state in checkpoint["callbacks"].values())
        if has_stopped and checkpoint["epoch"] + 1 >= (trainer.min_epochs or 0):
            # It would train one more epoch.
            log.info(f"{model.stage_name}: stopped early after epoch {checkpoint['epoch'] + 1}, not trained further")
            return
    with _interruptible(trainer), interval.handle_sigint(), _refused_settings():
        trainer.fit(model, datamodule=data, ckpt_path=str(last) if resuming else None, weights_only=True)
    if trainer.strategy.reduce_boolean_decision(interval.stop_requested, all=False):  # in the last epoch
        raise KeyboardInterrupt
    if not broadcast_from_rank_zero((folder / BEST).is_file()):  # stopped before the first epoch's end
        trainer.save_checkpoint(folder / BEST)

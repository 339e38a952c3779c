"""One stage of training: a model with its own Trainer, callbacks, optimizer, loss and lanes."""

import logging
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO

from arnn_lightning.loading.datamodule import SessionDataModule
from arnn_lightning.models.base import SessionModel
from arnn_lightning.preprocessing.dataset import Prepared
from arnn_lightning.training.checkpoint import check_data, load_weights, read_checkpoint
from arnn_lightning.training.distributed import agreed, device, devices, make_trainer

log = logging.getLogger(__name__)
# Lightning's banners and its advice on loaders would bury the table; its warnings otherwise stay.
for _name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(_name).setLevel(logging.WARNING)
_ADVICE = ("does not have many workers", "number of training batches", "LeafSpec", "in eval mode", "is not empty")
for _advice in (*_ADVICE, "sync_dist=True"):  # the last of values that are equal on all devices
    warnings.filterwarnings("ignore", message=f".*{_advice}.*")
BEST, LAST, DONE = "best.ckpt", "last.ckpt", "done"


def datamodule(prepared: Prepared, config: DictConfig, model: Mapping[str, Any]) -> SessionDataModule:
    """The data as ``model`` (a model's config) wants it: its lanes, its negatives."""
    loss = model.get("loss", {})
    return SessionDataModule(
        prepared,
        lanes=int(model.get("batch_size", config.evaluation.batch_size)),
        steps=config.performance.steps_per_execution,
        evaluation_lanes=config.evaluation.batch_size,
        n_sample=int(model.get("n_sample", 0)),
        sample_alpha=float(model.get("sample_alpha", 0.0)),
        score_all=loss.get("candidates") == "all",
        log_q=bool(loss.get("logq", 0.0)),
        assignment=config.data.contexts.assignment,
        n_attributes=config.data.contexts.n_attributes,
        seed=config.seed,
        negatives=model.get("negatives", "global"),
        device=device(),
        devices=devices(),
    )


def train_stage(
    model: SessionModel,
    data: SessionDataModule,
    config: DictConfig,
    stage: Mapping[str, Any],
    folder: Path,
    loggers: list[Logger],
) -> None:
    """Trains ``model`` and leaves it with its best weights.

    Args:
        model: the model; counted models (ItemKNN, POP) are fitted from the training sessions instead.
        data: its data.
        config: the run's config.
        stage: the model's own config: ``epochs``, ``patience``.
        folder: where ``best.ckpt``, ``last.ckpt`` and the marker ``done`` go; a stage with its marker is not repeated.
        loggers: the run's loggers.
    """
    if not agreed(config.resume and (folder / DONE).is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        seed_everything(_own_seed(config.seed), verbose=False)
        if any(weight.requires_grad for weight in model.parameters()):
            _fit(model, data, config, stage, folder, loggers)
        else:
            _count(model, data, config, folder)
        if device() == 0:
            (folder / DONE).touch()
    best = read_checkpoint(folder / BEST)
    check_data(best, model.about.get("prepared"), folder / BEST)
    load_weights(model, best, folder / BEST)


def _own_seed(seed: int) -> int:
    """Every device drops out other units; the first draws as one device alone does."""
    return seed if device() == 0 else int(np.random.SeedSequence([seed, device()]).generate_state(1)[0])


def trainer(
    config: DictConfig, folder: Path, loggers: list[Logger], callbacks: list[Callback], **settings: Any
) -> Trainer:
    """The configured Trainer; its bar shows on a terminal only, and not for the short tests after training."""
    if config.performance.threads is not None:
        torch.set_num_threads(int(config.performance.threads))
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    bar = sys.stdout.isatty() and saves and device() == 0
    return make_trainer(
        config,
        **settings,
        precision="32-true",  # the models cast their own matrix products, see models/base.py
        callbacks=[*callbacks, *([RichProgressBar(leave=False)] if bar else [])],
        enable_progress_bar=bar,
        enable_checkpointing=saves,
        logger=loggers or False,
        default_root_dir=str(folder),
    )


def _fit(
    model: SessionModel,
    data: SessionDataModule,
    config: DictConfig,
    stage: Mapping[str, Any],
    folder: Path,
    loggers: list[Logger],
) -> None:
    monitor = f"{model.prefix}val/{config.evaluation.monitor}" if data.has_validation else None
    bound = config.trainer.max_epochs
    epochs = int(stage["epochs"]) if bound is None else min(int(stage["epochs"]), bound)
    saves = MidEpochSaves(folder / LAST, float(config.checkpoint.every_n_minutes))
    callbacks: list[Callback] = [
        ModelCheckpoint(folder, "best", monitor=monitor, mode="max", enable_version_counter=False),
        ModelCheckpoint(folder, "last", enable_version_counter=False),
        EpochLines(epochs),
        saves,
    ]
    if stage["patience"] is not None and monitor is not None:
        callbacks.append(EarlyStopping(monitor, mode="max", patience=int(stage["patience"])))
    made = trainer(config, folder, loggers, callbacks, max_epochs=epochs, plugins=[WholeFiles()])
    last = folder / LAST
    goes_on = agreed(config.resume and last.is_file())
    if goes_on:  # Lightning reads it too, but with no such words
        checkpoint = read_checkpoint(last)
        check_data(checkpoint, model.about.get("prepared"), last)
        load_weights(model, checkpoint, last)
    try:
        with saves.listening():
            made.fit(model, data, ckpt_path=str(last) if goes_on else None, weights_only=True)
    except SystemExit as stop:  # Lightning's answer to Ctrl-C
        if made.interrupted:
            raise KeyboardInterrupt from stop
        raise
    if made.strategy.reduce_boolean_decision(saves.asked_to_stop, all=False):  # in the last epoch
        raise KeyboardInterrupt
    if not agreed((folder / BEST).is_file()):  # stopped before the first epoch's end
        made.save_checkpoint(folder / BEST)


def _count(model: SessionModel, data: SessionDataModule, config: DictConfig, folder: Path) -> None:
    model.count(data.prepared.sessions("train"))
    made = trainer(config, folder, [], [], plugins=[WholeFiles()])
    # No Trainer.fit: it has nothing to optimise. The strategy alone is needed to save.
    made.strategy.connect(model)
    made.save_checkpoint(folder / BEST)
    if device() == 0:
        shutil.copyfile(folder / BEST, folder / LAST)


class WholeFiles(TorchCheckpointIO):
    """Checkpoints appear under their name when they are whole: a save that is cut off spoils no older one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        unfinished = Path(path).with_name(f".{Path(path).name}.unfinished")
        super().save_checkpoint(checkpoint, unfinished, storage_options)
        unfinished.replace(path)


class MidEpochSaves(Callback):
    """Saves ``last.ckpt`` every so many minutes, and on Ctrl-C, which ends the run once the window at hand is done.

    Between windows only, and never after an epoch's last, whose validation would then be skipped by a resumed run:
    the end of an epoch is saved after it. A second Ctrl-C ends the run at once.
    """

    def __init__(self, path: Path, minutes: float) -> None:
        self.path = path
        self.seconds = 60 * minutes
        self.asked_to_stop = False
        self._saved = time.monotonic()

    def _ask(self, *_: Any) -> None:
        if self.asked_to_stop:
            raise KeyboardInterrupt
        self.asked_to_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hears Ctrl-C for the time being; in a thread other than the main one, signals cannot be heard."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.strategy.reduce_boolean_decision(self.asked_to_stop, all=False):
            raise KeyboardInterrupt  # asked for during validation; the epoch is saved

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.is_last_batch:
            return
        # On many devices all do what one of them asks for, or some would wait for the others' share of a checkpoint.
        anybody = trainer.strategy.reduce_boolean_decision
        if anybody(self.asked_to_stop or time.monotonic() - self._saved >= self.seconds, all=False):
            trainer.save_checkpoint(self.path)
            self._saved = time.monotonic()
            if anybody(self.asked_to_stop, all=False):
                self.asked_to_stop = True
                raise KeyboardInterrupt


class EpochLines(Callback):
    """One line per epoch in the log, for runs without a terminal."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SessionModel)
        shown = {name.removeprefix(pl_module.prefix): float(value) for name, value in trainer.callback_metrics.items()}
        values = [f"loss {pl_module.epoch_loss:.4f}"]
        names = [f"val/{name}" for name in pl_module.headline_metrics]
        values += [f"{name} {shown[name]:.4f}" for name in names if name in shown]
        speed = pl_module.train_events_per_second
        about = {"epoch_loss": pl_module.epoch_loss, "lr": trainer.optimizers[0].param_groups[0]["lr"]}
        about |= {"events_per_second": speed} if speed else {}
        pl_module.log_dict({f"{pl_module.prefix}train/{name}": value for name, value in about.items()})
        values += [f"{speed:,.0f} events/s"] if speed else []
        log.info(f"{pl_module.name}: epoch {trainer.current_epoch + 1} of {self.epochs}: {', '.join(values)}")

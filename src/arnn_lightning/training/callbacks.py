"""Callbacks of a stage: checkpoints, interruption, and the progress of an epoch."""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TimeElapsedColumn

from arnn_lightning.models.trained import SessionRecommender
from arnn_lightning.training.checkpoint import write_checkpoint

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: Lightning moves a temporary file, which may be on another disk, to the path."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_checkpoint(checkpoint, Path(path))


class RelocatableCheckpoint(ModelCheckpoint):
    """Keeps the best score of a run whose folder was moved, which Lightning discards."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, now = str(state_dict["dirpath"]), str(self.dirpath)
        paths = {key: path.replace(before, now, 1) for key, path in state_dict.items() if key.endswith("_path")}
        scores = {path.replace(before, now, 1): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"dirpath": now, "best_k_models": scores})


class IntervalCheckpoint(Callback):
    """Saves ``last.ckpt`` every so many minutes, and on Ctrl-C, which ends the run after the current chunk.

    Lightning's ``ModelCheckpoint(train_time_interval=)`` has no effect under manual optimization. Saves happen between
    chunks and never after an epoch's last, whose validation a resumed run would then skip: ModelCheckpoint saves the
    end of an epoch. A second Ctrl-C ends the run at once.
    """

    def __init__(self, path: Path, minutes: float) -> None:
        self.path = path
        self.seconds = 60 * minutes
        self.stop_requested = False
        self._saved = time.monotonic()

    def _on_sigint(self, *_: Any) -> None:
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True

    @contextmanager
    def handle_sigint(self) -> Iterator[None]:
        """Handles SIGINT inside the context, in the main thread; other threads get no signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._on_sigint)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.strategy.reduce_boolean_decision(self.stop_requested, all=False):
            raise KeyboardInterrupt  # requested during validation; the epoch is saved

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.is_last_batch:
            return
        # All devices do what one of them requests, or some would wait for the others' share of a checkpoint.
        any_rank = trainer.strategy.reduce_boolean_decision
        if any_rank(self.stop_requested or time.monotonic() - self._saved >= self.seconds, all=False):
            trainer.save_checkpoint(self.path)
            self._saved = time.monotonic()
            if any_rank(self.stop_requested, all=False):
                self.stop_requested = True
                raise KeyboardInterrupt


class EpochProgress(Callback):
    """Logs loss, learning rate and speed of every epoch, and prints one line; a bar on a terminal during the epoch.

    Lightning's bar shows the validation of the epoch before, and numbers epochs from 0.

    Args:
        epochs: of the stage.
        show_bar: whether the terminal shows a bar; it is gone when the line is printed.
    """

    def __init__(self, epochs: int, show_bar: bool) -> None:
        self.epochs = epochs
        self.show_bar = show_bar
        self._bar: Progress | None = None
        self._is_validated = False  # in this epoch: its metrics stay until the next validation

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_validated = False
        if not self.show_bar:
            return
        columns = ("{task.description}", BarColumn(), TaskProgressColumn(), "{task.fields[values]}")
        self._bar = Progress(*columns, TimeElapsedColumn(), transient=True, refresh_per_second=4)
        self._bar.add_task(self._title(trainer, pl_module), total=trainer.num_training_batches, values="")
        self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **_: Any) -> None:
        if self._bar is not None:
            assert isinstance(pl_module, SessionRecommender)
            speed = pl_module.progress.events_per_second
            values = f"loss {pl_module.progress.epoch_loss:.3f}" + (f", {speed:,.0f} events/s" if speed else "")
            self._bar.update(TaskID(0), completed=args[2] + 1, values=values)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.refresh()  # the whole epoch, however short; otherwise it is refreshed four times a second
            self._bar.reset(TaskID(0), total=sum(trainer.num_val_batches), values="validation")
            self._bar.refresh()

    def on_validation_batch_end(self, *args: Any, **_: Any) -> None:
        if self._bar is not None:
            self._bar.advance(TaskID(0))

    def on_validation_end(self, *_: Any) -> None:
        self._is_validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SessionRecommender)
        self._stop_bar()
        prefix = pl_module.settings.log_prefix
        validation = {
            name: float(trainer.callback_metrics[f"{prefix}val/{name}"])
            for name in pl_module.settings.shown
            if self._is_validated and f"{prefix}val/{name}" in trainer.callback_metrics
        }
        speed = pl_module.progress.events_per_second
        values = {"epoch_loss": pl_module.progress.epoch_loss, "lr": trainer.optimizers[0].param_groups[0]["lr"]}
        values |= {"events_per_second": speed} if speed else {}
        pl_module.log_dict({f"{prefix}train/{name}": value for name, value in values.items()})
        line = f"{self._title(trainer, pl_module)}: loss {pl_module.progress.epoch_loss:.3f}"
        if validation:
            line += f", val {', '.join(f'{name} {value:.4f}' for name, value in validation.items())}"
        log.info(line)

    def on_exception(self, *_: Any) -> None:
        self._stop_bar()

    def on_train_end(self, *_: Any) -> None:
        self._stop_bar()  # where trainer.max_steps ends an epoch

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _title(self, trainer: Trainer, pl_module: LightningModule) -> str:
        assert isinstance(pl_module, SessionRecommender)
        return f"{pl_module.stage_name}: epoch {trainer.current_epoch + 1} of {self.epochs}"

"""What happens during a stage beside its steps: checkpoints, interruption, and a line per epoch."""

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

from arnn_lightning.io import atomic_path
from arnn_lightning.models.trained import SessionRecommender

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: Lightning moves a temporary file that may lie on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with atomic_path(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


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


class EpochLogger(Callback):
    """Logs loss, learning rate and speed after every epoch, and writes one line, for runs without a terminal."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SessionRecommender)
        prefix = pl_module.settings.log_prefix
        validation = {
            name.removeprefix(prefix): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.removeprefix(prefix) in (f"val/{metric}" for metric in pl_module.settings.headline)
        }
        speed = pl_module.train_events_per_second
        values = {"epoch_loss": pl_module.epoch_loss, "lr": trainer.optimizers[0].param_groups[0]["lr"]}
        values |= {"events_per_second": speed} if speed else {}
        pl_module.log_dict({f"{prefix}train/{name}": value for name, value in values.items()})
        parts = [f"loss {pl_module.epoch_loss:.4f}", *(f"{name} {value:.4f}" for name, value in validation.items())]
        parts += [f"{speed:,.0f} events/s"] if speed else []
        log.info(f"{pl_module.name}: epoch {trainer.current_epoch + 1} of {self.epochs}: {', '.join(parts)}")

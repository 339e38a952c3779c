"""Loggers of a run: any of Lightning's, from the config group ``logger``; one that fails to log does not end a run."""

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from pytorch_lightning.loggers import Logger

from arnn_lightning.config import instantiate
from arnn_lightning.errors import UserError

log = logging.getLogger(__name__)


@contextmanager
def open_loggers(
    configs: Mapping[str, Any], folder: Path, hyperparameters: dict[str, Any]
) -> Iterator[list["SafeLogger"]]:
    """Makes the loggers of a run, gives them its settings, and finalizes them at its end.

    Args:
        configs: name -> logger, the group ``logger``; empty in every process of a run but the first.
        folder: the run folder; passed as ``save_dir`` where a logger has this argument and its config does not set it.
        hyperparameters: the run's whole config, as plain values.

    Yields:
        The loggers, for the Trainers of all stages.

    Raises:
        UserError: a logger whose package is not installed, or whose config is wrong.
    """
    loggers = [SafeLogger(name, make_logger(config, folder)) for name, config in configs.items()]
    status = "failed"
    try:
        for logger in loggers:
            logger.log_hyperparams(hyperparameters)
        yield loggers
        status = "success"
    except KeyboardInterrupt:
        status = "aborted"
        raise
    finally:
        for logger in loggers:
            logger.close(status)


def make_logger(config: Mapping[str, Any], folder: Path) -> Logger:
    """Instantiates one logger of the config group."""
    try:
        accepted = inspect.signature(get_class(config["_target_"])).parameters
    except Exception:  # no such class: instantiate raises the one-line error
        accepted = {}  # type: ignore[assignment]
    save_dir = {"save_dir": str(folder)} if "save_dir" in accepted and "save_dir" not in config else {}
    logger: Logger = instantiate(config, **save_dir)
    return logger


class SafeLogger(Logger):
    """Passes everything on to ``logger`` until it first fails; the failure is a warning, and the run continues.

    A run has several stages, each with a Trainer that finalizes its loggers: the logger stays open until ``close``.
    """

    def __init__(self, key: str, logger: Logger) -> None:
        super().__init__()
        self.key = key
        self.logger = logger
        self.failed = False

    def call(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Calls a method of the logger; nothing happens where it has none of this name, or has failed before."""
        function = None if self.failed else getattr(self.logger, method, None)
        if function is not None:
            with self._failure_is_a_warning():
                function(*args, **kwargs)

    @contextmanager
    def _failure_is_a_warning(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # of any service, network or disk
            self.failed = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            log.warning(f"logger.{self.key} failed and is not used any more ({reason}); the run continues")

    @property
    def name(self) -> str | None:
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        return self.logger.version

    @property
    def save_dir(self) -> str | None:
        return self.logger.save_dir

    @property
    def experiment(self) -> Any:
        """The wrapped logger's handle, for callbacks that write to it.

        Raises:
            AttributeError: the logger has none, or has failed; Trainers test for this with ``hasattr``.
        """
        if not self.failed and hasattr(type(self.logger), "experiment"):
            with self._failure_is_a_warning():
                return self.logger.experiment  # type: ignore[attr-defined]
        raise AttributeError(f"logger.{self.key} has no experiment")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.call("log_hyperparams", params, *args, **kwargs)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.call("log_metrics", metrics, step)

    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        self.call("log_graph", *args, **kwargs)

    def log_tables(self, tables: Mapping[str, Any]) -> None:
        """Results, groups and gains by name, where the logger has this method (WandbLogger, TensorBoardLogger)."""
        self.call("log_tables", tables)

    def log_files(self, model: str, checkpoint: Path, manifest: Path) -> None:
        """Checkpoint and manifest as artifacts, where the logger has this method (WandbLogger)."""
        self.call("log_files", model, checkpoint, manifest)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self.call("after_save_checkpoint", checkpoint_callback)

    def save(self) -> None:
        self.call("save")

    def finalize(self, status: str) -> None:
        """The end of one stage."""
        self.save()

    def close(self, status: str) -> None:
        """The end of the run: success, failed or aborted."""
        failed, self.failed = self.failed, False  # a logger that failed in between is ended, too
        self.call("finalize", "failed" if failed else status)

"""Many processes, one per device, that do one run: how they start, what they agree on, how they end distributed_run.

ManualDDPStrategy, rendezvous and devices are Lightning's (its own launcher, torchrun, SLURM). What it leaves to its users is
here: an error in one process ends all of them, with its one line and its exit code, even where the others wait in a
message that will never come.
"""

import atexit
import logging
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy

from arnn_lightning.config import instantiate
from arnn_lightning.errors import UserError

T = TypeVar("T")
_TELLER, _FAILED = "teller", "failed"
_PATIENCE = 60  # seconds that a process that has failed waits for the others to end
_LOOK = 0.5  # seconds between two looks at whether another process has failed


class ManualDDPStrategy(DDPStrategy):
    """Lightning's DDP without its wrapper: a window holds many optimizer steps, and the model itself exchanges their
    gradients (nn/exchange.py).

    Args:
        process_group_backend: gloo or nccl; None for the device's usual one.
        timeout_minutes: how long a process waits for another, as for data that is being prepared.
    """

    def __init__(self, process_group_backend: str | None, timeout_minutes: float) -> None:
        super().__init__(process_group_backend=process_group_backend, timeout=timedelta(minutes=timeout_minutes))

    def configure_ddp(self) -> None:
        """All start with the weights of the first; they are equal already where all were drawn from one seed."""
        assert self.model is not None
        for tensor in self.model.state_dict().values():
            dist.broadcast(tensor, 0)


def device() -> int:
    """Which process this is; 0 writes, prints and logs."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def devices() -> int:
    """How many processes do this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def broadcast_from_rank_zero(value: T) -> T:
    """The first process's value, in all of them; the others wait for it."""
    if devices() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, 0)
    return held[0]


def rank_zero_first(make: Callable[[], T]) -> T:
    """Makes it in the first process, then in the others, which find what that one has written."""
    made = make() if device() == 0 else None
    if devices() > 1:
        dist.barrier()
    return make() if made is None else made


def make_trainer(config: DictConfig, **settings: Any) -> Trainer:
    """The configured Trainer.

    Raises:
        UserError: devices that are not there, or several without the strategy that knows how to use them.
    """
    try:
        made: Trainer = instantiate(config.trainer, **settings, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, MisconfigurationException):
            raise UserError(f"trainer: {' '.join(str(error.__cause__).split())}") from error
        raise
    if made.world_size > 1 and not isinstance(made.strategy, ManualDDPStrategy):
        raise UserError(f"{made.world_size} devices need trainer=ddp")
    return made


@contextmanager
def distributed_run(config: DictConfig, folder: Path) -> Iterator[Path]:
    """Starts the other processes of a run on many devices, or joins them; nothing on one device.

    Args:
        config: the run's config.
        folder: this process's own folder; its name holds the time, so that it may be another than the first one's.

    Yields:
        The run's folder, the same for all.
    """
    if config.trainer.get("strategy") is None:
        yield folder
        return
    made = make_trainer(config, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    strategy = made.strategy
    if made.world_size == 1 or not isinstance(strategy, ManualDDPStrategy):
        yield folder
        return
    _refuse_sweeps(strategy)
    _check_started(strategy)
    assert strategy.launcher is not None
    if strategy.global_rank:
        _find_first(strategy)
    strategy.launcher.launch(strategy.setup_environment, trainer=made)
    end, common = CommonEnd(strategy), folder
    try:
        common, logs = broadcast_from_rank_zero((folder, [Path(one.baseFilename) for one in _log_files()]))
        if device():
            _leave(folder, common, logs)
        yield common
        strategy.barrier()  # all are done,
        end.ends = True
        strategy.barrier()  # and nobody looks any more: the first may take the store with it
    except BaseException as error:
        end.failed(error)
        if isinstance(error, RuntimeError) and "gloo" in str(error):
            raise UserError(
                "another process of this run has ended, perhaps killed for want of memory; go on with the same command "
                f"and resume=true hydra.run.dir={os.path.relpath(common)}"
            ) from error
        raise


class CommonEnd:
    """Ends this process once another has failed, through the key-value store at which all met.

    The first to fail tells its error; when that is printed, at its exit, it says so in the store. A thread of every
    other process looks there and ends its own at once, which may be waiting in a message.
    """

    def __init__(self, strategy: ManualDDPStrategy) -> None:
        self.ends = False  # of its own accord: no more looks
        environment = strategy.cluster_environment
        assert environment is not None
        address = environment.main_address, environment.main_port
        store = dist.TCPStore(*address, is_master=False, wait_for_workers=False)  # type: ignore[attr-defined]
        self._store = dist.PrefixStore("arnn", store)  # type: ignore[attr-defined]
        if device() == 0:
            for key in (_TELLER, _FAILED):  # of a run that torchrun has restarted
                self._store.delete_key(key)
        strategy.barrier()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        try:
            while not self._store.check([_FAILED]):
                time.sleep(_LOOK)
                if self.ends:
                    return
            who, code = map(int, self._store.get(_FAILED).split())
        except RuntimeError:  # the process that held the store has been killed
            who, code = -1, 1
        if who != device():
            sys.stdout.flush()
            # Lightning kills the first process as soon as it sees that another has ended with anything but 0.
            os._exit(0 if device() and who == 0 else code)

    def failed(self, error: BaseException) -> None:
        """Returns in the one process that is to tell the error; the others wait here to be ended."""
        if isinstance(error, KeyboardInterrupt):
            if device():
                time.sleep(_PATIENCE)  # the first one tells how to go on, and ends all
            code = 130
        else:
            code = 2 if isinstance(error, UserError | OSError | OmegaConfBaseException) else 1  # as in cli.py
        try:
            teller = int(self._store.compare_set(_TELLER, "", str(device())))
        except RuntimeError:  # the process that held the store has been killed
            os._exit(1)
        if teller != device():
            time.sleep(_PATIENCE)
        self.ends = True
        atexit.register(self._announce, code)

    def _announce(self, code: int) -> None:
        with suppress(RuntimeError):
            self._store.set(_FAILED, f"{device()} {code}")
        # The others are to see it before the first, which holds the store, ends; and that one before Lightning sees
        # that this one has ended.
        time.sleep(3 * _LOOK)


def _find_first(strategy: ManualDDPStrategy) -> None:
    """Waits until the first process can be reached; Lightning would wait an hour for one that was killed by now."""
    environment = strategy.cluster_environment
    assert environment is not None
    address = environment.main_address, environment.main_port
    # Lightning's own launcher is the first process, which listens as soon as it has started the others.
    until = time.monotonic() + (30 if isinstance(environment, LightningEnvironment) else 300)
    while True:
        try:
            socket.create_connection(address, timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"the first process of this run does not answer at {address[0]}:{address[1]}"
                ) from error
            time.sleep(_LOOK)


def _refuse_sweeps(strategy: ManualDDPStrategy) -> None:
    """Lightning starts the other processes by this one's command line, which is not that of one job of a sweep.

    A cluster may start all processes of a job; then each runs that job alone.
    """
    assert strategy.cluster_environment is not None
    hydra = HydraConfig.get()
    by_cluster = "submitit" in hydra.launcher._target_ and strategy.cluster_environment.creates_processes_externally
    if hydra.mode == RunMode.MULTIRUN and not by_cluster:
        raise UserError("--multirun cannot be used with trainer=ddp on one machine: start one run after the other")


def _check_started(strategy: ManualDDPStrategy) -> None:
    """Raises UserError where torchrun or a cluster started another number of processes than the config says."""
    assert strategy.cluster_environment is not None
    try:
        strategy.cluster_environment.validate_settings(strategy.num_processes, strategy.num_nodes)
    except ValueError as error:
        raise UserError(
            f"trainer.devices={strategy.num_processes} trainer.num_nodes={strategy.num_nodes}: "
            f"{strategy.cluster_environment.world_size()} processes were started"
        ) from error


def _log_files() -> list[logging.FileHandler]:
    return [one for one in logging.getLogger().handlers if isinstance(one, logging.FileHandler)]


def _leave(folder: Path, common: Path, logs: list[Path]) -> None:
    """Keeps a process other than the first from writing: its log file, and its own folder where it got one."""
    logging.getLogger("arnn_lightning").setLevel(logging.WARNING)
    for handler in _log_files():
        logging.getLogger().removeHandler(handler)
        handler.close()
        written = Path(handler.baseFilename)
        if written not in logs and written.is_file() and not written.stat().st_size:
            written.unlink()
    # Made by Hydra a moment ago; nobody else's is touched.
    if folder.resolve() != common.resolve() and {one.name for one in folder.iterdir()} <= {".hydra"}:
        shutil.rmtree(folder)

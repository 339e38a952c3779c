"""One run on several processes, one per device: strategy, launch, and what only rank zero does.

Processes, rendezvous and devices are Lightning's (its own launcher, torchrun, SLURM); docs/many-devices.md shows how
to start each. A failure of one process ends all of them: training/failures.py.
"""

import logging
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from lightning_fabric.plugins import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only

from arnn_lightning.config import instantiate
from arnn_lightning.errors import UserError
from arnn_lightning.nn.collectives import rank_and_world_size
from arnn_lightning.run_folder import as_override, locked
from arnn_lightning.training.failures import PeerFailureMonitor

T = TypeVar("T")
_START_TIMEOUT = timedelta(minutes=5)  # until rank zero listens; nodes of a cluster do not start at once


class ManualDDPStrategy(DDPStrategy):
    """DDP without torch's module wrapper, which reduces gradients once per ``training_step``.

    A ``training_step`` takes several optimizer steps here; the model reduces the gradients of each
    (nn/collectives.py).

    Args:
        process_group_backend: gloo or nccl; None for the device's default.
        timeout_minutes: how long a collective waits for the other processes, as while rank zero prepares data.
    """

    def __init__(self, process_group_backend: str | None, timeout_minutes: float) -> None:
        super().__init__(process_group_backend=process_group_backend, timeout=timedelta(minutes=timeout_minutes))

    def configure_ddp(self) -> None:
        """Broadcasts the weights and buffers of rank zero."""
        assert self.model is not None
        for tensor in self.model.state_dict().values():
            dist.broadcast(tensor, 0)


def broadcast_from_rank_zero(value: T) -> T:
    """The value of rank zero, in every process. Collective."""
    if rank_and_world_size()[1] == 1:
        return value
    payload = [value]
    dist.broadcast_object_list(payload, 0)
    return payload[0]


def rank_zero_first(function: Callable[[], T]) -> T:
    """Calls ``function`` in rank zero, then in the others, which find the files that rank zero wrote. Collective."""
    rank, world_size = rank_and_world_size()
    result = function() if rank == 0 else None
    if world_size > 1:
        dist.barrier()
    return function() if result is None else result


def make_trainer(config: DictConfig, **settings: Any) -> Trainer:
    """The Trainer of ``config.trainer``; ``settings`` take precedence.

    Raises:
        UserError: devices or SLURM variables that Lightning rejects, several devices without ``trainer=ddp``, or
            arguments of the Trainer in environment variables.
    """
    for name in os.environ:
        if name.startswith("PL_TRAINER_"):  # Lightning takes arguments from there that no record of a run would have
            raise UserError(f"{name}: unset this environment variable, and set trainer.{name[11:].lower()} instead")
    if config.trainer.get("strategy") is None:
        # Otherwise Lightning reads the variables of SLURM, which an interactive shell has too.
        settings["plugins"] = [*settings.get("plugins", []), LightningEnvironment()]
    try:
        trainer: Trainer = instantiate(config.trainer, **settings, _convert_="all")
    except InstantiationException as error:
        # No such device; SLURM; an argument.
        if isinstance(error.__cause__, MisconfigurationException | RuntimeError | ValueError | TypeError):
            raise UserError(f"trainer: {' '.join(str(error.__cause__).split())}") from error
        raise
    if trainer.world_size > 1 and not isinstance(trainer.strategy, ManualDDPStrategy):
        raise UserError(f"{trainer.world_size} devices: add trainer=ddp")
    return trainer


@contextmanager
def distributed_run(config: DictConfig, folder: Path) -> Iterator[Path]:
    """Owns the run folder; on many devices also starts the other processes of the run, or joins them.

    Within it a failure of one process ends all.

    Args:
        config: the run's config.
        folder: the Hydra folder of this process; its name contains the time, so processes may differ in it.

    Yields:
        The folder of the run: that of rank zero.

    Raises:
        UserError: devices and processes do not match, another process was killed, or another run owns the folder.
    """
    trainer = make_trainer(config, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    strategy = trainer.strategy
    if trainer.world_size == 1 or not isinstance(strategy, ManualDDPStrategy):
        if TorchElasticEnvironment.detect() and TorchElasticEnvironment().world_size() > 1:
            raise UserError("torchrun started several processes; add trainer=ddp to make them one run")
        rank_zero_only.rank = 0  # type: ignore[attr-defined]  # Lightning reads RANK, and its loggers are silent
        with locked(folder):
            yield folder
        return
    environment = strategy.cluster_environment
    assert environment is not None
    assert strategy.launcher is not None
    _reject_multirun(environment)
    _check_world_size(environment, strategy)
    if strategy.global_rank:
        _wait_for_rank_zero(environment)
    strategy.launcher.launch(strategy.setup_environment, trainer=trainer)
    with PeerFailureMonitor():
        run_dir = broadcast_from_rank_zero(folder)
        if strategy.global_rank:
            _silence_worker(folder, run_dir)
        try:
            with nullcontext() if strategy.global_rank else locked(folder):
                yield run_dir
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            raise UserError(
                "another process of this run ended, possibly out of memory; resume with the same command plus "
                f"resume=true {shlex.quote(as_override('hydra.run.dir', os.path.relpath(run_dir)))}"
            ) from error


def _reject_multirun(environment: ClusterEnvironment) -> None:
    """Raises UserError in a multirun, whose command line Lightning would repeat to start a process of one job.

    submitit may start all processes of a job; each then runs that job alone.
    """
    hydra = HydraConfig.get()
    started_by_cluster = "submitit" in hydra.launcher._target_ and environment.creates_processes_externally
    if hydra.mode == RunMode.MULTIRUN and not started_by_cluster:
        raise UserError("--multirun is not supported with trainer=ddp on one machine; start the runs one at a time")


def _check_world_size(environment: ClusterEnvironment, strategy: ManualDDPStrategy) -> None:
    """Raises UserError if torchrun or SLURM started another number of processes than the config specifies."""
    try:
        environment.validate_settings(strategy.num_processes, strategy.num_nodes)
    except ValueError as error:
        raise UserError(
            f"trainer.devices={strategy.num_processes} x trainer.num_nodes={strategy.num_nodes} does not match the "
            f"{environment.world_size()} processes that were started"
        ) from error


def _wait_for_rank_zero(environment: ClusterEnvironment) -> None:
    """Raises UserError if rank zero does not listen: Lightning would wait for ``timeout_minutes``."""
    host, port = environment.main_address, environment.main_port
    try:
        dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_START_TIMEOUT)  # type: ignore[attr-defined]
    except RuntimeError as error:
        raise UserError(f"rank 0 is not reachable at {host}:{port}") from error


def _silence_worker(folder: Path, run_dir: Path) -> None:
    """Only rank zero logs; removes the folder that Hydra made for this process, if it is not the run's."""
    logging.getLogger("arnn_lightning").setLevel(logging.WARNING)
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, logging.FileHandler):
            logging.getLogger().removeHandler(handler)
            handler.close()
    if folder.resolve() != run_dir.resolve():
        with suppress(OSError):  # not empty
            folder.rmdir()

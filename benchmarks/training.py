"""Mini-batches per second through Lightning, as users run it, beside the same steps in a bare loop.

    python benchmarks/training.py [--rounds 5] [--lanes 50]

Both train GRU4REC (H = 100, one-hot, TOP1 on softmax scores, row-wise Adagrad) on the default synthetic data, the
Lightning side with its loggers, metrics.csv included. Rounds are interleaved; medians and their ratio are printed.
"""

import argparse
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from pytorch_lightning import Callback, Trainer

from arnn_lightning.loading.datamodule import SessionDataModule
from arnn_lightning.loggers.csv import LongCSVLogger
from arnn_lightning.models.base import SessionModel
from arnn_lightning.tasks.prepare import prepare_data
from arnn_lightning.training.checkpoint import build
from arnn_lightning.training.stage import datamodule


def bare(model: SessionModel, data: SessionDataModule) -> float:
    """Seconds of one epoch: the model's own steps, nothing else."""
    loader = data.train_dataloader()
    optimizer = model.configure_optimizers()
    model.train()
    started = time.perf_counter()
    state = model.initial_state(data.lanes)
    for batch in loader:
        for k in range(len(batch.items)):
            loss, state = model.step_loss(batch, k, state)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return time.perf_counter() - started


class Clock(Callback):
    """Seconds of the epoch, the Trainer's start-up left out."""

    def on_train_epoch_start(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def lightning(model: SessionModel, data: SessionDataModule) -> float:
    """Seconds of one epoch inside Trainer.fit."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=LongCSVLogger(folder),
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[clock],
        )
        trainer.fit(model, train_dataloaders=data.train_dataloader())
    return clock.seconds


def contestants(lanes: int) -> tuple[Callable[[], float], Callable[[], float], int]:
    """Seconds of an epoch through Lightning, seconds in a bare loop, and its mini-batches."""
    with initialize_config_module("arnn_lightning.conf", version_base="1.3"):
        config = compose("config", overrides=["model=gru4rec", f"model.batch_size={lanes}", "model.n_sample=0"])
    config.paths.data = str(Path(config.paths.data).absolute())
    prepared = prepare_data(config)
    config.model.dims = prepared.dims
    plain: Any = OmegaConf.to_container(config.model, resolve=True)
    data = datamodule(prepared, config, plain)

    def fresh() -> SessionModel:
        torch.manual_seed(0)
        return build(plain)

    steps = len(data._windows("train", lanes).schedule.event)
    return (lambda: lightning(fresh(), data)), (lambda: bare(fresh(), data)), steps


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--lanes", type=int, default=50)
    arguments.add_argument("--threads", type=int, default=1)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    through, loop, steps = contestants(options.lanes)
    seconds: dict[str, list[float]] = {"bare loop": [], "Lightning": []}
    for round_number in range(options.rounds + 1):
        for name, run in (("bare loop", loop), ("Lightning", through)):
            spent = run()
            if round_number:  # the first round warms up
                seconds[name].append(spent)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {options.threads} thread(s)")
    print(f"GRU4REC, H = 100, B = {options.lanes}: {steps} mini-batches an epoch, {options.rounds} rounds")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:12} {steps / median:8.0f} mini-batches/s  ({1e3 * median / steps:.3f} ms each)")
    ratios = [a / b for a, b in zip(seconds["Lightning"], seconds["bare loop"], strict=True)]
    print(f"Lightning / bare loop: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()

"""What the benchmarks time, and how: models on prepared data or on random events, in interleaved rounds."""

import argparse
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from arnn_lightning.batch import Contexts
from arnn_lightning.config import to_container
from arnn_lightning.loading.datamodule import SessionDataModule
from arnn_lightning.loading.datasets import SessionParallelDataset, TrainDataset
from arnn_lightning.loading.negatives import PopularitySampler
from arnn_lightning.models import ARNN
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.preprocessing.sessions import Sessions
from arnn_lightning.tasks.prepare import prepare_data
from arnn_lightning.training.checkpoint import build_model
from arnn_lightning.training.stage import make_datamodule, run_settings

SINGLE, PRESENT = 12, 4  # single-valued fields; binary fields that a user has
ITEMS, USERS, STEPS = 13_259, 5_000, 10  # STEPS: mini-batches of a chunk
Contestant = Callable[[], float]  # runs once and returns its seconds


# Command line


def make_parser(doc: str | None, rounds: int, threads: int = 1) -> argparse.ArgumentParser:
    """A parser with the options that the benchmarks share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round: only whether it runs")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None, **quick: Any) -> argparse.Namespace:
    """The options, with ``quick`` as the defaults of ``--quick``; sets torch's threads."""
    if parser.parse_args(arguments).quick:
        parser.set_defaults(rounds=1, threads=1, **quick)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    return options


def machine() -> str:
    """Processor, load and versions, for the head of a table."""
    cores = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    return f"{cores}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)"


# Timing


def timed(run: Callable[[], Any]) -> Contestant:
    """``run``, timed from outside."""

    def contestant() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return contestant


def interleave(contestants: Mapping[Any, Contestant], rounds: int, n_warmup: int = 1) -> dict[Any, list[float]]:
    """Seconds of every round of each contestant; they take turns, so that a busy moment slows them all."""
    seconds: dict[Any, list[float]] = {name: [] for name in contestants}
    for round_number in range(n_warmup + rounds):
        for name, contestant in contestants.items():
            spent = contestant()
            if round_number >= n_warmup:
                seconds[name].append(spent)
    return seconds


def median_ms(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, interleaved, after one round that warms up."""
    seconds = interleave({name: timed(run) for name, run in runs.items()}, rounds)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


# Models and data


def compose_config(*overrides: str) -> DictConfig:
    with initialize_config_module("arnn_lightning.conf", version_base="1.3"):
        return compose("config", overrides=list(overrides))


class Workload(NamedTuple):
    """A new model and its data."""

    config: DictConfig
    prepared: PreparedDataset
    data: SessionDataModule
    model: Any

    @property
    def n_steps(self) -> int:
        """Mini-batches of an epoch."""
        return len(self.data.chunks("train", self.data.batch_size).schedule.event)


def make_workload(*overrides: str, min_items: int = 0) -> Workload:
    """The config's data, prepared, and its model with weights from ``seed``.

    Args:
        overrides: of the config.
        min_items: a lower bound of the model's catalogue; items beyond the data's have no event.
    """
    config = compose_config(*overrides)
    config.paths.data = str(Path(config.paths.data).absolute())
    prepared = prepare_data(config)
    data = make_datamodule(prepared, config, config.model)
    config.model.dims = data.dims | {"n_items": max(data.dims["n_items"], min_items)}
    torch.manual_seed(config.seed)
    return Workload(config, prepared, data, build_model(to_container(config.model), run_settings(config)))


def make_model(name: str, *overrides: str, n_binary: int = 0, n_items: int = ITEMS, n_users: int = USERS) -> Any:
    """A new model of XING's shape, or without binary fields of TMALL's, whose user id is a field."""
    config = compose_config(f"model={name}", "data=xing", *overrides)
    sizes = [20] * SINGLE if n_binary else [n_users, 9, 3]
    config.model.dims = {"n_items": n_items, "single_sizes": sizes, "n_binary": n_binary}
    model: Any = build_model(to_container(config.model), run_settings(config))
    rng = np.random.default_rng(0)
    shape = (n_users + 1, n_binary)
    active = rng.random(shape).argsort(1)[:, :PRESENT].copy() if n_binary else np.full((n_users + 1, 1), -1)
    single = rng.integers(0, sizes, (n_users + 1, len(sizes))) + np.cumsum([0, *sizes[:-1]])
    model.set_user_contexts(Contexts(torch.from_numpy(single), torch.from_numpy(active)))
    return model.train()


def random_chunks(batch_size: int, n_items: int, n_users: int, n_steps: int = STEPS) -> SessionParallelDataset:
    """One chunk of random events; every batch slot shows one session and is always valid."""
    rng = np.random.default_rng(1)
    length = n_steps + 1
    sessions = Sessions(
        item=rng.integers(0, n_items, batch_size * length),
        offset=np.arange(0, batch_size * length + 1, length),
        session=np.arange(batch_size),
        user=rng.integers(0, n_users, batch_size),
        time=np.arange(batch_size),
    )
    return SessionParallelDataset(sessions, batch_size, n_steps)


def chunk_training(
    model: Any, batch_size: int, n_steps: int = STEPS, n_sample: int = 0, device: str = "cpu"
) -> Callable[[], Any]:
    """Trains ``model`` on one chunk of random events, the same at every call.

    The extra negatives are sampled uniformly, so that nearly all are distinct.
    """
    contexts = Contexts(model.user_single, model.user_active)
    model.to(device)
    if isinstance(model, ARNN):
        model.prepare_merge()
    model.configure_optimizers()
    chunks = random_chunks(batch_size, model.n_items, len(contexts.single) - 1, n_steps)
    sampler = PopularitySampler(np.ones(model.n_items), n_sample, alpha=0.0, seed=1)
    dataset = TrainDataset(chunks, sampler, contexts, model.chunk_spec, model.n_items, batch_size)
    chunk = model.transfer_batch_to_device(dataset[0, 0], torch.device(device), 0)
    return lambda: model.run_steps(chunk, model.initial_state(batch_size))

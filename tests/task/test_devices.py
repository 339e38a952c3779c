"""Many devices do what one does: two processes with B lanes each against one with 2B (gloo, CPU)."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import torch.multiprocessing as multiprocessing
from omegaconf import DictConfig, OmegaConf

from arnn_lightning.data.prepare import Prepared
from arnn_lightning.model.base import SessionModel
from arnn_lightning.model.checkpoint import build
from arnn_lightning.task.devices import together
from arnn_lightning.task.stage import LAST, datamodule, trainer, train_stage
from conftest import compose_config, random_sessions, write_world

LANES, STEPS = 8, 50
NO_DROPOUT = {"gru4rec": ["model.dropout_hidden=0"], "arnn": ["model.session.dropout_hidden=0"]}
STRONG = ["model.dropout_hidden=0", "model.n_sample=9", "model.optimizer.momentum=0.1", "model.optimizer.weight_decay=0.01"]
CASES: dict[str, tuple[str, list[str]]] = {
    "gru4rec": ("gru4rec", NO_DROPOUT["gru4rec"]),
    "gru4rec_negatives": ("gru4rec", [*NO_DROPOUT["gru4rec"], "model.n_sample=9", "model/loss=bpr_max"]),
    "gru4rec_strong": ("gru4rec_strong", STRONG),
    "gru4rec_full": ("gru4rec", [*NO_DROPOUT["gru4rec"], "model/loss=cross_entropy_full"]),
    "gru4rec_adam": ("gru4rec", [*NO_DROPOUT["gru4rec"], "model/optimizer=adam"]),
    "pnn": ("pnn", []),
    "arnn": ("arnn", NO_DROPOUT["arnn"]),
    "arnn_batchnorm": ("arnn", [*NO_DROPOUT["arnn"], "model.retrain_batchnorm=true"]),
    "arnn_joint": ("arnn", [*NO_DROPOUT["arnn"], "model.freeze=none"]),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Few long sessions: after some 55 steps the lanes die one by one, and soon one device has none alive."""
    sessions = {"train": (21, 90), "val": (9, 8), "test": (3, 25)}  # the test has fewer sessions than lanes
    splits = {
        name: (random_sessions(seed, count, 40, longest), [index % 6 for index in range(count)])
        for seed, (name, (count, longest)) in enumerate(sessions.items())
    }
    single = {"level": [0, 1, 2, 1, 0, 2], "country": [1, 1, 0, 2, 3, 0]}
    active = [[], [0, 4], [1], [2, 3, 4], [0], [1, 2]]
    return write_world(tmp_path_factory.mktemp("world"), splits, 40, single, active)


def config_of(case: str, devices: int, *overrides: str) -> DictConfig:
    model, settings = CASES[case]
    many = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={devices}"] if devices > 1 else []
    lanes = [f"model.lanes={2 * LANES // devices}", f"evaluation.lanes={4}", "window_steps=10", "model.hidden_size=8"]
    return compose_config(f"model={model}", "data=xing", "logger={}", *many, *lanes, *settings, *overrides)


def made(config: DictConfig, prepared: Prepared) -> SessionModel:
    config.model.dims = prepared.dims
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    plain = OmegaConf.to_container(config.model, resolve=True)
    assert isinstance(plain, dict)
    model = build(plain)  # type: ignore[arg-type]
    contexts = datamodule(prepared, config, {}).contexts()
    for one in (*model.parts.values(), model):
        one.set_contexts(contexts)
    model.assemble()
    return model


def train(case: str, prepared: Prepared, folder: Path, devices: int, *overrides: str) -> dict[str, Any]:
    """One epoch. ``losses`` of every step; ``weights`` after STEPS of them and, as ``last``, at the end."""
    config = config_of(case, devices, *overrides)
    model = made(config, prepared)
    losses: list[float] = []
    seen: dict[str, Any] = {"losses": losses}
    check = model._check_losses

    def record(losses_K: torch.Tensor) -> None:
        check(losses_K)
        losses.extend(losses_K.tolist())
        if len(losses) == STEPS:
            seen["weights"] = {name: value.clone() for name, value in model.state_dict().items()}

    model._check_losses = record  # type: ignore[method-assign]
    stage = OmegaConf.to_container(config.model, resolve=True) | {"epochs": 1}
    train_stage(model, datamodule(prepared, config, stage), config, stage, folder, [])
    seen["loss"] = model.epoch_loss
    seen["last"] = {name: value.clone() for name, value in model.state_dict().items()}
    return seen


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def join(number: int, port: int) -> None:
    """What Lightning's launcher and ``together`` do for a run from the command line."""
    os.environ |= {"LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    made_trainer = trainer(config_of("gru4rec", 2), Path(), [], [])
    made_trainer.strategy.setup_environment()


def one_of_two(number: int, port: int, prepared: Prepared, folder: Path) -> None:
    """All that two processes do in this file: their start takes longer than their work."""
    join(number, port)
    told: dict[str, Any] = {case: train(case, prepared, folder / case, 2) for case in CASES}
    torch.save(told, folder / f"told{number}.pt")


@pytest.fixture(scope="module")
def told(world: Prepared, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(one_of_two, (free_port(), world, folder), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"told{number}.pt", weights_only=True) for number in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_two_devices_with_B_lanes_train_as_one_with_2B(
    case: str, told: list[dict[str, Any]], world: Prepared, tmp_path: Path
) -> None:
    alone, first, second = train(case, world, tmp_path, 1), told[0][case], told[1][case]
    assert len(alone["losses"]) > STEPS + 10
    assert first["losses"] == second["losses"]
    print(case, max(abs(a-b) for a,b in zip(first["losses"][:STEPS], alone["losses"][:STEPS])), max(abs(a-b) for a,b in zip(first["losses"], alone["losses"])))
    for name in alone["last"]:
        print(name, *(float((alone[w][name] - first[w][name]).abs().max()) for w in ("weights","last")))
    assert first["losses"][:STEPS] == pytest.approx(alone["losses"][:STEPS], rel=1e-5)

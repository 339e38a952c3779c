"""Many devices do what one does: two processes with B lanes each against one with 2B (gloo, CPU)."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from arnn_lightning.errors import UserError
from arnn_lightning.loading.datamodule import TrainingWindows, Windows
from arnn_lightning.models.base import SessionModel
from arnn_lightning.nn.collectives import sum_gradients
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.tasks import train as train_task
from arnn_lightning.training.checkpoint import build
from arnn_lightning.training.stage import BEST, DONE, LAST, datamodule, train_stage, trainer
from helpers import WideTensors, compose_config, make_sessions, random_sessions, write_world

LANES, STEPS = 8, 50  # lanes of each of two devices; steps that are compared
NO_DROPOUT = ["model.dropout_hidden=0"]
FROZEN = ["model.session.dropout_hidden=0"]
STRONG = [*NO_DROPOUT, "model.n_sample=9", "model.optimizer.momentum=0.1", "model.optimizer.weight_decay=0.01"]
CASES: dict[str, tuple[str, list[str]]] = {
    "gru4rec": ("gru4rec", NO_DROPOUT),
    "gru4rec_negatives": ("gru4rec", [*NO_DROPOUT, "model.n_sample=9", "model/loss=bpr_max"]),
    "gru4rec_strong": ("gru4rec_strong", STRONG),
    "gru4rec_full": ("gru4rec", [*NO_DROPOUT, "model/loss=cross_entropy_full"]),
    "gru4rec_adam": ("gru4rec", [*NO_DROPOUT, "model/optimizer=adam"]),
    "pnn": ("pnn", []),
    "arnn": ("arnn", FROZEN),
    "arnn_batchnorm": ("arnn", [*FROZEN, "model.finetune_context_batchnorm=true"]),
    "arnn_joint": ("arnn", [*FROZEN, "model.freeze_encoders=false", "model.optimizer.lr=0.001"]),
    "apart": ("gru4rec_strong", [*STRONG, "model.negatives=local", "model.loss.accidental_hits=keep"]),
}
MODELS = ("pop", "itemknn", "gru4rec", "pnn", "arnn")
Told = dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Few long sessions: after STEPS steps the lanes die one by one, and soon one device has none alive.

    The test split has fewer sessions than one device has lanes: the other one has nothing to evaluate.
    """
    sizes = {"train": (21, 90), "val": (9, 8), "test": (3, 25)}
    splits = {
        name: (random_sessions(seed, count, 40, longest), [index % 6 for index in range(count)])
        for seed, (name, (count, longest)) in enumerate(sizes.items())
    }
    single = {"level": [0, 1, 2, 1, 0, 2], "country": [1, 1, 0, 2, 3, 0]}
    active = [[], [0, 4], [1], [2, 3, 4], [0], [1, 2]]
    return write_world(tmp_path_factory.mktemp("world"), splits, 40, single, active)


def config_of(model: str, devices: int, *overrides: str) -> DictConfig:
    many = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={devices}"] if devices > 1 else []
    sizes = ["evaluation.batch_size=4", "performance.steps_per_execution=10", "checkpoint.every_n_minutes=0"]
    if model not in ("pop", "itemknn"):
        sizes += [f"model.batch_size={2 * LANES // devices}", "model.hidden_size=8"]
    return compose_config(f"model={model}", "data=xing", "logger={}", *many, *sizes, *overrides)


def made(config: DictConfig, prepared: PreparedDataset, seed: int = 0) -> SessionModel:
    config.model.dims = prepared.dims
    torch.manual_seed(seed)
    plain = OmegaConf.to_container(config.model, resolve=True)
    assert isinstance(plain, dict)
    model = build(plain)
    contexts = datamodule(prepared, config, {}).contexts()
    for one in (*model.parts.values(), model):
        one.set_contexts(contexts)
    model.assemble()
    return model


def weights_of(model: SessionModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "num_batches" not in name}


def train(case: str, prepared: PreparedDataset, folder: Path, devices: int) -> Told:
    """One epoch in double precision: Adagrad's first steps make a step of full size out of a rounding error.

    ``losses`` of every step, ``weights`` after STEPS of them, the epoch's ``loss``.
    """
    torch.set_default_dtype(torch.float64)
    try:
        name, settings = CASES[case]
        config = config_of(name, devices, *settings)
        model = made(config, prepared)
        told: Told = {"losses": []}
        check = model._check_losses

        def record(losses_K: Tensor) -> None:
            check(losses_K)
            told["losses"] += losses_K.tolist()
            if len(told["losses"]) == STEPS:
                told["weights"] = weights_of(model)

        model._check_losses = record
        stage = OmegaConf.to_container(config.model, resolve=True) | {"epochs": 1}
        train_stage(model, datamodule(prepared, config, stage), config, stage, folder, [])
        return told | {"loss": model.epoch_loss}
    finally:
        torch.set_default_dtype(torch.float32)


def evaluate(name: str, prepared: PreparedDataset, devices: int, folder: Path) -> Told:
    """What ``test`` says; ItemKNN and POP are counted as a run counts them."""
    config = config_of(name, devices)
    model = made(config, prepared)
    if name in ("pop", "itemknn"):
        train_stage(model, datamodule(prepared, config, {}), config, {}, folder, [])
    found = train_task.test(model, config, prepared, [])
    return {"ranks": found.ranks.to_dict(as_series=False), "metrics": found.metrics([5, 20])}


class Killed(BaseException):
    """What a test throws into a run."""


def resume(prepared: PreparedDataset, folder: Path, cut: int | None) -> dict[str, Tensor]:
    """Weights of two epochs with dropout on two devices, broken off at a window and gone on with."""
    config = config_of("gru4rec", 2, "model.dropout_hidden=0.3", "model.n_sample=4")
    stage = OmegaConf.to_container(config.model, resolve=True) | {"epochs": 2}
    model = made(config, prepared)
    if cut is not None:
        step, calls = model.training_step, 0

        def counted(batch: Any, batch_idx: int) -> None:
            nonlocal calls
            calls += 1
            if calls == cut:
                raise Killed
            step(batch, batch_idx)

        model.training_step = counted
        with pytest.raises(Killed):
            train_stage(model, datamodule(prepared, config, stage), config, stage, folder, [])
        config.resume, model = True, made(config, prepared, seed=7)
    train_stage(model, datamodule(prepared, config, stage), config, stage, folder, [])
    return weights_of(model)


def one_of_two(number: int, port: int, prepared: PreparedDataset, folder: Path) -> None:
    """All that the two processes of this file do: their start takes longer than their work."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    trainer(config_of("gru4rec", 2), folder, [], []).strategy.setup_environment()
    told: Told = {case: train(case, prepared, folder / case, 2) for case in CASES}
    told["evaluated"] = {name: evaluate(name, prepared, 2, folder / f"counted_{name}") for name in MODELS}
    told["resumed"] = {f"{cut}": resume(prepared, folder / f"cut_{cut}", cut) for cut in (None, 4, 12)}
    torch.save(told, folder / f"told{number}.pt")


@pytest.fixture(scope="module")
def folder(world: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(one_of_two, (port, world, folder), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> list[Told]:
    """What each of the two found out."""
    return [torch.load(folder / f"told{number}.pt", weights_only=True) for number in (0, 1)]


@pytest.mark.parametrize("case", [case for case in CASES if case != "apart"])
def test_two_devices_with_B_lanes_train_as_one_with_2B(
    case: str, told: list[Told], world: PreparedDataset, tmp_path: Path
) -> None:
    alone, many = train(case, world, tmp_path, 1), told[0][case]
    assert len(alone["losses"]) > STEPS + 30
    assert many["losses"][:STEPS] == pytest.approx(alone["losses"][:STEPS], rel=1e-8)
    assert many["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    for name, weight in alone["weights"].items():
        assert torch.allclose(many["weights"][name], weight, rtol=0, atol=1e-8), name


@pytest.mark.parametrize("case", CASES)
def test_all_devices_have_the_same_weights_and_losses(case: str, told: list[Told]) -> None:
    first, second = told[0][case], told[1][case]
    assert first["losses"] == second["losses"]
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())


def test_negatives_of_its_own_device_give_the_mean_of_the_devices_gradients(
    told: list[Told], world: PreparedDataset
) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        name, settings = CASES["apart"]
        config = config_of(name, 2, *settings)
        model = made(config, world)
        optimizer = model.configure_optimizers()
        share = world.sessions("train")
        both = [Windows(share, share.user, LANES, STEPS, device, 2) for device in (0, 1)]
        options = (40, LANES, 9, 0.75, False, True, config.seed, "device")
        states = [model.initial_state(LANES) for _ in both]
        batches = [
            [
                TrainingWindows(Windows(share, share.user, LANES, 10, device, 2), *options)[0, index]
                for index in range(STEPS // 10)
            ]
            for device in (0, 1)
        ]
        losses = []
        for step in range(STEPS):
            loss = torch.zeros(())
            for device, (window, k) in enumerate(2 * [divmod(step, 10)]):
                one, states[device] = model.step_loss(batches[device][window], k, states[device])
                loss = loss + one / 2
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    finally:
        torch.set_default_dtype(torch.float32)
    assert told[0]["apart"]["losses"][:STEPS] == pytest.approx(losses, rel=1e-8)
    for name, weight in told[0]["apart"]["weights"].items():
        assert name == "mini_batches" or torch.allclose(weight, model.state_dict()[name], rtol=0, atol=1e-8), name


@pytest.mark.parametrize("name", MODELS)
def test_V16_two_devices_evaluate_as_one(name: str, told: list[Told], world: PreparedDataset, tmp_path: Path) -> None:
    alone = evaluate(name, world, 1, tmp_path)
    for one in told:
        assert one["evaluated"][name]["ranks"] == alone["ranks"]
        assert one["evaluated"][name]["metrics"] == pytest.approx(alone["metrics"], abs=1e-9)


@pytest.mark.parametrize("name", ["pop", "itemknn"])
def test_a_counted_model_is_the_same_on_two_devices(
    name: str, folder: Path, world: PreparedDataset, tmp_path: Path
) -> None:
    evaluate(name, world, 1, tmp_path)
    counted, alone = (
        torch.load(one / BEST, weights_only=True)["state_dict"] for one in (folder / f"counted_{name}", tmp_path)
    )
    assert counted.keys() == alone.keys()
    assert all(torch.equal(weight, alone[name]) for name, weight in counted.items())


@pytest.mark.parametrize("cut", [4, 12])
def test_two_devices_broken_off_and_gone_on_with_end_as_if_they_had_not_been(cut: int, told: list[Told]) -> None:
    for one in told:
        whole, resumed = one["resumed"]["None"], one["resumed"][f"{cut}"]
        assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_another_number_of_devices_cannot_go_on(folder: Path, world: PreparedDataset) -> None:
    saved = torch.load(folder / "cut_4" / LAST, weights_only=True)["progress"]
    assert saved["state"][0].shape == (1, 2 * LANES, 8)
    assert len(saved["rng"]) == 2
    assert not torch.equal(saved["rng"][0], saved["rng"][1])  # each drops out other units
    config = config_of("gru4rec", 1, "resume=true")
    stage = OmegaConf.to_container(config.model, resolve=True) | {"epochs": 3}
    (folder / "cut_4" / DONE).unlink()
    with pytest.raises(UserError, match=r"started on 2 device\(s\) and cannot go on with 1"):
        train_stage(made(config, world), datamodule(world, config, stage), config, stage, folder / "cut_4", [])


@pytest.mark.parametrize("model", ["gru4rec", "gru4rec_strong", "pnn"])
def test_E8_what_devices_exchange_is_not_as_wide_as_the_catalogue(model: str, tmp_path: Path) -> None:
    n_items = 5003
    world = write_world(tmp_path, {"train": (random_sessions(0, 20, n_items), [0] * 20)}, n_items, {"level": [1]})
    config = config_of(model, 1, "model.n_sample=7")
    one = made(config, world)
    one.configure_optimizers()
    stage = OmegaConf.to_container(config.model, resolve=True)
    batch = datamodule(world, config, stage).train_dataloader().dataset[0, 0]
    one.step_loss(batch, 0, one.initial_state(2 * LANES))[0].backward()
    learning = [weight for weight in one.parameters() if weight.grad is not None]
    before = [weight.grad.to_dense() for weight in learning]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with WideTensors(n_items, set()) as wide:
            sum_gradients(one.parameters())
    finally:
        dist.destroy_process_group()
    assert wide.found == []
    assert one.scorer.items.weight.grad.is_sparse
    assert all(torch.equal(weight.grad.to_dense(), was) for weight, was in zip(learning, before, strict=True))


# --- windows ---


@pytest.mark.parametrize("negatives", ["all", "device"])
@pytest.mark.parametrize("n_sample", [0, 5])
def test_E4_devices_share_the_lanes_and_know_all_rows(negatives: Any, n_sample: int) -> None:
    sessions = make_sessions(random_sessions(3, 5, 30, 12))
    both = [
        TrainingWindows(
            Windows(sessions, sessions.user, 4, 3, device, 2), 30, 4, n_sample, 0.5, False, True, 1, negatives
        )
        for device in (0, 1)
    ]
    whole = Windows(sessions, sessions.user, 8, 3)
    nothing_alive = 0
    for index in range(len(whole)):
        one, other = (windows[0, index] for windows in both)
        together = [torch.cat(pair, 1) for pair in zip(one.window, other.window, strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(together, whole[0, index], strict=True))
        for k in range(len(one.items)):
            assert torch.equal(one.items[k].rows, other.items[k].rows)
            assert torch.equal(one.scored[k].rows, other.scored[k].rows)
            for batch in (one, other):
                alive = batch.window.alive[k]
                nothing_alive += not alive.any()
                scored = batch.scored[k].rows[batch.own[k]] if batch.own else batch.scored[k].rows
                lanes = torch.arange(4)[alive]
                assert torch.equal(scored[batch.scored[k].inverse[lanes]], batch.window.target[k, alive])
                assert torch.equal(batch.items[k].rows[batch.items[k].inverse[lanes]], batch.window.item[k, alive])
                assert batch.counts[k][batch.scored[k].inverse[:4]].min() >= 1  # dead lanes too: no log of 0 or less
                assert len(batch.counts[k]) == len(batch.log_q[k]) == len(scored)
                own = int(alive.sum()) + n_sample
                everything = int(whole[0, index].alive[k].sum()) + n_sample
                if negatives == "all" or own:
                    assert int(batch.counts[k].sum()) == (everything if negatives == "all" else own)
            if n_sample and negatives == "device":
                drawn = [batch.scored[k].inverse[4:] for batch in (one, other)]
                assert not torch.equal(one.own[k][drawn[0]], other.own[k][drawn[1]])
    assert nothing_alive


# --- the command line ---

SMALL = [
    "logger=csv",
    "data.generate.events=20000",
    "performance.steps_per_execution=10",
    "trainer.max_epochs=1",
    "evaluation.bootstrap.resamples=50",
]
TWO = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
ONE_FAILS = """
from arnn_lightning import cli
from arnn_lightning.errors import UserError
from arnn_lightning.tasks import devices, train

def fails(*arguments):
    if devices.device() == 1:
        raise UserError("in one process alone")

train.check_cutoffs = fails
cli.main()
"""


def arnn(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    environment.pop("ARNN_DATA", None)
    command = [sys.executable, *(arguments if arguments[0].endswith(".py") else ("-m", "arnn_lightning", *arguments))]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ARNN was trained on two devices from the command line."""
    folder = tmp_path_factory.mktemp("home")
    done = arnn(folder, *SMALL, *TWO)
    (folder / "out").write_text(done.stdout)
    (folder / "err").write_text(done.stderr)
    return folder


def test_a_run_on_two_devices_leaves_one_run_folder_and_one_table(home: Path) -> None:
    (run,) = (home / "outputs" / "synthetic" / "arnn").iterdir()
    assert (home / "out").read_text().count("arnn - gru4rec, paired") == 1
    assert "arnn: epoch 1 of 1" in (home / "out").read_text()
    assert "arning" not in (home / "err").read_text()
    names = {path.name for path in run.iterdir()}
    ranks = {f"test_ranks{role}.parquet" for role in ("", "_session", "_context", "_pop", "_itemknn")}
    assert names == {".hydra", "checkpoints", "cli.log", "metrics.csv", "metrics.json", *ranks}
    for part in ("", "session", "context"):
        assert {"best.ckpt", "last.ckpt", "done"} <= {path.name for path in (run / "checkpoints" / part).iterdir()}


def test_V16_one_device_evaluates_its_checkpoint_to_the_same_ranks(home: Path) -> None:
    (run,) = (home / "outputs" / "synthetic" / "arnn").iterdir()
    arnn(home, "task=evaluate", f"checkpoint={run / 'checkpoints' / BEST}", "hydra.run.dir=alone")
    assert (home / "alone" / "test_ranks.parquet").read_bytes() == (run / "test_ranks.parquet").read_bytes()
    ours, theirs = (json.loads((one / "metrics.json").read_text())["test"] for one in (home / "alone", run))
    assert ours == theirs


def test_an_error_in_one_process_ends_all_with_its_line(home: Path) -> None:
    (home / "one_fails.py").write_text(ONE_FAILS)
    done = arnn(home, "one_fails.py", *SMALL, *TWO, "model=pop", code=2)
    assert done.stderr.strip() == "error: in one process alone"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainer.devices=2"], "2 devices need trainer=ddp"),
        (["trainer=ddp", "trainer.accelerator=gpu"], "trainer: No supported gpu backend found!"),
        (["model=gru4rec", "model.negatives=some"], "model.negatives=some: choose global or local"),
        (["-m", *TWO, "seed=1"], "--multirun cannot be used with trainer=ddp"),
    ],
)
def test_devices_that_cannot_be_are_users_errors(
    home: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from arnn_lightning.cli import main

    monkeypatch.chdir(home)
    monkeypatch.delenv("ARNN_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["arnn", *arguments, *SMALL])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert message in capfd.readouterr().err

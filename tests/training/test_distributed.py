"""Two devices of B slots compute what one of 2B does: two processes against one (gloo, CPU)."""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from arnn_lightning.errors import UserError
from arnn_lightning.loading.datamodule import TrainingWindows, Windows
from arnn_lightning.models.base import SessionModel
from arnn_lightning.nn.collectives import all_reduce_gradients, rank_and_world_size, sum_gradients
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.tasks import train as train_task
from arnn_lightning.training import distributed
from arnn_lightning.training.checkpoint import build
from arnn_lightning.training.stage import BEST, DONE, LAST, datamodule, train_stage, trainer
from commandline import SMALL, arnn, arnn_here, metrics_of
from helpers import WideTensors, compose_config, make_sessions, random_sessions, write_world

SLOTS, STEPS = 8, 50  # batch slots of each of two devices; steps that are compared
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
    "local_negatives": ("gru4rec_strong", [*STRONG, "model.negatives=local", "model.loss.accidental_hits=keep"]),
}
MODELS = ("pop", "itemknn", "gru4rec", "pnn", "arnn")
Record = dict[str, Any]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Few long sessions: after STEPS steps slots become empty one by one, and soon one device has only empty ones.

    The test split has fewer sessions than one device has slots: the other device has nothing to evaluate.
    """
    sizes = {"train": (21, 90), "val": (9, 8), "test": (3, 25)}
    splits = {
        name: (random_sessions(seed, count, 40, longest), [index % 6 for index in range(count)])
        for seed, (name, (count, longest)) in enumerate(sizes.items())
    }
    single = {"level": [0, 1, 2, 1, 0, 2], "country": [1, 1, 0, 2, 3, 0]}
    active = [[], [0, 4], [1], [2, 3, 4], [0], [1, 2]]
    return write_world(tmp_path_factory.mktemp("dataset"), splits, 40, single, active)


def make_config(model: str, devices: int, *overrides: str) -> DictConfig:
    many = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={devices}"] if devices > 1 else []
    sizes = ["evaluation.batch_size=4", "performance.steps_per_execution=10", "checkpoint.every_n_minutes=0"]
    if model not in ("pop", "itemknn"):
        sizes += [f"model.batch_size={2 * SLOTS // devices}", "model.hidden_size=8"]
    return compose_config(f"model={model}", "data=xing", "logger={}", *many, *sizes, *overrides)


def build_model(config: DictConfig, prepared: PreparedDataset, seed: int = 0) -> SessionModel:
    config.model.dims = prepared.dims
    torch.manual_seed(seed)
    plain = OmegaConf.to_container(config.model, resolve=True)
    assert isinstance(plain, dict)
    model = build(plain)
    contexts = datamodule(prepared, config, {}).contexts()
    for part in (*model.parts.values(), model):
        part.set_contexts(contexts)
    model.assemble()
    return model


def weights_of(model: SessionModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "num_batches" not in name}


def train(case: str, prepared: PreparedDataset, folder: Path, devices: int) -> Record:
    """One epoch in double precision: Adagrad's first steps turn a rounding error into a step of full size.

    Returns ``losses`` of every step, ``weights`` after STEPS of them, the ``loss`` of the epoch.
    """
    torch.set_default_dtype(torch.float64)
    try:
        name, settings = CASES[case]
        config = make_config(name, devices, *settings)
        model = build_model(config, prepared)
        record: Record = {"losses": []}
        check = model._check_losses

        def record_losses(losses_K: Tensor) -> None:
            check(losses_K)
            record["losses"] += losses_K.tolist()
            if len(record["losses"]) == STEPS:
                record["weights"] = weights_of(model)

        model._check_losses = record_losses
        stage = OmegaConf.to_container(config.model, resolve=True) | {"epochs": 1}
        train_stage(model, datamodule(prepared, config, stage), config, stage, folder, [])
        return record | {"loss": model.epoch_loss}
    finally:
        torch.set_default_dtype(torch.float32)


def evaluate(name: str, prepared: PreparedDataset, devices: int, folder: Path) -> Record:
    """Ranks and metrics of the test split; ItemKNN and POP are fitted as in a run."""
    config = make_config(name, devices)
    model = build_model(config, prepared)
    if name in ("pop", "itemknn"):
        train_stage(model, datamodule(prepared, config, {}), config, {}, folder, [])
    result = train_task.test(model, config, prepared, [])
    return {"ranks": result.ranks.to_dict(as_series=False), "metrics": result.metrics([5, 20])}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


class Interrupted(BaseException):
    """Raised by a test to interrupt a run."""


def resume(prepared: PreparedDataset, folder: Path, interrupt_at: int | None) -> dict[str, Tensor]:
    """Weights after two epochs with dropout on two devices, interrupted at a chunk and resumed."""
    config = make_config("gru4rec", 2, "model.dropout_hidden=0.3", "model.n_sample=4")
    stage = OmegaConf.to_container(config.model, resolve=True) | {"epochs": 2}
    model = build_model(config, prepared)
    if interrupt_at is not None:
        step, calls = model.training_step, 0

        def counted(batch: Any, batch_idx: int) -> None:
            nonlocal calls
            calls += 1
            if calls == interrupt_at:
                raise Interrupted
            step(batch, batch_idx)

        model.training_step = counted
        with pytest.raises(Interrupted):
            train_stage(model, datamodule(prepared, config, stage), config, stage, folder, [])
        config.resume, model = True, build_model(config, prepared, seed=7)
    train_stage(model, datamodule(prepared, config, stage), config, stage, folder, [])
    return weights_of(model)


def reduce_gradients() -> list[Tensor]:
    """Three gradients whose values depend on the rank, summed; the second one is not contiguous."""
    rank, _ = rank_and_world_size()
    gradients = [torch.full((2, 3), 1.0 + rank), torch.arange(6.0).view(2, 3).t() * (1 + rank), torch.tensor(5.0)]
    all_reduce_gradients(gradients)
    all_reduce_gradients([])
    return gradients


def worker(rank: int, port: int, prepared: PreparedDataset, folder: Path) -> None:
    """All work of the two processes of this file, whose start takes longer than their work."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    trainer(make_config("gru4rec", 2), folder, [], []).strategy.setup_environment()
    record: Record = {case: train(case, prepared, folder / case, 2) for case in CASES}
    record["gradients"] = reduce_gradients()
    record["evaluated"] = {name: evaluate(name, prepared, 2, folder / f"fitted_{name}") for name in MODELS}
    record["resumed"] = {f"{at}": resume(prepared, folder / f"interrupted_{at}", at) for at in (None, 4, 12)}
    torch.save(record, folder / f"record{rank}.pt")


@pytest.fixture(scope="module")
def folder(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(worker, (free_port(), dataset, folder), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    """The record of each of the two processes."""
    return [torch.load(folder / f"record{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("case", [case for case in CASES if case != "local_negatives"])
def test_two_devices_match_one(case: str, records: list[Record], dataset: PreparedDataset, tmp_path: Path) -> None:
    alone, many = train(case, dataset, tmp_path, 1), records[0][case]
    assert len(alone["losses"]) > STEPS + 30
    assert many["losses"][:STEPS] == pytest.approx(alone["losses"][:STEPS], rel=1e-8)
    assert many["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    for name, weight in alone["weights"].items():
        assert torch.allclose(many["weights"][name], weight, rtol=0, atol=1e-8), name


@pytest.mark.parametrize("case", CASES)
def test_devices_have_equal_weights_and_losses(case: str, records: list[Record]) -> None:
    first, second = records[0][case], records[1][case]
    assert first["losses"] == second["losses"]
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())


def test_all_reduce_gradients_sums_in_place(records: list[Record]) -> None:
    expected = [torch.full((2, 3), 3.0), torch.arange(6.0).view(2, 3).t() * 3, torch.tensor(10.0)]
    for record in records:
        assert all(torch.equal(*pair) for pair in zip(record["gradients"], expected, strict=True))


def test_local_negatives_average_the_gradients_of_devices(records: list[Record], dataset: PreparedDataset) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        name, settings = CASES["local_negatives"]
        config = make_config(name, 2, *settings)
        model = build_model(config, dataset)
        optimizer = model.configure_optimizers()
        sessions = dataset.sessions("train")
        both = [Windows(sessions, sessions.user, SLOTS, STEPS, device, 2) for device in (0, 1)]
        options = (40, SLOTS, 9, 0.75, False, True, config.seed, "local")
        states = [model.initial_state(SLOTS) for _ in both]
        batches = [
            [
                TrainingWindows(Windows(sessions, sessions.user, SLOTS, 10, device, 2), *options)[0, index]
                for index in range(STEPS // 10)
            ]
            for device in (0, 1)
        ]
        losses = []
        for step in range(STEPS):
            loss = torch.zeros(())
            for device, (window, k) in enumerate(2 * [divmod(step, 10)]):
                local_loss, states[device] = model.step_loss(batches[device][window], k, states[device])
                loss = loss + local_loss / 2
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    finally:
        torch.set_default_dtype(torch.float32)
    assert records[0]["local_negatives"]["losses"][:STEPS] == pytest.approx(losses, rel=1e-8)
    for name, weight in records[0]["local_negatives"]["weights"].items():
        assert name == "mini_batches" or torch.allclose(weight, model.state_dict()[name], rtol=0, atol=1e-8), name


@pytest.mark.parametrize("name", MODELS)
def test_V16_two_devices_evaluate_as_one(
    name: str, records: list[Record], dataset: PreparedDataset, tmp_path: Path
) -> None:
    alone = evaluate(name, dataset, 1, tmp_path)
    for record in records:
        assert record["evaluated"][name]["ranks"] == alone["ranks"]
        assert record["evaluated"][name]["metrics"] == pytest.approx(alone["metrics"], abs=1e-9)


@pytest.mark.parametrize("name", ["pop", "itemknn"])
def test_fitted_model_is_equal_on_two_devices(
    name: str, folder: Path, dataset: PreparedDataset, tmp_path: Path
) -> None:
    evaluate(name, dataset, 1, tmp_path)
    fitted, alone = (
        torch.load(path / BEST, weights_only=True)["state_dict"] for path in (folder / f"fitted_{name}", tmp_path)
    )
    assert fitted.keys() == alone.keys()
    assert all(torch.equal(weight, alone[name]) for name, weight in fitted.items())


@pytest.mark.parametrize("interrupted_at", [4, 12])
def test_resumed_two_device_run_matches_uninterrupted(interrupted_at: int, records: list[Record]) -> None:
    for record in records:
        uninterrupted, resumed = record["resumed"]["None"], record["resumed"][f"{interrupted_at}"]
        assert all(torch.equal(weight, resumed[name]) for name, weight in uninterrupted.items())


def test_other_number_of_devices_cannot_resume(folder: Path, dataset: PreparedDataset) -> None:
    saved = torch.load(folder / "interrupted_4" / LAST, weights_only=True)["progress"]
    assert saved["state"][0].shape == (1, 2 * SLOTS, 8)
    assert len(saved["rng"]) == 2
    assert not torch.equal(saved["rng"][0], saved["rng"][1])  # dropout differs by device
    config = make_config("gru4rec", 1, "resume=true")
    stage = OmegaConf.to_container(config.model, resolve=True) | {"epochs": 3}
    (folder / "interrupted_4" / DONE).unlink()
    with pytest.raises(UserError, match=r"started on 2 device\(s\) and cannot go on with 1"):
        train_stage(
            build_model(config, dataset),
            datamodule(dataset, config, stage),
            config,
            stage,
            folder / "interrupted_4",
            [],
        )


@pytest.mark.parametrize("model", ["gru4rec", "gru4rec_strong", "pnn"])
def test_E8_no_collective_is_as_wide_as_the_catalogue(model: str, tmp_path: Path) -> None:
    n_items = 5003
    dataset = write_world(tmp_path, {"train": (random_sessions(0, 20, n_items), [0] * 20)}, n_items, {"level": [1]})
    config = make_config(model, 1, "model.n_sample=7")
    learner = build_model(config, dataset)
    learner.configure_optimizers()
    stage = OmegaConf.to_container(config.model, resolve=True)
    batch = datamodule(dataset, config, stage).train_dataloader().dataset[0, 0]
    learner.step_loss(batch, 0, learner.initial_state(2 * SLOTS))[0].backward()
    weights = [weight for weight in learner.parameters() if weight.grad is not None]
    before = [weight.grad.to_dense() for weight in weights]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with WideTensors(n_items, set()) as wide:
            sum_gradients(learner.parameters())
    finally:
        dist.destroy_process_group()
    assert wide.found == []
    assert learner.scorer.items.weight.grad.is_sparse
    assert all(torch.equal(weight.grad.to_dense(), gradient) for weight, gradient in zip(weights, before, strict=True))


# --- chunks ---


@pytest.mark.parametrize("negatives", ["global", "local"])
@pytest.mark.parametrize("n_sample", [0, 5])
def test_E4_devices_share_slots_and_know_all_rows(negatives: Any, n_sample: int) -> None:
    sessions = make_sessions(random_sessions(3, 5, 30, 12))
    both = [
        TrainingWindows(
            Windows(sessions, sessions.user, 4, 3, device, 2), 30, 4, n_sample, 0.5, False, True, 1, negatives
        )
        for device in (0, 1)
    ]
    whole = Windows(sessions, sessions.user, 8, 3)
    n_empty = 0
    for index in range(len(whole)):
        first, second = (windows[0, index] for windows in both)
        global_chunk = [torch.cat(pair, 1) for pair in zip(first.window, second.window, strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(global_chunk, whole[0, index], strict=True))
        for k in range(len(first.items)):
            assert torch.equal(first.items[k].rows, second.items[k].rows)
            assert torch.equal(first.scored[k].rows, second.scored[k].rows)
            for batch in (first, second):
                alive = batch.window.alive[k]
                n_empty += not alive.any()
                scored = batch.scored[k].rows[batch.own[k]] if batch.own else batch.scored[k].rows
                slots = torch.arange(4)[alive]
                assert torch.equal(scored[batch.scored[k].inverse[slots]], batch.window.target[k, alive])
                assert torch.equal(batch.items[k].rows[batch.items[k].inverse[slots]], batch.window.item[k, alive])
                assert batch.counts[k][batch.scored[k].inverse[:4]].min() >= 1  # empty slots too: no log of 0
                assert len(batch.counts[k]) == len(batch.log_q[k]) == len(scored)
                own = int(alive.sum()) + n_sample
                everything = int(whole[0, index].alive[k].sum()) + n_sample
                if negatives == "global" or own:
                    assert int(batch.counts[k].sum()) == (everything if negatives == "global" else own)
            if n_sample and negatives == "local":
                sampled = [batch.scored[k].inverse[4:] for batch in (first, second)]
                assert not torch.equal(first.own[k][sampled[0]], second.own[k][sampled[1]])
    assert n_empty


# --- the command line ---

TWO = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
TORCHRUN = {  # variables of rank zero of two; no process listens at port 1
    "TORCHELASTIC_RUN_ID": "test",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
    "WORLD_SIZE": "2",
    "RANK": "0",
    "LOCAL_RANK": "0",
}
FAIL = ["task=prepare", "task._target_=failing_task.run", "hydra.run.dir=failed"]
FAILING_TASK = """
import os
import signal
from pathlib import Path

import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig

from arnn_lightning.errors import UserError
from arnn_lightning.nn.collectives import rank_and_world_size
from arnn_lightning.training import stage  # silences Lightning
from arnn_lightning.training.distributed import distributed_run


def run(config):
    with distributed_run(config, Path(HydraConfig.get().runtime.output_dir)):
        if str(rank_and_world_size()[0]) in os.environ["FAILING_RANKS"]:
            if os.environ["FAILURE"] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise {"user": UserError, "defect": ValueError}[os.environ["FAILURE"]]("in one process")
        dist.barrier()  # never completes
"""


def start(folder: Path, *command: str, **variables: str) -> subprocess.Popen[str]:
    """Starts ``python -m command`` in a process group of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"} | variables
    environment.pop("ARNN_DATA", None)
    command = (sys.executable, "-m", *command)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 300) -> tuple[str, str]:
    """stdout and stderr, which are complete only once all processes of the run have ended."""
    try:
        return process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ARNN was trained on two devices from the command line."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "failing_task.py").write_text(FAILING_TASK)
    done = arnn(folder, *SMALL, *TWO)
    (folder / "out").write_text(done.stdout)
    (folder / "err").write_text(done.stderr)
    return folder


@pytest.fixture(scope="module")
def run_dir(workspace: Path) -> Path:
    (run,) = (workspace / "outputs" / "synthetic" / "arnn").iterdir()
    return run


def test_two_device_run_leaves_one_folder_and_one_table(workspace: Path, run_dir: Path) -> None:
    assert (workspace / "out").read_text().count("arnn - gru4rec, paired") == 1
    assert "arnn: epoch 1 of 1" in (workspace / "out").read_text()
    assert "arning" not in (workspace / "err").read_text()
    ranks = {f"test_ranks{role}.parquet" for role in ("", "_session", "_context", "_pop", "_itemknn")}
    assert {path.name for path in run_dir.iterdir()} == {
        ".hydra",
        "checkpoints",
        "cli.log",
        "metrics.csv",
        "metrics.json",
        *ranks,
    }
    for part in ("", "session", "context"):
        files = {path.name for path in (run_dir / "checkpoints" / part).iterdir()}
        assert files >= {"best.ckpt", "last.ckpt", "done"}


def test_V16_one_device_evaluates_a_two_device_checkpoint(workspace: Path, run_dir: Path) -> None:
    arnn(workspace, "task=evaluate", f"checkpoint={run_dir / 'checkpoints' / BEST}", "hydra.run.dir=alone")
    alone = workspace / "alone"
    assert (alone / "test_ranks.parquet").read_bytes() == (run_dir / "test_ranks.parquet").read_bytes()
    assert metrics_of(alone)["test"] == metrics_of(run_dir)["test"]


@pytest.mark.parametrize("failing_ranks", ["0", "1", "01"])
def test_user_error_ends_all_processes_with_one_line(workspace: Path, failing_ranks: str) -> None:
    process = start(workspace, "arnn_lightning", *FAIL, *TWO, FAILING_RANKS=failing_ranks, FAILURE="user")
    _, stderr = finish(process)
    assert stderr == "error: in one process\n"
    assert process.returncode == 2
    assert {path.name for path in (workspace / "failed").iterdir()} == {".hydra", "cli.log"}


def test_defect_ends_all_processes_with_one_traceback(workspace: Path) -> None:
    process = start(workspace, "arnn_lightning", *FAIL, *TWO, FAILING_RANKS="1", FAILURE="defect")
    _, stderr = finish(process)
    assert stderr.count("Traceback") == 1
    assert stderr.splitlines()[-1] == "ValueError: in one process"
    assert process.returncode == 1


@pytest.mark.parametrize("killed_rank", ["0", "1"])
def test_killed_process_ends_the_others(workspace: Path, killed_rank: str) -> None:
    process = start(workspace, "arnn_lightning", *FAIL, *TWO, FAILING_RANKS=killed_rank, FAILURE="killed")
    _, stderr = finish(process)
    assert "Traceback" not in stderr
    if killed_rank == "1" and process.returncode != -signal.SIGKILL:  # Lightning's launcher may kill rank zero first
        assert "error: another process of this run ended" in stderr
        assert process.returncode == 2


@pytest.mark.parametrize("failing_rank", ["0", "1"])
def test_torchrun_prints_the_error_of_a_process_once(workspace: Path, failing_rank: str) -> None:
    torchrun = ("torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", "-m")
    process = start(workspace, *torchrun, "arnn_lightning", *FAIL, *TWO, FAILING_RANKS=failing_rank, FAILURE="user")
    _, stderr = finish(process)
    assert stderr.splitlines().count("error: in one process") == 1
    assert process.returncode == 1  # torchrun's


def test_ctrl_c_saves_and_ends_all_processes(workspace: Path) -> None:
    long_epoch = ["model=gru4rec", "model.batch_size=1", "hydra.run.dir=interrupted"]
    process = start(workspace, "arnn_lightning", *SMALL, *TWO, *long_epoch)
    while not (workspace / "interrupted" / "metrics.csv").is_file():  # its first line: training has begun
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = finish(process)
    (line,) = stderr.splitlines()
    assert "resume=true hydra.run.dir=interrupted" in line
    assert process.returncode == 130
    assert (workspace / "interrupted" / "checkpoints" / LAST).is_file()
    assert not (workspace / "interrupted" / "checkpoints" / DONE).exists()


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["trainer.devices=2"], {}, "2 devices need trainer=ddp"),
        (["trainer=ddp", "trainer.accelerator=gpu"], {}, "trainer: No supported gpu backend found!"),
        (["model=gru4rec", "model.negatives=some"], {}, "model.negatives=some: choose global or local"),
        (["-m", *TWO, "seed=1"], {}, "--multirun is not supported with trainer=ddp"),
        (TWO, TORCHRUN | {"WORLD_SIZE": "4"}, "trainer.devices=2 x trainer.num_nodes=1 does not match the 4 processes"),
        (TWO, TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1"}, "rank 0 is not reachable at 127.0.0.1:1"),
        (TWO, {"SLURM_NTASKS": "2"}, "trainer: You set `--ntasks=2`"),
        ([], TORCHRUN, "torchrun started several processes: trainer=ddp makes them one run"),
    ],
)
def test_impossible_devices_are_user_errors(
    workspace: Path,
    arguments: list[str],
    variables: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.delenv("ARNN_DATA", raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    monkeypatch.setattr(distributed, "_START_TIMEOUT", timedelta(seconds=1))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert arnn_here([*arguments, *SMALL], monkeypatch) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    "variables", [{"RANK": "1", "LOCAL_RANK": "1"}, {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_JOB_ID": "7"}]
)
def test_cluster_variables_do_not_change_a_one_device_run(workspace: Path, variables: dict[str, str]) -> None:
    run_dir = f"one_{'_'.join(variables)}"
    process = start(workspace, "arnn_lightning", *SMALL, "model=pop", f"hydra.run.dir={run_dir}", **variables)
    _, stderr = finish(process)
    assert stderr == ""
    assert process.returncode == 0
    assert "test/recall@20" in (workspace / run_dir / "metrics.csv").read_text()

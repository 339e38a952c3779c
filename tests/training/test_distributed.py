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

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from arnn_lightning.batch import BatchChunk, Candidates, ChunkSpec, Contexts, RowSource
from arnn_lightning.config import to_container
from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.metrics import metric_names
from arnn_lightning.loading.datasets import SessionParallelDataset, TrainDataset
from arnn_lightning.loading.negatives import PopularitySampler
from arnn_lightning.nn.collectives import all_reduce_gradients, rank_and_world_size
from arnn_lightning.optim import step as train_step
from arnn_lightning.optim.adagrad import RowUpdate
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.run_folder import BEST
from arnn_lightning.tasks.train import fill_dims, metadata_maker
from arnn_lightning.training import distributed
from arnn_lightning.training.checkpoint import build_model
from arnn_lightning.training.distributed import make_trainer
from arnn_lightning.training.stage import (
    DONE_MARKER,
    LAST,
    evaluate_model,
    make_datamodule,
    run_settings,
    train_stage,
)
from commandline import SMALL, Command, arnn, arnn_here, metrics_of, start_server
from helpers import WideTensors, compose_config, make_sessions, random_sessions, ready, write_dataset
from models import slow

SLOTS, STEPS = 8, 30  # batch slots of each of two devices; steps that are compared
NO_DROPOUT = ["model.dropout_hidden=0"]
FROZEN = ["model.session.dropout_hidden=0"]
STRONG = [*NO_DROPOUT, "model.n_sample=9", "model.optimizer.momentum=0.1", "model.optimizer.weight_decay=0.01"]
WINDOW = ["model.last_n_events=4", "model.n_sample=9"]
CASES: dict[str, tuple[str, list[str]]] = {
    "gru4rec": ("gru4rec", NO_DROPOUT),
    "gru4rec_negatives": ("gru4rec", [*NO_DROPOUT, "model.n_sample=9", "model/loss=bpr_max"]),
    "gru4rec_strong": ("gru4rec_strong", STRONG),
    "gru4rec_full": ("gru4rec", [*NO_DROPOUT, "model/loss=cross_entropy_full"]),
    "narm": ("narm", [*NO_DROPOUT, "model.dropout_embedding=0", *WINDOW]),
    "sasrec": ("sasrec", ["model.dropout=0", *WINDOW]),
    "gru4rec_adam": ("gru4rec", [*NO_DROPOUT, "model/optimizer=adam"]),
    "pnn": ("pnn", []),
    "pnn_attribute_dropout": ("pnn", ["model.attribute_dropout=0.4", "model.item_contexts=fields"]),
    "arnn": ("arnn", [*FROZEN, "model.optimizer.eps=1e-4"]),
    "arnn_batchnorm": ("arnn", [*FROZEN, "model.finetune_context_batchnorm=true"]),
    "arnn_joint": ("arnn", [*FROZEN, "model.freeze_encoders=false", "model.optimizer.lr=0.001"]),
    "concat": ("concat", ["model.item_contexts=add"]),
    "init_state": ("init_state", FROZEN),
    "latent_cross": ("latent_cross", [*FROZEN, "model.item_contexts=add"]),
    "input_concat": ("input_concat", FROZEN),
    "prefix": ("prefix", ["model.session.dropout=0", "model.session.last_n_events=4", "model.n_sample=9"]),
    "local_negatives": ("gru4rec_strong", [*STRONG, "model.negatives=local", "model.loss.accidental_hits=keep"]),
}


# These differ from others in one part that has tests of its own; make test-all trains them, too.
SLOW_CASES = {
    *("gru4rec_negatives", "gru4rec_full", "gru4rec_adam", "narm", "pnn_attribute_dropout", "arnn_joint"),
    *("concat", "init_state", "input_concat", "latent_cross", "prefix"),
}
CASE_PARAMETERS = [slow(case) if case in SLOW_CASES else case for case in CASES]
SOURCES: frozenset[RowSource] = frozenset({"item", "candidate", "item_and_candidate", "single"})
COUNTED = ("pop", "itemknn", "vstan_context")
HIDDEN_SIZE = dict.fromkeys(("init_state", "latent_cross", "input_concat", "prefix"), "model.session.hidden_size=8")
HIDDEN_SIZE["concat"] = "model.embedding_size=8"
MODELS = (*COUNTED, "gru4rec", "pnn", "arnn")
Record = dict[str, Any]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Few long sessions: after STEPS steps slots become empty one by one, and soon one device has only empty ones.

    The test split has fewer sessions than one device has slots: the other device has nothing to evaluate.
    """
    sizes = {"train": (21, 60), "val": (9, 8), "test": (3, 25)}
    splits = {
        name: (random_sessions(seed, count, 40, longest), [index % 6 for index in range(count)])
        for seed, (name, (count, longest)) in enumerate(sizes.items())
    }
    single = {"level": [0, 1, 2, 1, 0, 2], "country": [1, 1, 0, 2, 3, 0]}
    active = [[], [0, 4], [1], [2, 3, 4], [0], [1, 2]]
    return write_dataset(tmp_path_factory.mktemp("dataset"), splits, 40, single, active)


def make_config(model: str, devices: int, *overrides: str) -> DictConfig:
    many = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={devices}"] if devices > 1 else []
    sizes = ["evaluation.batch_size=4", "performance.steps_per_execution=10", "checkpoint.every_n_minutes=0"]
    if model not in COUNTED:
        sizes += [f"model.batch_size={2 * SLOTS // devices}", HIDDEN_SIZE.get(model, "model.hidden_size=8")]
    return compose_config(f"model={model}", "data=xing", "logger={}", *many, *sizes, *overrides)


def make_model(config: DictConfig, prepared: PreparedDataset, seed: int = 0) -> Any:
    fill_dims(config, prepared)
    torch.manual_seed(seed)
    metadata = metadata_maker(config, prepared)
    return ready(build_model(to_container(config.model), run_settings(config), metadata), prepared)


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "num_batches" not in name}


def case_config(case: str, devices: int) -> DictConfig:
    name, settings = CASES[case]
    return make_config(name, devices, *settings)


def train(config: DictConfig, prepared: PreparedDataset, folder: Path) -> Record:
    """One epoch in double precision: Adagrad's first steps turn a rounding error into a step of full size.

    Returns ``losses`` of every step, ``weights`` after STEPS of them, the ``loss`` of the epoch.
    """
    model = make_model(config, prepared).double()
    record: Record = {"losses": []}
    check = model._raise_if_not_finite

    def record_losses(losses_K: Tensor) -> None:
        check(losses_K)
        record["losses"] += losses_K.tolist()
        if len(record["losses"]) == STEPS:
            record["weights"] = weights_of(model)

    model._raise_if_not_finite = record_losses
    train_stage(model, prepared, config, to_container(config.model) | {"epochs": 1}, folder, [])
    return record | {"loss": model.progress.epoch_loss}


def evaluate(config: DictConfig, prepared: PreparedDataset, folder: Path) -> Record:
    """Ranks and metrics of the test split; counted models are fitted as in a run."""
    model = make_model(config, prepared)
    if config.model.name in COUNTED:
        train_stage(model, prepared, config, {}, folder, [])
    result = evaluate_model(model, prepared, config)
    metrics = result.metrics(metric_names(["recall", "mrr"], [5, 20]))
    return {"ranks": result.ranks.to_dict(as_series=False), "metrics": metrics}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


class Interrupted(BaseException):
    """Raised by a test to interrupt a run."""


def resume(config: DictConfig, prepared: PreparedDataset, folder: Path, interrupt_at: int | None) -> dict[str, Tensor]:
    """Weights after two epochs with dropout on two devices, interrupted at a chunk and resumed."""
    model = make_model(config, prepared)
    stage = to_container(config.model) | {"epochs": 2}
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
            train_stage(model, prepared, config, stage, folder, [])
        config.resume, model = True, make_model(config, prepared, seed=7)
    train_stage(model, prepared, config, stage, folder, [])
    return weights_of(model)


def reduce_gradients() -> list[Tensor]:
    """Three gradients whose values depend on the rank, summed; the second one is not contiguous."""
    rank, _ = rank_and_world_size()
    gradients = [torch.full((2, 3), 1.0 + rank), torch.arange(6.0).view(2, 3).t() * (1 + rank), torch.tensor(5.0)]
    all_reduce_gradients(gradients)
    all_reduce_gradients([])
    return gradients


def two_device_configs(cases: set[str]) -> dict[str, dict[str, DictConfig]]:
    """Composed once and passed to both processes."""
    dropout = ("model.dropout_hidden=0.3", "model.n_sample=4")
    return {
        "train": {case: case_config(case, 2) for case in CASES if case in cases},
        "evaluate": {name: make_config(name, 2) for name in MODELS},
        "resume": {f"{at}": make_config("gru4rec", 2, *dropout) for at in (None, 4, 12)},
    }


def worker(
    rank: int, port: int, prepared: PreparedDataset, folder: Path, configs: dict[str, dict[str, DictConfig]]
) -> None:
    """All work of the two processes of this file, whose start takes longer than their work."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    make_trainer(configs["train"]["gru4rec"], logger=False).strategy.setup_environment()
    record: Record = {case: train(config, prepared, folder / case) for case, config in configs["train"].items()}
    record["gradients"] = reduce_gradients()
    record["evaluated"] = {
        name: evaluate(config, prepared, folder / f"fitted_{name}") for name, config in configs["evaluate"].items()
    }
    record["resumed"] = {
        at: resume(config, prepared, folder / f"interrupted_{at}", None if at == "None" else int(at))
        for at, config in configs["resume"].items()
    }
    torch.save(record, folder / f"record{rank}.pt")


@pytest.fixture(scope="module")
def folder(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("two")
    selected = [item for item in request.session.items if item.path == request.path and "[" in item.name]
    cases = {case for case in CASES if any(item.callspec.params.get("case") == case for item in selected)}
    configs = two_device_configs(cases | {"gru4rec", "local_negatives"})
    start_server()
    arguments = (free_port(), dataset, folder, configs)
    multiprocessing.start_processes(worker, arguments, nprocs=2, start_method="forkserver")
    return folder


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    """The record of each of the two processes."""
    return [torch.load(folder / f"record{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("case", [case for case in CASE_PARAMETERS if case != "local_negatives"])
def test_E25_two_devices_match_one(case: str, records: list[Record], dataset: PreparedDataset, tmp_path: Path) -> None:
    alone, many = train(case_config(case, 1), dataset, tmp_path), records[0][case]
    assert len(alone["losses"]) > STEPS + 20
    assert many["losses"][:STEPS] == pytest.approx(alone["losses"][:STEPS], rel=1e-8)
    assert many["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    for name, weight in alone["weights"].items():
        assert torch.allclose(many["weights"][name], weight, rtol=0, atol=1e-10), name  # rounding, after some 60 steps


@pytest.mark.parametrize("case", CASE_PARAMETERS)
def test_devices_have_equal_weights_and_losses(case: str, records: list[Record]) -> None:
    first, second = records[0][case], records[1][case]
    assert first["losses"] == second["losses"]
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())


def test_all_reduce_gradients_sums_in_place(records: list[Record]) -> None:
    expected = [torch.full((2, 3), 3.0), torch.arange(6.0).view(2, 3).t() * 3, torch.tensor(10.0)]
    for record in records:
        assert all(torch.equal(*pair) for pair in zip(record["gradients"], expected, strict=True))


def test_local_negatives_average_the_gradients_of_devices(records: list[Record], dataset: PreparedDataset) -> None:
    """On whole tables and with columns of the catalogue, where the training step has rows."""
    name, settings = CASES["local_negatives"]
    config = make_config(name, 1, *settings, f"model.batch_size={SLOTS}")
    model = make_model(config, dataset).double().train()
    optimizer = model.configure_optimizers()
    data = make_datamodule(dataset, config, to_container(config.model))
    data.n_devices = 2
    chunks: list[list[Any]] = []
    for data.device in (0, 1):
        chunks_of_device = data.train_dataset(model.chunk_spec)
        chunks.append([chunks_of_device[0, number] for number in range(STEPS // 10)])
    states = [model.initial_state(SLOTS) for _ in chunks]
    modules = dict(model._train_step.loss.named_modules())
    losses = []
    for number, k in (divmod(step, 10) for step in range(STEPS)):
        loss = torch.zeros(())
        for device, chunk in enumerate(chunks_of_device[number] for chunks_of_device in chunks):
            rows = {source: ragged.split()[k] for source, ragged in chunk.rows.items()}
            counts, columns = chunk.counts.split()[k], rows["candidate"][chunk.columns.split()[k]]
            candidates = Candidates(chunk.positive[k], counts, columns, chunk.log_q.split()[k])
            inputs, keep_B1 = list(model.step_inputs(chunk))[k]
            state = tuple(part * keep_B1 for part in states[device])
            local_loss, state = model._train_step.loss(inputs, candidates, state)
            states[device] = tuple(part.detach() for part in state)
            loss = loss + local_loss / 2
        loss.backward()
        updates = []
        for table, source in model._train_step.tables.items():
            weight = modules[table].weight
            updates.append(RowUpdate(weight, rows[source], weight[rows[source]], weight.grad[rows[source]]))
            weight.grad = None
        optimizer.step(rows=updates)
        optimizer.zero_grad()
        losses.append(loss.item())
    assert records[0]["local_negatives"]["losses"][:STEPS] == pytest.approx(losses, rel=1e-8)
    for name, weight in records[0]["local_negatives"]["weights"].items():
        assert name == "mini_batches" or torch.allclose(weight, model.state_dict()[name], rtol=0, atol=1e-8), name


@pytest.mark.parametrize("name", MODELS)
def test_V16_two_devices_evaluate_as_one(
    name: str, records: list[Record], dataset: PreparedDataset, tmp_path: Path
) -> None:
    alone = evaluate(make_config(name, 1), dataset, tmp_path)
    for record in records:
        assert record["evaluated"][name]["ranks"] == alone["ranks"]
        assert record["evaluated"][name]["metrics"] == pytest.approx(alone["metrics"], abs=1e-9)


@pytest.mark.parametrize("name", COUNTED)
def test_fitted_model_is_equal_on_two_devices(
    name: str, folder: Path, dataset: PreparedDataset, tmp_path: Path
) -> None:
    evaluate(make_config(name, 1), dataset, tmp_path)
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
    model = make_model(config, dataset)
    (folder / "interrupted_4" / DONE_MARKER).unlink()
    with pytest.raises(UserError, match=r"started on 2 device\(s\) and cannot be resumed on 1"):
        train_stage(model, dataset, config, to_container(config.model) | {"epochs": 3}, folder / "interrupted_4", [])


@pytest.mark.parametrize("name", ["gru4rec", "gru4rec_strong", "pnn"])
def test_E8_no_collective_is_as_wide_as_the_catalogue(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_items = 5003
    prepared = write_dataset(tmp_path, {"train": (random_sessions(0, 20, n_items), [0] * 20)}, n_items, {"level": [1]})
    config = make_config(name, 1, "model.n_sample=7")
    model = make_model(config, prepared)
    model.configure_optimizers()
    data = make_datamodule(prepared, config, to_container(config.model))
    chunk = data.train_dataset(model.chunk_spec)[0, 0]
    n_candidates = len(chunk.rows["candidate"].split()[0])
    exchanged: list[tuple[Tensor, Tensor]] = []
    wide = WideTensors(n_items, set())

    def exchange(gradients: list[Tensor]) -> None:
        before = [gradient.clone() for gradient in gradients]
        with wide:
            all_reduce_gradients(gradients)
        exchanged.extend(zip(before, gradients, strict=True))

    monkeypatch.setattr(train_step, "all_reduce_gradients", exchange)
    monkeypatch.setattr(train_step, "rank_and_world_size", lambda: (0, 2))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model.run_steps(chunk, model.initial_state(2 * SLOTS))
    finally:
        dist.destroy_process_group()
    assert wide.found == []
    shapes = [tuple(gradient.shape) for _, gradient in exchanged]
    assert not any(n_items in shape for shape in shapes)
    assert (n_candidates,) in shapes  # of the scorer's biases
    assert all(torch.equal(before, gradient) for before, gradient in exchanged)


# --- chunks ---


@pytest.mark.parametrize("negatives", ["global", "local"])
@pytest.mark.parametrize("n_sample", [0, 5])
def test_E4_devices_share_slots_and_have_all_rows(negatives: Any, n_sample: int) -> None:
    sessions = make_sessions(random_sessions(3, 5, 30, 12))
    sampler = PopularitySampler(np.bincount(sessions.item, minlength=30), n_sample, 0.5, seed=1)
    contexts = Contexts(single=torch.tensor([[0, 5], [1, 4], [0, 4], [2, 3], [3, 5]]), active=torch.empty(5, 0))
    spec = ChunkSpec(SOURCES, full_catalogue=False, log_q=True, padded=False)
    both = [
        TrainDataset(SessionParallelDataset(sessions, 4, 3, device, 2), sampler, contexts, spec, 30, 4, negatives)
        for device in (0, 1)
    ]
    whole = SessionParallelDataset(sessions, 8, 3)
    n_empty = 0
    for index in range(len(whole)):
        events, local_events = whole[0, index], [dataset.chunks[0, index] for dataset in both]
        joined = BatchChunk(*(torch.cat(pair, 1) for pair in zip(*local_events, strict=True)))
        assert all(torch.equal(*pair) for pair in zip(joined, events, strict=True))
        chunks = [dataset[0, index] for dataset in both]
        for chunk, local in zip(chunks, local_events, strict=True):
            for field in ("item", "user", "is_session_start", "valid"):
                assert torch.equal(getattr(chunk, field), getattr(local, field))
        for k in range(len(events.item)):
            rows, others = ({source: ids.split()[k] for source, ids in chunk.rows.items()} for chunk in chunks)
            assert all(torch.equal(ids, others[source]) for source, ids in rows.items())
            read = {"item": events.item[k], "single": contexts.single[events.user[k]]}
            assert all(rows[source].tolist() == ids.unique().tolist() for source, ids in read.items())
            assert set(rows["item_and_candidate"].tolist()) == {*rows["item"].tolist(), *rows["candidate"].tolist()}
            samples = []
            for device, (chunk, local) in enumerate(zip(chunks, local_events, strict=True)):
                valid, counts, positive = local.valid[k], chunk.counts.split()[k], chunk.positive[k]
                n_empty += not valid.any()
                columns = rows["candidate"] if chunk.columns is None else rows["candidate"][chunk.columns.split()[k]]
                assert torch.equal(columns[positive[valid]], local.target[k, valid])
                assert counts[positive].min() >= 1  # empty slots too: no log of 0
                assert len(counts) == len(chunk.log_q.split()[k]) == len(columns)
                in_scope = events if negatives == "global" else local
                if in_scope.valid[k].any():
                    targets = in_scope.target[k, in_scope.valid[k]].bincount(minlength=30)
                    samples.append(torch.zeros(30).index_add(0, columns, counts) - targets)
                    source_device = device if negatives == "local" else 0
                    expected = np.bincount(sampler.sample(0, 3 * index + k, 1, source_device)[0], minlength=30)
                    assert samples[-1].tolist() == expected.tolist()
            if n_sample and negatives == "local" and len(samples) == 2:
                assert not torch.equal(*samples)
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


def run_module(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``python -m command``, of which also the imports read the environment."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ARNN was trained on two devices from the command line."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "failing_task.py").write_text(FAILING_TASK)
    (folder / "threads.py").write_text(
        "import torch\nfrom pathlib import Path\nfrom pytorch_lightning import Callback\n"
        "class Threads(Callback):\n"
        "    def on_train_batch_end(self, trainer, *_):\n"
        "        Path(f'threads_{trainer.global_rank}').write_text(str(torch.get_num_threads()))\n"
    )
    threads = ["performance.threads=3", "+callbacks.threads={_target_: threads.Threads}"]
    done = Command(folder, *SMALL, *TWO, *threads, OMP_NUM_THREADS=None).wait()
    assert done.returncode == 0, done.stderr
    (folder / "out").write_text(done.stdout)
    (folder / "err").write_text(done.stderr)
    return folder


@pytest.fixture(scope="module")
def run_dir(workspace: Path) -> Path:
    (run,) = (workspace / "outputs" / "train" / "synthetic" / "arnn").iterdir()
    return run


def test_two_device_run_leaves_one_folder_and_one_table(workspace: Path, run_dir: Path) -> None:
    assert (workspace / "out").read_text().count("arnn - gru4rec, paired") == 1
    assert "merging layer: epoch 1 of 1" in (workspace / "out").read_text()
    assert "arning" not in (workspace / "err").read_text()
    roles = ("", "_session", "_context", "_pop", "_itemknn", "_sr", "_vsknn")
    ranks = {f"test_{kind}{role}.parquet" for kind in ("ranks", "lists") for role in roles}
    assert {path.name for path in run_dir.iterdir()} == {
        ".hydra",
        ".lock",
        "checkpoints",
        "cli.log",
        "metrics.csv",
        "metrics.json",
        *ranks,
    }
    for part in ("", "session", "context"):
        files = {path.name for path in (run_dir / "checkpoints" / part).iterdir()}
        assert files >= {"best.ckpt", "last.ckpt", "done"}


def test_each_device_has_the_threads_of_the_settings(workspace: Path) -> None:
    """Lightning's launcher resets them where OMP_NUM_THREADS is not set."""
    assert [(workspace / f"threads_{rank}").read_text() for rank in (0, 1)] == ["3", "3"]


def test_V16_one_device_evaluates_a_two_device_checkpoint(workspace: Path, run_dir: Path) -> None:
    arnn(workspace, "task=evaluate", f"checkpoint={run_dir / 'checkpoints' / BEST}", "hydra.run.dir=alone")
    alone = workspace / "alone"
    assert (alone / "test_ranks.parquet").read_bytes() == (run_dir / "test_ranks.parquet").read_bytes()
    assert metrics_of(alone)["test"] == metrics_of(run_dir)["test"]


@pytest.mark.slow
@pytest.mark.parametrize("failing_ranks", ["0", "1", "01"])
@pytest.mark.parametrize(
    ("failure", "last_line", "code"),
    [("user", "error: in one process", 2), ("defect", "ValueError: in one process", 1)],
)
def test_an_error_ends_all_processes_with_one_message(
    workspace: Path, failing_ranks: str, failure: str, last_line: str, code: int
) -> None:
    done = Command(workspace, *FAIL, *TWO, FAILING_RANKS=failing_ranks, FAILURE=failure).wait()
    assert done.stderr.splitlines()[-1] == last_line
    assert (len(done.stderr.splitlines()) == 1) == (failure == "user")
    assert done.stderr.count("Traceback") == int(failure == "defect")
    assert done.stderr.count("in one process") == 1 + int(failure == "defect")
    assert done.returncode == code
    assert {path.name for path in (workspace / "failed").glob("*")} <= {".lock"}


def test_defect_ends_all_processes_with_one_traceback(workspace: Path) -> None:
    """Two processes as torchrun starts them, but forked from one that has imported torch."""
    variables = TORCHRUN | {"MASTER_PORT": str(free_port()), "FAILING_RANKS": "1", "FAILURE": "defect"}
    runs = [Command(workspace, *FAIL, *TWO, **variables | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    zero, other = (run.wait() for run in runs)
    assert zero.stderr.count("Traceback") == 1
    assert zero.stderr.splitlines()[-1] == "ValueError: in one process"
    assert zero.returncode == 1
    assert other.stderr == ""
    assert other.returncode == 0  # torchrun kills the others as soon as a process exits with another code


@pytest.mark.slow
@pytest.mark.parametrize("killed_rank", ["0", "1"])
def test_killed_process_ends_the_others(workspace: Path, killed_rank: str) -> None:
    done = Command(workspace, *FAIL, *TWO, FAILING_RANKS=killed_rank, FAILURE="killed").wait()
    assert "Traceback" not in done.stderr
    if done.returncode != -signal.SIGKILL:  # rank zero is killed, or Lightning's launcher kills it first
        assert killed_rank == "1"
        assert "error: another process of this run ended" in done.stderr
        assert done.returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("failing_rank", ["0", "1"])
def test_torchrun_prints_the_error_of_a_process_once(workspace: Path, failing_rank: str) -> None:
    torchrun = ("torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", "-m")
    done = run_module(workspace, *torchrun, "arnn_lightning", *FAIL, *TWO, FAILING_RANKS=failing_rank, FAILURE="user")
    assert done.stderr.splitlines().count("error: in one process") == 1
    assert done.returncode == 1  # torchrun's


@pytest.mark.slow
def test_ctrl_c_saves_and_ends_all_processes(workspace: Path) -> None:
    long_epoch = ["model=gru4rec", "model.batch_size=1", "hydra.run.dir=interrupted"]
    run = Command(workspace, *SMALL, *TWO, *long_epoch)
    while not (workspace / "interrupted" / "metrics.csv").is_file():  # its first line: training has begun
        assert run.is_running()
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)
    done = run.wait()
    (line,) = done.stderr.splitlines()
    assert "resume=true hydra.run.dir=interrupted" in line
    assert done.returncode == 130
    assert (workspace / "interrupted" / "checkpoints" / LAST).is_file()
    assert not (workspace / "interrupted" / "checkpoints" / DONE_MARKER).exists()


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["trainer.devices=2"], {}, "2 devices: add trainer=ddp"),
        (["trainer=ddp", "trainer.accelerator=gpu"], {}, "trainer: No supported gpu backend found!"),
        slow(["model=gru4rec", "model.negatives=some"], {}, "model.negatives=some: must be one of global, local"),
        slow(["-m", *TWO, "seed=1"], {}, "--multirun is not supported with trainer=ddp"),
        (TWO, TORCHRUN | {"WORLD_SIZE": "4"}, "trainer.devices=2 x trainer.num_nodes=1 does not match the 4 processes"),
        slow(TWO, TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1"}, "rank 0 is not reachable at 127.0.0.1:1"),
        slow(TWO, {"SLURM_NTASKS": "2"}, "trainer: You set `--ntasks=2`"),
        slow([], TORCHRUN, "torchrun started several processes; add trainer=ddp"),
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
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    monkeypatch.setattr(distributed, "_START_TIMEOUT", timedelta(seconds=1))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert arnn_here([*arguments, *SMALL], monkeypatch) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1", "LOCAL_RANK": "1"},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_JOB_ID": "7"},
    ],
)
def test_cluster_variables_do_not_change_a_one_device_run(workspace: Path, variables: dict[str, str]) -> None:
    run_dir = f"one_{'_'.join(variables)}"
    done = Command(workspace, *SMALL, "model=pop", f"hydra.run.dir={run_dir}", **variables).wait()
    assert done.stderr == ""
    assert done.returncode == 0
    assert "test/recall@20" in (workspace / run_dir / "metrics.csv").read_text()


def test_trainer_arguments_in_the_environment_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning would use them, and no record of the run would have them."""
    monkeypatch.setenv("PL_TRAINER_LIMIT_TRAIN_BATCHES", "1")
    with pytest.raises(UserError, match=r"^PL_TRAINER_LIMIT_TRAIN_BATCHES: .* trainer\.limit_train_batches instead$"):
        make_trainer(compose_config("model=gru4rec"), logger=False)

"""This project beside public implementations of the same models, on the same prepared data, at equal settings.

    python benchmarks/peers.py PATH [--data synthetic] [--rounds 3] [--threads 1 2] [--wide] [--only WORD]
    python benchmarks/peers.py PATH --accuracy cross_entropy bpr_max [--epochs 3] [--seeds 1 2 3]

PATH is a checkout of one of the three, known by its files; none of their code is part of this project.

- GRU4Rec_PyTorch_Official: mini-batches of training (cross-entropy, tied vectors, H = 100), the ranks of an evaluation
  and their speed; with ``--accuracy``, Recall@20 and MRR@20 after the same epochs from the same initial weights.
  Its Adagrad adds eps = 1e-6 inside the root, ours 1e-10 outside: ``--peer-eps 1e-20`` makes the two the same.
- pyGRU4REC: mini-batches of the 2016 model (one-hot, tanh, TOP1), B = 50, as its own epoch runs them, metrics included.
- session-rec: ItemKNN's fit and predictions.

Ours trains through Lightning with its logger, as users run it. Rounds are interleaved; every side is given each number
of threads, and its best median counts. Needs pandas, for the peers.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from pytorch_lightning import Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from arnn_lightning.evaluation.ranking import rank
from arnn_lightning.loading.datamodule import SessionDataModule, Windows
from arnn_lightning.models.base import SessionModel
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.preprocessing.sessions import Sessions
from arnn_lightning.tasks.prepare import prepare_data
from arnn_lightning.training.checkpoint import build
from arnn_lightning.training.stage import datamodule
from training import lightning

CPU = torch.device("cpu")
FILES = {
    "GRU4Rec_PyTorch_Official": ("gru4rec_pytorch.py", "evaluation.py"),
    "pyGRU4REC": ("modules/model.py", "modules/data.py"),
    "session-rec": ("algorithms/knn/iknn.py",),
}
LEARNING_RATE, SAMPLE_ALPHA = 0.05, 0.5
Ours = tuple[SessionModel, SessionDataModule, PreparedDataset]


def recognise(path: Path) -> str:
    """Which peer ``path`` is a checkout of."""
    for name, files in FILES.items():
        if all((path / file).is_file() for file in files):
            return name
    raise SystemExit(f"{path}: a checkout of none of {', '.join(FILES)}")


def ours(options: argparse.Namespace, *overrides: str, seed: int = 1) -> Ours:
    """A fresh model with its data."""
    with initialize_config_module("arnn_lightning.conf", version_base="1.3"):
        config = compose("config", overrides=[f"data={options.data}", f"seed={seed}", *overrides])
    config.paths.data = str(Path(config.paths.data).absolute())
    prepared = prepare_data(config)
    config.model.dims = prepared.dims | {"n_items": max(prepared.dims["n_items"], options.catalogue)}
    plain: Any = OmegaConf.to_container(config.model, resolve=True)
    torch.manual_seed(seed)
    return build(plain), datamodule(prepared, config, plain), prepared


def gru4rec(lanes: int, hidden: int, n_sample: int, loss: str = "cross_entropy", embedding: str = "tied") -> list[str]:
    """The official code's settings in ours: accidental hits count, no dropout, no momentum."""
    values = {"lanes": lanes, "hidden_size": hidden, "n_sample": n_sample, "sample_alpha": SAMPLE_ALPHA}
    values |= {"embedding": embedding, "dropout_hidden": 0, "optimizer.lr": LEARNING_RATE, "optimizer.momentum": 0}
    values |= {"loss.accidental_hits": "keep"}
    return ["model=gru4rec", f"model/loss={loss}", *(f"model.{key}={value}" for key, value in values.items())]


def frame(prepared: PreparedDataset, split: str) -> pd.DataFrame:
    """A split as the peers want it; the row number stands for the time, so that nothing changes its place."""
    table = pl.read_parquet(prepared.folder / f"{split}.parquet")
    columns = {"SessionId": table["session"], "ItemId": table["item"], "Time": pl.Series(range(table.height))}
    return pd.DataFrame({name: column.to_numpy().astype(np.int64) for name, column in columns.items()})


# The race


class Race:
    """Times both sides, interleaved, with every number of threads, and keeps one row for each contest."""

    def __init__(self, options: argparse.Namespace, peer: str) -> None:
        self.options = options
        self.table = Table(title=f"{peer}, data={options.data}: medians of {options.rounds} interleaved rounds")
        for column in ("what", "ours", "peer", "ratio", "threads", "remark"):
            self.table.add_column(column, justify="right" if column in ("ours", "peer", "ratio") else "left")

    def wanted(self, what: str) -> bool:
        return self.options.only in what

    def run(self, what: str, mine: Callable[[], float], theirs: Callable[[], float], remark: str = "") -> None:
        """Both return seconds per unit of ``what``."""
        spent: dict[tuple[int, int], list[float]] = {}
        for _ in range(self.options.rounds):
            for threads in self.options.threads:
                for side, contestant in enumerate((mine, theirs)):
                    torch.set_num_threads(threads)
                    with contextlib.redirect_stdout(io.StringIO()):
                        spent.setdefault((side, threads), []).append(contestant())
        best = []
        for side in (0, 1):
            medians = {threads: statistics.median(spent[side, threads]) for threads in self.options.threads}
            best.append(min((seconds, threads) for threads, seconds in medians.items()))
        (a, our_threads), (b, peer_threads) = best
        threads = f"{our_threads}, {peer_threads}"
        self.table.add_row(what, f"{1e3 * a:.3f} ms", f"{1e3 * b:.3f} ms", f"{b / a:.2f}", threads, remark)
        print(f"{what}: {b / a:.2f}", file=sys.stderr)


def header() -> str:
    versions = f"torch {torch.__version__}, numpy {np.__version__}, pandas {pd.__version__}"
    names = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
    allocator = " ".join(f"{name}={os.environ[name]}" for name in names if os.environ.get(name)) or "as it comes"
    cores = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    return f"{cores}, load {os.getloadavg()[0]:.1f}; {versions}; allocator {allocator}"


# The official GRU4Rec


class Stopwatch:
    """Stands in for the peer's module ``time``: its own readings, which are an epoch's start and end, are kept."""

    def __init__(self) -> None:
        self.readings: list[float] = []

    def time(self) -> float:
        self.readings.append(time.perf_counter())
        return self.readings[-1]


class Recorder:
    """A cutoff for the peer's evaluation: whatever is compared with it is noted down."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ranks, recorder = args
        recorder.seen.append(ranks)
        return function(ranks, 20)


def make_peer(module: ModuleType, model: SessionModel, ids: np.ndarray, **settings: Any) -> Any:
    """The peer with our initial weights, which it takes where it would draw its own."""

    def take(network: Any) -> None:
        with torch.no_grad():
            network.Wy.weight.copy_(model.scorer.items.weight[ids])
            network.By.weight.zero_()
            if not network.constrained_embedding:
                network.E.weight.copy_(model.item_embedding.weight[ids])
            (cell,) = network.G
            cell.weight_ih.copy_(model.input_weights[0])
            cell.weight_hh.copy_(model.cells[0].weight)
            cell.bias_ih.zero_()
            cell.bias_hh.zero_()

    module.GRU4RecModel._reset_weights_to_compatibility_mode = take
    return module.GRU4Rec(device=CPU, learning_rate=LEARNING_RATE, sample_alpha=SAMPLE_ALPHA, **settings)


def official(path: Path, options: argparse.Namespace, race: Race) -> None:
    module, evaluation = load(path, "gru4rec_pytorch"), load(path, "evaluation")
    if options.accuracy:
        for loss in options.accuracy:
            accuracy(module, evaluation, options, loss)
        return
    watch = Stopwatch()
    module.time = watch
    shapes = [(100, 50, 0), (100, 500, 0), (100, 50, 2048)]
    shapes += [(1000, 50, 0), (1000, 500, 0)] if options.wide else []
    for hidden, lanes, n_sample in shapes:
        what = f"training step, H={hidden} B={lanes}" + (f", {n_sample} negatives" if n_sample else "")
        if not race.wanted(what):
            continue
        overrides = gru4rec(lanes, hidden, n_sample)
        _, data, prepared = ours(options, *overrides)
        train = frame(prepared, "train")
        steps = len(data._windows("train", lanes).schedule.event)

        def mine(overrides: list[str] = overrides, steps: int = steps) -> float:
            model, data, _ = ours(options, *overrides)
            model.bf16 = options.precision == "bf16"
            return lightning(model, data) / steps

        def theirs(
            train: pd.DataFrame = train,
            overrides: list[str] = overrides,
            shape: tuple[int, int, int] = (hidden, lanes, n_sample),
        ) -> float:
            model, _, _ = ours(options, *overrides)
            settings = {"layers": [shape[0]], "batch_size": shape[1], "n_sample": shape[2], "n_epochs": 1}
            peer = make_peer(module, model, train["ItemId"].unique(), **settings)
            count, loss = [0], peer.loss_function

            def counted(*arguments: Any) -> Tensor:
                count[0] += 1
                value: Tensor = loss(*arguments)
                return value

            peer.loss_function = counted
            peer.fit(train)
            return (watch.readings[-1] - watch.readings[-2]) / count[0]

        race.run(what, mine, theirs)
    for n_items, lanes, attempts in ((13_259, 512, 4), (1_000_000, 256, 2)):
        what = f"evaluation of {lanes} events, {n_items:,} items"
        if race.wanted(what):
            evaluate(module, evaluation, race, what, n_items, lanes, attempts)


def evaluate(
    module: ModuleType, evaluation: ModuleType, race: Race, what: str, n_items: int, lanes: int, attempts: int
) -> None:
    """Random weights, the same ones; ``lanes`` sessions of ``attempts`` + 1 events, against the full catalogue."""
    rng = np.random.default_rng(0)
    with initialize_config_module("arnn_lightning.conf", version_base="1.3"):
        config = compose("config", overrides=["data=xing", *gru4rec(lanes, 100, 0)])
    config.model.dims = {"n_items": n_items, "single_sizes": [], "n_binary": 0}
    plain: Any = OmegaConf.to_container(config.model, resolve=True)
    torch.manual_seed(0)
    model = build(plain).eval()
    peer = make_peer(module, model, np.arange(n_items), layers=[100], batch_size=lanes, n_sample=0)
    peer.model = module.GRU4RecModel(n_items, [100], 0.0, 0.0, 0, True).eval()
    peer.model._reset_weights_to_compatibility_mode()
    peer.data_iterator = SimpleNamespace(itemidmap=pd.Series(np.arange(n_items), index=np.arange(n_items)))
    peer.error_during_train = False
    length = attempts + 1
    item, count = rng.integers(0, n_items, lanes * length), np.arange(lanes)
    sessions = Sessions(item, np.arange(0, len(item) + 1, length), count, count)
    events = pd.DataFrame({"SessionId": np.repeat(count, length), "ItemId": item, "Time": np.arange(len(item))})
    found: dict[str, Tensor] = {}

    @torch.no_grad()
    def mine() -> float:
        started = time.perf_counter()
        model._start_evaluation()
        query, target = model.evaluation_step(Windows(sessions, count, lanes, attempts)[(0, 0)])
        counts = model.count_ranks(query, target)
        found["ours"] = rank(counts[:, 0], counts[:, 1], "conservative")
        return (time.perf_counter() - started) / attempts

    def theirs() -> float:
        started = time.perf_counter()
        evaluation.batch_eval(peer, events.copy(), [20], lanes)
        return (time.perf_counter() - started) / attempts

    recorder = Recorder()
    mine()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.batch_eval(peer, events.copy(), [recorder], lanes)
    theirs_ranks = torch.cat(recorder.seen[::2]).double()
    apart = (found["ours"] - theirs_ranks).abs()
    race.run(
        what, mine, theirs, f"{int((apart > 0).sum())} of {len(apart)} ranks differ, by {int(apart.max())} at most"
    )


def accuracy(module: ModuleType, evaluation: ModuleType, options: argparse.Namespace, loss: str) -> None:
    """Recall@20 and MRR@20 of both on the test split, from the same initial weights, after the same epochs."""
    module.IndexedAdagradM.__init__.__defaults__ = (LEARNING_RATE, 0.0, options.peer_eps)
    rows: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    for seed in options.seeds:
        overrides = gru4rec(options.lanes, 100, options.n_sample, loss, options.embedding)
        overrides += [f"model.dropout_hidden={options.dropout}", f"model.optimizer.eps={options.eps}"]
        model, data, prepared = ours(options, *overrides, seed=seed)
        train, test = frame(prepared, "train"), frame(prepared, "test")
        settings = {"layers": [100], "batch_size": options.lanes, "n_sample": options.n_sample}
        settings |= {"loss": loss.replace("_", "-"), "n_epochs": options.epochs, "dropout_p_hidden": options.dropout}
        settings |= {"constrained_embedding": options.embedding == "tied"}
        settings |= {"embedding": 100 if options.embedding == "separate" else 0}
        peer = make_peer(module, model, train["ItemId"].unique(), **settings)
        torch.manual_seed(seed)
        with contextlib.redirect_stdout(io.StringIO()):
            peer.fit(train)
            peer.model.eval()
            recall, mrr = evaluation.batch_eval(peer, test, [20], 256)
        rows["peer"].append((float(recall[20]), float(mrr[20])))
        torch.manual_seed(seed)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                max_epochs=options.epochs,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
            )
            trainer.fit(model, train_dataloaders=data.train_dataloader())
            (metrics,) = trainer.test(model, dataloaders=data.test_dataloader(), verbose=False)
        rows["ours"].append((metrics["test/recall@20"], metrics["test/mrr@20"]))
        print(f"{options.data} {loss} seed {seed}: ours {rows['ours'][-1]}, peer {rows['peer'][-1]}", flush=True)
    difference = np.array(rows["ours"]) - np.array(rows["peer"])
    for name, values in (*rows.items(), ("ours - peer", difference)):
        mean, deviation = np.mean(values, 0), np.std(values, 0, ddof=1 if len(values) > 1 else 0)
        print(
            f"{name:12} Recall@20 {mean[0]:.4f} (sd {deviation[0]:.4f})  MRR@20 {mean[1]:.4f} (sd {deviation[1]:.4f})"
        )


# pyGRU4REC and session-rec


def pygru4rec(path: Path, options: argparse.Namespace, race: Race) -> None:
    module = load(path, "modules.model")
    overrides = ["model=gru4rec", "model/loss=top1", "model.loss.activation=tanh", "model.loss.accidental_hits=keep"]
    overrides += ["model.batch_size=50", "model.n_sample=0", "model.dropout_hidden=0", "model.optimizer.lr=0.01"]
    _, data, prepared = ours(options, *overrides)
    n_items = max(prepared.dims["n_items"], options.catalogue)
    steps = len(data._windows("train", 50).schedule.event)
    events = frame(prepared, "train")
    events = events[events["SessionId"] < options.sessions]
    loader, counted = module.SessionDataLoader, [0]

    class Counting(loader):
        def __iter__(self) -> Iterator[Any]:
            for batch in super().__iter__():
                counted[0] += 1
                yield batch

    module.SessionDataLoader = Counting
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.tsv"
        events.to_csv(file, sep="\t", header=False, index=False)
        dataset = load(path, "modules.data").SessionDataset(file)

    def mine() -> float:
        model, data, _ = ours(options, *overrides)
        return lightning(model, data) / steps

    def theirs() -> float:
        model = module.GRU4REC(n_items, 100, n_items, use_cuda=False, p_dropout_hidden=0, batch_size=50)
        counted[0] = 0
        started = time.perf_counter()
        model.run_epoch(dataset)
        return (time.perf_counter() - started) / counted[0]

    race.run(f"training step, one-hot, tanh, TOP1, H=100 B=50, {n_items:,} items", mine, theirs)


def session_rec(path: Path, options: argparse.Namespace, race: Race) -> None:
    if not hasattr(np, "in1d"):
        np.in1d = np.isin  # noqa: NPY201  # the name when the peer was written
    module = load(path, "algorithms/knn/iknn")
    overrides = ["model=itemknn", "model.neighbours=100", "model.shrinkage=20", "model.alpha=0.5"]
    model, _, prepared = ours(options, *overrides)
    sessions, events = prepared.sessions("train"), frame(prepared, "train")
    items = np.arange(prepared.dims["n_items"])
    asked = prepared.sessions("test").item[: options.predictions]
    peer = module.ItemKNN(n_sims=100, lmbd=20, alpha=0.5)

    def fit() -> float:
        started = time.perf_counter()
        model.count(sessions)
        return time.perf_counter() - started

    def fit_peer() -> float:
        started = time.perf_counter()
        peer.fit(events.copy())
        return time.perf_counter() - started

    def predict() -> float:
        started = time.perf_counter()
        model.score(torch.from_numpy(asked)[:, None])
        return (time.perf_counter() - started) / len(asked)

    def predict_peer() -> float:
        started = time.perf_counter()
        for item in asked:
            peer.predict_next(0, item, items)
        return (time.perf_counter() - started) / len(asked)

    race.run(f"ItemKNN's fit, {len(events):,} events", fit, fit_peer)
    race.run(f"ItemKNN's prediction, {len(items):,} items", predict, predict_peer)


def load(path: Path, name: str) -> ModuleType:
    """A module of the checkout: by file where ``name`` is one, so that its package need not import."""
    if "/" in name:
        spec = importlib.util.spec_from_file_location(Path(name).name, path / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    return importlib.import_module(name)


PEERS = {"GRU4Rec_PyTorch_Official": official, "pyGRU4REC": pygru4rec, "session-rec": session_rec}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--data", default="synthetic")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="contests whose name has this word")
    parser.add_argument("--wide", action="store_true", help="H = 1000 too")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32", help="of our matrix products in training")
    parser.add_argument("--catalogue", type=int, default=0, help="more items than the data has, for pyGRU4REC's race")
    parser.add_argument("--sessions", type=int, default=2_000, help="sessions that pyGRU4REC trains on")
    parser.add_argument("--predictions", type=int, default=200, help="predictions asked of ItemKNN")
    parser.add_argument("--accuracy", nargs="+", choices=["cross_entropy", "bpr_max"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=50)
    parser.add_argument("--n-sample", type=int, default=0)
    parser.add_argument("--embedding", choices=["tied", "separate"], default="tied")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--eps", type=float, default=1e-10, help="of our Adagrad, outside the root")
    parser.add_argument("--peer-eps", type=float, default=1e-6, help="of the official code's, inside the root")
    options = parser.parse_args()
    path = options.path.absolute()
    name = recognise(path)
    torch.set_num_threads(options.threads[0])
    race = Race(options, name)
    started = header()
    PEERS[name](path, options, race)
    if race.table.row_count:
        Console().print(race.table)
    print(started)


if __name__ == "__main__":
    main()

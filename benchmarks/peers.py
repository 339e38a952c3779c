"""Compares this project with public implementations of the same models, on the same prepared data, at equal settings.

    python benchmarks/peers.py PATH [--data synthetic] [--rounds 3] [--threads 1 2] [--wide] [--only WORD]
    python benchmarks/peers.py PATH --profile --threads 1 --warmup-epochs 0 --overrides data.generate.events=100000
    python benchmarks/peers.py PATH --accuracy cross_entropy bpr_max [--epochs 3] [--seeds 1 2 3]

PATH is a checkout of one of the three, recognised by its files; none of their code is part of this project.

- hidasib/GRU4Rec_PyTorch_Official: mini-batches of training (cross-entropy, tied vectors, H = 100), the ranks of an
  evaluation and their speed; with ``--profile``, the time of each operator in a training step; with ``--accuracy``,
  Recall@20 and MRR@20 after the same epochs from the same initial weights. Its Adagrad adds eps = 1e-6 inside the root,
  ours 1e-10 outside: ``--peer-eps 1e-20`` makes the two the same.
- yhs968/pyGRU4REC: mini-batches of the 2016 model (one-hot, tanh, TOP1), B = 50, as its ``run_epoch`` runs them,
  metrics included.
- rn5l/session-rec: fit and predictions of the models that count, and Recall@20 and MRR@20 of both, ours first.

Ours trains through Lightning with its logger, as users run it. Rounds are interleaved; each side is timed with each
number of threads, and its best median counts. Beside the official code the last epoch of each training is timed, after
``--warmup-epochs`` on both sides, so that a compiled step (``--overrides performance.compile=true``) is timed without
its compilation. Needs pandas, for the peers.
"""

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from arnn_lightning.evaluation.metrics import rank
from arnn_lightning.loading.datasets import SessionParallelDataset
from arnn_lightning.models import GRU4REC
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.preprocessing.sessions import Sessions
from arnn_lightning.training.stage import evaluate_model
from training import lightning
from workloads import Contestant, Workload, interleave, machine, make_model, make_workload, timed

CPU = torch.device("cpu")
FILES = {
    "GRU4Rec_PyTorch_Official": ("gru4rec_pytorch.py", "evaluation.py"),
    "pyGRU4REC": ("modules/model.py", "modules/data.py"),
    "session-rec": ("algorithms/knn/iknn.py",),
}
LEARNING_RATE, SAMPLE_ALPHA = 0.05, 0.5
METRICS = ["recall@20", "mrr@20"]
N_PASSES = 5
N_OPERATORS = 20
LAMBDAS = ("lambda_spw", "lambda_snh", "lambda_inh")
ALLOCATOR = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


def recognise(path: Path) -> str:
    """Which peer ``path`` is a checkout of."""
    for name, files in FILES.items():
        if all((path / file).is_file() for file in files):
            return name
    raise SystemExit(f"{path}: not a checkout of {', '.join(FILES)}")


def load(path: Path, name: str) -> ModuleType:
    """A module of the checkout; a name with slashes is a file, loaded without its package."""
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


def frame(prepared: PreparedDataset, split: str, unix_time: bool = False) -> pd.DataFrame:
    """A split in the peers' columns; times are row numbers, so that sorting changes nothing, or seconds."""
    table = pl.read_parquet(prepared.folder / f"{split}.parquet")
    time = table["time"] if unix_time else pl.Series(range(table.height))
    columns = {"SessionId": table["session"], "ItemId": table["item"], "Time": time}
    return pd.DataFrame({name: column.to_numpy().astype(np.int64) for name, column in columns.items()})


class Race:
    """Times both sides, interleaved, with each number of threads; one table row per measurement."""

    def __init__(self, options: argparse.Namespace, peer: str) -> None:
        self.options = options
        title = f"{peer}, data={options.data}: medians of {options.rounds} interleaved rounds"
        self.table = Table(title=f"{title}, training after {options.warmup_epochs} epoch(s) on each side")
        for column in ("what", "ours", "peer", "ratio", "threads", "remark"):
            self.table.add_column(column, justify="right" if column in ("ours", "peer", "ratio") else "left")

    def includes(self, what: str) -> bool:
        return self.options.only in what

    def workload(self, *overrides: str, min_items: int = 0) -> Workload:
        """A new model of ours with its data."""
        settings = [f"data={self.options.data}", "logger=csv", *self.options.overrides, *overrides]
        return make_workload(*settings, min_items=min_items)

    def profile(self, what: str, sides: Mapping[str, Callable[[], int]]) -> None:
        """Prints the operators that take longest, in microseconds and calls per step; each side returns its steps.

        An operator's time is without that of the operators that it calls; torch.profiler itself adds to each call.
        """
        found: dict[str, dict[str, tuple[float, float]]] = {}
        for side, train in sides.items():
            torch.set_num_threads(self.options.threads[0])
            with contextlib.redirect_stdout(io.StringIO()), profile(activities=[ProfilerActivity.CPU]) as profiler:
                n_steps = train()
            found[side] = {
                event.key.removeprefix("aten::"): (event.self_cpu_time_total / n_steps, event.count / n_steps)
                for event in profiler.key_averages()
                if event.key.startswith("aten::")
            }
        names = {name for operators in found.values() for name in operators}
        by_time = sorted(names, key=lambda name: -sum(found[side].get(name, (0, 0))[0] for side in found))
        rows = {name: [name] for name in by_time[:N_OPERATORS]} | {"all others": by_time[N_OPERATORS:], "all": by_time}
        table = Table("operator", *(f"{side}: {part}" for side in found for part in ("us", "calls")), title=what)
        for label, group in rows.items():
            sums = [sum(found[side].get(name, (0, 0))[part] for name in group) for side in found for part in (0, 1)]
            table.add_row(label, *(f"{value:.1f}" for value in sums))
        Console().print(table)

    def run(self, what: str, ours: Contestant, peer: Contestant, remark: str = "") -> None:
        """Both return seconds per unit of ``what``."""
        sides = {(side, n): with_threads(n, side) for side in (ours, peer) for n in self.options.threads}
        seconds = interleave(sides, self.options.rounds, n_warmup=0)
        (our_seconds, our_threads), (peer_seconds, peer_threads) = (
            min((statistics.median(seconds[side, n]), n) for n in self.options.threads) for side in (ours, peer)
        )
        times = (f"{1e3 * our_seconds:.3f} ms", f"{1e3 * peer_seconds:.3f} ms", f"{peer_seconds / our_seconds:.2f}")
        self.table.add_row(what, *times, f"{our_threads}, {peer_threads}", remark)
        print(f"{what}: {times[-1]}", file=sys.stderr)


def per_unit(contestant: Contestant, n_units: int) -> Contestant:
    return lambda: contestant() / n_units


def with_threads(n_threads: int, contestant: Contestant) -> Contestant:
    def run() -> float:
        torch.set_num_threads(n_threads)
        with contextlib.redirect_stdout(io.StringIO()):
            return contestant()

    return run


# The official GRU4Rec


class Timestamps:
    """Replaces the peer's module ``time`` and records its readings: the start and the end of each epoch."""

    def __init__(self) -> None:
        self.readings: list[float] = []

    def time(self) -> float:
        self.readings.append(time.perf_counter())
        return self.readings[-1]


class RankRecorder:
    """A cutoff for the peer's evaluation that keeps the ranks it is compared with."""

    def __init__(self) -> None:
        self.ranks: list[Tensor] = []

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ranks, recorder = args
        recorder.ranks.append(ranks)
        return function(ranks, 20)


def official_settings(
    batch_size: int, hidden: int, n_sample: int, loss: str = "cross_entropy", embedding: str = "tied"
) -> list[str]:
    """The official code's settings in our config: accidental hits count, no dropout, no momentum."""
    values = {"batch_size": batch_size, "hidden_size": hidden, "n_sample": n_sample, "sample_alpha": SAMPLE_ALPHA}
    values |= {"embedding": embedding, "dropout_hidden": 0, "optimizer.lr": LEARNING_RATE, "optimizer.momentum": 0}
    values |= {"loss.accidental_hits": "keep"}
    return ["model=gru4rec", f"model/loss={loss}", *(f"model.{key}={value}" for key, value in values.items())]


def make_peer(module: ModuleType, model: GRU4REC, ids: np.ndarray, **settings: Any) -> Any:
    """The peer with our initial weights in place of those that it would sample; ``ids``: its items in its order."""

    def copy_weights(peer: Any) -> None:
        (inputs,), (cell,), (peer_cell,) = model.encoder.inputs, model.encoder.cells, peer.G
        with torch.no_grad():
            peer.Wy.weight.copy_(model.scorer.items.weight[ids])
            peer.By.weight.zero_()
            if not peer.constrained_embedding:
                peer.E.weight.copy_(inputs.embedding.weight[ids])
            peer_cell.weight_ih.copy_(inputs.linear.weight)
            peer_cell.weight_hh.copy_(cell.weight)
            peer_cell.bias_ih.zero_()
            peer_cell.bias_hh.zero_()

    module.GRU4RecModel._reset_weights_to_compatibility_mode = copy_weights
    return module.GRU4Rec(device=CPU, learning_rate=LEARNING_RATE, sample_alpha=SAMPLE_ALPHA, **settings)


def official(path: Path, race: Race) -> None:
    module, evaluation = load(path, "gru4rec_pytorch"), load(path, "evaluation")
    if race.options.accuracy:
        for loss in race.options.accuracy:
            compare_accuracy(module, evaluation, race, loss)
        return
    shapes = [(100, 50, 0), (100, 500, 0), (100, 50, 2048)]
    for hidden, batch_size, n_sample in shapes + [(1000, 50, 0), (1000, 500, 0)] * race.options.wide:
        what = f"training step, H={hidden} B={batch_size}" + (f", {n_sample} negatives" if n_sample else "")
        if race.includes(what):
            race_training(module, race, what, hidden, batch_size, n_sample)
    if race.options.profile:
        return
    for n_items, batch_size, n_steps in ((13_259, 512, 4), (1_000_000, 256, 2)):
        what = f"evaluation of {batch_size} events, {n_items:,} items"
        if race.includes(what):
            race_evaluation(module, evaluation, race, what, n_items, batch_size, n_steps)


def race_training(module: ModuleType, race: Race, what: str, hidden: int, batch_size: int, n_sample: int) -> None:
    new = partial(race.workload, *official_settings(batch_size, hidden, n_sample))
    workload = new()
    train = frame(workload.prepared, "train")
    module.time = timestamps = Timestamps()
    n_epochs = race.options.warmup_epochs + 1

    def ours() -> float:
        return lightning(new(f"trainer.precision={race.options.precision}"), n_epochs)

    def train_ours() -> int:
        ours()
        return n_epochs * workload.n_steps

    def train_peer() -> int:
        settings = {"layers": [hidden], "batch_size": batch_size, "n_sample": n_sample, "n_epochs": n_epochs}
        gru = make_peer(module, new().model, train["ItemId"].unique(), **settings)
        n_steps, loss = 0, gru.loss_function

        def counted_loss(*arguments: Any) -> Tensor:
            nonlocal n_steps
            n_steps += 1
            return loss(*arguments)

        gru.loss_function = counted_loss
        gru.fit(train)
        return n_steps

    def peer() -> float:
        n_steps = train_peer()
        return (timestamps.readings[-1] - timestamps.readings[-2]) / (n_steps / n_epochs)

    if race.options.profile:
        race.profile(what, {"ours": train_ours, "peer": train_peer})
    else:
        race.run(what, per_unit(ours, workload.n_steps), peer)


def race_evaluation(
    module: ModuleType, evaluation: ModuleType, race: Race, what: str, n_items: int, batch_size: int, n_steps: int
) -> None:
    """The same random weights; ``batch_size`` sessions of ``n_steps`` + 1 events against the full catalogue."""
    torch.manual_seed(0)
    model = make_model("gru4rec", *official_settings(batch_size, 100, 0), n_items=n_items, n_users=1).eval()
    gru = make_peer(module, model, np.arange(n_items), layers=[100], batch_size=batch_size, n_sample=0)
    gru.model = module.GRU4RecModel(n_items, [100], 0.0, 0.0, 0, True).eval()
    gru.model._reset_weights_to_compatibility_mode()
    gru.data_iterator = SimpleNamespace(itemidmap=pd.Series(np.arange(n_items), index=np.arange(n_items)))
    gru.error_during_train = False
    length, session = n_steps + 1, np.arange(batch_size)
    item = np.random.default_rng(0).integers(0, n_items, batch_size * length)
    sessions = Sessions(item, np.arange(0, len(item) + 1, length), session, session, session)
    chunk = SessionParallelDataset(sessions, batch_size, n_steps)[0, 0]
    events = pd.DataFrame({"SessionId": np.repeat(session, length), "ItemId": item, "Time": np.arange(len(item))})

    @torch.no_grad()
    def ours() -> Tensor:
        model.on_test_epoch_start()
        return model.count_ranks(*model.encode_chunk(chunk))

    def peer(cutoff: Any = 20) -> None:
        evaluation.batch_eval(gru, events.copy(), [cutoff], batch_size)

    recorder, counts = RankRecorder(), ours()
    with contextlib.redirect_stdout(io.StringIO()):
        peer(recorder)
    peer_ranks = torch.cat(recorder.ranks[::2]).numpy()  # each is compared twice, for Recall and for MRR
    difference = abs(rank(*counts.numpy().T, "conservative") - peer_ranks)
    remark = f"{int((difference > 0).sum())} of {len(difference)} ranks differ, by {int(difference.max())} at most"
    race.run(what, per_unit(timed(ours), n_steps), per_unit(timed(peer), n_steps), remark)


def compare_accuracy(module: ModuleType, evaluation: ModuleType, race: Race, loss: str) -> None:
    """Prints Recall@20 and MRR@20 of both on the test split, from the same initial weights, after the same epochs."""
    options = race.options
    module.IndexedAdagradM.__init__.__defaults__ = (LEARNING_RATE, 0.0, options.peer_eps)
    results: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    for seed in options.seeds:
        overrides = official_settings(options.batch_size, 100, options.n_sample, loss, options.embedding)
        overrides += [f"model.dropout_hidden={options.dropout}", f"model.optimizer.eps={options.eps}", f"seed={seed}"]
        workload = race.workload(*overrides)
        train, test = (frame(workload.prepared, split) for split in ("train", "test"))
        settings = {"layers": [100], "batch_size": options.batch_size, "n_sample": options.n_sample}
        settings |= {"loss": loss.replace("_", "-"), "n_epochs": options.epochs, "dropout_p_hidden": options.dropout}
        settings |= {"constrained_embedding": options.embedding == "tied"}
        settings |= {"embedding": 100 if options.embedding == "separate" else 0}
        gru = make_peer(module, workload.model, train["ItemId"].unique(), **settings)
        torch.manual_seed(seed)
        with contextlib.redirect_stdout(io.StringIO()):
            gru.fit(train)
            gru.model.eval()
            # The peer needs as many sessions as batch slots.
            recall, mrr = evaluation.batch_eval(gru, test, [20], min(256, test["SessionId"].nunique()))
        results["peer"].append((float(recall[20]), float(mrr[20])))
        torch.manual_seed(seed)
        lightning(workload, options.epochs)
        metrics = evaluate_model(workload.model, workload.prepared, workload.config).metrics(METRICS)
        results["ours"].append((metrics["recall@20"], metrics["mrr@20"]))
        last = ", ".join(f"{name} {values[-1]}" for name, values in results.items())
        print(f"{options.data} {loss} seed {seed}: {last}", flush=True)
    difference = np.array(results["ours"]) - np.array(results["peer"])
    for name, values in (*results.items(), ("ours - peer", difference)):
        (recall, mrr), (recall_sd, mrr_sd) = np.mean(values, 0), np.std(values, 0, ddof=len(values) > 1)
        print(f"{name:12} Recall@20 {recall:.4f} (sd {recall_sd:.4f})  MRR@20 {mrr:.4f} (sd {mrr_sd:.4f})")


# pyGRU4REC and session-rec


def pygru4rec(path: Path, race: Race) -> None:
    module = load(path, "modules.model")
    overrides = ["model=gru4rec", "model/loss=top1", "model.loss.activation=tanh", "model.loss.accidental_hits=keep"]
    overrides += ["model.batch_size=50", "model.n_sample=0", "model.dropout_hidden=0", "model.optimizer.lr=0.01"]
    new = partial(race.workload, *overrides, min_items=race.options.catalogue)
    workload = new()
    n_items = workload.model.n_items
    events = frame(workload.prepared, "train")
    events = events[events["SessionId"] < race.options.sessions]
    loader, n_steps = module.SessionDataLoader, 0

    class CountingLoader(loader):  # type: ignore[misc, valid-type]
        def __iter__(self) -> Iterator[Any]:
            nonlocal n_steps
            for batch in super().__iter__():
                n_steps += 1
                yield batch

    module.SessionDataLoader = CountingLoader
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.tsv"
        events.to_csv(file, sep="\t", header=False, index=False)
        dataset = load(path, "modules.data").SessionDataset(file)

    def peer() -> float:
        nonlocal n_steps
        model = module.GRU4REC(n_items, 100, n_items, use_cuda=False, p_dropout_hidden=0, batch_size=50)
        n_steps = 0
        return timed(lambda: model.run_epoch(dataset))() / n_steps

    what = f"training step, one-hot, tanh, TOP1, H=100 B=50, {n_items:,} items"
    race.run(what, per_unit(lambda: lightning(new()), workload.n_steps), peer)


def search_settings(model: DictConfig, *lambdas: str) -> dict[str, Any]:
    names = {"k": "neighbours", "sample_size": "sample_size"} | {name: name for name in lambdas}
    return {peer_name: model[name] for peer_name, name in names.items()}


# The file and the class of each of its models, and its settings that are equal to those of our config.
COUNTED: dict[str, tuple[str, str, Callable[[DictConfig], dict[str, Any]]]] = {
    "itemknn": (
        "knn/iknn",
        "ItemKNN",
        lambda model: {"n_sims": model.neighbours, "lmbd": model.shrinkage, "alpha": model.alpha},
    ),
    "sr": (
        "baselines/sr",
        "SequentialRules",
        lambda model: {"steps": model.steps, "weighting": model.weighting, "pruning": model.neighbours},
    ),
    # All items get their popularity, where the peer's default leaves those below the 100 most popular ones at 0.
    "spop": ("baselines/spop", "SessionPop", lambda model: {"top_n": sys.maxsize}),
    "sknn": ("knn/sknn", "ContextKNN", lambda model: search_settings(model) | {"similarity": "cosine"}),
    "vsknn": (
        "knn/vsknn",
        "VMContextKNN",
        lambda model: (
            search_settings(model, "weighting", "weighting_score", "idf_weighting")
            | {"similarity": "vec" if model.similarity == "dot" else model.similarity}
        ),
    ),
    "stan": ("knn/stan", "STAN", lambda model: search_settings(model, *LAMBDAS)),
    "vstan": ("knn/vstan", "VSKNN_STAN", lambda model: search_settings(model, *LAMBDAS, "lambda_ipw", "lambda_idf")),
}


def session_rec(path: Path, race: Race) -> None:
    if not hasattr(np, "in1d"):
        np.in1d = np.isin  # noqa: NPY201  # the name when the peer was written
    for package in ("psutil", "pympler"):  # with which it measures memory
        sys.modules.setdefault(package, SimpleNamespace(asizeof=None))  # type: ignore[arg-type]
    for name, (file, class_name, settings) in COUNTED.items():
        if race.includes(name):
            race_counted(race, name, getattr(load(path, f"algorithms/{file}"), class_name), settings)


def race_counted(race: Race, name: str, peer_class: type, settings: Callable[[DictConfig], dict[str, Any]]) -> None:
    """Fit and predictions, and Recall@20 and MRR@20 of both sides on the whole test split."""
    workload = race.workload(f"model={name}", "~tuned@model")  # the values of conf/model are session-rec's
    model, prepared = workload.model, workload.prepared
    train, test = (frame(prepared, split, unix_time=True) for split in ("train", "test"))
    sessions, items = prepared.sessions("train"), np.arange(model.n_items)

    def fit_peer() -> Any:
        peer = peer_class(**settings(workload.config.model))
        peer.fit(train.copy())
        if race.options.recent_first and hasattr(peer, "calc_similarity"):
            similarities, time = peer.calc_similarity, peer.session_time
            # (session, similarity) pairs, which the peer then sorts by similarity and leaves in order where it is equal
            peer.calc_similarity = lambda *inputs: sorted(
                similarities(*inputs), key=lambda pair: (time[pair[0]], pair[0]), reverse=True
            )
        return peer

    fit = timed(lambda: model.fit(sessions))
    race.run(f"{name}: fit, {len(train):,} events", fit, timed(fit_peer))
    model.fit(sessions)
    peer = fit_peer()

    reads_time = "timestamp" in inspect.signature(peer.predict_next).parameters

    def predict(session: int, item: int, time: int) -> Any:
        return peer.predict_next(session, item, items, **({"timestamp": time} if reads_time else {}))

    events = test.to_numpy()
    is_input = np.append(events[1:, 0] == events[:-1, 0], False)
    ranks = []
    for event, target in zip(events[is_input], events[np.flatnonzero(is_input) + 1, 1], strict=True):
        scores = predict(*event).to_numpy()
        ranks.append((scores >= scores[target]).sum())
    hits = np.array(ranks) <= 20
    ours = evaluate_model(model, prepared, workload.config).metrics(METRICS)
    recall, mrr = hits.mean(), (hits / ranks).mean()
    remark = f"Recall@20 {ours['recall@20']:.4f}, {recall:.4f}; MRR@20 {ours['mrr@20']:.4f}, {mrr:.4f}"

    # Both score the same sessions, as many as have the wanted number of predictions; ours several times, as an
    # evaluation does not start anew after a few thousandths of a second either.
    split = prepared.sessions("test")
    n_sessions = int(np.searchsorted(split.offset - np.arange(len(split.offset)), race.options.predictions))
    part = Sessions(split.item, split.offset[: n_sessions + 1], split.session, split.user, split.time)
    chunks = SessionParallelDataset(part, workload.config.evaluation.batch_size, steps_per_chunk=50)
    inputs = events[: part.offset[-1]][is_input[: part.offset[-1]]]

    @torch.no_grad()
    def score() -> None:
        for _ in range(N_PASSES):
            model.on_test_epoch_start()
            for chunk in range(len(chunks)):
                for query_MH in model.encode_chunk(chunks[0, chunk])[0].split(512):
                    model.score(query_MH)

    def score_peer() -> None:
        for event in inputs:
            predict(*event)

    predictions = per_unit(timed(score), N_PASSES * len(inputs)), per_unit(timed(score_peer), len(inputs))
    race.run(f"{name}: prediction, {len(items):,} items", *predictions, remark)


PEERS: dict[str, Callable[[Path, Race], None]] = {
    "GRU4Rec_PyTorch_Official": official,
    "pyGRU4REC": pygru4rec,
    "session-rec": session_rec,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--data", default="synthetic")
    parser.add_argument("--overrides", nargs="*", default=[], help="of our config, e.g. data.generate.events=20000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup-epochs", type=int, default=1, help="before the timed one, beside the official code")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="measurements whose name contains this")
    parser.add_argument("--wide", action="store_true", help="H = 1000 too")
    parser.add_argument("--precision", default="32-true", help="trainer.precision of our training")
    parser.add_argument("--catalogue", type=int, default=0, help="more items than the data has, for pyGRU4REC's race")
    parser.add_argument("--sessions", type=int, default=2_000, help="sessions that pyGRU4REC trains on")
    parser.add_argument("--predictions", type=int, default=2000, help="timed of each of session-rec's models")
    parser.add_argument("--recent-first", action="store_true", help="session-rec's equally similar sessions as in ours")
    parser.add_argument("--profile", action="store_true", help="operators in a step, beside the official code")
    parser.add_argument("--accuracy", nargs="+", choices=["cross_entropy", "bpr_max"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--n-sample", type=int, default=0)
    parser.add_argument("--embedding", choices=["tied", "separate"], default="tied")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--eps", type=float, default=1e-10, help="of our Adagrad, outside the root")
    parser.add_argument("--peer-eps", type=float, default=1e-6, help="of the official code's, inside the root")
    options = parser.parse_args()
    path = options.path.absolute()
    name = recognise(path)
    torch.set_num_threads(options.threads[0])
    allocator = " ".join(f"{variable}={os.environ[variable]}" for variable in ALLOCATOR if os.environ.get(variable))
    header = f"{machine()}; numpy {np.__version__}, pandas {pd.__version__}; allocator {allocator or 'unchanged'}"
    race = Race(options, name)
    PEERS[name](path, race)
    if race.table.row_count:
        Console().print(race.table)
    print(header)


if __name__ == "__main__":
    main()

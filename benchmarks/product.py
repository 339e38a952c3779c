"""The PNN's product layer against all pairs gathered naively, and ARNN's merge stage against the live PNN.

    python benchmarks/product.py [--rounds 7] [--fields 368] [--threads 2]

Forward and backward of 368 fields x 10 -> 100 (355 two-valued fields, 12 single-valued ones, the previous item; four
two-valued fields present per user), interleaved, medians, and the memory that a pass adds, in a process of its own.
Then a whole training step (loss, backward, optimizer) of PNN and of ARNN's merge stage over the same 368 fields: the
merge in its first epoch, where the frozen parts speak, and in later ones, where what they said is kept.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from torch import Tensor, nn

from arnn_lightning.batch import Contexts, TrainingWindow
from arnn_lightning.loading.datamodule import TrainingWindows, Windows
from arnn_lightning.models.base import SessionModel
from arnn_lightning.nn.product import ProductLayer
from arnn_lightning.preprocessing.sessions import Sessions
from arnn_lightning.training.checkpoint import build

SINGLE, EMBEDDING, HIDDEN, PRESENT = 12, 10, 100, 4
ITEMS, USERS = 13_259, 5_000


class NaivePairs(nn.Module):
    """FC([z; p]) with every pair of field embeddings gathered and multiplied."""

    def __init__(self, n_binary: int) -> None:
        super().__init__()
        fields = n_binary + SINGLE + 1
        self.values = nn.Parameter(torch.randn(n_binary, 2, EMBEDDING))
        self.first, self.second = torch.triu_indices(fields, fields, 1)
        self.layer = nn.Linear(fields * EMBEDDING + len(self.first), HIDDEN)

    def forward(self, active_BA: Tensor, single_BSD: Tensor, item_BD: Tensor) -> Tensor:
        M = len(self.values)
        present = torch.zeros(len(active_BA), M + 1, dtype=torch.int64)
        present.scatter_(1, torch.where(active_BA < 0, M, active_BA), 1)
        value = self.values[torch.arange(M), present[:, :M]]
        field = torch.cat([value, single_BSD, item_BD[:, None]], 1)
        product = (field[:, self.first] * field[:, self.second]).sum(2)
        return self.layer(torch.cat([field.flatten(1), product], 1))


def layer(name: str, n_binary: int) -> nn.Module:
    if name == "naive":
        return NaivePairs(n_binary)
    return ProductLayer(n_binary, SINGLE, EMBEDDING, HIDDEN, method=name)


def one_pass(module: nn.Module, n_binary: int, lanes: int) -> Callable[[], None]:
    active = torch.rand(lanes, n_binary).argsort(1)[:, :PRESENT]
    single = torch.randn(lanes, SINGLE, EMBEDDING, requires_grad=True)
    item = torch.randn(lanes, EMBEDDING, requires_grad=True)

    def run() -> None:
        module(active, single, item).sum().backward()
        module.zero_grad()
        single.grad = item.grad = None

    return run


def memory(name: str, n_binary: int, lanes: int) -> float:
    """MiB that one pass adds to the peak, in this process."""
    run = one_pass(layer(name, n_binary), n_binary, lanes)
    before = peak()
    run()
    return peak() - before


def peak() -> float:
    """The process's peak memory in MiB (Linux)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def interleaved(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def model(name: str, n_binary: int, *overrides: str, items: int = ITEMS, users: int = USERS) -> SessionModel:
    """A model of XING's shape, or with ``n_binary`` 0 of TMALL's, whose user id is a field."""
    with initialize_config_module("arnn_lightning.conf", version_base="1.3"):
        config = compose("config", overrides=[f"model={name}", "data=xing", *overrides])
    sizes = [20] * SINGLE if n_binary else [users, 9, 3]
    config.model.dims = {"n_items": items, "single_sizes": sizes, "n_binary": n_binary}
    plain: Any = OmegaConf.to_container(config.model, resolve=True)
    made = build(plain)
    rng = np.random.default_rng(0)
    active = rng.random((users + 1, n_binary)).argsort(1)[:, :PRESENT] if n_binary else np.full((users + 1, 1), -1)
    single = rng.integers(0, sizes, (users + 1, len(sizes)))
    made.set_contexts(Contexts(torch.from_numpy(single), torch.from_numpy(active.copy())))
    made.assemble()
    return made.train()


def random_window(lanes: int, items: int, users: int, steps: int) -> TrainingWindow:
    """``steps`` mini-batches of random events, every lane alive."""
    rng = np.random.default_rng(1)
    length, count = steps + 1, lanes
    sessions = Sessions(
        item=rng.integers(0, items, length * count),
        offset=np.arange(0, length * count + 1, length),
        session=np.arange(count),
        user=rng.integers(0, users, count),
    )
    windows = Windows(sessions, sessions.user, lanes, steps)
    return TrainingWindows(windows, items, lanes, 0, 0.0, False, False, 1)[(0, 0)]


def training_step(made: SessionModel, lanes: int, items: int = ITEMS, users: int = USERS) -> Callable[[], None]:
    """Ten mini-batches of training."""
    batch = random_window(lanes, items, users, 10)
    made.assemble()  # forgets what ARNN's parts said of another window
    optimizer = made.configure_optimizers()

    def run() -> None:
        state = made.initial_state(lanes)
        for k in range(10):
            loss, state = made.step_loss(batch, k, state)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fields", type=int, default=368)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", nargs=2, metavar=("NAME", "LANES"), help="print one pass's memory and end")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    n_binary = options.fields - SINGLE - 1
    if options.memory:
        print(memory(options.memory[0], n_binary, int(options.memory[1])))
        return
    machine = f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {options.threads} thread(s)"
    print(f"{machine}; {options.fields} fields x {EMBEDDING} -> {HIDDEN}, forward + backward")
    for lanes in (50, 500):
        names = ("naive", "gram", "closed", "auto")
        runs = {name: one_pass(layer(name, n_binary), n_binary, lanes) for name in names}
        times = interleaved(runs, options.rounds if lanes == 50 else max(2, options.rounds // 2))
        for name, milliseconds in times.items():
            command = [sys.executable, __file__, "--memory", name, str(lanes), "--fields", str(options.fields)]
            mib = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            ratio = times["naive"] / milliseconds
            print(f"B = {lanes:3}  {name:7} {milliseconds:8.1f} ms  {ratio:6.1f} x naive  {mib:7.0f} MiB added")
    merge = {"merge, first epoch": model("arnn", n_binary, "performance.cache_mb=0"), "merge": model("arnn", n_binary)}
    live = {f"live PNN ({way})": model("pnn", n_binary, f"model.product_method={way}") for way in ("closed", "gram")}
    for lanes in (50, 500):
        runs = {name: training_step(made, lanes) for name, made in (merge | live).items()}
        times = {name: value / 10 for name, value in interleaved(runs, 5).items()}
        print(f"B = {lanes:3}  training step of ARNN's merge {times['merge']:.2f} ms")
        for name in list(times)[:1] + list(live):
            print(f"         {name} {times[name]:.2f} ms: {times[name] / times['merge']:.1f} times the merge")


if __name__ == "__main__":
    main()

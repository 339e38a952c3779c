"""The PNN's product layer against all pairs gathered naively, and ARNN's merging stage against the live PNN.

    python benchmarks/product.py [--rounds 7] [--fields 368] [--threads 2] [--quick]

Forward and backward of 368 fields x 10 -> 100 (355 binary fields, 12 single-valued ones, the previous item; four
binary fields present per user), interleaved, medians, and the memory that a pass adds, in a separate process.
Then a whole training step (loss, backward, optimizer) of PNN and of ARNN's merging stage over the same 368 fields: in
its first epoch, which computes the outputs of the frozen encoders, and in later ones, which read them from the cache.

B batch slots; M binary, S single-valued fields; A binary fields present; D embedding.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from arnn_lightning.nn.product import Method, ProductLayer
from workloads import (
    PRESENT,
    SINGLE,
    STEPS,
    chunk_training,
    machine,
    make_model,
    make_parser,
    median_ms,
    parse,
)

EMBEDDING, HIDDEN = 10, 100
METHODS: tuple[Method, ...] = ("gram", "closed", "auto")


class NaivePairs(nn.Module):
    """FC([z; p]) with every pair of field embeddings gathered and multiplied."""

    def __init__(self, n_binary: int) -> None:
        super().__init__()
        fields = n_binary + SINGLE + 1
        self.values = nn.Parameter(torch.randn(n_binary, 2, EMBEDDING))
        self.first, self.second = torch.triu_indices(fields, fields, 1)
        self.layer = nn.Linear(fields * EMBEDDING + len(self.first), HIDDEN)

    def forward(self, active_BA: Tensor, single_BSD: Tensor, item_BD1: Tensor) -> Tensor:
        M = len(self.values)
        present_BM = torch.zeros(len(active_BA), M + 1, dtype=torch.int64)
        present_BM.scatter_(1, torch.where(active_BA < 0, M, active_BA), 1)
        value_BMD = self.values[torch.arange(M), present_BM[:, :M]]
        field_BFD = torch.cat([value_BMD, single_BSD, item_BD1.transpose(1, 2)], 1)
        product_BP = (field_BFD[:, self.first] * field_BFD[:, self.second]).sum(2)
        return self.layer(torch.cat([field_BFD.flatten(1), product_BP], 1))


def layer_pass(method: Method | None, n_binary: int, batch_size: int) -> Callable[[], None]:
    """Forward and backward of a product layer; ``method`` None is the naive one."""
    layer = ProductLayer(n_binary, SINGLE, 1, EMBEDDING, HIDDEN, method=method) if method else NaivePairs(n_binary)
    active_BA = torch.rand(batch_size, n_binary).argsort(1)[:, :PRESENT]
    single_BSD = torch.randn(batch_size, SINGLE, EMBEDDING, requires_grad=True)
    item_BD1 = torch.randn(batch_size, EMBEDDING, 1, requires_grad=True)

    def run() -> None:
        layer(active_BA, single_BSD, item_BD1).sum().backward()
        layer.zero_grad()
        single_BSD.grad = item_BD1.grad = None

    return run


def added_memory(method: Method | None, n_binary: int, batch_size: int) -> float:
    """MiB that one pass adds to the peak of this process."""
    run = layer_pass(method, n_binary, batch_size)
    before = peak_memory()
    run()
    return peak_memory() - before


def measured_apart(arguments: list[str]) -> float:
    """What this script prints in a separate process, whose allocator holds no memory of other passes."""
    command = [sys.executable, __file__, *arguments]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_memory() -> float:
    """Peak memory of this process in MiB (Linux)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=7, threads=2)
    parser.add_argument("--fields", type=int, default=368)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--memory-of", choices=["naive", *METHODS], help="print the memory of one pass in MiB and exit")
    options = parse(parser, arguments, fields=20, batch_size=[4])
    n_binary = options.fields - SINGLE - 1
    methods: dict[str, Method | None] = {"naive": None, **{method: method for method in METHODS}}
    if options.memory_of:
        print(added_memory(methods[options.memory_of], n_binary, *options.batch_size))
        return
    print(f"{machine()}; {options.fields} fields x {EMBEDDING} -> {HIDDEN}, forward + backward")
    for batch_size in options.batch_size:
        passes = {name: layer_pass(method, n_binary, batch_size) for name, method in methods.items()}
        times = median_ms(passes, options.rounds if batch_size <= 50 else max(2, options.rounds // 2))
        for name, ms in times.items():
            settings = ["--memory-of", name, "--batch-size", str(batch_size), "--fields", str(options.fields)]
            memory = "" if options.quick else f"{measured_apart(settings):7.0f} MiB added"
            print(f"B = {batch_size:3}  {name:7} {ms:8.1f} ms  {times['naive'] / ms:6.1f} x naive  {memory}")
    models = {
        "merging stage": make_model("arnn", n_binary=n_binary),
        "merging stage, first epoch": make_model("arnn", "performance.cache_mb=0", n_binary=n_binary),
    }
    for method in ("closed", "gram"):
        models[f"live PNN ({method})"] = make_model("pnn", f"model.product_method={method}", n_binary=n_binary)
    for batch_size in options.batch_size:
        times = median_ms({name: chunk_training(model, batch_size) for name, model in models.items()}, options.rounds)
        merge = times["merging stage"]
        for name, ms in times.items():
            print(f"B = {batch_size:3}  {name:27} {ms / STEPS:6.2f} ms a step, {ms / merge:5.1f} x the merging stage")


if __name__ == "__main__":
    main()

"""[mini-batches/s | events/s] of training on a CUDA device: is the step launch-bound, and what do larger steps cost?

    python benchmarks/gpu.py [--rounds 5] [--batch-size 32 80 256] [--negatives 0 2048] [--hidden 100] [--quick]
    python benchmarks/gpu.py --models gru4rec pnn arnn --modes eager compiled graph --device cuda

GRU4REC (cross-entropy and tied vectors, the official code's defaults), PNN (368 fields) and ARNN's merging stage over
them: whole training steps in chunks of 50, without a host sync inside a chunk.

- eager: as configured by default.
- compiled: `performance.compile=true`.
- graph: the eager steps of one chunk captured in a CUDA graph and replayed: what remains without launches. Not a mode
  of the package, since the shapes of a real epoch's chunks differ. CUDA only.

Medians of chunks, interleaved; the device is synchronized at the end of each. `--device cpu` measures the same without
a GPU. Without CUDA: one line, and exit code 2.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch

from workloads import ITEMS, SINGLE, USERS, chunk_training, make_model, make_parser, median_ms, parse

CHUNK_STEPS = 50
MODES = ("eager", "compiled", "graph")


def capture(run: Callable[[], Any]) -> Callable[[], None]:
    """``run`` as one CUDA graph. PyTorch asks for warm-up runs on a side stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Callable[[], None] = graph.replay
    return replay


def synchronized(run: Callable[[], Any]) -> Callable[[], None]:
    def run_and_wait() -> None:
        run()
        torch.cuda.synchronize()

    return run_and_wait


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--models", nargs="+", choices=["gru4rec", "pnn", "arnn"], default=["gru4rec", "pnn", "arnn"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--batch-size", type=int, nargs="+", default=[32, 80, 256])
    parser.add_argument("--negatives", type=int, nargs="+", default=[0, 2048], help="extra negatives of a mini-batch")
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--embedding", choices=["onehot", "separate", "tied"], default="tied", help="of GRU4REC")
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--fields", type=int, default=368, help="of PNN and ARNN")
    parser.add_argument("--device", default="cuda")
    options = parse(parser, arguments, batch_size=[4], negatives=[0, 8], hidden=8, items=50, users=10, fields=20)
    cuda = torch.device(options.device).type == "cuda"
    if cuda and not torch.cuda.is_available():
        print("no CUDA device on this machine (--device cpu measures the same without one)", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name(options.device) if cuda else "cpu"
    print(f"{name}, torch {torch.__version__}, {options.items:,} items, H = {options.hidden}; chunks of {CHUNK_STEPS}")

    def training(model_name: str, mode: str, batch_size: int, n_sample: int) -> Callable[[], Any]:
        settings = ["model/loss=cross_entropy", f"model.hidden_size={options.hidden}"]
        settings += ["performance.compile=true"] if mode == "compiled" else []
        settings += [f"model.embedding={options.embedding}"] if model_name == "gru4rec" else []
        n_binary = 0 if model_name == "gru4rec" else options.fields - SINGLE - 1
        model = make_model(model_name, *settings, n_binary=n_binary, n_items=options.items, n_users=options.users)
        run = chunk_training(model, batch_size, CHUNK_STEPS, n_sample, options.device)
        run = capture(run) if mode == "graph" else run
        return synchronized(run) if cuda else run

    modes = [mode for mode in options.modes if cuda or mode != "graph"]
    for model_name in options.models:
        for batch_size in options.batch_size:
            for n_sample in options.negatives:
                runs = {mode: training(model_name, mode, batch_size, n_sample) for mode in modes}
                for mode, ms in median_ms(runs, options.rounds).items():
                    steps = 1e3 * CHUNK_STEPS / ms
                    rates = f"[{steps:8,.0f} mini-batches/s | {steps * batch_size:11,.0f} events/s]"
                    print(f"{model_name:8} B={batch_size:<4} {n_sample:5,} negatives  {mode:8} {rates}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

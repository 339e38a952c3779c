"""Mini-batches per second on a CUDA device: is the step launch-bound, and what do wider layers and more lanes cost?

    python benchmarks/gpu.py [--rounds 5] [--lanes 50 500] [--hidden 100 1000] [--items 13259] [--device cuda]

GRU4REC (cross-entropy over the batch), PNN (368 fields) and ARNN's merge over them, whole training steps in windows of
50, with nothing read back inside a window. Medians of windows, the device waited for at the end of each.
``--device cpu`` goes the same way without a GPU. Without CUDA: one line, and exit code 2.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from arnn_lightning.models.base import SessionModel
from product import SINGLE, USERS, model, random_window

STEPS = 50


def window_of_steps(made: SessionModel, device: torch.device, lanes: int, items: int, users: int) -> Callable[[], None]:
    """One window of training on ``device``: the model, its contexts and the window moved there beforehand."""
    made.to(device)
    batch = made.transfer_batch_to_device(random_window(lanes, items, users, STEPS), device, 0)
    optimizer = made.configure_optimizers()

    def run() -> None:
        state = made.initial_state(lanes)
        for k in range(STEPS):
            loss, state = made.step_loss(batch, k, state)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lanes", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--hidden", type=int, nargs="+", default=[100, 1000], help="of GRU4REC")
    parser.add_argument("--items", type=int, default=13_259)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--fields", type=int, default=368, help="of PNN and ARNN")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device on this machine (--device cpu goes the same way without one)", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{name}, torch {torch.__version__}, {options.items:,} items; windows of {STEPS} mini-batches")
    binary = options.fields - SINGLE - 1
    in_batch = ["model/loss=cross_entropy"]
    contests = [
        (f"GRU4REC H={hidden}", "gru4rec", 0, [*in_batch, f"model.hidden_size={hidden}"]) for hidden in options.hidden
    ]
    contests += [("PNN", "pnn", binary, in_batch), ("ARNN's merge", "arnn", binary, in_batch)]
    for what, kind, n_binary, overrides in contests:
        for lanes in options.lanes:
            made = model(kind, n_binary, *overrides, items=options.items, users=options.users)
            run = window_of_steps(made, device, lanes, options.items, options.users)
            run()  # warms up
            seconds = []
            for _ in range(options.rounds):
                started = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - started)
            each = statistics.median(seconds) / STEPS
            print(f"{what:15} B={lanes:<4} {1 / each:8,.0f} mini-batches/s  {1e3 * each:8.3f} ms each")
    return 0


if __name__ == "__main__":
    sys.exit(main())

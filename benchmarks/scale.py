"""A training step's time as the catalogue and the users grow: it must not (E8).

    python benchmarks/scale.py [--rounds 7] [--threads 1] [--lanes 50]

GRU4REC, PNN with TMALL's fields (the user's id among them), and ARNN's merge; H = 100, TOP1 on softmax scores:
with 10,000 items and 5,000 users, with 1,000,000 items, with 424,170 users. Interleaved, medians of ten steps.
"""

import argparse
import platform

import torch

from product import interleaved, model, training_step

SIZES = {"10k items, 5k users": (10_000, 5_000), "1M items": (1_000_000, 5_000), "424k users": (10_000, 424_170)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {options.threads} thread(s)")
    for name in ("gru4rec", "pnn", "arnn"):
        runs = {
            size: training_step(model(name, 0, items=items, users=users), options.lanes, items, users)
            for size, (items, users) in SIZES.items()
        }
        times = interleaved(runs, options.rounds)
        small = next(iter(times.values()))
        for size, milliseconds in times.items():
            print(f"{name:8} {size:20} {milliseconds / 10:6.2f} ms a step, {milliseconds / small:5.2f} times the first")


if __name__ == "__main__":
    main()

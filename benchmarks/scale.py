"""A training step's time as the catalogue and the number of users grow: it must stay the same (E8).

    python benchmarks/scale.py [--rounds 7] [--threads 1] [--batch-size 50] [--quick]

GRU4REC, PNN with TMALL's fields (the user's id among them), and ARNN's merging stage; H = 100, TOP1 on softmax scores:
with 10,000 items and 5,000 users, with 1,000,000 items, with 424,170 users. Interleaved, medians of ten steps.
"""

from workloads import STEPS, chunk_training, machine, make_model, make_parser, median_ms, parse

SIZES = ((10_000, 5_000), (1_000_000, 5_000), (10_000, 424_170))  # items, users


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=7)
    parser.add_argument("--batch-size", type=int, default=50)
    options = parse(parser, arguments, batch_size=4)
    sizes = [(n_items // 100, n_users // 100) for n_items, n_users in SIZES] if options.quick else SIZES
    print(machine())
    for name in ("gru4rec", "pnn", "arnn"):
        runs = {}
        for n_items, n_users in sizes:
            model = make_model(name, n_items=n_items, n_users=n_users)
            runs[f"{n_items:,} items, {n_users:,} users"] = chunk_training(model, options.batch_size)
        times = median_ms(runs, options.rounds)
        smallest = next(iter(times.values()))
        for size, ms in times.items():
            print(f"{name:8} {size:30} {ms / STEPS:6.2f} ms a step, {ms / smallest:5.2f} times the first")


if __name__ == "__main__":
    main()

"""One click and a list of 20 in a live session of ARNN, many sessions in one batch, and lists for a frame.

Of the clicks of a round the first follows the batch, which leaves little of a click's code and weights in the
processor's caches; it is reported apart from those that follow another click.

    python benchmarks/recommend.py [--items 13000] [--rounds 200] [--sessions 20000] [--quick]

In process, with random weights at the paper's sizes for XING: hidden size 100, 12 single-valued fields, 355 binary
ones. Medians, the fastest, and the slowest of a hundred.
"""

import sys
import time
from collections.abc import Sequence

import numpy as np
import polars as pl

from arnn_lightning.preprocessing.contexts import VOCABULARY
from arnn_lightning.serving.predictor import Predictor
from arnn_lightning.serving.vocabulary import Vocabulary
from workloads import SINGLE, machine, make_model, make_parser, parse

FIELDS, BATCH = 355, 64
BOTH, CLICKS = "click and top 20", 10  # clicks of a round
PROFILE = {f"field{number}": str(number) for number in range(1, SINGLE)} | {"tags": ["1", "20", "300"]}


def make_predictor(n_items: int) -> Predictor:
    """ARNN over a catalogue of ``n_items``."""
    model = make_model("arnn", n_binary=FIELDS, n_items=n_items)
    vocabulary = Vocabulary.__new__(Vocabulary)
    vocabulary.items = pl.DataFrame({"id": range(n_items), "events": np.ones(n_items)})
    vocabulary.single = [f"field{number}" for number in range(SINGLE)]
    fields = [(name, "single", code, str(code), 1, None) for name in vocabulary.single for code in range(1, 20)]
    fields += [("tags", "multi", code, str(code), 1, None) for code in range(FIELDS)]
    vocabulary.contexts = pl.DataFrame(fields, schema=VOCABULARY, orient="row")
    vocabulary.attributes = [*vocabulary.single, "tags"]
    vocabulary.users = pl.DataFrame(
        {
            "id": range(1_000),
            **{f"context.{name}": pl.Series(np.arange(1_000) % 20, dtype=pl.UInt32) for name in vocabulary.single},
            "active": pl.Series([[1, 20, 300]] * 1_000, dtype=pl.List(pl.UInt32)),
        }
    )
    dims = {"single_sizes": [20] * SINGLE, "n_binary": FIELDS}
    return Predictor(model, vocabulary, {"model": {"dims": dims}, "data": {"contexts": {"assignment": "own"}}})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, rounds=200)
    parser.add_argument("--items", type=int, nargs="+", default=[13_000])
    parser.add_argument("--sessions", type=int, default=20_000)
    options = parse(parser, arguments, items=[300], sessions=50)
    print(machine())
    rng = np.random.default_rng(1)
    for n_items in options.items:
        predictor = make_predictor(n_items)
        session = predictor.session(user=3)
        batch = [predictor.session(user=user) for user in range(BATCH)]
        seconds: dict[str, list[float]] = {"click": [], "top 20": [], BOTH: [], f"{BOTH} after a batch": []}
        seconds[f"{BATCH} of both"] = []
        for items in rng.integers(0, n_items, (options.rounds + 1, CLICKS)).tolist():
            start = time.perf_counter()
            predictor.live.click(batch, items[:1] * BATCH)
            predictor.live.top(batch, 20)
            seconds[f"{BATCH} of both"].append(time.perf_counter() - start)
            for number, item in enumerate(items):
                start = time.perf_counter()
                session.click(item)
                clicked = time.perf_counter()
                session.top(20)
                done = time.perf_counter()
                if number:
                    seconds["click"].append(clicked - start)
                    seconds["top 20"].append(done - clicked)
                seconds[BOTH if number else f"{BOTH} after a batch"].append(done - start)
        for name, values in seconds.items():
            steady = 1e3 * np.sort(values[len(values) // (options.rounds + 1) :])  # the first round warms up
            low, median, high = np.quantile(steady, [0, 0.5, 0.99])
            print(f"{n_items:>9,} items  {name:<30} {median:8.3f} ms (fastest {low:.3f}, p99 {high:.3f})")
        events = pl.DataFrame(
            {
                "session_id": np.repeat(np.arange(options.sessions), 4),
                "item_id": rng.integers(0, n_items, 4 * options.sessions),
                "user_id": np.repeat(rng.integers(0, 1_000, options.sessions), 4),
            }
        )
        if n_items > 100_000:
            events = events.head(4 * options.sessions // 50)
        start = time.perf_counter()
        lists = predictor.recommend(events, k=20)
        spent = time.perf_counter() - start
        n_sessions = lists["session_id"].n_unique()
        print(f"{n_items:>9,} items  recommend()                    {n_sessions / spent:8,.0f} sessions/s")
    print(f"state: {len(session.state()):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Where new items start under init_from: at the mean of all items, which is used, or at random.

A fifth of the items of the synthetic log are launched late: their clicks before the last days are dropped. A model is
trained on the log before the launch, and then on the log with it: from scratch, or from the earlier model with the new
items at either start. The last two days are the test split. Prints and writes one CSV row per seed and way of training,
over all predictions and over those whose target is a new item.

    .venv/bin/python experiments/new_items.py outputs/new_items --model gru4rec --events 100000 --days 4 --seeds 1 2 3
"""

import argparse
import subprocess
import sys
from pathlib import Path

import polars as pl

import arnn_lightning as al
from retrain_daily import DAY, PROGRAM, train

RANDOM = """
import arnn_lightning.training.initial as initial
made = initial.RowMapping.__init__
def at_random(self, *ids):
    made(self, *ids)
    self.item = initial.Rows(self.item.source_row, self.item.is_known, "initial")
initial.RowMapping.__init__ = at_random
from arnn_lightning.cli import main
main()
"""


def metrics_of(folder: Path, new: pl.Series) -> dict[str, float]:
    """Recall@20 and MRR@20 over all predictions, and over those of new items."""
    ids = al.load(folder).vocabulary.items["id"].cast(pl.String)
    ranks = pl.read_parquet(folder / "test_ranks.parquet")
    ranks = ranks.select(rank=pl.col("higher") + pl.col("equal"), is_new=ids.gather(ranks["item"]).is_in(new.implode()))
    values: dict[str, float] = {}
    for name, rank in (("", ranks["rank"]), ("new ", ranks.filter("is_new")["rank"])):
        is_hit = rank <= 20
        values |= {f"{name}recall@20": is_hit.mean(), f"{name}mrr@20": (is_hit / rank).mean(), f"{name}n": len(rank)}
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=lambda text: Path(text).absolute())
    parser.add_argument("--model", default="gru4rec")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--days", type=int, default=4, help="from the launch to the end, the two test days included")
    parser.add_argument("--epochs", type=int, default=1, help="of a training that starts from a run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    raw = arguments.folder / "raw"
    if not raw.is_dir():
        command = [sys.executable, *PROGRAM, "task=generate", "schema=xing", f"events={arguments.events}"]
        subprocess.run([*command, f"output={raw}"], check=True, stdout=subprocess.DEVNULL)
    log = pl.read_csv(raw / "interactions.csv", separator="\t", infer_schema=False)
    time = log["created_at"].cast(pl.Int64)
    launch = (int(time.max()) // DAY - arguments.days + 1) * DAY  # type: ignore[arg-type]
    items = log["item_id"].unique().sort()
    new = items.sample(fraction=0.2, seed=1)
    late = log.filter((time >= launch) | ~log["item_id"].is_in(new.implode()))
    logs = {"before": late.filter(late["created_at"].cast(pl.Int64) < launch), "after": late}
    for name, events in logs.items():
        (arguments.folder / name).mkdir(exist_ok=True)
        events.write_csv(arguments.folder / name / "interactions.csv", separator="\t")
        (arguments.folder / name / "users.csv").write_bytes((raw / "users.csv").read_bytes())
    rows = []
    for seed in arguments.seeds:
        arguments.seed = seed
        runs = {
            way: arguments.folder / f"{arguments.model}_{way}_{seed}" for way in ("before", "scratch", "mean", "random")
        }
        common = ("data.split.test_days=2", *(f"~baselines.{name}" for name in ("pop", "itemknn", "sr", "vsknn")))
        train(runs["before"], arguments.folder / "before", arguments, *common)
        stages = ("model", "model.session", "model.context") if arguments.model.startswith("arnn") else ("model",)
        short = [f"{stage}.epochs={arguments.epochs}" for stage in stages]
        short.append(f"init_from={runs['before'] / 'checkpoints' / 'best.ckpt'}")
        for way, overrides, program in (
            ("scratch", [], PROGRAM),
            ("mean", short, PROGRAM),
            ("random", short, ("-c", RANDOM)),
        ):
            trained = train(runs[way], arguments.folder / "after", arguments, *common, *overrides, program=program)
            row = {"model": arguments.model, "seed": seed, "way": way, "seconds": trained["train_seconds"]}
            rows.append(row | metrics_of(runs[way], new))
            print(rows[-1], flush=True)
    pl.DataFrame(rows, infer_schema_length=None).write_csv(arguments.folder / f"{arguments.model}.csv")


if __name__ == "__main__":
    main()

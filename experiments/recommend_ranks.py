"""Compares the ranks of recommend() and of live sessions with test_ranks.parquet, for every test prediction of a run.

    python experiments/recommend_ranks.py outputs/synthetic/arnn/2026-11-24_10-00-00 data/prepared/synthetic-0123456789

Every prefix of every test session is recommended for, and clicked through in batches; lists have 100 items. Prints
how many ranks lie between the standard and the conservative rank of the evaluation, and by how much the others are off.
"""

import sys
from pathlib import Path

import polars as pl

import arnn_lightning as al

BATCH, LISTED = 200, 100


def main(run: Path, prepared: Path) -> None:
    predictor = al.load(run)
    item = predictor.vocabulary.items["id"]
    test = pl.read_parquet(prepared / "test.parquet")
    user = pl.read_parquet(prepared / "users.parquet")["id"]
    sessions = (
        test.select("session", item_id=item.gather(test["item"]), user_id=user.gather(test["user"]))
        .group_by("session", maintain_order=True)
        .agg("item_id", pl.col("user_id").first())
    )
    ranks = pl.read_parquet(run / "test_ranks.parquet")
    key = 1_000_000 * pl.col("session").cast(pl.Int64) + pl.col("position")
    ranks = ranks.with_columns(target=item.gather(ranks["item"]), session_id=key)
    listed, live = [], []
    for batch in sessions.iter_slices(BATCH):
        rows = [
            (1_000_000 * number + position, clicked, user_id)
            for number, items, user_id in batch.iter_rows()
            for position in range(1, len(items))
            for clicked in items[:position]
        ]
        frame = pl.DataFrame(rows, schema=["session_id", "item_id", "user_id"], orient="row")
        targets = ranks.filter(pl.col("session").is_in(batch["session"].implode()))
        lists = predictor.recommend(frame, k=LISTED).rename({"rank": "listed_rank"})
        listed.append(targets.join(lists, left_on=["session_id", "target"], right_on=["session_id", "item_id"]))
        numbers = batch["session"].to_list()
        visitors = [predictor.session(user=user_id) for user_id in batch["user_id"]]
        for position in range(1, max(map(len, batch["item_id"]))):
            active = [n for n, items in enumerate(batch["item_id"]) if len(items) > position]
            predictor.live.click([visitors[n] for n in active], [batch["item_id"][n][position - 1] for n in active])
            tops = predictor.live.top([visitors[n] for n in active], LISTED)
            for n, top in zip(active, tops, strict=True):
                target = batch["item_id"][n][position]
                live += [(1_000_000 * numbers[n] + position, entry.rank) for entry in top if entry.item_id == target]
    columns = ["session_id", "listed_rank"]
    live_ranks = ranks.join(pl.DataFrame(live, schema=columns, orient="row"), on="session_id")
    for name, table in (("recommend()", pl.concat(listed)), ("live sessions", live_ranks)):
        low, high, rank = pl.col("higher") + 1, pl.col("higher") + pl.col("equal"), pl.col("listed_rank")
        off = table.select(off=pl.max_horizontal(low - rank, rank - high, 0))["off"]
        n_expected = ranks.filter(pl.col("higher") + pl.col("equal") <= LISTED).height
        equal = f"{(off == 0).sum():,} equal, largest difference {off.max()}"
        print(f"{name}: {table.height:,} of {ranks.height:,} are listed ({n_expected:,} expected): {equal}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

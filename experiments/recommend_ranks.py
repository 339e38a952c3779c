"""Compares the ranks of every way out of a model with test_ranks.parquet, for every test prediction of a run.

    python experiments/recommend_ranks.py outputs/train/synthetic/arnn/TIME data/prepared/synthetic-0123456789

Every prefix of every test session is recommended for by `recommend()` and by the service (its application in process),
and clicked through in live sessions and, where the model can be exported, in step.onnx; lists have 100 items. It prints
how many ranks lie between the standard and the conservative rank of the evaluation, and by how much the others are off.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import polars as pl
from fastapi.testclient import TestClient

import arnn_lightning as al
from arnn_lightning.errors import UserError
from arnn_lightning.loading.contexts import context_codes
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.serving.export import export_model
from arnn_lightning.serving.http import make_app
from arnn_lightning.serving.predictor import Predictor, load
from arnn_lightning.serving.service import ReloadingPredictor, Service, SessionStore

BATCH, LISTED = 200, 100
Places = Iterator[tuple[int, int, int]]  # session, position of the target, its rank in the list


def by_recommend(predictor: Predictor, sessions: pl.DataFrame) -> Places:
    for batch in sessions.iter_slices(BATCH):
        rows = [
            (1_000_000 * number + position, clicked, user_id)
            for number, items, user_id in batch.iter_rows()
            for position in range(1, len(items))
            for clicked in items[:position]
        ]
        frame = pl.DataFrame(rows, schema=["session_id", "item_id", "user_id"], orient="row")
        lists = predictor.recommend(frame, k=LISTED).group_by("session_id").agg("item_id")
        items_of = dict(batch.select("session", "item_id").iter_rows())
        for key, listed in lists.iter_rows():
            number, position = divmod(key, 1_000_000)
            yield from place(number, position, items_of[number], listed)


def by_live_sessions(predictor: Predictor, sessions: pl.DataFrame) -> Places:
    for batch in sessions.iter_slices(BATCH):
        numbers, clicks = batch["session"].to_list(), batch["item_id"].to_list()
        visitors = [predictor.session(user=user_id) for user_id in batch["user_id"]]
        for position in range(1, max(map(len, clicks))):
            active = [n for n, items in enumerate(clicks) if len(items) > position]
            predictor.live.click([visitors[n] for n in active], [clicks[n][position - 1] for n in active])
            tops = predictor.live.top([visitors[n] for n in active], LISTED)
            for n, top in zip(active, tops, strict=True):
                yield from place(numbers[n], position, clicks[n], [entry.item_id for entry in top])


def by_service(run: Path, sessions: pl.DataFrame) -> Places:
    models = ReloadingPredictor(run / "checkpoints" / "best.ckpt", load, 60)
    client = TestClient(make_app(Service(models, SessionStore(1, 60)).ask, token=None, max_body_bytes=10_000_000))
    for batch in sessions.iter_slices(BATCH // 10):
        prefixes = [
            (number, position, items, user_id)
            for number, items, user_id in batch.iter_rows()
            for position in range(1, len(items))
        ]
        for start in range(0, len(prefixes), 100):
            part = prefixes[start : start + 100]
            bodies = [{"session": items[:position], "user": user_id} for _, position, items, user_id in part]
            answer = client.post("/v1/recommend/batch", json={"sessions": bodies, "k": LISTED})
            for (number, position, items, _), listed in zip(part, answer.json()["lists"], strict=True):
                yield from place(number, position, items, [item["id"] for item in listed["items"]])


def by_exported_step(predictor: Predictor, run: Path, prepared: PreparedDataset) -> Places:
    with tempfile.TemporaryDirectory() as folder:
        export_model(predictor, run / "checkpoints" / "best.ckpt", Path(folder, "model"), LISTED, "# card\n")
        step = onnxruntime.InferenceSession(Path(folder, "model", "step.onnx"))
    inputs = {node.name for node in step.get_inputs()}
    sessions = prepared.sessions("test")
    codes = context_codes(prepared.users(), prepared.dims["single_sizes"])
    for start in range(0, len(sessions.lengths), BATCH):
        slots = np.arange(start, min(start + BATCH, len(sessions.lengths)))
        lengths, user = sessions.lengths[slots], sessions.user[slots]
        state = [part.numpy() for part in predictor.model.initial_state(len(slots))]
        contexts = {"single": codes.single.numpy()[user], "active": codes.active.numpy()[user]}
        for position in range(1, int(lengths.max())):
            event = sessions.offset[slots] + np.minimum(position, lengths) - 1
            feed = {"item": sessions.item[event]} | {f"state_{index}": part for index, part in enumerate(state)}
            _, items, _, *state = step.run(None, feed | {key: contexts[key] for key in inputs & contexts.keys()})
            for n in np.flatnonzero(lengths > position):
                target = sessions.item[sessions.offset[slots[n]] + position]
                for found in np.flatnonzero(items[n] == target):
                    yield int(sessions.session[slots[n]]), position, int(found) + 1


def place(number: int, position: int, items: list[object], listed: list[object]) -> Places:
    if items[position] in listed:
        yield number, position, listed.index(items[position]) + 1


def main(run: Path, folder: Path) -> None:
    predictor, prepared = al.load(run), PreparedDataset(folder)
    item = predictor.vocabulary.items["id"]
    test = pl.read_parquet(folder / "test.parquet")
    user = pl.read_parquet(folder / "users.parquet")["id"]
    sessions = (
        test.select("session", item_id=item.gather(test["item"]), user_id=user.gather(test["user"]))
        .group_by("session", maintain_order=True)
        .agg("item_id", pl.col("user_id").first())
    )
    ranks = pl.read_parquet(run / "test_ranks.parquet")
    ways = {
        "recommend()": by_recommend(predictor, sessions),
        "live sessions": by_live_sessions(predictor, sessions),
        "the service": by_service(run, sessions),
        "step.onnx": by_exported_step(predictor, run, prepared),
    }
    for name, places in ways.items():
        try:
            table = pl.DataFrame(places, schema=["session", "position", "listed_rank"], orient="row")
        except UserError as error:
            print(f"{name}: {error}")
            continue
        table = ranks.join(
            table.cast({key: ranks.schema[key] for key in ("session", "position")}), on=["session", "position"]
        )
        low, high, rank = pl.col("higher") + 1, pl.col("higher") + pl.col("equal"), pl.col("listed_rank")
        off = table.select(off=pl.max_horizontal(low - rank, rank - high, 0))["off"]
        n_expected = ranks.filter(pl.col("higher") + pl.col("equal") <= LISTED).height
        equal = f"{(off == 0).sum():,} equal, largest difference {off.max()}"
        print(f"{name}: {table.height:,} of {ranks.height:,} are listed ({n_expected:,} expected): {equal}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

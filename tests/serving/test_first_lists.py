"""Lists before the first click: those of PNN for the profile if the checkpoint has this answer, else popular items."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from fastapi.testclient import TestClient

from arnn_lightning.models import RunSettings
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.serving.http import make_app
from arnn_lightning.serving.predictor import Predictor, load
from arnn_lightning.serving.service import ReloadingPredictor, Service, SessionStore
from arnn_lightning.training import first_items
from arnn_lightning.training.checkpoint import FIRST_ITEMS, build_model, load_weights, read_checkpoint
from arnn_lightning.training.first_items import compare_first_items, store_first_items
from helpers import make_data
from models import BY_NAME, ModelCase, case_name

Checkpoints = Callable[[ModelCase], Path]
ARNN = BY_NAME["arnn"]
CASES = [BY_NAME[name] for name in ("pnn", "pnn_closed", "pnn_fields", "arnn")]
CASES += [ModelCase("arnn_items", "arnn", (*ARNN.overrides, "model.item_contexts=add"))]


@pytest.fixture(params=CASES, ids=case_name)
def checkpoint(
    request: pytest.FixtureRequest,
    checkpoints: Checkpoints,
    prepared: PreparedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A checkpoint with the answer of PNN, whose weights are random, and thus worse than popularity."""
    read = read_checkpoint(checkpoints(request.param))
    metadata = read["metadata"]
    model = build_model(metadata["model"], RunSettings(metadata=metadata))
    load_weights(model, read, tmp_path)
    torch.manual_seed(2)
    for weight in model.profile_model.scorer.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    read["state_dict"] = model.state_dict()  # of PNN itself, with the new scorer
    compared = compare_first_items(model, make_data(prepared))
    assert compared is not None
    monkeypatch.setattr(first_items, "compare_first_items", lambda *_: compared | {"answer": "pnn"})
    store_first_items(model, make_data(prepared), read, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


@pytest.fixture
def predictor(checkpoint: Path) -> Predictor:
    return load(checkpoint)


@pytest.fixture
def visitors(prepared: PreparedDataset) -> list[Any]:
    """Ids of eight users, whose contexts differ."""
    ids: list[Any] = prepared.users()["id"].head(8).to_list()
    return ids


def without_click(users: list[Any]) -> pl.DataFrame:
    frame = pl.DataFrame({"session_id": range(len(users)), "user_id": users})
    return frame.with_columns(item_id=pl.lit(None, pl.Int64))


def lists_of(frame: pl.DataFrame) -> list[list[Any]]:
    lists: list[list[Any]] = frame.group_by("session_id", maintain_order=True).agg("item_id")["item_id"].to_list()
    return lists


def popular(predictor: Predictor, k: int = 20) -> list[Any]:
    items = predictor.vocabulary.items.with_row_index("code").sort("events", "code", descending=[True, False])
    ids: list[Any] = items["id"].head(k).to_list()
    return ids


def test_V18_ranks_before_the_first_click_are_those_of_the_comparison(
    predictor: Predictor, prepared: PreparedDataset
) -> None:
    """MRR@20 of the lists of the validation sessions."""
    sessions, users = prepared.sessions("val"), prepared.users()
    first = prepared.items()["id"].gather(sessions.item[sessions.offset[:-1]])
    lists = predictor.recommend(without_click(users["id"].gather(sessions.user).to_list()))
    targets = pl.DataFrame({"session_id": range(len(first)), "item_id": first})
    found = targets.join(lists, on=["session_id", "item_id"])
    is_known = users["n_known"].gather(sessions.user) > 0
    assert is_known.all()
    stored = predictor.model.first_items
    assert stored is not None
    assert stored["sessions"] == len(first)
    assert (1 / found["rank"]).sum() / len(first) == pytest.approx(stored["pnn"], rel=1e-6)


def test_frames_live_sessions_and_the_service_agree(
    checkpoint: Path, predictor: Predictor, visitors: list[Any]
) -> None:
    expected = lists_of(predictor.recommend(without_click(visitors), k=30))
    assert len({*map(tuple, expected)}) > 4  # they depend on the profile
    assert popular(predictor, 30) not in expected
    alone = [predictor.session(user=user).top(30) for user in visitors]
    assert [[entry.item_id for entry in entries] for entries in alone] == expected
    sessions = [predictor.session(user=user) for user in visitors]
    sessions[2].click("no such item" if isinstance(predictor.catalogue.ids[0], str) else -1)
    restored = [predictor.session(state=session.state()) for session in sessions]
    for batch in (sessions, restored):
        assert [[entry.item_id for entry in entries] for entries in predictor.live.top(batch, 30)] == expected
    models = ReloadingPredictor(checkpoint, load, 60)
    client = TestClient(make_app(Service(models, SessionStore(100, 60)).ask, token=None, max_body_bytes=20_000))
    bodies = [{"session": [], "user": user} for user in visitors]
    answers = client.post("/v1/recommend/batch", json={"sessions": bodies, "k": 30}).json()["lists"]
    answers += [client.post("/v1/recommend", json=body | {"k": 30}).json() for body in bodies]
    assert [[item["id"] for item in answer["items"]] for answer in answers] == 2 * expected


def test_sessions_with_and_without_a_click_in_one_batch(predictor: Predictor, visitors: list[Any]) -> None:
    ids = predictor.catalogue.ids
    events = without_click(visitors).with_columns(
        item_id=pl.when(pl.col("session_id") % 2 == 1).then(pl.lit(ids[3])).cast(ids.dtype)
    )
    mixed = predictor.recommend(events)
    parts = [predictor.recommend(events.filter(pl.col("session_id") % 2 == rest)) for rest in (0, 1)]
    expected = pl.concat(parts).sort("session_id", maintain_order=True)
    assert mixed.drop("score").equals(expected.drop("score"))
    assert mixed["score"].to_numpy() == pytest.approx(expected["score"].to_numpy(), rel=1e-5)
    sessions = [predictor.session(user=user) for user in visitors]
    predictor.live.click(sessions[1::2], [ids[3]] * 4)
    listed = predictor.live.top(sessions)
    assert [[entry.item_id for entry in entries] for entries in listed] == lists_of(mixed)


def test_a_new_profile_counts_and_none_gets_popular_items(predictor: Predictor, visitors: list[Any]) -> None:
    table = predictor.vocabulary.contexts.filter(pl.col("attribute") == predictor.vocabulary.single[0])
    profile = {predictor.vocabulary.single[0]: table["category"][0]}
    by_profile = [entry.item_id for entry in predictor.session(profile).top()]
    frame = pl.DataFrame({"session_id": [1], **{key: [value] for key, value in profile.items()}})
    empty = pl.DataFrame(schema={"session_id": pl.Int64, "item_id": pl.Int64})
    assert lists_of(predictor.recommend(empty, frame)) == [by_profile]
    assert by_profile != popular(predictor)
    unknown = {predictor.vocabulary.single[0]: "never seen"}
    for session in (predictor.session(), predictor.session(unknown), predictor.session(user="mistyped")):
        entries = session.top()
        assert [entry.item_id for entry in entries] == popular(predictor)
        assert entries[0].score == predictor.vocabulary.items["events"].max()
    both = predictor.recommend(without_click([visitors[0], None]))
    assert lists_of(both) == [
        [entry.item_id for entry in predictor.session(user=visitors[0]).top()],
        popular(predictor),
    ]


def test_filters_hold_before_the_first_click(predictor: Predictor, visitors: list[Any]) -> None:
    session, n_items = predictor.session(user=visitors[0]), predictor.n_items
    full = [entry.item_id for entry in session.top(n_items)]
    assert len(full) == n_items
    some = [*full[1::7], "no such item" if isinstance(full[0], str) else -1]
    for options, expected in (
        ({"items": some}, full[1::7]),
        ({"exclude_items": some}, [item for item in full if item not in some]),
        ({"items": full[:9], "exclude_items": full[:4]}, full[4:9]),
        ({"exclude_seen": True}, full),
    ):
        assert [entry.item_id for entry in session.top(n_items, **options)] == expected
        sessions = without_click(visitors[:1])
        assert lists_of(predictor.recommend(sessions, k=n_items, **options)) == [expected]


def test_arnn_lists_what_its_pnn_lists(
    checkpoints: Checkpoints, prepared: PreparedDataset, visitors: list[Any], tmp_path: Path
) -> None:
    """With the scorer of PNN, which is not the merging layer's."""
    read = read_checkpoint(checkpoints(ARNN))
    model = build_model(read["metadata"]["model"], RunSettings())
    load_weights(model, read, tmp_path)
    pnn = model.profile_model
    for weight in pnn.scorer.parameters():
        weight.data.normal_()
    alone = {"metadata": read["metadata"] | {"model": read["metadata"]["model"]["context"]}, "version": read["version"]}
    alone |= {"state_dict": pnn.state_dict(), "vocabulary": read["vocabulary"]}
    answer = {
        "answer": "pnn",
        "encoder": "PNN",
        "metric": "mrr@20",
        "sessions": 1,
        "popularity": 0.0,
        "pnn": 1.0,
    }
    torch.save({**alone, FIRST_ITEMS: answer}, tmp_path / "pnn.ckpt")
    torch.save({**read, FIRST_ITEMS: {**answer, "scorer": pnn.scorer.state_dict()}}, tmp_path / "arnn.ckpt")
    of_pnn, of_arnn = load(tmp_path / "pnn.ckpt"), load(tmp_path / "arnn.ckpt")
    events = without_click(visitors)
    assert of_arnn.recommend(events).equals(of_pnn.recommend(events))
    item = prepared.items()["id"][0]
    clicked = events.with_columns(item_id=pl.lit(item))
    assert of_arnn.recommend(clicked).equals(load(checkpoints(ARNN)).recommend(clicked))


@pytest.mark.parametrize("name", ["pnn", "arnn", "gru4rec", "latent_cross", "vstan_context"])
def test_other_checkpoints_list_popular_items(name: str, checkpoints: Checkpoints, visitors: list[Any]) -> None:
    predictor = load(checkpoints(BY_NAME[name]))
    assert predictor.model.first_items is None
    assert lists_of(predictor.recommend(without_click(visitors))) == len(visitors) * [popular(predictor)]
    assert [entry.item_id for entry in predictor.session(user=visitors[0]).top()] == popular(predictor)


def test_a_choice_of_popularity_is_kept(checkpoints: Checkpoints, visitors: list[Any], tmp_path: Path) -> None:
    read = read_checkpoint(checkpoints(BY_NAME["pnn"]))
    values = {"metric": "mrr@20", "sessions": 9, "popularity": 0.2, "pnn": 0.1}
    torch.save({**read, FIRST_ITEMS: {"answer": "popularity", **values}}, tmp_path / "best.ckpt")
    predictor = load(tmp_path / "best.ckpt")
    assert lists_of(predictor.recommend(without_click(visitors))) == len(visitors) * [popular(predictor)]
    np.testing.assert_equal(predictor.model.first_items, {"answer": "popularity", **values})

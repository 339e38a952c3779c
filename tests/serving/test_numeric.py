"""Numbers and dates of users: the codes of training, in lists, live sessions, the service and the exported step."""

import subprocess
import sys
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from fastapi.testclient import TestClient

from arnn_lightning.errors import UserError
from arnn_lightning.models import RunSettings
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.serving.export import export_model
from arnn_lightning.serving.http import make_app
from arnn_lightning.serving.predictor import Predictor, load
from arnn_lightning.serving.service import ReloadingPredictor, Service, SessionStore
from arnn_lightning.serving.vocabulary import store_vocabulary
from arnn_lightning.tasks.prepare import prepare_data
from arnn_lightning.training.checkpoint import build_model, save_model
from helpers import compose_config, model_config, python_block

N_USERS = 60


def level_of(user: int) -> str:
    return "rare" if user in (5, 59) else str(user % 3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """A log of users with an age (some unknown), a birthday and a level."""
    folder, rng = tmp_path_factory.mktemp("numeric"), np.random.default_rng(2)
    events = [
        (f"u{user:02}", f"i{rng.integers(0, 9)}", 1_447_243_200 + 40_000 * user + 60 * step)
        for user in range(N_USERS)
        for step in range(5)
    ]
    pl.DataFrame(events, schema=["user", "item", "time"], orient="row").write_csv(folder / "log.csv")
    users = pl.DataFrame(
        {
            "user": [f"u{user:02}" for user in range(N_USERS)],
            "age": [None if user % 7 == 0 else f" {18 + user}" for user in range(N_USERS)],
            "birth": [date(1950 + user, 1 + user % 12, 3) for user in range(N_USERS)],
            "level": [level_of(user) for user in range(N_USERS)],
        }
    )
    users.write_csv(folder / "users.csv")
    contexts = "data.contexts={single: [level], multi: [], numeric: {age: 4, birth: [1960, 1980.5, 2000]}}"
    files = (f"data.events={folder / 'log.csv'}", f"data.users={folder / 'users.csv'}", f"paths.data={folder}")
    rare = "data.contexts.min_events=20"
    return prepare_data(compose_config("data=tabular", *files, contexts, rare, "data.items.min_events=1"))


@pytest.fixture(scope="module")
def run(prepared: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a PNN with random weights."""
    folder = tmp_path_factory.mktemp("run")
    config = model_config("pnn", prepared.dims, "model.hidden_size=8", "model.embedding_size=4")
    data = {"name": "log", "contexts": {"assignment": "own"}, "null_values": ["NA"]}
    metadata = {"model": config, "data": data, "prepared": prepared.folder.name, "seed": 1}
    torch.manual_seed(1)
    model = build_model(config, RunSettings(metadata=metadata, vocabulary=store_vocabulary(prepared, None, True)))
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    save_model(model, folder / "checkpoints" / "best.ckpt")
    return folder


def profile_of(user: int, kind: Callable[[date], Any] = date.isoformat) -> dict[str, Any]:
    profile = {"birth": kind(date(1950 + user, 1 + user % 12, 3)), "level": level_of(user)}
    return profile | ({} if user % 7 == 0 else {"age": 18 + user})


def listed(session: Any, items: list[Any]) -> list[Any]:
    for item in items:
        session.click(item)
    return [entry.item_id for entry in session.top()]


def test_profiles_get_the_codes_that_training_gave(run: Path, prepared: PreparedDataset) -> None:
    predictor: Predictor = load(run)
    stored = prepared.users()
    columns = [f"context.{name}" for name in predictor.vocabulary.single]
    assert predictor.vocabulary.single == ["level", "age", "birth"]
    assert [stored[column].n_unique() for column in columns] == [4, 5, 4]
    for user, row in enumerate(stored.iter_rows(named=True)):
        expected = predictor.session(user=row["id"]).contexts
        for kind in (date.isoformat, lambda day: day, lambda day: datetime(day.year, day.month, day.day, 12)):
            session = predictor.session(profile_of(user, kind))
            assert torch.equal(session.contexts.single, expected.single)
            assert session.unknown.warning_text(predictor.attributes) is None
        texts = profile_of(user) | ({} if user % 7 == 0 else {"age": f" {18 + user}"})
        for unknown in ({}, {"age": None}, {"age": "NA"}, {"age": ""}) if user % 7 == 0 else ({},):
            assert torch.equal(predictor.session(texts | unknown).contexts.single, expected.single)
    users = pl.DataFrame([{"user_id": f"n{user}", **profile_of(user)} for user in range(1, 7)])
    events = pl.DataFrame({"session_id": range(6), "user_id": users["user_id"], "item_id": ["i3"] * 6})
    lists = predictor.recommend(events, users).group_by("session_id", maintain_order=True).agg("item_id")
    for user, items in zip(range(1, 7), lists["item_id"].to_list(), strict=True):
        assert items == listed(predictor.session(user=f"u{user:02}"), ["i3"])


def test_the_service_encodes_numbers_and_dates(run: Path) -> None:
    models = ReloadingPredictor(run / "checkpoints" / "best.ckpt", load, 1.0)
    client = TestClient(make_app(Service(models, SessionStore(9, 60)).ask, None, 10_000))
    for user in (1, 7, 30, 59):
        answer = client.post("/v1/recommend", json={"session": ["i3"], "profile": profile_of(user)}).json()
        expected = listed(models.current.session(user=f"u{user:02}"), ["i3"])
        assert [item["id"] for item in answer["items"]] == expected
        assert not any(answer["unknown"].values())


@pytest.mark.parametrize("value", [[30], [], [None]])
def test_a_list_of_numbers_is_one_line(value: list[Any], run: Path) -> None:
    models = ReloadingPredictor(run / "checkpoints" / "best.ckpt", load, 1.0)
    client = TestClient(make_app(Service(models, SessionStore(9, 60)).ask, None, 10_000))
    answer = client.post("/v1/recommend", json={"session": ["i3"], "profile": {"age": value}})
    assert answer.status_code == 422
    assert "'age' has one value, not a list" in answer.json()["detail"]
    events = pl.DataFrame({"session_id": [0], "user_id": ["u"], "item_id": ["i3"]})
    with pytest.raises(UserError, match="has one value, not a list"):
        models.current.recommend(events, pl.DataFrame({"user_id": ["u"], "age": [value]}))


def test_the_exports_example_encodes_numbers(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    predictor = load(run)
    export_model(predictor, run / "checkpoints" / "best.ckpt", tmp_path / "out", 9, "# card\n")
    document = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    clicks = predictor.vocabulary.items["id"][:3].to_list()
    for user in (1, 7, 30, 59):
        profile = profile_of(user, lambda day: day.year + (day.timetuple().tm_yday - 1) / 365.25)
        code = python_block(document).replace("profile = {}", f"profile = {profile}")
        script = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True)
        assert script.stdout.strip() == str(listed(predictor.session(user=f"u{user:02}"), clicks)), script.stderr

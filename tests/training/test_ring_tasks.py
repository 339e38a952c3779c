"""Worlds whose right answers are known by thought tell the models apart, by conservative Recall@1.

In a ring, item i is followed by i + 1 or i - 1, and the user's context decides which.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pytorch_lightning import Trainer, seed_everything

from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.models.base import SessionModel
from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import make_data, make_model, write_world

RING = 12
SETTINGS = [
    "model/loss=cross_entropy_full",
    "model.hidden_size=32",
    "model.optimizer.lr=0.1",
]
PARTS = [
    "model/loss@model.session.loss=cross_entropy_full",
    "model/loss@model.context.loss=cross_entropy_full",
    "model.session.hidden_size=32",
    "model.context.hidden_size=32",
    "model.session.dropout_hidden=0",
    "model.session.optimizer.lr=0.1",
    "model.context.optimizer.lr=0.1",
]


def ring(folder: Path, length: int, direction: str) -> PreparedDataset:
    """Sessions of ``length`` on the ring; the direction is the user's, or drawn per session."""
    rng = np.random.default_rng(0)
    splits = {}
    for name, count in (("train", 1200), ("test", 200)):
        users = rng.integers(0, 40, count)
        way = 1 - 2 * (users % 2 if direction == "user" else rng.integers(0, 2, count))
        start = rng.integers(0, RING, count)
        sessions = (start[:, None] + way[:, None] * np.arange(length)) % RING
        splits[name] = (sessions.tolist(), users.tolist())
    return write_world(folder, splits, RING, single={"way": [1 + user % 2 for user in range(40)]})


OVERRIDES = {
    "gru4rec": [*SETTINGS, "model.dropout_hidden=0"],
    "pnn": SETTINGS,
    "arnn": [*SETTINGS, *PARTS],
    "concat": [one for one in SETTINGS if "hidden_size" not in one],
    "arnn of concat": [
        "model@model.context=concat",
        "~model.context.hidden_size",  # conf/tuned has them for PNN
        "~model.context.dropout",
        *SETTINGS,
        *(one for one in PARTS if one != "model.context.hidden_size=32"),
    ],
}


def trained(name: str, prepared: PreparedDataset, folder: Path) -> SessionModel:
    seed_everything(0, verbose=False)
    model = make_model(name.split(" ")[0], prepared.dims, *OVERRIDES.get(name, []))
    for one in (*model.parts.values(), model):
        one.set_contexts(make_data(prepared).contexts())
    for part in model.parts.values():
        fit(part, prepared, folder)
    model.assemble()
    fit(model, prepared, folder)
    return model


def trainer(folder: Path, epochs: int) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def fit(model: SessionModel, prepared: PreparedDataset, folder: Path) -> None:
    if not any(weight.requires_grad for weight in model.parameters()):
        model.count(prepared.sessions("train"))
        return
    data = make_data(prepared, lanes=20, steps=20, score_all=True)
    trainer(folder, 6).fit(model, train_dataloaders=data.train_dataloader())


def recall_at_1(name: str, prepared: PreparedDataset, folder: Path) -> dict[int, float]:
    """Conservative Recall@1 by position."""
    model = trained(name, prepared, folder)
    trainer(folder, 1).test(model, make_data(prepared).test_dataloader(), verbose=False)
    test = pl.read_parquet(prepared.folder / "test.parquet")
    ranks = EvaluationResult.from_counts(name, model.evaluated, test, "conservative").ranks
    by_position = ranks.group_by("position").agg((pl.col("rank") == 1).mean()).sort("position")
    return dict(by_position.iter_rows())


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("pop", 0, 0.2),
        ("itemknn", 0, 0.65),
        ("gru4rec", 0.35, 0.65),
        ("pnn", 0.99, 1),
        ("arnn", 0.99, 1),
        # Embeddings alone add up what the item says and what the user says; that the user turns the item's word around
        # takes products, or a merging layer on top.
        ("concat", 0, 0.65),
        ("arnn of concat", 0.99, 1),
    ],
)
def test_sessions_of_two_need_the_user(name: str, low: float, high: float, tmp_path: Path) -> None:
    (recall,) = recall_at_1(name, ring(tmp_path, 2, "user"), tmp_path).values()
    assert low <= recall <= high


def test_in_sessions_of_six_gru4rec_sees_the_direction_from_position_2(tmp_path: Path) -> None:
    recall = recall_at_1("gru4rec", ring(tmp_path, 6, "user"), tmp_path)
    assert 0.35 <= recall[1] <= 0.65
    assert all(recall[position] > 0.99 for position in (2, 3, 4, 5))


@pytest.mark.parametrize(("name", "later"), [("gru4rec", 1.0), ("arnn", 1.0), ("pnn", 0.5), ("itemknn", 0.5)])
def test_a_direction_drawn_per_session_is_seen_by_memory_alone(name: str, later: float, tmp_path: Path) -> None:
    recall = recall_at_1(name, ring(tmp_path, 6, "session"), tmp_path)
    assert 0 <= recall[1] <= 0.65
    for position in (2, 3, 4, 5):
        if later == 1:
            assert recall[position] > 0.98
        else:
            assert recall[position] <= 0.65


def test_the_context_part_of_a_frozen_arnn_sees_users_through_their_cached_part(tmp_path: Path) -> None:
    prepared = ring(tmp_path, 2, "user")
    model = trained("arnn", prepared, tmp_path).eval()
    (window, *_) = make_data(prepared).test_dataloader()
    with torch.no_grad():
        cached, _ = model.evaluation_step(window)
        model._start_evaluation()
        model.context.frozen = False  # computes the user's part anew
        live, _ = model.evaluation_step(window)
    assert torch.allclose(cached, live, atol=1e-5)

"""Data whose right answers follow from how they are made tell the models apart, by conservative Recall@1.

In a ring, item i is followed by i + 1 or i - 1, and the user's context decides which. Models that score a session's
items highest cannot have rank 1 there; for them, sessions are [g, hub, goal of g], and the items before the goal are
above it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pytorch_lightning import seed_everything

from arnn_lightning.encoders import WindowEncoder
from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.models import Recommender, SessionRecommender
from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import make_data, make_model, ready, trainer, write_dataset
from models import BY_NAME, MODELS, ModelCase, case_name, slow, slow_but

RING = 12
FUSIONS = ("latent_cross", "init_state", "input_concat", "prefix")
RING_CASES = slow_but(
    ("itemknn", "gru4rec", "pnn", "arnn"),
    [case for case in MODELS if not case.repeats],
)
HUB, GROUPS = 0, 6


def ring_dataset(folder: Path, length: int, direction: str) -> PreparedDataset:
    """Sessions of ``length`` on the ring; the direction is the user's, or sampled per session."""
    rng = np.random.default_rng(0)
    splits = {}
    for name, count in (("train", 600 if length == 2 else 400), ("test", 200)):
        users = rng.integers(0, 40, count)
        step = 1 - 2 * (users % 2 if direction == "user" else rng.integers(0, 2, count))
        start = rng.integers(0, RING, count)
        sessions = (start[:, None] + step[:, None] * np.arange(length)) % RING
        splits[name] = (sessions.tolist(), users.tolist())
    return write_dataset(folder, splits, RING, single={"direction": [1 + user % 2 for user in range(40)]})


def overrides(case: ModelCase) -> list[str]:
    """Sizes, rates and losses with which the rings are learnt in six epochs, or in three by windows of events."""
    if not case.is_trained:
        return []
    values = ["model/loss=cross_entropy_full", "model.optimizer.lr=0.1"]
    has_sasrec = case.name.endswith("sasrec") or case.name == "prefix"
    session_dropout = f"model.session.{'dropout' if has_sasrec else 'dropout_hidden'}=0"
    if case.preset in FUSIONS:
        rate = ["model.optimizer.lr=0.05"] if has_sasrec else []
        return [*values, *rate, "model.session.hidden_size=32", session_dropout, "model.n_sample=0"]
    if case.preset != "concat":
        values += ["model.hidden_size=32"]
    if case.preset.startswith("gru4rec"):
        values += ["model.dropout_hidden=0"]
    if case.preset == "narm":
        values += ["model.dropout_hidden=0", "model.dropout_embedding=0"]
    if case.preset == "sasrec":
        values += ["model.dropout=0"]
    if case.preset.startswith("arnn"):
        values += [f"model/loss@model.{role}.loss=cross_entropy_full" for role in ("session", "context")]
        values += [f"model.{role}.optimizer.lr=0.1" for role in ("session", "context")]
        values += ["model.session.hidden_size=32", session_dropout]
        values += ["model.context.embedding_size=10"]
        values += ["model.context.hidden_size=32"] if case.name != "arnn_concat" else []
    return [*values, *(["model.embedding_size=10"] if case.preset in ("pnn", "concat") else [])]


def make_trained(case: ModelCase, prepared: PreparedDataset, folder: Path, **data: Any) -> Recommender:
    seed_everything(0, verbose=False)
    model: Recommender = make_model(case.preset, prepared.dims, *case.overrides, *overrides(case))
    for stage in model.stages.values() if model.needs_stages else ():
        fit(stage, prepared, folder, **data)
    fit(model, prepared, folder, **data)
    return model


def fit(model: Recommender, prepared: PreparedDataset, folder: Path, **data: Any) -> None:
    if isinstance(model, SessionRecommender):
        epochs = 3 if isinstance(model.encoder, WindowEncoder) else 6
        trainer(folder, max_epochs=epochs).fit(model, make_data(prepared, batch_size=20, steps_per_chunk=20, **data))
    else:
        ready(model, prepared).fit(prepared.sessions("train"))


def recall_by_position(
    case: ModelCase, prepared: PreparedDataset, folder: Path, cutoff: int = 1, **data: Any
) -> dict[int, float]:
    """Conservative recall by position; ``data``: settings of the data module."""
    model = make_trained(case, prepared, folder, **data)
    trainer(folder).test(model, make_data(prepared, **data), verbose=False)
    split = pl.read_parquet(prepared.folder / "test.parquet")
    ranks: Any = EvaluationResult.from_counts(case.name, model.rank_counts, split, "conservative").ranks
    by_position = ranks.group_by("position").agg((pl.col("rank") <= cutoff).mean()).sort("position")
    return dict(by_position.iter_rows())


@pytest.mark.parametrize("case", RING_CASES, ids=case_name)
def test_sessions_of_two_need_the_user(case: ModelCase, tmp_path: Path) -> None:
    (recall,) = recall_by_position(case, ring_dataset(tmp_path, 2, "user"), tmp_path).values()
    # Plain concatenation adds up what the item and what the user contribute; that the user reverses the item's
    # direction takes products, or a merging layer on top.
    if case.reads_contexts and case.name != "concat":
        assert recall >= 0.99
    else:
        assert recall <= 0.65
    if case.has_memory and not case.reads_contexts:
        assert recall >= 0.35


@pytest.mark.parametrize("name", ["latent_cross", *map(slow, FUSIONS[1:])])
def test_contexts_of_another_user_in_each_session_do_not_help(name: str, tmp_path: Path) -> None:
    prepared = ring_dataset(tmp_path, 2, "user")
    (recall,) = recall_by_position(BY_NAME[name], prepared, tmp_path, assignment="per_session").values()
    assert recall <= 0.65


def test_in_sessions_of_six_gru4rec_knows_the_direction(tmp_path: Path) -> None:
    recall = recall_by_position(BY_NAME["gru4rec"], ring_dataset(tmp_path, 6, "user"), tmp_path)
    assert 0.35 <= recall[1] <= 0.65
    assert all(recall[position] > 0.99 for position in (2, 3, 4, 5))


@pytest.mark.parametrize("case", RING_CASES, ids=case_name)
def test_a_direction_per_session_is_known_by_memory_alone(case: ModelCase, tmp_path: Path) -> None:
    recall = recall_by_position(case, ring_dataset(tmp_path, 6, "session"), tmp_path)
    assert recall[1] <= 0.65
    for position in (2, 3, 4, 5):
        if case.has_memory:
            assert recall[position] > 0.98
        else:
            assert recall[position] <= 0.65


def hub_dataset(folder: Path, has_first: bool) -> PreparedDataset:
    """Sessions [g, hub, goal of g], g the user's group, or [hub, goal of g]."""
    splits = {}
    for name, count in (("train", 600), ("test", 60)):
        group = np.arange(count) % GROUPS
        first, goal = 1 + group[:, None], 1 + GROUPS + group[:, None]
        sessions = np.hstack([*([first] if has_first else []), np.full_like(first, HUB), goal])
        splits[name] = (sessions.tolist(), group.tolist())
    return write_dataset(folder, splits, 1 + 2 * GROUPS, single={"group": list(range(1, 1 + GROUPS))})


COUNTED = [case for case in MODELS if not case.is_trained]


@pytest.mark.parametrize("case", COUNTED, ids=case_name)
def test_the_goal_after_a_hub_needs_similar_sessions(case: ModelCase, tmp_path: Path) -> None:
    recall = recall_by_position(case, hub_dataset(tmp_path, has_first=True), tmp_path, cutoff=3)
    assert recall[2] == (1 if case.has_memory and case.name != "spop" else 0)


@pytest.mark.parametrize("case", COUNTED, ids=case_name)
def test_the_goal_after_a_hub_alone_needs_the_user(case: ModelCase, tmp_path: Path) -> None:
    (recall,) = recall_by_position(case, hub_dataset(tmp_path, has_first=False), tmp_path, cutoff=2).values()
    assert recall == 1 if case.reads_contexts else recall <= 2 / GROUPS

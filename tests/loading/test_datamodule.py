"""The data module: settings, contexts, splits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arnn_lightning.batch import ChunkSpec
from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import make_data, write_dataset

SAMPLED = ChunkSpec(frozenset(), full_catalogue=False, log_q=False)
FULL = ChunkSpec(frozenset(), full_catalogue=True, log_q=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "model.batch_size=0: must be 1 or more"),
        ({"steps_per_chunk": 0}, "performance.steps_per_execution=0: must be 1 or more"),
        ({"evaluation_batch_size": 0}, "evaluation.batch_size=0: must be 1 or more"),
        ({"n_sample": -1}, "model.n_sample=-1: must be 0 or more"),
        ({"sample_alpha": -0.5}, r"model.sample_alpha=-0\.5: must be 0 or more"),
        ({"sample_alpha": float("nan")}, r"model.sample_alpha=nan: must be 0 or more"),
        ({"negatives": "some"}, "model.negatives=some: choose global or local"),
        ({"assignment": "random"}, "data.contexts.assignment=random: choose own"),
        ({"batch_size": 1}, "model.batch_size=1 leaves no negatives"),
        ({"batch_size": 1, "n_devices": 2, "negatives": "local"}, "model.batch_size=1 leaves no negatives"),
    ],
)
def test_settings_out_of_range_are_users_errors(
    small_dataset: PreparedDataset, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_data(small_dataset, **settings).train_dataset(SAMPLED)


def test_one_slot_is_enough_with_other_negatives(small_dataset: PreparedDataset) -> None:
    for settings, spec in (({"n_sample": 1}, SAMPLED), ({}, FULL), ({"n_devices": 2}, SAMPLED)):
        assert len(make_data(small_dataset, batch_size=1, **settings).train_dataset(spec)) > 0


def test_contexts_of_an_unknown_user_are_the_last_row(small_dataset: PreparedDataset) -> None:
    contexts = make_data(small_dataset).user_contexts()
    # Codes of the second attribute follow the three of the first.
    assert contexts.single.tolist()[:3] == [[0, 3 + 1], [1, 3 + 1], [2, 3 + 0]]
    assert contexts.single[-1].tolist() == [0, 3]
    assert contexts.active[3].tolist() == [2, 3, 4]
    assert contexts.active[-1].tolist() == [-1, -1, -1]


def test_assignments_keep_permute_or_remove_contexts(small_dataset: PreparedDataset) -> None:
    def users(assignment: str, seed: int = 1) -> np.ndarray:
        return make_data(small_dataset, assignment=assignment, seed=seed).chunks("test", 4).sessions.user

    own = small_dataset.sessions("test").user
    assert (users("own") == own).all()
    assert (users("per_session") != own).any()
    assert sorted(users("per_session")) == sorted(own)
    assert (users("unknown") == 6).all()
    permuted = users("permuted")
    assert (permuted != own).any()
    assert all(len(set(permuted[own == user])) == 1 for user in set(own))  # one other user for good
    assert len(set(permuted)) == len(set(own))
    assert (users("permuted", seed=2) != permuted).any()


def test_sessions_are_read_back_as_written(tmp_path: Path) -> None:
    prepared = write_dataset(tmp_path, {"train": ([[0, 1], [2, 1, 0]], [1, 0]), "test": ([[1, 2]], [1])}, n_items=3)
    train, test = prepared.sessions("train"), prepared.sessions("test")
    assert train.item.tolist() == [0, 1, 2, 1, 0]
    assert train.offset.tolist() == [0, 2, 5]
    assert train.user.tolist() == [1, 0]
    assert test.session.tolist() == [2]
    assert train.n_predictions == 3


def test_without_validation_days_there_are_no_chunks(tmp_path: Path) -> None:
    prepared = write_dataset(tmp_path, {"train": ([[0, 1]], [0]), "test": ([[1, 0]], [0])}, n_items=2)
    assert make_data(prepared).val_dataloader() == []
    assert len(make_data(prepared).test_dataloader()) == 1


def test_a_resumed_loader_starts_at_its_chunk_once(small_dataset: PreparedDataset) -> None:
    loader = make_data(small_dataset, evaluation_batch_size=4).test_dataloader()
    chunks = iter(loader)
    next(chunks)
    next(chunks)
    state = loader.state_dict()
    assert state == {"chunk": 2}
    rest = len(list(chunks))
    assert loader.state_dict() == {"chunk": 0}  # after the last chunk comes the next epoch
    loader.load_state_dict(state)
    assert len(list(loader)) == rest
    assert len(list(loader)) == rest + 2

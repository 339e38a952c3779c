"""ItemKNN and POP against counting by hand."""

import itertools
import math

import numpy as np
import pytest
import torch

from arnn_lightning.errors import UserError
from arnn_lightning.models import itemknn
from helpers import make_model, make_sessions, random_sessions


def similarities(sessions: list[list[int]], n_items: int, shrinkage: float, alpha: float) -> np.ndarray:
    """Plain Python: sessions with both items, over the two supports."""
    sets = [set(session) for session in sessions]
    support = [sum(item in items for items in sets) for item in range(n_items)]
    table = np.zeros((n_items, n_items))
    for i, j in itertools.permutations(range(n_items), 2):
        cooccurrence = sum(i in items and j in items for items in sets)
        if cooccurrence:
            table[i, j] = cooccurrence / ((support[i] + shrinkage) ** alpha * (support[j] + shrinkage) ** (1 - alpha))
    return table


@pytest.mark.parametrize(("shrinkage", "alpha"), [(0, 0.5), (20, 0.5), (3, 0.8)])
@pytest.mark.parametrize("pairs", [1 << 22, 100, 1])
def test_scores_are_shrunk_cosines_of_binary_session_vectors(shrinkage, alpha, pairs, monkeypatch) -> None:
    monkeypatch.setattr(itemknn, "_PAIRS_PER_BLOCK", pairs)
    sessions = random_sessions(2, 40, 10)
    overrides = [f"model.shrinkage={shrinkage}", f"model.alpha={alpha}", "model.neighbours=10"]
    model = make_model("itemknn", {"n_items": 10}, *overrides)
    model.fit(make_sessions(sessions))
    score = model.score(torch.arange(10)[:, None])
    np.testing.assert_allclose(score.numpy(), similarities(sessions, 10, shrinkage, alpha), atol=1e-6)


def test_only_the_nearest_neighbours_score() -> None:
    sessions = random_sessions(3, 60, 12)
    model = make_model("itemknn", {"n_items": 12}, "model.neighbours=3", "model.shrinkage=0")
    model.fit(make_sessions(sessions))
    score = model.score(torch.arange(12)[:, None]).numpy()
    full = similarities(sessions, 12, 0, 0.5)
    for item in range(12):
        kept = np.flatnonzero(score[item])
        assert len(kept) <= 3
        assert item not in kept
        assert min(score[item][kept]) >= np.sort(full[item])[-3] - 1e-6


def test_ties_between_neighbours_go_to_the_smaller_code() -> None:
    model = make_model("itemknn", {"n_items": 4}, "model.neighbours=2", "model.shrinkage=0")
    model.fit(make_sessions([[0, 3], [2, 0], [0, 1]]))
    assert model.score(torch.tensor([[0]]))[0].nonzero()[:, 0].tolist() == [1, 2]


def test_ties_of_many_neighbours_go_to_the_smaller_code() -> None:
    model = make_model("itemknn", {"n_items": 30}, "model.neighbours=2", "model.shrinkage=0")
    model.fit(make_sessions([[0, item] for item in range(29, 0, -1)]))
    assert model.score(torch.tensor([[0]]))[0].nonzero()[:, 0].tolist() == [1, 2]


def test_a_long_session_does_not_widen_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(itemknn, "_PAIRS_PER_BLOCK", 2_000)
    counted = []
    update = itemknn.ItemKNN._keep_most_similar

    def count(self, cooccurrence, *arguments) -> None:
        counted.append(cooccurrence.nnz)
        update(self, cooccurrence, *arguments)

    monkeypatch.setattr(itemknn.ItemKNN, "_keep_most_similar", count)
    model = make_model("itemknn", {"n_items": 500}, "model.neighbours=3")
    model.fit(make_sessions([list(range(500)), *random_sessions(1, 50, 500)]))
    assert max(counted) <= 2_000
    assert sum(counted) >= 500 * 500


def test_a_repeated_item_counts_once_per_session() -> None:
    model = make_model("itemknn", {"n_items": 3}, "model.shrinkage=0")
    model.fit(make_sessions([[0, 0, 0, 1], [0, 2]]))
    assert model.score(torch.tensor([[0]]))[0].tolist() == pytest.approx([0, 1 / math.sqrt(2), 1 / math.sqrt(2)])


def test_zero_neighbours_are_a_users_error() -> None:
    with pytest.raises(UserError, match=r"model\.neighbours=0"):
        make_model("itemknn", {"n_items": 3}, "model.neighbours=0")


def test_pop_scores_the_number_of_training_events() -> None:
    model = make_model("pop", {"n_items": 4})
    model.fit(make_sessions([[0, 0, 1], [3, 0]]))
    assert model.score(torch.zeros(2, 1)).tolist() == [[3, 1, 0, 1]] * 2

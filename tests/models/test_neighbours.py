"""Counted session models against their published formulas in plain Python."""

import math
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from arnn_lightning.batch import Contexts
from arnn_lightning.models import decay
from helpers import make_model, make_sessions, random_sessions

N_ITEMS = 12
DECAYS: dict[str, Callable[[float], float]] = {
    "same": lambda step: 1,
    "div": lambda step: 1 / step,
    "linear": lambda step: max(0, 1 - 0.1 * step),
    "log": lambda step: 1 / math.log10(step + 1.7),
    "quadratic": lambda step: 1 / step**2,
}
DAY = 86_400
SKNN: dict[str, Any] = {"neighbours": 4, "sample_size": 9, "last_n_events": 5}
VSKNN = SKNN | {"similarity": "dot", "weighting": "div", "weighting_score": "div", "idf_weighting": 0.0}
STAN = SKNN | {"lambda_spw": 1.02, "lambda_snh": 0.1, "lambda_inh": 2.05}
VSTAN = STAN | {"lambda_ipw": 1.5, "lambda_idf": 5.0, "context_weight": 0.0}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("sknn", SKNN),
    ("sknn", SKNN | {"neighbours": 50, "sample_size": 50}),
    ("sknn", SKNN | {"last_n_events": 2}),
    ("vsknn", VSKNN),
    ("vsknn", VSKNN | {"similarity": "cosine", "idf_weighting": 3.0}),
    *(("vsknn", VSKNN | {"weighting": name, "weighting_score": "same"}) for name in DECAYS),
    *(("vsknn", VSKNN | {"weighting": "same", "weighting_score": name}) for name in DECAYS),
    ("stan", STAN),
    ("stan", STAN | {"lambda_spw": None}),
    ("stan", STAN | {"lambda_snh": None}),
    ("stan", STAN | {"lambda_inh": None}),
    ("stan", STAN | {"lambda_snh": 1e-5}),  # all but the latest neighbours are below the smallest float
    ("vstan", VSTAN),
    ("vstan", VSTAN | {"lambda_ipw": None, "lambda_idf": None}),
    ("vstan", VSTAN | {"context_weight": 2.0}),
]
ATTRIBUTES = [{0, 3}, {0, 4}, {1, 5, 6}, set(), {6}]  # of each user; fields {0, 1, 2}, {3, 4} and binary 5, 6


def contexts() -> Contexts:
    """``ATTRIBUTES`` as codes: in the table each field has one row more, for unknown; unknown users come last."""
    single = torch.tensor([[1, 5], [1, 6], [2, 4], [0, 4], [0, 4], [0, 4]])
    active = torch.tensor([[-1, -1], [-1, -1], [0, 1], [-1, -1], [1, -1], [-1, -1]])
    return Contexts(single, active)


def exponential(distance: float, scale: float | None) -> float:
    return 1 if scale is None else math.exp(-distance / scale)


def agreement(user: int, other: int) -> float:
    first, second = ATTRIBUTES[user], ATTRIBUTES[other]
    return len(first & second) / math.sqrt(len(first) * len(second)) if first and second else 0.0


def event_weight(values: dict[str, Any], place: int, length: int) -> float:
    """Of the event at ``place`` (1, 2, ...) of the current session."""
    weighting = values.get("weighting", "same")
    if weighting in ("div", "quadratic"):
        return (place / length) ** (1 if weighting == "div" else 2)
    return DECAYS[weighting](length - place) * exponential(length - place, values.get("lambda_spw"))


def plain_scores(
    train: list[list[int]], users: list[int], values: dict[str, Any], session: list[int], user: int
) -> list[float]:
    """session-rec's logic for one prediction; session n of ``train`` ends at 1000 n, equal similarities by recency."""
    session = session[-values["last_n_events"] :]
    weight = {item: event_weight(values, place, len(session)) for place, item in enumerate(session, 1)}
    candidates = [n for n, items in enumerate(train) if weight.keys() & set(items)][-values["sample_size"] :]
    similarity = {}
    for n in candidates:
        shared = weight.keys() & set(train[n])
        value = sum(weight[item] for item in sorted(shared, key=session.index))
        if values.get("similarity") != "dot":
            value /= math.sqrt(len(set(train[n])))
        value *= exponential(1000 * (max(candidates) - n) / DAY, values.get("lambda_snh"))
        similarity[n] = value * (1 + values.get("context_weight", 0) * agreement(user, users[n]))
    # In float32, as equal sums that were added in another order are equal there.
    nearest = sorted(candidates, key=lambda n: (np.float32(similarity[n]), n), reverse=True)[: values["neighbours"]]
    events = Counter(item for items in train for item in items)
    scores = [0.0] * N_ITEMS
    for n in nearest:
        step = next(step for step, item in enumerate(reversed(session), 1) if item in train[n])
        last = {item: place for place, item in enumerate(train[n])}
        shared_place = max(place for item, place in last.items() if item in weight)
        recency = DECAYS[values.get("weighting_score", "same")](step) * exponential(step - 1, values.get("lambda_ipw"))
        for item, place in last.items():
            idf = math.log(len(train) / events[item])
            rarity = 1 + (values.get("idf_weighting") or values.get("lambda_idf") or 0) * idf
            closeness = exponential(abs(place - shared_place), values.get("lambda_inh"))
            scores[item] += similarity[n] * recency * closeness * rarity
    return scores


def overrides(values: dict[str, Any]) -> list[str]:
    return [f"model.{key}={'null' if value is None else value}" for key, value in values.items()]


def scores_of(model: Any, sessions: list[list[int]], users: list[int]) -> np.ndarray:
    """Scores after the last event of every session."""
    queries = []
    for session, user in zip(sessions, users, strict=True):
        state = model.initial_state(1)
        for item in session:
            query, state = model.encode(model.step_input(torch.tensor([item]), torch.tensor([user]), None), state)
        queries.append(query)
    scores: np.ndarray = model.score(torch.cat(queries)).numpy()
    return scores


@pytest.mark.parametrize(("name", "values"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_equal_the_formula_for_one_prediction(
    name: str, values: dict[str, Any], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arnn_lightning.models.neighbours._BLOCK_QUERIES", 128)
    train = random_sessions(seed, 60, N_ITEMS)
    users = np.random.default_rng(seed).integers(0, 5, 60).tolist()
    dims = {"n_items": N_ITEMS, "single_sizes": [4, 3], "n_binary": 2}
    model = make_model(name, dims, *overrides(values))
    model.set_user_contexts(contexts())
    model.fit(make_sessions(train, users))
    sessions = random_sessions(seed + 2, 150, N_ITEMS, longest=8)  # more than one block of queries
    expected = [plain_scores(train, users, values, session, index % 5) for index, session in enumerate(sessions)]
    scores = scores_of(model, sessions, [index % 5 for index in range(150)])
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-12)


def test_windows_may_be_longer_than_a_byte_counts() -> None:
    values = VSKNN | {"last_n_events": 300, "weighting_score": "log"}
    model = make_model("vsknn", {"n_items": N_ITEMS, "single_sizes": [], "n_binary": 0}, *overrides(values))
    train = random_sessions(0, 60, N_ITEMS)
    model.fit(make_sessions(train))
    session = [0, *[1] * 270, 2]
    expected = plain_scores(train, [0] * 60, values, session, 0)
    np.testing.assert_allclose(scores_of(model, [session], [0])[0], expected, rtol=1e-5)


def test_memory_does_not_grow_with_the_length_of_sessions() -> None:
    """The items of all neighbours of 256 predictions would take 40 MB and more at once."""
    train = np.random.default_rng(0).integers(0, 500, (400, 200)).tolist()
    model = make_model("vstan", {"n_items": 500, "single_sizes": [], "n_binary": 0})
    model.fit(make_sessions(train))
    window_NL = torch.randint(1, 501, (256, model.last_n_events))
    model.score(window_NL[:1])
    tracemalloc.start()
    model.score(window_NL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def test_linear_weights_stay_at_zero_beyond_ten_events() -> None:
    assert decay.DECAYS["linear"](np.array([1, 10, 30])).tolist() == [0.9, 0, 0]


def test_a_session_without_similar_ones_scores_zero() -> None:
    model = make_model("vstan", {"n_items": N_ITEMS, "single_sizes": [], "n_binary": 0})
    model.fit(make_sessions([[0, 1, 0]]))
    assert not scores_of(model, [[2, 3]], [0]).any()
    assert (scores_of(model, [[2, 3], [1]], [0, 0]).any(1) == [False, True]).all()


def test_fit_does_not_depend_on_the_order_of_sessions() -> None:
    train = random_sessions(0, 40, N_ITEMS)
    dims = {"n_items": N_ITEMS, "single_sizes": [], "n_binary": 0}
    models = [make_model("stan", dims, *overrides(STAN)) for _ in range(2)]
    sessions = make_sessions(train)
    models[0].fit(sessions)
    backwards = make_sessions(train[::-1])
    object.__setattr__(backwards, "time", sessions.time[::-1])
    models[1].fit(backwards)
    assert all(torch.equal(value, models[1].state_dict()[key]) for key, value in models[0].state_dict().items())


def test_only_sessions_that_can_be_candidates_are_kept() -> None:
    dims = {"n_items": 4, "single_sizes": [], "n_binary": 0}
    model = make_model("sknn", dims, "model.sample_size=2")
    model.fit(make_sessions([[0, 1], [0, 2], [0, 1, 1], [0, 1]]))
    assert len(model.time) == 3  # [0, 1] has two later sessions for each of its items
    assert model.item.tolist() == [0, 2, 0, 1, 0, 1]
    assert model.position.tolist() == [1, 2, 1, 3, 1, 2]


@pytest.mark.parametrize("weighting", list(DECAYS))
@pytest.mark.parametrize("rows", [512, 5])
def test_sr_adds_the_weight_of_every_distance(weighting: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arnn_lightning.models.sr._ROWS_PER_BLOCK", rows)
    train = random_sessions(0, 60, N_ITEMS)
    settings = [f"model.weighting={weighting}", "model.steps=3", "model.neighbours=12"]
    model = make_model("sr", {"n_items": N_ITEMS}, *settings)
    model.fit(make_sessions(train))
    expected = np.zeros((N_ITEMS, N_ITEMS))
    for session in train:
        for place, item in enumerate(session):
            for step in range(1, min(3, place) + 1):
                expected[session[place - step], item] += DECAYS[weighting](step)
    np.testing.assert_allclose(model.score(torch.arange(N_ITEMS)[:, None]), expected, rtol=1e-5)


def test_sr_keeps_the_strongest_rules() -> None:
    model = make_model("sr", {"n_items": 5}, "model.neighbours=2")
    model.fit(make_sessions([[0, 1], [0, 2], [0, 2], [0, 3]]))
    assert model.score(torch.tensor([[0]]))[0].tolist() == [0, 1, 2, 0, 0]


def test_spop_counts_the_session_and_breaks_ties_by_popularity() -> None:
    model = make_model("spop", {"n_items": 4}, "model.last_n_events=3")
    model.fit(make_sessions([[0, 0, 1], [3, 0]]))
    scores = scores_of(model, [[2, 1, 1, 3]], [0])  # the first 2 is beyond the last three events
    np.testing.assert_allclose(scores, [[3 / 4, 2 + 1 / 2, 0, 1 + 1 / 2]])


def test_a_checkpoint_restores_the_training_sessions() -> None:
    dims = {"n_items": N_ITEMS, "single_sizes": [4, 3], "n_binary": 2}
    models = [make_model("vstan_context", dims) for _ in range(2)]
    for model in models:
        model.set_user_contexts(contexts())
    models[0].fit(make_sessions(random_sessions(0, 40, N_ITEMS), [index % 5 for index in range(40)]))
    models[1].load_state_dict(models[0].state_dict())
    first, second = (scores_of(model, [[1, 2], [3, 4, 5]], [0, 2]) for model in models)
    assert first.any()
    np.testing.assert_array_equal(first, second)

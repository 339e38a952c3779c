"""Laws of windows, lookups and negatives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from arnn_lightning.errors import UserError
from arnn_lightning.loading.datamodule import TrainingWindows, Windows, lookups
from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import make_data, make_sessions, random_sessions, write_world


def windows_of(sessions: list[list[int]], lanes: int, steps: int) -> Windows:
    made = make_sessions(sessions, first=100)
    return Windows(made, made.user, lanes, steps)


@given(st.integers(0, 50), st.integers(1, 9), st.integers(1, 7))
def test_E4_windows_of_any_size_show_each_attempt_once(seed: int, lanes: int, steps: int) -> None:
    sessions = random_sessions(seed, 12, 9)
    windows = windows_of(sessions, lanes, steps)
    seen = []
    for index in range(len(windows)):
        window = windows[(0, index)]
        assert len(window.item) == steps or index == len(windows) - 1
        seen += zip(
            *(getattr(window, name)[window.alive].tolist() for name in ("session", "position", "item", "target")),
            strict=True,
        )
    expected = [
        (100 + number, place + 1, session[place], session[place + 1])
        for number, session in enumerate(sessions)
        for place in range(len(session) - 1)
    ]
    assert sorted(seen) == sorted(expected)


def test_a_dead_lane_holds_item_0_and_never_starts() -> None:
    window = windows_of([[3, 4, 5]], lanes=3, steps=2)[(0, 0)]
    assert window.alive.tolist() == [[True, False, False]] * 2
    assert not window.item[:, 1:].any()
    assert not window.start[:, 1:].any()


@given(st.integers(0, 1000), st.sampled_from([1, 1000]))  # a small catalogue and a large one: two ways
def test_lookups_give_back_the_ids_from_sorted_unique_rows(seed: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(rng.integers(0, 6, (4, 8))) * spread
    real = torch.from_numpy(rng.random((4, 8)) < 0.6)
    real[torch.arange(4), torch.from_numpy(rng.integers(0, 8, 4))] = True
    for k, lookup in enumerate(lookups(ids, real)):
        assert torch.equal(lookup.rows[lookup.inverse][real[k]], ids[k][real[k]])
        assert lookup.rows.tolist() == sorted(set(ids[k][real[k]].tolist()))
        assert set(lookup.rows[lookup.inverse].tolist()) == set(lookup.rows.tolist())


def training_windows(n_sample: int, alpha: float, seed: int = 3, log_q: bool = False) -> TrainingWindows:
    sessions = [[0, 1, 0], [0, 2], [0, 0, 3]] * 10
    return TrainingWindows(windows_of(sessions, 5, 4), 5, 5, n_sample, alpha, False, log_q, seed)


def assert_drawn_by(drawn: np.ndarray, probability: np.ndarray) -> None:
    """Counts of independent draws differ from what is expected by no more than one time in 10,000."""
    counts = np.bincount(drawn, minlength=len(probability))
    assert not counts[probability == 0].any()
    expected = len(drawn) * probability[probability > 0]
    distance = ((counts[probability > 0] - expected) ** 2 / expected).sum()
    assert distance < chi2.ppf(1 - 1e-4, len(expected) - 1)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.75, 1.0])
def test_extra_negatives_follow_popularity_to_the_power_of_alpha(alpha: float) -> None:
    windows = training_windows(n_sample=4000, alpha=alpha)
    scored = [lookup for index in range(len(windows)) for lookup in windows[(0, index)].scored]
    drawn = torch.cat([lookup.rows[lookup.inverse][5:] for lookup in scored]).numpy()
    weight = np.array([50, 10, 10, 10, 0]) ** alpha  # item 4 has no event: drawn where all items are alike only
    assert len(drawn) == 4000 * len(windows.windows.schedule.event)
    assert_drawn_by(drawn, weight / weight.sum())


def test_log_q_is_how_often_columns_beside_ones_own_show_an_item() -> None:
    rng = np.random.default_rng(0)
    sessions = [rng.choice(6, 4, p=[0.5, 0.2, 0.1, 0.1, 0.06, 0.04]).tolist() for _ in range(4000)]
    windows = TrainingWindows(windows_of(sessions, 8, 50), 6, 8, 4, 0.5, False, True, seed=3)
    seen, log_q = [], {}
    for index in range(len(windows) - 5):  # all lanes alive
        batch = windows[(0, index)]
        for k, lookup in enumerate(batch.scored):
            items = lookup.rows[lookup.inverse]
            seen.append(items[1:])  # beside the first lane's own
            log_q |= dict(zip(lookup.rows.tolist(), batch.log_q[k].tolist(), strict=True))
    share = np.bincount(torch.cat(seen).numpy(), minlength=6) / sum(map(len, seen))
    q = np.exp([log_q[item] for item in range(6)])
    assert q.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(q, share, rtol=0.03)


def test_log_q_is_finite_for_every_scored_item() -> None:
    for n_sample in (0, 3):
        windows = training_windows(n_sample, 0.5, log_q=True)
        for index in range(len(windows)):
            batch = windows[(0, index)]
            assert all(torch.isfinite(one).all() for one in batch.log_q)
    assert training_windows(3, 0.5)[(0, 0)].log_q is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lanes": 0}, "model.batch_size=0: must be 1 or more"),
        ({"steps": 0}, "performance.steps_per_execution=0: must be 1 or more"),
        ({"evaluation_lanes": 0}, "evaluation.batch_size=0: must be 1 or more"),
        ({"n_sample": -1}, "model.n_sample=-1: must be 0 or more"),
        ({"sample_alpha": -0.5}, r"model.sample_alpha=-0\.5: must be 0 or more"),
        ({"lanes": 1}, "model.batch_size=1 leaves no negatives"),
    ],
)
def test_settings_that_cannot_be_are_users_errors(small_world: PreparedDataset, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_data(small_world, **settings).train_dataloader()
    for enough in ({"n_sample": 1}, {"score_all": True}):
        make_data(small_world, lanes=1, **enough).train_dataloader()


def test_extra_negatives_depend_on_epoch_window_and_seed_alone() -> None:
    windows = training_windows(n_sample=50, alpha=0.5)
    drawn = {
        (seed, place): training_windows(50, 0.5, seed)[place].scored[0].inverse.tolist()
        for seed in (3, 4)
        for place in ((0, 0), (1, 0), (0, 1))
    }
    windows[(1, 0)]
    assert windows[(0, 0)].scored[0].inverse.tolist() == drawn[3, (0, 0)]
    assert len({tuple(one) for one in drawn.values()}) == len(drawn)


def test_contexts_of_an_unknown_user_stand_in_the_last_row(small_world: PreparedDataset) -> None:
    contexts = make_data(small_world).contexts()
    assert contexts.single.tolist()[:3] == [[0, 1], [1, 1], [2, 0]]
    assert contexts.single[-1].tolist() == [0, 0]
    assert contexts.active[3].tolist() == [2, 3, 4]
    assert contexts.active[-1].tolist() == [-1, -1, -1]


def test_draw_session_shows_other_contexts_but_constant_shows_none(small_world: PreparedDataset) -> None:
    def users(draw: str) -> np.ndarray:
        return make_data(small_world, assignment=draw)._windows("test", 4).users

    own = small_world.sessions("test").user
    assert (users("own") == own).all()
    assert (users("per_session") != own).any()
    assert sorted(users("per_session")) == sorted(own)
    assert (users("unknown") == 6).all()


def test_sessions_are_read_back_as_written(tmp_path: Path) -> None:
    prepared = write_world(tmp_path, {"train": ([[0, 1], [2, 1, 0]], [1, 0]), "test": ([[1, 2]], [1])}, n_items=3)
    train, test = prepared.sessions("train"), prepared.sessions("test")
    assert train.item.tolist() == [0, 1, 2, 1, 0]
    assert train.offset.tolist() == [0, 2, 5]
    assert train.user.tolist() == [1, 0]
    assert test.session.tolist() == [2]
    assert train.n_predictions == 3


def test_without_validation_days_there_is_nothing_to_validate_on(tmp_path: Path) -> None:
    prepared = write_world(tmp_path, {"train": ([[0, 1]], [0]), "test": ([[1, 0]], [0])}, n_items=2)
    assert make_data(prepared).val_dataloader() == []
    assert len(make_data(prepared).test_dataloader()) == 1

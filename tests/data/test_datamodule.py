"""Laws of windows, lookups and negatives."""

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from arnn_lightning.data.datamodule import TrainingWindows, Windows, lookups
from arnn_lightning.data.prepare import Prepared
from conftest import make_data, make_sessions, random_sessions, write_world


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


@given(st.integers(0, 1000))
def test_lookups_give_back_the_ids_from_sorted_unique_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(rng.integers(0, 6, (4, 8)))
    real = torch.from_numpy(rng.random((4, 8)) < 0.6)
    real[torch.arange(4), torch.from_numpy(rng.integers(0, 8, 4))] = True
    for k, lookup in enumerate(lookups(ids, real)):
        assert torch.equal(lookup.rows[lookup.inverse][real[k]], ids[k][real[k]])
        assert lookup.rows.tolist() == sorted(set(ids[k][real[k]].tolist()))
        assert set(lookup.rows[lookup.inverse].tolist()) == set(lookup.rows.tolist())


def training_windows(n_sample: int, alpha: float, seed: int = 3) -> TrainingWindows:
    sessions = [[0, 1, 0], [0, 2], [0, 0, 3]] * 10
    return TrainingWindows(windows_of(sessions, 5, 4), 5, n_sample, alpha, False, seed)


def test_extra_negatives_follow_popularity_to_the_power_of_alpha() -> None:
    windows = training_windows(n_sample=4000, alpha=0.5)
    scored = windows[(0, 0)].scored
    drawn = torch.cat([lookup.rows[lookup.inverse][5:] for lookup in scored])
    share = np.bincount(drawn.numpy(), minlength=5) / len(drawn)
    weight = np.array([50, 10, 10, 10, 0]) ** 0.5
    np.testing.assert_allclose(share, weight / weight.sum(), atol=0.02)


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


def test_contexts_of_an_unknown_user_stand_in_the_last_row(small_world: Prepared) -> None:
    contexts = make_data(small_world).contexts()
    assert contexts.single.tolist()[:3] == [[0, 1], [1, 1], [2, 0]]
    assert contexts.single[-1].tolist() == [0, 0]
    assert contexts.active[3].tolist() == [2, 3, 4]
    assert contexts.active[-1].tolist() == [-1, -1, -1]


def test_draw_session_shows_other_contexts_but_constant_shows_none(small_world: Prepared) -> None:
    def users(draw: str) -> np.ndarray:
        return make_data(small_world, draw=draw)._windows("test", 4).users

    own = small_world.sessions("test").user
    assert (users("user") == own).all()
    assert (users("session") != own).any()
    assert sorted(users("session")) == sorted(own)
    assert (users("constant") == 6).all()


def test_sessions_are_read_back_as_written(tmp_path: Path) -> None:
    prepared = write_world(tmp_path, {"train": ([[0, 1], [2, 1, 0]], [1, 0]), "test": ([[1, 2]], [1])}, n_items=3)
    train, test = prepared.sessions("train"), prepared.sessions("test")
    assert train.item.tolist() == [0, 1, 2, 1, 0]
    assert train.offset.tolist() == [0, 2, 5]
    assert train.user.tolist() == [1, 0]
    assert test.session.tolist() == [2]
    assert train.targets == 3


def test_without_validation_days_there_is_nothing_to_validate_on(tmp_path: Path) -> None:
    prepared = write_world(tmp_path, {"train": ([[0, 1]], [0]), "test": ([[1, 0]], [0])}, n_items=2)
    assert make_data(prepared).val_dataloader() == []
    assert len(make_data(prepared).test_dataloader()) == 1

"""Laws of the session-parallel schedule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arnn_lightning.loading.schedule import DEAD, schedule

lengths = st.lists(st.integers(2, 9), min_size=1, max_size=40)
lanes = st.integers(1, 12)


def offsets(lengths: list[int]) -> np.ndarray:
    return np.cumsum([0, *lengths])


def reference(lengths: list[int], lanes: int) -> list[list[tuple[int, int] | None]]:
    """Plain Python: at every step, lanes that are free take the next session, the lowest lane first."""
    waiting = list(range(len(lengths)))
    lane: list[tuple[int, int] | None] = [None] * lanes
    steps = []
    while True:
        for index in range(lanes):
            if lane[index] is None and waiting:
                lane[index] = (waiting.pop(0), 0)
        if not any(lane):
            return steps
        steps.append(list(lane))
        for index, busy in enumerate(lane):
            if busy is not None:
                session, position = busy
                lane[index] = (session, position + 1) if position + 2 < lengths[session] else None


@given(lengths, lanes)
def test_E4_every_event_but_a_sessions_last_is_shown_exactly_once(lengths: list[int], lanes: int) -> None:
    offset = offsets(lengths)
    plan = schedule(offset, lanes)
    shown = np.sort(plan.event[plan.event != DEAD])
    expected = np.setdiff1d(np.arange(offset[-1]), offset[1:] - 1)
    assert shown.tolist() == expected.tolist()


@given(lengths, lanes)
def test_E1_a_lane_starts_afresh_exactly_at_a_sessions_first_event(lengths: list[int], lanes: int) -> None:
    offset = offsets(lengths)
    plan = schedule(offset, lanes)
    alive = plan.event != DEAD
    assert (plan.start == (alive & np.isin(plan.event, offset[:-1]))).all()
    assert plan.start.sum() == len(lengths)


@given(lengths, lanes)
def test_a_lane_shows_a_session_without_a_pause(lengths: list[int], lanes: int) -> None:
    plan = schedule(offsets(lengths), lanes)
    follows = (plan.event[1:] != DEAD) & ~plan.start[1:]
    assert (plan.event[1:][follows] == plan.event[:-1][follows] + 1).all()


@given(lengths, lanes)
def test_the_order_is_that_of_the_official_code(lengths: list[int], lanes: int) -> None:
    offset = offsets(lengths)
    plan = schedule(offset, lanes)
    expected = [
        [DEAD if busy is None else offset[busy[0]] + busy[1] for busy in step] for step in reference(lengths, lanes)
    ]
    assert plan.event.tolist() == expected


@given(lengths, lanes)
def test_E5_fewer_sessions_than_lanes_leave_lanes_dead(lengths: list[int], lanes: int) -> None:
    plan = schedule(offsets(lengths), len(lengths) + lanes)
    assert (plan.event[:, len(lengths) :] == DEAD).all()
    assert (plan.session[plan.event == DEAD] == DEAD).all()


def test_E5_one_session_works_in_many_lanes() -> None:
    plan = schedule(np.array([0, 3]), 4)
    assert plan.event.tolist() == [[0, DEAD, DEAD, DEAD], [1, DEAD, DEAD, DEAD]]


def test_E6_a_session_of_one_event_is_refused() -> None:
    with pytest.raises(ValueError, match="two events"):
        schedule(np.array([0, 1, 3]), 2)

"""Laws of the session-parallel schedule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arnn_lightning.loading.schedule import EMPTY, session_parallel_schedule

lengths = st.lists(st.integers(2, 9), min_size=1, max_size=40)
batch_sizes = st.integers(1, 12)


def offsets(lengths: list[int]) -> np.ndarray:
    return np.cumsum([0, *lengths])


def reference(lengths: list[int], batch_size: int) -> list[list[tuple[int, int] | None]]:
    """Plain Python: at every step, free slots take the next session, the lowest slot first."""
    waiting = list(range(len(lengths)))
    slots: list[tuple[int, int] | None] = [None] * batch_size
    steps = []
    while True:
        for slot in range(batch_size):
            if slots[slot] is None and waiting:
                slots[slot] = (waiting.pop(0), 0)
        if not any(slots):
            return steps
        steps.append(list(slots))
        for slot, busy in enumerate(slots):
            if busy is not None:
                session, position = busy
                slots[slot] = (session, position + 1) if position + 2 < lengths[session] else None


@given(lengths, batch_sizes)
def test_E4_every_event_but_the_last_of_a_session_is_shown_once(lengths: list[int], batch_size: int) -> None:
    offset = offsets(lengths)
    schedule = session_parallel_schedule(offset, batch_size)
    shown = np.sort(schedule.event[schedule.event != EMPTY])
    expected = np.setdiff1d(np.arange(offset[-1]), offset[1:] - 1)
    assert shown.tolist() == expected.tolist()


@given(lengths, batch_sizes)
def test_E1_a_session_start_is_exactly_its_first_event(lengths: list[int], batch_size: int) -> None:
    offset = offsets(lengths)
    schedule = session_parallel_schedule(offset, batch_size)
    valid = schedule.event != EMPTY
    assert (schedule.is_session_start == (valid & np.isin(schedule.event, offset[:-1]))).all()
    assert schedule.is_session_start.sum() == len(lengths)


@given(lengths, batch_sizes)
def test_a_slot_shows_a_session_without_a_gap(lengths: list[int], batch_size: int) -> None:
    schedule = session_parallel_schedule(offsets(lengths), batch_size)
    follows = (schedule.event[1:] != EMPTY) & ~schedule.is_session_start[1:]
    assert (schedule.event[1:][follows] == schedule.event[:-1][follows] + 1).all()


@given(lengths, batch_sizes)
def test_the_order_is_that_of_the_official_code(lengths: list[int], batch_size: int) -> None:
    offset, steps = offsets(lengths), reference(lengths, batch_size)
    schedule = session_parallel_schedule(offset, batch_size)
    events = [[EMPTY if busy is None else offset[busy[0]] + busy[1] for busy in step] for step in steps]
    assert schedule.event.tolist() == events
    assert schedule.session.tolist() == [[EMPTY if busy is None else busy[0] for busy in step] for step in steps]


@given(lengths, batch_sizes)
def test_E5_fewer_sessions_than_slots_leave_slots_empty(lengths: list[int], batch_size: int) -> None:
    schedule = session_parallel_schedule(offsets(lengths), len(lengths) + batch_size)
    assert (schedule.event[:, len(lengths) :] == EMPTY).all()
    assert (schedule.session[schedule.event == EMPTY] == EMPTY).all()


def test_E5_one_session_works_in_many_slots() -> None:
    schedule = session_parallel_schedule(np.array([0, 3]), 4)
    assert schedule.event.tolist() == [[0, EMPTY, EMPTY, EMPTY], [1, EMPTY, EMPTY, EMPTY]]


def test_E6_a_session_of_one_event_is_refused() -> None:
    with pytest.raises(ValueError, match="two events"):
        session_parallel_schedule(np.array([0, 1, 3]), 2)
    with pytest.raises(ValueError, match="two events"):
        session_parallel_schedule(np.array([0]), 2)

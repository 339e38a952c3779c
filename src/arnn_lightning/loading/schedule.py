"""Session-parallel schedule: which event each batch slot shows at each step of an epoch.

The order is GRU4Rec's (Hidasi et al. 2016, arXiv 1511.06939, section 3.1.1): a fixed number of batch slots; the slot
whose session ends first takes the next session.
"""

import heapq
from dataclasses import dataclass

import numpy as np

EMPTY = -1


@dataclass(frozen=True)
class Schedule:
    """T steps of B batch slots over the E events of a split.

    Attributes:
        event: (T, B) index of each slot's event, EMPTY where the slot has no session.
        is_session_start: (T, B) True at the first event of a session.
        session: (T, B) index of the session, EMPTY likewise.
    """

    event: np.ndarray
    is_session_start: np.ndarray
    session: np.ndarray


def session_parallel_schedule(offset: np.ndarray, batch_size: int) -> Schedule:
    """Assigns all sessions to batch slots; every event but a session's last is shown exactly once (E4).

    Args:
        offset: (S + 1,) where each session starts among the events; a session has at least two events.
        batch_size: number of slots B; it may exceed the number of sessions (E5).

    Raises:
        ValueError: a session of fewer than two events, which has no target.
    """
    steps = np.diff(offset) - 1
    if len(steps) == 0 or steps.min() < 1:
        raise ValueError("every session needs at least two events")
    n_sessions = len(steps)
    slot_of = np.empty(n_sessions, np.int64)
    first_step = np.empty(n_sessions, np.int64)
    free_slots = [(0, slot) for slot in range(batch_size)]  # (step from which the slot is free, slot): a heap
    for session_index, length in enumerate(steps.tolist()):
        free_from, slot = free_slots[0]
        slot_of[session_index], first_step[session_index] = slot, free_from
        heapq.heapreplace(free_slots, (free_from + length, slot))
    total = int((first_step + steps).max())

    session_of = np.repeat(np.arange(n_sessions), steps)
    position = np.arange(len(session_of)) - np.repeat(np.cumsum(steps) - steps, steps)
    where = (first_step[session_of] + position, slot_of[session_of])
    event = np.full((total, batch_size), EMPTY, np.int64)
    session = np.full((total, batch_size), EMPTY, np.int64)
    is_session_start = np.zeros((total, batch_size), bool)
    event[where] = offset[session_of] + position
    session[where] = session_of
    is_session_start[where] = position == 0
    return Schedule(event, is_session_start, session)

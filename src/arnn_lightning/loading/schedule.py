"""Session-parallel schedule: which event each lane shows at each step of an epoch.

The order is GRU4Rec's (Hidasi et al. 2016, arXiv 1511.06939, section 3.1.1): a fixed number of lanes, and the lane
that ends first takes the next session.
"""

import heapq
from dataclasses import dataclass

import numpy as np

DEAD = -1


@dataclass(frozen=True)
class Schedule:
    """T steps of B lanes over the E events of a split.

    Attributes:
        event: (T, B) index of the event that each lane shows, DEAD where the lane has no session.
        start: (T, B) True where a lane shows the first event of a session.
        session: (T, B) index of the session, DEAD likewise.
    """

    event: np.ndarray
    start: np.ndarray
    session: np.ndarray


def schedule(offset: np.ndarray, lanes: int) -> Schedule:
    """Lays all sessions into lanes; every event but a session's last is shown exactly once (E4).

    Args:
        offset: (S + 1,) where each session starts among the events; a session has at least two events.
        lanes: number of lanes B, more than sessions allowed (E5).

    Raises:
        ValueError: a session of fewer than two events, which would have nothing to predict.
    """
    steps = np.diff(offset) - 1
    if len(steps) == 0 or steps.min() < 1:
        raise ValueError("every session needs two events or more")
    count = len(steps)
    lane = np.empty(count, np.int64)
    first = np.empty(count, np.int64)
    busy = [(0, free) for free in range(lanes)]  # (step at which the lane becomes free, lane): already a heap
    for index, length in enumerate(steps.tolist()):
        free_at, free = busy[0]
        lane[index], first[index] = free, free_at
        heapq.heapreplace(busy, (free_at + length, free))
    total = int((first + steps).max())

    shown = np.repeat(np.arange(count), steps)
    position = np.arange(len(shown)) - np.repeat(np.cumsum(steps) - steps, steps)
    where = (first[shown] + position, lane[shown])
    event = np.full((total, lanes), DEAD, np.int64)
    session = np.full((total, lanes), DEAD, np.int64)
    start = np.zeros((total, lanes), bool)
    event[where] = offset[shown] + position
    session[where] = shown
    start[where] = position == 0
    return Schedule(event, start, session)

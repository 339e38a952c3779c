"""Whose contexts a session sees (controls)."""

from typing import Literal

import numpy as np

from arnn_lightning.errors import UserError

Assignment = Literal["own", "permuted", "per_session", "unknown"]


def assign_contexts(users: np.ndarray, n_users: int, assignment: Assignment, seed: int) -> np.ndarray:
    """The user whose contexts each session gets: (S,) users of the sessions -> (S,) users.

    Args:
        users: user code of every session.
        n_users: number of users U.
        assignment: ``own``; ``permuted``: every user gets the contexts of one other user for good; ``per_session``:
            the sessions of a split swap users, so that contexts keep their frequencies and carry no information;
            ``unknown``: the user code U, the row past the last, stands for unknown contexts.
        seed: of the permutation.

    Raises:
        UserError: another ``assignment``.
    """
    rng = np.random.default_rng(seed)
    if assignment == "own":
        return users
    if assignment == "permuted":
        assigned: np.ndarray = rng.permutation(n_users)[users]
        return assigned
    if assignment == "per_session":
        return rng.permutation(users)
    if assignment == "unknown":
        return np.full_like(users, n_users)
    raise UserError(f"data.contexts.assignment={assignment}: choose own, permuted, per_session or unknown")

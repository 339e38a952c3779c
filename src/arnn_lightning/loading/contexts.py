"""Whose contexts a session sees (controls)."""

from typing import Literal

import numpy as np

from arnn_lightning.errors import UserError

Draw = Literal["user", "session", "permuted", "constant"]


def draw_users(users: np.ndarray, n_users: int, draw: Draw, seed: int) -> np.ndarray:
    """Whose contexts each session sees: (S,) users of sessions -> (S,) users whose contexts are shown.

    ``user``: one's own. ``permuted``: users swap contexts, each keeps the same stranger's. ``session``: sessions of
    one split swap users, so that contexts keep their frequencies but say nothing. ``constant``: everybody is unknown
    (user code ``n_users``, the row past the last).
    """
    rng = np.random.default_rng(seed)
    if draw == "user":
        return users
    if draw == "permuted":
        shown: np.ndarray = rng.permutation(n_users)[users]
        return shown
    if draw == "session":
        return rng.permutation(users)
    if draw == "constant":
        return np.full_like(users, n_users)
    raise UserError(f"data.contexts.draw={draw}: choose user, session, permuted or constant")

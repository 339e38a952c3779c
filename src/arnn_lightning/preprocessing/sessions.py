"""The sessions of one split as arrays."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sessions:
    """The sessions of one split as arrays; ``E`` events, ``S`` sessions.

    Attributes:
        item: (E,) item codes, sessions one after the other.
        offset: (S + 1,) where each session starts.
        session: (S,) session codes.
        user: (S,) user codes.
    """

    item: np.ndarray
    offset: np.ndarray
    session: np.ndarray
    user: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offset)

    @property
    def targets(self) -> int:
        """Recommendation attempts: every event but the first of each session."""
        return len(self.item) - len(self.session)

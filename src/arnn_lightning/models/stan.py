"""STAN (Garg et al., SIGIR 2019): SKNN with three exponential weights.

Of an event of the current session exp(-(step - 1) / lambda_spw), step 1 the last event; of a neighbour
exp(-age in days / lambda_snh); of a neighbour's item exp(-distance / lambda_inh), in events from the shared item.
"""

from typing import Any

import numpy as np

from arnn_lightning.models.neighbours import SessionNeighbours


class STAN(SessionNeighbours):
    """Session-based kNN with three weights that each fall by a factor of e per lambda; None leaves a weight out.

    As in session-rec, the shared item of a neighbour from which distances are counted is the last in the
    neighbour, not the one that is last in the current session.

    Args:
        lambda_spw, lambda_snh, lambda_inh: scales of the three weights, see above.
        search: as in ``SessionNeighbours``.
    """

    def __init__(
        self, *, lambda_spw: float | None, lambda_snh: float | None, lambda_inh: float | None, **search: Any
    ) -> None:
        super().__init__(**search)
        self.lambda_spw = lambda_spw
        self.decay_days = lambda_snh
        self.lambda_inh = lambda_inh

    def event_weight(self, step: np.ndarray, length: np.ndarray) -> np.ndarray:
        weight = exponential_decay(step - 1, self.lambda_spw)
        return super().event_weight(step, length) if weight is None else weight

    def closeness(self, distance: np.ndarray) -> np.ndarray | None:
        return exponential_decay(distance, self.lambda_inh)


def exponential_decay(distance: np.ndarray, scale: float | None) -> np.ndarray | None:
    """exp(-distance / scale), (N,) -> (N,); None without a scale: no weight."""
    return None if scale is None else np.exp(-distance / scale)

"""V-SKNN (Ludewig & Jannach 2018, UMUAI 28, arXiv 1803.09587): SKNN with weights of recent events."""

from typing import Any

import numpy as np

from arnn_lightning.models.decay import DECAYS
from arnn_lightning.models.neighbours import SessionNeighbours


class VSKNN(SessionNeighbours):
    """Later events weigh more in similarities, and neighbours with a later shared item weigh more in scores.

    Differs from session-rec in ``linear``, which is 0 where session-rec's becomes negative; the idf weights are
    session-rec's, the article has none.

    Args:
        similarity: ``dot`` (the article's; session-rec's ``vec``) or ``cosine``.
        weighting: of the window's events: ``div`` is place / length, 1 for the last; the other names as in ``DECAYS``.
        weighting_score: of neighbours by their most recent shared item, see ``DECAYS``.
        idf_weighting: weight of an item's inverse document frequency; 0: none.
        search: as in ``SessionNeighbours``.
    """

    def __init__(
        self, *, similarity: str, weighting: str, weighting_score: str, idf_weighting: float, **search: Any
    ) -> None:
        super().__init__(**search)
        self.is_cosine = similarity == "cosine"
        self.weighting = weighting
        self.weighting_score = weighting_score
        self.idf_weight = idf_weighting

    def event_weight(self, step: np.ndarray, length: np.ndarray) -> np.ndarray:
        share: np.ndarray = (length - step + 1) / length
        if self.weighting in ("div", "quadratic"):
            return share if self.weighting == "div" else share**2
        return DECAYS[self.weighting](step - 1)  # the last event has distance 0 here, and 1 in scores

    def recency(self, step: np.ndarray) -> np.ndarray:
        return DECAYS[self.weighting_score](step)

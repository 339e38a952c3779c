"""VSTAN (Ludewig et al. 2021, UMUAI 31, arXiv 1910.12781): STAN with weights of neighbours and rare items."""

from typing import Any

import numpy as np

from arnn_lightning.models.stan import STAN, exponential_decay


class VSTAN(STAN):
    """STAN's weights and two more; and, not in the article, similarities that grow with equal user attributes.

    Args:
        lambda_ipw: of a neighbour by its most recent shared item, in events before the last; None leaves it out.
        lambda_idf: weight of an item's inverse document frequency; None: 0.
        context_weight: a similarity is multiplied by 1 + ``context_weight`` times the cosine of both users' sets of
            known attributes; 0: without contexts.
        search: as in STAN.
    """

    def __init__(
        self, *, lambda_ipw: float | None, lambda_idf: float | None, context_weight: float, **search: Any
    ) -> None:
        super().__init__(**search)
        self.lambda_ipw = lambda_ipw
        self.idf_weight = lambda_idf or 0.0
        self.context_weight = context_weight
        self.uses_contexts = context_weight > 0

    def recency(self, step: np.ndarray) -> np.ndarray | None:
        return exponential_decay(step - 1, self.lambda_ipw)

"""VSTAN (Ludewig et al. 2020, UMUAI 31, arXiv 1910.12781): STAN with weights of neighbours and rare items."""

from typing import Any

import numpy as np

from arnn_lightning.models.base import RunSettings
from arnn_lightning.models.stan import STAN, exponential


class VSTAN(STAN):
    """STAN's weights and two more; and, not in the article, similarities that grow with equal user attributes.

    Args:
        name, dims, neighbours, sample_size, last_n_events, lambda_spw, lambda_snh, lambda_inh, settings: as in STAN.
        lambda_ipw: of a neighbour by its most recent shared item, in events before the last; None leaves it out.
        lambda_idf: weight of an item's inverse document frequency; None: 0.
        context_weight: a similarity is multiplied by 1 + ``context_weight`` times the cosine of both users' sets of
            known attributes; 0: without contexts.
    """

    def __init__(
        self,
        name: str,
        dims: dict[str, Any],
        neighbours: int,
        sample_size: int,
        last_n_events: int,
        lambda_spw: float | None,
        lambda_snh: float | None,
        lambda_inh: float | None,
        lambda_ipw: float | None,
        lambda_idf: float | None,
        context_weight: float,
        settings: RunSettings,
    ) -> None:
        super().__init__(
            name, dims, neighbours, sample_size, last_n_events, lambda_spw, lambda_snh, lambda_inh, settings
        )
        self.lambda_ipw = lambda_ipw
        self.idf_weight = lambda_idf or 0.0
        self.context_weight = context_weight
        self.uses_contexts = context_weight > 0

    def recency(self, step: np.ndarray) -> np.ndarray | None:
        return exponential(step - 1, self.lambda_ipw)

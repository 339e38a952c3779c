"""S-POP (Hidasi et al. 2016, arXiv 1511.06939): the most frequent items of the session, then the most popular ones."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from arnn_lightning.models.base import RunSettings
from arnn_lightning.models.window import WindowRecommender, as_scores
from arnn_lightning.preprocessing.sessions import Sessions


class SPOP(WindowRecommender):
    """Scores events of the session + n / (1 + n), n an item's training events.

    session-rec scores the 100 most popular items alone by n, which is the same up to a cutoff of 100.

    Args:
        name: the model's name.
        dims: ``n_items``.
        last_n_events: of the session that are counted.
        settings: of the run.
    """

    def __init__(self, name: str, dims: dict[str, Any], last_n_events: int, settings: RunSettings) -> None:
        super().__init__(name, dims["n_items"], last_n_events, settings)
        self.register_buffer("events", torch.zeros(self.n_items))
        self.events: Tensor

    def fit(self, sessions: Sessions) -> None:
        self.events.copy_(torch.from_numpy(np.bincount(sessions.item, minlength=self.n_items)))

    def score(self, query_NH: Tensor) -> Tensor:
        popularity_I = self.events.cpu().double()
        window_NL = query_NH.cpu()
        count_NI = torch.zeros(len(window_NL), self.n_items + 1, dtype=torch.float64)  # column 0: no event
        count_NI.scatter_add_(1, window_NL, torch.ones((), dtype=torch.float64).expand_as(window_NL))
        return as_scores((count_NI[:, 1:] + popularity_I / (1 + popularity_I)).numpy(), query_NH.device)

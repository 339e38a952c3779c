"""S-POP (Hidasi et al. 2016, arXiv 1511.06939): the most frequent items of the session, then the most popular ones."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from arnn_lightning.models.base import RunSettings
from arnn_lightning.models.window import WindowRecommender, as_scores
from arnn_lightning.preprocessing.sessions import Sessions


class SPOP(WindowRecommender):
    """Scores an item by its number of events in the session plus n / (1 + n), n its number of training events.

    session-rec adds n / (1 + n) to the 100 most popular items only, so that less popular items of a session tie.

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
        window_NL = query_NH.cpu().numpy()
        events_I = self.events.cpu().double().numpy()
        score_NI = np.tile(events_I / (1 + events_I), (len(window_NL), 1))
        row_D, column_D = window_NL.nonzero()
        np.add.at(score_NI, (row_D, window_NL[row_D, column_D] - 1), 1)
        return as_scores(score_NI, query_NH.device)

"""POP: the score of an item is its number of training events; the baseline of every table."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from arnn_lightning.batch import State, StepInput
from arnn_lightning.models.base import Recommender, RunSettings
from arnn_lightning.preprocessing.sessions import Sessions


class POP(Recommender):
    """Popularity in training. ``dims``: ``n_items``."""

    def __init__(self, name: str, dims: dict[str, Any], settings: RunSettings) -> None:
        super().__init__(name, dims["n_items"], settings)
        self.register_buffer("events", torch.zeros(self.n_items))
        self.events: Tensor

    def fit(self, sessions: Sessions) -> None:
        self.events.copy_(torch.from_numpy(np.bincount(sessions.item, minlength=self.n_items)))

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        return step.item[:, None], state

    def score(self, query_NH: Tensor) -> Tensor:
        return self.events.expand(len(query_NH), -1).clone()

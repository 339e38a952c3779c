"""POP: every item scores its number of training events. No table should hide a model that loses to it."""

import numpy as np
import torch
from torch import Tensor

from arnn_lightning.batch import Step
from arnn_lightning.models.base import SessionModel, State
from arnn_lightning.preprocessing.sessions import Sessions


class POP(SessionModel):
    """Popularity in training. ``dims``: ``n_items``."""

    def __init__(self, name: str, dims: dict[str, int]) -> None:
        super().__init__(name, dims["n_items"])
        self.register_buffer("events", torch.zeros(self.n_items))
        self.events: Tensor

    def count(self, sessions: Sessions) -> None:
        self.events.copy_(torch.from_numpy(np.bincount(sessions.item, minlength=self.n_items)))

    def represent(self, step: Step, state: State) -> tuple[Tensor, State]:
        return step.item[:, None], state

    def score(self, query_NH: Tensor) -> Tensor:
        return self.events.expand(len(query_NH), -1).clone()

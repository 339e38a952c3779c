"""WindowRecommender: a model whose scores depend on the last events of a session, given as they are.

B batch slots, N predictions, L events of a window.
"""

import numpy as np
import torch
from torch import Tensor

from arnn_lightning.batch import State, StepInput
from arnn_lightning.encoders.window import append_event
from arnn_lightning.models.base import Recommender, RunSettings


class WindowRecommender(Recommender):
    """A model whose state is the window: (B, L) item codes + 1, the most recent last, 0 before the session's first.

    Args:
        name: the model's name.
        n_items: size of the catalogue.
        last_n_events: L; older events of a session have no effect.
        settings: of the run.
    """

    def __init__(self, name: str, n_items: int, last_n_events: int, settings: RunSettings) -> None:
        super().__init__(name, n_items, settings)
        self.last_n_events = last_n_events

    def initial_state(self, batch_size: int) -> State:
        return (torch.zeros(batch_size, self.last_n_events, dtype=torch.int64, device=self.device),)

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        window_BL = append_event(state[0], step.item)
        return window_BL, (window_BL,)


def as_scores(score_NI: np.ndarray, device: torch.device) -> Tensor:
    """Scores in float64, so that sums that differ do not tie; in float32 on Apple's GPUs, which have no float64."""
    return torch.from_numpy(score_NI).to(device, torch.float32 if device.type == "mps" else torch.float64)

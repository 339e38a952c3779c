"""Encoders of a session's last events. B batch slots, L events of a window, P tokens of a prefix, H width of a query.

Back-propagation through a carried state has length 1, so a state of vectors would leave earlier items untrained. The
state has item codes instead: every step encodes its whole window again, and its gradient reaches the vectors of all L
items. One step per event then equals training on all prefixes of a session, each cut to its last L events.
"""

import torch
from torch import Tensor

from arnn_lightning.batch import State, StepInput
from arnn_lightning.encoders.base import SessionEncoder


class WindowEncoder(SessionEncoder):
    """An encoder whose state is the window: (B, L) item codes + 1, the most recent last, 0 before the session's first.

    A subclass implements ``embed`` and ``encode_window``.

    Args:
        hidden_size: H.
        last_n_events: L; older events of a session have no effect.
    """

    def __init__(self, hidden_size: int, last_n_events: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.last_n_events = last_n_events

    def initial_state(self, batch_size: int) -> State:
        device = next(self.parameters()).device
        return (torch.zeros(batch_size, self.last_n_events, dtype=torch.int64, device=device),)

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        window_BL = append_event(state[0], step.item)
        is_event_BL = window_BL > 0
        # A training step has rows for the items that it reads only: padding is the current item, masked.
        item_BL = torch.where(is_event_BL, window_BL - 1, step.item[:, None])
        vector_BLH, is_input_BL = self.embed(item_BL), is_event_BL
        if step.prefix is not None:
            vector_BLH = torch.cat([step.prefix, vector_BLH], 1)
            is_input_BL = torch.cat([is_event_BL.new_ones(step.prefix.shape[:2]), is_event_BL], 1)
        return self.encode_window(vector_BLH, is_input_BL), (window_BL,)

    def embed(self, item_BL: Tensor) -> Tensor:
        """The vectors (B, L, H) of the window's items."""
        raise NotImplementedError(f"{type(self).__name__} must implement embed()")

    def encode_window(self, vector_BLH: Tensor, is_input_BL: Tensor) -> Tensor:
        """Vectors and whether each is an input or padding -> query (B, H).

        The last is that of the current event. A prefix comes first, so that there may be P + L vectors. Padding must
        have no effect, and a gradient of exactly 0.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement encode_window()")


def append_event(window_BL: Tensor, item_B: Tensor) -> Tensor:
    """The window after one more event; the oldest is dropped."""
    return torch.cat([window_BL[:, 1:], item_B[:, None] + 1], 1)

"""Profile as initial state: h_0 = tanh(W c + b) in place of 0, as HRNN Init starts a session at the user's state.

Quadrana et al., RecSys 2017, arXiv 1706.04148, whose c is the state of a second GRU over the user's earlier sessions.

B batch slots, D embedding, T numbers of the hidden states of a slot.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from arnn_lightning.batch import State, StepInput
from arnn_lightning.encoders.base import SessionEncoder
from arnn_lightning.encoders.fusion import FusionEncoder
from arnn_lightning.errors import UserError


class InitStateEncoder(FusionEncoder):
    """A recurrent session encoder whose hidden states start at tanh(W c + b) (after Quadrana et al. 2017).

    States are reset to 0 at session starts, so another state, (B, 1), marks slots whose session has begun: 0 at its
    first event, 1 after it.

    Args:
        session: the session encoder, with ``n_hidden_states``.
        embedding_size: D.
        sizes: of the contexts, as in FusionEncoder.
    """

    def __init__(self, session: SessionEncoder, embedding_size: int, **sizes: Any) -> None:
        super().__init__(session, embedding_size=embedding_size, **sizes)
        states = session.initial_state(1)[: session.n_hidden_states]
        if not states:
            raise UserError(
                f"model.session: {type(session).__name__} has no hidden state that the profile could initialise; "
                "choose a recurrent one, as in model@model.session=gru4rec"
            )
        self._shapes = [(*state.shape[:-2], state.shape[-1]) for state in states]
        self._sizes = [math.prod(shape) for shape in self._shapes]
        self.start = nn.Linear(embedding_size, sum(self._sizes))
        nn.init.xavier_uniform_(self.start.weight)
        nn.init.zeros_(self.start.bias)

    def initial_state(self, batch_size: int) -> State:
        states = self.session.initial_state(batch_size)
        return (*states, states[0].new_zeros(batch_size, 1))

    def project(self, context_BD: Tensor) -> Tensor:
        return torch.tanh(self.start(context_BD))

    def fuse(self, term: Tensor, step: StepInput, state: State) -> tuple[Tensor, State]:
        *states, has_begun_B1 = state
        for index, (part, shape) in enumerate(zip(term.split(self._sizes, 1), self._shapes, strict=True)):
            start = part.unflatten(1, shape).movedim(0, -2).to(states[index].dtype)  # (..., B, width)
            states[index] = torch.where(has_begun_B1 > 0, states[index], start)
        query_BH, next_state = self.session.encode(step, tuple(states))
        return query_BH, (*next_state, torch.ones_like(has_begun_B1))

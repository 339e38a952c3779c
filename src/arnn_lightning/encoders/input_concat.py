"""Profile at every step: the input is [y_t; c] (Smirnova & Vasile 2017, arXiv 1706.07684, concatenation at the input).

The article's contexts are those of events, such as their type and time; here they are the user's, equal at all events.
A linear map of a concatenation is a sum, W [y; c] = W_y y + W_c c: the session encoder adds W_c c to its W_y y.

B batch slots, D embedding, G sum of the encoder's input sizes: for a GRU those of its gates.
"""

from typing import Any

from torch import Tensor, nn

from arnn_lightning.batch import State, StepInput
from arnn_lightning.encoders.base import SessionEncoder
from arnn_lightning.encoders.fusion import FusionEncoder
from arnn_lightning.errors import UserError


class InputConcatEncoder(FusionEncoder):
    """A session encoder whose input at every step is the item and c (Smirnova & Vasile 2017).

    Args:
        session: the session encoder, with ``input_sizes``.
        embedding_size: D.
        sizes: of the contexts, as in FusionEncoder.
    """

    def __init__(self, session: SessionEncoder, embedding_size: int, **sizes: Any) -> None:
        super().__init__(session, embedding_size=embedding_size, **sizes)
        if not session.input_sizes:
            raise UserError(
                f"model.session: {type(session).__name__} accepts no input but the item; choose another, as in "
                "model@model.session=gru4rec"
            )
        self.input = nn.Linear(embedding_size, sum(session.input_sizes), bias=False)
        for block in self.input.weight.data.split(session.input_sizes):  # as the item's weights (E12)
            nn.init.xavier_uniform_(block)

    def project(self, context_BD: Tensor) -> Tensor:
        term_BG: Tensor = self.input(context_BD)
        return term_BG

    def fuse(self, term: Tensor, step: StepInput, state: State) -> tuple[Tensor, State]:
        return self.session.encode(step._replace(input_term=term), state)

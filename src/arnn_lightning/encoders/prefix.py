"""Prefix: P context tokens W c + b before the session's items, as PPR puts a prompt made of the profile before them.

Wu et al. 2022, arXiv 2205.09666, whose tokens are the output of two layers over the concatenated attributes, before the
items of a pretrained SASRec; here everything is trained together. Attention reaches the tokens from every event. They
come in addition to the window's L events, and b is their position: with c = 0 the tokens are the same for all users.

B batch slots, P tokens, D embedding, H width of the query.
"""

from typing import Any

from torch import Tensor, nn

from arnn_lightning.batch import State, StepInput
from arnn_lightning.encoders.base import SessionEncoder
from arnn_lightning.encoders.fusion import FusionEncoder
from arnn_lightning.encoders.window import WindowEncoder
from arnn_lightning.errors import UserError


class PrefixEncoder(FusionEncoder):
    """A window encoder that reads the user's context tokens before the window's items (Wu et al. 2022).

    Args:
        session: the session encoder, a ``WindowEncoder``.
        embedding_size: D.
        n_tokens: P.
        sizes: of the contexts, as in FusionEncoder.
    """

    def __init__(self, session: SessionEncoder, embedding_size: int, n_tokens: int, **sizes: Any) -> None:
        super().__init__(session, embedding_size=embedding_size, **sizes)
        if not isinstance(session, WindowEncoder):
            raise UserError(
                f"model.session: {type(session).__name__} has no window of events to put context tokens before; choose "
                "an encoder that has, as in model@model.session=sasrec"
            )
        self.tokens = nn.Linear(embedding_size, n_tokens * self.hidden_size)
        for token in self.tokens.weight.data.split(self.hidden_size):
            nn.init.xavier_uniform_(token)
        nn.init.zeros_(self.tokens.bias)

    def project(self, context_BD: Tensor) -> Tensor:
        token_BPH: Tensor = self.tokens(context_BD).unflatten(1, (-1, self.hidden_size))
        return token_BPH

    def fuse(self, term: Tensor, step: StepInput, state: State) -> tuple[Tensor, State]:
        return self.session.encode(step._replace(prefix=term), state)

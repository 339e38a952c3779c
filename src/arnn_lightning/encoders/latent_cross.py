"""Latent Cross (Beutel et al., WSDM 2018, 10.1145/3159652.3159727): the query is h_t * (1 + W c).

In the article every context has an embedding as wide as h_t; here W maps the sum of narrower ones. Only what the
session encoder returns is crossed, not its input.

B batch slots, D embedding, H width of the query.
"""

from typing import Any

from torch import Tensor, nn

from arnn_lightning.batch import State, StepInput
from arnn_lightning.encoders.base import SessionEncoder
from arnn_lightning.encoders.fusion import FusionEncoder


class LatentCrossEncoder(FusionEncoder):
    """Any session encoder, whose query is multiplied element-wise by 1 + W c (Beutel et al. 2018).

    Args:
        session: the session encoder.
        embedding_size: D.
        sizes: of the contexts, as in FusionEncoder.
    """

    def __init__(self, session: SessionEncoder, embedding_size: int, **sizes: Any) -> None:
        super().__init__(session, embedding_size=embedding_size, **sizes)
        self.cross = nn.Linear(embedding_size, self.hidden_size, bias=False)
        nn.init.xavier_uniform_(self.cross.weight)

    def project(self, context_BD: Tensor) -> Tensor:
        factor_BH: Tensor = 1 + self.cross(context_BD)
        return factor_BH

    def fuse(self, term: Tensor, step: StepInput, state: State) -> tuple[Tensor, State]:
        query_BH, state = self.session.encode(step, state)
        return query_BH * term, state

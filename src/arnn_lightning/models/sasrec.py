"""SASRec: self-attention over the session's last events, trained alone or as ARNN's session encoder."""

from typing import Any

from arnn_lightning.encoders.sasrec import SASRecEncoder
from arnn_lightning.errors import UserError
from arnn_lightning.models.trained import SessionRecommender
from arnn_lightning.nn.table import ItemScorer


class SASRec(SessionRecommender):
    """SASRec encoder and item scorer, which share the item vectors.

    Args:
        name: the model's name.
        dims: ``n_items``.
        hidden_size: H.
        last_n_events, blocks, heads, dropout: as in SASRecEncoder.
        training: loss, optimizer, scheduler, scheduler_interval, clip_norm and settings, as in SessionRecommender.

    Raises:
        UserError: heads that do not divide H.
    """

    def __init__(
        self,
        name: str,
        dims: dict[str, Any],
        hidden_size: int,
        last_n_events: int,
        blocks: int,
        heads: int,
        dropout: float,
        **training: Any,
    ) -> None:
        if hidden_size % heads:
            raise UserError(f"model.heads={heads}: must divide model.hidden_size={hidden_size}")
        scorer = ItemScorer(dims["n_items"], hidden_size)
        encoder = SASRecEncoder(scorer.items, last_n_events, blocks, heads, dropout)
        super().__init__(name, dims, encoder, scorer=scorer, **training)

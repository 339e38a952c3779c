"""NARM: a GRU with attention over the session's last events, trained alone or as ARNN's session encoder."""

from typing import Any

from arnn_lightning.encoders.narm import NARMEncoder
from arnn_lightning.models.trained import SessionRecommender
from arnn_lightning.nn.table import ItemScorer


class NARM(SessionRecommender):
    """NARM encoder and item scorer, which share the item vectors.

    Args:
        name: the model's name.
        dims: ``n_items``.
        hidden_size: H.
        last_n_events, dropout_embedding, dropout_hidden: as in NARMEncoder.
        training: loss, optimizer, scheduler, scheduler_interval, clip_norm and settings, as in SessionRecommender.
    """

    def __init__(
        self,
        name: str,
        dims: dict[str, Any],
        hidden_size: int,
        last_n_events: int,
        dropout_embedding: float,
        dropout_hidden: float,
        **training: Any,
    ) -> None:
        scorer = ItemScorer(dims["n_items"], hidden_size)
        encoder = NARMEncoder(scorer.items, last_n_events, dropout_embedding, dropout_hidden)
        super().__init__(name, dims, encoder, scorer=scorer, **training)

"""GRU4REC: the paper's session model (3.4), trained alone or as ARNN's session encoder."""

from typing import Any, Literal

from torch import nn

from arnn_lightning.encoders.gru4rec import GRU4RecEncoder
from arnn_lightning.errors import UserError
from arnn_lightning.models.trained import SessionRecommender
from arnn_lightning.nn.table import EmbeddingTable, ItemScorer


class GRU4REC(SessionRecommender):
    """GRU encoder and item scorer.

    Args:
        name: the model's name.
        dims: ``n_items``.
        hidden_size: H.
        layers: GRU layers.
        embedding: ``onehot`` (the paper's), ``separate`` (an embedding of size H of its own) or ``tied`` (the
            scorer's item weights).
        dropout_embedding, dropout_hidden, carry_dropout: as in GRU4RecEncoder.
        training: loss, optimizer, scheduler, scheduler_interval, clip_norm and settings, as in SessionRecommender.
    """

    def __init__(
        self,
        name: str,
        dims: dict[str, Any],
        hidden_size: int,
        layers: int,
        embedding: Literal["onehot", "separate", "tied"],
        dropout_embedding: float,
        dropout_hidden: float,
        carry_dropout: bool,
        **training: Any,
    ) -> None:
        if embedding not in ("onehot", "separate", "tied"):
            raise UserError(f"model.embedding={embedding}: choose onehot, separate or tied")
        if layers < 1:
            raise UserError(f"model.layers={layers}: must be 1 or more")
        n_items = dims["n_items"]
        scorer = ItemScorer(n_items, hidden_size)
        table: EmbeddingTable | None = None
        if embedding == "tied":
            table = scorer.items
        elif embedding == "separate":
            table = EmbeddingTable(n_items, hidden_size)
            nn.init.xavier_uniform_(table.weight)
        encoder = GRU4RecEncoder(n_items, hidden_size, layers, table, dropout_embedding, dropout_hidden, carry_dropout)
        super().__init__(name, dims, encoder, scorer=scorer, **training)

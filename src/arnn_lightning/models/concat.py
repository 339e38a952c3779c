"""Concat: plain concatenation of field embeddings in PNN's place (an ablation)."""

from typing import Any

from arnn_lightning.encoders.concat import ConcatEncoder
from arnn_lightning.models.trained import ItemContexts, SessionRecommender, item_field_sizes


class Concat(SessionRecommender):
    """Concatenated field embeddings and item scorer.

    Args:
        name: the model's name.
        dims, item_contexts: as in PNN.
        embedding_size: as in ConcatEncoder.
        training: loss, optimizer, scheduler, scheduler_interval, clip_norm and settings, as in SessionRecommender.
    """

    def __init__(
        self, name: str, dims: dict[str, Any], item_contexts: ItemContexts, embedding_size: int, **training: Any
    ) -> None:
        sizes = dims["single_sizes"]
        encoder = ConcatEncoder(
            n_items=dims["n_items"],
            n_categories=sum(sizes),
            n_single=len(sizes),
            n_binary=dims["n_binary"],
            **item_field_sizes(dims, item_contexts),
            embedding_size=embedding_size,
        )
        super().__init__(name, dims, encoder, item_contexts=item_contexts, **training)

"""Concat: plain concatenation of field embeddings in PNN's place (an ablation)."""

from typing import Any

from arnn_lightning.encoders.concat import ConcatEncoder
from arnn_lightning.models.trained import SessionRecommender


class Concat(SessionRecommender):
    """Concatenated field embeddings and item scorer.

    Args:
        name: the model's name.
        dims: ``n_items``; ``single_sizes``, the number of codes of each single-valued field; ``n_binary``.
        embedding_size: as in ConcatEncoder.
        training: loss, optimizer, scheduler, scheduler_interval, clip_norm and settings, as in SessionRecommender.
    """

    def __init__(self, name: str, dims: dict[str, Any], embedding_size: int, **training: Any) -> None:
        sizes = dims["single_sizes"]
        encoder = ConcatEncoder(dims["n_items"], sum(sizes), len(sizes), dims["n_binary"], embedding_size)
        super().__init__(name, dims, encoder, **training)

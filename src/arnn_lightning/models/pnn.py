"""PNN: the paper's context encoder (3.3), trained alone or as ARNN's context encoder."""

from typing import Any

from arnn_lightning.encoders.pnn import PNNEncoder
from arnn_lightning.models.trained import ItemContexts, SessionRecommender, item_field_sizes
from arnn_lightning.nn.product import Method


class PNN(SessionRecommender):
    """Product-based network and item scorer.

    Args:
        name: the model's name.
        dims: ``n_items``; ``single_sizes``, the number of codes of each single-valued field; ``n_binary``; of items
            ``item_single_sizes`` and ``item_multi_sizes``.
        item_contexts: how the attributes of items are used, as in SessionRecommender.
        embedding_size, hidden_size, dropout, products, product_method: as in PNNEncoder.
        training: loss, optimizer, scheduler, scheduler_interval, clip_norm and settings, as in SessionRecommender.
    """

    def __init__(
        self,
        name: str,
        dims: dict[str, Any],
        item_contexts: ItemContexts,
        embedding_size: int,
        hidden_size: int,
        dropout: float,
        products: bool,
        product_method: Method,
        **training: Any,
    ) -> None:
        sizes = dims["single_sizes"]
        encoder = PNNEncoder(
            n_items=dims["n_items"],
            n_categories=sum(sizes),
            n_single=len(sizes),
            n_binary=dims["n_binary"],
            **item_field_sizes(dims, item_contexts),
            embedding_size=embedding_size,
            hidden_size=hidden_size,
            dropout=dropout,
            products=products,
            product_method=product_method,
        )
        super().__init__(name, dims, encoder, item_contexts=item_contexts, **training)

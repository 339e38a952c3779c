"""PNN context encoder (paper 3.3): c_t = BatchNorm(ReLU(FC([z_t; p_t]))) of the user's contexts and the previous item.

Every single-valued attribute is one field, every popular category of a multi-valued one a field with the two values
absent/present, and the previous item a field too; z_t are all field embeddings, p_t all pairwise inner products. With
``model.item_contexts=fields`` every attribute of the previous item is one more field, a multi-valued one the sum of the
embeddings of its categories, so that pairs of a user's and an item's attribute have weights of their own.

The paper does not state how embeddings start (here Glorot uniform), over which slots batch normalisation takes its
statistics (the valid ones), and the vectors of categories without a training event (their field's mean).

B batch slots, N users, M binary fields, S single-valued fields, I items, C of them, T fields of an item (itself
included), D embedding, H hidden.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arnn_lightning.batch import Contexts, State, StepInput
from arnn_lightning.encoders.base import SessionEncoder
from arnn_lightning.nn.batchnorm import MaskedBatchNorm
from arnn_lightning.nn.dropout import dropout
from arnn_lightning.nn.product import Method, ProductLayer
from arnn_lightning.nn.table import EmbeddingTable, ItemFields

_ITEMS_PER_BLOCK = 1 << 16


class PNNEncoder(SessionEncoder):
    """Product-based network over the user's contexts and the previous item; without memory.

    Qu et al. 2016, arXiv 1611.00144.

    Args:
        n_items: size of the catalogue.
        n_categories: number of categories of all single-valued fields together.
        n_single: number of single-valued fields.
        n_binary: number of binary fields, the categories of multi-valued attributes.
        item_single_sizes: number of codes of each single-valued attribute of items that is a field.
        item_multi_sizes: number of categories of each multi-valued one.
        embedding_size: D of every field.
        hidden_size: H of the fully connected layer.
        dropout: on c_t.
        products: False leaves the pairwise products out (an ablation).
        product_method: how they are computed, see nn/product.py.
    """

    uses_contexts = True

    def __init__(
        self,
        n_items: int,
        n_categories: int,
        n_single: int,
        n_binary: int,
        item_single_sizes: Sequence[int],
        item_multi_sizes: Sequence[int],
        embedding_size: int,
        hidden_size: int,
        dropout: float,
        products: bool,
        product_method: Method,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.dropout = dropout
        self.item_embedding = ItemFields(n_items, embedding_size, item_single_sizes, item_multi_sizes)
        self.single_embedding = EmbeddingTable(n_categories, embedding_size, ids="single")
        nn.init.xavier_uniform_(self.single_embedding.weight)
        n_fields = n_binary, n_single, self.item_embedding.n_fields
        self.product = ProductLayer(*n_fields, embedding_size, hidden_size, products, product_method)
        self.norm = MaskedBatchNorm(hidden_size)

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        terms = step.user_terms
        if terms is not None and terms.dim() == 3:  # of a folded layer, which serves in float32
            item_BDT = self.item_embedding(step.item)
            product_BH = torch.baddbmm(terms[:, :1], item_BDT.flatten(1)[:, None], terms[:, 1:])[:, 0]
            product_BH = self.product.add_attribute_pairs(product_BH, item_BDT)
        else:
            product_BH = self._product(step)
        context_BH = self.norm(F.relu(product_BH), step.valid)
        return dropout(context_BH, self.dropout, self.training), state

    def _product(self, step: StepInput) -> Tensor:
        # In float32 whatever trainer.precision is: sums over tens of thousands of pairs.
        with torch.autocast(step.item.device.type, enabled=False):
            item_BDT = self.item_embedding(step.item)
            single_BSD = self.single_embedding(step.contexts.single)
            if step.user_terms is None:
                product_BH: Tensor = self.product(step.contexts.active, single_BSD, item_BDT)
                return product_BH
            return step.user_terms + self.product.item_terms(step.contexts.active, single_BSD, item_BDT)

    def user_terms(self, contexts: Contexts) -> Tensor:
        """(N, H): the terms of the users' fields, which training caches for all users.

        If the layer is folded (N, 1 + D T, H): row 0 are these terms, the others what the values of the item's fields
        are multiplied with. A session is then served by one small product per event, whatever the number of fields.
        """
        single_NSD = self.single_embedding(contexts.single)
        terms_NH = self.product.user_terms(contexts.active, single_NSD)
        if not self.product.is_folded:
            return terms_NH
        return torch.cat([terms_NH[:, None], self.product.item_weights(contexts.active, single_NSD)], 1)

    @torch.no_grad()
    def profile_encoder(self, item_events_I: Tensor) -> Callable[[Contexts], Tensor]:
        """Queries (N, H) of users before their first click: the previous item is the average one.

        Its fields (D, T) are the means of those of all items, weighted by their training events (I,). Where the item
        is the only one, T = 1, the product layer is linear in it: its output is the mean of those after every item.
        """
        share_I = item_events_I.to(self.norm.weight) / item_events_I.sum()
        blocks = torch.arange(len(share_I), device=share_I.device).split(_ITEMS_PER_BLOCK)
        sums = [torch.tensordot(share_I[item_C], self.item_embedding(item_C), 1) for item_C in blocks]
        average_DT = torch.stack(sums).sum(0)

        def encode(contexts: Contexts) -> Tensor:
            item_NDT = average_DT.expand(len(contexts.active), -1, -1)
            product_NH = self.product(contexts.active, self.single_embedding(contexts.single), item_NDT)
            query_NH: Tensor = self.norm(F.relu(product_NH), None)
            return query_NH

        return encode

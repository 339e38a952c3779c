"""PNN context encoder (paper 3.3): c_t = BatchNorm(ReLU(FC([z_t; p_t]))) of the user's contexts and the previous item.

Every single-valued attribute is one field, every popular category of a multi-valued one a field with the two values
absent/present, and the previous item a field too; z_t are all field embeddings, p_t all pairwise inner products.
The paper does not state how embeddings start (here Glorot uniform), over which slots batch normalisation takes its
statistics (the valid ones), and where categories without a training event stand (at their field's mean).

B batch slots, M two-valued fields, S single-valued fields, D embedding, H hidden.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arnn_lightning.batch import Contexts, State, StepInput
from arnn_lightning.encoders.base import SessionEncoder
from arnn_lightning.nn.batchnorm import MaskedBatchNorm
from arnn_lightning.nn.dropout import dropout
from arnn_lightning.nn.product import Method, ProductLayer
from arnn_lightning.nn.table import EmbeddingTable


class PNNEncoder(SessionEncoder):
    """Product-based network over the user's contexts and the previous item; without memory.

    Qu et al. 2016, arXiv 1611.00144.

    Args:
        n_items: size of the catalogue.
        n_categories: number of categories of all single-valued fields together.
        n_single: number of single-valued fields.
        n_binary: number of two-valued fields, the categories of multi-valued attributes.
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
        embedding_size: int,
        hidden_size: int,
        dropout: float,
        products: bool,
        product_method: Method,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.dropout = dropout
        self.item_embedding = EmbeddingTable(n_items, embedding_size)
        self.single_embedding = EmbeddingTable(n_categories, embedding_size, ids="single")
        for table in (self.item_embedding, self.single_embedding):
            nn.init.xavier_uniform_(table.weight)
        self.product = ProductLayer(n_binary, n_single, embedding_size, hidden_size, products, product_method)
        self.norm = MaskedBatchNorm(hidden_size)

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        item_BD = self.item_embedding(step.item)
        single_BSD = self.single_embedding(step.contexts.single)
        # In float32 whatever trainer.precision is: sums over tens of thousands of pairs.
        with torch.autocast(item_BD.device.type, enabled=False):
            if step.user_terms is None:
                product_BH = self.product(step.contexts.active, single_BSD, item_BD)
            else:
                product_BH = step.user_terms + self.product.item_terms(step.contexts.active, single_BSD, item_BD)
        context_BH = self.norm(F.relu(product_BH), step.valid)
        return dropout(context_BH, self.dropout, self.training), state

    def user_terms(self, contexts: Contexts) -> Tensor:
        return self.product.user_terms(contexts.active, self.single_embedding(contexts.single))

"""PNN without its product layer, fully connected layer and batch normalisation: an ablation.

The query is the plain concatenation of the field embeddings: the previous item's, with
``model.item_contexts=fields`` those of its attributes, the sum of the present binary fields', and one for each
single-valued field.

B batch slots, M binary fields, S single-valued fields, T fields of the item, D embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from arnn_lightning.batch import State, StepInput
from arnn_lightning.encoders.base import SessionEncoder
from arnn_lightning.nn.contexts import sum_of_active
from arnn_lightning.nn.table import EmbeddingTable, ItemFields


class ConcatEncoder(SessionEncoder):
    """Concatenates embeddings to (B, (T + 1 + S) D): item fields, the sum of binary fields, single-valued fields.

    The embeddings of PNN (Qu et al. 2016, arXiv 1611.00144) without its other layers, as an ablation.

    Args:
        n_items: size of the catalogue.
        n_categories: number of categories of all single-valued fields together.
        n_single: S.
        n_binary: number of binary fields, the categories of multi-valued attributes.
        item_single_sizes: number of codes of each single-valued attribute of items that is a field.
        item_multi_sizes: number of categories of each multi-valued one.
        embedding_size: D of every field.
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
    ) -> None:
        super().__init__()
        self.item_embedding = ItemFields(n_items, embedding_size, item_single_sizes, item_multi_sizes)
        self.hidden_size = embedding_size * (n_single + 1 + self.item_embedding.n_fields)
        self.single_embedding = EmbeddingTable(n_categories, embedding_size, ids="single")
        self.binary_embedding = nn.Parameter(torch.empty(n_binary + 1, embedding_size))  # the last row is padding
        for weight in (self.single_embedding.weight, self.binary_embedding):
            nn.init.xavier_uniform_(weight)

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        binary_BD = sum_of_active(step.contexts.active, self.binary_embedding)
        single_BSD = self.single_embedding(step.contexts.single)
        return torch.cat([self.item_embedding(step.item).flatten(1), binary_BD, single_BSD.flatten(1)], 1), state

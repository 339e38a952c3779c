"""Embeddings of the contexts of users.

B batch slots, A present and M binary fields, S single-valued fields, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arnn_lightning.batch import Contexts
from arnn_lightning.nn.table import EmbeddingTable


def sum_of_active(active_BA: Tensor, embedding: Tensor) -> Tensor:
    """(B, D) sums of the embeddings (M + 1, D) of the fields that are present; the last row is padding."""
    present_BAD = F.embedding(torch.where(active_BA < 0, len(embedding) - 1, active_BA), embedding)
    return (present_BAD * (active_BA >= 0)[:, :, None]).sum(1)


class ContextEmbedding(nn.Module):
    """(B, D) the sum of the embeddings of a user's categories and present binary fields.

    A sum, not a mean: it is linear in the profile, so that for a category that was not trained the mean of its field is
    neutral (E28), and absent fields contribute nothing.

    Args:
        n_categories: number of categories of all single-valued fields together.
        n_binary: M.
        embedding_size: D.
    """

    def __init__(self, n_categories: int, n_binary: int, embedding_size: int) -> None:
        super().__init__()
        self.single_embedding = EmbeddingTable(n_categories, embedding_size, ids="single")
        self.binary_embedding = nn.Parameter(torch.empty(n_binary + 1, embedding_size))
        for weight in (self.single_embedding.weight, self.binary_embedding):
            nn.init.xavier_uniform_(weight)

    def forward(self, contexts: Contexts) -> Tensor:
        single_BSD: Tensor = self.single_embedding(contexts.single)
        return single_BSD.sum(1) + sum_of_active(contexts.active, self.binary_embedding)

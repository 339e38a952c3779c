"""Plain concatenation in PNN's place (an ablation): c_t = z_t, the embeddings alone, one after the other.

The same fields as PNN's (paper 3.3), without products, fully connected layer and batch normalisation: as a part of
ARNN, a user's embeddings go straight to the merging layer. The two-valued fields of a user, of which there are many,
are one vector: the sum of the embeddings of those present.

B lanes, A fields present, S single-valued fields, D embedding.
"""

from typing import Any

import torch
from torch import Tensor

from arnn_lightning.batch import Contexts, Step
from arnn_lightning.losses.losses import Objective
from arnn_lightning.models.base import OptimizerFactory, SessionModel, State
from arnn_lightning.nn.fields import UserFields
from arnn_lightning.nn.table import ItemScorer, RowTable, glorot_


class Concat(SessionModel):
    """Embeddings of the user's contexts and the previous item; without memory.

    Args:
        name: the model's name.
        dims: ``n_items``; ``single_sizes``, the codes of each single-valued field; ``n_binary``.
        embedding_size: D of every field.
        optimizer: makes the optimizer.
        loss: the objective.
    """

    def __init__(
        self, name: str, dims: dict[str, Any], embedding_size: int, optimizer: OptimizerFactory, loss: Objective
    ) -> None:
        super().__init__(name, dims["n_items"], optimizer, loss)
        sizes = list(dims["single_sizes"])
        self.hidden_size = (len(sizes) + 2) * embedding_size
        self.item_embedding = RowTable(self.n_items, embedding_size)
        self.single_embedding = RowTable(sum(sizes), embedding_size)  # all fields, one after the other
        self.binary_embedding = RowTable(dims["n_binary"] + 1, embedding_size)  # the last row stands for no field
        for table in (self.item_embedding, self.single_embedding, self.binary_embedding):
            glorot_(table.weight, len(table.weight), embedding_size)
        self.scorer = ItemScorer(self.n_items, self.hidden_size)
        self.fields = UserFields(sizes)
        self.no_field = dims["n_binary"]

    def set_contexts(self, contexts: Contexts) -> None:
        self.fields.set(contexts)

    def represent(self, step: Step, state: State) -> tuple[Tensor, State]:
        active_BA, single_BS = self.fields(step.user)
        present_BAD = self.binary_embedding(torch.where(active_BA < 0, self.no_field, active_BA))
        binary_BD = (present_BAD * (active_BA >= 0)[:, :, None]).sum(1)
        single_BSD = self.single_embedding(single_BS)
        item_BD = self.item_embedding(step.item, step.rows)
        return torch.cat([item_BD, binary_BD, single_BSD.flatten(1)], 1), state

"""PNN context encoder (paper 3.3): c_t = BatchNorm(ReLU(FC([z_t; p_t]))) of the user's contexts and the previous item.

Every single-valued attribute is one field, every popular category of a multi-valued one a field with the two values
absent/present, and the previous item a field too; z_t are all field embeddings, p_t all pairwise inner products.
Differs from the paper in nothing it states; the embeddings' start (Glorot uniform) is ours.

B lanes, U users, M two-valued fields, S single-valued fields, D embedding, H hidden.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from arnn_lightning.batch import Contexts, Step
from arnn_lightning.losses.losses import Objective
from arnn_lightning.models.base import OptimizerFactory, SessionModel, State
from arnn_lightning.nn.batchnorm import MaskedBatchNorm
from arnn_lightning.nn.fields import UserFields
from arnn_lightning.nn.product import Method, ProductLayer
from arnn_lightning.nn.table import ItemScorer, RowTable, glorot_

_USERS_AT_ONCE = 2_048


class PNN(SessionModel):
    """Product-based network over the user's contexts and the previous item; without memory.

    Args:
        name: the model's name.
        dims: ``n_items``; ``single_sizes``, the codes of each single-valued field; ``n_binary``.
        embedding_size: D of every field.
        hidden_size: H of the fully connected layer.
        dropout: on c_t.
        products: False leaves the pairwise products out (an ablation).
        product_method: how they are computed, see nn/product.py.
        optimizer: makes the optimizer.
        loss: the objective.
    """

    def __init__(
        self,
        name: str,
        dims: dict[str, Any],
        embedding_size: int,
        hidden_size: int,
        dropout: float,
        products: bool,
        product_method: Method,
        optimizer: OptimizerFactory,
        loss: Objective,
    ) -> None:
        super().__init__(name, dims["n_items"], optimizer, loss)
        sizes = list(dims["single_sizes"])
        self.hidden_size = hidden_size
        self.dropout = dropout
        self.item_embedding = RowTable(self.n_items, embedding_size)
        self.categories = RowTable(sum(sizes), embedding_size)  # all single-valued fields, one after the other
        for table in (self.item_embedding, self.categories):
            glorot_(table.weight, len(table.weight), embedding_size)
        self.product = ProductLayer(dims["n_binary"], len(sizes), embedding_size, hidden_size, products, product_method)
        self.norm = MaskedBatchNorm(hidden_size)
        self.scorer = ItemScorer(self.n_items, hidden_size)
        self.fields = UserFields(sizes)
        self._user_part: Tensor | None = None
        # Loaded weights make the users' part stale.
        self.register_load_state_dict_post_hook(lambda *_: self._forget_users())  # type: ignore[no-untyped-call]

    def set_contexts(self, contexts: Contexts) -> None:
        self.fields.set(contexts)
        self._forget_users()

    def represent(self, step: Step, state: State) -> tuple[Tensor, State]:
        item_BD = self.item_embedding(step.item, step.rows)
        active_BA, single_BS = self.fields(step.user)
        single_BSD = self.categories(single_BS)
        # In float32 whatever `precision` says: sums over tens of thousands of pairs.
        with torch.autocast(item_BD.device.type, enabled=False):
            user_BH = self._users()[step.user] if self.frozen else self.product.user_part(active_BA, single_BSD)
            raw_BH = user_BH + self.product.item_part(active_BA, single_BSD, item_BD)
        context_BH = self.norm(F.relu(raw_BH), step.alive)
        return F.dropout(context_BH, self.dropout, self.training and not self.frozen), state

    @torch.no_grad()
    def _users(self) -> Tensor:
        """(U + 1, H): what a frozen layer says of each user alone, computed once."""
        if self._user_part is None:
            parts = [
                self.product.user_part(active, self.categories(single))
                for active, single in zip(
                    self.fields.active.split(_USERS_AT_ONCE), self.fields.single.split(_USERS_AT_ONCE), strict=True
                )
            ]
            self._user_part = torch.cat(parts)
        return self._user_part

    def _forget_users(self) -> None:
        self._user_part = None

"""Tables of which a training step touches only some rows, and the item scorer made of them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arnn_lightning.batch import Lookup


def glorot_(weight: Tensor, fan_in: int, fan_out: int) -> None:
    """Glorot uniform, +-sqrt(6 / (fan_in + fan_out)), in place (E12)."""
    bound = (6.0 / (fan_in + fan_out)) ** 0.5
    with torch.no_grad():
        weight.uniform_(-bound, bound)


def may_look(tensor: Tensor) -> bool:
    """Whether its values may be asked for in a step: a GPU would have to finish everything before."""
    return tensor.device.type == "cpu"


class RowTable(nn.Module):
    """A (rows, width) weight whose gradient in a step is sparse: only the rows that the step read (E8).

    ``sparse`` is set by the optimizer's choice: dense optimizers such as Adam need dense gradients.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, width))
        self.sparse = True

    def forward(self, ids: Tensor, rows: Lookup | None = None) -> Tensor:
        """(...,) ids -> (..., width). ``rows``, where known, is their Lookup; ids themselves are then not read.

        Elements with the same id then share one row of the gradient, added up before any optimizer squares it (E21).
        """
        if rows is None:
            if torch.is_grad_enabled():
                self.weight.read_by_ids = True  # type: ignore[attr-defined]  # nn/exchange.py
            return F.embedding(ids, self.weight, sparse=self.sparse)
        unique_RD = self.unique(rows.rows)
        if rows.inverse.dim() == 1:  # a third of what indexing costs, there and back
            return unique_RD.index_select(0, rows.inverse)
        return unique_RD[rows.inverse]

    def unique(self, rows_R: Tensor) -> Tensor:
        """(R, width) of rows that are sorted and unique, as a Lookup's are.

        The weight remembers them: a gradient that lies on this very tensor is known to have every row once.
        """
        self.weight.unique_rows = rows_R  # type: ignore[attr-defined]
        return F.embedding(rows_R, self.weight, sparse=self.sparse)


class ItemScorer(nn.Module):
    """score = query @ weight.T + bias; weight (I, H), bias (I). The paper's last layer, before its softmax."""

    def __init__(self, n_items: int, hidden_size: int) -> None:
        super().__init__()
        self.items = RowTable(n_items, hidden_size)
        self.bias = RowTable(n_items, 1)
        glorot_(self.items.weight, n_items, hidden_size)

    def some(self, query_BH: Tensor, rows_R: Tensor, own_C: Tensor | None = None) -> Tensor:
        """Scores (B, R) of the items ``rows_R``, sorted and unique: only their weights are read (E8).

        With ``own_C``, places among the rows: scores (B, C) of these alone. The gradient lies on all ``rows_R``.
        """
        bias_R1, item_RH = self.bias.unique(rows_R), self.items.unique(rows_R)
        if own_C is not None:
            bias_R1, item_RH = bias_R1.index_select(0, own_C), item_RH.index_select(0, own_C)
        return torch.addmm(bias_R1.squeeze(1), query_BH, item_RH.T)

    def all(self, query_BH: Tensor) -> Tensor:
        """Scores (B, I) of the whole catalogue."""
        return torch.addmm(self.bias.weight[:, 0], query_BH, self.items.weight.T)

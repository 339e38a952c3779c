"""Tables of which a training step reads a few rows, and the item scorer made of them. I items, H width of a query."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arnn_lightning.batch import IdKind


class EmbeddingTable(nn.Module):
    """A (rows, width) weight, or (rows,), looked up by ids.

    In a training step with a row-wise optimizer ``weight`` stands for the few rows that the step reads, and
    ``positions`` has the position of every id among them (optim/step.py): a step then costs the same whatever the
    number of rows (E8). A lookup of any other id raises an IndexError there.

    Args:
        n_rows: number of rows.
        width: width of a row; None: a row is a number.
        ids: which ids index the table.
    """

    positions: Tensor | None

    def __init__(self, n_rows: int, width: int | None, ids: IdKind = "item") -> None:
        super().__init__()
        self.ids: IdKind = ids
        self.weight = nn.Parameter(torch.zeros(n_rows) if width is None else torch.zeros(n_rows, width))
        self.register_buffer("positions", None, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(...,) ids -> (..., width)."""
        if self.positions is not None:
            ids = self.positions[ids]
        if ids.dim() == 1:  # a third of the time of F.embedding, forward and backward
            return self.weight.index_select(0, ids)
        return F.embedding(ids, self.weight)

    @torch.no_grad()
    def place_unseen(self, events_C: Tensor, field_C: Tensor) -> None:
        """Sets rows without a training event to the mean of their field over training events.

        No training step reads them, so they would stay at their random start. For linear layers and products the mean
        is neutral: their outputs are those of the field in the mean.

        Args:
            events_C: training events of every row.
            field_C: the field that every row belongs to.
        """
        total_C = torch.zeros_like(events_C).index_add_(0, field_C, events_C)[field_C]
        share_C1 = (events_C / total_C.clamp(min=1)).to(self.weight.dtype)[:, None]
        mean_CD = torch.zeros_like(self.weight).index_add_(0, field_C, share_C1 * self.weight)[field_C]
        self.weight.copy_(torch.where((events_C == 0)[:, None], mean_CD, self.weight))


class ItemScorer(nn.Module):
    """score = query @ weight.T + bias (paper 3.4 and 3.5, before the softmax); weight (I, H), bias (I).

    Weights are Glorot uniform, biases 0 (E12).
    """

    def __init__(self, n_items: int, hidden_size: int) -> None:
        super().__init__()
        self.items = EmbeddingTable(n_items, hidden_size)
        self.bias = EmbeddingTable(n_items, None)
        nn.init.xavier_uniform_(self.items.weight)

    def forward(self, query_BH: Tensor, columns_C: Tensor | None = None) -> Tensor:
        """Raw scores (B, C) of the items ``columns_C``, or of all rows."""
        bias_I: Tensor = self.bias.weight
        weight_IH: Tensor = self.items.weight
        if columns_C is not None:
            bias_I, weight_IH = bias_I.index_select(0, columns_C), weight_IH.index_select(0, columns_C)
        elif len(bias_I) < len(weight_IH):  # rows of a table that embeds, too: the candidates come first
            weight_IH = weight_IH[: len(bias_I)]
        return torch.addmm(bias_I, query_BH, weight_IH.T)

"""Tables of which a training step reads a few rows, and the item scorer made of them. I items, H width of a query.

Where items have attributes, an item's vector is its row plus the vectors of its attributes. All that reads item vectors
does so through a table, so that encoders and scorer need no code for attributes. An encoder of fields reads an
``ItemFields``, in which every attribute can be a separate field.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arnn_lightning.batch import Contexts, IdKind
from arnn_lightning.nn.tracing import is_tracing


class EmbeddingTable(nn.Module):
    """A (rows, width) weight, or (rows,), looked up by ids.

    In a training step with a row-wise optimizer ``weight`` is replaced by the few rows that the step reads, and
    ``positions`` has the position of every id among them, ``row_ids`` the id of every row (optim/step.py): a step then
    costs the same whatever the number of rows (E8). A lookup of any other id raises an IndexError there.

    Args:
        n_rows: number of rows.
        width: width of a row; None: a row is a number.
        ids: which ids index the table.

    Attributes:
        attributes: adds the vectors of the ids' attributes; None: a vector is a row.
    """

    positions: Tensor | None
    row_ids: Tensor | None

    def __init__(self, n_rows: int, width: int | None, ids: IdKind = "item") -> None:
        super().__init__()
        self.ids: IdKind = ids
        self.weight = nn.Parameter(torch.zeros(n_rows) if width is None else torch.zeros(n_rows, width))
        self.register_buffer("positions", None, persistent=False)
        self.register_buffer("row_ids", None, persistent=False)
        self.attributes: ItemAttributes | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """(...,) ids -> (..., width)."""
        rows = ids if self.positions is None else self.positions[ids]
        # index_select: a third of the time of F.embedding, forward and backward.
        vectors = self.weight.index_select(0, rows) if rows.dim() == 1 else F.embedding(rows, self.weight)
        return vectors if self.attributes is None else vectors + self.attributes(ids)

    def vectors(self, rows_C: Tensor | None = None) -> Tensor:
        """(C, width) the vectors of rows of ``weight``, None for all of them."""
        vectors: Tensor = self.weight if rows_C is None else self.weight.index_select(0, rows_C)
        if self.attributes is not None:
            ids = rows_C
            if self.row_ids is not None:
                ids = self.row_ids if rows_C is None else self.row_ids[rows_C]
            vectors = vectors + self.attributes(ids)
        return vectors

    def add_attributes(self, single_sizes: Sequence[int], n_binary: int) -> None:
        """Adds to every item's vector those of its attributes; sizes and start as in ``ItemAttributes``."""
        self.attributes = ItemAttributes(single_sizes, n_binary, self.weight.shape[1])

    @torch.no_grad()
    def fold(self) -> None:
        """Adds the attributes to the rows once: for a table that serves or is exported, not trained."""
        if self.attributes is not None:
            self.weight, self.attributes = nn.Parameter(self.vectors(), self.weight.requires_grad), None

    def place_unseen(self, events_C: Tensor, field_C: Tensor) -> None:
        """``place_unseen`` of the rows."""
        place_unseen(self.weight, events_C, field_C)


@torch.no_grad()
def place_unseen(weight_C: Tensor, events_C: Tensor, field_C: Tensor) -> None:
    """Sets rows without a training event to the mean of their field over training events.

    No training step reads them, so they would stay at their random start. For linear layers and products the mean
    is neutral: their outputs are those of the field in the mean.

    Args:
        weight_C: (C, ...) the rows.
        events_C: training events of every row.
        field_C: the field that every row belongs to.
    """
    weight_CD = weight_C.flatten(1) if weight_C.ndim > 1 else weight_C[:, None]  # view(0, -1) is ambiguous
    total_C = torch.zeros_like(events_C).index_add_(0, field_C, events_C)[field_C]
    share_C1 = (events_C / total_C.clamp(min=1)).to(weight_CD.dtype)[:, None]
    mean_CD = torch.zeros_like(weight_CD).index_add_(0, field_C, share_C1 * weight_CD)[field_C]
    weight_CD.copy_(torch.where((events_C == 0)[:, None], mean_CD, weight_CD))


class ItemAttributes(nn.Module):
    """(...,) items -> (..., width) the sum of the vectors of an item's categories, single-valued and multi-valued ones.

    A sum, as of the contexts of users: linear, so that the mean of a field is neutral for an unknown category (E28).
    Its weight is no table of rows: nearly every category is read by a step of some thousand candidates, and its
    gradient is as wide as the number of categories, not as the catalogue (E8). Vectors start at 0: they change nothing.

    Args:
        single_sizes: number of categories of each single-valued field, "unknown" included.
        n_binary: number of binary fields, the categories of multi-valued attributes.
        width: of a vector.
    """

    codes: Tensor
    field: Tensor

    def __init__(self, single_sizes: Sequence[int], n_binary: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(sum(single_sizes) + n_binary + 1, width))  # the last row is padding
        self.n_single = sum(single_sizes)
        sizes = torch.tensor([*single_sizes, *[1] * (n_binary + 1)], dtype=torch.int64)
        self.register_buffer("field", torch.arange(len(sizes)).repeat_interleave(sizes), persistent=False)
        self.register_buffer("codes", torch.empty(0, 0, dtype=torch.int64), persistent=False)

    def set_codes(self, contexts: Contexts) -> None:
        """Stores the codes of all items, (I, ...)."""
        padding = len(self.weight) - 1
        active = torch.where(contexts.active < 0, padding, contexts.active + self.n_single)
        self.codes = torch.cat([contexts.single, active], 1).to(self.weight.device)

    def forward(self, ids: Tensor | None) -> Tensor:
        """``ids`` None: all items."""
        codes = self.codes if ids is None else self.codes[ids]
        padding = len(self.weight) - 1
        if is_tracing():  # a compiled step; the sum of an embedding bag is a loop there
            return (F.embedding(codes, self.weight) * (codes < padding)[..., None]).sum(-2)
        bags = F.embedding_bag(codes.flatten(0, -2), self.weight, mode="sum", padding_idx=padding)
        return bags.view(*codes.shape[:-1], -1)

    @torch.no_grad()
    def place_unseen(self, item_events_I: Tensor) -> None:
        """``place_unseen`` of the categories, from the training events of every item."""
        events_C = torch.zeros(len(self.weight), dtype=item_events_I.dtype, device=item_events_I.device)
        events_C.index_add_(0, self.codes.flatten(), item_events_I.repeat_interleave(self.codes.shape[1]))
        place_unseen(self.weight, events_C, self.field)


class AttributeFields(ItemAttributes):
    """(...,) items -> (..., width, F) a vector for each attribute: the sum of the item's categories of that attribute.

    An item without a category of a multi-valued attribute has 0 there. Vectors start Glorot uniform, as those of the
    other fields (E12).

    Args:
        single_sizes: as in ItemAttributes.
        multi_sizes: number of binary fields of each multi-valued attribute.
        width: of a vector.
    """

    attribute: Tensor
    columns: Tensor

    def __init__(self, single_sizes: Sequence[int], multi_sizes: Sequence[int], width: int) -> None:
        super().__init__(single_sizes, sum(multi_sizes), width)
        nn.init.xavier_uniform_(self.weight)
        sizes = torch.tensor([*single_sizes, *multi_sizes, 1], dtype=torch.int64)  # the last row is padding
        self.register_buffer("attribute", torch.arange(len(sizes)).repeat_interleave(sizes), persistent=False)
        self.register_buffer("columns", torch.arange(len(sizes) - 1), persistent=False)

    def forward(self, ids: Tensor | None) -> Tensor:
        codes = self.codes if ids is None else self.codes[ids]
        vectors = F.embedding(codes, self.weight)
        is_of_attribute = self.attribute[codes][..., None] == self.columns  # never of padding
        return vectors.transpose(-1, -2) @ is_of_attribute.to(vectors.dtype)


class ItemFields(EmbeddingTable):
    """(...,) items -> (..., width, T) the item's field and one for each of its T - 1 attributes.

    Args:
        n_items: number of items.
        width: of a field.
        single_sizes, multi_sizes: as in AttributeFields; both empty: attributes are no fields, T is 1.

    Attributes:
        n_fields: T.
    """

    def __init__(self, n_items: int, width: int, single_sizes: Sequence[int], multi_sizes: Sequence[int]) -> None:
        super().__init__(n_items, width)
        nn.init.xavier_uniform_(self.weight)
        self.n_fields = 1 + len(single_sizes) + len(multi_sizes)
        self.fields = AttributeFields(single_sizes, multi_sizes, width) if self.n_fields > 1 else None

    def forward(self, ids: Tensor) -> Tensor:
        item = super().forward(ids)[..., None]
        return item if self.fields is None else torch.cat([item, self.fields(ids)], -1)

    def add_attributes(self, single_sizes: Sequence[int], n_binary: int) -> None:
        """Adds nothing where attributes are fields."""
        if self.fields is None:
            super().add_attributes(single_sizes, n_binary)


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
        bias_I: Tensor = self.bias.weight if columns_C is None else self.bias.weight.index_select(0, columns_C)
        weight_IH = self.items.vectors(columns_C)
        if len(bias_I) < len(weight_IH):  # rows of a table that embeds, too: the candidates come first
            weight_IH = weight_IH[: len(bias_I)]
        return torch.addmm(bias_I, query_BH, weight_IH.T)

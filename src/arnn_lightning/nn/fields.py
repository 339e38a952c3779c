"""Every user's context fields, as models hold them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from arnn_lightning.batch import Contexts


class UserFields(nn.Module):
    """Codes by user; no weights, and in no checkpoint.

    Args:
        single_sizes: the number of codes of each of the S single-valued fields.

    Attributes:
        single: (U + 1, S) rows of a table that holds the codes of all single-valued fields, one field after the other.
        active: (U + 1, A) two-valued fields that are present, -1 where there are fewer.
    """

    def __init__(self, single_sizes: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor([0, *single_sizes]).cumsum(0)[:-1], persistent=False)
        self.register_buffer("single", torch.empty(0, len(single_sizes), dtype=torch.int64), persistent=False)
        self.register_buffer("active", torch.empty(0, 1, dtype=torch.int64), persistent=False)
        self.offset: Tensor
        self.single: Tensor
        self.active: Tensor

    def set(self, contexts: Contexts) -> None:
        self.single = contexts.single.to(self.offset.device) + self.offset
        self.active = contexts.active.to(self.offset.device)

    def forward(self, user_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) -> ``active`` (B, A) and ``single`` (B, S) of these users."""
        return self.active[user_B], self.single[user_B]

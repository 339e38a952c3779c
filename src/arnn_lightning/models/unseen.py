"""The vectors of categories and items without a training event (E28)."""

from typing import Any

import torch
from torch import nn

from arnn_lightning.nn.table import EmbeddingTable, ItemAttributes


class UnseenRows:
    """Sets the rows of a model's tables that no training step reads to a neutral value.

    Categories, "unknown" included, get the mean of their field over training events. Items get the mean
    over items: an item without a click is not a popular one.

    Args:
        data: as in ``Recommender.set_contexts``.
        uses_contexts: whether the model reads the contexts of users.
        device: of the model.
    """

    def __init__(self, data: Any, uses_contexts: bool, device: torch.device) -> None:
        self.category_events = tuple(tensor.to(device) for tensor in data.category_events()) if uses_contexts else None
        self.item_events_I = data.item_events().double().to(device)
        self.is_trained_I = (self.item_events_I > 0).double()

    @torch.no_grad()
    def place(self, model: nn.Module) -> None:
        """Sets the rows of all tables that are trained."""
        one_field_I = torch.zeros_like(self.is_trained_I, dtype=torch.int64)
        for module in model.modules():
            if isinstance(module, EmbeddingTable) and module.weight.requires_grad:
                if module.ids == "single" and self.category_events is not None:
                    module.place_unseen(*self.category_events)
                elif module.ids == "item" and not self.is_trained_I.all():
                    module.place_unseen(self.is_trained_I, one_field_I)
            elif isinstance(module, ItemAttributes) and module.weight.requires_grad:
                module.place_unseen(self.item_events_I)

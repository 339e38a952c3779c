"""Fusion: a session encoder and the user's contexts, trained together in one stage."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from arnn_lightning.encoders.fusion import FusionEncoder
from arnn_lightning.models.trained import SessionRecommender


class Fusion(SessionRecommender):
    """A fusion of copies of the encoder and scorer of ``session``.

    ``session`` itself is trained before, without contexts: the control that the fusion is compared with. Both start
    from the same weights; nothing that the control learns reaches the fusion.

    Args:
        name: the model's name.
        dims: ``n_items``; ``single_sizes``, the number of codes of each single-valued field; ``n_binary``.
        session: the model whose encoder and scorer are copied.
        fusion: makes the encoder of a session encoder and the number of categories and of binary fields.
        training: loss, optimizer, scheduler, scheduler_interval, clip_norm and settings, as in SessionRecommender.
    """

    needs_stages = False

    def __init__(
        self,
        name: str,
        dims: dict[str, Any],
        session: SessionRecommender,
        fusion: Callable[..., FusionEncoder],
        **training: Any,
    ) -> None:
        session_encoder, scorer = copy.deepcopy((session.encoder, session.scorer))  # at once: they may share a table
        encoder = fusion(session_encoder, n_categories=sum(dims["single_sizes"]), n_binary=dims["n_binary"])
        super().__init__(name, dims, encoder, scorer=scorer, **training)
        self._stages = {"session": session}  # a plain dict: it is no part of this model's state

    @property
    def stages(self) -> Mapping[str, SessionRecommender]:
        return self._stages

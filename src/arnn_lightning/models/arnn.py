"""ARNN: the paper's model (3.5), whose encoders are trained separately before the merging layer."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from arnn_lightning.batch import Contexts, State, StepInput, TrainChunk
from arnn_lightning.encoders.arnn import ARNNEncoder
from arnn_lightning.models.trained import SessionRecommender
from arnn_lightning.nn.table import EmbeddingTable
from arnn_lightning.optim.step import autocast

_USERS_PER_BATCH = 2_048
Features = tuple[Tensor, State]  # [c_t; h_t] of a step, and the encoders' state after it


class ARNN(SessionRecommender):
    """Augmented RNN (Song & Lee 2018, arXiv 1805.02983, 3.5): merges the encoders of two trained models.

    Args:
        name: the model's name.
        dims: ``n_items``.
        session: the model whose encoder gives h_t (GRU4REC by default).
        context: the model whose encoder gives c_t (PNN by default).
        hidden_size, dropout, freeze_encoders, finetune_context_batchnorm: as in ARNNEncoder.
        training: loss, optimizer, scheduler, scheduler_interval, clip_norm and settings, as in SessionRecommender.
    """

    encoder: ARNNEncoder

    def __init__(
        self,
        name: str,
        dims: dict[str, Any],
        session: SessionRecommender,
        context: SessionRecommender,
        hidden_size: int,
        dropout: float,
        freeze_encoders: bool,
        finetune_context_batchnorm: bool,
        **training: Any,
    ) -> None:
        encoder = ARNNEncoder(
            session.encoder, context.encoder, hidden_size, dropout, freeze_encoders, finetune_context_batchnorm
        )
        super().__init__(name, dims, encoder, **training)
        self._stages = {"session": session, "context": context}  # a plain dict: they are no part of this model's state
        self._cache = FeatureCache(0)
        self._user_terms: Tensor | None = None

    @property
    def stages(self) -> Mapping[str, SessionRecommender]:
        return self._stages

    @property
    def stage_name(self) -> str:
        return "merging layer" if self.encoder.freeze_encoders else self.name

    @property
    def profile_model(self) -> SessionRecommender:
        """The model of the context encoder: the merging layer needs a query of the session encoder."""
        return self._stages["context"].profile_model

    def item_tables(self) -> Iterator[EmbeddingTable]:
        yield self.scorer.items  # the encoders have those of their models

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.prepare_merge()

    def prepare_merge(self) -> None:
        """Freezes the encoders, and drops what was computed with older weights."""
        self.encoder.freeze()
        self._user_terms = None
        limit = self.settings.cache_mb if self.encoder.has_constant_features else 0.0
        self._cache = FeatureCache(int(limit * 1e6))

    def on_train_end(self) -> None:
        self._cache.clear()

    def step_input(self, item: Tensor, user: Tensor, valid: Tensor | None) -> StepInput:
        return super().step_input(item, user, valid)._replace(user_terms=self._terms_of(user))

    def step_inputs(self, chunk: TrainChunk) -> Iterator[tuple[StepInput, Tensor]]:
        for k, ((step, keep_B1), user) in enumerate(zip(super().step_inputs(chunk), chunk.user.unbind(), strict=True)):
            if chunk.contexts is None and (chunk.number, k) not in self._cache:
                step = step._replace(user_terms=self._terms_of(user))
            yield step, keep_B1

    def precompute(self, step: StepInput, state: State, key: tuple[int, int] | None) -> tuple[StepInput, State]:
        if not self.encoder.has_constant_features:
            return step, state
        entry = None if key is None else self._cache.get(key)
        if entry is None:
            with torch.no_grad(), autocast(self.settings.bf16, self.device):
                entry = self.encoder.features(step, state)
            if key is not None:
                self._cache.add(key, entry)
        features_BW, state = entry
        # Not every step has terms, which features contain, but a compiled step must have the same inputs in all epochs.
        return step._replace(features=features_BW, user_terms=None), state

    def _terms_of(self, user: Tensor) -> Tensor | None:
        """(B, ...) the frozen context encoder's terms of each user, computed once for all users."""
        if not self.encoder.freeze_encoders:
            return None
        if self._user_terms is None:
            with torch.no_grad():
                batches = zip(
                    self.user_single.split(_USERS_PER_BATCH), self.user_active.split(_USERS_PER_BATCH), strict=True
                )
                terms = [self.encoder.user_terms(Contexts(*batch)) for batch in batches]
            if terms[0] is None:
                return None
            self._user_terms = torch.cat([term for term in terms if term is not None])
        return self._user_terms[user]


class FeatureCache:
    """Outputs of the frozen encoders, keyed by (chunk, step), up to ``size`` bytes.

    Every epoch of a stage shows the same events in the same slots, so from the second epoch on a step is the merging
    layer alone. Entries beyond the limit are recomputed each epoch.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.clear()

    def clear(self) -> None:
        self._entries: dict[tuple[int, int], Features] = {}
        self._bytes_left = self.size

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._entries

    def get(self, key: tuple[int, int]) -> Features | None:
        return self._entries.get(key)

    def add(self, key: tuple[int, int], features: Features) -> None:
        if self._bytes_left > 0:
            self._bytes_left -= sum(tensor.nbytes for tensor in (features[0], *features[1]))
            self._entries[key] = features

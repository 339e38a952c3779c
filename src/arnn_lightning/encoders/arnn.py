"""ARNN (paper 3.2 and 3.5): M([c_t; h_t]), a merging layer over a context encoder and a session encoder.

Both are pretrained separately and frozen; M = BatchNorm(ReLU(FC([c_t; h_t]))) and a new scorer are trained on top of
them. Footnote 2 (the context encoder's batch normalisation trained on) and joint training are options. Any two encoders
can take the two roles.

B batch slots, W = C + H: width of the context encoder's and of the session encoder's query; M of the merging layer.
"""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arnn_lightning.batch import Contexts, State, StepInput
from arnn_lightning.encoders.base import SessionEncoder
from arnn_lightning.nn.batchnorm import MaskedBatchNorm
from arnn_lightning.nn.dropout import dropout


class ARNNEncoder(SessionEncoder):
    """Merges the queries of a session encoder and a context encoder (Song & Lee 2018, arXiv 1805.02983, 3.2 and 3.5).

    Args:
        session: the session encoder, h_t.
        context: the context encoder, c_t.
        hidden_size: M, the width of the merging layer and of the query.
        dropout: on the merging layer.
        freeze_encoders: True, as in the paper; False trains the encoders further, together with the merging layer.
        finetune_context_batchnorm: with frozen encoders, trains the context encoder's batch norm further (footnote 2).
    """

    uses_contexts = True

    def __init__(
        self,
        session: SessionEncoder,
        context: SessionEncoder,
        hidden_size: int,
        dropout: float,
        freeze_encoders: bool,
        finetune_context_batchnorm: bool,
    ) -> None:
        super().__init__()
        self.session = session
        self.context = context
        self.last_n_events = max(session.last_n_events, context.last_n_events)
        self.hidden_size = hidden_size
        self.dropout = dropout
        self.freeze_encoders = freeze_encoders
        self.finetune_context_batchnorm = finetune_context_batchnorm
        self.merge_layer = nn.Linear(session.hidden_size + context.hidden_size, hidden_size)
        nn.init.xavier_uniform_(self.merge_layer.weight)
        nn.init.zeros_(self.merge_layer.bias)
        self.norm = MaskedBatchNorm(hidden_size)
        self._n_session_states = len(session.initial_state(1))

    @property
    def has_constant_features(self) -> bool:
        """Whether [c_t; h_t] of an event stays the same in all epochs of the merging stage."""
        return self.freeze_encoders and not self.finetune_context_batchnorm

    def freeze(self) -> None:
        """Excludes what the merging stage does not train from gradients, dropout and running statistics."""
        if self.freeze_encoders:
            for encoder in (self.session, self.context):
                encoder.requires_grad_(False)
            for norm in self._trained_norms():
                norm.requires_grad_(True)
        self.train(self.training)

    def _trained_norms(self) -> list[MaskedBatchNorm]:
        modules = self.context.modules() if self.finetune_context_batchnorm else ()
        return [module for module in modules if isinstance(module, MaskedBatchNorm)]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_encoders:
            self.session.eval()
            self.context.eval()
            for norm in self._trained_norms():
                norm.train(mode)
        return self

    def initial_state(self, batch_size: int) -> State:
        return (*self.session.initial_state(batch_size), *self.context.initial_state(batch_size))

    def user_terms(self, contexts: Contexts) -> Tensor | None:
        return self.context.user_terms(contexts)

    def features(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        """[c_t; h_t] (B, W) and the encoders' next states."""
        n = self._n_session_states
        hidden_BH, session_state = self.session.encode(step._replace(user_terms=None), state[:n])
        context_BC, context_state = self.context.encode(step, state[n:])
        return torch.cat([context_BC, hidden_BH], 1), (*session_state, *context_state)

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        features_BW = step.features
        if features_BW is None:
            features_BW, state = self.features(step, state)
        merged_BM = self.norm(F.relu(self.merge_layer(features_BW)), step.valid)
        return dropout(merged_BM, self.dropout, self.training), state

"""ARNN (paper 3.2 and 3.5): M([c_t; h_t]), a merging layer over a context encoder and a session model.

Both parts are pretrained by themselves, lose their scorers, and are frozen; M = BatchNorm(ReLU(FC([c_t; h_t]))) and a
scorer of its own are trained on top. Footnote 2 (the context encoder's batch normalisation retrained) and joint
training are options. Any two SessionModels can take the two roles.

B lanes, H hidden of the session part, C of the context part, M of the merging layer.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arnn_lightning.batch import Contexts, Step
from arnn_lightning.losses.losses import Objective
from arnn_lightning.models.base import OptimizerFactory, SessionModel, State
from arnn_lightning.nn.batchnorm import MaskedBatchNorm
from arnn_lightning.nn.table import ItemScorer, glorot_

Said = tuple[Tensor, State]  # [c_t; h_t] of a step, and the parts' state after it


class ARNN(SessionModel):
    """Augmented RNN.

    Args:
        name: the model's name.
        dims: ``n_items``.
        session: the part that gives h_t (GRU4REC by default).
        context: the part that gives c_t (PNN by default).
        hidden_size: of the merging layer.
        dropout: on the merging layer.
        freeze_encoders: the paper's; False trains the encoders on with the merging layer.
        finetune_context_batchnorm: with frozen encoders, trains the context encoder's batch norm on (footnote 2).
        optimizer: makes the merging stage's optimizer.
        loss: its objective.
    """

    def __init__(
        self,
        name: str,
        dims: dict[str, Any],
        session: SessionModel,
        context: SessionModel,
        hidden_size: int,
        dropout: float,
        freeze_encoders: bool,
        finetune_context_batchnorm: bool,
        optimizer: OptimizerFactory,
        loss: Objective,
    ) -> None:
        super().__init__(name, dims["n_items"], optimizer, loss)
        self.session = session
        self.context = context
        self.freeze_parts = freeze_encoders
        self.retrain_batchnorm = finetune_context_batchnorm
        self.dropout = dropout
        self.hidden_size = hidden_size
        width = session.hidden_size + context.hidden_size
        self.merge = nn.Linear(width, hidden_size)
        glorot_(self.merge.weight, width, hidden_size)
        nn.init.zeros_(self.merge.bias)
        self.norm = MaskedBatchNorm(hidden_size)
        self.scorer = ItemScorer(self.n_items, hidden_size)
        self._assembled = False
        self.cache_mb = 0.0
        self._cache = Cache(0)

    @property
    def parts(self) -> Mapping[str, SessionModel]:
        return {"session": self.session, "context": self.context}

    def set_contexts(self, contexts: Contexts) -> None:
        for part in self.parts.values():
            part.set_contexts(contexts)

    def assemble(self) -> None:
        self._assembled = True
        self._cache = Cache(int(self.cache_mb * 1e6) if self.freeze_parts and not self.retrain_batchnorm else 0)
        for part in self.parts.values():
            part.scorer = None
            if self.freeze_parts:
                part.frozen = True
                part.requires_grad_(False)
        if self.freeze_parts and self.retrain_batchnorm:
            for norm in self._context_norms():
                norm.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> "ARNN":
        super().train(mode)
        if self._assembled and self.freeze_parts:
            for part in self.parts.values():
                part.eval()  # dropout off, running statistics of the batch normalisation
            if self.retrain_batchnorm:
                for norm in self._context_norms():
                    norm.train(mode)
        return self

    def _context_norms(self) -> list[MaskedBatchNorm]:
        return [module for module in self.context.modules() if isinstance(module, MaskedBatchNorm)]

    def initial_state(self, lanes: int) -> State:
        return (*self.session.initial_state(lanes), *self.context.initial_state(lanes))

    def remembers(self, step: Step) -> bool:
        return self._cache.get(step.place) is not None

    def represent(self, step: Step, state: State) -> tuple[Tensor, State]:
        said = self._cache.get(step.place)
        if said is None:
            said = self._parts_say(step, state)
            self._cache.put(step.place, said)
        both_BW, state = said
        merged_BM = F.relu(self.merge(both_BW))
        merged_BM = self.norm(merged_BM, step.alive)
        return F.dropout(merged_BM, self.dropout, self.training), state

    def _parts_say(self, step: Step, state: State) -> Said:
        split = len(self.session.initial_state(0))
        learns = torch.is_grad_enabled()
        with torch.set_grad_enabled(learns and not self.freeze_parts):
            hidden_BH, session_state = self.session.represent(step, state[:split])
        with torch.set_grad_enabled(learns and (not self.freeze_parts or self.retrain_batchnorm)):
            context_BC, context_state = self.context.represent(step, state[split:])
        both_BW = torch.cat([context_BC, hidden_BH], 1)
        # The state of a GRU is its h_t: one memory will do for what is kept of both.
        kept_BH = both_BW[:, context_BC.shape[1] :]
        session_state = tuple(kept_BH[None] if _same(part, hidden_BH) else part for part in session_state)
        return both_BW, (*session_state, *context_state)

    def on_train_start(self) -> None:
        super().on_train_start()
        self._cache.clear()  # weights may have been loaded since

    def on_train_end(self) -> None:
        self._cache.clear()


def _same(state: Tensor, hidden_BH: Tensor) -> bool:
    return state.data_ptr() == hidden_BH.data_ptr() and state.shape == (1, *hidden_BH.shape)


class Cache:
    """What frozen parts say at each step of an epoch, up to ``size`` bytes of it.

    Every epoch of a stage shows the same events in the same lanes, and parts that learn no more say the same of them:
    from the second epoch on a step is the merging layer alone.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.clear()

    def clear(self) -> None:
        self._said: dict[tuple[int, int], Said] = {}
        self._left = self.size

    def get(self, place: tuple[int, int] | None) -> Said | None:
        return None if place is None else self._said.get(place)

    def put(self, place: tuple[int, int] | None, said: Said) -> None:
        """Keeps ``said`` where there is room; places that find none are computed anew in every epoch."""
        if place is None or self._left <= 0:
            return
        storages = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in (said[0], *said[1])}
        self._left -= sum(storages.values())
        self._said[place] = said

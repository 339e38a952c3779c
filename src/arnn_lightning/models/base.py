"""Recommender: ranks the full catalogue after every event, in validation and test.

Shapes: K steps in a chunk, B batch slots, N predictions, I items, H width of a query, U users.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from arnn_lightning.batch import BatchChunk, Contexts, State, StepInput, no_contexts
from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.metrics import compute_metrics, rank
from arnn_lightning.evaluation.ranking import RecommendationCounts, count_higher_and_tied
from arnn_lightning.nn.collectives import all_gather_ragged, all_reduce_sum, rank_and_world_size
from arnn_lightning.preprocessing.sessions import Sessions

CHECKPOINT_VERSION = 4


class RunSettings:
    """The settings of a run that a model needs in addition to its own config.

    Args:
        log_prefix: of the names of logged values: ``session/`` and ``context/`` for ARNN's encoders.
        metrics: computed in validation and test, such as ``recall@20``.
        shown: the metrics that are shown during training.
        monitor: the validation metric that selects the best epoch.
        tie_mode: how a target that ties with other items is ranked (V5).
        list_length: of the recommended lists, from which coverage, novelty and others are computed in the test.
        bf16: runs the matrix products of training in bfloat16; losses, updates and ranks stay in float32.
        compile: compiles the training step.
        cache_mb: size limit of the cache of frozen encoder outputs, in MB.
        metadata: stored in the checkpoint: plain values that identify model and data.
        vocabulary: stored in the checkpoint: item ids, categories and users as bytes, see serving/vocabulary.py.
    """

    def __init__(
        self,
        log_prefix: str = "",
        metrics: Sequence[str] = ("recall@20", "mrr@20"),
        shown: Sequence[str] = ("recall@20", "mrr@20"),
        monitor: str = "mrr@20",
        tie_mode: str = "conservative",
        list_length: int = 20,
        bf16: bool = False,
        compile: bool = False,
        cache_mb: float = 0.0,
        metadata: dict[str, Any] | None = None,
        vocabulary: dict[str, Tensor] | None = None,
    ) -> None:
        self.log_prefix = log_prefix
        self.metrics = list(dict.fromkeys([*metrics, monitor]))
        self.shown = list(shown)
        self.monitor = monitor
        self.tie_mode = tie_mode
        self.list_length = list_length
        self.bf16 = bf16
        self.compile = compile
        self.cache_mb = cache_mb
        self.metadata = metadata or {}
        self.vocabulary = vocabulary or {}


class Recommender(LightningModule):
    """Base of all models. A model encodes events into queries and scores all items for a query.

    Args:
        name: the model's name in tables.
        n_items: size of the catalogue.
        settings: of the run.

    Attributes:
        needs_stages: whether this model uses the trained weights of its ``stages``; otherwise they are controls.
        first_items: what is listed before a session's first click, see training/first_items.py; None: popular items.
        rank_counts: of the last evaluation: session, position, higher and equal of every prediction, (N,) each.
        recommended: how often each item was recommended in the last test.
    """

    uses_contexts = False
    needs_stages = True

    def __init__(self, name: str, n_items: int, settings: RunSettings) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.name = name
        self.n_items = n_items
        self.settings = settings
        for field, codes in no_contexts(0)._asdict().items():
            self.register_buffer(f"user_{field}", codes, persistent=False)
        self.user_single: Tensor
        self.user_active: Tensor
        self.first_items: dict[str, Any] | None = None
        self._evaluation_state: State | None = None
        self._counts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.rank_counts: dict[str, Tensor] = {}
        self.recommended: RecommendationCounts | None = None

    @property
    def stages(self) -> Mapping[str, Any]:
        """The models by role that are trained before this one."""
        return {}

    # The model

    def initial_state(self, batch_size: int) -> State:
        """The state before a session's first event in each of ``batch_size`` slots: tensors (..., B, width).

        Empty for models without memory.
        """
        return ()

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        """One event in every slot: ``step`` and the ``state`` before it -> query (B, H) and the next state.

        Hidden states of slots whose session starts are already reset (E1).
        """
        raise NotImplementedError(f"{type(self).__name__} must implement encode()")

    def score(self, query_NH: Tensor) -> Tensor:
        """Raw scores (N, I) of all items for the queries ``query_NH``; the caller may overwrite them."""
        raise NotImplementedError(f"{type(self).__name__} must implement score()")

    def item_similarity(self, item_N: Tensor) -> Tensor:
        """(N, I) how similar every item is to each of ``item_N``.

        Raises:
            UserError: a model that does not compare items.
        """
        raise UserError(f"{self.name} does not compare items; similar items need a neural model, itemknn or sr")

    def fit(self, sessions: Sessions) -> None:
        """Fits the model to the training ``sessions`` by counting; only for non-neural models."""

    # User contexts

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None:
            self.set_contexts(data)

    def set_contexts(self, data: Any) -> None:
        """Stores what the model reads of the contexts of a data set: a ``SessionDataModule``, or the like."""
        if self.uses_contexts:
            self.set_user_contexts(data.user_contexts())

    def set_user_contexts(self, contexts: Contexts) -> None:
        """Stores ``contexts``, the codes of every user: U + 1 rows, the last one for unknown contexts."""
        self.user_single, self.user_active = (codes.to(self.device) for codes in contexts)

    def contexts_of(self, user: Tensor) -> Contexts:
        """The contexts of the users ``user``, codes of any shape (...,): (..., S) and (..., A)."""
        if not self.uses_contexts:
            return Contexts(user.new_empty(*user.shape, 0), user.new_empty(*user.shape, 0))
        return Contexts(self.user_single[user], self.user_active[user])

    def step_input(self, item: Tensor, user: Tensor, valid: Tensor | None) -> StepInput:
        """A mini-batch of items and users, (B,) each."""
        return StepInput(item, self.contexts_of(user), valid)

    # Evaluation

    def encode_chunk(self, chunk: BatchChunk) -> tuple[Tensor, Tensor]:
        """Queries (N, H) and targets (N,) of the valid slots of a chunk, step by step, slot by slot."""
        n_steps, batch_size = chunk.item.shape
        state = self._evaluation_state
        if state is None:
            state = self.initial_state(batch_size)
        queries = []
        for k in range(n_steps):
            state = reset_state(state, chunk.is_session_start[k])
            query_BH, state = self.encode(self.step_input(chunk.item[k], chunk.user[k], chunk.valid[k]), state)
            queries.append(query_BH[chunk.valid[k]])
        self._evaluation_state = state
        return torch.cat(queries), chunk.target[chunk.valid]

    def count_ranks(
        self, query_NH: Tensor, target_N: Tensor, recommended: RecommendationCounts | None = None
    ) -> Tensor:
        """(N, 2): how many items score higher than ``target_N`` for the queries ``query_NH``, and how many the same."""
        return count_higher_and_tied(self.score, query_NH, target_N, self.n_items, recommended)

    def _reset_ranks(self) -> None:
        self._evaluation_state = None
        self._counts = []
        self.recommended = None

    def _update_ranks(self, chunk: BatchChunk) -> None:
        query_NH, target_N = self.encode_chunk(chunk)
        counts = self.count_ranks(query_NH, target_N, self.recommended)
        self._counts.append((chunk.session[chunk.valid], chunk.position[chunk.valid], counts))

    def _compute_metrics(self) -> dict[str, float | int]:
        session, position, counts = (torch.cat(column) for column in zip(*self._counts, strict=True))
        if rank_and_world_size()[1] > 1:
            gathered = all_gather_ragged(torch.cat([session[:, None], position[:, None], counts], 1))
            session, position, counts = gathered[:, 0], gathered[:, 1], gathered[:, 2:]
            if self.recommended is not None:
                all_reduce_sum(self.recommended.count_I)
        session, position, counts = session.cpu(), position.cpu(), counts.cpu()
        self.rank_counts = {"session": session, "position": position, "higher": counts[:, 0], "equal": counts[:, 1]}
        self._counts = []
        ranks = rank(counts[:, 0].numpy(), counts[:, 1].numpy(), self.settings.tie_mode)
        return compute_metrics(ranks, session.numpy(), self.settings.metrics)

    def _log_metrics(self, split: str) -> None:
        for name, value in self._compute_metrics().items():
            if name not in ("events", "sessions"):
                self.log(f"{self.settings.log_prefix}{split}/{name}", value, prog_bar=name in self.settings.shown)

    def on_validation_epoch_start(self) -> None:
        self._reset_ranks()

    def validation_step(self, batch: BatchChunk, index: int) -> None:
        self._update_ranks(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_start(self) -> None:
        self._reset_ranks()
        self.recommended = RecommendationCounts(self.n_items, self.settings.list_length, self.device)

    def test_step(self, batch: BatchChunk, index: int) -> None:
        self._update_ranks(batch)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["version"] = CHECKPOINT_VERSION
        checkpoint["metadata"] = self.settings.metadata
        checkpoint["vocabulary"] = self.settings.vocabulary


def reset_state(state: State, is_session_start_B: Tensor) -> State:
    """Zeros the hidden state of the slots whose session starts at this step (E1)."""
    keep_B1 = ~is_session_start_B[:, None]
    return tuple(part * keep_B1 for part in state)

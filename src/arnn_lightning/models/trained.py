"""SessionRecommender: trains an encoder with an item scorer.

Shapes: K steps in a chunk, B batch slots, H width of a query, L layers of a hidden state.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from arnn_lightning.batch import ChunkSpec, Contexts, State, StepInput, TrainChunk
from arnn_lightning.encoders.base import SessionEncoder, check_encoder
from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.ranking import RecommendationCounts, count_higher_and_tied_blockwise
from arnn_lightning.losses.base import RankingLoss
from arnn_lightning.models.base import Recommender, RunSettings
from arnn_lightning.models.progress import TrainingProgress
from arnn_lightning.models.unseen import UnseenRows
from arnn_lightning.nn.collectives import all_reduce_sum, rank_and_world_size
from arnn_lightning.nn.table import AttributeFields, EmbeddingTable, ItemAttributes, ItemScorer
from arnn_lightning.optim.compiled import make_train_step
from arnn_lightning.optim.schedule import LearningRateSchedule, SchedulerFactory
from arnn_lightning.optim.step import StepLoss, TrainStep

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
ItemContexts = Literal["none", "add", "fields"]


def item_field_sizes(dims: Mapping[str, Any], item_contexts: ItemContexts) -> dict[str, Sequence[int]]:
    """Arguments of an encoder of fields: the sizes of the items' attributes where these are fields, else none."""
    keys = ("item_single_sizes", "item_multi_sizes")
    return {key: dims.get(key, ()) if item_contexts == "fields" else () for key in keys}


class SessionRecommender(Recommender):
    """Trains an encoder with an item scorer and a ranking loss; every mini-batch is one optimizer step.

    Args:
        name: the model's name.
        dims: sizes of the data: ``n_items``; of items with attributes also ``item_single_sizes``, the number of codes
            of each single-valued field, and ``n_item_binary``, that of binary fields.
        encoder: encodes one event per batch slot.
        loss: the ranking loss.
        optimizer: makes the optimizer from the parameters.
        scheduler: makes the learning-rate schedule from the optimizer; None: a constant rate.
        scheduler_interval: whether the schedule advances after every ``epoch`` or every ``step``.
        clip_norm: the largest norm of a step's gradient; None: no clipping.
        item_contexts: how the attributes of items are used: ``none``; ``add``: their vectors are added to the item's
            where items are read and scored; ``fields``: likewise, but encoders of fields (PNN, Concat) have a field for
            each.
        settings: of the run.
        scorer: the item scorer; None: a new one.

    Raises:
        UserError: the data set has no attributes of items that could be used.
    """

    def __init__(
        self,
        name: str,
        dims: dict[str, Any],
        encoder: SessionEncoder,
        loss: RankingLoss,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        scheduler_interval: Literal["epoch", "step"],
        clip_norm: float | None,
        item_contexts: ItemContexts,
        settings: RunSettings,
        scorer: ItemScorer | None = None,
    ) -> None:
        super().__init__(name, dims["n_items"], settings)
        check_encoder(encoder)
        self.encoder = encoder
        self.scorer = scorer if scorer is not None else ItemScorer(self.n_items, encoder.hidden_size)
        self.loss = loss
        self.optimizer_factory = optimizer
        self.schedule = LearningRateSchedule(scheduler, scheduler_interval)
        self.clip_norm = clip_norm
        self.uses_contexts = encoder.uses_contexts
        self.register_buffer("mini_batches", torch.zeros((), dtype=torch.int64))
        self.mini_batches: Tensor
        self._train_step: TrainStep | None = None
        self._unseen: UnseenRows | None = None
        self.progress = TrainingProgress()
        self._item_vectors: Tensor | None = None
        if item_contexts != "none":
            sizes, n_binary = dims.get("item_single_sizes"), dims.get("n_item_binary")
            if not sizes and not n_binary:
                raise UserError(
                    f"model.item_contexts={item_contexts}: the data set has no attributes of items; set "
                    "data.item_contexts, as in data.item_contexts.single=[category]"
                )
            for table in self.item_tables():
                if table.attributes is None:
                    table.add_attributes(sizes or [], n_binary or 0)

    # Contexts of items

    def item_tables(self) -> Iterator[EmbeddingTable]:
        """The tables of item vectors that this model trains, except those of a model that was trained earlier."""
        for module in self.modules():
            if isinstance(module, EmbeddingTable) and module.ids == "item" and module.weight.dim() == 2:
                yield module

    def set_contexts(self, data: Any) -> None:
        super().set_contexts(data)
        if self.uses_item_contexts:
            self.set_item_contexts(data.item_contexts())

    def set_item_contexts(self, contexts: Contexts) -> None:
        """Stores ``contexts``, the codes of every item (I rows)."""
        for attributes in self._attributes():
            attributes.set_codes(contexts)

    @property
    def uses_item_contexts(self) -> bool:
        return bool(self._attributes())

    @property
    def has_item_fields(self) -> bool:
        """Whether an encoder has a field for each attribute of an item."""
        return any(isinstance(module, AttributeFields) for module in self.modules())

    def _attributes(self) -> list[ItemAttributes]:
        return [module for module in self.modules() if isinstance(module, ItemAttributes)]

    # The model

    def initial_state(self, batch_size: int) -> State:
        return self.encoder.initial_state(batch_size)

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        return self.encoder.encode(step, state)

    def score(self, query_NH: Tensor) -> Tensor:
        scores_NI: Tensor = self.scorer(query_NH)
        return scores_NI

    @property
    def profile_model(self) -> "SessionRecommender":
        """The model whose ``profile_scorer`` ranks items before the first click: this one, or one of its stages."""
        return self

    def profile_scorer(self, item_events_I: Tensor) -> Callable[[Contexts], Tensor] | None:
        """A function that scores items by the users' contexts alone, before the first click of a session.

        Args:
            item_events_I: (I,) training events of every item.

        Returns:
            a function of the contexts of N users that returns scores (N, I), in evaluation mode; None: the model needs
            an item.
        """
        encode = self.encoder.profile_encoder(item_events_I)
        return None if encode is None else lambda contexts: self.score(encode(contexts))

    def item_similarity(self, item_N: Tensor) -> Tensor:
        """Cosine of the vectors with which the items are scored."""
        vector_IH = F.normalize(self.scorer.items.vectors(), dim=1)
        return vector_IH[item_N] @ vector_IH.T

    def count_ranks(
        self, query_NH: Tensor, target_N: Tensor, recommended: RecommendationCounts | None = None
    ) -> Tensor:
        weight, bias = self._item_vectors, self.scorer.bias.weight
        if weight is None:
            weight = self.scorer.items.vectors()
        return count_higher_and_tied_blockwise(query_NH, target_N, weight, bias, recommended)

    def _reset_ranks(self) -> None:
        super()._reset_ranks()
        self._item_vectors = self.scorer.items.vectors().detach()  # once for an evaluation

    def _compute_metrics(self) -> dict[str, float | int]:
        self._item_vectors = None  # as wide as the catalogue
        return super()._compute_metrics()

    # Training

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_factory([weight for weight in self.parameters() if weight.requires_grad])
        self._train_step = self.make_train_step(optimizer)
        scheduler = self.schedule.start(optimizer)
        return optimizer if scheduler is None else ([optimizer], [scheduler])

    def make_train_step(self, optimizer: Optimizer) -> TrainStep:
        """The function that trains on one mini-batch."""
        loss = StepLoss(self.encoder, self.scorer, self.loss, self.settings.bf16)
        return make_train_step(loss, optimizer, self.clip_norm, self.settings.compile)

    @property
    def chunk_spec(self) -> ChunkSpec:
        """The inputs that a training step reads; they depend on the optimizer."""
        assert self._train_step is not None
        return ChunkSpec(
            row_sources=frozenset(self._train_step.tables.values()),
            full_catalogue=self.loss.scores_full_catalogue,
            log_q=bool(self.loss.logq),
            padded=self._train_step.needs_padding,
            last_n_events=self.encoder.last_n_events,
        )

    def step_inputs(self, chunk: TrainChunk) -> Iterator[tuple[StepInput, Tensor]]:
        """Every step of a chunk as the encoder gets it, and the (B, 1) factor that resets its state (E1).

        Empty slots are reset too: an ended session's state may contain items that the step has no rows for.
        """
        contexts = self.contexts_of(chunk.user) if chunk.contexts is None else chunk.contexts
        keep = (chunk.valid & ~chunk.is_session_start).unsqueeze(2)  # reset_state (models/base.py) for all steps
        columns = (chunk.item, contexts.single, contexts.active, chunk.valid, keep)
        for all_valid, item, single, active, valid, keep_B1 in zip(
            chunk.all_valid.tolist(), *(column.unbind() for column in columns), strict=True
        ):
            yield StepInput(item, Contexts(single, active), None if all_valid else valid), keep_B1

    def precompute(self, step: StepInput, state: State, key: tuple[int, int] | None) -> tuple[StepInput, State]:
        """A hook: adds to a step's input what needs no gradient, as ARNN does with its frozen encoders' outputs.

        ``key``, under which they may be cached, is (chunk, step) of the epoch; None where contexts differ by epoch.
        """
        return step, state

    def run_steps(
        self, chunk: TrainChunk, state: State, last_update: Callable[..., Any] | None = None
    ) -> tuple[Tensor, State]:
        """Trains on every mini-batch of a chunk; returns the losses (K,) and the state.

        Several steps per ``training_step``, since Lightning's loop costs more than a small step: an epoch of 118,000
        events at B = 50 took 2.4 to 3.5 s with K = 50 and 5.8 to 10.3 s with K = 1 (2 cores).

        Args:
            chunk: K mini-batches.
            state: the state before the first.
            last_update: called in place of the optimizer's ``step`` in the last.
        """
        assert self._train_step is not None
        last = len(chunk.item) - 1
        self._train_step.start_chunk({source: ragged.sizes for source, ragged in chunk.rows.items()})
        losses = []
        for k, ((step, keep_B1), (candidates, rows)) in enumerate(
            zip(self.step_inputs(chunk), chunk.steps(), strict=True)
        ):
            state = tuple([part * keep_B1 for part in state])
            step, state = self.precompute(step, state, (chunk.number, k) if chunk.contexts is None else None)
            loss, state = self._train_step(step, candidates, state, rows, last_update if k == last else None)
            losses.append(loss)
            self.schedule.after_step()
        return torch.stack(losses), state

    def training_step(self, batch: TrainChunk, index: int) -> None:
        started = time.perf_counter()
        self.progress.restore_random_state(self.device)
        n_steps, batch_size = batch.item.shape
        state = self.progress.state
        # Lightning's wrapper is called for the last step of a chunk alone: global_step counts chunks. Without a call it
        # would stay 0, and no best checkpoint would be saved.
        optimizer = cast(LightningOptimizer, self.optimizers())
        losses_K, self.progress.state = self.run_steps(
            batch, self.initial_state(batch_size) if state is None else state, optimizer.step
        )
        n_events = int(batch.valid.sum())
        n_devices = rank_and_world_size()[1]
        if n_devices > 1:
            reduced = all_reduce_sum(torch.cat([losses_K / n_devices, losses_K.new_tensor([n_events])]).double())
            losses_K, n_events = reduced[:-1], int(reduced[-1])
        self._raise_if_not_finite(losses_K)
        self.mini_batches += n_steps
        # Losses are divided by the number of slots (E25): times slots over events is the mean per event.
        total = float(losses_K.sum()) * batch_size * n_devices
        self.progress.add_chunk(total, n_events, time.perf_counter() - started)
        prefix = self.settings.log_prefix
        self.log(f"{prefix}train/loss", total / n_events, on_step=True, on_epoch=False, prog_bar=True)
        self.log(f"{prefix}steps", self.mini_batches.float(), on_step=True, on_epoch=False)

    def on_train_start(self) -> None:
        # Lightning does not call on_train_epoch_start in an epoch resumed in its middle: what is set here stays.
        self.progress.start(self.device)

    def on_train_epoch_start(self) -> None:
        self.progress.start_epoch()

    def on_train_epoch_end(self) -> None:
        # Also without validation: checkpoints are saved after this.
        self.place_unseen(self.trainer.datamodule)  # type: ignore[attr-defined]
        self.schedule.after_epoch(self.progress.epoch_loss)

    def on_validation_start(self) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.place_unseen(self.trainer.datamodule)  # type: ignore[attr-defined]

    def place_unseen(self, data: Any) -> None:
        """Sets what has no training event to a neutral value (E28); ``data``: as in ``set_contexts``, None: nothing."""
        if self._unseen is None and data is not None:
            self._unseen = UnseenRows(data, self.uses_contexts, self.device)
        if self._unseen is not None:
            self._unseen.place(self)

    def _raise_if_not_finite(self, losses_K: Tensor) -> None:
        finite_K = torch.isfinite(losses_K)
        if not finite_K.all():
            step = int(self.mini_batches) + int((~finite_K).nonzero()[0]) + 1
            advice = "the last checkpoint is unaffected: lower model.optimizer.lr or use another loss"
            if step == 1:
                advice = "this happens with the initial weights already: check the loss and the encoder"
            raise UserError(
                f"the loss of {self.settings.log_prefix}{self.name} is {losses_K[~finite_K][0].item()} at mini-batch "
                f"{step} (epoch {self.trainer.current_epoch + 1}); {advice}"
            )

    @property
    def stage_name(self) -> str:
        """The name in progress lines: the encoder's role in ARNN, otherwise the model's name."""
        role = self.settings.log_prefix.rstrip("/")
        return f"{role} encoder" if role else self.name

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["progress"] = self.progress.state_dict(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.progress.load_state_dict(checkpoint["progress"])

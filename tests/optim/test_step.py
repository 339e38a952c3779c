"""The training step: rows of tables against whole tables, clipping, and encoders from outside the package."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from arnn_lightning.batch import State, StepInput
from arnn_lightning.encoders import SessionEncoder, WindowEncoder
from arnn_lightning.errors import UserError
from arnn_lightning.losses import CrossEntropy
from arnn_lightning.models import RunSettings, SessionRecommender
from arnn_lightning.nn.table import EmbeddingTable
from arnn_lightning.optim import RowAdagrad
from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import LSTMEncoder, make_data, train_losses, write_dataset
from models import BY_NAME, TRAINED, ModelCase, case_name, slow_variants


def recommender(encoder: SessionEncoder, **settings: Any) -> SessionRecommender:
    defaults: dict[str, Any] = {
        "loss": CrossEntropy("linear", 0.5, "batch", "mask", 0.0),
        "optimizer": lambda weights: RowAdagrad(weights, 0.1, 1e-10, 0.0, 0.0),
        "scheduler": None,
        "scheduler_interval": "epoch",
        "clip_norm": None,
        "item_contexts": "none",
        "settings": RunSettings(),
    }
    torch.manual_seed(0)
    return SessionRecommender("outside", {"n_items": 12}, encoder, **(defaults | settings)).train()


class Odd(LSTMEncoder):
    """Starts with whatever state is set."""

    start: Any = ()

    def initial_state(self, batch_size: int) -> State:
        state: State = self.start(batch_size)
        return state


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (lambda n: [torch.zeros(n, 4)], r"Odd\.initial_state: must return a tuple of tensors"),
        (lambda n: torch.zeros(n, 4), r"Odd\.initial_state: must return a tuple of tensors"),
        (lambda n: (torch.zeros(n),), r"the shape \(\.\.\., batch_size, width\), not \(3,\) for batch_size=3"),
        (lambda n: (torch.zeros(n, 2, 4),), r"the shape \(\.\.\., batch_size, width\), not \(3, 2, 4\)"),
        (lambda n: (torch.zeros(n, 4), torch.ones(n, 4)), r"Odd\.initial_state: must return zeros"),
    ],
)
def test_an_unusual_initial_state_is_refused(start: Any, message: str) -> None:
    encoder = Odd(12, 4)
    encoder.start = start
    with pytest.raises(UserError, match=message):
        recommender(encoder)


def test_an_encoder_without_a_width_or_a_base_class_is_refused() -> None:
    class Empty(SessionEncoder):
        pass

    with pytest.raises(UserError, match="Empty: must set hidden_size"):
        recommender(Empty())
    with pytest.raises(UserError, match=r"Linear: must be a subclass of arnn_lightning\.encoders\.SessionEncoder"):
        recommender(nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (7, 1), (7, 2)])
def test_a_loss_of_another_shape_is_refused(shape: tuple[int, ...], small_dataset: PreparedDataset) -> None:
    class Odd(CrossEntropy):
        def loss(self, score_BC: Tensor, negatives: Any) -> Tensor:
            return score_BC.new_zeros(shape)

    model = recommender(LSTMEncoder(12, 4), loss=Odd("linear", 0.5, "batch", "mask", 0.0))
    with pytest.raises(UserError) as error:
        train_losses(model, make_data(small_dataset, batch_size=7), epochs=1)
    assert str(error.value) == f"Odd.loss: must return one value per slot, (7,), not {shape}"


def whole_tables(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(weights, 0.1, eps=1e-4)


@pytest.mark.parametrize("case", slow_variants(TRAINED), ids=case_name)
def test_E21_steps_on_rows_equal_steps_on_whole_tables(case: ModelCase, small_dataset: PreparedDataset) -> None:
    """eps 1e-4: the exact gradient of a bias before a batch norm is 0, which a smaller eps turns into real steps."""
    trained = []
    for make in (lambda weights: RowAdagrad(weights, 0.1, 1e-4, 0.0, 0.0), whole_tables):
        model = case.make(small_dataset).double().train()
        model.optimizer_factory = make
        torch.manual_seed(0)
        losses = train_losses(model, make_data(small_dataset, batch_size=7, n_sample=3), epochs=2)
        trained.append({"losses": torch.tensor(losses), **model.state_dict()})
    for name, value in trained[0].items():
        assert torch.allclose(value, trained[1][name], atol=1e-8), name


@pytest.mark.parametrize("name", ["gru4rec", "gru4rec_tied", "pnn"])
def test_clip_norm_scales_the_gradient_of_all_weights(name: str, small_dataset: PreparedDataset) -> None:
    """With SGD at rate 1 a step is the negative gradient: its norm is at most ``clip_norm``, its direction the same."""
    data = make_data(small_dataset, batch_size=4, n_sample=3, steps_per_chunk=1)
    steps = []
    for clip_norm in (None, 0.01, 1e6):
        model = BY_NAME[name].make(small_dataset, "model/optimizer=sgd", "model.optimizer.lr=1").train()
        model.clip_norm = clip_norm
        model.configure_optimizers()
        torch.manual_seed(0)
        before = [weight.detach().clone() for weight in model.parameters()]
        model.run_steps(data.train_dataset(model.chunk_spec)[0, 0], model.initial_state(4))
        moved = [weight.detach() - old for weight, old in zip(model.parameters(), before, strict=True)]
        steps.append(torch.cat([step.flatten() for step in moved]))
    free, clipped, unbounded = steps
    norm = free.norm()
    assert norm > 0.01
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)
    assert torch.allclose(clipped, free * 0.01 / norm, atol=1e-6)
    assert torch.equal(unbounded, free)


@pytest.mark.parametrize("name", ["gru4rec_tied", "pnn_closed"])
def test_clip_norm_of_rows_equals_that_of_whole_tables(name: str, small_dataset: PreparedDataset) -> None:
    weights = []
    for make in (lambda weights: RowAdagrad(weights, 0.1, 1e-4, 0.0, 0.0), whole_tables):
        model = BY_NAME[name].make(small_dataset).double().train()
        model.optimizer_factory, model.clip_norm = make, 0.01
        torch.manual_seed(0)
        train_losses(model, make_data(small_dataset, batch_size=7, n_sample=3))
        weights.append(model.state_dict())
    assert all(torch.allclose(value, weights[1][key], atol=1e-8) for key, value in weights[0].items())


def test_an_encoder_with_a_plain_embedding_trains_it_whole(small_dataset: PreparedDataset) -> None:
    weights = []
    for make in (lambda weights: RowAdagrad(weights, 0.1, 1e-10, 0.0, 0.0), lambda w: torch.optim.Adagrad(w, 0.1)):
        torch.manual_seed(0)
        model = recommender(LSTMEncoder(12), optimizer=make)
        before = model.encoder.embedding.weight.detach().clone()
        train_losses(model, make_data(small_dataset, batch_size=7))
        assert (model.encoder.embedding.weight != before).all()  # every item is in some step
        weights.append(model.state_dict())
    assert all(torch.allclose(value, weights[1][name], atol=1e-5) for name, value in weights[0].items())


class LastTwoItems(SessionEncoder):
    """Sums the embeddings of the step's item and of another id."""

    def __init__(self, hidden_size: int = 8) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.table = EmbeddingTable(12, hidden_size)
        nn.init.normal_(self.table.weight)

    def other(self, item: Tensor) -> Tensor:
        return item

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        return self.table(step.item) + self.table(self.other(step.item)), state


class ConstantId(LastTwoItems):
    """Looks up item 5 at every step, which is in no chunk."""

    def other(self, item: Tensor) -> Tensor:
        return torch.full_like(item, 5)


class SumOfWindow(WindowEncoder):
    """Sums the embeddings of the last three events."""

    def __init__(self) -> None:
        super().__init__(hidden_size=8, last_n_events=3)
        self.table = EmbeddingTable(12, 8)
        nn.init.normal_(self.table.weight)

    def embed(self, item_BL: Tensor) -> Tensor:
        return self.table(item_BL)

    def encode_window(self, vector_BLH: Tensor, is_input_BL: Tensor) -> Tensor:
        return (vector_BLH * is_input_BL[:, :, None]).sum(1)


def test_a_step_trains_the_items_of_the_whole_window(small_dataset: PreparedDataset) -> None:
    """Rows that move are those of the last three events of every valid slot, whatever was in a slot before."""
    model = recommender(SumOfWindow())
    model.configure_optimizers()
    dataset = make_data(small_dataset, batch_size=3, steps_per_chunk=1).train_dataset(model.chunk_spec)
    sessions, state = small_dataset.sessions("train"), model.initial_state(3)
    for number in range(len(dataset)):
        chunk, events = dataset[0, number], dataset.chunks[0, number]
        before = model.encoder.table.weight.detach().clone()
        _, state = model.run_steps(chunk, state)
        read: set[int] = set()
        for session, place in zip(events.session[events.valid], events.position[events.valid], strict=True):
            start = int(sessions.offset[int(session)])
            read |= {*sessions.item[start + max(0, int(place) - 3) : start + int(place)].tolist()}
        moved = (model.encoder.table.weight != before).any(1).nonzero()[:, 0].tolist()
        # A step whose slots have one target has no negatives, and moves nothing.
        assert {*moved} == read or (not moved and len({*events.target[events.valid].tolist()}) == 1)


def test_an_encoder_may_look_up_the_items_of_its_step(small_dataset: PreparedDataset) -> None:
    model = recommender(LastTwoItems())
    losses = train_losses(model, make_data(small_dataset, batch_size=3), epochs=10)
    assert sum(losses[-20:]) < sum(losses[:20])


def test_a_lookup_of_an_id_outside_the_step_raises(small_dataset: PreparedDataset) -> None:
    """It would otherwise read and train another item's row, whichever an earlier step left in its position."""
    model = recommender(ConstantId())
    data = make_data(small_dataset, batch_size=3, steps_per_chunk=1)
    model.configure_optimizers()
    dataset = data.train_dataset(model.chunk_spec)
    results = []
    for number in range(len(dataset)):
        chunk = dataset[0, number]
        if 5 in chunk.item:
            model.run_steps(chunk, ())
        else:
            with pytest.raises(IndexError):
                model.run_steps(chunk, ())
        results.append(5 in chunk.item)
    assert set(results) == {True, False}


def test_a_lookup_of_an_id_outside_the_step_trains_without_rows(tmp_path: Path) -> None:
    prepared = write_dataset(tmp_path, {"train": ([[0, 1, 2, 3], [4, 6, 7, 8]], [0, 0])}, 12, {"level": [1]})
    model = recommender(ConstantId(), optimizer=lambda weights: torch.optim.Adam(weights, 0.01))
    before = model.encoder.table.weight.detach().clone()
    train_losses(model, make_data(prepared, batch_size=2))
    moved = (model.encoder.table.weight != before).any(1)
    assert moved[5]
    assert not moved[9:].any()


def test_frozen_tables_are_no_rows_of_the_step(small_dataset: PreparedDataset) -> None:
    model = BY_NAME["arnn"].make(small_dataset)
    tables = model.make_train_step(model.optimizer_factory(model.scorer.parameters())).tables
    assert set(tables.values()) == {"candidate"}
    joint = BY_NAME["arnn_joint"].make(small_dataset)
    tables = joint.make_train_step(joint.optimizer_factory(joint.parameters())).tables
    assert set(tables.values()) == {"candidate", "item", "single"}


def test_optimizers_without_row_updates_get_whole_tables(small_dataset: PreparedDataset) -> None:
    for optimizer in ("adam", "adamw", "sgd"):
        model = BY_NAME["gru4rec"].make(small_dataset, f"model/optimizer={optimizer}")
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        model.configure_optimizers()
        assert not model.chunk_spec.row_sources
        train_losses(model.train(), make_data(small_dataset))
        assert all((weight != before[name]).any() for name, weight in model.named_parameters())

"""NARM and SASRec against their formulas, written in plain loops over one session in double precision."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from arnn_lightning.encoders import NARMEncoder, SASRecEncoder, WindowEncoder
from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import make_data, make_model, train_losses
from models import BY_NAME

NAMES = ("narm", "sasrec")
LENGTH = 3  # L of both; the sessions have up to 7 events


def narm_query(encoder: NARMEncoder, items: list[int]) -> Tensor:
    """[h_t; sum_j alpha_j h_j] times B, alpha_j = v sigmoid(A_1 h_t + A_2 h_j)."""
    inputs, cell = encoder.to_gates, encoder.cell
    hidden_H, hidden = torch.zeros(encoder.hidden_size, dtype=torch.float64), []
    for item in items:
        input_gates = (inputs.linear.weight @ inputs.embedding.weight[item] + inputs.linear.bias).chunk(3)
        hidden_gates = (cell.weight @ hidden_H + cell.bias).chunk(3)
        reset, update = (torch.sigmoid(input_gates[gate] + hidden_gates[gate]) for gate in (0, 1))
        new = torch.tanh(input_gates[2] + reset * hidden_gates[2])
        hidden_H = (1 - update) * new + update * hidden_H
        hidden.append(hidden_H)
    local_H = torch.zeros_like(hidden_H)
    for one_H in hidden:
        logits = encoder.attend_last.weight @ hidden_H + encoder.attend_all.weight @ one_H
        local_H = local_H + (encoder.attention.weight[0] @ torch.sigmoid(logits)) * one_H
    return encoder.to_query.weight @ torch.cat([hidden_H, local_H])


def layer_norm(norm: Any, x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-8).sqrt() * norm.weight + norm.bias


def sasrec_query(encoder: SASRecEncoder, items: list[int]) -> Tensor:
    """The last event's vector after all blocks; the last event has the last position."""
    size, first = encoder.hidden_size, encoder.last_n_events - len(items)
    xs = [
        encoder.items.weight[item] * math.sqrt(size) + encoder.position[first + place]
        for place, item in enumerate(items)
    ]
    for block in encoder.blocks:
        normed, width = [layer_norm(block.attention_norm, x) for x in xs], size // block.heads
        outputs = []
        for t, x in enumerate(xs):
            attended = []
            for head in range(block.heads):
                part = slice(head * width, (head + 1) * width)
                query = block.query.weight[part] @ normed[t]
                logits = [query @ (block.key.weight[part] @ normed[j]) / math.sqrt(width) for j in range(t + 1)]
                weights = torch.stack(logits).softmax(0)
                attended.append(sum(weights[j] * (block.value.weight[part] @ normed[j]) for j in range(t + 1)))
            x = x + torch.cat(attended)
            inner = torch.relu(block.inner.weight @ layer_norm(block.feed_forward_norm, x) + block.inner.bias)
            outputs.append(x + block.outer.weight @ inner + block.outer.bias)
        xs = outputs
    return layer_norm(encoder.norm, xs[-1])


REFERENCES: dict[str, Any] = {"narm": narm_query, "sasrec": sasrec_query}


def random_model(name: str, prepared: PreparedDataset) -> Any:
    """In double precision; no weight is 0 or 1 as at the start."""
    model = BY_NAME[name].make(prepared).double().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.5)
    assert model.encoder.last_n_events == LENGTH
    return model


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_E1_queries_equal_the_formula_at_every_event(name: str, small_dataset: PreparedDataset) -> None:
    model, sessions = random_model(name, small_dataset), small_dataset.sessions("test")
    chunks = make_data(small_dataset, steps_per_chunk=3).chunks("test", 4)
    lengths = set()
    for number in range(len(chunks)):
        chunk = chunks[0, number]
        queries, _ = model.encode_chunk(chunk)
        places = zip(chunk.session[chunk.valid].tolist(), chunk.position[chunk.valid].tolist(), strict=True)
        for query, (session, position) in zip(queries, places, strict=True):
            start = sessions.offset[sessions.session.tolist().index(session)]
            items = sessions.item[start : start + position].tolist()
            assert torch.allclose(query, REFERENCES[name](model.encoder, items[-LENGTH:]), rtol=0, atol=1e-9)
            lengths.add(position)
    assert lengths == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_events", [1, 3, 7])
def test_gradients_reach_the_whole_window(name: str, n_events: int, small_dataset: PreparedDataset) -> None:
    """The gradient of one event's query is that of its prefix, though earlier events were encoded in earlier steps."""
    model = random_model(name, small_dataset)
    items, weights = [3, 1, 4, 1, 5, 9, 2][:n_events], dict(model.encoder.named_parameters())
    state = model.initial_state(1)
    for item in items:
        query, state = model.encode(model.step_input(torch.tensor([item]), torch.tensor([0]), None), state)
        state = tuple(part.detach() for part in state)
    direction = torch.arange(1.0, 1 + query.shape[1], dtype=torch.float64)
    expected = REFERENCES[name](model.encoder, items[-LENGTH:]) @ direction
    ours, reference = (torch.autograd.grad(value, weights.values()) for value in (query[0] @ direction, expected))
    for key, a, b in zip(weights, ours, reference, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9), key


@pytest.mark.parametrize("name", NAMES)
def test_dropouts_of_windows_act_in_training_only(name: str, small_dataset: PreparedDataset) -> None:
    """E11: each of them by itself."""
    settings = ["dropout_hidden", "dropout_embedding"] if name == "narm" else ["dropout"]
    for setting in settings:
        overrides = [f"model.{other}={0.5 if other == setting else 0}" for other in settings]
        model = BY_NAME[name].make(small_dataset, *overrides)
        step = model.step_input(torch.tensor([1, 2, 3]), torch.zeros(3, dtype=torch.int64), None)
        for training in (True, False):
            first, second = (model.train(training).encode(step, model.initial_state(3))[0] for _ in range(2))
            assert torch.equal(first, second) != training, setting


def test_joint_training_of_arnn_reads_the_window(small_dataset: PreparedDataset) -> None:
    """A lookup of an item that the step has no row for would raise."""
    name, overrides = "arnn_sasrec", ["model.freeze_encoders=false", "model.optimizer.lr=0.01"]
    model = BY_NAME[name].make(small_dataset, *overrides).train()
    model.configure_optimizers()
    assert model.chunk_spec.last_n_events == LENGTH
    assert "item_and_candidate" not in model.chunk_spec.row_sources  # the session's scorer is not part of the model
    losses = train_losses(model, make_data(small_dataset, batch_size=7))
    assert all(map(math.isfinite, losses))


def test_heads_must_divide_the_hidden_size() -> None:
    with pytest.raises(UserError, match=r"^model\.heads=3: must divide model\.hidden_size=8$"):
        make_model("sasrec", {"n_items": 5}, "model.hidden_size=8", "model.heads=3")


def test_item_vectors_are_shared_with_the_scorer(small_dataset: PreparedDataset) -> None:
    for name in NAMES:
        model = BY_NAME[name].make(small_dataset)
        assert isinstance(model.encoder, WindowEncoder)
        assert any(module is model.scorer.items for module in model.encoder.modules()), name

"""NARM and SASRec, alone and after context tokens, against plain loops over one session in double precision."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from arnn_lightning.batch import no_contexts
from arnn_lightning.encoders import NARMEncoder, PrefixEncoder, SASRecEncoder, WindowEncoder
from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import make_data, make_model, profile_of, train_losses
from models import BY_NAME

ENCODERS = ("narm", "sasrec")
NAMES = (*ENCODERS, "prefix", "prefix_narm")
LENGTH = 3  # L of all; the sessions have up to 7 events


def narm_query(encoder: NARMEncoder, items: list[int], tokens: Sequence[Tensor] = ()) -> Tensor:
    """[h_t; sum_j alpha_j h_j] times B, alpha_j = v sigmoid(A_1 h_t + A_2 h_j); ``tokens`` come before the items."""
    inputs, cell = encoder.to_gates, encoder.cell
    hidden_H, hidden = torch.zeros(encoder.hidden_size, dtype=torch.float64), []
    for vector in (*tokens, *encoder.items.weight[items]):
        input_gates = (inputs.weight @ vector + inputs.bias).chunk(3)
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


def sasrec_query(encoder: SASRecEncoder, items: list[int], tokens: Sequence[Tensor] = ()) -> Tensor:
    """The last event's vector after all blocks; it has the last position. ``tokens`` come before the items."""
    size, first = encoder.hidden_size, encoder.last_n_events - len(items)
    xs = [*tokens] + [
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


def reference_query(model: Any, items: list[int], user: int) -> Tensor:
    encoder, tokens = model.encoder, []
    if isinstance(encoder, PrefixEncoder):
        width, profile = encoder.hidden_size, profile_of(model, user)
        tokens = [
            encoder.tokens.weight[row : row + width] @ profile + encoder.tokens.bias[row : row + width]
            for row in range(0, len(encoder.tokens.bias), width)
        ]
        encoder = encoder.session
    return (narm_query if isinstance(encoder, NARMEncoder) else sasrec_query)(encoder, items[-LENGTH:], tokens)


def random_model(name: str, prepared: PreparedDataset) -> Any:
    """In double precision; no weight is 0 or 1 as at the start."""
    preset, _, session = name.partition("_")
    overrides = [f"model@model.session={session}"] if session else []
    model = BY_NAME[preset].make(prepared, *overrides).double().eval()
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
            index = sessions.session.tolist().index(session)
            items = sessions.item[sessions.offset[index] :][:position].tolist()
            assert torch.allclose(query, reference_query(model, items, sessions.user[index]), rtol=0, atol=1e-9)
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
        query, state = model.encode(model.step_input(torch.tensor([item]), torch.tensor([1]), None), state)
        state = tuple(part.detach() for part in state)
    direction = torch.arange(1.0, 1 + query.shape[1], dtype=torch.float64)
    expected = reference_query(model, items, 1) @ direction
    ours, reference = (
        torch.autograd.grad(value, weights.values(), materialize_grads=True)
        for value in (query[0] @ direction, expected)
    )
    for key, a, b in zip(weights, ours, reference, strict=True):
        assert b.any() or n_events == 1, key  # the GRU's first state is 0
        assert torch.allclose(a, b, rtol=0, atol=1e-9), key


@pytest.mark.parametrize("name", ENCODERS)
def test_E11_dropouts_of_windows_act_in_training_only(name: str, small_dataset: PreparedDataset) -> None:
    """Each of them by itself."""
    settings = ["dropout_hidden", "dropout_embedding"] if name == "narm" else ["dropout"]
    for setting in settings:
        overrides = [f"model.{other}={0.5 if other == setting else 0}" for other in settings]
        model = BY_NAME[name].make(small_dataset, *overrides)
        step = model.step_input(torch.tensor([1, 2, 3]), torch.zeros(3, dtype=torch.int64), None)
        for training in (True, False):
            first, second = (model.train(training).encode(step, model.initial_state(3))[0] for _ in range(2))
            assert torch.equal(first, second) != training, setting


def test_without_contexts_the_tokens_are_their_positions() -> None:
    dims = {"n_items": 5, "single_sizes": [], "n_binary": 0}
    encoder = make_model("prefix", dims, "model.session.hidden_size=8", "model.fusion.n_tokens=2").encoder
    torch.nn.init.normal_(encoder.tokens.bias)
    assert torch.equal(encoder.user_terms(no_contexts(3)), encoder.tokens.bias.view(2, 8).expand(3, 2, 8))


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
    for name in ENCODERS:
        model = BY_NAME[name].make(small_dataset)
        assert isinstance(model.encoder, WindowEncoder)
        assert any(module is model.scorer.items for module in model.encoder.modules()), name

"""Fusions against plain loops in float64, and beside their controls.

H hidden, L layers, D embedding of the contexts.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arnn_lightning.batch import Contexts, StepInput
from arnn_lightning.errors import UserError
from arnn_lightning.models import Fusion
from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import make_data, make_model, profile_of, trainer
from models import BY_NAME

FUSIONS = ("latent_cross", "init_state", "input_concat")
SESSION_ENCODERS = {
    "one-hot": ["model@model.session=gru4rec"],
    "two layers": ["model@model.session=gru4rec", "model.session.embedding=separate", "model.session.layers=2"],
    "tied": [],
}


def make_fusion(name: str, session: str, prepared: PreparedDataset) -> Fusion:
    """A fusion in float64 with random weights of a size that matters, biases too."""
    model: Fusion = BY_NAME[name].make(prepared, *SESSION_ENCODERS[session]).double().eval()
    for weight in model.parameters():
        weight.data = 0.5 * torch.randn_like(weight)
    zeros = model.initial_state
    model.initial_state = lambda batch_size: tuple(part.double() for part in zeros(batch_size))  # type: ignore[method-assign]
    return model


def naive_step(model: Fusion, item: int, user: int, hidden: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
    """One event of one session: the query and the hidden state of each layer; ``hidden`` None: a session's first."""
    fusion: Any = model.encoder
    session = fusion.session
    size, n_layers = session.hidden_size, len(session.cells)
    profile = profile_of(model, user)
    if hidden is None:
        hidden = [torch.zeros(size, dtype=torch.float64)] * n_layers
        if hasattr(fusion, "start"):
            start = torch.tanh(fusion.start.weight @ profile + fusion.start.bias)
            hidden = [start[layer * size : (layer + 1) * size] for layer in range(n_layers)]
    query, next_hidden = torch.empty(0), []
    for layer, (inputs, cell) in enumerate(zip(session.inputs, session.cells, strict=True)):
        if layer:
            gates = inputs.weight @ query + inputs.bias
        elif hasattr(inputs, "gates"):
            gates = inputs.gates.weight[item] + inputs.bias
        else:
            gates = inputs.linear.weight @ inputs.embedding.weight[item] + inputs.linear.bias
        if not layer and hasattr(fusion, "input"):
            gates = gates + fusion.input.weight @ profile
        recurrent = cell.weight @ hidden[layer] + cell.bias
        reset = torch.sigmoid(gates[:size] + recurrent[:size])
        update = torch.sigmoid(gates[size : 2 * size] + recurrent[size : 2 * size])
        new = torch.tanh(gates[2 * size :] + reset * recurrent[2 * size :])
        query = (1 - update) * new + update * hidden[layer]
        next_hidden.append(query)
    if hasattr(fusion, "cross"):
        query = query * (1 + fusion.cross.weight @ profile)
    return query, next_hidden


@pytest.mark.parametrize("session", SESSION_ENCODERS)
@pytest.mark.parametrize("name", FUSIONS)
@torch.no_grad()
def test_queries_of_sessions_equal_those_of_plain_loops(
    name: str, session: str, small_dataset: PreparedDataset
) -> None:
    model = make_fusion(name, session, small_dataset)
    sessions = small_dataset.sessions("test")
    expected = {}
    for index, number in enumerate(sessions.session.tolist()):
        hidden = None
        for place, item in enumerate(sessions.item[sessions.offset[index] : sessions.offset[index + 1] - 1]):
            query, hidden = naive_step(model, item, sessions.user[index], hidden)
            expected[number, place + 1] = query
    chunks, n_queries = make_data(small_dataset, steps_per_chunk=3).chunks("test", 7), 0
    for number in range(len(chunks)):
        chunk = chunks[0, number]
        places = zip(chunk.session[chunk.valid].tolist(), chunk.position[chunk.valid].tolist(), strict=True)
        for place, query in zip(places, model.encode_chunk(chunk)[0], strict=True):
            assert torch.allclose(query, expected[place], rtol=0, atol=1e-9)
            n_queries += 1
    assert n_queries == len(expected)


@pytest.mark.parametrize("session", SESSION_ENCODERS)
@pytest.mark.parametrize("name", FUSIONS)
def test_gradients_of_a_step_equal_those_of_plain_loops(
    name: str, session: str, small_dataset: PreparedDataset
) -> None:
    """In slots 1 and 3 a session starts; the others have had one event, which no gradient reaches."""
    model = make_fusion(name, session, small_dataset)
    user, starts = torch.arange(5), torch.tensor([False, True, False, True, False])
    with torch.no_grad():
        _, state = model.encode(model.step_input(torch.tensor([3, 1, 4, 1, 5]), user, None), model.initial_state(5))
        before = [naive_step(model, item, number, None)[1] for number, item in enumerate([3, 1, 4, 1, 5])]
    state = tuple(part * ~starts[:, None] for part in state)
    weight = torch.randn(5, model.encoder.hidden_size, dtype=torch.float64)
    parameters = [*model.encoder.parameters()]
    query, _ = model.encode(model.step_input(torch.tensor([9, 2, 6, 5, 3]), user, None), state)
    gradients = torch.autograd.grad((query * weight).sum(), parameters, materialize_grads=True)
    queries = [
        naive_step(model, item, number, None if starts[number] else before[number])[0]
        for number, item in enumerate([9, 2, 6, 5, 3])
    ]
    expected = torch.autograd.grad((torch.stack(queries) * weight).sum(), parameters, materialize_grads=True)
    for (key, _), gradient, reference in zip(model.encoder.named_parameters(), gradients, expected, strict=True):
        assert reference.any(), key
        assert torch.allclose(gradient, reference, rtol=0, atol=1e-9), key


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_and_its_control_have_equal_initial_weights(name: str, small_dataset: PreparedDataset) -> None:
    model: Fusion = BY_NAME[name].make(small_dataset)
    control = model.stages["session"]
    for ours, theirs in ((model.encoder.session, control.encoder), (model.scorer, control.scorer)):
        for weight, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(weight, other)
            assert weight.data_ptr() != other.data_ptr()
    assert model.encoder.session.inputs[0].embedding is model.scorer.items  # the preset's item vectors are tied


def test_training_a_fusion_moves_all_but_its_control(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    model = BY_NAME["init_state"].make(small_dataset)
    control = model.stages["session"]
    before = [weight.detach().clone() for weight in (*model.parameters(), *control.parameters())]
    trainer(tmp_path).fit(model, make_data(small_dataset))
    moved = [
        not torch.equal(weight, old)
        for weight, old in zip((*model.parameters(), *control.parameters()), before, strict=True)
    ]
    n_weights = len([*model.parameters()])
    assert all(moved[:n_weights])
    assert not any(moved[n_weights:])


def test_a_fusion_trains_on_the_window_of_its_session_encoder(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    """A lookup of an item that the step has no row for raises."""
    model = BY_NAME["latent_cross_sasrec"].make(small_dataset)
    trainer(tmp_path).fit(model, make_data(small_dataset))
    assert model.progress.epoch_loss > 0


@torch.no_grad()
def test_any_encoder_can_be_crossed(small_dataset: PreparedDataset) -> None:
    """An encoder of contexts computes its user terms itself; those of the fusion are another thing."""
    sizes = ["model.session.hidden_size=8", "model.session.embedding_size=4"]
    model = make_model("latent_cross", small_dataset.dims, "model@model.session=pnn", *sizes).eval()
    contexts = Contexts(torch.tensor([[1, 5], [0, 3]]), torch.tensor([[0, 3], [2, -1]]))
    step = StepInput(torch.tensor([2, 7]), contexts, None)
    query, state = model.encode(step, ())
    assert state == ()
    expected = model.encoder.session.encode(step, ())[0] * model.encoder.user_terms(contexts)
    assert torch.allclose(query, expected)
    assert torch.equal(model.encode(step._replace(user_terms=model.encoder.user_terms(contexts)), ())[0], query)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("init_state", "has no hidden state that the profile could initialise"),
        ("input_concat", "accepts no input but the item"),
        ("prefix", "has no window of events to put context tokens before"),
    ],
)
def test_an_encoder_that_cannot_be_fused_is_one_line(name: str, message: str, small_dataset: PreparedDataset) -> None:
    with pytest.raises(UserError, match=rf"^model\.session: PNNEncoder {message}; choose [^\n]*$"):
        make_model(name, small_dataset.dims, "model@model.session=pnn")

"""ARNN: two encoders by role, pretrained, frozen, merged."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from arnn_lightning.batch import Contexts, StepInput
from arnn_lightning.encoders import ARNNEncoder
from arnn_lightning.models.arnn import ARNN, FeatureCache
from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import lstm_model, make_data, ready, trainer
from models import BY_NAME, MODELS, case_name

FROZEN = tuple(case for case in MODELS if case.preset.startswith("arnn") and case.name != "arnn_joint")


def make_arnn(prepared: PreparedDataset, *overrides: str, cache_mb: float = 1.0) -> ARNN:
    model: ARNN = BY_NAME["arnn"].make(prepared, *overrides, cache_mb=cache_mb)
    return model


def fit(model: ARNN, prepared: PreparedDataset, folder: Path) -> None:
    trainer(folder, max_epochs=2).fit(model, make_data(prepared))


def moved(model: ARNN, prepared: PreparedDataset, folder: Path) -> set[str]:
    """Names of the weights and statistics that training changes."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, prepared, folder)
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def of_encoders(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith(("encoder.session.", "encoder.context."))}


def test_frozen_encoders_are_bit_equal_after_the_merge(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    changed = moved(make_arnn(small_dataset), small_dataset, tmp_path)
    merged = {"encoder.merge_layer.weight", "encoder.merge_layer.bias", "encoder.norm.running_mean"}
    assert merged | {"scorer.items.weight"} <= changed
    assert not of_encoders(changed)


def test_frozen_dropout_stays_off_while_lightning_trains(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    model = make_arnn(small_dataset, "model.session.dropout_hidden=0.9", "model.context.dropout=0.9")
    fit(model, small_dataset, tmp_path)
    model.train()
    assert not model.encoder.session.training
    assert not model.encoder.context.training
    assert model.encoder.merge_layer.training


def test_footnote_2_trains_the_batch_normalisation_alone(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    model = make_arnn(small_dataset, "model.finetune_context_batchnorm=true")
    changed = of_encoders(moved(model, small_dataset, tmp_path))
    assert {"encoder.context.norm.weight", "encoder.context.norm.running_mean"} <= changed
    assert all(name.startswith("encoder.context.norm.") for name in changed)


def test_without_freezing_everything_is_trained(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    changed = moved(make_arnn(small_dataset, "model.freeze_encoders=false"), small_dataset, tmp_path)
    session, context = "encoder.session.inputs.0.gates.weight", "encoder.context.product.item_field"
    assert {session, context, "encoder.context.single_embedding.weight"} <= changed


def test_the_stages_scorers_and_losses_are_no_part_of_arnn(small_dataset: PreparedDataset) -> None:
    model = make_arnn(small_dataset)
    scorers = [name for name in model.state_dict() if "scorer" in name]
    assert scorers == ["scorer.items.weight", "scorer.bias.weight"]
    assert model.stages["session"].encoder is model.encoder.session
    assert model.stages["context"].encoder is model.encoder.context


def test_any_encoder_can_take_the_session_role(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    usual = make_arnn(small_dataset)
    model = ARNN(
        "arnn",
        small_dataset.dims,
        session=lstm_model(12),
        context=usual.stages["context"],
        hidden_size=8,
        dropout=0.0,
        freeze_encoders=True,
        finetune_context_batchnorm=False,
        loss=usual.loss,
        optimizer=usual.optimizer_factory,
        scheduler=None,
        scheduler_interval="epoch",
        clip_norm=None,
        item_contexts="none",
        settings=usual.settings,
    )
    changed = moved(ready(model, small_dataset), small_dataset, tmp_path)
    assert "encoder.merge_layer.weight" in changed
    assert not of_encoders(changed)
    assert len(model.initial_state(3)) == 2


# --- what is computed once per user ---


@torch.no_grad()
@pytest.mark.parametrize(("session", "context"), [("narm", "pnn"), ("gru4rec", "narm"), ("gru4rec", "pnn")])
def test_arnn_reads_as_many_events_as_the_longer_window(
    session: str, context: str, small_dataset: PreparedDataset
) -> None:
    encoders = [BY_NAME[name].make(small_dataset).encoder for name in (session, context)]
    arnn = ARNNEncoder(*encoders, 4, 0.0, freeze_encoders=True, finetune_context_batchnorm=False)
    assert arnn.last_n_events == (3 if "narm" in (session, context) else 1)


def test_user_terms_of_one_encoder_do_not_reach_the_other(small_dataset: PreparedDataset) -> None:
    sizes = ["model.session.hidden_size=5", "model.session.embedding_size=4"]  # as the context encoder's
    model = make_arnn(small_dataset, "model@model.session=pnn", *sizes).eval()
    step = model.step_input(torch.arange(6), torch.arange(6), None)
    assert step.user_terms is not None
    expected = model.encode(step._replace(user_terms=None), ())[0]
    assert torch.allclose(model.encode(step, ())[0], expected, atol=1e-6)


@pytest.mark.parametrize("case", FROZEN, ids=case_name)
@torch.no_grad()
def test_user_terms_equal_those_of_the_live_encoder(
    case: Any, small_dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arnn_lightning.models.arnn._USERS_PER_BATCH", 4)  # 7 users: the last batch is shorter
    model = case.make(small_dataset).eval()
    item, user = torch.arange(7), torch.arange(7)  # user 6 has unknown contexts
    step = model.step_input(item, user, None)
    if case.name == "arnn_concat":
        assert step.user_terms is None  # its encoder computes nothing from the contexts alone
        return
    live = model.encoder.user_terms(Contexts(model.user_single[user], model.user_active[user]))
    assert torch.allclose(step.user_terms, live, atol=1e-6)
    state = model.initial_state(7)
    queries = [model.encode(either, state)[0] for either in (step, step._replace(user_terms=None))]
    assert torch.allclose(*queries, atol=1e-6)
    assert not torch.allclose(step.user_terms[0], step.user_terms[1])


def test_E27_steps_have_the_same_inputs_with_and_without_the_cache(small_dataset: PreparedDataset) -> None:
    """As a compiled step, which is traced in the first epoch, requires."""
    model = make_arnn(small_dataset, cache_mb=100.0).train()
    model.configure_optimizers()
    data = make_data(small_dataset, batch_size=4, steps_per_chunk=10)
    dataset, given = data.train_dataset(model.chunk_spec), []
    for epoch in range(2):
        chunk, state = dataset[epoch, 0], model.initial_state(4)
        steps = [model.precompute(step, state, (0, k))[0] for k, (step, _) in enumerate(model.step_inputs(chunk))]
        inputs = [step._replace(valid=None)._asdict() for step in steps]
        given += [{name for name, value in values.items() if value is not None} for values in inputs]
    assert len(given) == 20
    assert all(names == given[0] for names in given)


def test_encoders_that_are_trained_have_no_user_terms(small_dataset: PreparedDataset) -> None:
    model = make_arnn(small_dataset, "model.freeze_encoders=false")
    assert model.step_input(torch.tensor([1]), torch.tensor([1]), None).user_terms is None


@torch.no_grad()
def test_new_weights_make_new_user_terms(small_dataset: PreparedDataset) -> None:
    model = make_arnn(small_dataset)
    item, user = torch.tensor([1, 2]), torch.tensor([0, 3])
    before = model.step_input(item, user, None).user_terms
    state = copy.deepcopy(model.state_dict())
    state["encoder.context.product.bias"] += 1
    model.load_state_dict(state)
    model.prepare_merge()
    assert torch.allclose(model.step_input(item, user, None).user_terms, before + 1, atol=1e-6)


# --- the cache of frozen features ---


def count_calls(model: ARNN) -> list[int]:
    """Counts the computations of [c_t; h_t]."""
    calls, features = [0], model.encoder.features

    def counted(step: StepInput, state: Any) -> Any:
        calls[0] += 1
        return features(step, state)

    model.encoder.features = counted  # type: ignore[method-assign]
    return calls


@pytest.mark.parametrize("cache_mb", [1.0, 0.002], ids=["room for all", "room for a few steps"])
def test_cached_features_give_the_weights_of_recomputed_ones(
    cache_mb: float, small_dataset: PreparedDataset, tmp_path: Path
) -> None:
    n_calls, weights = [], []
    for size in (cache_mb, 0.0):
        model = make_arnn(small_dataset, cache_mb=size)
        calls = count_calls(model)
        torch.manual_seed(0)
        fit(model, small_dataset, tmp_path)
        n_calls.append(calls[0])
        weights.append(model.state_dict())
    assert n_calls[0] < n_calls[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_cached_features_equal_the_encoders_and_need_no_state(small_dataset: PreparedDataset) -> None:
    model = make_arnn(small_dataset).train()
    model.configure_optimizers()
    dataset = make_data(small_dataset, steps_per_chunk=10).train_dataset(model.chunk_spec)
    chunk = dataset[0, 0]
    expected = state = model.initial_state(4)
    results = []
    for k, (step, keep) in enumerate(model.step_inputs(chunk)):
        expected, state = (tuple(part * keep for part in parts) for parts in (expected, state))
        with torch.no_grad():
            features, expected = model.encoder.features(step, expected)
        cached, state = model.precompute(step, state, (0, k))
        assert torch.equal(cached.features, features)
        assert torch.equal(*state, *expected)
        results.append((features, state))
    assert chunk.is_session_start.sum() > 4
    junk = tuple(torch.full_like(part, 9.0) for part in model.initial_state(4))
    for k, (step, _) in enumerate(model.step_inputs(chunk)):
        assert step.user_terms is None  # they would be read by the encoders alone
        cached, state = model.precompute(step, junk, (0, k))
        assert torch.equal(cached.features, results[k][0])
        assert torch.equal(*state, *results[k][1])


def test_features_of_older_weights_are_not_used(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    weights = []
    for filled_before in (True, False):
        model = make_arnn(small_dataset)
        initial = copy.deepcopy(model.state_dict())
        if filled_before:
            model.configure_optimizers()
            with torch.no_grad():
                model.encoder.session.inputs[0].gates.weight.add_(1.0)
            chunk = make_data(small_dataset).train_dataset(model.chunk_spec)[0, 0]
            model.train().run_steps(chunk, model.initial_state(4))
        model.load_state_dict(initial)
        torch.manual_seed(0)
        fit(model, small_dataset, tmp_path)
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_encoders_that_change_are_run_at_every_step(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    n_calls = []
    for overrides, cache_mb in (
        (["model.freeze_encoders=false"], 1.0),
        (["model.finetune_context_batchnorm=true"], 1.0),
        ([], 0.0),
    ):
        model = make_arnn(small_dataset, *overrides, cache_mb=cache_mb)
        calls = count_calls(model)
        fit(model, small_dataset, tmp_path)
        n_calls.append(calls[0])
    assert n_calls[0] == n_calls[1] == n_calls[2]


def test_the_cache_stops_at_its_limit() -> None:
    features = (torch.zeros(5, 3), (torch.zeros(1, 5, 2),))  # 4 * (15 + 10) = 100 bytes
    cache = FeatureCache(250)
    for step in range(5):
        cache.add((0, step), features)
    assert [cache.get((0, step)) is features for step in range(5)] == [True, True, True, False, False]
    cache.clear()
    assert cache.get((0, 0)) is None
    cache.add((1, 0), features)
    assert cache.get((1, 0)) is features
    empty = FeatureCache(0)
    empty.add((0, 0), features)
    assert empty.get((0, 0)) is None


def test_the_cache_is_empty_after_training(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    model = make_arnn(small_dataset)
    fit(model, small_dataset, tmp_path)
    assert model._cache.get((0, 0)) is None

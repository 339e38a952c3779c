"""ARNN: two parts by role, pretrained, frozen, merged."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer

from arnn_lightning.batch import Step
from arnn_lightning.errors import UserError
from arnn_lightning.models.arnn import ARNN
from arnn_lightning.models.base import SessionModel, State, reset
from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import LSTMRec, make_data, make_model

SMALL = ["model.hidden_size=8", "model.session.hidden_size=6", "model.context.hidden_size=5"]


def assembled(prepared: PreparedDataset, *overrides: str) -> ARNN:
    model = make_model("arnn", prepared.dims, *SMALL, *overrides)
    assert isinstance(model, ARNN)
    model.set_contexts(make_data(prepared).contexts())
    model.assemble()
    return model


def fit(model: ARNN, prepared: PreparedDataset, folder: Path) -> None:
    Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    ).fit(model, make_data(prepared))


def moved(model: ARNN, prepared: PreparedDataset, folder: Path) -> set[str]:
    """Names of the weights and statistics that training changes."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, prepared, folder)
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_frozen_parts_are_bit_equal_after_the_merge(small_world: PreparedDataset, tmp_path: Path) -> None:
    changed = moved(assembled(small_world), small_world, tmp_path)
    assert {"merge.weight", "merge.bias", "norm.running_mean", "scorer.items.weight"} <= changed
    assert not [name for name in changed if name.startswith(("session.", "context."))]


def test_frozen_dropout_stays_off_while_lightning_trains(small_world: PreparedDataset, tmp_path: Path) -> None:
    model = assembled(small_world, "model.session.dropout_hidden=0.9", "model.context.dropout=0.9")
    fit(model, small_world, tmp_path)
    model.train()
    assert not model.session.training
    assert not model.context.training
    assert model.merge.training


def test_footnote_2_retrains_the_batch_normalisation_alone(small_world: PreparedDataset, tmp_path: Path) -> None:
    changed = moved(assembled(small_world, "model.finetune_context_batchnorm=true"), small_world, tmp_path)
    parts = {name for name in changed if name.startswith(("session.", "context."))}
    assert {"context.norm.weight", "context.norm.running_mean"} <= parts
    assert all(name.startswith("context.norm.") for name in parts)


def test_freeze_none_trains_everything(small_world: PreparedDataset, tmp_path: Path) -> None:
    changed = moved(assembled(small_world, "model.freeze_encoders=false"), small_world, tmp_path)
    assert {"session.item_gates.weight", "context.product.item_field", "context.categories.weight"} <= changed


def test_the_parts_lose_their_scorers(small_world: PreparedDataset) -> None:
    names = assembled(small_world).state_dict()
    assert not [name for name in names if "session.scorer" in name or "context.scorer" in name]


def test_any_session_model_can_take_the_session_role(small_world: PreparedDataset, tmp_path: Path) -> None:
    usual = assembled(small_world)
    model = ARNN(
        "arnn",
        small_world.dims,
        session=LSTMRec(12),
        context=usual.context,
        hidden_size=8,
        dropout=0.0,
        freeze="parts",
        retrain_batchnorm=False,
        cache_mb=1,
        optimizer=usual.optimizer_factory,
        loss=usual.objective,
    )
    model.assemble()
    assert "session.cell.weight_hh" not in moved(model, small_world, tmp_path)
    assert len(model.initial_state(3)) == 2


def test_an_unknown_freeze_is_a_users_error(small_world: PreparedDataset) -> None:
    with pytest.raises(UserError, match=r"model\.freeze=half"):
        make_model("arnn", small_world.dims, "model.freeze=half")


def test_new_weights_make_the_cached_users_part_stale(small_world: PreparedDataset) -> None:
    model = assembled(small_world)
    before = model.context._users().clone()
    state = {name: value + 1 if "product.bias" in name else value for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    assert torch.allclose(model.context._users(), before + 1, atol=1e-6)


@pytest.mark.parametrize("megabytes", [1.0, 0.001], ids=["room for all", "room for a few steps"])
def test_what_frozen_parts_said_in_the_first_epoch_is_what_they_would_say_again(
    small_world: PreparedDataset, tmp_path: Path, megabytes: float
) -> None:
    asked, weights = [], []
    for size in (megabytes, 0.0):
        torch.manual_seed(0)
        model = assembled(small_world, f"performance.cache_mb={size}")
        calls = count_calls(model.session)
        fit(model, small_world, tmp_path)
        asked.append(calls[0])
        weights.append(model.state_dict())
    assert asked[0] < asked[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_what_is_kept_of_a_step_is_c_t_and_h_t_once_and_needs_no_state_to_be_said_again(
    small_world: PreparedDataset,
) -> None:
    batch = next(iter(make_data(small_world, steps=10).train_dataloader()))
    window, (steps, lanes) = batch.window, batch.window.item.shape
    model = assembled(small_world).train()
    junk = state = tuple(torch.full_like(part, 9.0) for part in model.initial_state(lanes))
    expected = model.session.initial_state(lanes)
    kept = []
    for k in range(steps):  # the first step forgets the junk: every lane starts a session
        _, state = model.step_loss(batch, k, state)
        step = Step(window.item[k], window.user[k], window.alive[k], batch.items[k])
        _, expected = model.session.represent(step, reset(expected, window.start[k]))
        assert torch.equal(*state, *expected)
        kept.append(state)
    assert window.start.sum() > lanes
    assert model._cache.size - model._cache._left == steps * lanes * (6 + 5) * 4  # bytes of a float32
    assert all(torch.equal(*model.step_loss(batch, k, junk)[1], *kept[k]) for k in range(steps))


def test_what_frozen_parts_said_before_their_weights_changed_is_forgotten(
    small_world: PreparedDataset, tmp_path: Path
) -> None:
    weights = []
    for trained_before in (True, False):
        torch.manual_seed(0)
        model = assembled(small_world)
        fresh = {name: value.clone() for name, value in model.state_dict().items()}
        batch = next(iter(make_data(small_world).train_dataloader()))
        if trained_before:
            with torch.no_grad():
                model.session.item_gates.weight.add_(1.0)
            model.step_loss(batch, 0, model.initial_state(batch.window.item.shape[1]))
        model.load_state_dict(fresh)
        fit(model, small_world, tmp_path)
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_parts_that_learn_on_are_asked_at_every_step(small_world: PreparedDataset, tmp_path: Path) -> None:
    asked = []
    for overrides in (
        ["model.freeze_encoders=false"],
        ["model.finetune_context_batchnorm=true"],
        ["performance.cache_mb=0"],
    ):
        model = assembled(small_world, *overrides)
        calls = count_calls(model.session)
        fit(model, small_world, tmp_path)
        asked.append(calls[0])
    assert asked[0] == asked[1] == asked[2]


def count_calls(part: SessionModel) -> list[int]:
    calls, usual = [0], part.represent

    def represent(step: Step, state: State) -> tuple[torch.Tensor, State]:
        calls[0] += 1
        return usual(step, state)

    part.represent = represent  # type: ignore[method-assign]
    return calls

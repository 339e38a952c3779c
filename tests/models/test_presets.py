"""Every preset composes with every loss, the strong ones train, and the logQ correction learns popularity."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from arnn_lightning.errors import UserError
from arnn_lightning.models import RunSettings, SessionRecommender
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.training.checkpoint import build_model
from arnn_lightning.training.stage import make_datamodule
from helpers import MODELS_ALONE, compose_config, make_data, make_model, train_losses, trainer, write_dataset
from models import LOSSES, TRAINED, slow

compose_models = partial(compose_config, name=MODELS_ALONE)
LOSS_CLASSES = {
    "top1": "TOP1",
    "bpr": "BPR",
    "top1_max": "TOP1Max",
    "bpr_max": "BPRMax",
    "cross_entropy": "CrossEntropy",
}
PRESETS = sorted({case.preset for case in TRAINED})
# Without the slow ones each preset, and each loss, has one pair at least.
PAIRS = [
    pytest.param(name, loss, marks=[] if (i - j) % len(LOSSES) == 0 else pytest.mark.slow)
    for i, name in enumerate(PRESETS)
    for j, loss in enumerate(LOSSES)
]


@pytest.mark.parametrize(("name", "loss"), PAIRS)
def test_E20_every_preset_takes_every_loss_in_every_stage(name: str, loss: str, small_dataset: PreparedDataset) -> None:
    roles = make_model(name, small_dataset.dims).stages
    overrides = [f"model/loss@model.{role}.loss={loss}" for role in roles]
    model = make_model(name, small_dataset.dims, f"model/loss={loss}", *overrides)
    assert model.name == name
    for stage in (model, *model.stages.values()):
        assert type(stage.loss).__name__ == LOSS_CLASSES[loss.removesuffix("_full").removesuffix("_logq")]
        assert stage.loss.scores_full_catalogue == loss.endswith("_full")
        assert bool(stage.loss.logq) == loss.endswith("_logq")


def test_the_stages_of_arnn_are_choices_too(small_dataset: PreparedDataset) -> None:
    model = make_model("arnn", small_dataset.dims, "model@model.session=gru4rec_strong")
    assert [stage.name for stage in model.stages.values()] == ["gru4rec_strong", "pnn"]


@pytest.mark.parametrize("choice", ["session=pop", "context=itemknn", "session=arnn"])
def test_a_role_takes_a_model_trained_in_one_stage(choice: str, small_dataset: PreparedDataset) -> None:
    role, name = choice.split("=")
    with pytest.raises(UserError, match=rf"^model\.{role}: {name} is not trained in one stage; choose .* by [^\n]*$"):
        make_model("arnn", small_dataset.dims, f"model@model.{choice}")


@pytest.mark.parametrize("role", ["session", "context"])
@pytest.mark.parametrize("arnn", ["arnn", "arnn_strong"])
@pytest.mark.parametrize("data", ["synthetic", slow("completejourney"), slow("tmall")])
def test_encoders_of_arnn_are_tuned_as_they_are_alone(data: str, arnn: str, role: str) -> None:
    encoder = compose_models(f"data={data}", f"model={arnn}").model[role]
    loss = "cross_entropy_logq" if encoder.loss.logq else "top1"
    alone = compose_models(f"data={data}", f"model={encoder.name}", f"model/loss={loss}").model
    keys = alone.keys() - {"dims", "n_sample", "sample_alpha", "attribute_dropout"}
    assert {key: encoder[key] for key in keys} == {key: alone[key] for key in keys}


@pytest.mark.parametrize("data", ["synthetic", slow("completejourney")])
@pytest.mark.parametrize(
    ("choices", "without"),
    [
        (["model/optimizer=adam"], "~tuned@model"),
        (["model/loss=bpr_max"], "~tuned@model"),
        (["model=arnn", "model/loss@model.session.loss=bpr_max"], "~tuned@model.session"),
        (["model=arnn", "model/optimizer@model.context.optimizer=sgd"], "~tuned@model.context"),
    ],
)
def test_values_tuned_with_another_choice_do_not_apply(data: str, choices: list[str], without: str) -> None:
    """Another loss or optimizer gives the preset's values, as if there were no tuned file."""
    overrides = [f"data={data}", "model=gru4rec", *choices]
    assert compose_models(*overrides) == compose_models(*overrides, without)
    chosen = [override for override in overrides if override.startswith(("data", "model="))]
    assert compose_models(*chosen) != compose_models(*chosen, without)


def test_a_strong_session_encoder_has_its_own_values() -> None:
    strong = compose_models("model=arnn", "model@model.session=gru4rec_strong").model.session
    alone = compose_models("model=gru4rec_strong").model
    for key in ("n_sample", "sample_alpha", "embedding", "loss", "optimizer", "epochs"):
        assert strong[key] == alone[key], key
    assert (strong.n_sample, strong.sample_alpha) == (2048, 0.75)


def test_sizes_of_the_paper_hold_with_any_optimizer() -> None:
    model = compose_models("data=tmall", "model/optimizer=adam", "model/loss@model.context.loss=bpr").model
    assert (model.hidden_size, model.session.hidden_size, model.context.hidden_size) == (1000, 1000, 300)
    assert model.optimizer.lr == 0.001


def test_the_command_line_wins_over_tuned_values() -> None:
    model = compose_models("model.session.n_sample=7", "model.epochs=9").model
    assert (model.session.n_sample, model.epochs, model.session.epochs, model.optimizer.lr) == (7, 9, 5, 0.015)


def test_a_strong_arnn_has_a_strong_session_stage_and_one_loss() -> None:
    alone, arnn = (compose_models("data=xing", f"model={name}_strong").model for name in ("gru4rec", "arnn"))
    assert {key: value for key, value in arnn.session.items() if key != "dims"} == {
        key: value for key, value in alone.items() if key != "dims"
    }
    for stage in (arnn, arnn.context):
        assert stage.loss == alone.loss
        assert (stage.n_sample, stage.sample_alpha) == (alone.n_sample, alone.sample_alpha)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_with_its_negatives_and_log_q(
    name: str, small_dataset: PreparedDataset, tmp_path: Path
) -> None:
    config = compose_models("data=xing", f"model={name}", "performance.steps_per_execution=3")
    config.model.dims = small_dataset.dims
    plain: Any = OmegaConf.to_container(config.model, resolve=True)
    model: Any = build_model(plain, RunSettings())
    for role, stage in model.stages.items():
        fit_one_epoch(stage, small_dataset, config, plain[role], tmp_path)
    fit_one_epoch(model, small_dataset, config, plain, tmp_path)


def fit_one_epoch(
    model: SessionRecommender, prepared: PreparedDataset, config: Any, stage: dict[str, Any], folder: Path
) -> None:
    data = make_datamodule(prepared, config, stage)
    before = model.scorer.items.weight.detach().clone()
    trainer(folder).fit(model, data)
    assert not torch.equal(model.scorer.items.weight, before)
    chunk = data.train_dataset(model.chunk_spec)[0, 0]
    assert len(chunk.item[0]) == stage["batch_size"]
    assert chunk.counts is not None
    assert chunk.counts.split()[0].sum() == chunk.valid[0].sum() + stage["n_sample"]
    assert (chunk.log_q is not None) == (stage["loss"]["logq"] > 0)


@pytest.mark.parametrize(
    ("logq", "n_sample", "alpha", "slope"),
    [slow(0.0, 0, 1.0, 0), slow(1.0, 0, 1.0, 1), slow(0.0, 20, 1.0, 0), (1.0, 20, 0.0, 1)],
)
def test_with_logq_scores_rise_with_the_log_of_popularity(
    logq: float, n_sample: int, alpha: float, slope: float, tmp_path: Path
) -> None:
    """Where popularity alone decides, scores rise by ``slope`` with its logarithm: 1 as with a full softmax."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, 13)
    sessions = rng.choice(12, (3000, 4), p=share / share.sum()).tolist()
    prepared = write_dataset(tmp_path, {"train": (sessions, [0] * 3000)}, n_items=12)
    overrides = ["model/loss=cross_entropy_logq", f"model.loss.logq={logq}", "model.dropout_hidden=0"]
    model = make_model("gru4rec", prepared.dims, *overrides, "model.hidden_size=4", "model.optimizer.lr=0.1").train()
    data = make_data(prepared, batch_size=30, steps_per_chunk=50, n_sample=n_sample, sample_alpha=alpha)
    train_losses(model, data, epochs=4)
    with torch.no_grad():
        queries, _ = model.eval().encode_chunk(data.chunks("train", 100)[0, 0])
        score = model.score(queries).mean(0).numpy()
    popularity = np.log(np.bincount(np.concatenate([session[1:] for session in sessions])))
    assert np.polyfit(popularity, score, 1)[0] == pytest.approx(slope, abs=0.15)

"""Every preset composes with every loss, the strong ones train, and logQ does to a model what it should."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from arnn_lightning import conf
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.training.checkpoint import build
from arnn_lightning.training.stage import datamodule
from helpers import compose_config, make_data, make_model, trainer, write_world

LOSSES = sorted(path.stem for path in (Path(conf.__path__[0]) / "model" / "loss").glob("*.yaml"))
PRESETS = ["gru4rec", "gru4rec_strong", "pnn", "concat", "arnn", "arnn_strong"]


def parts_of(name: str) -> tuple[str, ...]:
    return ("session", "context") if name.startswith("arnn") else ()


def named(function: Any) -> str:
    return (function.func if isinstance(function, partial) else function).__name__


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", PRESETS)
def test_E20_every_preset_takes_every_loss_in_every_part(name: str, loss: str, small_world: PreparedDataset) -> None:
    overrides = [f"model/loss@model.{role}.loss={loss}" for role in parts_of(name)]
    model = make_model(name, small_world.dims, f"model/loss={loss}", *overrides)
    assert model.name == name
    for one in (model, *model.parts.values()):
        assert named(one.objective.function) == loss.removesuffix("_full").removesuffix("_logq")


def test_the_parts_of_arnn_are_choices_too(small_world: PreparedDataset) -> None:
    model = make_model("arnn", small_world.dims, "model@model.session=gru4rec_strong")
    assert [part.name for part in model.parts.values()] == ["gru4rec_strong", "pnn"]


def test_a_strong_arnn_has_a_strong_session_part_and_one_loss_throughout() -> None:
    alone, arnn = (compose_config("data=xing", f"model={name}_strong").model for name in ("gru4rec", "arnn"))
    assert {key: value for key, value in arnn.session.items() if key != "dims"} == {
        key: value for key, value in alone.items() if key != "dims"
    }
    for part in (arnn, arnn.context):
        assert part.loss == alone.loss
        assert (part.n_sample, part.sample_alpha) == (alone.n_sample, alone.sample_alpha)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_with_the_negatives_and_the_log_q_of_its_config(
    name: str, small_world: PreparedDataset, tmp_path: Path
) -> None:
    config = compose_config("data=xing", f"model={name}", "performance.steps_per_execution=3")
    config.model.dims = small_world.dims
    plain: Any = OmegaConf.to_container(config.model, resolve=True)
    model = build(plain)
    model.set_contexts(make_data(small_world).contexts())
    for role, part in model.parts.items():
        fit_one_epoch(part, small_world, config, plain[role], tmp_path)
    model.assemble()
    fit_one_epoch(model, small_world, config, plain, tmp_path)


def fit_one_epoch(model: Any, prepared: PreparedDataset, config: Any, stage: dict[str, Any], folder: Path) -> None:
    data = datamodule(prepared, config, stage)
    (batch, *_) = data.train_dataloader()
    assert len(batch.scored[0].inverse) == stage["lanes"] + stage["n_sample"]
    assert (batch.log_q is not None) == (stage["loss"]["logq"] > 0)
    before = model.scorer.items.weight.detach().clone()
    trainer(folder).fit(model, data)
    assert not torch.equal(model.scorer.items.weight, before)


@pytest.mark.parametrize(
    ("logq", "n_sample", "alpha", "slope"), [(0.0, 0, 1.0, 0), (1.0, 0, 1.0, 1), (0.0, 20, 1.0, 0), (1.0, 20, 0.0, 1)]
)
def test_where_popularity_alone_decides_logq_learns_it_and_without_it_nothing_is_learnt(
    logq: float, n_sample: int, alpha: float, slope: float, tmp_path: Path
) -> None:
    """Scores rise by ``slope`` with the logarithm of the popularity: 1 is what a full softmax comes to."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, 13)
    sessions = rng.choice(12, (3000, 4), p=share / share.sum()).tolist()
    prepared = write_world(tmp_path, {"train": (sessions, [0] * 3000)}, n_items=12)
    overrides = ["model/loss=cross_entropy_logq", f"model.loss.logq={logq}", "model.dropout_hidden=0"]
    model = make_model("gru4rec", prepared.dims, *overrides, "model.hidden_size=4", "model.optimizer.lr=0.1")
    data = make_data(prepared, lanes=30, steps=50, n_sample=n_sample, sample_alpha=alpha, log_q=logq > 0)
    trainer(tmp_path, max_epochs=4).fit(model.train(), train_dataloaders=data.train_dataloader())
    with torch.no_grad():
        queries, _ = model.eval().evaluation_step(data._windows("train", 100)[(0, 0)])
        score = model.score(queries).mean(0).numpy()
    popularity = np.log(np.bincount(np.concatenate([session[1:] for session in sessions])))
    assert np.polyfit(popularity, score, 1)[0] == pytest.approx(slope, abs=0.15)

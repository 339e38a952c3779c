"""The compiled training step against the eager one (E30)."""

import logging
from typing import Any

import pytest
import torch

from arnn_lightning.models import SessionRecommender
from arnn_lightning.optim.compiled import CompiledTrainStep
from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import make_data, make_model, ready, train_losses
from models import slow

SMALL = ["model.hidden_size=8"]
CASES: dict[str, tuple[str, list[str], int]] = {
    "one-hot, TOP1, dropout": ("gru4rec", SMALL, 0),
    "tied, log q, negatives": ("gru4rec_strong", [*SMALL, "model.item_contexts=add", "model.clip_norm=1000"], 7),
    "tied, more negatives than items": ("gru4rec_strong", SMALL, 60),
    "PNN": (
        "pnn",
        [
            *SMALL,
            "model.embedding_size=3",
            "model.item_contexts=fields",
            "model.products=false",
            "model.optimizer.eps=1e-2",
            "model.optimizer.weight_decay=0.01",
        ],
        0,
    ),
    "ARNN's merging layer": (
        "arnn",
        [*SMALL, "model.session.hidden_size=6", "model.context.hidden_size=5", "model.clip_norm=0.01"],
        0,
    ),
}


def trained(case: str, prepared: PreparedDataset, compile: bool) -> tuple[SessionRecommender, list[float]]:
    name, overrides, n_sample = CASES[case]
    model = ready(make_model(name, prepared.dims, *overrides, compile=compile), prepared).train()
    torch.manual_seed(3)
    data = make_data(prepared, batch_size=4, steps_per_chunk=10, n_sample=n_sample)
    return model, train_losses(model, data)


def compiled_step(model: Any) -> CompiledTrainStep:
    step = model._train_step
    assert isinstance(step, CompiledTrainStep)
    return step


@pytest.mark.parametrize("case", list(CASES)[1:])
@pytest.mark.parametrize("is_compiled", [False, slow(True)], ids=["traced", "compiled"])
def test_E30_compiled_step_equals_the_eager_one(
    case: str, is_compiled: bool, small_dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``is_compiled`` false: the graph that the compiler gets, run as it is; the compiler takes half a minute."""
    if not is_compiled:
        monkeypatch.setattr(torch._inductor, "compile", lambda graph, *_: graph)
    eager, expected = trained(case, small_dataset, compile=False)
    model, losses = trained(case, small_dataset, compile=True)
    assert compiled_step(model).is_compiled
    assert losses == pytest.approx(expected, rel=1e-4)
    for (name, weight), reference in zip(model.named_parameters(), eager.parameters(), strict=True):
        # Adagrad makes whole steps out of the rounding of a gradient that is 0, as that of a bias before a batch norm.
        if "bias" not in name:
            assert torch.allclose(weight, reference, rtol=1e-3, atol=1e-4), name


def test_E30_step_that_differs_stays_eager(
    small_dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    case = "one-hot, TOP1, dropout"
    _, expected = trained(case, small_dataset, compile=False)
    pure_step = CompiledTrainStep._pure_step

    def with_larger_steps(self: CompiledTrainStep, mutables: Any, *arguments: Any) -> Any:
        return pure_step(self, mutables, *arguments[:-1], arguments[-1] * 1.01)  # the learning rate

    monkeypatch.setattr(CompiledTrainStep, "_pure_step", with_larger_steps)
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, *_: graph)  # the compiler takes seconds
    with caplog.at_level(logging.WARNING):
        model, losses = trained(case, small_dataset, compile=True)
    assert not compiled_step(model).is_compiled
    assert "the compiled step differs from the eager one" in caplog.text
    assert losses == expected


def test_without_a_compiler_training_stays_eager(
    small_dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch._inductor, "compile", fails)
    _, expected = trained("PNN", small_dataset, compile=False)
    with caplog.at_level(logging.WARNING):
        _, losses = trained("PNN", small_dataset, compile=True)
    assert "torch.compile does not work here (no working C++ compiler)" in caplog.text
    assert losses == expected


@pytest.mark.parametrize("overrides", [["model.optimizer.momentum=0.1"], ["model/optimizer=adam"]])
def test_optimizers_that_cannot_be_compiled(
    overrides: list[str], small_dataset: PreparedDataset, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model("gru4rec", small_dataset.dims, *overrides, compile=True)
    with caplog.at_level(logging.WARNING):
        model.configure_optimizers()
    assert not isinstance(model._train_step, CompiledTrainStep)
    assert "only model/optimizer=adagrad without momentum can be compiled" in caplog.text

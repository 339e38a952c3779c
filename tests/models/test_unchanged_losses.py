"""The first 100 losses of every model and loss are those of version 0.1 (commit 2cbdeb1), bit by bit.

The fixture was made by that version's training step, from the weights that ``set_weights`` gives. PNNs compute their
products in closed form: their losses are those of the last version that was bit-equal to 0.1 in both forms.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arnn_lightning.loading.negatives import PopularitySampler
from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import make_data, make_model, random_sessions, ready, train_losses, write_dataset

LOSSES: dict[str, list[float]] = json.loads((Path(__file__).parent / "fixtures" / "losses_0_1.json").read_text())
GRU4REC: dict[str, list[str]] = {
    "gru4rec": [],
    "gru4rec_tanh": ["model.loss.activation=tanh"],
    "gru4rec_keep": ["model.loss.accidental_hits=keep"],
    "gru4rec_bpr": ["model/loss=bpr"],
    "gru4rec_bpr_softmax": ["model/loss=bpr", "model.loss.activation=softmax"],
    "gru4rec_bpr_max": ["model/loss=bpr_max"],
    "gru4rec_top1_max": ["model/loss=top1_max"],
    "gru4rec_cross_entropy": ["model/loss=cross_entropy"],
    "gru4rec_cross_entropy_logq": ["model/loss=cross_entropy_logq"],
    "gru4rec_cross_entropy_full": ["model/loss=cross_entropy_full"],
    "gru4rec_tied": ["model.embedding=tied", "model/loss=cross_entropy"],
    "gru4rec_tied_full": ["model.embedding=tied", "model/loss=cross_entropy_full"],
    "gru4rec_separate_2_layers": [
        "model.embedding=separate",
        "model.layers=2",
        "model.dropout_embedding=0.3",
        "model.carry_dropout=false",
    ],
    "gru4rec_momentum_decay": ["model.optimizer.momentum=0.3", "model.optimizer.weight_decay=0.001"],
    "gru4rec_adam": ["model/optimizer=adam"],
    "gru4rec_sgd": ["model/optimizer=sgd"],
    "gru4rec_bf16": [],
    "gru4rec_negatives": [],
    "gru4rec_strong": [],
}
OTHERS: dict[str, list[str]] = {
    "pnn": [],
    "pnn_no_products": ["model.products=false"],
    "pnn_cross_entropy_adam": ["model/loss=cross_entropy", "model/optimizer=adam"],
    "pnn_full": ["model/loss=cross_entropy_full"],
    "pnn_negatives": [],
    "concat": [],
    "arnn": [],
    "arnn_cross_entropy": ["model/loss=cross_entropy"],
    "arnn_joint": ["model.freeze_encoders=false"],
    "arnn_footnote2": ["model.finetune_context_batchnorm=true"],
    "arnn_tied_session": ["model.session.embedding=tied", "model.freeze_encoders=false"],
    "arnn_strong": [],
}
CASES = GRU4REC | OTHERS


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    rng = np.random.default_rng(3)
    splits = {}
    for seed, (name, n_sessions) in enumerate((("train", 400), ("val", 30), ("test", 30))):
        splits[name] = (random_sessions(seed, n_sessions, 300), rng.integers(0, 40, n_sessions).tolist())
    level, country = rng.integers(0, 5, 40).tolist(), rng.integers(0, 30, 40).tolist()
    active = [sorted(set(rng.integers(0, 20, rng.integers(0, 7)).tolist())) for _ in range(40)]
    active[0], level[0], country[0] = [19], 4, 29
    return write_dataset(tmp_path_factory.mktemp("data"), splits, 300, {"level": level, "country": country}, active)


@torch.no_grad()
def set_weights(model: Any) -> None:
    for name, weight in model.named_parameters():
        # The name in the model that the weight belongs to first; tied weights are the scorer's.
        if name.endswith("inputs.0.embedding.weight") and not name.startswith("encoder.session."):
            name = "scorer.items.weight" if model.scorer.items.weight is weight else name
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        weight.uniform_(-0.1, 0.1, generator=generator)
        if name.endswith("norm.weight"):
            weight.add_(1)


def sample_as_0_1(sampler: PopularitySampler, epoch: int, first_step: int, n_steps: int, device: int = 0) -> np.ndarray:
    """Version 0.1 seeded the negatives by (epoch, chunk), not by step."""
    if not sampler.n_sample:
        return np.empty((n_steps, 0), np.int64)
    uniform = np.random.default_rng([sampler.seed, epoch, first_step // 50]).random((n_steps, sampler.n_sample))
    cumulative = np.cumsum(sampler.probability)
    return np.searchsorted(cumulative, uniform, side="right").clip(max=len(cumulative) - 1)


@pytest.mark.parametrize("case", CASES)
def test_first_100_losses_are_unchanged(case: str, prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PopularitySampler, "sample", sample_as_0_1)
    name = case if case.endswith("strong") else case.split("_")[0]
    closed = {"pnn": ["model.product_method=closed"], "arnn": ["model.context.product_method=closed"]}
    overrides = [*CASES[case], *closed.get(case.split("_")[0], [])]
    model = ready(make_model(name, prepared.dims, *overrides, bf16=case.endswith("bf16")), prepared).train()
    set_weights(model)
    n_sample = 20 if "negatives" in case or "strong" in case else 0
    data = make_data(prepared, batch_size=8, steps_per_chunk=50, n_sample=n_sample)
    torch.manual_seed(1)
    losses = train_losses(model, data)[:100]
    # Sums in another order: of momentum and step, and of the gradient of Concat's table of two-valued fields.
    assert losses == (
        pytest.approx(LOSSES[case], rel=1e-6) if case in ("gru4rec_momentum_decay", "concat") else LOSSES[case]
    )

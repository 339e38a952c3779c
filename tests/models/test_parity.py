"""Losses that another implementation gave: pyGRU4REC (yhs968/pyGRU4REC at 992b54b), the paper's GRU4REC in PyTorch.

The fixture has a small data set (sessions of 30 items), initial weights, and the losses of its first 100 mini-batches
(H = 8, B = 4, one-hot input, tanh, TOP1, dense torch.optim.Adagrad with eps 1e-10, no dropout).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arnn_lightning.losses import TOP1, RankingLoss
from arnn_lightning.losses.base import Negatives
from arnn_lightning.models import SessionRecommender
from helpers import make_data, make_model, train_losses, write_dataset

PEER: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures" / "pygru4rec.json").read_text())


class PeerTOP1(TOP1):
    """TOP1 whose mean is over all B columns: a positive is among its own negatives, sigmoid(0) + sigmoid(r_i^2)."""

    def loss(self, score_BC: Tensor, negatives: Negatives) -> Tensor:
        positive_B = score_BC.gather(1, negatives.positive[:, None])[:, 0]
        n_negatives_B = negatives.n_negatives()
        diagonal_B = 0.5 + torch.sigmoid(positive_B.square())
        return (n_negatives_B * super().loss(score_BC, negatives) + diagonal_B) / (n_negatives_B + 1)


def make_peer_model() -> SessionRecommender:
    model: SessionRecommender = make_model(
        "gru4rec",
        {"n_items": PEER["items"], "single_sizes": [], "n_binary": 0},
        f"model.hidden_size={PEER['hidden']}",
        "model.embedding=onehot",
        "model.dropout_hidden=0",
        f"model.optimizer.lr={PEER['lr']}",
        "model.optimizer.eps=1e-10",
    )
    shapes = {"item_gates": (3 * PEER["hidden"], PEER["items"]), "gates": (3 * PEER["hidden"], PEER["hidden"])}
    shapes |= {"scores": (PEER["items"], PEER["hidden"])}
    weights = {name: torch.tensor(values).reshape(shapes.get(name, -1)) for name, values in PEER["weights"].items()}
    (one_hot,), (cell,) = model.encoder.inputs, model.encoder.cells
    with torch.no_grad():
        one_hot.gates.weight.copy_(weights["item_gates"].T)
        one_hot.bias.copy_(weights["item_bias"])
        cell.weight.copy_(weights["gates"])
        cell.bias.copy_(weights["bias"])
        model.scorer.items.weight.copy_(weights["scores"])
        model.scorer.bias.weight.copy_(weights["score_bias"])
    return model


def losses(loss: type[RankingLoss], folder: Path, hits: Any = "keep") -> list[float]:
    """Losses of the first mini-batches of an epoch, as many as the peer's."""
    prepared = write_dataset(folder, {"train": (PEER["sessions"], [0] * len(PEER["sessions"]))}, PEER["items"])
    model = make_peer_model()
    model.loss = loss("tanh", elu_alpha=0.5, candidates="batch", accidental_hits=hits, logq=0.0)
    values = train_losses(model.train(), make_data(prepared, batch_size=PEER["lanes"], steps_per_chunk=10))
    return values[: len(PEER["losses"])]


def test_a_hundred_steps_equal_those_of_another_implementation(tmp_path: Path) -> None:
    assert losses(PeerTOP1, tmp_path) == pytest.approx(PEER["losses"], abs=2e-6)


def test_other_negatives_give_other_losses(tmp_path: Path) -> None:
    for values in (losses(TOP1, tmp_path), losses(PeerTOP1, tmp_path, "mask")):
        assert max(abs(a - b) for a, b in zip(values, PEER["losses"], strict=True)) > 1e-2

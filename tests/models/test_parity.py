"""Numbers that another implementation gave: pyGRU4REC (yhs968/pyGRU4REC at 992b54b), the paper's GRU4REC in PyTorch.

The fixture holds a small world (sessions of 30 items), initial weights, and the losses of its first 100 mini-batches
(H = 8, B = 4, one-hot input, tanh, TOP1, dense torch.optim.Adagrad with eps 1e-10, no dropout).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from arnn_lightning.losses.losses import Candidates, Objective, top1
from torch import Tensor

from arnn_lightning.models.base import SessionModel
from helpers import make_data, make_model, write_world

PEER: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures" / "pygru4rec.json").read_text())


def top1_as_the_peer_counts(score_BC: Tensor, candidates: Candidates) -> Tensor:
    """Its mean runs over all B columns: a lane's positive is among its own negatives, sigmoid(0) + sigmoid(r_i^2)."""
    own_B = score_BC.gather(1, candidates.positive[:, None])[:, 0]
    negatives_B = candidates.number()
    diagonal_B = 0.5 + torch.sigmoid(own_B.square())
    return (negatives_B * top1(score_BC, candidates) + diagonal_B) / (negatives_B + 1)


def with_the_peers_weights() -> SessionModel:
    model = make_model(
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
    with torch.no_grad():
        model.item_gates.weight.copy_(weights["item_gates"].T)
        model.input_biases[0].copy_(weights["item_bias"])
        model.cells[0].weight.copy_(weights["gates"])
        model.cells[0].bias.copy_(weights["bias"])
        model.scorer.items.weight.copy_(weights["scores"])
        model.scorer.bias.weight[:, 0].copy_(weights["score_bias"])
    return model


def losses(objective: Objective, folder: Path) -> list[float]:
    """Of the first mini-batches of an epoch, as many as the peer's."""
    prepared = write_world(folder, {"train": (PEER["sessions"], [0] * len(PEER["sessions"]))}, PEER["items"])
    model = with_the_peers_weights()
    model.objective = objective
    optimizer = model.configure_optimizers()
    state, found = model.initial_state(PEER["lanes"]), []
    for batch in make_data(prepared, lanes=PEER["lanes"], steps=10).train_dataloader():
        for k in range(len(batch.items)):
            loss, state = model.step_loss(batch, k, state)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
    return found[: len(PEER["losses"])]


def objective(function: Any, hits: Any = "keep") -> Objective:
    return Objective(function, "tanh", elu_alpha=0.5, candidates="batch", accidental_hits=hits, logq=0.0)


def test_a_hundred_steps_of_the_papers_model_are_those_of_its_authors_code(tmp_path: Path) -> None:
    assert losses(objective(top1_as_the_peer_counts), tmp_path) == pytest.approx(PEER["losses"], abs=2e-6)


def test_without_the_positive_among_its_own_negatives_or_with_hits_masked_they_are_not(tmp_path: Path) -> None:
    for other in (objective(top1), objective(top1_as_the_peer_counts, "mask")):
        found = losses(other, tmp_path)
        assert max(abs(a - b) for a, b in zip(found, PEER["losses"], strict=True)) > 1e-2

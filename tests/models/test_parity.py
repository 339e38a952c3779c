"""Losses that other implementations gave, from the same initial weights.

- pyGRU4REC (yhs968/pyGRU4REC at 992b54b), the paper's GRU4REC in PyTorch: a small data set (sessions of 30 items) and
  the losses of its first 100 mini-batches (H = 8, B = 4, one-hot input, tanh, TOP1, dense torch.optim.Adagrad with eps
  1e-10, no dropout).
- RecBole's NARM (RUCAIBox/RecBole at 7b02be5), sessions of 1 to 5 items, and pmixer's SASRec (pmixer/SASRec.pytorch at
  fde8a9c, norm_first), sessions of 5, as it does not mask padding: the losses of 40 updates (H = 6, B = 4, softmax over
  12 items, torch.optim.Adam, no dropout). Their GRU, attention projections and scores have no bias; the output
  projection that pmixer's has beyond the paper's is the identity.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arnn_lightning.batch import StepInput, no_contexts
from arnn_lightning.losses import TOP1, RankingLoss
from arnn_lightning.losses.base import Negatives
from arnn_lightning.models import SessionRecommender
from helpers import make_data, make_model, train_losses, write_dataset

FIXTURES = Path(__file__).parent / "fixtures"
PEER: dict[str, Any] = json.loads((FIXTURES / "pygru4rec.json").read_text())


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


def make_window_model(name: str, peer: dict[str, Any]) -> SessionRecommender:
    """With the peer's initial weights; biases that it does not have are 0 and not trained."""
    sizes = [f"model.hidden_size={peer['hidden']}", f"model.last_n_events={peer['events']}"]
    off = ["dropout_hidden", "dropout_embedding"] if name == "narm" else ["dropout"]
    heads = [f"model.heads={peer['heads']}"] if name == "sasrec" else []
    overrides = [*sizes, *heads, *(f"model.{dropout}=0" for dropout in off)]
    model: SessionRecommender = make_model(name, {"n_items": peer["items"]}, *overrides)
    encoder: Any = model.encoder
    values, weights = peer["weights"], {model.scorer.items.weight: peer["weights"]["items"]}
    if name == "narm":
        weights |= {encoder.to_gates.weight: values["input_gates"], encoder.cell.weight: values["hidden_gates"]}
        # Its a_1 is applied to all hidden states, its a_2 to the last, and the local encoder's half comes first.
        local, last = torch.tensor(values["b"]).view(peer["hidden"], -1).chunk(2, 1)
        weights |= {encoder.attend_all.weight: values["a_1"], encoder.attend_last.weight: values["a_2"]}
        weights |= {encoder.attention.weight: values["v"], encoder.to_query.weight: torch.cat([last, local], 1)}
        frozen = [encoder.to_gates.bias, encoder.cell.bias]
    else:
        weights[encoder.position], frozen = values["position"], []
        for block, layers in zip(encoder.blocks, values["blocks"], strict=True):
            weights |= {getattr(block, part).weight: layers[part] for part in ("query", "key", "value")}
            weights |= {getattr(block, part).weight: layers[part] for part in ("inner", "outer")}
            weights |= {getattr(block, part).bias: layers[f"{part}_bias"] for part in ("inner", "outer")}
    with torch.no_grad():
        for weight, value in weights.items():
            weight.copy_(torch.as_tensor(value).view_as(weight))
    for bias in (*frozen, model.scorer.bias.weight):
        bias.requires_grad_(False)
    return model.train()


@pytest.mark.parametrize(("name", "file"), [("narm", "recbole_narm.json"), ("sasrec", "pmixer_sasrec.json")])
def test_forty_updates_equal_those_of_another_implementation(name: str, file: str) -> None:
    peer = json.loads((FIXTURES / file).read_text())
    model = make_window_model(name, peer)
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], peer["lr"])
    losses = []
    for windows, targets in zip(peer["windows"], peer["targets"], strict=True):
        state = torch.zeros(len(windows), peer["events"], dtype=torch.int64)  # before the last event
        for row, items in zip(state, windows, strict=True):
            row[len(row) - len(items) + 1 :] = torch.tensor(items[:-1]) + 1
        last = torch.tensor([items[-1] for items in windows])
        query, _ = model.encode(StepInput(last, no_contexts(len(last)), None), (state,))
        loss = F.cross_entropy(model.score(query), torch.tensor(targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(peer["losses"], rel=1e-4)
    assert losses[-1] < losses[0]

"""Losses against references written from their formulas."""

import math

import pytest
import torch
from torch import Tensor

from arnn_lightning.errors import UserError
from arnn_lightning.nn.losses import Objective, cross_entropy, mean_over_lanes, top1


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(6, 9, dtype=torch.float64, generator=generator).requires_grad_()
    positive = torch.randint(0, 9, (6,), generator=generator)
    negative = torch.rand(6, 9, generator=generator) < 0.6
    negative[torch.arange(6), positive] = False
    return score, positive, negative


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_TOP1_is_the_mean_over_the_negatives_alone() -> None:
    score, positive, negative = example()
    loss = top1(score, positive, negative)
    for lane in range(6):
        r = score[lane].tolist()
        own = r[int(positive[lane])]
        terms = [sigmoid(r[j] - own) + sigmoid(r[j] ** 2) for j in range(9) if negative[lane, j]]
        assert loss[lane].item() == pytest.approx(sum(terms) / len(terms), abs=1e-12)


def test_TOP1_regulariser_has_no_gradient_for_the_positive() -> None:
    score, positive, negative = example()
    regulariser = top1(score, positive, negative) - (
        (torch.sigmoid(score - score.gather(1, positive[:, None])) * negative).sum(1) / negative.sum(1)
    )
    (gradient,) = torch.autograd.grad(regulariser.sum(), score)
    assert gradient.gather(1, positive[:, None]).abs().max() < 1e-15


def test_E9_cross_entropy_is_a_softmax_once_over_positive_and_negatives() -> None:
    score, positive, negative = example()
    loss = cross_entropy(score, positive, negative)
    for lane in range(6):
        r = score[lane].tolist()
        own = int(positive[lane])
        total = sum(math.exp(r[j]) for j in range(9) if negative[lane, j] or j == own)
        assert loss[lane].item() == pytest.approx(-math.log(math.exp(r[own]) / total), abs=1e-12)


@pytest.mark.parametrize("function", [top1, cross_entropy])
@pytest.mark.parametrize("activation", ["softmax", "tanh", "linear"])
def test_E20_every_loss_takes_every_activation_and_its_gradient_is_right(function, activation: str) -> None:
    objective = Objective(function, activation, "batch", "mask")
    score, positive, negative = example()
    assert torch.autograd.gradcheck(lambda s: objective(s, positive, negative), (score,))


def test_softmax_is_taken_over_the_candidates_only() -> None:
    seen = []

    def spy(score: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        seen.append(score)
        return score.sum(1)

    score, positive, negative = example()
    Objective(spy, "softmax", "batch", "mask")(score, positive, negative)
    candidates = negative.scatter(1, positive[:, None], True)
    assert torch.allclose(seen[0].sum(1), torch.ones(6, dtype=torch.float64))
    assert not seen[0][~candidates].any()


@pytest.mark.parametrize("function", [top1, cross_entropy])
def test_a_lane_without_negatives_has_loss_and_gradient_0(function) -> None:
    score = torch.randn(1, 3, requires_grad=True)
    loss = function(score, torch.tensor([1]), torch.zeros(1, 3, dtype=torch.bool))
    loss.sum().backward()
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert not score.grad.any()


def test_E25_the_divisor_is_the_number_of_lanes_dead_ones_included() -> None:
    loss = torch.tensor([1.0, 2.0, float("nan"), 50.0])
    assert mean_over_lanes(loss, torch.tensor([True, True, False, False])).item() == 0.75


@pytest.mark.parametrize("setting", ["activation", "candidates", "accidental_hits"])
def test_an_unknown_setting_names_the_known_ones(setting: str) -> None:
    settings = {"activation": "linear", "candidates": "batch", "accidental_hits": "mask"} | {setting: "magic"}
    with pytest.raises(UserError, match=f"{setting}=magic: choose one of"):
        Objective(top1, **settings)

"""Losses against references written from their formulas."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from arnn_lightning.losses.losses import (
    Candidates,
    Objective,
    bpr,
    bpr_max,
    cross_entropy,
    mean_over_lanes,
    softmax,
    softmax_top1,
    top1,
    top1_max,
)
from torch import Tensor

from arnn_lightning.config import instantiate
from arnn_lightning.errors import UserError

BPREG = 0.7
LOSSES = [top1, bpr, top1_max, partial(bpr_max, bpreg=BPREG), cross_entropy]
ACTIVATIONS = ["softmax", "tanh", "linear", "elu"]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def named(loss: Callable[..., Tensor]) -> str:
    return loss.func.__name__ if isinstance(loss, partial) else loss.__name__


def objective(function: Callable[..., Tensor], activation: str = "linear", **settings: object) -> Objective:
    defaults = {"elu_alpha": 0.5, "candidates": "batch", "accidental_hits": "mask", "logq": 0.0}
    return Objective(function, activation, **(defaults | settings))


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, positives, and negatives of a random number, none for the last lane."""
    generator = torch.Generator().manual_seed(seed)
    score = (2 * torch.randn(6, 9, dtype=torch.float64, generator=generator)).requires_grad_()
    positive = torch.randint(0, 9, (6,), generator=generator)
    negative = torch.rand(6, 9, generator=generator) < torch.rand(6, 1, generator=generator)
    negative[torch.arange(6), positive] = False
    negative[-1] = False
    return score, positive, negative


def drawn(positive: Tensor, negative: Tensor) -> Tensor:
    """How often each column was drawn, for one lane (1,) with negatives (1, C)."""
    return negative[0].double().index_add(0, positive, torch.ones(1, dtype=torch.float64))


def lane_by_lane(loss: Callable[..., Tensor], score: Tensor, positive: Tensor, negative: Tensor, *more) -> Tensor:
    """Of lanes whose negatives have nothing to do with each other's; ``loss`` takes what an Objective does."""
    lanes = zip(score.split(1), positive.split(1), negative.split(1), strict=True)
    return torch.cat([loss(s, p, drawn(p, n).to(s.dtype), *more) for s, p, n in lanes])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def shares(negatives: list[float]) -> list[float]:
    total = sum(math.exp(one) for one in negatives)
    return [math.exp(one) / total for one in negatives]


# r of the positive, r of the negatives -> loss; there is one negative at least.
REFERENCES: dict[str, Callable[[float, list[float]], float]] = {
    "top1": lambda own, others: sum(sigmoid(r - own) + sigmoid(r**2) for r in others) / len(others),
    "bpr": lambda own, others: sum(-math.log(sigmoid(own - r)) for r in others) / len(others),
    "top1_max": lambda own, others: sum(
        s * (sigmoid(r - own) + sigmoid(r**2)) for s, r in zip(shares(others), others, strict=True)
    ),
    "bpr_max": lambda own, others: (
        -math.log(sum(s * sigmoid(own - r) for s, r in zip(shares(others), others, strict=True)) + 1e-24)
        + BPREG * sum(s * r**2 for s, r in zip(shares(others), others, strict=True))
    ),
    "cross_entropy": lambda own, others: -math.log(math.exp(own) / (math.exp(own) + sum(map(math.exp, others)))),
}


@pytest.mark.parametrize("loss", LOSSES, ids=named)
@pytest.mark.parametrize("seed", range(3))
def test_E9_E10_every_loss_and_its_gradient_are_those_of_its_formula(loss, seed: int) -> None:
    score, positive, negative = example(seed)
    value = lane_by_lane(objective(loss), score, positive, negative)
    (gradient,) = torch.autograd.grad(value.sum(), score)
    for lane in range(len(score)):

        def reference(r: list[float], lane: int = lane) -> float:
            others = [r[j] for j in range(9) if negative[lane, j]]
            return REFERENCES[named(loss)](r[int(positive[lane])], others) if others else 0.0

        r, small = score[lane].tolist(), 1e-5
        assert value[lane].item() == pytest.approx(reference(r), abs=1e-10)
        for j in range(9):
            up, down = ([x + sign * small * (j == k) for k, x in enumerate(r)] for sign in (1, -1))
            slope = (reference(up) - reference(down)) / (2 * small)
            assert gradient[lane, j].item() == pytest.approx(slope, abs=1e-7)


def test_TOP1_regulariser_has_no_gradient_for_the_positive() -> None:
    score, positive, negative = example()
    regulariser = lane_by_lane(objective(top1), score, positive, negative) - (
        (torch.sigmoid(score - score.gather(1, positive[:, None])) * negative).sum(1) / negative.sum(1).clamp(min=1)
    )
    (gradient,) = torch.autograd.grad(regulariser.sum(), score)
    assert gradient.gather(1, positive[:, None]).abs().max() < 1e-15


@pytest.mark.parametrize("loss", LOSSES, ids=named)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_E20_every_loss_takes_every_activation_and_its_gradient_is_right(loss, activation: str, device: str) -> None:
    made = objective(loss, activation)
    score, positive, negative = (one.detach().to(device) for one in example())
    assert torch.autograd.gradcheck(lambda s: lane_by_lane(made, s, positive, negative), (score.requires_grad_(),))


@pytest.mark.parametrize("loss", LOSSES, ids=named)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_E10_gradients_stay_finite_where_every_negative_is_far_above_or_below(loss, activation: str) -> None:
    for far in (1e4, -1e4):
        score = torch.tensor([[0.0, far, far, far + 3]], requires_grad=True)
        value = objective(loss, activation)(score, torch.tensor([0]), torch.ones(4))
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert torch.isfinite(score.grad).all()


def test_elu_is_linear_above_0_and_bends_to_minus_its_alpha() -> None:
    seen = []

    def spy(score: Tensor, candidates: Candidates) -> Tensor:
        seen.append(score)
        return score.sum(1)

    objective(spy, "elu", elu_alpha=0.25)(torch.tensor([[2.0, -1.0, -50.0]]), torch.tensor([0]), torch.ones(3))
    assert seen[0][0].tolist() == pytest.approx([2, 0.25 * (math.exp(-1) - 1), -0.25])


def test_softmax_is_taken_over_the_candidates_only() -> None:
    seen = []

    def spy(score: Tensor, candidates: Candidates) -> Tensor:
        seen.append(score)
        return score.sum(1)

    score, positive, negative = example()
    lane_by_lane(objective(spy, "softmax"), score, positive, negative)
    candidates, share = negative.scatter(1, positive[:, None], True), torch.cat(seen)
    assert torch.allclose(share.sum(1), torch.ones(6, dtype=torch.float64))
    assert not share[~candidates].any()


# Scores of the positive and of every negative, one after the other, however often it is there.
ACTIVATED: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda raw: torch.softmax(raw, 0),
    "tanh": torch.tanh,
    "linear": lambda raw: raw,
    "elu": lambda raw: torch.where(raw > 0, raw, 0.5 * (raw.exp() - 1)),
}
SINGLY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "top1": lambda own, others: (torch.sigmoid(others - own) + torch.sigmoid(others**2)).mean(),
    "bpr": lambda own, others: -torch.sigmoid(own - others).log().mean(),
    "top1_max": lambda own, others: (
        torch.softmax(others, 0) * (torch.sigmoid(others - own) + torch.sigmoid(others**2))
    ).sum(),
    "bpr_max": lambda own, others: (
        -(torch.softmax(others, 0) * torch.sigmoid(own - others)).sum().log()
        + BPREG * (torch.softmax(others, 0) * others**2).sum()
    ),
    "cross_entropy": lambda own, others: torch.cat([own[None], others]).logsumexp(0) - own,
}


@pytest.mark.parametrize("loss", LOSSES, ids=named)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hits", ["keep", "mask"])
def test_lanes_that_share_candidates_have_the_loss_and_gradient_of_each_negative_taken_singly(
    loss, activation: str, hits: str
) -> None:
    torch.manual_seed(1)
    raw = (2 * torch.randn(5, 7, dtype=torch.float64)).requires_grad_()
    positive, count = torch.tensor([2, 0, 2, 6, 3]), torch.tensor([1, 4, 3, 1, 0, 2, 2])
    weight = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)  # of the lanes; one is dead
    expected = []
    for lane, own in enumerate(positive.tolist()):
        times = count.clone()
        times[own] = 0 if hits == "mask" else count[own] - 1
        columns = torch.tensor([own, *torch.arange(7).repeat_interleave(times).tolist()])
        score = ACTIVATED[activation](raw[lane, columns])
        expected.append(SINGLY[named(loss)](score[0], score[1:]))
    found = objective(loss, activation, accidental_hits=hits)(raw, positive, count)
    assert torch.allclose(found, torch.stack(expected), rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(one @ weight, raw)[0] for one in (found, torch.stack(expected))]
    assert torch.allclose(*gradients, rtol=0, atol=1e-12)
    assert not gradients[0][3].any()


@pytest.mark.parametrize("hits", ["keep", "mask"])
def test_TOP1_of_softmax_in_one_piece_is_softmax_then_TOP1(hits: str) -> None:
    torch.manual_seed(2)
    raw = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    made = objective(top1, "softmax", accidental_hits=hits)
    candidates = made.candidates_of(torch.tensor([5, 1, 5, 0]), torch.tensor([1.0, 1, 0, 3, 2, 4]).double())
    assert torch.autograd.gradcheck(lambda s: softmax_top1(s, candidates), (raw,))
    pieces = top1(softmax(raw, candidates), candidates), softmax_top1(raw, candidates)
    assert torch.allclose(*pieces, rtol=0, atol=1e-14)
    assert torch.allclose(*(torch.autograd.grad(one.sum(), raw)[0] for one in pieces), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_keeps_sigmoids_fast_changes_none(dtype: torch.dtype) -> None:
    own, small = torch.zeros(1, 1, dtype=dtype), torch.tensor([[0, 1e-30, 1e-12, 1e-9, 1e-8, 1e-4]], dtype=dtype)
    value = top1(torch.cat([own, small], 1), Candidates(torch.tensor([0]), torch.ones(7, dtype=dtype), None))
    assert value.item() == (torch.sigmoid(small) + torch.sigmoid(small * small)).mean().item()


@pytest.mark.parametrize("loss", LOSSES, ids=named)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_lane_without_negatives_has_loss_and_gradient_0(loss, activation: str) -> None:
    score = torch.randn(2, 3, requires_grad=True)
    for hits in ("mask", "keep"):
        count = torch.tensor([0.0, 2.0 if hits == "mask" else 1.0, 0.0])
        value = objective(loss, activation, accidental_hits=hits)(score, torch.tensor([1, 1]), count)
        value.sum().backward()
        assert value.tolist() == pytest.approx([0, 0], abs=1e-7)
        assert not score.grad.any()


@pytest.mark.parametrize("logq", [0.4, 1.0])
def test_logq_takes_the_log_of_how_often_a_column_is_drawn_from_its_score(logq: float) -> None:
    score, positive, negative = example()
    log_q = torch.log(torch.rand(9, dtype=torch.float64))
    loss = lane_by_lane(objective(cross_entropy, logq=logq), score, positive, negative, log_q)
    for lane in range(len(score)):
        r = [x - logq * q for x, q in zip(score[lane].tolist(), log_q.tolist(), strict=True)]
        others = [r[j] for j in range(9) if negative[lane, j]]
        expected = REFERENCES["cross_entropy"](r[int(positive[lane])], others)
        assert loss[lane].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("logq", "hits", "exact"), [(1, "keep", True), (0, "keep", False), (1, "mask", False)])
def test_with_logq_the_true_probabilities_are_where_the_expected_gradient_is_0(
    logq: float, hits: str, exact: bool
) -> None:
    """Four items, two drawn negatives: the expectation over all positives and draws, without any sampling error."""
    p = torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=torch.float64)  # of being the next item
    q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)  # of being drawn
    score = p.log().requires_grad_()
    made = objective(cross_entropy, accidental_hits=hits, logq=logq)
    expected = score.new_zeros(())
    for columns in itertools.product(range(4), repeat=3):
        negative = torch.tensor(
            [[place > 0 and (hits == "keep" or columns[place] != columns[0]) for place in range(3)]]
        )
        chance = p[columns[0]] * q[columns[1]] * q[columns[2]]
        index = torch.tensor(columns)
        loss = lane_by_lane(made, score[None, index], torch.tensor([0]), negative, q[index].log())
        expected = expected + chance * loss[0]
    (gradient,) = torch.autograd.grad(expected, score)
    assert (gradient.abs().max() < 1e-15) == exact


@pytest.mark.parametrize("loss", LOSSES, ids=named)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hits", ["keep", "mask"])
def test_an_item_that_is_a_negative_n_times_counts_as_n_columns_do(loss, activation: str, hits: str) -> None:
    torch.manual_seed(0)
    score = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    columns = torch.tensor([2, 0, 2, 3, 2, 1])  # the lanes' targets, then extra negatives
    other = ~torch.eye(3, 6, dtype=torch.bool)
    if hits == "mask":
        other &= columns[:3, None] != columns
    made = objective(loss, activation, accidental_hits=hits)
    spread = lane_by_lane(made, score[:, columns], torch.arange(3), other)
    once = made(score, columns[:3], torch.bincount(columns))
    assert torch.allclose(spread, once, atol=1e-12)
    gradients = [torch.autograd.grad(value.sum(), score)[0] for value in (spread, once)]
    assert torch.allclose(*gradients, atol=1e-12)


def test_a_loss_from_a_config_is_called_without_asking_again_whether_it_is_allowed() -> None:
    function = {"_target_": "arnn_lightning.losses.losses.bpr_max", "_partial_": True, "bpreg": BPREG}
    made = objective(instantiate(function)).function
    assert type(made) is partial
    assert made.func is bpr_max
    assert made.keywords == {"bpreg": BPREG}


def test_E25_the_divisor_is_the_number_of_lanes_dead_ones_included() -> None:
    loss = torch.tensor([1.0, 2.0, float("nan"), 50.0])
    assert mean_over_lanes(loss, torch.tensor([True, True, False, False])).item() == 0.75
    assert mean_over_lanes(loss[:2], None).item() == 1.5


@pytest.mark.parametrize("setting", ["activation", "candidates", "accidental_hits"])
def test_an_unknown_setting_names_the_known_ones(setting: str) -> None:
    with pytest.raises(UserError, match=f"{setting}=magic: choose one of"):
        objective(top1, **({"activation": "linear"} | {setting: "magic"}))


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        (cross_entropy, {"logq": 1.5}, r"logq=1\.5: must lie in \[0, 1\]"),
        (cross_entropy, {"logq": 1.0, "candidates": "all"}, r"logq=1\.0: only cross_entropy with candidates=batch"),
        (partial(bpr_max, bpreg=1.0), {"logq": 1.0}, r"logq=1\.0: only cross_entropy with candidates=batch"),
        (top1, {"elu_alpha": 0.0}, r"elu_alpha=0\.0: must be above zero"),
    ],
)
def test_a_setting_out_of_place_is_a_users_error(function, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        objective(function, **settings)
    assert objective(partial(cross_entropy), logq=1.0).logq == 1

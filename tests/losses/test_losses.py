"""Losses against references written from their formulas."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from arnn_lightning.errors import UserError
from arnn_lightning.losses import BPR, TOP1, BPRMax, CrossEntropy, RankingLoss, TOP1Max
from arnn_lightning.losses.base import Negatives, mean_over_batch, softmax

BPREG = 0.7
LOSSES: dict[str, type[RankingLoss]] = {
    "top1": TOP1,
    "bpr": BPR,
    "top1_max": TOP1Max,
    "bpr_max": BPRMax,
    "cross_entropy": CrossEntropy,
}
ACTIVATIONS = ["softmax", "tanh", "linear", "elu"]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def make_loss(loss: str | type[RankingLoss], activation: str = "linear", **settings: object) -> RankingLoss:
    """A loss by name, or by its class."""
    defaults: dict[str, object] = {"elu_alpha": 0.5, "candidates": "batch", "accidental_hits": "mask", "logq": 0.0}
    defaults |= {"bpreg": BPREG} if loss == "bpr_max" else {}
    kind = LOSSES[loss] if isinstance(loss, str) else loss
    return kind(**({"activation": activation} | defaults | settings))  # type: ignore[arg-type]


class Scores(RankingLoss):
    """Returns the activated scores of the first slot, and stores the negatives."""

    negatives: Negatives

    def loss(self, score_BC: Tensor, negatives: Negatives) -> Tensor:
        self.negatives = negatives
        return score_BC[0]


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, positives, and negatives of a random number, none for the last slot."""
    generator = torch.Generator().manual_seed(seed)
    score = (2 * torch.randn(6, 9, dtype=torch.float64, generator=generator)).requires_grad_()
    positive = torch.randint(0, 9, (6,), generator=generator)
    negative = torch.rand(6, 9, generator=generator) < torch.rand(6, 1, generator=generator)
    negative[torch.arange(6), positive] = False
    negative[-1] = False
    return score, positive, negative


def counts(positive: Tensor, negative: Tensor) -> Tensor:
    """How often each column was sampled, for one slot (1,) with negatives (1, C)."""
    return negative[0].double().index_add(0, positive, torch.ones(1, dtype=torch.float64))


def slot_by_slot(loss: Callable[..., Tensor], score: Tensor, positive: Tensor, negative: Tensor, *more) -> Tensor:
    """The losses of slots whose negatives have nothing to do with each other's."""
    slots = zip(score.split(1), positive.split(1), negative.split(1), strict=True)
    return torch.cat([loss(s, p, counts(p, n).to(s.dtype), *more) for s, p, n in slots])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax_of(negatives: list[float]) -> list[float]:
    total = sum(math.exp(r) for r in negatives)
    return [math.exp(r) / total for r in negatives]


# r of the positive, r of the negatives -> loss; there is one negative at least.
REFERENCES: dict[str, Callable[[float, list[float]], float]] = {
    "top1": lambda positive, others: sum(sigmoid(r - positive) + sigmoid(r**2) for r in others) / len(others),
    "bpr": lambda positive, others: sum(-math.log(sigmoid(positive - r)) for r in others) / len(others),
    "top1_max": lambda positive, others: sum(
        s * (sigmoid(r - positive) + sigmoid(r**2)) for s, r in zip(softmax_of(others), others, strict=True)
    ),
    "bpr_max": lambda positive, others: (
        -math.log(sum(s * sigmoid(positive - r) for s, r in zip(softmax_of(others), others, strict=True)) + 1e-24)
        + BPREG * sum(s * r**2 for s, r in zip(softmax_of(others), others, strict=True))
    ),
    "cross_entropy": lambda positive, others: (
        -math.log(math.exp(positive) / (math.exp(positive) + sum(map(math.exp, others))))
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_E9_E10_losses_and_gradients_equal_their_formulas(loss: str, seed: int) -> None:
    score, positive, negative = example(seed)
    value = slot_by_slot(make_loss(loss), score, positive, negative)
    (gradient,) = torch.autograd.grad(value.sum(), score)
    for slot in range(len(score)):

        def reference(r: list[float], slot: int = slot) -> float:
            others = [r[j] for j in range(9) if negative[slot, j]]
            return REFERENCES[loss](r[int(positive[slot])], others) if others else 0.0

        r, small = score[slot].tolist(), 1e-5
        assert value[slot].item() == pytest.approx(reference(r), abs=1e-10)
        for j in range(9):
            up, down = ([x + sign * small * (j == k) for k, x in enumerate(r)] for sign in (1, -1))
            derivative = (reference(up) - reference(down)) / (2 * small)
            assert gradient[slot, j].item() == pytest.approx(derivative, abs=1e-7)


def test_TOP1_regularizer_has_no_gradient_for_the_positive() -> None:
    score, positive, negative = example()
    regularizer = slot_by_slot(make_loss("top1"), score, positive, negative) - (
        (torch.sigmoid(score - score.gather(1, positive[:, None])) * negative).sum(1) / negative.sum(1).clamp(min=1)
    )
    (gradient,) = torch.autograd.grad(regularizer.sum(), score)
    assert gradient.gather(1, positive[:, None]).abs().max() < 1e-15


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_E20_gradients_of_every_loss_with_every_activation(loss: str, activation: str, device: str) -> None:
    loss_of = make_loss(loss, activation)
    score, positive, negative = (tensor.detach().to(device) for tensor in example())
    assert torch.autograd.gradcheck(lambda s: slot_by_slot(loss_of, s, positive, negative), (score.requires_grad_(),))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_E10_gradients_stay_finite_for_distant_negatives(loss: str, activation: str) -> None:
    for far in (1e4, -1e4):
        score = torch.tensor([[0.0, far, far, far + 3]], requires_grad=True)
        value = make_loss(loss, activation)(score, torch.tensor([0]), torch.ones(4))
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert torch.isfinite(score.grad).all()


def test_elu_is_linear_above_0_and_bounded_below() -> None:
    loss = make_loss(Scores, "elu", elu_alpha=0.25)
    score = loss(torch.tensor([[2.0, -1.0, -50.0]]), torch.tensor([0]), torch.ones(3))
    assert score.tolist() == pytest.approx([2, 0.25 * (math.exp(-1) - 1), -0.25])


def test_softmax_is_over_the_candidates_only() -> None:
    score, positive, negative = example()
    prob = slot_by_slot(make_loss(Scores, "softmax"), score, positive, negative).view_as(score)
    candidates = negative.scatter(1, positive[:, None], True)
    assert torch.allclose(prob.sum(1), torch.ones(6, dtype=torch.float64))
    assert not prob[~candidates].any()


@pytest.mark.parametrize("hits", ["mask", "keep"])
def test_accidental_hits_are_masked_or_kept(hits: str) -> None:
    loss = make_loss(Scores, accidental_hits=hits)
    count = torch.tensor([3.0, 1.0, 3.0])  # targets 2, 0, 2 and extra negatives 2, 0, 0, 1: sampled twice counts twice
    loss(torch.zeros(3, 3), torch.tensor([2, 0, 2]), count)
    itself = 0 if hits == "mask" else 2  # the positive is not among its own negatives
    expected = [[3, 1, itself], [itself, 1, 3], [3, 1, itself]]
    assert loss.negatives.negative_counts().tolist() == expected
    assert loss.negatives.n_negatives().tolist() == [sum(row) for row in expected]


def test_columns_without_counts_count_once_each() -> None:
    raw, positive = torch.randn(3, 4, dtype=torch.float64), torch.tensor([2, 0, 2])
    for loss in LOSSES:
        assert torch.equal(make_loss(loss)(raw, positive, None), make_loss(loss)(raw, positive, torch.ones(4)))


# Scores of the positive and of every negative, one after the other, each as often as it was sampled.
ACTIVATED: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda raw: torch.softmax(raw, 0),
    "tanh": torch.tanh,
    "linear": lambda raw: raw,
    "elu": lambda raw: torch.where(raw > 0, raw, 0.5 * (raw.exp() - 1)),
}
SINGLY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "top1": lambda positive, others: (torch.sigmoid(others - positive) + torch.sigmoid(others**2)).mean(),
    "bpr": lambda positive, others: -torch.sigmoid(positive - others).log().mean(),
    "top1_max": lambda positive, others: (
        torch.softmax(others, 0) * (torch.sigmoid(others - positive) + torch.sigmoid(others**2))
    ).sum(),
    "bpr_max": lambda positive, others: (
        -(torch.softmax(others, 0) * torch.sigmoid(positive - others)).sum().log()
        + BPREG * (torch.softmax(others, 0) * others**2).sum()
    ),
    "cross_entropy": lambda positive, others: torch.cat([positive[None], others]).logsumexp(0) - positive,
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hits", ["keep", "mask"])
def test_shared_candidates_equal_negatives_one_by_one(loss: str, activation: str, hits: str) -> None:
    torch.manual_seed(1)
    raw = (2 * torch.randn(5, 7, dtype=torch.float64)).requires_grad_()
    positive, count = torch.tensor([2, 0, 2, 6, 3]), torch.tensor([1, 4, 3, 1, 0, 2, 2])
    weight = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)  # of the slots; one is empty
    expected = []
    for slot, column in enumerate(positive.tolist()):
        times = count.clone()
        times[column] = 0 if hits == "mask" else max(int(count[column]) - 1, 0)
        columns = torch.tensor([column, *torch.arange(7).repeat_interleave(times).tolist()])
        score = ACTIVATED[activation](raw[slot, columns])
        expected.append(SINGLY[loss](score[0], score[1:]))
    value = make_loss(loss, activation, accidental_hits=hits)(raw, positive, count)
    assert torch.allclose(value, torch.stack(expected), rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(loss_B @ weight, raw)[0] for loss_B in (value, torch.stack(expected))]
    assert torch.allclose(*gradients, rtol=0, atol=1e-12)
    assert not gradients[0][3].any()


@pytest.mark.parametrize("hits", ["keep", "mask"])
def test_fused_softmax_TOP1_is_softmax_then_TOP1(hits: str) -> None:
    torch.manual_seed(2)
    raw = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    positive, count = torch.tensor([5, 1, 5, 0]), torch.tensor([1.0, 1, 0, 3, 2, 4]).double()
    fused = make_loss("top1", "softmax", accidental_hits=hits)
    assert torch.autograd.gradcheck(lambda scores: fused(scores, positive, count), (raw,))
    negatives = Negatives(positive, count, None if hits == "mask" else count[positive] - 1)
    values = make_loss("top1").loss(softmax(raw, negatives), negatives), fused(raw, positive, count)
    assert torch.allclose(*values, rtol=0, atol=1e-14)
    assert torch.allclose(*(torch.autograd.grad(value.sum(), raw)[0] for value in values), rtol=0, atol=1e-14)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hits", ["keep", "mask"])
def test_TOP1_for_compilers_equals_the_handwritten_gradient(
    activation: str, hits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    raw = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    positive, count = torch.tensor([5, 1, 5, 0]), torch.tensor([1.0, 1, 0, 3, 2, 4]).double()
    loss = make_loss("top1", activation, accidental_hits=hits)
    eager = loss(raw, positive, count)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    compiled = loss(raw, positive, count)
    assert torch.allclose(eager, compiled, rtol=0, atol=1e-14)
    gradients = [torch.autograd.grad(value.sum(), raw)[0] for value in (eager, compiled)]
    assert torch.allclose(*gradients, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_offset_of_sigmoids_changes_no_value(dtype: torch.dtype) -> None:
    zero, small = torch.zeros(1, 1, dtype=dtype), torch.tensor([[0, 1e-30, 1e-12, 1e-9, 1e-8, 1e-4]], dtype=dtype)
    value = make_loss("top1")(torch.cat([zero, small], 1), torch.tensor([0]), torch.ones(7, dtype=dtype))
    assert value.item() == (torch.sigmoid(small) + torch.sigmoid(small * small)).mean().item()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_slot_without_negatives_has_loss_and_gradient_0(loss: str, activation: str) -> None:
    score = torch.randn(2, 3, requires_grad=True)
    for hits in ("mask", "keep"):
        count = torch.tensor([0.0, 2.0 if hits == "mask" else 1.0, 0.0])
        value = make_loss(loss, activation, accidental_hits=hits)(score, torch.tensor([1, 1]), count)
        value.sum().backward()
        assert value.tolist() == pytest.approx([0, 0], abs=1e-7)
        assert not score.grad.any()


@pytest.mark.parametrize("logq", [0.4, 1.0])
def test_logq_subtracts_the_log_probability_of_each_column(logq: float) -> None:
    score, positive, negative = example()
    log_q = torch.log(torch.rand(9, dtype=torch.float64))
    loss = slot_by_slot(make_loss("cross_entropy", logq=logq), score, positive, negative, log_q)
    for slot in range(len(score)):
        r = [x - logq * q for x, q in zip(score[slot].tolist(), log_q.tolist(), strict=True)]
        others = [r[j] for j in range(9) if negative[slot, j]]
        expected = REFERENCES["cross_entropy"](r[int(positive[slot])], others)
        assert loss[slot].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("logq", "hits", "exact"), [(1, "keep", True), (0, "keep", False), (1, "mask", False)])
def test_logq_has_gradient_0_at_the_true_probabilities(logq: float, hits: str, exact: bool) -> None:
    """Four items, two sampled negatives: the expectation over all positives and samples, without any sampling error."""
    p = torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=torch.float64)  # of being the next item
    q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)  # of being sampled
    score = p.log().requires_grad_()
    loss_of = make_loss("cross_entropy", accidental_hits=hits, logq=logq)
    expected = score.new_zeros(())
    for columns in itertools.product(range(4), repeat=3):
        negative = torch.tensor(
            [[index > 0 and (hits == "keep" or columns[index] != columns[0]) for index in range(3)]]
        )
        probability = p[columns[0]] * q[columns[1]] * q[columns[2]]
        index = torch.tensor(columns)
        loss = slot_by_slot(loss_of, score[None, index], torch.tensor([0]), negative, q[index].log())
        expected = expected + probability * loss[0]
    (gradient,) = torch.autograd.grad(expected, score)
    assert (gradient.abs().max() < 1e-15) == exact


def test_E25_the_divisor_is_the_number_of_slots_also_empty_ones() -> None:
    loss = torch.tensor([1.0, 2.0, float("nan"), 50.0])
    assert mean_over_batch(loss, torch.tensor([True, True, False, False])).item() == 0.75
    assert mean_over_batch(loss[:2], None).item() == 1.5


@pytest.mark.parametrize("setting", ["activation", "candidates", "accidental_hits"])
def test_an_unknown_setting_names_the_known_ones(setting: str) -> None:
    with pytest.raises(UserError, match=f"model.loss.{setting}=magic: choose one of"):
        make_loss("top1", **{setting: "magic"})


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        ("cross_entropy", {"logq": 1.5}, r"logq=1\.5: must be in \[0, 1\]"),
        ("cross_entropy", {"logq": 1.0, "candidates": "all"}, r"logq=1\.0: only cross_entropy with candidates=batch"),
        ("bpr_max", {"logq": 1.0}, r"logq=1\.0: only cross_entropy with candidates=batch"),
        ("top1", {"elu_alpha": 0.0}, r"elu_alpha=0\.0: must be greater than 0"),
    ],
)
def test_a_setting_out_of_range_is_a_users_error(loss: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_loss(loss, **settings)
    assert make_loss("cross_entropy", logq=1.0).logq == 1


def test_a_loss_without_a_formula_names_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match=r"RankingLoss must implement loss\(\)"):
        make_loss(RankingLoss)(torch.zeros(1, 2), torch.tensor([0]), None)

"""Ranking losses over a positive and its negatives, one value per lane, chosen by config.

Every function takes scores (B, C) of distinct items and the lanes' Candidates among them; it returns (B,). An item that
was drawn twice has one column that counts twice. The positive itself is not among its own negatives; where another lane
has the same target, it is as often as there are such lanes. A lane without negatives has loss 0.

r_i is the positive's score, r_j a negative's; s_j the softmax over the negatives alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from arnn_lightning.errors import UserError

_TINY = 1e-24  # keeps BPR-max's logarithm finite
_NOTHING = 1e-16  # beside 1/2, in float64 too; an exponential of less than 1e-18 takes a processor twice as long


class Candidates(NamedTuple):
    """Each lane's positive, and how often each column is its negative: alike for all lanes, save for their positives.

    So nearly all weights are a row, not a (B, C) array to be made and gone through.

    Attributes:
        positive: (B,) the column of each lane's positive.
        drawn: (C,) how often each column was drawn, as a positive or as an extra negative; a positive at least once.
        own: (B,) how often the positive's column is its own lane's negative, too; None means never.
    """

    positive: Tensor
    drawn: Tensor
    own: Tensor | None

    def number(self) -> Tensor:
        """How many negatives each lane has (B,)."""
        number_B = self.drawn.sum() - self.drawn.index_select(0, self.positive)
        return number_B if self.own is None else number_B + self.own

    def negatives(self) -> Tensor:
        """How often each column is a negative of each lane (B, C)."""
        count_BC, positive_B1 = self.drawn.repeat(len(self.positive), 1), self.positive[:, None]
        return count_BC.scatter_(1, positive_B1, 0.0 if self.own is None else self.own[:, None])


LossFunction = Callable[[Tensor, Candidates], Tensor]


def top1(score_BC: Tensor, candidates: Candidates) -> Tensor:
    """TOP1 (paper 4.3.1): mean over the negatives j of sigmoid(r_j - r_i) + sigmoid(r_j^2).

    The positive is not among its own negatives, so the regulariser has no gradient with respect to r_i.

    >>> score = torch.tensor([[1.0, 0.0, 0.0]])
    >>> loss = top1(score, Candidates(torch.tensor([0]), torch.ones(3), None))
    >>> torch.allclose(loss, torch.sigmoid(torch.tensor([-1.0])) + 0.5)
    True
    """
    sum_B: Tensor = _Top1.apply(score_BC, *candidates)  # type: ignore[no-untyped-call]
    return sum_B / candidates.number().clamp_(min=1)


def softmax_top1(raw_BC: Tensor, candidates: Candidates) -> Tensor:
    """TOP1 of ``softmax(raw_BC, candidates)``, in one piece: the two gradients together need no weights."""
    sum_B: Tensor = _SoftmaxTop1.apply(raw_BC, *candidates)  # type: ignore[no-untyped-call]
    return sum_B / candidates.number().clamp_(min=1)


class _Top1(torch.autograd.Function):
    """The sum over the negatives, with its gradient written out."""

    @staticmethod
    def forward(ctx: Any, score_BC: Tensor, positive_B: Tensor, drawn_C: Tensor, own_B: Tensor | None) -> Tensor:
        candidates = Candidates(positive_B, drawn_C, own_B)
        sum_B, slope_BC, to_own_B1 = _top1_and_slopes(score_BC, _own(score_BC, candidates), candidates)
        ctx.save_for_backward(slope_BC.mul_(drawn_C).scatter_(1, positive_B[:, None], to_own_B1))
        return sum_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_sum_B: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_BC,) = ctx.saved_tensors
        return gradient_BC * to_sum_B[:, None], None, None, None


class _SoftmaxTop1(_Top1):
    """The same of softmax scores. A column that counts n times is n negatives, each with an n-th of its share."""

    @staticmethod
    def forward(ctx: Any, raw_BC: Tensor, positive_B: Tensor, drawn_C: Tensor, own_B: Tensor | None) -> Tensor:
        candidates = Candidates(positive_B, drawn_C, own_B)
        share_BC = torch.softmax(_weighed(raw_BC, candidates), 1)
        score_BC = share_BC / drawn_C.clamp(min=1)
        own_score_B1 = _own(share_BC if own_B is None else score_BC, candidates)
        sum_B, slope_BC, to_own_B1 = _top1_and_slopes(score_BC, own_score_B1, candidates)
        if own_B is not None:
            to_own_B1 /= own_B[:, None] + 1
        slope_BC.scatter_(1, positive_B[:, None], to_own_B1)
        ctx.save_for_backward(torch._softmax_backward_data(slope_BC, share_BC, 1, share_BC.dtype))
        return sum_B


def _top1_and_slopes(score_BC: Tensor, own_B1: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor, Tensor]:
    """TOP1's sum (B,) and its slopes: for every r_j, once (B, C), 0 for the positive's column; for r_i (B, 1).

    ``own_B1`` are the r_i; the scores' own columns are not looked at. All is written out and in place: autograd would
    keep and go through twice as many (B, C) arrays. d sigmoid(x) = sigmoid(x) (1 - sigmoid(x)).
    """
    positive_B1 = candidates.positive[:, None]
    # A sigmoid of 0 adds nothing to sums over whole rows, and has no slope.
    pair_BC = (score_BC - own_B1).sigmoid_().scatter_(1, positive_B1, 0.0)
    square_BC = torch.addcmul(score_BC.new_full((), _NOTHING), score_BC, score_BC)
    size_BC = square_BC.sigmoid_().scatter_(1, positive_B1, 0.0)
    sum_B = torch.mv(pair_BC, candidates.drawn).addmv_(size_BC, candidates.drawn)
    slope_BC = pair_BC.addcmul_(pair_BC, pair_BC, value=-1)
    to_own_B1 = torch.mv(slope_BC, candidates.drawn).neg_()[:, None]  # what its pairs take, turned round
    slope_BC.addcmul_(size_BC.addcmul_(size_BC, size_BC, value=-1), score_BC, value=2)
    if candidates.own is not None:
        size_B1 = (own_B1 * own_B1).sigmoid_()
        sum_B += candidates.own * (0.5 + size_B1[:, 0])
        to_own_B1 += candidates.own[:, None] * 2 * own_B1 * size_B1 * (1 - size_B1)
    return sum_B, slope_BC, to_own_B1


def bpr(score_BC: Tensor, candidates: Candidates) -> Tensor:
    """BPR (Hidasi et al. 2016, arXiv 1511.06939, 3.3): mean over the negatives j of -log sigmoid(r_i - r_j)."""
    negative_BC = candidates.negatives()
    pair_BC = F.logsigmoid(_own(score_BC, candidates) - score_BC) * negative_BC
    return -pair_BC.sum(1) / negative_BC.sum(1).clamp(min=1)


def top1_max(score_BC: Tensor, candidates: Candidates) -> Tensor:
    """TOP1-max (Hidasi & Karatzoglou 2018, arXiv 1706.03847): sum_j s_j [sigmoid(r_j - r_i) + sigmoid(r_j^2)]."""
    term_BC = torch.sigmoid(score_BC - _own(score_BC, candidates)) + torch.sigmoid(score_BC.square())
    return (_softmax_over_negatives(score_BC, candidates.negatives()) * term_BC).sum(1)


def bpr_max(score_BC: Tensor, candidates: Candidates, bpreg: float) -> Tensor:
    """BPR-max (Hidasi & Karatzoglou 2018, arXiv 1706.03847), regularised on the scores (E10).

    -log(sum_j s_j sigmoid(r_i - r_j) + 1e-24) + bpreg * sum_j s_j r_j^2
    """
    negative_BC = candidates.negatives()
    share_BC = _softmax_over_negatives(score_BC, negative_BC)
    likelihood_B = (share_BC * torch.sigmoid(_own(score_BC, candidates) - score_BC)).sum(1)
    loss_B = bpreg * (share_BC * score_BC.square()).sum(1) - torch.log(likelihood_B + _TINY)
    return torch.where(negative_BC.any(1), loss_B, 0)


def cross_entropy(score_BC: Tensor, candidates: Candidates) -> Tensor:
    """-log softmax of the positive among itself and its negatives; softmax once, on what it is given (E9)."""
    loss_B = F.cross_entropy(_weighed(score_BC, candidates), candidates.positive, reduction="none")
    return loss_B if candidates.own is None else loss_B + candidates.own.log1p()


def softmax(raw_BC: Tensor, candidates: Candidates) -> Tensor:
    """Softmax over a lane's candidates (B, C); a column that counts n times stands for n scores, all the same."""
    times_BC = candidates.negatives().scatter_add_(1, candidates.positive[:, None], torch.ones_like(raw_BC[:, :1]))
    return torch.softmax(_weighed(raw_BC, candidates), 1) / times_BC.clamp_(min=1)


def _own(score_BC: Tensor, candidates: Candidates) -> Tensor:
    """r_i (B, 1)."""
    return score_BC.gather(1, candidates.positive[:, None])


def _weighed(score_BC: Tensor, candidates: Candidates) -> Tensor:
    """Scores whose softmax takes every column as often as it is the lane's positive or its negative (B, C)."""
    log_C = candidates.drawn.log()
    weighed_BC = score_BC + log_C
    if candidates.own is not None:
        return weighed_BC
    once_B = log_C.index_select(0, candidates.positive).neg_()  # the positive alone counts, however often it was drawn
    return weighed_BC.scatter_add_(1, candidates.positive[:, None], once_B[:, None])


def _softmax_over_negatives(score_BC: Tensor, negative_BC: Tensor) -> Tensor:
    """s (B, C), 0 elsewhere; all 0 for a lane without negatives, where a softmax over -inf would be NaN."""
    log_BC = negative_BC.log().clamp_(min=torch.finfo(score_BC.dtype).min)
    return torch.softmax(score_BC + log_BC, 1) * (negative_BC > 0)


Activation = Literal["softmax", "tanh", "linear", "elu"]


@dataclass(frozen=True)
class Objective:
    """A loss, the final activation before it, and the candidate items it looks at.

    Attributes:
        function: the loss.
        activation: softmax (over the candidate items, the paper's), tanh (GRU4Rec's usual one with TOP1), linear or
            elu. It belongs to the loss: ranks are taken on raw scores, which every activation leaves in their order.
        elu_alpha: -elu_alpha is what elu tends to for low scores.
        candidates: ``batch`` = the other lanes' targets and ``n_sample`` extra items; ``all`` = the whole catalogue.
        accidental_hits: ``mask`` leaves out a negative that is the same item as the positive (another lane has the
            same target, or it was drawn); ``keep`` counts it as a negative, as GRU4Rec does.
        logq: in [0, 1], how much of log q_c is taken from the score of each candidate before cross_entropy, q_c the
            probability that a scored column shows its item (Bengio & Senecal 2008; Yi et al. 2019). With 1, sampled
            candidates give what all items would give in the mean; exactly so with accidental hits kept, since a
            correction for how often an item is drawn holds only if it is counted as often.

    Raises:
        UserError: a value that is not known or out of range, or ``logq`` with anything but sampled cross_entropy.
    """

    function: LossFunction
    activation: Activation
    elu_alpha: float
    candidates: Literal["batch", "all"]
    accidental_hits: Literal["mask", "keep"]
    logq: float

    def __post_init__(self) -> None:
        for name, value, known in (
            ("activation", self.activation, ("softmax", "tanh", "linear", "elu")),
            ("candidates", self.candidates, ("batch", "all")),
            ("accidental_hits", self.accidental_hits, ("mask", "keep")),
        ):
            if value not in known:
                raise UserError(f"model.loss.{name}={value}: choose one of {', '.join(known)}")
        if not 0 < self.elu_alpha < float("inf"):
            raise UserError(f"model.loss.elu_alpha={self.elu_alpha}: must be above zero")
        if not 0 <= self.logq <= 1:
            raise UserError(f"model.loss.logq={self.logq}: must lie in [0, 1]")
        function = _bare(self.function)
        if isinstance(self.function, partial) and getattr(function, "__module__", None) == __name__:
            # Hydra's partial asks at every call anew whether its target is allowed, which takes a tenth of a small
            # step; a loss of this file was asked for when it was made.
            object.__setattr__(self, "function", partial(function, *self.function.args, **self.function.keywords))
        if self.logq and (function is not cross_entropy or self.candidates == "all"):
            raise UserError(
                f"model.loss.logq={self.logq}: only cross_entropy with candidates=batch can be corrected; set it to 0"
            )

    def candidates_of(self, positive_B: Tensor, drawn_C: Tensor) -> Candidates:
        """Candidates with accidental hits masked or kept."""
        return Candidates(positive_B, drawn_C, None if self.accidental_hits == "mask" else drawn_C[positive_B] - 1)

    def __call__(self, raw_BC: Tensor, positive_B: Tensor, drawn_C: Tensor, log_q_C: Tensor | None = None) -> Tensor:
        """Raw scores (B, C) -> loss of every lane (B,).

        ``positive_B`` and ``drawn_C`` as in Candidates; log q of every column where ``logq`` is not 0.
        """
        candidates = self.candidates_of(positive_B, drawn_C.to(raw_BC.dtype))
        if self.activation == "tanh":
            score_BC = torch.tanh(raw_BC)
        elif self.activation == "elu":
            score_BC = F.elu(raw_BC, self.elu_alpha)
        elif self.activation == "softmax":
            if _bare(self.function) is top1:
                return softmax_top1(raw_BC, candidates)
            score_BC = softmax(raw_BC, candidates)
        else:
            score_BC = raw_BC
        if self.logq:
            assert log_q_C is not None
            score_BC = score_BC - self.logq * log_q_C
        return self.function(score_BC, candidates)


def _bare(function: LossFunction) -> LossFunction:
    return function.func if isinstance(function, partial) else function


def mean_over_lanes(loss_B: Tensor, alive_B: Tensor | None) -> Tensor:
    """The sum over lanes alive (None: all), divided by the number of lanes B (E25): every event weighs the same, 1 / B.

    Divided by the lanes alive instead, the last steps of an epoch, where few lanes still have a session, would move the
    weights as far as full steps do, on a handful of events; behind a batch normalisation that ruins a trained model.
    """
    return (loss_B if alive_B is None else torch.where(alive_B, loss_B, 0)).mean()

"""Ranking losses over a positive and its negatives, one value per lane, chosen by config.

Every function takes scores (B, C) of distinct items, the column of each lane's positive (B,) and how often each column
is its negative (B, C), numbers or booleans; it returns (B,). An item that was drawn twice has one column that counts
twice. The positive itself is not among its own negatives; where another lane has the same target, it is as often as
there are such lanes. A lane without negatives has loss 0.

r_i is the positive's score, r_j a negative's; s_j the softmax over the negatives alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from arnn_lightning.errors import UserError

LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
_TINY = 1e-24  # keeps BPR-max's logarithm finite


def top1(score_BC: Tensor, positive_B: Tensor, negative_BC: Tensor) -> Tensor:
    """TOP1 (paper 4.3.1): mean over the negatives j of sigmoid(r_j - r_i) + sigmoid(r_j^2).

    The positive is not among its own negatives, so the regulariser has no gradient with respect to r_i.

    >>> score = torch.tensor([[1.0, 0.0, 0.0]])
    >>> loss = top1(score, torch.tensor([0]), torch.tensor([[False, True, True]]))
    >>> torch.allclose(loss, torch.sigmoid(torch.tensor([-1.0])) + 0.5)
    True
    """
    loss_B: Tensor = _Top1.apply(score_BC, positive_B, negative_BC)  # type: ignore[no-untyped-call]
    return loss_B


class _Top1(torch.autograd.Function):
    """TOP1 with its gradient written out, in place: autograd would keep and go through twice as many (B, C) arrays."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, score_BC: Tensor, positive_B: Tensor, negative_BC: Tensor
    ) -> Tensor:
        positive_B1 = positive_B[:, None]
        weight_BC = negative_BC.to(score_BC.dtype)
        count_B1 = weight_BC.sum(1, keepdim=True).clamp_(min=1)
        pair_BC = (score_BC - score_BC.gather(1, positive_B1)).sigmoid_()
        size_BC = (score_BC * score_BC).sigmoid_()
        loss_B1 = (pair_BC + size_BC).mul_(weight_BC).sum(1, keepdim=True).div_(count_B1)
        # d sigmoid(x) = sigmoid(x) (1 - sigmoid(x)); the positive's share is what its pairs take, turned round.
        gradient_BC = pair_BC.addcmul_(pair_BC, pair_BC, value=-1).mul_(weight_BC)
        to_positive_B1 = gradient_BC.sum(1, keepdim=True).neg_()
        gradient_BC.addcmul_(size_BC.addcmul_(size_BC, size_BC, value=-1).mul_(weight_BC), score_BC, value=2)
        ctx.save_for_backward(gradient_BC.scatter_add_(1, positive_B1, to_positive_B1).div_(count_B1))
        return loss_B1[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, to_loss_B: Tensor) -> tuple[Tensor, None, None]:
        (gradient_BC,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient_BC * to_loss_B[:, None], None, None


def bpr(score_BC: Tensor, positive_B: Tensor, negative_BC: Tensor) -> Tensor:
    """BPR (Hidasi et al. 2016, arXiv 1511.06939, 3.3): mean over the negatives j of -log sigmoid(r_i - r_j)."""
    pair_BC = F.logsigmoid(_own(score_BC, positive_B) - score_BC) * negative_BC
    return -pair_BC.sum(1) / negative_BC.sum(1).clamp(min=1)


def top1_max(score_BC: Tensor, positive_B: Tensor, negative_BC: Tensor) -> Tensor:
    """TOP1-max (Hidasi & Karatzoglou 2018, arXiv 1706.03847): sum_j s_j [sigmoid(r_j - r_i) + sigmoid(r_j^2)]."""
    term_BC = torch.sigmoid(score_BC - _own(score_BC, positive_B)) + torch.sigmoid(score_BC.square())
    return (_softmax_over_negatives(score_BC, negative_BC) * term_BC).sum(1)


def bpr_max(score_BC: Tensor, positive_B: Tensor, negative_BC: Tensor, bpreg: float) -> Tensor:
    """BPR-max (Hidasi & Karatzoglou 2018, arXiv 1706.03847), regularised on the scores (E10).

    -log(sum_j s_j sigmoid(r_i - r_j) + 1e-24) + bpreg * sum_j s_j r_j^2
    """
    share_BC = _softmax_over_negatives(score_BC, negative_BC)
    likelihood_B = (share_BC * torch.sigmoid(_own(score_BC, positive_B) - score_BC)).sum(1)
    loss_B = bpreg * (share_BC * score_BC.square()).sum(1) - torch.log(likelihood_B + _TINY)
    return torch.where(negative_BC.any(1), loss_B, 0)


def cross_entropy(score_BC: Tensor, positive_B: Tensor, negative_BC: Tensor) -> Tensor:
    """-log softmax of the positive among itself and its negatives; softmax once, on what it is given (E9)."""
    weight_BC = _candidates(score_BC, positive_B, negative_BC)
    log_own_B = _own(weight_BC, positive_B)[:, 0].log()
    return F.cross_entropy(score_BC + weight_BC.log(), positive_B, reduction="none") + log_own_B


def _own(score_BC: Tensor, positive_B: Tensor) -> Tensor:
    """r_i (B, 1)."""
    return score_BC.gather(1, positive_B[:, None])


def _softmax_over_negatives(score_BC: Tensor, negative_BC: Tensor) -> Tensor:
    """s (B, C), 0 elsewhere; all 0 for a lane without negatives, where a softmax over -inf would be NaN."""
    log_BC = negative_BC.to(score_BC.dtype).log().clamp_(min=torch.finfo(score_BC.dtype).min)
    return torch.softmax(score_BC + log_BC, 1) * (negative_BC > 0)


def _candidates(score_BC: Tensor, positive_B: Tensor, negative_BC: Tensor) -> Tensor:
    """How often each column is the positive or one of its negatives."""
    once_B1 = score_BC.new_ones(len(score_BC), 1)
    return negative_BC.to(score_BC.dtype).scatter_add(1, positive_B[:, None], once_B1)


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
        function = self.function.func if isinstance(self.function, partial) else self.function
        if isinstance(self.function, partial) and getattr(function, "__module__", None) == __name__:
            # Hydra's partial asks at every call anew whether its target is allowed, which takes a tenth of a small
            # step; a loss of this file was asked for when it was made.
            object.__setattr__(self, "function", partial(function, *self.function.args, **self.function.keywords))
        if self.logq and (function is not cross_entropy or self.candidates == "all"):
            raise UserError(
                f"model.loss.logq={self.logq}: only cross_entropy with candidates=batch can be corrected; set it to 0"
            )

    def __call__(
        self, raw_BC: Tensor, positive_B: Tensor, negative_BC: Tensor, log_q_C: Tensor | None = None
    ) -> Tensor:
        """Raw scores (B, C), and log q of every column where ``logq`` is not 0 -> loss of every lane (B,)."""
        if self.activation == "tanh":
            score_BC = torch.tanh(raw_BC)
        elif self.activation == "elu":
            score_BC = F.elu(raw_BC, self.elu_alpha)
        elif self.activation == "softmax":
            weight_BC = _candidates(raw_BC, positive_B, negative_BC)
            score_BC = torch.softmax(raw_BC + weight_BC.log(), 1) / weight_BC.clamp_(min=1)
        else:
            score_BC = raw_BC
        if self.logq:
            assert log_q_C is not None
            score_BC = score_BC - self.logq * log_q_C
        return self.function(score_BC, positive_B, negative_BC)


def mean_over_lanes(loss_B: Tensor, alive_B: Tensor) -> Tensor:
    """The sum over lanes alive, divided by the number of lanes B (E25): every event weighs the same, 1 / B.

    Divided by the lanes alive instead, the last steps of an epoch, where few lanes still have a session, would move the
    weights as far as full steps do, on a handful of events; behind a batch normalisation that ruins a trained model.
    """
    return torch.where(alive_B, loss_B, 0).mean()

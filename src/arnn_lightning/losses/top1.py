"""TOP1 (paper 4.3.1) and TOP1-max. B batch slots, C columns."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arnn_lightning.losses.base import (
    Negatives,
    RankingLoss,
    count_weighted,
    positive_score,
    softmax_over_negatives,
)
from arnn_lightning.nn.tracing import is_tracing

# Added to the argument of a sigmoid: exp() of arguments under 1e-18 takes a CPU twice as long; sigmoid(0) stays 1/2.
_SIGMOID_OFFSET = 1e-16


class TOP1(RankingLoss):
    """Mean over the negatives j of sigmoid(r_j - r_i) + sigmoid(r_j^2) (paper 4.3.1; Hidasi et al. 2016, 3.3).

    The positive is not among its own negatives, unless accidental hits are kept: the regulariser has no gradient with
    respect to r_i.

    >>> loss = TOP1("linear", 0.5, "batch", "mask", 0.0)
    >>> value = loss(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0]), torch.ones(3))
    >>> torch.allclose(value, torch.sigmoid(torch.tensor([-1.0])) + 0.5)
    True
    """

    def loss(self, score_BC: Tensor, negatives: Negatives) -> Tensor:
        if is_tracing():
            return _top1(score_BC, negatives)
        sum_B: Tensor = _Top1.apply(score_BC, *negatives)  # type: ignore[no-untyped-call]
        return sum_B / negatives.n_negatives().clamp_(min=1)

    def _activated_loss(self, logits_BC: Tensor, negatives: Negatives) -> Tensor:
        if self.activation != "softmax" or is_tracing():
            return super()._activated_loss(logits_BC, negatives)
        # Softmax and TOP1 as one function: the two gradients together need no (B, C) weights.
        sum_B: Tensor = _SoftmaxTop1.apply(logits_BC, *negatives)  # type: ignore[no-untyped-call]
        return sum_B / negatives.n_negatives().clamp_(min=1)


class TOP1Max(RankingLoss):
    """sum_j s_j [sigmoid(r_j - r_i) + sigmoid(r_j^2)] (Hidasi & Karatzoglou 2018, arXiv 1706.03847)."""

    def loss(self, score_BC: Tensor, negatives: Negatives) -> Tensor:
        term_BC = torch.sigmoid(score_BC - positive_score(score_BC, negatives)) + torch.sigmoid(score_BC.square())
        return (softmax_over_negatives(score_BC, negatives.negative_counts()) * term_BC).sum(1)


def _top1(score_BC: Tensor, negatives: Negatives) -> Tensor:
    """TOP1 by autograd, for compilers, which fuse it."""
    term_BC = torch.sigmoid(score_BC - positive_score(score_BC, negatives)) + torch.sigmoid(score_BC.square())
    return (term_BC * negatives.negative_counts()).sum(1) / negatives.n_negatives().clamp(min=1)


class _Top1(torch.autograd.Function):
    """The sum over the negatives, with its gradient written out: autograd stores twice as many (B, C) arrays."""

    @staticmethod
    def forward(
        ctx: Any, score_BC: Tensor, positive_B: Tensor, counts_C: Tensor, self_negatives_B: Tensor | None
    ) -> Tensor:
        negatives = Negatives(positive_B, counts_C, self_negatives_B)
        sum_B, grad_BC, grad_positive_B1 = _top1_with_grads(score_BC, positive_score(score_BC, negatives), negatives)
        ctx.save_for_backward(grad_BC.mul_(counts_C).scatter_(1, positive_B[:, None], grad_positive_B1))
        return sum_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output_B: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_BC,) = ctx.saved_tensors
        return gradient_BC * grad_output_B[:, None], None, None, None


class _SoftmaxTop1(_Top1):
    """The same of softmax scores. A column that counts n times is n negatives, each with an n-th of its probability."""

    @staticmethod
    def forward(
        ctx: Any, logits_BC: Tensor, positive_B: Tensor, counts_C: Tensor, self_negatives_B: Tensor | None
    ) -> Tensor:
        negatives = Negatives(positive_B, counts_C, self_negatives_B)
        prob_BC = torch.softmax(count_weighted(logits_BC, negatives), 1)
        score_BC = prob_BC / counts_C.clamp(min=1)
        positive_B1 = positive_score(prob_BC if self_negatives_B is None else score_BC, negatives)
        sum_B, grad_BC, grad_positive_B1 = _top1_with_grads(score_BC, positive_B1, negatives)
        if self_negatives_B is not None:
            grad_positive_B1 /= self_negatives_B[:, None] + 1
        grad_BC.scatter_(1, positive_B[:, None], grad_positive_B1)
        ctx.save_for_backward(torch._softmax_backward_data(grad_BC, prob_BC, 1, prob_BC.dtype))
        return sum_B


def _top1_with_grads(score_BC: Tensor, positive_B1: Tensor, negatives: Negatives) -> tuple[Tensor, Tensor, Tensor]:
    """TOP1's sum (B,); its derivatives by every r_j, once (B, C), 0 in the positive's column; and by r_i (B, 1).

    ``positive_B1`` are the r_i; the positives' columns of the scores are ignored. In place where possible:
    d sigmoid(x) = sigmoid(x) (1 - sigmoid(x)).
    """
    column_B1 = negatives.positive[:, None]
    # A sigmoid's value of 0 adds nothing to sums over whole rows, and its derivative is 0.
    pair_BC = (score_BC - positive_B1).sigmoid_().scatter_(1, column_B1, 0.0)
    square_BC = torch.addcmul(score_BC.new_full((), _SIGMOID_OFFSET), score_BC, score_BC)
    regularizer_BC = square_BC.sigmoid_().scatter_(1, column_B1, 0.0)
    sum_B = torch.mv(pair_BC, negatives.counts).addmv_(regularizer_BC, negatives.counts)
    grad_BC = pair_BC.addcmul_(pair_BC, pair_BC, value=-1)
    # The pairs' gradient with respect to r_i is the negated sum of those with respect to r_j.
    grad_positive_B1 = torch.mv(grad_BC, negatives.counts).neg_()[:, None]
    grad_BC.addcmul_(regularizer_BC.addcmul_(regularizer_BC, regularizer_BC, value=-1), score_BC, value=2)
    if negatives.self_negatives is not None:
        regularizer_B1 = (positive_B1 * positive_B1).sigmoid_()
        sum_B += negatives.self_negatives * (0.5 + regularizer_B1[:, 0])
        derivative_B1 = 2 * positive_B1 * regularizer_B1 * (1 - regularizer_B1)
        grad_positive_B1 += negatives.self_negatives[:, None] * derivative_B1
    return sum_B, grad_BC, grad_positive_B1

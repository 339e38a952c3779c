"""The base class of losses: the final activation, and each slot's negatives among the columns.

Scores are (B, C): B batch slots, C columns of distinct items. An item that was sampled twice has one column that counts
twice. The positive is not among its own negatives; where another slot has the same target, it is, as often as there are
such slots, unless accidental hits are masked. A slot without negatives has loss 0.

r_i is the positive's score, r_j a negative's; s_j the softmax over the negatives alone.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arnn_lightning.errors import UserError

Activation = Literal["softmax", "tanh", "linear", "elu"]


class Negatives(NamedTuple):
    """How often each column is a negative of each slot.

    All slots have the same negatives except for their positives, so one row (C,) is stored instead of (B, C).

    Attributes:
        positive: (B,) the column of each slot's positive.
        counts: (C,) how often each column was sampled, as a positive or as an extra negative; 0 for padding.
        self_negatives: (B,) how often the positive's column is also a negative of its own slot; None means never.
    """

    positive: Tensor
    counts: Tensor
    self_negatives: Tensor | None

    def n_negatives(self) -> Tensor:
        """How many negatives each slot has (B,)."""
        n_B = self.counts.sum() - self.counts.index_select(0, self.positive)
        return n_B if self.self_negatives is None else n_B + self.self_negatives

    def negative_counts(self) -> Tensor:
        """How often each column is a negative of each slot (B, C)."""
        count_BC, positive_B1 = self.counts.repeat(len(self.positive), 1), self.positive[:, None]
        return count_BC.scatter(1, positive_B1, 0.0 if self.self_negatives is None else self.self_negatives[:, None])


class RankingLoss(nn.Module):
    """A loss over scored columns; a subclass implements ``loss``.

    Args:
        activation: the final activation: softmax (over the slot's columns, the paper's), tanh (GRU4Rec's usual one with
            TOP1), linear or elu. Ranks are computed from raw scores, whose order it does not change.
        elu_alpha: -elu_alpha is the limit of elu for low scores.
        candidates: ``batch`` = the other slots' targets and ``n_sample`` extra items; ``all`` = the whole catalogue.
        accidental_hits: ``mask`` leaves out a negative that is the same item as the positive (another slot has the same
            target, or it was sampled); ``keep`` counts it as a negative, as GRU4Rec does.
        logq: in [0, 1], the share of log q_c that is subtracted from the score of each column, q_c the probability that
            a sampled column shows its item (Bengio & Senecal 2008; Yi et al. 2019); for losses that support it.

    Raises:
        UserError: a value out of range, or ``logq`` with a loss or candidates that it cannot correct.
    """

    supports_logq = False

    def __init__(
        self,
        activation: Activation,
        elu_alpha: float,
        candidates: Literal["batch", "all"],
        accidental_hits: Literal["mask", "keep"],
        logq: float,
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("activation", activation, ("softmax", "tanh", "linear", "elu")),
            ("candidates", candidates, ("batch", "all")),
            ("accidental_hits", accidental_hits, ("mask", "keep")),
        ):
            if value not in choices:
                raise UserError(f"model.loss.{name}={value}: choose one of {', '.join(choices)}")
        if not 0 < elu_alpha < float("inf"):
            raise UserError(f"model.loss.elu_alpha={elu_alpha}: must be greater than 0")
        if not 0 <= logq <= 1:
            raise UserError(f"model.loss.logq={logq}: must be in [0, 1]")
        if logq and (not self.supports_logq or candidates == "all"):
            raise UserError(
                f"model.loss.logq={logq}: only cross_entropy with candidates=batch can be corrected; set it to 0"
            )
        self.activation = activation
        self.elu_alpha = elu_alpha
        self.scores_full_catalogue = candidates == "all"
        self.masks_accidental_hits = accidental_hits == "mask"
        self.logq = logq

    def loss(self, score_BC: Tensor, negatives: Negatives) -> Tensor:
        """The loss of every slot; 0 for a slot without negatives.

        Args:
            score_BC: activated scores of the columns.
            negatives: which column is each slot's positive, and how often each column is a negative.

        Returns:
            (B,) losses; those of slots that are not valid are arbitrary.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement loss()")

    def forward(
        self, logits_BC: Tensor, positive_B: Tensor, counts_C: Tensor | None, log_q_C: Tensor | None = None
    ) -> Tensor:
        """Raw scores (B, C) -> the loss of every slot (B,).

        Args:
            logits_BC: raw scores of the columns.
            positive_B: the column of each slot's target.
            counts_C: how often each column was sampled; None: once each.
            log_q_C: log q of every column, where ``logq`` is not 0.
        """
        counts_C = logits_BC.new_ones(logits_BC.shape[1]) if counts_C is None else counts_C.to(logits_BC.dtype)
        self_negatives_B = None if self.masks_accidental_hits else counts_C.index_select(0, positive_B) - 1
        negatives = Negatives(positive_B, counts_C, self_negatives_B)
        if self.logq:
            assert log_q_C is not None
            logits_BC = self._activate(logits_BC, negatives) - self.logq * log_q_C
            return self.loss(logits_BC, negatives)
        return self._activated_loss(logits_BC, negatives)

    def _activated_loss(self, logits_BC: Tensor, negatives: Negatives) -> Tensor:
        return self.loss(self._activate(logits_BC, negatives), negatives)

    def _activate(self, logits_BC: Tensor, negatives: Negatives) -> Tensor:
        if self.activation == "softmax":
            return softmax(logits_BC, negatives)
        if self.activation == "tanh":
            return torch.tanh(logits_BC)
        if self.activation == "elu":
            return F.elu(logits_BC, self.elu_alpha)
        return logits_BC


def softmax(logits_BC: Tensor, negatives: Negatives) -> Tensor:
    """Softmax over a slot's columns (B, C); a column that counts n times is equivalent to n equal scores."""
    times_BC = negatives.negative_counts().scatter_add(
        1, negatives.positive[:, None], torch.ones_like(logits_BC[:, :1])
    )
    return torch.softmax(count_weighted(logits_BC, negatives), 1) / times_BC.clamp(min=1)


def positive_score(score_BC: Tensor, negatives: Negatives) -> Tensor:
    """r_i (B, 1), the scores in ``score_BC`` of the slots' positives in ``negatives``."""
    return score_BC.gather(1, negatives.positive[:, None])


def count_weighted(score_BC: Tensor, negatives: Negatives) -> Tensor:
    """Scores whose softmax counts every column as often as it is the slot's positive or its negative (B, C)."""
    log_C = negatives.counts.log()
    weighted_BC = score_BC + log_C
    if negatives.self_negatives is not None:
        return weighted_BC
    # The positive counts once, however often it was sampled.
    once_B = log_C.index_select(0, negatives.positive).neg()
    return weighted_BC.scatter_add(1, negatives.positive[:, None], once_B[:, None])


def softmax_over_negatives(score_BC: Tensor, negative_counts_BC: Tensor) -> Tensor:
    """s (B, C): the softmax of ``score_BC`` over a slot's negatives, 0 elsewhere.

    A column counts as often as ``negative_counts_BC`` states (``Negatives.negative_counts``). All are 0 for a slot
    without negatives, where a softmax over -inf would be NaN.
    """
    log_BC = negative_counts_BC.log().clamp(min=torch.finfo(score_BC.dtype).min)
    return torch.softmax(score_BC + log_BC, 1) * (negative_counts_BC > 0)


def mean_over_batch(loss_B: Tensor, valid_B: Tensor | None) -> Tensor:
    """The sum over valid slots (None: all), divided by the number of slots B (E25): every event weighs the same, 1 / B.

    Divided by the valid slots instead, the last steps of an epoch, where few slots still have a session, would move the
    weights as far as full steps do, on a handful of events, which ruins a trained model that has a batch normalisation.
    """
    return loss_B.mean() if valid_B is None else torch.where(valid_B, loss_B, 0).mean()

"""BPR and BPR-max. B batch slots, C columns."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from arnn_lightning.losses.base import Activation, Negatives, RankingLoss, positive_score, softmax_over_negatives

_LOG_EPS = 1e-24  # keeps BPR-max's logarithm finite


class BPR(RankingLoss):
    """Mean over the negatives j of -log sigmoid(r_i - r_j) (Hidasi et al. 2016, arXiv 1511.06939, 3.3)."""

    def loss(self, score_BC: Tensor, negatives: Negatives) -> Tensor:
        count_BC = negatives.negative_counts()
        pair_BC = F.logsigmoid(positive_score(score_BC, negatives) - score_BC) * count_BC
        return -pair_BC.sum(1) / count_BC.sum(1).clamp(min=1)


class BPRMax(RankingLoss):
    """-log(sum_j s_j sigmoid(r_i - r_j) + 1e-24) + bpreg * sum_j s_j r_j^2 (E10).

    Hidasi & Karatzoglou 2018, arXiv 1706.03847, regularised on the scores.

    Args:
        bpreg: weight of the regulariser.
        activation: as in RankingLoss, like the arguments below.
        elu_alpha: of the activation elu.
        candidates: ``batch`` or ``all``.
        accidental_hits: ``mask`` or ``keep``.
        logq: must be 0.

    Raises:
        UserError: as in RankingLoss.
    """

    def __init__(
        self,
        bpreg: float,
        activation: Activation,
        elu_alpha: float,
        candidates: Literal["batch", "all"],
        accidental_hits: Literal["mask", "keep"],
        logq: float,
    ) -> None:
        super().__init__(activation, elu_alpha, candidates, accidental_hits, logq)
        self.bpreg = bpreg

    def loss(self, score_BC: Tensor, negatives: Negatives) -> Tensor:
        count_BC = negatives.negative_counts()
        prob_BC = softmax_over_negatives(score_BC, count_BC)
        likelihood_B = (prob_BC * torch.sigmoid(positive_score(score_BC, negatives) - score_BC)).sum(1)
        loss_B = self.bpreg * (prob_BC * score_BC.square()).sum(1) - torch.log(likelihood_B + _LOG_EPS)
        return torch.where(count_BC.any(1), loss_B, 0)

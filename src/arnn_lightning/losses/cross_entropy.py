"""Softmax cross-entropy. B batch slots, C columns."""

import torch.nn.functional as F
from torch import Tensor

from arnn_lightning.losses.base import Negatives, RankingLoss, count_weighted


class CrossEntropy(RankingLoss):
    """-log softmax of the positive among itself and its negatives (Hidasi & Karatzoglou 2018, arXiv 1706.03847).

    The softmax is applied once, to the given scores (E9).

    With ``logq`` 1 and accidental hits kept, the loss over sampled columns has the gradient of the loss over the whole
    catalogue in expectation where one sampler chooses all columns; with targets and extra negatives together a small
    bias remains (.004 at B = 3), since one q is used for both samplers.
    """

    supports_logq = True

    def loss(self, score_BC: Tensor, negatives: Negatives) -> Tensor:
        loss_B = F.cross_entropy(count_weighted(score_BC, negatives), negatives.positive, reduction="none")
        return loss_B if negatives.self_negatives is None else loss_B + negatives.self_negatives.log1p()

"""Ranking losses over a positive and its negatives."""

from arnn_lightning.losses.base import RankingLoss
from arnn_lightning.losses.bpr import BPR, BPRMax
from arnn_lightning.losses.cross_entropy import CrossEntropy
from arnn_lightning.losses.top1 import TOP1, TOP1Max

__all__ = ["BPR", "TOP1", "BPRMax", "CrossEntropy", "RankingLoss", "TOP1Max"]

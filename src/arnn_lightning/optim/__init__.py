"""Optimizer steps on single rows of tables."""

from arnn_lightning.optim.adagrad import RowAdagrad
from arnn_lightning.optim.step import StepLoss, TrainStep

__all__ = ["RowAdagrad", "StepLoss", "TrainStep"]

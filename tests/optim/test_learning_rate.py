"""When the learning rate changes."""

from functools import partial
from typing import Literal

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from arnn_lightning.optim.schedule import LearningRateSchedule, SchedulerFactory


def rates(factory: SchedulerFactory | None, interval: Literal["epoch", "step"], losses: list[float]) -> list[float]:
    """The rate after every epoch of three steps; ``losses``: of the epochs."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = LearningRateSchedule(factory, interval)
    schedule.start(optimizer)
    after = []
    for loss in losses:
        for _ in range(3):
            schedule.after_step()
        schedule.after_epoch(loss)
        after.append(optimizer.param_groups[0]["lr"])
    return after


@pytest.mark.parametrize(("interval", "expected"), [("epoch", [0.5, 0.25]), ("step", [0.125, 0.015625])])
def test_a_schedule_advances_by_its_interval(interval: Literal["epoch", "step"], expected: list[float]) -> None:
    assert rates(partial(StepLR, step_size=1, gamma=0.5), interval, [1, 1]) == expected


def test_a_plateau_is_one_of_the_loss() -> None:
    plateau = partial(ReduceLROnPlateau, factor=0.5, patience=0)
    assert rates(plateau, "epoch", [3, 2, 1]) == [1, 1, 1]
    assert rates(plateau, "epoch", [1, 2, 3]) == [1, 0.5, 0.25]


def test_without_a_schedule_the_rate_is_constant() -> None:
    assert rates(None, "step", [1, 1]) == rates(None, "epoch", [1, 1]) == [1, 1]

"""When the learning rate changes."""

from collections.abc import Callable
from typing import Any, Literal, cast

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

SchedulerFactory = Callable[[Optimizer], LRScheduler]


class LearningRateSchedule:
    """A schedule of torch, advanced after every epoch or every step.

    Args:
        factory: makes the schedule from the optimizer; None: a constant rate.
        interval: whether the schedule advances after every ``epoch`` or every ``step``.
    """

    def __init__(self, factory: SchedulerFactory | None, interval: Literal["epoch", "step"]) -> None:
        self.factory = factory
        self.interval = interval
        self.scheduler: LRScheduler | None = None

    def start(self, optimizer: Optimizer) -> LRScheduler | None:
        """Makes the schedule of an optimizer; None: a constant rate."""
        if self.factory is not None:
            self.scheduler = self.factory(optimizer)
            # torch warns of a schedule before the first call of step(), in whose place an update of rows is called.
            cast(Any, optimizer)._opt_called = True
        return self.scheduler

    def after_step(self) -> None:
        if self.scheduler is not None and self.interval == "step":
            self.scheduler.step()

    def after_epoch(self, loss: float) -> None:
        """``loss``: of the epoch, which ``ReduceLROnPlateau`` reads."""
        if self.scheduler is None or self.interval != "epoch":
            return
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss)
        else:
            self.scheduler.step()

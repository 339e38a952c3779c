"""metrics.csv in long format: one row per logged value, appended, so that no stage or resumed run overwrites another's.

Lightning's CSVLogger deletes the file that it finds, at each stage and on resuming.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

COLUMNS = ("epoch", "chunk", "metric", "value")


class LongCSVLogger(Logger):
    """Appends rows (epoch, chunk, metric, value) to ``save_dir``/metrics.csv.

    The epoch is empty where none is given, as by callbacks that log directly, and of tests, which Lightning counts to
    the first.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        if self.path.is_file():  # a killed run may have left half a line, to which the next would be added
            with self.path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = dict(metrics)
        epoch = values.pop("epoch", None)
        epochs = {metric: None if epoch is None or "test" in metric.split("/") else int(epoch) for metric in values}
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if not file.tell():
                writer.writerow(COLUMNS)
            writer.writerows((epochs[metric], step, metric, value) for metric, value in values.items())

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder's .hydra/ contains them."""

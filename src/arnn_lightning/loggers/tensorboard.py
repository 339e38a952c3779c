"""Lightning's TensorBoardLogger with the tables of a run's end as text."""

from collections.abc import Mapping
from typing import Any

import polars as pl
from pytorch_lightning.loggers import TensorBoardLogger as LightningTensorBoardLogger

from arnn_lightning.io import escape_markdown


class TensorBoardLogger(LightningTensorBoardLogger):
    """Lightning's TensorBoardLogger; results, groups and gains are Markdown tables among its texts.

    Args:
        save_dir, name, version: the events are written to ``save_dir``/``name``/``version``.
        settings: others of Lightning's logger.
    """

    def __init__(self, save_dir: str, name: str, version: str, **settings: Any) -> None:
        super().__init__(save_dir=save_dir, name=name, version=version, **settings)

    def log_tables(self, tables: Mapping[str, pl.DataFrame]) -> None:
        """Adds every table by its name."""
        for key, table in tables.items():
            self.experiment.add_text(key, _markdown(table))


def _markdown(table: pl.DataFrame) -> str:
    """A table in Markdown; numbers with four decimals, nulls empty.

    >>> print(_markdown(pl.DataFrame({"group": ["a|b"], "mrr@20": [0.25], "low": [None]})))
    | group | mrr@20 | low |
    | --- | --- | --- |
    | a\\|b | 0.2500 |  |
    """
    lines = [table.columns, ["---"] * table.width]
    lines += [[_cell(value) for value in row] for row in table.rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else escape_markdown(str(value))

"""The test result of one model: the rank of every prediction, and metrics and intervals from it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.bootstrap import interval, intervals
from arnn_lightning.evaluation.metrics import compute_metrics, is_of_lists, list_metrics, per_prediction, rank
from arnn_lightning.io import atomic_path

if TYPE_CHECKING:
    from torch import Tensor  # reports start without torch

RANKS = ("session", "position", "user", "item", "higher", "equal", "rank")


@dataclass(frozen=True)
class EvaluationResult:
    """A model's ranks on the test split.

    Attributes:
        name: the model's name.
        ranks: one row per prediction, sorted by (session, position): session, position (number of preceding events),
            user and item (codes), higher, equal (the target included), rank.
        item_counts: (I,) how often each item was recommended; None if that was not counted.
        lists: the metrics of the recommended lists by name, such as ``coverage@20``.
    """

    name: str
    ranks: pl.DataFrame
    item_counts: np.ndarray | None = None
    lists: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_counts(
        cls,
        name: str,
        counts: Mapping[str, "Tensor"],
        test: pl.DataFrame,
        ties: str,
        item_counts: "Tensor | None" = None,
    ) -> "EvaluationResult":
        """Joins a model's counts with the test split.

        Args:
            name: the model's name.
            counts: session, position, higher, equal of every prediction, (N,) each, in any order.
            test: the test split (session, user, item, time).
            ties: how ties are ranked.
            item_counts: (I,) how often each item was recommended, if that was counted.

        Raises:
            RuntimeError: a prediction that is missing or was made twice (V16).
        """
        expected = next_item_targets(test)
        columns = {column: counts[column].numpy() for column in ("session", "position", "higher", "equal")}
        columns["rank"] = rank(columns["higher"], columns["equal"], ties)
        counted = pl.DataFrame(columns).sort("session", "position")
        if not counted.select("session", "position").equals(expected.select("session", "position")):
            raise RuntimeError(f"{name} was not evaluated once on each of the test split's {expected.height} targets")
        ranks = pl.concat([expected, counted.drop("session", "position")], how="horizontal").select(RANKS)
        return cls(name, ranks, None if item_counts is None else item_counts.numpy())

    def with_tie_mode(self, ties: str) -> "EvaluationResult":
        """The same predictions with another rank for ties (V5)."""
        higher, equal = (self.ranks[name].to_numpy() for name in ("higher", "equal"))
        return replace(self, ranks=self.ranks.with_columns(rank=pl.Series(rank(higher, equal, ties))))

    def per_prediction(self, metric: str) -> np.ndarray:
        """(N,) value of every prediction for a metric such as ``recall@20``."""
        return per_prediction(self.ranks["rank"].to_numpy(), metric)

    def with_lists(self, popularity: np.ndarray, k: int) -> "EvaluationResult":
        """The result with the metrics of its lists of length ``k``; ``popularity``: (I,) training events per item."""
        return self if self.item_counts is None else replace(self, lists=list_metrics(self.item_counts, popularity, k))

    def metrics(self, names: Iterable[str]) -> dict[str, float | int]:
        """See ``compute_metrics``; metrics of lists are those of ``lists``, as far as it has them."""
        names = list(names)
        of_lists = {name: self.lists[name] for name in names if name in self.lists}
        of_ranks = [name for name in names if not is_of_lists(name)]
        return compute_metrics(self.ranks["rank"].to_numpy(), self.ranks["session"].to_numpy(), of_ranks) | of_lists

    def interval(self, metric: str, bootstrap: Mapping[str, Any], seed: int) -> tuple[float, float]:
        """Bootstrap interval of a metric such as ``recall@20``."""
        return self._interval(self.per_prediction(metric), bootstrap, seed)

    def paired_difference(
        self, other: "EvaluationResult", metric: str, bootstrap: Mapping[str, Any], seed: int
    ) -> tuple[float, float, float]:
        """Mean paired difference from ``other`` on the same predictions, and its bootstrap interval.

        Raises:
            ValueError: the two have different predictions.
        """
        if not self.ranks.select("session", "position").equals(other.ranks.select("session", "position")):
            raise ValueError(f"{self.name} and {other.name} were not evaluated on the same predictions")
        difference = self.per_prediction(metric) - other.per_prediction(metric)
        return float(difference.mean()), *self._interval(difference, bootstrap, seed)

    def _interval(self, value: np.ndarray, bootstrap: Mapping[str, Any], seed: int) -> tuple[float, float]:
        cluster = self.ranks[bootstrap["unit"]].to_numpy()
        return interval(value, cluster, bootstrap["resamples"], bootstrap["confidence"], seed)

    def write(self, folder: Path, role: str = "") -> None:
        """Writes test_ranks.parquet and, if items were counted, test_lists.parquet (item, times), atomically."""
        tables = {"ranks": self.ranks}
        if self.item_counts is not None:
            tables["lists"] = pl.DataFrame({"item": range(len(self.item_counts)), "times": self.item_counts})
        for kind, table in tables.items():
            with atomic_path(folder / _file(kind, role)) as path:
                table.write_parquet(path)

    @classmethod
    def read(cls, name: str, folder: Path, role: str = "") -> "EvaluationResult":
        """Reads what ``write`` wrote; ``role`` is that of a part or a baseline, empty for the model itself."""
        lists = folder / _file("lists", role)
        item_counts = pl.read_parquet(lists, glob=False)["times"].to_numpy() if lists.is_file() else None
        return cls(name, pl.read_parquet(folder / _file("ranks", role), glob=False), item_counts)


@contextmanager
def results_of(folder: Path) -> Iterator[None]:
    """Raises UserError where a file with the results of ``folder``, a finished run, is missing or damaged."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pl.exceptions.PolarsError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise UserError(
            f"{folder}: its results are missing or damaged ({reason}); delete the folder, and run it again"
        ) from error


def metric_intervals(
    results: Sequence[EvaluationResult], names: Sequence[str], bootstrap: Mapping[str, Any], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap intervals of metrics such as ``recall@20``: low and high, (results, names) each.

    Args:
        results: on the same predictions, which are resampled in the same way.
        names: of the metrics.
        bootstrap: ``resamples``, ``confidence`` and ``unit``.
        seed: of the resampling.
    """
    if not names:
        return np.empty((len(results), 0)), np.empty((len(results), 0))
    value = np.stack([result.per_prediction(name) for result in results for name in names], 1)
    cluster = results[0].ranks[bootstrap["unit"]].to_numpy()
    low, high = intervals(value, cluster, bootstrap["resamples"], bootstrap["confidence"], seed)
    return low.reshape(len(results), -1), high.reshape(len(results), -1)


def _file(kind: str, role: str) -> str:
    return f"test_{kind}_{role}.parquet" if role else f"test_{kind}.parquet"


def next_item_targets(test: pl.DataFrame) -> pl.DataFrame:
    """Every prediction of a test split: session, position (1 = the first), user, item (the target)."""
    return (
        test.select("session", "user", "item", position=pl.int_range(pl.len()).over("session"))
        .filter(pl.col("position") > 0)
        .select(pl.col("session", "position").cast(pl.Int64), "user", "item")
    )

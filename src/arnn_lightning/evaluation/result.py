"""What one model achieved on the test split: ranks of every attempt, metrics, intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from arnn_lightning.evaluation.bootstrap import interval
from arnn_lightning.evaluation.metrics import metrics, values
from arnn_lightning.evaluation.ranking import rank

RANKS = ("session", "position", "user", "item", "higher", "equal", "rank")


@dataclass(frozen=True)
class Result:
    """A model's ranks on the test split.

    Attributes:
        name: the model's name.
        ranks: one row per attempt, sorted by (session, position): session, position (events already seen), user and
            item (codes), higher, equal (the target included), rank.
        listed: (I,) how often each item was among the top 20, where that was counted.
    """

    name: str
    ranks: pl.DataFrame
    listed: np.ndarray | None = None

    def ranked(self, ties: str) -> "Result":
        """The same attempts with ties ranked in another way (V5)."""
        higher, equal = (self.ranks[name].to_torch() for name in ("higher", "equal"))
        return replace(self, ranks=self.ranks.with_columns(rank=pl.Series(rank(higher, equal, ties).numpy())))

    def values(self, metric: str) -> np.ndarray:
        """(N,) every attempt's contribution to a metric such as ``recall@20``."""
        return values(self.ranks["rank"].to_numpy(), metric)

    def metrics(self, cutoffs: Sequence[int]) -> dict[str, float | int]:
        return metrics(self.ranks["rank"].to_numpy(), self.ranks["session"].to_numpy(), cutoffs)

    def interval(self, metric: str, bootstrap: Mapping[str, Any], seed: int) -> tuple[float, float]:
        """Bootstrap interval of a metric such as ``recall@20``."""
        return self._interval(self.values(metric), bootstrap, seed)

    def difference(
        self, other: "Result", metric: str, bootstrap: Mapping[str, Any], seed: int
    ) -> tuple[float, float, float]:
        """Mean paired difference to ``other`` on the same attempts, and its bootstrap interval."""
        if not self.ranks.select("session", "position").equals(other.ranks.select("session", "position")):
            raise ValueError(f"{self.name} and {other.name} were not evaluated on the same attempts")
        gain = self.values(metric) - other.values(metric)
        return float(gain.mean()), *self._interval(gain, bootstrap, seed)

    def _interval(self, value: np.ndarray, bootstrap: Mapping[str, Any], seed: int) -> tuple[float, float]:
        cluster = self.ranks[bootstrap["unit"]].to_numpy()
        return interval(value, cluster, bootstrap["resamples"], bootstrap["confidence"], seed)

    def write(self, folder: Path, role: str = "") -> None:
        """Writes test_ranks.parquet, and test_lists.parquet where lists were counted, atomically."""
        _write(self.ranks, folder / _file("ranks", role))
        if self.listed is not None:
            _write(pl.DataFrame({"item": range(len(self.listed)), "times": self.listed}), folder / _file("lists", role))

    @classmethod
    def read(cls, name: str, folder: Path, role: str = "") -> "Result":
        """Reads what ``write`` wrote; ``role`` is that of a part or a baseline, empty for the model itself."""
        lists = folder / _file("lists", role)
        listed = pl.read_parquet(lists)["times"].to_numpy() if lists.is_file() else None
        return cls(name, pl.read_parquet(folder / _file("ranks", role)), listed)


def _file(kind: str, role: str) -> str:
    return f"test_{kind}_{role}.parquet" if role else f"test_{kind}.parquet"


def _write(table: pl.DataFrame, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.unfinished")
    table.write_parquet(temporary)
    temporary.replace(path)


def attempts(test: pl.DataFrame) -> pl.DataFrame:
    """Every recommendation attempt of a test split: session, position (1 = the first), user, item that came."""
    return (
        test.select("session", "user", "item", position=pl.int_range(pl.len()).over("session"))
        .filter(pl.col("position") > 0)
        .select(pl.col("session", "position").cast(pl.Int64), "user", "item")
    )


def result(
    name: str, evaluated: Mapping[str, Tensor], test: pl.DataFrame, ties: str, listed: Tensor | None = None
) -> Result:
    """Joins a model's counts with the test split.

    Args:
        name: the model's name.
        evaluated: session, position, higher, equal of every attempt, in any order.
        test: the test split (session, user, item, time).
        ties: how ties are ranked.
        listed: (I,) how often each item was recommended, where that was counted.

    Raises:
        RuntimeError: an attempt that is missing or was made twice (V16).
    """
    expected = attempts(test)
    ranked = rank(evaluated["higher"], evaluated["equal"], ties)
    counted = pl.DataFrame(
        {name: evaluated[name].numpy() for name in ("session", "position", "higher", "equal")}
        | {"rank": ranked.numpy()}
    ).sort("session", "position")
    if not counted.select("session", "position").equals(expected.select("session", "position")):
        raise RuntimeError(f"{name} was not evaluated once on each of the {expected.height} attempts of the test split")
    ranks = pl.concat([expected, counted.drop("session", "position")], how="horizontal").select(RANKS)
    return Result(name, ranks, None if listed is None else listed.numpy())

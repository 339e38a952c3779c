"""What one model achieved on the test split: ranks of every attempt, metrics, intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from arnn_lightning.evaluation.bootstrap import interval
from arnn_lightning.evaluation.metrics import metrics, values
from arnn_lightning.evaluation.ranks import rank

RANKS = ("session", "position", "user", "item", "higher", "equal", "rank")


@dataclass(frozen=True)
class Result:
    """A model's ranks on the test split.

    Attributes:
        name: the model's name.
        ranks: one row per attempt, sorted by (session, position): session, position (events already seen), user and
            item (codes), higher, equal (the target included), rank.
    """

    name: str
    ranks: pl.DataFrame

    def metrics(self, cutoffs: Sequence[int]) -> dict[str, float | int]:
        return metrics(self.ranks["rank"].to_numpy(), self.ranks["session"].to_numpy(), cutoffs)

    def interval(self, metric: str, bootstrap: Mapping[str, Any], seed: int) -> tuple[float, float]:
        """Bootstrap interval of a metric such as ``recall@20``."""
        return self._interval(values(self.ranks["rank"].to_numpy(), metric), bootstrap, seed)

    def difference(
        self, other: "Result", metric: str, bootstrap: Mapping[str, Any], seed: int
    ) -> tuple[float, float, float]:
        """Mean paired difference to ``other`` on the same attempts, and its bootstrap interval."""
        if not self.ranks.select("session", "position").equals(other.ranks.select("session", "position")):
            raise ValueError(f"{self.name} and {other.name} were not evaluated on the same attempts")
        gain = values(self.ranks["rank"].to_numpy(), metric) - values(other.ranks["rank"].to_numpy(), metric)
        return float(gain.mean()), *self._interval(gain, bootstrap, seed)

    def _interval(self, value: np.ndarray, bootstrap: Mapping[str, Any], seed: int) -> tuple[float, float]:
        cluster = self.ranks[bootstrap["unit"]].to_numpy()
        return interval(value, cluster, bootstrap["resamples"], bootstrap["confidence"], seed)

    def write(self, path: Path) -> None:
        """Writes the ranks as parquet, atomically."""
        temporary = path.with_name(f".{path.name}.unfinished")
        self.ranks.write_parquet(temporary)
        temporary.replace(path)

    @classmethod
    def read(cls, name: str, path: Path) -> "Result":
        return cls(name, pl.read_parquet(path))


def result(name: str, evaluated: Mapping[str, Tensor], test: pl.DataFrame, ties: str) -> Result:
    """Joins a model's counts with the test split.

    Args:
        name: the model's name.
        evaluated: session, position, higher, equal of every attempt, in any order.
        test: the test split (session, user, item, time).
        ties: how ties are ranked.

    Raises:
        RuntimeError: an attempt that is missing or was made twice (V16).
    """
    attempts = (
        test.select("session", "user", "item", position=pl.int_range(pl.len()).over("session"))
        .filter(pl.col("position") > 0)
        .select(pl.col("session", "position").cast(pl.Int64), "user", "item")
    )
    ranked = rank(evaluated["higher"], evaluated["equal"], ties)
    counted = pl.DataFrame(
        {name: evaluated[name].numpy() for name in ("session", "position", "higher", "equal")}
        | {"rank": ranked.numpy()}
    ).sort("session", "position")
    if not counted.select("session", "position").equals(attempts.select("session", "position")):
        raise RuntimeError(f"{name} was not evaluated once on each of the {attempts.height} attempts of the test split")
    return Result(name, pl.concat([attempts, counted.drop("session", "position")], how="horizontal").select(RANKS))


POSITIONS = {"1": 1, "2": 2, "3-4": 3, "5-9": 5, "10+": 10}  # name -> the first of it


def by_position(ranks: pl.DataFrame) -> pl.DataFrame:
    """Recall@20 and MRR@20 by how many events of the session had been seen.

    Args:
        ranks: position and rank of every attempt.

    Returns:
        position (1, 2, 3-4, 5-9, 10+), first (the smallest of it), attempts, recall@20, mrr@20; groups without an
        attempt are left out.
    """
    hit = pl.col("rank") <= 20
    first = pl.Series(list(POSITIONS.values()))
    group = first.gather(first.search_sorted(ranks["position"], side="right") - 1)
    names = {first: name for name, first in POSITIONS.items()}
    return (
        ranks.with_columns(first=group)
        .group_by("first")
        .agg(
            attempts=pl.len(),
            **{"recall@20": hit.mean(), "mrr@20": pl.when(hit).then(1 / pl.col("rank")).otherwise(0.0).mean()},
        )
        .sort("first")
        .select(pl.col("first").replace_strict(names, return_dtype=pl.String).alias("position"), pl.all())
    )

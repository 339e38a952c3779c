"""The tables at the end of a run: results, metrics by group and gains by group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from rich.console import Console

from arnn_lightning.evaluation.groups import Attributes, attribute_labels, group_labels, group_metrics
from arnn_lightning.evaluation.result import EvaluationResult, metric_intervals
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.reporting.console import rich_table
from arnn_lightning.reporting.results_table import groups_table

Groups = Mapping[str, Mapping[str, pl.DataFrame]]  # attribute -> model -> a row per group, see ``group_metrics``
GAIN = "gain_"


@dataclass(frozen=True)
class RunTables:
    """Makes the tables of models that were tested on the same predictions.

    Attributes:
        prepared: the data set.
        metrics: of single predictions, such as ``recall@20``.
        attributes: of the users, ``evaluation.groups``.
        bootstrap: ``resamples``, ``confidence`` and ``unit``.
        seed: of the bootstrap.
    """

    prepared: PreparedDataset
    metrics: Sequence[str]
    attributes: Sequence[str]
    bootstrap: Mapping[str, Any]
    seed: int

    def groups(self, results: Sequence[EvaluationResult]) -> Groups:
        """The metrics of every model by each attribute."""
        labels = attribute_labels(results[0].ranks, self._codes())
        return {
            attribute: {result.name: self._grouped(result, labels[attribute]) for result in results}
            for attribute in self.attributes
        }

    def all(self, results: Sequence[EvaluationResult], session: EvaluationResult | None) -> dict[str, pl.DataFrame]:
        """The tables for dashboards: ``results``, ``by_GROUPS`` and, with a session encoder, ``gain_by_GROUPS``.

        Args:
            results: of all models, the main model last; it alone has intervals in the tables of groups.
            session: of the main model's session encoder.
        """
        *others, main = results
        tables = {"results": self._results(results)}
        for by, label in self._labels(main).items():
            key = f"by_{by.replace(' ', '_')}"
            frames = {result.name: self._grouped(result, label, intervals=False) for result in others}
            frames[main.name] = self._grouped(main, label, session)
            gains = [name for name in frames[main.name].columns if name.startswith(GAIN)]
            columns = ["model", *(name for name in frames[main.name].columns if name not in gains)]
            named = [frame.with_columns(pl.lit(model).alias("model")) for model, frame in frames.items()]
            tables[key] = pl.concat(named, how="diagonal").select(columns)
            if session is not None:
                sizes = ["group", "predictions", "clusters"]
                shown = {name: name.removeprefix(GAIN) for name in gains}
                tables[f"gain_{key}"] = frames[main.name].select(*sizes, *gains).rename(shown)
        return tables

    def _labels(self, result: EvaluationResult) -> dict[str, pl.Series]:
        """Every way to group the predictions."""
        train = pl.read_parquet(self.prepared.folder / "train.parquet", columns=["user", "item"], glob=False)
        return group_labels(result.ranks, self.prepared.users(), train, self.prepared.dims["n_items"], self._codes())

    def _codes(self) -> Attributes:
        return {name: self.prepared.attribute(name) for name in self.attributes}

    def _grouped(
        self,
        result: EvaluationResult,
        label: pl.Series,
        session: EvaluationResult | None = None,
        intervals: bool = True,
    ) -> pl.DataFrame:
        """The metrics of a model by group, and its gains over ``session`` with ``GAIN`` before their names."""
        values = {name: [result.per_prediction(name)] for name in self.metrics}
        if session is not None:
            values |= {f"{GAIN}{name}": [values[name][0] - session.per_prediction(name)] for name in self.metrics}
        cluster = result.ranks[self.bootstrap["unit"]].to_numpy()
        return group_metrics(values, label, cluster, self.bootstrap if intervals else None, self.seed)

    def _results(self, results: Sequence[EvaluationResult]) -> pl.DataFrame:
        """Every model's metrics with their intervals, and its metrics of lists."""
        low, high = metric_intervals(results, self.metrics, self.bootstrap, self.seed)
        rows = []
        for index, result in enumerate(results):
            row: dict[str, Any] = {"model": result.name}
            for column, name in enumerate(self.metrics):
                value = float(result.per_prediction(name).mean())
                row |= {name: value, f"{name}_low": low[index, column], f"{name}_high": high[index, column]}
            rows.append(row | dict(result.lists))
        return pl.DataFrame(rows).fill_nan(None)


def print_groups(console: Console, groups: Groups, bootstrap: Mapping[str, Any]) -> None:
    """A table per attribute, of the last model."""
    for attribute, frames in groups.items():
        model, frame = list(frames.items())[-1]
        table = groups_table(frame, attribute, bootstrap)
        console.print(rich_table(f"{model} by {attribute}", table))
        console.print(table.caption, soft_wrap=True, highlight=False)


def groups_record(groups: Groups) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The entry of the groups in metrics.json."""
    return {
        attribute: {model: frame.to_dicts() for model, frame in frames.items()} for attribute, frames in groups.items()
    }

"""The results of a run: files of ranks, ``metrics.json`` and the table at its end."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from arnn_lightning.config import to_container
from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.reporting.console import (
    data_notes,
    paired_difference_line,
    results_table,
    seed_guidance,
)
from arnn_lightning.reporting.run_tables import Groups, RunTables, print_groups
from arnn_lightning.training.stage import headline_metrics, prediction_metrics


@dataclass(frozen=True)
class Results:
    """The test results of a run's models, all on the same predictions.

    Attributes:
        model: of the main model.
        encoders: of its encoders, by role.
        baselines: by their keys in the config.
    """

    model: EvaluationResult
    encoders: Mapping[str, EvaluationResult]
    baselines: Mapping[str, EvaluationResult]

    @property
    def in_order(self) -> list[EvaluationResult]:
        """As tables have them, the main model last."""
        return [*self.baselines.values(), *self.encoders.values(), self.model]

    def metrics(self, names: Iterable[str]) -> dict[str, Any]:
        """The entries ``test``, ``encoders`` and ``baselines`` of metrics.json."""
        names = list(names)
        parts = {"encoders": self.encoders, "baselines": self.baselines}
        return {"test": self.model.metrics(names)} | {
            part: {role: {"model": result.name} | result.metrics(names) for role, result in results.items()}
            for part, results in parts.items()
        }

    def write(self, folder: Path) -> None:
        """Writes the files of ranks and lists, those of the main model last."""
        for role, result in [*self.encoders.items(), *self.baselines.items(), ("", self.model)]:
            result.write(folder, role)

    @classmethod
    def read(cls, folder: Path, metrics: Mapping[str, Any]) -> "Results":
        """Reads what ``write`` wrote; ``metrics`` is the content of metrics.json."""

        def read(entry: Mapping[str, Any], role: str) -> EvaluationResult:
            return replace(EvaluationResult.read(entry["model"], folder, role), lists=entry)

        encoders, baselines = (
            {role: read(entry, role) for role, entry in metrics[part].items()} for part in ("encoders", "baselines")
        )
        return cls(read({"model": metrics["model"]} | metrics["test"], ""), encoders, baselines)


def run_tables(config: DictConfig, prepared: PreparedDataset) -> RunTables:
    """The tables of a run with the settings of ``evaluation``."""
    evaluation = config.evaluation
    bootstrap = to_container(evaluation.bootstrap)
    return RunTables(prepared, prediction_metrics(config), list(evaluation.groups), bootstrap, config.seed)


def print_table(console: Console, config: DictConfig, results: Sequence[EvaluationResult], title: str) -> None:
    """Prints the results with those that the paper published for the data set, if it is one of the paper's two."""
    bootstrap, published = to_container(config.evaluation.bootstrap), to_container(config.published).get("table2", {})
    console.print(results_table(results, headline_metrics(config), title, published, bootstrap, config.seed))


def print_results(
    config: DictConfig,
    folder: Path,
    results: Results,
    groups: Groups,
    groups_bootstrap: Mapping[str, Any],
    first_items: str | None,
    is_single_run: bool,
) -> None:
    """Prints everything that a run ends with.

    Args:
        config: of the run.
        folder: of the run.
        results: of its models.
        groups: the metrics of groups.
        groups_bootstrap: the settings with which ``groups`` were computed, in a saved run perhaps not today's.
        first_items: the line on what is listed before the first click.
        is_single_run: False for a job of a multirun.
    """
    console, bootstrap = Console(markup=False), to_container(config.evaluation.bootstrap)
    title = f"{config.data.name}, seed {config.seed}: {results.model.ranks.height:,} predictions"
    print_table(console, config, results.in_order, title)
    if (session := results.encoders.get("session")) is not None:
        line = paired_difference_line(results.model, session, prediction_metrics(config), bootstrap, config.seed)
        console.print(line, soft_wrap=True, highlight=False)
    print_groups(console, groups, groups_bootstrap)
    notes = [] if first_items is None else [first_items]
    notes += data_notes(config.data)
    guidance = seed_guidance(1, bootstrap["unit"]) if is_single_run and "optimizer" in config.model else None
    for note in (*notes, *([guidance] if guidance else [])):
        console.print(note, soft_wrap=True, highlight=False)
    console.print(f"run folder: {os.path.relpath(folder)}", soft_wrap=True)

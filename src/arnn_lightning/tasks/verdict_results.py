"""The results of the finished runs of task=verdict: the figures, and the model to deploy."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from hydra.utils import get_class
from omegaconf import DictConfig

from arnn_lightning.config import to_container
from arnn_lightning.evaluation.result import EvaluationResult, results_of
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.reporting.verdict_figures import VerdictFigures
from arnn_lightning.run_folder import stored_config
from arnn_lightning.sweeps.plan import CONTROLS, PROFILE_MODEL, SESSION_MODEL, Job, Plan
from arnn_lightning.training.stage import n_epochs, prediction_metrics


@dataclass(frozen=True)
class VerdictResults:
    """The results of the finished runs of a verdict.

    Attributes:
        config: of the task.
        prepared: the data set of the runs.
        attributes: names of the user attributes that the models use.
        plan: what was trained and tested.
        non_neural: the runs of the non-neural models.
        jobs: of every seed, its runs by name.
    """

    config: DictConfig
    prepared: PreparedDataset
    attributes: Sequence[str]
    plan: Plan
    non_neural: Sequence[Job]
    jobs: Sequence[Mapping[str, Job]]

    @property
    def _metric(self) -> str:
        return str(self.config.evaluation.monitor)

    def figures(self, given: Sequence[str]) -> dict[str, Any]:
        """The part of verdict.json that follows from the runs; ``given``: overrides of the verdict's command."""
        folders = [of_seed["own"].folder for of_seed in self.jobs]
        part = stored_config(folders[0]).model.get("context")
        context = None if part is None else str(part.name)
        names = ("session", "own", *CONTROLS)
        models = {name: self._results(name) for name in names}
        if context is not None:
            models["context"] = [_read(context, folder, "context") for folder in folders]
        non_neural = {job.description: _read(job.description, job.folder) for job in self.non_neural}
        validation = {
            name: float(np.mean([self._validation(of_seed[name]) for of_seed in self.jobs])) for name in names
        }
        validation |= {job.description: self._validation(job) for job in self.non_neural}
        held_out = None
        if self.plan.holds_out_users:
            held_out = self._results("new_users"), self._results("new_users", "session")
        figures = VerdictFigures(
            prepared=self.prepared,
            attributes=self.attributes,
            metric=self._metric,
            metrics=list(dict.fromkeys([*prediction_metrics(self.config), self._metric])),
            bootstrap=to_container(self.config.evaluation.bootstrap),
            seed=self.config.seed,
            smallest_gain=self.config.smallest_gain,
        ).compute(models, non_neural, validation, held_out, self._without_attribute())
        for job in self.non_neural:
            figures["non_neural"][job.description]["uses_profiles"] = uses_profiles(stored_config(job.folder).model)
        jobs = [*self.non_neural, *(job for of_seed in self.jobs for job in of_seed.values())]
        return figures | {
            "context_model": context,
            "holds_out_users": self.plan.holds_out_users,
            "rising": [*self._rising("session"), *self._rising("own")],
            "deploy": self._deployment(figures, validation, given),
            "runs": [
                {"folder": job.folder.name, "command": job.command(given), "seconds": round(job.seconds, 1)}
                for job in jobs
            ],
        }

    def _results(self, name: str, role: str = "") -> list[EvaluationResult]:
        """Those of a run, or of one of its stages, of every seed."""
        return [_read(name, of_seed[name].folder, role) for of_seed in self.jobs]

    def _without_attribute(self) -> Iterator[tuple[str, list[EvaluationResult]]]:
        """Read one by one: their ranks take as much memory as those of the models."""
        for name in self.attributes if self.plan.hides_attributes else []:
            files = [of_seed["own"].ranks_without(name, self.attributes) for of_seed in self.jobs]
            with results_of(files[0].parents[1]):
                results = [EvaluationResult(name, pl.read_parquet(file, glob=False)) for file in files]
            yield name, results

    def _validation(self, job: Job) -> float:
        return float(job.metrics()["val"][self._metric])

    def _rising(self, name: str) -> list[dict[str, Any]]:
        """A row where the runs of most seeds were best in their last epoch."""
        jobs = [of_seed[name] for of_seed in self.jobs]
        if 2 * sum(job.was_best_in_last_epoch(self._metric) for job in jobs) <= len(jobs):
            return []
        config = stored_config(jobs[0].folder)
        epochs = n_epochs(config, config.model)
        return [{"model": config.model.name, "epochs": epochs, "is_capped": epochs < config.model.epochs}]

    def _deployment(
        self, figures: Mapping[str, Any], validation: Mapping[str, float], given: Sequence[str]
    ) -> dict[str, Any]:
        """The model that is best on validation: where profiles help, of all, else of those without profiles."""
        helps = figures["helps"] == "yes"
        arm, trained = ("own", PROFILE_MODEL) if helps else ("session", SESSION_MODEL)
        others = {name: row["uses_profiles"] for name, row in figures["non_neural"].items()}
        values = {trained: validation[arm]} | {name: validation[name] for name in others if helps or not others[name]}
        values = dict(sorted(values.items(), key=lambda item: -item[1]))
        model = next(iter(values))
        candidates = [job for job in self.non_neural if job.description == model] or [
            of_seed[arm] for of_seed in self.jobs
        ]
        job = max(candidates, key=self._validation)
        return {
            "model": model,
            "non_neural": model in others,
            "uses_profiles": others.get(model, helps),
            "chosen_from": values,
            "command": job.command(given),
            "trained": os.path.relpath(job.folder),
        }


def uses_profiles(model: DictConfig) -> bool:
    """Whether a non-neural model uses profiles."""
    return bool(model.get("context_weight", 0)) or bool(getattr(get_class(model._target_), "uses_contexts", False))


def _read(name: str, folder: Path, role: str = "") -> EvaluationResult:
    with results_of(folder):
        return EvaluationResult.read(name, folder, role)

"""task=verdict: do profiles help? Training runs within a budget of time, and one page with the answer."""

import copy
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from arnn_lightning.config import config_dir_option, to_container
from arnn_lightning.errors import UserError, nearest
from arnn_lightning.preprocessing.contexts import attribute_names
from arnn_lightning.reporting.console import data_notes
from arnn_lightning.reporting.verdict import write_verdict
from arnn_lightning.reporting.verdict_figures import lacks_new_users
from arnn_lightning.reporting.verdict_text import format_duration
from arnn_lightning.run_folder import has_record, require_same_settings, task_folder, write_record
from arnn_lightning.sweeps.plan import (
    MARGIN,
    PROFILE_MODEL,
    SESSION_MODEL,
    Costs,
    Extension,
    FirstEpoch,
    Job,
    Plan,
    TooSlowError,
    extend_plan,
    make_plan,
    measured_costs,
    non_neural_jobs,
    plan_line,
    planned,
    seconds_of,
    seed_jobs,
)
from arnn_lightning.tasks.prepare import prepare_data
from arnn_lightning.tasks.verdict_results import VerdictResults
from arnn_lightning.tasks.verdict_runs import VerdictRuns

log = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Trains what fits into the budget, and writes verdict.json, verdict.md and verdict.html.

    Raises:
        UserError: no attributes, no validation split, unknown models, a folder with other settings or of another log.
    """
    if config.trainer.get("strategy") is not None:
        raise UserError("task=verdict is not supported with trainer=ddp: each of its runs is a single process")
    if config.data.contexts.assignment != "own":
        raise UserError("data.contexts.assignment: task=verdict sets it for each run; leave it out")
    if config.evaluation.bootstrap.unit != "user":
        raise UserError("evaluation.bootstrap.unit: task=verdict resamples users, who have profiles; leave it out")
    if HydraConfig.get().runtime.choices.get("experiment") is not None:
        raise UserError("experiment: is not supported with task=verdict, which sets the models; choose data=NAME")
    require_non_neural(config.non_neural)
    with task_folder(config) as folder:
        if has_record(folder):
            require_same_settings(config, folder, ("budget", "max_seeds", "smallest_gain"))
        try:
            Verdict(config, folder).run()
        except KeyboardInterrupt:
            sys.stderr.write("Interrupted. The same command resumes the verdict.\n")
            raise


def require_non_neural(models: Sequence[str]) -> None:
    """Raises UserError where one of the models does not exist, or is trained."""
    options = GlobalHydra.instance().config_loader().get_group_options("model")
    known = [name for name in options if not name.startswith("_")]
    for name in models:
        if name not in known:
            raise UserError(f"non_neural={name}: no such model{nearest(name, known)}")
        if "optimizer" in compose(f"model/{name}").model:
            raise UserError(f"non_neural={name}: is trained; non_neural takes non-neural models, such as sr")


class Verdict:
    """The runs of a verdict within a budget, and the page.

    Args:
        config: of the task.
        folder: of the runs, and of the page.

    Raises:
        UserError: a data set without attributes or without a validation split.
    """

    def __init__(self, config: DictConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.prepared = prepare_data(copy.deepcopy(config))
        n_attributes = config.data.contexts.n_attributes
        self.attributes = attribute_names(self.prepared.manifest["config"]["contexts"])[:n_attributes]
        if not self.attributes:
            raise UserError(f"data={config.data.name} has no attributes; list them in data.contexts.single or .multi")
        if not self.prepared.manifest["splits"]["val"]["events"]:
            raise UserError(f"data={config.data.name} has no validation split: set data.split.val_days")
        self.runs = VerdictRuns(config, folder, self.prepared)
        self.budget = seconds_of(config.budget)
        self.non_neural = non_neural_jobs(folder, config.non_neural, config.seed)
        self.plan, self.costs = Plan(0, False, False, 0.0), Costs(0.0, 0.0, 0.0, 0.0)
        self.lacks_new_users = lacks_new_users(self.prepared)

    def _jobs(self, seed: int) -> dict[str, Job]:
        return seed_jobs(self.folder, seed, self.plan.holds_out_users)

    def run(self) -> None:
        if not has_record(self.folder):
            write_record(self.config, self.folder)
        first_seed = self.config.seed
        first = self._jobs(first_seed)
        of_seeds = [job for seed in self._all_seeds() for job in seed_jobs(self.folder, seed, True).values()]
        self.runs.require_comparable([*self.non_neural, *of_seeds])
        if not all(job.is_finished for job in (*self.non_neural, first["session"], first["own"])):
            log.info(
                f"budget {format_duration(self.budget)}; measured first: non-neural models, {SESSION_MODEL} and "
                f"{PROFILE_MODEL} with seed {first_seed}"
            )
        try:
            self.runs.execute(first["session"], FirstEpoch(self.budget, self.config.performance.compile))
            for job in (*self.non_neural, first["own"]):
                self.runs.execute(job)
        except TooSlowError as error:
            log.info(f"stopped after the first epoch of {SESSION_MODEL}: budget={self.config.budget} is too small")
            self._conclude([], float(error.args[0]))
            return
        costs = self.costs = measured_costs(self.non_neural, first, len(self.attributes))
        self.plan = make_plan(self.budget, costs, self.config.max_seeds, self.lacks_new_users)
        self.plan = self._with_finished(self.plan)
        three_seeds = " ".join(self._extension(2, 0.0).settings)
        log.info(plan_line(self.plan, costs, self.config.budget, len(self.attributes), three_seeds))
        if not self.plan.n_seeds:
            self._conclude([], self.plan.seconds)
            return
        per_seed = (self.plan.seconds - costs.non_neural) / self.plan.n_seeds / MARGIN
        seeds: list[int] = []  # whose runs are complete
        for number, seed in enumerate(self._all_seeds()[: self.plan.n_seeds]):
            jobs = self._jobs(seed)
            if number >= 2 and not jobs["per_session"].is_finished and self.runs.seconds + per_seed > self.budget:
                log.info(f"the runs took longer than planned; stopped after {number} seeds")
                break
            for job in jobs.values():
                self.runs.execute(job)
            if self.plan.hides_attributes:
                self.runs.hide_attributes(jobs["own"], self.attributes)
            seeds.append(seed)
        self._conclude(seeds, None)

    def _with_finished(self, plan: Plan) -> Plan:
        """``plan`` with the runs and tests that were finished earlier, with a larger budget."""
        finished = [
            jobs
            for seed in self._all_seeds()
            if all(job.is_finished for job in seed_jobs(self.folder, seed, plan.holds_out_users).values())
            for jobs in [seed_jobs(self.folder, seed, True)]
        ]
        if len(finished) < max(2, plan.n_seeds):
            return plan
        holds_out = self.lacks_new_users and all(jobs["new_users"].is_finished for jobs in finished)
        files = [jobs["own"].ranks_without(name, self.attributes) for jobs in finished for name in self.attributes]
        parts = plan.holds_out_users or holds_out, plan.hides_attributes or all(file.is_file() for file in files)
        return planned(len(finished), *parts, self.costs)

    def _extension(self, n_seeds: int, spent: float) -> Extension:
        return extend_plan(
            self.plan, n_seeds, self.budget, spent, self.costs, self.config.max_seeds, self.lacks_new_users
        )

    def _all_seeds(self) -> range:
        return range(self.config.seed, self.config.seed + self.config.max_seeds)

    def _conclude(self, seeds: Sequence[int], seconds_needed: float | None) -> None:
        """Writes the page of finished ``seeds``; of none, with the seconds that an answer needs."""
        verdict: dict[str, Any] = {
            "helps": "unclear",
            "data": self.config.data.name,
            "notes": data_notes(self.config.data),
            "metric": str(self.config.evaluation.monitor),
            "seeds": list(seeds),
            "budget": self.budget,
            "seconds": round(self.runs.seconds, 1),
            "seconds_needed": seconds_needed,
            "smallest_gain": self.config.smallest_gain,
            "bootstrap": to_container(self.config.evaluation.bootstrap) | {"seed": self.config.seed},
            "manifest": self.prepared.manifest_sha256,
            "splits": self.prepared.manifest["splits"],
            "session_model": SESSION_MODEL,
            "profile_model": PROFILE_MODEL,
        }
        if seeds:
            jobs = [self._jobs(seed) for seed in seeds]
            results = VerdictResults(self.config, self.prepared, self.attributes, self.plan, self.non_neural, jobs)
            verdict |= results.figures([*config_dir_option(HydraConfig.get().runtime), *self.runs.given])
            verdict["more_seeds"] = self._extension(len(seeds), self.runs.seconds)._asdict()
        paragraph = write_verdict(verdict, self.folder)
        console = Console(markup=False)
        for line in (paragraph, f"the page: {self.folder / 'verdict.html'}"):
            console.print(line, soft_wrap=True, highlight=False)

"""task=verdict: do profiles help? Training runs within a budget of time, and one page with the answer."""

import contextlib
import copy
import io
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, open_dict
from pytorch_lightning import Callback
from rich.console import Console

from arnn_lightning.errors import UserError, nearest
from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.io import atomic_path
from arnn_lightning.preprocessing.contexts import attribute_names
from arnn_lightning.preprocessing.dataset import WithoutAttribute
from arnn_lightning.reporting.console import data_notes
from arnn_lightning.reporting.verdict import format_duration, write_verdict
from arnn_lightning.reporting.verdict_figures import VerdictFigures, lacks_new_users
from arnn_lightning.run_folder import (
    METRICS_FILE,
    has_record,
    require_same_settings,
    stored_config,
    task_folder,
    write_record,
)
from arnn_lightning.sweeps.plan import (
    CONTROLS,
    MARGIN,
    PROFILE_MODEL,
    SESSION_MODEL,
    Costs,
    Extension,
    FirstEpoch,
    Job,
    Plan,
    TooSlowError,
    counted_jobs,
    extend_plan,
    make_plan,
    measured_costs,
    plan_line,
    run_seconds,
    seconds_of,
    seed_jobs,
)
from arnn_lightning.tasks import train
from arnn_lightning.tasks.prepare import prepare_data
from arnn_lightning.training.checkpoint import BEST_OF_RUN, build_model, load_weights, read_checkpoint
from arnn_lightning.training.stage import (
    evaluate_model,
    n_epochs,
    prediction_metrics,
    run_settings,
    to_container,
)

log = logging.getLogger(__name__)
TASK_KEYS = ("task", "budget", "max_seeds", "smallest_gain", "counted", "seed")


def run(config: DictConfig) -> None:
    """Trains what fits into the budget, and writes verdict.json, verdict.md and verdict.html.

    Raises:
        UserError: no attributes, no validation split, unknown models, a folder with other settings or of another log.
    """
    if config.trainer.get("strategy") is not None:
        raise UserError("task=verdict is not supported with trainer=ddp: its runs are one process each")
    if config.data.contexts.assignment != "own":
        raise UserError("data.contexts.assignment: task=verdict sets it, run by run; leave it out")
    if HydraConfig.get().runtime.choices.get("experiment") is not None:
        raise UserError("experiment: is not supported with task=verdict, which sets the models; choose data=NAME")
    require_counted(config.counted)
    with task_folder(config) as folder:
        if has_record(folder):
            require_same_settings(config, folder, ("budget", "max_seeds", "smallest_gain"))
        try:
            Verdict(config, folder).run()
        except KeyboardInterrupt:
            sys.stderr.write("Interrupted. The same command resumes the verdict.\n")
            raise


def require_counted(models: Sequence[str]) -> None:
    """Raises UserError where one of the models does not exist, or is trained."""
    options = GlobalHydra.instance().config_loader().get_group_options("model")
    known = [name for name in options if not name.startswith("_")]
    for name in models:
        if name not in known:
            raise UserError(f"counted={name}: no such model{nearest(name, known)}")
        if "optimizer" in compose(f"model/{name}").model:
            raise UserError(f"counted={name}: is trained; counted takes models without training, such as sr")


class Verdict:
    """The runs of a verdict, and what follows from them.

    Args:
        config: of the task.
        folder: of the runs, and of the page.
    """

    def __init__(self, config: DictConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        given = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
        self.given = [
            str(override.input_line)
            for override in given
            if override.get_key_element().lstrip("+~").split(".")[0] not in TASK_KEYS
        ]
        self.prepared = prepare_data(copy.deepcopy(config))
        n_attributes = config.data.contexts.n_attributes
        self.attributes = attribute_names(self.prepared.manifest["config"]["contexts"])[:n_attributes]
        if not self.attributes:
            raise UserError(f"data={config.data.name} has no attributes; list them in data.contexts.single or .multi")
        if not self.prepared.manifest["splits"]["val"]["events"]:
            raise UserError(f"data={config.data.name} has no validation split: set data.split.val_days")
        self.budget = seconds_of(config.budget)
        self.metric = str(config.evaluation.monitor)
        self.bootstrap = to_container(config.evaluation.bootstrap)
        self.counted = counted_jobs(folder, config.counted, config.seed)
        self.seeds: list[int] = []  # whose runs are complete
        self.plan, self.costs = Plan(0, False, False, 0.0), Costs(0.0, 0.0, 0.0, 0.0)
        self.lacks_new_users = lacks_new_users(self.prepared)
        self._earlier_seconds = 0.0  # of the runs that other processes finished
        self._started = time.monotonic()

    # Runs

    def _jobs(self, seed: int) -> dict[str, Job]:
        return seed_jobs(self.folder, seed, self.plan.holds_out_users)

    def run(self) -> None:
        if not has_record(self.folder):
            write_record(self.config, self.folder)
        first_seed = self.config.seed
        first = self._jobs(first_seed)
        self._require_same_log([*self.counted, *(job for s in self._all_seeds() for job in self._jobs(s).values())])
        self._earlier_seconds = sum(run_seconds(file) for file in self.folder.glob(f"*/{METRICS_FILE}"))
        log.info(
            f"budget {format_duration(self.budget)}; measured first: models without training, {SESSION_MODEL} and "
            f"{PROFILE_MODEL} with seed {first_seed}"
        )
        try:
            self._execute(first["session"], FirstEpoch(self.budget))
            for job in (*self.counted, first["own"]):
                self._execute(job)
        except TooSlowError as error:
            self._conclude(float(error.args[0]))
            return
        costs = self.costs = measured_costs(self.counted, first, len(self.attributes))
        self.plan = make_plan(self.budget, costs, self.config.max_seeds, self.lacks_new_users)
        n_finished = sum(all(job.is_finished for job in self._jobs(seed).values()) for seed in self._all_seeds())
        if n_finished >= 2:  # with a larger budget, earlier
            self.plan = self.plan._replace(n_seeds=max(self.plan.n_seeds, n_finished))
        three_seeds = " ".join(self._extension(2, 0.0).settings)
        log.info(plan_line(self.plan, costs, self.config.budget, len(self.attributes), three_seeds))
        if not self.plan.n_seeds:
            self._conclude(self.plan.seconds)
            return
        per_seed = (self.plan.seconds - costs.counted) / self.plan.n_seeds / MARGIN
        for number, seed in enumerate(self._all_seeds()[: self.plan.n_seeds]):
            jobs = self._jobs(seed)
            if number >= 2 and not jobs["per_session"].is_finished and self._spent() + per_seed > self.budget:
                log.info(f"the runs took longer than planned; stopped after {number} seeds")
                break
            for job in jobs.values():
                self._execute(job)
            if self.plan.hides_attributes:
                self._hide_attributes(seed)
            self.seeds.append(seed)
        self._conclude(None)

    def _extension(self, n_seeds: int, spent: float) -> Extension:
        return extend_plan(
            self.plan, n_seeds, self.budget, spent, self.costs, self.config.max_seeds, self.lacks_new_users
        )

    def _all_seeds(self) -> range:
        return range(self.config.seed, self.config.seed + self.config.max_seeds)

    def _spent(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._started

    def _require_same_log(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.is_finished and job.metrics()["manifest"] != self.prepared.manifest_sha256:
                raise UserError(
                    f"{job.folder}: was trained on another log, and a verdict is of one log; use a new hydra.run.dir, "
                    f"such as {os.path.relpath(self.folder)}-2"
                )

    def _compose(self, overrides: Sequence[str], seed: int, folder: Path) -> DictConfig:
        given = self.given if any(text.startswith("logger=") for text in self.given) else [*self.given, "logger=csv"]
        job: DictConfig = compose(
            "config", overrides=[*given, *overrides, f"seed={seed}", "task=train"], return_hydra_config=True
        )
        with open_dict(job):
            job.baselines = {}  # runs of their own, with validation
            job.paths.data = self.config.paths.data  # absolute
            job.hydra.mode = RunMode.RUN
            job.hydra.run.dir = str(folder)
            job.resume = has_record(folder)
        return job

    def _execute(self, job: Job, *callbacks: Callback) -> None:
        """Runs a job as task=train does, unless it is finished; resumes it where it was interrupted.

        Raises:
            UserError, TooSlowError: what the run raises.
        """
        if job.is_finished:
            return
        log.info(
            f"[{format_duration(self._spent())}] {'resumes' if has_record(job.folder) else 'trains'} {job.description}"
        )
        config = self._compose(job.overrides, job.seed, job.folder)
        if job.session_from is not None:
            config.pretrained.session = str(job.session_from / BEST_OF_RUN)
        with quiet():
            train.train_as_job(config, callbacks)

    def _hide_attributes(self, seed: int) -> None:
        """Tests the model of a seed without each attribute; the ranks are in its run folder."""
        run_folder = self._jobs(seed)["own"].folder
        missing = [name for name in self.attributes if not self._hidden_file(seed, name).is_file()]
        if not missing:
            return
        config = stored_config(run_folder)
        checkpoint = read_checkpoint(run_folder)
        model = build_model(checkpoint["metadata"]["model"], run_settings(config))
        load_weights(model, checkpoint, run_folder)
        for name in missing:
            result = evaluate_model(model, WithoutAttribute(self.prepared.folder, name), config)
            with atomic_path(self._hidden_file(seed, name)) as path:
                result.ranks.write_parquet(path)

    def _hidden_file(self, seed: int, attribute: str) -> Path:
        return self._jobs(seed)["own"].folder / "without_attribute" / f"{self.attributes.index(attribute)}.parquet"

    # The answer

    def _conclude(self, seconds_needed: float | None) -> None:
        """Writes the page; with ``seconds_needed``, which the budget does not have, one without an answer."""
        verdict: dict[str, Any] = {
            "helps": "unclear",
            "data": self.config.data.name,
            "notes": data_notes(self.config.data),
            "metric": self.metric,
            "seeds": self.seeds,
            "budget": self.budget,
            "seconds": round(self._spent(), 1),
            "seconds_needed": seconds_needed,
            "smallest_gain": self.config.smallest_gain,
            "bootstrap": self.bootstrap | {"seed": self.config.seed},
            "manifest": self.prepared.manifest_sha256,
            "splits": self.prepared.manifest["splits"],
            "session_model": SESSION_MODEL,
            "profile_model": PROFILE_MODEL,
        }
        if self.seeds:
            verdict |= self._figures()
        paragraph = write_verdict(verdict, self.folder)
        console = Console()
        for line in (paragraph, f"the page: {self.folder / 'verdict.html'}"):
            console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _figures(self) -> dict[str, Any]:
        """The part of verdict.json that follows from the finished runs."""
        jobs = [self._jobs(seed) for seed in self.seeds]
        models = {
            name: [EvaluationResult.read(name, of_seed[name].folder) for of_seed in jobs]
            for name in ("session", "own", *CONTROLS)
        }
        folders = [of_seed["own"].folder for of_seed in jobs]
        part = stored_config(folders[0]).model.get("context")
        context = None if part is None else str(part.name)
        counted = {job.description: EvaluationResult.read(job.description, job.folder) for job in self.counted}
        validation = {name: float(np.mean([self._validation(of_seed[name]) for of_seed in jobs])) for name in models}
        validation |= {job.description: self._validation(job) for job in self.counted}
        if context is not None:
            models["context"] = [EvaluationResult.read(context, folder, "context") for folder in folders]
        held_out = None
        if self.plan.holds_out_users:
            folders = [of_seed["new_users"].folder for of_seed in jobs]
            own = [EvaluationResult.read("own", folder) for folder in folders]
            held_out = own, [EvaluationResult.read("session", folder, "session") for folder in folders]
        without_attribute = (
            (name, [EvaluationResult(name, pl.read_parquet(self._hidden_file(seed, name))) for seed in self.seeds])
            for name in (self.attributes if self.plan.hides_attributes else [])
        )  # read one by one: their ranks take as much memory as those of the models
        metrics = list(dict.fromkeys([*prediction_metrics(self.config), self.metric]))
        smallest_gain, seed = self.config.smallest_gain, self.config.seed
        figures = VerdictFigures(
            self.prepared, self.attributes, self.metric, metrics, self.bootstrap, seed, smallest_gain
        ).compute(models, counted, validation, held_out, without_attribute)
        for job in self.counted:
            figures["counted"][job.description]["uses_profiles"] = uses_profiles(stored_config(job.folder).model)
        return figures | {
            "context_model": context,
            "holds_out_users": self.plan.holds_out_users,
            "more_seeds": self._extension(len(self.seeds), self._spent())._asdict(),
            "rising": [row for arm in ("session", "own") for row in self._rising([of_seed[arm] for of_seed in jobs])],
            "deploy": self._deployment(figures, validation, jobs),
            "runs": [
                {"folder": job.folder.name, "command": self._command(job), "seconds": round(job.seconds, 1)}
                for job in (*self.counted, *(job for of_seed in jobs for job in of_seed.values()))
            ],
        }

    def _validation(self, job: Job) -> float:
        return float(job.metrics()["val"][self.metric])

    def _rising(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """A row where the runs of most seeds were best in their last epoch."""
        if 2 * sum(job.was_best_in_last_epoch(self.metric) for job in jobs) <= len(jobs):
            return []
        config = stored_config(jobs[0].folder)
        epochs = n_epochs(config, config.model)
        return [{"model": config.model.name, "epochs": epochs, "is_capped": epochs < config.model.epochs}]

    def _deployment(
        self, figures: Mapping[str, Any], validation: Mapping[str, float], jobs: Sequence[Mapping[str, Job]]
    ) -> dict[str, Any]:
        """The model that is best on validation: where profiles help, of all, else of those without profiles."""
        helps = figures["helps"] == "yes"
        arm, trained = ("own", PROFILE_MODEL) if helps else ("session", SESSION_MODEL)
        counted = {name: row["uses_profiles"] for name, row in figures["counted"].items()}
        values = {trained: validation[arm]} | {name: validation[name] for name in counted if helps or not counted[name]}
        values = dict(sorted(values.items(), key=lambda item: -item[1]))
        model = next(iter(values))
        candidates = [job for job in self.counted if job.description == model] or [of_seed[arm] for of_seed in jobs]
        job = max(candidates, key=self._validation)
        return {
            "model": model,
            "counted": model in counted,
            "uses_profiles": counted.get(model, helps),
            "chosen_from": values,
            "command": self._command(job),
            "trained": os.path.relpath(job.folder),
        }

    def _command(self, job: Job) -> str:
        overrides = (*job.overrides, f"seed={job.seed}", *self.given)
        return " ".join(["python -m arnn_lightning", *map(_shell, overrides)])


def uses_profiles(model: DictConfig) -> bool:
    """Whether a model without training uses profiles."""
    return bool(model.get("context_weight", 0)) or bool(getattr(get_class(model._target_), "uses_contexts", False))


def _shell(override: str) -> str:
    return override if re.fullmatch(r"[\w.,=/@:+~-]+", override) else "'" + override.replace("'", "'\\''") + "'"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the tables and the first lines of single runs; the lines of their epochs and warnings are logged."""
    lines = logging.getLogger(train.__name__)
    level = lines.level
    lines.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        lines.setLevel(level)

"""task=verdict: do profiles help? Training runs within a budget of time, and one page with the answer."""

import contextlib
import copy
import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from hydra import compose
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console

from arnn_lightning.config import DURATION
from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.decision import (
    Gain,
    check_claims,
    decide,
    group_gains,
    measure_gain,
    paired_values,
)
from arnn_lightning.evaluation.groups import by_known_attributes, by_popularity, by_position, by_seen
from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.io import atomic_path
from arnn_lightning.preprocessing.contexts import PREFIX, attribute_names
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.reporting.console import data_notes
from arnn_lightning.reporting.verdict import format_duration, write_verdict
from arnn_lightning.run_folder import (
    METRICS_FILE,
    has_record,
    require_same_settings,
    stored_config,
    task_folder,
    write_record,
)
from arnn_lightning.tasks import train
from arnn_lightning.tasks.prepare import prepare_data
from arnn_lightning.training.checkpoint import BEST_OF_RUN, build_model, load_weights, read_checkpoint
from arnn_lightning.training.stage import evaluate_model, prediction_metrics, run_settings, to_container

log = logging.getLogger(__name__)
SESSION_MODEL, PROFILE_MODEL = "gru4rec_strong", "arnn_strong"
CONTROLS = ("permuted", "per_session")  # assignments of data.contexts.assignment
TASK_KEYS = ("task", "budget", "max_seeds", "smallest_gain", "counted", "seed")
HELD_OUT_SHARE = 0.2
MIN_NEW_USERS = 100  # users without a training session in the test split: with fewer, users are held out
MARGIN = 1.1  # of the planned time
MAX_VALUES = 8  # groups of an attribute's values: the most frequent ones


class Job(NamedTuple):
    """One training run of the plan.

    Attributes:
        folder: its run folder.
        overrides: of the command line that trains it.
        seed: of the run.
        description: for the progress lines.
        session_from: the run folder whose session encoder it takes.
    """

    folder: Path
    overrides: tuple[str, ...]
    seed: int
    description: str
    session_from: Path | None = None

    @property
    def is_finished(self) -> bool:
        return (self.folder / METRICS_FILE).is_file()

    def metrics(self) -> dict[str, Any]:
        """Its metrics.json."""
        metrics: dict[str, Any] = json.loads((self.folder / METRICS_FILE).read_text())
        return metrics

    @property
    def seconds(self) -> float:
        """How long it took."""
        return _seconds(self.metrics())


def _seconds(metrics: Mapping[str, Any]) -> float:
    return float(sum(metrics["seconds"].values()))


class Costs(NamedTuple):
    """Measured seconds: of all counted models, of one training of each model, and of one test without an attribute."""

    counted: float
    session: float
    profile: float
    attributes: float


class Plan(NamedTuple):
    """What fits into the budget.

    Attributes:
        n_seeds: number of seeds; 0 where not even two fit.
        holds_out_users: whether a run per seed is trained without some users, who are then tested.
        hides_attributes: whether the models are tested without each attribute.
        seconds: of the whole plan; where nothing fits, of the smallest plan.
    """

    n_seeds: int
    holds_out_users: bool
    hides_attributes: bool
    seconds: float


def seconds_of(duration: str) -> float:
    """The seconds of a duration.

    >>> seconds_of("90s"), seconds_of("15m"), seconds_of("2h")
    (90.0, 900.0, 7200.0)
    """
    match = re.fullmatch(DURATION, duration)
    assert match is not None  # a rule of the settings
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def make_plan(budget: float, costs: Costs, max_seeds: int, lacks_new_users: bool) -> Plan:
    """The plan with most for ``budget`` seconds: three seeds come before held-out users, and these before attributes.

    Two seeds give an interval that is seldom narrow enough, so what is additional is dropped for the third.

    Args:
        budget: seconds, those of the finished runs included.
        costs: measured.
        max_seeds: the largest number of seeds.
        lacks_new_users: whether users must be held out to test the models on new ones.
    """
    smallest = 0.0
    for at_least in (min(3, max_seeds), 2):
        for holds_out, hides in dict.fromkeys([(lacks_new_users, True), (False, True), (False, False)]):
            per_seed = MARGIN * (
                costs.session
                + (1 + len(CONTROLS)) * costs.profile
                + holds_out * (costs.session + costs.profile)
                + hides * costs.attributes
            )
            n_seeds = min(int((budget - costs.counted) / per_seed), max_seeds)
            if n_seeds >= at_least:
                return Plan(n_seeds, holds_out, hides, costs.counted + n_seeds * per_seed)
            smallest = costs.counted + 2 * per_seed
    return Plan(0, False, False, smallest)


@dataclass(frozen=True)
class WithoutAttribute(PreparedDataset):
    """A prepared data set in which one attribute of all users is unknown."""

    hidden_attribute: str

    def users(self) -> pl.DataFrame:
        users, vocabulary = super().users(), self.vocabulary()
        column = f"{PREFIX}{self.hidden_attribute}"
        if column in users.columns:
            return users.with_columns(pl.lit(0, users.schema[column]).alias(column))
        codes = vocabulary.filter(pl.col("attribute") == self.hidden_attribute, pl.col("kind") == "multi")["code"]
        return users.with_columns(pl.col("active").list.filter(~pl.element().is_in(codes.implode())))


class TooSlowError(Exception):
    """The first run would take the whole budget; its argument is the seconds that the smallest plan needs."""


class FirstEpoch(Callback):
    """Ends the first run after an epoch where its other epochs leave no time for the runs after it."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = (time.monotonic() - self._started) / (trainer.current_epoch + 1) * (trainer.max_epochs or 1)
        smallest = 2 * (2 + len(CONTROLS)) * seconds  # a model with profiles takes as long, at least
        if smallest > self.budget:
            raise TooSlowError(smallest)


def run(config: DictConfig) -> None:
    """Trains what fits into the budget, and writes verdict.json, verdict.md and verdict.html.

    Raises:
        UserError: no attributes, no validation split, a folder with other settings or of another log.
    """
    if config.trainer.get("strategy") is not None:
        raise UserError("task=verdict is not supported with trainer=ddp: its runs are one process each")
    if config.data.contexts.assignment != "own":
        raise UserError("data.contexts.assignment: task=verdict sets it, run by run; leave it out")
    if HydraConfig.get().runtime.choices.get("experiment") is not None:
        raise UserError("experiment: is not supported with task=verdict, which sets the models; choose data=NAME")
    with task_folder(config) as folder:
        if has_record(folder):
            require_same_settings(config, folder, ("budget", "max_seeds", "smallest_gain"))
        try:
            Verdict(config, folder).run()
        except KeyboardInterrupt:
            sys.stderr.write("Interrupted. The same command resumes the verdict.\n")
            raise


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
        self.counted = [self._job(name, config.seed, f"model={name}") for name in config.counted]
        self.seeds: list[int] = []  # whose runs are complete
        self.plan = Plan(0, False, False, 0.0)
        self._earlier_seconds = 0.0  # of the runs that other processes finished
        self._started = time.monotonic()

    # Runs

    def _job(self, name: str, seed: int, *overrides: str, session_from: Path | None = None) -> Job:
        is_seeded = name not in self.config.counted
        folder = self.folder / (f"{name}-seed{seed}" if is_seeded else f"counted-{name}")
        description = f"{overrides[0].removeprefix('model=')}" + (f", {name}, seed {seed}" if is_seeded else "")
        return Job(folder, overrides, seed, description, session_from)

    def _jobs(self, seed: int) -> dict[str, Job]:
        """The runs of one seed, by name, in the order of training."""
        jobs = {"session": self._job("session", seed, f"model={SESSION_MODEL}")}
        for assignment in ("own", *CONTROLS):
            overrides = (f"model={PROFILE_MODEL}", f"data.contexts.assignment={assignment}")
            jobs[assignment] = self._job(assignment, seed, *overrides, session_from=jobs["session"].folder)
        if self.plan.holds_out_users:
            share = f"data.held_out_user_share={HELD_OUT_SHARE}"
            jobs["new_users"] = self._job("new_users", seed, f"model={PROFILE_MODEL}", share)
        return jobs

    def run(self) -> None:
        if not has_record(self.folder):
            write_record(self.config, self.folder)
        first_seed = self.config.seed
        first = self._jobs(first_seed)
        self._require_same_log([*self.counted, *(job for s in self._all_seeds() for job in self._jobs(s).values())])
        self._earlier_seconds = sum(
            _seconds(json.loads(file.read_text())) for file in self.folder.glob(f"*/{METRICS_FILE}")
        )
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
        costs = self._costs(first)
        self.plan = make_plan(self.budget, costs, self.config.max_seeds, self._lacks_new_users())
        n_finished = sum(all(job.is_finished for job in self._jobs(seed).values()) for seed in self._all_seeds())
        if n_finished >= 2:  # with a larger budget, earlier
            self.plan = self.plan._replace(n_seeds=max(self.plan.n_seeds, n_finished))
        log.info(self._plan_line(costs))
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

    def _all_seeds(self) -> range:
        return range(self.config.seed, self.config.seed + self.config.max_seeds)

    def _spent(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._started

    def _require_same_log(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.is_finished and job.metrics()["manifest"] != self.prepared.manifest_sha256:
                raise UserError(
                    f"{job.folder}: was trained on another log than there is now; use another hydra.run.dir"
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

        def train_or_error(config: DictConfig) -> Exception | None:
            try:
                train.train(config, callbacks)
            except Exception as error:  # raised below: Hydra would print it
                return error
            return None

        context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
        with quiet():
            error = run_job(
                train_or_error, config, "hydra.run.dir", None, context, configure_logging=False
            ).return_value
        if isinstance(error, Exception):
            raise error

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

    # The plan

    def _costs(self, first: Mapping[str, Job]) -> Costs:
        test = float(first["own"].metrics()["seconds"]["test"])
        counted = sum(job.seconds for job in self.counted)
        return Costs(counted, first["session"].seconds, first["own"].seconds, test * len(self.attributes))

    def _lacks_new_users(self) -> bool:
        train_users = pl.read_parquet(self.prepared.folder / "train.parquet", columns=["user"])["user"]
        test_users = pl.read_parquet(self.prepared.folder / "test.parquet", columns=["user"])["user"].unique()
        return int((~test_users.is_in(train_users.unique().implode())).sum()) < MIN_NEW_USERS

    def _plan_line(self, costs: Costs) -> str:
        plan = self.plan
        measured = (
            f"measured: {SESSION_MODEL} {format_duration(costs.session)}, {PROFILE_MODEL} "
            f"{format_duration(costs.profile)}, models without training {format_duration(costs.counted)}"
        )
        if not plan.n_seeds:
            return (
                f"{measured}; budget={self.config.budget} is too short for two seeds, which need about "
                f"{format_duration(plan.seconds)}: nothing more is trained"
            )
        parts = [f"{SESSION_MODEL} and {PROFILE_MODEL} with own, permuted and per-session profiles"]
        parts += [f"{PROFILE_MODEL} without a fifth of the users"] if plan.holds_out_users else []
        parts += [f"tests without each of {len(self.attributes)} attributes"] if plan.hides_attributes else []
        return f"{measured}; plan: {plan.n_seeds} seeds of {', '.join(parts)}: {format_duration(plan.seconds)} in all"

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
        jobs = [self._jobs(seed) for seed in self.seeds]
        arms = {
            arm: [EvaluationResult.read(arm, of_seed[arm].folder) for of_seed in jobs]
            for arm in ("session", "own", *CONTROLS)
        }
        validation = {arm: float(np.mean([self._validation(of_seed[arm]) for of_seed in jobs])) for arm in arms}
        counted = {job.description: EvaluationResult.read(job.description, job.folder) for job in self.counted}
        validation |= {job.description: self._validation(job) for job in self.counted}
        best = max(counted, key=validation.__getitem__)
        arms["counted"] = [counted[best]]
        gains = {
            name: self._gain(arms[arm], arms[base])
            for name, (arm, base) in {
                "over_session": ("own", "session"),
                "over_per_session": ("own", "per_session"),
                "content": ("own", "permuted"),
                "recognition": ("permuted", "per_session"),
                "over_counted": ("own", "counted"),
            }.items()
        }
        new_users, gain = self._new_users(arms, jobs)
        if gain is not None:
            gains["new_users"] = gain
        helps = decide(gains["over_session"], gains["over_per_session"], self.config.smallest_gain)
        families = ("content", "recognition", "over_counted", "new_users")
        claims = {name: gains[name] for name in families if name in gains}
        models = {arm: arms[arm] for arm in ("session", "own", *CONTROLS)}
        return {
            "helps": helps,
            "smallest_gain_absolute": self.config.smallest_gain * gains["over_session"].base,
            "models": {arm: self._model_row(results, validation[arm]) for arm, results in models.items()},
            "counted": {name: self._model_row([result], validation[name]) for name, result in counted.items()},
            "best_counted": best,
            "gains": {name: asdict(gain) | {"relative": gain.relative} for name, gain in gains.items()},
            "claims": check_claims(claims, self.bootstrap["confidence"]),
            "new_users": new_users,
            "groups": self._groups(arms["own"], arms["session"]),
            "attribute_values": self._attribute_values(arms["own"], arms["session"]),
            "attributes": self._attribute_losses(arms["own"]),
            "deploy": self._deployment(helps, validation, best, jobs),
            "runs": [
                {"folder": job.folder.name, "command": self._command(*job.overrides, f"seed={job.seed}")}
                | {"seconds": round(job.seconds, 1)}
                for job in (*self.counted, *(job for of_seed in jobs for job in of_seed.values()))
            ],
        }

    def _validation(self, job: Job) -> float:
        return float(job.metrics()["val"][self.metric])

    def _gain(self, results: Sequence[EvaluationResult], bases: Sequence[EvaluationResult]) -> Gain:
        value, base = paired_values(results, bases, self.metric)
        return measure_gain(value, base, self._cluster(results), self.bootstrap, self.config.seed)

    def _cluster(self, results: Sequence[EvaluationResult]) -> np.ndarray:
        cluster: np.ndarray = results[0].ranks[self.bootstrap["unit"]].to_numpy()
        return cluster

    def _model_row(self, results: Sequence[EvaluationResult], validation: float) -> dict[str, Any]:
        names = list(dict.fromkeys([*prediction_metrics(self.config), self.metric]))
        metrics = [result.metrics(names) for result in results]
        return {
            "mean": {name: float(np.mean([of_seed[name] for of_seed in metrics])) for name in names},
            "deviation": {
                name: float(np.std([of_seed[name] for of_seed in metrics], ddof=1)) if len(metrics) > 1 else None
                for name in names
            },
            "validation": validation,
        }

    def _new_users(
        self, arms: Mapping[str, Sequence[EvaluationResult]], jobs: Sequence[Mapping[str, Job]]
    ) -> tuple[dict[str, Any] | None, Gain | None]:
        """The gain for users without a training session: of the test split, or held out."""
        held_out = self.plan.holds_out_users
        if held_out:
            own = [EvaluationResult.read("own", of_seed["new_users"].folder) for of_seed in jobs]
            session = [EvaluationResult.read("session", of_seed["new_users"].folder, "session") for of_seed in jobs]
            is_new = np.full(own[0].ranks.height, True)
        else:
            own, session = list(arms["own"]), list(arms["session"])
            train_events = pl.read_parquet(self.prepared.folder / "train.parquet", columns=["user"])
            is_new = (by_seen(own[0].ranks["user"], train_events) == "unseen").to_numpy()
        users = own[0].ranks["user"].to_numpy()[is_new]
        n_users = len(np.unique(users))
        if n_users < (1 if held_out else MIN_NEW_USERS):
            return None, None
        value, base = paired_values(own, session, self.metric)
        cluster = self._cluster(own)[is_new]
        gain = measure_gain(value[:, is_new], base[:, is_new], cluster, self.bootstrap, self.config.seed)
        return {"users": n_users, "predictions": len(users), "held_out": held_out}, gain

    def _groups(self, own: Sequence[EvaluationResult], session: Sequence[EvaluationResult]) -> dict[str, Any]:
        ranks, folder = own[0].ranks, self.prepared.folder
        train_events = pl.read_parquet(folder / "train.parquet", columns=["user", "item"])
        labels = {
            "position": by_position(ranks["position"]),
            "known_attributes": by_known_attributes(ranks["user"], self.prepared.users()),
            "seen_in_training": by_seen(ranks["user"], train_events),
            "popularity": by_popularity(ranks["item"], train_events, int(self.prepared.dims["n_items"])),
        }
        groups = {}
        for by, label in labels.items():
            assert isinstance(label.dtype, pl.Enum)
            members = {name: (label == name).to_numpy() for name in label.dtype.categories}
            groups[by] = self._group_gains(own, session, members)
        return groups

    def _attribute_values(self, own: Sequence[EvaluationResult], session: Sequence[EvaluationResult]) -> dict[str, Any]:
        """For each attribute the gain of its most frequent values, "unknown" among them."""
        user = own[0].ranks["user"].to_numpy()
        return {
            name: self._group_gains(own, session, {value: is_in[user] for value, is_in in values})
            for name, values in ((name, self._values(name, user)) for name in self.attributes)
        }

    def _values(self, attribute: str, user: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """The values of an attribute with most predictions: name, (U,) whether a user has it."""
        users = self.prepared.users()
        rows = self.prepared.vocabulary().filter(pl.col("attribute") == attribute).to_dicts()
        column = f"{PREFIX}{attribute}"
        values: dict[str, np.ndarray] = {}
        if column in users.columns:
            codes = users[column].to_numpy()
            values["unknown"] = codes == 0
            for row in rows:
                low = row["low"]
                name = str(row["category"]) if low is None else f"from {low:g}"
                values[name] = codes == row["code"]
        else:
            for row in rows:
                is_in = users["active"].list.contains(pl.lit(row["code"], pl.UInt32)).to_numpy()
                values[str(row["category"])] = values.get(str(row["category"]), False) | is_in
        frequent = sorted(values.items(), key=lambda value: -int(value[1][user].sum()))
        return [(name, is_in) for name, is_in in frequent[:MAX_VALUES] if is_in[user].any()]

    def _group_gains(
        self,
        own: Sequence[EvaluationResult],
        session: Sequence[EvaluationResult],
        members: Mapping[str, np.ndarray],
    ) -> list[dict[str, Any]]:
        value, base = paired_values(own, session, self.metric)
        return group_gains(value, base, members, self._cluster(own), self.bootstrap, self.config.seed).to_dicts()

    def _attribute_losses(self, own: Sequence[EvaluationResult]) -> list[dict[str, Any]]:
        """What the model loses when an attribute is unknown, the largest loss first; empty where not tested."""
        losses = []
        for name in self.attributes if self.plan.hides_attributes else []:
            hidden = [EvaluationResult(name, pl.read_parquet(self._hidden_file(seed, name))) for seed in self.seeds]
            loss = self._gain(own, hidden)
            losses.append({"attribute": name, "mean": loss.mean, "low": loss.low, "high": loss.high})
        return sorted(losses, key=lambda loss: -loss["mean"])

    def _deployment(
        self, helps: str, validation: Mapping[str, float], best: str, jobs: Sequence[Mapping[str, Job]]
    ) -> dict[str, Any]:
        """The model to deploy: the one with profiles where they help; a counted one where it validates better."""
        arm, model = ("own", PROFILE_MODEL) if helps == "yes" else ("session", SESSION_MODEL)
        candidates = [of_seed[arm] for of_seed in jobs]
        if is_counted := validation[best] > validation[arm]:
            model, candidates = best, [job for job in self.counted if job.description == best]
        job = max(candidates, key=self._validation)
        return {
            "model": model,
            "counted": is_counted,
            "command": self._command(f"model={model}"),
            "trained": os.path.relpath(job.folder),
        }

    def _command(self, *overrides: str) -> str:
        given = [text for text in self.given if not text.startswith(("logger=", "paths.", "performance."))]
        return " ".join(["python -m arnn_lightning", *map(_shell, (*overrides, *given))])


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

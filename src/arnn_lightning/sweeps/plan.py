"""The runs of task=verdict, and the plan: how many seeds fit into the budget, and what is additional."""

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from pytorch_lightning import Callback, LightningModule, Trainer

from arnn_lightning.config.rules import DURATION
from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.result import results_of
from arnn_lightning.reporting.verdict_text import format_duration
from arnn_lightning.run_folder import METRICS_FILE

SESSION_MODEL, PROFILE_MODEL = "gru4rec_strong", "arnn_strong"
CONTROLS = ("permuted", "per_session")  # assignments of data.contexts.assignment
HELD_OUT_KEY, HELD_OUT_SHARE = "data.held_out_user_share", 0.2
MARGIN = 1.1  # of the planned time
SECONDS_FILE = "seconds.json"  # of all runs of a verdict, in its folder


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
    def holds_out_users(self) -> bool:
        """Whether some users are not in its training data, which are prepared apart."""
        return any(override.startswith(HELD_OUT_KEY) for override in self.overrides)

    @property
    def is_finished(self) -> bool:
        return (self.folder / METRICS_FILE).is_file()

    def metrics(self) -> dict[str, Any]:
        """Its metrics.json."""
        with results_of(self.folder):
            metrics: dict[str, Any] = json.loads((self.folder / METRICS_FILE).read_text())
        return metrics

    def was_best_in_last_epoch(self, metric: str) -> bool:
        """Whether the last epoch has the largest validation metric; False without a metrics.csv (logger=none)."""
        file = self.folder / "metrics.csv"
        if not file.is_file():
            return False
        rows = pl.read_csv(file, glob=False).filter(pl.col("metric") == f"val/{metric}")
        values = rows.group_by("epoch").agg(pl.col("value").last()).sort("epoch")["value"]
        return len(values) > 0 and values.arg_max() == len(values) - 1

    @property
    def seconds(self) -> float:
        """The seconds that it took, interrupted attempts included."""
        return spent_seconds(self.folder.parent)[self.folder.name]

    def ranks_without(self, attribute: str, attributes: Sequence[str]) -> Path:
        """The file of its test ranks with one of the ``attributes`` unknown."""
        return self.folder / "without_attribute" / f"{attributes.index(attribute)}.parquet"

    def command(self, given: Sequence[str]) -> str:
        """The command that trains it; ``given``: overrides of the verdict's command. The last of a key wins."""
        overrides = (*given, *self.overrides, f"seed={self.seed}")
        return " ".join(["python -m arnn_lightning", *map(_shell, overrides)])


def _shell(override: str) -> str:
    return override if re.fullmatch(r"[\w.,=/@:+~-]+", override) else "'" + override.replace("'", "'\\''") + "'"


def spent_seconds(folder: Path) -> dict[str, float]:
    """The seconds of every run below ``folder`` by the name of its folder, those of interrupted attempts included.

    A resumed run's metrics.json has the seconds of its last attempt alone; it counts where ``SECONDS_FILE`` has none.

    Raises:
        UserError: a damaged file.
    """
    seconds: dict[str, float] = {}
    for file in folder.glob(f"*/{METRICS_FILE}"):
        with results_of(file.parent):
            seconds[file.parent.name] = float(sum(json.loads(file.read_text())["seconds"].values()))
    if (file := folder / SECONDS_FILE).is_file():
        try:
            seconds |= {name: float(value) for name, value in json.loads(file.read_bytes()).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{file}: damaged; delete it: the time of interrupted attempts will not count") from error
    return seconds


def non_neural_jobs(folder: Path, models: Sequence[str], seed: int) -> list[Job]:
    """The runs of the non-neural models, in folders below ``folder``."""
    return [Job(folder / f"non_neural-{model}", (f"model={model}",), seed, model) for model in dict.fromkeys(models)]


def seed_jobs(folder: Path, seed: int, holds_out_users: bool) -> dict[str, Job]:
    """The runs of one seed, by name, in the order of training; in folders below ``folder``."""

    def job(name: str, model: str, *overrides: str, session_from: Path | None = None) -> Job:
        description = f"{model}, {name}, seed {seed}"
        return Job(folder / f"{name}-seed{seed}", (f"model={model}", *overrides), seed, description, session_from)

    jobs = {"session": job("session", SESSION_MODEL)}
    for assignment in ("own", *CONTROLS):
        override = f"data.contexts.assignment={assignment}"
        jobs[assignment] = job(assignment, PROFILE_MODEL, override, session_from=jobs["session"].folder)
    if holds_out_users:
        jobs["new_users"] = job("new_users", PROFILE_MODEL, f"{HELD_OUT_KEY}={HELD_OUT_SHARE}")
    return jobs


class Costs(NamedTuple):
    """Measured seconds: of all non-neural models, of one training of each model, of tests without each attribute."""

    non_neural: float
    session: float
    profile: float
    attributes: float


class Plan(NamedTuple):
    """The runs that fit into the budget.

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


def measured_costs(non_neural: Sequence[Job], first: Mapping[str, Job], n_attributes: int) -> Costs:
    """The costs that finished runs have recorded.

    Args:
        non_neural: the runs of the non-neural models.
        first: the runs of the first seed, of which ``session`` and ``own`` are finished.
        n_attributes: number of attributes without each of which a model is tested.
    """
    test = float(first["own"].metrics()["seconds"]["test"])
    seconds = sum(job.seconds for job in non_neural)
    return Costs(seconds, first["session"].seconds, first["own"].seconds, test * n_attributes)


def seconds_of(duration: str) -> float:
    """The seconds of a duration.

    >>> seconds_of("90s"), seconds_of("15m"), seconds_of("2h")
    (90.0, 900.0, 7200.0)
    """
    match = re.fullmatch(DURATION, duration)
    assert match is not None  # a rule of the settings
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _per_seed(costs: Costs, holds_out_users: bool, hides_attributes: bool) -> float:
    return MARGIN * (
        costs.session
        + (1 + len(CONTROLS)) * costs.profile
        + holds_out_users * (costs.session + costs.profile)
        + hides_attributes * costs.attributes
    )


def _additions(lacks_new_users: bool) -> list[tuple[bool, bool]]:
    """Optional parts of a plan, all of them first: held-out users, and less important, tests without each attribute."""
    return list(dict.fromkeys([(lacks_new_users, True), (lacks_new_users, False), (False, True), (False, False)]))


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
        for holds_out, hides in _additions(lacks_new_users):
            per_seed = _per_seed(costs, holds_out, hides)
            n_seeds = min(int((budget - costs.non_neural) / per_seed), max_seeds)
            if n_seeds >= at_least:
                return planned(n_seeds, holds_out, hides, costs)
            smallest = costs.non_neural + 2 * per_seed
    return Plan(0, False, False, smallest)


def planned(n_seeds: int, holds_out_users: bool, hides_attributes: bool, costs: Costs) -> Plan:
    """A plan with these parts, and its seconds."""
    seconds = costs.non_neural + n_seeds * _per_seed(costs, holds_out_users, hides_attributes)
    return Plan(n_seeds, holds_out_users, hides_attributes, seconds)


class Extension(NamedTuple):
    """The settings and time that a larger verdict needs.

    Attributes:
        n_seeds: of the larger verdict.
        settings: of its command line, those that differ: ``max_seeds``, ``budget``.
        limited_by: what the number of seeds was limited by, ``max_seeds`` or ``budget``.
        seconds: that the larger verdict takes in addition.
        complete_budget: a budget that has time for held-out users and for tests without each attribute, too.
    """

    n_seeds: int
    settings: tuple[str, ...]
    limited_by: str
    seconds: float
    complete_budget: str


def extend_plan(
    plan: Plan, n_seeds: int, budget: float, spent: float, costs: Costs, max_seeds: int, lacks_new_users: bool
) -> Extension:
    """The next number of seeds whose intervals are much narrower: 3 after 2, then 5, then twice as many.

    Args:
        plan: of the verdict.
        n_seeds: whose runs are finished.
        budget, spent: seconds.
        costs, max_seeds, lacks_new_users: as of ``make_plan``.
    """
    larger = 3 if n_seeds == 2 else 5 if n_seeds < 5 else 2 * n_seeds
    totals = sorted(costs.non_neural + larger * _per_seed(costs, *added) for added in _additions(lacks_new_users))
    rounded = [60.0 * math.ceil(total / 60 + 1e-9) for total in totals]
    budgets = (enough for enough in (budget, *rounded) if enough >= budget)
    enough = next(enough for enough in budgets if make_plan(enough, costs, larger, lacks_new_users).n_seeds == larger)
    planned = costs.non_neural + n_seeds * _per_seed(costs, plan.holds_out_users, plan.hides_attributes)
    while True:  # a larger budget may add tests, of the finished seeds, too
        seconds = make_plan(enough, costs, larger, lacks_new_users).seconds - planned
        if spent + seconds <= enough:
            break
        enough = 60.0 * math.ceil((spent + seconds) / 60)
    settings = [f"max_seeds={larger}"] if larger > max_seeds else []
    settings += [f"budget={in_minutes(enough)}"] if enough > budget else []
    complete = costs.non_neural + max(min(3, max_seeds), n_seeds) * _per_seed(costs, lacks_new_users, True)
    return Extension(
        larger,
        tuple(settings),
        "max_seeds" if n_seeds >= max_seeds else "budget",
        seconds,
        in_minutes(complete),
    )


def in_minutes(seconds: float) -> str:
    """A budget in whole minutes that is large enough.

    >>> in_minutes(95)
    '2m'
    """
    return f"{math.ceil(seconds / 60 - 1e-9)}m"


def plan_line(plan: Plan, costs: Costs, budget: str, n_attributes: int, three_seeds: str) -> str:
    """The line that is logged: the measured seconds, and what the plan trains and tests.

    Args:
        plan: of ``make_plan``.
        costs: measured.
        budget: the setting, such as ``15m``.
        n_attributes: number of attributes without each of which the models are tested.
        three_seeds: the settings that give three seeds.
    """
    measured = (
        f"measured: {SESSION_MODEL} {format_duration(costs.session)}, {PROFILE_MODEL} "
        f"{format_duration(costs.profile)}, non-neural models {format_duration(costs.non_neural)}"
    )
    if not plan.n_seeds:
        return (
            f"{measured}; budget={budget} is too small for two seeds, which need about "
            f"{format_duration(plan.seconds)}: nothing more is trained"
        )
    parts = [f"{SESSION_MODEL} and {PROFILE_MODEL} with own, permuted and per-session profiles"]
    parts += [f"{PROFILE_MODEL} trained without a fifth of the users"] if plan.holds_out_users else []
    attributes = "the attribute" if n_attributes == 1 else f"each of {n_attributes} attributes in turn"
    parts += [f"tests without {attributes}"] if plan.hides_attributes else []
    line = f"{measured}; plan: {plan.n_seeds} seeds of {', '.join(parts)}: {format_duration(plan.seconds)} in all"
    return line if plan.n_seeds > 2 else f"{line}; two seeds are seldom enough; for three, set {three_seeds}"


class TooSlowError(Exception):
    """The first run would take the whole budget; its argument is the seconds that the smallest plan needs."""


class FirstEpoch(Callback):
    """Ends the first run after an epoch where its other epochs leave no time for the runs after it.

    Args:
        budget: seconds.
        compiles: whether the first epoch includes the compilation of the training step, which later runs reuse.
    """

    def __init__(self, budget: float, compiles: bool) -> None:
        self.budget, self.compiles = budget, compiles
        self._started = 0.0
        self._n_epochs = 0  # since then: a resumed run has more

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.compiles:  # an epoch later
            self.compiles, self._started = False, time.monotonic()
            return
        self._n_epochs += 1
        seconds = (time.monotonic() - self._started) / self._n_epochs * (trainer.max_epochs or 1)
        smallest = 2 * (2 + len(CONTROLS)) * seconds  # a model with profiles takes as long, at least
        if smallest > self.budget:
            raise TooSlowError(smallest)

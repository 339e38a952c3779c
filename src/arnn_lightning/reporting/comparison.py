"""What can be compared: models on one data set under one setting, averaged over seeds and over nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from arnn_lightning.evaluation.bootstrap import intervals
from arnn_lightning.evaluation.groups import list_metrics, tie_rate
from arnn_lightning.evaluation.metrics import session_means
from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.reporting.runs import DataSet, Run

ORDER = ("pop", "itemknn", "gru4rec", "pnn", "arnn")  # rows of the paper's Table 2; other models come after
LONGEST_LABEL = 3  # settings named in a label


@dataclass(frozen=True)
class Estimate:
    """A mean over attempts and seeds.

    Attributes:
        mean: of the seeds' means.
        low, high: bootstrap interval over users, of the mean over the seeds at hand.
        by_seed: the seeds' means; one for a model whose seeds are all alike.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds."""
        return float(np.std(self.by_seed, ddof=1)) if len(self.by_seed) > 1 else None


@dataclass
class Variant:
    """One model with one configuration in one section: a result per seed.

    Attributes:
        name: the model's name.
        config: its settings, flat.
        label: its name, and what tells it from others of the same name.
        results: by seed.
        own: by seed, the session part of the same run, where the model has one: what its gain is measured from.
        runs: by seed, the run it comes from.
        role: in those runs.
    """

    name: str
    config: Mapping[str, Any]
    role: str
    label: str = ""
    results: dict[int, EvaluationResult] = field(default_factory=dict)
    own: dict[int, EvaluationResult] = field(default_factory=dict)
    runs: dict[int, Run] = field(default_factory=dict)

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds whose results differ: the first alone for a model that draws nothing."""
        seeds = sorted(self.results)
        first = self.results[seeds[0]].ranks
        alike = all(self.results[seed].ranks.equals(first) for seed in seeds[1:])
        return seeds[:1] if alike and not self.own else seeds

    def per_prediction(self, metric: str) -> list[np.ndarray]:
        """(N,) values per seed."""
        return [self.results[seed].per_prediction(metric) for seed in self.seeds]

    def gains(self, metric: str, base: "Variant | None") -> list[np.ndarray]:
        """(N,) paired differences per seed to the session part of the same run, else to ``base``."""
        if self.own:
            return [self.results[seed].per_prediction(metric) - self.own[seed].per_prediction(metric) for seed in self.seeds]
        if base is None or base is self:
            return []
        seeds = sorted(set(self.results) & set(base.results))
        return [self.results[seed].per_prediction(metric) - base.results[seed].per_prediction(metric) for seed in seeds]


@dataclass
class Section:
    """Models on the same attempts: one data set, one setting.

    Attributes:
        data_key: identity of the data set.
        settings: what was configured, models apart, flat.
        label: what tells it from the other sections of the report; empty for a section alone on its data.
        variants: the models, in the order of Table 2.
        runs: all runs.
        notes: what a reader must know about it.
    """

    data_key: str
    settings: Mapping[str, Any]
    runs: list[Run]
    variants: list[Variant] = field(default_factory=list)
    label: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.runs[0].metrics["data"])

    @property
    def data(self) -> DataSet | None:
        return next((run.data for run in self.runs if run.data is not None), None)

    @property
    def attempts(self) -> pl.DataFrame:
        return self.runs[0].own.result.ranks

    @property
    def paper(self) -> Mapping[str, Mapping[str, float]]:
        """The paper's Table 2 where the data set is the paper's."""
        figures: Mapping[str, Mapping[str, float]] = (self.runs[0].config["data"].get("paper") or {}).get("table2", {})
        return figures

    def base(self, name: str) -> Variant | None:
        return next((one for one in self.variants if one.name == name), None)


def sections(runs: Sequence[Run], ties: str) -> list[Section]:
    """Groups runs by data and settings, and their models by configuration.

    Two results of the same model, configuration and seed (a GRU4REC alone and one that is a part) are one if their
    ranks are equal; if not, the first counts and a note says so.

    Args:
        runs: finished runs.
        ties: how ties are ranked in all of them, whatever each run chose.
    """
    grouped: dict[tuple[str, tuple[tuple[str, str], ...]], list[Run]] = {}
    for run in runs:
        setting = tuple(sorted((key, str(value)) for key, value in run.settings.items()))
        grouped.setdefault((run.data_key, setting), []).append(run)
    found = [Section(key, members[0].settings, members) for (key, _), members in grouped.items()]
    for section in found:
        _add_variants(section, ties)
    for name in {section.name for section in found}:
        alike = [section for section in found if section.name == name]
        for section in alike:
            section.label = _setting([one.settings for one in alike], section.settings)
            if len({one.data_key for one in alike}) > 1:
                section.notes.append(
                    f"{name} was prepared in {len({one.data_key for one in alike})} ways (see the manifests); "
                    "results on different data are not averaged"
                )
    return found


def _add_variants(section: Section, ties: str) -> None:
    variants: dict[tuple[str, tuple[tuple[str, str], ...]], Variant] = {}
    for run in section.runs:
        ranked = {entry.role: entry.result.with_tie_mode(ties) for entry in run.entries}
        for entry in run.entries:
            key = (entry.result.name, tuple(sorted((name, str(value)) for name, value in entry.config.items())))
            variant = variants.setdefault(key, Variant(entry.result.name, entry.config, entry.role))
            result = ranked[entry.role]
            known = variant.results.get(run.seed)
            if known is not None:
                if not known.ranks.equals(result.ranks):
                    section.notes.append(
                        f"{entry.result.name}, seed {run.seed}: {run.folder} and {variant.runs[run.seed].folder} "
                        "have one configuration and other ranks; the second counts"
                    )
                continue
            if not run.own.result.ranks.select("session", "position").equals(
                section.attempts.select("session", "position")
            ):
                section.notes.append(f"{run.folder}: other attempts than {section.runs[0].folder}; left out")
                continue
            variant.results[run.seed] = result
            variant.runs[run.seed] = run
            if not entry.role and "session" in ranked:
                variant.own[run.seed] = ranked["session"]
    section.variants = sorted((one for one in variants.values() if one.results), key=_place)
    for name in {one.name for one in section.variants}:
        alike = [one for one in section.variants if one.name == name]
        for variant, label in zip(alike, labels([one.config for one in alike]), strict=True):
            variant.label = f"{name} ({label})" if label else name


def _place(variant: Variant) -> tuple[int, str]:
    stem = variant.name.split("_")[0]
    return (ORDER.index(stem) if stem in ORDER else len(ORDER), variant.name)


def _setting(settings: Sequence[Mapping[str, Any]], own: Mapping[str, Any]) -> str:
    """All that differs between sections, told for each, as on the command line."""
    keys = sorted({key for one in settings for key in one if len({str(other.get(key)) for other in settings}) > 1})
    return ", ".join(f"{key}={'null' if own.get(key) is None else own.get(key)}" for key in keys)


def labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """For every config, what it has that the others have not; empty for what is usual, or where all are alike.

    Where a part was exchanged as a whole, its name says it all.

    >>> labels([{"lr": 1, "c.name": "pnn", "c.x": 1}, {"lr": 2, "c.name": "pnn", "c.x": 1},
    ...         {"lr": 1, "c.name": "concat"}])
    ['', 'lr=2', 'c=concat']
    """
    keys = sorted({key for config in configs for key in config})
    keys = [key for key in keys if not key.endswith("_target_")]  # a name tells better
    differing = [key for key in keys if len({str(config.get(key)) for config in configs}) > 1]
    replaced = [key.removesuffix(".name") for key in differing if key.endswith(".name")]
    usual = {}
    for key in differing:
        told = [str(config.get(key)) for config in configs]
        usual[key] = max(dict.fromkeys(told), key=told.count)  # the first of the most frequent
    found = []
    for config in configs:
        odd = [key for key in differing if str(config.get(key)) != usual[key]]
        inside = [part for part in replaced if f"{part}.name" in odd]
        odd = [key for key in odd if not any(key.startswith(f"{part}.") for part in inside)]
        words = [f"{part}={config.get(f'{part}.name')}" for part in inside]
        words += [f"{key}={config.get(key)}" for key in odd]
        more = len(words) - LONGEST_LABEL
        found.append(", ".join(words[:LONGEST_LABEL]) + (f" and {more} more" if more > 0 else ""))
    return found


def estimates(
    per_seed: Sequence[Sequence[np.ndarray]], cluster: np.ndarray, bootstrap: Mapping[str, Any], seed: int
) -> list[Estimate]:
    """For each of M quantities, given as (N,) values per seed, its estimate; all with the same draws of users."""
    if not per_seed:
        return []
    averaged = np.stack([np.mean(seeds, axis=0) for seeds in per_seed], 1)
    low, high = intervals(averaged, cluster, bootstrap["resamples"], bootstrap["confidence"], seed)
    found = []
    for index, seeds in enumerate(per_seed):
        means = tuple(float(value.mean()) for value in seeds)
        found.append(Estimate(float(np.mean(means)), float(low[index]), float(high[index]), means))
    return found


@dataclass(frozen=True)
class Row:
    """One line of Table 2: a model with its metrics and their difference to the base."""

    variant: Variant
    metrics: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]  # empty for the base itself
    base: str  # what the gains are measured from


def table2(
    section: Section, metrics: Sequence[str], base_name: str, bootstrap: Mapping[str, Any], seed: int
) -> list[Row]:
    """Every model of a section, in one bootstrap."""
    base = section.base(base_name)
    quantities: list[list[np.ndarray]] = []
    places: list[tuple[Variant, str, str]] = []
    for variant in section.variants:
        for metric in metrics:
            for kind, values in (("metric", variant.per_prediction(metric)), ("gain", variant.gains(metric, base))):
                if values:
                    quantities.append(values)
                    places.append((variant, kind, metric))
    cluster = section.attempts[bootstrap["unit"]].to_numpy()
    found = dict(
        zip(
            [(id(variant), kind, metric) for variant, kind, metric in places],
            estimates(quantities, cluster, bootstrap, seed),
            strict=True,
        )
    )
    rows = []
    for variant in section.variants:
        told = {
            kind: {
                metric: found[id(variant), kind, metric] for metric in metrics if (id(variant), kind, metric) in found
            }
            for kind in ("metric", "gain")
        }
        own = next(iter(variant.own.values())).name if variant.own else base_name
        rows.append(Row(variant, told["metric"], told["gain"], own))
    return rows


def more_metrics(variant: Variant, data: DataSet | None) -> dict[str, float]:
    """Macro averages, tie rate and, where lists were kept, coverage and popularity: means over the seeds."""
    found: dict[str, list[float]] = {}
    for seed in variant.seeds:
        result = variant.results[seed]
        session = result.ranks["session"].to_numpy()
        one = {
            f"macro {metric}": float(session_means(result.per_prediction(metric), session).mean())
            for metric in ("recall@20", "mrr@20")
        }
        one["tie rate"] = tie_rate(result.ranks["equal"])
        if result.item_counts is not None and data is not None:
            one |= list_metrics(result.item_counts, data.train)
        for name, value in one.items():
            found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}

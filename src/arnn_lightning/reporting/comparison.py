"""Comparable results: models on one data set under one setting, averaged over seeds only."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from arnn_lightning.evaluation.bootstrap import (
    bootstrap_means,
    has_intervals,
    holm,
    p_value,
    percentile_limits,
    seed_shifts,
    significance_level,
)
from arnn_lightning.evaluation.groups import tie_rate
from arnn_lightning.evaluation.metrics import metric_label, session_means
from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.preprocessing.contexts import attribute_names
from arnn_lightning.reporting.runs import DataSet, Run

# Rows of the paper's Table 2, with the baselines that it lacks; other models follow.
ORDER = ("pop", "itemknn", "sr", "vsknn", "gru4rec", "pnn", "arnn")
MAX_LABEL_KEYS = 3
TAIL_RESAMPLES = 10  # of a difference whose corrected p value is at the significance level, at least
SESSION_ENCODER = "session encoder"
ASSIGNMENT = "data.contexts.assignment"
N_ATTRIBUTES = "data.contexts.n_attributes"


@dataclass(frozen=True)
class Settings:
    """Settings of a report.

    Attributes:
        metrics: of the results table, such as ``recall@20``; gains are charted for them.
        base: the model that the others are compared with.
        cutoffs: the K's of Recall by K.
        groups: attributes of the user, by which metrics are shown, too.
        ties: how ties are ranked.
        bootstrap: ``resamples``, ``confidence``, ``unit``.
        seed: of the bootstrap.
    """

    metrics: Sequence[str]
    base: str
    cutoffs: Sequence[int]
    groups: Sequence[str]
    ties: str
    bootstrap: Mapping[str, Any]
    seed: int

    @property
    def percent(self) -> str:
        return f"{100 * self.bootstrap['confidence']:g} %"


@dataclass(frozen=True)
class Estimate:
    """A mean over predictions and seeds.

    Attributes:
        mean: of the seeds' means.
        low, high: interval over users and seeds, see ``seed_bootstrap_means``; over users alone with one seed; NaN
            with too few users, as p values.
        by_seed: the seeds' means; a single value for a model with the same ranks for every seed.
        p: of the hypothesis that the mean is 0.
        adjusted_p: of a difference in a table, adjusted for its family (Holm).
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    p: float
    adjusted_p: float = math.nan

    def clipped(self) -> "Estimate":
        """With an interval within 0 to 1, the range of metrics, which shifts by the variation of seeds exceed."""
        low, high = np.clip([self.low, self.high], 0.0, 1.0).tolist()
        return replace(self, low=low, high=high)

    @property
    def std(self) -> float | None:
        """Standard deviation over seeds."""
        return float(np.std(self.by_seed, ddof=1)) if len(self.by_seed) > 1 else None


@dataclass
class Variant:
    """One model with one configuration in one section: a result per seed.

    Attributes:
        name: the model's name.
        config: its settings, flat.
        is_most_common: whether it has the most common configuration of its name, of several the first.
        label: its name, and what distinguishes it from other variants of the same name.
        results: by seed; of a non-neural model, equal ones for all seeds of the section.
        session_results: by seed, the session encoder of the same run, for a model that has one.
        runs: by seed, the run of the result.
        roles: by seed, the role in that run: empty for its main model, else ``session``, ``context`` or the baseline's.
    """

    name: str
    config: Mapping[str, Any]
    label: str = ""
    is_most_common: bool = False
    results: dict[int, EvaluationResult] = field(default_factory=dict)
    session_results: dict[int, EvaluationResult] = field(default_factory=dict)
    runs: dict[int, Run] = field(default_factory=dict)
    roles: dict[int, str] = field(default_factory=dict)

    @property
    def is_external(self) -> bool:
        """Whether another program made the recommendations."""
        return bool(self.config.get("lists"))

    @property
    def own_runs(self) -> list[Run]:
        """The runs whose main model it is."""
        return [run for seed, run in self.runs.items() if not self.roles[seed]]

    @property
    def key(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """Equal for the same configuration of a model in another section."""
        return self.name, _hashable(self.config)

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds with different results: only the first for a model without randomness."""
        seeds = sorted(self.results)
        first = self.results[seeds[0]].ranks
        identical = all(self.results[seed].ranks.equals(first) for seed in seeds[1:])
        return seeds[:1] if identical and not self.session_results else seeds

    def per_prediction(self, metric: str) -> list[np.ndarray]:
        """(N,) values per seed."""
        return [self.results[seed].per_prediction(metric) for seed in self.seeds]

    def gains(self, metric: str, reference: Mapping[int, EvaluationResult]) -> list[np.ndarray]:
        """(N,) paired differences from ``reference``, per common seed."""
        seeds = sorted(set(self.results) & set(reference))
        return [self.results[seed].per_prediction(metric) - reference[seed].per_prediction(metric) for seed in seeds]


@dataclass
class Section:
    """Models on the same predictions: one data set, one setting.

    Attributes:
        data_key: identity of the data set.
        settings: everything besides data and models that determines the results, flat.
        runs: all its runs.
        variants: the models, in the order of the paper's Table 2.
        label: what distinguishes it from other sections on data of the same name.
        notes: remarks for the reader.
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
    def title(self) -> str:
        return f"{self.name} ({self.label})" if self.label else self.name

    @property
    def short_label(self) -> str:
        """The label without the sections of the keys: ``n_attributes=2, devices=1``."""
        return re.sub(r"[\w.]+\.(?=\w+=)", "", self.label)

    @property
    def data(self) -> DataSet | None:
        return self.runs[0].data

    @property
    def predictions(self) -> pl.DataFrame:
        return self.runs[0].main.result.ranks

    def cluster(self, settings: Settings) -> np.ndarray:
        """(N,) the user or session of every prediction, whichever is resampled."""
        return self.predictions[str(settings.bootstrap["unit"])].to_numpy()

    @property
    def paper(self) -> Mapping[str, Mapping[str, float]]:
        """The paper's Table 2 if the data set is one of the paper's: model -> metric -> figure."""
        figures: Mapping[str, Mapping[str, float]] = (self.runs[0].config.get("published") or {}).get("table2", {})
        return figures

    def base(self, name: str) -> Variant | None:
        """The model of this name, in its most common configuration."""
        return next((variant for variant in self.variants if variant.name == name and variant.is_most_common), None)


def group_runs(runs: Sequence[Run], ties: str) -> list[Section]:
    """Groups runs by data and settings, and their models by configuration.

    Lists of another program are in every group on their data. Two results of the same model, configuration and seed
    (a GRU4REC by itself and one that is a part) count once; if their ranks differ, the first is used and a note states
    it.

    Args:
        runs: finished runs.
        ties: tie mode for all of them, whatever each run used.
    """
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.is_external):
        keys = [key for key in groups if run.is_external and key[0] == run.data_key]
        for key in keys or [(run.data_key, _hashable(run.settings))]:
            groups.setdefault(key, []).append(run)
    sections = [Section(key, members[0].settings, members) for (key, _), members in groups.items()]
    for section in sections:
        _drop_other_predictions(section)
    for section in sections:
        _add_variants(section, ties)
    for name in {section.name for section in sections}:
        _label_sections([section for section in sections if section.name == name])
    return sections


def _hashable(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, str(value)) for key, value in settings.items()))


def _label_sections(sections: Sequence[Section]) -> None:
    """Labels the sections of one name by all settings that differ, as on the command line."""
    prepared = _common_settings([section.data for section in sections])
    settings = [
        {key: value for key, value in of_data.items() if not key.endswith("_target_")} | dict(section.settings)
        for section, of_data in zip(sections, prepared, strict=True)
    ]
    keys = differing_keys(settings)
    preparations = {section.data_key: section.data for section in sections}
    for section, values in zip(sections, settings, strict=True):
        shown = [f"{key}={'null' if values.get(key) is None else values[key]}" for key in keys]
        section.label = ", ".join(shown)
        if len(preparations) > 1:
            section.notes.append(
                f"{section.name} was prepared in {len(preparations)} ways{_differences([*preparations.values()])}; "
                "results on different data are not averaged."
            )
    given = [section.label for section in sections]
    for section in sections:
        if given.count(section.label) > 1:
            section.label = ", ".join(filter(None, [section.label, f"data {section.data_key[:10]}"]))


def _common_settings(data_sets: Sequence[DataSet | None]) -> list[dict[str, Any]]:
    """The settings of preparations, as far as all of them have them: another version may have added some."""
    settings = [{} if data is None else data.settings for data in data_sets]
    common = set.intersection(*map(set, settings))
    return [{key: value for key, value in of_data.items() if key in common} for of_data in settings]


def _differences(data_sets: Sequence[DataSet | None]) -> str:
    """What differs between preparations of one name; empty where one of them is not found."""
    manifests = [data.manifest for data in data_sets if data is not None]
    if len(manifests) < len(data_sets):
        return ""
    keys = differing_keys(_common_settings(data_sets))
    if len({str([*manifest["raw"].values()]) for manifest in manifests}) > 1:
        keys.append("the raw files")
    return f" ({', '.join(keys)} {'differs' if keys == keys[:1] != ['the raw files'] else 'differ'})" if keys else ""


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that do not have the same value in all flat configs, sorted."""
    keys = sorted({key for config in configs for key in config})
    return [key for key in keys if len({str(config.get(key)) for config in configs}) > 1]


def _drop_other_predictions(section: Section) -> None:
    """Keeps the runs with the predictions that most runs have, of equally many those of the first."""
    groups: dict[bytes, list[Run]] = {}
    for run in section.runs:
        groups.setdefault(run.main.result.ranks.select("session", "position").to_numpy().tobytes(), []).append(run)
    section.runs = max(groups.values(), key=len)
    section.notes += [
        f"{run.folder}: other predictions than {section.runs[0].folder}; skipped"
        for group in groups.values()
        if group is not section.runs
        for run in group
    ]


def _add_variants(section: Section, ties: str) -> None:
    variants: dict[tuple[str, tuple[tuple[str, str], ...]], Variant] = {}
    for run in section.runs:
        results = {entry.role: entry.result.with_tie_mode(ties) for entry in run.entries}
        for entry in run.entries:
            new = Variant(entry.result.name, entry.config)
            variant = variants.setdefault(new.key, new)
            result = results[entry.role]
            known = variant.results.get(run.seed)
            if known is None:
                variant.results[run.seed] = result
                variant.runs[run.seed] = run
                variant.roles[run.seed] = entry.role
                if not entry.role and "session" in results:
                    variant.session_results[run.seed] = results["session"]
            elif not known.ranks.equals(result.ranks):
                section.notes.append(
                    f"{entry.result.name}, seed {run.seed}: {variant.runs[run.seed].folder} and {run.folder} have the "
                    "same configuration but different ranks; the first is used"
                )
            elif not entry.role and variant.roles[run.seed]:  # the run that trained it, which has its seconds
                variant.runs[run.seed], variant.roles[run.seed] = run, ""
    section.variants = sorted(variants.values(), key=_table_order)
    seeds = sorted({run.seed for run in section.runs})
    for variant in section.variants:
        # What is not trained has one result, unless contexts are assigned at random; it is paired with every seed.
        # An encoder of an unknown run was trained, too, by settings that are not known.
        is_trained = "epochs" in variant.config or "pretrained" in variant.config
        is_random = is_trained or section.settings.get(ASSIGNMENT) in ("permuted", "per_session")
        if not is_random and len(variant.seeds) == 1:
            variant.results = dict.fromkeys(seeds, variant.results[min(variant.results)]) | variant.results
    names = {variant.name for variant in section.variants if not variant.is_external}
    for variant in section.variants:
        if variant.is_external:
            variant.label = f"{variant.name} (lists)" if variant.name in names else variant.name
            variant.is_most_common = variant.name not in names
    for name in names:
        same_name = [variant for variant in section.variants if variant.name == name and not variant.is_external]
        counts = [len(variant.runs) for variant in same_name]
        for variant, label in zip(same_name, labels([variant.config for variant in same_name], counts), strict=True):
            variant.label = f"{name} ({label})" if label else name
        most_runs = max(same_name, key=lambda variant: len(variant.runs))
        next((variant for variant in same_name if variant.label == name), most_runs).is_most_common = True


def _table_order(variant: Variant) -> tuple[int, str]:
    stem = variant.name.split("_")[0]
    return (ORDER.index(stem) if stem in ORDER else len(ORDER), variant.name)


def labels(configs: Sequence[Mapping[str, Any]], counts: Sequence[int] | None = None) -> list[str]:
    """For every config, what distinguishes it from the most common values; empty if nothing does.

    Where a part was replaced as a whole, only its name is given.

    Args:
        configs: flat.
        counts: of the runs of each; None: one each.

    >>> labels([{"lr": 1, "c.name": "pnn", "c.x": 1}, {"lr": 2, "c.name": "pnn", "c.x": 1},
    ...         {"lr": 1, "c.name": "concat"}])
    ['', 'lr=2', 'c=concat']
    >>> labels([{"loss._target_": "losses.TOP1"}, {"loss._target_": "losses.TOP1"}, {"loss._target_": "losses.BPR"}])
    ['', '', 'loss=BPR']
    >>> gru4rec = {"c.name": "gru4rec", "c.loss._target_": "losses.TOP1"}
    >>> labels([gru4rec, gru4rec, {"c.name": "pop"}])[2:]
    ['c=pop']
    >>> labels([{}, {}, {**dict.fromkeys("abcd", 2)}, {**dict.fromkeys("abc", 2), "d": 3}])[2:]
    ['a=2, b=2, c=2, d=2', 'a=2, b=2, c=2, d=3']
    """
    keys = differing_keys(configs)
    # A part has a name, or the class that its _target_ ends in.
    named = {key.removesuffix(".name"): key for key in keys if key.endswith(".name")}
    classes = {key.removesuffix("._target_"): key for key in keys if key.endswith("._target_")}
    names = classes | named
    keys = [key for key in keys if key in names.values() or not key.endswith("_target_")]
    repeated = [
        config for config, count in zip(configs, counts or [1] * len(configs), strict=True) for _ in range(count)
    ]
    values = {key: [str(config.get(key)) for config in repeated] for key in keys}
    most_common = {key: max(texts, key=texts.count) for key, texts in values.items()}  # of equally many the first
    texts = []
    for config in configs:
        differing = [key for key in keys if str(config.get(key)) != most_common[key]]
        replaced = [part for part, key in names.items() if key in differing]
        replaced = [part for part in replaced if not part.startswith(tuple(f"{whole}." for whole in replaced))]
        differing = [key for key in differing if not key.startswith(tuple(f"{part}." for part in replaced))]
        words = [f"{part}={str(config.get(names[part])).rpartition('.')[2]}" for part in replaced]
        texts.append([*words, *(f"{key}={config.get(key)}" for key in differing)])
    shortened = [_shortened(words) for words in texts]
    is_unique = len({*shortened}) == len({*map(tuple, texts)})
    return shortened if is_unique else [", ".join(words) for words in texts]


def _shortened(words: Sequence[str]) -> str:
    n_hidden = len(words) - MAX_LABEL_KEYS
    return ", ".join(words[:MAX_LABEL_KEYS]) + (f" and {n_hidden} more" if n_hidden > 0 else "")


def estimates(
    per_seed: Sequence[Sequence[np.ndarray]], section: Section, settings: Settings, resamples: int | None = None
) -> list[Estimate]:
    """The estimate of each of M quantities, given as (N,) values per seed; all with the same resamples of users.

    Args:
        per_seed: the M quantities.
        section: of the predictions.
        settings: of the bootstrap.
        resamples: another number than that of ``settings``.
    """
    if not per_seed:
        return []
    averaged = np.stack([np.mean(values, axis=0) for values in per_seed], 1)
    cluster, resamples = section.cluster(settings), resamples or int(settings.bootstrap["resamples"])
    is_tested = has_intervals(cluster)
    resampled = bootstrap_means(averaged, cluster, resamples, settings.seed)
    found = []
    for values, means in zip(per_seed, resampled.T, strict=True):
        by_seed = np.array([value.mean() for value in values])
        means = means + seed_shifts(by_seed[:, None], resamples, settings.seed)[:, 0]
        low, high = percentile_limits(means, settings.bootstrap["confidence"])
        bounds = (float(low), float(high)) if is_tested else (math.nan, math.nan)
        p = p_value(means) if is_tested else math.nan
        found.append(Estimate(float(by_seed.mean()), *bounds, tuple(by_seed.tolist()), p))
    return found


@dataclass(frozen=True)
class Row:
    """One row of the results table.

    Attributes:
        variant: the model.
        metrics: metric -> estimate.
        gains: reference -> metric -> estimate of the paired difference from it. References are the label of the base
            model of the section and, for a model that has one, ``SESSION_ENCODER``: the part of the same run.
        shares: reference -> metric -> the difference as a share of the reference's mean over the same seeds.
    """

    variant: Variant
    metrics: Mapping[str, Estimate]
    gains: Mapping[str, Mapping[str, Estimate]]
    shares: Mapping[str, Mapping[str, float]]

    @property
    def session_gains(self) -> Mapping[str, Estimate]:
        return self.gains[SESSION_ENCODER]

    @property
    def session_name(self) -> str:
        return next(iter(self.variant.session_results.values())).name


@dataclass(frozen=True)
class SectionView:
    """A section, its rows, and what its charts share."""

    section: Section
    rows: list[Row]
    settings: Settings

    @property
    def main_model(self) -> Row | None:
        """The model that is compared with its session encoder, in its most common configuration first."""
        rows = [row for row in self.rows if row.variant.session_results]
        return next(iter([row for row in rows if row.variant.is_most_common] or rows), None)

    @property
    def n_seeds(self) -> int:
        """The largest number of seeds of a model that is trained; 0 where none is."""
        trained = (row.variant for row in self.rows if any(key.startswith("optimizer.") for key in row.variant.config))
        return max((len(variant.seeds) for variant in trained), default=0)

    @property
    def n_attributes(self) -> int | None:
        """How many context attributes the models use."""
        limit, data = self.section.settings.get(N_ATTRIBUTES), self.section.data
        if data is None:
            return None if limit is None else int(limit)
        available = len(attribute_names(data.manifest["config"]["contexts"]))
        return available if limit is None else min(int(limit), available)


def compare(section: Section, settings: Settings) -> SectionView:
    """A row for every model of a section, all intervals from one bootstrap.

    The p values of all differences in the table are one family (Holm); a difference that has two columns counts once.
    They are from more resamples where the family is large: the smallest p value of R resamples is 2 / (R + 1), and
    multiplied by the number of differences it must remain far below the significance level.
    """
    base = section.base(settings.base)
    quantities: dict[tuple[int, str, str], list[np.ndarray]] = {}
    reference_means: dict[tuple[int, str, str], float] = {}
    for index, variant in enumerate(section.variants):
        references = {SESSION_ENCODER: variant.session_results}
        if base is not None and variant is not base:
            references = {base.label: base.results} | references
        for metric in settings.metrics:
            quantities[index, "", metric] = variant.per_prediction(metric)
            for reference, results in references.items():
                quantities[index, reference, metric] = variant.gains(metric, results)
                seeds = set(variant.results) & set(results)
                means = [results[seed].per_prediction(metric).mean() for seed in seeds]
                reference_means[index, reference, metric] = float(np.mean(means)) if means else 0.0
    quantities = {key: values for key, values in quantities.items() if values}
    estimated = dict(zip(quantities, estimates(list(quantities.values()), section, settings), strict=True))
    differences = {(key[0], key[2], value.by_seed): quantities[key] for key, value in estimated.items() if key[1]}
    resamples = math.ceil(2 * TAIL_RESAMPLES * len(differences) / significance_level(settings.bootstrap["confidence"]))
    resamples = max(resamples, settings.bootstrap["resamples"])
    tested = estimates(list(differences.values()), section, settings, resamples)
    adjusted = dict(zip(differences, holm(np.array([estimate.p for estimate in tested])).tolist(), strict=True))
    estimated = {
        key: replace(value, adjusted_p=adjusted[key[0], key[2], value.by_seed]) if key[1] else value.clipped()
        for key, value in estimated.items()
    }
    rows = []
    for index, variant in enumerate(section.variants):
        by_reference: dict[str, dict[str, Estimate]] = {}
        shares: dict[str, dict[str, float]] = {}
        for (position, reference, metric), estimate in estimated.items():
            if position == index:
                by_reference.setdefault(reference, {})[metric] = estimate
                if before := reference_means.get((position, reference, metric)):
                    shares.setdefault(reference, {})[metric] = estimate.mean / before
        rows.append(Row(variant, by_reference.pop(""), by_reference, shares))
    return SectionView(section, rows, settings)


def shown_references(rows: Sequence[Row]) -> list[str]:
    """The references of the columns of differences, each the same for the whole column.

    The session encoder has a column of its own unless it is the base in every row, as for an ARNN whose GRU4REC is the
    table's.
    """
    references = list(dict.fromkeys(reference for row in rows for reference in row.gains))
    bases = [reference for reference in references if reference != SESSION_ENCODER]

    def is_base(row: Row) -> bool:
        return any(
            [estimate.by_seed for estimate in row.gains.get(base, {}).values()]
            == [estimate.by_seed for estimate in row.session_gains.values()]
            for base in bases
        )

    needed = any(SESSION_ENCODER in row.gains and not is_base(row) for row in rows)
    return bases + [SESSION_ENCODER] * needed


def extra_metrics(variant: Variant, metrics: Sequence[str], data: DataSet | None) -> dict[str, float]:
    """Macro averages, tie rate and metrics of the lists: means over the seeds.

    The metrics of lists need the items that were recommended and the popularity of items in the prepared data set.
    """
    by_name: dict[str, list[float]] = {}
    for seed in variant.seeds:
        result = variant.results[seed]
        session = result.ranks["session"].to_numpy()
        values = {
            f"macro {metric_label(metric)}": float(session_means(result.per_prediction(metric), session).mean())
            for metric in metrics
        }
        values["tie rate"] = tie_rate(result.ranks["equal"])
        if data is not None:
            k = max(variant.runs[seed].config["evaluation"]["cutoffs"])
            lists = result.with_lists(data.popularity, k).lists
            values |= {metric_label(name): value for name, value in lists.items()}
        for name, value in values.items():
            by_name.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in by_name.items()}


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "run"), counted(2, "run")
    ('1 run', '2 runs')
    """
    return f"{count:,} {noun}" + "s" * (count != 1)

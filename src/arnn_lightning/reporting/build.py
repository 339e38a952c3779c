"""From runs to the report's three files: what is shown, in which order."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arnn_lightning.evaluation.bootstrap import intervals
from arnn_lightning.evaluation.groups import (
    by_known_attributes,
    by_popularity,
    by_position,
    by_seen,
    group_metrics,
)
from arnn_lightning.reporting import charts, page, results_table
from arnn_lightning.reporting.charts import Series
from arnn_lightning.reporting.comparison import Row, Section, Variant, estimates, more_metrics, sections
from arnn_lightning.reporting.comparison import table2 as rows_of
from arnn_lightning.reporting.runs import LeftOut, Run, flat

SHOWN, DRAW = "data.contexts.n_attributes", "data.contexts.assignment"
LONGEST_CHART = 8  # models in one chart of lines


@dataclass(frozen=True)
class Settings:
    """How the report is made.

    Attributes:
        metrics: of Table 2, such as ``recall@20``; gains are drawn for them.
        base: the model from which differences are taken where a model has no session part.
        cutoffs: the K's of Recall by K.
        ties: how ties are ranked.
        bootstrap: ``resamples``, ``confidence``, ``unit``.
        seed: of the bootstrap.
    """

    metrics: Sequence[str]
    base: str
    cutoffs: Sequence[int]
    ties: str
    bootstrap: Mapping[str, Any]
    seed: int

    @property
    def percent(self) -> str:
        return f"{100 * self.bootstrap['confidence']:g} %"


@dataclass(frozen=True)
class Report:
    """The files' contents."""

    html: str
    markdown: str
    csv: str


@dataclass(frozen=True)
class Part:
    """A section and its Table 2."""

    section: Section
    rows: list[Row]

    @property
    def augmented(self) -> Row | None:
        """The model that has a session part to be measured against, the usual one first."""
        found = [row for row in self.rows if row.variant.own]
        usual = [row for row in found if row.variant.label == row.variant.name]
        return next(iter(usual or found), None)


def build(runs: Sequence[Run], left_out: Sequence[LeftOut], settings: Settings) -> Report:
    """Makes the report of finished runs; ``left_out`` are told, and nothing is averaged over them."""
    parts = [
        Part(section, rows_of(section, settings.metrics, settings.base, settings.bootstrap, settings.seed))
        for section in sections(runs, settings.ties)
    ]
    parts.sort(key=_usual_first)
    by_data: dict[str, list[Part]] = {}
    for part in parts:
        by_data.setdefault(part.section.name, []).append(part)
    names = ", ".join(by_data)
    body = [page.heading(1, f"Session-based recommenders on {names}")]
    body += [page.paragraph(sentence, "lead") for group in by_data.values() if (sentence := _lead(group[0], settings))]
    ties, unit = f"ties ranked {settings.ties}", settings.bootstrap["unit"]
    body.append(
        page.paragraph(
            f"Test split, every position, full catalogue, {ties}; {settings.percent} intervals by bootstrap over "
            f"{unit}s ({settings.bootstrap['resamples']:,} resamples): they tell how far other {unit}s could move a "
            "figure, the deviation over seeds how far other trainings could.",
            "small",
        )
    )
    places = {f"data-{index}": name for index, name in enumerate(by_data)}
    body.append(page.contents({**places, "speed": "speed", "configs": "configurations", "runs": "runs"}))
    body += [page.note(f"left out: {one.folder}: {one.why}") for one in left_out]
    for anchor, (name, group) in zip(places, by_data.items(), strict=True):
        body += _data_set(anchor, name, group, settings)
    body += _speed(parts)
    body += _configurations(by_data)
    body += _runs(parts)
    told = [(part.section, part.rows) for part in parts]
    return Report(
        page.page(f"Report: {names}", body),
        results_table.markdown(told, settings.metrics, settings.bootstrap["confidence"]),
        results_table.csv_text(told, settings.metrics),
    )


def _usual_first(part: Part) -> tuple[bool, bool, int]:
    told = part.section.settings
    return (told.get(DRAW, "user") != "user", told.get(SHOWN) is not None, -len(part.section.runs))


def _lead(part: Part, settings: Settings) -> str | None:
    row, metric = part.augmented, settings.metrics[0]
    if row is None:
        return None
    ours, gain = row.metrics[metric], row.gains[metric]
    before = ours.mean - gain.mean
    inside = f"{settings.percent} {gain.low:+.4f} to {gain.high:+.4f}, {_seeds(len(gain.by_seed))}"
    name = results_table.label(metric)
    against = f"{name} {ours.mean:.4f} against {before:.4f}, paired difference {gain.mean:+.4f} ({inside})"
    if gain.low <= 0 <= gain.high or not before:
        return f"On {part.section.name}, {row.variant.label} and {row.base} cannot be told apart: {against}."
    more = "more" if gain.mean > 0 else "less"
    share = f"{abs(gain.mean) / before:.1%}"
    return f"On {part.section.name}, {row.variant.label} finds {share} {more} than {row.base}: {against}."


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _data_set(anchor: str, name: str, group: Sequence[Part], settings: Settings) -> list[str]:
    main, others = group[0], group[1:]
    section = main.section
    body = [page.heading(2, name, anchor)]
    data = section.data
    if data is not None:
        counts = data.manifest["splits"]
        body.append(
            page.paragraph(
                f"{section.attempts.height:,} attempts in {counts['test']['sessions']:,} test sessions of "
                f"{counts['test']['users']:,} users; trained on {counts['train']['events']:,} events of "
                f"{counts['train']['users']:,} users and {data.n_items:,} items."
            )
        )
    else:
        body.append(
            page.note(
                f"The prepared data set with the manifest {section.data_key[:10]} is not under paths.data: groups that "
                "need users or popularity are not shown."
            )
        )
    if not section.paper:
        body.append(page.paragraph("Not one of the paper's data sets, so its figures have no place here.", "small"))
    if section.label:
        body.append(page.paragraph(f"Setting: {section.label}."))
    body += [page.note(text) for text in dict.fromkeys(section.notes)]
    body.append(results_table.html(section, main.rows, settings.metrics, settings.bootstrap["confidence"]))
    body.append(page.charts(_charts(main, settings)))
    if others:
        body += _other_settings(main, others, settings)
    body += _more(group)
    return body


def _charts(part: Part, settings: Settings) -> list[tuple[str, str]]:
    drawn = []
    curves = _learning_curves(part)
    if curves:
        drawn.append((curves, "Validation after every epoch; bands reach from the lowest seed to the highest."))
    drawn.append(
        (_recall_by_k(part, settings), f"Share of attempts whose item is among the first K; {settings.percent} bands.")
    )
    row, data, section = part.augmented, part.section.data, part.section
    if row is not None:
        ranks = section.attempts
        groups = [("by position", "events of the session already seen", by_position(ranks["position"]))]
        if data is not None:
            groups += [
                ("by known attributes", "attributes known of the user", by_known_attributes(ranks["user"], data.users)),
                ("by user", "the user's sessions in training", by_seen(ranks["user"], data.train)),
                ("by popularity", "the item that came next", by_popularity(ranks["item"], data.train, data.n_items)),
            ]
        cluster = ranks[settings.bootstrap["unit"]].to_numpy()
        for title, x_label, label in groups:
            if label.n_unique() == 1:
                continue  # one group is the table's row once more
            series = []
            for metric in settings.metrics:
                gain = np.mean(row.variant.gains(metric, None), axis=0)
                told = group_metrics(gain, label, cluster, settings.bootstrap, settings.seed)
                names = [f"{group}\n{n:,}" for group, n in told.select("group", "predictions").iter_rows()]
                series.append(
                    Series(
                        results_table.label(metric), names, *(told[one].to_list() for one in ("mean", "low", "high"))
                    )
                )
            drawn.append(
                (
                    charts.intervals(
                        f"Gain of {row.variant.name} {title}",
                        f"{x_label}; attempts",
                        "difference, paired",
                        list(dict.fromkeys(str(one) for one in series[0].x)),
                        series,
                    ),
                    f"{row.variant.label} minus {row.base} of the same run, mean over "
                    f"{_seeds(len(row.variant.seeds))}; {settings.percent} intervals.",
                )
            )
        drawn += _variants(part, settings)
    return drawn


def _learning_curves(part: Part) -> str | None:
    metric = "val/mrr@20"
    series = []
    for row in part.rows:
        variant = row.variant
        name = f"{variant.role}/{metric}" if variant.role else metric
        found = [run.curves[name] for run in variant.runs.values() if run.curves.get(name)]
        if not found:
            continue
        epochs = min(map(len, found))
        values = np.array([one[:epochs] for one in found])
        mean, low, high = values.mean(0), values.min(0), values.max(0)
        series.append(Series(variant.label, list(range(1, epochs + 1)), mean.tolist(), low.tolist(), high.tolist()))
    series = series[:LONGEST_CHART]
    if not series:
        return None
    ticks = range(1, max(len(one.x) for one in series) + 1)
    return charts.lines("Learning curves", "epoch", "validation MRR@20", series, list(ticks)[:: 1 + len(ticks) // 12])


def _recall_by_k(part: Part, settings: Settings) -> str:
    rows = [row for row in part.rows if row.variant.label == row.variant.name][:LONGEST_CHART]
    cluster = part.section.attempts[settings.bootstrap["unit"]].to_numpy()
    values = [np.mean(row.variant.per_prediction(f"recall@{k}"), axis=0) for row in rows for k in settings.cutoffs]
    matrix = np.stack(values, 1)
    low, high = intervals(
        matrix, cluster, settings.bootstrap["resamples"], settings.bootstrap["confidence"], settings.seed
    )
    mean, count = matrix.mean(0), len(settings.cutoffs)
    series = [
        Series(
            row.variant.label,
            settings.cutoffs,
            *(one[i * count : (i + 1) * count].tolist() for one in (mean, low, high)),
        )
        for i, row in enumerate(rows)
    ]
    return charts.lines("Recall by K", "K, length of the list", "Recall@K", series, settings.cutoffs, log=True)


def _variants(part: Part, settings: Settings) -> list[tuple[str, str]]:
    rows = [row for row in part.rows if row.variant.own]
    if len(rows) < 2:
        return []
    names = [row.variant.label for row in rows]
    series = [_gains(results_table.label(metric), names, rows, metric) for metric in settings.metrics]
    caption = f"Each minus the session part of the same run; {settings.percent} intervals."
    return [(charts.ranked("Gain of every variant", "difference to its session part", names, series), caption)]


def _gains(name: str, x: Sequence[Any], rows: Sequence[Row], metric: str) -> Series:
    found = [row.gains[metric] for row in rows]
    return Series(
        name, x, [one.mean for one in found], [one.low for one in found], [one.high for one in found],
        [one.by_seed for one in found],
    )  # fmt: skip


def _other_settings(main: Part, others: Sequence[Part], settings: Settings) -> list[str]:
    body = [page.heading(3, "Other settings")]
    body += [page.note(text) for text in dict.fromkeys(note for part in others for note in part.section.notes)]
    metric = settings.metrics[0]
    name = results_table.label(metric)
    lines: list[list[str]] = []
    known = {row.variant.name: row.variant for row in main.rows}
    for part in others:
        for row in part.rows:
            same = part.section.data_key == main.section.data_key
            if same and _alike(row.variant, known.get(row.variant.name)):
                continue  # a model that does not look at what differs
            one, gain = row.metrics[metric], row.gains.get(metric)
            line: list[str] = [part.section.label, row.variant.label]
            line.append(page.cell(f"{one.mean:.4f}", below=f"{one.low:.4f} to {one.high:.4f}"))
            line.append(
                "" if gain is None else page.cell(f"{gain.mean:+.4f}", below=f"{gain.low:+.4f} to {gain.high:+.4f}")
            )
            line.append(_against(row.variant, known.get(row.variant.name) if same else None, metric, main, settings))
            line.append(str(len(one.by_seed)))
            lines.append(line)
    drawn = []
    fields = [part for part in (main, *others) if _only_shown_differs(part, main)]
    if len(fields) > 1:
        drawn.append(_fields_chart(fields, settings))
    controls = [
        part for part in (main, *others) if part.augmented is not None and part.section.settings.get(SHOWN) is None
    ]
    if len(controls) > 1:
        names = [part.section.label for part in controls]
        rows = [part.augmented for part in controls if part.augmented is not None]
        series = [_gains(results_table.label(one), names, rows, one) for one in settings.metrics]
        drawn.append(
            (
                charts.ranked("Gain under every setting", "difference to the session part", names, series),
                f"The model minus its own session part; {settings.percent} intervals.",
            )
        )
    body.append(page.charts(drawn))
    header = [
        "setting",
        "model",
        name,
        f"{name}, difference to {main.rows[0].base}",
        f"{name}, to {main.section.label}",
        "seeds",
    ]
    caption = (
        f"{settings.percent} intervals below. The last difference is the same model's to its own result under the "
        "first setting, paired by attempt and seed, where both are on the same data. Models that do not look at what "
        "differs are left out."
    )
    body.append(page.table(header, lines, caption, text=(0, 1)))
    return body


def _alike(one: Variant, other: Variant | None) -> bool:
    return other is not None and all(
        seed in other.results and result.ranks.equals(other.results[seed].ranks) for seed, result in one.results.items()
    )


def _against(variant: Variant, other: Variant | None, metric: str, main: Part, settings: Settings) -> str:
    seeds = sorted(set(variant.results) & set(other.results)) if other is not None else []
    if other is None or not seeds:
        return ""
    cluster = main.section.attempts[settings.bootstrap["unit"]].to_numpy()
    gains = [variant.results[seed].per_prediction(metric) - other.results[seed].per_prediction(metric) for seed in seeds]
    (one,) = estimates([gains], cluster, settings.bootstrap, settings.seed)
    return page.cell(f"{one.mean:+.4f}", below=f"{one.low:+.4f} to {one.high:+.4f}")


def _only_shown_differs(part: Part, main: Part) -> bool:
    def rest(one: Part) -> dict[str, Any]:
        return {key: value for key, value in one.section.settings.items() if key != SHOWN}

    same = part.section.data_key == main.section.data_key and rest(part) == rest(main)
    return same and part.augmented is not None and _attributes(part) is not None


def _attributes(part: Part) -> int | None:
    """How many attributes the models of a section are told."""
    shown, data = part.section.settings.get(SHOWN), part.section.data
    if data is None:
        return None if shown is None else int(shown)
    contexts = data.manifest["config"]["contexts"]
    every = len(contexts["single"]) + len(contexts["multi"])
    return every if shown is None else min(int(shown), every)


def _fields_chart(parts: Sequence[Part], settings: Settings) -> tuple[str, str]:
    by_count = {count: part for part in reversed(parts) if (count := _attributes(part)) is not None}
    counts = sorted(by_count)
    rows = [row for count in counts if (row := by_count[count].augmented) is not None]
    series = [_gains(results_table.label(metric), counts, rows, metric) for metric in settings.metrics]
    drawn = charts.lines(
        f"Gain of {rows[0].variant.name} by attributes told",
        "attributes of the user that the model is told",
        "difference to its session part",
        series,
        counts,
        zero=True,
        by_model=False,
    )
    return drawn, f"Mean over seeds with {settings.percent} bands; small dots are single seeds."


def _more(group: Sequence[Part]) -> list[str]:
    main = group[0]
    told = [(row.variant.label, more_metrics(row.variant, main.section.data)) for row in main.rows]
    names = list(dict.fromkeys(name for _, one in told for name in one))
    lines = [[label, *(_number(one.get(name)) for name in names)] for label, one in told]
    caption = (
        "Macro: mean over sessions. Tie rate: attempts whose item shares its score with another. Coverage@20: share of "
        "the catalogue that was recommended at least once; mean popularity: training events of a recommended item."
    )
    return [page.details("More metrics", [page.table(["model", *names], lines, caption)])]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value > 10 else f"{value:.4f}"


def _speed(parts: Sequence[Part]) -> list[str]:
    body = [page.heading(2, "Speed", "speed")]
    timed: dict[str, list[Run]] = {}
    for part in parts:
        for row in part.rows:
            for run in row.variant.runs.values():
                if not row.variant.role:
                    timed.setdefault(f"{part.section.name}: {row.variant.label}", []).append(run)
    speeds = {
        name: float(np.mean(values))
        for name, runs in timed.items()
        if (
            values := [run.metrics["train_events_per_second"] for run in runs if run.metrics["train_events_per_second"]]
        )
    }
    if len(speeds) > 1:
        drawn = charts.bars("Training", "events per second, inside training windows", speeds)
        body.append(page.charts([(drawn, "The model's own last stage: the merging layer of an ARNN, not its parts.")]))
    stages = list(dict.fromkeys(stage for runs in timed.values() for run in runs for stage in run.metrics["seconds"]))
    lines = []
    for name, runs in timed.items():
        taken = [[run.metrics["seconds"].get(stage) for run in runs] for stage in stages]
        means = [np.mean([value for value in one if value is not None]) if any(one) else None for one in taken]
        total = np.mean([sum(run.metrics["seconds"].values()) for run in runs])
        lines.append([name, str(len(runs)), *("" if one is None else f"{one:.1f}" for one in means), f"{total:.1f}"])
    caption = (
        "Seconds, mean over the runs, as they were run: whatever else kept the machine busy counts. Parts that were "
        "taken over from another run take no time."
    )
    body.append(page.table(["model", "runs", *stages, "all"], lines, caption))
    return body


def _configurations(by_data: Mapping[str, Sequence[Part]]) -> list[str]:
    body = [page.heading(2, "What differs between the configurations", "configs")]
    for name, group in by_data.items():
        told: dict[tuple[tuple[str, str], ...], list[Run]] = {}
        for part in group:
            for run in part.section.runs:
                told_of_run = flat(run.config).items()
                settings = {
                    key: "null" if value is None else str(value) for key, value in told_of_run if _is_config(key)
                }
                told.setdefault(tuple(sorted(settings.items())), []).append(run)
        configs = [dict(key) for key in told]
        keys = sorted({key for one in configs for key in one if len({other.get(key) for other in configs}) > 1})
        if not keys:
            seeds = ", ".join(str(run.seed) for runs in told.values() for run in runs)
            body.append(page.paragraph(f"{name}: nothing but the seed ({seeds})."))
            continue
        lines = [
            [
                "/".join(runs[0].folder.parts[-2:]),
                ", ".join(str(run.seed) for run in runs),
                *(config.get(key, "") for key in keys),
            ]
            for config, runs in zip(configs, told.values(), strict=True)
        ]
        body.append(page.heading(3, name))
        body.append(page.table(["first run", "seeds", *keys], lines, text=range(2, len(keys) + 2)))
    return body


def _is_config(key: str) -> bool:
    outside = ("seed", "paths.", "pretrained.", "data.raw_dir", "logger.", "resume", "evaluation.lists", "search.")
    return not key.startswith(outside) and "dims" not in key.split(".")


def _runs(parts: Sequence[Part]) -> list[str]:
    body = [page.heading(2, "Runs, and how to repeat them", "runs")]
    for part in parts:
        commands = [f"# {run.folder}\n{run.command}" for run in part.section.runs]
        body.append(
            page.details(f"{results_table.title(part.section)}: {len(commands)} runs", map(page.preformatted, commands))
        )
    body.append(page.heading(3, "Manifests of the prepared data"))
    for key in dict.fromkeys(part.section.data_key for part in parts):
        section = next(part.section for part in parts if part.section.data_key == key)
        if section.data is None:
            body.append(page.paragraph(f"{section.name}: {section.runs[0].metrics['manifest']}, not to be found."))
            continue
        manifest = section.data.manifest
        counts = ("events", "sessions", "users", "items")
        steps = [*manifest["funnel"], *({"step": name, **split} for name, split in manifest["splits"].items())]
        lines = [[one["step"], *("" if one[count] is None else f"{one[count]:,}" for count in counts)] for one in steps]
        raw = "\n".join(f"{name} sha256 {sha}" for name, sha in manifest["raw"].items())
        told = json.dumps(manifest["config"], indent=1)
        body.append(
            page.details(
                f"{section.name}: data {key[:10]}, manifest {section.runs[0].metrics['manifest'][:10]}",
                [page.table(["step", *counts], lines), page.preformatted(raw), page.preformatted(told)],
            )
        )
    return body


def write(report: Report, folder: Path) -> None:
    """Writes table2.md, table2.csv and report.html, atomically."""
    for name, text in (("table2.md", report.markdown), ("table2.csv", report.csv), ("report.html", report.html)):
        unfinished = folder / f".{name}.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(folder / name)

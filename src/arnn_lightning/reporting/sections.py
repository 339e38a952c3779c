"""The content of a report: sentences, tables and charts of every data set, which report.html.j2 lays out."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from arnn_lightning.evaluation.bootstrap import MIN_CLUSTERS, significance_level
from arnn_lightning.evaluation.metrics import metric_label
from arnn_lightning.io import write_text
from arnn_lightning.reporting import charts
from arnn_lightning.reporting.charts import Style
from arnn_lightning.reporting.comparison import (
    ASSIGNMENT,
    N_ATTRIBUTES,
    SectionView,
    Settings,
    Variant,
    compare,
    counted,
    differing_keys,
    estimates,
    extra_metrics,
    group_runs,
    shown_references,
)
from arnn_lightning.reporting.console import number, seed_guidance
from arnn_lightning.reporting.figures import Figure, group_tables, section_charts, setting_charts
from arnn_lightning.reporting.results_table import (
    Cell,
    Table,
    csv_text,
    format_interval,
    format_p,
    gain_cell,
    markdown,
    page_table,
)
from arnn_lightning.reporting.runs import Run, SkippedRun
from arnn_lightning.run_folder import flatten

MAX_NAMED_RUNS = 3
TIES = {
    "conservative": "ties rank the target last",
    "standard": "ties rank the target first",
    "median": "ties rank the target in the middle",
}

OUTSIDE_CONFIGURATION = (
    *("seed", "paths.", "data.raw_dir", "logger.", "resume", "pretrained.", "evaluation.groups", "search.", "task."),
)


@dataclass(frozen=True)
class Report:
    """The contents of the files, the tables for a terminal with their titles, and remarks."""

    html: str
    markdown: str
    csv: str
    tables: Sequence[tuple[str, Table]]
    notes: Sequence[str]

    def write(self, folder: Path) -> None:
        """Writes table2.md, table2.csv and report.html, atomically."""
        for name, text in (("table2.md", self.markdown), ("table2.csv", self.csv), ("report.html", self.html)):
            write_text(folder / name, text)


def build_report(runs: Sequence[Run], skipped: Sequence[SkippedRun], settings: Settings) -> Report:
    """The report of finished runs; ``skipped`` folders are listed with their reasons."""
    views = [compare(section, settings) for section in group_runs(runs, settings.ties)]
    views.sort(key=_section_order)
    by_data: dict[str, list[SectionView]] = {}
    for view in views:
        by_data.setdefault(view.section.name, []).append(view)
    styles = charts.assign_styles(row.variant.label for view in views for row in view.rows)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["breakable"] = _breakable
    data_sets = [_data_set(group, styles) for group in by_data.values()]
    html = environment.get_template("report.html.j2").render(
        names=", ".join(by_data),
        settings=settings,
        ties=TIES[settings.ties],
        has_lists=any(run.is_external for run in runs),
        headlines=[headline for group in by_data.values() if (headline := _headline(group[0]))],
        skipped=skipped,
        data_sets=data_sets,
        speed=_speed(views, styles),
        configurations=[
            _configurations(name, runs)
            for name, group in by_data.items()
            if (runs := [run for view in group for run in view.section.runs if not run.is_external])
        ],
        commands=[
            (
                f"{view.section.title}: {counted(len(view.section.runs), 'run')}",
                [(run.folder, run.command) for run in view.section.runs],
            )
            for view in views
        ],
        manifests=_manifests(views),
    )
    tables = [(view.section, view.rows) for view in views]
    return Report(
        html,
        markdown(tables, settings.metrics, settings.bootstrap["confidence"]),
        csv_text(tables, settings.metrics),
        [(view.section.title, _results(view)) for view in views]
        + [
            (f"{data_set['section'].title}: {models[0][0]} by {attribute}", models[0][1])
            for data_set in data_sets
            for attribute, models in data_set["groups"]
        ],
        list(dict.fromkeys(note for view in views for note in _guidance(view))),
    )


def _breakable(text: str) -> Markup:
    """A text that may be broken after the dots and equal signs of keys."""
    return Markup(re.sub(r"([.=,])(?=\w)", r"\1<wbr>", str(escape(text))))


def _section_order(view: SectionView) -> tuple[bool, bool, int]:
    settings = view.section.settings
    return (settings.get(ASSIGNMENT, "own") != "own", settings.get(N_ATTRIBUTES) is not None, -len(view.section.runs))


def _headline(view: SectionView) -> str | None:
    """The gain in the first metric: one planned comparison, so that its p value is not corrected."""
    row, metric = view.main_model, view.settings.metrics[0]
    if row is None:
        return None
    estimate, gain = row.metrics[metric], row.session_gains[metric]
    before = estimate.mean - gain.mean
    n_seeds, unit = len(gain.by_seed), view.settings.bootstrap["unit"]
    over = f"over {unit}s and {n_seeds} seeds" if n_seeds > 1 else f"over {unit}s, one seed"
    place = f"On {view.section.name}"
    model, encoder = row.variant.label, f"its session encoder {row.session_name}"
    figures = (
        f"{metric_label(metric)} {estimate.mean:.4f} and {before:.4f}, paired difference {gain.mean:+.4f} "
        f"({view.settings.percent} interval {format_interval(gain, '+.4f')}, {over}; {format_p(gain.p)})"
    )
    if math.isnan(gain.low):
        return (
            f"{place}, the difference between {model} and {encoder} is not tested: there are fewer than {MIN_CLUSTERS} "
            f"{unit}s."
        )
    if gain.low <= 0 <= gain.high or gain.p >= significance_level(view.settings.bootstrap["confidence"]):
        return f"{place}, the difference between {model} and {encoder} is not significant: {figures}."
    if not before:
        return f"{place}, {model} is above {encoder}: {figures}."
    direction = "above" if gain.mean > 0 else "below"
    return f"{place}, {model} is {abs(gain.mean) / before:.1%} {direction} {encoder}: {figures}."


def _data_set(group: Sequence[SectionView], styles: Mapping[str, Style]) -> dict[str, Any]:
    """Everything about the sections on data of one name; the first is shown in full."""
    main, others = group[0], group[1:]
    return {
        "section": main.section,
        "notes": list(dict.fromkeys([*main.section.notes, *_guidance(main)])),
        "table": _results(main),
        "figures": list(section_charts(main, styles)),
        "groups": group_tables(main),
        "other_notes": list(
            dict.fromkeys(note for view in others for note in view.section.notes if note not in main.section.notes)
        ),
        "other_figures": list(setting_charts(group)) if others else [],
        "other_table": _other_settings(main, others) if others else None,
        "first_items": _first_items(main),
        "extra_metrics": _extra_metrics(main),
    }


def _guidance(view: SectionView) -> list[str]:
    """A sentence where every model was trained once."""
    guidance = seed_guidance(view.n_seeds, view.settings.bootstrap["unit"]) if view.n_seeds else None
    return [guidance[0].upper() + guidance[1:] + "."] if guidance else []


def _results(view: SectionView) -> Table:
    return page_table(view.section, view.rows, view.settings.metrics, view.settings.bootstrap["confidence"])


def _other_settings(main: SectionView, others: Sequence[SectionView]) -> Table:
    """The models under the other settings, where the setting affects them."""
    metric, settings = main.settings.metrics[0], main.settings
    name = metric_label(metric)
    references = list(dict.fromkeys(reference for view in others for reference in shown_references(view.rows)))
    main_variants = {row.variant.key: row.variant for row in main.rows}
    lines: list[list[str | Cell]] = []
    for view in others:
        same_data = view.section.data_key == main.section.data_key
        for row in view.rows:
            main_variant = main_variants.get(row.variant.key) if same_data else None
            if main_variant is not None and _same_ranks(row.variant, main_variant):
                continue
            estimate = row.metrics[metric]
            line: list[str | Cell] = [view.section.short_label, row.variant.label]
            line.append(Cell(f"{estimate.mean:.4f}", subtext=format_interval(estimate, ".4f")))
            line += [gain_cell(row, reference, metric) for reference in references]
            line.append(_paired_to(main_variant, row.variant, main))
            lines.append([*line, str(len(estimate.by_seed))])
    header = ["setting", "model", name, *(f"{name} - {reference}" for reference in references)]
    header += ["minus the first setting", "seeds"]
    caption = (
        f"{settings.percent} intervals below. Minus the first setting: a model's result minus its result under "
        f"{main.section.label}, paired by prediction and seed, if both are on the same data. Models unaffected by the "
        "setting are omitted. p values are corrected for all differences under the same setting (Holm)."
    )
    if any(ASSIGNMENT in view.section.label for view in others):
        caption += (
            f" {ASSIGNMENT} is whose contexts a session gets: own (its user's), permuted (those of one other user, the "
            "same in all sessions), per_session (those of another user in every session), unknown (none)."
        )
    return Table(header, lines, caption, text_columns=(0, 1))


def _same_ranks(variant: Variant, main_variant: Variant) -> bool:
    """Whether the setting changes nothing, as far as both have results of the same seeds."""
    seeds = variant.results.keys() & main_variant.results.keys()
    return bool(seeds) and all(variant.results[seed].ranks.equals(main_variant.results[seed].ranks) for seed in seeds)


def _paired_to(main_variant: Variant | None, variant: Variant, main: SectionView) -> str | Cell:
    gains = variant.gains(main.settings.metrics[0], main_variant.results) if main_variant is not None else []
    if not gains:
        return ""
    (estimate,) = estimates([gains], main.section, main.settings)
    return Cell(f"{estimate.mean:+.4f}", subtext=format_interval(estimate, "+.4f"))


def _extra_metrics(view: SectionView) -> Table:
    by_model = {
        row.variant.label: extra_metrics(row.variant, view.settings.metrics, view.section.data) for row in view.rows
    }
    names = list(dict.fromkeys(name for metrics in by_model.values() for name in metrics))
    lines: list[list[str | Cell]] = [
        [label, *(number(metrics[name]) if name in metrics else "" for name in names)]
        for label, metrics in by_model.items()
    ]
    caption = (
        "Macro: mean over sessions. Tie rate: share of predictions whose target is tied with another item. "
        "Computed from all recommended lists, whether or not they contain the target: coverage, the share of the "
        "catalogue that is recommended at least once; novelty, the mean of -log2 of a recommended item's share of "
        "training events; Gini index of how often each item is recommended (0: all equally often); mean popularity, "
        "the training events of a recommended item."
    )
    return Table(["model", *names], lines, caption)


def _first_items(view: SectionView) -> Table | None:
    """What the models list before the first click of a session; None: no model lists items by profiles."""
    lines: list[list[str | Cell]] = []
    for row in view.rows:
        compared = [run.metrics["first_items"] for run in row.variant.own_runs if "first_items" in run.metrics]
        if not compared:
            continue
        first, answers = compared[0], [one["answer"] for one in compared]
        means = [float(np.mean([one[key] for one in compared])) for key in ("popularity", "pnn")]
        listed = f"by profile in {answers.count('pnn')} of {counted(len(answers), 'run')}"
        sessions = f"{first['sessions']:,}"
        lines.append([row.variant.label, first["encoder"], sessions, *(f"{mean:.4f}" for mean in means), listed])
    if not lines:
        return None
    metric = metric_label(first["metric"])
    header = ["model", "context encoder", "sessions", f"{metric}, popularity", f"{metric}, profile", "list used"]
    caption = (
        "On the first events of validation sessions whose user has a profile; means over the seeds. In each run, the "
        "list with the higher metric is used before the first click: that for the user's profile, or the most popular "
        "items. All other numbers on this page are of predictions after a click."
    )
    return Table(header, lines, caption, text_columns=(0, 1, 5))


def _speed(views: Sequence[SectionView], styles: Mapping[str, Style]) -> dict[str, Any]:
    """Training speed and seconds of every main model."""
    timed: dict[tuple[str, str], list[Run]] = {}
    for view in views:
        for row in view.rows:
            if own_runs := [run for run in row.variant.own_runs if not run.is_external]:
                timed.setdefault((view.section.title, row.variant.label), []).extend(own_runs)
    first = {view.section.name: view.section.title for view in reversed(views)}  # the others are in the table alone
    speeds = {}
    for name, title in first.items():
        for (_, label), runs in ((key, runs) for key, runs in timed.items() if key[0] == title):
            if measured := [speed for run in runs if (speed := run.metrics["train_events_per_second"])]:
                speeds[name, label] = float(np.mean(measured))
    figures = []
    if len(speeds) > 1:
        values = {f"{name}: {label}": speed for (name, label), speed in speeds.items()}
        colors = [styles[label][0] for _, label in speeds]
        svg = charts.bars("Training", "events per second in training steps", values, colors)
        caption = "Speed of a model's last stage: for ARNN, that of the merging layer, not of its encoders."
        figures.append(Figure(Markup(svg), caption))
    stages = list(dict.fromkeys(stage for runs in timed.values() for run in runs for stage in run.metrics["seconds"]))
    lines = []
    for (name, label), all_runs in timed.items():
        runs = [run for run in all_runs if not run.metrics.get("resumed")]
        if not runs:
            continue
        line = [f"{name}: {label}", str(len(runs))]
        for stage in stages:
            seconds = [run.metrics["seconds"][stage] for run in runs if stage in run.metrics["seconds"]]
            line.append(f"{np.mean(seconds):.1f}" if seconds else "")
        lines.append([*line, f"{np.mean([sum(run.metrics['seconds'].values()) for run in runs]):.1f}"])
    caption = (
        "Wall-clock seconds on the machine of each run, which other processes may have used, too. The mean of a stage "
        "is over the runs that executed it: an encoder may have been taken from another run. Resumed runs are left "
        "out, since their seconds cover only the last part."
    )
    header = ["model", "runs", *map(_stage_title, stages), "total"]
    return {"figures": figures, "table": Table(header, lines, caption)}


def _stage_title(stage: str) -> str:
    """
    >>> _stage_title("test"), _stage_title("train_session")
    ('test', 'train the session encoder')
    """
    action, _, role = stage.partition("_")
    return f"{action} the {role} encoder" if role in ("session", "context") else stage


def _configurations(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """The settings that differ between runs on one data set: a row per key, its values, and which runs have them."""
    configs = [
        {
            key: "null" if value is None else str(value)
            for key, value in flatten(run.config).items()
            if not key.startswith(OUTSIDE_CONFIGURATION) and "dims" not in key.split(".")
        }
        for run in runs
    ]
    rows = []
    for key in differing_keys(configs):
        by_model: dict[str, dict[str, list[Run]]] = {}  # the runs with each value
        for config, run in zip(configs, runs, strict=True):
            of_model = by_model.setdefault(config.get("model.name", ""), {})
            of_model.setdefault(config.get(key, "not set"), []).append(run)
        if key.startswith("model."):  # models have different settings anyway
            by_model = {model: of_value for model, of_value in by_model.items() if len(of_value) > 1}
        runs_of: dict[str, list[Run]] = {}
        for of_value in by_model.values():
            for value, having in of_value.items():
                runs_of.setdefault(value, []).extend(having)
        if runs_of:
            by_count = sorted(runs_of.items(), key=lambda item: -len(item[1]))
            rows.append((key, [(value, _names(having)) for value, having in by_count]))
    return {"name": name, "rows": rows, "seeds": ", ".join(dict.fromkeys(str(run.seed) for run in runs))}


def _names(runs: Sequence[Run]) -> str:
    """Which runs: few by their folders, many by their number."""
    if len(runs) > MAX_NAMED_RUNS:
        return counted(len(runs), "run")
    return ", ".join("/".join(run.folder.parts[-2:]) for run in runs)


def _manifests(views: Sequence[SectionView]) -> list[dict[str, Any]]:
    """The preparation of every data set."""
    sections = {view.section.data_key: view.section for view in reversed(views)}
    manifests: list[dict[str, Any]] = []
    for view in views:
        section = sections.pop(view.section.data_key, None)
        if section is None:
            continue
        sha = str(section.runs[0].metrics["manifest"])
        if section.data is None:
            manifests.append({"title": f"{section.name}: {sha}, not found", "table": None})
            continue
        manifest = section.data.manifest
        counts = ("events", "sessions", "users", "items")
        steps = [*manifest["funnel"], *({"step": name, **split} for name, split in manifest["splits"].items())]
        lines = [
            [step["step"], *("" if step[count] is None else f"{step[count]:,}" for count in counts)] for step in steps
        ]
        manifests.append(
            {
                "title": f"{section.name}: data {section.data_key[:10]}, manifest {sha[:10]}",
                "table": Table(["step", *counts], lines),
                "raw": "\n".join(f"{name} sha256 {digest}" for name, digest in manifest["raw"].items()),
                "config": json.dumps(manifest["config"], indent=1),
            }
        )
    return manifests

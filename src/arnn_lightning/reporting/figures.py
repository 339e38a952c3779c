"""The charts of a report: what is shown of a section, with captions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup

from arnn_lightning.evaluation.groups import Attributes, attribute_labels, by_position, group_labels, group_metrics
from arnn_lightning.evaluation.metrics import metric_label
from arnn_lightning.reporting import charts
from arnn_lightning.reporting.charts import Series, Style
from arnn_lightning.reporting.comparison import (
    N_ATTRIBUTES,
    Row,
    Section,
    SectionView,
    Settings,
    counted,
    estimates,
)
from arnn_lightning.reporting.results_table import Table, groups_table
from arnn_lightning.reporting.runs import DataSet

X_LABELS = {
    "position": "preceding events of the session",
    "known attributes": "known attributes of the user",
    "user": "the user's sessions in training",
    "popularity": "the target item",
}
MAX_TICK_LETTERS = 40  # of all names side by side
MAX_SERIES = 8  # models in one chart of lines


@dataclass(frozen=True)
class Figure:
    """A chart and its caption."""

    svg: Markup
    caption: str


def section_charts(view: SectionView, styles: Mapping[str, Style]) -> Iterator[Figure]:
    curves = _learning_curves(view, styles)
    if curves is not None:
        yield curves
    data = view.section.data
    # In lists as long as the catalogue nothing is missed, not even by shorter lists of other programs.
    cutoffs = [k for k in view.settings.cutoffs if data is None or k < data.n_items]
    if cutoffs:
        yield _recall_by_k(view, cutoffs, styles)
    row = view.main_model
    if row is None:
        return
    for by, label in _labels(view.section, view.settings.groups).items():
        figure = _group_chart(view, row, by, label)
        if figure is not None:
            yield figure
    rows = [row for row in view.rows if row.variant.session_results]
    if len(rows) > 1:
        names = [row.variant.label for row in rows]
        svg = charts.horizontal_intervals(
            "Gain of every variant",
            "difference from its session encoder",
            names,
            _gain_series(view.settings, names, rows),
        )
        yield Figure(Markup(svg), f"Each minus the session encoder of the same run; {view.settings.percent} intervals.")


def _shown(view: SectionView, rows: Sequence[Row]) -> tuple[list[Row], str]:
    """At most ``MAX_SERIES`` of the rows, in their order, and what a caption adds where some are left out.

    The main model, the base and the main model's session encoder are shown first, then those with the highest metric.
    """
    if len(rows) <= MAX_SERIES:
        return list(rows), ""
    main, base, metric = view.main_model, view.section.base(view.settings.base), view.settings.metrics[0]

    def priority(row: Row) -> tuple[bool, bool, bool, float]:
        is_encoder = main is not None and row.variant.name == main.session_name and row.variant.is_most_common
        return row is not main, row.variant is not base, not is_encoder, -row.metrics[metric].mean

    kept = {row.variant.label for row in sorted(rows, key=priority)[:MAX_SERIES]}
    names = (main.variant.label, "its session encoder") if main is not None else ()
    named = ", ".join(dict.fromkeys([*names, *([base.label] if base is not None else [])]))
    others = f"those with the highest {metric_label(metric)}"
    remark = f" {MAX_SERIES} of {len(rows)} models: {f'{named} and ' if named else ''}{others}."
    return [row for row in rows if row.variant.label in kept], remark


def _learning_curves(view: SectionView, styles: Mapping[str, Style]) -> Figure | None:
    monitor = str(view.section.settings.get("evaluation.monitor"))
    by_row = []
    for row in view.rows:
        variant = row.variant
        names = {seed: "/".join(filter(None, [role, "val", monitor])) for seed, role in variant.roles.items()}
        curves = [run.curves[names[seed]] for seed, run in variant.runs.items() if run.curves.get(names[seed])]
        epochs = sorted(set.intersection(*map(set, curves))) if curves else []  # that all seeds have
        if epochs:
            values = np.array([[curve[epoch] for epoch in epochs] for curve in curves])
            spread = (values.mean(0), values.min(0), values.max(0))
            line = Series(variant.label, [e + 1 for e in epochs], *(values.tolist() for values in spread))
            by_row.append((row, line))
    rows, remark = _shown(view, [row for row, _ in by_row])
    shown = {row.variant.label for row in rows}
    series = [line for _, line in by_row if line.name in shown]
    if max((len(line.x) for line in series), default=0) < 2:  # a point is no curve
        return None
    ticks = range(1, max(int(line.x[-1]) for line in series) + 1)
    y_label = f"validation {metric_label(monitor)}"
    colors = [styles[line.name] for line in series]
    svg = charts.lines("Learning curves", "epoch", y_label, series, ticks[:: 1 + len(ticks) // 12], colors)
    caption = f"Validation by epoch; bands span the seeds, from the lowest to the highest.{remark}"
    return Figure(Markup(svg), caption)


def _recall_by_k(view: SectionView, cutoffs: Sequence[int], styles: Mapping[str, Style]) -> Figure:
    settings = view.settings
    rows, remark = _shown(view, [row for row in view.rows if row.variant.is_most_common])
    variants = [row.variant for row in rows]
    values = [variant.per_prediction(f"recall@{k}") for variant in variants for k in cutoffs]
    found = iter(estimates(values, view.section, settings))
    series = []
    for variant in variants:
        points = [next(found).clipped() for _ in cutoffs]
        bounds = ([getattr(point, bound) for point in points] for bound in ("mean", "low", "high"))
        series.append(Series(variant.label, cutoffs, *bounds))
    colors = [styles[variant.label] for variant in variants]
    svg = charts.lines("Recall by K", "K, length of the list", "Recall@K", series, cutoffs, colors, log=True)
    caption = f"Share of predictions whose item is among the first K; {settings.percent} bands.{remark}"
    return Figure(Markup(svg), caption)


def _labels(section: Section, attributes: Sequence[str]) -> dict[str, pl.Series]:
    """The groups of every prediction, by what they are by; those that need the data set only where it is found."""
    ranks, data = section.predictions, section.data
    if data is None:
        return {"position": by_position(ranks["position"])}
    return group_labels(ranks, data.users, data.train, data.n_items, _codes(data, attributes))


def _codes(data: DataSet, names: Sequence[str]) -> Attributes:
    """The attributes of these names that the data set has."""
    return {name: attribute for name in names if (attribute := data.attribute(name)) is not None}


def _group_chart(view: SectionView, row: Row, by: str, label: pl.Series) -> Figure | None:
    """The gains of the groups that have an interval; None for fewer than two, which are a row of the table."""
    settings = view.settings
    values = {metric: row.variant.gains(metric, row.variant.session_results) for metric in settings.metrics}
    groups = group_metrics(values, label, view.section.cluster(settings), settings.bootstrap, settings.seed)
    groups = groups.drop_nulls(f"{settings.metrics[0]}_low")
    if len(groups) < 2:
        return None
    # Names that are too long to be side by side are placed below each other.
    is_wide = sum(max(len(str(name)), 6) for name in groups["group"]) > MAX_TICK_LETTERS
    separator = ": " if is_wide else "\n"
    names = [f"{group}{separator}{count:,}" for group, count in groups.select("group", "predictions").iter_rows()]
    series = []
    for metric in settings.metrics:
        bounds = (groups[metric + bound].to_list() for bound in ("", "_low", "_high"))
        series.append(Series(metric_label(metric), names, *bounds))
    title, x_label = f"Gain of {row.variant.name} by {by}", f"{X_LABELS.get(by, by)}; predictions"
    if is_wide:
        svg = charts.horizontal_intervals(title, "difference, paired", names, series)
    else:
        svg = charts.vertical_intervals(title, x_label, "difference, paired", names, series)
    caption = f"{row.variant.label} minus its session encoder {row.session_name}, mean over "
    return Figure(Markup(svg), f"{caption}{counted(len(row.variant.seeds), 'seed')}; {settings.percent} intervals.")


def group_tables(view: SectionView) -> list[tuple[str, list[tuple[str, Table]]]]:
    """By attribute of the settings, metrics by group of every model in its most common configuration."""
    data, settings = view.section.data, view.settings
    if data is None or not settings.groups:
        return []
    rows = sorted((row for row in view.rows if row.variant.is_most_common), key=lambda row: row is not view.main_model)
    cluster = view.section.cluster(settings)
    tables = []
    for by, label in attribute_labels(view.section.predictions, _codes(data, settings.groups)).items():
        of_models = []
        for row in rows:
            values = {metric: row.variant.per_prediction(metric) for metric in settings.metrics}
            frame = group_metrics(values, label, cluster, settings.bootstrap, settings.seed)
            limits = [f"{metric}_{end}" for metric in settings.metrics for end in ("low", "high")]
            frame = frame.with_columns(pl.col(limits).clip(0.0, 1.0))  # as ``Estimate.clipped``
            of_models.append((row.variant.label, groups_table(frame, by, settings.bootstrap)))
        tables.append((by, of_models))
    return tables


def _gain_series(settings: Settings, x: Sequence[Any], rows: Sequence[Row]) -> list[Series]:
    """For every metric, the rows' gains over their session encoders."""
    series = []
    for metric in settings.metrics:
        gains = [row.session_gains[metric] for row in rows]
        columns = ([getattr(gain, bound) for gain in gains] for bound in ("mean", "low", "high", "by_seed"))
        series.append(Series(metric_label(metric), x, *columns))
    return series


def setting_charts(group: Sequence[SectionView]) -> Iterator[Figure]:
    """The main model's gain by number of attributes, and under every other setting."""
    main = group[0]
    settings = main.settings
    by_count = {
        view.n_attributes: row
        for view in reversed(group)
        if _differs_only_in_n_attributes(view, main) and (row := view.main_model) is not None
    }
    counts = sorted(count for count in by_count if count is not None)
    if len(counts) > 1:
        rows = [by_count[count] for count in counts]
        svg = charts.lines(
            f"Gain of {rows[0].variant.name} by number of attributes",
            "attributes of the user that the model uses",
            "difference from its session encoder",
            _gain_series(settings, counts, rows),
            counts,
            charts.METRICS,
            zero_line=True,
        )
        yield Figure(Markup(svg), f"Mean over seeds with {settings.percent} bands; small dots are single seeds.")
    controls = [
        (view.section.short_label, row)
        for view in group
        if (row := view.main_model) is not None and view.section.settings.get(N_ATTRIBUTES) is None
    ]
    if len(controls) > 1:
        names = [label for label, _ in controls]
        series = _gain_series(settings, names, [row for _, row in controls])
        svg = charts.horizontal_intervals(
            "Gain under every setting", "difference from the session encoder", names, series
        )
        yield Figure(Markup(svg), f"The model minus its session encoder; {settings.percent} intervals.")


def _differs_only_in_n_attributes(view: SectionView, main: SectionView) -> bool:
    def others(section: Section) -> dict[str, Any]:
        return {key: value for key, value in section.settings.items() if key != N_ATTRIBUTES}

    same_data = view.section.data_key == main.section.data_key
    return same_data and others(view.section) == others(main.section)

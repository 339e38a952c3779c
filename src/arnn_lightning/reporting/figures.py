"""The charts of a report: what is shown of a section, with captions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup

from arnn_lightning.evaluation.bootstrap import intervals
from arnn_lightning.evaluation.groups import (
    by_known_attributes,
    by_popularity,
    by_position,
    by_seen,
    group_metrics,
)
from arnn_lightning.evaluation.metrics import metric_label
from arnn_lightning.reporting import charts
from arnn_lightning.reporting.charts import Series, Style
from arnn_lightning.reporting.comparison import N_ATTRIBUTES, Row, Section, SectionView, Settings, counted

MAX_SERIES = 8  # models in one chart of lines


@dataclass(frozen=True)
class Figure:
    """A chart and its caption."""

    svg: Markup
    caption: str


def section_charts(view: SectionView, styles: Mapping[str, Style]) -> Iterator[Figure]:
    curves = _learning_curves(view, styles)
    if curves is not None:
        yield Figure(curves, "Validation after every epoch; bands span the seeds, from the lowest to the highest.")
    caption = f"Share of predictions whose item is among the first K; {view.settings.percent} bands."
    yield Figure(_recall_by_k(view, styles), caption)
    row = view.main_model
    if row is None:
        return
    for title, x_label, label in _groups(view.section):
        if label.n_unique() > 1:  # a single group is a row of the table
            yield _group_chart(view, row, title, x_label, label)
    rows = [row for row in view.rows if row.variant.session_results]
    if len(rows) > 1:
        names = [row.variant.label for row in rows]
        svg = charts.horizontal_intervals(
            "Gain of every variant",
            "difference to its session encoder",
            names,
            _gain_series(view.settings, names, rows),
        )
        yield Figure(Markup(svg), f"Each minus the session encoder of the same run; {view.settings.percent} intervals.")


def _learning_curves(view: SectionView, styles: Mapping[str, Style]) -> Markup | None:
    monitor = str(view.section.settings.get("evaluation.monitor"))
    series = []
    for row in view.rows:
        variant = row.variant
        name = f"{variant.role}/val/{monitor}" if variant.role else f"val/{monitor}"
        curves = [run.curves[name] for run in variant.runs.values() if run.curves.get(name)]
        if curves:
            epochs = min(map(len, curves))
            values = np.array([curve[:epochs] for curve in curves])
            spread = (values.mean(0), values.min(0), values.max(0))
            series.append(Series(variant.label, range(1, epochs + 1), *(line.tolist() for line in spread)))
    series = series[:MAX_SERIES]
    if not series:
        return None
    ticks = range(1, max(len(line.x) for line in series) + 1)
    y_label = f"validation {metric_label(monitor)}"
    colors = [styles[line.name] for line in series]
    return Markup(charts.lines("Learning curves", "epoch", y_label, series, ticks[:: 1 + len(ticks) // 12], colors))


def _recall_by_k(view: SectionView, styles: Mapping[str, Style]) -> Markup:
    settings = view.settings
    variants = [row.variant for row in view.rows if row.variant.is_most_common][:MAX_SERIES]
    values = [np.mean(variant.per_prediction(f"recall@{k}"), axis=0) for variant in variants for k in settings.cutoffs]
    matrix = np.stack(values, 1)
    bootstrap, cluster = settings.bootstrap, view.section.cluster(settings)
    low, high = intervals(matrix, cluster, bootstrap["resamples"], bootstrap["confidence"], settings.seed)
    shape = (len(variants), len(settings.cutoffs))
    bands = zip(*(column.reshape(shape).tolist() for column in (matrix.mean(0), low, high)), strict=True)
    series = [Series(variant.label, settings.cutoffs, *band) for variant, band in zip(variants, bands, strict=True)]
    colors = [styles[variant.label] for variant in variants]
    return Markup(
        charts.lines("Recall by K", "K, length of the list", "Recall@K", series, settings.cutoffs, colors, log=True)
    )


def _groups(section: Section) -> Iterator[tuple[str, str, pl.Series]]:
    """Title, axis label and the group of every prediction."""
    ranks, data = section.predictions, section.data
    yield "by position", "preceding events of the session", by_position(ranks["position"])
    if data is not None:
        yield "by known attributes", "known attributes of the user", by_known_attributes(ranks["user"], data.users)
        yield "by user", "the user's sessions in training", by_seen(ranks["user"], data.train)
        yield "by popularity", "the target item", by_popularity(ranks["item"], data.train, data.n_items)


def _group_chart(view: SectionView, row: Row, title: str, x_label: str, label: pl.Series) -> Figure:
    settings, series = view.settings, []
    for metric in settings.metrics:
        gain = np.mean(row.variant.gains(metric, row.variant.session_results), axis=0)
        groups = group_metrics(gain, label, view.section.cluster(settings), settings.bootstrap, settings.seed)
        names = [f"{group}\n{count:,}" for group, count in groups.select("group", "predictions").iter_rows()]
        bounds = (groups[column].to_list() for column in ("mean", "low", "high"))
        series.append(Series(metric_label(metric), names, *bounds))
    names = [str(name) for name in series[0].x]
    svg = charts.vertical_intervals(
        f"Gain of {row.variant.name} {title}", f"{x_label}; predictions", "difference, paired", names, series
    )
    caption = f"{row.variant.label} minus its session encoder {row.session_name}, mean over "
    return Figure(Markup(svg), f"{caption}{counted(len(row.variant.seeds), 'seed')}; {settings.percent} intervals.")


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
            "difference to its session encoder",
            _gain_series(settings, counts, rows),
            counts,
            charts.METRICS,
            zero_line=True,
        )
        yield Figure(Markup(svg), f"Mean over seeds with {settings.percent} bands; small dots are single seeds.")
    controls = [
        (view.section.label, row)
        for view in group
        if (row := view.main_model) is not None and view.section.settings.get(N_ATTRIBUTES) is None
    ]
    if len(controls) > 1:
        names = [label for label, _ in controls]
        series = _gain_series(settings, names, [row for _, row in controls])
        svg = charts.horizontal_intervals(
            "Gain under every setting", "difference to the session encoder", names, series
        )
        yield Figure(Markup(svg), f"The model minus its session encoder; {settings.percent} intervals.")


def _differs_only_in_n_attributes(view: SectionView, main: SectionView) -> bool:
    def others(section: Section) -> dict[str, Any]:
        return {key: value for key, value in section.settings.items() if key != N_ATTRIBUTES}

    same_data = view.section.data_key == main.section.data_key
    return same_data and others(view.section) == others(main.section)

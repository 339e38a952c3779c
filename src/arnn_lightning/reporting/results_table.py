"""The results table of every section, in the layout of the paper's Table 2: for the page, as Markdown and as CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from arnn_lightning.evaluation.bootstrap import MIN_CLUSTERS
from arnn_lightning.evaluation.metrics import interval_text, metric_label
from arnn_lightning.io import escape_markdown
from arnn_lightning.reporting.comparison import SESSION_ENCODER, Estimate, Row, Section, shown_references


@dataclass(frozen=True)
class Cell:
    """A cell of a table: a number, and in smaller type a text next to it and a line below it."""

    text: str
    inline: str = ""
    subtext: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the page; ``text_columns`` are aligned to the left, like the first."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""
    text_columns: Sequence[int] = (0,)


def page_table(section: Section, rows: Sequence[Row], metrics: Sequence[str], confidence: float) -> Table:
    """The table of one section for the page."""
    references = shown_references(rows)
    header = ["model"]
    for metric in metrics:
        header += [metric_label(metric), *(["paper"] if _is_published(section, metric) else [])]
    header += [f"{metric_label(metric)} - {reference}" for reference in references for metric in metrics] + ["seeds"]
    lines: list[list[str | Cell]] = []
    for row in rows:
        line: list[str | Cell] = [row.variant.label]
        for metric in metrics:
            estimate = row.metrics[metric]
            interval = format_interval(estimate, ".4f")
            line.append(Cell(f"{estimate.mean:.4f}", _std(estimate), interval, _is_best(row, rows, metric)))
            if _is_published(section, metric):
                line.append(_paper(section, row, metric))
        line += [gain_cell(row, reference, metric) for reference in references for metric in metrics]
        lines.append([*line, str(len(row.metrics[metrics[0]].by_seed))])
    caption = (
        f"Below each figure is its {100 * confidence:g} % interval; the standard deviation over seeds follows ±. "
        "Differences are paired on the same predictions and seeds; their p values are corrected for all differences of "
        "this table (Holm). The highest mean of a column is bold."
    )
    if any(math.isnan(row.metrics[metrics[0]].low) for row in rows):
        caption += (
            f" With fewer than {MIN_CLUSTERS} users (or sessions, where they are resampled), there are no intervals."
        )
    if SESSION_ENCODER in references:
        caption += " The session encoder is the one of the same run."
    return Table(header, lines, caption)


def gain_cell(row: Row, reference: str, metric: str) -> str | Cell:
    """The difference of a row to ``reference`` with its share and interval; empty if the row has none."""
    gain = row.gains.get(reference, {}).get(metric)
    if gain is None:
        return ""
    share = row.shares.get(reference, {}).get(metric)
    shown = "" if share is None else f"({share:+.1%})"
    return Cell(
        f"{gain.mean:+.4f}", shown, "; ".join(filter(None, [format_interval(gain, "+.4f"), format_p(gain.adjusted_p)]))
    )


def groups_table(frame: pl.DataFrame, title: str, bootstrap: Mapping[str, Any]) -> Table:
    """Metrics by group and their gaps to all other predictions, for the terminal and the page.

    Args:
        frame: as returned by ``group_metrics``.
        title: of the first column.
        bootstrap: ``unit`` and ``confidence``.
    """
    metrics = [name.removesuffix("_gap") for name in frame.columns if name.endswith("_gap")]
    header = [title, "predictions", f"{bootstrap['unit']}s"]
    for metric in metrics:
        header += [metric_label(metric), f"{metric_label(metric)}, minus all others"]
    rows: list[list[str | Cell]] = []
    for group in frame.iter_rows(named=True):
        row: list[str | Cell] = [group["group"], f"{group['predictions']:,}", f"{group['clusters']:,}"]
        for metric in metrics:
            for name, form in ((metric, ".4f"), (f"{metric}_gap", "+.4f")):
                low, high, p = (group.get(f"{name}_{part}") for part in ("low", "high", "p"))
                interval = "" if low is None else f"{low:{form}} to {high:{form}}"
                text = "" if group[name] is None else f"{group[name]:{form}}"
                row.append(Cell(text, "" if p is None else format_p(p), interval))
        rows.append(row)
    caption = (
        f"Below each value its {100 * bootstrap['confidence']:g} % interval. Minus all others: the group's mean minus "
        f"that of all other predictions, with a p value (Holm's correction over the groups). Groups of fewer than "
        f"{MIN_CLUSTERS} {bootstrap['unit']}s, and gaps to fewer, have no interval."
    )
    return Table(header, rows, caption)


def format_p(p: float) -> str:
    """A p value as in "p = .03"; empty if it is NaN.

    >>> format_p(0.034), format_p(0.0002), format_p(1.0)
    ('p = .034', 'p < .001', 'p = 1')
    """
    if math.isnan(p):
        return ""
    if p < 0.001:
        return "p < .001"
    return f"p = {p:.3f}".replace("0.", ".", 1) if p < 0.9995 else "p = 1"


def markdown(parts: Sequence[tuple[Section, Sequence[Row]]], metrics: Sequence[str], confidence: float) -> str:
    """All sections, one table each."""
    return "\n".join(_markdown_section(section, rows, metrics, confidence) for section, rows in parts)


def _markdown_section(section: Section, rows: Sequence[Row], metrics: Sequence[str], confidence: float) -> str:
    references = shown_references(rows)
    header = ["model"]
    for metric in metrics:
        header += [metric_label(metric), f"{100 * confidence:g} % interval"]
        header += ["paper"] if _is_published(section, metric) else []
    header += [f"{metric_label(metric)} - {reference}" for reference in references for metric in metrics] + ["seeds"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row in rows:
        line = [row.variant.label]
        for metric in metrics:
            estimate = row.metrics[metric]
            value = f"{estimate.mean:.4f} {_std(estimate)}".strip()
            value = f"**{value}**" if _is_best(row, rows, metric) else value
            line += [value, format_interval(estimate, ".4f")]
            line += [_paper(section, row, metric)] if _is_published(section, metric) else []
        for reference in references:
            for metric in metrics:
                gain = row.gains.get(reference, {}).get(metric)
                interval = "" if gain is None else format_interval(gain, "+.4f")
                line.append("" if gain is None else f"{gain.mean:+.4f}" + (f" ({interval})" if interval else ""))
        lines.append([*line, str(len(row.metrics[metrics[0]].by_seed))])
    table = "\n".join(f"| {' | '.join(escape_markdown(cell) for cell in line)} |" for line in lines)
    seeds = {len(row.metrics[metrics[0]].by_seed) for row in rows}
    up_to = "up to " if len(seeds) > 1 else ""
    over = f", mean ± standard deviation over {up_to}{max(seeds)} seeds" if max(seeds) > 1 else ""
    return f"{escape_markdown(section.title)}: {section.predictions.height:,} predictions{over}\n\n{table}\n"


def csv_text(parts: Sequence[tuple[Section, Sequence[Row]]], metrics: Sequence[str]) -> str:
    """All sections in one table, a row per model; ``gain`` is to ``base``, ``session_gain`` to the session encoder."""
    columns = ["data", "data_key", "setting", "model", "base", "predictions", "seeds"]
    for metric in metrics:
        for quantity in (metric, f"{metric}_gain", f"{metric}_session_gain"):
            columns += [quantity, *(f"{quantity}_{statistic}" for statistic in ("low", "high", "std"))]
            columns += [f"{quantity}_p"] if quantity != metric else []
        columns.append(f"{metric}_paper")
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for section, rows in parts:
        for row in rows:
            base = next((reference for reference in row.gains if reference != SESSION_ENCODER), "")
            line: dict[str, object] = {
                "data": section.name,
                "data_key": section.data_key[:10],
                "setting": section.label,
                "model": row.variant.label,
                "base": base,
                "predictions": section.predictions.height,
                "seeds": " ".join(map(str, row.variant.seeds)),
            }
            for metric in metrics:
                gain, session_gain = (row.gains.get(reference, {}).get(metric) for reference in (base, SESSION_ENCODER))
                line |= _statistics(metric, row.metrics[metric])
                line |= _statistics(f"{metric}_gain", gain) | _statistics(f"{metric}_session_gain", session_gain)
                line |= {
                    f"{metric}_gain_p": gain and _or_none(gain.adjusted_p),
                    f"{metric}_session_gain_p": session_gain and _or_none(session_gain.adjusted_p),
                }
                line[f"{metric}_paper"] = _paper_figure(section, row, metric)
            writer.writerow(line)
    return buffer.getvalue()


def _statistics(name: str, estimate: Estimate | None) -> dict[str, object]:
    if estimate is None:
        return {}
    return {
        name: estimate.mean,
        f"{name}_low": _or_none(estimate.low),
        f"{name}_high": _or_none(estimate.high),
        f"{name}_std": estimate.std,
    }


def _or_none(number: float) -> float | None:
    return None if math.isnan(number) else number


def format_interval(estimate: Estimate, form: str) -> str:
    """``0.1000 to 0.2000``; empty if there is none."""
    return interval_text(estimate.low, estimate.high, form)


def _is_best(row: Row, rows: Sequence[Row], metric: str) -> bool:
    return row.metrics[metric].mean == max(other.metrics[metric].mean for other in rows)


def _std(estimate: Estimate) -> str:
    return "" if estimate.std is None else f"± {estimate.std:.4f}"


def _is_published(section: Section, metric: str) -> bool:
    return any(metric in figures for figures in section.paper.values())


def _paper(section: Section, row: Row, metric: str) -> str:
    figure = _paper_figure(section, row, metric)
    return "" if figure is None else f"{figure:.4f}"


def _paper_figure(section: Section, row: Row, metric: str) -> float | None:
    """The paper's figure, only for the most common configuration of a model."""
    return section.paper.get(row.variant.name, {}).get(metric) if row.variant.is_most_common else None

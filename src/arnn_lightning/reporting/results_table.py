"""Table 2 of the paper with our figures: as markdown, as CSV, and as rows for the page."""

import csv
import io
from collections.abc import Sequence

from arnn_lightning.reporting.comparison import Estimate, Row, Section
from arnn_lightning.reporting.page import Cell, cell, table


def label(metric: str) -> str:
    """What a metric is called.

    >>> label("recall@20"), label("mrr@5")
    ('Recall@20', 'MRR@5')
    """
    kind, k = metric.split("@")
    return f"{kind.upper() if kind == 'mrr' else kind.capitalize()}@{k}"


def title(section: Section) -> str:
    """Which data and setting."""
    return f"{section.name} ({section.label})" if section.label else section.name


def html(section: Section, rows: Sequence[Row], metrics: Sequence[str], confidence: float) -> str:
    """The table of one section for the page."""
    header = ["model"]
    for metric in metrics:
        header += [label(metric), *(["paper"] if section.paper else [])]
    header += [f"{label(metric)}, difference" for metric in metrics] + ["seeds"]
    lines: list[list[str]] = []
    for row in rows:
        line: list[str] = [row.variant.label]
        for metric in metrics:
            one = row.metrics[metric]
            line.append(cell(f"{one.mean:.4f}", _deviation(one), _span(one, ".4f"), _is_best(row, rows, metric)))
            if section.paper:
                line.append(_paper(section, row, metric))
        line += [_gain(row, metric) for metric in metrics]
        line.append(str(len(next(iter(row.metrics.values())).by_seed)))
        lines.append(line)
    caption = (
        f"Below each figure its {100 * confidence:g} % bootstrap interval; after ± the standard deviation over seeds. "
        "Differences are paired on the same attempts: to the session part of the same run where the model has "
        f"one, else to {rows[0].base}. The best is bold."
    )
    return table(header, lines, caption)


def markdown(parts: Sequence[tuple[Section, Sequence[Row]]], metrics: Sequence[str], confidence: float) -> str:
    """All sections, one table each."""
    blocks = []
    for section, rows in parts:
        header = ["model"]
        for metric in metrics:
            header += [label(metric), f"{100 * confidence:g} % interval", *(["paper"] if section.paper else [])]
        header += [f"{label(metric)} - {rows[0].base}" for metric in metrics]
        lines = [header, ["---", *["---:"] * (len(header) - 1)]]
        for row in rows:
            line = [row.variant.label]
            for metric in metrics:
                one = row.metrics[metric]
                value = f"{one.mean:.4f} {_deviation(one)}".strip()
                line += [f"**{value}**" if _is_best(row, rows, metric) else value, _span(one, ".4f")]
                if section.paper:
                    line.append(_paper(section, row, metric))
            for metric in metrics:
                gain = row.gains.get(metric)
                line.append("" if gain is None else f"{gain.mean:+.4f} ({_span(gain, '+.4f')})")
            lines.append(line)
        text = "\n".join(f"| {' | '.join(_plain(one) for one in line)} |" for line in lines)
        seeds = max(len(next(iter(row.metrics.values())).by_seed) for row in rows)
        over = f", mean ± deviation over {seeds} seeds" if seeds > 1 else ""
        blocks.append(f"{_plain(title(section))}: {section.attempts.height:,} attempts{over}\n\n{text}\n")
    return "\n".join(blocks)


def csv_text(parts: Sequence[tuple[Section, Sequence[Row]]], metrics: Sequence[str]) -> str:
    """All sections in one table, a row per model."""
    columns = ["data", "data_key", "setting", "model", "base", "attempts", "seeds"]
    for metric in metrics:
        columns += [metric, *(f"{metric}_{what}" for what in ("low", "high", "deviation", "paper"))]
        columns += [f"{metric}_gain", *(f"{metric}_gain_{what}" for what in ("low", "high", "deviation"))]
    written = io.StringIO()
    writer = csv.DictWriter(written, columns, lineterminator="\n")
    writer.writeheader()
    for section, rows in parts:
        for row in rows:
            line: dict[str, object] = {
                "data": section.name,
                "data_key": section.data_key[:10],
                "setting": section.label,
                "model": row.variant.label,
                "base": row.base if row.gains else "",
                "attempts": section.attempts.height,
                "seeds": " ".join(map(str, row.variant.seeds)),
            }
            for metric in metrics:
                for name, one in ((metric, row.metrics[metric]), (f"{metric}_gain", row.gains.get(metric))):
                    if one is not None:
                        line |= {name: one.mean, f"{name}_low": one.low, f"{name}_high": one.high}
                        line |= {f"{name}_deviation": one.deviation}
                line[f"{metric}_paper"] = _paper_figure(section, row, metric)
            writer.writerow(line)
    return written.getvalue()


def _is_best(row: Row, rows: Sequence[Row], metric: str) -> bool:
    return row.metrics[metric].mean == max(other.metrics[metric].mean for other in rows)


def _span(one: Estimate, form: str) -> str:
    return f"{one.low:{form}} to {one.high:{form}}"


def _deviation(one: Estimate) -> str:
    return "" if one.deviation is None else f"± {one.deviation:.4f}"


def _paper(section: Section, row: Row, metric: str) -> str:
    theirs = _paper_figure(section, row, metric)
    return "" if theirs is None else f"{theirs:.4f}"


def _paper_figure(section: Section, row: Row, metric: str) -> float | None:
    """The paper's, for the usual configuration of a model alone."""
    usual = row.variant.label == row.variant.name
    return section.paper.get(row.variant.name, {}).get(metric) if usual else None


def _gain(row: Row, metric: str) -> Cell:
    gain = row.gains.get(metric)
    if gain is None:
        return cell("")
    before = row.metrics[metric].mean - gain.mean
    share = f"({gain.mean / before:+.1%})" if before else ""
    return cell(f"{gain.mean:+.4f}", share, _span(gain, "+.4f"))


def _plain(text: str) -> str:
    """A cell that cannot end itself or begin HTML."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

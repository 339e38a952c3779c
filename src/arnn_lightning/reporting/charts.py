"""Charts as SVG text: axes with units, intervals, the colours of Okabe and Ito, legible on a phone."""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

Style = tuple[str, str]  # colour and marker

# Okabe & Ito's colours differ for every kind of colour vision; markers differ, too.
# The model's colour is the same in all charts of a page, whatever its configuration; a configuration has its marker.
MODELS: Mapping[str, Style] = {
    "pop": ("#767676", "x"),
    "itemknn": ("#E69F00", "v"),
    "sr": ("#56B4E9", "P"),
    "vsknn": ("#CC79A7", "D"),
    "gru4rec": ("#0072B2", "o"),
    "pnn": ("#009E73", "^"),
    "arnn": ("#D55E00", "s"),
}
OTHERS = ("#8B6B00", "#7F5FBF", "#882255", "#44AA99", "#999933", "#AA4499", "#6699CC", "#B2182B", "#117733", "#C49A6C")
MARKERS = ("X", "<", ">", "p", "h", "*", "d", "8", "H", "1", "2", "3", "4", "+")
INK, LINE = "#1b1b1b", "#e3e3e3"  # the page gives them the colours of its scheme, light or dark
# Of metrics, in charts about one model: no model's colours.
METRICS: Sequence[Style] = ((INK, "o"), ("#8c8c8c", "s"), ("#7a3b69", "^"), ("#3b6b7a", "D"))
LEGEND_LETTERS = 48  # of all names in one row of a legend
AXIS_POINTS, LETTER_POINTS = 250, 7  # width of a chart's axis at least, and of a digit at most
SIZE = (4.6, 3.2)  # inches of 72 pt: a phone shows it at about this size, so that 10 pt is legible
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "arnn-lightning",  # the same chart gives the same bytes
    "text.parse_math": False,  # a name with a $ is a name
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


@dataclass(frozen=True)
class Series:
    """Points with intervals.

    Attributes:
        name: in the legend.
        x: numbers, or names of groups.
        mean, low, high: a value per x.
        dots: the single seeds' means per x.
    """

    name: str
    x: Sequence[float] | Sequence[str]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    dots: Sequence[Sequence[float]] = ()


def assign_styles(labels: Iterable[str]) -> dict[str, Style]:
    """One colour per model and one marker per configuration for all charts of a page, by its label.

    >>> styles = assign_styles(["arnn", "mine", "arnn (lr=1)", "yours"])
    >>> styles["arnn"], styles["arnn (lr=1)"], styles["yours"]
    (('#D55E00', 's'), ('#D55E00', '<'), ('#7F5FBF', '>'))
    """
    labels = list(dict.fromkeys(labels))
    names = dict.fromkeys(label.partition(" (")[0] for label in labels)
    others = [name for name in names if name not in MODELS]
    colors = {name: MODELS[name][0] for name in names if name in MODELS}
    colors |= {name: OTHERS[index % len(OTHERS)] for index, name in enumerate(others)}
    unknown = [label for label in labels if label not in MODELS]
    markers = {label: MARKERS[index % len(MARKERS)] for index, label in enumerate(unknown)}
    return {
        label: MODELS[label] if label in MODELS else (colors[label.partition(" (")[0]], markers[label])
        for label in labels
    }


@mpl.rc_context(STYLE)
def lines(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    ticks: Sequence[float],
    styles: Sequence[Style],
    log: bool = False,
    zero_line: bool = False,
) -> str:
    """Lines with bands (low to high) over a numeric axis."""
    figure, axes = _figure(title, x_label, y_label)
    if log:
        axes.set_xscale("log")
    legend = []
    for line, (color, marker) in zip(series, styles, strict=False):
        x_values = [float(x) for x in line.x]
        legend += [(handle, line.name) for handle in axes.plot(x_values, line.mean, color=color, marker=marker)]
        axes.fill_between(x_values, line.low, line.high, color=color, alpha=0.18, linewidth=0)
        for x, values in zip(x_values, line.dots, strict=False):
            axes.plot([x] * len(values), values, ".", color=color, alpha=0.55, markersize=4)
    axes.xaxis.set_major_locator(FixedLocator(_spaced(ticks, log)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if zero_line:
        axes.axhline(0, color=INK, linewidth=1)
    return _to_svg(figure, legend)


@mpl.rc_context(STYLE)
def vertical_intervals(title: str, x_label: str, y_label: str, groups: Sequence[str], series: Sequence[Series]) -> str:
    """A dot with its interval per group, series side by side."""
    figure, axes = _figure(title, x_label, y_label)
    legend = []
    for index, points in enumerate(series):
        color, marker = METRICS[index]
        x = [place + (index - (len(series) - 1) / 2) * 0.22 for place in range(len(groups))]
        handle = axes.errorbar(x, points.mean, yerr=_errors(points), fmt=marker, color=color, capsize=3, linewidth=1.6)
        legend.append((handle, points.name))
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.axhline(0, color=INK, linewidth=1)
    return _to_svg(figure, legend)


@mpl.rc_context(STYLE)
def horizontal_intervals(title: str, x_label: str, names: Sequence[str], series: Sequence[Series]) -> str:
    """A dot with its interval per name, from top to bottom; for names that are too long for a horizontal axis."""
    wrapped = [_wrap_label(name) for name in names]
    figure, axes = _figure(title, x_label, "", (SIZE[0], _height(wrapped)))
    legend = []
    for index, points in enumerate(series):
        color, marker = METRICS[index]
        y = [place + (index - (len(series) - 1) / 2) * 0.25 for place in range(len(names))]
        handle = axes.errorbar(points.mean, y, xerr=_errors(points), fmt=marker, color=color, capsize=3, linewidth=1.6)
        legend.append((handle, points.name))
    axes.set_yticks(range(len(names)), wrapped, fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.axvline(0, color=INK, linewidth=1)
    return _to_svg(figure, legend)


@mpl.rc_context(STYLE)
def bars(title: str, x_label: str, values: Mapping[str, float], colors: Sequence[str]) -> str:
    """Horizontal bars with their numbers."""
    wrapped = [_wrap_label(name) for name in values]
    figure, axes = _figure(title, x_label, "", (SIZE[0], _height(wrapped)))
    rectangles = axes.barh(range(len(values)), list(values.values()), color=list(colors), height=0.62)
    axes.bar_label(rectangles, fmt=StrMethodFormatter(" {x:,.0f}"), fontsize=9)
    axes.set_yticks(range(len(values)), wrapped, fontsize=9)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.margins(x=0.2)
    # Few and short ticks: long names leave little room, and numbers must not run into each other.
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return _to_svg(figure)


def _errors(points: Series) -> np.ndarray:
    """(2, X) lengths of the two arms of every interval, which may not contain the mean if the resamples are few."""
    mean = np.array(points.mean)
    lengths: np.ndarray = np.maximum([mean - points.low, points.high - mean], 0.0)
    return lengths


def _height(wrapped: Sequence[str]) -> float:
    """Inches of a chart with these names below each other."""
    return max(1.3 + 0.42 * sum(1 + name.count("\n") / 2 for name in wrapped), 2.0)


def _wrap_label(name: str) -> str:
    """A long name on several lines, or it would leave no room for the chart."""
    if len(name) <= 18:
        return name
    lines = name.replace(": ", ":\n").replace(" (", "\n(").replace(", ", ",\n").split("\n")
    return "\n".join(_filled(line) for line in lines)


def _filled(line: str, width: int = 26) -> str:
    """A line broken where words, or the words of a key, end.

    >>> _filled("an_encoder_with_a_long_name of=mine", width=16).split("\\n")
    ['an_encoder_with_', 'a_long_name of=', 'mine']
    """
    filled = [""]
    for piece in re.split(r"(?<=[ _.=/-])", line):
        if filled[-1] and len(filled[-1] + piece.rstrip()) > width:
            filled.append("")
        filled[-1] += piece
    return "\n".join(part.rstrip() for part in filled)


def _figure(title: str, x_label: str, y_label: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _to_svg(figure: Figure, legend: Sequence[tuple[Any, str]] = ()) -> str:
    """The text of a figure. Two or more of a legend's handles and names are shown; a name may start with "_"."""
    if len(legend) > 1:
        handles, names = [handle for handle, _ in legend], [_wrap_label(name) for _, name in legend]
        columns = max(1, min(len(names), LEGEND_LETTERS // (4 + max(map(len, names)))))
        width, height = figure.get_size_inches()
        lines = sum(1 + name.count("\n") for name in names[::columns])
        figure.set_size_inches(width, height + 0.2 * lines)
        figure.legend(handles, names, loc="outside lower center", ncols=columns, handlelength=1.4)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(LINE, "var(--line)")
    # As wide as its place on the page; the view box keeps the proportions.
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r'<svg \1width="100%" role="img"', svg, count=1)
    return re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)


def _spaced(ticks: Sequence[float], log: bool) -> list[float]:
    """The ticks without those whose numbers would touch the one before.

    >>> _spaced([0, 1, 2, 50, 100], log=False), _spaced([1, 2, 3, 5], log=True)
    ([0, 50, 100], [1, 2, 3, 5])
    """
    positions = [math.log(tick) if log else tick for tick in ticks]
    scale = AXIS_POINTS / ((max(positions) - min(positions)) or 1)
    kept: list[float] = []
    end = -math.inf
    for tick, position in zip(ticks, positions, strict=True):
        half = LETTER_POINTS * (len(f"{tick:g}") + 1) / 2
        if position * scale - half >= end:
            kept.append(tick)
            end = position * scale + half
    return kept

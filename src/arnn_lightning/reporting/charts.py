"""Charts as SVG text: axes with units, intervals drawn, colours of Okabe and Ito, legible on a phone."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

# Okabe & Ito's palette, whose colours differ for every kind of colour vision; markers differ, too.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MODELS = {
    "pop": ("#767676", "x"),
    "itemknn": ("#E69F00", "v"),
    "gru4rec": ("#0072B2", "o"),
    "pnn": ("#009E73", "^"),
    "arnn": ("#D55E00", "s"),
}
OTHERS = ("#CC79A7", "#56B4E9", "#000000", "#8B6B00", "#7F5FBF")  # beside those
SIZE = (4.6, 3.2)  # inches of 72 pt: a phone shows it at about its own size, so that 10 pt stays legible
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
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


@dataclass(frozen=True)
class Series:
    """Points with intervals: x (numbers, or names of groups), mean, low, high; ``dots`` are single seeds' means."""

    name: str
    x: Sequence[float] | Sequence[str]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    dots: Sequence[Sequence[float]] = ()


def look(name: str, index: int) -> tuple[str, str]:
    """Colour and marker of a model by its name, else by its place."""
    return MODELS.get(name, (OTHERS[index % len(OTHERS)], MARKERS[index % len(MARKERS)]))


@mpl.rc_context(STYLE)
def lines(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    ticks: Sequence[float],
    log: bool = False,
    tick_names: Sequence[str] | None = None,
    zero: bool = False,
    by_model: bool = True,
) -> str:
    """Lines with bands (low to high) over a numeric axis."""
    figure, axes = _figure(title, x_label, y_label)
    if log:
        axes.set_xscale("log")
    for index, one in enumerate(series):
        colour, marker = look(one.name, index) if by_model else (PALETTE[index], MARKERS[index])
        x_values = [float(x) for x in one.x]
        axes.plot(x_values, one.mean, color=colour, marker=marker, label=one.name)
        axes.fill_between(x_values, one.low, one.high, color=colour, alpha=0.18, linewidth=0)
        for x, values in zip(x_values, one.dots, strict=False):
            axes.plot([x] * len(values), values, ".", color=colour, alpha=0.55, markersize=4)
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    if tick_names is None:
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        axes.set_xticks(list(ticks), list(tick_names))
    return _finish(figure, axes, zero, legend=len(series) > 1)


@mpl.rc_context(STYLE)
def intervals(
    title: str, x_label: str, y_label: str, groups: Sequence[str], series: Sequence[Series], zero: bool = True
) -> str:
    """A dot with its interval per group, series side by side."""
    figure, axes = _figure(title, x_label, y_label)
    width = 0.22
    for index, one in enumerate(series):
        shift = (index - (len(series) - 1) / 2) * width
        x = [groups.index(str(name)) + shift for name in one.x]
        errors = [
            [mean - low for mean, low in zip(one.mean, one.low, strict=True)],
            [high - mean for mean, high in zip(one.mean, one.high, strict=True)],
        ]
        axes.errorbar(
            x, one.mean, yerr=errors, fmt=MARKERS[index], color=PALETTE[index], capsize=3, linewidth=1.6, label=one.name
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    return _finish(figure, axes, zero, legend=len(series) > 1)


@mpl.rc_context(STYLE)
def ranked(title: str, x_label: str, names: Sequence[str], series: Sequence[Series], zero: bool = True) -> str:
    """Names from top to bottom, a dot with its interval for each; for names that are too long for a horizontal axis."""
    height = max(1.3 + 0.42 * sum(1 + _broken(name).count("\n") / 2 for name in names), 2.0)
    figure, axes = _figure(title, x_label, "", (SIZE[0], height))
    for index, one in enumerate(series):
        shift = (index - (len(series) - 1) / 2) * 0.25
        y = [names.index(str(name)) + shift for name in one.x]
        errors = [
            [mean - low for mean, low in zip(one.mean, one.low, strict=True)],
            [high - mean for mean, high in zip(one.mean, one.high, strict=True)],
        ]
        axes.errorbar(
            one.mean, y, xerr=errors, fmt=MARKERS[index], color=PALETTE[index], capsize=3, linewidth=1.6, label=one.name
        )
    axes.set_yticks(range(len(names)), [_broken(name) for name in names], fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    if zero:
        axes.axvline(0, color="#444444", linewidth=1)
    return _finish(figure, axes, False, legend=len(series) > 1)


@mpl.rc_context(STYLE)
def bars(title: str, x_label: str, values: Mapping[str, float]) -> str:
    """Horizontal bars with their numbers."""
    figure, axes = _figure(title, x_label, "", (SIZE[0], 1.2 + 0.36 * max(len(values), 2)))
    names = list(values)
    colours = [look(name, index)[0] for index, name in enumerate(names)]
    drawn = axes.barh(range(len(names)), list(values.values()), color=colours, height=0.62)
    axes.bar_label(drawn, fmt=StrMethodFormatter(" {x:,.0f}"), fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.16)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.tick_params(axis="x", labelsize=9)
    return _finish(figure, axes, False, legend=False)


def _broken(name: str) -> str:
    """A long name on several lines, or it would leave no room for the chart."""
    return name.replace(" (", "\n(").replace(", ", ",\n") if len(name) > 18 else name


def _figure(title: str, x_label: str, y_label: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _finish(figure: Figure, axes: Axes, zero: bool, legend: bool) -> str:
    if zero:
        axes.axhline(0, color="#444444", linewidth=1)
    if legend:
        axes.legend(loc="best", handlelength=1.4)
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    # Sized by its place on the page; the view box keeps the proportions.
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r'<svg \1width="100%" role="img"', svg, count=1)
    return re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)

"""Tables on the console: test results, and the steps of the data preparation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from arnn_lightning.evaluation.metrics import interval_text, is_of_lists, metric_label

if TYPE_CHECKING:  # the preparation shows a table too, and does not need torch
    from arnn_lightning.evaluation.result import EvaluationResult
    from arnn_lightning.reporting.results_table import Cell
    from arnn_lightning.reporting.results_table import Table as PageTable

COUNTS = ("events", "sessions", "users", "items")
POPULARITY_SCOPES = {
    "log": "the whole log, test days included",
    "window": "the time window, test days included (as in paper 4.2.3)",
    "train": "training sessions alone",
}


def results_table(
    results: Sequence[EvaluationResult],
    metrics: Sequence[str],
    title: str,
    paper: Mapping[str, Mapping[str, float]],
    bootstrap: Mapping[str, Any],
    seed: int,
) -> Table:
    """Models x metrics with bootstrap intervals, and the paper's figures if there are any.

    Metrics of lists have no interval.

    Args:
        results: of the models, a row each.
        metrics: such as ``recall@20``.
        title: of the table.
        paper: model -> metric -> the paper's figure.
        bootstrap: ``resamples``, ``confidence`` and ``unit``.
        seed: of the bootstrap.
    """
    from arnn_lightning.evaluation.result import metric_intervals

    table = Table(title=title, title_justify="left")
    table.add_column("model")
    published = {metric for figures in paper.values() for metric in figures}
    resampled = [metric for metric in metrics if not is_of_lists(metric)]
    low, high = metric_intervals(results, resampled, bootstrap, seed)
    for metric in metrics:
        table.add_column(metric_label(metric), justify="right")
        if metric in resampled:
            table.add_column(f"{100 * bootstrap['confidence']:g} % interval", justify="right")
        if metric in published:
            table.add_column("paper", justify="right")
    for row, result in enumerate(results):
        measured = result.metrics(metrics)
        cells = [result.name]
        for metric in metrics:
            cells.append(number(measured[metric]) if metric in measured else "")
            if metric in resampled:
                column = resampled.index(metric)
                cells.append(interval_text(low[row, column], high[row, column], ".4f", " - "))
            if metric in published:
                figure = paper.get(result.name, {}).get(metric)
                cells.append("" if figure is None else f"{figure:.4f}")
        table.add_row(*cells)
    return table


def number(value: float) -> str:
    """A number with four decimals, or without if it is large.

    >>> number(0.25), number(1234.5)
    ('0.2500', '1,234')
    """
    return f"{value:,.0f}" if value > 100 else f"{value:.4f}"


def seed_guidance(n_seeds: int, unit: str) -> str | None:
    """Advice if only one seed was run; None for more."""
    if n_seeds > 1:
        return None
    return (
        f"one seed: intervals reflect the variation over {unit}s only, not over seeds; before you rely on a small "
        "difference, run several seeds (-m seed=1,2,3,4,5)"
    )


def rich_table(title: str, table: PageTable) -> Table:
    """A table of the report for the terminal; intervals are below their figures."""
    shown = Table(title=title, title_justify="left", show_lines=True)
    for index, name in enumerate(table.header):
        shown.add_column(Text(name), justify="left" if index in table.text_columns else "right")
    for row in table.rows:
        shown.add_row(*(Text(cell) if isinstance(cell, str) else _rich_cell(cell) for cell in row))
    return shown


def _rich_cell(cell: Cell) -> Text:
    lines = (Text(cell.text, "bold" if cell.bold else ""), Text(cell.inline), Text(cell.subtext))
    return Text("\n").join(line for line in lines if line)


def paired_difference_line(
    better: EvaluationResult, base: EvaluationResult, metrics: Sequence[str], bootstrap: Mapping[str, Any], seed: int
) -> str:
    """One line: the difference of two models in every metric, paired on the same predictions."""
    parts = []
    before = base.metrics(metrics)
    for metric in metrics:
        mean, low, high = better.paired_difference(base, metric, bootstrap, seed)
        share = f"{mean / before[metric]:+.1%}" if before[metric] else ""
        details = ", ".join(filter(None, [interval_text(low, high, "+.4f"), share]))
        parts.append(f"{metric_label(metric)} {mean:+.4f}" + (f" ({details})" if details else ""))
    return f"{better.name} - {base.name}, paired: " + "; ".join(parts)


def first_items_line(compared: Mapping[str, Any]) -> str:
    """What is listed before the first click, from ``first_items`` of metrics.json.

    >>> compared = {"answer": "pnn", "encoder": "PNN", "metric": "mrr@20", "sessions": 1200}
    >>> first_items_line({**compared, "popularity": 0.04, "pnn": 0.06})
    'before the first click: PNN (validation MRR@20 of 1,200 sessions: popularity 0.0400, PNN 0.0600)'
    """
    encoder = compared.get("encoder", "PNN")  # not in records of older runs
    answer = {"pnn": encoder, "popularity": "popularity"}[compared["answer"]]
    return (
        f"before the first click: {answer} (validation {metric_label(compared['metric'])} of {compared['sessions']:,} "
        f"sessions: popularity {compared['popularity']:.4f}, {encoder} {compared['pnn']:.4f})"
    )


def steps_table(manifest: Mapping[str, Any]) -> Table:
    """The events, sessions, users and items after every step of the preparation and in every split."""
    table = Table(title=f"{manifest['name']}: from raw files to splits", title_justify="left", caption_justify="left")
    table.add_column("step")
    for count in COUNTS:
        table.add_column(count, justify="right", no_wrap=True)

    def add(label: str, counts: Mapping[str, Any]) -> None:
        table.add_row(label, *("" if counts[count] is None else f"{counts[count]:,}" for count in COUNTS))

    for step in manifest["funnel"]:
        add(step["step"], step)
    table.add_section()
    for split, counts in manifest["splits"].items():
        add(split, counts)
    scope = manifest["config"]["items"]["popularity_scope"]
    notes = [
        f"popularity of items: counted over {POPULARITY_SCOPES[scope]}",
        f"PNN input fields, the previous item included: {manifest['fields']}",
    ]
    items, users = manifest.get("items", {}), manifest["users"]
    if items.get("without_training_event"):
        notes.append(
            f"{items['without_training_event']:,} of {items['all']:,} items have no training event: only their "
            "attributes are known"
        )
    for owners, counts, missing in (("users", users, "without_profile"), ("items", items, "without_row")):
        if counts.get(missing):
            notes.append(
                f"{counts[missing]:,} of {counts['all']:,} {owners} have no row in the {owners} table: "
                "their contexts are unknown"
            )
    table.caption = "\n".join(notes)
    return table


def log_table(log: Mapping[str, Any], remarks: Mapping[str, str]) -> Table:
    """The profile of a log, and what looks wrong in it.

    Args:
        log: as returned by ``summarize_log``, with ``duplicates`` and the largest user's id; without those of the
            largest user in a log without users.
        remarks: as returned by ``log_remarks``.
    """
    table = Table(title="the log", title_justify="left", caption_justify="left")
    table.add_column("", overflow="fold")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    labels = {"first_day": "first day", "last_day": "last day"}
    top_item = f", {log['top_item']}" if "top_item" in log else ""  # no key of data sets prepared earlier
    counts = {
        "largest_user_events": (f"events of the most active user, {log.get('largest_user')}", "log_events"),
        "longest_session": ("events of the longest session", "events"),
        "single_event_sessions": ("sessions of one event", "sessions"),
        "tied_times": ("events with the time of the previous event", "events"),
        "duplicates": ("duplicate rows", "events"),
        "repeats": ("repeats of the previous item", "events"),
        "top_item_events": (f"events of the most popular item{top_item}", "events"),
        "top_items_events": (f"events of the most popular 1 % of items ({log['top_items']:,})", "events"),
    }
    labels |= {count: label for count, (label, _) in counts.items() if count in log}
    for name, label in labels.items():
        whole = counts[name][1] if name in counts else None
        number = log[name] if whole is None else f"{log[name]:,}"
        share = "" if whole is None else f"{log[name] / log[whole]:.1%}"
        table.add_row(_marked(label, name in remarks), number, share)
    notes = (
        ["counts of sessions, times and items cover the time window only"] if log["events"] < log["log_events"] else []
    )
    lines = [*map(Text, notes), *(_marked(f"{labels[name]}: {remarks[name]}", True) for name in remarks)]
    table.caption = Text("\n").join(lines)
    return table


def attributes_table(
    attributes: Sequence[Mapping[str, Any]], remarks: Mapping[str, str], owners: str = "users"
) -> Table:
    """Every attribute's number of categories, unknowns and most frequent values, and what looks wrong.

    Args:
        attributes: as returned by ``summarize_attributes``.
        remarks: as returned by ``attribute_remarks``.
        owners: users or items.
    """
    table = Table(title=f"contexts of {owners}", title_justify="left", caption_justify="left")
    table.add_column("attribute", overflow="fold")
    table.add_column("kind", no_wrap=True)
    table.add_column("categories", justify="right", no_wrap=True)
    table.add_column("unknown", justify="right", no_wrap=True)
    table.add_column("most frequent", overflow="fold")
    for attribute in attributes:
        name, n_rows = attribute["name"], attribute["known"] + attribute["unknown"]
        table.add_row(
            _marked(name, name in remarks),
            attribute["kind"],
            f"{attribute['categories']:,}",
            f"{attribute['unknown'] / n_rows:.0%}",
            ", ".join(f"{value} ({share:.0%})" for value, share in attribute["top"]),
        )
    notes = f"unknown: share of the {owners}; most frequent: share of the training events"
    lines = [Text(notes), *(_marked(f"{name}: {remark}", True) for name, remark in remarks.items())]
    table.caption = Text("\n").join(lines)
    return table


def _marked(text: str, is_marked: bool) -> Text:
    return Text.assemble(("!", "bold red"), " ", text) if is_marked else Text(text)


def data_notes(data: Mapping[str, Any]) -> list[str]:
    """Remarks on results for the data set of config ``data``, one line each."""
    notes = [data["note"]] if data["note"] else []
    items = data["items"]
    is_selected = items["popularity_coverage"] < 1 or items["min_events"] > 1 or items.get("most_popular") is not None
    if items["popularity_scope"] != "train" and is_selected:
        scope = items["popularity_scope"]
        paper = ", as in the paper" if items["popularity_coverage"] < 1 else ""
        notes.append(
            "the popularity that selects items is counted over validation and test days, too "
            f"(data.items.popularity_scope={scope}{paper})"
        )
    return [f"{data['name']}: {note}" for note in notes]


def paper_table(manifest: Mapping[str, Any], paper: Mapping[str, Mapping[str, Any]]) -> Table:
    """Compares the counts of this data set with Table 1 and section 4.2 of the paper."""
    log = next(step for step in manifest["funnel"] if step["sessions"] is not None)
    contexts = manifest["config"]["contexts"]
    ours = {
        "users": log["users"],
        "items": log["items"],
        "sessions": log["sessions"],
        "transactions": log["events"],
        "user attributes": len(contexts["single"]) + len(contexts["multi"]),
        "items after the cut": manifest["dims"]["n_items"],
        "PNN input fields": manifest["fields"],
    }
    table = Table(title="compared with the paper (Table 1 and section 4.2)", title_justify="left")
    table.add_column("")
    table.add_column("paper", justify="right")
    table.add_column("here", justify="right")
    for name, theirs in {**paper["table1"], **paper["preparation"]}.items():
        table.add_row(name, str(theirs), f"{ours[name]:,}")
    return table

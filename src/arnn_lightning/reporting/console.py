"""The table that ends a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:  # preparing data shows a table too, and needs no torch
    from arnn_lightning.evaluation.result import Result

METRICS = {"recall@20": "Recall@20", "mrr@20": "MRR@20"}


def results_table(
    results: Sequence[Result],
    title: str,
    paper: Mapping[str, Mapping[str, float]],
    bootstrap: Mapping[str, Any],
    seed: int,
) -> Table:
    """Models x (Recall@20, MRR@20) with bootstrap intervals, beside the paper's figures where there are any."""
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for label in METRICS.values():
        table.add_column(label, justify="right")
        table.add_column(f"{100 * bootstrap['confidence']:g} % interval", justify="right")
        if paper:
            table.add_column("paper", justify="right")
    for one in results:
        measured = one.metrics([int(metric.split("@")[1]) for metric in METRICS])
        cells = [one.name]
        for metric in METRICS:
            low, high = one.interval(metric, bootstrap, seed)
            cells += [f"{measured[metric]:.4f}", f"{low:.4f} - {high:.4f}"]
            if paper:
                cells.append(f"{paper[one.name][metric]:.4f}" if one.name in paper else "")
        table.add_row(*cells)
    return table


def difference_line(better: Result, base: Result, bootstrap: Mapping[str, Any], seed: int) -> str:
    """One line: how much better one model is than another, paired on the same attempts."""
    parts = []
    for metric, label in METRICS.items():
        mean, low, high = better.difference(base, metric, bootstrap, seed)
        before = base.metrics([int(metric.split("@")[1])])[metric]
        share = f", {mean / before:+.1%}" if before else ""
        parts.append(f"{label} {mean:+.4f} ({low:+.4f} to {high:+.4f}{share})")
    return f"{better.name} - {base.name}, paired: " + "; ".join(parts)


def funnel_table(manifest: Mapping[str, Any]) -> Table:
    """The steps of the preparation and the splits, with what each kept."""
    table = Table(title=f"{manifest['name']}: from raw files to splits", title_justify="left")
    table.add_column("step")
    for column in ("events", "sessions", "users", "items"):
        table.add_column(column, justify="right")

    def add(label: str, counts: Mapping[str, Any]) -> None:
        columns = ("events", "sessions", "users", "items")
        table.add_row(label, *("" if counts[column] is None else f"{counts[column]:,}" for column in columns))

    for step in manifest["funnel"]:
        add(step["step"], step)
    table.add_section()
    for split, counts in manifest["splits"].items():
        add(split, counts)
    table.caption = f"PNN input fields, the previous item included: {manifest['fields']}"
    users = manifest["users"]
    if users["without_profile"]:
        table.caption += (
            f"\n{users['without_profile']:,} of {users['all']:,} users have no row in the users table: "
            "their contexts are unknown"
        )
    return table


def paper_table(manifest: Mapping[str, Any], paper: Mapping[str, Mapping[str, Any]]) -> Table:
    """Table 1 of the paper and the counts of its section 4.2, beside this data set's."""
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
    table = Table(title="beside the paper (Table 1 and section 4.2)", title_justify="left")
    table.add_column("")
    table.add_column("paper", justify="right")
    table.add_column("here", justify="right")
    for name, theirs in {**paper["table1"], **paper["preparation"]}.items():
        table.add_row(name, str(theirs), f"{ours[name]:,}")
    return table

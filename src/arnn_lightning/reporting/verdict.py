"""The pages of a verdict, verdict.md and verdict.html, whose figures are those of verdict.json."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from arnn_lightning.evaluation.metrics import metric_label
from arnn_lightning.io import escape_markdown, write_json, write_text
from arnn_lightning.reporting.verdict_text import (
    answer,
    deployment,
    format_confidence,
    format_duration,
    format_interval,
    outcome,
    profile_advice,
    remarks,
    sentences,
    signed,
    summary,
)

ARMS = {  # the models of a verdict, and the profiles that they get
    "session": "none",
    "own": "the user's own",
    "permuted": "those of one other user, the same in all sessions",
    "per_session": "those of another user in every session",
    "context": "the user's own",  # the context encoder of the model with profiles
}
GAINS = {
    "over_session": "over the session model",
    "over_per_session": "over profiles of another user in every session",
    "recognition": "of which by recognising the user",
    "content": "of which by the content of the profile",
    "new_users": "over the session model, for users without a training session",
    "over_non_neural": "over the best non-neural model",
}
GROUPS = {  # what they are by, and what their names mean
    "position": ("number of events before the recommendation", ""),
    "known_attributes": ("number of known attributes of the user", ""),
    "seen_in_training": ("whether the user is in the training data", "Unseen: without a training session."),
    "popularity": (
        "popularity of the item that came next",
        "Head 1 %: the most popular hundredth of the items in training; tail: their less popular half; middle: those "
        "between.",
    ),
}


def write_verdict(verdict: dict[str, Any], folder: Path) -> str:
    """Writes verdict.json, verdict.md and verdict.html.

    Args:
        verdict: the figures; see docs/verdict.md.
        folder: where the files are written.

    Returns:
        The paragraph.
    """
    paragraph = " ".join(sentences(verdict))
    verdict = verdict | {"answer": answer(verdict), "paragraph": paragraph, "remarks": []}
    if verdict["seeds"]:
        verdict |= {
            "remarks": remarks(verdict),
            "advice": " ".join(profile_advice(verdict)),
            "deployment": deployment(verdict),
        }
    write_json(folder / "verdict.json", verdict)
    shown = json.loads((folder / "verdict.json").read_text())
    for name in ("verdict.md", "verdict.html"):
        write_text(folder / name, _render(f"{name}.j2", shown))
    return paragraph


def _render(template: str, verdict: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "duration": format_duration,
        "label": metric_label,
        "signed": signed,
        "number": lambda value: "" if value is None else f"{value:.4f}",
        "code": _code,
        "percent": lambda value: "" if value is None else f"{value:+.1%}",
        "count": lambda value: f"{value:,}",
        "cell": lambda value: escape_markdown(str(value)),
        "interval": lambda row: "too few users" if row["low"] is None else format_interval(row),
    }
    shown: dict[str, Any] = {"v": verdict, "summary": " ".join(summary(verdict)), "percent": format_confidence(verdict)}
    if verdict["seeds"]:
        shown |= {
            "models": _model_rows(verdict),
            "gains": _gain_rows(verdict),
            "tables": _group_tables(verdict),
            "captions": _captions(verdict),
        }
    return environment.get_template(template).render(shown)


def _code(text: str) -> Markup:
    """HTML of a sentence in which `code` is marked as in Markdown."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _model_rows(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The models of a verdict, then the non-neural ones: ``title``, ``profiles`` and their figures."""
    profile = verdict["profile_model"]
    titles = dict.fromkeys(ARMS, profile) | {"session": verdict["session_model"]}
    titles["context"] = f"{verdict['context_model']}, the context encoder of {profile}"
    rows = [{"title": titles[arm], "profiles": ARMS[arm]} | row for arm, row in verdict["models"].items()]
    for name, row in verdict["non_neural"].items():
        rows.append({"title": name, "profiles": ARMS["own" if row["uses_profiles"] else "session"]} | row)
    return rows


def _gain_rows(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The gains in the order of ``GAINS``: ``title``, ``adjusted_p_value``, ``outcome`` and their figures."""
    titles = GAINS | {"over_non_neural": f"{GAINS['over_non_neural']}, {verdict['best_non_neural']}"}
    if verdict["new_users"] is not None and verdict["new_users"]["held_out"]:
        titles["new_users"] = "over the session model, for users held out of training"
    p_values = {name: claim["adjusted_p_value"] for name, claim in verdict["claims"].items()}
    return [
        {"title": title, "adjusted_p_value": p_values.get(name), "outcome": outcome(verdict, name)}
        | verdict["gains"][name]
        for name, title in titles.items()
        if name in verdict["gains"]
    ]


def _group_tables(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The gain by group: ``title``, ``definition``, ``rows``, and whether groups are values of an attribute.

    A single group is all predictions, and has no table.
    """
    tables = [
        {"title": title, "definition": definition, "rows": verdict["groups"][by], "is_attribute": False}
        for by, (title, definition) in GROUPS.items()
    ]
    tables += [
        {"title": f"value of {name}", "definition": "", "rows": rows, "is_attribute": True}
        for name, rows in verdict["attribute_values"].items()
    ]
    return [table for table in tables if len(table["rows"]) > 1]


def _captions(verdict: Mapping[str, Any]) -> dict[str, str]:
    """What the tables show, and the rule by which the answer follows from the intervals."""
    metric, profile, bootstrap = metric_label(verdict["metric"]), verdict["profile_model"], verdict["bootstrap"]
    test = verdict["splits"]["test"]
    n_predictions = sum(row["predictions"] for row in verdict["groups"]["position"])
    trained = "without the validation and test days"
    tasks, seed = "`checkpoint` of task=recommend, task=serve and task=export", " (the best seed on validation)"
    if verdict["deploy"]["non_neural"]:
        tasks, seed = "`checkpoint` of task=recommend and task=serve (task=export takes neural models only)", ""
    return {
        "deploy": (
            f"{verdict['deploy']['model']} has already been trained, {trained}, in `{verdict['deploy']['trained']}`"
            f"{seed}: use this folder as the {tasks}. To train it again, run this command; add data.split.test_days=1 "
            "to train on more recent days. The commands of all runs are at the end:"
        ),
        "gains": (
            f"Gain in {metric} of {profile} with the user's own profile. The first two gains decide. With the profile "
            "of one other user, the same in all sessions, users can still be distinguished, but the profile contains "
            "no information about them. With the profile of another user in every session, users cannot be "
            "distinguished either. Intervals are not corrected for multiple testing; the p values are, for "
            f"{len(verdict['claims'])} comparisons (Holm)."
        ),
        "models": (
            f"Test metrics, mean ± standard deviation over {len(verdict['seeds'])} seeds (non-neural models have no "
            f"seed): {n_predictions:,} predictions, of all events but the first of each session, in "
            f"{test['sessions']:,} sessions of {test['users']:,} users, ranked among all items."
        ),
        "attributes": (
            f"Decrease in {metric} of {profile} if one attribute is set to unknown. The model is trained with unknown "
            "attributes, too. Attributes with the same content can replace each other: removing one then costs little."
        ),
        "no_attributes": (
            f"Not tested: the budget was too small; budget={verdict['more_seeds']['complete_budget']} is large enough."
        ),
        "groups": (
            f"Gain in {metric} over the session model. These intervals are not corrected for the number of groups: of "
            "twenty groups without a gain, about one has an interval that excludes 0. A group of fewer than 10 users "
            "has no interval. Of an attribute, the values with the most predictions are shown, at most eight."
        ),
        "rule": (
            "There are two gains: over the session model, and over the same model with profiles of another user in "
            f"every session. No: one of their intervals ends below {100 * verdict['smallest_gain']:g} % of the session "
            f"model's {metric}, the smallest gain that matters (`smallest_gain`). Yes: otherwise, if both intervals "
            "are above 0. In all other cases, the answer is unclear. All intervals are "
            f"{format_confidence(verdict)} % intervals over {bootstrap['unit']}s (bootstrap, "
            f"{bootstrap['resamples']:,} resamples) and seeds. The best non-neural model and the model to deploy are "
            "chosen on validation, where small differences may be due to chance. The runs took "
            f"{format_duration(verdict['seconds'])} of a budget of {format_duration(verdict['budget'])}."
        ),
    }

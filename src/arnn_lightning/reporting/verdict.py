"""The verdict in words: a paragraph, verdict.md and verdict.html, whose figures are those of verdict.json."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from arnn_lightning.evaluation.metrics import metric_label
from arnn_lightning.io import write_json, write_text

ANSWERS = {
    "yes": "Profiles help.",
    "no": "Profiles do not help.",
    "unclear": "Whether profiles help cannot be told from this much data.",
}
ARMS = {  # the models of a verdict, and the profiles that they get
    "session": "none",
    "own": "the user's own",
    "permuted": "those of one other user, for good",
    "per_session": "those of another user in every session",
}
GAINS = {
    "over_session": "over the session model",
    "over_per_session": "over profiles of another user in every session",
    "recognition": "of which by recognising the user",
    "content": "of which by what the profile contains",
    "new_users": "for users without a training session",
    "over_counted": "over the best model without training",
}
GROUPS = {
    "position": "number of events before the recommendation",
    "known_attributes": "known attributes of the user",
    "seen_in_training": "the user in the training data",
    "popularity": "popularity of the item that came next",
}


def format_duration(seconds: float) -> str:
    """A duration for people, rounded to its two largest units.

    >>> format_duration(8.3), format_duration(95), format_duration(900), format_duration(7500)
    ('8s', '1m35s', '15m', '2h05m')
    """
    rounded = round(seconds) if seconds < 3600 else 60 * round(seconds / 60)
    hours, minutes = divmod(rounded // 60, 60)
    if hours:
        return f"{hours}h{minutes:02}m" if minutes else f"{hours}h"
    if minutes:
        return f"{minutes}m{rounded % 60:02}s" if rounded % 60 else f"{minutes}m"
    return f"{rounded}s"


def signed(value: float) -> str:
    """A difference, with its sign; never -0.0000.

    >>> signed(0.0123), signed(-0.00001)
    ('+0.0123', '+0.0000')
    """
    return f"{round(value, 4) + 0.0:+.4f}"


def write_verdict(verdict: dict[str, Any], folder: Path) -> str:
    """Writes verdict.json, verdict.md and verdict.html.

    Args:
        verdict: the figures; see docs/verdict.md.
        folder: where the files are written.

    Returns:
        The paragraph.
    """
    paragraph = " ".join(sentences(verdict))
    verdict = verdict | {"answer": ANSWERS[verdict["helps"]], "paragraph": paragraph}
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
        "number": lambda value: f"{value:.4f}",
        "percent": lambda value: "" if value is None else f"{value:+.1%}",
        "count": lambda value: f"{value:,}",
        "cell": lambda value: str(value).replace("|", "\\|"),
    }
    percent = f"{100 * verdict['bootstrap']['confidence']:g}"
    return environment.get_template(template).render(v=verdict, percent=percent, arms=ARMS, gains=GAINS, groups=GROUPS)


def sentences(verdict: Mapping[str, Any]) -> list[str]:
    """The answer and its reasons, most important first."""
    if not verdict["seeds"]:
        needed = verdict["seconds_needed"]
        return [
            ANSWERS["unclear"],
            f"The budget of {format_duration(verdict['budget'])} is too short for two seeds of every model, which need "
            f"about {format_duration(needed)}: run the same command with budget={math.ceil(needed / 60)}m or more.",
        ]
    return [
        ANSWERS[verdict["helps"]],
        *_size(verdict),
        *([_source(verdict)] if verdict["helps"] == "yes" else []),
        *_attributes(verdict),
        *_new_users(verdict),
        _neighbours(verdict),
        _deployment(verdict),
    ]


def _gain(gain: Mapping[str, Any]) -> str:
    relative = "" if gain["relative"] is None else f"{gain['relative']:+.1%}, "
    return f"{signed(gain['mean'])} ({relative}{_interval(gain)})"


def _interval(gain: Mapping[str, Any]) -> str:
    return f"{signed(gain['low'])} to {signed(gain['high'])}"


def _size(verdict: Mapping[str, Any]) -> list[str]:
    gains, profile = verdict["gains"], verdict["profile_model"]
    session, control = gains["over_session"], gains["over_per_session"]
    percent = f"{100 * verdict['bootstrap']['confidence']:g} %"
    metric = verdict["metric"]
    relative = "" if session["relative"] is None else f" or {session['relative']:+.1%}"
    lines = [
        f"With profiles, {metric_label(metric)} is {verdict['models']['own']['mean'][metric]:.4f} ({profile}), without "
        f"them {session['base']:.4f} ({verdict['session_model']}): a gain of {signed(session['mean'])}{relative}, "
        f"{percent} interval over users and {len(verdict['seeds'])} seeds {_interval(session)}.",
        f"Over the same model with the profile of another user in every session the gain is {_gain(control)}.",
    ]
    smallest = verdict["smallest_gain_absolute"]
    if verdict["helps"] == "no":
        below = [name for name, gain in (("first", session), ("second", control)) if gain["high"] < smallest]
        which = "Both intervals end" if len(below) == 2 else f"The {below[0]} interval ends"
        lines.append(
            f"{which} below {smallest:.4f}, the least that matters (smallest_gain: "
            f"{verdict['smallest_gain']:.1%} of the session model's)."
        )
    if verdict["helps"] == "unclear":
        by_seeds = max(session["seed_error"], control["seed_error"]) > max(session["user_error"], control["user_error"])
        remedy = "more seeds (a larger budget)" if by_seeds else "more test users (a longer log, or more test days)"
        lines.append(
            f"The two intervals are not both above 0, and neither ends below {smallest:.4f}, the least that matters; "
            f"they get narrower with {remedy}."
        )
    return lines


def _source(verdict: Mapping[str, Any]) -> str:
    content, recognition = verdict["gains"]["content"], verdict["gains"]["recognition"]
    holds = {name: verdict["claims"][name]["result"] == "above 0" for name in ("content", "recognition")}
    parts = f"recognising the user {_interval(recognition)}, what the profile contains {_interval(content)}"
    if all(holds.values()):
        return (
            f"Of the latter, {signed(recognition['mean'])} comes from recognising the user, which any stable label "
            f"would give, and {signed(content['mean'])} from what the profile contains (intervals: {parts})."
        )
    if holds["content"]:
        return (
            f"It comes from what the profile contains, {signed(content['mean'])} ({_interval(content)}), not from "
            f"recognising the user: a profile permuted among users gives {signed(recognition['mean'])} "
            f"({_interval(recognition)})."
        )
    if holds["recognition"]:
        return (
            f"It comes from recognising the user: profiles permuted among users, which only distinguish them, give "
            f"{signed(recognition['mean'])} ({_interval(recognition)}), and the user's own {signed(content['mean'])} "
            f"more ({_interval(content)}), which is not above 0 beyond chance. Any stable label of a user would do."
        )
    return f"Whether it comes from recognising the user or from what the profile contains cannot be told ({parts})."


def _attributes(verdict: Mapping[str, Any]) -> list[str]:
    """The attribute that carries most, where the contents of profiles matter: otherwise it is a label."""
    if verdict["helps"] != "yes" or verdict["claims"]["content"]["result"] != "above 0" or not verdict["attributes"]:
        return []
    most = verdict["attributes"][0]
    if most["low"] <= 0:
        return []
    return [f"Of the attributes {most['attribute']} carries most: without it the model loses {most['mean']:.4f}."]


def _new_users(verdict: Mapping[str, Any]) -> list[str]:
    if verdict["new_users"] is None:
        return ["Too few users without a training session were tested to tell what profiles do for them."]
    new, gain = verdict["new_users"], verdict["gains"]["new_users"]
    claim = verdict["claims"]["new_users"]["result"]
    result = {"above 0": "", "below 0": ": a loss", "not shown": ", which may be chance"}[claim]
    who = "held out of training" if new["held_out"] else "without a training session"
    return [f"For the {new['users']:,} users {who} the gain is {_gain(gain)}{result}."]


def _neighbours(verdict: Mapping[str, Any]) -> str:
    gain, profile = verdict["gains"]["over_counted"], verdict["profile_model"]
    result = {
        "above 0": f"it would not replace {profile}",
        "below 0": f"it is better than {profile}",
        "not shown": f"its difference to {profile} may be chance",
    }
    name, claim = verdict["best_counted"], verdict["claims"]["over_counted"]["result"]
    return f"The best model without training, {name}, has {gain['base']:.4f}: {result[claim]}."


def _deployment(verdict: Mapping[str, Any]) -> str:
    model = verdict["deploy"]["model"]
    if verdict["deploy"]["counted"]:
        return f"Deploy {model}, which is the best on validation."
    return f"Deploy {model}." if verdict["helps"] == "yes" else f"Deploy {model}, which needs no profiles."

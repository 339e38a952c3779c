"""The verdict in words: a paragraph, verdict.md and verdict.html, whose figures are those of verdict.json."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from scipy.special import stdtrit

from arnn_lightning.evaluation.metrics import metric_label
from arnn_lightning.io import escape_markdown, write_json, write_text

ANSWERS = {"yes": "Profiles help.", "no": "Profiles do not help."}
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
    "content": "of which by what the profile contains",
    "new_users": "for users without a training session",
    "over_counted": "over the best non-neural model",
}
GROUPS = {
    "position": "number of events before the recommendation",
    "known_attributes": "known attributes of the user",
    "seen_in_training": "presence of the user in the training data",
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
    verdict = verdict | {"answer": answer(verdict), "paragraph": paragraph, "remarks": []}
    if verdict["seeds"]:
        verdict |= {
            "remarks": remarks(verdict),
            "next_step": " ".join(_deployment(verdict)),
            "advice": " ".join(profile_advice(verdict)),
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
        "number": lambda value: f"{value:.4f}",
        "percent": lambda value: "" if value is None else f"{value:+.1%}",
        "count": lambda value: f"{value:,}",
        "cell": lambda value: escape_markdown(str(value)),
        "interval": lambda row: "too few users" if row["low"] is None else _interval(row),
        "outcome": lambda name: outcome(verdict, name),
        "rule": _rule,
    }
    profile = verdict["profile_model"]
    names = dict.fromkeys(ARMS, profile) | {"session": verdict["session_model"]}
    names["context"] = f"{verdict.get('context_model')}, the context encoder of {profile}"
    tables = {"arms": ARMS, "gains": GAINS, "groups": GROUPS, "names": names}
    return environment.get_template(template).render(v=verdict, percent=_percent(verdict), **tables)


def _percent(verdict: Mapping[str, Any]) -> str:
    return f"{100 * verdict['bootstrap']['confidence']:g}"


def _rule(verdict: Mapping[str, Any]) -> str:
    """The rule by which the answer follows from the intervals."""
    metric, bootstrap = metric_label(verdict["metric"]), verdict["bootstrap"]
    return (
        "Yes: both gains, over the session model and over the same model with profiles of another user in every "
        "session, have intervals above 0. No: one of the two intervals ends below "
        f"{100 * verdict['smallest_gain']:g} % of the session model's {metric}. Otherwise: unclear. These are "
        f"{_percent(verdict)} % intervals over {bootstrap['unit']}s (bootstrap, {bootstrap['resamples']:,} resamples) "
        "and seeds. The results of the other gains are corrected for their number (Holm). The best non-neural model "
        "and the model to deploy are chosen on validation. The runs took "
        f"{format_duration(verdict['seconds'])} of a budget of {format_duration(verdict['budget'])}."
    )


def answer(verdict: Mapping[str, Any]) -> str:
    """The answer in a sentence."""
    if not verdict["seeds"]:
        return "Whether profiles help was not tested."
    if verdict["helps"] == "unclear":
        source = f"{len(verdict['seeds'])} seeds" if _is_limited_by_seeds(verdict) else "this amount of data"
        return f"Whether profiles help cannot be decided with {source}."
    return ANSWERS[verdict["helps"]]


def sentences(verdict: Mapping[str, Any]) -> list[str]:
    """The paragraph: what is to be done with the profiles, the answer, and the figures that it follows from."""
    if not verdict["seeds"]:
        needed = verdict["seconds_needed"]
        return [
            f"Run the same command with budget={math.ceil(needed / 60)}m or more.",
            f"The budget of {format_duration(verdict['budget'])} is too short for two seeds of every model, which need "
            f"about {format_duration(needed)}.",
        ]
    is_decided = verdict["helps"] != "unclear"
    return [
        profile_advice(verdict)[0],
        answer(verdict),
        *_size(verdict),
        *([_source(verdict)] if verdict["helps"] == "yes" else []),
        *([_new_users(verdict)] if is_decided and verdict["new_users"] is not None else []),
        *_deployment(verdict),
        *_epochs(verdict),
    ]


def remarks(verdict: Mapping[str, Any]) -> list[str]:
    """Further sentences about the figures."""
    is_in_paragraph = verdict["helps"] != "unclear" and verdict["new_users"] is not None
    return [
        *_attributes(verdict),
        *([] if is_in_paragraph else [_new_users(verdict)]),
        _neighbours(verdict),
        *_other_leaders(verdict),
    ]


def outcome(verdict: Mapping[str, Any], name: str) -> str:
    """Whether a gain differs from 0: of a claim, after correction for the number of claims."""
    gain, claim = verdict["gains"][name], verdict["claims"].get(name)
    sign = "above 0" if gain["low"] > 0 else "below 0" if gain["high"] < 0 else "not shown"
    if claim is None or claim["result"] != "not shown" or sign == "not shown":
        return sign if claim is None else str(claim["result"])
    return f"{sign} by itself, not after correction for {len(verdict['claims'])} comparisons"


def _is_limited_by_seeds(verdict: Mapping[str, Any]) -> bool:
    """Whether an interval is wide because of few trainings rather than few users."""
    n_seeds = len(verdict["seeds"])
    gains = [verdict["gains"][name] for name in ("over_session", "over_per_session")]
    factor = stdtrit(n_seeds - 1, 0.975) / stdtrit(math.inf, 0.975)
    return n_seeds == 2 or any(gain["low"] <= 0 and factor * gain["seed_error"] > gain["user_error"] for gain in gains)


def _gain(gain: Mapping[str, Any]) -> str:
    relative = "" if gain["relative"] is None else f"{gain['relative']:+.1%}, "
    return f"{signed(gain['mean'])} ({relative}{_interval(gain)})"


def _interval(gain: Mapping[str, Any]) -> str:
    return f"{signed(gain['low'])} to {signed(gain['high'])}"


def _size(verdict: Mapping[str, Any]) -> list[str]:
    gains, profile = verdict["gains"], verdict["profile_model"]
    session, control = gains["over_session"], gains["over_per_session"]
    metric, smallest = verdict["metric"], verdict["smallest_gain_absolute"]
    relative = "" if session["relative"] is None else f" or {session['relative']:+.1%}"
    end = ""
    if verdict["helps"] == "no":
        below = [name for name, gain in (("first", session), ("second", control)) if gain["high"] < smallest]
        which = "both intervals end" if len(below) == 2 else f"the {below[0]} interval ends"
        end = f"; {which} below {smallest:.4f}, the smallest gain that matters"
    if verdict["helps"] == "unclear":
        end = (
            f"; the intervals are not both above 0, and neither ends below {smallest:.4f}, the smallest gain that "
            "matters"
        )
    return [
        f"{metric_label(metric)} is {verdict['models']['own']['mean'][metric]:.4f} with profiles ({profile}) and "
        f"{session['base']:.4f} without ({verdict['session_model']}): {signed(session['mean'])}{relative}, "
        f"{_percent(verdict)} % interval over users and {len(verdict['seeds'])} seeds {_interval(session)}.",
        f"Against another user's profile in every session, the gain is {_gain(control)}{end}.",
    ]


def _limit(verdict: Mapping[str, Any]) -> str:
    n_seeds, more = len(verdict["seeds"]), verdict["more_seeds"]
    if not _is_limited_by_seeds(verdict):
        return f"too few test users ({verdict['splits']['test']['users']:,})"
    limit = f"max_seeds={n_seeds}" if more["limited_by"] == "max_seeds" else "the budget"
    return f"too few seeds ({n_seeds}, limited by {limit})"


def _source(verdict: Mapping[str, Any]) -> str:
    content, recognition = verdict["gains"]["content"], verdict["gains"]["recognition"]
    is_shown = {name: verdict["claims"][name]["result"] == "above 0" for name in ("content", "recognition")}
    is_too_small = {
        name: verdict["gains"][name]["high"] < verdict["smallest_gain_absolute"] for name in ("content", "recognition")
    }
    if all(is_shown.values()):
        return (
            f"Of the latter, {signed(recognition['mean'])} ({_interval(recognition)}) comes from recognising the user, "
            f"which any stable label would give, and {signed(content['mean'])} ({_interval(content)}) from what the "
            "profile contains."
        )
    if is_shown["content"]:
        joined = ", not from" if is_too_small["recognition"] else "; it is not shown to come from"
        return (
            f"It comes from what the profile contains, {signed(content['mean'])} ({_interval(content)}){joined} "
            f"recognising the user: a profile permuted among users gives {signed(recognition['mean'])} "
            f"({_interval(recognition)})."
        )
    if is_shown["recognition"]:
        label = (
            "too little to matter"
            if is_too_small["content"]
            else f"{outcome(verdict, 'content')}: any stable label of a user may do"
        )
        return (
            f"It comes from recognising the user: profiles permuted among users, which only distinguish them, give "
            f"{signed(recognition['mean'])} ({_interval(recognition)}), and the user's own {signed(content['mean'])} "
            f"more ({_interval(content)}), {label}."
        )
    parts = "; ".join(
        f"{title} {_interval(gain)}, {outcome(verdict, name)}"
        for name, title, gain in (
            ("recognition", "recognising the user", recognition),
            ("content", "what the profile contains", content),
        )
    )
    return f"Whether it comes from recognising the user or from what the profile contains cannot be decided ({parts})."


def _attributes(verdict: Mapping[str, Any]) -> list[str]:
    """The most useful attribute, if the contents of profiles matter: otherwise any label would do."""
    if verdict["helps"] != "yes" or verdict["claims"]["content"]["result"] != "above 0" or not verdict["attributes"]:
        return []
    most = verdict["attributes"][0]
    if most["low"] <= 0:
        return []
    return [f"The most useful attribute is {most['attribute']}: without it the model loses {most['mean']:.4f}."]


def profile_advice(verdict: Mapping[str, Any]) -> list[str]:
    """Advice on the profiles: which attributes to keep, and which can be dropped."""
    if verdict["helps"] == "no":
        return ["No profiles need to be collected for these recommendations."]
    if verdict["helps"] == "unclear":
        return ["Keep the existing profiles, but collect no more until it is decided."]
    if verdict["gains"]["content"]["high"] < verdict["smallest_gain_absolute"]:
        return ["No attributes need to be collected for these recommendations: any stable label of a user would do."]
    if outcome(verdict, "recognition") == "above 0" and outcome(verdict, "content") != "above 0":
        return [  # without an attribute, users are recognised less: a loss is no sign that its content is of use
            "Keep the existing profiles, but collect no more: they are only shown to identify users.",
            "Any stable label of a user may do as well. The losses without single attributes do not show that what "
            "they contain is of use.",
        ]
    if not verdict["attributes"]:
        budget = verdict["more_seeds"]["complete_budget"]
        return [
            "Keep the profiles.",
            f"Which attributes cause the gain was not tested; budget={budget} is enough for it.",
        ]
    smallest = verdict["smallest_gain_absolute"]
    groups: dict[str, list[str]] = {"keep": [], "drop": [], "open": []}
    for row in verdict["attributes"]:
        kind = "drop" if row["high"] < smallest else "keep" if row["low"] > 0 else "open"
        groups[kind].append(row["attribute"])
    lines = {
        "keep": "Keep and collect {}.",
        "drop": f"Can be dropped: {{}}; the loss without one is below {smallest:.4f}, the smallest gain that matters.",
        "open": f"Undecided, to be kept for now: {{}}; the interval contains 0 and losses of {smallest:.4f} or more.",
    }
    advice = [text.format(", ".join(groups[kind])) for kind, text in lines.items() if groups[kind]]
    if len(groups["drop"]) > 1:
        advice.append("Drop one at a time: attributes with the same content can replace each other.")
    if verdict["deploy"]["counted"] and not verdict["deploy"]["uses_profiles"]:
        advice.append(f"The model to deploy, {verdict['deploy']['model']}, uses none of them.")
    return advice


def _new_users(verdict: Mapping[str, Any]) -> str:
    if verdict["new_users"] is None:
        few = "Too few users without a training session were tested to measure the effect of profiles on them"
        if verdict["holds_out_users"]:
            return f"{few}."
        budget = verdict["more_seeds"]["complete_budget"]
        return f"{few}: the budget was too short to hold out users of training; budget={budget} is long enough."
    new, gain = verdict["new_users"], verdict["gains"]["new_users"]
    who = "held out of training" if new["held_out"] else "without a training session"
    return f"For the {new['users']:,} users {who} the gain is {_gain(gain)}{_chance(verdict, 'new_users')}."


def _chance(verdict: Mapping[str, Any], name: str) -> str:
    """Ends the sentence about a gain that is not shown to be above 0."""
    result = outcome(verdict, name)
    words = {"above 0": "", "below 0": ": a loss", "not shown": ", which may be chance"}
    return words[result] if result in words else f", {result} (p = {verdict['claims'][name]['adjusted_p_value']:.4f})"


def _neighbours(verdict: Mapping[str, Any]) -> str:
    gain, profile = verdict["gains"]["over_counted"], verdict["profile_model"]
    result = {
        "above 0": f"it is worse than {profile}",
        "below 0": f"it is better than {profile}",
        "not shown": f"its difference from {profile} may be chance",
    }.get(outcome(verdict, "over_counted"), f"{profile} gains {_gain(gain)}{_chance(verdict, 'over_counted')}")
    return f"The best non-neural model, {verdict['best_counted']}, has {gain['base']:.4f}: {result}."


def _deployment(verdict: Mapping[str, Any]) -> list[str]:
    """The model to deploy, and what it was chosen from: differences on the test split may be chance."""
    model, metric = verdict["deploy"]["model"], metric_label(verdict["metric"])
    values = ", ".join(f"{name} {value:.4f}" for name, value in list(verdict["deploy"]["chosen_from"].items())[:2])
    if verdict["helps"] == "yes":
        is_loss = verdict["new_users"] is not None and outcome(verdict, "new_users") == "below 0"
        others = f"; for users without a training session, {verdict['session_model']}"
        added = others if is_loss and verdict["deploy"]["uses_profiles"] else ""
        return [f"Deploy {model}, the best on validation ({metric}: {values}){added}."]
    reason = f"the best on validation of the models without profiles ({metric}: {values})"
    if verdict["helps"] == "no":
        return [f"Deploy {model}, {reason}."]
    settings, seconds = " ".join(verdict["more_seeds"]["settings"]), verdict["more_seeds"]["seconds"]
    remedy = (
        f"run the same command with {settings}, which needs about {format_duration(seconds)} more"
        if _is_limited_by_seeds(verdict)
        else "test on more users (a longer log, or more data.split.test_days), in another hydra.run.dir"
    )
    return [
        f"The intervals are wide because of {_limit(verdict)}: {remedy}.",
        f"Until it is decided deploy {model}, {reason}.",
    ]


def _other_leaders(verdict: Mapping[str, Any]) -> list[str]:
    """Another model that is first by another metric, or the context encoder where it is first."""
    profile, metric = verdict["profile_model"], verdict["metric"]
    rows = {profile: verdict["models"]["own"], verdict["session_model"]: verdict["models"]["session"]}
    if verdict["context_model"] is not None:
        rows[f"{verdict['context_model']}, the context encoder of {profile},"] = verdict["models"]["context"]
    rows |= verdict["counted"]
    metrics = sorted(verdict["models"]["own"]["mean"], key=lambda name: name != metric)
    leaders = {name: max(rows, key=lambda row: rows[row]["mean"][name]) for name in metrics}
    lines = []
    for name, leader in leaders.items():
        other = leaders[metric] if leader == profile else profile
        is_context = leader.startswith(f"{verdict['context_model']},")
        if is_context if name == metric else leader != leaders[metric]:
            values = [rows[model]["mean"][name] for model in (leader, other)]
            lines.append(f"By {metric_label(name)} {leader} is first ({values[0]:.4f}; {other} {values[1]:.4f}).")
    return lines


def _epochs(verdict: Mapping[str, Any]) -> list[str]:
    rising = verdict["rising"]
    if not rising:
        return []
    models = " and ".join(f"{row['model']} (epoch {row['epochs']})" for row in rising)
    key = "trainer.max_epochs, in another hydra.run.dir" if rising[0]["is_capped"] else "model.epochs of task=train"
    return [
        f"Validation was best in the last epoch in most runs of {models}: more epochs may change the answer ({key})."
    ]

"""The sentences of a verdict: the answer, what to do with the profiles, the figures and what follows from them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.special import stdtrit

from arnn_lightning.evaluation.metrics import metric_label


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


def format_interval(gain: Mapping[str, Any]) -> str:
    """The limits of an interval, with their signs."""
    return f"{signed(gain['low'])} to {signed(gain['high'])}"


def format_confidence(verdict: Mapping[str, Any]) -> str:
    """Of the intervals, in per cent: "95"."""
    return f"{100 * verdict['bootstrap']['confidence']:g}"


def answer(verdict: Mapping[str, Any]) -> str:
    """The answer in a sentence."""
    if not verdict["seeds"]:
        return "Profiles were not tested."
    if verdict["helps"] == "unclear":
        source = f"{len(verdict['seeds'])} seeds" if _is_limited_by_seeds(verdict) else "this amount of data"
        return f"Whether profiles help cannot be decided with {source}."
    if verdict["helps"] == "no":
        return "Profiles do not help."
    return "Profiles help." if verdict["deploy"]["uses_profiles"] else "Profiles help, but the best model uses none."


def sentences(verdict: Mapping[str, Any]) -> list[str]:
    """The paragraph: what is to be done with the profiles, the answer, and the figures that it follows from."""
    action, *figures = summary(verdict)
    if not verdict["seeds"]:
        return [action, *figures]
    return [action, answer(verdict), *figures, deployment(verdict)]


def summary(verdict: Mapping[str, Any]) -> list[str]:
    """The paragraph without the answer, which is the heading of the page, and without the model to deploy."""
    if not verdict["seeds"]:
        needed = verdict["seconds_needed"]
        return [
            f"The budget of {format_duration(verdict['budget'])} is too small for two seeds, which need "
            f"about {format_duration(needed)}.",
            # An estimate: with the budget that it gives, the runs must not be found to take a little longer.
            f"Run the same command with budget={math.ceil(1.25 * needed / 60)}m or more.",
        ]
    is_decided = verdict["helps"] != "unclear"
    return [
        profile_advice(verdict)[0],
        *_size(verdict),
        *([_source(verdict)] if verdict["helps"] == "yes" else []),
        *([_new_users(verdict)] if is_decided and verdict["new_users"] is not None else []),
        *_epochs(verdict),
        *([] if is_decided else [_remedy(verdict)]),
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
    sign = "above 0" if gain["low"] > 0 else "below 0" if gain["high"] < 0 else "not significant"
    if claim is None or claim["result"] != "not significant" or sign == "not significant":
        return sign if claim is None else str(claim["result"])
    return f"{sign} only without correction for {len(verdict['claims'])} comparisons"


def _is_limited_by_seeds(verdict: Mapping[str, Any]) -> bool:
    """Whether an interval is wide because of few trainings rather than few users."""
    n_seeds = len(verdict["seeds"])
    gains = [verdict["gains"][name] for name in ("over_session", "over_per_session")]
    factor = _upper_quantile(verdict, n_seeds - 1) / _upper_quantile(verdict, math.inf)
    return n_seeds == 2 or any(gain["low"] <= 0 and factor * gain["seed_error"] > gain["user_error"] for gain in gains)


def _seeds_could_decide(verdict: Mapping[str, Any]) -> bool:
    """Whether the answer would be yes or no with the same means and any number of seeds."""
    gains = [verdict["gains"][name] for name in ("over_session", "over_per_session")]
    z = _upper_quantile(verdict, math.inf)
    is_yes = all(gain["mean"] > z * gain["user_error"] for gain in gains)
    is_no = any(gain["mean"] + z * gain["user_error"] < verdict["smallest_gain_absolute"] for gain in gains)
    return is_yes or is_no


def _upper_quantile(verdict: Mapping[str, Any], degrees_of_freedom: float) -> float:
    """Of Student's t distribution, for a two-sided interval."""
    return float(stdtrit(degrees_of_freedom, (1 + verdict["bootstrap"]["confidence"]) / 2))


def _gain(gain: Mapping[str, Any]) -> str:
    relative = "" if gain["relative"] is None else f"{gain['relative']:+.1%}, "
    return f"{signed(gain['mean'])} ({relative}{format_interval(gain)})"


def _mean(gain: Mapping[str, Any]) -> str:
    return f"{signed(gain['mean'])} ({format_interval(gain)})"


def _size(verdict: Mapping[str, Any]) -> list[str]:
    gains, profile = verdict["gains"], verdict["profile_model"]
    session, control = gains["over_session"], gains["over_per_session"]
    metric, smallest = verdict["metric"], verdict["smallest_gain_absolute"]
    relative = "" if session["relative"] is None else f" ({session['relative']:+.1%})"
    conclusion = []
    if verdict["helps"] == "no":
        below = [name for name, gain in (("first", session), ("second", control)) if gain["high"] < smallest]
        which = "Both intervals end" if len(below) == 2 else f"The {below[0]} interval ends"
        conclusion = [f"{which} below {smallest:.4f}, the smallest gain that matters."]
    if verdict["helps"] == "unclear":
        conclusion = [
            f"The two intervals are not both above 0, but both include gains of {smallest:.4f} or more, which would "
            "matter."
        ]
    return [
        f"{metric_label(metric)} is {verdict['models']['own']['mean'][metric]:.4f} with profiles ({profile}) and "
        f"{session['base']:.4f} without ({verdict['session_model']}): a difference of {signed(session['mean'])}"
        f"{relative}, with a {format_confidence(verdict)} % interval (over users and {len(verdict['seeds'])} seeds) of "
        f"{format_interval(session)}.",
        f"Compared with another user's profile in every session, the gain is {_gain(control)}.",
        *conclusion,
    ]


def _remedy(verdict: Mapping[str, Any]) -> str:
    n_seeds, more = len(verdict["seeds"]), verdict["more_seeds"]
    if not _is_limited_by_seeds(verdict):
        return (
            f"There are too few test users ({verdict['splits']['test']['users']:,}): use a longer log or a larger "
            "data.split.test_days, with another hydra.run.dir."
        )
    if n_seeds > 2 and not _seeds_could_decide(verdict):  # gains over two seeds are too uncertain for this
        return (
            f"There are too few seeds ({n_seeds}) and too few test users ({verdict['splits']['test']['users']:,}): "
            "with the gains measured so far, more seeds alone would not decide it. Use a longer log or a larger "
            "data.split.test_days, with another hydra.run.dir."
        )
    limit = f"max_seeds={n_seeds}" if more["limited_by"] == "max_seeds" else "the budget"
    return (
        f"There are too few seeds ({n_seeds}, limited by {limit}): run the same command with "
        f"{' '.join(more['settings'])}, which takes about {format_duration(more['seconds'])} more."
    )


def _source(verdict: Mapping[str, Any]) -> str:
    content, recognition = verdict["gains"]["content"], verdict["gains"]["recognition"]
    is_shown = {name: verdict["claims"][name]["result"] == "above 0" for name in ("content", "recognition")}
    is_too_small = {
        name: verdict["gains"][name]["high"] < verdict["smallest_gain_absolute"] for name in ("content", "recognition")
    }
    if all(is_shown.values()):
        return (
            f"Of this gain, {_mean(recognition)} comes from recognising the user, "
            f"for which any persistent user ID would do, and {_mean(content)} from the content "
            "of the profile."
        )
    permuted = "with profiles permuted among users, which can only distinguish users, the gain is"
    if is_shown["content"]:
        joined = (
            "not from recognising the user"
            if is_too_small["recognition"]
            else "while a contribution of recognising the user is not significant"
        )
        return f"It comes from the content of the profile, {_mean(content)}, {joined}: {permuted} {_mean(recognition)}."
    if is_shown["recognition"]:
        label = (
            "which is too little to matter"
            if is_too_small["content"]
            else f"{outcome(verdict, 'content')}: any persistent user ID may work just as well"
        )
        return (
            f"It comes from recognising the user: {permuted} {_mean(recognition)}, and the user's own "
            f"profile adds {signed(content['mean'])} ({format_interval(content)}), {label}."
        )
    parts = "; ".join(
        f"{title}: {format_interval(gain)}, {outcome(verdict, name)}"
        for name, title, gain in (
            ("recognition", "recognising the user", recognition),
            ("content", "content of the profile", content),
        )
    )
    return f"Whether it comes from recognising the user or from the content of the profile cannot be decided ({parts})."


def _attributes(verdict: Mapping[str, Any]) -> list[str]:
    """The most useful attribute, if the contents of profiles matter: otherwise any label would do."""
    if verdict["helps"] != "yes" or verdict["claims"]["content"]["result"] != "above 0" or not verdict["attributes"]:
        return []
    most = verdict["attributes"][0]
    if most["low"] <= 0:
        return []
    fall = f"{metric_label(verdict['metric'])} falls by {most['mean']:.4f}"
    return [f"The most useful attribute is {most['attribute']}: without it, {fall}."]


def profile_advice(verdict: Mapping[str, Any]) -> list[str]:
    """Advice on the profiles: which attributes to keep, and which can be dropped."""
    if verdict["helps"] == "no":
        return ["No profiles need to be collected for these recommendations."]
    if verdict["helps"] == "unclear":
        return ["Keep the existing profiles, but do not collect more until it is decided whether they help."]
    if verdict["deploy"]["uses_profiles"]:
        return _attribute_advice(verdict)
    return [
        f"No profiles are needed for {verdict['deploy']['model']}, the best model on validation.",
        f"If {verdict['profile_model']} is deployed instead: {' '.join(_attribute_advice(verdict))}",
    ]


def _attribute_advice(verdict: Mapping[str, Any]) -> list[str]:
    """Which attributes to keep, where profiles help."""
    if verdict["gains"]["content"]["high"] < verdict["smallest_gain_absolute"]:
        return ["No attributes need to be collected for these recommendations: any persistent user ID would do."]
    if outcome(verdict, "recognition") == "above 0" and outcome(verdict, "content") != "above 0":
        return [  # without an attribute, users are recognised less: a loss is no sign that its content is of use
            "Keep the existing profiles, but do not collect more: they have only been shown to identify users.",
            "Any persistent user ID may work just as well. That the metric falls without an attribute does not "
            "show that its content is useful.",
        ]
    if not verdict["attributes"]:
        budget = verdict["more_seeds"]["complete_budget"]
        return [
            "Keep the profiles.",
            f"Which attributes contribute to the gain was not tested; budget={budget} is large enough to test it.",
        ]
    smallest = verdict["smallest_gain_absolute"]
    groups: dict[str, list[str]] = {"keep": [], "drop": [], "open": []}
    for row in verdict["attributes"]:
        kind = "drop" if row["high"] < smallest else "keep" if row["low"] > 0 else "open"
        groups[kind].append(row["attribute"])
    is_content = outcome(verdict, "content") == "above 0"
    keep = "Keep the {}, but do not collect more profiles until it is decided whether their content is useful."
    lines = {
        "keep": "Keep and collect the {}." if is_content else keep,
        "drop": f"The {{}} can be dropped: the decrease without {{}} is below {smallest:.4f}, too small to matter.",
        "open": f"Keep the {{}} for now: the interval of the decrease without {{}} includes 0, but also decreases of "
        f"{smallest:.4f} or more, which would matter.",
    }
    advice = [text.format(*_attributes_and_pronoun(groups[kind])) for kind, text in lines.items() if groups[kind]]
    if len(groups["drop"]) > 1:
        advice.append("Drop one at a time: attributes with the same content can replace each other.")
    return advice


def _attributes_and_pronoun(names: Sequence[str]) -> tuple[str, str]:
    """
    >>> _attributes_and_pronoun(["age"]), _attributes_and_pronoun(["age", "region"])
    (('attribute age', 'it'), ('attributes age and region', 'each'))
    """
    return ("attribute " if len(names) == 1 else "attributes ") + _joined(names), "it" if len(names) == 1 else "each"


def _joined(names: Sequence[str]) -> str:
    """
    >>> _joined(["age"]), _joined(["age", "region", "level"])
    ('age', 'age, region and level')
    """
    return " and ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])


def _new_users(verdict: Mapping[str, Any]) -> str:
    if verdict["new_users"] is None:
        few = "Too few users without a training session were tested to measure the effect of profiles on them"
        if verdict["holds_out_users"]:
            return f"{few}."
        budget = verdict["more_seeds"]["complete_budget"]
        return f"{few}: the budget was too small to hold users out of training; budget={budget} is large enough."
    new, gain, metric = verdict["new_users"], verdict["gains"]["new_users"], metric_label(verdict["metric"])
    who = "held out of training" if new["held_out"] else "without a training session"
    return (
        f"For the {new['users']:,} users {who}, {metric} is {new['with_profiles']:.4f} with profiles and "
        f"{gain['base']:.4f} without: {_gain(gain)}{_chance(verdict, 'new_users')}."
    )


def _chance(verdict: Mapping[str, Any], name: str) -> str:
    """Ends the sentence about a gain that is not significantly above 0."""
    result = outcome(verdict, name)
    words = {"above 0": "", "below 0": ", a loss", "not significant": ", which is not significant"}
    p_value = f", {result} (corrected p = {verdict['claims'][name]['adjusted_p_value']:.4f})"
    return words.get(result, p_value)


def _neighbours(verdict: Mapping[str, Any]) -> str:
    gain, profile = verdict["gains"]["over_non_neural"], verdict["profile_model"]
    result = {
        "above 0": f"is worse than {profile}",
        "below 0": f"is better than {profile}",
        "not significant": f"does not differ significantly from {profile}",
    }.get(
        outcome(verdict, "over_non_neural"),
        f"differs from {profile}, whose gain is {_gain(gain)}{_chance(verdict, 'over_non_neural')}",
    )
    metric = metric_label(verdict["metric"])
    best = f"{verdict['best_non_neural']}, the best non-neural model,"
    return f"{best} has a test {metric} of {gain['base']:.4f} and {result}."


def deployment(verdict: Mapping[str, Any]) -> str:
    """The model to deploy, and what it was chosen from: differences on the test split may be chance."""
    model, metric = verdict["deploy"]["model"], metric_label(verdict["metric"])
    values = ", ".join(f"{name} {value:.4f}" for name, value in list(verdict["deploy"]["chosen_from"].items())[:2])
    if verdict["helps"] == "yes":
        is_loss = verdict["new_users"] is not None and outcome(verdict, "new_users") == "below 0"
        others = f"; for users without a training session, {verdict['session_model']}"
        added = others if is_loss and verdict["deploy"]["uses_profiles"] else ""
        candidates = f"{verdict['profile_model']} and the non-neural models"
        return f"Deploy {model}, the best of {candidates} on validation ({metric}: {values}){added}."
    reason = f"the best on validation of the models without profiles ({metric}: {values})"
    return f"{'Deploy' if verdict['helps'] == 'no' else 'Until this is decided, deploy'} {model}, {reason}."


def _other_leaders(verdict: Mapping[str, Any]) -> list[str]:
    """Another model that is first by another metric, or the context encoder where it is first."""
    profile, metric = verdict["profile_model"], verdict["metric"]
    rows = {profile: verdict["models"]["own"], verdict["session_model"]: verdict["models"]["session"]}
    if verdict["context_model"] is not None:
        rows[f"{verdict['context_model']}, the context encoder of {profile},"] = verdict["models"]["context"]
    rows |= verdict["non_neural"]
    metrics = sorted(verdict["models"]["own"]["mean"], key=lambda name: name != metric)
    leaders = {name: max(rows, key=lambda row: rows[row]["mean"][name]) for name in metrics}
    lines = []
    for name, leader in leaders.items():
        other = leaders[metric] if leader == profile else profile
        is_context = leader.startswith(f"{verdict['context_model']},")
        if is_context if name == metric else leader != leaders[metric]:
            values = [rows[model]["mean"][name] for model in (leader, other)]
            figures = f"({values[0]:.4f}; {other} {values[1]:.4f})"
            lines.append(
                f"{leader} has the highest test {metric_label(name)} {figures}; the difference was not tested."
            )
            if is_context:
                lines[-1] += " A context encoder alone is not a candidate for deployment."
    return lines


def _epochs(verdict: Mapping[str, Any]) -> list[str]:
    rising = verdict["rising"]
    if not rising:
        return []
    models = " and ".join(f"{row['model']} ({row['epochs']} epoch{'s' * (row['epochs'] > 1)})" for row in rising)
    remedy = (
        "set a larger trainer.max_epochs and another hydra.run.dir"
        if rising[0]["is_capped"]
        else "set model.epochs, in single runs"
    )
    return [f"Most runs of {models} were best in their last epoch: longer training may change the answer ({remedy})."]

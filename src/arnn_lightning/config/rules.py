"""Rules: the values that a setting accepts."""

import math
import re
import zoneinfo
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """The values that a setting accepts.

    Attributes:
        allowed: completes the sentence "must be ...".
        accepts: whether a plain value (scalar, list or None) is allowed.
    """

    allowed: str
    accepts: Callable[[Any], bool]


def integer(low: int, high: int | None = None) -> Rule:
    """Integers from ``low`` to ``high``; None: to the largest of 32 bits, which no setting exceeds in practice."""
    allowed = f"an integer of at least {low}" if high is None else f"an integer between {low} and {high}"
    return Rule(allowed, lambda value: type(value) is int and low <= value <= (2**31 - 1 if high is None else high))


def number(allowed: str, in_range: Callable[[float], bool]) -> Rule:
    def accepts(value: Any) -> bool:
        return type(value) in (int, float) and math.isfinite(value) and in_range(value)

    return Rule(f"a number {allowed}", accepts)


def choice(*values: str) -> Rule:
    return Rule(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def text(allowed: str = "a string", pattern: str = r"(?s).*") -> Rule:
    return Rule(allowed, lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None)


def list_of(item: Rule, items: str, minimum: int = 1, maximum: float = math.inf) -> Rule:
    def accepts(value: Any) -> bool:
        return isinstance(value, list) and minimum <= len(value) <= maximum and all(map(item.accepts, value))

    return Rule(f"a list of {items}", accepts)


def either(*rules: Rule) -> Rule:
    return Rule(", or ".join(rule.allowed for rule in rules), lambda value: any(rule.accepts(value) for rule in rules))


NULL = Rule("null", lambda value: value is None)
BOOLEAN = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = text()
PATHS = either(TEXT, list_of(TEXT, "strings, as in [a.csv,b.csv]"))
NOT_NEGATIVE = number("of at least 0", lambda x: x >= 0)
POSITIVE = number("above 0", lambda x: x > 0)
PROBABILITY = number("in [0, 1)", lambda x: 0 <= x < 1)
UNIT_INTERVAL = number("in [0, 1]", lambda x: 0 <= x <= 1)
COVERAGE = number("in (0, 1]", lambda x: 0 < x <= 1)
NAMES = list_of(TEXT, "names, as in [country,age]", minimum=0)
HEADER = either(list_of(TEXT, "names, as in [user,item,time]"), NULL)
CUTOFFS = list_of(integer(1), "integers of at least 1, as in [5,10,20]")
METRIC = text("a metric such as mrr@20", r"[a-z_]+@[1-9]\d*")
DEVICES = list_of(integer(0), "device indices, as in [0,1]")
EDGES = Rule(
    "edges in ascending order, as in [20,30,50]",
    lambda value: list_of(number("", lambda _: True), "").accepts(value) and value == sorted(set(value)),
)
YEARS = Rule(
    "two years, the earlier first, as in [1990,2030]",
    lambda value: list_of(integer(1700, 2260), "", 2, 2).accepts(value) and value[0] <= value[1],
)
NUMERIC = Rule("a mapping of names to a number of intervals or to their edges, as in {age: 5}, or null", NULL.accepts)
NO_ZONES = {"localtime", "Factory"}  # of the system's list, polars does not know these
TIMEZONE = Rule(
    "a time zone such as Europe/Berlin",
    lambda value: isinstance(value, str) and (value == "UTC" or value in zoneinfo.available_timezones() - NO_ZONES),
)
DURATION = r"([1-9]\d*)([smh])"
DECAY = choice("same", "div", "linear", "log", "quadratic")
POPULARITY_SCOPE = choice("log", "window", "train")

"""Overrides of a command line: by key, as text, and values as an override has them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException


def as_override(key: str, value: str | Path) -> str:
    """KEY=VALUE, quoted where Hydra would not read the same text; for a shell, add ``shlex.quote``.

    >>> print(as_override("hydra.run.dir", "runs/1"), as_override("hydra.run.dir", "my runs/a,b"))
    hydra.run.dir=runs/1 hydra.run.dir="my runs/a,b"
    >>> print(as_override("hydra.run.dir", "20261129_103200"))
    hydra.run.dir="20261129_103200"
    """
    text = str(value)
    plain = f"{key}={text}"
    parsed = by_key([plain]).get(key) if re.fullmatch(r"[\w./:@%+-]+", text, re.ASCII) else None
    if parsed is not None and parsed.value() == text:
        return plain
    return f"{key}={quoted(text)}"


def quoted(text: str) -> str:
    """A text in quotes, of which Hydra reads the same text: backslashes are doubled before a quote and at the end."""
    return '"' + re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), text) + '"'


def by_key(overrides: Sequence[str]) -> dict[str, Override]:
    """Overrides by key, the last of each; empty where one cannot be parsed, which is Hydra's to report."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException:
        return {}
    return {override.get_key_element().lstrip("+~"): override for override in parsed}


def text_of(override: Override) -> str:
    """The value as it was written: a sweep has no other text."""
    return str(override.input_line).partition("=")[2]


def show(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

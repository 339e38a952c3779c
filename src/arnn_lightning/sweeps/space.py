"""Search spaces on the command line of task=tune."""

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def quote_spaces(arguments: list[str]) -> list[str]:
    """Moves search spaces into the key ``space`` of task=tune: Hydra refuses them outside a multirun.

    >>> quote_spaces(["task=tune", "model.dropout=interval(0,0.5)", "seed=2"])
    ['task=tune', 'seed=2', "space=['model.dropout=interval(0,0.5)']"]
    """
    if "task=tune" not in arguments or {"-m", "--multirun"} & set(arguments):
        return arguments
    parser = OverridesParser.create()
    try:
        spaces = [text for text in arguments if text[:1] != "-" and parser.parse_override(text).is_sweep_override()]
    except HydraException:  # Hydra reports it
        return arguments
    fixed = [text for text in arguments if text not in spaces]
    return [*fixed, f"space={spaces}"] if spaces else arguments

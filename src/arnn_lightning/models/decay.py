"""Weights that fall with the number of events between two, by the names that session-rec gives them."""

from collections.abc import Callable, Mapping

import numpy as np

# Of events back, 1 the nearest. session-rec's ``linear`` becomes negative beyond ten events, here it stays 0.
DECAYS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda step: np.ones(step.shape),
    "div": lambda step: 1.0 / step,
    "linear": lambda step: np.maximum(0, 1 - 0.1 * step),
    "log": lambda step: 1 / np.log10(step + 1.7),
    "quadratic": lambda step: 1.0 / step**2,
}

"""Extra negatives: items sampled in addition to the other slots' targets."""

import numpy as np

_PARTS = 1 << 17


class PopularitySampler:
    """Samples items with replacement by popularity^alpha, whatever the targets are.

    alpha 0 samples all items with equal probability, also those without a training event. A sample depends only on
    seed, epoch, step and device (E27), so that chunks of any length contain the same samples.

    Args:
        item_events: (I,) training events of every item.
        n_sample: samples per step N.
        alpha: the exponent.
        seed: of the samples.
    """

    def __init__(self, item_events: np.ndarray, n_sample: int, alpha: float, seed: int) -> None:
        self.n_sample = n_sample
        self.seed = seed
        popularity = item_events.astype(np.float64) ** alpha
        self.probability = popularity / popularity.sum()
        self._cumulative = np.cumsum(self.probability)
        # Indexed search: the items at the bounds of 2^17 equal parts of [0, 1) leave few samples to search for.
        bounds = np.arange(_PARTS + 1) / _PARTS
        self._at_bound = np.searchsorted(self._cumulative, bounds, side="right").clip(max=len(item_events) - 1)

    def sample(self, epoch: int, first_step: int, n_steps: int, device: int = 0) -> np.ndarray:
        """(n_steps, N) items for steps ``first_step`` onwards."""
        # A counter-based generator, whose counter is set to the step's place: four numbers for each increment.
        per_step = -(-self.n_sample // 4)
        key = np.random.SeedSequence([self.seed, epoch, device]).generate_state(2, np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=first_step * per_step))
        uniform = generator.random((n_steps, 4 * per_step))[:, : self.n_sample]
        part = (uniform * _PARTS).astype(np.int64)
        items: np.ndarray = self._at_bound[part]
        is_open = self._at_bound[part + 1] > items
        found = np.searchsorted(self._cumulative, uniform[is_open], side="right")
        items[is_open] = found.clip(max=len(self._cumulative) - 1)
        return items

"""Extra negatives: their distribution, and what they depend on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from arnn_lightning.loading.negatives import PopularitySampler

EVENTS = np.array([50, 10, 10, 10, 0])


def sampler(n_sample: int = 50, alpha: float = 0.5, seed: int = 3) -> PopularitySampler:
    return PopularitySampler(EVENTS, n_sample, alpha, seed)


def assert_sampled_by(items: np.ndarray, probability: np.ndarray) -> None:
    """Counts of independent samples are rejected one time in 10,000 where they have this probability."""
    counts = np.bincount(items, minlength=len(probability))
    assert not counts[probability == 0].any()
    expected = len(items) * probability[probability > 0]
    distance = ((counts[probability > 0] - expected) ** 2 / expected).sum()
    assert distance < chi2.ppf(1 - 1e-4, len(expected) - 1)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.75, 1.0])
def test_items_are_sampled_by_popularity_to_the_power_of_alpha(alpha: float) -> None:
    weight = EVENTS.astype(float) ** alpha  # item 4 has no event: sampled where all items are alike only
    probability = weight / weight.sum()
    samples = sampler(4000, alpha).sample(epoch=0, first_step=0, n_steps=30)
    assert samples.shape == (30, 4000)
    assert_sampled_by(samples.flatten(), probability)
    # Steps, epochs and the samples of one step are independent: the pairs have the product of the probabilities.
    for first, second in (
        (samples[:-1], samples[1:]),
        (samples[:, :-1:2], samples[:, 1::2]),
        (samples, sampler(4000, alpha).sample(1, 0, 30)),
    ):
        assert_sampled_by((5 * first + second)[::2].flatten(), np.outer(probability, probability).flatten())


@given(st.integers(0, 40), st.integers(0, 60), st.integers(1, 20), st.integers(0, 3))
def test_E27_a_sample_does_not_depend_on_the_chunk(n_sample: int, first: int, n_steps: int, device: int) -> None:
    whole = sampler(n_sample).sample(2, 0, first + n_steps, device)
    assert np.array_equal(sampler(n_sample).sample(2, first, n_steps, device), whole[first:])


def test_E27_samples_depend_on_seed_epoch_step_and_device() -> None:
    samples = {
        (seed, epoch, step, device): tuple(sampler(seed=seed).sample(epoch, step, 1, device)[0].tolist())
        for seed in (3, 4)
        for epoch in (0, 1)
        for step in (0, 1, 700)
        for device in (0, 1)
    }
    assert len(set(samples.values())) == len(samples)
    same = sampler()
    same.sample(5, 9, 4)  # an earlier call leaves no trace
    assert tuple(same.sample(1, 700, 1, 1)[0].tolist()) == samples[3, 1, 700, 1]

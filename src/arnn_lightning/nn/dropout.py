"""Dropout whose noise can be sampled outside of a compiled graph: eager and compiled steps drop the same units."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_recorded: list[tuple[torch.Size, float]] | None = None
_supplied: Iterator[Tensor] | None = None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``F.dropout`` on a CPU, bit by bit; uses no random numbers with ``p`` 0."""
    if not training or not p:
        return x
    if _supplied is not None:
        return x * next(_supplied)
    if _recorded is not None:
        _recorded.append((x.shape, p))
    return x * sample_noise(x, x.shape, p)


def sample_noise(like: Tensor, shape: Sequence[int], p: float) -> Tensor:
    """0 with probability ``p``, else 1 / (1 - p); dtype and device as ``like``."""
    return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - p).div_(1 - p)


def random_state(device: torch.device) -> Tensor:
    """The state of the generator that ``sample_noise`` uses on ``device``, as bytes on the CPU."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Sets what ``random_state`` returned."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


@contextmanager
def recorded_noise() -> Iterator[list[tuple[torch.Size, float]]]:
    """Yields a list to which every dropout inside adds its shape and p."""
    global _recorded
    _recorded = []
    try:
        yield _recorded
    finally:
        _recorded = None


@contextmanager
def supplied_noise(noise: Sequence[Tensor]) -> Iterator[None]:
    """Inside, every dropout takes the next of ``noise``."""
    global _supplied
    _supplied = iter(noise)
    try:
        yield
    finally:
        _supplied = None

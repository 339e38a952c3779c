"""Detects whether a compiler traces the code, which needs plain operations and no value read on the host."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_tracing = False


def is_tracing() -> bool:
    return _tracing or torch.compiler.is_compiling()


@contextmanager
def tracing() -> Iterator[None]:
    """Inside, ``is_tracing()`` is True."""
    global _tracing
    before, _tracing = _tracing, True
    try:
        yield
    finally:
        _tracing = before

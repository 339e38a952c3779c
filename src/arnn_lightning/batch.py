"""The types that cross from data to models. K steps in a window, B lanes, R unique rows, N extra negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # preparing data needs no torch, whose import alone takes seconds and 300 MB
    from torch import Tensor


class Window(NamedTuple):
    """K consecutive session-parallel mini-batches of B lanes; every field is (K, B).

    A lane without a session is not ``alive``: it holds item 0 and counts nowhere. ``start`` says: forget the hidden
    state before this event.
    """

    item: Tensor
    target: Tensor
    user: Tensor  # whose contexts the session sees (data.contexts.assignment)
    session: Tensor
    position: Tensor  # events already seen, 1 at the first attempt
    start: Tensor
    alive: Tensor


class Lookup(NamedTuple):
    """Rows of a table that a step touches, each once, and which of them every element takes.

    ``rows`` (R,) sorted and unique; ``inverse`` (...,) into them, so that the ids are ``rows[inverse]``.
    """

    rows: Tensor
    inverse: Tensor


class TrainingWindow(NamedTuple):
    """A window with what training knows beforehand: which rows each step reads and scores.

    ``items[k]`` looks up the (B,) input items of step k, ``scored[k]`` its (B + N,) scored items: the lanes' targets,
    then the extra negatives. Dead lanes point at some row of a lane alive; masks keep them out of the loss.
    ``counts[k]`` (R,): how often each scored row is a target of a lane alive or an extra negative. ``log_q[k]`` (R,):
    the logarithm of how likely a scored column is to show the item, where the loss asks for it. The three are empty
    where all items are scored. ``full[k]``: all lanes are alive in step k, known without asking the device.
    ``place``: which window of the epoch this is; the same place shows the same events in every epoch.

    On many devices the rows are those of all their lanes. Where a device scores its own candidates alone, ``own[k]``
    (C,) are their places among ``scored[k].rows``, and ``scored[k].inverse``, ``counts`` and ``log_q`` go by these.
    """

    place: int
    window: Window
    full: list[bool]
    items: list[Lookup]
    scored: list[Lookup]
    counts: list[Tensor]
    own: list[Tensor]
    log_q: list[Tensor] | None


class Step(NamedTuple):
    """One mini-batch as a model sees it; (B,) each. ``alive`` None means that all lanes are.

    ``place``, in training: the window of the epoch and the step of the window.
    """

    item: Tensor
    user: Tensor
    alive: Tensor | None
    rows: Lookup | None = None  # the input items' rows, in training
    place: tuple[int, int] | None = None


class Contexts(NamedTuple):
    """Contexts of all users, one row each and a last row for "everything unknown"; U users.

    ``single`` (U + 1, S) codes of single-valued fields. ``active`` (U + 1, A) the two-valued fields present, padded
    with -1.
    """

    single: Tensor
    active: Tensor

"""Rank of the target by counting: how many items score higher, how many score the same."""

from collections.abc import Callable

import torch
from torch import Tensor

from arnn_lightning.errors import UserError

TIES = ("conservative", "standard", "median")
LIST = 20  # the length of a list that is recommended
# Scores held at once: small enough for the processor's cache, whatever the size of the catalogue.
BLOCK = 1 << 20
SMALLEST_BLOCK = 32


def count_ranks(score: Callable[[Tensor], Tensor], query_NH: Tensor, target_N: Tensor, n_items: int) -> Tensor:
    """Counts for every query against the full catalogue (V4), in blocks of queries.

    The target's own score is taken from the same matrix product as all others: computed apart, it may differ in the
    last bit and put the rank off by one.

    Args:
        score: queries (M, ...) -> raw scores (M, I).
        query_NH: the queries, one row each.
        target_N: the item that came next.
        n_items: size of the catalogue I.

    Returns:
        (N, 2) int64: items that score higher than the target, items that score the same (the target included).

    Raises:
        UserError: a score that is NaN or infinite (V8).
    """
    size = max(SMALLEST_BLOCK, BLOCK // n_items)
    counts = []
    for query_MH, target_M in zip(query_NH.split(size), target_N.split(size), strict=True):
        score_MI = score(query_MH)
        if not torch.isfinite(score_MI.sum()) and not torch.isfinite(score_MI).all():
            raise UserError("a score is NaN or infinite; the model has diverged: lower model.optimizer.lr")
        target_M1 = score_MI.gather(1, target_M[:, None])
        # Summed as floats, which is several times faster than booleans and exact up to 2^24 items.
        higher_M = torch.gt(score_MI, target_M1, out=torch.empty_like(score_MI)).sum(1)
        at_least_M = torch.ge(score_MI, target_M1, out=score_MI).sum(1)
        counts.append(torch.stack([higher_M, at_least_M - higher_M], 1).long())
    return torch.cat(counts) if counts else target_N.new_zeros((0, 2))


def count_lists(score: Callable[[Tensor], Tensor], query_NH: Tensor, n_items: int) -> Tensor:
    """(I,) how often each item is among the ``LIST`` best of a query; scores as in ``count_ranks``."""
    times_I = torch.zeros(n_items, dtype=torch.int64, device=query_NH.device)
    for query_MH in query_NH.split(max(SMALLEST_BLOCK, BLOCK // n_items)):
        best_MK = score(query_MH).topk(min(LIST, n_items), 1).indices
        times_I += torch.bincount(best_MK.flatten(), minlength=n_items)
    return times_I


def rank(higher: Tensor, equal: Tensor, ties: str) -> Tensor:
    """Rank of the target, 1 the best, from the two counts (V5); float64, since a median rank may be a half.

    >>> counts = torch.tensor([3]), torch.tensor([4])
    >>> [rank(*counts, mode).item() for mode in ("standard", "conservative", "median")]
    [4.0, 7.0, 5.5]
    """
    if ties not in TIES:
        raise UserError(f"evaluation.ties={ties}: choose one of {', '.join(TIES)}")
    higher, equal = higher.double(), equal.double()
    if ties == "standard":
        return higher + 1
    if ties == "conservative":
        return higher + equal
    return higher + (equal + 1) / 2

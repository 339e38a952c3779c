"""Rank of the target by counting: how many items score higher, how many score the same."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from arnn_lightning.errors import UserError

TIES = ("conservative", "standard", "median")
LIST = 20  # the length of a list that is recommended
# Scores held at once: small enough for the processor's cache, whatever the size of the catalogue.
BLOCK = 1 << 20
SMALLEST_BLOCK = 32
# The same for products in pieces; a GPU wants fewer and larger ones.
QUERIES, PIECE, GPU_PIECE = 256, 1 << 19, 1 << 26


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


def count_ranks_of_products(query_NH: Tensor, target_N: Tensor, weight_IH: Tensor, bias_I: Tensor) -> Tensor:
    """``count_ranks`` for scores that are query @ weight.T + bias, in pieces of queries and items.

    Whatever the catalogue, no scores leave the processor's cache: twice (13k items) to three times (1M) as fast.
    The target's own score comes from a product of all queries of a piece with all their targets, which rounds as the
    pieces do; where a piece shows that it did not, the query is counted anew in one product.

    Args:
        query_NH: the queries, one row each.
        target_N: the item that came next.
        weight_IH: the items' weights.
        bias_I: the items' biases.

    Returns, raises: as ``count_ranks``.
    """
    n_items, width = weight_IH.shape
    # No product of finite numbers under this bound overflows, so that the scores need no look.
    bound = query_NH.abs().max() * weight_IH.abs().max() * width + bias_I.abs().max() if len(query_NH) else bias_I[0]
    whole = partial(_scores, weight_IH, bias_I)
    if not torch.isfinite(bound):
        return count_ranks(whole, query_NH, target_N, n_items)
    items = (PIECE if query_NH.device.type == "cpu" else GPU_PIECE) // QUERIES
    scores, hits = query_NH.new_empty(2, QUERIES * items)
    counts, same = [], []
    for query_MH, target_M in zip(query_NH.split(QUERIES), target_N.split(QUERIES), strict=True):
        M = len(query_MH)
        own_M = torch.addmm(bias_I[target_M], query_MH, weight_IH[target_M].T).diagonal().clone()
        higher_M, at_least_M, seen_M = own_M.new_zeros(3, M)
        for first in range(0, n_items, items):
            weight_CH, bias_C = weight_IH[first : first + items], bias_I[first : first + items]
            shape = (M, len(bias_C))
            score_MC = torch.addmm(bias_C, query_MH, weight_CH.T, out=scores[: shape[0] * shape[1]].view(shape))
            place_M = target_M - first
            inside_M = (place_M >= 0) & (place_M < shape[1])
            here_M = score_MC.gather(1, place_M.clamp(0, shape[1] - 1)[:, None])[:, 0]
            seen_M = torch.where(inside_M, here_M, seen_M)
            # Summed as floats, which is several times faster than booleans and exact up to 2^24 items.
            hit_MC = hits[: shape[0] * shape[1]].view(shape)
            higher_M += torch.gt(score_MC, own_M[:, None], out=hit_MC).sum(1)
            at_least_M += torch.ge(score_MC, own_M[:, None], out=hit_MC).sum(1)
        counts.append(torch.stack([higher_M, at_least_M - higher_M], 1).long())
        same.append(seen_M == own_M)
    if not counts:
        return target_N.new_zeros((0, 2))
    count_N2, other_N = torch.cat(counts), ~torch.cat(same)
    if other_N.any():
        count_N2[other_N] = count_ranks(whole, query_NH[other_N], target_N[other_N], n_items)
    return count_N2


def _scores(weight_IH: Tensor, bias_I: Tensor, query_NH: Tensor) -> Tensor:
    return torch.addmm(bias_I, query_NH, weight_IH.T)


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

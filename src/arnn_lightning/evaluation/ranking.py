"""Rank of the target by counting: how many items have a higher score, how many the same."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from arnn_lightning.errors import UserError

TIE_MODES = ("conservative", "standard", "median")
TOP_K = 20  # length of a list of recommendations
TOPK_BLOCK = 256  # items of a block whose maximum decides whether it is searched
# Scores in memory at once: few enough for the processor's cache, whatever the size of the catalogue.
BLOCK_SCORES = 1 << 20
MIN_BLOCK_QUERIES = 32
# The same for blocks of queries and items; fewer and larger ones are faster on a GPU.
BLOCK_QUERIES, CPU_BLOCK_SCORES, GPU_BLOCK_SCORES = 256, 1 << 19, 1 << 26


def count_higher_and_tied(
    score: Callable[[Tensor], Tensor], query_NH: Tensor, target_N: Tensor, n_items: int
) -> Tensor:
    """Counts for every query against the full catalogue (V4), in blocks of queries.

    The target's score is taken from the same matrix product as all others: computed apart, it may differ in the
    last bit and put the rank off by one.

    The scores are overwritten: the second comparison writes its result into them to save the memory of a third
    block. ``score`` must therefore return a new tensor, or a clone, never a view of weights or of the queries.

    Args:
        score: queries (M, H) -> raw scores (M, I), which are destroyed.
        query_NH: the queries, one row each.
        target_N: the item that came next.
        n_items: size of the catalogue I.

    Returns:
        (N, 2) int64: items with a higher score than the target, items with the same score (the target included).

    Raises:
        UserError: a score that is NaN or infinite (V8).

    >>> scores = torch.tensor([[0.1, 0.9, 0.9, 0.5]])
    >>> count_higher_and_tied(torch.clone, scores, torch.tensor([3]), 4)
    tensor([[2, 1]])
    """
    size = max(MIN_BLOCK_QUERIES, BLOCK_SCORES // n_items)
    counts = []
    for query_MH, target_M in zip(query_NH.split(size), target_N.split(size), strict=True):
        score_MI = score(query_MH)
        if not torch.isfinite(score_MI.sum()) and not torch.isfinite(score_MI).all():
            raise UserError("a score is NaN or infinite: the model has diverged; lower model.optimizer.lr")
        target_score_M1 = score_MI.gather(1, target_M[:, None])
        # Summed as floats, which is several times faster than booleans and exact up to 2^24 items.
        higher_M = torch.gt(score_MI, target_score_M1, out=torch.empty_like(score_MI)).sum(1)
        at_least_M = torch.ge(score_MI, target_score_M1, out=score_MI).sum(1)
        counts.append(torch.stack([higher_M, at_least_M - higher_M], 1).long())
    return torch.cat(counts) if counts else target_N.new_zeros((0, 2))


def top_items(score_NI: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best items of every row, the best first; items with equal scores in their order in the catalogue.

    The place of an item, from 1, thus lies between its standard and its conservative rank, and is both without ties.

    Args:
        score_NI: raw scores, minus infinity for items that are left out.
        k: length of the lists; at most the number of items is returned.

    Returns:
        scores (N, K) and items (N, K); scores are minus infinity where fewer than K items are not left out.

    Raises:
        UserError: a score that is NaN or infinite (V8).

    >>> top_items(torch.tensor([[0.1, 0.9, 0.5, 0.9, 0.5]]), 3)
    (tensor([[0.9000, 0.9000, 0.5000]]), tensor([[1, 3, 2]]))
    """
    n_items = score_NI.shape[1]
    k = min(k, n_items)
    best_NK, item_NK = _topk(score_NI, min(k + 1, n_items))
    if not (best_NK[:, 0] < math.inf).all():  # NaN sorts before all numbers
        raise UserError("a score is NaN or infinite: the model has diverged; lower model.optimizer.lr and train again")
    last_N1, item_NK = best_NK[:, k - 1 : k], item_NK[:, :k]
    # Where items that tie with the last were cut off, those that come first in the catalogue are kept.
    (cut_n,) = torch.where(best_NK[:, -1] == last_N1[:, 0]) if k < n_items else (torch.empty(0),)
    if len(cut_n):
        score_nI, last_n1 = score_NI[cut_n], last_N1[cut_n]
        higher_nI, tied_nI = score_nI > last_n1, score_nI == last_n1
        n_kept_n1 = k - higher_nI.sum(1, keepdim=True)
        is_kept_nI = higher_nI | (tied_nI & (tied_nI.cumsum(1, dtype=torch.int32) <= n_kept_n1))
        item_NK[cut_n] = is_kept_nI.nonzero()[:, 1].view(-1, k)
    item_NK = item_NK.sort(1).values
    best_NK, order_NK = score_NI.gather(1, item_NK).sort(dim=1, descending=True, stable=True)
    return best_NK, item_NK.gather(1, order_NK)


def _topk(score_NI: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``score_NI.topk(k, 1)``, whose time grows steeply with I: only the k blocks with the highest maxima matter."""
    n_blocks = score_NI.shape[1] // TOPK_BLOCK
    if n_blocks <= 4 * k:
        values, items = score_NI.topk(k, 1)
        return values, items
    block_NCW = score_NI[:, : n_blocks * TOPK_BLOCK].unflatten(1, (n_blocks, TOPK_BLOCK))
    best_block_NK = block_NCW.amax(2).topk(k, 1).indices
    item_NKW = best_block_NK[:, :, None] * TOPK_BLOCK + torch.arange(TOPK_BLOCK, device=score_NI.device)
    rest_R = torch.arange(n_blocks * TOPK_BLOCK, score_NI.shape[1], device=score_NI.device)
    item_NC = torch.cat([item_NKW.flatten(1), rest_R.expand(len(score_NI), -1)], 1)
    values, places = score_NI.gather(1, item_NC).topk(k, 1)
    return values, item_NC.gather(1, places)


def count_recommendations(score: Callable[[Tensor], Tensor], query_NH: Tensor, n_items: int) -> Tensor:
    """(I,) how often each item is among the ``TOP_K`` best of a query; scores as in ``count_higher_and_tied``."""
    counts_I = torch.zeros(n_items, dtype=torch.int64, device=query_NH.device)
    for query_MH in query_NH.split(max(MIN_BLOCK_QUERIES, BLOCK_SCORES // n_items)):
        best_MK = score(query_MH).topk(min(TOP_K, n_items), 1).indices
        counts_I += torch.bincount(best_MK.flatten(), minlength=n_items)
    return counts_I


def count_higher_and_tied_blockwise(query_NH: Tensor, target_N: Tensor, weight_IH: Tensor, bias_I: Tensor) -> Tensor:
    """``count_higher_and_tied`` for scores that are query @ weight.T + bias, in blocks of queries and items.

    Whatever the catalogue, no scores leave the processor's cache: twice (13k items) to three times (1M) as fast.
    The target's score comes from a product of all queries of a block with all their targets, which rounds as the
    blocks do; where the block that contains the target shows a different score, the query is recomputed in one product.

    Args:
        query_NH: the queries, one row each.
        target_N: the item that came next.
        weight_IH: the items' weights.
        bias_I: the items' biases.

    Returns, raises: as ``count_higher_and_tied``.
    """
    n_items, width = weight_IH.shape
    # A bound on |score| that rules out overflow, so scores need no finiteness check.
    bound = query_NH.abs().max() * weight_IH.abs().max() * width + bias_I.abs().max() if len(query_NH) else bias_I[0]
    score_all = partial(_scores, weight_IH, bias_I)
    if not torch.isfinite(bound):
        return count_higher_and_tied(score_all, query_NH, target_N, n_items)
    block_items = (CPU_BLOCK_SCORES if query_NH.device.type == "cpu" else GPU_BLOCK_SCORES) // BLOCK_QUERIES
    score_buffer, comparison_buffer = query_NH.new_empty(2, BLOCK_QUERIES * block_items)
    counts, is_exact = [], []
    for query_MH, target_M in zip(query_NH.split(BLOCK_QUERIES), target_N.split(BLOCK_QUERIES), strict=True):
        M = len(query_MH)
        target_score_M = torch.addmm(bias_I[target_M], query_MH, weight_IH[target_M].T).diagonal().clone()
        higher_M, at_least_M, check_score_M = target_score_M.new_zeros(3, M)
        for first in range(0, n_items, block_items):
            weight_CH, bias_C = weight_IH[first : first + block_items], bias_I[first : first + block_items]
            shape = (M, len(bias_C))
            score_MC = torch.addmm(bias_C, query_MH, weight_CH.T, out=score_buffer[: shape[0] * shape[1]].view(shape))
            column_M = target_M - first
            in_block_M = (column_M >= 0) & (column_M < shape[1])
            block_score_M = score_MC.gather(1, column_M.clamp(0, shape[1] - 1)[:, None])[:, 0]
            check_score_M = torch.where(in_block_M, block_score_M, check_score_M)
            # Summed as floats, which is several times faster than booleans and exact up to 2^24 items.
            comparison_MC = comparison_buffer[: shape[0] * shape[1]].view(shape)
            higher_M += torch.gt(score_MC, target_score_M[:, None], out=comparison_MC).sum(1)
            at_least_M += torch.ge(score_MC, target_score_M[:, None], out=comparison_MC).sum(1)
        counts.append(torch.stack([higher_M, at_least_M - higher_M], 1).long())
        is_exact.append(check_score_M == target_score_M)
    if not counts:
        return target_N.new_zeros((0, 2))
    count_N2, inexact_N = torch.cat(counts), ~torch.cat(is_exact)
    if inexact_N.any():
        count_N2[inexact_N] = count_higher_and_tied(score_all, query_NH[inexact_N], target_N[inexact_N], n_items)
    return count_N2


def _scores(weight_IH: Tensor, bias_I: Tensor, query_NH: Tensor) -> Tensor:
    return torch.addmm(bias_I, query_NH, weight_IH.T)


def rank(higher: Tensor, equal: Tensor, ties: str) -> Tensor:
    """Rank of the target, 1 the best, from the two counts (V5); float64, since a median rank may be a half.

    Args:
        higher: (N,) items with a higher score.
        equal: (N,) items with the same score, the target included.
        ties: one of ``TIE_MODES``: the target comes first, last or in the middle of the items with its score
            (standard, conservative, median).

    Raises:
        UserError: an unknown tie mode.

    >>> counts = torch.tensor([3]), torch.tensor([4])
    >>> [rank(*counts, mode).item() for mode in ("standard", "conservative", "median")]
    [4.0, 7.0, 5.5]
    """
    if ties not in TIE_MODES:
        raise UserError(f"evaluation.ties={ties}: must be one of {', '.join(TIE_MODES)}")
    higher, equal = higher.double(), equal.double()
    if ties == "standard":
        return higher + 1
    if ties == "conservative":
        return higher + equal
    return higher + (equal + 1) / 2

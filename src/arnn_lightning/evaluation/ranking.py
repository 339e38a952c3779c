"""Rank of the target by counting: how many items have a higher score, how many the same."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from arnn_lightning.errors import UserError

TOPK_BLOCK = 256  # items of a block whose maximum decides whether it is searched
# Scores in memory at once: few enough for the processor's cache, whatever the size of the catalogue.
BLOCK_SCORES = 1 << 20
MIN_BLOCK_QUERIES = 32
# Of count_higher_and_tied_blockwise: queries of a block, and its scores on a CPU and on a GPU.
BLOCK_QUERIES, CPU_BLOCK_SCORES, GPU_BLOCK_SCORES = 256, 1 << 18, 1 << 26
GROUP_ITEMS = 16  # whose maximum decides whether they are searched for the best items


class RecommendationCounts:
    """How often each item is recommended: is among the ``k`` best of a query, in the order of ``top_items``.

    The scores are those that ranks are counted from, so that no score is computed twice.

    Args:
        n_items: size of the catalogue I.
        k: length of the lists; at most I.
        device: of the scores.

    Attributes:
        count_I: (I,) int64.
    """

    def __init__(self, n_items: int, k: int, device: torch.device) -> None:
        self.k = min(k, n_items)
        self.count_I = torch.zeros(n_items, dtype=torch.int64, device=device)

    def add(self, score_NI: Tensor) -> None:
        """Counts the lists of N queries from their scores of all items."""
        if score_NI.device.type == "cpu":
            best = BestItems(len(score_NI), self.k)
            best.add(score_NI, 0)
            score_NI = score_NI[self.add_best(best)]
        if len(score_NI):
            self.count_I += _is_best(score_NI, _topk(score_NI, self.k)[0][:, -1:], self.k).sum(0)

    def add_best(self, best: "BestItems") -> Tensor:
        """Counts the lists that ``best`` has; returns the queries without a list."""
        item, skipped = best.lists()
        self.count_I += torch.bincount(torch.from_numpy(item), minlength=len(self.count_I))
        return torch.from_numpy(skipped)


class BestItems:
    """Searches the ``k`` best items of M queries in blocks of items, on a CPU.

    The k-th best maximum of small groups of items is a lower bound of the k-th best score, and few scores reach it:
    several times as fast as ``topk``. Queries with many equal scores at this bound are skipped.
    """

    def __init__(self, n_queries: int, k: int) -> None:
        self.k = k
        self.bound_M = np.full((n_queries, 1), -np.inf)
        self.is_skipped_M = np.zeros(n_queries, bool)
        self.found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # query, item, score

    def add(self, score_MC: Tensor, first: int) -> None:
        """Searches the scores of the C items from ``first`` on."""
        n_groups = score_MC.shape[1] // GROUP_ITEMS
        grouped = n_groups * GROUP_ITEMS
        # Items of a group lie ``n_groups`` apart, so that maxima are taken of whole rows; the rest are groups of one.
        self._search(score_MC[:, :grouped].unflatten(1, (GROUP_ITEMS, n_groups)), first)
        self._search(score_MC[:, None, grouped:], first + grouped)

    def _search(self, score_MWG: Tensor, first: int) -> None:
        n_groups = score_MWG.shape[2]
        if not n_groups:
            return
        best_MG = score_MWG.amax(1).numpy()
        if n_groups >= self.k:
            np.maximum(self.bound_M, np.sort(best_MG, 1)[:, -self.k, None], out=self.bound_M)
        reaches_MG = best_MG >= self.bound_M
        if np.count_nonzero(reaches_MG) > 2 * self.k * len(reaches_MG):
            many_M = reaches_MG.sum(1) > 4 * self.k
            self.is_skipped_M |= many_M
            self.bound_M[many_M] = np.inf
            reaches_MG[many_M] = False
        query, group = np.divmod(np.flatnonzero(reaches_MG), n_groups)
        score = score_MWG.numpy()[query, :, group]
        chosen, member = np.divmod(np.flatnonzero(score >= self.bound_M[query]), score.shape[1])
        self.found.append((query[chosen], first + member * n_groups + group[chosen], score[chosen, member]))

    def lists(self) -> tuple[np.ndarray, np.ndarray]:
        """The items of all lists in one array, and the queries that were skipped."""
        query, item, score = (np.concatenate(parts) for parts in zip(*self.found, strict=True))
        (kept,) = np.nonzero(~self.is_skipped_M[query])  # a query may be skipped after some of its items were found
        order = kept[np.argsort(query[kept], kind="stable")]
        query, item, score = query[order], item[order], score[order]
        table = np.full((len(self.bound_M), max(self.k, np.bincount(query, minlength=1).max())), -np.inf)
        table[query, _place(query)] = score
        last = np.partition(table, -self.k, 1)[query, -self.k]
        (tied,) = np.nonzero(score == last)
        tied = tied[np.lexsort((item[tied], query[tied]))]  # of equal scores the first in the catalogue
        n_higher = np.bincount(query[score > last], minlength=len(table))
        tied = tied[_place(query[tied]) < self.k - n_higher[query[tied]]]
        return np.concatenate([item[score > last], item[tied]]), np.flatnonzero(self.is_skipped_M)


def _place(query: np.ndarray) -> np.ndarray:
    """The place of every element among those of its query; the queries are sorted.

    >>> _place(np.array([0, 0, 2, 2, 2])).tolist()
    [0, 1, 0, 1, 2]
    """
    count = np.bincount(query)
    return np.arange(len(query)) - np.repeat(np.cumsum(count) - count, count)


def count_higher_and_tied(
    score: Callable[[Tensor], Tensor],
    query_NH: Tensor,
    target_N: Tensor,
    n_items: int,
    recommended: RecommendationCounts | None = None,
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
        recommended: counts the lists, too.

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
        if recommended is not None:
            recommended.add(score_MI)
        target_score_M1 = score_MI.gather(1, target_M[:, None])
        # Summed as floats, which is several times faster than booleans and exact up to 2^24 items.
        higher_M = torch.gt(score_MI, target_score_M1, out=torch.empty_like(score_MI)).sum(1)
        at_least_M = torch.ge(score_MI, target_score_M1, out=score_MI).sum(1)
        counts.append(torch.stack([higher_M, at_least_M - higher_M], 1).long())
    return torch.cat(counts)


def top_items(score_NI: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best items of every row, the best first; items with equal scores in their order in the catalogue.

    The place of an item, from 1, thus lies between its standard and its conservative rank, and is both without ties.

    Args:
        score_NI: raw scores, minus infinity for items that are left out.
        k: length of the lists; at most the number of items is returned.

    Returns:
        scores (N, K) and items (N, K); scores are minus infinity where fewer than K items are not left out.

    Raises:
        UserError: a score that is NaN or plus infinity (V8); minus infinity marks an item that is left out.

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
        item_NK[cut_n] = _is_best(score_NI[cut_n], last_N1[cut_n], k).nonzero()[:, 1].view(-1, k)
    item_NK = item_NK.sort(1).values
    best_NK, order_NK = score_NI.gather(1, item_NK).sort(dim=1, descending=True, stable=True)
    return best_NK, item_NK.gather(1, order_NK)


def _is_best(score_NI: Tensor, last_N1: Tensor, k: int) -> Tensor:
    """(N, I) whether an item is among the ``k`` best, of which ``last_N1`` are the lowest scores.

    Of items that tie with the last, those that come first in the catalogue are.
    """
    higher_NI, tied_NI = score_NI > last_N1, score_NI == last_N1
    return higher_NI | (tied_NI & (tied_NI.cumsum(1, dtype=torch.int32) <= k - higher_NI.sum(1, keepdim=True)))


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


def count_higher_and_tied_blockwise(
    query_NH: Tensor,
    target_N: Tensor,
    weight_IH: Tensor,
    bias_I: Tensor,
    recommended: RecommendationCounts | None = None,
) -> Tensor:
    """``count_higher_and_tied`` for scores that are query @ weight.T + bias, in blocks of queries and items.

    On a CPU no scores leave the processor's cache, which is two (13k items) to three times (1M) as fast as to rank the
    scores of all items.
    The target's score comes from a product of all queries of a block with all their targets, which rounds as the
    blocks do; where the block that contains the target shows a different score, the query is recomputed in one product.

    Args:
        query_NH: the queries, one row each.
        target_N: the item that came next.
        weight_IH: the items' weights.
        bias_I: the items' biases.
        recommended: counts the lists, too.

    Returns, raises: as ``count_higher_and_tied``.
    """
    n_items, width = weight_IH.shape
    # A bound on |score| that rules out overflow, so scores need no finiteness check.
    bound = _largest(query_NH) * _largest(weight_IH) * width + _largest(bias_I) if len(query_NH) else bias_I[0]
    score_all = partial(_scores, weight_IH, bias_I)
    if not torch.isfinite(bound):
        return count_higher_and_tied(score_all, query_NH, target_N, n_items, recommended)
    on_cpu = query_NH.device.type == "cpu"
    block_items = (CPU_BLOCK_SCORES if on_cpu else GPU_BLOCK_SCORES) // BLOCK_QUERIES
    score_buffer, comparison_buffer = query_NH.new_empty(2, BLOCK_QUERIES * block_items)
    counts, is_exact = [], []
    for query_MH, target_M in zip(query_NH.split(BLOCK_QUERIES), target_N.split(BLOCK_QUERIES), strict=True):
        M = len(query_MH)
        best = BestItems(M, recommended.k) if recommended is not None and on_cpu else None
        target_score_M = torch.addmm(bias_I[target_M], query_MH, weight_IH[target_M].T).diagonal().clone()
        higher_M, at_least_M, check_score_M = target_score_M.new_zeros(3, M)
        for first in range(0, n_items, block_items):
            weight_CH, bias_C = weight_IH[first : first + block_items], bias_I[first : first + block_items]
            shape = (M, len(bias_C))
            score_MC = torch.addmm(bias_C, query_MH, weight_CH.T, out=score_buffer[: shape[0] * shape[1]].view(shape))
            if best is not None:
                best.add(score_MC, first)
            column_M = target_M - first
            in_block_M = (column_M >= 0) & (column_M < shape[1])
            block_score_M = score_MC.gather(1, column_M.clamp(0, shape[1] - 1)[:, None])[:, 0]
            check_score_M = torch.where(in_block_M, block_score_M, check_score_M)
            # Summed as floats, which is several times faster than booleans and exact up to 2^24 items.
            comparison_MC = comparison_buffer[: shape[0] * shape[1]].view(shape)
            higher_M += torch.gt(score_MC, target_score_M[:, None], out=comparison_MC).sum(1)
            at_least_M += torch.ge(score_MC, target_score_M[:, None], out=comparison_MC).sum(1)
        if recommended is not None:
            rest_LH = query_MH if best is None else query_MH[recommended.add_best(best)]
            for query_LH in rest_LH.split(max(MIN_BLOCK_QUERIES, BLOCK_SCORES // n_items)) if len(rest_LH) else ():
                recommended.add(score_all(query_LH))
        counts.append(torch.stack([higher_M, at_least_M - higher_M], 1).long())
        is_exact.append(check_score_M == target_score_M)
    count_N2, inexact_N = torch.cat(counts), ~torch.cat(is_exact)
    if inexact_N.any():
        count_N2[inexact_N] = count_higher_and_tied(score_all, query_NH[inexact_N], target_N[inexact_N], n_items)
    return count_N2


def _largest(values: Tensor) -> Tensor:
    """``values.abs().max()`` without a copy as large as the catalogue; NaN where a value is."""
    low, high = values.aminmax()
    return torch.maximum(-low, high)


def _scores(weight_IH: Tensor, bias_I: Tensor, query_NH: Tensor) -> Tensor:
    return torch.addmm(bias_I, query_NH, weight_IH.T)

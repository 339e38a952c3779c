"""The best items of one query without the product of all float32 weights, which takes as long as reading them does.

A product of 8-bit integers, a quarter of the bytes, gives every score with a bound on its error. Items that cannot be
among the best by this bound are left out; the scores of the others, a few dozen, are computed from the weights.

I items, G groups of items, H width of a query, C candidates, K length of the list.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from arnn_lightning.evaluation.ranking import GROUP_ITEMS

# The largest integer. Kernels without VNNI add two products of a number and of one plus 128 in 16 bits, and saturate
# without an error: 2 * 79 * (79 + 128) < 2^15.
LEVELS = 79
MAX_SHARE = 16  # with more than one in this many items as candidates, the product of all weights is faster
EPS, LARGEST = torch.finfo(torch.float32).eps, torch.finfo(torch.float32).max / 2  # no score is larger
SMALLEST = 1e-30  # scale, for rows of zeros
BLOCK_ROWS = 1 << 12  # in float64 at once, few enough for the cache


class ItemScreen:
    """Finds the best items by weight @ query + bias.

    A row w of the weights is s u + e: u integers, s its largest absolute value / 79. The query q is t v + f. Then
    |w q - s t u v| <= |w| |f| + |e| |t v| (Cauchy-Schwarz); rounding adds at most (H + 8) eps of |w| |q| + |s t u v|.

    Args:
        weight_IH: the items' weights.
        bias_I: the items' biases.
    """

    def __init__(self, weight_IH: Tensor, bias_I: Tensor) -> None:
        self.weight_IH, self.bias_I = weight_IH, bias_I
        self.scale_I = (weight_IH.abs().amax(1) / LEVELS).clamp(min=SMALLEST)
        self.code_IH = torch.empty_like(weight_IH, dtype=torch.int8)
        norms = []
        for first in range(0, len(weight_IH), BLOCK_ROWS):
            rows = slice(first, first + BLOCK_ROWS)
            scaled_nH = weight_IH[rows].double() / self.scale_I[rows, None]
            self.code_IH[rows] = scaled_nH.round()
            norms.append(torch.stack([scaled_nH, scaled_nH - self.code_IH[rows]]).norm(dim=2).amax(1))
        self.norm, self.error = torch.stack(norms).amax(0).tolist()  # the largest |w| / s and |e| / s
        self.largest_scale, self.largest_bias = float(self.scale_I.max()), float(bias_I.abs().max())

    @torch.inference_mode()
    def top(self, query_H: Tensor, k: int, exclude: Callable[[Tensor], None]) -> tuple[Tensor, Tensor] | None:
        """As ``top_items`` of scores that are computed in float64 and rounded once.

        Args:
            query_H: the query.
            k: K.
            exclude: sets scores (1, I) of items that are left out to minus infinity.

        Returns:
            scores (1, K) and items (1, K). None: the product of all weights is needed, since there are too many
            candidates or scores might not be finite.
        """
        (width,), n_items = query_H.shape, len(self.bias_I)
        q_H = query_H.numpy().astype(np.float64)
        largest = float(np.abs(q_H).max())
        if k > n_items // GROUP_ITEMS or not largest < LARGEST:  # NaN, too
            return None
        step = max(largest / LEVELS, SMALLEST)
        code_H = np.rint(q_H / step)
        rounded_H = step * code_H
        # Of any item, divided by its scale.
        product = (self.norm + self.error) * _norm(rounded_H)
        bound = self.norm * _norm(q_H - rounded_H) + self.error * _norm(rounded_H)
        bound += EPS * (width + 8) * (self.norm * _norm(q_H) + product + bound)
        if not self.largest_scale * (product + 4 * bound) + self.largest_bias < LARGEST:
            return None
        product_1I = torch._int_mm(torch.from_numpy(code_H[None].astype(np.int8)), self.code_IH.T)
        lowest_I = torch.add(self.bias_I, self.scale_I, alpha=-bound)
        lowest_1I = torch.addcmul(lowest_I, self.scale_I, product_1I, value=step)
        exclude(lowest_1I)
        best_G = lowest_1I.numpy()[0, : n_items // GROUP_ITEMS * GROUP_ITEMS].reshape(GROUP_ITEMS, -1).max(0)
        # K items have at least this score.
        least = max(float(np.partition(best_G, -k)[-k]), -LARGEST) - 8 * EPS * self.largest_bias
        highest_1I = torch.add(lowest_1I, self.scale_I, alpha=2 * bound)
        item_C = np.flatnonzero(highest_1I.numpy() >= least)
        if len(item_C) > n_items // MAX_SHARE:
            return None
        score_C = self.weight_IH.numpy()[item_C].astype(np.float64) @ q_H + self.bias_I.numpy()[item_C]
        score_C = score_C.astype(np.float32)
        best_K = np.argsort(-score_C, kind="stable")[:k]
        score_1K, item_1K = np.full((1, k), -np.inf, np.float32), np.zeros((1, k), np.int64)
        score_1K[0, : len(best_K)], item_1K[0, : len(best_K)] = score_C[best_K], item_C[best_K]
        return torch.from_numpy(score_1K), torch.from_numpy(item_1K)


def _norm(vector: np.ndarray) -> float:
    return float(np.sqrt(vector @ vector))

"""The best items of one query without the exact scores of all: rough ones, each with a bound on its error, come first.

Items that cannot be among the best by this bound are left out; the scores of the others, a few dozen, are computed from
the weights in float64. Rough scores are products of 8-bit integers, a quarter of the bytes, where the processor has
instructions for them, and of float32 elsewhere.

I items, P with padding, in G groups of N; H width of a query, C candidates, K length of the list.
"""

import math
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
CACHED_BYTES = 8_000_000  # weights that stay in the processor's cache from one query to the next
BLOCK_ROWS = 1 << 12  # in float64 at once, few enough for the cache


class IntegerWeights:
    """Weights as integers: a row w is s u + e, with integers u and s, its largest absolute value / 79.

    Args:
        weight_IH: the items' weights.
        n_padded: P.

    Attributes:
        scale_P: s.
        norm, error: the largest |w| / s and |e| / s.
        max_queries: largest number of queries for which one at a time is faster than one product for all.
    """

    max_queries = 4

    def __init__(self, weight_IH: Tensor, n_padded: int) -> None:
        n_items, width = weight_IH.shape
        self.code_PH = torch.zeros(n_padded, width, dtype=torch.int8)
        self.scale_P = torch.full((n_padded,), SMALLEST)
        self.scale_P[:n_items] = (weight_IH.abs().amax(1) / LEVELS).clamp(min=SMALLEST)
        norms = []
        for first in range(0, n_items, BLOCK_ROWS):
            block_nH = weight_IH[first : first + BLOCK_ROWS]
            rows = slice(first, first + len(block_nH))
            scaled_nH = block_nH.double() / self.scale_P[rows, None]
            self.code_PH[rows] = scaled_nH.round()
            norms.append(torch.stack([scaled_nH, scaled_nH - self.code_PH[rows]]).norm(dim=2).amax(1))
        self.norm, self.error = torch.stack(norms).amax(0).tolist()

    def round_query(self, q_H: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Integers v (H,), a step t and the norm of the rest f: the query is t v + f."""
        step = max(float(np.abs(q_H).max()) / LEVELS, SMALLEST)
        code_H = np.rint(q_H / step)
        return code_H, step, _norm(q_H - step * code_H)

    def scores(self, code_H: np.ndarray, step: float, bias_P: Tensor) -> Tensor:
        """(1, P) s t u v + bias."""
        # Not [None]: of a row with stride 0 the product is uninitialised memory.
        code_1H = torch.from_numpy(code_H.astype(np.int8)).view(1, -1)
        return torch.addcmul(bias_P, self.scale_P, torch._int_mm(code_1H, self.code_PH.T), value=step)


class FloatWeights:
    """Weights as they are, one column for each item: for one query, a library's products are faster in this order.

    Args:
        weight_IH: the items' weights.
        n_padded: P.

    Attributes:
        scale_P: |w| of each row.
        norm, error, max_queries: as of ``IntegerWeights``; nothing is rounded.
    """

    norm, error = 1.0, 0.0

    def __init__(self, weight_IH: Tensor, n_padded: int) -> None:
        n_items, width = weight_IH.shape
        self.weight_HP = torch.zeros(width, n_padded)
        self.weight_HP[:, :n_items] = weight_IH.T
        self.max_queries = 8 if self.weight_HP.nbytes <= CACHED_BYTES else 3
        self.scale_P = torch.full((n_padded,), SMALLEST)
        for first in range(0, n_items, BLOCK_ROWS):
            block_nH = weight_IH[first : first + BLOCK_ROWS]
            self.scale_P[first : first + len(block_nH)] = block_nH.double().norm(dim=1).clamp(min=SMALLEST)

    def round_query(self, q_H: np.ndarray) -> tuple[np.ndarray, float, float]:
        """The query itself, without a rest."""
        return q_H, 1.0, 0.0

    def scores(self, code_H: np.ndarray, step: float, bias_P: Tensor) -> Tensor:
        """(1, P) products + bias."""
        return torch.addmm(bias_P, torch.from_numpy(code_H.astype(np.float32)).view(1, -1), self.weight_HP)


class ItemScreen:
    """Finds the best items by weight @ query + bias.

    With a row w of the weights as s u + e and a query q as t v + f, |w q - s t u v| <= |w| |f| + |e| |t v|
    (Cauchy-Schwarz); rounding adds at most (H + 8) eps of |w| |q| + |s t u v| + |bias|.

    Args:
        weight_IH: the items' weights.
        bias_I: the items' biases.
        as_integers: rough scores are products of integers, otherwise of float32.
    """

    def __init__(self, weight_IH: Tensor, bias_I: Tensor, as_integers: bool) -> None:
        self.weight_IH, self.bias_I = weight_IH.numpy(), bias_I.numpy()
        # Item g + n G is in group g; the last items are padding, with a score of minus infinity.
        n_items = len(weight_IH)
        n_padded = -(-n_items // GROUP_ITEMS) * GROUP_ITEMS
        self.rough = (IntegerWeights if as_integers else FloatWeights)(weight_IH, n_padded)
        self.bias_P = torch.full((n_padded,), -torch.inf)
        self.bias_P[:n_items] = bias_I
        self.largest_scale, self.largest_bias = float(self.rough.scale_P.max()), float(bias_I.abs().max())
        self.scale_NG = self.rough.scale_P.numpy().reshape(GROUP_ITEMS, -1)
        self.largest_scale_G = self.scale_NG.max(0)

    @torch.inference_mode()
    def top(
        self, query_H: Tensor, k: int, exclude: Callable[[Tensor], None] | None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The list of ``top_items``, of scores that are computed in float64 and rounded once.

        Args:
            query_H: the query.
            k: K.
            exclude: sets scores (1, I) of items that are left out to minus infinity; None: no item is.

        Returns:
            scores and items, at most K. None: the product of all weights is needed, since there are too many
            candidates or scores might not be finite.
        """
        n_items, width = self.weight_IH.shape
        q_H = query_H.numpy().astype(np.float64)
        norm = _norm(q_H)
        if k > n_items // GROUP_ITEMS or not norm < LARGEST:  # NaN, too
            return None
        code_H, step, norm_error = self.rough.round_query(q_H)
        # Of any item, divided by its scale.
        product = (self.rough.norm + self.rough.error) * (norm + norm_error)
        bound = self.rough.norm * norm_error + self.rough.error * (norm + norm_error)
        bound += EPS * (width + 8) * (self.rough.norm * norm + product + bound)
        if not self.largest_scale * (product + 4 * bound) + self.largest_bias < LARGEST:
            return None
        rough_1P = self.rough.scores(code_H, step, self.bias_P)
        if exclude is not None:
            exclude(rough_1P[:, :n_items])
        rough_NG = rough_1P.numpy().reshape(GROUP_ITEMS, -1)
        best_G, margin_G = rough_NG.max(0), bound * self.largest_scale_G
        least_G = best_G - margin_G
        least_G.partition(-k)
        # K items have at least this score.
        least = max(float(least_G[-k]), -LARGEST) - EPS * (width + 8) * self.largest_bias
        (group_C,) = (best_G + margin_G >= least).nonzero()
        member_C, place_C = (rough_NG.take(group_C, 1) + bound * self.scale_NG.take(group_C, 1) >= least).nonzero()
        if len(member_C) > n_items // MAX_SHARE:
            return None
        item_C = member_C * len(best_G) + group_C[place_C]
        score_C = self.weight_IH.take(item_C, 0).astype(np.float64) @ q_H + self.bias_I[item_C]
        score_C = score_C.astype(np.float32)
        best_K = (-score_C).argsort(kind="stable")[:k]
        return score_C[best_K], item_C[best_K]


def _norm(vector: np.ndarray) -> float:
    return math.sqrt(vector @ vector)

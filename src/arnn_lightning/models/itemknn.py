"""ItemKNN (paper 4.4.2, its reference 8): the items most similar to the previous one, by cosine of session vectors.

Similarity of i and j = sessions with both / ((n_i + lambda)^alpha (n_j + lambda)^(1 - alpha)), n the sessions with an
item; alpha = .5 and lambda = 0 is the cosine of binary session vectors. Differs from the 2016 baselines, which count
an item once per event: here vectors are binary, the textbook's cosine.

I items, K neighbours.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from arnn_lightning.batch import State, StepInput
from arnn_lightning.errors import UserError
from arnn_lightning.models.base import Recommender, RunSettings
from arnn_lightning.preprocessing.sessions import Sessions

_PAIRS_PER_BLOCK = 1 << 22  # pairs of items that are counted at once: bounds the memory, long sessions or not


class ItemNeighbours(Recommender):
    """Scores depend on the last item alone; items that are none of its neighbours score 0.

    Args:
        name: the model's name.
        dims: ``n_items``.
        neighbours: neighbours kept per item.
        settings: of the run.
    """

    def __init__(self, name: str, dims: dict[str, Any], neighbours: int, settings: RunSettings) -> None:
        super().__init__(name, dims["n_items"], settings)
        if neighbours < 1:
            raise UserError(f"model.neighbours={neighbours}: must be 1 or more")
        self.neighbours = min(neighbours, self.n_items)
        # Places without a neighbour have the item itself with similarity 0.
        self.register_buffer("neighbour", torch.arange(self.n_items)[:, None].repeat(1, self.neighbours))
        self.register_buffer("similarity", torch.zeros(self.n_items, self.neighbours))
        self.neighbour: Tensor
        self.similarity: Tensor

    def keep_largest(self, rows: np.ndarray, columns: np.ndarray, value: np.ndarray) -> None:
        """Sets the neighbours of the items ``rows`` to those ``columns`` with the largest values."""
        order = np.lexsort((columns, -value, rows))  # ties between neighbours go to the smaller code
        rows, columns, value = rows[order], columns[order], value[order]
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)
        in_topk = place < self.neighbours
        where = (torch.from_numpy(rows[in_topk].astype(np.int64)), torch.from_numpy(place[in_topk]))
        self.neighbour[where] = torch.from_numpy(columns[in_topk].astype(np.int64))
        self.similarity[where] = torch.from_numpy(value[in_topk]).to(self.similarity.dtype)

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        return step.item[:, None], state

    def item_similarity(self, item_N: Tensor) -> Tensor:
        return self.score(item_N[:, None])

    def score(self, query_NH: Tensor) -> Tensor:
        item_N = query_NH[:, 0]
        score_NI = self.similarity.new_zeros(len(item_N), self.n_items)
        return score_NI.scatter_add_(1, self.neighbour[item_N], self.similarity[item_N])


class ItemKNN(ItemNeighbours):
    """Recommends the items most similar to the last one (paper 4.4.2; Linden et al. 2003, 10.1109/MIC.2003.1167344).

    Args:
        name: the model's name.
        dims: ``n_items``.
        neighbours: neighbours kept per item.
        shrinkage: lambda, added to both items' counts.
        alpha: in [0, 1]; the score of j after i is n_ij / ((n_i + lambda)^alpha (n_j + lambda)^(1 - alpha));
            with 0.5 and lambda 0 the cosine.
        settings: of the run.
    """

    def __init__(
        self,
        name: str,
        dims: dict[str, Any],
        neighbours: int,
        shrinkage: float,
        alpha: float,
        settings: RunSettings,
    ) -> None:
        super().__init__(name, dims, neighbours, settings)
        self.shrinkage = shrinkage
        self.alpha = alpha

    def fit(self, sessions: Sessions) -> None:
        shape = (len(sessions.session), self.n_items)
        row = np.repeat(np.arange(shape[0]), sessions.lengths)
        seen = sparse.csr_array((np.ones(len(row), np.float32), (row, sessions.item)), shape=shape)
        seen.sum_duplicates()
        seen.data[:] = 1
        support = np.asarray(seen.sum(0), np.float64) + self.shrinkage
        row_scale, column_scale = (
            np.power(support, -power, where=support > 0, out=np.zeros_like(support))
            for power in (self.alpha, 1 - self.alpha)
        )
        by_item = seen.T.tocsr()
        n_pairs = np.cumsum(by_item @ np.diff(seen.indptr))  # of an item's row with those of all its sessions
        last = 0
        while last < self.n_items:
            first, counted = last, n_pairs[last - 1] if last else 0
            last = max(first + 1, int(np.searchsorted(n_pairs, counted + _PAIRS_PER_BLOCK, side="right")))
            cooccurrence = (by_item[first:last] @ seen).tocsr()
            self._keep_most_similar(cooccurrence, first, row_scale, column_scale)

    def _keep_most_similar(
        self, cooccurrence: sparse.csr_array, first: int, row_scale: np.ndarray, column_scale: np.ndarray
    ) -> None:
        rows = np.repeat(np.arange(cooccurrence.shape[0]), np.diff(cooccurrence.indptr)) + first
        columns = cooccurrence.indices
        value = cooccurrence.data * row_scale[rows] * column_scale[columns]
        value[rows == columns] = -1
        is_candidate = value > 0
        for start, end in pairwise(cooccurrence.indptr):
            if end - start > 2 * self.neighbours:  # sorting all neighbours of a long row would cost the most
                row = value[start:end]
                is_candidate[start:end] &= row >= np.partition(row, -self.neighbours)[-self.neighbours]
        self.keep_largest(rows[is_candidate], columns[is_candidate], value[is_candidate])

"""ItemKNN (paper 4.4.2, its reference 8): the items most similar to the previous one, by cosine of session vectors.

Similarity of i and j = sessions with both / ((n_i + lambda)^alpha (n_j + lambda)^(1 - alpha)), n the sessions with an
item; alpha = .5 and lambda = 0 is the cosine of binary session vectors. Differs from the 2016 baselines, which count
an item once per event: here vectors are binary, the textbook's cosine.

I items, K neighbours.
"""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from arnn_lightning.batch import Step
from arnn_lightning.errors import UserError
from arnn_lightning.models.base import SessionModel, State
from arnn_lightning.preprocessing.sessions import Sessions

_ROWS = 4_096  # rows of the similarity matrix held at once


class ItemKNN(SessionModel):
    """Scores come from the last item alone; items that are no neighbour score 0.

    Args:
        name: the model's name.
        dims: ``n_items``.
        neighbours: neighbours kept per item.
        shrinkage: lambda, added to both items' counts.
        alpha: 0.5 for the symmetric cosine.
    """

    def __init__(self, name: str, dims: dict[str, int], neighbours: int, shrinkage: float, alpha: float) -> None:
        super().__init__(name, dims["n_items"])
        if neighbours < 1:
            raise UserError(f"model.neighbours={neighbours}: at least 1")
        self.neighbours = min(neighbours, self.n_items)
        self.shrinkage = shrinkage
        self.alpha = alpha
        # Slots without a neighbour point at the item itself with similarity 0.
        self.register_buffer("neighbour", torch.arange(self.n_items)[:, None].repeat(1, self.neighbours))
        self.register_buffer("similarity", torch.zeros(self.n_items, self.neighbours))
        self.neighbour: Tensor
        self.similarity: Tensor

    def count(self, sessions: Sessions) -> None:
        shape = (len(sessions.session), self.n_items)
        row = np.repeat(np.arange(shape[0]), sessions.lengths)
        seen = sparse.csr_array((np.ones(len(row), np.float32), (row, sessions.item)), shape=shape)
        seen.sum_duplicates()
        seen.data[:] = 1
        support = np.asarray(seen.sum(0), np.float64) + self.shrinkage
        left, right = (
            np.power(support, -power, where=support > 0, out=np.zeros_like(support))
            for power in (self.alpha, 1 - self.alpha)
        )
        by_item = seen.T.tocsr()
        for first in range(0, self.n_items, _ROWS):
            together = (by_item[first : first + _ROWS] @ seen).tocsr()
            self._keep_nearest(together, first, left, right)

    def _keep_nearest(self, together: sparse.csr_array, first: int, left: np.ndarray, right: np.ndarray) -> None:
        rows = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr)) + first
        columns = together.indices
        value = together.data * left[rows] * right[columns]
        apart = rows != columns
        rows, columns, value = rows[apart], columns[apart], value[apart]
        order = np.lexsort((columns, -value, rows))  # ties between neighbours go to the smaller code
        rows, columns, value = rows[order], columns[order], value[order]
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)
        near = place < self.neighbours
        where = (torch.from_numpy(rows[near].astype(np.int64)), torch.from_numpy(place[near]))
        self.neighbour[where] = torch.from_numpy(columns[near].astype(np.int64))
        self.similarity[where] = torch.from_numpy(value[near].astype(np.float32))

    def represent(self, step: Step, state: State) -> tuple[Tensor, State]:
        return step.item[:, None], state

    def score(self, query_NH: Tensor) -> Tensor:
        item_N = query_NH[:, 0]
        score_NI = self.similarity.new_zeros(len(item_N), self.n_items)
        return score_NI.scatter_add_(1, self.neighbour[item_N], self.similarity[item_N])

"""Sequential rules (SR): Kamehkhosh et al. 2017; Ludewig & Jannach 2018, UMUAI 28 (arXiv 1803.09587).

I items.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse

from arnn_lightning.models.base import RunSettings
from arnn_lightning.models.decay import DECAYS
from arnn_lightning.models.itemknn import ItemNeighbours
from arnn_lightning.preprocessing.sessions import Sessions

_ROWS_PER_BLOCK = 512  # items whose rules are counted at once


class SR(ItemNeighbours):
    """Scores from the last item i alone: every j that follows i by d events in a training session adds weighting(d).

    As in session-rec, of each item's rules only the strongest are kept, which the article does not state.

    Args:
        name: the model's name.
        dims: ``n_items``.
        steps: the largest distance d.
        weighting: of a distance, see ``DECAYS``; ``div`` is the article's 1 / d.
        neighbours: rules kept per item (session-rec's ``pruning``); equal ones by smaller code.
        settings: of the run.
    """

    def __init__(
        self,
        name: str,
        dims: dict[str, Any],
        steps: int,
        weighting: str,
        neighbours: int,
        settings: RunSettings,
    ) -> None:
        super().__init__(name, dims, neighbours, settings)
        self.steps = steps
        self.weighting = DECAYS[weighting]

    def fit(self, sessions: Sessions) -> None:
        item, session_end = sessions.item, np.repeat(sessions.offset[1:], sessions.lengths)
        by_item = np.argsort(item, kind="stable")
        blocks = np.arange(0, self.n_items + _ROWS_PER_BLOCK, _ROWS_PER_BLOCK)
        for first, last in pairwise(np.searchsorted(item[by_item], blocks)):
            event = by_item[first:last]
            following = event[:, None] + np.arange(1, self.steps + 1)
            place, step = np.nonzero(following < session_end[event, None])
            pairs = (item[event[place]], item[following[place, step]])
            rules = (
                sparse.coo_array((self.weighting(1 + step), pairs), shape=(self.n_items, self.n_items)).tocsr().tocoo()
            )
            self.keep_largest(rules.row, rules.col, rules.data)

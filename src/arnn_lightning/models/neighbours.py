"""The search for similar sessions that SKNN, VSKNN, STAN and VSTAN share, for many queries at once.

The score of an item j after the session s, as session-rec (rn5l/session-rec, 5dcd583) computes it:

    (1 + idf_weight idf(j)) sum over neighbours n with j of similarity(s, n) recency(s, n) closeness(n, j)

Candidates are the ``sample_size`` most recent training sessions with an item of s; neighbours are the most similar of
them, and of equally similar ones the more recent. similarity(s, n) is the sum, over the items that both have, of the
weight of the item's last event in s, over the root of the number of items of n (cosine; the root over s is the same for
all n). The models differ in these weights. Items of s stay in the ranking (V10). A session's time is its last event's.

N predictions, M of a block, L events of a window, D their distinct items, I items, S training sessions, E their
distinct items, P candidates of all queries, K neighbours of all queries, F items of all of these, C context categories.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from arnn_lightning.batch import Contexts, State, StepInput
from arnn_lightning.models.base import RunSettings
from arnn_lightning.models.window import WindowRecommender, as_scores
from arnn_lightning.preprocessing.sessions import DAY, Sessions

_BLOCK_QUERIES, _BLOCK_ITEMS = 256, 1 << 18  # scored at once: predictions, items of their neighbours


class SessionNeighbours(WindowRecommender):
    """Scores items by the training sessions most similar to the current one (session-based kNN).

    Unless a subclass sets weights, every item of the window, and every neighbour, counts the same.

    Only sessions that can be candidates are kept: those that are among the ``sample_size`` most recent of an item.

    Args:
        name: the model's name.
        dims: ``n_items``, ``single_sizes``, ``n_binary``.
        neighbours: k.
        sample_size: candidates per prediction.
        last_n_events: L; older events of a session have no effect.
        settings: of the run.

    Attributes:
        is_cosine: whether a similarity is divided by the root of the neighbour's number of items.
        decay_days: a similarity falls by a factor of e per ``decay_days`` of the neighbour's age; None: it does not.
        idf_weight: of an item's inverse document frequency, log(sessions / events of the item).
        context_weight: a similarity is multiplied by 1 + context_weight x the cosine of both users' sets of attributes.
    """

    is_cosine = True
    decay_days: float | None = None
    idf_weight = 0.0
    context_weight = 0.0

    def __init__(
        self,
        name: str,
        dims: dict[str, Any],
        neighbours: int,
        sample_size: int,
        last_n_events: int,
        settings: RunSettings,
    ) -> None:
        super().__init__(name, dims["n_items"], last_n_events, settings)
        self.neighbours = neighbours
        self.sample_size = sample_size
        *first_category, n_single = np.cumsum([0, *dims["single_sizes"]]).tolist()
        self.n_single, self.n_categories = n_single, n_single + dims["n_binary"]
        self.register_buffer("first_category", torch.tensor(first_category), persistent=False)
        self.first_category: Tensor  # of every single-valued field
        for buffer, dtype in (
            ("item", torch.int32),  # (E,) distinct items of the sessions, the oldest session first
            ("position", torch.int32),  # (E,) of the item's last event in its session, 1 the session's first event
            ("offset", torch.int64),  # (S + 1,) where each session starts, and E
            ("time", torch.int64),  # (S,) unix seconds
            ("idf", torch.float64),  # (I,)
            ("category", torch.int32),  # (S, fields) of the sessions' users, ``n_categories`` where unknown
        ):
            self.register_buffer(buffer, torch.zeros(0, dtype=dtype))
        self._index: SessionIndex | None = None

    # The weights that a model defines; arrays in, arrays of the same shape out

    def event_weight(self, step: np.ndarray, length: np.ndarray) -> np.ndarray:
        """Weight of an event of the window in similarities, ``step`` 1 for the last of ``length`` events."""
        return np.ones(len(step))

    def recency(self, step: np.ndarray) -> np.ndarray | None:
        """Weight of a neighbour whose most recent shared item is ``step`` events back; None: 1."""
        return None

    def closeness(self, distance: np.ndarray) -> np.ndarray | None:
        """Weight of an item ``distance`` events from the neighbour's last shared item; None: 1."""
        return None

    # Fitting

    def fit(self, sessions: Sessions) -> None:
        by_time = np.lexsort((sessions.session, sessions.time))
        length = sessions.lengths[by_time]
        session, position = _ranges(length)
        event_item = sessions.item[sessions.offset[by_time][session] + position]
        # np.unique returns the first of equal values: from the end, that is an item's last event in the session.
        entry = len(session) - 1 - np.unique((session * self.n_items + event_item)[::-1], return_index=True)[1]
        session, item, position = session[entry], event_item[entry], 1 + position[entry]
        is_kept = np.bincount(session[_most_recent(item, self.sample_size)], minlength=len(length)) > 0
        entry = np.flatnonzero(is_kept[session])
        self.item, self.position = (torch.from_numpy(values[entry]).int() for values in (item, position))
        sizes = np.bincount(session, minlength=len(length))[is_kept]
        self.offset = torch.from_numpy(np.cumsum(np.append(0, sizes)))
        self.time = torch.from_numpy(sessions.time[by_time][is_kept])
        events = np.bincount(sessions.item, minlength=self.n_items)
        self.idf = torch.from_numpy(np.log(len(length) / np.maximum(events, 1)))
        self.category = torch.zeros(len(sizes), 0, dtype=torch.int32)
        if self.context_weight:
            user = torch.from_numpy(sessions.user[by_time][is_kept])
            self.category = self._categories(self.contexts_of(user.to(self.device))).int()
        self._index = None

    def _categories(self, contexts: Contexts) -> Tensor:
        """Known attributes as numbers below ``n_categories``, and that number for the unknown ones (code 0)."""
        single = torch.where(contexts.single > self.first_category, contexts.single, self.n_categories)
        active = torch.where(contexts.active >= 0, contexts.active + self.n_single, self.n_categories)
        return torch.cat([single, active], 1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Sizes depend on the training sessions, which only the checkpoint contains."""
        for name in ("item", "position", "offset", "time", "category"):
            saved = state_dict.get(f"{prefix}{name}")
            if saved is not None:
                setattr(self, name, torch.empty_like(saved, device=self.device))
        self.idf = torch.zeros(self.n_items, dtype=torch.float64, device=self.device)
        self._index = None
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @property
    def index(self) -> "SessionIndex":
        if self._index is None:
            item, position, offset, time, category = (
                part.cpu().numpy() for part in (self.item, self.position, self.offset, self.time, self.category)
            )
            n_sessions, length = len(time), np.diff(offset)
            session = np.repeat(np.arange(n_sessions, dtype=np.int32), length)
            listed = np.flatnonzero(_most_recent(item, self.sample_size))
            weight = (1 / np.sqrt(length) if self.is_cosine else np.ones(n_sessions))[session[listed]]
            latest_time = np.zeros(self.n_items, np.int64)
            latest_time[item] = time[session]  # sessions are in the order of their times
            self._index = SessionIndex(
                sparse.csr_array((position, item, offset.astype(np.int32)), shape=(n_sessions, self.n_items)),
                int(position.max(initial=0)),
                time,
                category,
                sparse.csr_array((weight, (item[listed], session[listed])), shape=(self.n_items, n_sessions)),
                latest_time,
            )
        return self._index

    # Scores

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        window_BL, state = super().encode(step, state)
        if not self.context_weight:
            return window_BL, state
        return torch.cat([window_BL, self._categories(step.contexts)], 1), state

    def score(self, query_NH: Tensor) -> Tensor:
        query_NH, device = query_NH.cpu(), query_NH.device
        score_NI = np.empty((len(query_NH), self.n_items))
        # In blocks whose arrays stay in the processor's cache, also where sessions are long.
        n_items = self.neighbours * len(self.item) // max(1, len(self.time))
        size = max(1, min(_BLOCK_QUERIES, _BLOCK_ITEMS // max(1, n_items)))
        for first in range(0, len(query_NH), size):
            rows = slice(first, first + size)
            self._score_block(query_NH[rows].numpy(), score_NI[rows])
        return as_scores(score_NI, device)

    def _score_block(self, query_MH: np.ndarray, score_MI: np.ndarray) -> None:
        """Writes the scores of the queries into ``score_MI``."""
        window_ML, category_MF = query_MH[:, : self.last_n_events], query_MH[:, self.last_n_events :]
        index, n_rows = self.index, len(query_MH)
        # How many events back each item's last event is, 1 the window's last; more than L: not in the window.
        step_MI = np.full((n_rows, self.n_items), self.last_n_events + 1, np.min_scalar_type(self.last_n_events + 1))
        row_D, column_D = window_ML.nonzero()
        item_D, step_D = window_ML[row_D, column_D] - 1, self.last_n_events - column_D
        length_D = np.bincount(row_D, minlength=n_rows)[row_D]
        step_MI[row_D, item_D] = step_D  # of several events of an item the last stays
        is_last_D = step_MI[row_D, item_D] == step_D
        row_D, item_D, step_D, length_D = row_D[is_last_D], item_D[is_last_D], step_D[is_last_D], length_D[is_last_D]
        weight_D = self.event_weight(step_D, length_D)

        first_D = np.searchsorted(row_D, np.arange(n_rows + 1)).astype(np.int32)
        weights = sparse.csr_array((weight_D, item_D.astype(np.int32), first_D), shape=step_MI.shape)
        candidates = weights @ index.weight_of_session
        first_P, session_P, similarity_P = candidates.indptr, candidates.indices, candidates.data
        n_pairs_M = np.diff(first_P)
        oldest_M = _largest(session_P, first_P, self.sample_size)
        if oldest_M.any():
            similarity_P[session_P < np.repeat(oldest_M, n_pairs_M)] = 0  # adds nothing to any score
        if self.decay_days is not None:
            # The current session's time cancels out; relative to the latest candidate nothing underflows.
            latest_M = np.zeros(n_rows, np.int64)
            np.maximum.at(latest_M, row_D, index.latest_time[item_D])
            age_P = np.repeat(latest_M, n_pairs_M) - index.time.take(session_P)
            similarity_P *= np.exp(age_P / (-self.decay_days * DAY))
        if self.context_weight:
            row_P = np.repeat(np.arange(n_rows), n_pairs_M)
            similarity_P *= 1 + self.context_weight * self._agreement(category_MF, row_P, session_P)
        near_P = _most_similar(session_P, similarity_P, first_P, self.neighbours)
        first_K = np.searchsorted(near_P, first_P)
        self._sum_items(step_MI, session_P[near_P], similarity_P[near_P], first_K, score_MI)

    def _sum_items(
        self,
        step_MI: np.ndarray,
        session_K: np.ndarray,
        similarity_K: np.ndarray,
        first_K: np.ndarray,
        score_MI: np.ndarray,
    ) -> None:
        """Writes into ``score_MI`` the sums over the items of the neighbours ``session_K``.

        ``first_K`` (M + 1,): where those of each query start, and the end.
        """
        events = self.index.position[session_K]
        item_F, position_F, first_F = events.indices, events.data, events.indptr[first_K]
        length_K = np.diff(events.indptr)
        recency = self.recency(np.arange(1, self.last_n_events + 1))
        closeness = self.closeness(np.arange(self.index.longest + 1))
        if recency is None and closeness is None:
            value_F = np.repeat(similarity_K, length_K)
        else:
            neighbour_F = np.repeat(np.arange(len(session_K)), length_K)
            row_F = np.repeat(np.arange(0, step_MI.size, self.n_items), np.diff(first_F))
            step_F = step_MI.take(row_F + item_F)
            shared_F = np.flatnonzero(step_F <= self.last_n_events)
            if recency is not None:
                latest_K = np.full(len(session_K), self.last_n_events, step_F.dtype)
                np.minimum.at(latest_K, neighbour_F[shared_F], step_F[shared_F])
                similarity_K = similarity_K * recency.take(latest_K - 1)
            value_F = similarity_K.take(neighbour_F)
            if closeness is not None:
                last_K = np.zeros(len(session_K), position_F.dtype)
                np.maximum.at(last_K, neighbour_F[shared_F], position_F[shared_F])
                value_F *= closeness.take(np.abs(position_F - last_K.take(neighbour_F)))
        if self.idf_weight:
            value_F *= (1 + self.idf_weight * self.idf.cpu().numpy()).take(item_F)
        sparse.csr_array((value_F, item_F, first_F), shape=step_MI.shape).toarray(out=score_MI)

    def _agreement(self, category_MF: np.ndarray, row_P: np.ndarray, session_P: np.ndarray) -> np.ndarray:
        """(P,) cosine of the users' sets of known attributes, 0 where one of the two has none."""
        has_MC = np.zeros((len(category_MF), self.n_categories + 1), np.float32)
        np.put_along_axis(has_MC, category_MF, 1, 1)
        has_MC[:, -1] = 0
        has_MC /= np.sqrt(np.maximum(has_MC.sum(1, keepdims=True), 1))
        shared_P = np.zeros(len(row_P))
        for category_S in self.index.category.T:
            shared_P += has_MC[row_P, category_S[session_P]]
        known_S = (self.index.category < self.n_categories).sum(1)
        cosine_P: np.ndarray = shared_P / np.sqrt(np.maximum(known_S, 1))[session_P]
        return cosine_P


@dataclass(frozen=True)
class SessionIndex:
    """The training sessions, and what is derived from them."""

    position: sparse.csr_array  # (S, I) of the items' last events in the sessions
    longest: int  # events
    time: np.ndarray  # (S,)
    category: np.ndarray  # (S, fields)
    weight_of_session: sparse.csr_array  # (I, S) of the item's most recent sessions
    latest_time: np.ndarray  # (I,) of the item's most recent session


def _ranges(length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every element of arrays of these lengths, one after the other: which array, and its place in it.

    >>> [part.tolist() for part in _ranges(np.array([2, 1]))]
    [[0, 0, 1], [0, 1, 0]]
    """
    array = np.repeat(np.arange(len(length)), length)
    return array, np.arange(len(array)) - (np.cumsum(length) - length)[array]


def _most_recent(item: np.ndarray, count: int) -> np.ndarray:
    """Whether each entry is among the last ``count`` of its item.

    >>> _most_recent(np.array([7, 7, 2, 7]), 2).tolist()
    [False, True, True, True]
    """
    by_item = np.argsort(item, kind="stable")
    end = np.searchsorted(item[by_item], item[by_item], side="right")
    is_recent = np.empty(len(item), bool)
    is_recent[by_item] = end - np.arange(len(item)) <= count
    return is_recent


def _most_similar(session_P: np.ndarray, similarity_P: np.ndarray, first_M: np.ndarray, count: int) -> np.ndarray:
    """The places of the ``count`` most similar candidates of each row, of equal ones the more recent.

    >>> _most_similar(np.array([4, 6, 5, 9]), np.array([0.5, 0.5, 0.7, 0.1]), np.array([0, 3, 4]), 2).tolist()
    [1, 2, 3]
    """
    # As one number they sort by similarity first.
    key_P = np.empty(len(session_P), [("session", "<u4"), ("similarity", "<f4")])
    key_P["session"], key_P["similarity"] = session_P, similarity_P
    number_P = key_P.view("<u8")
    return np.flatnonzero(number_P >= np.repeat(_largest(number_P, first_M, count), np.diff(first_M)))


def _largest(value_P: np.ndarray, first_M: np.ndarray, count: int) -> np.ndarray:
    """(M,) the ``count``-th largest value of each row, 0 where a row has no more than ``count``.

    Args:
        value_P: the rows' values, one row after the other.
        first_M: where each row starts, and the end.
        count: from 1.

    >>> _largest(np.array([3, 1, 2, 9]), np.array([0, 3, 4]), 2).tolist()
    [2, 0]
    """
    largest_M = np.zeros(len(first_M) - 1, value_P.dtype)
    row_R = np.flatnonzero(np.diff(first_M) > count)
    value_P = value_P.copy() if len(row_R) else value_P
    for row, first, last in zip(row_R.tolist(), first_M[row_R].tolist(), first_M[row_R + 1].tolist(), strict=True):
        row_P = value_P[first:last]
        row_P.partition(last - first - count)
        largest_M[row] = row_P[last - first - count]
    return largest_M

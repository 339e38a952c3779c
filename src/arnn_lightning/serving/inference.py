"""A trained model on codes: sessions -> queries -> the best items.

N sessions, H width of a query, I items, K length of a list.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from arnn_lightning.batch import Contexts, StepInput, no_contexts
from arnn_lightning.evaluation.ranking import top_items
from arnn_lightning.evaluation.screening import ItemScreen
from arnn_lightning.loading.contexts import context_codes, has_profile, item_context_codes
from arnn_lightning.models.base import Recommender
from arnn_lightning.models.trained import SessionRecommender
from arnn_lightning.nn.batchnorm import MaskedBatchNorm
from arnn_lightning.nn.product import ProductLayer
from arnn_lightning.nn.table import EmbeddingTable
from arnn_lightning.serving.requests import Request

SCREEN_ITEMS = 10_000  # from which on screening is faster than all scores


class Inference:
    """Computes what depends on weights alone once, then queries and lists.

    Args:
        model: with its weights and ``first_items``; it is not trained any more.
        items: one row per item code: events (in training) and context codes.
        dims: sizes of the data.
    """

    def __init__(self, model: Recommender, items: pl.DataFrame, dims: Mapping[str, Any]) -> None:
        self.model = model
        lists_profiles = model.first_items is not None and model.first_items["answer"] == "pnn"
        profile_model = model.profile_model if lists_profiles and isinstance(model, SessionRecommender) else None
        models = [model] if profile_model is None else [model, profile_model]
        for part in models:
            part.eval().requires_grad_(False)
            if isinstance(part, SessionRecommender) and part.uses_item_contexts:
                part.set_item_contexts(item_context_codes(items, dims))
        for module in {module for part in models for module in part.modules()}:  # they may share an encoder
            if isinstance(module, MaskedBatchNorm | ProductLayer | EmbeddingTable):
                module.fold()
        self._single_sizes: list[int] = list(dims["single_sizes"])
        self._first_category = [0, *accumulate(self._single_sizes)][:-1]
        self._popularity_I = torch.from_numpy(items["events"].to_numpy().astype(np.float32))
        self._score_profiles = None if profile_model is None else profile_model.profile_scorer(self._popularity_I)
        self._screen: ItemScreen | None = None

    # Contexts

    def contexts_of_rows(self, profiles: pl.DataFrame, rows: np.ndarray) -> Contexts:
        """The contexts (N, ...) of rows of ``profiles``; -1 for unknown ones."""
        if not self.model.uses_contexts or not len(rows):
            return no_contexts(len(rows))
        is_known = rows >= 0
        codes = context_codes(profiles[rows[is_known]], self._single_sizes)
        place = torch.from_numpy(np.where(is_known, is_known.cumsum() - 1, is_known.sum()))
        return Contexts(codes.single[place], codes.active[place])

    def contexts_of_codes(self, single: Sequence[int], active: Sequence[int]) -> Contexts:
        """The contexts (1, ...) of codes of the single-valued fields, each from 0, and of active binary fields."""
        if not self.model.uses_contexts:
            return no_contexts(1)
        codes = [first + code for first, code in zip(self._first_category, single, strict=True)]
        return Contexts(torch.tensor([codes], dtype=torch.int64), torch.tensor([[*active] or [-1]]))

    @torch.inference_mode()
    def user_terms(self, contexts: Contexts) -> Tensor | None:
        """The part of the encoder that depends on contexts alone, computed once per session."""
        return self.model.encoder.user_terms(contexts) if isinstance(self.model, SessionRecommender) else None

    # Queries

    @torch.inference_mode()
    def queries(self, request: Request, numbers: np.ndarray) -> tuple[Tensor | None, np.ndarray]:
        """Queries (N, H) after the last event of the sessions ``numbers``, and (N,) whether there was one."""
        start, lengths = request.offset[numbers], request.offset[numbers + 1] - request.offset[numbers]
        order = np.argsort(-lengths, kind="stable")  # the sessions that have a further event are the first ones
        order = order[: np.count_nonzero(lengths)]
        has_click_N = lengths > 0
        if not len(order):
            return None, has_click_N
        contexts = self.contexts_of_rows(request.profiles, request.contexts[numbers[order]])
        terms = self.user_terms(contexts)
        state = self.model.initial_state(len(order))
        query_NH: Tensor | None = None
        # Without a memory, the last event alone matters.
        for step in range(int(lengths.max())) if state else [-1]:
            n = np.count_nonzero(lengths[order] > step)
            place = start[order[:n]] + step if state else start[order] + lengths[order] - 1
            inputs = StepInput(
                torch.from_numpy(request.item[place]),
                Contexts(contexts.single[:n], contexts.active[:n]),
                valid=None,
                user_terms=None if terms is None else terms[:n],
            )
            query_nH, state = self.model.encode(inputs, tuple(part[..., :n, :] for part in state))
            if query_NH is None:
                query_NH = query_nH.new_empty(len(numbers), query_nH.shape[1])
            query_NH[torch.from_numpy(order[:n])] = query_nH
        return query_NH, has_click_N

    # Lists

    @torch.inference_mode()
    def first_scores(self, contexts: Contexts) -> Tensor:
        """Scores (N, I) before the first click of sessions with ``contexts``.

        They are those of PNN for the profile, if the checkpoint has this answer and the user has a profile; otherwise
        the numbers of training events.
        """
        score_NI = self._popularity_I.repeat(len(contexts.single), 1)
        if self._score_profiles is not None:
            known_N = has_profile(contexts, torch.tensor(self._first_category, dtype=torch.int64))
            if known_N.any():
                score_NI[known_N] = self._score_profiles(Contexts(contexts.single[known_N], contexts.active[known_N]))
        return score_NI

    @torch.inference_mode()
    def top(
        self,
        query_NH: Tensor | None,
        has_click_N: np.ndarray,
        first: Contexts,
        k: int,
        allowed_I: Tensor | None,
        seen: Sequence[np.ndarray] | None,
    ) -> tuple[Tensor, Tensor]:
        """Scores and items (N, K), the best first; scores are minus infinity where the list is shorter.

        Args:
            query_NH: queries, arbitrary where there was no click; None where there was none at all.
            has_click_N: whether the session has an item of the catalogue.
            first: the contexts of the sessions without one, in their order.
            k: length of the lists.
            allowed_I: which items may be recommended; None: all.
            seen: the item codes of each session that may not; None: all may.
        """
        if query_NH is None or not has_click_N.any():
            score_NI = self.first_scores(first)
        elif has_click_N.all():
            score_NI = self.model.score(query_NH)
        else:
            score_nI = self.model.score(query_NH[torch.from_numpy(has_click_N)])
            score_NI = score_nI.new_empty(len(has_click_N), score_nI.shape[1])
            score_NI[torch.from_numpy(has_click_N)] = score_nI
            score_NI[torch.from_numpy(~has_click_N)] = self.first_scores(first).to(score_nI.dtype)
        exclude = _exclusion(allowed_I, seen)
        if exclude is not None:
            exclude(score_NI)
        return top_items(score_NI, k)

    def prepare_screen(self) -> None:
        """Makes what ``screened_top`` needs, where it is faster: the item vectors once more, or a quarter of them."""
        if not isinstance(self.model, SessionRecommender) or self.model.n_items < SCREEN_ITEMS:
            return
        bias_I = self.model.scorer.bias.weight
        # Elsewhere products of 8-bit integers are no faster.
        as_integers = torch.backends.cpu.get_cpu_capability() == "AVX512"
        self._screen = ItemScreen(self.model.scorer.items.weight[: len(bias_I)], bias_I, as_integers)

    def screened_top(
        self, queries: Sequence[Tensor], k: int, allowed_I: Tensor | None, seen: Sequence[np.ndarray] | None
    ) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """``top`` of queries (1, H), one after the other: scores and items, at most K. None: ``top`` is needed."""
        if self._screen is None or len(queries) > self._screen.rough.max_queries:
            return None
        lists = []
        for number, query_1H in enumerate(queries):
            exclude = _exclusion(allowed_I, None if seen is None else seen[number : number + 1])
            screened = self._screen.top(query_1H[0], k, exclude)
            if screened is None:
                return None
            lists.append(screened)
        return lists

    @torch.inference_mode()
    def similar(self, item_N: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores and items (N, K) of the items most similar to each of ``item_N``, itself left out."""
        score_NI = self.model.item_similarity(item_N)
        score_NI[torch.arange(len(item_N)), item_N] = -torch.inf
        return top_items(score_NI, k)


def _exclusion(allowed_I: Tensor | None, seen: Sequence[np.ndarray] | None) -> Callable[[Tensor], None] | None:
    """A function that sets scores (N, I) of excluded items to minus infinity; None: no item is excluded."""
    if allowed_I is None and seen is None:
        return None

    def exclude(score_NI: Tensor) -> None:
        if allowed_I is not None:
            score_NI[:, ~allowed_I] = -torch.inf
        if seen is not None:
            row = np.repeat(np.arange(len(seen)), [len(codes) for codes in seen])
            score_NI[torch.from_numpy(row), torch.from_numpy(np.concatenate(seen))] = -torch.inf

    return exclude

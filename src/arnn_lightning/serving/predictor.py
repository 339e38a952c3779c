"""Predictor: recommends with a checkpoint. N sessions of a block, H width of a query, I items, K length of a list."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from arnn_lightning.batch import Contexts, StepInput, no_contexts
from arnn_lightning.config import check_targets
from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.ranking import top_items
from arnn_lightning.evaluation.screening import ItemScreen
from arnn_lightning.loading.contexts import context_codes, item_context_codes
from arnn_lightning.models.base import Recommender, RunSettings
from arnn_lightning.models.trained import SessionRecommender
from arnn_lightning.nn.batchnorm import MaskedBatchNorm
from arnn_lightning.nn.product import ProductLayer
from arnn_lightning.nn.table import EmbeddingTable
from arnn_lightning.serving.live import LiveSession, LiveSessions
from arnn_lightning.serving.requests import ITEM_ID, Request, RequestReader, check_length, find_codes, like, to_ids
from arnn_lightning.serving.vocabulary import Vocabulary
from arnn_lightning.training.checkpoint import build_model, checkpoint_file, load_weights, read_checkpoint

OnUnknown = Literal["warn", "raise", "ignore"]
BLOCK_SESSIONS = 1_024
BLOCK_SCORES = 1 << 22  # scores in memory at once, 16 MB
SCREEN_ITEMS = 10_000  # from which on screening is faster than all scores


def load(path: str | Path, trusted_modules: Sequence[str] = ()) -> "Predictor":
    """The model of a checkpoint, ready to recommend; executes nothing that the file contains.

    Args:
        path: a checkpoint, or a run folder, whose best one is read.
        trusted_modules: modules of your own that the checkpoint's config may name, as in ``["mypackage"]``.

    Raises:
        UserError: no checkpoint, a damaged one, or one that names other modules.
    """
    file = checkpoint_file(path)
    checkpoint = read_checkpoint(file)
    metadata = checkpoint["metadata"]
    check_targets(metadata["model"], trusted_modules)
    model = build_model(metadata["model"], RunSettings())
    load_weights(model, checkpoint, file)
    return Predictor(model, Vocabulary(checkpoint.get("vocabulary", {}), file), metadata)


class Predictor:
    """Recommends with a trained model. Ids are those of the log; scores are the model's raw scores.

    The rank of an item is its rank in the evaluation of the model: the place in the full catalogue by score. Items with
    equal scores are listed in the order of the catalogue (sorted ids), so that among ties a rank lies between the
    standard and the conservative one. Sessions without an item of the catalogue get the most popular items of the
    training data, whatever the model and the profile; their scores are numbers of training events.

    Args:
        model: the model with its weights, which is not trained any more.
        vocabulary: ids, categories and users.
        metadata: of the checkpoint.
    """

    def __init__(self, model: Recommender, vocabulary: Vocabulary, metadata: Mapping[str, Any]) -> None:
        self.model = model.eval().requires_grad_(False)
        if isinstance(model, SessionRecommender) and model.uses_item_contexts:
            model.set_item_contexts(item_context_codes(vocabulary.items, metadata["model"]["dims"]))
        for module in model.modules():
            if isinstance(module, MaskedBatchNorm | ProductLayer | EmbeddingTable):
                module.fold()
        self.vocabulary = vocabulary
        self.metadata = metadata
        data = metadata["data"]
        # A model that was trained with unknown contexts only has not learnt the others.
        self.uses_contexts = model.uses_contexts and data["contexts"]["assignment"] != "unknown"
        self.reader = RequestReader(
            vocabulary,
            self.uses_contexts,
            data.get("list_separator", ","),
            data.get("null_values", [""]),
            data.get("date_format"),
            data.get("decimal", "."),
            [data.get("columns", {}).get(key) for key in ("user_in_users", "user")],
        )
        self._single_sizes: list[int] = list(metadata["model"]["dims"]["single_sizes"])
        self._first_category = [0, *accumulate(self._single_sizes)][:-1]
        self._popularity_I = torch.from_numpy(vocabulary.items["events"].to_numpy().astype(np.float32))

    def __repr__(self) -> str:
        return f"Predictor({self.name}, {self.n_items} items, {self.vocabulary.users.height} users)"

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @property
    def n_items(self) -> int:
        """I, the size of the catalogue."""
        return self.model.n_items

    @property
    def attributes(self) -> list[str]:
        """The user attributes that the model uses."""
        return self.vocabulary.attributes if self.uses_contexts else []

    @cached_property
    def model_id(self) -> str:
        """16 hexadecimal digits of a hash of weights and item ids: what identifies the model, wherever its file is."""
        digest = hashlib.sha256()
        for name, weight in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.contiguous().numpy().tobytes())
        digest.update(np.ascontiguousarray(self.vocabulary.items["id"].hash(seed=0).to_numpy()).tobytes())
        return digest.hexdigest()[:16]

    # Many sessions at once

    def recommend(
        self,
        sessions: Any,
        users: Any = None,
        k: int = 20,
        exclude_seen: bool = False,
        items: Sequence[Any] | None = None,
        exclude_items: Sequence[Any] | None = None,
        on_unknown: OnUnknown = "warn",
    ) -> Any:
        """The ``k`` best next items of every session.

        Args:
            sessions: a frame with session_id and item_id, one row per event in its order, or with time; user_id where
                users are known from training or have a row in ``users``. Or a list: the item ids of one session.
            users: a frame with session_id or user_id and the attributes of users whom the training data did not have,
                or who have changed. A multi-valued attribute is a list, or a text with separators as in training.
            k: length of the lists; they are shorter where fewer items are left.
            exclude_seen: leaves out the items of the session.
            items: recommends these only.
            exclude_items: leaves these out.
            on_unknown: what happens where an item, an attribute or a value is not known, and thus ignored. Columns of
                ``sessions`` that are attributes are known, but not used: ``raise`` warns of them, too.

        Returns:
            a frame of the library of ``sessions``: session_id, item_id, score, rank and, where the data set has titles,
            title; sessions in the order of their first events, then those that ``users`` alone has.

        Raises:
            UserError: a missing column, a wrong type, nothing to recommend, or unknown values with ``raise``.
        """
        request = self.read(sessions, users, on_unknown)
        lists = [*self.lists(request, k, exclude_seen, items, exclude_items)]
        return like(pl.concat(lists), sessions)

    def read(self, sessions: Any, users: Any = None, on_unknown: OnUnknown = "warn") -> Request:
        """The codes of sessions and users, as ``recommend`` reads them.

        Args:
            sessions: a frame, or the item ids of one session, as in ``recommend``.
            users: a frame, as in ``recommend``.
            on_unknown: as in ``recommend``.

        Returns:
            the request, for ``lists``.

        Raises:
            UserError: a missing column, a wrong type, or unknown values with ``raise``.
        """
        if on_unknown not in ("warn", "raise", "ignore"):
            raise UserError(f"on_unknown={on_unknown!r}: must be warn, raise or ignore")
        request = self.reader.read(sessions, users)
        if on_unknown == "raise" and (line := request.unknown.line(self.attributes, with_columns=False)):
            raise UserError(line)
        if on_unknown != "ignore" and (line := request.unknown.line(self.attributes)):
            warnings.warn(f"ignored: {line}", stacklevel=3)
        return request

    def lists(
        self,
        request: Request,
        k: int,
        exclude_seen: bool = False,
        items: Sequence[Any] | None = None,
        exclude_items: Sequence[Any] | None = None,
    ) -> Iterator[pl.DataFrame]:
        """The lists of ``recommend`` by blocks of sessions, in bounded memory.

        Args:
            request: what ``read`` returned.
            k: length of the lists.
            exclude_seen: leaves out the items of the session.
            items: recommends these only.
            exclude_items: leaves these out.

        Yields:
            polars frames with the columns of ``recommend``; the first has no rows.

        Raises:
            UserError: ``k`` is not a positive integer, or no item is left to recommend.
        """
        allowed_I = self.allowed_items(items, exclude_items)
        check_length(k)
        yield self._table(request.session_id.clear(), torch.empty(0, 0), torch.empty(0, 0, dtype=torch.int64))
        for first in range(0, len(request.session_id), BLOCK_SESSIONS):
            numbers = np.arange(first, min(first + BLOCK_SESSIONS, len(request.session_id)))
            query_NH, has_click_N = self._encode_block(request, numbers)
            for rows in np.array_split(numbers, -(-len(numbers) * self.n_items // BLOCK_SCORES)):
                rows_N = rows - first
                seen = [request.item[request.offset[row] : request.offset[row + 1]] for row in rows]
                score_NK, item_NK = self.top(
                    query_NH[torch.from_numpy(rows_N)] if query_NH is not None else None,
                    has_click_N[rows_N],
                    k,
                    allowed_I,
                    seen if exclude_seen else None,
                )
                yield self._table(request.session_id[rows], score_NK, item_NK)

    @torch.inference_mode()
    def _encode_block(self, request: Request, numbers: np.ndarray) -> tuple[Tensor | None, np.ndarray]:
        """Queries (N, H) after the last event of the sessions ``numbers``, and (N,) whether there was one."""
        start, lengths = request.offset[numbers], request.offset[numbers + 1] - request.offset[numbers]
        order = np.argsort(-lengths, kind="stable")  # the sessions that have a further event are the first ones
        order = order[: np.count_nonzero(lengths)]
        has_click_N = lengths > 0
        if not len(order):
            return None, has_click_N
        contexts = self.contexts(request.profiles, request.contexts[numbers[order]])
        terms = self.user_terms(contexts)
        state = self.model.initial_state(len(order))
        first = 0 if state else int(lengths.max()) - 1  # without a memory, the last event alone matters
        query_NH: Tensor | None = None
        for step in range(first, int(lengths.max())) if state else [-1]:
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

    def contexts(self, profiles: pl.DataFrame, rows: np.ndarray) -> Contexts:
        """The contexts (N, ...) of rows of ``profiles``; -1 for unknown ones."""
        if not self.model.uses_contexts:
            return no_contexts(len(rows))
        is_known = rows >= 0
        codes = context_codes(profiles[rows[is_known]], self._single_sizes)
        place = torch.from_numpy(np.where(is_known, is_known.cumsum() - 1, is_known.sum()))
        return Contexts(codes.single[place], codes.active[place])

    def contexts_of(self, single: Sequence[int], active: Sequence[int]) -> Contexts:
        """The contexts (1, ...) of codes of the single-valued fields, each from 0, and of active two-valued fields."""
        if not self.model.uses_contexts:
            return no_contexts(1)
        codes = [first + code for first, code in zip(self._first_category, single, strict=True)]
        return Contexts(torch.tensor([codes], dtype=torch.int64), torch.tensor([[*active] or [-1]]))

    def user_terms(self, contexts: Contexts) -> Tensor | None:
        """What the encoder computes from contexts alone, once for all events of a session."""
        return self.model.encoder.user_terms(contexts) if isinstance(self.model, SessionRecommender) else None

    @torch.inference_mode()
    def top(
        self,
        query_NH: Tensor | None,
        has_click_N: np.ndarray,
        k: int,
        allowed_I: Tensor | None,
        seen: Sequence[np.ndarray] | None,
        screen: ItemScreen | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scores and items (N, K), the best first; scores are minus infinity where the list is shorter.

        Args:
            query_NH: queries, arbitrary where there was no click; None where there was none at all.
            has_click_N: whether the session has an item of the catalogue.
            k: length of the lists.
            allowed_I: which items may be recommended; None: all.
            seen: the item codes of each session that may not; None: all may.
            screen: what finds the list of a single session.
        """

        def exclude(score_NI: Tensor) -> None:
            if allowed_I is not None:
                score_NI[:, ~allowed_I] = -torch.inf
            if seen is not None:
                row = np.repeat(np.arange(len(seen)), [len(codes) for codes in seen])
                score_NI[torch.from_numpy(row), torch.from_numpy(np.concatenate(seen))] = -torch.inf

        if screen is not None and query_NH is not None and len(query_NH) == 1 and has_click_N[0]:
            lists = screen.top(query_NH[0], k, exclude)
            if lists is not None:
                return lists
        if query_NH is None or not has_click_N.any():
            score_NI = self._popularity_I.repeat(len(has_click_N), 1)
        elif has_click_N.all():
            score_NI = self.model.score(query_NH)
        else:
            score_nI = self.model.score(query_NH[torch.from_numpy(has_click_N)])
            score_NI = self._popularity_I.to(score_nI.dtype).repeat(len(has_click_N), 1)
            score_NI[torch.from_numpy(has_click_N)] = score_nI
        exclude(score_NI)
        return top_items(score_NI, k)

    def _table(self, key: pl.Series, score_NK: Tensor, item_NK: Tensor) -> pl.DataFrame:
        is_listed_NK = (score_NK > -torch.inf).numpy()
        items = self.vocabulary.items[item_NK.numpy()[is_listed_NK]]
        columns = {
            key.name: key.gather(np.repeat(np.arange(len(key)), is_listed_NK.sum(1))),
            ITEM_ID: items["id"],
            "score": score_NK.numpy()[is_listed_NK].astype(np.float32),  # counted models have float64
            "rank": (is_listed_NK.cumsum(1))[is_listed_NK],
        }
        return pl.DataFrame(columns | ({"title": items["title"]} if "title" in items.columns else {}))

    # One click after the other

    def make_screen(self) -> ItemScreen | None:
        """What finds the list of a single session; None where all scores are as fast."""
        if not isinstance(self.model, SessionRecommender) or self.n_items < SCREEN_ITEMS:
            return None
        if torch.backends.cpu.get_cpu_capability() != "AVX512":  # products of 8-bit integers take as long as of floats
            return None
        bias_I = self.model.scorer.bias.weight
        return ItemScreen(self.model.scorer.items.weight[: len(bias_I)], bias_I)

    @cached_property
    def live(self) -> LiveSessions:
        """Clicks and lists many live sessions in one batch: ``live.click(sessions, items)``, ``live.top(sessions)``."""
        return LiveSessions(self)

    def session(
        self, profile: Mapping[str, Any] | None = None, user: Any = None, state: bytes | None = None
    ) -> LiveSession:
        """A live session of a profile, of a user of the training data, of nobody known, or one continued.

        Args:
            profile: attribute -> value, or list of values of a multi-valued attribute.
            user: id of a user of the training data, whose stored contexts are used where there is no ``profile``.
            state: what ``LiveSession.state`` returned; the other arguments are then not read.

        Raises:
            UserError: a profile that is no mapping, or a ``state`` that is damaged or of another model.
        """
        return self.live.open(profile, user, state)

    # Items

    def similar_items(self, items: Sequence[Any], k: int = 20) -> pl.DataFrame:
        """The ``k`` items most similar to each of ``items``, itself left out.

        Similarity is the cosine of the vectors with which the model scores items; ItemKNN has its own.

        Args:
            items: ids of the log's type.
            k: length of the lists.

        Returns:
            item_id, similar_item_id, score, rank and, where the data set has titles, title (of the similar item).

        Raises:
            UserError: an item that is not in the catalogue, or a model that does not compare items (POP).
        """
        check_length(k)
        ids = to_ids(items, "items")
        codes = find_codes(ids, self.vocabulary.items["id"], "items")
        if codes.has_nulls():
            raise UserError(f"items: {ids[codes.is_null().arg_true()[0]]!r} is not in the catalogue")
        key = self.vocabulary.items["id"].gather(codes).alias("of")
        tables = [self._table(key.clear(), torch.empty(0, 0), torch.empty(0, 0, dtype=torch.int64))]
        size = max(1, BLOCK_SCORES // self.n_items)
        for first in range(0, len(codes), size):
            code_N = torch.from_numpy(codes[first : first + size].to_numpy().astype(np.int64))
            with torch.inference_mode():
                score_NI = self.model.item_similarity(code_N)
                score_NI[torch.arange(len(code_N)), code_N] = -torch.inf
                tables.append(self._table(key[first : first + size], *top_items(score_NI, k)))
        return pl.concat(tables).rename({ITEM_ID: "similar_item_id"}).rename({"of": ITEM_ID})

    def allowed_items(self, items: Sequence[Any] | None, exclude_items: Sequence[Any] | None) -> Tensor | None:
        """(I,) which items may be recommended; None: all. Unknown ids among them have no effect.

        Raises:
            UserError: no item is left.
        """
        if items is None and exclude_items is None:
            return None
        allowed_I = torch.full((self.n_items,), items is None)
        for name, ids, value in (("items", items, True), ("exclude_items", exclude_items, False)):
            if ids is not None:
                codes = find_codes(to_ids(ids, name), self.vocabulary.items["id"], name).drop_nulls()
                allowed_I[torch.from_numpy(codes.to_numpy().astype(np.int64))] = value
        if not allowed_I.any():
            raise UserError("items, exclude_items: no item of the catalogue is left to recommend")
        return allowed_I

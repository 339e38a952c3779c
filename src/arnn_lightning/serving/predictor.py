"""Predictor: recommends with a checkpoint, by the ids of the log. I items, K length of a list."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from arnn_lightning.config import check_targets
from arnn_lightning.errors import UserError
from arnn_lightning.models.base import Recommender, RunSettings
from arnn_lightning.readers.times import ANY_YEARS, TimeParser
from arnn_lightning.run_folder import checkpoint_file
from arnn_lightning.serving.catalogue import Catalogue
from arnn_lightning.serving.inference import Inference
from arnn_lightning.serving.live import LiveSession, LiveSessions
from arnn_lightning.serving.profiles import ProfileReader
from arnn_lightning.serving.requests import ITEM_ID, Request, RequestReader, check_length, find_codes, like, to_ids
from arnn_lightning.serving.vocabulary import Vocabulary
from arnn_lightning.training.checkpoint import build_model, load_weights, read_checkpoint

OnUnknown = Literal["warn", "raise", "ignore"]
BLOCK_SESSIONS = 1_024
BLOCK_SCORES = 1 << 22  # scores in memory at once, 16 MB


def load(path: str | Path, trusted_modules: Sequence[str] = ()) -> "Predictor":
    """Loads the model of a checkpoint for recommending; executes no code from the file.

    Args:
        path: a checkpoint, or a run folder, whose best checkpoint is read.
        trusted_modules: modules of your own that the checkpoint's config may name, as in ``["mypackage"]``.

    Raises:
        UserError: no checkpoint, a damaged one, or one whose config names other modules.
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
    training data, scored by their number of training events. If the model's encoder of profiles (PNN in ARNN) was
    better on the validation sessions, they get its items for the user's profile instead.

    Args:
        model: the trained model.
        vocabulary: item ids, categories and users of the checkpoint.
        metadata: the checkpoint's config and manifest.
    """

    def __init__(self, model: Recommender, vocabulary: Vocabulary, metadata: Mapping[str, Any]) -> None:
        self.model = model
        self.inference = Inference(model, vocabulary.items, metadata["model"]["dims"])
        self.catalogue = Catalogue(vocabulary.items)
        self.vocabulary = vocabulary
        self.metadata = metadata
        data = metadata["data"]
        # A model that was trained with unknown contexts only has not learnt the others.
        self.uses_contexts = model.uses_contexts and data["contexts"]["assignment"] != "unknown"
        self.profile_reader = ProfileReader(vocabulary, data)
        self.reader = RequestReader(
            vocabulary,
            self.profile_reader,
            self.uses_contexts,
            [data.get("columns", {}).get(key) for key in ("user_in_users", "user")],
            TimeParser(data.get("time_format"), "auto", data.get("timezone", "UTC"), ANY_YEARS),
        )

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
        """16 hexadecimal digits of a hash of weights and item ids, equal for equal models in any file."""
        digest = hashlib.sha256()
        for name, weight in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.contiguous().numpy().tobytes())
        digest.update("\0".join(self.catalogue.ids.cast(pl.String)).encode())
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
            sessions: a frame with session_id and item_id, one row per event, in order or with a column time;
                user_id if users are known from training or have a row in ``users``. Or a list: the item ids of one
                session.
            users: a frame with session_id or user_id and the attributes of users who are not in the training data or
                have changed. A multi-valued attribute is a list, or a text with separators as in training.
            k: length of the lists; they are shorter where fewer items are left.
            exclude_seen: leaves out the items of the session.
            items: recommends these only.
            exclude_items: leaves these out.
            on_unknown: what happens where an item, an attribute or a value is not known, and thus ignored. Users
                without a profile, rows of ``users`` without a session, and attributes among the columns of
                ``sessions`` may be intentional: for these, ``raise`` only warns.

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
        if on_unknown == "raise" and (text := request.unknown.error_text(self.attributes)):
            raise UserError(text)
        if on_unknown != "ignore" and (text := request.unknown.warning_text(self.attributes)):
            warnings.warn(f"ignored: {text}", stacklevel=3)
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
        allowed_I = self.catalogue.allowed(items, exclude_items)
        check_length(k)
        yield self.catalogue.empty_table(request.session_id)
        for first in range(0, len(request.session_id), BLOCK_SESSIONS):
            numbers = np.arange(first, min(first + BLOCK_SESSIONS, len(request.session_id)))
            query_NH, has_click_N = self.inference.queries(request, numbers)
            n_parts = min(len(numbers), -(-len(numbers) * self.n_items // BLOCK_SCORES))
            for rows in np.array_split(numbers, n_parts):
                rows_N = rows - first
                without_click = rows[~has_click_N[rows_N]]
                seen = [request.item[request.offset[row] : request.offset[row + 1]] for row in rows]
                score_NK, item_NK = self.inference.top(
                    query_NH[torch.from_numpy(rows_N)] if query_NH is not None else None,
                    has_click_N[rows_N],
                    self.inference.contexts_of_rows(request.profiles, request.contexts[without_click]),
                    k,
                    allowed_I,
                    seen if exclude_seen else None,
                )
                yield self.catalogue.table(request.session_id[rows], score_NK, item_NK)

    # One click after the other

    @cached_property
    def live(self) -> LiveSessions:
        """Many live sessions in one batch: ``live.click(sessions, items)``, ``live.top(sessions)``."""
        return LiveSessions(self)

    def session(
        self, profile: Mapping[str, Any] | None = None, user: Any = None, state: bytes | None = None
    ) -> LiveSession:
        """Opens a live session with a profile, for a user of the training data or without either, or continues one.

        Args:
            profile: attribute -> value, or list of values of a multi-valued attribute.
            user: id of a user of the training data, whose stored contexts are used where ``profile`` is None, not where
                it is empty.
            state: what ``LiveSession.state`` returned; ``profile`` and ``user`` must then be None.

        Raises:
            UserError: a profile that is not a mapping, or a ``state`` that is damaged, of another model, or given
                together with ``profile`` or ``user``.
        """
        return self.live.open(profile, user, state)

    # Items

    def similar_items(self, items: Sequence[Any], k: int = 20) -> pl.DataFrame:
        """The ``k`` items most similar to each of ``items``, without the item itself.

        Similarity is the cosine of the vectors with which the model scores items; ItemKNN and SR have their own.

        Args:
            items: ids of the log's type.
            k: length of the lists.

        Returns:
            item_id, similar_item_id, score, rank and, where the data set has titles, title (of the similar item).

        Raises:
            UserError: ``k`` is not a positive integer, an id of a wrong type, an item that is not in the catalogue, or
                a model that does not compare items (such as POP).
        """
        check_length(k)
        ids = to_ids(items, "items")
        codes = find_codes(ids, self.catalogue.ids, "items")
        if codes.has_nulls():
            raise UserError(f"items: {ids[codes.is_null().arg_true()[0]]!r} is not in the catalogue")
        key = self.catalogue.ids.gather(codes).alias("of")
        tables = [self.catalogue.empty_table(key)]
        size = max(1, BLOCK_SCORES // self.n_items)
        for first in range(0, len(codes), size):
            rows = slice(first, first + size)
            scores, similar = self.inference.similar(torch.from_numpy(codes[rows].to_numpy().astype(np.int64)), k)
            tables.append(self.catalogue.table(key[rows], scores, similar))
        return pl.concat(tables).rename({ITEM_ID: "similar_item_id"}).rename({"of": ITEM_ID})

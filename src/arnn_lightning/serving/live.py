"""Live sessions: one click after the other, alone or many sessions in one batch. N sessions, H width of a query."""

import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from arnn_lightning.batch import Contexts, StepInput
from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.contexts import PREFIX
from arnn_lightning.readers.schema import USER
from arnn_lightning.serving.requests import Unknown, check_length

if TYPE_CHECKING:
    from arnn_lightning.serving.predictor import Predictor

MAX_SEEN = 1_000  # items that a session keeps for exclude_seen; older ones are dropped
MAX_UNKNOWN = 100  # unknown items that a session lists; older ones are dropped
MAGIC, VERSION = b"ARNN", 2
INTEGER = re.compile(r"[+-]?[0-9]+")
_HEADER = struct.Struct("<4sB8sI")  # magic, version, model, checksum
_SIZES = struct.Struct("<IIII")  # clicks, active fields, seen items, width of the query


class Recommendation(NamedTuple):
    """One item of a list.

    Attributes:
        item_id: of the log's type.
        score: the model's raw score; comparable within a session only.
        rank: from 1, as in ``Predictor.recommend``.
        title: None where the data set has none.
    """

    item_id: Any
    score: float
    rank: int
    title: str | None


class LiveSession:
    """A session that is clicked through; made by ``Predictor.session``.

    Args:
        sessions: of the same model.
        contexts: context codes of the user, (1, S) and (1, A).
        unknown: what the profile has that is not known.

    Attributes:
        clicks: number of clicks on items of the catalogue.
        unknown: items and attributes that were given and are not known; they are ignored, and are not in ``state()``.
    """

    def __init__(self, sessions: "LiveSessions", contexts: Contexts, unknown: Unknown) -> None:
        self._sessions = sessions
        self.contexts = contexts
        self.terms = sessions.predictor.user_terms(contexts)  # what depends on the contexts alone
        self.hidden = sessions.predictor.model.initial_state(1)
        self.query: Tensor | None = None
        self.seen: dict[int, None] = {}  # item codes, the latest last: a dict as an ordered set
        self.clicks = 0
        self.unknown = unknown

    def click(self, item: Any) -> None:
        """Adds an event; one of an item that is not in the catalogue is ignored and listed in ``unknown``.

        Args:
            item: its id.

        Raises:
            UserError: an ``item`` that is neither an integer nor a string.
        """
        self._sessions.click([self], [item])

    def top(
        self,
        k: int = 20,
        exclude_seen: bool = False,
        items: Sequence[Any] | None = None,
        exclude_items: Sequence[Any] | None = None,
    ) -> list[Recommendation]:
        """The ``k`` best next items, as ``Predictor.recommend`` lists them; the session does not change.

        Args:
            k: length of the list; it is shorter where fewer items are left.
            exclude_seen: leaves out the latest 1,000 items of the session.
            items: recommends these only.
            exclude_items: leaves these out.

        Raises:
            UserError: ``k`` is not a positive integer, or no item is left to recommend.
        """
        return self._sessions.top([self], k, exclude_seen, items, exclude_items)[0]

    def state(self) -> bytes:
        """The session as bytes of bounded size, without ids of the user: ``session(state=...)`` continues it.

        They have a checksum and the model's id, and no code. They are not signed: keep them where others cannot write.
        """
        parts = [self.contexts.single[0], self.contexts.active[0], torch.tensor([*self.seen], dtype=torch.int64)]
        body = b"".join(part.numpy().astype("<i4").tobytes() for part in parts)
        tensors = self.hidden if self.query is None else (self.query, *self.hidden)
        body += b"".join(part.contiguous().numpy().tobytes() for part in tensors)
        width = 0 if self.query is None else self.query.shape[1]
        body = _SIZES.pack(self.clicks, self.contexts.active.shape[1], len(self.seen), width) + body
        return _HEADER.pack(MAGIC, VERSION, self._sessions.model_id, zlib.crc32(body)) + body


class IdCodes:
    """The code (place) of every id of a column."""

    def __init__(self, ids: pl.Series) -> None:
        self._code = dict(zip(ids.to_list(), range(len(ids)), strict=True))
        self._type = str if ids.dtype == pl.String else int

    def find(self, value: Any, name: str) -> int | None:
        """The code of an id of either type, None for unknown ones; raises UserError for what is no id."""
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise UserError(f"{name}={value!r}: an id must be an integer or a string")
        if self._type is str:
            return self._code.get(str(value))
        try:
            return self._code.get(int(value)) if isinstance(value, int) or INTEGER.fullmatch(value) else None
        except ValueError:  # thousands of digits
            return None


class LiveSessions:
    """Opens sessions, and clicks and lists many in one batch.

    Args:
        predictor: the model.
    """

    def __init__(self, predictor: "Predictor") -> None:
        self.predictor = predictor
        self.model_id = bytes.fromhex(predictor.model_id)
        self._screen = predictor.make_screen()
        ids = predictor.vocabulary.items["id"]
        self._items = IdCodes(ids)
        table = predictor.vocabulary.items
        self._ids = ids.to_list()
        self._titles = table["title"].to_list() if "title" in table.columns else [None] * len(ids)
        self._users = IdCodes(predictor.vocabulary.users["id"])
        # A click gives the width and dtype of a query, which those of stored sessions must have.
        probe = self.open()
        self.click([probe], [self._ids[0]])
        assert probe.query is not None
        self._query_template = probe.query

    def open(
        self, profile: Mapping[str, Any] | None = None, user: Any = None, state: bytes | None = None
    ) -> LiveSession:
        """A session of a user with a profile, of a user of the training data, or of nobody known; or one continued.

        Args:
            profile: attribute -> value, or list of values of a multi-valued attribute.
            user: id of a user of the training data; a ``profile`` replaces what they contain about the user.
            state: what ``LiveSession.state`` returned.

        Raises:
            UserError: a profile that is no mapping, or a ``state`` that is damaged or of another model.
        """
        if state is not None:
            return self._restore(state)
        if not isinstance(profile, Mapping | None):
            raise UserError(f"profile: must map attributes to values, not {type(profile).__name__}")
        predictor, unknown = self.predictor, Unknown()
        single: list[int] = [0] * len(predictor.vocabulary.single)
        active: list[int] = []
        if predictor.uses_contexts and profile:
            if user is not None and USER in predictor.vocabulary.single:
                profile = {USER: user, **profile}
            single, active = predictor.reader.encode_one(profile, unknown)
        elif predictor.uses_contexts and user is not None:
            code = self._users.find(user, "user")
            if code is not None:
                row = predictor.vocabulary.users.row(code, named=True)
                single, active = [row[f"{PREFIX}{name}"] for name in predictor.vocabulary.single], row["active"]
        return LiveSession(self, predictor.contexts_of(single, active), unknown)

    @torch.inference_mode()
    def click(self, sessions: Sequence[LiveSession], items: Sequence[Any]) -> None:
        """One event in each of several sessions, in one batch.

        Args:
            sessions: N sessions of this model, each once.
            items: N ids.

        Raises:
            UserError: not one item per session, a session that is given twice or is of another model, or an item of a
                wrong type.
        """
        sessions, items = [*sessions], [*items]
        self._require_same_model(sessions)
        if len(sessions) != len(items) or len({id(session) for session in sessions}) < len(sessions):
            raise UserError("click: needs one item for every session, and every session once; click again for the next")
        codes = [self._items.find(item, "item") for item in items]
        for session, item, code in zip(sessions, items, codes, strict=True):
            if code is None:
                session.unknown.items = [*session.unknown.items, item][-MAX_UNKNOWN:]
        clicked = [(session, code) for session, code in zip(sessions, codes, strict=True) if code is not None]
        if not clicked:
            return
        batch = [session for session, _ in clicked]
        terms = [session.terms for session in batch if session.terms is not None]
        step = StepInput(
            torch.tensor([code for _, code in clicked]),
            Contexts(_cat([s.contexts.single for s in batch]), _pad([s.contexts.active for s in batch])),
            valid=None,
            user_terms=_cat(terms) if terms else None,
        )
        state = tuple(_cat(parts, -2) for parts in zip(*(s.hidden for s in batch), strict=True))
        query_NH, state = self.predictor.model.encode(step, state)
        parts = query_NH.split(1), *(part.split(1, -2) for part in state)
        for (session, code), (query_1H, *hidden) in zip(clicked, zip(*parts, strict=True), strict=True):
            # Clones: a view would keep the whole batch in memory.
            session.query, session.hidden = query_1H.clone(), tuple(part.clone() for part in hidden)
            session.clicks += 1
            session.seen.pop(code, None)
            session.seen[code] = None
            if len(session.seen) > MAX_SEEN:
                del session.seen[next(iter(session.seen))]

    def top(
        self,
        sessions: Sequence[LiveSession],
        k: int = 20,
        exclude_seen: bool = False,
        items: Sequence[Any] | None = None,
        exclude_items: Sequence[Any] | None = None,
    ) -> list[list[Recommendation]]:
        """The ``k`` best next items of each of several sessions, in one batch.

        Args:
            sessions: of this model.
            k: length of the lists.
            exclude_seen: leaves out the latest 1,000 items of each session.
            items: recommends these only, in all sessions.
            exclude_items: leaves these out, in all sessions.

        Raises:
            UserError: ``k`` is not a positive integer, no item is left to recommend, or a session of another model.
        """
        return self.top_allowed(sessions, k, exclude_seen, self.predictor.allowed_items(items, exclude_items))

    def top_allowed(
        self, sessions: Sequence[LiveSession], k: int, exclude_seen: bool, allowed_I: Tensor | None
    ) -> list[list[Recommendation]]:
        """``top``, with the items that may be recommended as codes.

        Args:
            sessions: N live sessions.
            k: length of the lists.
            exclude_seen: as of ``top``.
            allowed_I: as ``Predictor.allowed_items`` returns it.

        Raises:
            UserError: as ``top``.
        """
        check_length(k)
        sessions = [*sessions]
        self._require_same_model(sessions)
        if not sessions:
            return []
        # Sessions without a click get the most popular items: any query may stand in for theirs.
        placeholder = next((session.query for session in sessions if session.query is not None), None)
        query_NH = None
        if placeholder is not None:
            query_NH = _cat_queries([placeholder if session.query is None else session.query for session in sessions])
        score_NK, item_NK = self.predictor.top(
            query_NH,
            np.array([session.query is not None for session in sessions]),
            k,
            allowed_I,
            [np.fromiter(session.seen, np.int64) for session in sessions] if exclude_seen else None,
            self._screen,
        )
        return [
            [
                Recommendation(self._ids[item], score, rank, self._titles[item])
                for rank, (score, item) in enumerate(zip(scores, codes, strict=True), 1)
                if score > -torch.inf
            ]
            for scores, codes in zip(score_NK.tolist(), item_NK.tolist(), strict=True)
        ]

    def _require_same_model(self, sessions: Sequence[LiveSession]) -> None:
        for session in sessions:
            if session._sessions.model_id != self.model_id:
                raise UserError(
                    f"a session of another model ({session._sessions.predictor.name}): click and list it there"
                )

    def _restore(self, state: bytes) -> LiveSession:
        """Reads what ``state`` wrote: header, sizes, codes (single, active, seen), query if clicked, hidden states."""
        damaged = UserError("state: damaged or cut off; start a new session")
        if not isinstance(state, bytes | bytearray | memoryview):
            raise UserError(f"state: must be the bytes that state() returned, not {type(state).__name__}")
        state = bytes(state)
        if len(state) < _HEADER.size + _SIZES.size:
            raise damaged
        magic, version, model_id, checksum = _HEADER.unpack_from(state)
        body = state[_HEADER.size :]
        if magic != MAGIC or zlib.crc32(body) != checksum:
            raise damaged
        if version != VERSION:
            raise UserError(f"state: of format {version}, not {VERSION}; start a new session")
        if model_id != self.model_id:
            raise UserError(
                f"state: of another model ({model_id.hex()}, not {self.predictor.model_id}); start a new session"
            )
        clicks, n_active, n_seen, width = _SIZES.unpack_from(body)
        session, dims = self.open(), self.predictor.metadata["model"]["dims"]
        templates = [*session.hidden]
        if clicks:
            query = self._query_template
            if not query.shape[1] <= width <= query.shape[1] + dims["n_binary"]:  # VSTAN's has the active fields
                raise damaged
            templates.insert(0, query.new_empty(1, width))
        n_codes = session.contexts.single.shape[1] + n_active + n_seen
        if n_seen > MAX_SEEN or len(body) != _SIZES.size + 4 * n_codes + sum(part.nbytes for part in templates):
            raise damaged
        codes = torch.from_numpy(np.frombuffer(body, "<i4", n_codes, _SIZES.size).astype(np.int64))
        single, active, seen = codes.split([n_codes - n_active - n_seen, n_active, n_seen])
        parts, start = [], _SIZES.size + 4 * n_codes
        for part in templates:
            values = torch.frombuffer(bytearray(body[start : start + part.nbytes]), dtype=part.dtype)
            parts.append(values.view(part.shape))
            start += part.nbytes
        model = self.predictor.model
        limits = [(single, 0, sum(dims["single_sizes"])), (active, -1, dims["n_binary"]), (seen, 0, model.n_items)]
        # Integers are item codes plus one; in a query of a neighbourhood model categories, too.
        n_categories = sum(dims["single_sizes"]) + dims["n_binary"]
        for place, part in enumerate(parts):
            if not part.is_floating_point():
                is_query = bool(clicks) and place == 0
                limits.append((part, 0, 1 + (max(model.n_items, n_categories) if is_query else model.n_items)))
        if any(len(part) and not (low <= part.min() and part.max() < high) for part, low, high in limits):
            raise damaged
        if not all(part.isfinite().all() for part in parts):
            raise damaged
        session.contexts = Contexts(single[None], active[None])
        session.terms = self.predictor.user_terms(session.contexts)
        if clicks:
            session.query = parts.pop(0)
        session.hidden, session.clicks = tuple(parts), clicks
        session.seen = dict.fromkeys(seen.tolist())
        return session


def _cat(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _cat_queries(parts: Sequence[Tensor]) -> Tensor:
    """Queries of VSTAN end in a set of categories, of which the last may be repeated; all others have one width."""
    widths = [part.shape[1] for part in parts]
    if len({*widths}) == 1:
        return _cat(parts)
    place = torch.arange(max(widths))
    return torch.cat([part[:, place.clamp(max=width - 1)] for part, width in zip(parts, widths, strict=True)])


def _pad(parts: Sequence[Tensor]) -> Tensor:
    """Rows of active fields (1, A) of different widths as one tensor, padded with -1."""
    width = max(part.shape[1] for part in parts)
    missing = [width - part.shape[1] for part in parts]
    return _cat([F.pad(part, (0, n), value=-1) if n else part for part, n in zip(parts, missing, strict=True)])

"""Live sessions: one click after the other, alone or many sessions in one batch. N sessions, H width of a query."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from arnn_lightning.batch import Contexts, State, StepInput, no_contexts
from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.contexts import PREFIX
from arnn_lightning.readers.schema import USER
from arnn_lightning.serving import MAX_SEEN
from arnn_lightning.serving.catalogue import IdCodes, Recommendation
from arnn_lightning.serving.requests import SESSION_ID, USER_ID, Unknown, check_length
from arnn_lightning.serving.state import SessionState, StateFormat

if TYPE_CHECKING:
    from arnn_lightning.serving.predictor import Predictor

MAX_UNKNOWN = 100  # unknown items that a session lists; older ones are dropped


class LiveSession:
    """A session that receives its clicks one by one; created by ``Predictor.session``.

    Args:
        sessions: of the same model.
        contexts: context codes of the user, (1, S) and (1, A).
        unknown: what the profile has that is not known.

    Attributes:
        clicks: number of clicks on items of the catalogue.
        unknown: items, attributes and the user, where they are not known; they are ignored, and not in ``state()``.
    """

    def __init__(self, sessions: "LiveSessions", contexts: Contexts, unknown: Unknown) -> None:
        self._sessions = sessions
        self.contexts = contexts
        self.hidden: State = sessions.inference.model.initial_state(1)
        self.query: Tensor | None = None
        self.seen: dict[int, None] = {}  # item codes, the latest last: a dict as an ordered set
        self.clicks = 0
        self.unknown = unknown
        self.user_terms: Tensor | None = None  # the encoder's part that depends on contexts alone, from the first click

    def add(self, items: Sequence[int], query_1H: Tensor, hidden: State) -> None:
        """Adds clicks on the items of these codes, after which the encoder returned ``query_1H`` and ``hidden``."""
        self.query, self.hidden = query_1H, hidden
        self.clicks += len(items)
        for item in items:
            self.seen.pop(item, None)
            self.seen[item] = None
            if len(self.seen) > MAX_SEEN:
                del self.seen[next(iter(self.seen))]

    def click(self, item: Any) -> None:
        """Adds an event; one of an item that is not in the catalogue is ignored and listed in ``unknown``.

        Args:
            item: its id.

        Raises:
            UserError: an ``item`` that is neither an integer nor a string.
        """
        self._sessions.replay([self], [[item]])

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
            UserError: ``k`` is not a positive integer, an id of a wrong type, or no item is left to recommend.
        """
        return self._sessions.top([self], k, exclude_seen, items, exclude_items)[0]

    def state(self) -> bytes:
        """The session as bytes of bounded size, without ids of the user: ``session(state=...)`` continues it.

        They have a checksum and the model's id, and no code. They are not signed: keep them where others cannot write.
        """
        state = SessionState(self.contexts, [*self.seen], self.clicks, self.query, self.hidden)
        return self._sessions.format.pack(state)


class LiveSessions:
    """Opens live sessions, and handles clicks and recommendations of many in one batch.

    Args:
        predictor: the model, whose parts are kept, but not itself: it refers to these sessions, and would be freed by
            a full garbage collection only.
    """

    def __init__(self, predictor: "Predictor") -> None:
        self.name, self.model_id = predictor.name, predictor.model_id
        self.inference = predictor.inference
        self._catalogue = predictor.catalogue
        self._vocabulary = predictor.vocabulary
        self._profile_reader = predictor.profile_reader
        self._uses_contexts = predictor.uses_contexts
        self._users = IdCodes(predictor.vocabulary.users["id"])
        self.inference.prepare_screen()
        example = self.open()
        self._has_terms = self.inference.user_terms(example.contexts) is not None
        self.click([example], [self._catalogue.ids[0]])
        example_state = SessionState(example.contexts, [], 1, example.query, example.hidden)
        dims = predictor.metadata["model"]["dims"]
        self.format = StateFormat(self.model_id, predictor.n_items, dims, example_state)

    def open(
        self, profile: Mapping[str, Any] | None = None, user: Any = None, state: bytes | None = None
    ) -> LiveSession:
        """Opens a session with a profile, for a user of the training data or without either, or continues one.

        Args:
            profile: attribute -> value, or list of values of a multi-valued attribute.
            user: id of a user of the training data; a ``profile``, even an empty one, takes precedence over the stored
                contexts.
            state: what ``LiveSession.state`` returned.

        Raises:
            UserError: a profile that is no mapping, or a ``state`` that is damaged, of another
                model, or given together with ``profile`` or ``user``.
        """
        if state is not None:
            if profile is not None or user is not None:
                raise UserError("state: contains the user's contexts; leave out profile and user")
            return self._restored(self.format.unpack(state))
        if not isinstance(profile, Mapping | None):
            raise UserError(f"profile: must map attributes to values, not {type(profile).__name__}")
        unknown = Unknown()
        single: list[int] = [0] * len(self._vocabulary.single)
        active: list[int] = []
        if self._uses_contexts and profile is not None:
            if user is not None and USER in self._vocabulary.single:
                profile = {USER: user, **profile}
            single, active, unknown.values = self._profile_reader.encode_one(profile)
            known = (*self._vocabulary.attributes, SESSION_ID, USER_ID)
            unknown.attributes = [name for name in dict.fromkeys(map(str, profile)) if name not in known]
        elif self._uses_contexts and user is not None:
            code = self._users.find(user, "user")
            if code is None:
                unknown.users.append(user)
            else:
                row = self._vocabulary.users.row(code, named=True)
                single, active = [row[f"{PREFIX}{name}"] for name in self._vocabulary.single], row["active"]
        elif profile:
            unknown.attributes = [*map(str, profile)]
        return LiveSession(self, self.inference.contexts_of_codes(single, active), unknown)

    def _restored(self, state: SessionState) -> LiveSession:
        session = LiveSession(self, state.contexts, Unknown())
        session.query, session.hidden, session.clicks = state.query, state.hidden, state.clicks
        session.seen = dict.fromkeys(state.seen)
        return session

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
        if len(sessions) != len(items) or len({*map(id, sessions)}) < len(sessions):
            raise UserError("click: needs one item per session, and each session once; call it again for another click")
        self.replay(sessions, [[item] for item in items])

    @torch.inference_mode()
    def replay(self, sessions: Sequence[LiveSession], items: Sequence[Sequence[Any]]) -> None:
        """Several events in each of several sessions, in one batch that is split after the last event of a session.

        Args:
            sessions: N sessions of this model, each once.
            items: the ids of each, the latest last.

        Raises:
            UserError: an item of a wrong type.
        """
        find = self._catalogue.codes.find
        found = [[find(item, "item") for item in listed] for listed in items]
        clicked: list[tuple[LiveSession, list[int]]] = []
        for session, listed, codes in zip(sessions, items, found, strict=True):
            known = [code for code in codes if code is not None]
            if len(known) < len(codes):
                unknown = [item for item, code in zip(listed, codes, strict=True) if code is None]
                session.unknown.items = [*session.unknown.items, *unknown][-MAX_UNKNOWN:]
            if known:
                clicked.append((session, known))
        if not clicked:
            return
        new = [session for session, _ in clicked if session.user_terms is None]
        if new and self._has_terms:
            self._compute_terms(new)
        clicked.sort(key=lambda pair: -len(pair[1]))  # those that have a further event are the first ones
        contexts, terms, state = _batch([session for session, _ in clicked])
        for step in range(len(clicked[0][1])):
            item_N = torch.from_numpy(np.array([codes[step] for _, codes in clicked]))  # a third of torch.tensor's time
            query_NH, state = self.inference.model.encode(StepInput(item_N, contexts, None, terms), state)
            n = len([codes for _, codes in clicked if len(codes) > step + 1])
            if n == len(clicked):
                continue
            parts = [_rows(query_NH, 0, n), *(_rows(part, -2, n) for part in state)]
            for (session, known), (query_1H, *hidden) in zip(clicked[n:], zip(*parts, strict=True), strict=True):
                session.add(known, query_1H, tuple(hidden))
            if n:
                clicked = clicked[:n]
                contexts, terms = (
                    Contexts(contexts.single[:n], contexts.active[:n]),
                    terms[:n] if terms is not None else None,
                )
                state = tuple(part[..., :n, :] for part in state)

    def _compute_terms(self, sessions: Sequence[LiveSession]) -> None:
        """Sets ``user_terms`` of sessions before their first click, in one batch: few take as long as one."""
        terms = self.inference.user_terms(_cat_contexts([session.contexts for session in sessions]))
        assert terms is not None
        for session, terms_of_session in zip(sessions, _rows(terms, 0), strict=True):
            session.user_terms = terms_of_session

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
            UserError: ``k`` is not a positive integer, an id of a wrong type, no item is left to recommend, or a
                session of another model.
        """
        return self.top_allowed(sessions, k, exclude_seen, self._catalogue.allowed(items, exclude_items))

    def top_allowed(
        self, sessions: Sequence[LiveSession], k: int, exclude_seen: bool, allowed_I: Tensor | None
    ) -> list[list[Recommendation]]:
        """``top``, with the items that may be recommended as codes.

        Args:
            sessions: N live sessions.
            k: length of the lists.
            exclude_seen: as of ``top``.
            allowed_I: as ``Catalogue.allowed`` returns it.

        Raises:
            UserError: as ``top``.
        """
        check_length(k)
        sessions = [*sessions]
        self._require_same_model(sessions)
        if not sessions:
            return []
        seen = [np.fromiter(session.seen, np.int64) for session in sessions] if exclude_seen else None
        queries = [session.query for session in sessions if session.query is not None]
        if len(sessions) == len(queries):
            screened = self.inference.screened_top(queries, k, allowed_I, seen)
            if screened is not None:
                return [self._catalogue.recommendations(scores.tolist(), items.tolist()) for scores, items in screened]
        has_click_N = np.array([session.query is not None for session in sessions])
        query_NH = None
        if queries:  # any query can replace that of a session without a click
            query_NH = _cat_queries([queries[0] if session.query is None else session.query for session in sessions])
        first = _cat_contexts([session.contexts for session in sessions if session.query is None])
        score_NK, item_NK = self.inference.top(query_NH, has_click_N, first, k, allowed_I, seen)
        n_listed_N = (score_NK > -torch.inf).sum(1).tolist()
        return [
            self._catalogue.recommendations(scores[:n], items[:n])
            for scores, items, n in zip(score_NK.tolist(), item_NK.tolist(), n_listed_N, strict=True)
        ]

    def _require_same_model(self, sessions: Sequence[LiveSession]) -> None:
        for session in sessions:
            if session._sessions.model_id != self.model_id:
                raise UserError(f"a session of another model ({session._sessions.name}): use it with that model only")


def _batch(sessions: Sequence[LiveSession]) -> tuple[Contexts, Tensor | None, State]:
    """The contexts, the users' terms and the state of several sessions."""
    if len(sessions) == 1:
        (session,) = sessions
        return session.contexts, session.user_terms, session.hidden
    terms = [session.user_terms for session in sessions if session.user_terms is not None]
    state = tuple(torch.cat(parts, -2) for parts in zip(*(session.hidden for session in sessions), strict=True))
    return _cat_contexts([session.contexts for session in sessions]), torch.cat(terms) if terms else None, state


def _rows(batch: Tensor, dim: int, first: int = 0) -> list[Tensor]:
    """A tensor for each session from ``first`` on. Clones: a view would keep the whole batch in memory."""
    return [batch] if batch.shape[dim] == 1 else [row.clone() for row in batch.split(1, dim)[first:]]


def _cat_queries(parts: Sequence[Tensor]) -> Tensor:
    """Queries of VSTAN end in a set of categories, of which the last may be repeated; all others have one width."""
    widths = [part.shape[1] for part in parts]
    if len({*widths}) == 1:
        return torch.cat(list(parts))
    place = torch.arange(max(widths))
    return torch.cat([part[:, place.clamp(max=width - 1)] for part, width in zip(parts, widths, strict=True)])


def _cat_contexts(parts: Sequence[Contexts]) -> Contexts:
    """Contexts (1, ...) of several sessions as those of a batch."""
    if not parts:
        return no_contexts(0)
    return Contexts(torch.cat([part.single for part in parts]), _pad([part.active for part in parts]))


def _pad(parts: Sequence[Tensor]) -> Tensor:
    """Rows of active fields (1, A) of different widths as one tensor, padded with -1."""
    width = max(part.shape[1] for part in parts)
    missing = [width - part.shape[1] for part in parts]
    return torch.cat([F.pad(part, (0, n), value=-1) if n else part for part, n in zip(parts, missing, strict=True)])

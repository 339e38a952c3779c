"""The recommender over HTTP: JSON in and out, live sessions in a bounded store, metrics for Prometheus.

``make_app`` makes an ASGI application, which ``task=serve`` runs. Every error is one sentence under ``detail``.
"""

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arnn_lightning import __version__
from arnn_lightning.errors import UserError
from arnn_lightning.serving.live import MAX_SEEN, LiveSession, Recommendation
from arnn_lightning.serving.predictor import Predictor

log = logging.getLogger(__name__)


def _require_unicode(text: str) -> str:
    """JSON can contain halves of a surrogate pair, which no answer could contain."""
    if not text.isascii() and text != text.encode(errors="ignore").decode():
        raise ValueError("must be valid Unicode")
    return text


Text = Annotated[StrictStr, AfterValidator(_require_unicode)]
Id = StrictInt | Text
Value = StrictBool | StrictInt | StrictFloat | Text | None
MAX_BATCH, MAX_K = 256, 1_000


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Visitor(Strict):
    """Who recommendations are for: a profile (attribute -> value or values), a user of the training data, or nobody."""

    profile: dict[Text, Value | list[Value]] | None = Field(None, max_length=1_000)
    user: Id | None = None


class Lists(Strict):
    """What is recommended."""

    k: StrictInt = Field(20, ge=1, le=MAX_K)
    exclude_seen: StrictBool = False
    items: list[Id] | None = None
    exclude_items: list[Id] | None = None


class Prefix(Visitor):
    """A session so far: the ids of its items, the latest last."""

    session: list[Id] = Field(max_length=MAX_SEEN)


class RecommendRequest(Prefix, Lists):
    pass


class BatchRequest(Lists):
    sessions: list[Prefix] = Field(max_length=MAX_BATCH)


class ClickRequest(Lists):
    item: Id


class Item(BaseModel):
    id: Id
    score: float
    title: str | None


class UnknownParts(BaseModel):
    """What was ignored: items that are not in the catalogue, attributes of no use, values not seen in training."""

    items: list[Id]
    attributes: list[str]
    values: list[tuple[str, str]]


class RecommendResponse(BaseModel):
    items: list[Item]
    unknown: UnknownParts
    model: str


class BatchResponse(BaseModel):
    lists: list[RecommendResponse]


class SessionResponse(BaseModel):
    id: str
    unknown: UnknownParts
    model: str


class SessionStore:
    """Live sessions by id, the least recently used first; a session ends ``seconds`` after its last request.

    Where ``size`` is reached, the least recently used session is dropped. Sessions keep the model they began with.
    """

    def __init__(self, size: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = size
        self.seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, tuple[float, Predictor, LiveSession, threading.Lock]] = OrderedDict()

    def __len__(self) -> int:
        with self._lock:
            self._expire()
            return len(self._sessions)

    def add(self, predictor: Predictor, session: LiveSession) -> str:
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._expire()
            while len(self._sessions) >= self.size:
                self._sessions.popitem(last=False)
            self._sessions[key] = (self._clock(), predictor, session, threading.Lock())
        return key

    def get(self, key: str) -> tuple[Predictor, LiveSession, threading.Lock] | None:
        """The session's model, the session, and the lock under which it is clicked."""
        with self._lock:
            self._expire()
            if key not in self._sessions:
                return None
            _, *found = self._sessions.pop(key)
            self._sessions[key] = (self._clock(), *found)  # type: ignore[assignment]
            predictor, session, lock = self._sessions[key][1:]
            return predictor, session, lock

    def remove(self, key: str) -> bool:
        with self._lock:
            return self._sessions.pop(key, None) is not None

    def _expire(self) -> None:
        oldest = self._clock() - self.seconds
        while self._sessions and next(iter(self._sessions.values()))[0] < oldest:
            self._sessions.popitem(last=False)


class ReloadingPredictor:
    """The predictor of a checkpoint, replaced when the file changes; requests under way keep the one they began with.

    Args:
        file: the checkpoint.
        read: makes a predictor from it.
        seconds: between two looks at the file.
    """

    def __init__(self, file: Path, read: Callable[[Path], Predictor], seconds: float) -> None:
        self.file, self._read, self.seconds = file, read, seconds
        self._stamp = self._stat()
        self.current = read(file)
        _ = self.current.live, self.current.model_id  # computed before the first request
        self._stop = threading.Event()

    def _stat(self) -> tuple[int, int, int] | None:
        if not self.file.is_file():
            return None
        stat = self.file.stat()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    def reload_if_changed(self) -> bool:
        """Reads the checkpoint again where it has changed; one that cannot be read is reported, and not tried again."""
        try:
            stamp = self._stat()
            if stamp == self._stamp:
                return False
            self._stamp = stamp
            predictor = self._read(self.file)
            _ = predictor.live, predictor.model_id
        except (UserError, OSError) as error:
            log.warning(f"{self.file}: not loaded, the model before it is kept: {error}")
            return False
        self.current = predictor
        log.info(f"{self.file}: loaded model {predictor.model_id}")
        return True

    def watch(self) -> None:
        """Looks at the file until ``stop``."""
        while not self._stop.wait(self.seconds):
            self.reload_if_changed()

    def stop(self) -> None:
        self._stop.set()


class BodyLimit:
    """Refuses request bodies of more than ``size`` bytes with status 413, without reading them whole."""

    def __init__(self, app: ASGIApp, size: int) -> None:
        self.app, self.size = app, size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        body, more = b"", not announced.isdigit() or int(announced) <= self.size
        is_small = more
        while more:
            message = await receive()
            body += message.get("body", b"")
            is_small = len(body) <= self.size
            more = is_small and message.get("more_body", False) and message["type"] == "http.request"
        if not is_small:
            await _error(413, f"the body must have at most {self.size} bytes")(scope, receive, send)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)


def _error(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": " ".join(sentence.split())}, status)


def make_app(models: ReloadingPredictor, store: SessionStore, token: str | None, max_body_bytes: int) -> FastAPI:
    """The application.

    Args:
        models: the model that new requests get.
        store: of live sessions.
        token: every request but /health and the documentation needs it as a bearer token; None: no request does.
        max_body_bytes: of a request.
    """
    registry = CollectorRegistry()
    requests = Counter("arnn_requests_total", "Requests by route and status.", ("route", "status"), registry=registry)
    seconds = Histogram("arnn_request_seconds", "Seconds of a request by route.", ("route",), registry=registry)
    unknown_items = Counter("arnn_unknown_items_total", "Items that are not in the catalogue.", registry=registry)
    Gauge("arnn_sessions", "Live sessions.", registry=registry).set_function(lambda: len(store))

    def authorize(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")  # the bytes as sent
        if token is not None and not secrets.compare_digest(given, f"Bearer {token}".encode()):
            raise HTTPException(401, "a valid bearer token is required", {"WWW-Authenticate": "Bearer"})

    app = FastAPI(
        title="arnn-lightning", version=__version__, summary="Next items of a session, by what is known of it"
    )
    app.add_middleware(BodyLimit, size=max_body_bytes)
    protected = [Depends(authorize)]

    @app.middleware("http")
    async def measure(request: Request, call_next: Callable[[Request], Any]) -> Response:
        started, status = time.perf_counter(), 500
        try:
            response: Response = await call_next(request)
            status = response.status_code
            return response
        except Exception:
            log.exception("a request failed")
            return _error(500, "internal error; the log of the server has the reason")
        finally:
            route = getattr(request.scope.get("route"), "path", "other")
            requests.labels(route, str(status)).inc()
            seconds.labels(route).observe(time.perf_counter() - started)

    @app.exception_handler(UserError)
    def user_error(_: Request, error: UserError) -> JSONResponse:
        return _error(422, str(error))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if "json" not in request.headers.get("content-type", ""):  # curl's default is that of forms
            return _error(422, "body: the header Content-Type must be application/json")
        place = ".".join(map(str, first["loc"][1:3])) or "body"  # further parts are names of pydantic's
        return _error(422, f"{place}: {first['msg']}")

    def listed(
        predictor: Predictor, sessions: Sequence[LiveSession], lists: Lists
    ) -> Iterable[tuple[LiveSession, list[Recommendation]]]:
        found = predictor.live.top(sessions, lists.k, lists.exclude_seen, lists.items, lists.exclude_items)
        return zip(sessions, found, strict=True)

    def response(predictor: Predictor, session: LiveSession, items: list[Recommendation]) -> RecommendResponse:
        listed = [Item(id=item.item_id, score=item.score, title=item.title) for item in items]
        return RecommendResponse(items=listed, unknown=_unknown(session), model=predictor.model_id)

    def recommend_to(prefixes: Sequence[Prefix], lists: Lists) -> list[RecommendResponse]:
        predictor = models.current
        sessions = [predictor.session(prefix.profile, prefix.user) for prefix in prefixes]
        for step in range(max((len(prefix.session) for prefix in prefixes), default=0)):
            active = [number for number, prefix in enumerate(prefixes) if len(prefix.session) > step]
            items = [prefixes[number].session[step] for number in active]
            predictor.live.click([sessions[number] for number in active], items)
        unknown_items.inc(sum(len(session.unknown.items) for session in sessions))
        return [response(predictor, session, items) for session, items in listed(predictor, sessions, lists)]

    @app.post("/v1/recommend", dependencies=protected)
    def recommend(body: RecommendRequest) -> RecommendResponse:
        """The best next items of one session."""
        return recommend_to([body], body)[0]

    @app.post("/v1/recommend/batch", dependencies=protected)
    def recommend_batch(body: BatchRequest) -> BatchResponse:
        """The best next items of up to 256 sessions."""
        return BatchResponse(lists=recommend_to(body.sessions, body))

    @app.post("/v1/sessions", status_code=201, dependencies=protected)
    def open_session(body: Visitor) -> SessionResponse:
        """Opens a live session, which is kept for some minutes after its last click."""
        predictor = models.current
        session = predictor.session(body.profile, body.user)
        key = store.add(predictor, session)
        return SessionResponse(id=key, unknown=_unknown(session), model=predictor.model_id)

    @app.post("/v1/sessions/{key}/clicks", dependencies=protected)
    def click(key: str, body: ClickRequest) -> RecommendResponse:
        """Adds an event to a live session, and returns the best next items."""
        found = store.get(key)
        if found is None:
            raise HTTPException(404, "no such session; it may have expired: open a new one")
        predictor, session, lock = found
        with lock:
            known = session.clicks
            session.click(body.item)
            unknown_items.inc(int(session.clicks == known))
            ((_, items),) = listed(predictor, [session], body)
            return response(predictor, session, items)

    @app.delete("/v1/sessions/{key}", status_code=204, dependencies=protected)
    def close_session(key: str) -> None:
        """Ends a live session."""
        if not store.remove(key):
            raise HTTPException(404, "no such session")

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Whether the service answers, and with which model."""
        predictor = models.current
        return {"status": "ok", "model": predictor.model_id, "name": predictor.name, "items": predictor.n_items}

    @app.get("/metrics", dependencies=protected)
    def metrics() -> Response:
        """Counts and times of requests, in the text format of Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _unknown(session: LiveSession) -> UnknownParts:
    unknown = session.unknown
    return UnknownParts(items=unknown.items, attributes=unknown.attributes, values=unknown.values)

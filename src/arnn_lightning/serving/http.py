"""The recommender over HTTP: JSON in and out, live sessions in a bounded store, metrics for Prometheus.

``make_app`` makes an ASGI application, which ``task=serve`` runs. Every error is one sentence under ``detail``.
"""

import asyncio
import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
)
from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arnn_lightning import __version__
from arnn_lightning.errors import UserError
from arnn_lightning.serving.catalogue import Recommendation
from arnn_lightning.serving.live import LiveSession
from arnn_lightning.serving.predictor import Predictor
from arnn_lightning.serving.state import MAX_SEEN

log = logging.getLogger(__name__)


def _require_unicode(text: str) -> str:
    """JSON can contain halves of a surrogate pair, which no answer could contain."""
    if not text.isascii() and text != text.encode(errors="ignore").decode():
        raise ValueError("must be valid Unicode")
    return text


def _whole(number: Any) -> Any:
    """5.0 is an integer in JSON Schema, and in what many clients send."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


Text = Annotated[StrictStr, AfterValidator(_require_unicode)]
Integer = Annotated[StrictInt, BeforeValidator(_whole)]
Id = Integer | Text
Value = StrictBool | StrictInt | StrictFloat | Text | None
MAX_BATCH, MAX_K = 256, 1_000
CLIENT_GONE = 499  # nginx's status of a request that the client gave up


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Visitor(Strict):
    """Who recommendations are for: a profile (attribute -> value or values), a user of the training data, or nobody."""

    profile: dict[Text, Value | list[Value]] | None = Field(None, max_length=1_000)
    user: Id | None = None


NOBODY = Visitor(profile=None)


class Lists(Strict):
    """What is recommended."""

    k: Integer = Field(20, ge=1, le=MAX_K)
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
    """What was ignored: items and users that are not known, attributes of no use, values not seen in training."""

    items: list[Id]
    attributes: list[str]
    values: list[tuple[str, str]]
    users: list[Id]


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


class Problem(BaseModel):
    """Why a request was refused, in one sentence."""

    detail: str


class Health(BaseModel):
    status: str
    model: str
    name: str
    items: int


REFUSALS = {
    400: "The body is not JSON in UTF-8.",
    401: "No valid bearer token.",
    404: "No such session.",
    413: "The body is too large.",
    422: "The body is not as described, or nothing is left to recommend.",
}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses in the description of the API."""
    return {status: {"model": Problem, "description": REFUSALS[status]} for status in statuses}


class SessionStore:
    """Live sessions by id, the least recently used first; a session ends ``seconds`` after its last request.

    Where ``size`` is reached, the least recently used session is dropped. Sessions keep the model they began with.
    """

    def __init__(self, size: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = size
        self.seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, tuple[float, Predictor, LiveSession]] = OrderedDict()

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
            self._sessions[key] = (self._clock(), predictor, session)
        return key

    def get(self, key: str) -> tuple[Predictor, LiveSession] | None:
        """The session's model, and the session."""
        with self._lock:
            self._expire()
            if key not in self._sessions:
                return None
            _, predictor, session = self._sessions.pop(key)
            self._sessions[key] = (self._clock(), predictor, session)
            return predictor, session

    def remove(self, key: str) -> bool:
        with self._lock:
            return self._sessions.pop(key, None) is not None

    def _expire(self) -> None:
        oldest = self._clock() - self.seconds
        while self._sessions and next(iter(self._sessions.values()))[0] < oldest:
            self._sessions.popitem(last=False)


class Job(NamedTuple):
    """Sessions of one request, the items that are clicked in each, and what is recommended after them."""

    predictor: Predictor
    sessions: Sequence[LiveSession]
    items: Sequence[Sequence[Any]]
    lists: Lists


class Batches:
    """Clicks and lists in one thread, the requests that wait together in one batch: the catalogue is read once for all.

    Args:
        size: sessions of a batch, if more than one request is in it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._waiting: deque[tuple[Job, Future[list[list[Recommendation]]]]] = deque()
        self._thread = ThreadPoolExecutor(1, "recommend")

    async def answer(self, job: Job) -> list[list[Recommendation]]:
        """The lists of a request's sessions, after their clicks."""
        future: Future[list[list[Recommendation]]] = Future()
        self._waiting.append((job, future))
        self._thread.submit(self._run)
        return await asyncio.wrap_future(future)

    def _run(self) -> None:
        batch, taken = [], set[int]()
        while self._waiting:
            sessions = {id(session) for session in self._waiting[0][0].sessions}
            # A session that is clicked twice waits for the next batch.
            if taken and (taken & sessions or len(taken) + len(sessions) > self.size):
                break
            taken |= sessions
            batch.append(self._waiting.popleft())
        groups: dict[Any, list[tuple[Job, Future[list[list[Recommendation]]]]]] = {}
        for number, (job, future) in enumerate(batch):
            if not future.set_running_or_notify_cancel():
                continue
            lists = job.lists
            is_alone = lists.items is not None or lists.exclude_items is not None
            key = (id(job.predictor), lists.k, lists.exclude_seen, number if is_alone else None)
            groups.setdefault(key, []).append((job, future))
        for group in groups.values():
            try:
                self._answer(group)
            except Exception as error:
                for _, future in group:
                    future.set_exception(error)

    @staticmethod
    def _answer(group: Sequence[tuple[Job, Future[list[list[Recommendation]]]]]) -> None:
        predictor, lists = group[0][0].predictor, group[0][0].lists
        live = predictor.live
        # Before the clicks: they must not count where the request is refused.
        allowed_I = predictor.catalogue.allowed(lists.items, lists.exclude_items)
        sessions = [session for job, _ in group for session in job.sessions]
        items = [clicked for job, _ in group for clicked in job.items]
        for step in range(max(map(len, items), default=0)):
            active = [number for number, clicked in enumerate(items) if len(clicked) > step]
            live.click([sessions[number] for number in active], [items[number][step] for number in active])
        found = iter(live.top_allowed(sessions, lists.k, lists.exclude_seen, allowed_I))
        for job, future in group:
            future.set_result([*islice(found, len(job.sessions))])


class ReloadingPredictor:
    """The predictor of a checkpoint, replaced when the file changes; requests under way keep the one they began with.

    Args:
        file: the checkpoint.
        read: makes a predictor from it.
        seconds: between two checks of the file.
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
        """Checks the file until ``stop``."""
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
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            is_small = len(body) <= self.size
            more = is_small and message.get("more_body", False)
        if not is_small:
            await _error(413, f"the body must have at most {self.size} bytes")(scope, receive, send)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)


class Measure:
    """Counts and times requests by route and status; a defect is logged and gives status 500.

    Plain ASGI: as a function under ``app.middleware`` it takes a third of a request's time.
    """

    def __init__(self, app: ASGIApp, requests: Counter, seconds: Histogram) -> None:
        self.app, self.requests, self.seconds = app, requests, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), CLIENT_GONE

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        except Exception:
            log.exception("a request failed")
            await _error(500, "internal error; the log of the server has the reason")(scope, receive, send_counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.requests.labels(route, str(status)).inc()
            self.seconds.labels(route).observe(time.perf_counter() - started)


def _answer(body: dict[str, Any], status: int = 200) -> Response:
    """A fifth of the time of JSONResponse."""
    return Response(to_json(body), status, media_type="application/json")


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"detail": " ".join(sentence.split())}, status)


class Answers:
    """What the routes answer with: lists of the current model, or of the one that a live session began with.

    Args:
        models: the model that new requests get.
        unknown_items: counts the items that are not in the catalogue.
    """

    def __init__(self, models: ReloadingPredictor, unknown_items: Counter) -> None:
        self.models = models
        self.unknown_items = unknown_items
        self._batches = Batches(MAX_BATCH)

    async def to_prefixes(self, prefixes: Sequence[Prefix], lists: Lists) -> list[dict[str, Any]]:
        """A list for each of a request's sessions."""
        predictor = self.models.current
        sessions = [predictor.session(prefix.profile, prefix.user) for prefix in prefixes]
        job = Job(predictor, sessions, [prefix.session for prefix in prefixes], lists)
        found = await self._batches.answer(job)
        self.unknown_items.inc(sum(len(session.unknown.items) for session in sessions))
        return [self._body(predictor, session, items) for session, items in zip(sessions, found, strict=True)]

    async def to_click(self, predictor: Predictor, session: LiveSession, click: ClickRequest) -> dict[str, Any]:
        """The list of a live session after a click."""
        known = session.clicks
        (items,) = await self._batches.answer(Job(predictor, [session], [[click.item]], click))
        self.unknown_items.inc(int(session.clicks == known))
        return self._body(predictor, session, items)

    @staticmethod
    def _body(predictor: Predictor, session: LiveSession, items: Sequence[Recommendation]) -> dict[str, Any]:
        listed = [{"id": item.item_id, "score": item.score, "title": item.title} for item in items]
        return {"items": listed, "unknown": _unknown(session), "model": predictor.model_id}


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
    app = FastAPI(
        title="arnn-lightning", version=__version__, summary="Next items of a session, by what is known of it"
    )
    app.add_middleware(BodyLimit, size=max_body_bytes)
    app.add_middleware(Measure, requests=requests, seconds=seconds)
    _handle_errors(app)
    # The scheme is in the description alone: it would refuse some of the headers with status 403.
    protected = [] if token is None else [Depends(_authorization(token)), Depends(HTTPBearer(auto_error=False))]
    unauthorized = [] if token is None else [401]

    def described(*statuses: int) -> dict[str, Any]:
        return {"dependencies": protected, "responses": _refusals(*unauthorized, *statuses)}

    answers = Answers(models, unknown_items)
    _add_list_routes(app, answers, described)
    _add_session_routes(app, answers, store, described)

    @app.get("/health")
    async def health() -> Health:
        """Whether the service answers, and with which model."""
        predictor = models.current
        return Health(status="ok", model=predictor.model_id, name=predictor.name, items=predictor.n_items)

    @app.get("/metrics", response_class=PlainTextResponse, **described())
    async def metrics() -> Response:
        """Counts and times of requests, in the text format of Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _authorization(token: str) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses requests without the token; in constant time."""

    async def authorize(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")  # the bytes as sent
        if not secrets.compare_digest(given, f"Bearer {token}".encode()):
            raise HTTPException(401, "a valid bearer token is required", {"WWW-Authenticate": "Bearer"})

    return authorize


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(UserError)
    def user_error(_: Request, error: UserError) -> Response:
        return _error(422, str(error))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        errors = error.errors()
        if "json" not in request.headers.get("content-type", ""):  # curl's default is that of forms
            return _error(422, "body: the header Content-Type must be application/json")
        if errors[0]["type"] == "json_invalid":
            reason, place = errors[0]["ctx"]["error"], errors[0]["loc"][-1]
            return _error(422, f"body: not JSON at character {place + 1}: {reason}")
        # Further parts, and those with brackets, are names of pydantic's.
        places = [".".join(part for part in map(str, each["loc"][1:3]) if not part.endswith("]")) for each in errors]
        kinds = dict.fromkeys(each["msg"] for each, place in zip(errors, places, strict=True) if place == places[0])
        return _error(422, f"{places[0] or 'body'}: {' or '.join(kinds).replace(' or Input should be', ' or')}")


def _add_list_routes(app: FastAPI, answers: Answers, described: Callable[..., dict[str, Any]]) -> None:
    """Lists for sessions that a request has whole. ``described``: dependencies and refusals of a route.

    Answers are written as they are, and described by their models: validating and copying them takes longer.
    """

    @app.post("/v1/recommend", response_model=RecommendResponse, **described(400, 413, 422))
    async def recommend(body: RecommendRequest) -> Response:
        """The best next items of one session."""
        return _answer((await answers.to_prefixes([body], body))[0])

    @app.post("/v1/recommend/batch", response_model=BatchResponse, **described(400, 413, 422))
    async def recommend_batch(body: BatchRequest) -> Response:
        """The best next items of up to 256 sessions."""
        return _answer({"lists": await answers.to_prefixes(body.sessions, body)})


def _add_session_routes(
    app: FastAPI, answers: Answers, store: SessionStore, described: Callable[..., dict[str, Any]]
) -> None:
    """Live sessions: opened, clicked and closed by their id."""

    @app.post("/v1/sessions", status_code=201, response_model=SessionResponse, **described(400, 413, 422))
    async def open_session(body: Visitor | None = None) -> Response:
        """Opens a live session, kept for some minutes after its last click; without a body, of nobody known."""
        predictor, visitor = answers.models.current, body or NOBODY
        session = predictor.session(visitor.profile, visitor.user)
        key = store.add(predictor, session)
        return _answer({"id": key, "unknown": _unknown(session), "model": predictor.model_id}, 201)

    @app.post("/v1/sessions/{key}/clicks", response_model=RecommendResponse, **described(400, 404, 413, 422))
    async def click(key: str, body: ClickRequest) -> Response:
        """Adds an event to a live session, and returns the best next items."""
        found = store.get(key)
        if found is None:
            raise HTTPException(404, "no such session; it may have expired: open a new one")
        return _answer(await answers.to_click(*found, body))

    @app.delete("/v1/sessions/{key}", status_code=204, **described(404, 413, 422))
    async def close_session(key: str) -> None:
        """Ends a live session."""
        if not store.remove(key):
            raise HTTPException(404, "no such session")


def _unknown(session: LiveSession) -> dict[str, Any]:
    unknown = session.unknown
    return {
        "items": unknown.items,
        "attributes": unknown.attributes,
        "values": unknown.values,
        "users": unknown.users,
    }

"""The recommender over HTTP: JSON in and out, errors, metrics for Prometheus.

``make_app`` makes an ASGI application, which ``task=serve`` runs. Every error is one sentence under ``detail``.
"""

import asyncio
import inspect
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import TypeAdapter
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

from arnn_lightning import __version__
from arnn_lightning.errors import UserError
from arnn_lightning.serving.bodies import (
    NOBODY,
    BatchRequest,
    BatchResponse,
    ClickRequest,
    Health,
    Problem,
    RecommendRequest,
    RecommendResponse,
    SessionResponse,
    Visitor,
)
from arnn_lightning.serving.messages import Answer, Click, Close, Describe, Message, Open, Recommend

log = logging.getLogger(__name__)
Ask = Callable[[Message], Awaitable[Answer]]
Respond = Callable[..., Awaitable[Response]]
DESCRIBE_SECONDS = 0.5  # that /health and /metrics wait for the model
STUCK_SECONDS = 60  # without an answer, after which the model is stuck: the longest request takes some seconds
CLIENT_GONE = 499  # nginx's status of a request that the client gave up
REFUSALS = {
    400: "The body cannot be decoded.",
    401: "No valid bearer token.",
    404: "No such session.",
    413: "The body is too large.",
    422: "The body is invalid, or no item is left to recommend.",
    503: "The model does not answer.",
}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses in the description of the API."""
    return {status: {"model": Problem, "description": REFUSALS[status]} for status in statuses}


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
        messages: list[AsgiMessage] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> AsgiMessage:
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

        async def send_counted(message: AsgiMessage) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        except Exception:
            log.exception("a request failed")
            await _error(500, "internal error; see the log of the server")(scope, receive, send_counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.requests.labels(route, str(status)).inc()
            self.seconds.labels(route).observe(time.perf_counter() - started)


class JsonRoute(APIRoute):
    """A route with a body, whose valid requests skip FastAPI's resolution of parameters: a seventh of a request's time.

    All others are handled by FastAPI, whose errors state what is wrong with them.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        parameters = inspect.signature(self.endpoint).parameters
        if "body" not in parameters:
            return handle
        annotation: Any = parameters["body"].annotation
        body_type: TypeAdapter[Any] = TypeAdapter(annotation)
        called = [dependency.dependency for dependency in self.dependencies]
        checks = [check for check in called if check is not None and not isinstance(check, HTTPBearer)]

        async def handle_json(request: Request) -> Response:
            body, is_valid = None, request.headers.get("content-type") == "application/json"
            if is_valid:
                try:
                    body = body_type.validate_python(json.loads(await request.body()))
                except (ValueError, RecursionError):
                    is_valid = False
            if not is_valid:
                return await handle(request)
            for check in checks:
                await check(request)
            response: Response = await self.endpoint(body=body, **request.path_params)
            return response

        return handle_json


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"detail": " ".join(sentence.split())}, status)


def make_app(ask: Ask, token: str | None, max_body_bytes: int, lifespan: Lifespan[FastAPI] | None = None) -> FastAPI:
    """The application.

    Args:
        ask: returns the service's answer to a message.
        token: every request but /health and the documentation needs it as a bearer token; None: no request does.
        max_body_bytes: of a request.
        lifespan: what is done when the server starts and ends.
    """
    registry = CollectorRegistry()
    requests = Counter("arnn_requests_total", "Requests by route and status.", ("route", "status"), registry=registry)
    seconds = Histogram("arnn_request_seconds", "Seconds of a request by route.", ("route",), registry=registry)
    unknown_items = Counter("arnn_unknown_items_total", "Items that are not in the catalogue.", registry=registry)
    live_sessions = Gauge("arnn_sessions", "Live sessions.", registry=registry)
    summary = "Recommends the next items of a session"
    status = _CachedStatus(ask)

    @asynccontextmanager
    async def described_lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with lifespan(app) if lifespan is not None else nullcontext() as state:
            await status.start()
            yield state

    app = FastAPI(title="arnn-lightning", version=__version__, summary=summary, lifespan=described_lifespan)
    app.router.route_class = JsonRoute
    app.add_middleware(BodyLimit, size=max_body_bytes)
    app.add_middleware(Measure, requests=requests, seconds=seconds)
    _handle_errors(app)
    # The scheme is in the description alone: it would refuse some of the headers with status 403.
    protected = [] if token is None else [Depends(_authorization(token)), Depends(HTTPBearer(auto_error=False))]
    unauthorized = [] if token is None else [401]

    def described(*statuses: int) -> dict[str, Any]:
        return {"dependencies": protected, "responses": _refusals(*unauthorized, *statuses)}

    async def respond(message: Message, status: int = 200) -> Response:
        """Answers are written as they are, and described by their models: validating and copying them takes longer."""
        answer = await ask(message)
        if answer.content is None:
            hint = "" if isinstance(message, Close) else "; it may have expired: open a new one"
            raise HTTPException(404, f"no such session{hint}")
        unknown_items.inc(answer.unknown_items)
        return Response(answer.content or None, status, media_type="application/json" if answer.content else None)

    _add_list_routes(app, respond, described)
    _add_session_routes(app, respond, described)

    @app.get("/health", response_model=Health, responses=_refusals(503))
    async def health() -> Response:
        """The state of the service, and its model."""
        answer = await status()
        if status.is_stuck:
            raise HTTPException(503, f"the model has not answered for {STUCK_SECONDS} s")
        return Response(answer.content, media_type="application/json")

    @app.get("/metrics", response_class=PlainTextResponse, **described())
    async def metrics() -> Response:
        """Counts and times of requests, in the text format of Prometheus."""
        live_sessions.set((await status()).sessions)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


class _CachedStatus:
    """The model and the number of live sessions; the last known ones while the model is busy."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._latest: Answer | None = None
        self._asked: asyncio.Future[Answer] | None = None  # one at a time: more would wait with it
        self._asked_at = 0.0

    async def start(self) -> None:
        """Asks before the first request, when the model computes nothing."""
        self._latest = await self._ask(Describe())

    async def __call__(self) -> Answer:
        asked = self._asked
        if asked is None or asked.done():
            asked, self._asked_at = asyncio.ensure_future(self._ask(Describe())), time.monotonic()
            asked.add_done_callback(self._keep)
            self._asked = asked
        await asyncio.wait({asked}, timeout=None if self._latest is None else DESCRIBE_SECONDS)
        return asked.result() if asked.done() or self._latest is None else self._latest

    @property
    def is_stuck(self) -> bool:
        """Whether the model has not answered for long."""
        return self._asked is not None and not self._asked.done() and time.monotonic() > self._asked_at + STUCK_SECONDS

    def _keep(self, asked: asyncio.Future[Answer]) -> None:
        if not asked.cancelled() and asked.exception() is None:
            self._latest = asked.result()


def run_app(app: FastAPI, host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM. No line is logged per request, which would take time: /metrics counts them."""
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=30, server_header=False, access_log=False)


def _authorization(token: str) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses requests without the token; in constant time."""

    async def authorize(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        matches = secrets.compare_digest(given.encode("latin-1"), token.encode())  # the bytes as sent
        if scheme.lower() != "bearer" or not matches:
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


def _add_list_routes(app: FastAPI, respond: Respond, described: Callable[..., dict[str, Any]]) -> None:
    """Lists for sessions that a request has whole. ``described``: dependencies and refusals of a route."""

    @app.post("/v1/recommend", response_model=RecommendResponse, **described(400, 413, 422))
    async def recommend(body: RecommendRequest) -> Response:
        """The best next items of one session."""
        return await respond(Recommend([body], body, is_batch=False))

    @app.post("/v1/recommend/batch", response_model=BatchResponse, **described(400, 413, 422))
    async def recommend_batch(body: BatchRequest) -> Response:
        """The best next items of up to 256 sessions."""
        return await respond(Recommend(body.sessions, body, is_batch=True))


def _add_session_routes(app: FastAPI, respond: Respond, described: Callable[..., dict[str, Any]]) -> None:
    """Live sessions: opened, clicked and closed by their id."""

    @app.post("/v1/sessions", status_code=201, response_model=SessionResponse, **described(400, 413, 422))
    async def open_session(body: Visitor | None = None) -> Response:
        """Opens a live session, which expires some minutes after its last click. The body is optional."""
        return await respond(Open(body or NOBODY), 201)

    @app.post("/v1/sessions/{key}/clicks", response_model=RecommendResponse, **described(400, 404, 413, 422))
    async def click(key: str, body: ClickRequest) -> Response:
        """Adds an event to a live session, and returns the best next items."""
        return await respond(Click(key, body))

    @app.delete("/v1/sessions/{key}", status_code=204, **described(404, 413, 422))
    async def close_session(key: str) -> Response:
        """Ends a live session."""
        return await respond(Close(key), 204)

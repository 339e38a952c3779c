"""The state of the service between requests: the model, live sessions in a bounded store, and waiting requests."""

import asyncio
import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from arnn_lightning.errors import UserError
from arnn_lightning.serving.bodies import Lists
from arnn_lightning.serving.catalogue import Recommendation
from arnn_lightning.serving.live import LiveSession
from arnn_lightning.serving.predictor import Predictor

log = logging.getLogger(__name__)


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


Found = list[list[Recommendation]]


class Batches:
    """Clicks and lists in one thread, the requests that wait together in one batch: the catalogue is read once for all.

    Args:
        size: sessions of a batch, if more than one request is in it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._waiting: deque[tuple[Job, asyncio.Future[Found]]] = deque()
        self._thread = ThreadPoolExecutor(1, "recommend")

    async def answer(self, job: Job) -> Found:
        """The lists of a request's sessions, after their clicks."""
        future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, future))
        self._thread.submit(self._run)
        return await future

    def _run(self) -> None:
        batch, taken = [], set[int]()
        while self._waiting:
            sessions = {id(session) for session in self._waiting[0][0].sessions}
            # A session that is clicked twice waits for the next batch.
            if taken and (taken & sessions or len(taken) + len(sessions) > self.size):
                break
            taken |= sessions
            batch.append(self._waiting.popleft())
        groups: dict[Any, list[tuple[Job, asyncio.Future[Found]]]] = {}
        for number, (job, future) in enumerate(batch):
            if future.cancelled():
                continue
            lists = job.lists
            is_alone = lists.items is not None or lists.exclude_items is not None
            key = (id(job.predictor), lists.k, lists.exclude_seen, number if is_alone else None)
            groups.setdefault(key, []).append((job, future))
        answers: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Found], Found | Exception]]] = {}
        for group in groups.values():
            jobs = [job for job, _ in group]
            try:
                found: Sequence[Found | Exception] = self._found(jobs)
            except Exception as error:
                found = [error] * len(jobs)
            for (_, future), lists_of_job in zip(group, found, strict=True):
                answers.setdefault(future.get_loop(), []).append((future, lists_of_job))
        for loop, of_loop in answers.items():  # once per batch: each call wakes the loop
            loop.call_soon_threadsafe(_deliver, of_loop)

    @staticmethod
    def _found(jobs: Sequence[Job]) -> list[Found]:
        """The lists of each of several requests with one model and equal options."""
        predictor, lists = jobs[0].predictor, jobs[0].lists
        live = predictor.live
        # Before the clicks: they must not count where the request is refused.
        allowed_I = predictor.catalogue.allowed(lists.items, lists.exclude_items)
        sessions = [session for job in jobs for session in job.sessions]
        items = [clicked for job in jobs for clicked in job.items]
        for step in range(max(map(len, items), default=0)):
            active = [number for number, clicked in enumerate(items) if len(clicked) > step]
            live.click([sessions[number] for number in active], [items[number][step] for number in active])
        found = iter(live.top_allowed(sessions, lists.k, lists.exclude_seen, allowed_I))
        return [[*islice(found, len(job.sessions))] for job in jobs]


def _deliver(answers: Sequence[tuple[asyncio.Future[Found], Found | Exception]]) -> None:
    for future, found in answers:
        if future.cancelled():
            continue
        if isinstance(found, Exception):
            future.set_exception(found)
        else:
            future.set_result(found)


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
            log.warning(f"{self.file}: not loaded, the previous model is kept: {error}")
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

"""What answers the requests of the service: the model, and live sessions in a bounded store."""

import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import to_json

from arnn_lightning.errors import one_line
from arnn_lightning.serving.bodies import MAX_BATCH, ClickRequest, Lists
from arnn_lightning.serving.catalogue import Recommendation
from arnn_lightning.serving.live import LiveSession
from arnn_lightning.serving.messages import Answer, Answers, Click, Close, Message, Open, Recommend
from arnn_lightning.serving.predictor import Predictor

log = logging.getLogger(__name__)
NO_SESSION = Answer(None)
SHORT_EVENTS = 50  # that a batch reads in some milliseconds
JobLists = list[list[Recommendation]]


class SessionStore:
    """Live sessions by id, the least recently used first; a session ends ``seconds`` after its last request.

    Where ``size`` is reached, the least recently used session is dropped. Sessions keep the model they began with.
    """

    def __init__(self, size: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = size
        self.seconds = seconds
        self._clock = clock
        self._sessions: OrderedDict[str, tuple[float, Predictor, LiveSession]] = OrderedDict()

    def __len__(self) -> int:
        self._expire()
        return len(self._sessions)

    def add(self, predictor: Predictor, session: LiveSession) -> str:
        key = secrets.token_urlsafe(16)
        self._expire()
        while len(self._sessions) >= self.size:
            self._sessions.popitem(last=False)
        self._sessions[key] = (self._clock(), predictor, session)
        return key

    def get(self, key: str) -> tuple[Predictor, LiveSession] | None:
        """The session's model, and the session."""
        self._expire()
        if key not in self._sessions:
            return None
        _, predictor, session = self._sessions.pop(key)
        self._sessions[key] = (self._clock(), predictor, session)
        return predictor, session

    def remove(self, key: str) -> bool:
        return self._sessions.pop(key, None) is not None

    def _expire(self) -> None:
        oldest = self._clock() - self.seconds
        while self._sessions and next(iter(self._sessions.values()))[0] < oldest:
            self._sessions.popitem(last=False)


class Job(NamedTuple):
    """Sessions of one message, the items that are clicked in each, and what is recommended after them.

    Attributes:
        number: place of the message among those that are answered together.
        make_answer: from the lists of its sessions.
    """

    number: int
    predictor: Predictor
    sessions: Sequence[LiveSession]
    items: Sequence[Sequence[Any]]
    lists: Lists
    make_answer: Callable[[JobLists], Answer]


class Service:
    """Answers messages. Clicks and lists with equal options are computed in one batch: the catalogue is read once.

    Args:
        models: the model that new sessions get.
        store: of live sessions.
        size: sessions of a batch, if more than one message is in it.
    """

    def __init__(self, models: "ReloadingPredictor", store: SessionStore, size: int = MAX_BATCH) -> None:
        self.models = models
        self.store = store
        self.size = size

    def answer(self, messages: Sequence[Message]) -> Iterator[Answers]:
        """The answers, or exceptions, with the places of their messages; in parts, so that none waits for a long batch.

        Each part costs both processes time: short batches are one part.
        """
        answers: list[tuple[int, Answer | Exception]] = []
        jobs: list[Job] = []
        for number, message in enumerate(messages):
            try:
                prepared = self._prepare(number, message)
            except Exception as error:
                answers.append((number, error))
                continue
            if isinstance(prepared, Job):
                jobs.append(prepared)
            else:
                answers.append((number, prepared))
        for batch in self._batches(jobs):
            n_events = sum(len(clicked) for job in batch for clicked in job.items)
            if answers and n_events > SHORT_EVENTS:
                yield answers
                answers = []
            answers += self._answer_batch(batch)
        if answers:
            yield answers

    async def ask(self, message: Message) -> Answer:
        """The answer to one message, in the process of the application; raises the exception where there is none."""
        (((_, answer),),) = self.answer([message])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _prepare(self, number: int, message: Message) -> Job | Answer:
        predictor = self.models.current
        if isinstance(message, Click):
            held = self.store.get(message.key)
            return NO_SESSION if held is None else self._click(number, *held, message.body)
        if isinstance(message, Recommend):
            return self._recommend(number, predictor, message)
        if isinstance(message, Open):
            session = predictor.session(message.visitor.profile, message.visitor.user)
            key = self.store.add(predictor, session)
            return Answer(to_json({"id": key, "unknown": session.unknown, "model": predictor.model_id}))
        if isinstance(message, Close):
            return Answer(b"") if self.store.remove(message.key) else NO_SESSION
        described = {"status": "ok", "model": predictor.model_id, "name": predictor.name, "items": predictor.n_items}
        return Answer(to_json(described), sessions=len(self.store))

    @staticmethod
    def _recommend(number: int, predictor: Predictor, message: Recommend) -> Job:
        sessions = [predictor.session(prefix.profile, prefix.user) for prefix in message.sessions]

        def make_answer(lists: JobLists) -> Answer:
            bodies = [_body(predictor, session, items) for session, items in zip(sessions, lists, strict=True)]
            clicked = zip(message.sessions, sessions, strict=True)
            unknown = sum(len(prefix.session) - session.clicks for prefix, session in clicked)  # more than are listed
            return Answer(to_json({"lists": bodies} if message.is_batch else bodies[0]), unknown)

        return Job(
            number, predictor, sessions, [prefix.session for prefix in message.sessions], message.lists, make_answer
        )

    @staticmethod
    def _click(number: int, predictor: Predictor, session: LiveSession, click: ClickRequest) -> Job:
        is_unknown = predictor.catalogue.codes.find(click.item, "item") is None

        def make_answer(lists: JobLists) -> Answer:
            return Answer(to_json(_body(predictor, session, lists[0])), int(is_unknown))

        return Job(number, predictor, [session], [[click.item]], click, make_answer)

    def _batches(self, jobs: Iterable[Job]) -> Iterator[list[Job]]:
        """Each has a session once: what is clicked twice is answered in turn."""
        batch, taken = list[Job](), set[int]()
        for job in jobs:
            sessions = {id(session) for session in job.sessions}
            if taken and (taken & sessions or len(taken) + len(sessions) > self.size):
                yield batch
                batch, taken = [], set()
            taken |= sessions
            batch.append(job)
        if batch:
            yield batch

    def _answer_batch(self, batch: Sequence[Job]) -> Iterator[tuple[int, Answer | Exception]]:
        groups: dict[Any, list[Job]] = {}
        for job in batch:
            lists = job.lists
            is_alone = lists.items is not None or lists.exclude_items is not None
            key = (id(job.predictor), lists.k, lists.exclude_seen, job.number if is_alone else None)
            groups.setdefault(key, []).append(job)
        for jobs in groups.values():
            try:
                found: Sequence[Answer | Exception] = [
                    job.make_answer(lists) for job, lists in zip(jobs, self._lists(jobs), strict=True)
                ]
            except Exception as error:
                found = [error] * len(jobs)
            yield from ((job.number, answer) for job, answer in zip(jobs, found, strict=True))

    @staticmethod
    def _lists(jobs: Sequence[Job]) -> list[JobLists]:
        """The lists of each of several jobs with one model and equal options."""
        predictor, lists = jobs[0].predictor, jobs[0].lists
        live = predictor.live
        # Before the clicks: they must not count where the request is refused.
        allowed_I = predictor.catalogue.allowed(lists.items, lists.exclude_items)
        sessions = [session for job in jobs for session in job.sessions]
        items = [clicked for job in jobs for clicked in job.items]
        live.replay(sessions, items)
        found = iter(live.top_allowed(sessions, lists.k, lists.exclude_seen, allowed_I))
        return [[*islice(found, len(job.sessions))] for job in jobs]


def _body(predictor: Predictor, session: LiveSession, items: Sequence[Recommendation]) -> dict[str, Any]:
    listed = [{"id": item.item_id, "score": item.score, "title": item.title} for item in items]
    return {"items": listed, "unknown": session.unknown, "model": predictor.model_id}


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
        self.current = self._load()

    def _load(self) -> Predictor:
        predictor = self._read(self.file)
        _ = predictor.live, predictor.model_id  # computed before the first request
        return predictor

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
            predictor = self._load()
        except Exception as error:  # a defect, too, ends neither the service nor this watch
            is_defect = one_line(error) is None
            log.warning(f"{self.file}: not loaded: {error}; the previous model is kept", exc_info=is_defect)
            return False
        self.current = predictor
        log.info(f"{self.file}: loaded model {predictor.model_id}")
        return True

    def watch(self) -> None:
        """Checks the file until the process ends."""
        while True:
            time.sleep(self.seconds)
            self.reload_if_changed()

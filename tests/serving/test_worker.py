"""The process of the model: what is asked there is answered here."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

import pytest

from arnn_lightning.errors import UserError
from arnn_lightning.serving.messages import Answer, Close, Describe, Message
from arnn_lightning.serving.worker import Worker


class UnpicklableError(Exception):
    def __init__(self, first: str, second: TracebackType | None) -> None:
        super().__init__(first)
        self.frames: Callable[[], object] = lambda: second


class Echo:
    """Answers with the key of each message, and the number of messages that were answered together."""

    def answer(self, messages: Sequence[Message]) -> list[Answer | Exception]:
        return [self._answer(message, len(messages)) for message in messages]

    @staticmethod
    def _answer(message: Message, n_messages: int) -> Answer | Exception:
        key = message.key if isinstance(message, Close) else ""
        if key == "refused":
            return UserError("one line")
        if key == "defect":
            return UnpicklableError("a defect", None)
        if key == "slow":
            time.sleep(0.5)
        if key == "log":
            logging.getLogger("a.module").warning("a line of the process")
        if key == "end":
            os.kill(os.getpid(), signal.SIGKILL)
        if key == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        return Answer(key.encode(), n_messages, os.getpid())


def make_echo() -> Echo:
    return Echo()


def fail(kind: str) -> Echo:
    if kind == "user":
        raise UserError("no checkpoint")
    if kind == "file":
        raise PermissionError(13, "Permission denied", "best.ckpt")
    if kind == "defect":
        raise ValueError("a defect")
    os._exit(3)


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(make_echo)
    yield worker
    worker.close()


async def ask(worker: Worker, *keys: str) -> list[Answer | BaseException]:
    async with worker.lifespan(None):
        return await asyncio.gather(*(worker.ask(Close(key)) for key in keys), return_exceptions=True)


def test_every_message_gets_its_answer(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    keys = ["slow", "refused", "x" * 1_000_000, "defect", "log", "signal", *map(str, range(100))]
    answers = asyncio.run(ask(worker, *keys))
    for key, answer in zip(keys, answers, strict=True):
        if isinstance(answer, Answer):
            assert answer.content == key.encode()
            assert answer.sessions != os.getpid()
    refused, defect = answers[1], answers[3]
    assert isinstance(refused, UserError)
    assert str(refused) == "one line"
    assert isinstance(defect, RuntimeError)
    assert str(defect).endswith("UnpicklableError: a defect")
    assert ("a.module", logging.WARNING, "a line of the process") in caplog.record_tuples
    # While the first was answered, the others waited: they were answered together.
    assert isinstance(answers[-1], Answer)
    assert answers[-1].unknown_items > 50


def test_a_client_that_has_gone_keeps_no_answer_back(worker: Worker) -> None:
    async def leave() -> Answer:
        async with worker.lifespan(None):
            gone = asyncio.create_task(worker.ask(Close("slow")))
            await asyncio.sleep(0.1)
            gone.cancel()
            return await worker.ask(Describe())

    assert asyncio.run(leave()).content == b""


@pytest.mark.parametrize(
    ("kind", "error", "line"),
    [
        ("user", UserError, "^no checkpoint$"),
        ("file", UserError, "^best.ckpt: Permission denied$"),
        ("defect", RuntimeError, "ValueError: a defect$"),
        ("exit", RuntimeError, "ended before the model was loaded"),
    ],
)
def test_errors_before_the_first_message_are_raised(kind: str, error: type[Exception], line: str) -> None:
    with pytest.raises(error, match=line):
        Worker(fail, kind)


def test_the_service_ends_with_the_process_of_the_model(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    codes: list[int] = []

    async def end() -> None:
        async with worker.lifespan(None):
            gone = asyncio.create_task(worker.ask(Close("end")))
            while not codes:
                await asyncio.sleep(0.01)
            gone.cancel()

    monkeypatch.setattr(os, "_exit", codes.append)
    asyncio.run(asyncio.wait_for(end(), 20))
    assert codes == [1]
    assert "the process of the model has ended" in caplog.text


def test_the_process_ends_with_the_service(worker: Worker) -> None:
    (answer,) = asyncio.run(ask(worker, "a"))
    assert isinstance(answer, Answer)
    with pytest.raises(ProcessLookupError):
        os.kill(answer.sessions, 0)

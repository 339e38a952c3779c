"""The model process: its answers to requests."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType

import pytest
import uvicorn

from arnn_lightning.errors import UserError
from arnn_lightning.serving.messages import Answer, Close, Describe, Message
from arnn_lightning.serving.worker import Worker


class UnpicklableError(Exception):
    def __init__(self, first: str, second: TracebackType | None) -> None:
        super().__init__(first)
        self.frames: Callable[[], object] = lambda: second


class Echo:
    """Answers with the key of each message, and the number of messages that were answered together."""

    def answer(self, messages: Sequence[Message]) -> Iterator[list[tuple[int, Answer | Exception]]]:
        for place, message in reversed([*enumerate(messages)]):
            yield [(place, self._answer(message, len(messages)))]

    @staticmethod
    def _answer(message: Message, n_messages: int) -> Answer | Exception:
        key = message.key if isinstance(message, Close) else ""
        if key == "refused":
            return UserError("one line")
        if key == "defect":
            return UnpicklableError("a defect", None)
        if key in ("slow", "hour"):
            time.sleep(0.5 if key == "slow" else 3_600)
        if key == "log":
            logging.getLogger("a.module").warning("a line of the process")
        if key == "end":
            os.kill(os.getpid(), signal.SIGKILL)
        if key == "signals":
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
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
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(3)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setattr(os, "_exit", pytest.fail)  # where the process ends: it would end the tests
    worker = Worker(make_echo)
    yield worker
    worker.close()


async def ask(worker: Worker, *keys: str) -> list[Answer | BaseException]:
    async with worker.lifespan(None):
        return await asyncio.gather(*(worker.ask(Close(key)) for key in keys), return_exceptions=True)


@pytest.mark.parametrize("loop", ["asyncio", "auto"])  # auto: uvloop, where it can be installed
def test_every_message_gets_its_answer(loop: str, worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    keys = ["slow", "refused", "x" * 1_000_000, "defect", "log", "signals", *map(str, range(100))]
    with asyncio.Runner(loop_factory=uvicorn.Config("app", loop=loop).get_loop_factory()) as runner:
        answers = runner.run(ask(worker, *keys))
    refused, defect = answers.pop(keys.index("refused")), answers.pop(keys.index("defect") - 1)
    for key, answer in zip([key for key in keys if key not in ("refused", "defect")], answers, strict=True):
        assert isinstance(answer, Answer)
        assert answer.content == key.encode()
        assert answer.sessions != os.getpid()
    assert isinstance(refused, UserError)
    assert str(refused) == "one line"
    assert isinstance(defect, RuntimeError)
    assert str(defect).endswith("UnpicklableError: a defect")
    assert ("a.module", logging.WARNING, "a line of the process") in caplog.record_tuples
    # The last ones waited while the first was answered: they were read together.
    assert answers[-1].unknown_items > 10


def test_a_cancelled_request_keeps_no_answer_back(worker: Worker) -> None:
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
        ("exit", UserError, "ended before the model was loaded$"),
        ("kill", UserError, "ended before the model was loaded: killed by signal 9, possibly out of memory$"),
    ],
)
def test_errors_before_the_first_message_are_raised(kind: str, error: type[Exception], line: str) -> None:
    with pytest.raises(error, match=line):
        Worker(fail, kind)


INTERRUPTED = """
import os, signal
from test_worker import Echo
if os.getpid() != {pid}:
    os.kill(os.getpid(), signal.SIGINT)
def make():
    return Echo()
"""


def test_ctrl_c_while_the_process_starts_does_not_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED.format(pid=os.getpid()))
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    worker = Worker(import_module("interrupted").make)
    worker.close()
    assert signal.getsignal(signal.SIGINT) is before


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
    assert "the model process has ended: killed by signal 9" in caplog.text


def test_a_process_that_still_computes_is_ended(worker: Worker) -> None:
    async def leave() -> None:
        async with worker.lifespan(None):
            asked = asyncio.create_task(worker.ask(Close("hour")))
            await asyncio.sleep(0.1)
        asked.cancel()

    started = time.monotonic()
    asyncio.run(leave())
    assert time.monotonic() - started < 30


PARENT = """
import time
from test_worker import Worker, make_echo
if __name__ == "__main__":
    print(Worker(make_echo)._process.pid, flush=True)
    time.sleep(60)
"""


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    for _ in range(300):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the process of the model is still there")

"""The process of the model: HTTP takes half as much processor time as the model, so each gets a core of its own."""

import asyncio
import contextlib
import logging
import logging.handlers
import multiprocessing
import os
import signal
import socket
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any, Protocol

from arnn_lightning.errors import UserError, one_line
from arnn_lightning.serving.messages import Answer, Answers, Message, Unpacker, pack

log = logging.getLogger(__name__)
READ_BYTES = 1 << 16
CLOSE_SECONDS = 1.0
READY = "ready"


class Answering(Protocol):
    """Answers messages that wait together."""

    def answer(self, messages: Sequence[Message]) -> Iterable[Answers]:
        """The answers with the places of their messages, in parts."""
        ...


class Worker(asyncio.Protocol):
    """A process that answers messages. It ends when its parent ends: the socket is then closed.

    Args:
        make: returns what answers, in the process; a function that is importable by its name.
        arguments: of ``make``.

    Raises:
        UserError: that of ``make``, or the process has ended.
        RuntimeError: a defect in ``make``, with its traceback.
    """

    def __init__(self, make: Callable[..., Answering], *arguments: Any) -> None:
        self._socket, of_process = socket.socketpair()
        process = multiprocessing.get_context("spawn").Process
        self._process = process(target=_work, args=(of_process, make, arguments))
        with _ignored_interrupts():
            self._process.start()
        of_process.close()
        self._unpacker = Unpacker()
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._transport: asyncio.Transport | None = None
        self._is_closing = False
        try:
            self._wait_until_ready()
        except BaseException:
            self._process.kill()
            self.close()
            raise

    def _wait_until_ready(self) -> None:
        values: list[Any] = []
        while not values:
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise UserError(f"the model process ended before the model was loaded{self._reason()}")
            values = self._receive(data)
        if isinstance(values[0], Exception):
            raise values[0]

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Of the application whose requests it answers: connects it to the event loop of the server."""
        await asyncio.get_running_loop().create_connection(lambda: self, sock=self._socket)
        try:
            yield
        finally:
            self.close()

    async def ask(self, message: Message) -> Answer:
        """The answer to a message; those with equal options that wait at the same time are computed together.

        Raises:
            UserError: a message that cannot be answered.
            RuntimeError: a defect, with the traceback of the process.
        """
        assert self._transport is not None
        number = next(self._numbers)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._transport.write(pack((number, message)))
        return await future

    def close(self) -> None:
        """Ends the process."""
        self._is_closing = True
        with contextlib.suppress(OSError):  # closed by the process, or before
            self._socket.shutdown(socket.SHUT_RDWR)
        self._process.join(CLOSE_SECONDS)
        self._process.kill()  # it computes what nobody waits for
        self._process.join()
        if self._transport is not None:
            self._transport.abort()
        self._socket.close()

    def _reason(self) -> str:
        """Why the process has ended, if a signal has ended it."""
        self._process.join(CLOSE_SECONDS)
        code = self._process.exitcode
        return "" if code is None or code >= 0 else f": killed by signal {-code}, possibly out of memory"

    def _receive(self, data: bytes) -> list[Any]:
        """The values that ``data`` completes, but for log records, which are logged."""
        values = self._unpacker.feed(data)
        for value in values:
            if isinstance(value, logging.LogRecord):
                logging.getLogger(value.name).handle(value)
        return [value for value in values if not isinstance(value, logging.LogRecord)]

    # --- asyncio.Protocol ---

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for answers in self._receive(data):
            for number, answer in answers:
                future = self._waiting.pop(number)
                if future.done():  # cancelled: the service is ending
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._is_closing:
            log.error(f"the model process has ended{self._reason()}; stopping the service")
            os._exit(1)  # what a supervisor restarts


@contextlib.contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """A process that starts here ignores SIGINT from its first instruction: Ctrl-C reaches it, too."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


class _Sender:
    """Sends values from several threads; to ``QueueHandler`` it is the queue of log records."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def put_nowait(self, value: Any) -> None:
        content = pack(value)
        with self._lock:
            self._connection.sendall(content)


def _work(connection: socket.socket, make: Callable[..., Answering], arguments: Sequence[Any]) -> None:
    for ending in (signal.SIGINT, signal.SIGTERM):  # they reach both processes, and this one answers to the end
        signal.signal(ending, signal.SIG_IGN)
    sender = _Sender(connection)
    with contextlib.suppress(ConnectionError):  # the other process has ended
        logging.root.setLevel(logging.INFO)
        logging.root.addHandler(logging.handlers.QueueHandler(sender))  # type: ignore[arg-type]
        try:
            service = make(*arguments)
        except Exception as error:
            line = one_line(error)
            sender.put_nowait(_portable(error) if line is None else UserError(line))
            return
        sender.put_nowait(READY)
        unpacker = Unpacker()
        while data := connection.recv(READ_BYTES):
            messages = unpacker.feed(data)
            if messages:
                for answers in service.answer([message for _, message in messages]):
                    sender.put_nowait([(messages[place][0], _portable(answer)) for place, answer in answers])


def _portable(answer: Answer | Exception) -> Answer | Exception:
    """Exceptions but those of users as one that can be pickled, and that has the traceback."""
    if isinstance(answer, Exception) and not isinstance(answer, UserError):
        return RuntimeError("".join(traceback.format_exception(answer)).rstrip())
    return answer

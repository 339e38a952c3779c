"""The messages between the process that serves HTTP and the one that has the model."""

import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

from arnn_lightning.serving.bodies import ClickRequest, Lists, Prefix, Visitor


class Recommend(NamedTuple):
    """Recommendations for sessions that the request contains in full."""

    sessions: Sequence[Prefix]
    lists: Lists
    is_batch: bool


class Open(NamedTuple):
    """A live session of a visitor."""

    visitor: Visitor


class Click(NamedTuple):
    """An event in a live session, and the list after it."""

    key: str
    body: ClickRequest


class Close(NamedTuple):
    """The end of a live session."""

    key: str


class Describe(NamedTuple):
    """The model, and the number of live sessions."""


Message = Recommend | Open | Click | Close | Describe


class Answer(NamedTuple):
    """The answer to one message.

    Attributes:
        content: the body of the response, JSON; None where there is no such session.
        unknown_items: number of items that are not in the catalogue.
        sessions: number of live sessions, as an answer to ``Describe``.
    """

    content: bytes | None
    unknown_items: int = 0
    sessions: int = 0


Answers = Sequence[tuple[int, Answer | Exception]]  # to messages that were read together, with their places


LENGTH = 4  # bytes


def pack(value: Any) -> bytes:
    """A value as bytes that ``Unpacker`` reads: pickled, after its length."""
    content = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return len(content).to_bytes(LENGTH, "big") + content


class Unpacker:
    """Reads values from the bytes of a connection, which arrive in pieces of any length.

    >>> unpacker, content = Unpacker(), pack("a") + pack("b")
    >>> unpacker.feed(content[:20]), unpacker.feed(content[20:])
    (['a'], ['b'])
    """

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The values that ``data`` completes."""
        self._received += data
        values, start = [], 0
        while len(self._received) >= start + LENGTH:
            stop = start + LENGTH + int.from_bytes(self._received[start : start + LENGTH], "big")
            if len(self._received) < stop:
                break
            values.append(pickle.loads(self._received[start + LENGTH : stop]))
            start = stop
        del self._received[:start]
        return values

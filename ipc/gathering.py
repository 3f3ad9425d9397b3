"""Messages in a row on one topic, gathered into the array that will carry them. Shared by both flavours.

The short path of `publish`: what is unusual about a message is left to the long one, `add` then says no. Who may
receive and how much is decided by whoever begins one; sending is in publishing.py. No I/O, no clock, no locks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from smartipc.ipc.contracts import Topic
from smartipc.ipc.links import LIMITS
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.tracing import with_trace, within
from smartipc.ipc.wire.codec import UNFIT, append
from smartipc.ipc.wire.frames import ARRAY, ARRAY_MARK


class Gathering(ABC):
    """What is encoded once for all subscribers of a topic, and sent when it is enough.

    Args:
        topic: the contract.
        directory: whose state must stay what it is; another thread may change it at any moment.
        room: messages for which every subscriber has credit.
        limit: bytes that are enough.

    All messages belong to the trace of what is being handled when it begins.
    """

    __slots__ = ("_data", "_directory", "_limit", "_request", "_size", "_state", "_type", "count", "headers", "room",
                 "topic")  # fmt: skip

    def __init__(self, topic: Topic[Any], directory: Directory, room: int, limit: int) -> None:
        self.topic = topic
        self.headers = with_trace(None)
        """Those of every message."""
        self._request = within()
        self.room = room
        """Messages that may still be added; whoever ends it sets 0."""
        self.count = 0
        """Messages that wait here."""
        self._directory = directory
        self._state = directory.state
        self._type = topic.payload
        self._limit = min(limit, LIMITS.chunk)
        self._size = ARRAY.size
        self._data = bytearray(ARRAY.size)

    def add(self, payload: Any) -> bool:
        """Append a message, and send what is enough; return whether it was done."""
        if (
            not self.room
            or type(payload) is not self._type
            or self._directory.state is not self._state
            or within() is not self._request
        ):
            return False
        data = self._data
        try:
            append(payload, data, -1)
        except UNFIT:
            del data[self._size :]
            return False
        size = len(data)
        if size > self._limit:
            if size > LIMITS.chunk:
                del data[self._size :]
                return False
            self.room -= 1
            self.count += 1
            self._size = size
            self.leave()
            return True
        self.room -= 1
        self.count += 1
        self._size = size
        return True

    def take(self) -> tuple[int, bytes]:
        """Hand out how many messages wait, and the array of them."""
        data = self._data
        del data[self._size :]  # half a message, if something interrupted its adding
        count, self.count, self._size = self.count, 0, ARRAY.size
        ARRAY.pack_into(data, 0, ARRAY_MARK, count)
        body = bytes(data)
        del data[ARRAY.size :]
        return count, body

    @abstractmethod
    def leave(self) -> None:
        """Send what was gathered."""

"""Answers to what an async worker was asked: what a handler returned or raised, as a reply or a fault on its link.

Shared by requests that come alone (serving.py) and in batches (batches.py). Never runs a handler, never waits.
"""

from __future__ import annotations

import logging
from typing import Any

from smartipc.ipc.dispatch import ENDING, Handler, Registry
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.errors import FrameTooLarge, RequestCancelled, RequestTimeout, SmartIpcError
from smartipc.ipc.wire.codec import UNFIT, append
from smartipc.ipc.wire.frames import ARRAY, ARRAY_MARK, ID_STEP
from smartipc.ipc.wire.heads import Fault

log = logging.getLogger("smartipc.serving")


class Answers:
    """Says what became of a request. A link that is closed, and a request that was cancelled, get none.

    Args:
        registry: makes replies and faults.
    """

    __slots__ = ("_registry",)

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def __repr__(self) -> str:
        return f"<Answers of {self._registry!r}>"

    def reply(self, handler: Handler, link: Link, ident: int, value: Any) -> None:
        """Answer with what the handler returned, or say that it is none of the contract's, or too large."""
        reply = self._registry.reply(handler, value)
        if isinstance(reply, Fault):
            link.fail(ident, reply)
            return
        try:
            link.reply(ident, reply)
        except FrameTooLarge as error:
            link.fail(ident, self._registry.fault(error, ()))

    def failed(self, handler: Handler, link: Link, ident: int, error: BaseException) -> None:
        """Answer with what the handler raised, and raise on what ends the program: its caller shall know."""
        if not isinstance(error, handler.errors):
            log.debug("handler of %s raised", handler.name, exc_info=error)
        link.fail(ident, self._registry.failed(error, handler.errors))
        if isinstance(error, ENDING):
            raise error

    def cancelled(self, handler: Handler, link: Link, ident: int) -> None:
        """Answer for a handler that cancelled itself."""
        link.fail(ident, self._registry.fault(RequestCancelled(method=handler.name), ()))

    def expired(self, handler: Handler, link: Link, ident: int) -> None:
        """Answer for a handler that was not called any more."""
        reason = "the deadline passed before the handler could start"
        link.fail(ident, self._registry.fault(RequestTimeout(None, reason, method=handler.name, processed="no"), ()))

    def refused(self, link: Link, ident: int, error: SmartIpcError) -> None:
        """Answer for a handler that will not be called, and why."""
        link.fail(ident, self._registry.fault(error, ()))


class Replies:
    """Replies of one link whose ids follow each other, collected into one frame. None are kept beyond `send`.

    Args:
        link: takes batches, or has no `room`.
    """

    __slots__ = ("_buffer", "_count", "_link", "_next", "room")

    def __init__(self, link: Link) -> None:
        self._link = link
        self._buffer = bytearray(ARRAY.size)
        self._count = 0
        self._next = 0
        self.room = link.connection.limits.chunk if link.connection.batching_calls else 0
        """Bytes of a frame; 0 for a peer that takes no batches."""

    def __repr__(self) -> str:
        return f"<Replies {self._count}>"

    def add(self, ident: int, value: Any) -> bool:
        """Collect a reply; return whether it was done. A value that was taken may be changed afterwards."""
        if ident != self._next:
            self.send()
        buffer = self._buffer
        size = len(buffer)
        try:
            append(value, buffer, -1)
        except UNFIT:
            del buffer[size:]
            return False
        if len(buffer) > self.room:
            del buffer[size:]
            return False
        self._next = ident + ID_STEP
        self._count += 1
        return True

    def send(self) -> None:
        """Answer with what was collected."""
        count, buffer = self._count, self._buffer
        if not count:
            return
        self._count = 0
        self._buffer = bytearray(ARRAY.size)
        first = self._next - ID_STEP * count
        if count == 1:
            self._link.reply(first, bytes(buffer[ARRAY.size :]))
        else:
            ARRAY.pack_into(buffer, 0, ARRAY_MARK, count)
            self._link.reply_all(range(first, self._next, ID_STEP), buffer)

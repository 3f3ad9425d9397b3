"""Requests by the hatch, for the blocking driver: how each side of it keeps its half of the bargain with the stream.

By the hatch come whole requests and their replies, one at a time, and only while the answering side stands behind it;
everything else, and whatever does not fit, goes by the stream. What a hatch is, is in transports.hatch; when to stand
behind it is the server's business.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.straight import Asked
from smartipc.ipc.transports.hatch import OPEN, ROOM, SHUT, Hatch
from smartipc.ipc.wire.frames import HEADER, HEADER_SIZE

_LARGEST = ROOM - 64
"""Bytes of method and payload that fit for certain."""
_FIRST = 0.005
"""Seconds to wait for an answer before it is asked whether anybody has the request. No less than this and `_PAUSE`: a
timer that comes before the kernel's next tick is programmed into the clock each time, which costs a microsecond."""
_SLICE = 0.05
"""Seconds after which whoever waits for an answer looks at the stream: it may have ended."""
_PAUSE = 0.005
"""Seconds to stand behind a hatch for another request, while other links wait."""


class HatchLink(Protocol):
    """What is needed of a link."""

    connection: Connection
    closed: bool
    watchers: dict[int, Callable[[], None]]

    def take_aside(self, data: bytes) -> None:
        """Take a frame that came by the hatch."""

    def resend(self, frame: bytes) -> None:
        """Send a frame by the stream."""

    def pump(self, timeout: float) -> None:
        """Read what is there."""

    def abandon(self) -> None:
        """End the link, because what is under way is in an unknown state."""


class AskingEnd:
    """Our side of a hatch that the peer has joined.

    Args:
        link: whose hatch it is.
        hatch: the hatch.
        lock: of the link.
        results: of the link: by id, what calls end with.
        pending: what stands there for a call that has not ended.
    """

    def __init__(
        self, link: HatchLink, hatch: Hatch, lock: threading.Lock, results: dict[int, object], pending: object
    ) -> None:
        self.hatch = hatch
        self._link = link
        self._straight = link.connection.straight
        self._tally = link.connection.tally
        self._state = hatch.view_state()
        self._lock = lock
        self._results = results
        self._pending = pending
        self.busy = False
        """Whether a request is on its way by it. Set under the lock."""
        self._given_up = False
        """Whether the server may be reading a request that we gave up: not until it was seen to leave."""

    def __repr__(self) -> str:
        return f"<AskingEnd of {self.hatch!r}>"

    def ask(self, method: str, payload: bytes, timeout: float, now: float) -> tuple[int, bytes | None] | None:
        """Hand a request over and wait; return its id and its answer, or no answer: then the link's `finish` knows.

        None if it cannot go by the hatch; then nothing has happened. An exception that interrupts it leaves the call,
        and the hatch, in an unknown state: the link must end.

        Raises:
            FrameTooLarge: the method's name exceeds a limit; nothing has happened.
        """
        hatch = self.hatch
        if self._state[0] != OPEN or len(payload) + 4 * len(method) > _LARGEST:
            if self._given_up:
                self._look_for_leaving()
            return None
        with self._lock:
            if self.busy or self._given_up:
                return None
            begun = self._straight.request(method, payload, now, timeout)
            if begun is None:
                return None
            ident, frame = begun
            self._results[ident] = self._pending
            self.busy = True
        hatch.post(frame)
        data = hatch.collect(_FIRST)
        if data:
            now = time.monotonic() if ident == self._tally.timed else now
            with self._lock:
                answer = self._straight.answered(ident, data, now)
                if answer is not None:
                    del self._results[ident]
                    self.busy = False
                    return ident, answer
        self._stay(ident, frame, data)
        return ident, None

    def _look_for_leaving(self) -> None:
        """Take the hatch up again if the server has left it since we gave a request up."""
        with self._lock:  # else another thread could give up the next one between our look and what we conclude
            if self.hatch.state == SHUT:
                self._given_up = False

    def _stay(self, ident: int, frame: bytes, data: bytes | None) -> None:
        """Wait on until the call has ended, the link is over, or the request went by the stream."""
        link, hatch, results, pending = self._link, self.hatch, self._results, self._pending
        me = threading.get_ident()
        before = link.watchers.get(me)
        link.watchers[me] = hatch.wake  # another thread may read our answer from the stream
        try:
            while results.get(ident) is pending and not link.closed:
                if data:
                    link.take_aside(data)
                    data = None  # it was another call's; the call to look at the stream may have been made by it, too
                    continue
                if hatch.state == SHUT and hatch.withdraw():
                    link.resend(frame)
                    return
                link.pump(0)
                if results.get(ident) is pending:
                    timer = link.connection.next_timer()
                    left = _SLICE if timer is None else min(_SLICE, timer - time.monotonic())
                    data = hatch.collect(max(0.0, left))
        finally:
            given_up = not hatch.withdraw() and hatch.give_up()
            with self._lock:
                self._given_up = given_up
                self.busy = False
            if before is None:
                link.watchers.pop(me, None)
            else:
                link.watchers[me] = before


class AnsweringEnd:
    """Our side of a hatch that we joined.

    Args:
        link: whose hatch it is.
        hatch: the hatch.
        lock: of the link.
    """

    def __init__(self, link: HatchLink, hatch: Hatch, lock: threading.Lock) -> None:
        self.asked = 0
        """The last request that came by it, until it is answered by it."""
        self.hatch = hatch
        self._link = link
        self._straight = link.connection.straight
        self._lock = lock

    def __repr__(self) -> str:
        return f"<AnsweringEnd of {self.hatch!r}>"

    def hear(self) -> Asked | None:
        """Wait a moment for a request and return it, if it is a plain one; what else comes is dispatched.

        An exception that interrupts it ends the link: a request may have been taken.
        """
        try:
            data = self.hatch.take(_PAUSE)
            if not data:
                return None
            now = time.monotonic()
            with self._lock:
                asked = self._straight.requested(data, now)
            if asked is None:
                self._pass_on(data)
                return None
            self.asked = asked[0]
        except BaseException:
            self._link.abandon()
            raise
        return asked

    def leave(self) -> None:
        """Go away; a request that came meanwhile is dispatched. Interrupted, it ends the link."""
        try:
            data = self.hatch.leave()
            if data:
                self._pass_on(data)
        except BaseException:
            self._link.abandon()
            raise

    def _pass_on(self, data: bytes) -> None:
        if len(data) >= HEADER_SIZE:
            self.asked = HEADER.unpack_from(data)[4]
        self._link.take_aside(data)


def offered() -> Hatch | None:
    """Make a hatch, if there is room for one."""
    try:
        return Hatch.create()
    except OSError:
        return None


def joined(name: Any) -> Hatch | str:
    """Join the hatch of that name; else return why not."""
    try:
        return Hatch.join(name)
    except OSError as error:
        return error.strerror or str(error)

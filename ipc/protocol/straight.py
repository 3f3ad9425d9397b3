"""The common case in one step: one whole small request or reply, while nothing else is under way on the connection.

Each member does what Connection and its components would do with the same bytes at the same moment, or refuses (None)
without having changed anything: then they do it. The equivalence is a property test. Nothing that is not the plain case
belongs here: no headers, errors, pieces, attachments, limits that are reached, or ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from smartipc.ipc.protocol.buffers import Buffers
from smartipc.ipc.protocol.calls import Calls
from smartipc.ipc.protocol.outbox import Outbox
from smartipc.ipc.protocol.reassembly import Reassembly
from smartipc.ipc.protocol.requests import Requests
from smartipc.ipc.protocol.tally import SAMPLED, Tally
from smartipc.ipc.wire.frames import HEADER, HEADER_SIZE, Kind
from smartipc.ipc.wire.heads import RequestHead
from smartipc.ipc.wire.limits import Limits
from smartipc.ipc.wire.receive_buffer import ReceiveBuffer

Asked: TypeAlias = tuple[int, RequestHead, bytes, float | None, float]
"""A request: its id, head, payload, deadline in monotonic seconds or None, and when it came."""

_REQUEST = int(Kind.REQUEST)
_RESPONSE = int(Kind.RESPONSE)


class Straight:
    """The short way through one connection. It is open while `open` is set.

    Args:
        calls: our requests.
        requests: the peer's.
        out: what waits to be sent; the short way is only for when that is nothing.
        incoming: bytes that are not a whole frame yet; likewise.
        parts: messages that are not here as a whole; likewise.
        buffers: descriptors that came beside bytes; likewise.
        limits: bounds of the connection.
        tally: counts what passes.
        head: gives the encoded head of a request by method, milliseconds and attempt.
    """

    __slots__ = (
        "_batches", "_calls", "_halves", "_head", "_head_of", "_heads", "_in", "_inflight", "_method",
        "_ours", "_out", "_requests", "_serving", "_small", "_tally", "_timeout", "open", "received",
    )  # fmt: skip

    def __init__(
        self,
        calls: Calls,
        requests: Requests,
        out: Outbox,
        incoming: ReceiveBuffer,
        parts: Reassembly,
        buffers: Buffers,
        limits: Limits,
        tally: Tally,
        head: Callable[[str, int, int], bytes],
    ) -> None:
        self.open = False
        """Whether the handshake is over, and nobody has said goodbye."""
        self.received = 0
        """Bytes that were taken here."""
        self._calls = calls
        self._requests = requests
        self._serving = requests.serving
        self._heads = requests.heads
        self._out = out
        self._in = incoming
        self._halves = parts.halves
        self._batches = buffers.batches
        self._inflight = limits.inflight
        self._small = min(limits.chunk, limits.frame)
        self._ours = int(calls.owns(1))
        self._tally = tally
        self._head_of = head
        self._method = ""
        self._timeout = 0.0
        self._head = b""

    def __repr__(self) -> str:
        return f"<Straight {'open' if self.open else 'closed'}, {self.received} bytes>"

    def request(self, method: str, payload: bytes, now: float, timeout: float) -> tuple[int, bytes] | None:
        """Return the id and the frame of a request, which counts as handed out; see Connection.request.

        Raises:
            FrameTooLarge: as Connection.request, of which nothing has happened.
        """
        out = self._out
        size = len(payload)
        if (
            not self.open
            or out.normal
            or out.control
            or out.bulk
            or type(payload) is not bytes
            or size > self._small
            or size > self._requests.message_limit
        ):
            return None
        if method is not self._method or timeout != self._timeout:
            self._head = self._head_of(method, max(1, int(timeout * 1000)), 1)
            self._method, self._timeout = method, timeout
        head = self._head
        ident = self._calls.add(now + timeout)
        tally = self._tally
        tally.sent += 1
        if not ident & SAMPLED:
            tally.timed = ident
            tally.timed_at = now
        return ident, HEADER.pack(len(head) + size, _REQUEST, 0, len(head), ident) + head + payload

    def answered(self, ident: int, data: bytes, now: float) -> bytes | None:
        """Take what was read, if it is the answer to our request `ident` and nothing else; return its payload.

        The time is looked at only for the request that the tally times.
        """
        size = len(data) - HEADER_SIZE
        incoming = self._in
        if (
            not 0 <= size <= self._small
            or HEADER.unpack_from(data) != (size, _RESPONSE, 0, 0, ident)
            or not self.open
            or incoming.offset != len(incoming.data)
            or self._halves
            or self._batches
            or self._calls.pending.pop(ident, None) is None
        ):
            return None
        self.received += len(data)
        if ident == self._tally.timed:
            self._tally.answered(now)
        return data[HEADER_SIZE:]

    def requested(self, data: bytes, now: float) -> Asked | None:
        """Take what was read, if it is one request whose head was seen before and nothing else."""
        size = len(data) - HEADER_SIZE
        incoming = self._in
        if not 0 <= size <= self._small or not self.open or incoming.offset != len(incoming.data):
            return None
        said, kind, flags, head_size, ident = HEADER.unpack_from(data)
        body = HEADER_SIZE + head_size
        serving = self._serving
        if (
            kind != _REQUEST
            or said != size
            or flags
            or (fields := self._heads.get(data[HEADER_SIZE:body])) is None
            or head_size > size
            or self._requests.refuse is not None
            or len(serving) >= self._inflight
            or ident in serving
            or ident & 1 is self._ours
            or not ident
            or self._halves
            or self._batches
        ):
            return None
        self.received += len(data)
        self._tally.received += 1
        serving.add(ident)
        milliseconds = fields.timeout_ms
        return ident, fields, data[body:], now + milliseconds / 1000 if milliseconds > 0 else None, now

    def reply(self, ident: int, payload: bytes) -> bytes | None:
        """Return the frame that answers a request, which counts as handed out; see Requests.reply."""
        out, requests = self._out, self._requests
        size = len(payload)
        if (
            not self.open
            or ident not in self._serving
            or out.normal
            or out.control
            or out.bulk
            or type(payload) is not bytes
            or size > self._small
            or size > requests.message_limit
            or requests.heavy
        ):
            return None
        self._serving.discard(ident)
        return HEADER.pack(size, _RESPONSE, 0, 0, ident) + payload

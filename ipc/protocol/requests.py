"""The peer's requests on one connection until they are answered: REQUEST, CANCEL, and what answers them.

A component of Connection, as pure as it. Our own requests are in calls.py; what a method does is not known here.
"""

from __future__ import annotations

from smartipc.ipc.errors import FrameTooLarge, RemoteProtocolError
from smartipc.ipc.protocol.calls import Calls
from smartipc.ipc.protocol.events import CancelReceived, Event, RequestReceived, RequestsReceived
from smartipc.ipc.protocol.outbox import Outbox
from smartipc.ipc.protocol.reassembly import Reassembly
from smartipc.ipc.protocol.tally import Tally
from smartipc.ipc.wire import codec, heads
from smartipc.ipc.wire.frames import ID_STEP, Kind, frame, ids_of
from smartipc.ipc.wire.heads import Fault
from smartipc.ipc.wire.limits import Limits

_OVERLOADED = Fault(8, "Overloaded", "too many requests in flight", retryable=True, processed=0)
_REQUEST = int(Kind.REQUEST)
_RESPONSE = int(Kind.RESPONSE)
_RESPONSE_BATCH = int(Kind.RESPONSE_BATCH)
_LOOK_BACK = 256
"""Events of one read among which a cancelled request is looked for, so that a flood of both costs no square."""
_CACHE = 1024
"""Decoded heads that are kept; the table is emptied when it is full."""
_CACHED_HEAD = 128
"""Bytes of the largest head that is kept."""


class Requests:
    """What one connection has been asked.

    Args:
        calls: our own requests, whose ids the peer must not use.
        out: where frames wait to be sent.
        parts: requests that are not here as a whole.
        limits: bounds of the connection.
        tally: counts them.
    """

    def __init__(self, calls: Calls, out: Outbox, parts: Reassembly, limits: Limits, tally: Tally) -> None:
        self.message_limit = limits.message
        """Bytes of the largest reply."""
        self.discreet = False
        """Whether errors are told without their tracebacks."""
        self.refuse: Fault | None = None
        """The answer to every new request, once none is taken any more."""
        self._calls = calls
        self._out = out
        self._parts = parts
        self._limits = limits
        self._tally = tally
        self.serving: set[int] = set()
        """Ids of those that are not answered."""
        self.heavy: dict[int, int] = {}
        """Sizes of the large ones."""
        self._heavy_bytes = 0
        self.heads: dict[bytes, heads.RequestHead] = {}
        """Decoded heads without headers, by their bytes."""

    def __repr__(self) -> str:
        return f"<Requests {len(self.serving)} unanswered>"

    def __len__(self) -> int:
        return len(self.serving)

    def on_request(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Take a request, or refuse it unprocessed."""
        if self._calls.owns(ident) or ident in self.serving or ident == 0:
            raise RemoteProtocolError(f"request id {ident} is not the peer's to use")
        self._tally.received += 1
        fields = self.heads.get(head) or self._decoded(head)
        limits = self._limits
        refuse = self.refuse or (_OVERLOADED if len(self.serving) >= limits.inflight else None)
        if len(payload) > limits.chunk and refuse is None:
            if self._heavy_bytes + len(payload) > limits.heavy:
                refuse = _OVERLOADED
            else:
                self.heavy[ident] = len(payload)
                self._heavy_bytes += len(payload)
        if refuse is not None:
            self._answer_fault(ident, refuse)
            return
        self.serving.add(ident)
        deadline = now + fields.timeout_ms / 1000 if fields.timeout_ms > 0 else None
        events.append(RequestReceived(ident, fields.method, payload, deadline, fields.headers, fields.attempt, now))

    def on_requests(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Take several requests, or refuse unprocessed those of them for which there is no room."""
        try:
            ids = ids_of(ident, payload)
        except ValueError as error:
            raise RemoteProtocolError(str(error)) from error
        if self._calls.owns(ident) or ident == 0 or not self.serving.isdisjoint(ids):
            raise RemoteProtocolError(f"request ids from {ident} on are not the peer's to use")
        fields = self.heads.get(head) or self._decoded(head)
        if fields.headers is not None:
            raise RemoteProtocolError("a batch of requests with headers")
        self._tally.received += len(ids)
        room = self._limits.inflight - len(self.serving) if self.refuse is None else 0
        for refused in ids[max(0, room) :]:
            self._answer_fault(refused, self.refuse or _OVERLOADED)
        ids = ids[: max(0, room)]
        if ids:
            self.serving.update(ids)
            deadline = now + fields.timeout_ms / 1000 if fields.timeout_ms > 0 else None
            events.append(RequestsReceived(ids, fields.method, payload, deadline, fields.attempt, now))

    def _decoded(self, head: bytes) -> heads.RequestHead:
        fields = heads.decode(head, heads.RequestHead)
        if fields.headers is None and len(head) <= _CACHED_HEAD:
            if len(self.heads) >= _CACHE:
                self.heads.clear()
            self.heads[head] = fields
        return fields

    def on_cancel(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Forget a request; one that came in the same read is never told."""
        self._parts.drop(_REQUEST, ident)
        if ident in self.serving:
            self.serving.discard(ident)
            self._lighten(ident)
            for index in range(len(events) - 1, max(-1, len(events) - 1 - _LOOK_BACK), -1):
                event = events[index]
                if isinstance(event, RequestReceived) and event.id == ident:
                    del events[index]  # read together: a handler that was kept from running must not start now
                    return
                if isinstance(event, RequestsReceived) and ident in event.ids:
                    event.withdrawn.add(ident)
                    return
            events.append(CancelReceived(ident))

    def reply(self, ident: int, payload: bytes) -> None:
        """Answer a request; ignored if it was cancelled or the connection is over.

        Raises:
            FrameTooLarge: the reply exceeds the limit; the request is still unanswered.
        """
        if ident in self.serving:
            if len(payload) > self.message_limit:
                raise FrameTooLarge(len(payload), self.message_limit, "reply")
            self.serving.discard(ident)
            if self.heavy:
                self._lighten(ident)
            self._out.join(_RESPONSE, ident, b"", payload, step=ID_STEP)

    def reply_all(self, ids: range, payload: bytes | bytearray) -> None:
        """Answer several requests in a row, at most MEMBERS; `payload` is a MessagePack array with a 32-bit count.

        Those that were cancelled are left out. Only for peers that know the feature "call-batch".

        Raises:
            FrameTooLarge: as reply; those before are answered. Never for a payload of at most a chunk.
        """
        if self.serving.issuperset(ids) and len(payload) <= self._limits.chunk:
            self.serving.difference_update(ids)
            self._out.add(_RESPONSE_BATCH, ids[0], b"", bytes(payload))
        else:
            for ident, one in zip(ids, codec.pieces(bytes(payload)), strict=True):
                self.reply(ident, one)

    def fail(self, ident: int, fault: Fault) -> None:
        """Answer a request with an error; ignored as reply is."""
        if ident in self.serving:
            self.serving.discard(ident)
            self._lighten(ident)
            self._answer_fault(ident, fault)

    def clear(self) -> None:
        """Forget all of them: the connection is over."""
        self.serving.clear()
        self.heavy.clear()

    def _lighten(self, ident: int) -> None:
        self._heavy_bytes -= self.heavy.pop(ident, 0)

    def _answer_fault(self, ident: int, fault: Fault) -> None:
        encoded = heads.encode_fault(fault, self._limits.chunk, discreet=self.discreet)
        self._out.add_frame(frame(Kind.ERROR, ident, b"", encoded))

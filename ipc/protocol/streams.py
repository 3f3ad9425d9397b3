"""Streams and channels of one connection: OPEN, DATA, CREDIT, STOP, RESET. A component of Connection, as pure as it.

A stream is one direction, from the side that serves to the opener; a channel is two. Each direction has its own
credit (see flow) and its own end:

- END on an empty DATA frame: the sender is through; everything before it counts.
- STOP: the receiver takes no more; the sender says nothing to it.
- RESET: either side gives the whole stream up. The fault of a handler is a RESET that waits behind its items.

The opener may send on a channel from the first CREDIT on, which says that it was accepted; a refusal is a RESET
without one. Items are cut and handed out here as the outbox asks for pieces, so what waits is bounded: `send` takes an
item only when there is credit for it and less than a chunk waits already. Payload types, handlers and waiting do not
belong here.

Longer than other files: the two directions of a stream end by each other, and are judged in one place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

from smartipc.ipc.errors import FrameTooLarge, LocalProtocolError, RemoteProtocolError
from smartipc.ipc.protocol.calls import Calls
from smartipc.ipc.protocol.events import (
    DataReceived,
    Event,
    OpenReceived,
    StreamAccepted,
    StreamEnded,
    StreamFailed,
    StreamLost,
    StreamStopped,
)
from smartipc.ipc.protocol.flow import ReceiveWindow, SendWindow
from smartipc.ipc.protocol.outbox import Late, Outbox
from smartipc.ipc.protocol.reassembly import Reassembly
from smartipc.ipc.wire import heads
from smartipc.ipc.wire.attachments import Payload
from smartipc.ipc.wire.frames import HEADER, HEADER_SIZE, Flag, Kind, frame
from smartipc.ipc.wire.heads import Fault
from smartipc.ipc.wire.limits import Limits

_DATA = int(Kind.DATA)
_OPEN = int(Kind.OPEN)
_END = int(Flag.END)
_MORE = int(Flag.MORE)
_OOB = int(Flag.OOB)
_STRETCHED = 8
"""Streams of which an item larger than the window may be under way at a time; a sender interleaves no more anyway."""
_GIVEN_UP = Fault(10, "StreamReset", "given up before it was accepted")
_TOO_MANY = Fault(8, "Overloaded", "too many open streams", retryable=True, processed=0)


class Half(Enum):
    """Where one direction of a stream stands.

    OPEN --we end--> ENDING --handed out--> ENDED     (sending)
    OPEN --the peer's END--> ENDED                    (receiving)
    OPEN, ENDING --STOP by the receiver--> STOPPED    (either)

    A direction that does not exist is ENDED from the start. A stream is forgotten when both are ENDED or STOPPED.
    """

    OPEN = "open"
    ENDING = "ending"
    ENDED = "ended"
    STOPPED = "stopped"


_OVER = (Half.ENDED, Half.STOPPED)


class _Stream:
    """Both directions of one stream; to the outbox, a source of pieces."""

    __slots__ = (
        "accepted", "active", "attached", "consumed", "extra", "ident", "incoming", "offset", "outgoing", "owner",
        "partial", "queue", "queued", "received", "receiving", "sending", "tail", "wanted",
    )  # fmt: skip
    key = None
    plain = True

    def __init__(self, owner: Streams, ident: int, *, sending: Half, receiving: Half) -> None:
        self.owner = owner
        self.ident = ident
        self.sending = sending
        self.receiving = receiving
        self.accepted = False
        self.outgoing: SendWindow | None = None
        self.incoming: ReceiveWindow | None = None
        self.queue: deque[bytes | Late] = deque()
        self.offset = 0
        """Bytes of the first item in the queue that are handed out."""
        self.queued = 0
        self.tail: bytes | None = None
        """The frame that ends the sending direction, behind the queue."""
        self.wanted: int | None = None
        """Size of the item that `send` refused: tell when it would take it."""
        self.active = False
        """Whether it is in the outbox."""
        self.partial: bytearray | None = None
        self.attached = False
        """Whether the item that is put together has attachments."""
        self.received = 0
        self.consumed = 0
        self.extra: dict[int, int] = {}
        """By number of an item with attachments: its bytes on the wire beyond those of its value."""

    def room_for(self, size: int) -> bool:
        """Tell whether an item may be taken on."""
        return (
            self.outgoing is not None
            and self.queued < self.owner.limits.chunk
            and self.outgoing.allows(size, self.queued)
        )

    def sendable(self) -> bool:
        """Tell whether next_piece has something."""
        if self.outgoing is None:
            return False
        if self.queue:
            return self.outgoing.piece(len(self.queue[0]) - self.offset, self.owner.limits.chunk) >= 0
        return self.tail is not None

    def next_piece(self) -> bytes:
        """Hand out one large piece, or as many small items as make one, as credit allows."""
        window = self.outgoing
        assert window is not None
        out: list[bytes | memoryview] = []
        room = self.owner.limits.chunk
        while self.queue:
            item = self.queue[0]
            rest = len(item) - self.offset
            if out and rest + HEADER_SIZE > room:
                break
            size = window.piece(rest, room)  # never -1: sendable for the first, and credit was there for those behind
            more = _MORE if size < rest else 0
            if type(item) is bytes:
                out.append(HEADER.pack(size, _DATA, more, 0, self.ident))
                out.append(item if size == len(item) else memoryview(item)[self.offset : self.offset + size])
            else:
                out.append(HEADER.pack(size, _DATA, more | _OOB, 0, self.ident))
                out.append(item[self.offset : self.offset + size])
            room -= size + HEADER_SIZE
            window.sent += size
            self.queued -= size
            if size < rest:
                self.offset += size
                break
            if not isinstance(item, bytes):
                window.sent += item.shared
                self.queued -= item.shared
            self.queue.popleft()
            self.offset = 0
        if not self.queue and self.tail is not None:
            out.append(self.tail)
            self.tail = None
            self.sending = Half.ENDED
            self.owner.settle(self)
        self.active = self.sendable()
        self.owner.look(self)
        return b"".join(out)

    @property
    def done(self) -> bool:
        """Whether the outbox shall let go of it for now."""
        return not self.active


class Streams:
    """The streams and channels of one connection, opened by either side.

    Args:
        calls: gives ids, shared with requests.
        out: where frames go.
        parts: half-received OPENs are in there.
        limits: bounds of this connection.
    """

    def __init__(self, calls: Calls, out: Outbox, parts: Reassembly, limits: Limits) -> None:
        self.limits = limits
        self.negotiated = False
        self.refuse: Fault | None = None
        """Answer to every OPEN from now on."""
        self.message_limit = limits.message
        """Largest item and opening payload that the peer takes."""
        self.receive: Callable[[bytes | bytearray], Payload]
        """Takes an item with attachments apart; whoever knows how sets it."""
        self.late_frames = 0
        self.writable: list[int] = []
        """Streams whose refused item would be taken now. The integrator empties it after reads and writes."""
        self._calls = calls
        self._out = out
        self._parts = parts
        self._streams: dict[int, _Stream] = {}
        self._serving: set[int] = set()
        self.discreet = False
        """Whether the peer must not see tracebacks."""
        self._last_opened = 0
        self._stretched: set[int] = set()
        self._waiting: dict[int, None] = {}
        """Streams whose large item waits for others' to be complete."""

    def __len__(self) -> int:
        return len(self._streams)

    def __repr__(self) -> str:
        return f"<Streams {len(self._streams)} open, {len(self._serving)} served here>"

    # the integrator's side

    def open(self, method: str, payload: bytes, *, duplex: bool, headers: dict[str, str] | None = None) -> int:
        """Queue the opening of a stream or channel and return its id; StreamAccepted or StreamFailed tells more.

        Raises:
            FrameTooLarge: payload or head exceed a limit; nothing was queued.
            LocalProtocolError: the peer has no streams, or the handshake is not over.
        """
        if not self.negotiated:
            raise LocalProtocolError("the peer does not know streams, or the connection is not open")
        self._check(len(payload), "message")
        window, items = self.limits.window, self.limits.window_items
        head = heads.encoder.encode(heads.OpenHead(method, duplex, window, items, headers))
        if len(head) > self.limits.head:
            raise FrameTooLarge(len(head), self.limits.head, "head")
        ident = self._calls.take()
        stream = _Stream(self, ident, sending=Half.OPEN if duplex else Half.ENDED, receiving=Half.OPEN)
        stream.incoming = ReceiveWindow(window, items)
        self._streams[ident] = stream
        # One order for all OPENs: the peer can check that ids only rise.
        if self._out.add(_OPEN, ident, head, payload, key="open"):
            self._out.unwritten_bulk.add(ident)
        else:
            self._out.unwritten.add(ident)
        return ident

    def accept(self, ident: int) -> None:
        """Take what the peer opened; ignored if it has been given up meanwhile."""
        stream = self._streams.get(ident)
        if stream is None or stream.accepted:
            return
        stream.accepted = True
        if stream.receiving is Half.OPEN:
            stream.incoming = ReceiveWindow(self.limits.window, self.limits.window_items)
            self._credit(ident, stream.incoming)
        else:
            self._control(Kind.CREDIT, ident, heads.encoder.encode(heads.CreditHead(0, 0)))

    def send(self, ident: int, payload: bytes) -> bool:
        """Take an item on, whole, or return False: `writable` will name the stream when it may be tried again.

        Raises:
            FrameTooLarge: the item exceeds a limit.
            LocalProtocolError: this direction is over, see the event that said so.
        """
        self._check(len(payload), "item")
        stream = self._streams.get(ident)
        if stream is None or stream.sending is not Half.OPEN:
            raise LocalProtocolError("this direction of the stream is over")
        size = len(payload) if type(payload) is bytes else self.limits.chunk
        if not stream.room_for(size):
            stream.wanted = size
            return False
        assert stream.outgoing is not None
        stream.wanted = None
        stream.outgoing.items += 1
        item = payload if type(payload) is not Payload else self._laid_out(payload)
        stream.queue.append(item)
        stream.queued += len(item) if isinstance(item, bytes) else len(item) + item.shared
        self._activate(stream)
        return True

    def _laid_out(self, payload: Payload) -> Late:
        item = self._out.late(payload)
        for before in reversed(item.prepare()):
            self._out.announce(before)
        return item

    def end(self, ident: int) -> None:
        """Say that no more items come, behind those that wait; ignored when the direction is over."""
        stream = self._streams.get(ident)
        if stream is not None and stream.sending is Half.OPEN:
            stream.sending = Half.ENDING
            stream.tail = frame(Kind.DATA, ident, flags=_END)
            self._activate(stream)

    def fail(self, ident: int, fault: Fault) -> None:
        """Give the stream up with a reason that the peer sees after the items that wait; later ones are ignored."""
        stream = self._streams.get(ident)
        if stream is None:
            return
        if stream.sending in _OVER or stream.outgoing is None:
            self.reset(ident, fault)  # nothing can wait before it
            return
        stream.sending = Half.ENDING
        stream.receiving = Half.STOPPED
        self._put_together(stream)
        stream.tail = self._reset_frame(ident, fault)
        self._activate(stream)

    def stop(self, ident: int) -> None:
        """Take no more items; those under way are ignored. A channel that is not accepted yet is given up entirely."""
        stream = self._streams.get(ident)
        if stream is None or stream.receiving is not Half.OPEN:
            return
        if stream.outgoing is None and stream.sending not in _OVER:
            self.reset(ident, _GIVEN_UP)
            return
        stream.receiving = Half.STOPPED
        self._put_together(stream)
        if not self._out.drop(_OPEN, ident):
            self._forget(stream)
            return
        self._control(Kind.STOP, ident)
        self.settle(stream)

    def reset(self, ident: int, fault: Fault) -> None:
        """Give the stream up at once: what waits is dropped, what comes is ignored."""
        stream = self._streams.get(ident)
        if stream is None:
            return
        self._forget(stream)
        if self._out.drop(_OPEN, ident):
            self._out.control.append(self._reset_frame(ident, fault))

    def consumed(self, ident: int, size: int) -> None:
        """Say that the application took an item of `size` bytes: the peer may send as much more."""
        stream = self._streams.get(ident)
        if stream is not None and stream.incoming is not None:
            if stream.extra:
                size += stream.extra.pop(stream.consumed, 0)
            stream.consumed += 1
            stream.incoming.consume(size)
            self._grant(stream)

    def released(self, ident: int) -> None:
        """Say that whatever served a stream of the peer is gone: only then does it count no more against the bound."""
        self._serving.discard(ident)

    @property
    def unsent(self) -> bool:
        """Whether items or ends still wait here, for their turn or for credit."""
        return any(stream.queue or stream.tail is not None for stream in self._streams.values())

    def opening(self, ident: int) -> bool:
        """Tell whether a stream of ours is neither accepted nor over."""
        stream = self._streams.get(ident)
        return stream is not None and not stream.accepted

    # the peer's side

    def on_open(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Judge an OPEN."""
        if self._calls.owns(ident) or ident <= self._last_opened:
            raise RemoteProtocolError(f"stream id {ident} is not the peer's to use")
        self._last_opened = ident
        fields = heads.decode(head, heads.OpenHead)
        refuse = self.refuse or (_TOO_MANY if len(self._serving) >= self.limits.streams else None)
        if refuse is not None:
            self._out.control.append(self._reset_frame(ident, refuse))
            return
        stream = _Stream(self, ident, sending=Half.OPEN, receiving=Half.OPEN if fields.duplex else Half.ENDED)
        stream.outgoing = SendWindow(fields.max_bytes, fields.max_items, self.limits.chunk)
        self._streams[ident] = stream
        self._serving.add(ident)
        events.append(OpenReceived(ident, fields.method, fields.duplex, payload, fields.headers, now))

    def on_data(self, ident: int, flags: int, head: bytes, payload: bytes, events: list[Event]) -> None:
        """Count a piece against its credit, put items together, see the end."""
        stream = self._find(ident)
        if stream is None:
            return
        if stream.receiving is Half.STOPPED:
            self.late_frames += 1
            return
        if stream.incoming is None or stream.receiving is not Half.OPEN or head:
            raise RemoteProtocolError(f"data on stream {ident}, which takes none")
        partial = stream.partial
        if flags & _END:
            if payload or partial is not None or flags & _MORE:
                raise RemoteProtocolError("the end of a stream carries data")
            stream.receiving = Half.ENDED
            events.append(StreamEnded(ident))
            self.settle(stream)
            return
        stream.incoming.arrived(len(payload), begins=partial is None)
        attached = bool(flags & _OOB)
        if partial is not None:
            if stream.attached is not attached:
                raise RemoteProtocolError("a later piece of an item has other flags")
            self._bounded(len(partial) + len(payload), attached=attached)
            partial += payload
        if not flags & _MORE:
            self._put_together(stream)
            whole: bytes | bytearray = payload if partial is None else partial
            if attached:
                item: bytes = self._received(stream, stream.incoming, whole)
            else:
                item = bytes(whole)
            stream.received += 1
            events.append(DataReceived(ident, item))
            return
        if not payload:
            raise RemoteProtocolError("an empty piece of an item")
        if partial is None:
            stream.partial = bytearray(payload)
            stream.attached = attached
        self._grant(stream)

    def _received(self, stream: _Stream, window: ReceiveWindow, whole: bytes | bytearray) -> Payload:
        """Take an item with attachments apart; memory that it refers to counts like bytes, at both ends."""
        item = self.receive(whole)
        window.beside(item.shared)
        stream.extra[stream.received] = len(whole) - len(item) + item.shared
        return item

    def on_credit(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Raise what may be sent; the first one to a stream of ours says that it was accepted."""
        fields = heads.decode(head, heads.CreditHead)
        stream = self._find(ident)
        if stream is None:
            return
        if self._calls.owns(ident) and not stream.accepted:
            stream.accepted = True
            if stream.sending is not Half.ENDED:
                stream.outgoing = SendWindow(fields.max_bytes, fields.max_items, self.limits.chunk)
            events.append(StreamAccepted(ident))
        elif stream.outgoing is not None:
            stream.outgoing.raise_to(fields.max_bytes, fields.max_items)
        self._activate(stream)
        self.look(stream)

    def on_stop(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Send no more on it."""
        stream = self._find(ident)
        if stream is None or stream.sending in _OVER:
            return
        stream.sending = Half.STOPPED
        self._silence(stream)
        events.append(StreamStopped(ident))
        self.settle(stream)

    def on_reset(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Forget it."""
        fault = heads.decode(payload, heads.Fault)
        stream = self._find(ident)
        if stream is not None:
            self._forget(stream)
            events.append(StreamFailed(ident, fault))

    def lost(self) -> list[Event]:
        """Forget everything, because the connection is over; name what was open."""
        unwritten = self._out.unwritten | self._out.unwritten_bulk
        events: list[Event] = [StreamLost(ident, ident not in unwritten) for ident in self._streams]
        self._streams.clear()
        self._serving.clear()
        self._stretched.clear()
        self._waiting.clear()
        self.writable.clear()
        self.negotiated = False
        return events

    # within

    def settle(self, stream: _Stream) -> None:
        """Forget a stream both of whose directions are over."""
        if stream.sending in _OVER and stream.receiving in _OVER:
            self._streams.pop(stream.ident, None)

    def look(self, stream: _Stream) -> None:
        """Tell the integrator when an item that was refused would be taken."""
        if stream.wanted is not None and stream.room_for(stream.wanted):
            stream.wanted = None
            self.writable.append(stream.ident)

    def _find(self, ident: int) -> _Stream | None:
        """Return an open stream; None for one that is over, which is counted; one that never was is a violation."""
        stream = self._streams.get(ident)
        if stream is None:
            if self._parts and self._parts.expects(_OPEN, ident):  # given up before the rest of it was sent
                self._parts.drop(_OPEN, ident)
                self._last_opened = max(self._last_opened, ident)
            known = self._calls.issued(ident) if self._calls.owns(ident) else 0 < ident <= self._last_opened
            if not known:
                raise RemoteProtocolError(f"stream {ident} was never opened")
            self.late_frames += 1
        return stream

    def _activate(self, stream: _Stream) -> None:
        if not stream.active and stream.sendable():
            stream.active = True
            self._out.add_source(stream)

    def _silence(self, stream: _Stream) -> None:
        """Drop what waits to be sent."""
        stream.queue.clear()
        stream.queued = 0
        stream.tail = None
        stream.wanted = None
        if stream.active:
            stream.active = False
            self._out.discard(stream)

    def _forget(self, stream: _Stream) -> None:
        self._silence(stream)
        stream.sending = stream.receiving = Half.STOPPED
        del self._streams[stream.ident]
        self._put_together(stream)

    def _grant(self, stream: _Stream) -> None:
        incoming, partial = stream.incoming, stream.partial
        assert incoming is not None
        if stream.receiving is not Half.OPEN:
            return
        size = len(partial) if partial is not None and self._may_stretch(stream.ident, len(partial)) else 0
        if incoming.grant(size, incomplete=partial is not None):
            self._credit(stream.ident, incoming)

    def _may_stretch(self, ident: int, size: int) -> bool:
        """Tell whether pieces of an item may be credited before it is whole; else let it wait for others' to be.

        That bounds what a peer can make us hold: a window per stream, and a few large items in all.
        """
        if size * 2 < self.limits.window or ident in self._stretched:
            return True
        if len(self._stretched) < _STRETCHED:
            self._stretched.add(ident)
            return True
        self._waiting[ident] = None
        return False

    def _put_together(self, stream: _Stream) -> None:
        """Let go of an item that came in pieces, and let the next large one go on."""
        stream.partial = None
        self._waiting.pop(stream.ident, None)
        if stream.ident in self._stretched:
            self._stretched.discard(stream.ident)
            if self._waiting:
                waiting = next(iter(self._waiting))
                del self._waiting[waiting]
                self._grant(self._streams[waiting])

    def _credit(self, ident: int, window: ReceiveWindow) -> None:
        self._control(Kind.CREDIT, ident, heads.encoder.encode(heads.CreditHead(window.max_bytes, window.max_items)))

    def _check(self, size: int, what: str) -> None:
        if size > self.message_limit:
            raise FrameTooLarge(size, self.message_limit, what)

    def _bounded(self, size: int, *, attached: bool) -> None:
        limit = self.limits.message
        if attached:  # one bound for all streams: a peer may open many
            limit += self.limits.buffers
            size = sum(len(one.partial) for one in self._streams.values() if one.partial is not None and one.attached)
        if size > limit:
            raise FrameTooLarge(size, limit, "item")

    def _reset_frame(self, ident: int, fault: Fault) -> bytes:
        return frame(Kind.RESET, ident, b"", heads.encode_fault(fault, self.limits.chunk, discreet=self.discreet))

    def _control(self, kind: Kind, ident: int, head: bytes = b"") -> None:
        self._out.control.append(frame(kind, ident, head))

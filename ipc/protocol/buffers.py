"""The big buffers of one connection: what is lent to the peer, what is borrowed from it. A component of Connection.

A message with attachments waits in the outbox as `Outgoing` until its first piece is due; only then it is decided how
each attachment travels, because only then the peer's features are known:

- leased: in a segment of the sender's pool that was announced once, by an FDS frame that carries its descriptor. The
  receiver sends BUFFER_RELEASE when its last view is gone; until then the sender does not touch the memory. For peers
  that trust each other.
- sealed: in a segment of its own that nobody can change any more. For peers of different users.
- in the tail of the message, as bytes: for everything else, and whenever a bound of the other ways is reached.

When a connection ends with leases out, nobody knows whether the peer still reads, so the segments concerned are
abandoned: the kernel frees them when the last process has let go. Memory and descriptors are the business of `Memory`,
which is injected; here they are opaque values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from smartipc.ipc.errors import FrameTooLarge, LocalProtocolError, RemoteProtocolError
from smartipc.ipc.protocol.events import Event
from smartipc.ipc.protocol.outbox import Outbox
from smartipc.ipc.wire import heads
from smartipc.ipc.wire.attachments import IN_TAIL, LEASED, SEALED, Attachment, Payload, Pieces, Place, pack, unpack
from smartipc.ipc.wire.attachments import payload as payload_of
from smartipc.ipc.wire.frames import Kind, frame
from smartipc.ipc.wire.limits import Limits

BYTES_FEATURE = "buffers"
"""Messages with attachments are understood."""
SEALED_FEATURE = "memfd"
"""Sealed segments are taken, by descriptor."""
LEASED_FEATURE = "leases"
"""Segments of the peer's pool are taken: both ends are of one user and trust each other's memory."""

IN_FLIGHT = 64
"""Descriptors that the peer has not confirmed yet."""
REGIONS = 256
"""Segments of the peer that are known at a time."""
HELD = 65536
"""Leases that a peer may have given here and not got back."""
BATCH = 16
"""Descriptors in one FDS frame at most."""
_RELEASES = 512
"""Leases in one BUFFER_RELEASE frame."""


class Segment(Protocol):
    """Memory of ours that others can map. `descriptor` is what is sent."""

    @property
    def number(self) -> int:
        """Its name in this process, never used again."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def descriptor(self) -> Any:
        """What opens it."""

    @property
    def retired(self) -> bool:
        """Whether it is closed here."""

    def abandon(self) -> None:
        """Give no part of it out again."""


class Region(Protocol):
    """A segment of the peer's, mapped here for reading."""

    @property
    def size(self) -> int:
        """Bytes."""

    def view(self, offset: int, length: int, released: Callable[[], None] | None) -> memoryview:
        """Return a part. `released` is called once, from any thread, when nothing refers to it any more."""


class Shared(Protocol):
    """A part of a segment of ours. As long as it is referred to, nobody else gets the part."""

    @property
    def segment(self) -> Segment:
        """Where it is."""

    @property
    def offset(self) -> int:
        """Where it begins."""


class Memory(Protocol):
    """What the platform offers on one connection."""

    @property
    def leases(self) -> bool:
        """Whether both ends trust each other's memory."""

    def place(self, view: memoryview) -> Shared | None:
        """Copy into the pool; None when it has no room."""

    def seal(self, view: memoryview) -> Segment | None:
        """Copy into a segment of its own that nobody can change; None when there can be none."""

    def adopt(self, descriptor: Any, size: int, *, sealed: bool) -> Region:
        """Check and map what the peer sent, and take the descriptor over.

        Raises:
            RemoteProtocolError: it is not what it should be.
        """

    def discard(self, descriptors: Sequence[Any]) -> None:
        """Close descriptors that nobody wants."""


class DescriptorFrame(bytes):
    """An FDS frame: to be written alone, with `descriptors` beside it. It refers to what keeps them open."""

    descriptors: tuple[Any, ...]
    owner: Segment


class Outgoing:
    """A message with attachments as it waits in the outbox: as long as it will be, once `prepare` has decided that.

    When it goes away before it was handed out as a whole, the peer cannot have put it together: what it lent is taken
    back.
    """

    __slots__ = ("_buffers", "_payload", "_pieces", "_places", "_shared")

    def __init__(self, buffers: Buffers, payload: Payload) -> None:
        self._buffers = buffers
        self._payload: Payload | None = payload
        self._pieces = Pieces(())
        self._places: list[Place] = []
        self._shared = 0

    def __repr__(self) -> str:
        return f"<Outgoing {'waiting' if self._payload is not None else repr(self._pieces)}>"

    def prepare(self) -> list[bytes]:
        """Decide how each attachment travels; return the frames that must go first. Called once."""
        assert self._payload is not None
        self._pieces, self._places, first = self._buffers.lay_out(self._payload)
        self._payload = None
        self._shared = sum(place.length for place in self._places if place.kind != IN_TAIL)
        return first

    @property
    def shared(self) -> int:
        """Bytes in shared memory; see outbox.Late."""
        return self._shared

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, wanted: slice) -> bytes:
        if wanted.stop >= len(self._pieces):
            self._places = []
        return self._pieces[wanted]

    def __del__(self) -> None:
        if self._places:
            self._buffers.withdraw(self._places)


class Buffers:
    """Leases, segments and descriptors of one connection.

    Args:
        out: where frames go.
        limits: bounds of this connection.
    """

    def __init__(self, out: Outbox, limits: Limits) -> None:
        self.negotiated = False
        """Whether the peer understands attachments at all."""
        self._opened = False
        self._out = out
        out.late = self.outgoing
        self._limits = limits
        self._memory: Memory | None = None
        self._wake: Callable[[], None] | None = None
        self._closed = False
        self._way = IN_TAIL
        self._announced: dict[int, Segment] = {}
        self._unconfirmed = 0
        self._lent: dict[int, Shared] = {}
        self._last_lease = 0
        self._regions: dict[int, tuple[Region, bool]] = {}
        self.batches: deque[tuple[Any, ...]] = deque()
        """Descriptors that came beside bytes, as they came together, and no frame has claimed yet."""
        self._held: set[int] = set()
        self._released: deque[int] = deque()

    def __repr__(self) -> str:
        return f"<Buffers {len(self._lent)} lent, {len(self._held)} borrowed, {len(self._regions)} segments mapped>"

    @property
    def lent(self) -> int:
        """Attachments that the peer has and did not give back."""
        return len(self._lent)

    @property
    def borrowed(self) -> int:
        """Attachments of the peer that are in use here."""
        return len(self._held)

    # the integrator's side

    def connect(self, memory: Memory | None, wake: Callable[[], None]) -> None:
        """Say what the platform offers, before `start`; `wake`, called from any thread, makes it call `flush`."""
        self._memory = memory
        self._wake = wake

    @property
    def features(self) -> tuple[str, ...]:
        """What this side offers in the handshake."""
        if self._memory is None:
            return (BYTES_FEATURE,)
        return (BYTES_FEATURE, SEALED_FEATURE, *((LEASED_FEATURE,) if self._memory.leases else ()))

    def open(self, features: Sequence[str]) -> None:
        """Take what was negotiated."""
        self._opened = True
        self.negotiated = BYTES_FEATURE in features
        if self._memory is not None and SEALED_FEATURE in features:
            self._way = LEASED if LEASED_FEATURE in features else SEALED

    def receive_descriptors(self, descriptors: Sequence[Any]) -> None:
        """Take what came beside the bytes that `receive_message` gets next."""
        assert self._memory is not None
        if self._closed:
            self._memory.discard(descriptors)
        else:
            self.batches.append(tuple(descriptors))

    def flush(self) -> None:
        """Queue what must be said about buffers: leases that are over here, segments of ours that are gone."""
        while self._released:
            leases = [self._released.popleft() for _ in range(min(_RELEASES, len(self._released)))]
            self._held.difference_update(leases)
            head = heads.encoder.encode(heads.LeasesHead(tuple(leases)))
            self._out.control.append(frame(Kind.BUFFER_RELEASE, 0, head))
        for number in [number for number, segment in self._announced.items() if segment.retired]:
            del self._announced[number]
            self._out.control.append(frame(Kind.BUFFER_RETIRE, number))

    def close(self) -> None:
        """Let go of everything: the connection is over."""
        self._closed = True
        for shared in self._lent.values():
            shared.segment.abandon()
        self._lent.clear()
        self._announced.clear()
        self._regions.clear()
        if self._memory is not None:
            for batch in self.batches:
                self._memory.discard(batch)
        self.batches.clear()

    # sending

    def outgoing(self, payload: Payload) -> Outgoing:
        """Take a message for the outbox: from now on its sender may change the memory that it was made of.

        Raises:
            LocalProtocolError: the peer does not understand attachments.
            FrameTooLarge: what must travel as bytes exceeds a limit.
        """
        if self._opened and not self.negotiated:
            raise LocalProtocolError("the peer does not understand buffers")
        memory = self._memory
        in_tail = 0
        for one in payload.attachments:
            if one.place is None and memory is not None and memory.leases:
                one.place = memory.place(one.view)
            elif one.sealed is None and memory is not None and self._way == SEALED:
                one.sealed = memory.seal(one.view)
            if one.place is None and one.sealed is None:
                in_tail += one.view.nbytes
                if not one.view.readonly:
                    one.view = memoryview(bytes(one.view))
        if in_tail > self._limits.buffers:
            raise FrameTooLarge(in_tail, self._limits.buffers, "sum of buffers")
        return Outgoing(self, payload)

    def lay_out(self, payload: Payload) -> tuple[Pieces, list[Place], list[bytes]]:
        """Place the attachments of a message that is about to be written."""
        first: list[bytes] = []
        places: list[Place] = []
        tail: list[memoryview] = []
        for one in payload.attachments:
            place = self._leased(one, first) if self._way == LEASED else self._sealed(one, first)
            if place is None:
                place = Place(IN_TAIL, one.view.nbytes)
                tail.append(one.view)
            places.append(place)
        return pack(payload, places, tail), places, first

    def withdraw(self, places: Sequence[Place]) -> None:
        """Take back what a message that never left as a whole had lent."""
        if self._closed:
            return
        for place in places:
            self._lent.pop(place.lease, None)
            if place.kind == SEALED:
                self._out.add_last(frame(Kind.BUFFER_RETIRE, place.segment))

    def _leased(self, one: Attachment, first: list[bytes]) -> Place | None:
        shared: Shared | None = one.place
        if shared is None or not self._announce(shared.segment, first, sealed=False):
            return None
        self._last_lease += 1
        self._lent[self._last_lease] = shared
        return Place(LEASED, one.view.nbytes, shared.segment.number, shared.offset, self._last_lease)

    def _sealed(self, one: Attachment, first: list[bytes]) -> Place | None:
        if self._way != SEALED:
            return None
        assert self._memory is not None, "the feature is negotiated"
        if one.sealed is None:
            one.sealed = self._memory.seal(one.view)
        segment: Segment | None = one.sealed
        if segment is None or not self._announce(segment, first, sealed=True):
            return None
        return Place(SEALED, one.view.nbytes, segment.number)

    def _announce(self, segment: Segment, first: list[bytes], *, sealed: bool) -> bool:
        """Let the peer know a segment; tell whether it may be used now."""
        if segment.number in self._announced:
            return True
        if self._unconfirmed >= IN_FLIGHT:
            return False
        self._unconfirmed += 1
        if not sealed:
            if len(self._announced) >= REGIONS - IN_FLIGHT:
                return False
            self._announced[segment.number] = segment
        head = heads.encoder.encode(heads.SegmentsHead((heads.Segment(segment.number, segment.size, sealed),)))
        announcement = DescriptorFrame(frame(Kind.FDS, 0, head))
        announcement.descriptors = (segment.descriptor,)
        announcement.owner = segment
        first.append(announcement)
        return True

    # the peer's side

    def receive(self, data: bytes | bytearray) -> Payload:
        """Take the payload of a message with attachments apart and borrow what it refers to.

        Raises:
            RemoteProtocolError: it refers to what was not announced, or breaks a bound.
        """
        view = memoryview(data).toreadonly()
        value, places, tail = unpack(view)
        attachments: list[Attachment] = []
        at = 0
        for place in places:
            if place.kind == IN_TAIL:
                attachments.append(Attachment(tail[at : at + place.length]))
                at += place.length
            else:
                attachments.append(Attachment(self._borrow(place)))
        received = payload_of(value, attachments)
        received.shared = sum(one.view.nbytes for one in attachments) - len(tail)
        return received

    def _borrow(self, place: Place) -> memoryview:
        sealed = place.kind == SEALED
        known = self._regions.pop(place.segment, None) if sealed else self._regions.get(place.segment)
        if known is None or known[1] is not sealed:
            raise RemoteProtocolError(f"a buffer in segment {place.segment}, which was not announced for it")
        region = known[0]
        if place.offset < 0 or not place.length or place.offset + place.length > region.size:
            raise RemoteProtocolError("a buffer exceeds its segment")
        if sealed:
            return region.view(place.offset, place.length, None)
        lease = place.lease
        if lease in self._held or len(self._held) >= HELD:
            raise RemoteProtocolError("a lease is given twice, or there are too many")
        self._held.add(lease)
        return region.view(place.offset, place.length, lambda: self._release(lease))

    def _release(self, lease: int) -> None:
        """Note the end of a lease; called by whichever thread dropped the last view, at any moment."""
        self._released.append(lease)
        if self._wake is not None and not self._closed:
            self._wake()

    def on_segments(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Map what an FDS frame announces, and confirm it.

        Raises:
            RemoteProtocolError: descriptors do not match the announcement, or are not what they should be.
        """
        announced = heads.decode(head, heads.SegmentsHead).segments
        batch = self.batches.popleft() if self.batches else ()
        memory = self._memory
        assert memory is not None, "the feature is negotiated"
        if len(batch) != len(announced) or not 0 < len(batch) <= BATCH:
            memory.discard(batch)
            raise RemoteProtocolError(f"{len(batch)} descriptors for {len(announced)} announced segments")
        for index, one in enumerate(announced):
            if one.number in self._regions or len(self._regions) >= REGIONS or one.size <= 0:
                memory.discard(batch[index:])
                raise RemoteProtocolError(f"segment {one.number} is announced twice, empty or one too many")
            try:
                region = memory.adopt(batch[index], one.size, sealed=one.sealed)
            except RemoteProtocolError:
                memory.discard(batch[index + 1 :])
                raise
            self._regions[one.number] = (region, one.sealed)
        self._out.control.append(frame(Kind.FD_ACK, 0, heads.encoder.encode(heads.AckHead(len(announced)))))

    def check_batches(self, *, partial: bool) -> None:
        """Judge what is left after a read: one batch may wait for the rest of its frame, if a frame is unfinished.

        Raises:
            RemoteProtocolError: descriptors came without an FDS frame.
        """
        if len(self.batches) > partial:
            raise RemoteProtocolError("descriptors without an FDS frame")

    def on_confirmed(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Count descriptors that the peer has.

        Raises:
            RemoteProtocolError: more than we sent.
        """
        count = heads.decode(head, heads.AckHead).consumed
        if not 0 < count <= self._unconfirmed:
            raise RemoteProtocolError("descriptors were confirmed that we did not send")
        self._unconfirmed -= count

    def on_release(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Take leases back.

        Raises:
            RemoteProtocolError: one of them is not out.
        """
        for lease in heads.decode(head, heads.LeasesHead).leases:
            if self._lent.pop(lease, None) is None:
                raise RemoteProtocolError(f"lease {lease} is not the peer's to give back")

    def on_retire(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Forget a segment of the peer; views of it stay valid.

        Raises:
            RemoteProtocolError: it was not announced.
        """
        if self._regions.pop(ident, None) is None:
            raise RemoteProtocolError(f"segment {ident} is not known")

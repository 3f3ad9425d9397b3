"""What waits to be sent, in three lanes: control first, then whole frames, then pieces of large messages.

Large payloads are cut here, at most `ACTIVE` of them interleaved; streams cut their own and take turns with them.
Messages of one order key (a subscription, the notifies) never overtake each other. Messages in a row that differ only
in their payloads, and requests and replies whose ids follow each other, share a frame while they wait, once the peer
takes such frames. No meaning of frames lives here.

Messages with attachments are laid out when their first piece is due, because their way is known only after the
handshake; until then they wait aside, and every large message behind them. Frames that carry descriptors are handed
out alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from smartipc.ipc.wire.attachments import Payload
from smartipc.ipc.wire.frames import ARRAY, ARRAY_MARK, BATCHES, HEADER, HEADER_SIZE, MEMBERS, Flag, frame

_OVERHEAD = 128
"""Bytes that a frame costs besides its payload."""

ACTIVE = 8
"""Large messages cut in turn at a time; below the receiver's bound on half-received ones."""


class Source(Protocol):
    """What gives pieces when its turn comes, until it is done for now."""

    @property
    def ident(self) -> int:
        """The id in its frames."""

    @property
    def key(self) -> object:
        """Sources of equal keys keep their order; None for no order."""

    @property
    def done(self) -> bool:
        """Whether it has no more pieces now."""

    @property
    def plain(self) -> bool:
        """Whether its pieces may leave with other frames, and nothing must leave before them."""

    def next_piece(self) -> bytes:
        """Return the next piece, one or more whole frames of about a chunk in all."""


class Late(Protocol):
    """A payload that is laid out when it is about to leave."""

    def prepare(self) -> list[bytes]:
        """Lay it out; return the frames that must leave before it, each alone."""

    @property
    def shared(self) -> int:
        """Bytes that do not leave with it, because they lie in shared memory. Known once it is laid out."""

    def __len__(self) -> int: ...

    def __getitem__(self, wanted: slice, /) -> bytes: ...


class _Bulk:
    """One payload on its way in pieces."""

    __slots__ = ("chunk", "head", "ident", "key", "kind", "offset", "payload")
    plain = True
    flags = 0

    def __init__(self, kind: int, ident: int, head: bytes, payload: bytes | Late, chunk: int, key: object) -> None:
        self.kind = kind
        self.ident = ident
        self.head = head
        self.payload = payload
        self.chunk = chunk
        self.key = key
        self.offset = 0

    def next_piece(self) -> bytes:
        end = min(self.offset + self.chunk, len(self.payload))
        more = Flag.MORE if end < len(self.payload) else 0
        piece = frame(self.kind, self.ident, self.head, self.payload[self.offset : end], more | self.flags)
        self.head = b""
        self.offset = end
        return piece

    @property
    def done(self) -> bool:
        return self.offset >= len(self.payload)


class _Attached(_Bulk):
    """A message with attachments."""

    __slots__ = ("late", "plain")
    flags = Flag.OOB

    def __init__(self, kind: int, ident: int, head: bytes, payload: Late, chunk: int, key: object) -> None:
        super().__init__(kind, ident, head, payload, chunk, key)
        self.late = payload
        self.plain = False


class _Alone:
    """One frame that leaves alone."""

    __slots__ = ("done", "piece")
    ident = 0
    key = None
    plain = False

    def __init__(self, piece: bytes) -> None:
        self.piece = piece
        self.done = False

    def next_piece(self) -> bytes:
        self.done = True
        return self.piece


class Outbox:
    """Frames to send. `unwritten` holds the ids of requests of which nothing has been handed out yet."""

    __slots__ = (
        "_aside", "_chunk", "_closed", "_keys", "_kin", "_lone", "_start", "batch", "batching", "batching_calls",
        "bulk", "control", "count", "late", "normal", "opened", "unwritten", "unwritten_bulk",
    )  # fmt: skip

    def __init__(self, chunk: int) -> None:
        self.control: list[bytes | bytearray] = []
        self.normal: list[bytes | bytearray] = []
        self._closed = 0
        self.batching = False
        """Whether the peer takes batches of one-way messages."""
        self.batching_calls = False
        """Whether it takes those of requests and replies."""
        self.batch: bytearray | None = None
        """The last frame of `normal` while messages may still join it; whoever appends one himself adds to `count`."""
        self.count = 0
        self._start = 0
        self._kin: tuple[int, int, bytes] | None = None
        """What the last frame of `normal` may be joined by; only while it is the last."""
        self._lone = b""
        self.unwritten: set[int] = set()
        self.unwritten_bulk: set[int] = set()
        self.bulk: deque[Source] = deque()
        """What is cut into pieces."""
        self._keys: dict[object, int] = {}
        self._chunk = chunk
        self.late: Callable[[Payload], Late]
        """Takes the attachments of a message; whoever knows how sets it."""
        self.opened = False
        self._aside: list[Source] = []

    @property
    def queued(self) -> int:
        """Payload bytes of whole frames that wait."""
        return self._closed if self.batch is None else self._closed + len(self.batch) - self._start

    def __bool__(self) -> bool:
        return bool(self.normal or self.control or self.bulk)

    @property
    def waiting(self) -> int:
        """About how many bytes wait; of a large message one piece is counted."""
        return self.queued + _OVERHEAD * (len(self.normal) + len(self.control)) + self._chunk * len(self.bulk)

    def __repr__(self) -> str:
        return f"<Outbox {len(self.control)} control, {len(self.normal)} frames, {len(self.bulk)} large>"

    def add_frame(self, whole: bytes) -> None:
        """Queue a whole frame that was made elsewhere."""
        self._kin = None
        if self.batch is not None:
            self._seal()
        self.normal.append(whole)
        self._closed += len(whole)

    def add(self, kind: int, ident: int, head: bytes, payload: bytes, *, key: object = None) -> bool:
        """Queue a message, cut if it is large; return whether it went to the lane of large ones."""
        self._kin = None
        if self.batch is not None:
            self._seal()
        if type(payload) is Payload:
            self._add_bulk(_Attached(kind, ident, head, self.late(payload), self._chunk, key))
            return True
        size = len(payload)
        if size <= self._chunk and not (self._keys and key in self._keys):
            self.normal.append(HEADER.pack(len(head) + size, kind, 0, len(head), ident) + head + payload)
            self._closed += size
            return False
        self._add_bulk(_Bulk(kind, ident, head, payload, self._chunk, key))
        return True

    def join(self, kind: int, ident: int, head: bytes, payload: bytes, *, key: object = None, step: int = 0) -> bool:
        """Queue a message: in one frame with those before it that differ from it only in their payloads.

        With `step` their ids rise by it, which makes them calls. Return whether it went to the lane of large ones.
        """
        kin = self._kin
        batch = self.batch
        if (
            kin is None
            or kin != (kind, ident, head)
            or len(payload) + len(self._lone if batch is None else batch) > self._chunk
            or type(payload) is Payload
            or (step and batch is not None and self.count >= MEMBERS)
        ):
            large = self.add(kind, ident, head, payload, key=key)
            if not large and (self.batching_calls if step else self.batching):
                self._kin = (kind, ident + step, head)
                self._lone = payload
            return large
        if batch is None:
            self.normal.pop()
            batch = self.batch = bytearray(HEADER.pack(0, BATCHES[kind], 0, len(head), ident - step))
            batch += head
            batch += ARRAY.pack(ARRAY_MARK, 0)
            self._start = len(batch)
            self._closed -= len(self._lone)
            batch += self._lone
            self.normal.append(batch)
            self.count = 1
        if step:
            self._kin = (kind, ident + step, head)
        batch += payload
        self.count += 1
        return False

    def _add_bulk(self, bulk: _Bulk) -> None:
        if self._aside or (not self.opened and not bulk.plain):
            self._aside.append(bulk)
        else:
            self.bulk.append(bulk)
        if bulk.key is not None:
            self._keys[bulk.key] = self._keys.get(bulk.key, 0) + 1

    def open(self) -> None:
        """Let go what waited for the end of the handshake."""
        self.opened = True
        self.bulk.extend(self._aside)
        self._aside.clear()

    def announce(self, piece: bytes) -> None:
        """Queue a frame before all large messages; it leaves alone."""
        self.bulk.appendleft(_Alone(piece))

    def add_last(self, piece: bytes) -> None:
        """Queue a frame behind all announcements; it leaves alone."""
        self.bulk.append(_Alone(piece))

    def _seal(self) -> None:
        """Let no more messages join the batch."""
        batch = self.batch
        self.batch = self._kin = None
        assert batch is not None
        self._closed += len(batch) - self._start
        _size, kind, _flags, head_size, ident = HEADER.unpack_from(batch)
        HEADER.pack_into(batch, 0, len(batch) - HEADER_SIZE, kind, 0, head_size, ident)
        ARRAY.pack_into(batch, HEADER_SIZE + head_size, ARRAY_MARK, self.count)

    def drop(self, kind: int, ident: int) -> bool:
        """Forget a message, or the rest of a large one; return whether its receiver hears of it nevertheless.

        That is so when any of it has been handed out, and when it waits in a batch.
        """
        if ident in self.unwritten:
            self.unwritten.discard(ident)
            for index, queued in enumerate(self.normal):
                if HEADER.unpack_from(queued)[1::3] == (kind, ident):
                    self._kin = None
                    del self.normal[index]
                    return False
            return True
        for lane in (self.bulk, self._aside):
            for bulk in lane:
                if isinstance(bulk, _Bulk) and bulk.kind == kind and bulk.ident == ident:
                    lane.remove(bulk)
                    self._finished(bulk.key)
                    self.unwritten_bulk.discard(ident)
                    return bulk.offset > 0
        return True

    def add_source(self, source: Source) -> None:
        """Let a source have its turn among the large messages until it is done; it may be added again then."""
        self.bulk.append(source)

    def discard(self, source: Source) -> None:
        """Ask a source for no more; it must be here."""
        self.bulk.remove(source)

    def take(self) -> list[bytes | bytearray]:
        """Hand out everything small, or one round of pieces behind it."""
        out = self.control
        if self.normal:
            if self.batch is not None:
                self._seal()
            self._kin = None
            self._closed = 0
            out += self.normal
            self.normal = []
            self.unwritten.clear()
        self.control = []
        if self.bulk:
            if not self.bulk[0].plain:
                return self._take_attached(out)
            out.append(self._piece())
        return out

    def _take_attached(self, out: list[bytes | bytearray]) -> list[bytes | bytearray]:
        first = self.bulk[0]
        if isinstance(first, _Attached):
            first.plain = True
            for before in reversed(first.late.prepare()):
                self.announce(before)
            first = self.bulk[0]
        if first.plain or not out:
            out.append(self._piece())
        return out

    def _piece(self) -> bytes:
        bulk = self.bulk[0]
        self.unwritten_bulk.discard(bulk.ident)
        piece = bulk.next_piece()
        if bulk.done:
            self.bulk.popleft()
            self._finished(bulk.key)
        elif len(self.bulk) > 1:
            self._turn()
        return piece

    def _finished(self, key: object) -> None:
        if key is None:
            return
        left = self._keys[key] - 1
        if left:
            self._keys[key] = left
        else:
            del self._keys[key]

    def _turn(self) -> None:
        """Let the next of the first ACTIVE ones have a turn, unless that would break the order of a key."""
        first = self.bulk.popleft()
        place = 0
        for other in self.bulk:
            if place + 1 >= ACTIVE or (first.key is not None and other.key == first.key):
                break
            place += 1
        self.bulk.insert(place, first)

    def clear(self) -> None:
        """Forget everything that waits."""
        self.control.clear()
        self.normal.clear()
        self._closed = 0
        self.batch = self._kin = None
        self.bulk.clear()
        self._aside.clear()
        self._keys.clear()

"""Payloads whose big buffers lie beside their MessagePack, and the table that says where. Layout only.

A payload with attachments is, on the wire (frames with the flag OOB):

    table size u32 · table · value · tail

The table is a MessagePack array: the size of the value and one place per attachment, in the order of their indexes.
The tail holds the attachments that travel as bytes, one after the other. Nothing here knows memory, links or types.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from smartipc.ipc.errors import RemoteProtocolError

THRESHOLD = 64 * 1024
"""Buffers of at least so many bytes are attached; smaller ones travel inside the value."""

IN_TAIL = 0
LEASED = 1
SEALED = 2
"""Where an attachment is: in the tail, in a segment that the sender takes back, in a segment of its own."""

MOST = 1024
"""Attachments of one message."""
_SIZE = struct.Struct("<I")


class Attachment:
    """One big buffer on its way out.

    `view` are its bytes. `place` and `sealed` belong to the memory that shares it with other processes, if any does;
    they are set once and shared by every link that the payload leaves by.
    """

    __slots__ = ("place", "sealed", "view")

    def __init__(self, view: memoryview, place: Any = None) -> None:
        self.view = view
        self.place = place
        self.sealed: Any = None

    def __repr__(self) -> str:
        where = "in place" if self.place is not None else "sealed" if self.sealed is not None else "in private memory"
        return f"<Attachment of {self.view.nbytes} bytes {where}>"


class Payload(bytes):
    """An encoded value, and the buffers that it points at by index.

    Bytes like any other payload for whoever passes it on; the protocol core and the codec look at `attachments`.
    """

    attachments: tuple[Attachment, ...]
    shared: int = 0
    """Of a received one: bytes that did not come with it, because they lie in shared memory."""


def payload(value: bytes, attachments: Sequence[Attachment]) -> Payload:
    """Put a value and its attachments together."""
    both = Payload(value)
    both.attachments = tuple(attachments)
    return both


def size_of(encoded: bytes) -> int:
    """Return the bytes of a payload and of its attachments."""
    if type(encoded) is not Payload:
        return len(encoded)
    return len(encoded) + sum(one.view.nbytes for one in encoded.attachments)


def own(encoded: bytes) -> None:
    """Copy attachments whose memory their owner may change: for a payload that waits longer than the call it is of."""
    if type(encoded) is Payload:
        for one in encoded.attachments:
            if one.place is None and one.sealed is None and not one.view.readonly:
                one.view = memoryview(bytes(one.view))


class Place(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where one attachment is. `segment`, `offset` and `lease` say nothing about one in the tail."""

    kind: int
    length: int
    segment: int = 0
    offset: int = 0
    lease: int = 0


class Table(msgspec.Struct, frozen=True, array_like=True):
    """What comes before a value with attachments."""

    value_size: int
    places: tuple[Place, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Table)


class Pieces:
    """Several buffers seen as one long payload, cut without putting them together first."""

    __slots__ = ("_parts", "_size", "_starts")

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        self._parts = [memoryview(part) for part in parts if len(part)]
        self._starts: list[int] = []
        self._size = 0
        for part in self._parts:
            self._starts.append(self._size)
            self._size += len(part)

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"<Pieces {self._size} bytes in {len(self._parts)} parts>"

    def __getitem__(self, wanted: slice) -> bytes:
        start, stop, _step = wanted.indices(self._size)
        return b"".join(
            part[max(0, start - begin) : stop - begin]
            for part, begin in zip(self._parts, self._starts, strict=True)
            if begin < stop and begin + len(part) > start
        )


def pack(value: bytes, places: Sequence[Place], tail: Sequence[memoryview]) -> Pieces:
    """Lay a payload out for the wire."""
    table = _encoder.encode(Table(len(value), tuple(places)))
    return Pieces([_SIZE.pack(len(table)) + table, value, *tail])


def unpack(data: memoryview) -> tuple[bytes, tuple[Place, ...], memoryview]:
    """Take a payload apart: value, places and tail.

    Raises:
        RemoteProtocolError: the parts do not make up the whole, or there are too many.
        msgspec.DecodeError: the table is malformed.
    """
    if len(data) < _SIZE.size:
        raise RemoteProtocolError("a payload with attachments has no table")
    (size,) = _SIZE.unpack_from(data)
    start = _SIZE.size + size
    if start > len(data):
        raise RemoteProtocolError("the table of attachments is cut")
    table = _decoder.decode(data[_SIZE.size : start])
    if len(table.places) > MOST:
        raise RemoteProtocolError(f"{len(table.places)} attachments in one message")
    if any(place.kind not in (IN_TAIL, LEASED, SEALED) or place.length < 0 for place in table.places):
        raise RemoteProtocolError("an attachment is in no place that is known")
    end = start + table.value_size
    tail = sum(place.length for place in table.places if place.kind == IN_TAIL)
    if table.value_size < 0 or end + tail != len(data):
        raise RemoteProtocolError("the attachments do not make up the payload")
    return bytes(data[start:end]), table.places, data[end:]

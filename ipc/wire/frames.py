"""The 16-byte frame header, the kinds and the flags. See docs/reference/wire-protocol.md.

Layout only: no state, no payloads. `KINDS` is the whole vocabulary of SIPC/1, including what a peer may use only
after it was negotiated as a feature.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

PREFACE = b"\x89SIPC\r\n\x01"
"""First bytes of each direction: a magic that text-mode mangling breaks, and the major version."""

HEADER = struct.Struct("<IBBHQ")
"""body length u32 · kind u8 · flags u8 · head length u16 · id u64, little-endian."""

HEADER_SIZE = HEADER.size


class Kind(IntEnum):
    """What a frame is. 0x00 and 0xFF are never valid: they are what zeroed or garbage memory looks like."""

    HELLO = 0x01
    WELCOME = 0x02
    AUTH = 0x03
    AUTH_OK = 0x04
    REJECT = 0x05
    PING = 0x06
    PONG = 0x07
    GOAWAY = 0x08
    FATAL = 0x09
    SETTINGS = 0x0A
    REQUEST = 0x10
    RESPONSE = 0x11
    ERROR = 0x12
    CANCEL = 0x13
    NOTIFY = 0x15
    NOTIFY_BATCH = 0x16
    REQUEST_BATCH = 0x17
    RESPONSE_BATCH = 0x18
    OPEN = 0x20
    DATA = 0x21
    CREDIT = 0x22
    STOP = 0x23
    RESET = 0x24
    SUB = 0x30
    SUB_OK = 0x31
    UNSUB = 0x32
    PUB = 0x33
    MSG = 0x34
    ACK = 0x35
    MSG_BATCH = 0x36
    FDS = 0x41
    FD_ACK = 0x42
    BUFFER_RELEASE = 0x43
    BUFFER_RETIRE = 0x44
    HATCH = 0x45
    HATCH_OK = 0x46


class Flag(IntFlag):
    """Bits of the flags byte; unknown bits are refused."""

    END = 0x01
    MORE = 0x02
    OOB = 0x04
    FDS = 0x08
    IGNORABLE = 0x80


FRAGMENTABLE = frozenset({Kind.REQUEST, Kind.RESPONSE, Kind.NOTIFY, Kind.MSG, Kind.OPEN, Kind.PUB})
"""Kinds whose payload may be cut: all pieces but the last carry MORE, only the first has a head. DATA may be cut too,
but is put together by the streams, which count its pieces against their windows."""

FEATURES: dict[str, frozenset[Kind]] = {
    "streams": frozenset({Kind.OPEN, Kind.DATA, Kind.CREDIT, Kind.STOP, Kind.RESET}),
    "batch": frozenset({Kind.NOTIFY_BATCH, Kind.MSG_BATCH}),
    "call-batch": frozenset({Kind.REQUEST_BATCH, Kind.RESPONSE_BATCH}),
    "buffers": frozenset(),
    "memfd": frozenset({Kind.FDS, Kind.FD_ACK, Kind.BUFFER_RETIRE}),
    "leases": frozenset({Kind.BUFFER_RELEASE}),
    "hatch": frozenset({Kind.HATCH, Kind.HATCH_OK}),
    "topics": frozenset({Kind.SUB, Kind.SUB_OK, Kind.UNSUB, Kind.PUB}),
}
"""Kinds that a peer may use once the feature is negotiated."""

RESERVED = frozenset(
    {
        Kind.SETTINGS,
        Kind.OPEN,
        Kind.DATA,
        Kind.CREDIT,
        Kind.STOP,
        Kind.RESET,
        Kind.NOTIFY_BATCH,
        Kind.MSG_BATCH,
        Kind.REQUEST_BATCH,
        Kind.RESPONSE_BATCH,
        Kind.FDS,
        Kind.SUB,
        Kind.SUB_OK,
        Kind.UNSUB,
        Kind.PUB,
        Kind.FD_ACK,
        Kind.BUFFER_RELEASE,
        Kind.BUFFER_RETIRE,
        Kind.HATCH,
        Kind.HATCH_OK,
    }
)
"""In the format, but refused until the feature they belong to is negotiated."""


def frame(kind: int, ident: int, head: bytes = b"", payload: bytes = b"", flags: int = 0) -> bytes:
    """Return one whole frame."""
    return HEADER.pack(len(head) + len(payload), kind, flags, len(head), ident) + head + payload


ARRAY = struct.Struct(">BI")
"""How a batch's payload begins: MessagePack's marker of an array with a 32-bit count, always in this long form."""

ARRAY_MARK = 0xDD

BATCHES: dict[int, int] = {
    Kind.NOTIFY: Kind.NOTIFY_BATCH,
    Kind.MSG: Kind.MSG_BATCH,
    Kind.REQUEST: Kind.REQUEST_BATCH,
    Kind.RESPONSE: Kind.RESPONSE_BATCH,
}
"""Kinds of which several that differ only in their payloads may share one frame, as a MessagePack array of these.
The id of a batch of requests or responses is the first one's; the others' follow it in steps of ID_STEP."""

ID_STEP = 2
"""From one id of a side to its next."""

MEMBERS = 1024
"""Most requests or responses in one frame, so that none of them makes a receiver answer with far more than it is."""


def ids_of(first: int, batch: bytes) -> range:
    """Return the ids of the members of a batch of requests or responses.

    Raises:
        ValueError: it does not begin as one, has no members or too many, or ids that do not fit a header.
    """
    mark, count = ARRAY.unpack_from(batch) if len(batch) >= ARRAY.size else (0, 0)
    ids = range(first, first + ID_STEP * count, ID_STEP)
    if mark != ARRAY_MARK or not 0 < count <= MEMBERS or ids[-1] >= 1 << 64:
        raise ValueError(f"a batch of {count} members from {first}")
    return ids

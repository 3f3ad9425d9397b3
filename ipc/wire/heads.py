"""The typed heads of frames: array-like structs of concrete types only, so that no peer chooses what is built.

New fields go to the end and have a default: an older peer ignores them, a newer one fills them in.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from smartipc.ipc.wire import text
from smartipc.ipc.wire.depth import SHALLOW, too_deep


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """First frame of the connecting side."""

    minor_min: int
    minor_max: int
    features: list[str]
    name: str
    pid: int
    generation: int
    app: str
    message_limit: int
    nonce: bytes = b""
    mechanisms: tuple[str, ...] = ("peer",)


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """The accepting side's answer: the version and features both will use."""

    minor: int
    features: list[str]
    name: str
    pid: int
    generation: int
    app: str
    message_limit: int
    nonce: bytes = b""
    mechanism: str = "peer"


class Reject(msgspec.Struct, frozen=True, array_like=True):
    """No connection: why, and which minor versions would do."""

    reason: str
    minor_min: int = 0
    minor_max: int = 0
    authentication: bool = False
    """Whether it is a matter of tokens or identity, not of versions."""


class Proof(msgspec.Struct, frozen=True, array_like=True):
    """Head of AUTH and AUTH_OK: an HMAC over the handshake, see protocol.auth."""

    mac: bytes


class RequestHead(msgspec.Struct, frozen=True, array_like=True):
    """Head of REQUEST and NOTIFY; `timeout_ms` is what remains, 0 for none."""

    method: str
    timeout_ms: int = 0
    attempt: int = 1
    headers: dict[str, str] | None = None
    trace: bytes | None = None


class MessageHead(msgspec.Struct, frozen=True, array_like=True):
    """Head of MSG. An empty topic carries no message: it tells that everything up to `sequence` was dropped."""

    topic: str
    headers: dict[str, str] | None = None
    retained: bool = False
    stamp: int = 0
    """Rises with every retained message of its publisher; 0 for one that is not retained."""
    sequence: int = 0
    """Position among all that was published to this subscription, sent or dropped; 0 where nothing is dropped."""
    sender: str = ""
    """Who published it, where that is not the peer; "" where it is."""


class SubHead(msgspec.Struct, frozen=True, array_like=True):
    """Head of SUB, whose id is the subscription's number; see control.Subscription."""

    pattern: str
    window: int
    queue: str = ""
    overflow: str = "block"


class SubOkHead(msgspec.Struct, frozen=True, array_like=True):
    """Head of SUB_OK: from here on every publish reaches the subscription; with a reason it was refused instead."""

    reason: str = ""


class PubHead(msgspec.Struct, frozen=True, array_like=True):
    """Head of PUB: a message for whoever subscribed at the other end."""

    topic: str
    headers: dict[str, str] | None = None
    retain: bool = False


class AckHead(msgspec.Struct, frozen=True, array_like=True):
    """Head of ACK: messages consumed so far, absolute, so that a lost or repeated one does no harm."""

    consumed: int


class OpenHead(msgspec.Struct, frozen=True, array_like=True):
    """Head of OPEN: what is opened, and how far the opener may be sent to at first.

    A stream's opener only receives; a channel (`duplex`) goes both ways.
    """

    method: str
    duplex: bool
    max_bytes: int
    max_items: int
    headers: dict[str, str] | None = None


class CreditHead(msgspec.Struct, frozen=True, array_like=True):
    """Head of CREDIT: how many bytes and items may have been sent in all, absolute: a repeated one does no harm.

    The first one that the accepting side sends says that it accepted.
    """

    max_bytes: int
    max_items: int


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """One descriptor of an FDS frame: a number that is never used again, its size, whether nobody can change it."""

    number: int
    size: int
    sealed: bool = False


class SegmentsHead(msgspec.Struct, frozen=True, array_like=True):
    """Head of FDS: one entry per descriptor beside the frame, in their order."""

    segments: tuple[Segment, ...]


class LeasesHead(msgspec.Struct, frozen=True, array_like=True):
    """Head of BUFFER_RELEASE: leases that nothing refers to any more."""

    leases: tuple[int, ...]


class HatchHead(msgspec.Struct, frozen=True, array_like=True):
    """Head of HATCH: the name of the shared memory, and with a suffix those of its semaphores."""

    name: str


class Reason(msgspec.Struct, frozen=True, array_like=True):
    """Head of GOAWAY and FATAL."""

    reason: str


class PingHead(msgspec.Struct, frozen=True, array_like=True):
    """Head of PING and PONG."""

    sequence: int


class Fault(msgspec.Struct, frozen=True, array_like=True):
    """Head of ERROR. `code` below 17 are gRPC's numbers, 100 to 199 the library's, see wire.faults."""

    code: int
    name: str
    message: str
    retryable: bool = False
    processed: int = 1
    """0 no, 1 maybe, 2 yes."""
    retry_after_ms: int = 0
    instance: str = ""
    known: tuple[str, ...] = ()
    type: str = ""
    """Registered name of a declared application error, or the type of an undeclared one."""
    details: bytes = b""
    """MessagePack array of a declared error's arguments."""
    path: str = ""
    traceback: str | None = None


H = TypeVar(
    "H", Hello, Welcome, Reject, Proof, RequestHead, MessageHead, AckHead, SubHead, SubOkHead, PubHead,
    OpenHead, CreditHead, SegmentsHead,
    LeasesHead, HatchHead, Reason, PingHead, Fault,
)  # fmt: skip

encoder = msgspec.msgpack.Encoder()
_sentence = msgspec.msgpack.Decoder(str)
_decoders = {
    cls: msgspec.msgpack.Decoder(cls)
    for cls in (
        Hello, Welcome, Reject, Proof, RequestHead, MessageHead, AckHead, SubHead, SubOkHead, PubHead,
    OpenHead, CreditHead, SegmentsHead,
        LeasesHead, HatchHead, Reason, PingHead, Fault,
    )
}  # fmt: skip


def decode(data: bytes, cls: type[H]) -> H:
    """Decode a head.

    Raises:
        msgspec.DecodeError: malformed, or of other types.
    """
    if len(data) > SHALLOW and too_deep(data):  # in a field that we do not know, and would skip
        raise msgspec.DecodeError("nested too deep")
    return _decoders[cls].decode(data)  # type: ignore[return-value]


def encode_fault(fault: Fault, room: int, *, discreet: bool = False) -> bytes:
    """Return a fault in at most about `room` bytes: what is long is cut or left out.

    Args:
        fault: what went wrong.
        room: bytes.
        discreet: whether the peer is on another host or of another user, to whom tracebacks, paths and values are no
            business: the traceback stays here, and sentences are made discreet. What a contract declares crosses.
    """
    if discreet:
        details = fault.details if fault.type else _discreet(fault.details)
        fault = msgspec.structs.replace(fault, message=text.discreet(fault.message), details=details, traceback=None)
    encoded = encoder.encode(fault)
    if len(encoded) > room:
        short = msgspec.structs.replace(fault, message=fault.message[:4096], details=b"", known=(), traceback=None)
        encoded = encoder.encode(short)
    return encoded


def _discreet(reason: bytes) -> bytes:
    """Make the sentence in the details of one of the library's own errors discreet."""
    if not reason:
        return b""
    return encoder.encode(text.discreet(_sentence.decode(reason)))

"""Every bound of the protocol in one frozen value. Numbers only; whoever reads bytes enforces them."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one connection, in bytes, seconds and counts."""

    frame: int = 256 * KIB
    """Largest frame body."""
    head: int = 8 * KIB
    control: int = 16 * KIB
    """Largest body of a connection-level frame."""
    message: int = 16 * MIB
    """Largest payload, reassembled from frames."""
    chunk: int = 64 * KIB
    """Size of the pieces that a larger payload is cut into, so that small frames overtake it."""
    preauth: int = 4 * KIB
    """Bytes that a peer may send before its handshake is complete."""
    handshake_timeout: float = 10.0
    """Seconds for the handshake as the connecting side sees it."""
    accept_timeout: float = 2.0
    """Seconds for the handshake as the accepting side sees it."""
    frame_timeout: float = 10.0
    """Seconds to finish a started frame or message."""
    inflight: int = 1024
    """Unanswered requests that a peer may have here."""
    heavy: int = 256 * MIB
    """Bytes of those of them that are larger than a chunk; more are refused as overload."""
    partial: int = 32
    """Messages that a peer may have half-sent at a time."""
    halves: int = 128 * MIB
    """Bytes of all of them; a sender interleaves at most eight."""
    unsent: int = 16 * MIB
    """Bytes of small messages that wait for a peer that does not read; the accepting side then reads no more of it."""
    buffers: int = 1024 * MIB
    """Bytes of the attachments of one message, and of all half-received ones, where they travel as bytes."""
    pings: int = 20
    """Unsolicited pings a peer may send within a second."""
    window: int = 256 * KIB
    """Bytes that a peer may send on one stream or channel ahead of what the application here consumes."""
    window_items: int = 1024
    """Items likewise."""
    subscriptions: int = 16384
    """Subscriptions that a client may have at a server."""
    streams: int = 256
    """Streams and channels that a peer may have open here."""

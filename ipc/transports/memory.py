"""Which memory the platform can share: the choice only, what is chosen is in memfd.

Imports nothing that is slow: every link asks, and most programs use no buffers.
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

from smartipc.ipc.protocol.buffers import Memory
from smartipc.ipc.transports.base import Stream
from smartipc.ipc.wire.attachments import THRESHOLD

if TYPE_CHECKING:
    from smartipc.ipc.wire.buffer import Buffer

_BUFFER_MODULE = "smartipc.ipc.wire.buffer"


def memory_of(stream: Stream) -> Memory | None:
    """Return how big buffers may cross this stream without it; None for as bytes.

    Only a Unix socket on Linux can carry descriptors. They make every read a little dearer, so only links that are
    opened after `smartipc.Buffer` was imported take them.
    """
    if _BUFFER_MODULE not in sys.modules or sys.platform != "linux":
        return None
    if not isinstance(stream, socket.socket) or stream.family != socket.AF_UNIX:
        return None
    from smartipc.ipc.transports import memfd

    return memfd.memory_of(stream) if memfd.available() else None


def new_buffer(nbytes: int) -> Buffer:
    """Return writable memory of the pool, which is sent in place; private memory where there is no pool or no room.

    Raises:
        ValueError: `nbytes` is negative.
    """
    from smartipc.ipc.wire.buffer import Buffer

    if nbytes < 0:
        raise ValueError(f"a buffer cannot have {nbytes} bytes")
    if nbytes >= THRESHOLD and sys.platform == "linux":
        from smartipc.ipc.transports import memfd

        part = memfd.pool().part(nbytes) if memfd.available() else None
        if part is not None:
            return Buffer.in_place(part.view(), part)
    return Buffer(bytearray(nbytes))

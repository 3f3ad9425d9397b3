"""Bytes received and not yet consumed. One growing buffer and an offset: no move per frame.

Knows nothing of frames. Compacts when the consumed part is the larger one, so each byte is moved at most once.
"""

from __future__ import annotations


class ReceiveBuffer:
    """A byte queue with an offset; `data[offset:]` is what waits."""

    __slots__ = ("data", "offset")

    def __init__(self) -> None:
        self.data: bytes | bytearray = b""
        self.offset = 0

    def __len__(self) -> int:
        return len(self.data) - self.offset

    def __repr__(self) -> str:
        return f"<ReceiveBuffer {len(self)} bytes waiting, {self.offset} consumed>"

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add received bytes; an empty buffer takes immutable bytes over without a copy."""
        if self.offset == len(self.data):
            self.data = data if type(data) is bytes else bytes(data)
            self.offset = 0
            return
        if type(self.data) is bytes:
            self.data = bytearray(self.data[self.offset :])
            self.offset = 0
        elif self.offset > len(self.data) // 2:
            del self.data[: self.offset]  # type: ignore[union-attr,unused-ignore]
            self.offset = 0
        self.data += data  # type: ignore[operator,unused-ignore]

    def clear(self) -> None:
        """Forget everything."""
        self.data = b""
        self.offset = 0

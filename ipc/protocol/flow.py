"""Credit arithmetic of one direction of a stream, in bytes and items. Numbers only: no frames, no queues.

Credit is told as absolute offsets (QUIC's MAX_STREAM_DATA): how much in all may have been sent since the beginning. A
repeated or late CREDIT does no harm and nothing drifts. The receiver raises the offsets when the *application* has
consumed half of the window (h2's rule), so a slow reader stops its writer and small grants do not flood the link.

Why a sender never waits for ever: when everything is consumed, less than half the window is not yet given back, so
more than half is free; a sender begins as soon as its *quantum* is free, which is at most half. An item larger than the
window passes too: its pieces count as consumed while nothing else waits for the application, that is, it may be larger
than the window when the window is otherwise empty.
"""

from __future__ import annotations

from smartipc.ipc.errors import RemoteProtocolError


class SendWindow:
    """What may be sent.

    Args:
        max_bytes: first offset told by the receiver; its window.
        max_items: likewise.
        chunk: largest piece of an item.
    """

    __slots__ = ("items", "max_bytes", "max_items", "quantum", "sent")

    def __init__(self, max_bytes: int, max_items: int, chunk: int) -> None:
        self.max_bytes = max_bytes
        self.max_items = max_items
        self.quantum = max(1, min(chunk, max_bytes // 2))
        self.sent = 0
        self.items = 0

    def __repr__(self) -> str:
        return f"<SendWindow {self.sent}/{self.max_bytes} bytes, {self.items}/{self.max_items} items>"

    def allows(self, size: int, queued: int) -> bool:
        """Tell whether an item of `size` may be taken on behind `queued` bytes that are not sent yet."""
        left = self.max_bytes - self.sent - queued
        return self.items < self.max_items and left >= min(size, self.quantum)

    def piece(self, rest: int, most: int) -> int:
        """Return how much of an item's remaining `rest` bytes to send now, at most `most`; -1 to wait for credit."""
        size = min(rest, most, self.max_bytes - self.sent)
        return size if size >= min(rest, self.quantum) else -1

    def raise_to(self, max_bytes: int, max_items: int) -> None:
        """Take the receiver's offsets; lower ones are late and mean nothing."""
        self.max_bytes = max(self.max_bytes, max_bytes)
        self.max_items = max(self.max_items, max_items)


class ReceiveWindow:
    """What the peer may send.

    Args:
        size: bytes ahead of the application.
        items: items ahead of the application.
    """

    __slots__ = (
        "_half_bytes", "_half_items", "_items", "_size", "consumed", "consumed_items", "max_bytes", "max_items",
        "received", "received_items",
    )  # fmt: skip

    def __init__(self, size: int, items: int) -> None:
        self._size = size
        self._items = items
        self._half_bytes = max(1, size // 2)
        self._half_items = max(1, items // 2)
        self.max_bytes = size
        self.max_items = items
        self.received = 0
        self.received_items = 0
        self.consumed = 0
        self.consumed_items = 0

    def __repr__(self) -> str:
        return f"<ReceiveWindow {self.consumed} consumed of {self.received} received of {self.max_bytes} bytes>"

    def arrived(self, size: int, *, begins: bool) -> None:
        """Count a piece; `begins` for the first of an item.

        Raises:
            RemoteProtocolError: the peer sent more than it was given.
        """
        self.received += size
        if begins:
            self.received_items += 1
        if self.received > self.max_bytes or self.received_items > self.max_items:
            raise RemoteProtocolError("a stream was sent more than its credit")

    def beside(self, size: int) -> None:
        """Count memory that an item refers to: it may exceed the credit, and delays what comes after it."""
        self.received += size

    def consume(self, size: int) -> None:
        """Count an item that the application took.

        Raises:
            ValueError: more than was received: a mistake of the caller.
        """
        if self.consumed + size > self.received:
            raise ValueError("consumed more than was received")
        self.consumed += size
        self.consumed_items += 1

    def grant(self, partial: int, *, incomplete: bool) -> bool:
        """Raise the offsets if it is worth telling, and return whether they were raised.

        Args:
            partial: bytes of the item that is coming in pieces.
            incomplete: whether there is such an item.
        """
        alone = self.consumed_items == self.received_items - incomplete
        max_bytes = self.consumed + self._size + (partial if alone else 0)
        max_items = self.consumed_items + self._items
        if max_bytes - self.max_bytes < self._half_bytes and max_items - self.max_items < self._half_items:
            return False
        self.max_bytes = max(self.max_bytes, max_bytes)
        self.max_items = max_items
        return True

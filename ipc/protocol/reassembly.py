"""Large messages on their way in: pieces by (kind, id), bounded in count and size. No meaning of the payloads."""

from __future__ import annotations

from smartipc.ipc.errors import FrameTooLarge, RemoteProtocolError
from smartipc.ipc.wire.limits import Limits


class Reassembly:
    """Half-received messages of one peer."""

    __slots__ = ("_attached", "_limits", "_plain", "halves")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.halves: dict[tuple[int, int], tuple[bytes, bytearray, bool]] = {}
        self._attached = 0
        self._plain = 0

    def __bool__(self) -> bool:
        return bool(self.halves)

    def __repr__(self) -> str:
        return f"<Reassembly {len(self.halves)} half-received messages>"

    def expects(self, kind: int, ident: int) -> bool:
        """Tell whether a first piece of this message is here."""
        return (kind, ident) in self.halves

    def add(
        self, kind: int, ident: int, head: bytes, piece: bytes, *, last: bool, attached: bool = False
    ) -> tuple[bytes, bytearray] | None:
        """Take a piece; return head and payload when it was the last. A message with attachments may be larger.

        Raises:
            FrameTooLarge: the message exceeds its limit, or all of those with attachments do.
            RemoteProtocolError: too many half-sent messages, a head on a later piece, or not what the first piece was.
        """
        key = (kind, ident)
        known = self.halves.get(key)
        if known is None:
            if len(self.halves) >= self._limits.partial:
                raise RemoteProtocolError("too many half-sent messages")
            known = self.halves[key] = (head, bytearray(), attached)
        elif head:
            raise RemoteProtocolError("a later piece of a message has a head")
        first_head, payload, has_attachments = known
        if has_attachments is not attached:
            raise RemoteProtocolError("a later piece of a message has other flags")
        size, limit = len(payload) + len(piece), self._limits.message
        if not attached:
            self._plain += len(piece)
            if self._plain > self._limits.halves:
                raise FrameTooLarge(self._plain, self._limits.halves, "half-sent messages")
        else:
            self._attached += len(piece)
            size, limit = self._attached, limit + self._limits.buffers
        if size > limit:
            raise FrameTooLarge(size, limit, "message")
        payload += piece
        if not last:
            return None
        self.drop(kind, ident)
        return first_head, payload

    def drop(self, kind: int, ident: int) -> None:
        """Forget a message that its sender gave up."""
        known = self.halves.pop((kind, ident), None)
        if known is None:
            return
        if known[2]:
            self._attached -= len(known[1])
        else:
            self._plain -= len(known[1])

    def clear(self) -> None:
        """Forget all."""
        self.halves.clear()
        self._attached = 0
        self._plain = 0

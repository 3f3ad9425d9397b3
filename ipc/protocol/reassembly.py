"""Large messages on their way in: pieces by (kind, id), bounded in count and size. No meaning of the payloads."""

from __future__ import annotations

from smartipc.ipc.errors import FrameTooLarge, RemoteProtocolError
from smartipc.ipc.wire.limits import Limits


class Reassembly:
    """Half-received messages of one peer."""

    __slots__ = ("_limits", "halves")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.halves: dict[tuple[int, int], tuple[bytes, bytearray]] = {}

    def __bool__(self) -> bool:
        return bool(self.halves)

    def __repr__(self) -> str:
        return f"<Reassembly {len(self.halves)} half-received messages>"

    def expects(self, kind: int, ident: int) -> bool:
        """Tell whether a first piece of this message is here."""
        return (kind, ident) in self.halves

    def add(self, kind: int, ident: int, head: bytes, piece: bytes, *, last: bool) -> tuple[bytes, bytes] | None:
        """Take a piece; return head and payload when it was the last.

        Raises:
            FrameTooLarge: the message exceeds its limit.
            RemoteProtocolError: too many half-sent messages, or a head on a later piece.
        """
        key = (kind, ident)
        known = self.halves.get(key)
        if known is None:
            if len(self.halves) >= self._limits.partial:
                raise RemoteProtocolError("too many half-sent messages")
            known = self.halves[key] = (head, bytearray())
        elif head:
            raise RemoteProtocolError("a later piece of a message has a head")
        first_head, payload = known
        if len(payload) + len(piece) > self._limits.message:
            raise FrameTooLarge(len(payload) + len(piece), self._limits.message, "message")
        payload += piece
        if not last:
            return None
        del self.halves[key]
        return first_head, bytes(payload)

    def drop(self, kind: int, ident: int) -> None:
        """Forget a message that its sender gave up."""
        self.halves.pop((kind, ident), None)

    def clear(self) -> None:
        """Forget all."""
        self.halves.clear()

"""PING and PONG of one connection: how long ours took, how many the peer may send. A component, as pure as its hub."""

from __future__ import annotations

from smartipc.ipc.errors import RemoteProtocolError
from smartipc.ipc.protocol.events import Event, PongReceived
from smartipc.ipc.protocol.outbox import Outbox
from smartipc.ipc.wire import heads
from smartipc.ipc.wire.frames import Kind, frame
from smartipc.ipc.wire.limits import Limits


class Pings:
    """What one connection knows of its pings.

    Args:
        out: where frames wait to be sent.
        limits: bounds of the connection.
    """

    def __init__(self, out: Outbox, limits: Limits) -> None:
        self._out = out
        self._limits = limits
        self._sequence = 0
        self._sent: dict[int, float] = {}
        self._window = (0.0, 0)

    def __repr__(self) -> str:
        return f"<Pings {len(self._sent)} unanswered>"

    def send(self, now: float) -> int:
        """Queue a ping and return its sequence number; PongReceived tells the round trip."""
        self._sequence += 1
        self._sent[self._sequence] = now
        self._say(Kind.PING, 0, heads.PingHead(self._sequence))
        return self._sequence

    def on_ping(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Answer one, unless they are too many."""
        since, count = self._window
        self._window = (since, count + 1) if now - since < 1.0 else (now, 1)
        if self._window[1] > self._limits.pings:
            raise RemoteProtocolError("too many pings")
        self._say(Kind.PONG, ident, heads.decode(head, heads.PingHead))

    def on_pong(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Tell how long one took; one to nothing we sent is ignored."""
        sequence = heads.decode(head, heads.PingHead).sequence
        sent = self._sent.pop(sequence, None)
        if sent is not None:
            events.append(PongReceived(sequence, now - sent))

    def _say(self, kind: Kind, ident: int, head: heads.PingHead) -> None:
        self._out.control.append(frame(kind, ident, heads.encoder.encode(head)))

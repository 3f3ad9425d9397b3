"""The hatch of one connection: offered by its client, joined or refused by its server. A component, as pure as its hub.

What a hatch is, is known to transports.hatch; here it is a name. Frames that come by it go to Connection.receive_aside.
"""

from __future__ import annotations

from typing import Literal

from smartipc.ipc.errors import RemoteProtocolError
from smartipc.ipc.protocol.events import Event, HatchAnswered, HatchOffered
from smartipc.ipc.protocol.outbox import Outbox
from smartipc.ipc.wire import heads
from smartipc.ipc.wire.frames import Kind, frame
from smartipc.ipc.wire.text import shown

FEATURE = "hatch"
"""The client may offer a hatch, once."""


class Hatches:
    """What one connection knows of its hatch.

    Args:
        role: of this side.
        out: where frames wait to be sent.
    """

    def __init__(self, role: Literal["client", "server"], out: Outbox) -> None:
        self.negotiated = False
        """Whether both sides can have one."""
        self._role = role
        self._out = out
        self._offered = False

    def __repr__(self) -> str:
        return f"<Hatches {'offered' if self._offered else 'none'}>"

    def offer(self, name: str) -> None:
        """Queue the offer of a hatch; HatchAnswered tells what became of it."""
        self._offered = True
        self._out.control.append(frame(Kind.HATCH, 0, heads.encoder.encode(heads.HatchHead(name))))

    def answer(self, refused: str = "") -> None:
        """Queue the answer to an offer: "" for joined, else why not."""
        self._out.control.append(frame(Kind.HATCH_OK, 0, heads.encoder.encode(heads.Reason(refused[:200]))))

    def on_offer(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Tell it."""
        name = heads.decode(head, heads.HatchHead).name
        if self._role == "client" or self._offered:
            raise RemoteProtocolError("a hatch is offered once, by the client")
        self._offered = True
        events.append(HatchOffered(name))

    def on_answer(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Tell it."""
        refused = shown(heads.decode(head, heads.Reason).reason)
        if self._role == "server" or not self._offered:
            raise RemoteProtocolError("an answer about a hatch that was not offered")
        events.append(HatchAnswered(refused))

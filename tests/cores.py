"""Two protocol cores without a wire between them."""

from __future__ import annotations

from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import Event


def move(source: Connection, target: Connection, now: float = 0.0) -> list[Event]:
    """Carry all that `source` has to say to `target`, and return what happened there."""
    events: list[Event] = []
    while source.has_data:
        events += target.receive_data(b"".join(source.data_to_send()), now)
    return events

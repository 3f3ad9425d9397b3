"""The life of a connection, as data. Only the enum, the table and the step; no other state of it lives here.

OPENING --handshake--> OPEN --goodbye--> DRAINING
   |                     |                  |
   +-------end-----------+-------end--------+--> CLOSED
"""

from __future__ import annotations

from enum import Enum


class ConnectionState(Enum):
    """Where a connection stands."""

    OPENING = "opening"
    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


class Cause(Enum):
    """What moves it on."""

    HANDSHAKE = "handshake"
    GOODBYE = "goodbye"
    END = "end"


TRANSITIONS: dict[tuple[ConnectionState, Cause], ConnectionState] = {
    (ConnectionState.OPENING, Cause.HANDSHAKE): ConnectionState.OPEN,
    (ConnectionState.OPENING, Cause.END): ConnectionState.CLOSED,
    (ConnectionState.OPEN, Cause.GOODBYE): ConnectionState.DRAINING,
    (ConnectionState.OPEN, Cause.END): ConnectionState.CLOSED,
    (ConnectionState.DRAINING, Cause.GOODBYE): ConnectionState.DRAINING,
    (ConnectionState.DRAINING, Cause.END): ConnectionState.CLOSED,
    (ConnectionState.CLOSED, Cause.END): ConnectionState.CLOSED,
}
"""Whatever is not here cannot happen; asking for it is a KeyError, which is a bug of ours."""

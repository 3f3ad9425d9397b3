"""Who is on the other end: HELLO and WELCOME as values. Only comparing and answering; connection.py moves the bytes.

The token exchange (AUTH, AUTH_OK) has its place in the frames and in `nonce` and `mechanism`; this version knows the
mechanism "peer": the transport itself vouches for the peer (an inherited pipe, or kernel credentials of a socket).
"""

from __future__ import annotations

import msgspec

from smartipc.ipc.errors import RemoteProtocolError
from smartipc.ipc.wire.heads import Hello, Welcome
from smartipc.ipc.wire.limits import Limits

MINOR = 0
"""Newest minor version that is spoken here; the oldest is 0."""

FEATURES: tuple[str, ...] = ("streams",)
"""Optional parts of the protocol that are built: not yet "buffers" and "token"."""


class Identity(msgspec.Struct, frozen=True):
    """What one side says of itself. A claim: whoever needs proof compares it with the transport's credentials."""

    name: str = ""
    pid: int = 0
    generation: int = 0
    app: str = ""


def hello(identity: Identity, limits: Limits) -> Hello:
    """Return the first frame of the connecting side."""
    return Hello(
        0, MINOR, list(FEATURES), identity.name, identity.pid, identity.generation, identity.app, limits.message
    )


def welcome(theirs: Hello, identity: Identity, limits: Limits) -> Welcome:
    """Answer a HELLO.

    Raises:
        RemoteProtocolError: no common version or mechanism.
    """
    if theirs.minor_min > MINOR or theirs.minor_max < theirs.minor_min:
        raise RemoteProtocolError(f"no common version: peer speaks {theirs.minor_min} to {theirs.minor_max}")
    if "peer" not in theirs.mechanisms:
        raise RemoteProtocolError("no common authentication mechanism")
    return Welcome(
        min(MINOR, theirs.minor_max),
        [name for name in FEATURES if name in theirs.features],
        identity.name,
        identity.pid,
        identity.generation,
        identity.app,
        limits.message,
    )


def check_welcome(theirs: Welcome) -> None:
    """Refuse an answer that chose something never offered.

    Raises:
        RemoteProtocolError: it did.
    """
    if theirs.minor > MINOR or theirs.mechanism != "peer" or not set(theirs.features) <= set(FEATURES):
        raise RemoteProtocolError("WELCOME chose what was not offered")


def identity_of(head: Hello | Welcome) -> Identity:
    """Return who the peer says it is."""
    return Identity(head.name, head.pid, head.generation, head.app)

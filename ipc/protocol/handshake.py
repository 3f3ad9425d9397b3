"""Who is on the other end: HELLO and WELCOME as values. Only comparing and answering; greeting.py moves the bytes.

There are two mechanisms, of which a side offers exactly one, so that nobody can talk it into the other: "peer", the
transport itself vouches for the peer (an inherited pipe, or kernel credentials of a socket), and "token", see auth.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from smartipc.ipc.errors import AuthenticationFailed, RemoteProtocolError
from smartipc.ipc.protocol.auth import MECHANISM, NEEDED, NONCE_SIZE, NOT_USED, Auth
from smartipc.ipc.wire.heads import Hello, Welcome
from smartipc.ipc.wire.limits import Limits
from smartipc.ipc.wire.text import shown

MINOR = 0
"""Newest minor version that is spoken here; the oldest is 0."""

FEATURES: tuple[str, ...] = ("streams", "batch", "call-batch")
"""Optional parts of the protocol that every connection has; buffers add what the transport can, see buffers.features.
"""


RELAYED: tuple[str, ...] = (*FEATURES, "topics")
"""What a client and a server without a supervisor speak. Workers do not: their subscriptions are in the directory."""


class Identity(msgspec.Struct, frozen=True):
    """What one side says of itself. A claim: whoever needs proof compares it with the transport's credentials."""

    name: str = ""
    pid: int = 0
    generation: int = 0
    app: str = ""


def hello(identity: Identity, limits: Limits, auth: Auth | None = None, features: Sequence[str] = FEATURES) -> Hello:
    """Return the first frame of the connecting side."""
    return Hello(
        0,
        MINOR,
        list(features),
        identity.name,
        identity.pid,
        identity.generation,
        identity.app,
        limits.message,
        auth.nonce if auth is not None else b"",
        (_mechanism(auth),),
    )


def welcome(
    theirs: Hello, identity: Identity, limits: Limits, auth: Auth | None = None, features: Sequence[str] = FEATURES
) -> Welcome:
    """Answer a HELLO.

    Raises:
        RemoteProtocolError: no common version, or a nonce that is none.
        AuthenticationFailed: the peer uses a token where we use none, or the other way round.
    """
    if theirs.minor_min > MINOR or theirs.minor_max < theirs.minor_min:
        raise RemoteProtocolError(f"no common version: peer speaks {theirs.minor_min} to {theirs.minor_max}")
    if _mechanism(auth) not in theirs.mechanisms:
        raise AuthenticationFailed(NOT_USED if auth is None else NEEDED)
    if auth is not None and len(theirs.nonce) != NONCE_SIZE:
        raise RemoteProtocolError(f"a nonce of {len(theirs.nonce)} bytes")
    return Welcome(
        min(MINOR, theirs.minor_max),
        [name for name in features if name in theirs.features],
        identity.name,
        identity.pid,
        identity.generation,
        identity.app,
        limits.message,
        auth.nonce if auth is not None else b"",
        _mechanism(auth),
    )


def check_welcome(theirs: Welcome, auth: Auth | None = None, features: Sequence[str] = FEATURES) -> None:
    """Refuse an answer that chose something never offered.

    Raises:
        RemoteProtocolError: it did.
    """
    if theirs.minor > MINOR or theirs.mechanism != _mechanism(auth) or not set(theirs.features) <= set(features):
        raise RemoteProtocolError("WELCOME chose what was not offered")
    if auth is not None and len(theirs.nonce) != NONCE_SIZE:
        raise RemoteProtocolError(f"a nonce of {len(theirs.nonce)} bytes")


def _mechanism(auth: Auth | None) -> str:
    return "peer" if auth is None else MECHANISM


def identity_of(head: Hello | Welcome) -> Identity:
    """Return who the peer says it is, in words that are fit for logs and terminals."""
    return Identity(shown(head.name), head.pid, head.generation, shown(head.app))

"""The ingredients of a token handshake that come from outside the protocol: randomness and the kernel's names."""

from __future__ import annotations

import ipaddress
import os
import socket

from smartipc.ipc.protocol.auth import NONCE_SIZE, Auth
from smartipc.ipc.transports.base import Stream
from smartipc.ipc.transports.pipe import FifoConduit
from smartipc.ipc.transports.tls import TlsConduit
from smartipc.ipc.transports.unix import same_user


def auth_for(token: str | bytes | None, stream: Stream, *, accepted: bool) -> Auth | None:
    """Return the token handshake of a new connection, or None where there is no token.

    Args:
        token: the shared secret.
        stream: what was dialled or accepted.
        accepted: whether it was accepted.

    Raises:
        LocalProtocolError: the token is empty.
        OSError: the stream has ended already.
    """
    if token is None:
        return None
    ours = same_user(stream) if isinstance(stream, socket.socket) and stream.family == socket.AF_UNIX else False
    ours = ours or isinstance(stream, FifoConduit)
    return Auth(token, os.urandom(NONCE_SIZE), endpoint_of(stream, accepted=accepted), same_user=ours)


def endpoint_of(stream: Stream, *, accepted: bool) -> str:
    """Return the kernel's name of the accepting end, which is the same at both ends unless somebody stands between.

    Off loopback only the port of a TCP connection: addresses are translated on the way, and there TLS names the host.

    Raises:
        OSError: the stream has ended already.
    """
    if isinstance(stream, TlsConduit):
        stream = stream.socket
    elif not isinstance(stream, socket.socket):
        return stream.endpoint
    name = stream.getsockname() if accepted else stream.getpeername()
    if stream.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    host, port = name[:2]
    return f"tcp:{host}:{port}" if ipaddress.ip_address(host.partition("%")[0]).is_loopback else f"tcp:{port}"

"""A listener with the rules of its door: where one may listen, and which arrivals may begin a handshake.

The links themselves, and what is said on them, are their owner's. So is the owner's duty: tell `door` of every link
that begins its handshake and every one that is through with it or over.
"""

from __future__ import annotations

import logging
import socket
import ssl
from typing import Any

from smartipc.ipc.address import parse
from smartipc.ipc.protocol.auth import Auth
from smartipc.ipc.transports.base import Listener, Stream
from smartipc.ipc.transports.factory import transport_for
from smartipc.ipc.transports.unix import same_user
from smartipc.ipc.trust.door import Door
from smartipc.ipc.trust.policy import check_listening
from smartipc.ipc.trust.tokens import auth_for

log = logging.getLogger("smartipc.trust")


class Entrance:
    """Where peers come in.

    Args:
        listener: owned from here on.
        token: what every peer must know; None where the kernel vouches for peers.
    """

    def __init__(self, listener: Listener, token: str | bytes | None = None) -> None:
        self.address = listener.address
        self.door: Door[Any] = Door()
        self._listener = listener
        self._token = token

    def __repr__(self) -> str:
        return f"<Entrance {self.address}, {self.door!r}>"

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when somebody arrives; -1 when closed."""
        return self._listener.fileno()

    def accept(self) -> tuple[Stream, Auth | None]:
        """Return the next arrival, and its token handshake for the Connection.

        Without a token, arrivals of another user over a Unix socket are turned away here; root may come in.

        Raises:
            BlockingIOError: nobody (more) is there.
            OSError: this arrival failed, or no descriptors are left; the entrance goes on.
        """
        while True:
            stream = self._listener.accept()
            try:
                if self._token is None and _is_unix(stream) and not same_user(stream):
                    log.warning("connection of another user to %s refused", self.address)
                    stream.close()
                    continue
                return stream, auth_for(self._token, stream, accepted=True)
            except OSError:
                stream.close()
                raise

    def close(self) -> None:
        """Let nobody in any more; twice is fine."""
        self._listener.close()


def listen(address: str, *, token: str | bytes | None = None, tls: ssl.SSLContext | None = None) -> Entrance:
    """Listen at an address of any scheme, if it is safe.

    Raises:
        ValueError: the address names nothing.
        ConnectFailed: it cannot be bound, or must not be without a token or TLS.
    """
    where = parse(address)
    check_listening(where, token=token, tls=tls)
    return Entrance(transport_for(where, tls=tls).listen(), token)


def _is_unix(stream: Stream) -> bool:
    return isinstance(stream, socket.socket) and stream.family == socket.AF_UNIX

"""The child-process pipe: a socket pair made before the child, of which each side keeps one end."""

from __future__ import annotations

import socket

from smartipc.ipc.errors import ConnectFailed
from smartipc.ipc.transports.base import IpcTransport


class ChildProcessTransport(IpcTransport):
    """One end of a pair, by descriptor. Possession is the credential: the kernel lets nobody else in.

    Args:
        fd: an inherited, connected stream socket; taken over by dial.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __repr__(self) -> str:
        return f"ChildProcessTransport(fd={self.fd})"

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Return the supervisor's and the child's end, neither inherited unless passed on."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def dial(self) -> socket.socket:
        """Return the socket of the descriptor; see IpcTransport.dial."""
        try:
            sock = socket.socket(fileno=self.fd)
            sock.setblocking(False)
        except OSError as error:
            raise ConnectFailed(f"fd://{self.fd}", error.strerror or str(error)) from error
        return sock

    def listen(self, backlog: int = 512) -> socket.socket:
        """Refuse: a pair has exactly two ends."""
        raise ConnectFailed(f"fd://{self.fd}", f"a child-process pipe cannot listen (backlog {backlog})")

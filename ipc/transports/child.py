"""The child-process pipe: a socket pair made before the child, of which each side keeps one end."""

from __future__ import annotations

import contextlib
import os
import socket
import weakref

from smartipc.ipc.errors import ConnectFailed, LocalProtocolError
from smartipc.ipc.transports.base import IpcTransport, Listener

_taken: weakref.WeakValueDictionary[int, socket.socket] = weakref.WeakValueDictionary()
"""What was made of each descriptor in this process. Two readers of one socket would each get half of its frames."""


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

    def dial(self, timeout: float = 5.0) -> socket.socket:  # noqa: ARG002 - it is connected already
        """Return the socket of the descriptor; see IpcTransport.dial.

        Raises:
            LocalProtocolError: this process has taken it over already, and has not closed it.
        """
        known = _taken.get(self.fd)
        if known is not None and known.fileno() == self.fd:
            raise LocalProtocolError(
                f"fd://{self.fd} is in use in this process already: one descriptor carries one connection; close the "
                "first, or make another pair"
            )
        try:
            sock = socket.socket(fileno=self.fd)
        except OSError as error:
            raise ConnectFailed(f"fd://{self.fd}", error.strerror or str(error)) from error
        try:
            sock.setblocking(False)
            sock.set_inheritable(False)
            sock.getpeername()
        except OSError as error:
            sock.detach()  # not ours to close: it was never what we were told
            raise ConnectFailed(f"fd://{self.fd}", error.strerror or str(error)) from error
        if sock.type != socket.SOCK_STREAM:
            sock.detach()
            raise ConnectFailed(f"fd://{self.fd}", "it is no stream socket")
        _taken[self.fd] = sock
        return sock

    def listen(self, backlog: int = 512) -> Listener:  # noqa: ARG002 - exactly one peer arrives
        """Return a listener at which the one peer of the pair has arrived already; see IpcTransport.listen."""
        return _OneArrival(self.dial(), f"fd://{self.fd}")


class _OneArrival(Listener):
    """A listener with one arrival and no more. A pipe with one byte in it makes it readable until then."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.address = address
        self._sock: socket.socket | None = sock
        self._bell, far = os.pipe()
        os.set_blocking(self._bell, False)
        os.write(far, b"!")
        # Kept open: the end of the pipe would make it readable for ever.
        self._far = far

    def fileno(self) -> int:
        return self._bell

    def accept(self) -> socket.socket:
        if self._sock is None:
            raise BlockingIOError
        os.read(self._bell, 1)
        sock, self._sock = self._sock, None
        return sock

    def close(self) -> None:
        if self._bell >= 0:
            os.close(self._bell)
            os.close(self._far)
            self._bell = -1
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.close()
            self._sock = None

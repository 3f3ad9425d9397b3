"""What a transport is: it makes connected byte streams and says who is at the other end. No protocol in here.

A stream under a driver is either a plain `socket.socket`, the fast case, or a `Conduit`: anything else that carries
bytes both ways, with the same verbs. Drivers tell the two apart once, when a link begins.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """What the kernel says of the process at the other end, at the time it connected or listened.

    `pid` is 0 where the kernel does not tell.
    """

    pid: int
    uid: int
    gid: int


class Conduit(ABC):
    """A byte stream that is no plain socket. Never blocks: every verb raises BlockingIOError instead.

    One thread may be in `recv` while another one is in `send`.
    """

    endpoint: str = ""
    """The kernel's name of the accepting end, the same at both ends; it goes into the token handshake."""

    @abstractmethod
    def fileno(self) -> int:
        """Return the descriptor that becomes readable when `recv` has something; -1 when closed."""

    def write_fileno(self) -> int:
        """Return the descriptor that becomes writable when `send` has room."""
        return self.fileno()

    def handshake(self) -> bool:
        """Go on with what the conduit must settle before it carries bytes; return whether all is settled.

        Called again whenever `fileno` is readable.

        Raises:
            OSError: it will never be settled.
        """
        return True

    @abstractmethod
    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Return what has come, about `size` bytes at most; nothing at the end of the peer's bytes.

        Raises:
            BlockingIOError: nothing has come yet.
            OSError: the stream is broken.
        """

    @abstractmethod
    def send(self, data: bytes | bytearray | memoryview, flags: int = 0, /) -> int:
        """Take bytes and return how many. After BlockingIOError the same bytes must come again.

        Raises:
            BlockingIOError: there is no room yet.
            OSError: the stream is broken.
        """

    def sendmsg(
        self,
        pieces: Iterable[bytes | bytearray | memoryview],
        ancillary: Iterable[Any] = (),  # noqa: ARG002 - the shape of socket.sendmsg; conduits carry no descriptors
        flags: int = 0,
        /,
    ) -> int:
        """Take the bytes of several pieces and return how many; raises as `send`."""
        return self.send(b"".join(pieces), flags)

    @abstractmethod
    def shutdown(self, how: int, /) -> None:
        """End both directions, so that whoever waits for the stream wakes; raises OSError if they are ended."""

    @abstractmethod
    def close(self) -> None:
        """Release the descriptors; twice is fine."""


Stream: TypeAlias = socket.socket | Conduit


def write_fileno(stream: Stream) -> int:
    """Return the descriptor that becomes writable when the stream has room."""
    return stream.fileno() if isinstance(stream, socket.socket) else stream.write_fileno()


class Listener(ABC):
    """Where peers arrive. `address` is what was bound, with the real port."""

    address: str

    @abstractmethod
    def fileno(self) -> int:
        """Return the descriptor that becomes readable when somebody arrives; -1 when closed."""

    @abstractmethod
    def accept(self) -> Stream:
        """Return the next arrival.

        Raises:
            BlockingIOError: nobody is there.
            OSError: this arrival failed, or the process has no descriptors left; the listener goes on.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop listening and remove what was made for it, never a successor's; twice is fine."""


class SocketListener(Listener):
    """A listening, non-blocking socket.

    Args:
        sock: owned from here on.
        address: as text.
    """

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.address = address
        self._sock = sock
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address}{' closed' if self.fileno() < 0 else ''}>"

    def fileno(self) -> int:
        """Return the socket's descriptor; see Listener."""
        return self._sock.fileno()

    def accept(self) -> Stream:
        """Return the next connection, non-blocking; see Listener."""
        try:
            sock, _ = self._sock.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            raise
        sock.setblocking(False)
        return sock

    def close(self) -> None:
        """Close the socket; see Listener."""
        self._sock.close()
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def _turn_away(self) -> None:
        """Close an arrival for which there is no descriptor: left in the queue it would keep us awake for ever."""
        os.close(self._spare)
        with contextlib.suppress(OSError):
            self._sock.accept()[0].close()
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


class IpcTransport(ABC):
    """A way between two processes."""

    instant: bool = True
    """Whether `dial` never waits: an event loop may call it itself. Otherwise it belongs into a thread."""

    @abstractmethod
    def dial(self, timeout: float = 5.0) -> Stream:
        """Return a connected, non-blocking stream, made within `timeout` seconds.

        Raises:
            ConnectFailed: nobody listens there, or it is somebody whom we do not trust.
            BlockingIOError: somebody listens but cannot take one more right now; try again soon.
        """

    @abstractmethod
    def listen(self, backlog: int = 512) -> Listener:
        """Return a listener.

        Raises:
            ConnectFailed: the address cannot be bound.
        """

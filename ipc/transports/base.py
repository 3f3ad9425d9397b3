"""What a transport is: it makes connected stream sockets and says who is at the other end. No protocol in here."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """What the kernel says of the process at the other end, at the time it connected or listened."""

    pid: int
    uid: int
    gid: int


class IpcTransport(ABC):
    """A way between two processes."""

    @abstractmethod
    def dial(self) -> socket.socket:
        """Return a connected, non-blocking socket.

        Raises:
            ConnectFailed: nobody listens there.
            BlockingIOError: somebody listens but cannot take one more right now; try again soon.
        """

    @abstractmethod
    def listen(self, backlog: int = 512) -> socket.socket:
        """Return a listening, non-blocking socket.

        Raises:
            ConnectFailed: the address cannot be bound.
        """

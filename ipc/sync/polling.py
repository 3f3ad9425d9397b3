"""Waiting for several descriptors at once, and for other threads. Nothing about links or messages."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Any

IN = select.POLLIN
OUT = select.POLLOUT
_MOST = 256
"""Descriptors that one wait returns; the others come with the next, for the kernel goes round."""


class Waker:
    """Ends another thread's wait: a descriptor that becomes readable. `wake` never blocks and may come too early."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._near.fileno()

    def wake(self) -> None:
        """Make it readable; a full or closed pair needs no more."""
        with contextlib.suppress(OSError):
            self._far.send(b"\0")

    def clear(self) -> None:
        """Make it wait again."""
        with contextlib.suppress(OSError):
            self._near.recv(4096)

    def close(self) -> None:
        """Release both ends."""
        self._near.close()
        self._far.close()


class Readiness:
    """A set of descriptors to wait on: epoll where there is one, else poll; IN and OUT mean the same for both."""

    def __init__(self) -> None:
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._set: Any = self._epoll if self._epoll is not None else select.poll()

    def register(self, fd: int, mask: int = IN) -> None:
        """Wait on one more descriptor."""
        self._set.register(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        """Wait for something else on it."""
        self._set.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        """Wait on it no more; unknown ones are ignored."""
        with contextlib.suppress(OSError, KeyError, ValueError):
            self._set.unregister(fd)

    def wait(self, seconds: float) -> list[tuple[int, int]]:
        """Return the ready descriptors with what they are ready for, waiting at most `seconds`."""
        ready: list[tuple[int, int]] = (
            self._set.poll(seconds * 1000) if self._epoll is None else self._set.poll(seconds, _MOST)
        )
        return ready

    def close(self) -> None:
        """Release the kernel's set."""
        if self._epoll is not None:
            self._epoll.close()

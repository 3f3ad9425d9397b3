"""Our own stdout and stderr, written without ever blocking the supervisor on whoever reads them.

What is written here is finished text; prefixes and JSON are output.py's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import stat
import time
from collections import deque

BACKLOG = 8 * 1024 * 1024
"""Bytes kept for a reader that does not read; what is more is dropped and counted."""


class Sink:
    """One of our own streams.

    Args:
        descriptor: where to write; kept blocking for everybody else, so it is written only when poll allows it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._watching = False
        # A file takes everything at once; of a pipe or terminal poll promises no more than this.
        self._piece = BACKLOG if _is_file(descriptor) else select.PIPE_BUF

    def __repr__(self) -> str:
        return f"<Sink fd {self._descriptor}, {self._bytes} bytes waiting, {self._dropped} lines dropped>"

    def write(self, data: bytes, lines: int = 1) -> None:
        """Write whole lines, now or when the reader reads."""
        if self._bytes > BACKLOG:
            self._dropped += lines
            return
        if self._dropped:
            data = f"smartipc: {self._dropped} lines dropped, their reader was too slow\n".encode() + data
            self._dropped = 0
        self._waiting.append(data)
        self._bytes += len(data)
        if not self._watching:
            self.flush(0.0)

    def flush(self, wait: float) -> None:
        """Write what waits, giving the reader at most `wait` seconds to make room."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        deadline = time.monotonic() + wait
        while self._waiting:
            data, done = self._waiting.popleft(), 0
            while done < len(data):
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    self._waiting.appendleft(data[done:])
                    self._watch()
                    return
                try:
                    written = os.write(self._descriptor, data[done : done + self._piece])
                except OSError:
                    self._waiting.clear()  # the reader is gone: there is nobody to tell
                    self._bytes = 0
                    self._unwatch()
                    return
                done += written
                self._bytes -= written
        self._unwatch()

    def _watch(self) -> None:
        if not self._watching:
            with contextlib.suppress(RuntimeError, PermissionError, OSError):
                asyncio.get_running_loop().add_writer(self._descriptor, self.flush, 0.0)
                self._watching = True

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_writer(self._descriptor)


def _is_file(descriptor: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return False

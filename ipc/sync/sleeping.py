"""Threads that wait for any of several links, and whoever wakes them: another thread that read, or a new directory."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Collection

from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.sync.polling import IN, OUT, Waker


class Sleepers:
    """The threads of one handle that wait for several links at once. For any number of threads."""

    def __init__(self) -> None:
        self._sleeping: dict[int, Callable[[], None]] = {}
        self._spare: list[Waker] = []

    def __repr__(self) -> str:
        return f"<Sleepers {len(self._sleeping)}>"

    def wake(self) -> None:
        """Make every one of them look again."""
        for wake in list(self._sleeping.values()):
            wake()

    def close(self) -> None:
        """Release their descriptors."""
        for waker in self._spare:
            waker.close()
        self._spare.clear()

    def poll(self, on: Collection[Link], happened: Callable[[], bool], longest: float) -> None:
        """Read from any of the links, or be woken: by another thread that read for us, or by the directory."""
        me = threading.get_ident()
        try:
            waker = self._spare.pop()
        except IndexError:
            waker = Waker()
        self._sleeping[me] = waker.wake
        poller = select.poll()
        poller.register(waker, IN)
        by_fd: dict[int, Link] = {}
        try:
            for link in on:
                link.watchers[me] = waker.wake
                fd = link.fileno()
                if fd < 0:
                    return
                by_fd[fd] = link
                poller.register(fd, IN | OUT if link.stuck else IN)
                timer = link.connection.next_timer()
                if timer is not None:
                    longest = min(longest, timer - time.monotonic())
            # Only now that everybody knows whom to wake is the last look safe.
            ready = poller.poll(0 if happened() else max(0.0, longest * 1000))
            now = time.monotonic()
            for fd, _mask in ready:
                if fd in by_fd:
                    by_fd[fd].pump(0)
            for link in on:
                timer = link.connection.next_timer()
                if timer is not None and now >= timer:
                    link.pump(0)
        finally:
            del self._sleeping[me]
            for link in on:
                link.watchers.pop(me, None)
            waker.clear()
            self._spare.append(waker)

"""Who of several threads reads one link: one leads, the others follow until it has read for them or leaves.

Only taking turns and waking. Nothing here reads, and no thread is started.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Turns:
    """The turns of one link."""

    __slots__ = ("_changed", "_depth", "followers", "reader", "reading", "watchers")

    def __init__(self) -> None:
        self.followers = 0
        """Threads that sleep in `follow`."""
        self.watchers: dict[int, Callable[[], None]] = {}
        """By thread: called when another thread has read for it; for threads that poll several links."""
        self.reading = threading.Lock()
        """Held by the thread that reads. Who takes it by itself, for one read in which nothing is dispatched, need not
        say who it is; see `leave` for what comes after releasing it."""
        self.reader = 0
        """The thread that leads and may dispatch; 0 for none."""
        self._depth = 0
        self._changed = threading.Condition(threading.Lock())

    def __repr__(self) -> str:
        return f"<Turns {'taken' if self.reading.locked() else 'free'}, {self.followers} follow>"

    def lead(self) -> bool:
        """Become the one thread that reads, if nobody is. Whoever dispatches may do so again, from a host's method."""
        if self.reader == threading.get_ident():
            self._depth += 1
            return True
        if not self.reading.acquire(blocking=False):
            return False
        self.reader = threading.get_ident()
        return True

    def leave(self) -> None:
        """Read no more, as often as `lead` was granted; the last time lets another thread lead."""
        if self._depth:
            self._depth -= 1
            return
        self.reader = 0
        self.reading.release()
        if self.followers or self.watchers:
            self.announce()

    def follow(self, timeout: float, wanted: Callable[[], bool]) -> None:
        """Sleep for at most `timeout` seconds while another thread leads and `wanted`.

        No wake-up is lost: a result is stored before `followers` is looked at, and we count ourselves before we look
        at results.
        """
        with self._changed:
            self.followers += 1
            try:
                if self.reading.locked() and wanted():
                    self._changed.wait(timeout)
            finally:
                self.followers -= 1

    def announce(self) -> None:
        """Wake the threads that wait for what another one reads."""
        with self._changed:
            self._changed.notify_all()
        me = threading.get_ident()
        for thread, wake in list(self.watchers.items()):
            if thread != me:
                wake()

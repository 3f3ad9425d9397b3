"""When blocking code publishes without end, and who sends what it gathered if it then turns to something else.

Blocking code has no loop turn at whose end the rest could leave. So a message is written at once, until there is no
end of them: then they leave in batches, and a thread sees to the last one, whatever the program does meanwhile. It
needs the interpreter for that: within a millisecond if that is free, after a switch interval (5 ms) if Python code
computes, not before it returns if one call of foreign code holds on to it. What to send is in publishing.py.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("smartipc.topics")

PERIOD = 0.001
"""Seconds between two looks of the flusher."""
_QUICK = 0.0002
"""Seconds between two messages of a flood, at most."""
_MANY = 16
"""Messages in a row that make a flood."""


class Flood:
    """Whether messages come in a flood."""

    __slots__ = ("_last", "_row", "_what", "waited")

    def __init__(self) -> None:
        self.waited = False
        """Whether the publisher waited for credit since, which says nothing of its own pace."""
        self._what: object = None
        self._row = 0
        self._last = 0.0

    def __repr__(self) -> str:
        return f"<Flood {self._row} in a row>"

    def rises(self, what: object, now: float) -> bool:
        """Note one more message of that kind; tell whether there have been many in a row."""
        quick = self.waited or now - self._last < _QUICK
        self._row = self._row + 1 if quick and what is self._what else 0
        self._what, self._last, self.waited = what, now, False
        return self._row >= _MANY


class Flusher:
    """A thread that looks again and again while there is something to see. It begins when it is first woken.

    Args:
        look: called by the thread; returns whether to look again soon.
    """

    def __init__(self, look: Callable[[], bool]) -> None:
        self._look = look
        self._due = threading.Event()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Flusher {'closed' if self.closed else 'running' if self._thread is not None else 'not needed yet'}>"

    @property
    def closed(self) -> bool:
        """Whether it looks no more."""
        return self._over.is_set()

    def wake(self) -> None:
        """Look soon. One caller at a time."""
        if self._thread is None and not self.closed:
            self._thread = threading.Thread(target=self._run, name="smartipc-flusher", daemon=True)
            self._thread.start()
        self._due.set()

    def close(self) -> None:
        """Look no more, and wait for the thread to end. Call without a lock that `look` takes."""
        self._over.set()
        self._due.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(PERIOD):
            try:
                again = self._look()
            except Exception:
                log.exception("what was gathered could not be sent")
                again = False
            if not again:
                self._due.wait()
                self._due.clear()

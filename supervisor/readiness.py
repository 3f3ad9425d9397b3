"""`ready: {log: regex}`: a life is ready once a line of its output matches.

A line may come before the core knows that the life's code runs, so a match is kept until it does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from smartipc.supervisor.core.facts import BecameReady
from smartipc.supervisor.core.orders import Announce

if TYPE_CHECKING:
    from smartipc.supervisor.runner import App


class LogReadiness:
    """Look at the lines of lives that are not ready yet.

    Args:
        app: the running app.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._matched: set[tuple[str, int]] = set()
        self._running: set[tuple[str, int]] = set()

    def __repr__(self) -> str:
        return f"<LogReadiness {len(self._matched)} matched early>"

    def watch(self, key: tuple[str, int], pattern: str) -> None:
        """Begin to look at the lines of a life that was just spawned."""
        search = re.compile(pattern).search

        def look(line: bytes) -> None:
            if search(line.decode("utf-8", "backslashreplace")):
                self._app.host.on_line.pop(key, None)
                if key in self._running:
                    self._app.feed(BecameReady(*key))
                else:
                    self._matched.add(key)

        self._app.host.on_line[key] = look

    def follow(self, order: Announce) -> None:
        """Tell of a match that came before its time."""
        key = order.instance, order.generation
        self._running.discard(key)
        if order.to_state == "running":
            self._running.add(key)
        if key in self._matched and order.to_state != "starting":
            self._matched.discard(key)
            if order.to_state == "running":
                self._app.feed(BecameReady(*key))

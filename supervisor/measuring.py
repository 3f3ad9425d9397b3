"""The memory of the lives that are recycled by it, looked at once a second. What is too much is the core's business."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from smartipc.supervisor.core.facts import Measured

if TYPE_CHECKING:
    from smartipc.supervisor.runner import App

_PERIOD = 1.0


class Measuring:
    """Measure where `recycle.memory` is written; costs nothing elsewhere.

    Args:
        app: the running app.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Measuring {'on' if self._timer is not None else 'off'}>"

    def begin(self) -> None:
        """Begin to measure, if any worker wants it and it is not being done."""
        if self._timer is None and self._wanted():
            self._timer = asyncio.get_running_loop().call_later(_PERIOD, self._measure)

    def close(self) -> None:
        """Stop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wanted(self) -> set[str]:
        return {
            one.name for one in self._app.spec.workers if one.recycle is not None and one.recycle.memory is not None
        }

    def _measure(self) -> None:
        self._timer = None
        wanted = self._wanted()
        for view in self._app.core.snapshot():
            if view.worker in wanted and view.pid is not None:
                memory, _ = self._app.meter.read(view.pid)
                if memory is not None:
                    self._app.feed(Measured(view.instance, view.generation, memory=memory))
        self.begin()

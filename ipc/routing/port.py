"""What a handle needs of the supervisor, as an interface: over the pipe in a worker, in-process in the supervisor."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from smartipc.ipc.contracts import Method

P = TypeVar("P")
R = TypeVar("R")


class ControlPort(Protocol):
    """The way to the supervisor. Thread-safe."""

    def notify(self, method: Method[P, Any], payload: P) -> None:
        """Tell something; never blocks for long, never raises."""

    def call(self, method: Method[P, R], payload: P) -> Future[R]:
        """Ask something."""

    def turned(self) -> None:
        """Note that the worker's own loop has turned."""

"""Descriptors on their way to a child. Every child imports this file to receive them: it must stay tiny."""

from __future__ import annotations

from multiprocessing.reduction import DupFd
from typing import Any


class Passed:
    """A descriptor that reaches a multiprocessing child under any start method; `detach` gives its number there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self._descriptor),)

    def detach(self) -> int:
        """Return the number: fork copies descriptors as they are."""
        return self._descriptor


def _received(passed: Any) -> Any:
    return passed

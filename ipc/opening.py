"""What `connect` and `serve` return: something to await, or to use in `async with`. Nothing of what it opens."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar


class Closable(Protocol):
    """What can be opened so."""

    async def aclose(self, grace: float = 5.0) -> None:
        """End it."""


E = TypeVar("E", bound=Closable)


class Opening(Generic[E]):
    """Opens when it is awaited or entered, not before: `await connect(...)` or `async with connect(...) as client`."""

    def __init__(self, opened: Callable[[], Coroutine[Any, Any, E]]) -> None:
        self._opened = opened
        self._result: E | None = None

    def __repr__(self) -> str:
        return f"<Opening: {self._result!r}>"

    def __await__(self) -> Generator[Any, None, E]:
        return self._opened().__await__()

    async def __aenter__(self) -> E:
        self._result = await self._opened()
        return self._result

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._result is not None:
            await self._result.aclose()

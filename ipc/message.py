"""What handlers, subscribers and callers are given besides payloads. Values only."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from smartipc.ipc.errors import SmartIpcError

T = TypeVar("T")


class SharedHeaders(dict[str, str]):
    """Headers of published messages, which cannot be changed, so that many messages may share them.

    A dict for each of them would be a tenth of what it costs to receive a published message.
    """

    __slots__ = ()

    def _refuse(self, *_args: Any, **_more: Any) -> Any:
        raise TypeError("the headers of a received message cannot be changed; copy them with dict(message.headers)")

    def __reduce__(self) -> tuple[type[SharedHeaders], tuple[dict[str, str]]]:
        return SharedHeaders, (dict(self),)

    __setitem__ = __delitem__ = setdefault = update = __ior__ = pop = popitem = clear = _refuse


NO_HEADERS = SharedHeaders()


class IpcMessage(msgspec.Struct, Generic[T], frozen=True):
    """One message as its receiver sees it.

    `deadline` is monotonic seconds or None, `timestamp` epoch seconds of its arrival here, `sender` the peer's instance
    name, `attempt` starts at 1; `topic` is "" and `missed` 0 for requests. `trace` is a W3C traceparent, equal along a
    chain of calls and messages; None for a message that was published outside of any. Headers are for reading: those of
    published messages are a dict that refuses changes.
    """

    payload: T
    id: int = 0
    sender: str = ""
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    timestamp: float = 0.0
    deadline: float | None = None
    trace: str | None = None
    attempt: int = 1
    topic: str = ""
    missed: int = 0

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline, never below 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """One instance's part of a broadcast: a value, or the error."""

    instance: str
    value: T | None = None
    error: SmartIpcError | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """An instance as `ipc.peers` lists it."""

    name: str
    slot: int
    generation: int
    pid: int
    ready: bool


def epoch(monotonic: float) -> float:
    """Return the wall-clock time of a recent monotonic moment, in epoch seconds."""
    return time.time() - (time.monotonic() - monotonic)

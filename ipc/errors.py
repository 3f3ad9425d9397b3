"""Every error of smartipc, in one tree. Facts are attributes, the sentence is derived from them.

    SmartIpcError
    ├── ConnectFailed(address, reason)
    ├── ConnectionLost(peer)                  a CallError too when a call was under way
    ├── ProtocolError
    │   ├── LocalProtocolError                this program misused the library
    │   └── RemoteProtocolError               the other side broke the protocol
    │       └── FrameTooLarge(size, limit)
    ├── CallError(method, instance, processed, retryable)
    │   ├── RequestTimeout                    also a TimeoutError
    │   ├── RequestCancelled
    │   ├── NoSuchWorker(worker, known)
    │   ├── NoSuchMethod(method, known)
    │   ├── WorkerDied(instance, exit_code, signal, oom, processed)
    │   ├── InvalidPayload(path, reason)
    │   ├── RemoteError(type_name, message, remote_traceback)
    │   ├── Overloaded
    │   ├── RateLimited(retry_after)
    │   ├── CircuitOpen(retry_after)
    │   └── PermissionDenied
    ├── AuthenticationFailed
    ├── SlowConsumer
    ├── StreamReset
    ├── EndOfStream
    ├── OrderFailed(results)
    └── ConfigError(problems)

Rules of this file: every error is built from keyword or positional *facts*, keeps them as attributes, derives its
sentence in `__str__`, and survives pickling. No I/O, no imports from the rest of the library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Processed = Literal["no", "maybe", "yes"]
"""Whether the other side ran the call: "no" is a guarantee, "maybe" is ignorance, "yes" is knowledge."""


class SmartIpcError(Exception):
    """Any failure that smartipc reports. Subclasses carry facts as attributes."""

    def _facts(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._facts())

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={value!r}" for name, value in self._facts().items())
        return f"{type(self).__name__}({facts})"


def _rebuild(cls: type[SmartIpcError], facts: dict[str, Any]) -> SmartIpcError:
    error = cls.__new__(cls)
    error.__dict__.update(facts)
    return error


class ConnectFailed(SmartIpcError):
    """No connection could be made to `address`."""

    def __init__(self, address: str, reason: str) -> None:
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot connect to {self.address}: {self.reason}"


class ProtocolError(SmartIpcError):
    """The protocol was violated; see the two subclasses for whose fault it was."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class LocalProtocolError(ProtocolError):
    """This program asked for something that the state of the connection or handle forbids."""


class RemoteProtocolError(ProtocolError):
    """The peer sent bytes that the protocol forbids; the connection is over."""


class FrameTooLarge(RemoteProtocolError):
    """A frame or message exceeds a limit, here or announced by the peer."""

    def __init__(self, size: int, limit: int, what: str = "frame") -> None:
        self.size = size
        self.limit = limit
        self.what = what

    def __str__(self) -> str:
        return f"{self.what} of {self.size} bytes exceeds the limit of {self.limit} bytes"


class CallError(SmartIpcError):
    """A call failed. `processed` says whether its handler ran, `retryable` whether trying again may help."""

    retryable_default: ClassVar[bool] = False
    processed_default: ClassVar[Processed] = "maybe"

    def __init__(
        self,
        *,
        method: str | None = None,
        instance: str | None = None,
        processed: Processed | None = None,
        retryable: bool | None = None,
    ) -> None:
        self.method = method
        self.instance = instance
        self.processed: Processed = processed if processed is not None else self.processed_default
        self.retryable: bool = retryable if retryable is not None else self.retryable_default

    def _where(self) -> str:
        what = self.method or "the call"
        return f"{what} on {self.instance}" if self.instance else what

    def __str__(self) -> str:
        return f"{self._where()} failed (processed: {self.processed})"


class ConnectionLost(CallError):
    """The connection ended while it was needed, and the peer is not known to have died."""

    retryable_default = True

    def __init__(self, peer: str = "the peer", reason: str = "", **call: Any) -> None:
        super().__init__(**call)
        self.peer = peer
        self.reason = reason

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"connection to {self.peer} lost{why} (processed: {self.processed})"


class RequestTimeout(CallError, TimeoutError):
    """The deadline passed before a reply came."""

    retryable_default = True

    def __init__(self, timeout: float | None = None, waiting_for: str = "", **call: Any) -> None:
        super().__init__(**call)
        self.timeout = timeout
        self.waiting_for = waiting_for

    def __str__(self) -> str:
        within = f" within {self.timeout:g} s" if self.timeout is not None else " before its deadline"
        why = f": {self.waiting_for}" if self.waiting_for else ""
        return f"no reply to {self._where()}{within}{why} (processed: {self.processed})"


class RequestCancelled(CallError):
    """The call was cancelled at the other end, or its caller went away."""

    def __str__(self) -> str:
        return f"{self._where()} was cancelled"


class NoSuchWorker(CallError):
    """The app has no worker (or instance) of that name. `known` lists those it has."""

    processed_default = "no"

    def __init__(self, worker: str, known: Sequence[str] = (), **call: Any) -> None:
        super().__init__(**call)
        self.worker = worker
        self.known = tuple(known)

    def __str__(self) -> str:
        return f"no worker named {self.worker!r}; known: {', '.join(self.known) or 'none'}"


class NoSuchMethod(CallError):
    """Nobody serves that method there. `known` lists what is served."""

    processed_default = "no"

    def __init__(self, method: str, known: Sequence[str] = (), **call: Any) -> None:
        super().__init__(method=method, **call)
        self.known = tuple(known)

    def __str__(self) -> str:
        where = f" on {self.instance}" if self.instance else ""
        return f"no method {self.method!r}{where}; known: {', '.join(self.known) or 'none'}"


class WorkerDied(CallError):
    """The process that should have answered is gone. `signal` is a name such as "SIGKILL" or None."""

    retryable_default = True

    def __init__(
        self,
        instance: str,
        exit_code: int | None = None,
        signal: str | None = None,
        oom: bool = False,
        processed: Processed = "maybe",
        *,
        reason: str = "",
        method: str | None = None,
    ) -> None:
        super().__init__(method=method, instance=instance, processed=processed)
        self.exit_code = exit_code
        self.signal = signal
        self.oom = oom
        self.reason = reason

    def __str__(self) -> str:
        if self.signal is not None:
            how = f"killed by {self.signal}" + (", probably out of memory" if self.oom else "")
        elif self.exit_code is not None:
            how = f"exit code {self.exit_code}"
        else:
            how = self.reason or "exit facts unknown"
        during = f" during {self.method}" if self.method else ""
        return f"{self.instance} died{during}: {how} (processed: {self.processed})"


class InvalidPayload(CallError):
    """A payload does not fit its type. `path` names the place, such as "$.items[3].size"."""

    def __init__(self, path: str, reason: str, **call: Any) -> None:
        super().__init__(**call)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"invalid payload for {self._where()} at {self.path}: {self.reason}"


class RemoteError(CallError):
    """The handler raised. `remote_traceback` is there between processes of the same trust, else None."""

    processed_default = "yes"

    def __init__(self, type_name: str, message: str, remote_traceback: str | None = None, **call: Any) -> None:
        super().__init__(**call)
        self.type_name = type_name
        self.message = message
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        return f"{self._where()} raised {self.type_name}: {self.message}"


class Overloaded(CallError):
    """The other side, or this one, has no room for one more call."""

    retryable_default = True
    processed_default = "no"

    def __str__(self) -> str:
        return f"{self._where()} refused: overloaded"


class RateLimited(CallError):
    """Too many calls; try again after `retry_after` seconds."""

    retryable_default = True
    processed_default = "no"

    def __init__(self, retry_after: float, **call: Any) -> None:
        super().__init__(**call)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self._where()} refused: rate limit, retry after {self.retry_after:g} s"


class CircuitOpen(RateLimited):
    """The circuit breaker is open; it lets a probe through after `retry_after` seconds."""

    def __str__(self) -> str:
        return f"{self._where()} not sent: circuit open, retry after {self.retry_after:g} s"


class PermissionDenied(CallError):
    """The configuration does not allow this worker to do that."""

    processed_default = "no"

    def __str__(self) -> str:
        return f"{self._where()} denied"


class AuthenticationFailed(SmartIpcError):
    """The peer could not prove who it is, or refused us."""

    def __init__(self, reason: str = "authentication failed") -> None:
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class SlowConsumer(SmartIpcError):
    """A subscription was closed because its reader did not keep up."""

    def __init__(self, topic: str, missed: int) -> None:
        self.topic = topic
        self.missed = missed

    def __str__(self) -> str:
        return f"subscription to {self.topic} closed: reader too slow, {self.missed} messages missed"


class StreamReset(SmartIpcError):
    """The other side abandoned the stream or channel."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason

    def __str__(self) -> str:
        return f"stream reset: {self.reason}" if self.reason else "stream reset"


class EndOfStream(SmartIpcError):
    """Nothing more will come; iteration just ends instead of raising this."""

    def __str__(self) -> str:
        return "end of stream"


class OrderFailed(SmartIpcError):
    """A supervisor could not do what it was ordered. `results` says why, by instance."""

    def __init__(self, results: Mapping[str, str]) -> None:
        self.results = dict(results)

    def __str__(self) -> str:
        return "; ".join(f"{instance}: {reason}" for instance, reason in self.results.items())


class ConfigError(SmartIpcError):
    """The configuration is wrong. `problems` holds all of them, each with its place and remedy as `str()`."""

    def __init__(self, problems: Sequence[Any]) -> None:
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)

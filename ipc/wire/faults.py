"""Errors on the wire: from an exception to a Fault and back, on either side of a call.

The codes are gRPC's below 17 and the library's from 100. A type that the reader does not know becomes a RemoteError;
nothing is imported or built by the name a peer sends.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

from smartipc.ipc import errors
from smartipc.ipc.errors import Processed
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.heads import Fault
from smartipc.ipc.wire.text import sentence_of

_PROCESSED: tuple[Processed, Processed, Processed] = ("no", "maybe", "yes")
_NUMBER = {"no": 0, "maybe": 1, "yes": 2}

CODES: dict[type[BaseException], int] = {
    errors.RequestCancelled: 1,
    errors.RemoteError: 2,
    errors.InvalidPayload: 3,
    errors.RequestTimeout: 4,
    errors.NoSuchWorker: 5,
    errors.PermissionDenied: 7,
    errors.Overloaded: 8,
    errors.NoSuchMethod: 12,
    errors.ConnectionLost: 14,
    errors.CircuitOpen: 100,
    errors.WorkerDied: 102,
    errors.RateLimited: 107,
}
"""What the library itself may answer."""

DECLARED = 1000
"""Code of an application error that the contract declares."""


def fault_of(
    error: BaseException,
    *,
    instance: str = "",
    expose_traceback: bool = False,
    declared: Sequence[type[BaseException]] = (),
) -> Fault:
    """Describe `error` for the peer.

    Args:
        error: what a handler or the library raised.
        instance: where it happened.
        expose_traceback: whether the peer may see the traceback: only between processes of the same trust.
        declared: the contract's `errors`; those travel with their arguments.
    """
    for cls in type(error).__mro__:
        if cls in declared:
            details = _arguments(error)
            if details is not None:
                return Fault(
                    DECLARED,
                    cls.__name__,
                    sentence_of(error),
                    processed=2,
                    instance=instance,
                    type=cls.__name__,
                    details=details,
                )
    if isinstance(error, errors.StreamReset):
        return Fault(10, "StreamReset", error.reason, processed=2, instance=instance)
    code = CODES.get(type(error))
    if code is not None and isinstance(error, errors.CallError) and not isinstance(error, errors.RemoteError):
        return Fault(
            code,
            type(error).__name__,
            sentence_of(error),
            retryable=error.retryable,
            processed=_NUMBER[error.processed],
            retry_after_ms=int(1000 * getattr(error, "retry_after", 0)),
            instance=error.instance or instance,
            known=tuple(getattr(error, "known", ())),
            path=getattr(error, "path", ""),
            details=codec.encode(
                error.worker if isinstance(error, errors.NoSuchWorker) else getattr(error, "reason", "")
            ),
        )
    text = None
    if expose_traceback and error.__traceback__ is not None:
        text = "".join(traceback.format_exception(error))
    name = type(error).__name__
    return Fault(2, "RemoteError", sentence_of(error), processed=2, instance=instance, type=name, traceback=text)


def error_of(
    fault: Fault,
    *,
    method: str | None = None,
    instance: str | None = None,
    declared: Sequence[type[BaseException]] = (),
) -> BaseException:
    """Rebuild the error that a peer described; `declared` are the types that the caller's contract knows."""
    where = instance or fault.instance or None
    processed = _PROCESSED[min(max(fault.processed, 0), 2)]
    call: dict[str, Any] = {
        "method": method,
        "instance": where,
        "processed": processed,
        "retryable": fault.retryable,
    }
    if fault.code == DECLARED:
        for cls in declared:
            if cls.__name__ == fault.type:
                rebuilt = _rebuild(cls, fault.details)
                if rebuilt is not None:
                    return rebuilt
    retry_after = fault.retry_after_ms / 1000
    match fault.name:
        case "RequestCancelled" | "PermissionDenied" | "Overloaded":
            simple: type[errors.CallError] = getattr(errors, fault.name)
            return simple(**call)
        case "InvalidPayload":
            return errors.InvalidPayload(fault.path or "$", _reason(fault), **call)
        case "RequestTimeout":
            return errors.RequestTimeout(None, _reason(fault), **call)
        case "NoSuchWorker":
            return errors.NoSuchWorker(_reason(fault), fault.known, **call)
        case "NoSuchMethod":
            return errors.NoSuchMethod(method or "", fault.known, instance=where)
        case "ConnectionLost":
            return errors.ConnectionLost(where or "the peer", _reason(fault), **call)
        case "RateLimited" | "CircuitOpen":
            limited: type[errors.RateLimited] = getattr(errors, fault.name)
            return limited(retry_after, **call)
        case "StreamReset":
            return errors.StreamReset(fault.message)
        case "WorkerDied":
            return errors.WorkerDied(fault.instance, processed=processed, reason=fault.message, method=method)
        case _:
            return errors.RemoteError(fault.type or fault.name, fault.message, fault.traceback, **call)


def _reason(fault: Fault) -> str:
    try:
        return str(codec.plain(fault.details)) if fault.details else ""
    except errors.InvalidPayload:
        return fault.message


def _arguments(error: BaseException) -> bytes | None:
    try:
        return codec.encode(list(error.args))
    except errors.InvalidPayload:
        return None


def _rebuild(cls: type[BaseException], details: bytes) -> BaseException | None:
    try:
        return cls(*codec.plain(details))
    except Exception:  # a peer's arguments that the class refuses: the caller gets a RemoteError instead
        return None

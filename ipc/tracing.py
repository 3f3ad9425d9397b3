"""Traces: which calls belong together. The request that a handler answers, and the header that carries its trace on.

Only the name of a trace is passed along; nothing is measured or exported here.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
from collections.abc import Iterator
from typing import Any, TypeAlias

from smartipc.ipc.errors import LocalProtocolError
from smartipc.ipc.protocol.events import NotifyReceived, OpenReceived, RequestReceived
from smartipc.ipc.protocol.handshake import Identity

TRACE_HEADER = "traceparent"
"""Header that carries the trace from call to call (W3C Trace Context); handlers see it as `message.trace`."""

Handled: TypeAlias = tuple[Identity | None, dict[str, str] | None, int, float]
"""Peer, headers, id and time of a request: all but its payload, for timers and links that a handler starts keep its
context, and would keep the payload's buffers for as long."""

current: contextvars.ContextVar[Handled | None] = contextvars.ContextVar("smartipc_request", default=None)
"""The request that the running handler answers; calls made from it belong to the same trace."""
within = current.get
"""Returns it. For the hot paths: looked up on the variable each time, `get` costs four times as much."""
current_deadline: contextvars.ContextVar[float | None] = contextvars.ContextVar("smartipc_deadline", default=None)
"""Deadline of the request that the running handler answers, in monotonic seconds; nested calls inherit it."""


@contextlib.contextmanager
def handling(peer: Identity | None, event: OpenReceived) -> Iterator[None]:
    """Run what a stream or channel is handled by: calls from there belong to its trace. It has no deadline."""
    handled_before, deadline_before = current.set(handled(peer, event)), current_deadline.set(None)
    try:
        yield
    finally:
        current_deadline.reset(deadline_before)
        current.reset(handled_before)


@contextlib.contextmanager
def heard(trace: str | None) -> Iterator[None]:
    """Run what a published message is given to: calls from there belong to the message's trace, if it has one."""
    before = current.set((None, {TRACE_HEADER: trace}, 0, 0.0) if trace is not None else None)
    try:
        yield
    finally:
        current.reset(before)


def outside() -> contextvars.Context:
    """Return a copy of the context without the request that is being handled.

    For what a handler starts and what outlives it, such as a connection: what comes over that later is no part of it.
    """
    context = contextvars.copy_context()
    context.run(_forget)
    return context


def _forget() -> None:
    current.set(None)
    current_deadline.set(None)


def trace_of(peer: Identity | None, event: RequestReceived | NotifyReceived | OpenReceived) -> str:
    """Return the trace that a message belongs to: what its sender says, else one that begins with it.

    A trace that begins here is derived from who calls, the call's number and when it came, which no two calls share;
    so a call from outside any handler carries nothing and costs nothing.
    """
    return _trace(*handled(peer, event))


def handled(peer: Identity | None, event: RequestReceived | NotifyReceived | OpenReceived) -> Handled:
    """Return what `current` keeps of a request."""
    return peer, event.headers, 0 if isinstance(event, NotifyReceived) else event.id, event.received_at


_last: tuple[Handled | None, str] = (None, "")
"""The request whose trace was asked for last, and that trace: a handler that says much asks every time."""


def trace_within(request: Handled) -> str:
    """Return the trace of what is said while that request is handled."""
    global _last  # noqa: PLW0603 - one cell, replaced whole: any thread may find any of them
    known, trace = _last
    if known is not request:
        trace = _trace(*request)
        _last = request, trace
    return trace


def _trace(peer: Identity | None, headers: dict[str, str] | None, ident: int, received_at: float) -> str:
    if headers is not None and TRACE_HEADER in headers:
        return headers[TRACE_HEADER]
    origin = (peer.name, peer.pid, peer.generation) if peer is not None else ()
    digest = hashlib.blake2b(repr((origin, ident, received_at)).encode(), digest_size=24).hexdigest()
    return f"00-{digest[:32]}-{digest[32:]}-01"


def with_trace(headers: dict[str, str] | None) -> dict[str, str] | None:
    """Add the trace of the request that is being handled, if one is, to a call's headers.

    Raises:
        LocalProtocolError: the headers are not strings by strings: the peer would take them for a broken frame.
    """
    if headers is not None:
        _check_headers(headers)
    request = current.get()
    if request is None or (headers is not None and TRACE_HEADER in headers):
        return headers
    return {**(headers or {}), TRACE_HEADER: trace_within(request)}


def _check_headers(headers: Any) -> None:
    """Look at what the user gave: see with_trace."""
    right = isinstance(headers, dict) and all(isinstance(one, str) for pair in headers.items() for one in pair)
    if not right:
        raise LocalProtocolError(f"headers must be a dict of strings by strings, got {headers!r}")

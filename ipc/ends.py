"""One end of a stream or channel as both flavours have it: what it says, what it was told, and how it is judged.

Credit and frames are protocol.streams' business, what an end or a fault means is decided in flows.py. Nothing in here
waits: that is streaming.py (opening, receiving, sending) and producing.py (serving), and their twins in sync/.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from smartipc.ipc.dispatch import Registry
from smartipc.ipc.drivers.base import Flow, refuse_open
from smartipc.ipc.errors import (
    CallError,
    ConnectionLost,
    EndOfStream,
    LocalProtocolError,
    RequestTimeout,
    SmartIpcError,
    StreamReset,
)
from smartipc.ipc.flows import LEFT, FlowHandler, Reception, cancelled, fault_of_handler
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import OpenReceived, StreamAccepted, StreamEvent
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.resilience.breaker import Trial
from smartipc.ipc.routing import attempts
from smartipc.ipc.trust.gate import Gate
from smartipc.ipc.wire.heads import Fault

T = TypeVar("T")

log = logging.getLogger("smartipc.streaming")
_AT_ONCE = 3
"""Refusals in a row that are tried elsewhere without a pause."""


class Carrier(Protocol):
    """What an end needs of its link, of either driver."""

    connection: Connection
    flows: dict[int, Flow]

    @property
    def peer(self) -> Identity | None:
        """Who is at the other end, once the handshake is complete."""
        ...

    @property
    def closed(self) -> bool:
        """Whether the link is over."""
        ...

    def tell(self, what: Callable[[], T]) -> T:
        """Do something to the connection's streams, under whatever lock there is, and write what comes of it."""
        ...


def name_at(link: Carrier) -> str:
    """Return the name of whoever is at the other end."""
    return (link.peer.name if link.peer is not None else "") or "the peer"


class FlowEnd:
    """One end of a stream or channel.

    Args:
        link: carries it.
        name: address of the stream or channel.
        reception: takes what arrives.
        sends: type of the items to send; None where none are.
    """

    def __init__(self, link: Carrier, name: str, reception: Reception[Any], sends: Any) -> None:
        self._link = link
        self._name = name
        self._reception = reception
        self._sends = sends
        self._ident = 0
        self._accepted = False
        self._finished = False
        self._writable = False
        self._closed_sending: BaseException | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name} {self._ident} with {self._reception!r}>"

    @property
    def alive(self) -> bool:
        """Whether the peer has not given it up."""
        return self._reception.alive

    def on_event(self, event: StreamEvent) -> None:
        """Take an event of the link, where the link reads."""
        if type(event) is StreamAccepted:
            self._accepted = True
        else:
            self._reception.on_event(event)

    def on_writable(self) -> None:
        """Note that an item that was refused would be taken now."""
        self._writable = True

    # beginning

    def open(self, payload: bytes, headers: dict[str, str] | None, *, duplex: bool) -> None:
        """Send the opening.

        Raises:
            ConnectionLost: the link is over; nothing was sent.
        """
        link = self._link
        self._reception.instance = name_at(link)

        def begin() -> None:  # under the link's lock: no event of it may come before it is known
            if link.closed:
                raise ConnectionLost(method=self._name, processed="no")
            self._ident = link.connection.streams.open(self._name, payload, duplex=duplex, headers=headers)
            link.flows[self._ident] = self

        link.tell(begin)

    def attach(self, ident: int) -> None:
        """Listen to what the peer opened, until it is accepted."""
        self._ident = ident
        self._reception.instance = name_at(self._link)
        self._link.flows[ident] = self

    def accept(self) -> None:
        """Accept what the peer opened."""
        self._accepted = True
        self._link.tell(lambda: self._link.connection.streams.accept(self._ident))

    # ends

    def end_sending(self) -> None:
        """Say that nothing more comes."""
        if self._closed_sending is None:
            self._closed_sending = LocalProtocolError(f"sending on {self._name} was closed")
            self._link.tell(lambda: self._link.connection.streams.end(self._ident))

    def stop_receiving(self) -> None:
        """Say that nothing more is wanted."""
        self._link.tell(lambda: self._link.connection.streams.stop(self._ident))

    def through(self) -> None:
        """End both directions as a handler that returned does; STOP first: whoever sees the end knows of both."""
        self.stop_receiving()
        self.end_sending()

    def fail(self, fault: Fault) -> None:
        """Give it up with a reason, behind the items that were sent."""
        self._link.tell(lambda: self._link.connection.streams.fail(self._ident, fault))

    def reset(self, fault: Fault) -> None:
        """Give it up at once."""
        self._link.tell(lambda: self._link.connection.streams.reset(self._ident, fault))

    def leave(self) -> None:
        """Reset what is still open, and forget it."""
        if self.alive and not self._finished:
            self.reset(LEFT)
        self._finish()

    def released(self) -> None:
        """Forget what the peer had opened: its handler is gone."""
        self._finish()
        self._link.tell(lambda: self._link.connection.streams.released(self._ident))

    def _finish(self) -> None:
        """Forget it: nothing of it is waited for any more."""
        self._finished = True
        self._reception.items.clear()
        if self._closed_sending is None:
            self._closed_sending = LocalProtocolError(f"{self._name} was left already")
        self._link.flows.pop(self._ident, None)


class Refusals:
    """The refusals that one opening has met: what each means, and when to ask the next instance.

    Args:
        name: address of the stream or channel.
        timeout: seconds that the opening has in all.
    """

    def __init__(self, name: str, timeout: float) -> None:
        self._name = name
        self._timeout = timeout
        self._count = 0

    def __repr__(self) -> str:
        return f"<Refusals {self._count} of {self._name}>"

    def pause(self, error: CallError, left: float) -> float:
        """Return the seconds to wait before it is tried again, with `left` seconds to go.

        Raises:
            RequestTimeout: there is no time for another try.
            CallError: `error` itself, if another try could not help.
        """
        if attempts.after(error, idempotent=False, attempt=1) != "again":
            raise error
        self._count += 1
        if self._count <= _AT_ONCE:
            return 0.0
        if left <= attempts.BACKOFF:  # all of them refuse: do not spin until one leaves or comes
            raise RequestTimeout(self._timeout, "it was refused", method=self._name, processed="no")
        return attempts.BACKOFF


@contextlib.contextmanager
def judged(trial: Trial | None, clock: Callable[[], float]) -> Iterator[None]:
    """Tell the destination's circuit breaker how what is opened in the block went; None for no breaker."""
    if trial is None:
        yield
        return
    try:
        yield
    except SmartIpcError as error:
        if trial.failed(error, clock()):
            log.warning("circuit.changed: %r", trial)
        raise
    except BaseException:  # cancelled or interrupted, or never sent
        trial.abandon()
        raise
    trial.passed(clock())


def admitted(link: Carrier, event: OpenReceived, registry: Registry, gate: Gate | None) -> FlowHandler | None:
    """Find who serves what the peer opens; None if it was refused."""
    refused = gate.refusal(link.peer, event.method, event.received_at) if gate is not None else None
    if refused is not None:
        refuse_open(link, event, registry.fault(refused, ()))
        return None
    handler = registry.find_flow(event.method, duplex=event.duplex)
    if isinstance(handler, Fault):
        refuse_open(link, event, handler)
        return None
    return handler


@contextlib.contextmanager
def served(
    end: FlowEnd, handler: FlowHandler, instance: str, *, cancelled_by: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Tell the peer how the handler that runs in the block ended, and forget the end.

    Args:
        end: what it serves.
        handler: what runs.
        instance: who we are, for faults.
        cancelled_by: exceptions that give the handler up from outside.
    """
    try:
        yield
    except cancelled_by:
        end.reset(cancelled(handler.name, instance))
        raise
    except EndOfStream:  # `receive` at the end, uncaught: the handler is through
        end.through()
    except Exception as error:  # the boundary of the user's handler
        if end.alive or not isinstance(error, (StreamReset, ConnectionLost)):
            log.debug("handler of %s raised", handler.name, exc_info=error)
        end.fail(fault_of_handler(error, instance, handler.errors))
    except BaseException as error:  # the worker ends by it, but the other side shall know
        end.fail(fault_of_handler(error, instance, ()))
        raise
    else:
        end.through()
    finally:
        end.released()

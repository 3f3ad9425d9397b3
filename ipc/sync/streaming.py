"""Streams and channels of the blocking flavour: the twin of streaming.py, without await.

Whoever waits reads: over the one link at a worker that opened, over all links at whoever serves. A stream's generator
is stepped in the home thread, between requests, as its reader gives credit; a channel function runs there until it
returns, and other links are read while it waits. What an end or a fault means is decided in flows.py.

Longer than other files: both ends of a stream, since a channel is the same object at either.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from smartipc.ipc.dispatch import Registry
from smartipc.ipc.drivers.base import refuse_open
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import (
    CallError,
    ConnectionLost,
    EndOfStream,
    LocalProtocolError,
    RequestTimeout,
    SmartIpcError,
)
from smartipc.ipc.flows import LEFT, FlowHandler, Reception, cancelled, encode_item, fault_of_handler
from smartipc.ipc.protocol.events import OpenReceived, StreamAccepted, StreamEvent
from smartipc.ipc.resilience.breaker import Trial
from smartipc.ipc.routing import attempts
from smartipc.ipc.sync.call import Call
from smartipc.ipc.tracing import handling
from smartipc.ipc.trust.gate import Gate
from smartipc.ipc.wire.heads import Fault

S = TypeVar("S")
R = TypeVar("R")
F = TypeVar("F", bound="_Flow")

log = logging.getLogger("smartipc.streaming")
_AT_ONCE = 3
"""Refusals in a row that are tried elsewhere without a pause."""
_SLICE = 0.002
"""Seconds that a generator may produce before requests have their turn."""


class Waits(Protocol):
    """Who knows how to wait at this endpoint."""

    def await_on(self, link: Link, done: Callable[[], bool], until: float | None = None) -> bool:
        """Read, and do what else a waiting member does, until `done`, the link is over or the time; return done()."""
        ...


class Reach(Waits, Protocol):
    """The part of a Router that opening needs."""

    def reach(self, call: Call) -> Link:
        """Choose who gets it, wait until it can be reached, and return the link to it."""
        ...

    def trial(self, link: Link, name: str) -> Trial | None:
        """Ask before something is opened over the link: raises CircuitOpen; what is returned is told the outcome."""
        ...

    def mourn(self, lost: ConnectionLost, link: Link) -> CallError:
        """Say more about a lost link where more is known: that its process died, and how."""
        ...


class _Flow:
    """One end of a stream or channel. Several threads may use it."""

    def __init__(
        self, link: Link, name: str, reception: Reception[Any], sends: Any, waits: Waits, reach: Reach | None = None
    ) -> None:
        self._link = link
        self._name = name
        self._reception = reception
        self._sends = sends
        self._waits = waits
        self._reach = reach
        self._ident = 0
        self._accepted = False
        self._finished = False
        self._writable = False
        self._closed_sending: BaseException | None = None
        self._taking = threading.Lock()
        self._sending = threading.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name} {self._ident} with {self._reception!r}>"

    # what the link tells, in whichever thread reads

    def on_event(self, event: StreamEvent) -> None:
        """Take an event of the link."""
        if type(event) is StreamAccepted:
            self._accepted = True
        else:
            self._reception.on_event(event)

    def on_writable(self) -> None:
        """Note that a waiting `send` may try again."""
        self._writable = True

    # opening

    def open(self, payload: bytes, headers: dict[str, str] | None, *, duplex: bool) -> None:
        """Send the opening."""
        link = self._link
        self._reception.instance = _name_of(link)

        def begin() -> None:  # under the link's lock: no event of it may come before it is known
            if link.closed:
                raise ConnectionLost(method=self._name, processed="no")
            self._ident = link.connection.streams.open(self._name, payload, duplex=duplex, headers=headers)
            link.flows[self._ident] = self

        link.tell(begin)

    def accepted(self, until: float) -> bool:
        """Wait until the peer accepts, or raise why it does not; False when the time has passed."""
        self._waits.await_on(self._link, lambda: self._accepted or self._reception.end is not None, until)
        if not self._accepted and self._reception.end is not None:
            raise self._reason(self._reception.end)
        return self._accepted

    def attach(self, ident: int) -> None:
        """Listen to what the peer opened, until it is accepted."""
        self._ident = ident
        self._reception.instance = _name_of(self._link)
        self._link.flows[ident] = self

    def accept(self) -> None:
        """Accept what the peer opened."""
        self._accepted = True
        self._link.tell(lambda: self._link.connection.streams.accept(self._ident))

    @property
    def alive(self) -> bool:
        """Whether the peer has not given it up."""
        return self._reception.alive

    # items

    def _receive(self, timeout: float | None) -> Any:
        until = None if timeout is None else time.monotonic() + timeout
        reception = self._reception
        while (payload := self._take()) is None:
            if not self._waits.await_on(self._link, self._settled, until) and not self._link.closed:
                if timeout is None:
                    raise self._closing()
                raise RequestTimeout(timeout, "no item came", method=self._name, instance=reception.instance)
        size, streams = len(payload), self._link.connection.streams
        self._link.tell(lambda: streams.consumed(self._ident, size))
        return reception.decode(payload)

    def _take(self) -> bytes | None:
        """Take an item, or raise why none comes; None to wait."""
        with self._taking:
            end = self._reception.end  # before the items: what came before the end is not to be missed
            if self._reception.items:
                return self._reception.items.popleft()
        if self._finished:
            raise LocalProtocolError(f"{self._name} was left already")
        if end is not None:
            raise self._reason(end)
        return None

    def _settled(self) -> bool:
        return self._reception.ready or self._finished

    def _send(self, item: Any) -> None:
        payload = encode_item(item, self._sends, self._name)
        with self._sending:  # one after the other, in order
            while not self.try_send(payload):
                if self._reception.refusal is not None:
                    raise self._reason(self._reception.refusal)
                if not self._waits.await_on(self._link, self._may_send) and not self._link.closed:
                    raise self._closing()
            if self._link.stuck:  # nobody else would write it while this thread does something else
                self._waits.await_on(self._link, lambda: not self._link.stuck)

    def _closing(self) -> ConnectionLost:
        """Say why a wait without a limit ended: this end is being closed by another thread."""
        return ConnectionLost(self._reception.instance, "this end is closing", method=self._name)

    def _may_send(self) -> bool:
        return self._writable or self._reception.refusal is not None or self._closed_sending is not None

    def try_send(self, payload: bytes, *, flush: bool = True) -> bool:
        """Send an item if there is credit and room for it; with `flush` off it may wait for the next one."""
        if self._closed_sending is not None:
            raise self._closed_sending.with_traceback(None)
        if self._reception.refusal is not None:
            return False
        self._writable = False
        streams = self._link.connection.streams
        try:
            return self._link.tell(lambda: streams.send(self._ident, payload), flush=flush)
        except LocalProtocolError:
            return False  # it ended just now: what says so is on its way from the thread that reads

    def _reason(self, end: BaseException) -> BaseException:
        if isinstance(end, ConnectionLost) and self._reach is not None:
            known = self._reach.mourn(end, self._link)
            reception = self._reception
            if reception.end is end:
                reception.end = known
            if reception.refusal is end:
                reception.refusal = known
            end = known
        return end.with_traceback(None)

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

    def _finish(self) -> None:
        self._finished = True
        self._reception.items.clear()
        if self._closed_sending is None:
            self._closed_sending = LocalProtocolError(f"{self._name} was left already")
        self._link.flows.pop(self._ident, None)

    def leave(self) -> None:
        """Reset what is still open, and forget it."""
        if self._reception.alive and not self._finished:
            self.reset(LEFT)
        self._finish()

    def released(self) -> None:
        """Forget what the peer had opened: its handler is gone."""
        self._finish()
        self._link.tell(lambda: self._link.connection.streams.released(self._ident))


class Items(_Flow, Generic[R]):
    """The items of an open stream, for its reader: `for item in items`, or `items.receive()`."""

    def receive(self, timeout: float | None = None) -> R:
        """Return the next item, waiting for it at most `timeout` seconds; None for ever.

        Raises:
            EndOfStream: the handler is through.
            RequestTimeout: none came in time; nothing is lost.
            InvalidPayload: the next item does not fit the contract; the one after it may.
            WorkerDied, ConnectionLost: the instance was lost.
            RemoteError: the handler raised, after the items before; errors that the contract declares as themselves.
        """
        item: R = self._receive(timeout)
        return item

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        try:
            return self.receive()
        except EndOfStream:
            raise StopIteration from None

    def leave(self) -> None:
        """Tell the handler that no more is wanted."""
        if not self._finished:
            self.stop_receiving()
        self._finish()


class IpcChannel(_Flow, Generic[S, R]):
    """One end of a channel: `send`, `receive`, iterate, `close_sending`. The two ends are alike."""

    @property
    def peer(self) -> str:
        """Name of the instance at the other end."""
        return self._reception.instance

    def send(self, item: S) -> None:
        """Send an item; waits while the other side has not consumed enough. An interrupt sends all of it or nothing.

        Raises:
            InvalidPayload: it does not fit the contract; nothing was sent.
            FrameTooLarge: it exceeds the limit of a message; nothing was sent.
            StreamReset: the other side gave the channel up, or takes no more.
            WorkerDied, ConnectionLost: the other side was lost.
            LocalProtocolError: sending was closed here.
        """
        self._send(item)

    def receive(self, timeout: float | None = None) -> R:
        """Return the next item, waiting for it at most `timeout` seconds; None for ever.

        Raises:
            EndOfStream: the other side closed its sending, and everything it sent has been received.
            RequestTimeout: none came in time; nothing is lost.
            InvalidPayload: the next item does not fit the contract; the one after it may.
            StreamReset: the other side gave the channel up; an error that the contract declares comes as itself.
            WorkerDied, ConnectionLost: the other side was lost.
        """
        item: R = self._receive(timeout)
        return item

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        try:
            return self.receive()
        except EndOfStream:
            raise StopIteration from None

    def close_sending(self) -> None:
        """Say that no more comes from this side; what was sent arrives, receiving goes on. Later calls do nothing."""
        self.end_sending()


class Opener(Generic[F]):
    """What `open_stream` and `open_channel` return: entering opens, leaving resets what is still open."""

    def __init__(self, reach: Reach, make: Callable[[Link], F], call: Callable[[], Call]) -> None:
        self._reach = reach
        self._make = make
        self._call = call
        self._flow: F | None = None

    def __repr__(self) -> str:
        return f"<Opener: {self._flow!r}>"

    def __enter__(self) -> F:
        call = self._call()
        if self._flow is not None:
            raise LocalProtocolError(f"this opening of {call.method} was entered already")
        refused = 0
        while True:
            link = self._reach.reach(call)
            try:
                self._flow = self._try(link, call)
            except CallError as error:
                if attempts.after(error, idempotent=False, attempt=1) != "again":
                    raise
            else:
                return self._flow
            refused += 1
            if refused > _AT_ONCE:  # all of them refuse: do not spin until one leaves or comes
                if call.deadline - time.monotonic() <= attempts.BACKOFF:
                    raise RequestTimeout(call.timeout, "it was refused", method=call.method, processed="no")
                time.sleep(attempts.BACKOFF)

    def _try(self, link: Link, call: Call) -> F:
        """Open over this link, and tell the destination's circuit breaker how it went."""
        trial = self._reach.trial(link, call.method)
        if trial is None:
            return self._open(link, call)
        try:
            flow = self._open(link, call)
        except SmartIpcError as error:
            if trial.failed(error, time.monotonic()):
                log.warning("circuit.changed: %r", trial)
            raise
        except BaseException:  # interrupted
            trial.abandon()
            raise
        trial.passed(time.monotonic())
        return flow

    def _open(self, link: Link, call: Call) -> F:
        flow = self._make(link)
        try:
            if link.peer is None:
                self._reach.await_on(link, lambda: link.peer is not None, call.deadline)
            if link.peer is not None or link.closed:
                flow.open(call.payload, call.headers, duplex=isinstance(flow, IpcChannel))
                if flow.accepted(call.deadline):
                    return flow
        except BaseException:
            flow.leave()
            raise
        flow.leave()
        raise RequestTimeout(call.timeout, "it was not accepted", method=call.method, instance=_name_of(link))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._flow is not None:
            self._flow.leave()


class Serves(Waits, Protocol):
    """The part of a Server that streams need."""

    def post(self, work: Callable[[], None]) -> None:
        """Let the home thread run `work` in its turn."""
        ...

    def call_home(self) -> None:
        """Make sure that the home thread looks at what was posted."""
        ...

    def look_after(self, link: Link) -> None:
        """Write what the link's socket has no room for, when it has."""
        ...


class StreamServer:
    """Serves the streams and channels that peers open, in the home thread.

    Args:
        registry: the handlers.
        instance: who we are, for faults.
        server: runs what is posted, and knows how to wait.
        gate: what may come in; None for all.
    """

    def __init__(self, registry: Registry, instance: str, server: Serves, gate: Gate | None) -> None:
        self.active: set[_Producer] = set()
        """The generators that are not through."""
        self._registry = registry
        self._instance = instance
        self._server = server
        self._gate = gate

    def __repr__(self) -> str:
        return f"<StreamServer {len(self.active)} generators>"

    def on_open(self, link: Link, event: OpenReceived) -> None:
        """Let the home thread start the handler, or refuse. Called where links are read."""
        refused = self._gate.refusal(link.peer, event.method, event.received_at) if self._gate is not None else None
        if refused is not None:
            refuse_open(link, event, self._registry.fault(refused, ()))
            return
        handler = self._registry.find_flow(event.method, duplex=event.duplex)
        if isinstance(handler, Fault):
            refuse_open(link, event, handler)
            return
        reception: Reception[Any] = Reception(handler.receives, name=handler.name, duplex=handler.duplex)
        if handler.duplex:
            channel: IpcChannel[Any, Any] = IpcChannel(link, handler.name, reception, handler.sends, self._server)
            channel.attach(event.id)
            self._post(lambda: self._converse(handler, channel, event))
        else:
            producer = _Producer(link, handler, reception, self)
            producer.attach(event.id)
            self._post(lambda: self._begin(producer, event))

    def _post(self, work: Callable[[], None]) -> None:
        self._server.post(work)
        self._server.call_home()

    def cancel(self) -> None:
        """Give up every generator that is not through, because the worker ends."""
        for producer in list(self.active):
            producer.cancel()

    def _converse(self, handler: FlowHandler, channel: IpcChannel[Any, Any], event: OpenReceived) -> None:
        try:
            if not channel.alive:
                return
            channel.accept()
            with handling(channel._link.peer, event):  # noqa: SLF001 - one room
                handler.function(channel)
        except EndOfStream:  # `receive` at the end, uncaught: the handler is through
            channel.through()
        except Exception as error:  # the boundary of the user's handler
            if channel.alive:
                log.debug("handler of %s raised", handler.name, exc_info=error)
            channel.fail(fault_of_handler(error, self._instance, handler.errors))
        except BaseException as error:  # the worker ends by it, but the other side shall know
            channel.fail(fault_of_handler(error, self._instance, ()))
            raise
        else:
            channel.through()
        finally:
            channel.released()
            self._server.look_after(channel._link)  # noqa: SLF001 - one room

    def _begin(self, producer: _Producer, event: OpenReceived) -> None:
        if not producer.alive:
            producer.released()
            return
        link = producer._link  # noqa: SLF001 - one room
        try:
            arguments = producer.handler.arguments(event, link.peer)
        except SmartIpcError as error:
            producer.fail(fault_of_handler(error, self._instance, ()))
            producer.released()
            return
        producer.accept()
        self.active.add(producer)
        with handling(link.peer, event):
            producer.begin(arguments, contextvars.copy_context())


class _Producer(_Flow):
    """The serving end of a stream: its generator, stepped as credit allows."""

    def __init__(self, link: Link, handler: FlowHandler, reception: Reception[Any], server: StreamServer) -> None:
        super().__init__(link, handler.name, reception, handler.sends, server._server)  # noqa: SLF001 - one room
        self.handler = handler
        self._server = server
        self._iterator: Iterator[Any] | None = None
        self._context = contextvars.copy_context()
        """What its generator runs in: the calls that it makes belong to the stream's trace."""
        self._held: bytes | None = None
        """An item that had no credit."""
        self._posted = False

    def on_event(self, event: StreamEvent) -> None:
        """Take an event of the link: whatever it is, the reader has gone, and the generator is closed."""
        super().on_event(event)
        self._again()

    def on_writable(self) -> None:
        """Go on in the home thread."""
        super().on_writable()
        self._again()

    def _again(self) -> None:
        if not self._posted:
            self._posted = True
            self._server._post(self.step)  # noqa: SLF001 - one room

    def begin(self, arguments: tuple[Any, ...], context: contextvars.Context) -> None:
        """Call the handler, and take its first items, in this context."""
        self._context = context
        try:
            self._iterator = context.run(lambda: iter(self.handler.function(*arguments)))
        except Exception as error:  # the boundary of the user's handler
            self._failed(error, self.handler.errors)
        except BaseException as error:
            self._failed(error, ())
            raise
        else:
            self.step()

    def step(self) -> None:
        """Produce for a moment, as far as credit goes; close the generator when its reader has gone."""
        self._posted = False
        if self._iterator is None:
            return
        try:
            self._context.run(self._produce, self._iterator, time.monotonic() + _SLICE)
        except StopIteration:
            self.end_sending()
            self._over()
        except Exception as error:  # the boundary of the user's handler
            self._failed(error, self.handler.errors)
        except BaseException as error:  # the worker ends by it, but the reader shall know
            self._failed(error, ())
            raise
        self._link.flush()
        self._server._server.look_after(self._link)  # noqa: SLF001 - one room

    def _produce(self, iterator: Iterator[Any], until: float) -> None:
        while self.alive and self._reception.refusal is None:
            if self._held is None:
                self._held = encode_item(next(iterator), self._sends, self._name)
            if not self.try_send(self._held, flush=False) and not (self._link.flush() and self.try_send(self._held)):
                return  # on_writable goes on
            self._held = None
            if time.monotonic() > until:
                self._again()
                return
        self._close()
        self._over()

    def cancel(self) -> None:
        """Give it up because the worker ends."""
        self._close()
        self.reset(cancelled(self._name, self._server._instance))  # noqa: SLF001 - one room
        self._over()

    def _close(self) -> None:
        if inspect.isgenerator(self._iterator):
            try:
                self._iterator.close()
            except Exception:  # the boundary of the user's handler
                log.exception("the generator of %s raised while it was closed", self._name)

    def _failed(self, error: BaseException, errors: tuple[type[BaseException], ...]) -> None:
        log.debug("handler of %s raised", self._name, exc_info=error)
        self.fail(fault_of_handler(error, self._server._instance, errors))  # noqa: SLF001 - one room
        self._over()

    def _over(self) -> None:
        self._iterator = None
        self._server.active.discard(self)
        self.released()


def _name_of(link: Link) -> str:
    return (link.peer.name if link.peer is not None else "") or "the peer"

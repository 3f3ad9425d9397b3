"""Streams and channels of the async flavour: open, send, receive, and the handlers that serve them.

Each end is a Flow on one link. What an end or a fault means is decided in flows.py, credit in protocol.streams; here is
the waiting. Which instance serves is the router's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from smartipc.ipc.dispatch import Registry
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import refuse_open
from smartipc.ipc.errors import (
    CallError,
    ConnectionLost,
    EndOfStream,
    LocalProtocolError,
    RequestTimeout,
    SmartIpcError,
    StreamReset,
)
from smartipc.ipc.flows import LEFT, FlowHandler, Reception, cancelled, encode_item, fault_of_handler
from smartipc.ipc.message import Peer
from smartipc.ipc.protocol.events import OpenReceived, StreamAccepted, StreamEvent
from smartipc.ipc.resilience.breaker import Trial
from smartipc.ipc.routing import attempts
from smartipc.ipc.tracing import handling
from smartipc.ipc.trust.gate import Gate
from smartipc.ipc.wire.heads import Fault

S = TypeVar("S")
R = TypeVar("R")
F = TypeVar("F", bound="_Flow")

log = logging.getLogger("smartipc.streaming")
_AT_ONCE = 3
"""Refusals in a row that are tried elsewhere without a pause."""


class Reach(Protocol):
    """The part of a Router that opening needs."""

    async def reach(self, name: str, *, timeout: float, to: Peer | None, slot: int | None, key: str | None) -> Link:
        """Choose who gets it, wait until it can be reached, and return the link to it."""
        ...

    def trial(self, link: Link, name: str) -> Trial | None:
        """Ask before something is opened over the link: raises CircuitOpen; what is returned is told the outcome."""
        ...

    async def mourn(self, lost: ConnectionLost, link: Link) -> CallError:
        """Say more about a lost link where more is known: that its process died, and how."""
        ...


class _Flow:
    """One end of a stream or channel."""

    def __init__(self, link: Link, name: str, reception: Reception[Any], sends: Any, reach: Reach | None) -> None:
        self._link = link
        self._name = name
        self._reception = reception
        self._sends = sends
        self._reach = reach
        self._ident = 0
        self._accepted = False
        self._finished = False
        self._closed_sending: BaseException | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._waiting = 0
        self._sending = asyncio.Lock()
        self.on_gone: Callable[[], None] | None = None
        """Called when the peer wants no more of it while nothing of ours waits here."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name} {self._ident} with {self._reception!r}>"

    # what the link tells

    def on_event(self, event: StreamEvent) -> None:
        """Take an event of the link."""
        if type(event) is StreamAccepted:
            self._accepted = True
        else:
            self._reception.on_event(event)
        self._wake()
        if self.on_gone is not None and not self._waiting and not self._reception.alive:
            self.on_gone()

    def on_writable(self) -> None:
        """Let a waiting `send` try again."""
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self) -> None:
        """Wait for the next event; cancelling it loses nothing."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._waiting += 1
        try:
            await waiter
        finally:
            self._waiting -= 1

    # opening

    def open(self, link: Link, payload: bytes, headers: dict[str, str] | None, *, duplex: bool) -> None:
        """Send the opening."""
        if link.closed:
            raise ConnectionLost(method=self._name, processed="no")
        self._reception.instance = (link.peer.name if link.peer else "") or "the peer"
        streams = link.connection.streams
        self._ident = link.tell(lambda: streams.open(self._name, payload, duplex=duplex, headers=headers))
        link.flows[self._ident] = self

    async def accepted(self) -> None:
        """Wait until the peer accepts, or raise why it does not. Cancelling it changes nothing."""
        while not self._accepted:
            if self._reception.end is not None:
                self._finish()
                raise await self._reason(self._reception.end)
            await self._change()

    def attach(self, ident: int) -> None:
        """Accept what the peer opened."""
        self._ident = ident
        self._accepted = True
        self._reception.instance = (self._link.peer.name if self._link.peer else "") or "the peer"
        self._link.flows[ident] = self
        self._link.tell(lambda: self._link.connection.streams.accept(ident))

    # items

    async def _receive(self) -> Any:
        reception = self._reception
        while not reception.items:
            if self._finished:
                raise LocalProtocolError(f"{self._name} was left already")
            if reception.end is not None:
                raise await self._reason(reception.end)
            await self._change()
        payload = reception.items.popleft()
        connection = self._link.connection
        connection.streams.consumed(self._ident, len(payload))
        if connection.has_data:
            self._link.push()
        return reception.decode(payload)

    async def _send(self, item: Any) -> None:
        payload = encode_item(item, self._sends, self._name)
        if not self._sending.locked() and self._try_send(payload):
            return
        async with self._sending:  # whoever waits longest is next
            while not self._try_send(payload):
                if self._reception.refusal is not None:
                    raise await self._reason(self._reception.refusal)
                await self._change()

    def _try_send(self, payload: bytes) -> bool:
        if self._closed_sending is not None:
            raise self._closed_sending.with_traceback(None)
        if self._reception.refusal is not None or not self._link.connection.streams.send(self._ident, payload):
            return False
        self._link.push()
        return True

    async def _reason(self, end: BaseException) -> BaseException:
        if isinstance(end, ConnectionLost) and self._reach is not None:
            known = await self._reach.mourn(end, self._link)
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
        """Forget it: nothing of it is waited for any more."""
        self._finished = True
        self._reception.items.clear()
        if self._closed_sending is None:
            self._closed_sending = LocalProtocolError(f"{self._name} was left already")
        self._link.flows.pop(self._ident, None)
        self._wake()

    def leave(self) -> None:
        """Reset what is still open, and forget it."""
        if self._reception.alive and not self._finished:
            self.reset(LEFT)
        self._finish()

    def released(self) -> None:
        """Forget what the peer had opened: its handler is gone."""
        self._finish()
        self._link.connection.streams.released(self._ident)


class Items(_Flow, Generic[R]):
    """The items of an open stream, for its reader: `async for item in items`, or `await items.receive()`."""

    async def receive(self) -> R:
        """Return the next item; cancelling it loses none.

        Raises:
            EndOfStream: the handler is through.
            InvalidPayload: the next item does not fit the contract; the one after it may.
            WorkerDied, ConnectionLost: the instance was lost.
            RemoteError: the handler raised, after the items before; errors that the contract declares as themselves.
        """
        item: R = await self._receive()
        return item

    def __aiter__(self) -> AsyncIterator[R]:
        return self

    async def __anext__(self) -> R:
        try:
            return await self.receive()
        except EndOfStream:
            raise StopAsyncIteration from None

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

    async def send(self, item: S) -> None:
        """Send an item; waits while the other side has not consumed enough. Cancelling it sends all of it or nothing.

        Raises:
            InvalidPayload: it does not fit the contract; nothing was sent.
            FrameTooLarge: it exceeds the limit of a message; nothing was sent.
            StreamReset: the other side gave the channel up, or takes no more.
            WorkerDied, ConnectionLost: the other side was lost.
            LocalProtocolError: sending was closed here.
        """
        await self._send(item)

    async def receive(self) -> R:
        """Return the next item; cancelling it loses none.

        Raises:
            EndOfStream: the other side closed its sending, and everything it sent has been received.
            InvalidPayload: the next item does not fit the contract; the one after it may.
            StreamReset: the other side gave the channel up; an error that the contract declares comes as itself.
            WorkerDied, ConnectionLost: the other side was lost.
        """
        item: R = await self._receive()
        return item

    def __aiter__(self) -> AsyncIterator[R]:
        return self

    async def __anext__(self) -> R:
        try:
            return await self.receive()
        except EndOfStream:
            raise StopAsyncIteration from None

    async def close_sending(self) -> None:
        """Say that no more comes from this side; what was sent arrives, receiving goes on. Later calls do nothing.

        Never waits, so it cannot be cancelled half-way.
        """
        self.end_sending()


class Opener(Generic[F]):
    """What `open_stream` and `open_channel` return: entering opens, leaving resets what is still open."""

    def __init__(
        self,
        reach: Reach,
        make: Callable[[Link], F],
        name: str,
        payload: bytes,
        *,
        timeout: float,
        to: Peer | None,
        slot: int | None,
        key: str | None,
        headers: dict[str, str] | None,
    ) -> None:
        self._reach = reach
        self._make = make
        self._name = name
        self._payload = payload
        self._timeout = timeout
        self._where = (to, slot, key)
        self._headers = headers
        self._flow: F | None = None

    def __repr__(self) -> str:
        return f"<Opener of {self._name}: {self._flow!r}>"

    async def __aenter__(self) -> F:
        if self._flow is not None:
            raise LocalProtocolError(f"this opening of {self._name} was entered already")
        loop = asyncio.get_running_loop()
        until = loop.time() + self._timeout
        refused = 0
        to, slot, key = self._where
        while True:
            left = max(0.0, until - loop.time())
            link = await self._reach.reach(self._name, timeout=left, to=to, slot=slot, key=key)
            try:
                self._flow = await self._try(link, until)
            except CallError as error:
                if attempts.after(error, idempotent=False, attempt=1) != "again":
                    raise
            else:
                return self._flow
            refused += 1
            if refused > _AT_ONCE:  # all of them refuse: do not spin until one leaves or comes
                if until - loop.time() <= attempts.BACKOFF:
                    raise RequestTimeout(self._timeout, "it was refused", method=self._name, processed="no")
                await asyncio.sleep(attempts.BACKOFF)

    async def _try(self, link: Link, until: float) -> F:
        """Open over this link, and tell the destination's circuit breaker how it went."""
        trial = self._reach.trial(link, self._name)
        if trial is None:
            return await self._open(link, until)
        clock = asyncio.get_running_loop().time
        try:
            flow = await self._open(link, until)
        except SmartIpcError as error:
            if trial.failed(error, clock()):
                log.warning("circuit.changed: %r", trial)
            raise
        except BaseException:  # cancelled, or never sent
            trial.abandon()
            raise
        trial.passed(clock())
        return flow

    async def _open(self, link: Link, until: float) -> F:
        flow = self._make(link)
        try:
            async with asyncio.timeout_at(until):
                if link.peer is None:
                    await self._handshake(link)
                flow.open(link, self._payload, self._headers, duplex=isinstance(flow, IpcChannel))
                await flow.accepted()
        except TimeoutError as error:
            flow.leave()
            if isinstance(error, RequestTimeout):
                raise
            instance = link.peer.name if link.peer else None
            raise RequestTimeout(self._timeout, "it was not accepted", method=self._name, instance=instance) from None
        except BaseException:
            flow.leave()
            raise
        return flow

    async def _handshake(self, link: Link) -> None:
        try:
            await link.opened()
        except SmartIpcError as error:
            raise ConnectionLost(reason=str(error), method=self._name, processed="no") from None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._flow is not None:
            self._flow.leave()


class _Producer(_Flow):
    """The serving end of a stream: only sends, and has lost its purpose when the reader stops."""

    async def send(self, item: Any) -> None:
        """Send an item as credit allows."""
        await self._send(item)

    def on_event(self, event: StreamEvent) -> None:
        """Take an event of the link: whatever it is, the reader has gone, and the generator ends wherever it waits."""
        self._reception.on_event(event)
        if self.on_gone is not None:
            self.on_gone()


class StreamServer:
    """Serves the streams and channels that peers open, each in a task of its own.

    Args:
        registry: the handlers.
        instance: who we are, for faults.
        gate: what may come in; None for all.
    """

    def __init__(self, registry: Registry, instance: str, gate: Gate | None) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._registry = registry
        self._instance = instance
        self._gate = gate

    def __repr__(self) -> str:
        return f"<StreamServer {len(self.tasks)} running>"

    def on_open(self, link: Link, event: OpenReceived) -> None:
        """Start the handler, or refuse."""
        refused = self._gate.refusal(link.peer, event.method, event.received_at) if self._gate is not None else None
        if refused is not None:
            refuse_open(link, event, self._registry.fault(refused, ()))
            return
        handler = self._registry.find_flow(event.method, duplex=event.duplex)
        if isinstance(handler, Fault):
            refuse_open(link, event, handler)
            return
        arguments: tuple[Any, ...] = ()
        if not handler.duplex:
            try:
                arguments = handler.arguments(event, link.peer)
            except SmartIpcError as error:
                refuse_open(link, event, fault_of_handler(error, self._instance, ()))
                return
        reception: Reception[Any] = Reception(handler.receives, name=handler.name, duplex=handler.duplex)
        kind: type[_Flow] = IpcChannel if handler.duplex else _Producer
        flow = kind(link, handler.name, reception, handler.sends, None)
        flow.attach(event.id)
        with handling(link.peer, event):
            task = asyncio.get_running_loop().create_task(self._serve(handler, flow, arguments))
        flow.on_gone = lambda: _cancel(task)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, handler: FlowHandler, flow: Any, arguments: tuple[Any, ...]) -> None:
        try:
            if handler.duplex:
                await handler.function(flow)
            else:
                await _produce(handler.function(*arguments), flow)
        except asyncio.CancelledError:
            flow.reset(cancelled(handler.name, self._instance))
            raise
        except EndOfStream:  # `receive` at the end, uncaught: the handler is through
            flow.through()
        except Exception as error:  # the boundary of the user's handler
            if not (isinstance(error, (StreamReset, ConnectionLost)) and not flow._reception.alive):  # noqa: SLF001
                log.debug("handler of %s raised", handler.name, exc_info=error)
            flow.fail(fault_of_handler(error, self._instance, handler.errors))
        except BaseException as error:  # the worker ends by it, but the other side shall know
            flow.fail(fault_of_handler(error, self._instance, ()))
            raise
        else:
            flow.through()
        finally:
            flow.released()


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


async def _produce(produced: Any, flow: _Producer) -> None:
    """Send what a generator yields; it is closed when the reader has gone."""
    if inspect.isawaitable(produced):
        produced = await produced
    if hasattr(produced, "__aiter__"):
        iterator = aiter(produced)
        try:
            async for item in iterator:
                await flow.send(item)
        finally:
            close: Callable[[], Awaitable[None]] | None = getattr(iterator, "aclose", None)
            if close is not None:
                await close()
        return
    with contextlib.closing(_closable(produced)) as items:
        for item in items:
            await flow.send(item)


def _closable(produced: Any) -> Any:
    """Return a generator over any iterable: what the handler returned need not be one."""
    return produced if inspect.isgenerator(produced) else (item for item in produced)

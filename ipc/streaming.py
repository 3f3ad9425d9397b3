"""Streams and channels of the async flavour: open, send, receive.

Here is the waiting; what an end says and is told is in ends.py. Which instance serves is the router's business, the
handlers that serve are in producing.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.inheritance import REASON
from smartipc.ipc.ends import FlowEnd, Refusals, judged
from smartipc.ipc.errors import (
    CallError,
    ConnectionLost,
    EndOfStream,
    LocalProtocolError,
    RequestTimeout,
    SmartIpcError,
)
from smartipc.ipc.flows import Reception, encode_item
from smartipc.ipc.message import Peer
from smartipc.ipc.protocol.events import StreamEvent
from smartipc.ipc.resilience.breaker import Trial

S = TypeVar("S")
R = TypeVar("R")
F = TypeVar("F", bound="AsyncEnd")


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


class AsyncEnd(FlowEnd):
    """One end of a stream or channel, whose items are waited for on the event loop."""

    _link: Link

    def __init__(self, link: Link, name: str, reception: Reception[Any], sends: Any, reach: Reach | None) -> None:
        super().__init__(link, name, reception, sends)
        self._reach = reach
        self._waiters: list[asyncio.Future[None]] = []
        self._waiting = 0
        self._sending = asyncio.Lock()
        self.on_gone: Callable[[], None] | None = None
        """Called when the peer wants no more of it while nothing of ours waits here."""

    # what the link tells

    def on_event(self, event: StreamEvent) -> None:
        """Take an event of the link."""
        super().on_event(event)
        self._wake()
        if self.on_gone is not None and not self._waiting and not self.alive:
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

    async def accepted(self) -> None:
        """Wait until the peer accepts, or raise why it does not. Cancelling it changes nothing."""
        while not self._accepted:
            if self._reception.end is not None:
                self._finish()
                raise await self._reason(self._reception.end)
            await self._change()

    # items

    def _require_own(self) -> None:
        if self._link.inherited:
            raise LocalProtocolError(REASON)

    async def _receive(self) -> Any:
        self._require_own()
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
        self._require_own()
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
            self._reception.retell(end, known)
            end = known
        return end.with_traceback(None)

    def _finish(self) -> None:
        super()._finish()
        self._wake()


class Items(AsyncEnd, Generic[R]):
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


class IpcChannel(AsyncEnd, Generic[S, R]):
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
        self._require_own()
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
        clock = asyncio.get_running_loop().time
        until = clock() + self._timeout
        refusals = Refusals(self._name, self._timeout)
        to, slot, key = self._where
        while True:
            left = max(0.0, until - clock())
            link = await self._reach.reach(self._name, timeout=left, to=to, slot=slot, key=key)
            try:
                with judged(self._reach.trial(link, self._name), clock):
                    self._flow = await self._open(link, until)
            except CallError as error:
                pause = refusals.pause(error, until - clock())
            else:
                return self._flow
            if pause:
                await asyncio.sleep(pause)

    async def _open(self, link: Link, until: float) -> F:
        flow = self._make(link)
        try:
            async with asyncio.timeout_at(until):
                if link.peer is None:
                    await self._handshake(link)
                flow.open(self._payload, self._headers, duplex=isinstance(flow, IpcChannel))
                await flow.accepted()
        except TimeoutError as error:
            flow.leave()
            if isinstance(error, RequestTimeout):
                raise
            reason, instance = "it was not accepted", link.peer.name if link.peer else None
            raise RequestTimeout(self._timeout, reason, method=self._name, instance=instance) from None
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

"""Topics in the async handle: publish with credit, subscribe with an inbox. The counting is in subscriptions.py."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from smartipc.ipc import control
from smartipc.ipc.calling import Caller
from smartipc.ipc.contracts import Topic
from smartipc.ipc.control import Launch, Subscription
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.errors import ConnectFailed, ConnectionLost, InvalidPayload, LocalProtocolError, Overloaded
from smartipc.ipc.links import instance_name
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.protocol.events import ConsumedReceived, MessageReceived
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.routing.port import ControlPort
from smartipc.ipc.subscriptions import Credit, Inbox, subscription_of

T = TypeVar("T")
log = logging.getLogger("smartipc.topics")


class Publisher:
    """Sends messages to the subscriptions that the directory lists."""

    def __init__(self, directory: Directory, caller: Caller) -> None:
        self._directory = directory
        self._caller = caller
        self._credits: dict[tuple[str, int, int], Credit] = {}
        self._more: asyncio.Event = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Publisher to {len(self._credits)} subscriptions>"

    async def publish(self, topic: str, encoded: bytes, *, retain: bool) -> None:
        """Send to every subscription, waiting for credit; see Endpoint.publish."""
        _no_retain(retain)
        for one in self._directory.state.subscribed(topic):
            link = await self._place(one)
            if link is not None:
                self._send(link, one, topic, encoded)
                await link.drained()

    def publish_nowait(self, topic: str, encoded: bytes, *, retain: bool) -> int:
        """Send to every subscription or to none; see Endpoint.publish_nowait."""
        _no_retain(retain)
        targets = self._directory.state.subscribed(topic)
        for one in targets:
            if self._credit(one).left <= 0:
                raise Overloaded(method=topic, instance=one.instance)
        sent = 0
        for one in targets:
            entry = self._directory.state.entries[one.instance]
            try:
                link = self._caller.link_to(entry)
            except BlockingIOError:
                raise Overloaded(method=topic, instance=one.instance) from None
            except ConnectFailed:
                continue
            self._send(link, one, topic, encoded)
            sent += 1
        return sent

    async def _place(self, one: Subscription) -> Link | None:
        """Wait for credit of a subscription and return the link to it; None when its life or itself is over."""
        while self._credit(one).left <= 0:
            if one not in self._directory.state.subscriptions:
                return None
            self._more.clear()
            await self._more.wait()
        entry = self._directory.state.entries.get(one.instance)
        if entry is None or entry.generation != one.generation:
            return None
        return await self._caller.link_when_possible(entry)

    def _credit(self, one: Subscription) -> Credit:
        key = (one.instance, one.generation, one.number)
        credit = self._credits.get(key)
        if credit is None:
            credit = self._credits[key] = Credit(one.window)
        return credit

    def _send(self, link: Link, one: Subscription, topic: str, encoded: bytes) -> None:
        try:
            link.publish(one.number, topic, encoded)
        except ConnectionLost:
            return  # its process is going: at most once
        self._credit(one).sent += 1

    def consumed(self, life: tuple[str, int], event: ConsumedReceived) -> None:
        """Take credit back."""
        credit = self._credits.get((*life, event.number))
        if credit is not None and credit.consumed < event.count <= credit.sent:
            credit.consumed = event.count
            self._more.set()

    def lost(self, life: tuple[str, int]) -> None:
        """Start the credit of a life anew: its subscriptions count per link, and that link is gone."""
        for key in [key for key in self._credits if key[:2] == life]:
            del self._credits[key]
        self._more.set()

    def directory_changed(self) -> None:
        """Forget subscriptions that are over, and let waiting publishers look again."""
        alive = {(one.instance, one.generation, one.number) for one in self._directory.state.subscriptions}
        for key in [key for key in self._credits if key not in alive]:
            del self._credits[key]
        self._more.set()


def _no_retain(retain: bool) -> None:
    if retain:
        raise LocalProtocolError("publish(retain=True) is not supported yet")


class Messages(Generic[T]):
    """A subscription: `async with` registers it, `async for` yields IpcMessage.

    Once entered, every later publish by any live worker reaches it. Iteration ends when the worker is told to stop
    and everything that had arrived is consumed, or when the block is left.
    """

    def __init__(self, hub: Hub, inbox: Inbox) -> None:
        self._hub = hub
        self._inbox = inbox
        self._closed = False
        self._wake: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Messages {self._inbox.pattern!r}, {len(self._inbox.waiting)} waiting>"

    @property
    def dropped(self) -> int:
        """Messages lost in all; always 0 with overflow="block"."""
        return self._inbox.dropped

    async def __aenter__(self) -> Messages[T]:
        await self._hub.register(self, self._inbox)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self._hub.unregister(self._inbox.number)

    def __aiter__(self) -> Messages[T]:
        return self

    async def __anext__(self) -> IpcMessage[T]:
        """Return the next message; cancelling it loses none.

        Raises:
            InvalidPayload: the next message does not fit the topic's type; the one after it may.
        """
        while not self._inbox.waiting:
            if self._closed:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        try:
            message, link, owed = self._inbox.take()
        except InvalidPayload:
            _event, link = self._inbox.waiting.popleft()
            self._hub.acknowledge(self._inbox.number, link, self._inbox.settle(link))
            raise
        self._hub.acknowledge(self._inbox.number, link, owed)
        return message

    def arrived(self, event: MessageReceived, link: Link) -> None:
        """Keep a message until it is consumed."""
        self._inbox.waiting.append((event, link))
        self._wake_up()

    def close(self) -> None:
        """Let iteration end after what has arrived."""
        self._closed = True
        self._wake_up()

    def forget(self, link: Link) -> None:
        """Drop the bookkeeping of a publisher that is gone."""
        self._inbox.forget(link)

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Hub:
    """The subscriptions of one handle."""

    def __init__(self, launch: Launch, port: ControlPort) -> None:
        self._instance = instance_name(launch)
        self._port = port
        self._numbers = itertools.count(1)
        self._open: dict[int, Messages[Any]] = {}
        self._stopping = False

    def __repr__(self) -> str:
        return f"<Hub of {self._instance}: {len(self._open)} subscriptions>"

    def subscribe(
        self, topic: Topic[Any] | str, *, queue: str | None, max_pending: int | None, overflow: str
    ) -> Messages[Any]:
        """Make a subscription that is registered when it is entered."""
        pattern, payload_type, window = subscription_of(topic, queue=queue, max_pending=max_pending, overflow=overflow)
        return Messages(self, Inbox(next(self._numbers), pattern, payload_type, window))

    async def register(self, messages: Messages[Any], inbox: Inbox) -> None:
        """Tell the supervisor, and wait until every live worker knows."""
        if inbox.number in self._open:
            raise LocalProtocolError("this subscription is entered already")
        self._open[inbox.number] = messages
        if self._stopping:
            messages.close()
        request = control.SubscribeRequest(inbox.number, inbox.pattern, inbox.window)
        try:
            await asyncio.wrap_future(self._port.call(control.subscribe, request))
        except BaseException:
            self._open.pop(inbox.number, None)
            self._port.call(control.unsubscribe, control.UnsubscribeRequest(inbox.number))
            raise

    async def unregister(self, number: int) -> None:
        """Forget a subscription; messages under way to it are dropped."""
        self._open.pop(number, None)
        self._port.call(control.unsubscribe, control.UnsubscribeRequest(number))

    def acknowledge(self, number: int, link: Link, owed: int | None) -> None:
        """Give credit back if it is due."""
        if owed is not None:
            link.consumed(number, owed)

    def on_message(self, link: Link, event: MessageReceived) -> None:
        """Pass an arrived message on; one for a subscription that is gone is dropped."""
        messages = self._open.get(event.number)
        if messages is not None:
            messages.arrived(event, link)

    def stop(self) -> None:
        """Let every iteration end after what has arrived."""
        self._stopping = True
        for messages in self._open.values():
            messages.close()

    def forget(self, link: Link) -> None:
        """Drop the bookkeeping of a publisher that is gone."""
        for messages in self._open.values():
            messages.forget(link)


async def deliver(messages: Messages[Any], function: Callable[..., Any], *, wants_message: bool) -> None:
    """Feed a `@ipc.subscriber` function for as long as its subscription lasts; its failures are logged."""
    async with messages:
        while True:
            try:
                message = await anext(messages)
                result = function(message.payload, message) if wants_message else function(message.payload)
                if isinstance(result, Awaitable):
                    await result
            except StopAsyncIteration:
                return
            except Exception:  # the boundary of the user's subscriber
                log.exception("subscriber of %r raised", messages)

"""The subscriber's end of topics in the async flavour: iterating, and the hub of a worker's subscriptions.

The counting and the policies are in subscriptions.py; this file waits. Publishing is in publishing.py.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from smartipc.ipc import control
from smartipc.ipc.cancelling import is_being_cancelled
from smartipc.ipc.contracts import Topic
from smartipc.ipc.control import Launch
from smartipc.ipc.dispatch import ENDING
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import messages_of
from smartipc.ipc.drivers.inheritance import REASON, in_child
from smartipc.ipc.errors import InvalidPayload, LocalProtocolError, SlowConsumer
from smartipc.ipc.links import instance_name
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.protocol.events import MessageReceived, MessagesReceived
from smartipc.ipc.resilience.dead_letters import DeadLetters
from smartipc.ipc.retained import Retained
from smartipc.ipc.routing.port import ControlPort
from smartipc.ipc.subscriptions import Inbox, entered_twice, not_entered, subscription_of
from smartipc.ipc.tracing import heard
from smartipc.ipc.trust.gate import Gate
from smartipc.ipc.wire.text import shown

T = TypeVar("T")
log = logging.getLogger("smartipc.topics")


class SubscriptionHost(Protocol):
    """Who holds subscriptions: the hub of a worker, a client, a server."""

    async def register(self, messages: Messages[Any], inbox: Inbox) -> None:
        """Let every later publish reach the subscription before this returns."""
        ...

    async def unregister(self, number: int) -> None:
        """Forget a subscription."""
        ...


class Messages(Generic[T]):
    """A subscription: `async with` registers it, `async for` yields IpcMessage.

    Once entered, every later publish by any live worker reaches it. Iteration ends when the worker is told to stop
    and everything that had arrived is consumed, or when the block is left.
    """

    def __init__(self, hub: SubscriptionHost, inbox: Inbox) -> None:
        self._hub = hub
        self._inbox = inbox
        self._closed = False
        self._entered = False
        self._inherited = False
        self.registered = asyncio.Event()
        """Set as soon as later publishes reach it, or it is known that they never will."""
        self._wakes: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"<Messages {self._inbox.pattern!r}, {len(self._inbox.waiting)} waiting>"

    @property
    def dropped(self) -> int:
        """Messages known to be lost so far; always 0 with overflow="block"."""
        return self._inbox.dropped

    async def __aenter__(self) -> Messages[T]:
        if self._entered:
            raise LocalProtocolError(entered_twice(self._inbox.pattern))
        self._entered = True
        in_child(self, Messages._leave_to_parent)
        try:
            await self._hub.register(self, self._inbox)
        finally:
            self.registered.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._inherited:
            self.close()
            await self._hub.unregister(self._inbox.number)

    def _leave_to_parent(self) -> None:
        """Hold nothing, in a forked child: what has come is the parent's to read."""
        self._inherited = True
        self._inbox.abandon()

    def __aiter__(self) -> Messages[T]:
        return self

    async def __anext__(self) -> IpcMessage[T]:
        """Return the next message; cancelling it loses none.

        Raises:
            InvalidPayload: the next message does not fit the topic's type; the one after it may.
            SlowConsumer: with overflow="close", messages were lost; what was kept before has been returned.
            LocalProtocolError: the subscription was not entered.
        """
        batch = self._inbox.batch
        if batch.rest:  # the last of them is left to the inbox, which then gives credit back for all
            return IpcMessage(
                batch.rest.pop(), 0, batch.sender, batch.headers, batch.timestamp, None, batch.trace, 1, batch.topic
            )
        while not self._inbox.waiting:
            if self._inherited:
                raise LocalProtocolError(REASON)
            if self._inbox.error is not None and not self._closed:
                self._closed = True
                raise self._inbox.error
            if self._closed:
                raise StopAsyncIteration
            if not self._entered:
                raise LocalProtocolError(not_entered(self._inbox.pattern, "async with"))
            wake = asyncio.get_running_loop().create_future()
            self._wakes.append(wake)
            try:
                await wake
            except asyncio.CancelledError:
                if wake in self._wakes:
                    self._wakes.remove(wake)
                raise
        message, link, owed = self._inbox.take()
        if owed is not None:
            link.consumed(self._inbox.number, owed)
        if isinstance(message, InvalidPayload):
            raise message
        return message

    def arrived(self, event: MessageReceived, link: Any) -> None:
        """Keep a message until it is consumed, or drop one, by the policy."""
        owed = self._inbox.arrived(event, link)
        if owed is not None:
            link.consumed(self._inbox.number, owed)
        self._wake_up()

    def arrived_together(self, event: MessagesReceived, link: Link) -> None:
        """Keep a batch of messages, or each of them by the policy."""
        if self._inbox.arrived_together(event, link):
            self._wake_up()
            return
        for one in messages_of(event, link):
            self.arrived(one, link)

    def letter_of(self, message: IpcMessage[Any] | None, error: BaseException) -> dict[str, Any]:
        """Describe a message whose subscriber failed, or that did not fit, as a dead letter."""
        return self._inbox.letter_of(message, error)

    def close(self) -> None:
        """Let iteration end after what has arrived."""
        self._closed = True
        self._wake_up()

    def forget(self, link: Link) -> None:
        """Drop the bookkeeping of a publisher that is gone."""
        self._inbox.forget(link)

    def _wake_up(self) -> None:
        if self._wakes:
            wakes, self._wakes = self._wakes, []
            for wake in wakes:
                if not wake.done():
                    wake.set_result(None)


class Hub:
    """The subscriptions of one handle."""

    def __init__(self, launch: Launch, port: ControlPort, retained: Retained, gate: Gate) -> None:
        self._gate = gate
        self._retained = retained
        self._instance = instance_name(launch)
        self._port = port
        self._numbers = itertools.count(1)
        self._open: dict[int, Messages[Any]] = {}
        self._stopping = False

    def __repr__(self) -> str:
        return f"<Hub of {self._instance}: {len(self._open)} subscriptions>"

    @property
    def load(self) -> tuple[int, int]:
        """How many subscriptions are open, and what they have lost."""
        opened = list(self._open.values())
        return len(opened), sum(messages.dropped for messages in opened)

    def subscribe(
        self, topic: Topic[Any] | str, *, queue: str | None, max_pending: int | None, overflow: str
    ) -> Messages[Any]:
        """Make a subscription that is registered when it is entered."""
        number = next(self._numbers)
        return Messages(self, subscription_of(number, topic, queue=queue, max_pending=max_pending, overflow=overflow))

    async def register(self, messages: Messages[Any], inbox: Inbox) -> None:
        """Tell the supervisor, and wait until every live worker knows."""
        if inbox.number in self._open:
            raise LocalProtocolError("this subscription is entered already")
        self._open[inbox.number] = messages
        if self._stopping:
            messages.close()
        try:
            await asyncio.wrap_future(self._port.call(control.subscribe, inbox.request))
            if not inbox.queue:  # what a queue's members share is work, and a last value is none
                inbox.restore(self._retained.matching(inbox.pattern))
        except BaseException:
            self._open.pop(inbox.number, None)
            self._port.call(control.unsubscribe, control.UnsubscribeRequest(inbox.number))
            raise

    async def unregister(self, number: int) -> None:
        """Forget a subscription; messages under way to it are dropped."""
        self._open.pop(number, None)
        self._port.call(control.unsubscribe, control.UnsubscribeRequest(number))

    def on_message(self, link: Link, event: MessageReceived) -> None:
        """Pass an arrived message on; one for a subscription that is gone is dropped."""
        if not self._gate.hears(link.peer, event.topic) and event.topic:
            sender = link.peer.name if link.peer else ""
            log.warning("message on %s dropped: %s may not publish there", shown(event.topic), sender)
            event = msgspec.structs.replace(event, topic="")
        messages = self._open.get(event.number)
        if messages is not None:
            messages.arrived(event, link)

    def on_messages(self, link: Link, event: MessagesReceived) -> None:
        """Pass a batch on, as on_message."""
        if not self._gate.hears(link.peer, event.topic):
            for one in messages_of(event, link):
                self.on_message(link, one)
            return
        messages = self._open.get(event.number)
        if messages is not None:
            messages.arrived_together(event, link)

    def stop(self) -> None:
        """Let every iteration end after what has arrived."""
        self._stopping = True
        for messages in self._open.values():
            messages.close()

    def forget(self, link: Link) -> None:
        """Drop the bookkeeping of a publisher that is gone."""
        for messages in self._open.values():
            messages.forget(link)


async def deliver(
    messages: Messages[Any],
    function: Callable[..., Any],
    *,
    wants_message: bool,
    letters: DeadLetters | None = None,
    worker: str = "",
) -> None:
    """Feed a `@ipc.subscriber` function for as long as its subscription lasts; a failure becomes a dead letter."""
    async with messages:
        while True:
            try:
                message = await anext(messages)
            except StopAsyncIteration:
                return
            except (InvalidPayload, SlowConsumer) as error:
                log.exception("subscriber of %r not called", messages)
                if letters is not None and isinstance(error, InvalidPayload):
                    letters.add(**messages.letter_of(None, error), worker=worker)
                continue
            try:
                with heard(message.trace):
                    result = function(message.payload, message) if wants_message else function(message.payload)
                    if isinstance(result, Awaitable):
                        await result
            except GeneratorExit:  # nothing runs any more
                raise
            except BaseException as error:
                log.exception("subscriber of %r raised", messages)
                if letters is not None:
                    letters.add(**messages.letter_of(message, error), worker=worker)
                if isinstance(error, ENDING) or is_being_cancelled():
                    raise

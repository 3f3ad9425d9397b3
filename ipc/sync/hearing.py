"""The subscriber's end of topics in the blocking flavour: iterating, and the hub of a worker's subscriptions.

The counting and the policies are in subscriptions.py; this file waits. Publishing is in publishing.py.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from smartipc.ipc import control
from smartipc.ipc.contracts import Topic
from smartipc.ipc.control import Launch
from smartipc.ipc.drivers.base import messages_of
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import (
    InvalidPayload,
    LocalProtocolError,
)
from smartipc.ipc.links import instance_name
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.protocol.events import MessageReceived, MessagesReceived
from smartipc.ipc.resilience.dead_letters import DeadLetters
from smartipc.ipc.retained import Retained
from smartipc.ipc.routing.port import ControlPort
from smartipc.ipc.subscriptions import Inbox, Kept, entered_twice, not_entered, subscription_of
from smartipc.ipc.sync.serving import Server
from smartipc.ipc.tracing import heard
from smartipc.ipc.trust.gate import Gate
from smartipc.ipc.wire.text import shown

T = TypeVar("T")
log = logging.getLogger("smartipc.topics")
_LAST_LOOK = 0.01
"""Seconds in which what has come is read for the last time."""


class SubscriptionHost(Protocol):
    """Who holds subscriptions: the hub of a worker, a client, a server."""

    def register(self, messages: Messages[Any], inbox: Inbox) -> None:
        """Let every later publish reach the subscription before this returns."""
        ...

    def unregister(self, number: int) -> None:
        """Forget a subscription."""
        ...

    def wait(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `done`, or for `timeout` seconds; return done()."""
        ...


class Messages(Generic[T]):
    """A subscription: `with` registers it, `for` yields IpcMessage.

    Once entered, every later publish by any live worker reaches it. Iterating waits as `serve` does: in the home
    thread, requests that arrive meanwhile are handled in between. It ends when the worker is told to stop and
    everything that had arrived is consumed, or when the block is left.
    """

    def __init__(self, hub: SubscriptionHost, inbox: Inbox) -> None:
        self._hub = hub
        self._inbox = inbox
        self._closed = False
        self._entered = False
        self._behind = False
        """Whether messages may have come that were not read yet when we were told to stop."""
        self._lock = threading.Lock()
        self.function: Callable[..., Any] | None = None
        self.wants_message = False
        self.letters: DeadLetters | None = None
        """Where messages go whose function failed."""
        self.worker = ""
        self.passing: Callable[[], bool] = bool
        """Tells whether a message at hand may be returned without `hub.wait`."""

    def __repr__(self) -> str:
        return f"<Messages {self._inbox.pattern!r}, {len(self._inbox.waiting)} waiting>"

    @property
    def dropped(self) -> int:
        """Messages known to be lost so far; always 0 with overflow="block"."""
        return self._inbox.dropped

    def __enter__(self) -> Messages[T]:
        if self._entered:
            raise LocalProtocolError(entered_twice(self._inbox.pattern))
        self._entered = True
        self._hub.register(self, self._inbox)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._hub.unregister(self._inbox.number)

    def __iter__(self) -> Messages[T]:
        return self

    def __next__(self) -> IpcMessage[T]:
        """Return the next message, waiting for it.

        Raises:
            InvalidPayload: the next message does not fit the topic's type; the one after it may.
            SlowConsumer: with overflow="close", messages were lost; what was kept before has been returned.
            LocalProtocolError: the subscription was not entered.
        """
        message = self.receive(None)
        if message is None:
            raise StopIteration
        return message

    def receive(self, timeout: float | None = None) -> IpcMessage[T] | None:
        """Return the next message, or None after `timeout` seconds, or at the end of the subscription.

        Raises:
            InvalidPayload, SlowConsumer, LocalProtocolError: as iteration.
        """
        if not self._entered:
            raise LocalProtocolError(not_entered(self._inbox.pattern, "with"))
        batch = self._inbox.batch
        if batch.rest and self.passing():
            with self._lock:
                if batch.rest:  # the last of them is left to the inbox, which then gives credit back for all
                    return batch.message(batch.rest.pop())
        while True:
            if not self._hub.wait(self._settled, timeout):
                return None
            with self._lock:
                taken = self._inbox.take() if self._inbox.waiting else None
                if taken is None and self._inbox.error is not None and not self._closed:
                    self._closed = True
                    raise self._inbox.error
            if taken is not None:
                return self._given(taken)
            if self._closed and not (self._behind and self._catch_up()):
                return None

    def _catch_up(self) -> bool:
        """Read what had come when we were told to stop, which publishers knew before; tell whether there was any."""
        self._behind = False
        return self._hub.wait(lambda: bool(self._inbox.waiting), _LAST_LOOK)

    def _settled(self) -> bool:
        return bool(self._inbox.waiting) or self._closed or self._inbox.error is not None

    def _given(self, taken: tuple[IpcMessage[Any] | InvalidPayload, Any, int | None]) -> IpcMessage[T]:
        """Give credit back for a message, outside the lock: its publisher may be waiting in this process."""
        message, link, owed = taken
        if owed is not None:
            link.consumed(self._inbox.number, owed)
        if isinstance(message, InvalidPayload):
            raise message
        return message

    def deliver(self) -> None:
        """Give one message to the `@ipc.subscriber` function; a failure becomes a dead letter."""
        assert self.function is not None
        message: IpcMessage[T] | None = None
        try:
            with self._lock:
                if not self._inbox.waiting:
                    return
                taken = self._inbox.take()
            message = self._given(taken)
            with heard(message.trace):
                if self.wants_message:
                    self.function(message.payload, message)
                else:
                    self.function(message.payload)
        except Exception as error:  # the boundary of the user's subscriber
            log.exception("subscriber of %r raised", self)
            if self.letters is not None and (message is not None or isinstance(error, InvalidPayload)):
                self.letters.add(**self._inbox.letter_of(message, error), worker=self.worker)

    def arrived(self, event: MessageReceived, link: Any) -> bool:
        """Keep a message until it is consumed, or drop one, by the policy; return whether a function waits for it."""
        with self._lock:
            owed = self._inbox.arrived(event, link)
        if owed is not None:
            link.consumed(self._inbox.number, owed)
        return self.function is not None

    def arrived_together(self, event: MessagesReceived, link: Any) -> int:
        """Keep a batch of messages, or each of them by the policy; return how many wait for a function."""
        with self._lock:
            count = self._inbox.arrived_together(event, link)
        if count:
            return count if self.function is not None else 0
        return sum(self.arrived(one, link) for one in messages_of(event, link))

    def restore(self, events: list[tuple[MessageReceived, Kept]]) -> int:
        """Put the topics' last values in; return how many wait for a function."""
        with self._lock:
            self._inbox.restore(events)
            return len(self._inbox.waiting) if self.function is not None else 0

    def close(self) -> None:
        """Let iteration end after what has arrived."""
        self._closed = True

    def stop(self) -> None:
        """Let iteration end after what has arrived, also what nobody has read yet."""
        self._behind = not self._closed
        self._closed = True

    def forget(self, link: Link) -> None:
        """Drop the bookkeeping of a publisher that is gone."""
        self._inbox.forget(link)


class Hub:
    """The subscriptions of one handle."""

    def __init__(
        self,
        launch: Launch,
        port: ControlPort,
        server: Server,
        retained: Retained,
        gate: Gate,
        letters: DeadLetters | None = None,
    ) -> None:
        self._letters = letters
        self._worker = launch.worker
        self._gate = gate
        self._retained = retained
        self._instance = instance_name(launch)
        self._port = port
        self._server = server
        self._numbers = itertools.count(1)
        self._open: dict[int, Messages[Any]] = {}
        self._stopping = False
        self.wait = server.wait
        server.on_published = self.on_message
        server.on_published_together = self.on_messages
        server.on_lost = self.forget

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
        inbox = subscription_of(number, topic, queue=queue, max_pending=max_pending, overflow=overflow)
        messages: Messages[Any] = Messages(self, inbox)
        messages.letters, messages.worker = self._letters, self._worker
        messages.passing = self._server.passing
        return messages

    def register(self, messages: Messages[Any], inbox: Inbox) -> None:
        """Tell the supervisor, and wait until every live worker knows.

        Raises:
            LocalProtocolError: it is entered already.
            SmartIpcError: the supervisor is gone or refuses.
        """
        if inbox.number in self._open:
            raise LocalProtocolError("this subscription is entered already")
        self._open[inbox.number] = messages
        if self._stopping:
            messages.close()
        try:
            self._port.call(control.subscribe, inbox.request).result()
            if not inbox.queue:  # what a queue's members share is work, and a last value is none
                for _ in range(messages.restore(self._retained.matching(inbox.pattern))):
                    self._server.post(messages.deliver)
        except BaseException:
            self.unregister(inbox.number)
            raise

    def unregister(self, number: int) -> None:
        """Forget a subscription; messages under way to it are dropped."""
        if self._open.pop(number, None) is not None:
            self._port.call(control.unsubscribe, control.UnsubscribeRequest(number))

    def on_message(self, link: Link, event: MessageReceived) -> None:
        """Pass an arrived message on; one for a subscription that is gone is dropped."""
        if not self._gate.hears(link.peer, event.topic) and event.topic:
            sender = link.peer.name if link.peer else ""
            log.warning("message on %s dropped: %s may not publish there", shown(event.topic), sender)
            event = msgspec.structs.replace(event, topic="")
        messages = self._open.get(event.number)
        if messages is not None and messages.arrived(event, link):
            self._server.post(messages.deliver)

    def on_messages(self, link: Link, event: MessagesReceived) -> None:
        """Pass a batch on, as on_message."""
        if not self._gate.hears(link.peer, event.topic):
            for one in messages_of(event, link):
                self.on_message(link, one)
            return
        messages = self._open.get(event.number)
        if messages is not None:
            for _ in range(messages.arrived_together(event, link)):
                self._server.post(messages.deliver)

    def stop(self) -> None:
        """Let every iteration end after what has arrived."""
        self._stopping = True
        for messages in list(self._open.values()):
            messages.stop()

    def forget(self, link: Link) -> None:
        """Drop the bookkeeping of a publisher that is gone."""
        for messages in list(self._open.values()):
            messages.forget(link)

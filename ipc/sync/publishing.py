"""Topics in the blocking handle: publish with credit, subscribe with an inbox. The counting is in subscriptions.py."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from smartipc.ipc import control
from smartipc.ipc.contracts import Topic
from smartipc.ipc.control import Launch, Subscription
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import (
    ConnectFailed,
    ConnectionLost,
    FrameTooLarge,
    InvalidPayload,
    LocalProtocolError,
    Overloaded,
)
from smartipc.ipc.links import instance_name
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.protocol.events import ConsumedReceived, MessageReceived
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.routing.port import ControlPort
from smartipc.ipc.subscriptions import Credit, Inbox, subscription_of
from smartipc.ipc.sync.calling import DIAL_AGAIN, Caller, Life
from smartipc.ipc.sync.serving import Server

T = TypeVar("T")
log = logging.getLogger("smartipc.topics")


class Publisher:
    """Sends messages to the subscriptions that the directory lists. For any number of threads."""

    def __init__(self, directory: Directory, caller: Caller) -> None:
        self._directory = directory
        self._caller = caller
        self._credits: dict[tuple[str, int, int], Credit] = {}
        self._lock = threading.Lock()
        caller.on_credit = self.consumed
        caller.on_lost = self.lost

    def __repr__(self) -> str:
        return f"<Publisher to {len(self._credits)} subscriptions>"

    def publish(self, topic: str, encoded: bytes, *, retain: bool) -> None:
        """Send to every subscription, waiting for credit; see Endpoint.publish."""
        self._caller.require_own()
        _no_retain(retain)
        for one in self._directory.state.subscribed(topic):
            while not self._sent(one, topic, encoded) and one in self._directory.state.subscriptions:
                pass

    def _sent(self, one: Subscription, name: str, encoded: bytes) -> bool:
        """Send to one subscription, or wait a little for what keeps it from being sent."""
        state = self._directory.state
        entry = state.entries.get(one.instance)
        if entry is None or entry.generation != one.generation:
            return True  # nobody is left to receive it
        try:
            link = self._caller.link_to(entry)
        except (ConnectFailed, BlockingIOError):
            self._caller.change(state, DIAL_AGAIN)
            return False
        if self._take(one):
            self._send(link, one, name, encoded, wait=True)
            return True
        self._caller.wait(link, lambda: self._may_go_on(one, link))
        return False

    def publish_nowait(self, topic: str, encoded: bytes, *, retain: bool) -> int:
        """Send to every subscription or to none; see Endpoint.publish_nowait."""
        self._caller.require_own()
        _no_retain(retain)
        targets: list[tuple[Subscription, Link]] = []
        for one in self._directory.state.subscribed(topic):
            entry = self._directory.state.entries[one.instance]
            try:
                link = self._caller.link_to(entry)
            except BlockingIOError:
                raise Overloaded(method=topic, instance=one.instance) from None
            except ConnectFailed:
                continue
            if self._credit(one).left <= 0:
                link.pump(0)  # nobody else reads credits of a worker that only publishes
            if not link.flush() or self._credit(one).left <= 0:
                raise Overloaded(method=topic, instance=one.instance)
            targets.append((one, link))
        sent = 0
        for one, link in targets:
            if self._take(one):
                self._send(link, one, topic, encoded, wait=False)
                sent += 1
        return sent

    def _may_go_on(self, one: Subscription, link: Link) -> bool:
        return link.closed or self._credit(one).left > 0 or one not in self._directory.state.subscriptions

    def _credit(self, one: Subscription) -> Credit:
        key = (one.instance, one.generation, one.number)
        credit = self._credits.get(key)
        if credit is None:
            credit = self._credits.setdefault(key, Credit(one.window))
        return credit

    def _take(self, one: Subscription) -> bool:
        """Use one credit up, if there is one."""
        with self._lock:
            credit = self._credit(one)
            if credit.left <= 0:
                return False
            credit.sent += 1
            return True

    def _send(self, link: Link, one: Subscription, topic: str, encoded: bytes, *, wait: bool) -> None:
        try:
            link.publish(one.number, topic, encoded, wait=wait)
        except ConnectionLost:
            return  # its process is going: at most once
        except FrameTooLarge:
            with self._lock:
                self._credit(one).sent -= 1
            raise

    def consumed(self, life: Life, event: ConsumedReceived) -> None:
        """Take credit back."""
        credit = self._credits.get((*life, event.number))
        if credit is not None and credit.consumed < event.count <= credit.sent:
            credit.consumed = event.count

    def lost(self, life: Life) -> None:
        """Forget the counts of a link that is over: a new one to the same life starts from zero at both ends."""
        for key in [key for key in list(self._credits) if key[:2] == life]:
            self._credits.pop(key, None)

    def directory_changed(self) -> None:
        """Forget subscriptions that are over."""
        alive = {(one.instance, one.generation, one.number) for one in self._directory.state.subscriptions}
        for key in [key for key in list(self._credits) if key not in alive]:
            self._credits.pop(key, None)


def _no_retain(retain: bool) -> None:
    if retain:
        raise LocalProtocolError("publish(retain=True) is not supported yet")


class Messages(Generic[T]):
    """A subscription: `with` registers it, `for` yields IpcMessage.

    Once entered, every later publish by any live worker reaches it. Iterating waits as `serve` does: in the home
    thread, requests that arrive meanwhile are handled in between. It ends when the worker is told to stop and
    everything that had arrived is consumed, or when the block is left.
    """

    def __init__(self, hub: Hub, inbox: Inbox) -> None:
        self._hub = hub
        self._inbox = inbox
        self._closed = False
        self._lock = threading.Lock()
        self.function: Callable[..., Any] | None = None
        self.wants_message = False

    def __repr__(self) -> str:
        return f"<Messages {self._inbox.pattern!r}, {len(self._inbox.waiting)} waiting>"

    @property
    def dropped(self) -> int:
        """Messages lost in all; always 0 with overflow="block"."""
        return self._inbox.dropped

    def __enter__(self) -> Messages[T]:
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
        """
        message = self.receive(None)
        if message is None:
            raise StopIteration
        return message

    def receive(self, timeout: float | None = None) -> IpcMessage[T] | None:
        """Return the next message, or None after `timeout` seconds, or at the end of the subscription.

        Raises:
            InvalidPayload: as iteration.
        """
        while True:
            if not self._hub.wait(self._settled, timeout):
                return None
            with self._lock:
                if self._inbox.waiting:
                    return self._take()
            if self._closed:
                return None

    def _settled(self) -> bool:
        return bool(self._inbox.waiting) or self._closed

    def _take(self) -> IpcMessage[T]:
        try:
            message, link, owed = self._inbox.take()
        except InvalidPayload:
            _event, link = self._inbox.waiting.popleft()
            owed = self._inbox.settle(link)
            if owed is not None:
                link.consumed(self._inbox.number, owed)
            raise
        if owed is not None:
            link.consumed(self._inbox.number, owed)
        return message

    def deliver(self) -> None:
        """Give one message to the `@ipc.subscriber` function; its failures are logged."""
        assert self.function is not None
        try:
            with self._lock:
                if not self._inbox.waiting:
                    return
                message = self._take()
            if self.wants_message:
                self.function(message.payload, message)
            else:
                self.function(message.payload)
        except Exception:  # the boundary of the user's subscriber
            log.exception("subscriber of %r raised", self)

    def arrived(self, event: MessageReceived, link: Link) -> bool:
        """Keep a message until it is consumed; return whether a function waits for it."""
        self._inbox.waiting.append((event, link))
        return self.function is not None

    def close(self) -> None:
        """Let iteration end after what has arrived."""
        self._closed = True

    def forget(self, link: Link) -> None:
        """Drop the bookkeeping of a publisher that is gone."""
        self._inbox.forget(link)


class Hub:
    """The subscriptions of one handle."""

    def __init__(self, launch: Launch, port: ControlPort, server: Server) -> None:
        self._instance = instance_name(launch)
        self._port = port
        self._server = server
        self._numbers = itertools.count(1)
        self._open: dict[int, Messages[Any]] = {}
        self._stopping = False
        self.wait = server.wait
        server.on_topic = self.on_message
        server.on_lost = self.forget

    def __repr__(self) -> str:
        return f"<Hub of {self._instance}: {len(self._open)} subscriptions>"

    def subscribe(
        self, topic: Topic[Any] | str, *, queue: str | None, max_pending: int | None, overflow: str
    ) -> Messages[Any]:
        """Make a subscription that is registered when it is entered."""
        pattern, payload_type, window = subscription_of(topic, queue=queue, max_pending=max_pending, overflow=overflow)
        return Messages(self, Inbox(next(self._numbers), pattern, payload_type, window))

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
        request = control.SubscribeRequest(inbox.number, inbox.pattern, inbox.window)
        try:
            self._port.call(control.subscribe, request).result()
        except BaseException:
            self.unregister(inbox.number)
            raise

    def unregister(self, number: int) -> None:
        """Forget a subscription; messages under way to it are dropped."""
        if self._open.pop(number, None) is not None:
            self._port.call(control.unsubscribe, control.UnsubscribeRequest(number))

    def on_message(self, link: Link, event: MessageReceived) -> None:
        """Pass an arrived message on; one for a subscription that is gone is dropped."""
        messages = self._open.get(event.number)
        if messages is not None and messages.arrived(event, link):
            self._server.post(messages.deliver)

    def stop(self) -> None:
        """Let every iteration end after what has arrived."""
        self._stopping = True
        for messages in list(self._open.values()):
            messages.close()

    def forget(self, link: Link) -> None:
        """Drop the bookkeeping of a publisher that is gone."""
        for messages in list(self._open.values()):
            messages.forget(link)

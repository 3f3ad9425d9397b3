"""Topics in the blocking handle: publish with credit, subscribe with an inbox.

The counting and the policies are in publications.py and subscriptions.py; this file sends and waits.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import msgspec

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
from smartipc.ipc.links import LIMITS, instance_name
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.protocol.events import ConsumedReceived, MessageReceived
from smartipc.ipc.publications import Lane, Outgoing, member
from smartipc.ipc.resilience.dead_letters import DeadLetters
from smartipc.ipc.retained import Retained
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.routing.port import ControlPort
from smartipc.ipc.routing.subscribers import Key, key_of
from smartipc.ipc.subscriptions import Inbox, Kept, subscription_of
from smartipc.ipc.sync.calling import DIAL_AGAIN, Caller, Life
from smartipc.ipc.sync.serving import Server
from smartipc.ipc.trust.gate import Gate
from smartipc.ipc.wire.text import shown

T = TypeVar("T")
log = logging.getLogger("smartipc.topics")


class Publisher:
    """Sends messages to the subscriptions that the directory lists. For any number of threads."""

    def __init__(self, directory: Directory, caller: Caller, server: Server, retained: Retained) -> None:
        self._directory = directory
        self._caller = caller
        self._server = server
        self._retained = retained
        self._lanes: dict[Key, Lane] = {}
        self._lock = threading.RLock()  # a message that cannot be sent may end its link, which reports back
        self._turn = 0
        caller.on_credit = self.consumed
        caller.on_lost = self.lost

    def __repr__(self) -> str:
        return f"<Publisher to {len(self._lanes)} subscriptions>"

    def publish(self, topic: str, encoded: bytes, *, retain: bool) -> None:
        """Send to every subscription, waiting for credit of those that block; see Endpoint.publish."""
        self._caller.require_own()
        _check_size(encoded)
        stamp = self._retained.put(topic, encoded) if retain else 0
        targets = self._directory.state.subscribed(topic)
        for one in targets.plain:
            lane = self._lane(one)
            if lane.blocks:
                while not self._sent(lane, topic, encoded, stamp) and not self._gone(lane):
                    pass
            else:
                self._offer(lane, topic, encoded, stamp)
        for queue, _members in targets.queues:
            while not self._shared(queue, topic, encoded, stamp):
                pass

    def _sent(self, lane: Lane, topic: str, encoded: bytes, stamp: int) -> bool:
        """Send to one subscription, or wait a little for what keeps it from being sent."""
        state = self._directory.state
        entry = state.entries.get(lane.one.instance)
        if entry is None or entry.generation != lane.one.generation:
            return True  # nobody is left to receive it
        try:
            link = self._caller.link_to(entry)
        except (ConnectFailed, BlockingIOError):
            self._caller.change(state, DIAL_AGAIN)
            return False
        message = self._take(lane, topic, encoded, stamp)
        if message is not None:
            self._send(link, lane, message, wait=True)
            return True
        self._caller.wait(link, lambda: link.closed or lane.room or self._gone(lane))
        return False

    def _shared(self, queue: str, topic: str, encoded: bytes, stamp: int) -> bool:
        """Give a message to one member of a queue, or wait a little while all of them are full."""
        members = dict(self._directory.state.subscribed(topic).queues).get(queue, ())
        if not members:
            return True
        links = {one: link for one in members if (link := self._link(self._lane(one))) is not None}
        for link in links.values():
            link.pump(0)  # what was consumed meanwhile decides who is next
        one = self._member(members)
        if one is not None:
            lane = self._lane(one)
            if not lane.blocks:
                self._offer(lane, topic, encoded, stamp)
                return True
            return self._sent(lane, topic, encoded, stamp)
        if links:
            self._caller.wait_any(list(links.values()), lambda: self._member(members) is not None)
        else:
            self._caller.change(self._directory.state, DIAL_AGAIN)
        return False

    def publish_nowait(self, topic: str, encoded: bytes, *, retain: bool) -> int:
        """Send to every subscription or to none; see Endpoint.publish_nowait."""
        self._caller.require_own()
        _check_size(encoded)
        targets = self._directory.state.subscribed(topic)
        chosen = [self._lane(one) for one in targets.plain]
        for _queue, members in targets.queues:
            for one in members:
                if (link := self._link(self._lane(one))) is not None:
                    link.pump(0)
            member_ = self._member(members)
            if member_ is None:
                raise Overloaded(method=topic, instance=members[0].instance)
            chosen.append(self._lane(member_))
        links: list[tuple[Lane, Link | None]] = []
        for lane in chosen:
            link = self._link(lane)
            if lane.blocks and not self._gone(lane):
                if link is None:
                    raise Overloaded(method=topic, instance=lane.one.instance)
                if not lane.room:
                    link.pump(0)  # nobody else reads credits of a worker that only publishes
                if not link.flush() or not lane.room:
                    raise Overloaded(method=topic, instance=lane.one.instance)
            links.append((lane, link))
        stamp = self._retained.put(topic, encoded) if retain else 0
        sent = 0
        for lane, link in links:
            if not lane.blocks:
                self._offer(lane, topic, encoded, stamp)
                sent += 1
            elif link is not None and (message := self._take(lane, topic, encoded, stamp)) is not None:
                self._send(link, lane, message, wait=False)
                sent += 1
        return sent

    def _member(self, members: tuple[Subscription, ...]) -> Subscription | None:
        with self._lock:
            self._turn += 1
            return member(members, self._lane, self._turn)

    def _lane(self, one: Subscription) -> Lane:
        key = key_of(one)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes.setdefault(key, Lane(one))
        return lane

    def _gone(self, lane: Lane) -> bool:
        return lane.one not in self._directory.state.subscriptions

    def _link(self, lane: Lane) -> Link | None:
        """Return the link to a lane's life, None if it cannot be had now."""
        entry = self._directory.state.entries.get(lane.one.instance)
        if entry is None or entry.generation != lane.one.generation:
            return None
        try:
            return self._caller.link_to(entry)
        except (ConnectFailed, BlockingIOError):
            return None

    def _take(self, lane: Lane, topic: str, encoded: bytes, stamp: int) -> Outgoing | None:
        """Use one credit up, if there is one."""
        with self._lock:
            return lane.take(topic, encoded, stamp) if lane.room else None

    def _send(self, link: Link, lane: Lane, message: Outgoing, *, wait: bool) -> None:
        try:
            link.publish(
                lane.one.number,
                message.topic,
                message.payload,
                stamp=message.stamp,
                sequence=message.sequence,
                wait=wait,
            )
        except ConnectionLost:
            return  # its process is going: at most once
        except FrameTooLarge:  # for this peer; the others take it
            with self._lock:
                lane.give_back(message)
            log.warning("message on %s is too large for %s", message.topic, lane.one.instance)

    def _offer(self, lane: Lane, topic: str, encoded: bytes, stamp: int) -> None:
        """Send to a subscription that drops, or let the message wait there; nobody waits for it."""
        link = self._link(lane)
        if link is not None and not lane.room:
            link.pump(0)
        with self._lock:
            if link is not None and lane.room:
                self._send(link, lane, lane.take(topic, encoded, stamp), wait=False)
            else:
                lane.keep(topic, encoded, stamp)
        if lane.pending and link is not None:
            self._server.watch(link)

    def _flush(self, lane: Lane) -> None:
        """Send what waited for credit, in order, whoever else publishes."""
        link = self._link(lane)
        if link is None:
            return
        with self._lock:
            while (message := lane.next()) is not None:
                self._send(link, lane, message, wait=False)
        if lane.pending:
            self._server.watch(link)

    def flush(self) -> None:
        """Try again what could not be sent because there was no link; called now and then while the handle waits."""
        for lane in list(self._lanes.values()):
            if lane.pending:
                self._flush(lane)

    def consumed(self, life: Life, event: ConsumedReceived) -> None:
        """Take credit back."""
        lane = self._lanes.get((*life, event.number))
        if lane is None:
            return
        with self._lock:
            back = lane.acknowledged(event.count)
        if back and (lane.pending or not lane.blocks):
            self._flush(lane)

    def lost(self, life: Life) -> None:
        """Start the counts of a link that is over anew: a new one to the same life starts from zero at both ends."""
        with self._lock:
            for key, lane in list(self._lanes.items()):
                if key[:2] == life:
                    lane.renew()

    def directory_changed(self) -> None:
        """Forget subscriptions that are over, and pass on what waited for a member of a queue."""
        with self._lock:
            over = [lane for lane in self._lanes.values() if self._gone(lane)]
            for lane in over:
                del self._lanes[key_of(lane.one)]
        for lane in over:
            if lane.one.queue:
                for message in lane.pending.values():
                    self._pass_on(lane.one.queue, message)

    def _pass_on(self, queue: str, message: Outgoing) -> None:
        """Give a message that was never sent to another member."""
        members = dict(self._directory.state.subscribed(message.topic).queues).get(queue, ())
        if members:
            lane = self._lane(self._member(members) or members[0])
            with self._lock:
                lane.keep(message.topic, message.payload, message.stamp, anyway=True)
            self._flush(lane)

    def drain(self, until: float) -> None:
        """Wait at most until that time for what waits for credit: this process is about to end."""
        while pending := [lane for lane in list(self._lanes.values()) if lane.pending]:
            links = [link for lane in pending if (link := self._link(lane)) is not None]
            left = until - time.monotonic()
            if left <= 0 or not links:
                return
            self._caller.wait_any(links, functools.partial(_settled, pending), left)


def _settled(lanes: list[Lane]) -> bool:
    return not any(lane.pending for lane in lanes)


def _check_size(encoded: bytes) -> None:
    if len(encoded) > LIMITS.message:
        raise FrameTooLarge(len(encoded), LIMITS.message, "message")


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
        self._lock = threading.Lock()
        self.function: Callable[..., Any] | None = None
        self.wants_message = False
        self.letters: DeadLetters | None = None
        """Where messages go whose function failed."""
        self.worker = ""

    def __repr__(self) -> str:
        return f"<Messages {self._inbox.pattern!r}, {len(self._inbox.waiting)} waiting>"

    @property
    def dropped(self) -> int:
        """Messages known to be lost so far; always 0 with overflow="block"."""
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
            SlowConsumer: with overflow="close", messages were lost; what was kept before has been returned.
        """
        message = self.receive(None)
        if message is None:
            raise StopIteration
        return message

    def receive(self, timeout: float | None = None) -> IpcMessage[T] | None:
        """Return the next message, or None after `timeout` seconds, or at the end of the subscription.

        Raises:
            InvalidPayload, SlowConsumer: as iteration.
        """
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
            if self._closed:
                return None

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

    def restore(self, events: list[tuple[MessageReceived, Kept]]) -> int:
        """Put the topics' last values in; return how many wait for a function."""
        with self._lock:
            self._inbox.restore(events)
            return len(self._inbox.waiting) if self.function is not None else 0

    def close(self) -> None:
        """Let iteration end after what has arrived."""
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

    def stop(self) -> None:
        """Let every iteration end after what has arrived."""
        self._stopping = True
        for messages in list(self._open.values()):
            messages.close()

    def forget(self, link: Link) -> None:
        """Drop the bookkeeping of a publisher that is gone."""
        for messages in list(self._open.values()):
            messages.forget(link)

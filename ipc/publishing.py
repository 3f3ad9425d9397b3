"""Topics in the async handle: publish with credit, subscribe with an inbox.

The counting and the policies are in publications.py and subscriptions.py; this file sends and waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sys
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from smartipc.ipc import control
from smartipc.ipc.calling import DIAL_AGAIN, Caller
from smartipc.ipc.contracts import Topic
from smartipc.ipc.control import Launch, Subscription
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import apart
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
from smartipc.ipc.protocol.events import ConsumedReceived, MessageReceived, MessagesReceived
from smartipc.ipc.publications import Lane, Outgoing, member
from smartipc.ipc.resilience.dead_letters import DeadLetters
from smartipc.ipc.retained import Retained
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.routing.port import ControlPort
from smartipc.ipc.routing.subscribers import Key, key_of
from smartipc.ipc.subscriptions import Inbox, subscription_of
from smartipc.ipc.trust.gate import Gate
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.frames import ARRAY, ARRAY_MARK
from smartipc.ipc.wire.text import shown

T = TypeVar("T")
_LEAST = 16
"""Messages for which a burst is worth while."""
_BATCH = 16 * 1024
"""Bytes of a batch for one subscriber: a part of its window, so that it consumes one while the next is made."""
log = logging.getLogger("smartipc.topics")


class Publisher:
    """Sends messages to the subscriptions that the directory lists."""

    def __init__(self, directory: Directory, caller: Caller, retained: Retained) -> None:
        self._directory = directory
        self._caller = caller
        self._retained = retained
        self._lanes: dict[Key, Lane] = {}
        self._more: asyncio.Event = asyncio.Event()
        self._again: set[Key] = set()
        self._turn = 0
        self._burst: TopicBurst | None = None
        self._busy = False

    def __repr__(self) -> str:
        return f"<Publisher to {len(self._lanes)} subscriptions>"

    async def publish(self, name: str, encoded: bytes, *, retain: bool) -> None:
        """Send to every subscription, waiting for credit of those that block; see Endpoint.publish."""
        self.flush()
        _check_size(encoded)
        stamp = self._retained.put(name, encoded) if retain else 0
        targets = self._directory.state.subscribed(name)
        for one in targets.plain:
            lane = self._lane(one)
            if lane.blocks:
                link = await self._place(lane)
                if link is not None:
                    self._send(link, lane, lane.take(name, encoded, stamp))
                    await link.drained()
            else:
                self._offer(lane, name, encoded, stamp)
        for queue, _members in targets.queues:
            link = await self._share(queue, name, encoded, stamp)
            if link is not None:
                await link.drained()

    def publish_nowait(self, name: str, encoded: bytes, *, retain: bool) -> int:
        """Send to every subscription or to none; see Endpoint.publish_nowait."""
        self.flush()
        _check_size(encoded)
        targets = self._directory.state.subscribed(name)
        chosen = list(targets.plain)
        for _queue, members in targets.queues:
            one = self._member(members)
            if one is None:
                raise Overloaded(method=name, instance=members[0].instance)
            chosen.append(one)
        links: list[tuple[Lane, Link | None]] = []
        for one in chosen:
            lane = self._lane(one)
            link = self._link(lane)
            if lane.blocks:
                if link is None and not self._gone(lane):
                    raise Overloaded(method=name, instance=one.instance)
                if not lane.room:
                    raise Overloaded(method=name, instance=one.instance)
            links.append((lane, link))
        stamp = self._retained.put(name, encoded) if retain else 0
        for lane, link in links:
            if not lane.blocks:
                self._offer(lane, name, encoded, stamp)
            elif link is not None:
                self._send(link, lane, lane.take(name, encoded, stamp))
        return sum(1 for lane, link in links if link is not None or not lane.blocks)

    def burst(self, topic: Topic[Any]) -> TopicBurst | None:
        """Begin a burst if this is not the first message of the loop turn, and every subscriber takes batches."""
        if not self._busy:
            self._busy = True
            asyncio.get_running_loop().call_soon(self._end_of_turn)
            return None
        state = self._directory.state
        targets = state.subscribed(topic.name)
        if targets.queues or not targets.plain:
            return None
        pairs: list[tuple[Lane, Link]] = []
        room = sys.maxsize
        for one in targets.plain:
            lane, link = self._lane(one), None
            if lane.blocks and lane.room:
                link = self._link(lane)
            if link is None or link.congested or not link.connection.batching:
                return None
            pairs.append((lane, link))
            room = min(room, lane.left)
        if room < _LEAST:
            return None
        self._burst = TopicBurst(topic, self._directory, pairs, room)
        return self._burst

    def flush(self) -> None:
        """Send what a burst has collected, and end it: what is said next comes after it."""
        burst, self._burst = self._burst, None
        if burst is not None:
            burst.close()

    def _end_of_turn(self) -> None:
        self._busy = False
        self.flush()

    async def _place(self, lane: Lane) -> Link | None:
        """Wait for credit of a subscription and return the link to it; None when its life or itself is over."""
        while not lane.room:
            if self._gone(lane):
                return None
            await self._credit()
        entry = self._directory.state.entries.get(lane.one.instance)
        if entry is None or entry.generation != lane.one.generation:
            return None
        return await self._caller.link_when_possible(entry)

    async def _share(self, queue: str, topic: str, payload: bytes, stamp: int) -> Link | None:
        """Give a message to one member of a queue, waiting while all of them block; return the link if it was sent."""
        while True:
            members = dict(self._directory.state.subscribed(topic).queues).get(queue, ())
            if not members:
                return None
            one = self._member(members)
            if one is None:
                await self._credit()
                continue
            lane = self._lane(one)
            if not lane.blocks:
                self._offer(lane, topic, payload, stamp)
                return None
            link = self._link(lane)
            if link is not None:
                self._send(link, lane, lane.take(topic, payload, stamp))
                return link
            await asyncio.sleep(DIAL_AGAIN)

    async def _credit(self) -> None:
        self._more.clear()
        await self._more.wait()

    def _member(self, members: tuple[Subscription, ...]) -> Subscription | None:
        self._turn += 1
        return member(members, self._lane, self._turn)

    def _lane(self, one: Subscription) -> Lane:
        key = key_of(one)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(one)
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

    def _send(self, link: Link, lane: Lane, message: Outgoing) -> None:
        try:
            link.publish(
                lane.one.number, message.topic, message.payload, stamp=message.stamp, sequence=message.sequence
            )
        except ConnectionLost:
            return  # its process is going: at most once
        except FrameTooLarge:  # for this peer; the others take it
            lane.give_back(message)
            log.warning("message on %s is too large for %s", message.topic, lane.one.instance)

    def _offer(self, lane: Lane, topic: str, payload: bytes, stamp: int) -> None:
        """Send to a subscription that drops, or let the message wait there; nobody waits for it."""
        link = self._link(lane)
        if link is not None and lane.room:
            self._send(link, lane, lane.take(topic, payload, stamp))
            return
        lane.keep(topic, payload, stamp)
        if link is None:
            self._look_again(lane)

    def _flush(self, lane: Lane) -> None:
        """Send what waited for credit."""
        link = self._link(lane)
        if link is None:
            self._look_again(lane)
            return
        while (message := lane.next()) is not None:
            self._send(link, lane, message)

    def _look_again(self, lane: Lane) -> None:
        key = key_of(lane.one)
        if key not in self._again:
            self._again.add(key)
            asyncio.get_running_loop().call_later(DIAL_AGAIN, self._look, key)

    def _look(self, key: Key) -> None:
        self._again.discard(key)
        lane = self._lanes.get(key)
        if lane is not None and lane.pending:
            self._flush(lane)

    def consumed(self, life: tuple[str, int], event: ConsumedReceived) -> None:
        """Take credit back."""
        lane = self._lanes.get((*life, event.number))
        if lane is not None and lane.acknowledged(event.count):
            if lane.pending or not lane.blocks:
                self._flush(lane)
            self._more.set()

    def lost(self, life: tuple[str, int]) -> None:
        """Start the credit of a life anew: its subscriptions count per link, and that link is gone."""
        for key, lane in self._lanes.items():
            if key[:2] == life:
                lane.renew()
                if lane.pending:
                    self._look_again(lane)
        self._more.set()

    def directory_changed(self) -> None:
        """Forget subscriptions that are over, pass on what waited for a member of a queue, wake who waits."""
        over = [lane for lane in self._lanes.values() if self._gone(lane)]
        for lane in over:
            del self._lanes[key_of(lane.one)]
        for lane in over:
            if lane.one.queue:
                for message in lane.pending.values():
                    self._pass_on(lane.one.queue, message)
        self._more.set()

    def _pass_on(self, queue: str, message: Outgoing) -> None:
        """Give a message that was never sent to another member."""
        members = dict(self._directory.state.subscribed(message.topic).queues).get(queue, ())
        if members:
            one = self._member(members) or members[0]
            lane = self._lane(one)
            lane.keep(message.topic, message.payload, message.stamp, anyway=True)
            self._flush(lane)

    async def send_again(self, worker: str, pattern: str, topic: str, payload: bytes) -> bool:
        """Send a message to one subscription of a worker, and no other; tell whether there is one."""
        found = self._directory.state.subscribed(topic)
        every = [*found.plain, *(one for _, members in found.queues for one in members)]
        for one in every:
            if one.pattern == pattern and one.instance.rpartition(":")[0] == worker:
                lane = self._lane(one)
                if not lane.blocks:
                    self._offer(lane, topic, payload, 0)
                    return True
                link = await self._place(lane)
                if link is not None:
                    self._send(link, lane, lane.take(topic, payload))
                    return True
        return False

    async def drain(self, grace: float) -> None:
        """Wait at most `grace` seconds until nothing waits for credit: this process is about to end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while any(lane.pending for lane in self._lanes.values()):
                    await self._credit()


class TopicBurst:
    """Messages in a row on one topic, for the same subscribers: encoded once, and framed once per subscriber.

    Args:
        topic: the contract.
        directory: whose state must stay what it is.
        pairs: the subscribers, which all take batches, and the links to them.
        room: messages for which all of them have credit.
    """

    __slots__ = ("_count", "_data", "_directory", "_limit", "_pairs", "_room", "_state", "topic")

    def __init__(self, topic: Topic[Any], directory: Directory, pairs: list[tuple[Lane, Link]], room: int) -> None:
        self.topic = topic
        self._directory = directory
        self._state = directory.state
        self._pairs = pairs
        # Each batch wakes every subscriber: with many of them, larger ones cost less in waking than they delay.
        self._limit = _BATCH if len(pairs) == 1 else 2 * _BATCH
        self._room = room
        self._count = 0
        self._data = bytearray(ARRAY.size)

    def add(self, payload: Any) -> bool:
        """Append a message; return whether it was done."""
        if type(payload) is not self.topic.payload or self._count >= self._room:
            return False
        data = self._data
        size = len(data)
        if size > self._limit or self._directory.state is not self._state:
            return False
        if not codec.append(payload, data) or len(data) > LIMITS.chunk:
            del data[size:]
            return False
        self._count += 1
        if len(data) > self._limit:
            self.close()
        return True

    def close(self) -> None:
        """Send what was collected and take no more."""
        count, self._count, self._room = self._count, 0, 0
        if not count:
            return
        data = self._data
        ARRAY.pack_into(data, 0, ARRAY_MARK, count)
        body = bytes(data)
        for lane, link in self._pairs:
            with contextlib.suppress(ConnectionLost):  # its process is going: at most once
                link.publish_batch(lane.one.number, self.topic.name, body)
                lane.take_many(count)


def _check_size(encoded: bytes) -> None:
    if len(encoded) > LIMITS.message:
        raise FrameTooLarge(len(encoded), LIMITS.message, "message")


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
        self._wake: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Messages {self._inbox.pattern!r}, {len(self._inbox.waiting)} waiting>"

    @property
    def dropped(self) -> int:
        """Messages known to be lost so far; always 0 with overflow="block"."""
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
            SlowConsumer: with overflow="close", messages were lost; what was kept before has been returned.
        """
        together = self._inbox.together
        if len(together) > 1:  # the last of them is left to the inbox, which then gives credit back for all
            return together.pop()
        while not self._inbox.waiting:
            if self._inbox.error is not None and not self._closed:
                self._closed = True
                raise self._inbox.error
            if self._closed:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
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
        for payload in apart(event, link):
            self.arrived(MessageReceived(event.number, event.topic, payload, None, event.received_at), link)

    def letter_of(self, message: IpcMessage[Any] | None, error: Exception) -> dict[str, Any]:
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
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


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
            for payload in apart(event, link):
                self.on_message(link, MessageReceived(event.number, event.topic, payload, None, event.received_at))
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
            message: IpcMessage[Any] | None = None
            try:
                message = await anext(messages)
                result = function(message.payload, message) if wants_message else function(message.payload)
                if isinstance(result, Awaitable):
                    await result
            except StopAsyncIteration:
                return
            except Exception as error:  # the boundary of the user's subscriber
                log.exception("subscriber of %r raised", messages)
                if letters is not None and (message is not None or isinstance(error, InvalidPayload)):
                    letters.add(**messages.letter_of(message, error), worker=worker)

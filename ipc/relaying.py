"""Topics of the async server: the relay's decisions carried out over links, and the server's own subscriptions.

What goes where, and what waits, is in relay.py; this file sends and waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from typing import Any

from smartipc.ipc.contracts import Topic
from smartipc.ipc.control import Subscription
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.errors import ConnectionLost, FrameTooLarge, LocalProtocolError, Overloaded
from smartipc.ipc.hearing import Messages
from smartipc.ipc.protocol.events import (
    ConsumedReceived,
    MessageReceived,
    PublishReceived,
    SubscribeReceived,
    TopicEvent,
    UnsubscribeReceived,
)
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.publications import Outgoing
from smartipc.ipc.relay import HERE, Note, Origin, Relay, asked, is_topic
from smartipc.ipc.subscriptions import Inbox, subscription_of


class Loopback:
    """Stands in the place of a link for the server's own subscriptions."""

    def __init__(self, topics: Topics, identity: Identity) -> None:
        self.peer = identity
        self._topics = topics

    def consumed(self, number: int, count: int) -> None:
        """Give credit back; see drivers.aio.Link."""
        self._topics.relay.acknowledged((HERE, 0, number), count)


class Topics:
    """All topics of one server.

    Args:
        identity: what subscribers see as the sender of what the server publishes.
        limit: largest payload in bytes.
    """

    def __init__(self, identity: Identity, limit: int) -> None:
        self.relay = Relay(self._send, self._writable, self._settled, first_stamp=time.time_ns() // 1000)
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._links: dict[str, Link] = {}
        self._origins: dict[Link, Origin] = {}
        self._own = Origin(HERE, identity.name)
        self._loopback = Loopback(self, identity)
        self._numbers = itertools.count(1)
        self._open: dict[int, Messages[Any]] = {}
        self._progress: asyncio.Future[None] | None = None
        self._ended = False

    def __repr__(self) -> str:
        return f"<Topics of {self._own.sender}: {self.relay!r}>"

    # clients

    def join(self, link: Link, number: int) -> None:
        """Take a client in; `number` is never used twice."""
        key = f"#{number}"
        self._links[key] = link
        self._origins[link] = Origin(key, link.peer.name if link.peer is not None else "")
        link.on_room = self._has_room

    def leave(self, link: Link) -> None:
        """Forget a client and its subscriptions."""
        origin = self._origins.pop(link, None)
        if origin is not None:
            del self._links[origin.name]
            self.relay.leave(origin.name)

    def on_topic(self, link: Link, event: TopicEvent) -> None:
        """Take a client's subscription, its end, or a message."""
        origin = self._origins[link]
        match event:
            case PublishReceived():
                if is_topic(event.topic):
                    self.relay.publish(origin, event.topic, event.payload, headers=event.headers, retain=event.retain)
                else:
                    self.relay.refuse(origin, len(event.payload))
            case SubscribeReceived():
                one = asked(event, origin.name)
                reason = one if isinstance(one, str) else ""
                link.relay(lambda topics: topics.subscribed(event.number, reason))
                if isinstance(one, Subscription):
                    self.relay.subscribe(one)
            case UnsubscribeReceived():
                self.relay.unsubscribe((origin.name, 0, event.number))
            case _:  # SUB_OK: we never subscribe at a client
                pass

    def on_consumed(self, link: Link, event: ConsumedReceived) -> None:
        """Take credit back from a client's subscription."""
        self.relay.acknowledged((self._origins[link].name, 0, event.number), event.count)

    def _has_room(self, link: Link) -> None:
        origin = self._origins.get(link)
        if origin is not None:
            self.relay.flush(origin.name)

    # what the relay decides

    def _send(self, one: Subscription, message: Outgoing, note: Note) -> bool:
        if one.instance == HERE:
            messages = self._open.get(one.number)
            if messages is not None:
                event = MessageReceived(
                    one.number, message.topic, message.payload, note.headers, self._loop.time(), message.stamp,
                    message.sequence, note.sender,
                )  # fmt: skip
                messages.arrived(event, self._loopback)
            return True
        sender = note.sender if note.sender != self._own.sender else ""
        try:
            self._links[one.instance].publish(
                one.number,
                message.topic,
                message.payload,
                headers=note.headers,
                stamp=message.stamp,
                sequence=message.sequence,
                sender=sender,
            )
        except ConnectionLost:
            return True  # it is going: at most once
        except FrameTooLarge:
            return False
        return True

    def _writable(self, one: Subscription) -> bool:
        return one.instance == HERE or not self._links[one.instance].full

    def _settled(self, origin: Origin) -> None:
        if origin is self._own:
            if self._progress is not None and not self._progress.done():
                self._progress.set_result(None)
            self._progress = None
            return
        link = self._links.get(origin.name)
        owed = origin.owed()
        if owed is not None and link is not None:
            with contextlib.suppress(ConnectionLost):
                link.relay(lambda topics: topics.settled(owed))

    # the server itself

    async def publish(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> None:
        """Offer a message to every subscription, and wait until those that block have taken it; see Router.

        Cancelling it ends the waiting, not the message.
        """
        self._check(encoded)
        while not self._own.room:
            await self._change()
        ticket, _count = self.relay.publish(self._own, topic, encoded, headers=headers, retain=retain)
        while not ticket.done and not self._ended:
            await self._change()

    def publish_nowait(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> int:
        """Send to every subscription, or to none; see Router."""
        self._check(encoded)
        blocked = self.relay.blocked(self._own, topic) if self._own.room else HERE
        if blocked is not None:
            raise Overloaded(method=topic, instance=self._name_of(blocked))
        return self.relay.publish(self._own, topic, encoded, headers=headers, retain=retain)[1]

    def subscribe(
        self, topic: Topic[Any] | str, *, queue: str | None, max_pending: int | None, overflow: str
    ) -> Messages[Any]:
        """Make a subscription to what clients publish; see Router."""
        number = next(self._numbers)
        inbox = subscription_of(number, topic, queue=queue, max_pending=max_pending, overflow=overflow)
        return Messages(self, inbox)

    async def register(self, messages: Messages[Any], inbox: Inbox) -> None:
        """Let every later publish reach one of our own subscriptions."""
        if inbox.number in self._open:
            raise LocalProtocolError("this subscription is entered already")
        self._open[inbox.number] = messages
        if self._ended:
            messages.close()
        self.relay.subscribe(inbox.request.subscription(HERE, 0))

    async def unregister(self, number: int) -> None:
        """Forget a subscription."""
        self._open.pop(number, None)
        self.relay.unsubscribe((HERE, 0, number))

    def stop(self) -> None:
        """Let every iteration end after what has arrived, and every publish return."""
        self._ended = True
        for messages in self._open.values():
            messages.close()
        self._settled(self._own)

    def _check(self, encoded: bytes) -> None:
        if len(encoded) > self._limit:
            raise FrameTooLarge(len(encoded), self._limit, "message")

    async def _change(self) -> None:
        if self._progress is None:
            self._progress = self._loop.create_future()
        await asyncio.wait({self._progress})

    def _name_of(self, key: str) -> str:
        link = self._links.get(key)
        return self._own.sender if link is None or link.peer is None else link.peer.name

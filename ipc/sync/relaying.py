"""Topics of the blocking server: the twin of relaying.py, for any number of threads.

One lock is around the relay. Whoever gives credit back may hold the lock of a subscription, which the relay's lock is
taken before elsewhere; so credit is put down, and taken up by whoever has, or next gets, the relay.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from smartipc.ipc.contracts import Topic
from smartipc.ipc.control import Subscription
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import ConnectionLost, FrameTooLarge, LocalProtocolError, Overloaded
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
from smartipc.ipc.sync.exchanging import Desk
from smartipc.ipc.sync.hearing import Messages


class Loopback:
    """Stands in the place of a link for the server's own subscriptions."""

    def __init__(self, topics: Topics, identity: Identity) -> None:
        self.peer = identity
        self._topics = topics

    def consumed(self, number: int, count: int) -> None:
        """Give credit back; see drivers.blocking.Link."""
        self._topics.credit((HERE, 0, number), count)


class Topics:
    """All topics of one server.

    Args:
        desk: reads, and waits.
        identity: what subscribers see as the sender of what the server publishes.
        limit: largest payload in bytes.
    """

    def __init__(self, desk: Desk, identity: Identity, limit: int) -> None:
        self.relay = Relay(self._send, self._writable, self._settled, first_stamp=time.time_ns() // 1000)
        self._desk = desk
        self._limit = limit
        self._lock = threading.RLock()
        self._credit: deque[tuple[tuple[str, int, int], int]] = deque()
        self._links: dict[str, Link] = {}
        self._origins: dict[Link, Origin] = {}
        self._own = Origin(HERE, identity.name)
        self._loopback = Loopback(self, identity)
        self._numbers = itertools.count(1)
        self._open: dict[int, Messages[Any]] = {}
        self._ended = False
        self.wait = desk.wait

    def __repr__(self) -> str:
        return f"<Topics of {self._own.sender}: {self.relay!r}>"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            yield
        self._take_credit()

    def credit(self, key: tuple[str, int, int], count: int) -> None:
        """Take credit back, now or as soon as the relay is free."""
        self._credit.append((key, count))
        self._take_credit()

    def _take_credit(self) -> None:
        # Whoever finds the lock taken may leave: its holder looks here after it has released it.
        while self._credit and self._lock.acquire(blocking=False):
            try:
                with contextlib.suppress(IndexError):
                    self.relay.acknowledged(*self._credit.popleft())
            finally:
                self._lock.release()

    # clients

    def join(self, link: Link, number: int) -> None:
        """Take a client in; `number` is never used twice."""
        key = f"#{number}"
        with self._locked():
            self._links[key] = link
            self._origins[link] = Origin(key, link.peer.name if link.peer is not None else "")

    def leave(self, link: Link) -> None:
        """Forget a client and its subscriptions."""
        with self._locked():
            origin = self._origins.pop(link, None)
            if origin is not None:
                del self._links[origin.name]
                self.relay.leave(origin.name)

    def on_topic(self, link: Link, event: TopicEvent) -> None:
        """Take a client's subscription, its end, or a message."""
        with self._locked():
            origin = self._origins.get(link)
            if origin is None:
                return  # it is gone
            match event:
                case PublishReceived():
                    if is_topic(event.topic):
                        self.relay.publish(
                            origin, event.topic, event.payload, headers=event.headers, retain=event.retain
                        )
                    else:
                        self.relay.refuse(origin, len(event.payload))
                case SubscribeReceived():
                    one = asked(event, origin.name)
                    reason = one if isinstance(one, str) else ""
                    with contextlib.suppress(ConnectionLost):
                        link.relay(lambda topics: topics.subscribed(event.number, reason), wait=False)
                        self._desk.await_room(link)
                    if isinstance(one, Subscription):
                        self.relay.subscribe(one)
                case UnsubscribeReceived():
                    self.relay.unsubscribe((origin.name, 0, event.number))
                case _:  # SUB_OK: we never subscribe at a client
                    pass

    def on_consumed(self, link: Link, event: ConsumedReceived) -> None:
        """Take credit back from a client's subscription."""
        origin = self._origins.get(link)
        if origin is not None:
            self.credit((origin.name, 0, event.number), event.count)

    def has_room(self, link: Link) -> None:
        """Send what waited until a link takes bytes again."""
        with self._locked():
            origin = self._origins.get(link)
            if origin is not None:
                self.relay.flush(origin.name)

    # what the relay decides, under its lock

    def _send(self, one: Subscription, message: Outgoing, note: Note) -> bool:
        if one.instance == HERE:
            messages = self._open.get(one.number)
            if messages is not None:
                event = MessageReceived(
                    one.number, message.topic, message.payload, note.headers, time.monotonic(), message.stamp,
                    message.sequence, note.sender,
                )  # fmt: skip
                if messages.arrived(event, self._loopback):
                    self._desk.post(messages.deliver)
                self._desk.wake()
            return True
        sender = note.sender if note.sender != self._own.sender else ""
        link = self._links[one.instance]
        try:
            link.publish(
                one.number,
                message.topic,
                message.payload,
                headers=note.headers,
                stamp=message.stamp,
                sequence=message.sequence,
                sender=sender,
                wait=False,
            )
        except ConnectionLost:
            return True  # it is going: at most once
        except FrameTooLarge:
            return False
        self._desk.await_room(link)
        return True

    def _writable(self, one: Subscription) -> bool:
        return one.instance == HERE or not self._links[one.instance].stuck

    def _settled(self, origin: Origin) -> None:
        if origin is self._own:
            self._desk.wake()
            return
        link = self._links.get(origin.name)
        owed = origin.owed()
        if owed is not None and link is not None:
            with contextlib.suppress(ConnectionLost):
                link.relay(lambda topics: topics.settled(owed), wait=False)
                self._desk.await_room(link)

    # the server itself

    def publish(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> None:
        """Offer a message to every subscription, and wait until those that block have taken it; see Router.

        An interrupt ends the waiting, not the message.
        """
        self._desk.require_own()
        self._check(encoded)
        if not self._own.room:
            self._desk.wait(lambda: self._own.room or self._ended)
        with self._locked():
            ticket, _count = self.relay.publish(self._own, topic, encoded, headers=headers, retain=retain)
        if not ticket.done:
            self._desk.wait(lambda: ticket.done or self._ended)

    def publish_nowait(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> int:
        """Send to every subscription, or to none; see Router."""
        self._desk.require_own()
        self._check(encoded)
        self._desk.read()
        with self._locked():
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

    def register(self, messages: Messages[Any], inbox: Inbox) -> None:
        """Let every later publish reach one of our own subscriptions."""
        self._desk.require_own()
        if inbox.number in self._open:
            raise LocalProtocolError("this subscription is entered already")
        self._open[inbox.number] = messages
        if self._ended:
            messages.close()
        with self._locked():
            self.relay.subscribe(inbox.request.subscription(HERE, 0))

    def unregister(self, number: int) -> None:
        """Forget a subscription."""
        self._open.pop(number, None)
        with self._locked():
            self.relay.unsubscribe((HERE, 0, number))

    def stop(self) -> None:
        """Let every iteration end after what has arrived, and every publish return."""
        self._ended = True
        for messages in list(self._open.values()):
            messages.close()
        self._desk.wake()

    def _check(self, encoded: bytes) -> None:
        if len(encoded) > self._limit:
            raise FrameTooLarge(len(encoded), self._limit, "message")

    def _name_of(self, key: str) -> str:
        link = self._links.get(key)
        return self._own.sender if link is None or link.peer is None else link.peer.name

"""Topics of a server without a supervisor, as bookkeeping: who subscribes, what waits for whom, what is retained.

Every message is offered to all its subscriptions at once, so a slow one delays no other. What a subscription that
blocks has no room for waits here and holds its publisher's credit; as each publisher may have only so much unsettled
(protocol.topics), that is bounded. One that drops never holds anybody, see publications.Lane. A publisher's own
subscriptions do not get what it publishes. Shared by both flavours: no I/O, no waiting, no locks.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, get_args

from smartipc.ipc.contracts import Topic, check_pattern
from smartipc.ipc.control import Overflow, Subscription
from smartipc.ipc.protocol.events import SubscribeReceived
from smartipc.ipc.protocol.topics import OWED, OWED_BYTES, WINDOW, WINDOW_BYTES
from smartipc.ipc.publications import Lane, Outgoing, member
from smartipc.ipc.routing.subscribers import Key, Subscribers, key_of
from smartipc.ipc.routing.topics import matches

log = logging.getLogger("smartipc.topics")

MOST_RETAINED = 10_000
"""Topics that may have a retained value."""
MOST_RETAINED_BYTES = 64 * 1024 * 1024
WIDEST = 65_536
"""Largest `max_pending` that a client may ask for."""


HERE = "$here"
"""Key of the server itself among the publishers and subscribers."""


class Ticket:
    """One published message until everybody that blocks has taken it. `left` counts those, and the publishing."""

    __slots__ = ("left", "origin", "size")

    def __init__(self, origin: Origin, size: int) -> None:
        self.origin = origin
        self.size = size
        self.left = 1

    @property
    def done(self) -> bool:
        """Whether nobody's room is waited for any more."""
        return self.left == 0


class Origin:
    """One publisher: a client, or the server itself.

    Args:
        name: its key here, unique.
        sender: what subscribers see.
    """

    __slots__ = ("acknowledged", "bytes", "name", "owed_bytes", "sender", "settled", "tickets")

    def __init__(self, name: str, sender: str) -> None:
        self.name = name
        self.sender = sender
        self.tickets: deque[Ticket] = deque()
        self.bytes = 0
        self.settled = 0
        self.acknowledged = 0
        self.owed_bytes = 0

    def __repr__(self) -> str:
        return f"<Origin {self.name}, {len(self.tickets)} unsettled>"

    @property
    def room(self) -> bool:
        """Whether one more message may be published; enforced by the protocol for clients."""
        return len(self.tickets) < WINDOW and self.bytes < WINDOW_BYTES

    def owed(self) -> int | None:
        """Return the count to tell the publisher now, or None."""
        if self.settled - self.acknowledged >= OWED or self.owed_bytes >= OWED_BYTES:
            self.acknowledged = self.settled
            self.owed_bytes = 0
            return self.settled
        return None


class Note(NamedTuple):
    """What travels with a message through the lanes."""

    sender: str
    headers: dict[str, str] | None
    ticket: Ticket | None


class _Last(NamedTuple):
    payload: bytes
    stamp: int
    note: Note


class Relay:
    """All topics of one server.

    Args:
        send: passes a message on to a subscription; False if it is too large for that peer.
        writable: whether a subscription's peer takes bytes now; `flush` when it does again.
        settled: told of a publisher some of whose messages were settled.
        first_stamp: stamps of retained values rise from here, and must do so over restarts.
    """

    def __init__(
        self,
        send: Callable[[Subscription, Outgoing, Note], bool],
        writable: Callable[[Subscription], bool],
        settled: Callable[[Origin], None],
        first_stamp: int = 1,
    ) -> None:
        self.subscribers = Subscribers()
        self._send_to = send
        self._writable = writable
        self._settled = settled
        self._lanes: dict[Key, Lane] = {}
        self._stamps = itertools.count(first_stamp)
        self._retained: dict[str, _Last] = {}
        self._retained_bytes = 0
        self._turn = 0

    def __repr__(self) -> str:
        waiting = sum(len(lane.pending) for lane in self._lanes.values())
        return f"<Relay {len(self.subscribers)} subscriptions, {waiting} waiting, {len(self._retained)} retained>"

    @property
    def waiting(self) -> int:
        """Messages that wait for a subscription."""
        return sum(len(lane.pending) for lane in self._lanes.values())

    # subscriptions

    def subscribe(self, one: Subscription) -> None:
        """Let every later publish reach a subscription, and first the last retained values, unless it is shared."""
        self.subscribers.add(one)
        lane = self._lanes[key_of(one)] = Lane(one)
        if one.queue:
            return
        for topic, last in sorted(self._retained.items(), key=lambda item: item[1].stamp):
            if matches(one.pattern, topic):
                self._offer(lane, topic, last.payload, last.stamp, last.note)

    def unsubscribe(self, key: Key) -> None:
        """Forget a subscription: what waited for it goes to another member of its queue, or nowhere."""
        lane = self._lanes.pop(key, None)
        self.subscribers.remove(key)
        if lane is None:
            return
        waiting = list(lane.pending.values())
        lane.pending.clear()
        for message in waiting:
            if lane.one.queue:
                self._share(lane.one.queue, message.topic, message.payload, message.stamp, message.note)
            if lane.blocks:
                self._release(message.note)

    def leave(self, instance: str) -> None:
        """Forget the subscriptions of a client that is gone."""
        for key in [key for key in self._lanes if key[0] == instance]:
            self.unsubscribe(key)

    # publishing

    def blocked(self, origin: Origin, topic: str) -> str | None:
        """Return who would have to be waited for, None if nobody."""
        targets = self.subscribers.targets(topic)
        for one in targets.plain:
            lane = self._lanes[key_of(one)]
            if one.instance != origin.name and lane.blocks and not self._room(lane):
                return one.instance
        for _queue, members in targets.queues:
            lanes = [self._lanes[key_of(one)] for one in members if one.instance != origin.name]
            if lanes and not any(self._room(lane) or not lane.blocks for lane in lanes):
                return lanes[0].one.instance
        return None

    def publish(
        self,
        origin: Origin,
        topic: str,
        payload: bytes,
        *,
        headers: dict[str, str] | None = None,
        retain: bool = False,
    ) -> tuple[Ticket, int]:
        """Offer a message to all its subscriptions; return its ticket, and to how many it goes."""
        ticket = Ticket(origin, len(payload))
        origin.tickets.append(ticket)
        origin.bytes += ticket.size
        note = Note(origin.sender, headers, ticket)
        stamp = self._retain(topic, payload, note) if retain else 0
        targets = self.subscribers.targets(topic)
        count = 0
        for one in targets.plain:
            if one.instance != origin.name:
                self._offer(self._lanes[key_of(one)], topic, payload, stamp, note)
                count += 1
        for queue, _members in targets.queues:
            count += self._share(queue, topic, payload, stamp, note)
        self._release(note)
        return ticket, count

    def refuse(self, origin: Origin, size: int) -> None:
        """Settle a message that goes nowhere."""
        ticket = Ticket(origin, size)
        origin.tickets.append(ticket)
        origin.bytes += size
        self._release(Note(origin.sender, None, ticket))

    def _retain(self, topic: str, payload: bytes, note: Note) -> int:
        before = self._retained.get(topic)
        size = self._retained_bytes + len(payload) - (len(before.payload) if before is not None else 0)
        if (before is None and len(self._retained) >= MOST_RETAINED) or size > MOST_RETAINED_BYTES:
            log.warning("topic.not_retained: %d values of %d bytes are kept", len(self._retained), self._retained_bytes)
            return 0
        stamp = next(self._stamps)
        self._retained_bytes = size
        self._retained[topic] = _Last(payload, stamp, note._replace(ticket=None))
        return stamp

    def _share(self, queue: str, topic: str, payload: bytes, stamp: int, note: Note) -> int:
        """Offer a message to one member of a queue; return to how many it goes."""
        publisher = note.ticket.origin.name if note.ticket is not None else ""
        members = [
            one for one in dict(self.subscribers.targets(topic).queues).get(queue, ()) if one.instance != publisher
        ]
        if not members:
            return 0
        self._turn += 1
        one = member(members, lambda one: self._lanes[key_of(one)], self._turn)
        if one is None:
            one = min(members, key=lambda one: self._lanes[key_of(one)].load)
        self._offer(self._lanes[key_of(one)], topic, payload, stamp, note)
        return 1

    # lanes

    def acknowledged(self, key: Key, count: int) -> None:
        """Take credit back, and send what waited for it."""
        lane = self._lanes.get(key)
        if lane is not None and lane.acknowledged(count):
            self._flush(lane)

    def flush(self, instance: str) -> None:
        """Send what waited until a peer takes bytes again."""
        for lane in [lane for key, lane in self._lanes.items() if key[0] == instance]:
            self._flush(lane)

    def _room(self, lane: Lane) -> bool:
        return lane.room and self._writable(lane.one)

    def _offer(self, lane: Lane, topic: str, payload: bytes, stamp: int, note: Note) -> None:
        if self._room(lane):
            self._send(lane, lane.take(topic, payload, stamp, note))
        elif lane.blocks:
            if note.ticket is not None:
                note.ticket.left += 1
            lane.keep(topic, payload, stamp, anyway=True, note=note)
        else:
            lane.keep(topic, payload, stamp, note=note)

    def _flush(self, lane: Lane) -> None:
        while self._writable(lane.one) and (message := lane.next()) is not None:
            self._send(lane, message)
            if lane.blocks:
                self._release(message.note)

    def _send(self, lane: Lane, message: Outgoing) -> None:
        note = message.note if message.note is not None else Note("", None, None)
        if not self._send_to(lane.one, message, note):
            lane.give_back(message)
            log.warning("message on %s is too large for %s", message.topic, lane.one.instance)

    def _release(self, note: Note) -> None:
        ticket = note.ticket
        if ticket is None:
            return
        ticket.left -= 1
        origin = ticket.origin
        before = origin.settled
        while origin.tickets and origin.tickets[0].done:
            size = origin.tickets.popleft().size
            origin.bytes -= size
            origin.owed_bytes += size
            origin.settled += 1
        if origin.settled != before:
            self._settled(origin)


@functools.lru_cache(maxsize=4096)
def is_topic(name: str) -> bool:
    """Tell whether a client may publish under a name."""
    try:
        Topic(name, object)
    except ValueError:
        return False
    return True


def asked(event: SubscribeReceived, instance: str) -> Subscription | str:
    """Return what a client asks for as a subscription, or why it cannot have it."""
    if not 1 <= event.window <= WIDEST:
        return f"max_pending must be from 1 to {WIDEST}, not {event.window}"
    for overflow in get_args(Overflow):
        if overflow == event.overflow:
            break
    else:
        return f"unknown overflow policy {event.overflow[:40]!r}"
    try:
        check_pattern(event.pattern)
    except ValueError as error:
        return str(error)
    return Subscription(instance, 0, event.number, event.pattern, event.window, event.queue, overflow)

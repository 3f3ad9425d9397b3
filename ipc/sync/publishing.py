"""The publisher's end of topics in the blocking handle: whom a message goes to, with credit.

The counting and the policies are in publications.py; this file sends and waits. Subscribing is in hearing.py.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from typing import Any

from smartipc.ipc.contracts import Topic
from smartipc.ipc.control import Subscription
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.drivers.inheritance import in_child
from smartipc.ipc.errors import (
    ConnectFailed,
    ConnectionLost,
    FrameTooLarge,
    Overloaded,
)
from smartipc.ipc.gathering import Gathering
from smartipc.ipc.links import LIMITS
from smartipc.ipc.protocol.events import ConsumedReceived
from smartipc.ipc.publications import Lane, Outgoing, member
from smartipc.ipc.retained import Retained
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.routing.subscribers import Key, key_of
from smartipc.ipc.sync.call import Life
from smartipc.ipc.sync.calling import DIAL_AGAIN, Caller
from smartipc.ipc.sync.flushing import Flood, Flusher
from smartipc.ipc.sync.serving import Server

_LEAST = 16
"""Messages for which a burst is worth while."""
_BATCH = 16 * 1024
"""Bytes of a batch: a part of a window, so that the subscriber consumes one while the next is made."""
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
        self._burst: TopicBurst | None = None
        self._flood = Flood()
        self._flusher = Flusher(self._look)
        in_child(self, Publisher._leave_to_parent)
        caller.on_credit = self.consumed
        caller.on_lost = self.lost

    def __repr__(self) -> str:
        return f"<Publisher to {len(self._lanes)} subscriptions>"

    def publish(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> None:
        """Send to every subscription, waiting for credit of those that block; see Endpoint.publish."""
        self._caller.require_own()
        self.end_burst()
        _check_size(encoded)
        stamp = self._retained.put(topic, encoded, headers) if retain else 0
        targets = self._directory.state.subscribed(topic)
        plain = list(targets.plain)
        for one in plain:
            lane = self._lane(one)
            if lane.blocks:
                while not (sent := self._sent(lane, topic, encoded, stamp, headers)) and not self._over(lane):
                    pass
                if not sent:  # it left while we waited: whoever replaces it may have come meanwhile
                    plain += self._directory.state.successors(one, topic, plain)
            else:
                self._offer(lane, topic, encoded, stamp, headers)
        for queue, _members in targets.queues:
            while not self._shared(queue, topic, encoded, stamp, headers):
                pass

    def add(self, topic: Topic[Any] | str, payload: Any) -> bool:
        """Let a message join those before it, if it is one of many in a row; return whether it was done.

        It leaves with a full batch, with whatever the handle says or waits for next, or by the flusher.
        """
        burst = self._burst
        if burst is None or topic is not burst.topic:
            return False
        with self._lock:
            if burst is not self._burst or not burst.add(payload):
                return False
        if burst.stuck:
            for link in burst.stuck_links():
                link.flush_all()
        return True

    def follow(self, topic: Topic[Any]) -> None:
        """Note that a message was published the long way; begin to gather if there is no end of them."""
        if self._flusher.closed or not self._flood.rises(topic, time.monotonic()):
            return
        state = self._directory.state
        targets = state.subscribed(topic.name)
        if targets.queues or not targets.plain:
            return
        pairs: list[tuple[Lane, Link]] = []
        for one in targets.plain:
            lane = self._lane(one)
            link = self._link(lane) if lane.blocks and not state.leaving(one) else None
            if link is None or link.closed or link.broken or link.stuck or not link.connection.batching:
                return
            pairs.append((lane, link))
        with self._lock:
            room = min(lane.left if lane.room else 0 for lane, _link in pairs)
            if self._burst is None and room >= _LEAST and self._directory.state is state:
                self._burst = TopicBurst(topic, self._directory, pairs, room)
                self._flusher.wake()

    def end_burst(self, *, wait: bool = True, until: float | None = None) -> None:
        """Let what was gathered leave: what is said next comes after it. Waits for sockets that are full, or not."""
        if self._burst is None:
            return
        ended = self._ended()
        if ended is not None and wait:
            for link in ended.stuck_links():
                link.flush_all(until)

    def _ended(self) -> TopicBurst | None:
        """End the burst and return it; None if another thread did so."""
        with self._lock:
            burst, self._burst = self._burst, None
            if burst is not None:
                burst.close()
        return burst

    def _look(self) -> bool:
        """Let leave what was gathered since the last look; end a burst that gathers nothing more. Tell if one lasts."""
        with self._lock:
            burst = self._burst
            if burst is None:
                return False
            if burst.count:
                burst.leave()
            elif not burst.stuck:
                self.end_burst(wait=False)
                return False
            for link in burst.stuck_links():
                link.flush()
        return True

    def close(self) -> None:
        """Gather no more."""
        self.end_burst(wait=False)
        self._flusher.close()

    def _leave_to_parent(self) -> None:
        """Gather nothing in a forked child: what waits is the parent's to send."""
        self._burst = None

    def _sent(
        self,
        lane: Lane,
        topic: str,
        encoded: bytes,
        stamp: int,
        headers: dict[str, str] | None,
        *,
        anyway: bool = False,
    ) -> bool:
        """Send to one subscription, or wait a little for what keeps it from being sent."""
        state = self._directory.state
        entry = state.life(lane.one.instance, lane.one.generation)
        if entry is None or (state.leaving(lane.one) and not anyway):
            return False
        try:
            link = self._caller.link_to(entry)
        except (ConnectFailed, BlockingIOError):
            self._caller.change(state, DIAL_AGAIN)
            return False
        message = self._take(lane, topic, encoded, stamp, headers)
        if message is not None:
            self._send(link, lane, message, wait=True)
            return True
        self._caller.wait(link, lambda: link.closed or lane.room or self._over(lane))
        self._flood.waited = True
        return False

    def _shared(self, queue: str, topic: str, encoded: bytes, stamp: int, headers: dict[str, str] | None) -> bool:
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
                self._offer(lane, topic, encoded, stamp, headers)
                return True
            return self._sent(lane, topic, encoded, stamp, headers, anyway=True)  # all of them leave, if this one does
        if links:
            self._caller.wait_any(list(links.values()), lambda: self._member(members) is not None)
        else:
            self._caller.change(self._directory.state, DIAL_AGAIN)
        return False

    def publish_nowait(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> int:
        """Send to every subscription or to none; see Endpoint.publish_nowait."""
        self._caller.require_own()
        self.end_burst()
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
            if lane.blocks and self._over(lane):
                link = None
            elif lane.blocks:
                if link is None:
                    raise Overloaded(method=topic, instance=lane.one.instance)
                if not lane.room:
                    link.pump(0)  # nobody else reads credits of a worker that only publishes
                if not link.flush() or not lane.room:
                    raise Overloaded(method=topic, instance=lane.one.instance)
            links.append((lane, link))
        stamp = self._retained.put(topic, encoded, headers) if retain else 0
        sent = 0
        for lane, link in links:
            if not lane.blocks:
                self._offer(lane, topic, encoded, stamp, headers)
                sent += 1
            elif link is not None and (message := self._take(lane, topic, encoded, stamp, headers)) is not None:
                self._send(link, lane, message, wait=False)
                sent += 1
        return sent

    def _member(self, members: tuple[Subscription, ...]) -> Subscription | None:
        with self._lock:
            self._turn += 1
            return member(self._directory.state.staying(members), self._lane, self._turn)

    def _lane(self, one: Subscription) -> Lane:
        key = key_of(one)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes.setdefault(key, Lane(one))
        return lane

    def _gone(self, lane: Lane) -> bool:
        return lane.one not in self._directory.state.subscriptions

    def _over(self, lane: Lane) -> bool:
        """Tell whether a subscription is not to be sent to: it is over, or its life has been told to stop.

        The supervisor stops a life only when every publisher knows, so what was sent before, it reads.
        """
        return self._directory.state.leaving(lane.one) or self._gone(lane)

    def _link(self, lane: Lane) -> Link | None:
        """Return the link to a lane's life, None if it cannot be had now."""
        entry = self._directory.state.life(lane.one.instance, lane.one.generation)
        if entry is None:
            return None
        try:
            return self._caller.link_to(entry)
        except (ConnectFailed, BlockingIOError):
            return None

    def _take(
        self, lane: Lane, topic: str, encoded: bytes, stamp: int, headers: dict[str, str] | None
    ) -> Outgoing | None:
        """Use one credit up, if there is one."""
        with self._lock:
            return lane.take(topic, encoded, stamp, headers) if lane.room else None

    def _send(self, link: Link, lane: Lane, message: Outgoing, *, wait: bool) -> None:
        try:
            link.publish(
                lane.one.number,
                message.topic,
                message.payload,
                headers=message.note,
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

    def _offer(self, lane: Lane, topic: str, encoded: bytes, stamp: int, headers: dict[str, str] | None) -> None:
        """Send to a subscription that drops, or let the message wait there; nobody waits for it."""
        link = self._link(lane)
        if link is not None and not lane.room:
            link.pump(0)
        with self._lock:
            if link is not None and lane.room:
                self._send(link, lane, lane.take(topic, encoded, stamp, headers), wait=False)
            else:
                lane.keep(topic, encoded, stamp, note=headers)
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
            if self._burst is not None:
                self._burst.forget(life)
            for key, lane in list(self._lanes.items()):
                if key[:2] == life:
                    lane.renew()

    def directory_changed(self) -> None:
        """Forget subscriptions that are over, and pass on what waited for a member of a queue.

        What was gathered leaves before the supervisor learns that we know of the change: it may stop a life by that.
        """
        self.end_burst(wait=False)
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
                lane.keep(message.topic, message.payload, message.stamp, anyway=True, note=message.note)
            self._flush(lane)

    def drain(self, until: float) -> None:
        """Send what was gathered, and wait at most until that time for what waits for credit: the end is near."""
        self.end_burst(until=until)
        while pending := [lane for lane in list(self._lanes.values()) if lane.pending]:
            links = [link for lane in pending if (link := self._link(lane)) is not None]
            left = until - time.monotonic()
            if left <= 0 or not links:
                return
            self._caller.wait_any(links, functools.partial(_settled, pending), left)


class TopicBurst(Gathering):
    """A gathering with credit set aside for it. For one thread at a time.

    Args:
        topic: the contract.
        directory: see Gathering.
        pairs: the subscribers, which all take batches, and the links to them.
        room: messages for which all of them have credit.
    """

    __slots__ = ("_left", "_pairs", "stuck")

    def __init__(self, topic: Topic[Any], directory: Directory, pairs: list[tuple[Lane, Link]], room: int) -> None:
        super().__init__(topic, directory, room, _BATCH)
        self._pairs = pairs
        self._left = room
        self.stuck = False
        """Whether a socket did not take everything; perhaps it has by now."""
        for lane, _link in pairs:
            lane.take_many(room)

    def leave(self) -> None:
        """Write what was gathered, as far as the sockets take it."""
        count, body = self.take()
        self._left -= count
        for lane, link in self._pairs:
            try:
                link.publish_batch(lane.one.number, self.topic.name, body, headers=self.headers)
            except ConnectionLost:  # its process is going: at most once
                self.room = 0
        self.stuck = any(link.stuck for _lane, link in self._pairs)

    def close(self) -> None:
        """Write what was gathered, take no more, and give back the credit that was not needed."""
        self.room = 0
        if self.count:
            self.leave()
        left, self._left = self._left, 0
        for lane, _link in self._pairs:
            lane.give_back_many(left)

    def stuck_links(self) -> list[Link]:
        """Return the links whose sockets have not taken everything."""
        stuck = [link for _lane, link in self._pairs if link.stuck]
        self.stuck = bool(stuck)
        return stuck

    def forget(self, life: Life) -> None:
        """Send nothing more to a life whose link is gone, and count its credit no more."""
        self._pairs = [pair for pair in self._pairs if key_of(pair[0].one)[:2] != life]


def _settled(lanes: list[Lane]) -> bool:
    return not any(lane.pending for lane in lanes)


def _check_size(encoded: bytes) -> None:
    if len(encoded) > LIMITS.message:
        raise FrameTooLarge(len(encoded), LIMITS.message, "message")

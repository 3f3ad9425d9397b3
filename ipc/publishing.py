"""The publisher's end of topics in the async handle: whom a message goes to, with credit, and bursts.

The counting and the policies are in publications.py; this file sends and waits. Subscribing is in hearing.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from typing import Any

from smartipc.ipc.calling import DIAL_AGAIN, Caller
from smartipc.ipc.contracts import Topic
from smartipc.ipc.control import Subscription
from smartipc.ipc.drivers.aio import Link
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
        """Whether something was published in this loop turn."""
        self._corked = False
        """Whether a publisher went on in this loop turn that had waited for credit, so that more will follow."""

    def __repr__(self) -> str:
        return f"<Publisher to {len(self._lanes)} subscriptions>"

    async def publish(self, name: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> None:
        """Send to every subscription, waiting for credit of those that block; see Endpoint.publish."""
        self.flush()
        _check_size(encoded)
        stamp = self._retained.put(name, encoded, headers) if retain else 0
        targets = self._directory.state.subscribed(name)
        plain = list(targets.plain)
        for one in plain:
            lane = self._lane(one)
            if lane.blocks:
                link = await self._place(lane)
                if link is None:  # it left while we waited: whoever replaces it may have come meanwhile
                    plain += self._directory.state.successors(one, name, plain)
                else:
                    if self._corked:
                        link.cork()
                    self._send(link, lane, lane.take(name, encoded, stamp, headers))
                    await link.drained()
            else:
                self._offer(lane, name, encoded, stamp, headers)
        for queue, _members in targets.queues:
            link = await self._share(queue, name, encoded, stamp, headers)
            if link is not None:
                await link.drained()

    def publish_nowait(self, name: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> int:
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
            if lane.blocks and self._over(lane):
                link = None
            elif lane.blocks and (link is None or not lane.room):
                raise Overloaded(method=name, instance=one.instance)
            links.append((lane, link))
        stamp = self._retained.put(name, encoded, headers) if retain else 0
        for lane, link in links:
            if not lane.blocks:
                self._offer(lane, name, encoded, stamp, headers)
            elif link is not None:
                self._send(link, lane, lane.take(name, encoded, stamp, headers))
        return sum(1 for lane, link in links if link is not None or not lane.blocks)

    def burst(self, topic: Topic[Any]) -> TopicBurst | None:
        """Begin a burst if this is not the first message of the loop turn, and every subscriber takes batches."""
        if not self._busy:
            self._begin_turn()
            return None
        state = self._directory.state
        targets = state.subscribed(topic.name)
        if targets.queues or not targets.plain:
            return None
        pairs: list[tuple[Lane, Link]] = []
        room = sys.maxsize
        for one in targets.plain:
            lane, link = self._lane(one), None
            if lane.blocks and lane.room and not state.leaving(one):
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

    def _begin_turn(self) -> None:
        self._busy = True
        asyncio.get_running_loop().call_soon(self._end_of_turn)

    def _end_of_turn(self) -> None:
        self._busy = self._corked = False
        self.flush()

    async def _place(self, lane: Lane) -> Link | None:
        """Wait for credit of a subscription and return the link to it; None when its life or itself is over."""
        while not lane.room and not self._over(lane):
            await self._credit()
        if self._directory.state.leaving(lane.one):
            return None
        entry = self._directory.state.life(lane.one.instance, lane.one.generation)
        if entry is None:
            return None
        return await self._caller.link_when_possible(entry)

    async def _share(
        self, queue: str, topic: str, payload: bytes, stamp: int, headers: dict[str, str] | None
    ) -> Link | None:
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
                self._offer(lane, topic, payload, stamp, headers)
                return None
            link = self._link(lane)
            if link is not None:
                self._send(link, lane, lane.take(topic, payload, stamp, headers))
                return link
            await asyncio.sleep(DIAL_AGAIN)

    async def _credit(self) -> None:
        self._more.clear()
        await self._more.wait()
        self._corked = True
        if not self._busy:
            self._begin_turn()

    def _member(self, members: tuple[Subscription, ...]) -> Subscription | None:
        self._turn += 1
        return member(self._directory.state.staying(members), self._lane, self._turn)

    def _lane(self, one: Subscription) -> Lane:
        key = key_of(one)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(one)
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

    def _send(self, link: Link, lane: Lane, message: Outgoing) -> None:
        try:
            link.publish(
                lane.one.number,
                message.topic,
                message.payload,
                headers=message.note,
                stamp=message.stamp,
                sequence=message.sequence,
            )
        except ConnectionLost:
            return  # its process is going: at most once
        except FrameTooLarge:  # for this peer; the others take it
            lane.give_back(message)
            log.warning("message on %s is too large for %s", message.topic, lane.one.instance)

    def _offer(
        self, lane: Lane, topic: str, payload: bytes, stamp: int = 0, headers: dict[str, str] | None = None
    ) -> None:
        """Send to a subscription that drops, or let the message wait there; nobody waits for it."""
        link = self._link(lane)
        if link is not None and lane.room:
            self._send(link, lane, lane.take(topic, payload, stamp, headers))
            return
        lane.keep(topic, payload, stamp, note=headers)
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
            lane.keep(message.topic, message.payload, message.stamp, anyway=True, note=message.note)
            self._flush(lane)

    async def send_again(self, worker: str, pattern: str, topic: str, payload: bytes) -> bool:
        """Send a message to one subscription of a worker, and no other; tell whether there is one."""
        found = self._directory.state.subscribed(topic)
        every = [*found.plain, *(one for _, members in found.queues for one in members)]
        for one in every:
            if one.pattern == pattern and one.instance.rpartition(":")[0] == worker:
                lane = self._lane(one)
                if not lane.blocks:
                    self._offer(lane, topic, payload)
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


class TopicBurst(Gathering):
    """A gathering that goes on for as long as credit and the loop turn last.

    Args:
        topic: the contract.
        directory: see Gathering.
        pairs: the subscribers, which all take batches, and the links to them.
        room: messages for which all of them have credit.
    """

    __slots__ = ("_pairs",)

    def __init__(self, topic: Topic[Any], directory: Directory, pairs: list[tuple[Lane, Link]], room: int) -> None:
        # Each batch wakes every subscriber: with many of them, larger ones cost less in waking than they delay.
        super().__init__(topic, directory, room, _BATCH if len(pairs) == 1 else 2 * _BATCH)
        self._pairs = pairs

    def leave(self) -> None:
        """Send what was gathered, at once: it is enough to work on while the next batch is made."""
        self._send()
        for _lane, link in self._pairs:
            link.burst()

    def close(self) -> None:
        """Send what was gathered and take no more."""
        self.room = 0
        if self.count:
            self._send()

    def _send(self) -> None:
        count, body = self.take()
        for lane, link in self._pairs:
            try:
                link.publish_batch(lane.one.number, self.topic.name, body, headers=self.headers)
            except ConnectionLost:  # its process is going: at most once
                self.room = 0
                continue
            lane.take_many(count)
            if link.congested:
                self.room = 0


def _check_size(encoded: bytes) -> None:
    if len(encoded) > LIMITS.message:
        raise FrameTooLarge(len(encoded), LIMITS.message, "message")

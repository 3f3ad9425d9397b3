"""The subscriber's end of topics, as bookkeeping: what has arrived, what is dropped, and the credit owed for it.

One that blocks acknowledges what was consumed, so that its publishers wait for the reader. One that drops acknowledges
what has arrived, and keeps at most `max_pending` of it by its policy; every loss, here or at a publisher, is counted
into `dropped` and into `missed` of the message behind it. Counts are per link, absolute. No I/O, no waiting, no locks.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from smartipc.ipc.contracts import Topic, check_count, check_pattern
from smartipc.ipc.control import Overflow, SubscribeRequest, flight
from smartipc.ipc.errors import InvalidPayload, LocalProtocolError, SlowConsumer
from smartipc.ipc.message import NO_HEADERS, IpcMessage, SharedHeaders, epoch
from smartipc.ipc.protocol.events import MessageReceived, MessagesReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.tracing import TRACE_HEADER
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.attachments import size_of
from smartipc.ipc.wire.text import sentence_of

log = logging.getLogger("smartipc.topics")

DEFAULT_WINDOW = 1024
"""Messages kept unless `max_pending` says otherwise."""
_SHARE = 2
"""Parts of a window: credit for one is given back when it is consumed, while the publisher fills the next."""
_OWED_BYTES = 256 * 1024
"""Payload bytes that are acknowledged at once, whatever their number."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Stands in the place of a link for a retained message, whose publisher may be gone."""

    peer: Identity


@dataclass(slots=True)
class _Origin:
    """What came over one link: absolute counts, and the last number seen of a publisher that may drop."""

    settled: int = 0
    acknowledged: int = 0
    owed_bytes: int = 0
    sequence: int = 0


@dataclass(slots=True)
class Batch:
    """Messages of one publisher that differ only in their payloads, which are decoded.

    Credit is given back for all of them with the last. The messages are made when they are taken: whoever kept a
    thousand of them would pay a quarter of his time to the garbage collector.
    """

    last: Any
    rest: list[Any]
    """The payloads before the last, last first; whoever takes messages may pop them, without `Inbox.take`."""
    sender: str
    timestamp: float
    topic: str
    count: int
    headers: SharedHeaders
    trace: str | None

    def message(self, payload: Any) -> IpcMessage[Any]:
        """Return the message of one payload; the iteration does the same by itself, without a call."""
        return IpcMessage(payload, 0, self.sender, self.headers, self.timestamp, None, self.trace, 1, self.topic)


@dataclass(slots=True)
class _Item:
    """One message that waits, or a batch of them where nothing is dropped; one without either was dropped."""

    event: MessageReceived | None
    link: Any
    missed: int
    batch: Batch | None = None

    @property
    def count(self) -> int:
        """Messages in it."""
        return 1 if self.batch is None else self.batch.count


@dataclass(slots=True)
class Inbox:
    """Messages of one subscription that arrived and were not consumed."""

    number: int
    pattern: str
    payload_type: Any
    window: int
    overflow: Overflow = "block"
    queue: str = ""
    waiting: deque[_Item] = field(default_factory=deque)
    """Never ends in a dropped one: if it is not empty there is something to take."""
    dropped: int = 0
    refused: MessageReceived | None = None
    """The last one that did not fit the topic's type."""
    error: SlowConsumer | None = None
    """Why the subscription ended by itself; raised behind the last message that was kept."""
    batch: Batch = field(default_factory=lambda: Batch(None, [], "", 0.0, "", 0, NO_HEADERS, None))
    """The batch that is being taken, or the one before it."""
    _origins: dict[Any, _Origin] = field(default_factory=dict)
    _topics: dict[str, _Item] = field(default_factory=dict)
    _live: int = 0
    _lost: int = 0
    """Lost behind the last message that waits."""
    _warned: bool = False
    _stamps: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """By topic: publisher, generation and stamp of the newest retained message that was seen."""

    @property
    def request(self) -> SubscribeRequest:
        """What the supervisor is told."""
        return SubscribeRequest(self.number, self.pattern, self.window, self.queue, self.overflow)

    def arrived(self, event: MessageReceived, link: Any) -> int | None:
        """Keep a message, by the policy; return the count to acknowledge now, or None."""
        stale = event.stamp and not self._is_newest(event, link)
        if self.overflow == "block":
            if stale or not event.topic:
                return self.settle(link)
            self.waiting.append(_Item(event, link, 0))
            return None
        origin = self._origin(link)
        lost = event.sequence - origin.sequence - (1 if event.topic else 0)
        origin.sequence = event.sequence
        if lost > 0:
            self._lose(lost)
        if event.topic and not stale:
            self._keep(event, link)
        return self._settle(origin, size_of(event.payload))

    def arrived_together(self, event: MessagesReceived, link: Any) -> int:
        """Keep a batch and return its size; 0 if each message must be looked at: some may be dropped, or do not fit."""
        if self.overflow != "block":
            return 0
        payloads = codec.decode_all(event.payload, self.payload_type)
        if not payloads:
            return 0
        sender, when = link.peer.name if link.peer else "", epoch(event.received_at)
        headers, trace = _opened(event.headers)
        step = max(1, self.window // _SHARE)
        for start in range(0, len(payloads), step):
            some = payloads[start : start + step]
            some.reverse()
            last = some.pop(0)
            batch = Batch(last, some, sender, when, event.topic, len(some) + 1, headers, trace)
            self.waiting.append(_Item(None, link, 0, batch))
        return len(payloads)

    def restore(self, events: list[tuple[MessageReceived, Kept]]) -> None:
        """Put retained messages in that were published before this subscription was known, newest of each topic."""
        for event, kept in events:
            if self._is_newest(event, kept):
                self.waiting.append(_Item(event, kept, 0))
                self._live += 1
                if self.overflow == "latest":
                    self._topics[event.topic] = self.waiting[-1]

    def take(self) -> tuple[IpcMessage[Any] | InvalidPayload, Any, int | None]:
        """Take the oldest message: itself, or why it cannot be read; its link; the count to acknowledge now or None.

        Raises:
            IndexError: none waits.
        """
        first = self.waiting[0]
        if first.batch is not None:
            return self._take_of(first, first.batch)
        event, link, missed = self._pop()
        if self._live <= self.window // 2:
            self._warned = False
        owed = self.settle(link) if self.overflow == "block" and not isinstance(link, Kept) else None
        try:
            payload = codec.decode(event.payload, self.payload_type, method=event.topic)
        except InvalidPayload as error:
            self._pass_on(missed)
            self.refused = event
            return error, link, owed
        headers, trace = _opened(event.headers)
        message = IpcMessage(
            payload=payload,
            sender=event.sender or (link.peer.name if link.peer else ""),
            headers=headers,
            trace=trace,
            timestamp=epoch(event.received_at),
            topic=event.topic,
            missed=missed,
        )
        return message, link, owed

    def _take_of(self, item: _Item, batch: Batch) -> tuple[IpcMessage[Any], Any, int | None]:
        if batch.rest:
            self.batch = batch
            return batch.message(batch.rest.pop()), item.link, None
        self.waiting.popleft()
        return batch.message(batch.last), item.link, self._settle(self._origin(item.link), 0, batch.count)

    def settle(self, link: Any) -> int | None:
        """Count one message of that link as dealt with; return the count to acknowledge now, or None."""
        return self._settle(self._origin(link), 0)

    def letter_of(self, message: IpcMessage[Any] | None, error: BaseException) -> dict[str, Any]:
        """Describe a message whose subscriber failed, or the last one that did not fit, as a dead letter."""
        if message is not None:
            topic, payload, sender, tried = message.topic, codec.encode(message.payload), message.sender, 1
        else:
            assert self.refused is not None
            topic, payload, sender, tried = self.refused.topic, self.refused.payload, "", 0
        return {
            "kind": "message",
            "address": topic,
            "payload": payload,
            "sender": sender,
            "reason": f"{type(error).__name__}: {sentence_of(error)}",
            "attempts": tried,
            "pattern": self.pattern,
        }

    def abandon(self) -> None:
        """Keep nothing: this is a copy in a forked child."""
        self.waiting.clear()
        self.batch.rest.clear()

    def forget(self, link: Any) -> None:
        """Drop the bookkeeping of a publisher that is gone; what it sent stays readable."""
        self._origins.pop(link, None)

    def _origin(self, link: Any) -> _Origin:
        origin = self._origins.get(link)
        if origin is None:
            origin = self._origins[link] = _Origin()
        return origin

    def _settle(self, origin: _Origin, size: int, count: int = 1) -> int | None:
        origin.settled += count
        origin.owed_bytes += size
        owed = origin.settled - origin.acknowledged
        if owed >= max(1, flight(self.window, self.overflow) // _SHARE) or origin.owed_bytes >= _OWED_BYTES:
            origin.acknowledged = origin.settled
            origin.owed_bytes = 0
            return origin.settled
        return None

    def _keep(self, event: MessageReceived, link: Any) -> None:
        if self.error is not None:
            self._lose(1)
            return
        if self.overflow == "latest" and (older := self._topics.get(event.topic)) is not None:
            self._bury(older)
        if self._live >= self.window:
            if self.overflow in ("drop_newest", "close"):
                self._lose(1)
                return
            _, _, missed = self._pop()
            self._pass_on(missed)
            self._lose(1, first=True)
        item = _Item(event, link, self._lost)
        self._lost = 0
        self._live += 1
        self.waiting.append(item)
        if self.overflow == "latest":
            self._topics[event.topic] = item

    def _bury(self, item: _Item) -> None:
        """Drop a message where it lies; whoever takes the one behind it is told."""
        self._live -= 1
        self._count(1)
        if self.waiting[-1] is item:
            self.waiting.pop()
            self._lost += item.missed + 1
            self._trim()
            return
        item.event = None
        item.missed += 1
        if len(self.waiting) > 2 * self._live + 64:
            self._compact()

    def _trim(self) -> None:
        """Let no dropped message be the last."""
        while self.waiting and self.waiting[-1].event is None:
            self._lost += self.waiting.pop().missed

    def _compact(self) -> None:
        """Take dropped messages out that others lie behind."""
        carried = 0
        kept: deque[_Item] = deque()
        for item in self.waiting:
            carried += item.missed
            if item.event is not None:
                item.missed, carried = carried, 0
                kept.append(item)
        self._lost += carried
        self.waiting = kept

    def _pop(self) -> tuple[MessageReceived, Any, int]:
        missed = 0
        while True:
            item = self.waiting.popleft()
            missed += item.missed
            if item.event is not None:
                break
        if self.overflow != "block":
            self._live -= 1
            if self._topics.get(item.event.topic) is item:
                del self._topics[item.event.topic]
        return item.event, item.link, missed

    def _pass_on(self, missed: int) -> None:
        if self.waiting:
            self.waiting[0].missed += missed
        else:
            self._lost += missed

    def _lose(self, count: int, *, first: bool = False) -> None:
        """Note lost messages: in front of the first that waits, or behind the last."""
        self._count(count)
        if first:
            self._pass_on(count)
        else:
            self._lost += count
        if self.overflow == "close":
            self.error = SlowConsumer(self.pattern, self.dropped)

    def _count(self, count: int) -> None:
        self.dropped += count
        if not self._warned:
            self._warned = True
            log.warning(
                "topic.messages_dropped: the reader of %r is slow, its policy is %s; %d dropped so far",
                self.pattern,
                self.overflow,
                self.dropped,
            )

    def _is_newest(self, event: MessageReceived, link: Any) -> bool:
        """Tell whether a retained message is news: it may come twice, from its publisher and from where it is kept."""
        peer = link.peer
        if peer is None:
            return True
        known = self._stamps.get(event.topic)
        if known is not None and known[:2] == (peer.name, peer.generation) and event.stamp <= known[2]:
            return False
        self._stamps[event.topic] = (peer.name, peer.generation, event.stamp)
        return True


def _opened(headers: dict[str, str] | None) -> tuple[SharedHeaders, str | None]:
    """Return what the headers of a message are to its reader, and its trace."""
    if not headers:
        return NO_HEADERS, None
    rest = {name: value for name, value in headers.items() if name != TRACE_HEADER}
    return SharedHeaders(rest) if rest else NO_HEADERS, headers.get(TRACE_HEADER)


def subscription_of(
    number: int, topic: Topic[Any] | str, *, queue: str | None, max_pending: int | None, overflow: str
) -> Inbox:
    """Check the arguments of subscribe and return its empty inbox.

    Raises:
        LocalProtocolError: an unknown policy, a queue without a name, or room for less than one message.
        ValueError: the pattern is malformed, or in the reserved namespace "$sys.".
    """
    if overflow not in get_args(Overflow):
        raise LocalProtocolError(f"overflow must be one of {', '.join(get_args(Overflow))}, not {overflow!r}")
    if queue == "":
        raise LocalProtocolError("the name of a queue must not be empty")
    if queue is not None and not isinstance(queue, str):
        raise LocalProtocolError(f"queue must be a name, got {queue!r}")
    window = DEFAULT_WINDOW if max_pending is None else max_pending
    check_count("max_pending", window)
    pattern, payload_type = (topic.name, topic.payload) if isinstance(topic, Topic) else (check_pattern(topic), Any)
    return Inbox(number, pattern, payload_type, window, cast("Overflow", overflow), queue or "")


def not_entered(pattern: str, block: str) -> str:
    """Say what to do with a subscription that is read before it was entered."""
    return f"the subscription to {pattern!r} was not entered: {block} ipc.subscribe(...) as messages"


def entered_twice(pattern: str) -> str:
    """Say what to do with a subscription that is entered again."""
    return f"the subscription to {pattern!r} was entered before: make a new one"

"""The publisher's end of topics, as bookkeeping: credit, what waits for it, and who of a queue comes next.

One `Lane` per subscription of one life. A subscription that blocks takes at most its window of unconsumed messages and
the publisher waits for credit. One that drops never makes anybody wait: what has no credit is kept here within the
subscription's `max_pending`, by its own policy, and follows when credit comes back. Each message that such a lane was
offered has a number, sent or not, so the subscriber sees every gap. No I/O, no waiting, no locks.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from smartipc.ipc.contracts import Topic, misuse
from smartipc.ipc.control import Subscription
from smartipc.ipc.errors import FrameTooLarge, LocalProtocolError
from smartipc.ipc.tracing import with_trace
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.attachments import own, size_of

HEADER_BYTES = 4 * 1024
"""What the headers of a message may have: less than a head, to which a relay adds who published it."""
FLIGHT_BYTES = 1024 * 1024
"""Payload bytes under way to one subscription that drops; a larger message goes alone."""


class Outgoing(NamedTuple):
    """One message on its way to one subscription. An empty topic only tells that all up to `sequence` was dropped."""

    topic: str
    payload: bytes
    stamp: int = 0
    """Rises with every retained message of this process; 0 for others."""
    sequence: int = 0
    """Position among what was published to this subscription; 0 where nothing is ever dropped."""
    note: Any = None
    """What else goes with it: a publisher's headers, a relay's Note."""


class Lane:
    """What one process may send to one subscription, and what waits for that."""

    __slots__ = ("_flying", "_sizes", "_told", "_topics", "consumed", "one", "pending", "sent", "sequence")

    def __init__(self, one: Subscription) -> None:
        self.one = one
        self.sent = 0
        self.consumed = 0
        self.sequence = 0
        self.pending: OrderedDict[int, Outgoing] = OrderedDict()
        self._told = 0
        self._topics: dict[str, int] = {}
        self._sizes: deque[int] = deque()
        self._flying = 0

    def __repr__(self) -> str:
        return f"<Lane to {self.one.instance} {self.one.pattern!r}: {self.left} left, {len(self.pending)} pending>"

    @property
    def blocks(self) -> bool:
        """Whether its publisher waits for credit."""
        return self.one.overflow == "block"

    @property
    def left(self) -> int:
        """Messages that credit allows now."""
        return self.one.flight - (self.sent - self.consumed)

    @property
    def load(self) -> int:
        """Messages that the subscriber has yet to deal with, as far as is known here."""
        return self.sent - self.consumed + len(self.pending)

    @property
    def room(self) -> bool:
        """Whether a message may be sent at once."""
        return not self.pending and self._free

    @property
    def _free(self) -> bool:
        return self.left > 0 and self._flying < FLIGHT_BYTES

    def take(self, topic: str, payload: bytes, stamp: int = 0, note: Any = None) -> Outgoing:
        """Use credit for a message that is sent now; there must be room."""
        if self.blocks:
            self.sent += 1
            return Outgoing(topic, payload, stamp, note=note)
        self.sequence += 1
        return self._fly(Outgoing(topic, payload, stamp, self.sequence, note))

    def take_many(self, count: int) -> None:
        """Use credit for that many messages of one batch; only where the publisher waits for credit."""
        self.sent += count

    def give_back_many(self, count: int) -> None:
        """Undo `take_many` for messages that were not sent after all."""
        self.sent -= count

    def give_back(self, message: Outgoing) -> None:
        """Undo `take`: the message could not be sent at all. One that drops will be told of it as of a lost one."""
        self.sent -= 1
        if message.sequence:
            self._told = message.sequence - 1
            self._flying -= self._sizes.pop()

    def keep(self, topic: str, payload: bytes, stamp: int = 0, *, anyway: bool = False, note: Any = None) -> None:
        """Let a message wait for credit, or drop it or an older one; `anyway` keeps it whatever is full."""
        own(payload)
        self.sequence += 1
        message = Outgoing(topic, payload, stamp, 0 if self.blocks else self.sequence, note)
        overflow = self.one.overflow
        if overflow == "latest":
            older = self._topics.get(topic)
            if older is not None:
                del self.pending[older]
            self._topics[topic] = self.sequence
        if len(self.pending) >= self.one.window and not anyway:
            if overflow in ("drop_newest", "close"):
                return
            _, oldest = self.pending.popitem(last=False)
            self._topics.pop(oldest.topic, None)
        self.pending[self.sequence] = message

    def next(self) -> Outgoing | None:
        """Use credit for the next message that waits, or for telling that the last ones were dropped."""
        if not self._free:
            return None
        if self.pending:
            number, message = self.pending.popitem(last=False)
            if self._topics.get(message.topic) == number:
                del self._topics[message.topic]
            if self.blocks:
                self.sent += 1
                return message
            return self._fly(message)
        if not self.blocks and self._told < self.sequence:
            return self._fly(Outgoing("", b"", 0, self.sequence))
        return None

    def acknowledged(self, count: int) -> bool:
        """Take credit back; `count` is absolute. Tell whether it changed anything."""
        if not self.consumed < count <= self.sent:
            return False
        if self._sizes:
            for _ in range(min(count - self.consumed, len(self._sizes))):
                self._flying -= self._sizes.popleft()
        self.consumed = count
        return True

    def renew(self) -> None:
        """Count from zero, as the subscriber does: the link is another one. What waits still waits."""
        waiting = list(self.pending.values())
        self.sent = self.consumed = self.sequence = self._told = self._flying = 0
        self._sizes.clear()
        self._topics.clear()
        self.pending.clear()
        for message in waiting:
            self.keep(message.topic, message.payload, message.stamp, anyway=True, note=message.note)

    def _fly(self, message: Outgoing) -> Outgoing:
        self.sent += 1
        self._told = message.sequence
        self._sizes.append(size_of(message.payload))
        self._flying += size_of(message.payload)
        return message


def member(members: Iterable[Subscription], lane: Callable[[Subscription], Lane], turn: int) -> Subscription | None:
    """Choose the member of a queue for the next message: least unconsumed, then in turn.

    Members with room come first; then those that drop, whose messages may wait. None while every member is one that
    blocks and has its window full.
    """
    lanes = [(one, lane(one)) for one in members]
    fit = [pair for pair in lanes if pair[1].room] or [pair for pair in lanes if not pair[1].blocks]
    if not fit:
        return None
    least = min(of.load for _, of in fit)
    idle = [one for one, of in fit if of.load == least]
    return idle[turn % len(idle)]


def headed(headers: dict[str, str] | None) -> dict[str, str] | None:
    """Check the headers of what is published, and add the trace of what is being handled.

    Raises:
        LocalProtocolError: they are not strings by strings.
        FrameTooLarge: they have more than HEADER_BYTES.
    """
    traced = with_trace(headers)
    if headers:
        size = len(codec.encode(headers))
        if size > HEADER_BYTES:
            raise FrameTooLarge(size, HEADER_BYTES, "head")
    return traced


def published(topic: Topic[Any] | str, payload: Any) -> tuple[str, bytes]:
    """Check and encode what is published.

    Raises:
        InvalidPayload: it does not fit the topic's type.
        ValueError: the topic is malformed or reserved.
        LocalProtocolError: it is neither a Topic nor a name.
    """
    if not isinstance(topic, (str, Topic)):
        raise LocalProtocolError(misuse(topic, "a Topic or a name such as 'orders.new'"))
    contract = topic if isinstance(topic, Topic) else Topic(topic, object)
    encoded = codec.encode(payload, method=contract.name)
    if isinstance(topic, Topic) and type(payload) is not topic.payload:
        codec.decode(encoded, topic.payload, method=topic.name)
    return contract.name, encoded

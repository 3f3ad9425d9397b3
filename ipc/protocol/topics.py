"""Topics of one connection without a supervisor: SUB, SUB_OK, UNSUB, PUB. A component of Connection, as pure as it.

The connecting side subscribes and publishes; the accepting side relays. What the relay sends is MSG and its credit is
ACK, as between workers; see connection. A PUB needs credit, too: at most WINDOW of them may be unsettled, and none may
follow while WINDOW_BYTES are. ACK with id 0 settles them, in order, as the relay has passed them on. That is how one
slow subscriber comes to slow its publishers, and how the relay's memory stays bounded. Who subscribes to what, and what
waits for whom, is not decided here: see relay.py.
"""

from __future__ import annotations

from collections import deque

from smartipc.ipc.errors import FrameTooLarge, LocalProtocolError, RemoteProtocolError
from smartipc.ipc.protocol.events import (
    Event,
    PublishReceived,
    SubscribedReceived,
    SubscribeReceived,
    UnsubscribeReceived,
)
from smartipc.ipc.protocol.outbox import Outbox
from smartipc.ipc.wire import heads
from smartipc.ipc.wire.frames import Kind, frame
from smartipc.ipc.wire.limits import Limits

WINDOW = 1024
"""Messages that one side may have published and not settled. A constant of the protocol: both sides count."""
WINDOW_BYTES = 4 * 1024 * 1024
"""Payload bytes likewise; the message that crosses it may be of any size."""
OWED = WINDOW // 4
"""Messages that are settled at the latest in one ACK, or OWED_BYTES of them."""
OWED_BYTES = WINDOW_BYTES // 4


class Unsettled:
    """Published messages that are not settled yet, oldest first. Both sides keep one, of the same messages."""

    __slots__ = ("bytes", "settled", "sizes", "total")

    def __init__(self) -> None:
        self.sizes: deque[int] = deque()
        self.bytes = 0
        self.total = 0
        self.settled = 0

    def __repr__(self) -> str:
        return f"<Unsettled {len(self.sizes)} messages, {self.bytes} bytes>"

    @property
    def room(self) -> bool:
        """Whether one more may be published."""
        return len(self.sizes) < WINDOW and self.bytes < WINDOW_BYTES

    def add(self, size: int) -> None:
        """Count one message in."""
        self.sizes.append(size)
        self.bytes += size
        self.total += 1

    def settle(self, count: int) -> bool:
        """Count out all up to the `count`-th ever; tell whether that is news."""
        if not self.settled < count <= self.total:
            return False
        for _ in range(count - self.settled):
            self.bytes -= self.sizes.popleft()
        self.settled = count
        return True


class Topics:
    """What one connection knows of topics.

    Args:
        out: where frames wait to be sent.
        limits: bounds of the connection.
    """

    def __init__(self, out: Outbox, limits: Limits) -> None:
        self.negotiated = False
        self.message_limit = limits.message
        self._out = out
        self._limits = limits
        self._numbers: set[int] = set()
        """Subscriptions: ours at the peer, or the peer's here."""
        self._published = Unsettled()
        self._received = Unsettled()

    def __repr__(self) -> str:
        return f"<Topics {len(self._numbers)} subscriptions, {len(self._published.sizes)} published>"

    def __len__(self) -> int:
        return len(self._numbers)

    # the side that connected

    @property
    def room(self) -> bool:
        """Whether `publish` takes a message."""
        return self._published.room

    def subscribe(self, number: int, pattern: str, window: int, queue: str, overflow: str) -> None:
        """Queue a subscription; SubscribedReceived tells that it holds.

        Raises:
            LocalProtocolError: the peer relays no topics.
        """
        self._require()
        self._numbers.add(number)
        self._control(Kind.SUB, number, heads.encoder.encode(heads.SubHead(pattern, window, queue, overflow)))

    def unsubscribe(self, number: int) -> None:
        """Queue the end of a subscription; what is under way to it still comes."""
        if number in self._numbers:
            self._numbers.discard(number)
            self._control(Kind.UNSUB, number, b"")

    def publish(self, topic: str, payload: bytes, *, headers: dict[str, str] | None = None, retain: bool) -> None:
        """Queue a message for the peer's subscribers; in order, and there must be room.

        Raises:
            FrameTooLarge: the payload exceeds a limit of either side, or the head its own.
            LocalProtocolError: there is no room, or the peer relays no topics.
        """
        self._require()
        if len(payload) > self.message_limit:
            raise FrameTooLarge(len(payload), self.message_limit, "message")
        if not self.room:
            raise LocalProtocolError("published without credit")
        head = heads.encoder.encode(heads.PubHead(topic, headers, retain))
        if len(head) > self._limits.head:
            raise FrameTooLarge(len(head), self._limits.head, "head")
        self._published.add(len(payload))
        self._out.add(Kind.PUB, 0, head, payload, key="publish")

    def on_settled(self, count: int) -> None:
        """Take credit back; called by the connection for an ACK with id 0."""
        self._published.settle(count)

    def on_sub_ok(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Take the answer to a subscription; one that was given up meanwhile needs none."""
        reason = heads.decode(head, heads.SubOkHead).reason
        if ident in self._numbers:
            if reason:
                self._numbers.discard(ident)
            events.append(SubscribedReceived(ident, reason))

    # the side that accepted

    def subscribed(self, number: int, reason: str = "") -> None:
        """Queue the answer to a subscription, a refusal if there is a reason."""
        if reason:
            self._numbers.discard(number)
        self._control(Kind.SUB_OK, number, heads.encoder.encode(heads.SubOkHead(reason[:200])))

    def settled(self, count: int) -> None:
        """Queue that the first `count` messages of the peer are passed on, in all."""
        if self._received.settle(count):
            self._control(Kind.ACK, 0, heads.encoder.encode(heads.AckHead(count)))

    def on_sub(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Take a subscription of the peer."""
        fields = heads.decode(head, heads.SubHead)
        if ident == 0 or ident in self._numbers:
            raise RemoteProtocolError(f"subscription number {ident} is not free")
        if len(self._numbers) >= self._limits.subscriptions:
            self.subscribed(ident, f"more than {self._limits.subscriptions} subscriptions")
            return
        self._numbers.add(ident)
        events.append(SubscribeReceived(ident, fields.pattern, fields.window, fields.queue, fields.overflow))

    def on_unsub(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Take the end of a subscription; one that was refused has none."""
        if ident in self._numbers:
            self._numbers.discard(ident)
            events.append(UnsubscribeReceived(ident))

    def on_pub(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Take a message for whoever subscribed here."""
        fields = heads.decode(head, heads.PubHead)
        if not self._received.room:
            raise RemoteProtocolError("a message was published without credit")
        self._received.add(len(payload))
        events.append(PublishReceived(fields.topic, payload, fields.headers, fields.retain, now))

    def _require(self) -> None:
        if not self.negotiated:
            raise LocalProtocolError("the peer relays no topics")

    def _control(self, kind: Kind, ident: int, head: bytes) -> None:
        self._out.control.append(frame(kind, ident, head))

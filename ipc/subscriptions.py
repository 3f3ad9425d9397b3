"""Both ends of topics, as bookkeeping: credit a publisher has, messages a subscriber holds. No I/O, no waiting.

Credit is counted per (publisher, subscription): a subscription takes at most `window` unconsumed messages of each
publisher, and gives credit back as an absolute count of consumed ones.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from smartipc.ipc.contracts import Topic, check_pattern
from smartipc.ipc.errors import LocalProtocolError
from smartipc.ipc.message import IpcMessage, epoch
from smartipc.ipc.protocol.events import MessageReceived
from smartipc.ipc.wire import codec

DEFAULT_WINDOW = 1024
"""Unconsumed messages per publisher unless `max_pending` says otherwise."""


@dataclass(slots=True)
class Credit:
    """What a publisher may still send to one subscription of one life."""

    window: int
    sent: int = 0
    consumed: int = 0

    @property
    def left(self) -> int:
        """Messages that may be sent now."""
        return self.window - (self.sent - self.consumed)


@dataclass(slots=True)
class Inbox:
    """Messages of one subscription that arrived and were not consumed, and the credit owed to each publisher."""

    number: int
    pattern: str
    payload_type: Any
    window: int
    waiting: deque[tuple[MessageReceived, Any]] = field(default_factory=deque)
    dropped: int = 0
    _counts: dict[Any, list[int]] = field(default_factory=dict)

    def take(self) -> tuple[IpcMessage[Any], Any, int | None]:
        """Take the oldest message: itself, its link, and the consumed count to acknowledge now or None.

        Raises:
            IndexError: none waits.
            InvalidPayload: it does not fit the topic's type; it is consumed all the same, see `settle`.
        """
        event, link = self.waiting[0]
        payload = codec.decode(event.payload, self.payload_type, method=event.topic)
        self.waiting.popleft()
        message = IpcMessage(
            payload=payload,
            sender=link.peer.name if link.peer else "",
            headers=event.headers or {},
            timestamp=epoch(event.received_at),
            topic=event.topic,
        )
        return message, link, self.settle(link)

    def settle(self, link: Any) -> int | None:
        """Count one message of that link as consumed; return the count to acknowledge now, or None."""
        count = self._counts.setdefault(link, [0, 0])
        count[0] += 1
        if count[0] - count[1] >= max(1, self.window // 2):
            count[1] = count[0]
            return count[0]
        return None

    def forget(self, link: Any) -> None:
        """Drop the bookkeeping of a publisher that is gone; what it sent stays readable."""
        self._counts.pop(link, None)


def subscription_of(
    topic: Topic[Any] | str, *, queue: str | None, max_pending: int | None, overflow: str
) -> tuple[str, Any, int]:
    """Check the arguments of subscribe and return pattern, payload type and window.

    Raises:
        LocalProtocolError: an option that is not supported yet, or a window below 1.
        ValueError: the pattern is malformed.
    """
    if queue is not None:
        raise LocalProtocolError("subscribe(queue=...) is not supported yet")
    if overflow != "block":
        raise LocalProtocolError(f"subscribe(overflow={overflow!r}) is not supported yet; 'block' is")
    window = DEFAULT_WINDOW if max_pending is None else max_pending
    if window < 1:
        raise LocalProtocolError(f"max_pending must be at least 1, got {window}")
    if isinstance(topic, Topic):
        return topic.name, topic.payload, window
    return check_pattern(topic), Any, window


def published(topic: Topic[Any] | str, payload: Any) -> tuple[str, bytes]:
    """Check and encode what is published.

    Raises:
        InvalidPayload: it does not fit the topic's type.
        ValueError: the topic is malformed or reserved.
    """
    contract = topic if isinstance(topic, Topic) else Topic(topic, object)
    encoded = codec.encode(payload, method=contract.name)
    if isinstance(topic, Topic) and type(payload) is not topic.payload:
        codec.decode(encoded, topic.payload, method=topic.name)
    return contract.name, encoded

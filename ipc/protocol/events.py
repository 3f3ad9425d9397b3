"""What the protocol core reports. Plain facts; a driver passes them on and decides nothing."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from smartipc.ipc.errors import AuthenticationFailed, Processed, ProtocolError
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.wire.heads import Fault


class Opened(msgspec.Struct, frozen=True, gc=False):
    """The handshake is complete; `peer` is what the other side says of itself."""

    peer: Identity


class RequestReceived(msgspec.Struct, frozen=True):
    """A call to answer with reply or fail. `deadline` is monotonic seconds here, None for none."""

    id: int
    method: str
    payload: bytes
    deadline: float | None
    headers: dict[str, str] | None
    attempt: int
    received_at: float


class RequestsReceived(msgspec.Struct, frozen=True):
    """Several calls to the same method, each to answer by itself, or those in a row by reply_all.

    `payload` is a MessagePack array of theirs. It may have more members than `ids` has: those were refused already.
    """

    ids: range
    method: str
    payload: bytes
    deadline: float | None
    attempt: int
    received_at: float
    withdrawn: set[int] = msgspec.field(default_factory=set)
    """Those of `ids` whose callers gave them up before anything was done about them; whoever waits adds to it."""


class NotifyReceived(msgspec.Struct, frozen=True):
    """A one-way message."""

    method: str
    payload: bytes
    headers: dict[str, str] | None
    received_at: float


class NotifiesReceived(msgspec.Struct, frozen=True, gc=False):
    """Several one-way messages to the same method, without headers; `payload` is a MessagePack array of theirs."""

    method: str
    payload: bytes
    received_at: float


class ReplyReceived(msgspec.Struct, frozen=True, gc=False):
    """Our call succeeded."""

    id: int
    payload: bytes


class RepliesReceived(msgspec.Struct, frozen=True, gc=False):
    """Several calls of ours succeeded; `payload` is a MessagePack array of as many replies, unless it is malformed.

    Among `ids` may be calls that were given up meanwhile, whose replies are for nobody.
    """

    ids: range
    payload: bytes


class ErrorReceived(msgspec.Struct, frozen=True):
    """Our call failed at the other side."""

    id: int
    fault: Fault


class CallExpired(msgspec.Struct, frozen=True, gc=False):
    """Our call's deadline passed; the peer has been told to cancel."""

    id: int


class CancelReceived(msgspec.Struct, frozen=True, gc=False):
    """The caller of this request no longer wants it; an answer would be dropped."""

    id: int


class MessageReceived(msgspec.Struct, frozen=True):
    """A published message for our subscription `number`."""

    number: int
    topic: str
    payload: bytes
    headers: dict[str, str] | None
    received_at: float
    stamp: int = 0
    sequence: int = 0
    sender: str = ""
    """Who published it, where that is not the peer."""


class SubscribeReceived(msgspec.Struct, frozen=True):
    """The peer subscribes here; answer with topics.subscribed. Nothing of it is checked but the number."""

    number: int
    pattern: str
    window: int
    queue: str
    overflow: str


class SubscribedReceived(msgspec.Struct, frozen=True, gc=False):
    """Our subscription holds, or with a `reason` it was refused."""

    number: int
    reason: str


class UnsubscribeReceived(msgspec.Struct, frozen=True, gc=False):
    """The peer's subscription is over."""

    number: int


class PublishReceived(msgspec.Struct, frozen=True):
    """A message for whoever subscribed here; it counts as unsettled until topics.settled."""

    topic: str
    payload: bytes
    headers: dict[str, str] | None
    retain: bool
    received_at: float


TopicEvent: TypeAlias = SubscribeReceived | SubscribedReceived | UnsubscribeReceived | PublishReceived


class MessagesReceived(msgspec.Struct, frozen=True, gc=False):
    """Several messages on one topic for one subscription; `payload` is a MessagePack array of theirs."""

    number: int
    topic: str
    payload: bytes
    received_at: float
    headers: dict[str, str] | None = None
    """Of each of them."""


class ConsumedReceived(msgspec.Struct, frozen=True, gc=False):
    """The subscriber has consumed `count` of our messages to its subscription `number`, in all."""

    number: int
    count: int


class StreamEvent(msgspec.Struct, frozen=True):
    """Something happened to the stream or channel `id`; base of the events that a driver passes to it."""

    id: int


class OpenReceived(msgspec.Struct, frozen=True):
    """A stream or channel (`duplex`) to accept or to reset."""

    id: int
    method: str
    duplex: bool
    payload: bytes
    headers: dict[str, str] | None
    received_at: float


class StreamAccepted(StreamEvent, frozen=True):
    """The peer accepted what we opened; a channel's first credit came with it."""


class DataReceived(StreamEvent, frozen=True):
    """One item. Say `consumed` with its size when the application has taken it."""

    payload: bytes


class StreamEnded(StreamEvent, frozen=True):
    """The peer sends no more; everything it sent has come."""


class StreamStopped(StreamEvent, frozen=True):
    """The peer takes no more; what we still send would be ignored."""


class StreamFailed(StreamEvent, frozen=True):
    """The peer gave the stream up; nothing follows on it."""

    fault: Fault


class StreamLost(StreamEvent, frozen=True):
    """The connection ended under it; nothing follows on it. `written` tells whether its opening left this side."""

    written: bool


class GoodbyeReceived(msgspec.Struct, frozen=True, gc=False):
    """The peer will not serve calls that start from now on; those under way are finished."""

    reason: str


class PongReceived(msgspec.Struct, frozen=True, gc=False):
    """Answer to our ping; `rtt` in seconds."""

    sequence: int
    rtt: float


class HatchOffered(msgspec.Struct, frozen=True, gc=False):
    """The client has made a hatch of this name; answer with hatches.answer."""

    name: str


class HatchAnswered(msgspec.Struct, frozen=True, gc=False):
    """The server has joined our hatch, or with a reason `refused` it."""

    refused: str


class Closed(msgspec.Struct, frozen=True):
    """The connection is over; nothing follows. `lost` names our unanswered calls and what is known of each.

    "no": it was never written. "yes": a part of its reply had arrived, so its handler was done. Else "maybe".
    """

    error: ProtocolError | AuthenticationFailed | None
    reason: str
    lost: tuple[tuple[int, Processed], ...]


Event: TypeAlias = (
    Opened
    | RequestReceived
    | RequestsReceived
    | NotifyReceived
    | NotifiesReceived
    | ReplyReceived
    | RepliesReceived
    | ErrorReceived
    | CallExpired
    | CancelReceived
    | MessageReceived
    | MessagesReceived
    | ConsumedReceived
    | OpenReceived
    | StreamEvent
    | TopicEvent
    | GoodbyeReceived
    | PongReceived
    | HatchOffered
    | HatchAnswered
    | Closed
)

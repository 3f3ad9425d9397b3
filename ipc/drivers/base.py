"""What a link reports to its owner and raises to its caller, for both drivers. No I/O, no state."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple, Protocol

from smartipc.ipc.errors import InvalidPayload, NoSuchMethod, SmartIpcError
from smartipc.ipc.protocol.events import (
    CancelReceived,
    Closed,
    ConsumedReceived,
    GoodbyeReceived,
    MessageReceived,
    MessagesReceived,
    NotifiesReceived,
    NotifyReceived,
    OpenReceived,
    RepliesReceived,
    RequestReceived,
    RequestsReceived,
    StreamEvent,
    TopicEvent,
)
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.faults import error_of, fault_of
from smartipc.ipc.wire.heads import Fault
from smartipc.ipc.wire.text import shown

log = logging.getLogger("smartipc.links")


class LinkHost(Protocol):
    """The owner of links. Every method is called where the link reads: on its loop, or in the reading thread."""

    def on_opened(self, link: Any) -> None:
        """The handshake is complete; `link.peer` is set."""

    def on_request(self, link: Any, event: RequestReceived) -> None:
        """Answer with link.reply or link.fail, now or later."""

    def on_requests(self, link: Any, event: RequestsReceived) -> None:
        """Several requests came in one frame: answer each as on_request says, or some in a row by link.reply_all."""

    def on_notify(self, link: Any, event: NotifyReceived) -> None:
        """A one-way message came."""

    def on_notifies(self, link: Any, event: NotifiesReceived) -> None:
        """Several one-way messages came in one frame."""

    def on_open(self, link: Any, event: OpenReceived) -> None:
        """The peer opens a stream or channel: put a Flow into link.flows and accept it, or refuse it."""

    def on_cancel(self, link: Any, event: CancelReceived) -> None:
        """The caller of that request has gone or given up."""

    def on_message(self, link: Any, event: MessageReceived) -> None:
        """A published message for one of our subscriptions."""

    def on_messages(self, link: Any, event: MessagesReceived) -> None:
        """Several of them, on one topic, in one frame."""

    def on_consumed(self, link: Any, event: ConsumedReceived) -> None:
        """The subscriber at the other end consumed."""

    def on_topic(self, link: Any, event: TopicEvent) -> None:
        """The peer subscribes or publishes here, or answers our subscription; see protocol.topics."""

    def on_goodbye(self, link: Any, event: GoodbyeReceived) -> None:
        """The peer takes no new calls."""

    def on_closed(self, link: Any, event: Closed) -> None:
        """The link is over; nothing follows."""


class Flow(Protocol):
    """One end of an open stream or channel, as a link knows it: `link.flows`, by id."""

    def on_event(self, event: StreamEvent) -> None:
        """Something came for it. Called where the link reads."""

    def on_writable(self) -> None:
        """An item that was refused would be taken now. Only take note: the link may be locked."""


class Row(Protocol):
    """Several calls that a link answers at one place, see `Link.post_all`: once for each id, where the link reads."""

    ids: range
    """Set by the link, before any answer comes."""

    def reply(self, ident: int, payload: bytes) -> None:
        """Take one reply."""

    def replies(self, ids: range, payload: bytes) -> None:
        """Take replies in a row, all of this row's: a MessagePack array of as many, unless it is malformed."""

    def failed(self, ident: int, failure: SmartIpcError) -> None:
        """Take what a future of `begin` would raise."""


def refuse_open(link: Any, event: OpenReceived, fault: Fault) -> None:
    """Answer the opening of a stream or channel with a fault."""

    def refuse() -> None:
        link.connection.streams.fail(event.id, fault)
        link.connection.streams.released(event.id)

    link.tell(refuse)


class QuietHost:
    """A LinkHost that ignores everything; base of hosts that care about little. Batches reach it one by one."""

    def on_opened(self, link: Any) -> None:
        """Ignore it."""

    def on_request(self, link: Any, event: RequestReceived) -> None:
        """Ignore it."""

    def on_requests(self, link: Any, event: RequestsReceived) -> None:
        """Take them apart."""
        for one in requests_of(event, link):
            self.on_request(link, one)

    def on_notify(self, link: Any, event: NotifyReceived) -> None:
        """Ignore it."""

    def on_notifies(self, link: Any, event: NotifiesReceived) -> None:
        """Take them apart."""
        for payload in apart(event, link):
            self.on_notify(link, NotifyReceived(event.method, payload, None, event.received_at))

    def on_open(self, link: Any, event: OpenReceived) -> None:
        """Refuse it: nothing is served here."""
        refuse_open(link, event, fault_of(NoSuchMethod(event.method)))

    def on_cancel(self, link: Any, event: CancelReceived) -> None:
        """Ignore it."""

    def on_message(self, link: Any, event: MessageReceived) -> None:
        """Ignore it."""

    def on_messages(self, link: Any, event: MessagesReceived) -> None:
        """Take them apart."""
        for one in messages_of(event, link):
            self.on_message(link, one)

    def on_consumed(self, link: Any, event: ConsumedReceived) -> None:
        """Ignore it."""

    def on_topic(self, link: Any, event: TopicEvent) -> None:
        """Ignore it."""

    def on_goodbye(self, link: Any, event: GoodbyeReceived) -> None:
        """Ignore it."""

    def on_closed(self, link: Any, event: Closed) -> None:
        """Ignore it."""


def apart(event: NotifiesReceived | MessagesReceived, link: Any) -> list[bytes]:
    """Return the payloads of a batch, none if it is malformed."""
    try:
        return codec.pieces(event.payload)
    except InvalidPayload as error:
        log.warning("malformed batch of %s dropped: %s", link.peer.name if link.peer else "a peer", shown(error.reason))
        return []


def messages_of(event: MessagesReceived, link: Any) -> list[MessageReceived]:
    """Return the messages of a batch, none if it is malformed."""
    return [
        MessageReceived(event.number, event.topic, payload, event.headers, event.received_at)
        for payload in apart(event, link)
    ]


def requests_of(event: RequestsReceived, link: Any) -> list[RequestReceived]:
    """Return the requests of a batch but for those withdrawn; if it is malformed, none, and each is answered so."""
    try:
        payloads = codec.pieces(event.payload)
    except InvalidPayload as error:
        wrong = InvalidPayload(error.path, f"a malformed batch: {error.reason}", method=event.method, processed="no")
        for ident in event.ids:
            link.fail(ident, fault_of(wrong))
        return []
    return [
        RequestReceived(ident, event.method, payload, event.deadline, None, event.attempt, event.received_at)
        for ident, payload in zip(event.ids, payloads, strict=False)  # there may be more, which were refused
        if ident not in event.withdrawn
    ]


def replies_of(event: RepliesReceived) -> list[bytes] | InvalidPayload:
    """Return the payloads of a batch of replies, or what is wrong with all of them."""
    try:
        return codec.pieces(event.payload)
    except InvalidPayload as error:
        return InvalidPayload(error.path, f"a malformed batch: {error.reason}", processed="yes")


class RemoteFault(SmartIpcError):  # noqa: N818 - it carries a Fault
    """The peer answered with an error; the caller, who knows the contract, turns `fault` into the real exception."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __str__(self) -> str:
        return self.fault.message

    def error(
        self, *, method: str, instance: str | None, declared: tuple[type[BaseException], ...] = ()
    ) -> BaseException:
        """Return the exception that the fault stands for."""
        return error_of(self.fault, method=method, instance=instance, declared=declared)


class Resume(NamedTuple):
    """A first attempt at a call that failed: where it went, how, and when it began in monotonic seconds."""

    target: Any
    failure: SmartIpcError
    began: float


class Direct(NamedTuple):
    """A link that a call can take at once: what Resume calls it, whether there is no other, its circuit breaker."""

    link: Any
    target: Any
    only: bool
    circuit: Any = None

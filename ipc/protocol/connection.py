"""One connection of SIPC/1 as a pure object: bytes and `now` in, events and bytes out.

The integrator calls `start`, feeds `receive_data` and `receive_eof`, writes what `data_to_send` hands out while
`has_data`, and calls `handle_timer` when `next_timer` has come. Nothing here raises because of a peer: a peer that
breaks the protocol gets one FATAL frame, and the integrator one `Closed` event, after which nothing follows. Misuse by
the integrator raises LocalProtocolError. No sockets, clocks, locks or payload types: see drivers and wire.codec.

This is the hub: reading frames, what is said in single ones, time, and the end. What needs state of its own is a
component with its handlers in the table here: the handshake (greeting), our calls (calls), the peer's requests
(requests), pings, streams, topics, buffers, and what waits to be sent (outbox). What is left here is longer than other
files: reading and saying share its state, and a call from one file to another would be paid for every message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from smartipc.ipc.errors import (
    AuthenticationFailed,
    FrameTooLarge,
    LocalProtocolError,
    Processed,
    ProtocolError,
    RemoteProtocolError,
)
from smartipc.ipc.protocol import handshake
from smartipc.ipc.protocol.auth import Auth
from smartipc.ipc.protocol.buffers import Buffers
from smartipc.ipc.protocol.calls import Calls
from smartipc.ipc.protocol.events import (
    CallExpired,
    Closed,
    ConsumedReceived,
    ErrorReceived,
    Event,
    GoodbyeReceived,
    MessageReceived,
    MessagesReceived,
    NotifiesReceived,
    NotifyReceived,
    Opened,
    RepliesReceived,
    ReplyReceived,
)
from smartipc.ipc.protocol.greeting import Greeting
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.protocol.hatches import FEATURE as HATCH_FEATURE
from smartipc.ipc.protocol.hatches import Hatches
from smartipc.ipc.protocol.outbox import Outbox
from smartipc.ipc.protocol.pings import Pings
from smartipc.ipc.protocol.reassembly import Reassembly
from smartipc.ipc.protocol.requests import Requests
from smartipc.ipc.protocol.states import TRANSITIONS, Cause, ConnectionState
from smartipc.ipc.protocol.straight import Straight
from smartipc.ipc.protocol.streams import Streams
from smartipc.ipc.protocol.tally import SAMPLED, Tally, count_of
from smartipc.ipc.protocol.topics import Topics
from smartipc.ipc.wire import heads
from smartipc.ipc.wire.frames import (
    FEATURES,
    FRAGMENTABLE,
    HEADER,
    HEADER_SIZE,
    ID_STEP,
    RESERVED,
    Flag,
    Kind,
    frame,
    ids_of,
)
from smartipc.ipc.wire.heads import Fault
from smartipc.ipc.wire.limits import Limits
from smartipc.ipc.wire.receive_buffer import ReceiveBuffer
from smartipc.ipc.wire.text import shown

_DRAINING = Fault(14, "ConnectionLost", "draining: no new calls", retryable=True, processed=0)
_RESPONSE = int(Kind.RESPONSE)
_REQUEST = int(Kind.REQUEST)
_REQUEST_BATCH = int(Kind.REQUEST_BATCH)
_NOTIFY = int(Kind.NOTIFY)
_MSG = int(Kind.MSG)
_MSG_BATCH = int(Kind.MSG_BATCH)
_KNOWN = frozenset(int(kind) for kind in Kind) - RESERVED
_MORE = int(Flag.MORE)
_IGNORABLE = int(Flag.IGNORABLE)
_END = int(Flag.END)
_OOB = int(Flag.OOB)
_DATA = int(Kind.DATA)
_UNKNOWN_FLAGS = 0xFF & ~(_MORE | _IGNORABLE)
_FRAGMENTABLE = frozenset(int(kind) for kind in FRAGMENTABLE)
_CACHE = 1024
"""Encoded heads of requests that are kept; the table is emptied when it is full."""


@dataclass(frozen=True, slots=True)
class ConnectionSnapshot:
    """Facts about a connection, for status, logs and tests."""

    role: str
    state: ConnectionState
    peer: Identity | None
    calls: int
    serving: int
    late_replies: int
    ignored_frames: int
    bytes_received: int
    streams: int
    late_stream_frames: int


class Connection:
    """The protocol state of one connection, either side.

    Args:
        role: "client" for the side that connected, which speaks first; "server" for the one that accepted.
        identity: what this side says of itself.
        limits: bounds of this connection.
        auth: for the token handshake; None where the transport vouches for the peer. Used for this connection only.
        admit: told what the peer says of itself, before anything else of it is heard; returns why it must not come in,
            or "".
        features: the optional parts of the protocol that this side offers; those of workers unless said.
    """

    def __init__(
        self,
        role: Literal["client", "server"],
        identity: Identity,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        *,
        auth: Auth | None = None,
        admit: Callable[[Identity], str] | None = None,
        features: tuple[str, ...] | None = None,
    ) -> None:
        self.role: Literal["client", "server"] = role
        self.identity = identity
        self.limits = limits
        self.state = ConnectionState.OPENING
        self.peer: Identity | None = None
        self.late_replies = 0
        self._ignored = 0
        self._received = 0
        self._message_limit = limits.message
        self.tally = Tally()
        """What this connection has carried."""
        self._calls = Calls(1 if role == "client" else 2)
        self._in = ReceiveBuffer()
        self._parts = Reassembly(limits)
        self._out = Outbox(limits.chunk)
        self._greeting = Greeting(
            role, identity, limits, self._out, auth=auth, admit=admit, opened=self._open, ended=self._end
        )
        self._features = handshake.FEATURES if features is None else features
        self._requests = Requests(self._calls, self._out, self._parts, limits, self.tally)
        self.reply = self._requests.reply
        """Answer a request; see Requests.reply."""
        self.reply_all = self._requests.reply_all
        """Answer several at once; see Requests.reply_all."""
        self.fail = self._requests.fail
        """Answer a request with an error; see Requests.fail."""
        self._pings = Pings(self._out, limits)
        self.ping = self._pings.send
        """Queue a ping; see Pings.send."""
        self.streams = Streams(self._calls, self._out, self._parts, limits)
        """The streams and channels of this connection."""
        self.buffers = Buffers(self._out, limits)
        """What is lent to the peer and borrowed from it."""
        self.streams.receive = self.buffers.receive
        self.streams.discreet = self._requests.discreet = auth is not None and not auth.same_user
        self.topics = Topics(self._out, limits)
        """Its subscriptions, where there is no supervisor."""
        self.hatches = Hatches(role, self._out)
        """Its way through shared memory."""
        self.features: frozenset[str] = frozenset()
        """What both sides know, once the handshake is over."""
        self._known = _KNOWN
        self._heads: dict[tuple[str, int, int], bytes] = {}
        self.straight = Straight(
            self._calls,
            self._requests,
            self._out,
            self._in,
            self._parts,
            self.buffers,
            limits,
            self.tally,
            self._cached,
        )
        """The short way of single small requests and replies."""
        self._handshake_by: float | None = None
        self._partial_since: float | None = None
        self._handlers = self._table()

    def _table(self) -> dict[int, Callable[[int, bytes, bytes, float, list[Event]], None]]:
        """Return who takes which kind of frame; DATA goes to the streams by itself, for its flags."""
        return {
            Kind.HELLO: self._greeting.on_hello,
            Kind.WELCOME: self._greeting.on_welcome,
            Kind.REJECT: self._greeting.on_reject,
            Kind.AUTH: self._greeting.on_auth,
            Kind.AUTH_OK: self._greeting.on_auth_ok,
            Kind.PING: self._pings.on_ping,
            Kind.PONG: self._pings.on_pong,
            Kind.GOAWAY: self._on_goaway,
            Kind.FATAL: self._on_fatal,
            Kind.REQUEST: self._requests.on_request,
            Kind.REQUEST_BATCH: self._requests.on_requests,
            Kind.RESPONSE: self._on_response,
            Kind.RESPONSE_BATCH: self._on_responses,
            Kind.ERROR: self._on_error,
            Kind.CANCEL: self._requests.on_cancel,
            Kind.NOTIFY: self._on_notify,
            Kind.NOTIFY_BATCH: self._on_notifies,
            Kind.MSG: self._on_message,
            Kind.MSG_BATCH: self._on_messages,
            Kind.ACK: self._on_ack,
            Kind.OPEN: self.streams.on_open,
            Kind.CREDIT: self.streams.on_credit,
            Kind.STOP: self.streams.on_stop,
            Kind.RESET: self.streams.on_reset,
            Kind.FDS: self.buffers.on_segments,
            Kind.FD_ACK: self.buffers.on_confirmed,
            Kind.BUFFER_RELEASE: self.buffers.on_release,
            Kind.BUFFER_RETIRE: self.buffers.on_retire,
            Kind.HATCH: self.hatches.on_offer,
            Kind.HATCH_OK: self.hatches.on_answer,
            Kind.SUB: self.topics.on_sub,
            Kind.SUB_OK: self.topics.on_sub_ok,
            Kind.UNSUB: self.topics.on_unsub,
            Kind.PUB: self.topics.on_pub,
        }

    def __repr__(self) -> str:
        name = self.peer.name if self.peer else "?"
        return f"<Connection {self.role} {self.state.value} with {name}, {len(self._calls)} calls>"

    def snapshot(self) -> ConnectionSnapshot:
        """Return the facts of this moment."""
        return ConnectionSnapshot(
            self.role,
            self.state,
            self.peer,
            len(self._calls),
            len(self._requests),
            self.late_replies,
            self._ignored,
            self.bytes_received,
            len(self.streams),
            self.streams.late_frames,
        )

    @property
    def bytes_received(self) -> int:
        """Bytes that were read."""
        return self._received + self.straight.received

    # the integrator's side: time and bytes

    def start(self, now: float) -> None:
        """Begin. The client queues its preface and HELLO, and may send requests right behind them."""
        self._greeting.offered = self._features + self.buffers.features
        if self.role == "client":
            self._handshake_by = now + self.limits.handshake_timeout
            self._greeting.begin()
        else:
            self._handshake_by = now + self.limits.accept_timeout

    def receive_data(self, data: bytes | bytearray | memoryview, now: float) -> list[Event]:
        """Take what was read and return what it means; never raises because of its content."""
        if self.state is ConnectionState.CLOSED:
            return []
        events: list[Event] = []
        self._received += len(data)
        self._in.append(data)
        try:
            self._parse(now, events)
        except (RemoteProtocolError, AuthenticationFailed) as error:
            self._fail(error, events)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._fail(RemoteProtocolError(f"malformed head: {error}"), events)
        return events

    def receive_message(self, data: bytes | bytearray | memoryview, now: float) -> list[Event]:
        """Take what was read, as receive_data, after `buffers.receive_descriptors` took what came beside it."""
        events = self.receive_data(data, now)
        if self.state is not ConnectionState.CLOSED:
            try:
                self.buffers.check_batches(partial=bool(len(self._in)))
            except RemoteProtocolError as error:
                self._fail(error, events)
        return events

    def receive_aside(self, data: bytes, now: float) -> list[Event]:
        """Take what came by the hatch, one whole request or response, whatever is under way on the stream."""
        events: list[Event] = []
        if self.state is ConnectionState.CLOSED:
            return events
        self._received += len(data)
        try:
            size, kind, flags, head_size, ident = HEADER.unpack_from(data) if len(data) >= HEADER_SIZE else (0,) * 5
            whole = size == len(data) - HEADER_SIZE and not flags and head_size <= min(size, self.limits.head)
            at = HEADER_SIZE + head_size
            if whole and kind in (_REQUEST, _RESPONSE) and self.hatches.negotiated:
                self._dispatch(kind, flags, ident, data[HEADER_SIZE:at], data[at:], now, events)
            else:
                self._fail(RemoteProtocolError("no whole request or response came by the hatch"), events)
        except (RemoteProtocolError, AuthenticationFailed) as error:
            self._fail(error, events)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._fail(RemoteProtocolError(f"malformed head: {error}"), events)
        return events

    def receive_eof(self, now: float) -> list[Event]:
        """Take the end of the peer's bytes: the connection is over."""
        events: list[Event] = []
        if self.state is not ConnectionState.CLOSED:
            if len(self._in) and self.state is ConnectionState.OPENING:
                self._end(RemoteProtocolError("connection ended within the handshake"), "", events)
            else:
                self._end(None, "the peer closed the connection", events)
        return events

    @property
    def has_data(self) -> bool:
        """Whether data_to_send has something."""
        held = self._greeting.held
        return bool(self._out) if held is None else bool(held)

    @property
    def outbox(self) -> Outbox:
        """What waits to be sent; others than this package may only append to its open batch."""
        return self._out

    @property
    def queued(self) -> int:
        """Payload bytes of small messages that wait for data_to_send: past some thousands, do not wait for more."""
        return self._out.queued

    @property
    def congested(self) -> bool:
        """Whether so much waits for the peer to read that it should not be heard until it does.

        Only the accepting side may stop reading for it: if both did, both could wait for ever.
        """
        return self.role == "server" and self._out.waiting > self.limits.unsent

    def data_to_send(self) -> list[bytes | bytearray]:
        """Hand out what to write, control frames first, then whole frames, then at most one piece of a large one.

        Call again while `has_data` and the transport takes more, so that new control frames overtake large ones.
        """
        greeting = self._greeting
        if greeting.held is not None:
            held, greeting.held = greeting.held, []
            return held
        return self._out.take()

    def next_timer(self) -> float | None:
        """Return when handle_timer must be called, in monotonic seconds; None for never."""
        soonest = self._calls.earliest
        if self._handshake_by is not None and (soonest is None or self._handshake_by < soonest):
            soonest = self._handshake_by
        if self._partial_since is not None:
            by = self._partial_since + self.limits.frame_timeout
            if soonest is None or by < soonest:
                soonest = by
        return soonest

    def handle_timer(self, now: float) -> list[Event]:
        """Let time pass: expire calls, give up on a silent handshake or an unfinished frame."""
        events: list[Event] = []
        if self.state is ConnectionState.CLOSED:
            return events
        if self._handshake_by is not None and now >= self._handshake_by:
            self._fail(RemoteProtocolError("no handshake in time"), events)
            return events
        if self._partial_since is not None and now >= self._partial_since + self.limits.frame_timeout:
            if self.congested:  # it is us who do not read on
                self._partial_since = now
                return events
            self._fail(RemoteProtocolError("a started frame was not finished in time"), events)
            return events
        for ident in self._calls.expire(now):
            self._withdraw(ident)
            self.tally.failed("RequestTimeout")
            events.append(CallExpired(ident))
        return events

    # the integrator's side: what to say

    def request(
        self,
        method: str,
        payload: bytes,
        now: float,
        *,
        timeout: float,
        headers: dict[str, str] | None = None,
        attempt: int = 1,
    ) -> int:
        """Queue a request and return its id; `timeout` in seconds from `now`.

        Raises:
            FrameTooLarge: the payload exceeds a limit of either side; nothing was queued.
            LocalProtocolError: the connection is closed.
        """
        self._check(len(payload))
        milliseconds = max(1, int(timeout * 1000))
        if headers is None:
            head = self._cached(method, milliseconds, attempt)
        else:
            head = self._head(heads.RequestHead(method, milliseconds, attempt, headers))
        ident = self._calls.add(now + timeout)
        tally = self.tally
        tally.sent += 1
        if not ident & SAMPLED:
            tally.timed = ident
            tally.timed_at = now
        out = self._out
        large = (
            out.join(_REQUEST, ident, head, payload, step=ID_STEP)
            if headers is None
            else out.add(_REQUEST, ident, head, payload)
        )
        if large:
            self._out.unwritten_bulk.add(ident)
        else:
            self._out.unwritten.add(ident)
        return ident

    def request_all(self, method: str, payload: bytes | bytearray, count: int, now: float, *, timeout: float) -> range:
        """Queue several requests as one frame and return their ids.

        Args:
            method: of all of them.
            payload: a MessagePack array, with a 32-bit count, of at most MEMBERS payloads and a chunk.
            count: how many those are.
            now: monotonic seconds.
            timeout: seconds from `now`, for each.

        Only for peers that know the feature "call-batch", see `batching_calls`.

        Raises:
            FrameTooLarge: they are more than a chunk; nothing was queued.
            LocalProtocolError: the connection is closed.
        """
        self._check(0)
        if len(payload) > self.limits.chunk:
            raise FrameTooLarge(len(payload), self.limits.chunk, "batch")
        head = self._cached(method, max(1, int(timeout * 1000)), 1)
        ids = self._calls.add_all(now + timeout, count)
        self.tally.sent += count
        sampled = ids[0] + (-(ids[0] & SAMPLED) & SAMPLED)
        if sampled in ids:
            self.tally.timed = sampled
            self.tally.timed_at = now
        self._out.add(_REQUEST_BATCH, ids[0], head, bytes(payload))
        self._out.unwritten.update(ids)
        return ids

    def notify(self, method: str, payload: bytes, *, headers: dict[str, str] | None = None) -> None:
        """Queue a one-way message; notifies never overtake each other.

        Raises:
            FrameTooLarge: as request.
            LocalProtocolError: as request.
        """
        self._check(len(payload))
        if headers is None:
            self._out.join(_NOTIFY, 0, self._cached(method, 0, 1), payload, key="notify")
        else:
            head = self._head(heads.RequestHead(method, 0, 1, headers))
            self._out.add(_NOTIFY, 0, head, payload, key="notify")

    def publish(
        self,
        number: int,
        topic: str,
        payload: bytes,
        *,
        headers: dict[str, str] | None = None,
        stamp: int = 0,
        sequence: int = 0,
        sender: str = "",
    ) -> None:
        """Queue a message for the peer's subscription `number`; in order per number. See heads.MessageHead.

        Raises:
            FrameTooLarge: as request.
            LocalProtocolError: as request.
        """
        self._check(len(payload))
        head = self._head(heads.MessageHead(topic, headers, stamp > 0, stamp, sequence, sender))
        if not stamp and not sequence and not sender:
            self._out.join(_MSG, number, head, payload, key=number)
        else:
            self._out.add(_MSG, number, head, payload, key=number)

    def publish_batch(self, number: int, topic: str, payload: bytes, *, headers: dict[str, str] | None = None) -> None:
        """Queue several messages for one subscription as one frame: a MessagePack array of at most a chunk.

        Only for peers that know the feature "batch". The headers are those of each of them.

        Raises:
            FrameTooLarge: the headers exceed the limit of a head.
            LocalProtocolError: as request.
        """
        self._check(0)
        self._out.add(_MSG_BATCH, number, self._head(heads.MessageHead(topic, headers)), payload, key=number)

    @property
    def batching(self) -> bool:
        """Whether the peer takes batches of messages as large as a chunk."""
        return self._out.batching and self._message_limit >= self.limits.chunk

    @property
    def batching_calls(self) -> bool:
        """Whether the peer takes batches of requests and replies as large as a chunk."""
        return self._out.batching_calls and self._message_limit >= self.limits.chunk

    @property
    def batch_is_open(self) -> bool:
        """Whether the last message queued began or joined a batch that may grow."""
        return self._out.batch is not None and self._message_limit >= self.limits.chunk

    def consumed(self, number: int, count: int) -> None:
        """Queue that `count` messages in all of our subscription `number` are consumed."""
        if self.state is not ConnectionState.CLOSED:
            self._control(Kind.ACK, number, heads.AckHead(count))

    def cancel(self, ident: int) -> None:
        """Forget a request of ours and tell the peer; what it still answers is dropped and counted."""
        if self._calls.remove(ident):
            self._withdraw(ident)

    def goodbye(self, reason: str = "") -> None:
        """Refuse requests from now on, telling the peer that it may safely try elsewhere."""
        if self._requests.refuse is None and self.state is not ConnectionState.CLOSED:
            self._requests.refuse = self.streams.refuse = _DRAINING
            self._control(Kind.GOAWAY, 0, heads.Reason(reason[:200]))

    def close(self, reason: str = "closed here") -> list[Event]:
        """End the connection and return its Closed event, or nothing if it was over already."""
        events: list[Event] = []
        if self.state is not ConnectionState.CLOSED:
            self._end(None, reason, events)
        return events

    # parsing

    def _parse(self, now: float, events: list[Event]) -> None:
        buffer = self._in
        if self._greeting.preface_due and not self._greeting.read_preface(buffer):
            return
        data, offset = buffer.data, buffer.offset
        began, end = offset, len(data)
        limits = self.limits
        calls = self._calls.pending
        known = self._known
        halves = self._parts.halves
        tally = self.tally
        while end - offset >= HEADER_SIZE:
            size, kind, flags, head_size, ident = HEADER.unpack_from(data, offset)
            if size > limits.frame or head_size > size or head_size > limits.head or kind not in known or flags:
                size, kind = self._check_header(size, kind, flags, head_size)
            elif self.state is ConnectionState.OPENING:
                self._greeting.check(size, kind)
            body = offset + HEADER_SIZE
            stop = body + size
            if stop > end:
                break
            offset = buffer.offset = stop
            if kind == _RESPONSE and not flags and not halves and ident in calls:
                del calls[ident]
                if ident == tally.timed:
                    tally.answered(now)
                events.append(ReplyReceived(ident, bytes(data[body + head_size : stop])))
                continue
            at = body + head_size
            if kind == _REQUEST and not flags and not halves:
                self._requests.on_request(ident, bytes(data[body:at]), bytes(data[at:stop]), now, events)
                continue
            self._dispatch(kind, flags, ident, bytes(data[body:at]), data[at:stop], now, events)
            if self.state is ConnectionState.CLOSED:
                return
        if offset < end:
            if self._partial_since is None or offset > began:
                self._partial_since = now
        else:
            self._partial_since = None

    def _dispatch(
        self,
        kind: int,
        flags: int,
        ident: int,
        head: bytes,
        payload: bytes | bytearray,
        now: float,
        events: list[Event],
    ) -> None:
        if kind not in self._known:
            self._ignored += 1
            return
        whole = bytes(payload)
        if kind == _DATA:
            self.streams.on_data(ident, flags, head, whole, events)
            return
        if kind in _FRAGMENTABLE and (flags & _MORE or (self._parts and self._parts.expects(kind, ident))):
            complete = self._parts.add(kind, ident, head, whole, last=not flags & _MORE, attached=bool(flags & _OOB))
            if complete is None:
                return
            head, joined = complete
            whole = self.buffers.receive(joined) if flags & _OOB else bytes(joined)
        elif flags & _OOB:
            whole = self.buffers.receive(whole)
        self._handlers[kind](ident, head, whole, now, events)

    def _check_header(self, size: int, kind: int, flags: int, head_size: int) -> tuple[int, int]:
        """Judge a header that is not the plain case, before a byte of its body is kept."""
        if kind in (0x00, 0xFF):
            raise RemoteProtocolError(f"invalid frame kind 0x{kind:02x}")
        if size > self.limits.frame:
            raise FrameTooLarge(size, self.limits.frame)
        if head_size > size or head_size > self.limits.head:
            raise RemoteProtocolError(f"head of {head_size} bytes in a frame of {size}")
        unknown = flags & _UNKNOWN_FLAGS
        if unknown and not (
            (kind == _DATA and unknown == _END)
            or (unknown == _OOB and self.buffers.negotiated and (kind in _FRAGMENTABLE or kind == _DATA))
        ):
            raise RemoteProtocolError(f"flags 0x{flags:02x} are not negotiated")
        if kind in RESERVED and kind not in self._known:
            raise RemoteProtocolError(f"frame kind 0x{kind:02x} belongs to a feature that was not negotiated")
        if kind not in self._known and not flags & _IGNORABLE:
            raise RemoteProtocolError(f"unknown frame kind 0x{kind:02x}")
        if flags & _MORE and kind not in _FRAGMENTABLE and kind != _DATA:
            raise RemoteProtocolError(f"frame kind 0x{kind:02x} cannot be cut")
        if self.state is ConnectionState.OPENING:
            self._greeting.check(size, kind)
        return size, kind

    # frames

    def _open(self, peer: Identity, message_limit: int, features: list[str], events: list[Event]) -> None:
        self.peer = peer
        self._message_limit = min(self.limits.message, max(0, message_limit))
        self.features = frozenset(features)
        self._known = _KNOWN.union(*(FEATURES.get(name, ()) for name in features))
        self.streams.negotiated = "streams" in self.features
        self._out.batching = "batch" in self.features
        self._out.batching_calls = "call-batch" in self.features
        self.streams.message_limit = self._requests.message_limit = self._message_limit
        self.buffers.open(features)
        self.hatches.negotiated = HATCH_FEATURE in self.features
        self._out.open()
        self.topics.negotiated = "topics" in self.features
        self.topics.message_limit = self._message_limit
        self._handshake_by = None
        self.state = TRANSITIONS[self.state, Cause.HANDSHAKE]
        self.straight.open = True
        events.append(Opened(self.peer))

    def _on_goaway(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        reason = shown(heads.decode(head, heads.Reason).reason)
        self.state = TRANSITIONS[self.state, Cause.GOODBYE]
        self.straight.open = False
        events.append(GoodbyeReceived(reason))

    def _on_fatal(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        reason = shown(heads.decode(head, heads.Reason).reason)
        self._end(LocalProtocolError(f"the peer refused our bytes: {reason}"), reason, events)

    def _on_response(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        if self._answered(ident):
            if ident == self.tally.timed:
                self.tally.answered(now)
            events.append(ReplyReceived(ident, payload))

    def _on_responses(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        try:
            ids = ids_of(ident, payload)
        except ValueError as error:
            raise RemoteProtocolError(str(error)) from error
        if not self._calls.issued(ids[0]) or not self._calls.issued(ids[-1]):
            raise RemoteProtocolError(f"answers to requests from {ident} on, which were never sent")
        tally, pending = self.tally, self._calls.pending
        if tally.timed in ids and tally.timed in pending:
            tally.answered(now)
        late = sum([pending.pop(one, None) is None for one in ids])
        self.late_replies += late
        if late < len(ids):
            events.append(RepliesReceived(ids, payload))

    def _on_error(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        fault = heads.decode(payload, heads.Fault)
        if self._answered(ident):
            self.tally.failed(fault.name)
            events.append(ErrorReceived(ident, fault))

    def _answered(self, ident: int) -> bool:
        """Take a call out of the waiting ones; a late answer is counted, one to nothing we asked is a violation."""
        if self._calls.remove(ident):
            return True
        if not self._calls.issued(ident):
            raise RemoteProtocolError(f"an answer to request {ident}, which was never sent")
        self.late_replies += 1
        return False

    def _on_notify(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        fields = heads.decode(head, heads.RequestHead)
        self.tally.notifies += 1
        events.append(NotifyReceived(fields.method, payload, fields.headers, now))

    def _on_message(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        fields = heads.decode(head, heads.MessageHead)
        message = MessageReceived(
            ident, fields.topic, payload, fields.headers, now, fields.stamp, fields.sequence, fields.sender
        )
        self.tally.messages += 1
        events.append(message)

    def _on_notifies(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        fields = heads.decode(head, heads.RequestHead)
        self.tally.notifies += count_of(payload)
        events.append(NotifiesReceived(fields.method, payload, now))

    def _on_messages(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        fields = heads.decode(head, heads.MessageHead)
        self.tally.messages += count_of(payload)
        events.append(MessagesReceived(ident, fields.topic, payload, now, fields.headers))

    def _on_ack(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        count = heads.decode(head, heads.AckHead).consumed
        if ident == 0:
            self.topics.on_settled(count)
        events.append(ConsumedReceived(ident, count))

    # sending and ending

    def _check(self, size: int) -> None:
        if self.state is ConnectionState.CLOSED:
            raise LocalProtocolError("the connection is closed")
        if size > self._message_limit:
            raise FrameTooLarge(size, self._message_limit, "message")

    def _head(self, head: heads.RequestHead | heads.MessageHead) -> bytes:
        encoded = heads.encoder.encode(head)
        if len(encoded) > self.limits.head:
            raise FrameTooLarge(len(encoded), self.limits.head, "head")
        return encoded

    def _cached(self, method: str, milliseconds: int, attempt: int) -> bytes:
        key = (method, milliseconds, attempt)
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) >= _CACHE:
                self._heads.clear()
            head = self._heads[key] = self._head(heads.RequestHead(method, milliseconds, attempt))
        return head

    def _control(self, kind: Kind, ident: int, head: msgspec.Struct) -> None:
        self._out.control.append(frame(kind, ident, heads.encoder.encode(head)))

    def _withdraw(self, ident: int) -> None:
        out = self._out
        waits = ident in out.unwritten
        if out.drop(_REQUEST, ident):
            cancel = frame(Kind.CANCEL, ident)
            if waits:  # in a batch, which the control lane would overtake
                out.add_frame(cancel)
            else:
                out.control.append(cancel)

    def _fail(self, error: RemoteProtocolError | AuthenticationFailed, events: list[Event]) -> None:
        """Answer a broken peer with one FATAL frame and end."""
        self._out.clear()
        self._greeting.held = None
        fatal = frame(Kind.FATAL, 0, heads.encoder.encode(heads.Reason(str(error)[:200])))
        self._out.control.append(self._greeting.first(fatal))
        self._end(error, str(error), events, keep_output=True)

    def _end(
        self,
        error: ProtocolError | AuthenticationFailed | None,
        reason: str,
        events: list[Event],
        *,
        keep_output: bool = False,
    ) -> None:
        unwritten = self._out.unwritten | self._out.unwritten_bulk
        halves = self._parts.halves
        for _ in self._calls.pending:
            self.tally.failed("ConnectionLost")
        lost: tuple[tuple[int, Processed], ...] = tuple(
            (ident, "no" if ident in unwritten else "yes" if (_RESPONSE, ident) in halves else "maybe")
            for ident in self._calls.pending
        )
        events.extend(self.streams.lost())
        self._calls.clear()
        self._requests.clear()
        self._parts.clear()
        self.buffers.close()
        self._in.clear()
        self._handshake_by = self._partial_since = None
        if not keep_output and self.state is not ConnectionState.OPENING:
            self._out.clear()
        self.state = TRANSITIONS[self.state, Cause.END]
        self.straight.open = False
        events.append(Closed(error, reason, lost))

"""The asyncio driver: one socket, one timer, and a map from call id to future around one Connection.

Knows nothing of contracts, payload types or routing. Reads with add_reader on its own non-blocking socket; writes at
once while idle, and once per loop turn or receive batch when busy.

Longer than other files: reading and writing share the state that says which of the two is due, and a call from one
object to another would be paid for every message.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from smartipc.ipc.drivers.base import Flow, LinkHost, RemoteFault, Row, replies_of
from smartipc.ipc.drivers.descriptors import DescriptorReader, send_descriptors
from smartipc.ipc.drivers.inheritance import REASON, in_child
from smartipc.ipc.errors import ConnectionLost, InvalidPayload, LocalProtocolError, RequestTimeout, SmartIpcError
from smartipc.ipc.observe import traffic
from smartipc.ipc.protocol.buffers import DescriptorFrame
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import (
    CallExpired,
    CancelReceived,
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
    OpenReceived,
    PublishReceived,
    RepliesReceived,
    ReplyReceived,
    RequestReceived,
    RequestsReceived,
    StreamEvent,
    SubscribedReceived,
    SubscribeReceived,
    UnsubscribeReceived,
)
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.protocol.states import ConnectionState
from smartipc.ipc.protocol.topics import Topics
from smartipc.ipc.tracing import outside
from smartipc.ipc.transports.base import Conduit, Stream, write_fileno
from smartipc.ipc.transports.memory import memory_of
from smartipc.ipc.wire.frames import ID_STEP
from smartipc.ipc.wire.heads import Fault

T = TypeVar("T")

READ_SIZE = 64 * 1024
"""Bytes of a read. Not more: above 128 KiB every `recv` maps and unmaps memory, which costs as much as a round trip."""
READ_MORE = 256 * 1024
"""Bytes of the read after a full one: bulk is under way, and larger reads pay for their mapping."""
BURST = 48 * 1024
"""Bytes of small messages that are written without waiting for the end of the turn: the reader may start meanwhile.

Smaller pieces wake the reader more often, and between two CPUs a wake-up costs as much as some hundred messages.
"""
HIGH_WATER = 1024 * 1024
"""Unsent bytes above which `drained` waits."""
_CATCH_UP = 64
"""Reads at most before something is decided by what has come."""
_IOV = 512
"""Pieces per sendmsg, below every platform's limit."""


class Link:
    """One connection on the running loop. Takes ownership of `sock`, which becomes non-blocking.

    Args:
        sock: a connected stream socket, or a conduit.
        connection: a fresh protocol state; it is started here.
        host: told what arrives.
    """

    def __init__(self, sock: Stream, connection: Connection, host: LinkHost) -> None:
        self.connection = connection
        self.closed = False
        self.inherited = False
        """Whether this is the copy in a forked child."""
        self.error: SmartIpcError | None = None
        self.on_room: Callable[[Link], None] | None = None
        self._sock = sock
        self._fd = sock.fileno()
        self._write_fd = write_fileno(sock)
        self._host = host
        self._loop = asyncio.get_running_loop()
        self.flows: dict[int, Flow] = {}
        """The open streams and channels, by id; whoever puts one in takes it out."""
        self._futures: dict[int, asyncio.Future[bytes]] = {}
        self._rows: dict[int, Row] = {}
        """Whose answer goes to a row instead."""
        self._unsent: list[bytes | bytearray | memoryview] = []
        self._unsent_bytes = 0
        self._writing = False
        self._paused = False
        """Whether the peer is not heard because it does not read what it is told."""
        self._in_batch = False
        self._wrote = False
        self._flush_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._read_size = READ_SIZE
        self._drain_waiters: list[asyncio.Future[None]] = []
        self._opened: asyncio.Future[Identity] | None = None
        self._recv: Callable[[int], bytes] = sock.recv
        self._take = connection.receive_data
        self._thread = threading.get_ident()
        self._pid = os.getpid()
        self._buffers_due = False
        in_child(self, Link._leave_to_parent)
        memory = memory_of(sock)
        traffic.ledger.opened(connection)
        connection.buffers.connect(memory, self._wake_for_buffers)
        if memory is not None and isinstance(sock, socket.socket):
            self._recv = DescriptorReader(sock, connection.buffers)
            self._take = connection.receive_message
        connection.start(self._loop.time())
        if isinstance(sock, socket.socket):
            sock.setblocking(False)
            self._begin()
        else:
            self._prepare(sock)
        self._arm()

    def __repr__(self) -> str:
        return f"<Link {'closed' if self.closed else 'open'} {self.connection!r}, {self._unsent_bytes} bytes unsent>"

    @property
    def peer(self) -> Identity | None:
        """What the peer says of itself, None before the handshake."""
        return self.connection.peer

    @property
    def full(self) -> bool:
        """Whether the socket is full: what is said now waits here. `on_room` is called when that is over."""
        return self._writing

    @property
    def outstanding(self) -> int:
        """Calls of ours without an answer, and open streams and channels."""
        return len(self._futures) + len(self._rows) + len(self.flows)

    def fileno(self) -> int:
        """Return the descriptor, for credentials; -1 when closed."""
        return self._sock.fileno()

    @property
    def socket(self) -> Stream:
        """The stream, for credentials only."""
        return self._sock

    def _begin(self) -> None:
        self._read_with(self._readable)
        self._flush()

    def _read_with(self, callback: Callable[..., None], *args: Any) -> None:
        """Call back when there is something to read; it is no part of the request that this link was made for."""
        outside().run(self._loop.add_reader, self._fd, callback, *args)

    def catch_up(self) -> None:
        """Read what has come already, within reason: something is about to be decided by it."""
        if self.connection.peer is None:
            return
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        for _ in range(_CATCH_UP):
            if self.closed or self._paused or not poll.poll(0):
                return
            self._readable()

    def _prepare(self, conduit: Conduit) -> None:
        """Let a conduit settle its own handshake before the first byte of ours. The connection's timer limits it."""
        self._loop.remove_reader(self._fd)
        try:
            ready = conduit.handshake()
        except OSError as error:
            self._loop.call_soon(self._broken, error.strerror or str(error))
            return
        if ready:
            self._writing = False
            self._begin()
        else:
            self._writing = True  # in the sense of: not yet, you will be told
            self._read_with(self._prepare, conduit)

    async def opened(self) -> Identity:
        """Wait for the handshake.

        Raises:
            SmartIpcError: the connection ended first.
        """
        if self.connection.peer is not None:
            return self.connection.peer
        if self.closed:
            raise self.error or ConnectionLost()
        if self._opened is None:
            self._opened = self._loop.create_future()
        return await asyncio.shield(self._opened)

    # saying

    def call(
        self, method: str, payload: bytes, *, timeout: float, headers: dict[str, str] | None = None, attempt: int = 1
    ) -> asyncio.Future[bytes]:
        """Send a request; the future gets the reply's payload, or raises. Cancelling it cancels the call at the peer.

        The future raises RequestTimeout, ConnectionLost (`processed` tells whether it was written), RemoteFault.

        Raises:
            FrameTooLarge: the payload exceeds a limit.
            ConnectionLost: the link is closed; nothing was sent.
        """
        ident, future = self.begin(method, payload, timeout=timeout, headers=headers, attempt=attempt)
        future.add_done_callback(lambda done: self._settled(ident, done))
        return future

    def begin(
        self, method: str, payload: bytes, *, timeout: float, headers: dict[str, str] | None = None, attempt: int = 1
    ) -> tuple[int, asyncio.Future[bytes]]:
        """Send a request as `call` does; whoever stops waiting for the future must `cancel` the id."""
        self._require_open(method)
        now = self._loop.time()
        ident = self.connection.request(method, payload, now, timeout=timeout, headers=headers, attempt=attempt)
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._futures[ident] = future
        self._push()
        if self._timer is None or now + timeout < self._timer_at:
            self._arm()
        return ident, future

    def post(self, method: str, payload: bytes, row: Row, *, timeout: float) -> None:
        """Send a request as `begin` does, whose answer goes to a row."""
        self._require_open(method)
        now = self._loop.time()
        ident = self.connection.request(method, payload, now, timeout=timeout)
        row.ids = range(ident, ident + ID_STEP, ID_STEP)
        self._rows[ident] = row
        self._push()
        if self._timer is None or now + timeout < self._timer_at:
            self._arm()

    def post_all(self, method: str, payload: bytes | bytearray, count: int, row: Row, *, timeout: float) -> None:
        """Send several requests in one frame, see Connection.request_all, as `post` does."""
        self._require_open(method)
        now = self._loop.time()
        row.ids = self.connection.request_all(method, payload, count, now, timeout=timeout)
        self._rows.update(dict.fromkeys(row.ids, row))
        self._push()
        if self._timer is None or now + timeout < self._timer_at:
            self._arm()

    def cancel(self, ident: int) -> None:
        """Give up a request that was begun; ignored when it has an answer."""
        known = self._futures.pop(ident, None) is not None or self._rows.pop(ident, None) is not None
        if known and not self.closed:
            self.connection.cancel(ident)
            self._push()

    def notify(self, method: str, payload: bytes, *, headers: dict[str, str] | None = None) -> None:
        """Send a one-way message.

        Raises:
            FrameTooLarge: the payload exceeds a limit.
            ConnectionLost: the link is closed.
        """
        self._require_open(method)
        self.connection.notify(method, payload, headers=headers)
        self._push()

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
        """Send a message to the peer's subscription `number`; raises as notify does."""
        self._require_open(topic)
        self.connection.publish(number, topic, payload, headers=headers, stamp=stamp, sequence=sequence, sender=sender)
        self._push()

    def relay(self, say: Callable[[Topics], None]) -> None:
        """Let `say` queue something of the connection's topics, and send it; raises as notify does."""
        self._require_open("")
        say(self.connection.topics)
        self._push()

    def publish_batch(self, number: int, topic: str, payload: bytes, *, headers: dict[str, str] | None = None) -> None:
        """Send several messages in one frame, as Connection.publish_batch; raises ConnectionLost as notify does."""
        self._require_open(topic)
        self.connection.publish_batch(number, topic, payload, headers=headers)
        self._push()

    def burst(self) -> None:
        """Write a batch that has grown large enough, if the socket has room."""
        if not self._writing and not self.closed:
            self._flush()

    def cork(self) -> None:
        """Write nothing small before the end of the loop turn: it will not be alone."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._end_of_turn)

    def consumed(self, number: int, count: int) -> None:
        """Give credit back for our subscription `number`, at once: its publisher may stand still for it.

        A closed link needs none.
        """
        if not self.closed:
            self.connection.consumed(number, count)
            if not self._in_batch:
                self.burst()

    def reply(self, ident: int, payload: bytes) -> None:
        """Answer a request; ignored if it was cancelled or the link is closed.

        Raises:
            FrameTooLarge: the reply exceeds a limit; answer with fail instead.
        """
        if not self.closed:
            self.connection.reply(ident, payload)
            self._push()

    def reply_all(self, ids: range, payload: bytes | bytearray) -> None:
        """Answer several requests that came together, see Requests.reply_all; ignored as reply is."""
        if not self.closed:
            self.connection.reply_all(ids, payload)
            self._push()

    def fail(self, ident: int, fault: Fault) -> None:
        """Answer a request with an error; ignored as reply is."""
        if not self.closed:
            self.connection.fail(ident, fault)
            self._push()

    def goodbye(self, reason: str = "") -> None:
        """Take no new calls from the peer."""
        if not self.closed:
            self.connection.goodbye(reason)
            self._push()

    @property
    def congested(self) -> bool:
        """Whether more than HIGH_WATER bytes are unsent: whoever sends more should wait for `drained`."""
        return self._unsent_bytes + self.connection.queued > HIGH_WATER

    def tell(self, what: Callable[[], T]) -> T:
        """Do something to the connection's streams, and write what comes of it."""
        result = what()
        self.push()
        return result

    def push(self) -> None:
        """Write what the connection has to say, in its turn."""
        if not self.closed:
            self._push()

    async def drained(self) -> None:
        """Wait until less than HIGH_WATER bytes are unsent. Cancelling it loses nothing."""
        while self.congested and not self.closed:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._drain_waiters.append(waiter)
            await waiter

    # ending

    def close(self, reason: str = "closed here") -> None:
        """End the link at once: unanswered calls fail with ConnectionLost, unsent bytes are tried once."""
        if not self.closed:
            self._deliver(self.connection.close(reason))

    async def aclose(self, grace: float = 5.0) -> None:
        """Say goodbye, wait at most `grace` seconds for unanswered calls and unsent bytes, then close."""
        self.goodbye("closing")
        loop = self._loop
        deadline = loop.time() + grace
        while (
            not self.closed
            and (self._futures or self._rows or self._unsent or self.connection.streams.unsent)
            and loop.time() < deadline
        ):
            waits = [one for one in self._futures.values() if not one.done()]
            if waits:
                await asyncio.wait(waits, timeout=deadline - loop.time())
            else:
                await asyncio.sleep(0.005)  # rows and unsent bytes: what empties them has no future
        self.close()

    def _leave_to_parent(self) -> None:
        """Be closed, in a forked child, without a word to the peer, who knows only the parent."""
        self.closed = self.inherited = True
        self.error = LocalProtocolError(REASON)

    # reading

    def _readable(self) -> None:
        try:
            data = self._recv(self._read_size)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._deliver(self.connection.close(str(error)))
            return
        self._wrote = False
        self._read_size = READ_MORE if len(data) >= READ_SIZE else READ_SIZE
        now = self._loop.time()
        events = self._take(data, now) if data else self.connection.receive_eof(now)
        self._deliver(events)
        if not events:  # part of a frame: it must be finished in time
            self._arm()
        if self._writing and self.connection.congested and not self._paused and not self.closed:
            self._paused = True
            self._loop.remove_reader(self._fd)

    def _deliver(self, events: list[Event]) -> None:
        self._in_batch = True
        futures, host = self._futures, self._host
        try:
            for event in events:
                kind = type(event)
                if kind is ReplyReceived:
                    future = futures.pop(event.id, None)  # type: ignore[union-attr]
                    if future is None:
                        self._settle_in_row(event.id, event.payload)  # type: ignore[union-attr]
                    elif not future.done():
                        future.set_result(event.payload)  # type: ignore[union-attr]
                elif kind is RequestReceived:
                    host.on_request(self, event)  # type: ignore[arg-type]
                elif kind is RepliesReceived:
                    self._settle_all(event)  # type: ignore[arg-type]
                elif kind is RequestsReceived:
                    host.on_requests(self, event)  # type: ignore[arg-type]
                else:
                    self._handle(event)
        finally:
            self._in_batch = False
        if self.connection.has_data and not self._writing:
            self._flush()
        elif self.connection.streams.writable:
            self._wake_writers()
        if self.closed:
            self._release()

    def _settle_all(self, event: RepliesReceived) -> None:
        ids, pop = event.ids, self._rows.pop
        if ids[0] in self._rows:
            rows = [pop(ident, None) for ident in ids]
            row = rows[0]
            if row is not None and rows.count(row) == len(rows):
                row.replies(ids, event.payload)
                return
            self._rows.update((ident, one) for ident, one in zip(ids, rows, strict=True) if one is not None)
        payloads = replies_of(event)
        for index, ident in enumerate(ids):
            if isinstance(payloads, InvalidPayload):
                self._settle(ident, payloads)
                continue
            future = self._futures.pop(ident, None)
            if future is None:
                self._settle_in_row(ident, payloads[index])
            elif not future.done():
                future.set_result(payloads[index])

    def _settle_in_row(self, ident: int, payload: bytes) -> None:
        row = self._rows.pop(ident, None)
        if row is not None:
            row.reply(ident, payload)

    def _handle(self, event: Event) -> None:
        match event:
            case MessageReceived():
                self._host.on_message(self, event)
            case MessagesReceived():
                self._host.on_messages(self, event)
            case NotifiesReceived():
                self._host.on_notifies(self, event)
            case NotifyReceived():
                self._host.on_notify(self, event)
            case ConsumedReceived():
                self._host.on_consumed(self, event)
            case SubscribeReceived() | SubscribedReceived() | UnsubscribeReceived() | PublishReceived():
                self._host.on_topic(self, event)
            case ErrorReceived():
                self._settle(event.id, RemoteFault(event.fault))
            case CallExpired():
                self._settle(event.id, RequestTimeout(None))
            case StreamEvent():
                flow = self.flows.get(event.id)
                if flow is not None:
                    flow.on_event(event)
            case OpenReceived():
                self._host.on_open(self, event)
            case CancelReceived():
                self._host.on_cancel(self, event)
            case Opened():
                if self._opened is not None and not self._opened.done():
                    self._opened.set_result(event.peer)
                self._host.on_opened(self)
            case GoodbyeReceived():
                self._host.on_goodbye(self, event)
            case Closed():
                self._on_closed(event)
            case _:  # a reply or a request, see _deliver; PongReceived: nobody pings here yet
                pass

    def _on_closed(self, event: Closed) -> None:
        self.closed = True
        traffic.ledger.closed(self.connection)
        self.error = event.error or ConnectionLost(self._peer_name(), event.reason)
        for ident, processed in event.lost:
            lost = ConnectionLost(self._peer_name(), event.reason, processed=processed)
            self._settle(ident, lost)
        for future in list(self._futures.values()):
            if not future.done():
                future.set_exception(ConnectionLost(self._peer_name(), event.reason))
        self._futures.clear()
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(self.error)
            self._opened.exception()
        self._host.on_closed(self, event)

    def _settle(self, ident: int, error: SmartIpcError) -> None:
        future = self._futures.pop(ident, None)
        if future is not None:
            if not future.done():
                future.set_exception(error)
        elif (row := self._rows.pop(ident, None)) is not None:
            row.failed(ident, error)

    def _settled(self, ident: int, done: asyncio.Future[bytes]) -> None:
        if done.cancelled():
            self.cancel(ident)

    def _peer_name(self) -> str:
        return (self.connection.peer.name if self.connection.peer else "") or "the peer"

    def _require_open(self, method: str) -> None:
        # Within a receive batch the connection may be over before its end has been delivered here.
        if self.closed or self.connection.state is ConnectionState.CLOSED:
            raise ConnectionLost(self._peer_name(), method=method, processed="no")

    # writing

    def _push(self) -> None:
        """Write now what is the first since something was read; what follows it leaves at the end of the loop turn.

        Within a receive batch nothing is written before its end, and while the socket is full nothing at all; a burst
        is written in pieces of BURST bytes.
        """
        if self._writing:
            return
        if self._in_batch or self._flush_due:
            if self.connection.queued > BURST:
                self._flush()
        elif self._wrote:
            self._flush_due = True
            self._loop.call_soon(self._end_of_turn)
        else:
            self._wrote = True
            self._flush()

    def _end_of_turn(self) -> None:
        self._flush_due = False
        self._wrote = False
        if self.connection.has_data and not self._writing and not self.closed:
            self._flush()

    def _flush(self) -> None:
        connection, unsent, sock = self.connection, self._unsent, self._sock
        while True:
            if not unsent:
                if not connection.has_data:
                    break
                small = connection.queued < READ_SIZE
                pieces = connection.data_to_send()
                if small and len(pieces) > 1:
                    pieces = [b"".join(pieces)]
                if len(pieces) == 1:
                    try:
                        piece = pieces[0]
                        sent = sock.send(piece) if type(piece) is not DescriptorFrame else send_descriptors(sock, piece)
                    except (BlockingIOError, InterruptedError):
                        sent = 0
                    except OSError as error:
                        self._refused(error)
                        return
                    if sent == len(pieces[0]):
                        continue
                    self._unsent_bytes = len(pieces[0])
                    unsent.extend(pieces)
                    self._advance(sent)
                    break
                unsent.extend(pieces)
                self._unsent_bytes = sum(map(len, pieces))
            try:
                if len(unsent) > 1:
                    sent = sock.sendmsg(unsent[:_IOV])
                elif type(first := unsent[0]) is DescriptorFrame:
                    sent = send_descriptors(sock, first)
                else:
                    sent = sock.send(first)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._refused(error)
                return
            self._advance(sent)
        if unsent or self._writing:
            self._watch_writable()
        if connection.streams.writable:
            self._wake_writers()

    def _wake_writers(self) -> None:
        """Tell streams that have room for another item: credit came, or what waited has left."""
        idents = list(self.connection.streams.writable)
        self.connection.streams.writable.clear()
        for ident in idents:
            flow = self.flows.get(ident)
            if flow is not None:
                flow.on_writable()

    def _refused(self, error: OSError) -> None:
        self._unsent.clear()
        self._unsent_bytes = 0
        if not self.closed:
            self._loop.call_soon(self._broken, str(error))

    def _wake_for_buffers(self) -> None:
        """A buffer of the peer is not used here any more; called from any thread, in the midst of anything."""
        if self._buffers_due or self._pid != os.getpid():
            return
        self._buffers_due = True
        with contextlib.suppress(RuntimeError):  # the loop is closed
            if self._thread == threading.get_ident():
                self._loop.call_soon(self._flush_buffers)
            else:
                self._loop.call_soon_threadsafe(self._flush_buffers)

    def _flush_buffers(self) -> None:
        self._buffers_due = False
        if not self.closed:
            self.connection.buffers.flush()
            self._push()

    def _broken(self, reason: str) -> None:
        """Let the reader see what the peer still said, then end: a dead peer's last frames are worth having."""
        if self.closed:
            return
        self._readable()
        if not self.closed:
            self._deliver(self.connection.close(reason))

    def _advance(self, sent: int) -> None:
        self._unsent_bytes -= sent
        index = 0
        for piece in self._unsent:
            if sent < len(piece):
                break
            sent -= len(piece)
            index += 1
        del self._unsent[:index]
        if sent:
            self._unsent[0] = memoryview(self._unsent[0])[sent:]
        if self._drain_waiters and self._unsent_bytes <= HIGH_WATER:
            self._wake_drained()

    def _wake_drained(self) -> None:
        waiters, self._drain_waiters = self._drain_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _watch_writable(self) -> None:
        if self._paused and not self.connection.congested and not self.closed:
            self._paused = False
            self._read_with(self._readable)
        wanted = bool(self._unsent) and not self.closed
        if wanted and not self._writing:
            self._writing = True
            self._loop.add_writer(self._write_fd, self._flush)
        elif not wanted and self._writing:
            self._writing = False
            self._loop.remove_writer(self._write_fd)
            if self.on_room is not None:
                self._loop.call_soon(self.on_room, self)

    # time

    def _arm(self) -> None:
        at = None if self.closed else self.connection.next_timer()
        if self._timer is not None:
            if at is not None and at >= self._timer_at:
                return  # the timer that runs comes first anyway and looks again
            self._timer.cancel()
            self._timer = None
        if at is not None:
            self._timer_at = at
            self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self.closed:
            self._deliver(self.connection.handle_timer(self._loop.time()))
            self._arm()

    def _release(self) -> None:
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._fd)
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._write_fd)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._unsent.clear()
        self._unsent_bytes = 0
        self._wake_drained()
        self._sock.close()

"""The blocking driver: one socket and one Connection, usable from several threads, without a helper thread.

Leader and followers (leading.py): of the threads that wait for answers one reads, for all of them; the others sleep
until their answer is there or the leader leaves. Writing is under one lock and never blocks while holding it, so two
peers that send a lot to each other do not starve: a thread that cannot write reads meanwhile.

An exception that interrupts a thread between the socket and the protocol state (KeyboardInterrupt, or whatever a
signal handler raises) closes the link: whether bytes were taken cannot be known then. Nothing of routing, contracts or
payload types belongs here.

Longer than other files: reading, writing and ending a link meet under one lock, and a call from one object to another
would be paid for every message.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from smartipc.ipc.drivers.base import Flow, LinkHost, RemoteFault, Row, replies_of
from smartipc.ipc.drivers.descriptors import DescriptorReader, send_descriptors
from smartipc.ipc.drivers.hatching import AnsweringEnd, AskingEnd, joined, offered
from smartipc.ipc.drivers.inheritance import in_child
from smartipc.ipc.drivers.leading import Turns
from smartipc.ipc.errors import (
    ConnectionLost,
    FrameTooLarge,
    InvalidPayload,
    LocalProtocolError,
    RequestTimeout,
    SmartIpcError,
)
from smartipc.ipc.observe import traffic
from smartipc.ipc.protocol import handshake
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
    HatchAnswered,
    HatchOffered,
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
from smartipc.ipc.protocol.hatches import FEATURE as HATCH_FEATURE
from smartipc.ipc.protocol.refusals import requests_in
from smartipc.ipc.protocol.states import ConnectionState
from smartipc.ipc.protocol.straight import Asked
from smartipc.ipc.protocol.topics import Topics
from smartipc.ipc.transports.base import Conduit, Stream, write_fileno
from smartipc.ipc.transports.hatch import ROOM, Hatch
from smartipc.ipc.transports.hatch import available as hatch_available
from smartipc.ipc.transports.memory import memory_of
from smartipc.ipc.wire.frames import ID_STEP
from smartipc.ipc.wire.heads import Fault

T = TypeVar("T")

READ_SIZE = 64 * 1024
FEATURES: tuple[str, ...] = (*handshake.FEATURES, *((HATCH_FEATURE,) if hatch_available() else ()))
"""What links between workers of one host and user offer."""
_IOV = 512
_LONGEST_WAIT = 1.0
"""Seconds of the longest single read; the socket's own timeout is set anew only when a shorter one is needed."""
_STALL = 0.01
_YIELD = 0.0005
"""Seconds left to another thread that reads already."""
_TIMEVAL = struct.Struct("@ll")
_PENDING = object()
_SAID = -1
_OFTEN = 64
"""Requests after which a link is worth a hatch."""


class Link:
    """One connection for blocking code. Takes ownership of `sock`, which becomes blocking.

    Args:
        sock: a connected stream socket, or a conduit.
        connection: a fresh protocol state; it is started here.
        host: told what arrives, in whichever thread reads; its methods may call back into the link.
    """

    _asked = 0
    """How often the short way was taken by the stream; see _OFTEN."""
    _refused: frozenset[int] = frozenset()
    """Requests of which the socket refused a part: they arrived nowhere. Of no other can that be known here."""

    def __init__(self, sock: Stream, connection: Connection, host: LinkHost) -> None:
        self.connection = connection
        self.closed = False
        self.broken = False
        """The socket refuses bytes: nothing new can be said, what the peer still said can be read."""
        self.stuck = False
        """The socket had no room for all bytes; they go with the next read, send or `flush`."""
        self.more = False
        """The last read was a full one: another would not wait."""
        self.while_stalled: Callable[[], None] | None = None
        """Called again and again while a send waits for room: the owner may read elsewhere, so that no ring of
        senders waits for itself."""
        self.error: SmartIpcError | None = None
        self.flows: dict[int, Flow] = {}
        """The open streams and channels, by id; whoever puts one in takes it out."""
        self.answering: AnsweringEnd | None = None
        """Our side of the peer's hatch."""
        self._asking: AskingEnd | None = None
        self._offered: Hatch | None = None
        self._said = _SAID
        """Whether something was written to the stream of which it is not known that the peer has read it: what comes by
        the hatch must not overtake it. 0 for no, the id of a request whose answer will tell, else _SAID."""
        self._turns = Turns()
        self.watchers = self._turns.watchers
        """By thread: called when another thread has read for it; for threads that poll several links."""
        self._sock = sock
        self._host = host
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._events: deque[Event] = deque()
        self._results: dict[int, object] = {}
        self._rows: dict[int, Row] = {}
        """Whose answer goes to a row instead."""
        self._unsent: list[bytes | bytearray | memoryview] = []
        self._receive_timeout = 0.0
        self._recv: Callable[..., bytes] = sock.recv
        self._take = connection.receive_data
        self._straight = connection.straight
        self._buffers_due = False
        memory = memory_of(sock)
        traffic.ledger.opened(connection)
        connection.buffers.connect(memory, self._wake_for_buffers)
        if memory is not None and isinstance(sock, socket.socket):
            self._recv = DescriptorReader(sock, connection.buffers)
            self._take = connection.receive_message
        self._conduit = None if isinstance(sock, socket.socket) else sock
        self._unsettled = self._conduit is not None and not self._settled(self._conduit)
        if isinstance(sock, socket.socket):
            sock.setblocking(True)
        with self._lock:
            connection.start(time.monotonic())
            self._send_some()

    def __repr__(self) -> str:
        return f"<Link {'closed' if self.closed else 'open'} {self.connection!r}>"

    @property
    def peer(self) -> Identity | None:
        """What the peer says of itself, None before the handshake."""
        return self.connection.peer

    @property
    def outstanding(self) -> int:
        """Calls of ours without an answer, or whose answer nobody has taken, and open streams and channels."""
        return len(self._results) + len(self._rows) + len(self.flows)

    @property
    def socket(self) -> Stream:
        """The stream, for credentials only."""
        return self._sock

    def fileno(self) -> int:
        """Return the descriptor that is read from; -1 when closed."""
        return self._sock.fileno()

    def write_fileno(self) -> int:
        """Return the descriptor that is written to, mostly the same one; -1 when closed."""
        return write_fileno(self._sock)

    # saying

    def call(
        self, method: str, payload: bytes, *, timeout: float, headers: dict[str, str] | None = None, attempt: int = 1
    ) -> bytes:
        """Send a request and wait for the reply's payload.

        Raises:
            RequestTimeout: no reply within `timeout` seconds; the peer is told to cancel.
            ConnectionLost: the link ended; `processed` tells whether the request had been written.
            RemoteFault: the peer answered with an error.
            FrameTooLarge: the payload exceeds a limit.
            LocalProtocolError: the link was inherited through fork.
        """
        return self.finish(self.begin(method, payload, timeout=timeout, headers=headers, attempt=attempt))

    def ask(
        self,
        method: str,
        payload: bytes,
        *,
        timeout: float,
        headers: dict[str, str] | None = None,
        now: float | None = None,
    ) -> bytes:
        """Send a request and wait as `call` does, the short way: nobody else reads, and the answer is all that comes.

        Whatever else happens is left to `finish`. `now` is the monotonic time, if the caller has just looked.
        """
        if now is None:
            now = time.monotonic()
        if self._asking is not None and not self._said and headers is None and timeout >= _LONGEST_WAIT:
            try:
                asked = self._asking.ask(method, payload, timeout, now)
            except FrameTooLarge:
                raise
            except BaseException:
                self.abandon()
                raise
            if asked is not None:
                ident, answer = asked
                return self.finish(ident) if answer is None else answer
        return self._ask_by_stream(method, payload, now, timeout=timeout, headers=headers)

    def _ask_by_stream(
        self, method: str, payload: bytes, now: float, *, timeout: float, headers: dict[str, str] | None
    ) -> bytes:
        turns = self._turns
        if (
            headers is not None
            or timeout < _LONGEST_WAIT
            or self._receive_timeout != _LONGEST_WAIT
            or self._events
            or self._pid != os.getpid()
            or not turns.reading.acquire(False)
        ):
            return self.call(method, payload, timeout=timeout, headers=headers)
        ident, whole, answer = 0, False, None
        try:
            with self._lock:
                if not (self._unsent or self._buffers_due or self._events):
                    begun = self._straight.request(method, payload, now, timeout)
                    if begun is not None:
                        ident, piece = begun
                        self._results[ident] = _PENDING
                        whole = self._write(piece)
                        self._said = ident if whole else _SAID
            if whole:
                answer = self._read_answer(ident)
        except FrameTooLarge:
            raise
        except BaseException:
            self.abandon()
            raise
        finally:
            turns.reading.release()
            if turns.followers or turns.watchers:
                turns.announce()
        if answer is not None:
            self._asked += 1
            if self._asked == _OFTEN:
                self._offer_hatch()
            return answer
        self._said = _SAID
        if not ident:
            return self.call(method, payload, timeout=timeout)
        self._check_refused(ident, method)
        return self.finish(ident)

    def _read_answer(self, ident: int) -> bytes | None:
        """Read once, for as long as the socket's timeout says; if that is not the answer, leave it to be dispatched.

        Timers are left to whoever reads next.
        """
        try:
            data = self._recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            with self._lock:
                self._events.extend(self.connection.close(error.strerror or str(error)))
            return None
        now = time.monotonic()
        with self._lock:
            answer = self._straight.answered(ident, data, now)
            if answer is not None:
                del self._results[ident]
                if self._said == ident:
                    self._said = 0
                return answer
        self._events.extend(self._taken(data, now))
        return None

    def begin(
        self, method: str, payload: bytes, *, timeout: float, headers: dict[str, str] | None = None, attempt: int = 1
    ) -> int:
        """Send a request and return its id for `finish`; raises as call does, but for the answer."""

        def ask(now: float) -> int:
            ident = self.connection.request(method, payload, now, timeout=timeout, headers=headers, attempt=attempt)
            self._results[ident] = _PENDING
            return ident

        ident = self._enter(method, timeout, ask)
        self._check_refused(ident, method)
        return ident

    def post(self, method: str, payload: bytes, row: Row, *, timeout: float) -> None:
        """Send a request as `begin` does, whose answer goes to a row."""

        def ask(now: float) -> range:
            ident = self.connection.request(method, payload, now, timeout=timeout)
            return range(ident, ident + ID_STEP, ID_STEP)

        self._post(method, row, timeout, ask)

    def post_all(self, method: str, payload: bytes | bytearray, count: int, row: Row, *, timeout: float) -> None:
        """Send several requests in one frame, see Connection.request_all, as `post` does."""
        self._post(
            method,
            row,
            timeout,
            lambda now: self.connection.request_all(method, payload, count, now, timeout=timeout),
        )

    def _post(self, method: str, row: Row, timeout: float, ask: Callable[[float], range]) -> None:
        def enter(now: float) -> None:
            row.ids = ask(now)
            self._rows.update(dict.fromkeys(row.ids, row))

        self._enter(method, timeout, enter)
        # A row is one frame: its members arrive together or not at all.
        if row.ids[0] in self._refused and [ident for ident in row.ids if self._rows.pop(ident, None) is not None]:
            raise ConnectionLost(self._peer_name(), "it takes no more bytes", method=method, processed="no")

    def _enter(self, method: str, timeout: float, ask: Callable[[float], T]) -> T:
        """Let `ask` queue requests, given the time, and write them."""
        self._require_open(method)
        now = time.monotonic()
        try:
            with self._lock:
                self._require_connected(method)
                asked = ask(now)
                sent = self._send_some()
            if not sent:
                self._send_rest(now + timeout)
        except SmartIpcError:
            raise
        except BaseException:
            self.abandon()
            raise
        return asked

    def _check_refused(self, ident: int, method: str) -> None:
        """Give up a request of which the socket refused a part, unless it has its end already.

        That the link is broken says nothing of a request: it may have left before, and its handler may run.

        Raises:
            ConnectionLost: the request never arrived as a whole.
        """
        if ident in self._refused and self._results.get(ident) is _PENDING:
            del self._results[ident]
            raise ConnectionLost(self._peer_name(), "it takes no more bytes", method=method, processed="no")

    def finished(self, ident: int) -> bool:
        """Tell whether `finish` would return or raise without waiting."""
        return self._results.get(ident) is not _PENDING

    def finish(self, ident: int) -> bytes:
        """Wait for the answer of a request that was begun; raises as call does. An interrupt gives the request up."""
        results = self._results
        if results[ident] is _PENDING:
            self._await(ident)
        result = results.pop(ident)
        if isinstance(result, bytes):
            return result
        assert isinstance(result, BaseException)
        raise result

    def _await(self, ident: int) -> None:
        results = self._results
        leading = True
        try:
            while results[ident] is _PENDING:
                leading = True
                if self._turns.lead():
                    try:
                        while results[ident] is _PENDING:
                            self._read(_LONGEST_WAIT)
                    finally:
                        self._turns.leave()
                else:
                    leading = False
                    self._follow(_LONGEST_WAIT, lambda: results[ident] is _PENDING)
        except BaseException:
            if leading:
                self.abandon()
            self.cancel(ident)
            raise

    def cancel(self, ident: int) -> None:
        """Give a begun request up."""
        waited = self._results.pop(ident, None) is _PENDING or self._rows.pop(ident, None) is not None
        if waited and not self.closed:
            with self._lock:
                self.connection.cancel(ident)
                self._send_some()

    def notify(self, method: str, payload: bytes, *, headers: dict[str, str] | None = None) -> None:
        """Send a one-way message; raises FrameTooLarge, ConnectionLost and LocalProtocolError as call does."""
        self._require_open(method)
        self._say(lambda: self.connection.notify(method, payload, headers=headers), method)

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
        wait: bool = True,
    ) -> None:
        """Send a message to the peer's subscription `number`; raises as notify does.

        With `wait` off it returns although the socket has no room: what is unsent goes with the next read or send.
        """
        self._require_open(topic)
        self._say(
            lambda: self.connection.publish(
                number, topic, payload, headers=headers, stamp=stamp, sequence=sequence, sender=sender
            ),
            topic,
            wait=wait,
        )

    def publish_batch(self, number: int, topic: str, payload: bytes, *, headers: dict[str, str] | None = None) -> None:
        """Send several messages in one frame, as Connection.publish_batch, never waiting; raises as notify does."""
        self._require_open(topic)
        self._say(lambda: self.connection.publish_batch(number, topic, payload, headers=headers), topic, wait=False)

    def relay(self, say: Callable[[Topics], None], *, wait: bool = True) -> None:
        """Let `say` queue something of the connection's topics, and send it; raises, and waits, as publish does."""
        self._require_open("")
        self._say(lambda: say(self.connection.topics), "$topics", wait=wait)

    def consumed(self, number: int, count: int) -> None:
        """Give credit back for our subscription `number`; a closed link needs none."""
        if not self.closed:
            self._say(lambda: self.connection.consumed(number, count), wait=False)

    def reply(self, ident: int, payload: bytes, *, flush: bool = True) -> None:
        """Answer a request; ignored if it was cancelled or the link is closed.

        Never waits for a peer that does not read: what the socket does not take goes with the next read or `flush`.
        With `flush` off nothing is written yet, so that several replies leave together.

        Raises:
            FrameTooLarge: the reply exceeds a limit; answer with fail instead.
        """
        try:
            with self._lock:
                if not self.closed:
                    self.connection.reply(ident, payload)
                    if flush:
                        self._send_some()
        except SmartIpcError:
            raise
        except BaseException:
            self.abandon()
            raise

    def answer(self, ident: int, payload: bytes) -> bool:
        """Answer a request as `reply` does, if that is all there is to say; else do nothing and return False."""
        try:
            with self._lock:
                if self._unsent or self._buffers_due:
                    return False
                piece = self._straight.reply(ident, payload)
                if piece is None:
                    return False
                end = self.answering
                if end is None or end.asked != ident:
                    self._write(piece)
                elif len(piece) <= ROOM and end.hatch.answer(piece):
                    end.asked = 0
                else:
                    self._write(piece)
                    end.hatch.beckon()
        except BaseException:
            self.abandon()
            raise
        return True

    def fail(self, ident: int, fault: Fault) -> None:
        """Answer a request with an error; ignored, and never waits, as reply."""
        if not self.closed:
            self._say(lambda: self.connection.fail(ident, fault), wait=False)

    def goodbye(self, reason: str = "") -> None:
        """Take no new calls from the peer."""
        if not self.closed:
            self._say(lambda: self.connection.goodbye(reason), wait=False)

    def tell(self, what: Callable[[], T], *, flush: bool = True) -> T:
        """Do something to the connection's streams, and write what the socket takes without waiting.

        With `flush` off nothing is written yet, so that several items leave together.

        Raises:
            LocalProtocolError: the link was inherited through fork, or what `what` raises.
        """
        if self._pid != os.getpid():
            raise LocalProtocolError("this handle was inherited through fork; connect anew in the child")
        try:
            with self._lock:
                result = what()
                if flush and not self.closed:
                    self._send_some()
        except SmartIpcError:
            raise
        except BaseException:
            self.abandon()
            raise
        return result

    def flush(self) -> bool:
        """Write what the socket takes without waiting; return whether everything is out."""
        with self._lock:
            return self.closed or self._send_some()

    def flush_all(self, until: float | None = None) -> None:
        """Write until everything is out, reading meanwhile, the link is over, or that time."""
        try:
            if not self.flush():
                self._send_rest(until)
        except SmartIpcError:
            raise
        except BaseException:
            self.abandon()
            raise

    def _say(self, what: Callable[[], None], needed_for: str = "", *, wait: bool = True) -> None:
        """Queue and write; what is not `needed_for` anything is dropped in silence when the link is over."""
        try:
            with self._lock:
                if needed_for:
                    self._require_connected(needed_for)
                elif self.closed:
                    return
                what()
                sent = self._send_some()
            if wait and not sent:
                self._send_rest(None)
        except SmartIpcError:
            raise
        except BaseException:
            self.abandon()
            raise

    # reading

    def pump(self, timeout: float) -> None:
        """Read and dispatch once, waiting at most `timeout` seconds; 0 takes only what is there.

        While another thread reads, waits for it as long.
        """
        if self._turns.lead():
            try:
                self._read(timeout)
            finally:
                self._turns.leave()
        elif timeout > 0:
            self._follow(timeout, lambda: not self.closed)
        else:  # a poller finds it readable again at once: spinning, it would starve the reader of the interpreter
            time.sleep(_YIELD)

    def wait(self, done: Callable[[], bool], until: float | None = None) -> bool:
        """Read, or let another thread read, until `done`, the link is over, or the time; return done().

        Raises:
            LocalProtocolError: the link was inherited through fork.
        """
        if self._pid != os.getpid():
            raise LocalProtocolError("this handle was inherited through fork; connect anew in the child")
        leading = True
        try:
            while not done():
                left = _LONGEST_WAIT if until is None else min(_LONGEST_WAIT, until - time.monotonic())
                if self.closed or left <= 0:
                    return done()
                leading = self._turns.lead()
                if leading:
                    try:
                        self._read(left)
                    finally:
                        self._turns.leave()
                else:
                    self._follow(left, lambda: not done())
        except BaseException:
            if leading:
                self.abandon()
            raise
        return True

    def _follow(self, timeout: float, wanted: Callable[[], bool]) -> None:
        """Sleep while another thread leads and `wanted`; let timers pass meanwhile, the leader may not know ours."""
        timer = self.connection.next_timer()
        if timer is not None:
            timeout = min(timeout, timer - time.monotonic())
        if timeout > 0:
            self._turns.follow(timeout, wanted)
        if timer is not None and (now := time.monotonic()) >= timer and not self.closed:
            with self._lock:
                events = self.connection.handle_timer(now)
                self._send_some()
            for event in events:
                self._deliver(event)
            self._turns.announce()

    def hear(self) -> Asked | None:
        """Read once without waiting, as `pump(0)`; but a plain request that came alone is returned, not dispatched."""
        turns = self._turns
        asked = None
        if self._conduit is None and not self._events and turns.reading.acquire(False):
            try:
                data = self._recv(READ_SIZE, socket.MSG_DONTWAIT)
                now = time.monotonic()
                with self._lock:
                    asked = self._straight.requested(data, now)
                if asked is None:
                    self._events.extend(self._taken(data, now))
            except OSError:
                pass  # it will be met again by who knows what it means
            except BaseException:
                self.abandon()
                raise
            finally:
                turns.reading.release()
                if turns.followers or turns.watchers:
                    turns.announce()
        if asked is None:
            self.pump(0)
        return asked

    def _read(self, longest: float) -> None:
        """Read once as the leader, let timers pass, dispatch."""
        queue = self._events
        try:
            if not queue and not self.closed:
                queue.extend(self._receive(longest))
        except BaseException:
            self.abandon()
            raise
        self._dispatch()

    def _dispatch(self) -> None:
        queue = self._events
        try:
            while queue:
                self._deliver(queue.popleft())
        except BaseException:
            self.abandon()
            raise
        if self._turns.followers or self.watchers:
            self._turns.announce()

    def _receive(self, longest: float) -> list[Event]:
        try:
            data = self._wait_and_read(longest)
        except (BlockingIOError, InterruptedError):
            data = None
        except OSError as error:
            with self._lock:
                return self.connection.close(error.strerror or str(error))
        return self._taken(data, time.monotonic())

    def _taken(self, data: bytes | None, now: float) -> list[Event]:
        """Give what was read to the protocol, b"" for the end and None for nothing; let timers pass."""
        self.more = data is not None and len(data) == READ_SIZE
        with self._lock:
            if data is None:
                events = []
            elif data:
                events = self._take(data, now)
            else:
                events = self.connection.receive_eof(now)
            timer = self.connection.next_timer()
            if timer is not None and now >= timer:
                events += self.connection.handle_timer(now)
            if self.stuck or self._buffers_due or self.connection.has_data:
                self._send_some()
            elif self.connection.streams.writable:
                self._wake_writers()
        return events

    def _wait_and_read(self, longest: float) -> bytes:
        if self._conduit is not None:
            return self._wait_and_read_conduit(self._conduit, longest)
        assert isinstance(self._sock, socket.socket)
        if longest > 0:
            timer = self.connection.next_timer()
            if timer is not None:
                longest = min(longest, timer - time.monotonic())
        if longest <= 0:
            return self._recv(READ_SIZE, socket.MSG_DONTWAIT)
        longest = min(longest, _LONGEST_WAIT)
        if self.stuck:
            self._poll(longest, reading=True, writing=True)
            return self._recv(READ_SIZE, socket.MSG_DONTWAIT)
        if longest != self._receive_timeout:
            seconds = int(longest)
            microseconds = int((longest - seconds) * 1e6)
            if not seconds:
                microseconds = max(1000, microseconds)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(seconds, microseconds))
            self._receive_timeout = longest
        return self._recv(READ_SIZE)

    def _wait_and_read_conduit(self, conduit: Conduit, longest: float) -> bytes:
        timer = self.connection.next_timer()
        if timer is not None:
            longest = min(longest, timer - time.monotonic())
        if longest > 0:
            self._poll(min(longest, _LONGEST_WAIT), reading=True, writing=self.stuck)
        if self._unsettled:
            with self._lock:
                self._unsettled = not conduit.handshake()
            if self._unsettled:
                raise BlockingIOError
        return conduit.recv(READ_SIZE)

    # the hatch

    def _offer_hatch(self) -> None:
        """Make a hatch for the requests to come, where both sides can have one."""
        if not self.connection.hatches.negotiated:
            return
        hatch = self._offered = offered()
        if hatch is not None:
            self.tell(lambda: self.connection.hatches.offer(hatch.name))

    def _on_hatch_offered(self, event: HatchOffered) -> None:
        hatch = joined(event.name)
        if isinstance(hatch, Hatch):
            self.answering = AnsweringEnd(self, hatch, self._lock)
        refused = hatch if isinstance(hatch, str) else ""
        self.tell(lambda: self.connection.hatches.answer(refused))

    def _on_hatch_answered(self, event: HatchAnswered) -> None:
        hatch, self._offered = self._offered, None
        if hatch is not None:
            hatch.forget_name()
            if not event.refused:
                self._asking = AskingEnd(self, hatch, self._lock, self._results, _PENDING)
                in_child(self, Link._close_hatch)

    def _close_hatch(self) -> None:
        self._asking = None

    def take_aside(self, data: bytes) -> None:
        """Take a frame that came by the hatch."""
        now = time.monotonic()
        with self._lock:
            events = self.connection.receive_aside(data, now)
            self._send_some()
        for event in events:
            self._deliver(event)
        if self._turns.followers or self.watchers:
            self._turns.announce()

    def resend(self, frame: bytes) -> None:
        """Send a frame by the stream that nobody took from the hatch."""
        with self._lock:
            if not self.closed:
                self.connection.outbox.add_frame(frame)
                self._send_some()

    def _deliver(self, event: Event) -> None:
        match event:
            case ReplyReceived():
                if event.id in self._results:
                    self._results[event.id] = event.payload
                elif (row := self._rows.pop(event.id, None)) is not None:
                    row.reply(event.id, event.payload)
            case RequestReceived():
                self._host.on_request(self, event)
            case RepliesReceived():
                self._settle_all(event)
            case RequestsReceived():
                self._host.on_requests(self, event)
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
                self._fail_call(event.id, RemoteFault(event.fault))
            case CallExpired():
                self._fail_call(event.id, RequestTimeout(None))
            case StreamEvent():
                flow = self.flows.get(event.id)
                if flow is not None:
                    flow.on_event(event)
            case OpenReceived():
                self._host.on_open(self, event)
            case CancelReceived():
                self._host.on_cancel(self, event)
            case HatchOffered():
                self._on_hatch_offered(event)
            case HatchAnswered():
                self._on_hatch_answered(event)
            case Opened():
                self._host.on_opened(self)
            case GoodbyeReceived():
                self._host.on_goodbye(self, event)
            case Closed():
                self._on_closed(event)
            case _:  # PongReceived: nobody pings here yet
                pass

    def _settle_all(self, event: RepliesReceived) -> None:
        ids, pop = event.ids, self._rows.pop
        rows = [pop(ident, None) for ident in ids] if ids[0] in self._rows else []
        row = rows[0] if rows else None
        if row is not None and rows.count(row) == len(ids):
            row.replies(ids, event.payload)
            return
        self._rows.update((ident, one) for ident, one in zip(ids, rows, strict=False) if one is not None)
        payloads = replies_of(event)
        for index, ident in enumerate(ids):
            if isinstance(payloads, InvalidPayload):
                self._fail_call(ident, payloads)
            elif ident in self._results:
                self._results[ident] = payloads[index]
            elif (row := pop(ident, None)) is not None:
                row.reply(ident, payloads[index])

    def _fail_call(self, ident: int, error: SmartIpcError) -> None:
        if ident in self._results:
            self._results[ident] = error
        elif (row := self._rows.pop(ident, None)) is not None:
            row.failed(ident, error)

    # ending

    def close(self, reason: str = "closed here") -> None:
        """End the link: unanswered calls fail with ConnectionLost, unsent bytes are tried once."""
        if self._pid != os.getpid():
            self.closed = True
            self._sock.close()  # a forked copy: the parent's connection must not notice
            return
        with self._lock:
            self._send_some()
            events = self.connection.close(reason)
            if events and not self._unsent:
                self._send_some()
        for event in events:
            self._deliver(event)
        if events:
            self._turns.announce()

    def abandon(self) -> None:
        """End the link because a thread was interrupted at a place where the state of its bytes is unknown."""
        with self._lock:
            self._unsent.clear()
            events = self.connection.close("interrupted")
        for event in events:
            self._deliver(event)
        self._turns.announce()

    def _on_closed(self, event: Closed) -> None:
        self.closed = True
        traffic.ledger.closed(self.connection)
        self.error = event.error or ConnectionLost(self._peer_name(), event.reason)
        for ident, processed in event.lost:
            lost = ConnectionLost(self._peer_name(), event.reason, processed=processed)
            self._fail_call(ident, lost)
        self._host.on_closed(self, event)
        if self._offered is not None:
            self._offered.forget_name()
        if self._asking is not None:
            self._asking.hatch.wake()
        self._offered = self._asking = self.answering = None
        # A reader of another thread sits in recv: shutdown wakes it, close alone would not.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _peer_name(self) -> str:
        return (self.connection.peer.name if self.connection.peer else "") or "the peer"

    def _require_open(self, method: str) -> None:
        if self._pid != os.getpid():
            raise LocalProtocolError("this handle was inherited through fork; connect anew in the child")
        if self.broken and not self.closed:
            self.pump(0)
        if self.closed or self.broken:
            raise ConnectionLost(self._peer_name(), method=method, processed="no")

    def _require_connected(self, method: str) -> None:
        """Check again under the lock: another thread may just have ended the connection."""
        if self.connection.state is ConnectionState.CLOSED:
            raise ConnectionLost(self._peer_name(), method=method, processed="no")

    # writing

    def _send_some(self) -> bool:
        """Write what the socket takes at once; call under the lock. Return whether everything is out."""
        everything = self._send_at_once()
        if self.connection.streams.writable:
            self._wake_writers()
        if self.answering is not None and self.answering.asked:
            self.answering.hatch.beckon()  # the answer may have gone by the stream
        return everything

    def _wake_writers(self) -> None:
        """Tell streams that have room for another item; they only take note, for the lock is held."""
        writable = self.connection.streams.writable
        while writable:
            flow = self.flows.get(writable.pop())
            if flow is not None:
                flow.on_writable()

    def _write(self, piece: bytes) -> bool:
        """Write a frame; call under the lock, with nothing unsent. Return whether all of it is out."""
        try:
            sent = self._sock.send(piece, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.broken = True  # the reader finds out what happened, and what the peer still said
            self._refused = self._refused.union(requests_in((piece,)))
            return False
        if sent == len(piece):
            return True
        self._unsent.append(memoryview(piece)[sent:])
        self.stuck = True
        return False

    def _send_at_once(self) -> bool:
        connection, unsent = self.connection, self._unsent
        self._said = _SAID
        if self._unsettled:
            return True  # nothing to wait for but the peer: the reader goes on with it, and then writes
        if self._buffers_due:
            self._buffers_due = False
            connection.buffers.flush()
        while True:
            if not unsent:
                if not connection.has_data:
                    self.stuck = False
                    return True
                unsent.extend(connection.data_to_send())
            try:
                if len(unsent) == 1:
                    piece = unsent[0]
                    if type(piece) is DescriptorFrame:
                        sent = send_descriptors(self._sock, piece, socket.MSG_DONTWAIT)
                    else:
                        sent = self._sock.send(piece, socket.MSG_DONTWAIT)
                    if sent == len(unsent[0]):
                        unsent.clear()
                        continue
                else:
                    sent = self._sock.sendmsg(unsent[:_IOV], (), socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                self.stuck = True
                return False
            except OSError:
                self._refused = self._refused.union(requests_in(unsent))
                unsent.clear()  # the reader finds out what happened, and what the peer still said
                self.broken = True
                self.stuck = False
                return True
            self._advance(sent)

    def _settled(self, conduit: Conduit) -> bool:
        """Begin a conduit's own handshake, which comes before the first byte of ours; tell whether it is done."""
        try:
            return conduit.handshake()
        except OSError:
            return False  # the reader meets the same error, and ends the link with it

    def _poll(self, seconds: float, *, reading: bool, writing: bool) -> tuple[bool, bool]:
        """Wait for the descriptors; return whether there is something to read, and whether there is anything.

        Raises:
            OSError: the stream was closed meanwhile.
        """
        near, far = self.fileno(), self.write_fileno()
        if near < 0:
            raise OSError(errno.EBADF, "closed here")
        poller = select.poll()
        if near == far:
            poller.register(near, select.POLLIN * reading | select.POLLOUT * writing)
        else:
            if reading:
                poller.register(near, select.POLLIN)
            if writing:
                poller.register(far, select.POLLOUT)
        ready = poller.poll(seconds * 1000)
        return any(fd == near and events & ~select.POLLOUT for fd, events in ready), bool(ready)

    def _wake_for_buffers(self) -> None:
        """A buffer of the peer is not used here any more; called from any thread, in the midst of anything.

        Whoever has the lock, perhaps this very thread, says it with the next bytes; so does the next read.
        """
        if self._pid != os.getpid():
            return
        self._buffers_due = True
        if not self._lock.acquire(blocking=False):
            return
        whole = False
        try:
            if not self.closed:
                self._send_some()
            whole = True
        finally:
            self._lock.release()
            if not whole:
                self.abandon()

    def _advance(self, sent: int) -> None:
        index = 0
        for piece in self._unsent:
            if sent < len(piece):
                break
            sent -= len(piece)
            index += 1
        del self._unsent[:index]
        if sent:
            self._unsent[0] = memoryview(self._unsent[0])[sent:]

    def _send_rest(self, until: float | None) -> None:
        """Write until nothing is left or `until` has passed, reading meanwhile unless another thread does."""
        while not self.closed:
            left = _LONGEST_WAIT if self.while_stalled is None else _STALL
            if until is not None:
                left = min(left, until - time.monotonic())
            if left <= 0:
                return  # the rest goes with the next read: half a frame cannot be taken back
            lead = self._turns.lead()
            try:
                readable, ready = self._poll(left, reading=lead, writing=True)
                if lead and readable:
                    self._read(0)
            except OSError:
                return  # closed meanwhile
            finally:
                if lead:
                    self._turns.leave()
            if not ready and self.while_stalled is not None:
                self.while_stalled()
            with self._lock:
                if self._send_some():
                    return

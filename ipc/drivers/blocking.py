"""The blocking driver: one socket and one Connection, usable from several threads, without a helper thread.

Leader and followers: of the threads that wait for answers one reads, for all of them; the others sleep until their
answer is there or the leader leaves. Writing is under one lock and never blocks while holding it, so two peers that
send a lot to each other do not starve: a thread that cannot write reads meanwhile.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time

from smartipc.ipc.drivers.base import LinkHost, RemoteFault
from smartipc.ipc.errors import ConnectionLost, LocalProtocolError, RequestTimeout, SmartIpcError
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
    NotifyReceived,
    Opened,
    ReplyReceived,
    RequestReceived,
)
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.wire.heads import Fault

READ_SIZE = 256 * 1024
_IOV = 512
_LONGEST_WAIT = 1.0
"""Seconds of the longest single read; the socket's own timeout is set anew only when a shorter one is needed."""
_TIMEVAL = struct.Struct("@ll")
_PENDING = object()


class Link:
    """One connection for blocking code. Takes ownership of `sock`, which becomes blocking.

    Args:
        sock: a connected stream socket.
        connection: a fresh protocol state; it is started here.
        host: told what arrives, in whichever thread reads; its methods may call back into the link.
    """

    def __init__(self, sock: socket.socket, connection: Connection, host: LinkHost) -> None:
        self.connection = connection
        self.closed = False
        self.error: SmartIpcError | None = None
        self._sock = sock
        self._host = host
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._changed = threading.Condition(threading.Lock())
        self._leading = False
        self._results: dict[int, object] = {}
        self._unsent: list[bytes | memoryview] = []
        self._receive_timeout = 0.0
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
        """Calls of ours without an answer, or whose answer nobody has taken."""
        return len(self._results)

    @property
    def socket(self) -> socket.socket:
        """The socket, for selectors and credentials only."""
        return self._sock

    def fileno(self) -> int:
        """Return the descriptor; -1 when closed."""
        return self._sock.fileno()

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

    def begin(
        self, method: str, payload: bytes, *, timeout: float, headers: dict[str, str] | None = None, attempt: int = 1
    ) -> int:
        """Send a request and return its id for `finish`; raises as call does."""
        self._require_open(method)
        with self._lock:
            ident = self.connection.request(
                method, payload, time.monotonic(), timeout=timeout, headers=headers, attempt=attempt
            )
            self._results[ident] = _PENDING
            sent = self._send_some()
        if not sent:
            self._send_rest()
        return ident

    def finished(self, ident: int) -> bool:
        """Tell whether `finish` would return or raise without waiting."""
        return self._results.get(ident) is not _PENDING

    def finish(self, ident: int) -> bytes:
        """Wait for the answer of a request that was begun; raises as call does. An interrupt cancels the request."""
        results = self._results
        try:
            while results[ident] is _PENDING:
                if self._lead():
                    try:
                        while results[ident] is _PENDING:
                            self._read(_LONGEST_WAIT)
                    finally:
                        self._unlead()
                else:
                    with self._changed:
                        if self._leading and results[ident] is _PENDING:
                            self._changed.wait(_LONGEST_WAIT)
        except BaseException:
            self.cancel(ident)
            raise
        result = results.pop(ident)
        if type(result) is bytes:
            return result
        assert isinstance(result, BaseException)
        raise result

    def cancel(self, ident: int) -> None:
        """Give a begun request up."""
        if self._results.pop(ident, None) is _PENDING and not self.closed:
            with self._lock:
                self.connection.cancel(ident)
                self._send_some()

    def notify(self, method: str, payload: bytes, *, headers: dict[str, str] | None = None) -> None:
        """Send a one-way message; raises FrameTooLarge, ConnectionLost and LocalProtocolError as call does."""
        self._require_open(method)
        with self._lock:
            self.connection.notify(method, payload, headers=headers)
            sent = self._send_some()
        if not sent:
            self._send_rest()

    def publish(
        self,
        number: int,
        topic: str,
        payload: bytes,
        *,
        headers: dict[str, str] | None = None,
        retained: bool = False,
    ) -> None:
        """Send a message to the peer's subscription `number`; raises as notify does."""
        self._require_open(topic)
        with self._lock:
            self.connection.publish(number, topic, payload, headers=headers, retained=retained)
            sent = self._send_some()
        if not sent:
            self._send_rest()

    def consumed(self, number: int, count: int) -> None:
        """Give credit back for our subscription `number`; a closed link needs none."""
        with self._lock:
            if self.closed:
                return
            self.connection.consumed(number, count)
            self._send_some()

    def reply(self, ident: int, payload: bytes) -> None:
        """Answer a request; ignored if it was cancelled or the link is closed.

        Raises:
            FrameTooLarge: the reply exceeds a limit; answer with fail instead.
        """
        with self._lock:
            if self.closed:
                return
            self.connection.reply(ident, payload)
            sent = self._send_some()
        if not sent:
            self._send_rest()

    def fail(self, ident: int, fault: Fault) -> None:
        """Answer a request with an error; ignored as reply is."""
        with self._lock:
            if self.closed:
                return
            self.connection.fail(ident, fault)
            sent = self._send_some()
        if not sent:
            self._send_rest()

    def goodbye(self, reason: str = "") -> None:
        """Take no new calls from the peer."""
        with self._lock:
            if self.closed:
                return
            self.connection.goodbye(reason)
            self._send_some()

    # reading

    def pump(self, timeout: float) -> None:
        """Read and dispatch once, waiting at most `timeout` seconds; 0 takes only what is there.

        While another thread reads, waits for it as long.
        """
        if self._lead():
            try:
                self._read(timeout)
            finally:
                self._unlead()
        elif timeout > 0:
            with self._changed:
                if self._leading:
                    self._changed.wait(timeout)

    def _lead(self) -> bool:
        with self._changed:
            if self._leading:
                return False
            self._leading = True
            return True

    def _unlead(self) -> None:
        with self._changed:
            self._leading = False
            self._changed.notify_all()

    def _read(self, longest: float) -> None:
        """Read once as the leader, let timers pass, dispatch."""
        if self.closed:
            return
        try:
            data = self._receive(longest)
        except (BlockingIOError, InterruptedError):
            data = None
        except OSError as error:
            self._finish_closing(str(error))
            return
        now = time.monotonic()
        with self._lock:
            if data is None:
                events = []
            elif data:
                events = self.connection.receive_data(data, now)
            else:
                events = self.connection.receive_eof(now)
            timer = self.connection.next_timer()
            if timer is not None and now >= timer:
                events += self.connection.handle_timer(now)
            if self.connection.has_data:
                self._send_some()
        self._dispatch(events)

    def _receive(self, longest: float) -> bytes:
        if longest <= 0:
            return self._sock.recv(READ_SIZE, socket.MSG_DONTWAIT)
        timer = self.connection.next_timer()
        if timer is not None:
            left = timer - time.monotonic()
            if left <= 0:
                return self._sock.recv(READ_SIZE, socket.MSG_DONTWAIT)
            longest = min(longest, left)
        longest = min(longest, _LONGEST_WAIT)
        if longest != self._receive_timeout:
            seconds = int(longest)
            microseconds = max(1000, int((longest - seconds) * 1e6)) if seconds == 0 else int((longest - seconds) * 1e6)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(seconds, microseconds))
            self._receive_timeout = longest
        return self._sock.recv(READ_SIZE)

    def _dispatch(self, events: list[Event]) -> None:
        results = self._results
        for event in events:
            match event:
                case ReplyReceived():
                    if event.id in results:
                        results[event.id] = event.payload
                case RequestReceived():
                    self._host.on_request(self, event)
                case MessageReceived():
                    self._host.on_message(self, event)
                case NotifyReceived():
                    self._host.on_notify(self, event)
                case ConsumedReceived():
                    self._host.on_consumed(self, event)
                case ErrorReceived():
                    self._fail_call(event.id, RemoteFault(event.fault))
                case CallExpired():
                    self._fail_call(event.id, RequestTimeout(None))
                case CancelReceived():
                    self._host.on_cancel(self, event)
                case Opened():
                    self._host.on_opened(self)
                case GoodbyeReceived():
                    self._host.on_goodbye(self, event)
                case Closed():
                    self._on_closed(event)
                case _:  # PongReceived: nobody pings here yet
                    pass
        if len(events) > 1 or self.closed or (events and len(results) > 1):
            with self._changed:
                self._changed.notify_all()

    def _fail_call(self, ident: int, error: SmartIpcError) -> None:
        if ident in self._results:
            self._results[ident] = error

    # ending

    def close(self, reason: str = "closed here") -> None:
        """End the link: unanswered calls fail with ConnectionLost, unsent bytes are tried once."""
        if self._pid != os.getpid():
            self._sock.close()  # a forked copy: the parent's connection must not notice
            return
        self._finish_closing(reason)

    def _finish_closing(self, reason: str) -> None:
        with self._lock:
            events = self.connection.close(reason)
            if events and not self._unsent:
                self._send_some()
        self._dispatch(events)

    def _on_closed(self, event: Closed) -> None:
        self.closed = True
        self.error = event.error or ConnectionLost(self._peer_name(), event.reason)
        for ident, written in event.lost:
            lost = ConnectionLost(self._peer_name(), event.reason, processed="maybe" if written else "no")
            self._fail_call(ident, lost)
        self._host.on_closed(self, event)
        # A reader of another thread sits in recv: shutdown wakes it, close alone would not.
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()

    def _peer_name(self) -> str:
        return (self.connection.peer.name if self.connection.peer else "") or "the peer"

    def _require_open(self, method: str) -> None:
        if self._pid != os.getpid():
            raise LocalProtocolError("this handle was inherited through fork; connect anew in the child")
        if self.closed:
            raise ConnectionLost(self._peer_name(), method=method, processed="no")

    # writing

    def _send_some(self) -> bool:
        """Write what the socket takes at once; call under the lock. Return whether everything is out."""
        connection, unsent = self.connection, self._unsent
        while True:
            if not unsent:
                if not connection.has_data:
                    return True
                unsent.extend(connection.data_to_send())
            try:
                if len(unsent) == 1:
                    sent = self._sock.send(unsent[0], socket.MSG_DONTWAIT)
                else:
                    sent = self._sock.sendmsg(unsent[:_IOV], (), socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                unsent.clear()  # the reader finds out what happened, and what the peer still said
                return True
            self._advance(sent)

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

    def _send_rest(self) -> None:
        """Write until nothing is left, reading meanwhile unless another thread does."""
        while not self.closed:
            lead = self._lead()
            try:
                poller = select.poll()
                poller.register(self._sock, select.POLLOUT | (select.POLLIN if lead else 0))
                ready = poller.poll(_LONGEST_WAIT * 1000)
                if lead and ready and ready[0][1] & ~select.POLLOUT:
                    self._read(0)
            except (ValueError, OSError):
                return  # closed meanwhile
            finally:
                if lead:
                    self._unlead()
            with self._lock:
                if self.closed or self._send_some():
                    return

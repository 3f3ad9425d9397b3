"""The blocking client without a supervisor: the twin of client.py, without await, event loop or helper thread.

Whoever needs the connection makes it again: a thread that finds the link lost dials, with the delays that
protocol.reconnection gives, within the deadline of what it wants to do. Whoever waits for an answer reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import ssl
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from smartipc.ipc import links
from smartipc.ipc.address import parse
from smartipc.ipc.contracts import Topic
from smartipc.ipc.dispatch import Registry
from smartipc.ipc.drivers.base import Direct
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import (
    ConnectFailed,
    ConnectionLost,
    RequestTimeout,
    SmartIpcError,
)
from smartipc.ipc.links import EndSnapshot
from smartipc.ipc.observe.traffic import traffic
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import (
    Closed,
    ConsumedReceived,
    GoodbyeReceived,
    SubscribedReceived,
    TopicEvent,
)
from smartipc.ipc.protocol.handshake import RELAYED, Identity
from smartipc.ipc.protocol.reconnection import HOPELESS, ClientState, Reconnection, in_vain, why
from smartipc.ipc.routing import attempts
from smartipc.ipc.sync.call import Call
from smartipc.ipc.sync.endpoint import Endpoint
from smartipc.ipc.sync.exchanging import Desk, late
from smartipc.ipc.sync.hearing import Messages
from smartipc.ipc.sync.subscribing import Subscriptions
from smartipc.ipc.transports.factory import transport_for
from smartipc.ipc.trust.policy import check_connecting
from smartipc.ipc.trust.tokens import auth_for
from smartipc.ipc.wire.limits import Limits

StateListener = Callable[[str], Any]


class Line(Desk):
    """The Router of a client: to the one server, over whichever link there is. For any number of threads."""

    def __init__(
        self,
        address: str,
        identity: Identity,
        registry: Registry,
        *,
        token: str | bytes | None,
        tls: ssl.SSLContext | None,
        limits: Limits,
        timeout: float,
    ) -> None:
        super().__init__(links.alone(identity.name), registry)
        self.address = address
        self.listeners: list[StateListener] = []
        self.link: Link | None = None
        self.machine = Reconnection(time.monotonic() + timeout, again=not address.startswith("fd:"))
        self._client_identity = identity
        self._token = token
        self._tls = tls
        # How long a server may be silent is bounded where we wait for it, and is no violation of the protocol.
        self._limits = dataclasses.replace(limits, handshake_timeout=max(limits.handshake_timeout, 2 * timeout))
        self._timeout = timeout
        self._leaving = False
        self._dialling = threading.RLock()
        self.topics = Subscriptions(self, self.usable)
        self._ending = threading.Event()

    def __repr__(self) -> str:
        return f"<Line to {self.address} {self.machine.state}>"

    # the life of the connection

    def usable(self, until: float, name: str) -> Link:
        """Return a link that takes calls, made anew if need be.

        Raises:
            RequestTimeout: there is none by `until`.
            ConnectionLost: the client is closed.
            LocalProtocolError: the client was inherited through fork.
        """
        link = self._at_hand()
        if link is not None:
            return link
        self.require_own()
        if self._ending.is_set():
            raise ConnectionLost(self.address, "this client is closed", method=name, processed="no", retryable=False)
        if not self._dialling.acquire(timeout=max(0.0, until - time.monotonic())):
            raise self._none_yet(name)
        try:
            return self._make(until, name)
        finally:
            self._dialling.release()

    def _at_hand(self) -> Link | None:
        """Return the link, if it takes new work now."""
        link = self.link
        return None if link is None or link.closed or link.broken or self._leaving else link

    def _make(self, until: float, name: str) -> Link:
        while True:
            link = self.link
            if link is not None:
                if self._at_hand() is link:
                    return link
                self._see_out(link, until)
            if self.machine.state is ClientState.CLOSED or self._ending.is_set():
                raise ConnectionLost(self.address, self.machine.reason, method=name, processed="no", retryable=False)
            now = time.monotonic()
            delay = self.machine.delay(now, random.random())  # noqa: S311 - only jitter
            if self.machine.state is ClientState.RECONNECTING or self.machine.reason:
                if delay > until - now:
                    self._ending.wait(max(0.0, until - now))
                    raise self._none_yet(name)
                self._ending.wait(delay)
            failure = self._once(until)
            if failure is not None and self._gave_up(failure):
                raise in_vain(failure, self.address)

    def _see_out(self, link: Link, until: float) -> None:
        """Let a link end whose server is going: calls under way on it may still be answered."""
        while not link.closed and not link.broken and link.outstanding and time.monotonic() < until:
            link.pump(min(0.1, max(0.0, until - time.monotonic())))
        link.close("its server is going")
        self.link = None
        if self.machine.lost(time.monotonic(), str(link.error or "")):
            self._tell()

    def _gave_up(self, failure: SmartIpcError) -> bool:
        ended = self.machine.failed(time.monotonic(), why(failure), hopeless=isinstance(failure, HOPELESS))
        if ended:
            self._tell()
        return ended

    def _once(self, until: float) -> SmartIpcError | None:
        """Make one link and restore what the last one had; return why it failed, or None."""
        try:
            stream = transport_for(self.address, tls=self._tls).dial(max(0.001, until - time.monotonic()))
        except SmartIpcError as error:
            return error
        except BlockingIOError:
            return ConnectFailed(self.address, "its queue of connections is full")
        try:
            auth = auth_for(self._token, stream, accepted=False)
        except OSError as error:
            stream.close()
            return ConnectFailed(self.address, error.strerror or str(error))
        connection = Connection("client", self._client_identity, self._limits, auth=auth, features=RELAYED)
        link = Link(stream, connection, self)
        try:
            limit = min(until, time.monotonic() + self._timeout)
            while link.peer is None and not link.closed and (left := limit - time.monotonic()) > 0:
                link.pump(left)
            if link.closed:
                return link.error or ConnectionLost()
            if link.peer is None:
                link.close("no handshake in time")
                return ConnectFailed(self.address, "no handshake in time")
            self.topics.restore(link, limit)
        except ConnectionLost as lost:
            link.close("its subscriptions were not restored")
            return lost
        except SmartIpcError as error:
            return error
        except BaseException:
            link.close()
            raise
        link.while_stalled = self.read
        self.link = link
        self._leaving = False
        self.adopt(link)
        if self.machine.opened(time.monotonic()):
            self._tell()
        return None

    def _none_yet(self, name: str) -> RequestTimeout:
        reason = f"the connection is {self.machine.state.value}: {self.machine.reason or 'no server yet'}"
        return RequestTimeout(None, reason, method=name, processed="no")

    def end(self, grace: float) -> None:
        """Finish what runs here, let unsent bytes out, for at most `grace` seconds, and close the link."""
        if not self.own:
            self.close()
            return
        self._ending.set()
        with self.finishing:
            self.topics.stop()
            told = self.machine.close()  # first: the end of our link is then no loss
            link = self.link
            if link is not None and not link.closed and not self._gone:
                link.goodbye("the client is closing")
                self.finish(grace)
            self.close()
            if link is not None:
                link.close()
        if told:
            self._tell()

    def _tell(self) -> None:
        if self.machine.state is ClientState.CLOSED:
            self.topics.stop()
            self._over.set()
            self.wake()
        for listener in tuple(self.listeners):
            listener(self.machine.state.value)

    # Router

    def start(self, call: Call) -> None:
        """Send a call, making the connection first if need be; see Router."""
        links.only_one(call.to, call.slot)
        while not call.done and call.link is None:
            try:
                link = self.usable(call.deadline, call.method)
                left = call.deadline - time.monotonic()
                if left <= 0:
                    call.error = late(call)
                    return
                call.where = (link.peer.name if link.peer is not None else "") or "the server"
                call.ident = link.begin(
                    call.method, call.payload, timeout=left, headers=call.headers, attempt=call.attempt
                )
                call.link = link
            except RequestTimeout as error:
                call.error = late(call, error.waiting_for)
            except ConnectionLost as lost:
                self.failed(call, lost)

    def direct(self, name: str) -> Direct | None:  # noqa: ARG002 - there is one server
        """Return the link if it can be used now; see Router."""
        link = self._at_hand() if self.own else None
        if link is None or link.peer is None:
            return None
        return Direct(link, link.peer.name or "the server", True)

    def failed(self, call: Call, error: BaseException) -> None:
        """Decide on a call whose attempt failed: end it, or leave it to be started again."""
        closed = self.machine.state is ClientState.CLOSED
        decision = "raise" if closed else attempts.after(error, idempotent=call.idempotent, attempt=call.attempt)
        if decision == "raise":
            call.error = error
        elif decision == "retry":
            call.attempt += 1

    def restart(self, call: Call) -> None:
        """Start a call again whose attempt failed; see Desk."""
        link = self.link
        if link is not None and not link.closed and not self._leaving:
            # It refuses new calls and will go, or its handler's own call was lost: either way a moment later.
            link.pump(min(attempts.BACKOFF, max(0.0, call.deadline - time.monotonic())))
        self.start(call)

    def notify(self, call: Call) -> None:
        """Write one one-way message; see Router."""
        links.only_one(call.to, call.slot)
        while True:
            link = self.usable(call.deadline, call.method)
            with contextlib.suppress(ConnectionLost):  # it ended just now: nothing was written
                link.notify(call.method, call.payload, headers=call.headers)
                return

    def reach(self, call: Call) -> Link:
        """Return the link, made anew if need be; see Router."""
        links.only_one(call.to, call.slot)
        return self.usable(call.deadline, call.method)

    def everyone(self, call: Call) -> list[Call]:
        """Return the one call: the server is everybody; see Router."""
        return [call]

    def publish(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> None:
        """Hand a message to the server; see Router."""
        self.topics.publish(topic, encoded, headers=headers, retain=retain)

    def publish_nowait(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> int:
        """Hand a message to the server, or not; see Router."""
        self.require_own()
        if self._ending.is_set():
            raise ConnectionLost(self.address, "this client is closed", method=topic, processed="no", retryable=False)
        return self.topics.publish_nowait(self._at_hand(), topic, encoded, headers=headers, retain=retain)

    def subscribe(
        self, topic: Topic[Any] | str, *, queue: str | None, max_pending: int | None, overflow: str
    ) -> Messages[Any]:
        """Make a subscription at the server; see Router."""
        return self.topics.subscribe(topic, queue=queue, max_pending=max_pending, overflow=overflow)

    # LinkHost

    def on_topic(self, link: Link, event: TopicEvent) -> None:
        """Take the server's answer to a subscription; nothing else of the kind comes from a server."""
        if isinstance(event, SubscribedReceived):
            self.topics.on_subscribed(link, event)

    def on_consumed(self, link: Link, event: ConsumedReceived) -> None:  # noqa: ARG002 - the connection counts
        """Let publishers that wait for credit look again."""
        self.wake()

    def on_goodbye(self, link: Link, event: GoodbyeReceived) -> None:  # noqa: ARG002 - the shape of every host
        """Start no more calls on this link: the server is going, and another one may come."""
        if link is self.link:
            self._leaving = True

    def on_closed(self, link: Link, event: Closed) -> None:
        """Note the loss; the next one who needs a link makes it."""
        super().on_closed(link, event)
        if link is self.link and self.machine.lost(time.monotonic(), event.reason):
            self._tell()


class IpcClient(Endpoint):
    """One connection to a server, kept up. Made by `sync.connect`. Several threads may use it.

    The server's calls are answered, and `subscriber` functions run, in the *home* thread (the one that connected, or
    the one in `serve_forever`) while it waits in any member of this client: `request`, iteration, `serve_forever`.
    A lost connection is noticed, and made again, when a member is used.
    """

    def __init__(self, line: Line, registry: Registry, name: str) -> None:
        super().__init__(registry, line)
        self.address = line.address
        self.name = name
        self._line = line
        self._delivering = True

    def __repr__(self) -> str:
        return f"<IpcClient {self.name} of {self.address}: {self.state}>"

    @property
    def state(self) -> str:
        """The connection as last seen: "connecting", "connected", "reconnecting" or "closed"."""
        return self._line.machine.state.value

    @property
    def server(self) -> str:
        """The server's name; "" while there is no connection."""
        link = self._line.link
        return link.peer.name if link is not None and link.peer is not None and not link.closed else ""

    def snapshot(self) -> EndSnapshot:
        """Return the facts of this moment."""
        peers = (self.server,) if self.server else ()
        return EndSnapshot(self.name, self.address, self.state, peers, traffic())

    def on_state(self, function: StateListener) -> StateListener:
        """Call `function(state)` whenever the state changes, in the thread that notices; keep it short.

        `state` says so before any function is called, so another thread may read it first.
        """
        self._line.listeners.append(function)
        return function

    def closed(self, timeout: float | None = None) -> bool:
        """Wait until the client is closed, by us or for good, serving meanwhile in the home thread."""
        return self._line.stay(timeout)

    def serve_forever(self) -> None:
        """Answer the server's calls until the client is closed. The calling thread becomes the home thread."""
        self._line.home = threading.get_ident()
        self._line.stay(None)

    def close(self, grace: float = 5.0) -> None:
        """End the connection: handlers under way may finish for at most `grace` seconds. Later calls do nothing."""
        self._line.end(grace)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(
    address: str,
    *,
    name: str | None = None,
    token: str | bytes | None = None,
    tls: ssl.SSLContext | None = None,
    timeout: float = 10.0,
    limits: Limits | None = None,
) -> IpcClient:
    """Connect to a server: `with sync.connect(...) as client`.

    Tries until `timeout`, and again when the connection is lost and needed, for ever; see IpcClient.state.

    Args:
        address: where it listens; see docs/reference/addresses.md.
        name: what the server calls us; default "client:<pid>".
        token: the shared secret, where the server wants one.
        tls: for tls:// addresses.
        timeout: seconds to try for the first connection.
        limits: bounds of the connection.

    Raises:
        ConnectFailed: no connection within `timeout` seconds.
        AuthenticationFailed: the token is wrong, on either side.
        RemoteProtocolError: what listens there speaks another protocol.
        ValueError: the address is malformed.
    """
    links.check_options(name=name, limits=limits, timeout=timeout)
    check_connecting(parse(address), token=token, tls=tls)
    called = name or f"client:{os.getpid()}"
    registry = Registry("", called)
    line = Line(
        address,
        Identity(called, os.getpid()),
        registry,
        token=token,
        tls=tls,
        limits=limits or Limits(),
        timeout=timeout,
    )
    try:
        line.usable(time.monotonic() + 2 * timeout + 1, "")
    except BaseException:
        line.end(0.0)
        raise
    return IpcClient(line, registry, called)

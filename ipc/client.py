"""The async client without a supervisor: one link to one server, made again whenever it is lost.

What happens when is decided in protocol.reconnection, what becomes of a call in routing.attempts; the verbs are in
endpoint.py. The blocking twin is sync/client.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from smartipc.ipc import links
from smartipc.ipc.address import parse
from smartipc.ipc.contracts import Topic
from smartipc.ipc.dispatch import Registry
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import Direct, RemoteFault, Resume
from smartipc.ipc.drivers.dialling import dial
from smartipc.ipc.endpoint import Endpoint
from smartipc.ipc.errors import (
    ConnectFailed,
    ConnectionLost,
    RequestTimeout,
    SmartIpcError,
)
from smartipc.ipc.hearing import Messages
from smartipc.ipc.hosting import StandaloneHost
from smartipc.ipc.links import EndSnapshot
from smartipc.ipc.message import Peer
from smartipc.ipc.observe.traffic import traffic
from smartipc.ipc.opening import Opening
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import (
    Closed,
    ConsumedReceived,
    GoodbyeReceived,
    MessageReceived,
    SubscribedReceived,
    TopicEvent,
)
from smartipc.ipc.protocol.handshake import RELAYED, Identity
from smartipc.ipc.protocol.reconnection import HOPELESS, ClientState, Reconnection, in_vain, why
from smartipc.ipc.routing import attempts
from smartipc.ipc.serving import Server
from smartipc.ipc.subscribing import Subscriptions
from smartipc.ipc.tracing import outside
from smartipc.ipc.transports.factory import transport_for
from smartipc.ipc.trust.policy import check_connecting
from smartipc.ipc.trust.tokens import auth_for
from smartipc.ipc.wire.limits import Limits

StateListener = Callable[[str], Any]


class Line(StandaloneHost):
    """The Router of a client: to the one server, over whichever link there is.

    Args:
        address: where the server is.
        identity: what we say of ourselves.
        dispatcher: runs the handlers that the server calls.
    """

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
        self.address = address
        self.listeners: list[StateListener] = []
        self.link: Link | None = None
        self.ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.machine = Reconnection(self._loop.time() + timeout, again=not address.startswith("fd:"))
        self._identity = identity
        self._token = token
        self._tls = tls
        # How long a server may be silent is bounded where we wait for it, and is no violation of the protocol.
        self._limits = dataclasses.replace(limits, handshake_timeout=max(limits.handshake_timeout, 2 * timeout))
        self._timeout = timeout
        self.handlers = Server(links.alone(identity.name), registry, self)
        self._topics = Subscriptions(self._usable)
        self._leaving = False
        self._gone = asyncio.Event()
        self._changed: asyncio.Future[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._failure: SmartIpcError | None = None

    def __repr__(self) -> str:
        return f"<Line to {self.address} {self.machine.state}>"

    # the life of the connection

    async def open(self) -> None:
        """Connect for the first time, trying again until the timeout.

        Raises:
            ConnectFailed: in vain.
            AuthenticationFailed, RemoteProtocolError: the server is no such server, or does not want us.
        """
        self._keeper = self._loop.create_task(self._keep(), context=outside())
        try:
            while self.machine.state is ClientState.CONNECTING:
                await self.change(None)
            if self._keeper.done():
                await self._keeper
        except BaseException:
            await self.close(0.0)
            raise
        if self._failure is not None:
            await self.close(0.0)
            raise self._failure

    async def _keep(self) -> None:
        try:
            await self._keep_connected()
        finally:  # by a defect too: nobody shall wait for a connection that nobody makes
            if self.machine.close("this client is closed"):
                self._tell()
            self.ended.set()

    async def _keep_connected(self) -> None:
        """Make links, one after the other, until the end."""
        while True:
            failure = await self._once()
            if failure is None:
                assert self.link is not None
                await self._gone.wait()
                failure = self.link.error or ConnectionLost()
                if self.machine.lost(self._loop.time(), str(failure)):
                    self._tell()
            elif self.machine.failed(self._loop.time(), why(failure), hopeless=isinstance(failure, HOPELESS)):
                self._failure = in_vain(failure, self.address)
                self._tell()
            if self.machine.state is ClientState.CLOSED:
                return
            await asyncio.sleep(self.machine.delay(self._loop.time(), random.random()))  # noqa: S311 - only jitter

    async def _once(self) -> SmartIpcError | None:
        """Make one link and restore what the last one had; return why it failed, or None."""
        try:
            stream = await dial(transport_for(self.address, tls=self._tls), self._timeout)
        except SmartIpcError as error:
            return error
        except BlockingIOError:
            return ConnectFailed(self.address, "its queue of connections is full")
        try:
            auth = auth_for(self._token, stream, accepted=False)
        except OSError as error:
            stream.close()
            return ConnectFailed(self.address, error.strerror or str(error))
        link = Link(stream, Connection("client", self._identity, self._limits, auth=auth, features=RELAYED), self)
        try:
            async with asyncio.timeout(self._timeout):
                await link.opened()
                await self._topics.restore(link)
        except SmartIpcError as error:
            return error
        except TimeoutError:
            link.close("no handshake in time")
            return ConnectFailed(self.address, "no handshake in time")
        except BaseException:
            link.close()
            raise
        self.link = link
        self._leaving = False
        self._gone.clear()
        if link.closed:
            self._gone.set()
        self.handlers.links.add(link)
        if self.machine.opened(self._loop.time()):
            self._tell()
        return None

    async def close(self, grace: float) -> None:
        """End it: finish what runs here, let calls and unsent bytes out, for at most `grace` seconds in all.

        Cancelling it ends it at once.
        """
        until = self._loop.time() + grace
        try:
            if self._keeper is not None:
                self._keeper.cancel()
                await asyncio.wait({self._keeper})
                self._keeper = None
            link = self.link
            if link is not None and not link.closed:
                link.goodbye("the client is closing")
                await self.handlers.drain(grace)
                await link.aclose(max(0.0, until - self._loop.time()))
        finally:
            self.abandon()

    def abandon(self) -> None:
        """End it at once, whatever is under way. Again does nothing."""
        if self._keeper is not None:
            self._keeper.cancel()
        self.handlers.abandon()
        if self.link is not None:
            self.link.close()
        if self.machine.close():
            self._tell()
        self.ended.set()
        self._wake()

    def _tell(self) -> None:
        if self.machine.state is ClientState.CLOSED:
            self._topics.stop()
        self._wake()
        for listener in tuple(self.listeners):
            listener(self.machine.state.value)

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
        self._changed = None

    async def change(self, until: float | None) -> bool:
        """Wait until something about the connection changes, or until the time; tell which."""
        if self._changed is None:
            self._changed = self._loop.create_future()
        left = None if until is None else max(0.0, until - self._loop.time())
        done, _ = await asyncio.wait({self._changed}, timeout=left)
        return bool(done)

    # Router

    async def request(
        self,
        name: str,
        encoded: bytes,
        *,
        timeout: float,
        to: Peer | None = None,
        slot: int | None = None,
        key: str | None = None,  # noqa: ARG002 - there is one server: equal keys reach the same one
        headers: dict[str, str] | None = None,
        idempotent: bool = False,
        declared: tuple[type[BaseException], ...] = (),
        resume: Resume | None = None,
    ) -> bytes:
        """Call the server; see Router."""
        links.only_one(to, slot)
        until = (self._loop.time() if resume is None else resume.began) + timeout
        attempt = 1
        while True:
            link = await self._usable(name, until, timeout) if resume is None else resume.target
            left = until - self._loop.time()
            if left <= 0 and resume is None:
                raise RequestTimeout(timeout, method=name, processed="no" if attempt == 1 else "maybe")
            try:
                if resume is not None:
                    failure, resume = resume.failure, None
                    raise failure
                return await link.call(name, encoded, timeout=left, headers=headers, attempt=attempt)
            except RemoteFault as fault:
                error = fault.error(method=name, instance=_peer(link), declared=declared)
            except RequestTimeout as expired:
                raise RequestTimeout(timeout, method=name, instance=_peer(link), processed=expired.processed) from None
            except ConnectionLost as lost:
                lost.method, lost.instance = name, _peer(link)
                error = lost
            decision = attempts.after(error, idempotent=idempotent, attempt=attempt)
            if decision == "raise":
                raise error
            if decision == "retry":
                attempt += 1
            if link is self.link and link is not None and not link.closed:
                # It refuses new calls and will go, or its handler's own call was lost: either way a moment later.
                await self.change(min(until, self._loop.time() + attempts.BACKOFF * 2 ** (attempt - 1)))

    def direct(self, name: str) -> Direct | None:  # noqa: ARG002 - there is one server
        """Return the link if it can be used now; see Router."""
        link = self.link
        if link is None or link.closed or self._leaving or self.machine.state is not ClientState.CONNECTED:
            return None
        return Direct(link, link, True)

    async def reach(self, name: str, *, timeout: float, to: Peer | None, slot: int | None, key: str | None) -> Link:  # noqa: ARG002 - see request
        """Return the link as soon as there is one; see Router."""
        links.only_one(to, slot)
        return await self._usable(name, self._loop.time() + timeout, timeout)

    async def broadcast(
        self,
        name: str,
        encoded: bytes,
        *,
        timeout: float,
        headers: dict[str, str] | None,
        declared: tuple[type[BaseException], ...],
    ) -> list[tuple[str, bytes | BaseException]]:
        """Ask the server, which is everybody; see Router."""
        expected: tuple[type[BaseException], ...] = (SmartIpcError, *declared)
        try:
            answer: bytes | BaseException = await self.request(
                name, encoded, timeout=timeout, headers=headers, declared=declared
            )
        except expected as error:
            answer = error
        return [(_peer(self.link), answer)]

    async def publish(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> None:
        """Hand a message to the server; see Router."""
        await self._topics.publish(topic, encoded, headers=headers, retain=retain)

    def publish_nowait(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> int:
        """Hand a message to the server, or not; see Router."""
        if self.machine.state is ClientState.CLOSED:
            raise ConnectionLost(self.address, self.machine.reason, method=topic, processed="no", retryable=False)
        return self._topics.publish_nowait(self._at_hand(), topic, encoded, headers=headers, retain=retain)

    def subscribe(
        self, topic: Topic[Any] | str, *, queue: str | None, max_pending: int | None, overflow: str
    ) -> Messages[Any]:
        """Make a subscription at the server; see Router."""
        return self._topics.subscribe(topic, queue=queue, max_pending=max_pending, overflow=overflow)

    def _at_hand(self) -> Link | None:
        """Return the link, if it takes new work now."""
        link = self.link
        usable = link is not None and not link.closed and not self._leaving
        return link if usable and self.machine.state is ClientState.CONNECTED else None

    async def _usable(self, name: str, until: float | None = None, timeout: float | None = None) -> Link:
        while True:
            link = self._at_hand()
            if link is not None:
                return link
            if self.machine.state is ClientState.CLOSED:
                raise ConnectionLost(self.address, self.machine.reason, method=name, processed="no", retryable=False)
            if not await self.change(until):
                reason = f"the connection is {self.machine.state.value}: {self.machine.reason or 'no server yet'}"
                raise RequestTimeout(timeout, reason, method=name, processed="no")

    # LinkHost

    def on_message(self, link: Link, event: MessageReceived) -> None:
        """Pass it to its subscription."""
        self._topics.on_message(link, event)

    def on_topic(self, link: Link, event: TopicEvent) -> None:
        """Take the server's answer to a subscription; nothing else of the kind comes from a server."""
        if isinstance(event, SubscribedReceived):
            self._topics.on_subscribed(link, event)

    def on_consumed(self, link: Link, event: ConsumedReceived) -> None:  # noqa: ARG002 - the connection counts
        """Publish what waits for credit."""
        self._topics.look_again()

    def on_goodbye(self, link: Link, event: GoodbyeReceived) -> None:  # noqa: ARG002 - the shape of every host
        """Start no more calls on this link: the server is going, and another one may come."""
        if link is self.link:
            self._leaving = True

    def on_closed(self, link: Link, event: Closed) -> None:  # noqa: ARG002 - the shape of every host
        """Cancel what the server had asked for; the keeper sees the rest."""
        self.handlers.closed(link)
        self._topics.lost(link)
        if link is self.link:
            self._gone.set()
        self._wake()


class IpcClient(Endpoint):
    """One connection to a server, kept up. Made by `smartipc.connect`.

    Either side may call, notify, publish and subscribe. `address` is what was dialled; `name` is how the server
    sees us.
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
        """The connection now: "connecting", "connected", "reconnecting" or "closed"."""
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
        """Call `function(state)` whenever the state changes, on the event loop; keep it short.

        `state` says so before any function is called, so another thread may read it first.
        """
        self._line.listeners.append(function)
        return function

    async def closed(self) -> None:
        """Wait until the client is closed, by us or for good. Cancelling it changes nothing."""
        await self._line.ended.wait()

    async def serve_forever(self) -> None:
        """Answer the server's calls until the client is closed or this is cancelled; they are answered anyhow."""
        await self.closed()

    async def aclose(self, grace: float = 5.0) -> None:
        """End the connection: calls and handlers under way may finish for at most `grace` seconds.

        Later calls do nothing. Cancelling it closes at once. In a forked child it does nothing.
        """
        if self._inherited:
            return
        for task in self._background:
            task.cancel()
        try:
            if self._background:
                await asyncio.wait(self._background)
            await self._line.close(grace)
        finally:
            self._line.abandon()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def connect(
    address: str,
    *,
    name: str | None = None,
    token: str | bytes | None = None,
    tls: ssl.SSLContext | None = None,
    timeout: float = 10.0,
    limits: Limits | None = None,
) -> Opening[IpcClient]:
    """Connect to a server; to be awaited, or used in `async with`, which also closes.

    Tries until `timeout`, and again whenever the connection is lost, for ever; see IpcClient.state.

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
    where = parse(address)
    links.check_options(name=name, limits=limits, timeout=timeout)

    async def opened() -> IpcClient:
        called = name or f"client:{os.getpid()}"
        check_connecting(where, token=token, tls=tls)
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
        client = IpcClient(line, registry, called)
        await line.open()
        return client

    return Opening(opened)


def _peer(link: Link | None) -> str:
    return (link.peer.name if link is not None and link.peer is not None else "") or "the server"

"""The async server without a supervisor: one listener, any number of clients, each of which may be called too.

The verbs are in endpoint.py, handlers run in serving.py, topics are relayed by relay.py. The blocking twin is
sync/server.py.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import ssl
from types import TracebackType
from typing import Any, Self

from smartipc.ipc import links
from smartipc.ipc.address import parse
from smartipc.ipc.contracts import Topic
from smartipc.ipc.dispatch import Registry, check_peer
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import RemoteFault, Resume
from smartipc.ipc.endpoint import Endpoint
from smartipc.ipc.errors import ConnectionLost, LocalProtocolError, RequestTimeout, SmartIpcError
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
    TopicEvent,
)
from smartipc.ipc.protocol.handshake import RELAYED, Identity
from smartipc.ipc.relaying import Topics
from smartipc.ipc.serving import Server
from smartipc.ipc.trust.entrance import Entrance, listen
from smartipc.ipc.wire.limits import Limits

log = logging.getLogger("smartipc.server")
_ACCEPTS_PER_TURN = 64


class Exchange(StandaloneHost):
    """The Router of a server: to its clients, each over the link that it made.

    Args:
        identity: what we say of ourselves.
        registry: the handlers.
        limits: bounds of each connection.
    """

    def __init__(self, identity: Identity, registry: Registry, limits: Limits) -> None:
        self.clients: dict[Link, Peer] = {}
        self.closed = False
        self.handlers = Server(links.alone(identity.name), registry, self)
        self._identity = identity
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self.topics = Topics(identity, limits.message)
        self._entrance: Entrance | None = None

    def __repr__(self) -> str:
        return f"<Exchange with {len(self.clients)} clients>"

    # the door

    def listen(self, address: str, *, token: str | bytes | None, tls: ssl.SSLContext | None) -> str:
        """Begin to listen and return the bound address.

        Raises:
            ConnectFailed: it cannot be bound, or must not be without a token or TLS.
        """
        self._entrance = listen(address, token=token, tls=tls)
        self._loop.add_reader(self._entrance.fileno(), self._accept)
        return self._entrance.address

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            if self._entrance is None:
                return
            try:
                stream, auth = self._entrance.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                log.warning("cannot accept a connection: %s", error)
                return
            connection = Connection("server", self._identity, self._limits, auth=auth, features=RELAYED)
            link = Link(stream, connection, self)
            crowded_out = self._entrance.door.enter(link)
            if crowded_out is not None:
                crowded_out.close("too many are at the door")

    def stop_listening(self) -> None:
        """Take no more clients; later calls do nothing."""
        if self._entrance is not None:
            self._loop.remove_reader(self._entrance.fileno())
            self._entrance.close()
            for link in self._entrance.door:
                link.close("the server is closing")
            self._entrance = None

    async def close(self, grace: float) -> None:
        """Refuse new calls, finish what runs, let bytes out, for at most `grace` seconds, and close every link."""
        until = self._loop.time() + grace
        self.stop_listening()
        self.topics.stop()
        for link in tuple(self.clients):
            link.goodbye("the server is closing")
        await self.handlers.drain(grace)
        left = [link.aclose(max(0.0, until - self._loop.time())) for link in tuple(self.clients)]
        if left:
            await asyncio.gather(*left)
        self.closed = True

    def _require_open(self) -> None:
        if self.closed:
            raise LocalProtocolError("this server is closed")

    # Router

    def direct(self, name: str) -> None:
        """Return nothing: which client is meant must be looked at; see Router."""

    async def request(
        self,
        name: str,
        encoded: bytes,
        *,
        timeout: float,
        to: Peer | None = None,
        slot: int | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        idempotent: bool = False,  # noqa: ARG002 - a client that comes back is another one: nothing is retried
        declared: tuple[type[BaseException], ...] = (),
        resume: Resume | None = None,  # noqa: ARG002 - nothing is direct here
    ) -> bytes:
        """Call one client; see Router."""
        link, peer = self._link_of(name, to, slot, key)
        try:
            return await link.call(name, encoded, timeout=timeout, headers=headers)
        except RemoteFault as fault:
            error = fault.error(method=name, instance=peer.name, declared=declared)
        except RequestTimeout as expired:
            error = RequestTimeout(timeout, method=name, instance=peer.name, processed=expired.processed)
        except ConnectionLost as lost:
            lost.method, lost.instance = name, peer.name
            error = lost
        raise error

    async def reach(self, name: str, *, timeout: float, to: Peer | None, slot: int | None, key: str | None) -> Link:  # noqa: ARG002 - a client is there or not
        """Return the link of one client; see Router."""
        return self._link_of(name, to, slot, key)[0]

    async def broadcast(
        self,
        name: str,
        encoded: bytes,
        *,
        timeout: float,
        headers: dict[str, str] | None,
        declared: tuple[type[BaseException], ...],
    ) -> list[tuple[str, bytes | BaseException]]:
        """Ask every client, in the order they came; see Router."""
        self._require_open()
        expected: tuple[type[BaseException], ...] = (SmartIpcError, *declared)

        async def one(peer: Peer) -> tuple[str, bytes | BaseException]:
            try:
                return peer.name, await self.request(
                    name, encoded, timeout=timeout, to=peer, headers=headers, declared=declared
                )
            except expected as error:
                return peer.name, error

        return list(await asyncio.gather(*(one(peer) for peer in tuple(self.clients.values()))))

    async def publish(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> None:
        """Send to every subscription of every client and our own; see Router."""
        self._require_open()
        await self.topics.publish(topic, encoded, headers=headers, retain=retain)

    def publish_nowait(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> int:
        """Send to all or to none; see Router."""
        self._require_open()
        return self.topics.publish_nowait(topic, encoded, headers=headers, retain=retain)

    def subscribe(
        self, topic: Topic[Any] | str, *, queue: str | None, max_pending: int | None, overflow: str
    ) -> Messages[Any]:
        """Subscribe to what clients publish; see Router."""
        return self.topics.subscribe(topic, queue=queue, max_pending=max_pending, overflow=overflow)

    def _link_of(self, name: str, to: Peer | None, slot: int | None, key: str | None) -> tuple[Link, Peer]:
        if to is None or slot is not None or key is not None:
            raise LocalProtocolError("a server calls one of its clients: say to=, one of server.clients")
        check_peer(to)
        for link, peer in self.clients.items():
            if peer.slot == to.slot:
                return link, peer
        raise ConnectionLost(to.name, "it is not connected (any more)", method=name, instance=to.name, processed="no")

    # LinkHost

    def on_opened(self, link: Link) -> None:
        """List the client."""
        assert link.peer is not None
        number = next(self._numbers)
        if self._entrance is not None:
            self._entrance.door.leave(link)
        self.clients[link] = Peer(link.peer.name, number, link.peer.generation, link.peer.pid, ready=True)
        self.topics.join(link, number)
        self.handlers.links.add(link)

    def on_topic(self, link: Link, event: TopicEvent) -> None:
        """Relay it."""
        self.topics.on_topic(link, event)

    def on_consumed(self, link: Link, event: ConsumedReceived) -> None:
        """Send what waited for credit."""
        self.topics.on_consumed(link, event)

    def on_closed(self, link: Link, event: Closed) -> None:  # noqa: ARG002 - the shape of every host
        """Forget the client and cancel what it had asked for."""
        if self._entrance is not None:
            self._entrance.door.leave(link)
        self.clients.pop(link, None)
        self.topics.leave(link)
        self.handlers.closed(link)


class IpcServer(Endpoint):
    """A server of any number of clients. Made by `smartipc.serve`.

    Either side may call, notify, publish and subscribe. `address` is the bound address, with the real port.
    """

    def __init__(self, exchange: Exchange, registry: Registry, name: str, address: str) -> None:
        super().__init__(registry, exchange)
        self.address = address
        self.name = name
        self._exchange = exchange
        self._delivering = True
        self._ended = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<IpcServer {self.name} at {self.address}: {len(self.clients)} clients>"

    @property
    def clients(self) -> tuple[Peer, ...]:
        """The clients that are connected, in the order they came. `slot` numbers them and is never used again."""
        return tuple(self._exchange.clients.values())

    @property
    def state(self) -> str:
        """Return "serving", or "closed" from the beginning of the end."""
        return "serving" if self._closing is None else "closed"

    def snapshot(self) -> EndSnapshot:
        """Return the facts of this moment."""
        peers = tuple(one.name for one in self.clients)
        return EndSnapshot(self.name, self.address, self.state, peers, traffic())

    async def closed(self) -> None:
        """Wait until the server is closed. Cancelling it changes nothing."""
        await self._ended.wait()

    async def serve_forever(self) -> None:
        """Serve until the server is closed or this is cancelled; clients are served at any other time, too."""
        await self.closed()

    async def aclose(self, grace: float = 5.0) -> None:
        """End the server: calls and handlers under way may finish for at most `grace` seconds.

        Later calls wait for the first one. Cancelling it does not stop the end. In a forked child it does nothing.
        """
        if self._inherited:
            return
        if self._closing is None:
            self._closing = self._loop.create_task(self._end(grace))
        await asyncio.shield(self._closing)

    async def _end(self, grace: float) -> None:
        self._exchange.stop_listening()
        for task in self._background:
            task.cancel()
        await self._exchange.close(grace)
        self._ended.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def serve(
    address: str,
    *,
    name: str | None = None,
    token: str | bytes | None = None,
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
) -> Opening[IpcServer]:
    """Listen for clients; to be awaited, or used in `async with`, which also closes.

    Args:
        address: where; see docs/reference/addresses.md.
        name: what clients call us; default "server".
        token: the shared secret that clients must know.
        tls: for tls:// addresses.
        limits: bounds of each connection.

    Raises:
        ConnectFailed: the address cannot be bound, or must not be without token and TLS.
        ValueError: the address is malformed.
        LocalProtocolError: `name` is no text, or `limits` are none.
    """
    parse(address)
    links.check_options(name=name, limits=limits)

    async def opened() -> IpcServer:
        called = name or "server"
        registry = Registry("", called)
        exchange = Exchange(Identity(called, os.getpid()), registry, limits or Limits())
        bound = exchange.listen(address, token=token, tls=tls)
        return IpcServer(exchange, registry, called, bound)

    return Opening(opened)

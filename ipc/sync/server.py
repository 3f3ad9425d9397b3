"""The blocking server without a supervisor: the twin of server.py, without await, event loop or helper thread.

It accepts, reads and serves in the thread that is in `serve_forever`, or waits in another member.
"""

from __future__ import annotations

import itertools
import logging
import os
import ssl
import threading
import time
from types import TracebackType
from typing import Any, Self, cast

from smartipc.ipc import links
from smartipc.ipc.contracts import Topic
from smartipc.ipc.dispatch import Registry, check_peer
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import ConnectionLost, LocalProtocolError
from smartipc.ipc.links import EndSnapshot
from smartipc.ipc.message import Peer
from smartipc.ipc.observe.traffic import traffic
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import Closed, ConsumedReceived, TopicEvent
from smartipc.ipc.protocol.handshake import RELAYED, Identity
from smartipc.ipc.sync.call import Call
from smartipc.ipc.sync.endpoint import Endpoint
from smartipc.ipc.sync.exchanging import Desk, late
from smartipc.ipc.sync.hearing import Messages
from smartipc.ipc.sync.relaying import Topics
from smartipc.ipc.transports.base import Listener
from smartipc.ipc.trust.entrance import Entrance, listen
from smartipc.ipc.wire.limits import Limits

log = logging.getLogger("smartipc.server")
_ACCEPTS_PER_TURN = 64


class Exchange(Desk):
    """The Router of a server: to its clients, each over the link that it made. For any number of threads."""

    def __init__(self, identity: Identity, registry: Registry, limits: Limits) -> None:
        super().__init__(links.alone(identity.name), registry)
        self.clients: dict[Link, Peer] = {}
        self._server_identity = identity
        self._limits = limits
        self._numbers = itertools.count(1)
        self._entrance: Entrance | None = None
        self.topics = Topics(self, identity, limits.message)

    def __repr__(self) -> str:
        return f"<Exchange with {len(self.clients)} clients>"

    # the door

    def listen(self, address: str, *, token: str | bytes | None, tls: ssl.SSLContext | None) -> str:
        """Begin to listen and return the bound address.

        Raises:
            ConnectFailed: it cannot be bound, or must not be without a token or TLS.
        """
        self._entrance = listen(address, token=token, tls=tls)
        self._listener = cast("Listener", self._entrance)  # the base waits for it, accepting is ours
        self._ready.register(self._entrance.fileno())
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
            connection = Connection("server", self._server_identity, self._limits, auth=auth, features=RELAYED)
            link = Link(stream, connection, self)
            link.while_stalled = self.read
            self.adopt(link)
            crowded_out = self._entrance.door.enter(link)
            if crowded_out is not None:
                crowded_out.close("too many are at the door")

    def _watch_writable(self, link: Link) -> None:
        super()._watch_writable(link)
        if not link.stuck:
            self.topics.has_room(link)

    def end(self, grace: float) -> None:
        """Refuse new calls, finish what runs, let bytes out, for at most `grace` seconds, and close every link."""
        if not self.own:
            self.close()
            return
        if self.work.running and threading.get_ident() == self.home:
            self._over.set()  # a handler ends its own server: `serve_forever` returns behind it
            return
        with self.finishing:
            self.topics.stop()
            if not self._gone:
                self.goodbye()
                self.finish(grace)
            self.close()

    # Router

    def start(self, call: Call) -> None:
        """Send a call to one client; see Router."""
        self.require_own()
        try:
            link = self._link_of(call)
            left = call.deadline - time.monotonic()
            if left <= 0:
                call.error = late(call)
                return
            call.ident = link.begin(call.method, call.payload, timeout=left, headers=call.headers)
            call.link = link
        except ConnectionLost as lost:
            lost.method, lost.instance = call.method, call.where
            call.error = lost

    def direct(self, name: str) -> None:
        """Return none: every call names its client; see Router."""

    def notify(self, call: Call) -> None:
        """Write one one-way message to one client; see Router."""
        self.require_own()
        self._link_of(call).notify(call.method, call.payload, headers=call.headers)

    def reach(self, call: Call) -> Link:
        """Return the link of one client; see Router."""
        self.require_own()
        return self._link_of(call)

    def everyone(self, call: Call) -> list[Call]:
        """Return one call for every client, in the order they came; see Router."""
        self.require_open()
        return [
            Call(
                call.method,
                call.payload,
                timeout=call.timeout,
                headers=call.headers,
                declared=call.declared,
                to=peer,
            )
            for peer in list(self.clients.values())
        ]

    def publish(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> None:
        """Send to every subscription of every client and our own; see Router."""
        self.require_open()
        self.topics.publish(topic, encoded, headers=headers, retain=retain)

    def publish_nowait(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> int:
        """Send to all or to none; see Router."""
        self.require_open()
        return self.topics.publish_nowait(topic, encoded, headers=headers, retain=retain)

    def subscribe(
        self, topic: Topic[Any] | str, *, queue: str | None, max_pending: int | None, overflow: str
    ) -> Messages[Any]:
        """Subscribe to what clients publish; see Router."""
        return self.topics.subscribe(topic, queue=queue, max_pending=max_pending, overflow=overflow)

    def _link_of(self, call: Call) -> Link:
        to = call.to
        if to is None or call.slot is not None or call.key is not None:
            raise LocalProtocolError("a server calls one of its clients: say to=, one of server.clients")
        check_peer(to)
        call.where = to.name
        for link, peer in list(self.clients.items()):
            if peer.slot == to.slot:
                return link
        gone = "it is not connected (any more)"
        raise ConnectionLost(to.name, gone, method=call.method, instance=to.name, processed="no")

    # LinkHost

    def on_opened(self, link: Link) -> None:
        """List the client."""
        assert link.peer is not None
        number = next(self._numbers)
        if self._entrance is not None:
            self._entrance.door.leave(link)
        self.topics.join(link, number)
        self.clients[link] = Peer(link.peer.name, number, link.peer.generation, link.peer.pid, ready=True)
        self.call_home()

    def on_topic(self, link: Link, event: TopicEvent) -> None:
        """Relay it."""
        self.topics.on_topic(link, event)

    def on_consumed(self, link: Link, event: ConsumedReceived) -> None:
        """Send what waited for credit."""
        self.topics.on_consumed(link, event)

    def on_closed(self, link: Link, event: Closed) -> None:
        """Forget the client; what it had asked for is skipped."""
        super().on_closed(link, event)
        if self._entrance is not None:
            self._entrance.door.leave(link)
        self.clients.pop(link, None)
        self.topics.leave(link)


class IpcServer(Endpoint):
    """A server of any number of clients. Made by `sync.serve`. Several threads may use it.

    Clients are accepted, and handlers and `subscriber` functions run one at a time, in the *home* thread (the one that
    is in `serve_forever`, else the one that made the server) while it waits in any member of this server.
    """

    def __init__(self, exchange: Exchange, registry: Registry, name: str, address: str) -> None:
        super().__init__(registry, exchange)
        self.address = address
        self.name = name
        self._exchange = exchange
        self._delivering = True

    def __repr__(self) -> str:
        return f"<IpcServer {self.name} at {self.address}: {len(self.clients)} clients>"

    @property
    def clients(self) -> tuple[Peer, ...]:
        """The clients that are connected, in the order they came. `slot` numbers them and is never used again."""
        return tuple(self._exchange.clients.values())

    @property
    def state(self) -> str:
        """Return "serving", or "closed" from the beginning of the end."""
        return "closed" if self._exchange.over else "serving"

    def snapshot(self) -> EndSnapshot:
        """Return the facts of this moment."""
        peers = tuple(one.name for one in self.clients)
        return EndSnapshot(self.name, self.address, self.state, peers, traffic())

    def closed(self, timeout: float | None = None) -> bool:
        """Wait until the server is closed, or for `timeout` seconds, serving in the home thread; tell whether it is."""
        return self._exchange.stay(timeout)

    def serve_forever(self) -> None:
        """Serve until the server is closed, from another thread or by a handler.

        The calling thread becomes the home thread. An exception that interrupts it (KeyboardInterrupt) goes through.

        Raises:
            LocalProtocolError: the server was inherited through fork.
        """
        self._exchange.home = threading.get_ident()
        self._exchange.stay(None)

    def close(self, grace: float = 5.0) -> None:
        """End the server: calls and handlers under way may finish for at most `grace` seconds.

        Called by a handler it returns at once, and `serve_forever` returns behind the handler.
        """
        self._exchange.end(grace)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(
    address: str,
    *,
    name: str | None = None,
    token: str | bytes | None = None,
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
) -> IpcServer:
    """Listen for clients: `with sync.serve(...) as server: server.serve_forever()`.

    Args:
        address: where; see docs/reference/addresses.md.
        name: what clients call us; default "server".
        token: the shared secret that clients must know.
        tls: for tls:// addresses.
        limits: bounds of each connection.

    Raises:
        ConnectFailed: the address cannot be bound, or must not be without token and TLS.
        ValueError: the address is malformed.
    """
    links.check_options(name=name, limits=limits)
    called = name or "server"
    registry = Registry("", called)
    exchange = Exchange(Identity(called, os.getpid()), registry, limits or Limits())
    try:
        bound = exchange.listen(address, token=token, tls=tls)
    except BaseException:
        exchange.close()
        raise
    return IpcServer(exchange, registry, called, bound)

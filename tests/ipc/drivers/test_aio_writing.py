"""When the asyncio link writes: at once what somebody may stand still for, in one piece what belongs together."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import ConsumedReceived, Event, NotifiesReceived, NotifyReceived
from smartipc.ipc.protocol.handshake import Identity


class Peer:
    """The other end of a link, read by hand."""

    def __init__(self, sock: socket.socket, connection: Connection) -> None:
        self._sock = sock
        self._connection = connection

    def read(self) -> list[Event]:
        """Return what has been written by now, without giving the loop a turn."""
        try:
            return self._connection.receive_data(self._sock.recv(65536), 0.0)
        except BlockingIOError:
            return []


def play(scene: Callable[[Link, Peer], Awaitable[None]]) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        link = Link(near, Connection("server", Identity("s")), QuietHost())
        connection = Connection("client", Identity("c"))
        connection.start(0.0)
        far.sendall(b"".join(connection.data_to_send()))
        async with asyncio.timeout(10):
            await link.opened()
        far.setblocking(False)
        peer = Peer(far, connection)
        peer.read()
        await asyncio.sleep(0)
        await scene(link, peer)
        link.close()
        far.close()

    asyncio.run(main())


def test_credit_is_given_back_at_once_however_long_the_turn() -> None:
    async def scene(link: Link, peer: Peer) -> None:
        for count in (4, 8, 12):
            link.consumed(1, count)
            assert peer.read() == [ConsumedReceived(1, count)]

    play(scene)


def test_what_follows_the_first_of_a_turn_leaves_together_at_its_end() -> None:
    async def scene(link: Link, peer: Peer) -> None:
        for number in range(3):
            link.notify("c.m", bytes([number]))
        assert [type(event) for event in peer.read()] == [NotifyReceived]
        assert peer.read() == []
        await asyncio.sleep(0)
        assert [type(event) for event in peer.read()] == [NotifiesReceived]

    play(scene)


def test_a_corked_link_writes_not_even_the_first_before_the_end_of_the_turn() -> None:
    async def scene(link: Link, peer: Peer) -> None:
        link.cork()
        for number in range(3):
            link.notify("c.m", bytes([number]))
        assert peer.read() == []
        await asyncio.sleep(0)
        assert [type(event) for event in peer.read()] == [NotifiesReceived]
        link.notify("c.m", b"\x03")
        assert [type(event) for event in peer.read()] == [NotifyReceived]

    play(scene)

"""The asyncio link between the moment its connection ends and the moment that its owner is told."""

from __future__ import annotations

import asyncio
import socket

import pytest

from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.errors import ConnectionLost
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import Closed, NotifyReceived
from smartipc.ipc.protocol.handshake import Identity


class Talkative(QuietHost):
    """Says something over the link whenever something comes."""

    def __init__(self) -> None:
        self.raised: list[BaseException] = []
        self.over = asyncio.Event()

    def on_notify(self, link: Link, event: NotifyReceived) -> None:
        for say in (
            lambda: link.notify("c.m", b"\x01"),
            lambda: link.publish(1, "a.b", b"\x01"),
            lambda: link.publish_batch(1, "a.b", b"\xdd\x00\x00\x00\x00"),
            lambda: link.begin("c.m", b"\x01", timeout=1),
        ):
            try:
                say()
            except Exception as error:
                self.raised.append(error)

    def on_closed(self, link: Link, event: Closed) -> None:
        self.over.set()


def test_what_is_said_after_the_peers_last_bytes_is_lost_not_misuse() -> None:
    async def scene() -> None:
        near, far = socket.socketpair()
        host = Talkative()
        link = Link(near, Connection("server", Identity("s")), host)
        peer = Connection("client", Identity("c"))
        peer.start(0.0)
        peer.notify("s.m", b"\x01", headers={"a": "b"})
        far.sendall(b"".join(peer.data_to_send()) + b"\x00" * 16)  # the zeroes break the protocol, in the same read
        async with asyncio.timeout(10):
            await host.over.wait()
        assert [type(error) for error in host.raised] == [ConnectionLost] * 4
        assert all(error.processed == "no" for error in host.raised if isinstance(error, ConnectionLost))
        with pytest.raises(ConnectionLost):
            link.notify("c.m", b"")
        far.close()

    asyncio.run(scene())

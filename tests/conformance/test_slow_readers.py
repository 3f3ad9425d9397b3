"""A peer that sends and does not read: it is not heard until it does, in both flavours, and nothing is lost."""

from __future__ import annotations

import asyncio
import select
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from smartipc.ipc.drivers import aio
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import RequestReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.sync.testing import Stage
from smartipc.ipc.transports.unix import UnixSocketTransport
from smartipc.ipc.wire import codec, heads
from smartipc.ipc.wire.frames import HEADER, HEADER_SIZE, PREFACE, Kind, frame
from smartipc.ipc.wire.limits import Limits

SIZE = 60_000
PAYLOAD = codec.encode("x" * SIZE)
REQUESTS = 900
HEAD = heads.encoder.encode(heads.RequestHead("one.echo", 60_000))


class Echo(QuietHost):
    def on_request(self, link: aio.Link, event: RequestReceived) -> None:
        link.reply(event.id, event.payload)


@contextmanager
def async_server() -> Iterator[socket.socket]:
    near, far = socket.socketpair()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        link = aio.Link(far, Connection("server", Identity("s")), Echo())
        while not link.closed:
            await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    yield near
    near.close()
    thread.join(10.0)
    loop.close()
    assert not thread.is_alive()


@contextmanager
def blocking_server() -> Iterator[socket.socket]:
    with tempfile.TemporaryDirectory(prefix="s-") as folder:
        stage = Stage(folder)
        launch = stage.add("one")
        stage.add("c")

        def worker(ipc: object) -> None:
            ipc.handler("echo")(lambda value: value)  # type: ignore[attr-defined]
            ipc.serve()  # type: ignore[attr-defined]

        with stage.running(launch, worker):  # type: ignore[arg-type]
            near = UnixSocketTransport(launch.address.removeprefix("unix://")).dial()
            yield near
            near.close()


@pytest.mark.parametrize("server", [async_server, blocking_server])
def test_a_peer_that_does_not_read_is_not_heard(server: Callable[[], contextmanager[socket.socket]]) -> None:
    with server() as near:  # type: ignore[attr-defined]
        near.setblocking(False)
        data = PREFACE + frame(Kind.HELLO, 0, heads.encoder.encode(heads.Hello(0, 0, [], "c:0", 1, 1, "test", 1 << 24)))
        data += b"".join(frame(Kind.REQUEST, 2 * one + 1, HEAD, PAYLOAD) for one in range(REQUESTS))
        sent = 0
        while select.select([], [near], [], 1.0)[1]:
            sent += near.send(data[sent : sent + 65536])
            if sent >= len(data):
                break
        assert sent < Limits().unsent + 8 * 1024 * 1024 < len(data)
        answers, buffer, rest = 0, bytearray(), memoryview(data)[sent:]
        preface = True
        while answers < REQUESTS:
            readable, writable, _ = select.select([near], [near] if len(rest) else [], [], 10.0)
            assert readable or writable, f"{answers} answers, {len(rest)} bytes left"
            if writable:
                rest = rest[near.send(rest[:65536]) :]
            if readable:
                buffer += near.recv(1 << 20)
            if preface and len(buffer) >= len(PREFACE):
                del buffer[: len(PREFACE)]
                preface = False
            while len(buffer) >= HEADER_SIZE and len(buffer) >= HEADER_SIZE + HEADER.unpack_from(buffer)[0]:
                size, kind, *_ = HEADER.unpack_from(buffer)
                answers += kind == Kind.RESPONSE
                del buffer[: HEADER_SIZE + size]

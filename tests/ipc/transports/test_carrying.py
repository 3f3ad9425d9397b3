"""Every transport under both drivers: bytes arrive whole and in order, ends are noticed, nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import client_context, server_context

from smartipc.ipc.drivers import aio, blocking
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.errors import ConnectionLost
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import Closed, RequestReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.transports.base import IpcTransport, Listener, Stream
from smartipc.ipc.transports.child import ChildProcessTransport
from smartipc.ipc.transports.factory import transport_for
from smartipc.ipc.wire import codec

KINDS = ["unix", "abstract", "ipc", "pipe", "pipe by name", "tcp", "tcp6", "tls", "fd"]


def _listen(kind: str, folder: Path) -> tuple[Listener, IpcTransport]:
    """Return a listener and a transport that reaches it."""
    if kind == "fd":
        near, far = ChildProcessTransport.pair()
        return ChildProcessTransport(near.detach()).listen(), ChildProcessTransport(far.detach())
    address = {
        "unix": f"unix://{folder}/s",
        "abstract": f"unix:@smartipc-test-{os.getpid()}",
        "ipc": f"ipc://carrying-{os.getpid()}",
        "pipe": f"pipe://{folder}/p",
        "pipe by name": f"pipe://carrying-{os.getpid()}",
        "tcp": "tcp://127.0.0.1:0",
        "tcp6": "tcp://[::1]:0",
        "tls": "tls://127.0.0.1:0",
    }[kind]
    listener = transport_for(address, tls=server_context() if kind == "tls" else None).listen()
    if kind in ("tcp", "tcp6", "tls"):
        assert not listener.address.endswith(":0")
        address = listener.address
    return listener, transport_for(address, tls=client_context() if kind == "tls" else None)


@contextmanager
def _pair(kind: str, folder: Path) -> Iterator[tuple[Stream, Stream]]:
    """Connect as two processes would: the dialler may wait for the listener, so it has a thread."""
    before = len(os.listdir("/proc/self/fd"))
    listener, transport = _listen(kind, folder)
    dialled: list[Stream] = []
    thread = threading.Thread(target=lambda: dialled.append(transport.dial()))
    thread.start()
    accepted = _accept(listener)
    if kind == "tls":
        while not accepted.handshake():  # type: ignore[union-attr]
            select.select([accepted.fileno()], [], [], 5.0)
    thread.join(5.0)
    try:
        with pytest.raises(BlockingIOError):
            listener.accept()
        yield dialled[0], accepted
    finally:
        dialled[0].close()
        accepted.close()
        listener.close()
        listener.close()
        assert sorted(os.listdir(folder)) in ([], ["smartipc"])
        assert not (folder / "smartipc").exists() or not os.listdir(folder / "smartipc")
        assert len(os.listdir("/proc/self/fd")) == before


def _accept(listener: Listener) -> Stream:
    assert select.select([listener.fileno()], [], [], 5.0)[0]
    return listener.accept()


@pytest.fixture(autouse=True)
def _own_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))


class Echo(QuietHost):
    """Answers every request with its own payload."""

    def on_request(self, link: aio.Link | blocking.Link, event: RequestReceived) -> None:
        link.reply(event.id, event.payload)

    def on_closed(self, link: aio.Link | blocking.Link, event: Closed) -> None:
        self.closed = event


PAYLOADS = [codec.encode(one) for one in (b"", b"small", b"x" * 65536, os.urandom(3 * 1024 * 1024 + 7))]


@pytest.mark.parametrize("kind", KINDS)
def test_async_both_ends(kind: str, folder: Path) -> None:
    async def main(near: Stream, far: Stream) -> None:
        host = Echo()
        client = aio.Link(near, Connection("client", Identity("c")), QuietHost())
        server = aio.Link(far, Connection("server", Identity("s")), host)
        assert (await client.opened()).name == "s"
        answers = await asyncio.gather(*(client.call("echo", one, timeout=20) for one in PAYLOADS * 3))
        assert answers == PAYLOADS * 3
        client.close()
        while not server.closed:
            await asyncio.sleep(0.001)
        assert host.closed.error is None

    with _pair(kind, folder) as (near, far):
        asyncio.run(main(near, far))


@pytest.mark.parametrize("kind", KINDS)
def test_blocking_both_ends(kind: str, folder: Path) -> None:
    with _pair(kind, folder) as (near, far):
        host = Echo()
        server = blocking.Link(far, Connection("server", Identity("s")), host)

        def serve() -> None:
            while not server.closed:
                server.pump(1.0)

        thread = threading.Thread(target=serve)
        thread.start()
        client = blocking.Link(near, Connection("client", Identity("c")), QuietHost())
        for payload in PAYLOADS:
            assert client.call("echo", payload, timeout=20) == payload
        begun = [client.begin("echo", one, timeout=20) for one in PAYLOADS * 3]
        assert [client.finish(one) for one in begun] == PAYLOADS * 3
        client.close()
        thread.join(5.0)
        assert not thread.is_alive()


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_the_other_side_is_noticed(kind: str, folder: Path) -> None:
    with _pair(kind, folder) as (near, far):
        client = blocking.Link(near, Connection("client", Identity("c")), QuietHost())
        begun = client.begin("echo", b"", timeout=20)
        far.close()
        with pytest.raises(ConnectionLost):
            client.finish(begun)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_stream_says_so_and_loses_nothing(kind: str, folder: Path) -> None:
    with _pair(kind, folder) as (near, far):
        for one in (near, far):
            if hasattr(one, "setblocking"):
                one.setblocking(False)
        sent, block = 0, os.urandom(50_000)
        try:
            while sent < 64 * 1024 * 1024:
                sent += near.send(block[sent % len(block) :])
        except BlockingIOError:
            pass
        wanted = (block * (sent // len(block) + 1))[:sent]
        got = bytearray()
        while len(got) < sent:
            assert select.select([far.fileno()], [], [], 5.0)[0]
            got += far.recv(65536)
        assert bytes(got) == wanted

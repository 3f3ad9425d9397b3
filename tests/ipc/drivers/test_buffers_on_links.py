"""Big buffers between two real links: in place, copied once, as bytes; given back from any thread; hostile senders."""

from __future__ import annotations

import array
import asyncio
import gc
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from smartipc.ipc.drivers import aio, blocking
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.errors import ConnectionLost
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import RequestReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.transports import memfd
from smartipc.ipc.transports.memory import new_buffer
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.buffer import Buffer

np = pytest.importorskip("numpy")

SIZE = 1 << 20


class Keeper(QuietHost):
    """Keeps the arrays that it gets under a name, and answers with their sum; "echo" sends them back."""

    def __init__(self) -> None:
        self.kept: dict[str, Buffer] = {}

    def on_request(self, link: aio.Link | blocking.Link, event: RequestReceived) -> None:
        value = codec.plain(event.payload)
        buffer = value.pop("data")
        if event.method != "sum":
            self.kept[event.method] = buffer
        answer = {"sum": int(np.asarray(buffer).sum()), "echo": buffer if event.method == "echo" else None}
        del buffer
        link.reply(event.id, codec.encode(answer))


def sockets(kind: str) -> tuple[socket.socket, socket.socket]:
    if kind == "unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return near, listener.accept()[0]


def ones() -> Any:
    return np.ones(SIZE, dtype="u1")


async def settled(*links: aio.Link) -> None:
    """Wait until every lease has been given back."""
    for _ in range(200):
        gc.collect()
        if not any(link.connection.buffers.lent + link.connection.buffers.borrowed for link in links):
            return
        await asyncio.sleep(0.01)
    raise AssertionError([link.connection.buffers for link in links])


@contextmanager
def async_pair(kind: str = "unix") -> Iterator[tuple[aio.Link, aio.Link, Keeper]]:
    near, far = sockets(kind)
    host = Keeper()
    client = aio.Link(near, Connection("client", Identity("c")), QuietHost())
    server = aio.Link(far, Connection("server", Identity("s")), host)
    try:
        yield client, server, host
    finally:
        client.close()
        server.close()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_async_links(kind: str) -> None:
    async def main() -> None:
        with async_pair(kind) as (client, server, host):
            request = codec.encode({"data": Buffer(ones())})
            answer = codec.plain(await client.call("sum", request, timeout=10))
            assert answer["sum"] == SIZE
            answer = codec.plain(await client.call("echo", request, timeout=10))
            back = np.asarray(answer["echo"])
            assert back.sum() == SIZE
            assert not back.flags.writeable
            shared = kind == "unix"
            assert server.connection.buffers.borrowed == client.connection.buffers.borrowed == (1 if shared else 0)
            host.kept.clear()
            del answer, back, request
            await settled(client, server)

    asyncio.run(main())


def test_memory_of_the_pool_is_sent_in_place() -> None:
    async def main() -> None:
        with async_pair() as (client, server, host):
            buffer = new_buffer(SIZE)
            array = np.frombuffer(buffer.view, "u1")
            array[:] = 1
            for name, sent in (("buffer", buffer), ("array", Buffer(array)), ("half", Buffer(array[SIZE // 2 :]))):
                await client.call(name, codec.encode({"data": sent}), timeout=10)
                array[-1] = 7
                assert host.kept[name].view[-1] == 7, "the receiver sees what is written: it is the same memory"
                array[-1] = 1
            used = memfd.pool().in_use
            del buffer, array, sent
            gc.collect()
            assert memfd.pool().in_use == used, "leases keep it"
            host.kept.clear()
            await settled(client, server)
            assert memfd.pool().in_use == used - SIZE

    asyncio.run(main())


def test_views_outlive_the_link_and_the_sender() -> None:
    async def main() -> Any:
        with async_pair() as (client, _server, host):
            await client.call("one", codec.encode({"data": Buffer(ones())}), timeout=10)
            return np.asarray(host.kept.pop("one"))

    array = asyncio.run(main())
    gc.collect()
    again = new_buffer(SIZE)
    again.view[:] = b"\xff" * SIZE
    assert array.sum() == SIZE, "memory that somebody may read is not used again"


def test_leases_dropped_in_another_thread_are_given_back() -> None:
    async def main() -> None:
        with async_pair() as (client, server, host):
            await client.call("one", codec.encode({"data": Buffer(ones())}), timeout=10)
            held = [host.kept.pop("one")]
            thread = threading.Thread(target=held.clear)
            thread.start()
            await asyncio.to_thread(thread.join)
            await settled(client, server)

    asyncio.run(main())


def test_memory_is_flat_over_many_buffers() -> None:
    async def main() -> None:
        with async_pair() as (client, server, _host):
            data = ones()
            for _ in range(300):
                await client.call("sum", codec.encode({"data": Buffer(data)}), timeout=10)
            await settled(client, server)
        assert memfd.pool().in_use == 0

    gc.collect()
    asyncio.run(main())
    assert memfd.pool().size <= 2 * memfd.SEGMENT_SIZE


@contextmanager
def blocking_pair(kind: str = "unix") -> Iterator[tuple[blocking.Link, blocking.Link, Keeper]]:
    near, far = sockets(kind)
    host = Keeper()
    server = blocking.Link(far, Connection("server", Identity("s")), host)

    def serve() -> None:
        while not server.closed:
            server.pump(0.05)

    thread = threading.Thread(target=serve)
    thread.start()
    client = blocking.Link(near, Connection("client", Identity("c")), QuietHost())
    try:
        yield client, server, host
    finally:
        client.close()
        thread.join()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_blocking_links(kind: str) -> None:
    with blocking_pair(kind) as (client, server, host):
        request = codec.encode({"data": Buffer(ones())})
        assert codec.plain(client.call("sum", request, timeout=10))["sum"] == SIZE
        answer = codec.plain(client.call("echo", request, timeout=10))
        back = np.asarray(answer["echo"])
        assert back.sum() == SIZE
        shared = kind == "unix"
        assert server.connection.buffers.borrowed == client.connection.buffers.borrowed == (1 if shared else 0)
        host.kept.clear()
        del answer, back, request
        for _ in range(200):
            gc.collect()
            client.pump(0.01)
            links = (client.connection.buffers, server.connection.buffers)
            if not any(one.lent + one.borrowed for one in links):
                break
        else:
            raise AssertionError(links)


def test_a_lease_dropped_while_the_lock_is_held_is_said_later() -> None:
    with blocking_pair() as (client, _server, host):
        client.call("one", codec.encode({"data": Buffer(ones())}), timeout=10)
        with client._lock:
            client._wake_for_buffers()
            assert client._buffers_due
        host.kept.clear()
        gc.collect()
        client.call("sum", codec.encode({"data": Buffer(b"x")}), timeout=10)
        assert not client._buffers_due


def test_a_forked_child_says_nothing() -> None:
    with blocking_pair() as (client, _server, host):
        answer = codec.plain(client.call("echo", codec.encode({"data": Buffer(ones())}), timeout=10))
        pid = os.fork()
        if not pid:
            answer.clear()
            gc.collect()
            os._exit(0 if not client._buffers_due else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert np.asarray(answer["echo"]).sum() == SIZE
        host.kept.clear()
        assert codec.plain(client.call("sum", codec.encode({"data": Buffer(ones())}), timeout=10))["sum"] == SIZE


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_strangers_get_sealed_memory() -> None:
    """Another user's process sends and receives big buffers; neither side can change what the other reads."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0smartipc-test-" + str(os.getpid()))
        listener.listen()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.setuid(65534)
                near = socket.socket(socket.AF_UNIX)
                near.connect(listener.getsockname())
                client = blocking.Link(near, Connection("client", Identity("stranger")), QuietHost())
                for _ in range(100):  # more than may be under way unconfirmed
                    answer = codec.plain(client.call("echo", codec.encode({"data": Buffer(ones())}), timeout=10))
                    assert np.asarray(answer["echo"]).sum() == SIZE
                assert client.connection.buffers.borrowed == client.connection.buffers.lent == 0
                features = client.connection.features
                code = 0 if "memfd" in features and "leases" not in features else 2
            finally:
                os._exit(code)
        far, _ = listener.accept()
    host = Keeper()
    server = blocking.Link(far, Connection("server", Identity("s")), host)
    while not server.closed:
        server.pump(1.0)
    assert os.waitpid(pid, 0)[1] == 0
    kept = host.kept["echo"].view
    with pytest.raises(TypeError, match="read-only"):
        kept[0] = 1


@pytest.mark.parametrize("count", [1, 3, 100])
def test_descriptors_that_nobody_announced_end_the_link_and_are_closed(count: int) -> None:
    with blocking_pair() as (client, _server, _host):
        client.call("sum", codec.encode({"data": Buffer(b"x")}), timeout=10)
        before = len(os.listdir("/proc/self/fd"))
        rights = array.array("i", [client.fileno()] * count)
        with client._lock:
            # A whole PING frame with descriptors beside it.
            ping = bytes.fromhex("02000000 06 00 0200 0000000000000000 91 01".replace(" ", ""))
            client.socket.sendmsg([ping], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        with pytest.raises(ConnectionLost):
            for _ in range(100):
                client.call("sum", codec.encode({"data": Buffer(b"x")}), timeout=10)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before

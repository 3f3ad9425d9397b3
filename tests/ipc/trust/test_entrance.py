"""Arrivals over real sockets: tokens both ways, other users, relays, and dialling from a loop."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import client_context, server_context

from smartipc.ipc.drivers import aio, blocking
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.drivers.dialling import dial
from smartipc.ipc.errors import AuthenticationFailed, ConnectFailed
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import RequestReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.transports.base import Stream
from smartipc.ipc.transports.factory import transport_for
from smartipc.ipc.trust.entrance import Entrance, listen
from smartipc.ipc.trust.tokens import auth_for, endpoint_of

KINDS = ["unix", "abstract", "pipe", "tcp", "tls"]


class Echo(QuietHost):
    def on_request(self, link: aio.Link | blocking.Link, event: RequestReceived) -> None:
        link.reply(event.id, event.payload)


@contextmanager
def entrance(kind: str, folder: Path, token: str | None = "secret") -> Iterator[Entrance]:
    address = {
        "unix": f"unix://{folder}/s",
        "abstract": f"unix:@smartipc-entrance-{os.getpid()}",
        "pipe": f"pipe://{folder}/p",
        "tcp": "tcp://127.0.0.1:0",
        "tls": "tls://127.0.0.1:0",
    }[kind]
    one = listen(address, token=token, tls=server_context() if kind == "tls" else None)
    yield one
    one.close()


def serve_once(one: Entrance) -> threading.Thread:
    """Accept one peer in a thread and serve it to its end."""

    def run() -> None:
        select.select([one.fileno()], [], [], 5.0)
        stream, auth = one.accept()
        link = blocking.Link(stream, Connection("server", Identity("s"), auth=auth), Echo())
        while not link.closed:
            link.pump(1.0)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def connect(one: Entrance, kind: str, token: str | None) -> blocking.Link:
    stream = transport_for(one.address, tls=client_context() if kind == "tls" else None).dial()
    auth = auth_for(token, stream, accepted=False)
    return blocking.Link(stream, Connection("client", Identity("c"), auth=auth), QuietHost())


@pytest.mark.parametrize("kind", KINDS)
def test_the_token_opens(kind: str, folder: Path) -> None:
    with entrance(kind, folder) as one:
        thread = serve_once(one)
        link = connect(one, kind, "secret")
        assert link.call("echo", b"x" * 100_000, timeout=10.0) == b"x" * 100_000
        link.close()
        thread.join(5.0)
        assert not thread.is_alive()


@pytest.mark.parametrize("token", ["wrong", None])
@pytest.mark.parametrize("kind", KINDS)
def test_no_token_or_a_wrong_one_does_not(kind: str, token: str | None, folder: Path) -> None:
    with entrance(kind, folder) as one:
        thread = serve_once(one)
        link = connect(one, kind, token)
        while not link.closed:
            link.pump(1.0)
        assert isinstance(link.error, AuthenticationFailed)
        thread.join(5.0)
        assert not thread.is_alive()


def test_a_relay_elsewhere_is_noticed(folder: Path) -> None:
    """Somebody who does not know the token listens elsewhere and passes everything on."""
    with entrance("tcp", folder) as one:
        thread = serve_once(one)
        host, port = one.address.removeprefix("tcp://").split(":")
        middle = socket.create_server(("127.0.0.1", 0))

        def relay() -> None:
            near, _ = middle.accept()
            far = socket.create_connection((host, int(port)))
            ends = {near: far, far: near}
            while ends:
                for ready in select.select(list(ends), [], [], 5.0)[0]:
                    data = ready.recv(65536)
                    if not data:
                        ends = {}
                        break
                    ends[ready].sendall(data)
            near.close()
            far.close()

        relaying = threading.Thread(target=relay)
        relaying.start()
        stream = transport_for(f"tcp://127.0.0.1:{middle.getsockname()[1]}").dial()
        auth = auth_for("secret", stream, accepted=False)
        link = blocking.Link(stream, Connection("client", Identity("c"), auth=auth), QuietHost())
        while not link.closed:
            link.pump(1.0)
        assert isinstance(link.error, AuthenticationFailed)
        thread.join(5.0)
        relaying.join(5.0)
        middle.close()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("unix", "unix:{folder}/s"), ("tcp", "tcp:127.0.0.1:{port}"), ("tls", "tcp:127.0.0.1:{port}")],
)
def test_both_ends_name_the_accepting_end_alike(kind: str, expected: str, folder: Path) -> None:
    with entrance(kind, folder) as one:
        near: list[Stream] = []
        transport = transport_for(one.address, tls=client_context() if kind == "tls" else None)
        thread = threading.Thread(target=lambda: near.append(transport.dial()))
        thread.start()
        select.select([one.fileno()], [], [], 5.0)
        far, _ = one.accept()
        if kind == "tls":
            while not far.handshake():  # type: ignore[union-attr]
                select.select([far.fileno()], [], [], 5.0)
        thread.join(5.0)
        wanted = expected.format(folder=folder, port=one.address.rpartition(":")[2])
        assert endpoint_of(near[0], accepted=False) == endpoint_of(far, accepted=True) == wanted
        near[0].close()
        far.close()


@pytest.mark.parametrize("kind", ["unix", "tcp", "pipe"])
def test_dialling_from_a_loop(kind: str, folder: Path) -> None:
    async def main() -> None:
        with entrance(kind, folder) as one:
            thread = serve_once(one)
            stream = await dial(transport_for(one.address))
            auth = auth_for("secret", stream, accepted=False)
            link = aio.Link(stream, Connection("client", Identity("c"), auth=auth), QuietHost())
            assert (await link.opened()).name == "s"
            link.close()
            await asyncio.to_thread(thread.join, 5.0)

    asyncio.run(main())


def test_dialling_that_is_cancelled_leaves_nothing(folder: Path) -> None:
    """Nobody takes the connection, so the thread waits; it is told to stop waiting by its own timeout."""

    async def main() -> None:
        rendezvous = transport_for(f"pipe://{folder}/p").listen()
        task = asyncio.create_task(dial(transport_for(f"pipe://{folder}/p"), 0.2))
        while len(os.listdir(folder)) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while any(one.name == "smartipc dial" for one in threading.enumerate()):
            await asyncio.sleep(0.001)
        rendezvous.close()

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    assert os.listdir(folder) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_dialling_what_is_not_there(folder: Path) -> None:
    async def main() -> None:
        for address in (f"unix://{folder}/x", f"pipe://{folder}/x", "tcp://127.0.0.1:1"):
            with pytest.raises(ConnectFailed):
                await dial(transport_for(address), 1.0)

    asyncio.run(main())
    assert os.listdir(folder) == []


def test_dialling_needs_no_place_in_the_loops_executor(folder: Path) -> None:
    async def main() -> None:
        loop, go_on = asyncio.get_running_loop(), threading.Event()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, go_on.wait)
        rendezvous = transport_for(f"pipe://{folder}/p").listen()
        loop.add_reader(rendezvous.fileno(), lambda: accepted.append(rendezvous.accept()))
        try:
            (await dial(transport_for(f"pipe://{folder}/p"), 5.0)).close()
        finally:
            go_on.set()
            await busy
            loop.remove_reader(rendezvous.fileno())
            rendezvous.close()
            for one in accepted:
                one.close()

    accepted: list[Stream] = []
    asyncio.run(main())


@pytest.mark.parametrize(("kind", "ours"), [("unix", True), ("abstract", True), ("pipe", True), ("tcp", False)])
def test_whom_tracebacks_are_shown(kind: str, ours: bool, folder: Path) -> None:
    with entrance(kind, folder) as one:
        near: list[Stream] = []
        thread = threading.Thread(target=lambda: near.append(transport_for(one.address).dial()))
        thread.start()
        select.select([one.fileno()], [], [], 5.0)
        far, auth = one.accept()
        thread.join(5.0)
        mine = auth_for("secret", near[0], accepted=False)
        assert auth is not None
        assert mine is not None
        assert (auth.same_user, mine.same_user) == (ours, ours)
        near[0].close()
        far.close()


STRANGER = 12345
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@contextmanager
def as_stranger(act: str, path: str) -> Iterator[None]:
    """Connect to or listen at a path as another user, in a child process, for the duration of the block."""
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            sock = socket.socket(socket.AF_UNIX)
            if act == "listen":
                sock.bind(path)
                sock.listen()
            else:
                sock.connect(path)
            os.write(ready[1], b"1")
            os.close(done[1])
            os.read(done[0], 1)
        finally:
            os._exit(0)
    assert os.read(ready[0], 1) == b"1"
    yield
    os.close(done[1])
    os.waitpid(pid, 0)
    for one in (*ready, done[0]):
        os.close(one)


@only_root
def test_another_user_is_turned_away_unless_it_may_show_a_token(folder: Path) -> None:
    os.chmod(folder, 0o755)
    with entrance("unix", folder, None) as one:
        os.chmod(folder / "s", 0o666)
        with as_stranger("connect", f"{folder}/s"), pytest.raises(BlockingIOError):
            one.accept()
    with entrance("unix", folder, "secret") as one:
        os.chmod(folder / "s", 0o666)
        with as_stranger("connect", f"{folder}/s"):
            stream, auth = one.accept()
            assert auth is not None
            assert not auth.same_user
            stream.close()


@only_root
def test_a_listener_of_another_user_is_not_believed_unless_the_directory_is_its_own(folder: Path) -> None:
    os.chmod(folder, 0o777)
    with as_stranger("listen", f"{folder}/s"):
        with pytest.raises(ConnectFailed, match=f"user {STRANGER} listens there, whom we do not trust"):
            transport_for(f"unix://{folder}/s").dial()
        os.chown(folder, STRANGER, STRANGER)
        transport_for(f"unix://{folder}/s").dial().close()
    with (
        as_stranger("listen", f"\0smartipc-stranger-{os.getpid()}"),
        pytest.raises(ConnectFailed, match="do not trust"),
    ):
        transport_for(f"unix:@smartipc-stranger-{os.getpid()}").dial()

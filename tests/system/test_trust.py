"""Who may connect to the sockets of a running app: real supervisors, real workers, real strangers."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from kit import App, wait_for

from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import AuthenticationFailed
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.transports.unix import UnixSocketTransport
from smartipc.ipc.wire import codec

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

TARGETS = """
async def told(ipc):
    @ipc.handler("who")
    def _(_, message):
        return message.sender
    await ipc.serve()

def told_blocking(ipc):
    @ipc.handler("who")
    def _(_, message):
        return message.sender
    ipc.serve()

async def asks(ipc):
    await ipc.ready()
    ipc.set_status(",".join([await ipc.request("a.who"), await ipc.request("b.who")]))
    await ipc.stopped()
"""


@pytest.fixture
def run(app: Callable[..., App], folder: Path) -> Callable[..., App]:
    (folder / "targets.py").write_text(TARGETS)

    def start(trust: str) -> App:
        workers = "\n".join(f"  {name}: {{target: 'targets:{name_of}'}}" for name, name_of in NAMES.items())
        one = app(f"app: t\npython_path: [.]\n{trust}\nworkers:\n{workers}\n")
        for name in NAMES:
            one.wait_state(f"{name}:0", "ready")
        return one

    return start


NAMES = {"a": "told", "b": "told_blocking", "c": "asks"}


def worker_sockets(folder: Path) -> list[str]:
    return sorted(str(one) for one in (folder / "r").rglob("*.sock") if not one.name.startswith(("control", "superv")))


@contextmanager
def stranger(path: str, name: str) -> Iterator[Link]:
    link = Link(UnixSocketTransport(path).dial(), Connection("client", Identity(name, os.getpid(), 1)), QuietHost())
    try:
        yield link
    finally:
        link.close()


def test_a_stranger_may_command_but_not_pose_as_a_worker(run: Callable[..., App], folder: Path) -> None:
    one = run("")
    sockets = worker_sockets(folder)
    assert len(sockets) == 3
    for path in sockets:
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
    with ExitStack() as stack:  # all at once: each is let wait until it may be known
        links = [stack.enter_context(stranger(path, name)) for path in sockets for name in ("c:0", "stranger")]
        for link in links:
            while not link.closed:
                link.pump(1.0)
            assert isinstance(link.error, AuthenticationFailed)
            assert "is no worker of this app" in str(link.error)
    assert one.ctl("request", "a.who").stdout == '"$supervisor"\n'
    assert one.ctl("request", "b.who").stdout == '"$supervisor"\n'
    wait_for(lambda: one.status()["c:0"]["status"] == "c:0,c:0", "both flavours told who asked")


def test_where_the_user_is_trusted_a_stranger_may_call(run: Callable[..., App], folder: Path) -> None:
    run("supervisor: {trust: user}")
    for path, method in zip(worker_sockets(folder), ("a.who", "b.who"), strict=False):
        with stranger(path, "notebook") as link:
            assert codec.plain(link.call(method, codec.encode(None), timeout=5.0)) == "notebook"
        with stranger(path, "c:0") as link:
            while not link.closed:
                link.pump(1.0)
            assert "a name of this app's own" in str(link.error)

"""Hostile peers against a running app: real sockets, real workers of both flavours, and a neighbour.

The oracle: every process lives, its memory and descriptors stay bounded, and another client's calls go on quickly.
"""

from __future__ import annotations

import array
import contextlib
import os
import random
import select
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from kit import App, wait_for

from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.transports.unix import UnixSocketTransport
from smartipc.ipc.wire import codec, heads
from smartipc.ipc.wire.frames import FEATURES, PREFACE, Flag, Kind, frame

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

TARGETS = """
async def a(ipc):
    ipc.handler("echo")(lambda value: value)
    await ipc.serve()

def b(ipc):
    ipc.handler("echo")(lambda value: value)
    ipc.serve()
"""
CONFIG = """
app: t
python_path: [.]
supervisor: {trust: user}
workers:
  a: {target: "targets:a"}
  b: {target: "targets:b"}
"""
ROUNDS = 25
HELLO = PREFACE + frame(
    Kind.HELLO, 0, heads.encoder.encode(heads.Hello(0, 0, sorted(FEATURES), "evil", 1, 1, "", 1 << 24))
)
HEADS = {
    Kind.PING: heads.PingHead(1),
    Kind.PONG: heads.PingHead(1),
    Kind.REQUEST: heads.RequestHead("a.echo", 10),
    Kind.NOTIFY: heads.RequestHead("a.none"),
    Kind.OPEN: heads.OpenHead("a.none", True, 1 << 18, 1024),
    Kind.CREDIT: heads.CreditHead(1 << 18, 1024),
    Kind.MSG: heads.MessageHead("a.b"),
    Kind.ACK: heads.AckHead(1),
    Kind.GOAWAY: heads.Reason("bye"),
}


@pytest.fixture
def victims(app: Callable[..., App], folder: Path) -> Iterator[App]:
    (folder / "targets.py").write_text(TARGETS)
    one = app(CONFIG)
    one.wait_state("a:0", "ready")
    one.wait_state("b:0", "ready")
    yield one
    rows = one.status()
    assert [rows[name]["restarts"] for name in ("a:0", "b:0")] == [0, 0]


def valid(kind: Kind, ident: int, flags: int = 0) -> bytes:
    head = HEADS.get(kind)
    return frame(kind, ident, heads.encoder.encode(head) if head else b"", b"" if kind is Kind.DATA else b"\xc0", flags)


class Attack:
    """Connections of one attacker; what the victim sends back is read or not, as the attack likes."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.open: list[socket.socket] = []

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        self.open.append(sock)
        with contextlib.suppress(BlockingIOError):
            sock.connect(self.path)
        return sock

    def send(self, data: bytes, *, reading: bool = True) -> None:
        sock, sent = self.connect(), 0
        until = time.monotonic() + 2.0
        with contextlib.suppress(OSError):
            while sent < len(data) and time.monotonic() < until:
                readable, writable, _ = select.select([sock] if reading else [], [sock], [], 0.2)
                if readable and not sock.recv(1 << 20):
                    break
                if writable:
                    sent += sock.send(data[sent : sent + 65536])
                elif not readable:
                    break  # it does not hear us any more

    def close(self) -> None:
        for sock in self.open:
            sock.close()
        self.open.clear()


def garbage(attack: Attack) -> None:
    source = random.Random(1)
    for _ in range(20):
        attack.send(source.choice((b"", PREFACE, HELLO)) + source.randbytes(source.randrange(5000)))


def silence(attack: Attack) -> None:
    for _ in range(150):
        with contextlib.suppress(OSError):
            attack.connect().send(HELLO[: len(HELLO) // 2])


def floods(attack: Attack) -> None:
    for kind in Kind:
        for flags in (0, Flag.MORE, Flag.END):
            attack.send(HELLO + valid(kind, 1, flags) * 5000)
    attack.send(HELLO + b"".join(valid(Kind.REQUEST, one) + valid(Kind.CANCEL, one) for one in range(1, 20001, 2)))
    attack.send(HELLO + b"".join(valid(Kind.OPEN, one) + valid(Kind.RESET, one) for one in range(1, 20001, 2)))


def greed(attack: Attack) -> None:
    """Ask for a lot and read nothing of it."""
    payload = codec.encode("x" * 60_000)
    head = heads.encoder.encode(heads.RequestHead("a.echo", 60_000))
    attack.send(HELLO + b"".join(frame(Kind.REQUEST, 2 * one + 1, head, payload) for one in range(1000)), reading=False)


def depth(attack: Attack) -> None:
    head = heads.encoder.encode(HEADS[Kind.REQUEST])
    for levels in (1000, 100_000):
        attack.send(HELLO + frame(Kind.REQUEST, 1, head, b"\x91" * levels + b"\xc0"))
    attack.send(HELLO + frame(Kind.REQUEST, 1, b"\x96" + head[1:] + b"\x91" * 8000 + b"\xc0"))


def descriptors(attack: Attack) -> None:
    """Descriptors that nobody asked for, with and without the frame that announces them, few and many."""
    for count in (1, 16, 64, 250):
        for data in (HELLO, HELLO + valid(Kind.FDS, 0), HELLO + valid(Kind.NOTIFY, 0)):
            sock = attack.connect()
            ends = os.pipe()
            passed = array.array("i", [ends[0]] * count)
            with contextlib.suppress(OSError):
                sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
                sock.sendmsg([valid(Kind.PING, 0)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
            for end in ends:
                os.close(end)


def neighbour(path: str) -> Link:
    return Link(UnixSocketTransport(path).dial(), Connection("client", Identity("notebook", os.getpid())), QuietHost())


def descriptors_of(process: psutil.Process) -> int:
    """Count them, without the one file of dead letters: the first notify that nobody handles opens it for good."""
    found = 0
    for name in os.listdir(f"/proc/{process.pid}/fd"):
        with contextlib.suppress(OSError):
            found += "dead-letters.sqlite" not in os.readlink(f"/proc/{process.pid}/fd/{name}")
    return found


@pytest.mark.parametrize("attack", [garbage, silence, floods, greed, depth, descriptors])
def test_an_attack_hurts_nobody(victims: App, folder: Path, attack: Callable[[Attack], None]) -> None:
    sockets = sorted(one for one in (folder / "r").rglob("*.sock") if one.name.startswith(("a", "b")))
    for path, worker in zip(sockets, ("a", "b"), strict=True):
        process = psutil.Process(victims.status()[f"{worker}:0"]["pid"])
        client = neighbour(str(path))
        attacker = Attack(str(path))
        before_memory, before_files = process.memory_info().rss, descriptors_of(process)
        took: list[float] = []

        def call(client: Link = client, worker: str = worker, took: list[float] = took) -> None:
            began = time.monotonic()
            assert client.call(f"{worker}.echo", codec.encode(1), timeout=10.0) == codec.encode(1)
            took.append(time.monotonic() - began)

        attack(attacker)
        for _ in range(ROUNDS):
            call()
        assert process.is_running()
        assert statistics.median(took) < 0.1, took
        assert max(took) < 3.0, took
        assert process.memory_info().rss - before_memory < 150 * 1024 * 1024
        attacker.close()
        wait_for(lambda: descriptors_of(process) <= before_files + 1, "descriptors are given back", 10.0)  # noqa: B023
        client.close()

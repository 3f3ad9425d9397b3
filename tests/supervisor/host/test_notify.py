"""sd_notify: what a message says, who sent it, and what we say ourselves."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import uuid
from pathlib import Path

import pytest

from smartipc.supervisor.host.notify import NotifySocket, Upward, parse

linux = pytest.mark.skipif(sys.platform != "linux", reason="the abstract namespace is Linux's")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"READY=1", {"READY": "1"}),
        (b"READY=1\nSTATUS=up, all = well\n", {"READY": "1", "STATUS": "up, all = well"}),
        (b"", {}),
        (b"no assignment\n=nameless\nA=", {"A": ""}),
        (b"STATUS=\xff\nREADY=1", {"READY": "1"}),
        (b"READY=0\nREADY=1", {"READY": "1"}),
    ],
)
def test_assignments(data: bytes, said: dict[str, str]) -> None:
    assert parse(data) == said


@linux
def test_the_kernel_says_who_sent_it_and_descriptors_are_closed() -> None:
    async def run() -> list[tuple[int, dict[str, str]]]:
        heard: list[tuple[int, dict[str, str]]] = []
        here = NotifySocket(f"sipc-{uuid.uuid4().hex}", lambda pid, said: heard.append((pid, said)))
        read, write = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(f"\0{here.address[1:]}")
            sock.send(b"READY=1")
            socket.send_fds(sock, [b"BARRIER=1"], [write])
            sock.send(b"A=" + b"x" * 20_000)
        os.close(write)
        here.read()
        here.close()
        os.set_blocking(read, False)
        assert os.read(read, 1) == b"", "the answer to a barrier is that its descriptor is closed"
        os.close(read)
        return heard

    assert asyncio.run(run()) == [(os.getpid(), {"READY": "1"}), (os.getpid(), {"BARRIER": "1"})]


def test_nobody_is_told_where_systemd_did_not_ask(tmp_path: Path) -> None:
    upward = Upward({}, 5)
    assert not upward
    upward.tell(READY=1)
    gone = Upward({"NOTIFY_SOCKET": str(tmp_path / "gone")}, 5)
    gone.tell(READY=1)
    assert gone


@pytest.mark.parametrize(
    ("environ", "period"),
    [
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000"}, 1.5),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "5"}, 1.5),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "6"}, None),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "3000000"}, None),
    ],
)
def test_signs_of_life_are_given_to_whoever_wants_them(environ: dict[str, str], period: float | None) -> None:
    assert Upward(environ, 5).watchdog == period


def test_systemd_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "s"))
        Upward({"NOTIFY_SOCKET": str(tmp_path / "s")}, 5).tell(READY=1, STATUS="up")
        assert systemd.recv(100) == b"READY=1\nSTATUS=up"

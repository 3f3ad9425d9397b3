"""Listening sockets that outlive those who use them."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from smartipc.supervisor.core.process_spec import SocketSpec
from smartipc.supervisor.host.sockets import Sockets, environment


def connect(address: str) -> None:
    if address.startswith("tcp://"):
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        return
    where = "\0" + address.removeprefix("unix:@") if "@" in address else address.removeprefix("unix://")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(where)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "unix://{}/s", "unix:@sipc-unit{}"])
def test_each_kind_accepts(address: str, tmp_path: Path) -> None:
    sockets = Sockets()
    sockets.apply([SocketSpec("web", address.format(tmp_path))])
    where = sockets.addresses()["web"]
    assert not where.endswith(":0")
    connect(where)
    assert len(sockets.descriptors(["web"])) == 1
    sockets.close()
    assert not (tmp_path / "s").exists()
    with pytest.raises(OSError, match=r"refused|No such file"):
        connect(where)


def test_what_has_not_changed_stays_open(tmp_path: Path) -> None:
    sockets = Sockets()
    a, b = SocketSpec("a", f"unix://{tmp_path}/a"), SocketSpec("b", f"unix://{tmp_path}/b")
    sockets.apply([a, b])
    before = sockets.descriptors(["a", "b"])
    sockets.apply([a, SocketSpec("renamed", b.address, backlog=5)])
    assert sockets.descriptors(["a", "renamed"]) == before
    connect(b.address)
    sockets.close()


def test_all_or_nothing(tmp_path: Path) -> None:
    sockets = Sockets()
    sockets.apply([SocketSpec("a", f"unix://{tmp_path}/a")])
    with pytest.raises(OSError, match=r"socket c: unix:///nowhere/c: No such file"):
        sockets.apply([SocketSpec("b", f"unix://{tmp_path}/b"), SocketSpec("c", "unix:///nowhere/c")])
    assert list(sockets.addresses()) == ["a"]
    sockets.close()


def test_a_stale_path_is_replaced_and_a_used_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    sockets = Sockets()
    sockets.apply([SocketSpec("a", f"unix://{path}")])
    other = Sockets()
    with pytest.raises(OSError, match="Address already in use"):
        other.apply([SocketSpec("a", f"unix://{path}")])
    connect(f"unix://{path}")
    sockets.close()
    path.write_text("precious")
    with pytest.raises(OSError, match="Address already in use"):
        other.apply([SocketSpec("a", f"unix://{path}")])
    assert path.read_text() == "precious"


def test_a_path_whose_listener_accepts_nobody_is_in_use(tmp_path: Path) -> None:
    """A full queue is a listener, too, and asking must not wait until there is room."""
    path = tmp_path / "s"
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        busy.bind(str(path))
        busy.listen(0)
        with pytest.raises(BlockingIOError):
            for _ in range(100):
                caller = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                caller.setblocking(False)
                caller.connect(str(path))
        with pytest.raises(OSError, match="Address already in use"):
            Sockets().apply([SocketSpec("a", f"unix://{path}")])


def test_what_sd_listen_fds_reads() -> None:
    assert environment(()) == {}
    assert environment(("web", "admin")) == {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:admin"}

"""The rules for files: whose directory, whose socket, what is replaced, what is left alone."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from certificates import client_context, server_context

from smartipc.ipc.errors import ConnectFailed, LocalProtocolError
from smartipc.ipc.transports import files, pipe
from smartipc.ipc.transports.child import ChildProcessTransport
from smartipc.ipc.transports.factory import transport_for
from smartipc.ipc.transports.files import OwnFile, private_directory, user_directory
from smartipc.ipc.transports.pipe import NamedPipeTransport
from smartipc.ipc.transports.tcp import TcpTransport
from smartipc.ipc.transports.unix import UnixSocketTransport, same_user

MAKERS: list[Callable[[str], UnixSocketTransport | NamedPipeTransport]] = [UnixSocketTransport, NamedPipeTransport]
both = pytest.mark.parametrize("make", MAKERS)


# what listens


@both
def test_the_file_is_ours_alone_from_the_first_moment(make: Callable[[str], UnixSocketTransport], folder: Path) -> None:
    before = os.umask(0)
    try:
        listener = make(f"{folder}/s").listen()
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(folder / "s").st_mode) == 0o600
    listener.close()
    assert os.listdir(folder) == []


@both
def test_what_a_killed_process_left_is_replaced(make: Callable[[str], UnixSocketTransport], folder: Path) -> None:
    path = f"{folder}/s"
    if make is UnixSocketTransport:
        left = socket.socket(socket.AF_UNIX)
        left.bind(path)
        left.close()
    else:
        os.mkfifo(path, 0o600)
    before = os.lstat(path).st_ino, os.lstat(path).st_ctime_ns
    listener = make(path).listen()
    assert (os.lstat(path).st_ino, os.lstat(path).st_ctime_ns) != before
    listener.close()


@both
def test_who_listens_already_is_not_replaced(make: Callable[[str], UnixSocketTransport], folder: Path) -> None:
    listener = make(f"{folder}/s").listen()
    with pytest.raises(ConnectFailed):
        make(f"{folder}/s").listen()
    assert (folder / "s").exists()
    listener.close()


@both
def test_another_kind_of_file_is_left_alone(make: Callable[[str], UnixSocketTransport], folder: Path) -> None:
    (folder / "s").write_text("precious")
    with pytest.raises(ConnectFailed):
        make(f"{folder}/s").listen()
    assert (folder / "s").read_text() == "precious"
    (folder / "s").unlink()
    (folder / "target").write_text("precious")
    (folder / "s").symlink_to(folder / "target")
    with pytest.raises(ConnectFailed):
        make(f"{folder}/s").listen()
    assert (folder / "target").read_text() == "precious"


@both
def test_a_successor_s_file_is_left_alone(make: Callable[[str], UnixSocketTransport], folder: Path) -> None:
    listener = make(f"{folder}/s").listen()
    os.unlink(folder / "s")
    (folder / "keep").write_text("")  # so that the inode number is not given again
    successor = make(f"{folder}/s").listen()
    listener.close()
    assert (folder / "s").exists()
    successor.close()
    assert not (folder / "s").exists()


def test_a_forked_child_removes_nothing(folder: Path) -> None:
    (folder / "f").write_text("")
    own = OwnFile(str(folder / "f"))
    pid = os.fork()
    if pid == 0:
        own.remove()
        os._exit(0)
    os.waitpid(pid, 0)
    assert (folder / "f").exists()
    own.remove()
    assert not (folder / "f").exists()


@both
def test_a_directory_that_somebody_keeps_locked(
    make: Callable[[str], UnixSocketTransport], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LOCK_FOR", 0.05)
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(ConnectFailed, match="holds the lock"):
        make(f"{folder}/s").listen()
    os.close(held)
    make(f"{folder}/s").listen().close()


@both
def test_no_directory(make: Callable[[str], UnixSocketTransport], folder: Path) -> None:
    with pytest.raises(ConnectFailed, match="No such file"):
        make(f"{folder}/missing/s").listen()
    with pytest.raises(ConnectFailed):
        make(f"{folder}/missing/s").dial()


@pytest.mark.skipif(sys.platform != "linux", reason="through /proc")
def test_paths_that_the_kernel_calls_too_long(folder: Path) -> None:
    deep = folder / ("d" * 100)
    deep.mkdir()
    path = f"{deep}/{'s' * 50}"
    listener = UnixSocketTransport(path).listen()
    near = UnixSocketTransport(path).dial()
    far = listener.accept()
    assert same_user(far)
    near.close()
    far.close()
    listener.close()
    assert os.listdir(deep) == []
    left = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(deep)
    left.bind("s" * 50)
    os.chdir(here)
    left.close()
    UnixSocketTransport(path).listen().close()


# directories


def test_the_user_s_directory(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    assert user_directory() == f"{folder}/smartipc"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert user_directory().endswith(f"/smartipc-{os.geteuid()}")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert user_directory().endswith(f"/smartipc-{os.geteuid()}")


@pytest.mark.parametrize("scheme", ["ipc", "pipe"])
def test_a_directory_that_others_can_enter_is_refused_as_it_is(
    scheme: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    transport = transport_for(f"{scheme}://x")
    with pytest.raises(ConnectFailed, match="nobody listens"):
        transport.dial()
    assert os.listdir(folder) == []
    (folder / "smartipc").mkdir(mode=0o755)
    for act in (transport.listen, transport.dial):
        with pytest.raises(ConnectFailed, match=r"open to others; run: chmod 700"):
            act()
    assert stat.S_IMODE((folder / "smartipc").stat().st_mode) == 0o755
    (folder / "smartipc").rmdir()
    (folder / "elsewhere").mkdir(mode=0o700)
    (folder / "smartipc").symlink_to(folder / "elsewhere")
    for act in (transport.listen, transport.dial):
        with pytest.raises(ConnectFailed, match="is no directory, or a link to one"):
            act()
    (folder / "smartipc").unlink()
    listener = transport.listen()
    assert stat.S_IMODE((folder / "smartipc").stat().st_mode) == 0o700
    listener.close()


def test_a_directory_that_cannot_be_made_or_opened(folder: Path) -> None:
    with pytest.raises(ConnectFailed, match="cannot be made"):
        private_directory(f"{folder}/a/b", make=True, address="x")
    (folder / "file").write_text("")
    with pytest.raises(ConnectFailed, match="is no directory"):
        private_directory(f"{folder}/file", make=True, address="x")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_user_s_directory_and_files_are_refused(folder: Path) -> None:
    (folder / "theirs").mkdir(mode=0o700)
    os.chown(folder / "theirs", 12345, 12345)
    with pytest.raises(ConnectFailed, match="belongs to user 12345"):
        private_directory(f"{folder}/theirs", make=False, address="x")
    listener = NamedPipeTransport(f"{folder}/p").listen()
    os.chown(folder / "p", 12345, 12345)
    with pytest.raises(ConnectFailed, match="no FIFO of this user alone"):
        NamedPipeTransport(f"{folder}/p").dial()
    listener.close()


# FIFO pairs


def test_a_rendezvous_that_others_can_open_is_refused(folder: Path) -> None:
    listener = NamedPipeTransport(f"{folder}/p").listen()
    os.chmod(folder / "p", 0o666)
    with pytest.raises(ConnectFailed, match="no FIFO of this user alone"):
        NamedPipeTransport(f"{folder}/p").dial()
    listener.close()
    assert os.listdir(folder) == []


def test_records_that_are_none_and_files_that_are_none(folder: Path) -> None:
    listener = NamedPipeTransport(f"{folder}/p").listen()
    writer = os.open(folder / "p", os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"GET / HTTP/1.1\r\n\r\n" * 20)
    with pytest.raises(OSError, match="no JOIN record"):
        listener.accept()
    with pytest.raises(BlockingIOError):
        listener.accept()
    os.write(writer, struct.pack("<8sQ16s", b"SIPCJOIN", 1, b"n" * 16))
    with pytest.raises(FileNotFoundError):
        listener.accept()
    to_server, to_client = pipe._names(f"{folder}/p", 1, b"n" * 16)
    for name in (to_server, to_client):
        Path(name).write_text("no FIFO")
    os.write(writer, struct.pack("<8sQ16s", b"SIPCJOIN", 1, b"n" * 16))
    with pytest.raises(PermissionError):
        listener.accept()
    os.unlink(to_client)
    os.mkfifo(to_client, 0o600)
    reader = os.open(to_client, os.O_RDONLY | os.O_NONBLOCK)
    before = len(os.listdir("/proc/self/fd"))
    os.write(writer, struct.pack("<8sQ16s", b"SIPCJOIN", 1, b"n" * 16))
    with pytest.raises(PermissionError):
        listener.accept()
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(reader)
    os.close(writer)
    listener.close()


def test_what_dead_clients_left_is_swept(folder: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    for name in (f"p.{pid}.00.c2s", f"p.{os.getpid()}.00.c2s", f"p.{pid}.00.txt", "p.x.00.c2s", f"other.{pid}.00.c2s"):
        (folder / name).write_text("")
    NamedPipeTransport(f"{folder}/p").listen().close()
    assert sorted(os.listdir(folder)) == sorted(
        [f"p.{os.getpid()}.00.c2s", f"p.{pid}.00.txt", "p.x.00.c2s", f"other.{pid}.00.c2s"]
    )


def test_a_listener_that_does_not_answer(folder: Path) -> None:
    listener = NamedPipeTransport(f"{folder}/p").listen()
    with pytest.raises(ConnectFailed, match="does not answer"):
        NamedPipeTransport(f"{folder}/p").dial(0.05)
    assert os.listdir(folder) == ["p"]
    listener.close()


def test_a_listener_that_goes_away_is_not_waited_for(folder: Path) -> None:
    listener = NamedPipeTransport(f"{folder}/p").listen()
    dialled: Future[Any] = Future()

    def dial() -> None:
        try:
            dialled.set_result(NamedPipeTransport(f"{folder}/p").dial(60))
        except BaseException as error:
            dialled.set_exception(error)

    thread = threading.Thread(target=dial)
    thread.start()
    select.select([listener.fileno()], [], [], 10)  # announced, and not taken
    listener.close()
    assert isinstance(dialled.exception(10), ConnectFailed)
    thread.join()
    assert os.listdir(folder) == []


def test_windows_is_told_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    for address in ("ipc://x", "pipe://x", "pipe:///a/b"):
        transport = transport_for(address)
        assert repr(transport).startswith("NamedPipeTransport('\\\\\\\\.\\\\pipe\\\\smartipc-")
        for act in (transport.listen, transport.dial):
            with pytest.raises(ConnectFailed, match="Windows are not built yet"):
                act()


# descriptors


def test_an_inherited_descriptor_must_be_a_connected_stream_socket(folder: Path) -> None:
    plain = os.open(os.devnull, os.O_RDONLY)
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    fresh = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    for number in (plain, datagram.fileno(), fresh.fileno(), 99_999):
        with pytest.raises(ConnectFailed, match=f"fd://{number}"):
            ChildProcessTransport(number).dial()
    os.close(plain)
    datagram.close()
    fresh.close()
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far, pytest.raises(ConnectFailed, match="no stream socket"):
        ChildProcessTransport(near.fileno()).dial()


def test_a_descriptor_carries_one_connection_at_a_time() -> None:
    near, far = socket.socketpair()
    number = near.detach()
    first = ChildProcessTransport(number).dial()
    for take in (ChildProcessTransport(number).dial, ChildProcessTransport(number).listen):
        with pytest.raises(LocalProtocolError, match=f"fd://{number} is in use in this process already"):
            take()
    first.send(b"whole")
    assert far.recv(100) == b"whole"
    first.close()
    os.dup2(far.fileno(), number)  # the number is free for another connection
    ChildProcessTransport(number).dial().close()
    far.close()


def test_an_inherited_descriptor_that_nobody_accepts_is_closed() -> None:
    near, far = socket.socketpair()
    listener = ChildProcessTransport(near.detach()).listen()
    assert "fd=" in repr(ChildProcessTransport(3))
    listener.close()
    listener.close()
    assert far.recv(1) == b""
    far.close()


def test_an_arrival_without_a_descriptor_left_is_turned_away(folder: Path) -> None:
    """It would keep the listener readable for ever otherwise, and its loop awake."""
    listener = UnixSocketTransport(f"{folder}/s").listen()
    near = UnixSocketTransport(f"{folder}/s").dial()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
    filler = []
    try:
        while True:
            try:
                filler.append(os.dup(0))
            except OSError:
                break
        with pytest.raises(OSError, match="Too many open files") as caught:
            listener.accept()
        assert caught.value.errno == errno.EMFILE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in filler:
            os.close(one)
    assert near.recv(1) == b""
    with pytest.raises(BlockingIOError):
        listener.accept()
    near.close()
    second = UnixSocketTransport(f"{folder}/s").dial()
    listener.accept().close()
    second.close()
    listener.close()


# TCP and TLS


def test_tcp_says_what_is_wrong() -> None:
    with pytest.raises(ConnectFailed, match="refused"):
        TcpTransport("127.0.0.1", 1).dial(1.0)
    with pytest.raises(ConnectFailed):
        TcpTransport("no.such.host.invalid", 1).dial(1.0)
    with pytest.raises(ConnectFailed):
        TcpTransport("no.such.host.invalid", 1).listen()
    listener = TcpTransport("127.0.0.1", 0).listen()
    port = int(listener.address.rpartition(":")[2])
    with pytest.raises(ConnectFailed, match="in use"):
        TcpTransport("127.0.0.1", port).listen()
    listener.close()
    with pytest.raises(ConnectFailed, match="TLS is for"):
        transport_for("unix:///x", tls=client_context())


def _tls_pair(context_of_client: object, host: str = "127.0.0.1") -> None:
    listener = TcpTransport(host, 0, tls=server_context()).listen()
    port = int(listener.address.rpartition(":")[2])

    def serve() -> None:
        select.select([listener.fileno()], [], [], 5.0)
        conduit = listener.accept()
        try:
            while not conduit.handshake():  # type: ignore[union-attr]
                select.select([conduit.fileno()], [], [], 5.0)
        except OSError:
            pass
        conduit.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        TcpTransport(host, port, tls=context_of_client).dial(5.0).close()  # type: ignore[arg-type]
    finally:
        thread.join(5.0)
        listener.close()


def test_a_certificate_must_be_known_and_name_the_host() -> None:
    import ssl

    _tls_pair(client_context())
    _tls_pair(client_context(), "localhost")
    with pytest.raises(ConnectFailed, match="certificate refused"):
        _tls_pair(ssl.create_default_context())
    with pytest.raises(ConnectFailed, match="certificate refused"):
        _tls_pair(client_context(), "127.0.0.2")


def test_older_tls_is_refused_whatever_the_context_allows() -> None:
    import ssl

    old = client_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ConnectFailed, match=r"TLS 1\.3 is needed|protocol version"):
        _tls_pair(old)


def test_what_does_not_speak_tls_is_given_up_in_time() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    with pytest.raises(ConnectFailed, match="no TLS handshake in time"):
        TcpTransport("127.0.0.1", silent.getsockname()[1], tls=client_context()).dial(0.1)
    silent.close()

"""`Link.ask`: one call in one go, and everything that may come between its request and its answer."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from smartipc.ipc.drivers.base import QuietHost, RemoteFault
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import ConnectionLost, LocalProtocolError, RequestTimeout
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import NotifyReceived, RequestReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.wire.heads import Fault


class Server(QuietHost):
    """Answers "echo"; notifies before the answer to "noisy"; goes instead of answering "bye"."""

    def on_request(self, link: Link, event: RequestReceived) -> None:
        match event.method:
            case "echo":
                link.reply(event.id, event.payload)
            case "noisy":
                link.notify("c.n", b"\x01")
                link.notify("c.n", b"\x02")
                link.reply(event.id, event.payload)
            case "error":
                link.fail(event.id, Fault(2, "RemoteError", "boom"))
            case "bye":
                link.close("leaving")


class Client(QuietHost):
    def __init__(self) -> None:
        self.notified: list[bytes] = []

    def on_notify(self, link: Link, event: NotifyReceived) -> None:
        self.notified.append(event.payload)


@contextmanager
def pair() -> Iterator[tuple[Link, Client]]:
    near, far = socket.socketpair()
    host = Client()
    client = Link(near, Connection("client", Identity("client")), host)
    server = Link(far, Connection("server", Identity("server")), Server())

    def serve() -> None:
        while not server.closed:
            server.pump(0.5)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert client.call("echo", b"first", timeout=30) == b"first"  # the socket's timeout is set from here on
        yield client, host
    finally:
        client.close()
        server.close()
        thread.join()


def test_the_answer_is_returned_and_nothing_is_left() -> None:
    with pair() as (client, _host):
        for number in range(100):
            assert client.ask("echo", b"%d" % number, timeout=30) == b"%d" % number
        assert client.outstanding == 0


def test_what_comes_before_the_answer_is_delivered() -> None:
    with pair() as (client, host):
        assert client.ask("noisy", b"x", timeout=30) == b"x"
        assert client.ask("echo", b"y", timeout=30) == b"y"
        assert host.notified == [b"\x01", b"\x02"]


def test_answers_of_other_calls_are_kept_for_them() -> None:
    with pair() as (client, _host):
        early = [client.begin("echo", b"%d" % number, timeout=30) for number in range(10)]
        assert client.ask("echo", b"late", timeout=30) == b"late"
        assert [client.finish(ident) for ident in early] == [b"%d" % number for number in range(10)]


def test_failures_are_what_call_would_raise() -> None:
    with pair() as (client, _host):
        with pytest.raises(RemoteFault, match="boom"):
            client.ask("error", b"", timeout=30)
        with pytest.raises(RequestTimeout):
            client.ask("never", b"", timeout=0.05)
        with pytest.raises(RequestTimeout):
            client.ask("never", b"", timeout=1.1)
        with pytest.raises(ConnectionLost) as lost:
            client.ask("bye", b"", timeout=30)
        assert lost.value.processed == "maybe"
        with pytest.raises(ConnectionLost) as lost:
            client.ask("echo", b"", timeout=30)
        assert lost.value.processed == "no"
        assert client.outstanding == 0


def test_many_threads_get_their_own_answers() -> None:
    with pair() as (client, _host):
        wrong: list[tuple[bytes, bytes]] = []

        def work(name: int) -> None:
            for number in range(200):
                said = b"%d.%d" % (name, number)
                heard = client.ask("echo", said, timeout=30)
                if heard != said:
                    wrong.append((said, heard))

        threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert client.outstanding == 0


def test_an_interrupt_ends_the_link() -> None:
    class Interrupted(BaseException): ...

    def interrupt(*_: object) -> None:
        raise Interrupted

    with pair() as (client, _host):
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            with pytest.raises(Interrupted):
                client.ask("never", b"", timeout=30)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert client.closed


def test_an_inherited_link_is_refused() -> None:
    with pair() as (client, _host):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                client.ask("echo", b"", timeout=30)
            except LocalProtocolError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert client.ask("echo", b"mine", timeout=30) == b"mine"


def test_a_thread_that_polls_gives_way_to_the_one_that_reads() -> None:
    class Counting(QuietHost):
        def __init__(self) -> None:
            self.count = 0
            self.reading = threading.Event()
            self.over = False

        def on_notify(self, link: Link, event: NotifyReceived) -> None:
            self.reading.set()
            while not self.over:
                self.count += 1
                time.sleep(0)

    near, far = socket.socketpair()
    host = Counting()
    link = Link(near, Connection("client", Identity("client")), host)
    server = Link(far, Connection("server", Identity("server")), QuietHost())
    server.pump(1)
    server.notify("c.n", b"")
    reader = threading.Thread(target=link.wait, args=(lambda: host.over, time.monotonic() + 30))
    reader.start()
    interval = sys.getswitchinterval()
    try:
        assert host.reading.wait(10)
        sys.setswitchinterval(10)  # the interpreter is not taken from whoever does not give it away
        before = host.count
        for _ in range(50):
            link.pump(0)
        assert host.count > before
    finally:
        sys.setswitchinterval(interval)
        host.over = True
        reader.join()
        link.close()
        server.close()

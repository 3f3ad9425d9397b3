"""The blocking driver: leader and followers, deadlines, interrupts, fork, slow peers."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from smartipc.ipc.drivers.base import QuietHost, RemoteFault
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import ConnectionLost, FrameTooLarge, LocalProtocolError, RequestTimeout, SmartIpcError
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import Closed, NotifyReceived, RequestReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.wire.heads import Fault

pytestmark = pytest.mark.usefixtures("nothing_left")


class Echo(QuietHost):
    """Answers "echo" at once, "later" when told, "error" with a fault, "never" not at all."""

    def __init__(self) -> None:
        self.later: list[tuple[Link, int, bytes]] = []
        self.cancelled: list[int] = []
        self.notified: list[bytes] = []
        self.got = threading.Event()
        self.closed = threading.Event()

    def on_request(self, link: Link, event: RequestReceived) -> None:
        match event.method:
            case "echo":
                link.reply(event.id, event.payload)
            case "error":
                link.fail(event.id, Fault(2, "RemoteError", "boom", type="ValueError"))
            case "later":
                self.later.append((link, event.id, event.payload))
        self.got.set()

    def on_cancel(self, link: Link, event: object) -> None:
        self.cancelled.append(event.id)  # type: ignore[attr-defined]
        self.got.set()

    def on_notify(self, link: Link, event: NotifyReceived) -> None:
        self.notified.append(event.payload)

    def on_closed(self, link: Link, event: Closed) -> None:
        self.closed.set()


class Answers:
    """Takes the replies of a row."""

    def __init__(self) -> None:
        self.ids = range(0)
        self.payloads: list[bytes] = []

    def reply(self, ident: int, payload: bytes) -> None:
        self.payloads.append(payload)

    def replies(self, ids: range, payload: bytes) -> None:
        self.payloads.append(payload)

    def failed(self, ident: int, failure: SmartIpcError) -> None:
        raise failure


@contextmanager
def pair(serving: bool = True, client_host: QuietHost | None = None) -> Iterator[tuple[Link, Link, Echo]]:
    near, far = socket.socketpair()
    host = Echo()
    client = Link(near, Connection("client", Identity("client")), client_host or QuietHost())
    server = Link(far, Connection("server", Identity("server")), host)

    def serve() -> None:
        while not server.closed:
            server.pump(0.5)

    thread = threading.Thread(target=serve)
    if serving:
        thread.start()
    try:
        yield client, server, host
    finally:
        client.close()
        server.close()
        if serving:
            thread.join()


def test_call_returns_the_reply_and_knows_the_peer() -> None:
    with pair() as (client, server, _host):
        assert client.call("echo", b"hello", timeout=5) == b"hello"
        assert client.peer is not None
        assert client.peer.name == "server"
        assert client.outstanding == 0
        assert "open" in repr(client)
        assert server.fileno() == server.socket.fileno() > 0


def test_a_fault_is_raised_and_the_link_goes_on() -> None:
    with pair() as (client, _server, _host):
        with pytest.raises(RemoteFault, match="boom"):
            client.call("error", b"", timeout=5)
        assert client.call("echo", b"1", timeout=5) == b"1"


def test_pipelined_calls_finish_in_any_order() -> None:
    with pair() as (client, _server, _host):
        idents = [client.begin("echo", b"%d" % number, timeout=5) for number in range(50)]
        assert [client.finish(ident) for ident in reversed(idents)] == [b"%d" % n for n in reversed(range(50))]
        assert all(client.finished(ident) for ident in idents)


def test_the_deadline_expires_on_time_and_the_peer_is_told() -> None:
    with pair() as (client, _server, host):
        began = time.monotonic()
        with pytest.raises(RequestTimeout):
            client.call("never", b"", timeout=0.1)
        assert 0.1 <= time.monotonic() - began < 1.0
        deadline = time.monotonic() + 10
        while not host.cancelled and time.monotonic() < deadline:
            host.got.wait(0.05)
            host.got.clear()
        assert len(host.cancelled) == 1
        assert client.call("echo", b"x", timeout=5) == b"x"


def test_a_late_reply_is_dropped() -> None:
    with pair() as (client, _server, host):
        with pytest.raises(RequestTimeout):
            client.call("later", b"", timeout=0.05)
        assert host.got.wait(10)
        link, ident, payload = host.later[0]
        link.reply(ident, payload)
        assert client.call("echo", b"x", timeout=5) == b"x"


def test_a_follower_times_out_although_the_leader_waits_longer() -> None:
    with pair() as (client, _server, host):
        failures: list[BaseException] = []

        def lead() -> None:
            client.call("later", b"done", timeout=30)

        leader = threading.Thread(target=lead)
        leader.start()
        assert host.got.wait(10)
        began = time.monotonic()
        try:
            client.call("never", b"", timeout=0.1)
        except RequestTimeout as error:
            failures.append(error)
        assert time.monotonic() - began < 0.9
        assert len(failures) == 1
        link, ident, payload = host.later[0]
        link.reply(ident, payload)
        leader.join()


def test_many_threads_share_a_link_and_no_wake_up_is_lost() -> None:
    """With a lost wake-up a follower sleeps for a whole second; many such would take minutes."""
    with pair() as (client, _server, _host):
        wrong: list[object] = []

        def work(number: int) -> None:
            for turn in range(300):
                payload = b"%d.%d" % (number, turn)
                if client.call("echo", payload, timeout=30) != payload:
                    wrong.append(payload)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert client.outstanding == 0
        assert time.monotonic() - began < 30


def test_a_pumping_thread_and_callers_share_the_reading() -> None:
    with pair() as (client, _server, _host):
        stop = threading.Event()

        def pump() -> None:
            while not stop.is_set():
                client.pump(0.05)

        thread = threading.Thread(target=pump)
        thread.start()
        try:
            for number in range(300):
                assert client.call("echo", b"%d" % number, timeout=10) == b"%d" % number
        finally:
            stop.set()
            thread.join()


def test_peers_that_send_much_to_each_other_do_not_starve() -> None:
    with pair() as (client, _server, _host):
        payload = os.urandom(3 * 1024 * 1024)
        results: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: results.append(client.call("echo", payload, timeout=60))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [payload] * 3


def test_a_peer_that_does_not_read_cannot_hold_a_call_past_its_deadline() -> None:
    with pair(serving=False) as (client, _server, _host):
        began = time.monotonic()
        with pytest.raises(RequestTimeout):
            client.call("echo", bytes(4 * 1024 * 1024), timeout=0.2)
        assert time.monotonic() - began < 2
        assert client.stuck


def test_a_reply_never_waits_for_a_caller_that_does_not_read() -> None:
    with pair(serving=False) as (client, server, host):
        ident = client.begin("later", b"", timeout=30)
        while not host.later:
            server.pump(1)
        _link, number, _payload = host.later[0]
        server.reply(number, bytes(4 * 1024 * 1024))
        assert server.stuck
        flushing = threading.Thread(target=lambda: [server.pump(0.05) for _ in iter(lambda: server.stuck, False)])
        flushing.start()
        assert len(client.finish(ident)) == 4 * 1024 * 1024
        flushing.join()


def test_several_replies_leave_together_when_corked() -> None:
    with pair(serving=False) as (client, server, host):
        idents = [client.begin("later", b"%d" % number, timeout=30) for number in range(3)]
        while len(host.later) < 3:
            server.pump(1)
        for _link, ident, payload in host.later:
            server.reply(ident, payload, flush=False)
        client.pump(0)  # the handshake's answer
        assert not any(client.finished(ident) for ident in idents)
        assert server.flush()
        client.pump(1)
        assert all(client.finished(ident) for ident in idents)
        assert [client.finish(ident) for ident in idents] == [b"0", b"1", b"2"]


def test_the_end_of_the_peer_fails_what_was_written_as_maybe() -> None:
    with pair(serving=False) as (client, server, _host):
        ident = client.begin("never", b"", timeout=30)
        server.pump(1)
        server.close()
        with pytest.raises(ConnectionLost) as caught:
            client.finish(ident)
        assert caught.value.processed == "maybe"
        assert client.closed
        with pytest.raises(ConnectionLost) as again:
            client.call("echo", b"", timeout=1)
        assert again.value.processed == "no"
        client.consumed(1, 1)
        client.cancel(99)
        client.reply(1, b"")
        client.goodbye()
        client.pump(0.1)
        assert client.flush()


def test_a_request_to_a_closed_socket_was_certainly_not_processed() -> None:
    with pair() as (client, server, _host):
        assert client.call("echo", b"", timeout=5) == b""
        server.close()
        with pytest.raises(ConnectionLost) as caught:
            client.call("echo", b"", timeout=5)
        assert caught.value.processed == "no"


def test_a_request_that_was_written_is_not_unprocessed_because_a_later_answer_to_a_ping_is_refused() -> None:
    with pair(serving=False) as (client, server, host):
        replies: list[bytes] = []

        def asks() -> None:
            assert client.ask("echo", b"", timeout=20) == b""
            replies.append(client.ask("later", b"once", timeout=20))

        asking = threading.Thread(target=asks)
        asking.start()
        while not host.later:
            server.pump(1)
        assert isinstance(server.socket, socket.socket)
        server.socket.shutdown(socket.SHUT_RD)
        server.tell(lambda: server.connection.ping(1))
        while not client.broken:
            time.sleep(0.001)
        for link, ident, payload in host.later:
            link.reply(ident, payload)
        asking.join(20)
        assert replies == [b"once"]


@pytest.mark.parametrize("alone", [True, False], ids=["call", "row"])
def test_a_request_that_was_written_is_not_unprocessed_because_what_lies_behind_it_is_refused(alone: bool) -> None:
    with pair(serving=False) as (client, server, host):
        server.pump(1)
        client.pump(1)
        client.tell(lambda: client.connection.notify("large", bytes(8 << 20)))
        assert client.stuck
        row = Answers()

        def asks() -> None:
            if alone:
                row.reply(0, client.call("later", b"once", timeout=20))
            else:
                client.post("later", b"once", row, timeout=20)
                client.wait(lambda: bool(row.payloads))

        asking = threading.Thread(target=asks)
        asking.start()
        while not host.later:
            server.pump(1)
        assert isinstance(server.socket, socket.socket)
        server.socket.shutdown(socket.SHUT_RD)
        while not client.broken:
            time.sleep(0.001)
        for link, ident, payload in host.later:
            link.reply(ident, payload)
        asking.join(20)
        assert row.payloads == [b"once"]


def test_closing_in_another_thread_wakes_the_one_that_reads() -> None:
    with pair() as (client, _server, host):
        failures: list[BaseException] = []

        def wait() -> None:
            try:
                client.call("later", b"", timeout=30)
            except ConnectionLost as error:
                failures.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        assert host.got.wait(10)
        client.close("enough")
        thread.join(10)
        assert "enough" in str(failures[0])


def test_notifies_arrive_in_order_around_a_large_one() -> None:
    with pair() as (client, _server, host):
        sent = [b"a", bytes(1024 * 1024), b"b", b"c"]
        for payload in sent:
            client.notify("note", payload)
        client.call("echo", b"", timeout=10)
        deadline = time.monotonic() + 10
        while len(host.notified) < 4 and time.monotonic() < deadline:
            client.call("echo", b"", timeout=10)
        assert host.notified == sent


def test_a_payload_over_the_limit_is_refused_here_and_harms_nothing() -> None:
    with pair() as (client, _server, _host):
        with pytest.raises(FrameTooLarge):
            client.call("echo", bytes(17 * 1024 * 1024), timeout=5)
        with pytest.raises(FrameTooLarge):
            client.notify("echo", bytes(17 * 1024 * 1024))
        assert client.call("echo", b"x", timeout=5) == b"x"


class Interrupt(BaseException):
    """Raised by a signal handler."""


@pytest.mark.parametrize("turn", range(20))
@pytest.mark.no_cover  # the interrupts would hit the coverage tool inside its own lock, and stay there
def test_an_interrupt_in_the_middle_of_a_call_never_corrupts(turn: int) -> None:
    """The link is as good as before, or closed: never a wrong answer and never a hang."""

    def interrupt(_number: int, _frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pair() as (client, _server, _host):
            client.call("echo", b"", timeout=5)
            interrupted = False
            signal.setitimer(signal.ITIMER_REAL, 0.001 + turn * 0.0007)
            try:
                for number in range(100_000):
                    assert client.call("echo", b"%d" % number, timeout=5) == b"%d" % number
            except Interrupt:
                interrupted = True
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert interrupted
            try:
                assert client.call("echo", b"after", timeout=5) == b"after"
            except ConnectionLost:
                assert client.closed
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_follower_leaves_the_link_open() -> None:
    with pair() as (client, _server, host):
        results: list[bytes] = []
        leader = threading.Thread(target=lambda: results.append(client.call("later", b"kept", timeout=30)))
        leader.start()
        assert host.got.wait(10)

        def interrupt(_number: int, _frame: object) -> None:
            raise Interrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Interrupt):
                client.call("never", b"", timeout=30)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert not client.closed
        link, ident, payload = host.later[0]
        link.reply(ident, payload)
        leader.join()
        assert results == [b"kept"]


def test_a_host_that_raises_ends_the_link_and_the_error_is_seen() -> None:
    class Broken(QuietHost):
        def on_notify(self, link: Link, event: NotifyReceived) -> None:
            raise ValueError("host")

    with pair(serving=False, client_host=Broken()) as (client, server, _host):
        server.pump(1)
        server.notify("note", b"")
        with pytest.raises(ValueError, match="host"):
            while not client.closed:
                client.pump(1)
        assert client.closed


def test_a_host_may_call_back_over_the_link_that_is_being_read() -> None:
    class Nested(QuietHost):
        answers: list[bytes]

        def on_notify(self, link: Link, event: NotifyReceived) -> None:
            self.answers = [link.call("echo", event.payload, timeout=5)]

    host = Nested()
    with pair(client_host=host) as (client, server, _host):
        client.call("echo", b"", timeout=5)
        server.notify("note", b"again")
        client.pump(5)
        assert host.answers == [b"again"]


def test_a_forked_copy_refuses_and_does_not_disturb_the_parent() -> None:
    with pair(serving=False) as (client, server, _host):
        server.pump(1)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                client.call("echo", b"", timeout=1)
            except LocalProtocolError:
                client.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        ident = client.begin("echo", b"parent", timeout=10)
        server.pump(1)
        assert client.finish(ident) == b"parent"


def test_garbage_from_the_peer_closes_the_link_with_its_error() -> None:
    near, far = socket.socketpair()
    with far:
        client = Link(near, Connection("client", Identity("client")), QuietHost())
        far.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(ConnectionLost):
            client.call("echo", b"", timeout=5)
        assert client.closed
        assert "SIPC" in str(client.error)


def test_a_stalled_send_lets_the_owner_read_elsewhere() -> None:
    with pair(serving=False) as (client, server, host):
        client.while_stalled = lambda: server.pump(0)
        client.notify("note", bytes(4 * 1024 * 1024))
        while not host.notified:
            server.pump(1)
        assert len(host.notified[0]) == 4 * 1024 * 1024

"""Requests of the blocking handle by a hatch: answers, errors, deadlines, deaths and order are those of the stream."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from smartipc.ipc.contracts import Method
from smartipc.ipc.drivers import blocking
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import ConnectionLost, LocalProtocolError, RemoteError, RequestTimeout
from smartipc.ipc.sync import SmartIpc
from smartipc.ipc.sync.testing import Stage
from smartipc.ipc.transports import hatch

pytestmark = pytest.mark.skipif(not hatch.available(), reason="no named semaphores here")


class Data(msgspec.Struct, frozen=True):
    data: bytes


class Refused(Exception):
    """A declared error."""


echo = Method("echo.echo", Data, Data, errors=(Refused,))
nap = Method("echo.nap", float, str, timeout=1.2)
size = Method("echo.size", int, Data)
note = Method("echo.note", int, type(None))
noted = Method("echo.noted", type(None), int)
other = Method("echo.other", str, str)


def server(ipc: SmartIpc) -> None:
    last = [0]

    @ipc.handler(echo)
    def _(request: Data) -> Data:
        if request.data == b"refuse":
            raise Refused("no")
        if request.data == b"fail":
            raise ZeroDivisionError("boom")
        return request

    @ipc.handler(nap)
    def _(seconds: float) -> str:
        time.sleep(seconds)
        return "rested"

    @ipc.handler(size)
    def _(count: int) -> Data:
        return Data(bytes(count))

    @ipc.handler(note)
    def _(number: int) -> None:
        last[0] = number

    @ipc.handler(noted)
    def _(_request: None) -> int:
        return last[0]

    @ipc.handler(other)
    def _(name: str) -> str:
        return name

    ipc.serve()


@contextmanager
def busy(stage: Stage) -> Iterator[tuple[SmartIpc, Link]]:
    """Give a client whose requests go by a hatch."""
    with stage.running(stage.add("echo"), server):
        ipc = stage.handle(stage.add("client"))
        try:
            yield ipc, through(ipc)
        finally:
            ipc._close(1)


def through(ipc: SmartIpc) -> Link:
    """Ask until the hatch is open, and return its link."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        assert ipc.request(echo, Data(b"x")) == Data(b"x")
        for link in ipc._caller.links.values():
            if link._asking is not None and link._asking.hatch.state == hatch.OPEN and not link._said:
                return link
    raise AssertionError("no hatch was opened")


def test_a_busy_link_gets_a_hatch_and_the_stream_is_silent(stage: Stage) -> None:
    with busy(stage) as (ipc, link):
        before = link._asked
        for number in range(500):
            assert ipc.request(echo, Data(b"%d" % number)) == Data(b"%d" % number)
        assert link._asked - before < 500
        assert link.outstanding == 0
        assert "AskingEnd" in repr(link._asking)


def test_errors_and_what_does_not_fit_come_by_the_stream(stage: Stage) -> None:
    with busy(stage) as (ipc, _):
        for _ in range(20):
            through(ipc)
            with pytest.raises(Refused, match="no"):
                ipc.request(echo, Data(b"refuse"))
            through(ipc)
            with pytest.raises(RemoteError, match="boom"):
                ipc.request(echo, Data(b"fail"))
            through(ipc)
            assert ipc.request(size, 100_000) == Data(bytes(100_000))
            through(ipc)
            assert ipc.request(size, 3000) == Data(bytes(3000))
            through(ipc)
            assert ipc.request(echo, Data(bytes(5000))) == Data(bytes(5000))


def test_a_request_never_overtakes_a_one_way_message(stage: Stage) -> None:
    with busy(stage) as (ipc, _):
        for number in range(1, 200):
            if number % 5 == 0:
                through(ipc)
            ipc.notify(note, number)
            assert ipc.request(noted, None) == number


def test_another_threads_request_does_not_vouch_for_what_was_said_before_its_answer(stage: Stage) -> None:
    with busy(stage) as (ipc, link):
        assert link._asking is not None
        for meanwhile in (False, True):
            through(ipc)
            ipc.notify(note, 1)
            with link._lock:
                link._asking.busy = True  # so that it goes by the stream
            thread = threading.Thread(target=ipc.request, args=(nap, 0.3))
            thread.start()
            while not link.outstanding:
                time.sleep(0.001)
            with link._lock:  # it is written by then
                said = link._said
            assert said, "the note may lie before the request, unread"
            if meanwhile:
                ipc.notify(note, 2)
            thread.join()
            with link._lock:
                link._asking.busy = False
            assert bool(link._said) is meanwhile


def test_a_server_interrupted_with_a_request_in_its_hand_ends_the_link(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(BaseException): ...

    def target(ipc: SmartIpc) -> None:
        ipc.handler(echo)(lambda request: request)
        try:
            ipc.serve()
        except Interrupted:
            ipc.serve()

    with stage.running(stage.add("echo"), target):
        ipc = stage.handle(stage.add("client"))
        try:
            link = through(ipc)
            took = hatch.Hatch.take

            def take(self: hatch.Hatch, seconds: float) -> bytes:
                if took(self, seconds):
                    monkeypatch.setattr(hatch.Hatch, "take", took)
                    raise Interrupted
                return b""

            monkeypatch.setattr(hatch.Hatch, "take", take)
            began = time.monotonic()
            with pytest.raises(ConnectionLost):
                while True:
                    ipc.request(echo, Data(b"x"))
            assert link.closed
            assert time.monotonic() - began < 5
        finally:
            ipc._close(1)


def test_a_deadline_ends_it_and_the_next_call_is_answered(stage: Stage) -> None:
    with busy(stage) as (ipc, link):
        with pytest.raises(RequestTimeout):
            ipc.request(nap, 1.5)
        assert ipc.request(nap, 0.0) == "rested"
        assert ipc.request(echo, Data(b"y")) == Data(b"y")
        assert link.outstanding == 0


def test_a_slow_handler_is_waited_for(stage: Stage) -> None:
    with busy(stage) as (ipc, _):
        assert ipc.request(nap, 0.2) == "rested"


def test_a_request_that_nobody_took_goes_by_the_stream(stage: Stage) -> None:
    with busy(stage) as (ipc, link):
        asking = link._asking
        assert asking is not None
        for _ in range(10):
            while asking.hatch.state != hatch.SHUT:
                time.sleep(0.001)
            asking.hatch._memory[0] = hatch.OPEN  # as it was when the client looked
            link._said = False
            timer = threading.Timer(0.002, asking.hatch._memory.__setitem__, (0, hatch.SHUT))
            timer.start()
            assert ipc.request(echo, Data(b"z")) == Data(b"z")
            timer.join()


def test_threads_share_a_link_and_get_their_own_answers(stage: Stage) -> None:
    with busy(stage) as (ipc, link):
        wrong: list[str] = []

        def work(name: int) -> None:
            for number in range(300):
                said = f"{name}.{number}"
                if ipc.request(other, said) != said:
                    wrong.append(said)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert link.outstanding == 0


def test_another_client_is_served_while_one_is_busy(stage: Stage) -> None:
    with busy(stage) as (ipc, _):
        over = threading.Event()

        def hammer() -> None:
            while not over.is_set():
                ipc.request(echo, Data(b"x"))

        thread = threading.Thread(target=hammer)
        thread.start()
        second = stage.handle(stage.add("second"))
        try:
            for number in range(50):
                assert second.request(echo, Data(b"%d" % number)) == Data(b"%d" % number)
        finally:
            over.set()
            thread.join()
            second._close(1)


def test_a_forked_child_is_refused(stage: Stage) -> None:
    with busy(stage) as (ipc, _):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                ipc.request(echo, Data(b"x"))
            except LocalProtocolError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert ipc.request(echo, Data(b"x")) == Data(b"x")


def test_an_interrupt_ends_the_link_and_the_next_call_makes_another(stage: Stage) -> None:
    class Interrupted(BaseException): ...

    def interrupt(*_: object) -> None:
        raise Interrupted

    with busy(stage) as (ipc, link):
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            with pytest.raises(Interrupted):
                ipc.request(nap, 0.5)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert link.closed
        assert ipc.request(echo, Data(b"x")) == Data(b"x")


def test_where_there_is_no_room_the_stream_stays(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with stage.running(stage.add("echo"), server):
        ipc = stage.handle(stage.add("client"))
        try:
            for _ in range(2 * blocking._OFTEN):
                assert ipc.request(echo, Data(b"x")) == Data(b"x")
            assert all(link._asking is None for link in ipc._caller.links.values())
        finally:
            ipc._close(1)


@pytest.mark.parametrize("kill", [True, False])
def test_a_server_that_dies_or_ends_is_noticed(stage: Stage, kill: bool) -> None:
    client, launch = stage.add("client"), stage.add("echo", trust="user")
    ready, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ipc = stage.handle(launch)

            @ipc.handler(nap)
            def _(seconds: float) -> str:
                os.kill(os.getpid(), signal.SIGKILL) if kill else time.sleep(seconds)
                raise SystemExit(0)

            ipc.handler(echo)(lambda request: request)
            os.write(said, b"x")
            ipc.serve()
        finally:
            os._exit(0)
    try:
        assert os.read(ready, 1) == b"x"
        stage.set("echo:0", "ready", pid=pid)
        ipc = stage.handle(client)
        try:
            through(ipc)
            began = time.monotonic()
            with pytest.raises((ConnectionLost, RemoteError)) as lost:
                ipc.request(nap, 0.0)
            assert time.monotonic() - began < 1.0
            assert isinstance(lost.value, ConnectionLost) is kill
        finally:
            ipc._close(1)
    finally:
        os.close(ready)
        os.close(said)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.unlink(launch.address.removeprefix("unix://"))


def test_a_handle_that_stops_finishes_what_came_by_the_hatch(stage: Stage) -> None:
    stop: list[Callable[[], None]] = []

    def target(ipc: SmartIpc) -> None:
        @ipc.handler(other)
        def _(name: str) -> str:
            stop.append(lambda: ipc._begin_stop("asked to"))
            if name == "stop":
                stop[-1]()
            return name

        ipc.handler(echo)(lambda request: request)
        ipc.serve()

    with stage.running(stage.add("echo"), target):
        ipc = stage.handle(stage.add("client"))
        try:
            through(ipc)
            assert ipc.request(other, "stop") == "stop"
        finally:
            ipc._close(1)


def test_what_another_thread_posts_is_done_at_once(stage: Stage) -> None:
    with stage.running(stage.add("echo"), server) as served:
        ipc = stage.handle(stage.add("client"))
        try:
            for _ in range(20):
                through(ipc)
                done = threading.Event()
                served._server.post(done.set)
                served._server.wake()
                assert done.wait(5)
        finally:
            ipc._close(1)

"""Identity, readiness, stop and drain of the blocking handle."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from smartipc.ipc import control
from smartipc.ipc.contracts import Method
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import AuthenticationFailed, ConnectionLost, LocalProtocolError, RemoteError
from smartipc.ipc.message import Peer
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.sync import SmartIpc
from smartipc.ipc.sync.testing import Stage
from smartipc.ipc.transports.unix import UnixSocketTransport


def test_identity_peers_and_reports(stage: Stage) -> None:
    ipc = stage.handle(stage.add("one", 3, generation=2))
    assert (ipc.app, ipc.worker, ipc.slot, ipc.name, ipc.generation) == ("test", "one", 3, "one:3", 2)
    assert ipc.log.extra == {"app": "test", "instance": "one:3", "generation": 2}
    assert ipc.peers == {"one": (Peer("one:3", 3, 2, os.getpid(), ready=False),)}
    ipc.set_status("busy")
    ipc.progress(1, 4)
    ipc.beat()
    ipc.ready()
    ipc.ready()
    assert ipc.peers["one"][0].ready
    told = [(method, payload) for instance, method, payload in stage.notified if instance == "one:3"]
    assert told == [
        (control.status_text.name, control.StatusText("busy")),
        (control.progress.name, control.Progress(1, 4)),
        (control.ready.name, None),
    ]
    assert stage.turns >= 1
    assert "one:3" in repr(ipc)
    for part in (ipc._server, ipc._caller, ipc._publisher, ipc._hub, ipc.subscribe("a.b"), stage):
        assert repr(part)
    ipc._close(1)
    ipc._close(1)


def test_async_functions_are_refused_with_a_reason(stage: Stage) -> None:
    ipc = stage.handle(stage.add("one"))

    async def late(_payload: None) -> None: ...

    for register in (ipc.handler("late"), ipc.subscriber("a.b"), ipc.on_stop):
        with pytest.raises(TypeError, match="async"):
            register(late)
    ipc._close(1)


def test_names_are_checked_when_a_handler_is_registered(stage: Stage) -> None:
    ipc = stage.handle(stage.add("one"))
    ipc.handler("ping")(lambda _payload: "pong")
    with pytest.raises(LocalProtocolError, match="already"):
        ipc.handler("ping")(lambda _payload: "pong")
    with pytest.raises(LocalProtocolError, match="another worker"):
        ipc.handler(Method("two.ping", type(None), str))(lambda _payload: "pong")
    with pytest.raises(LocalProtocolError, match="payload"):
        ipc.handler("none")(lambda: "pong")
    ipc._close(1)


def test_stopped_waits_serves_and_ends_at_the_stop(stage: Stage) -> None:
    reached = threading.Event()
    seen: list[bool] = []

    def worker(ipc: SmartIpc) -> None:
        ipc.handler("ping")(lambda _payload: "pong")
        ipc.ready()
        seen.append(ipc.stopped(0.01))
        reached.set()
        seen.append(ipc.stopped())
        seen.append(ipc.stopping)

    with stage.running(stage.add("one"), worker):
        ipc = stage.handle(stage.add("client"))
        assert reached.wait(10)
        assert ipc.request("one.ping", None) == "pong"
        ipc._close(1)
    assert seen == [False, True, True]


def test_an_idle_worker_turns_and_hardly_wakes(stage: Stage) -> None:
    with stage.running(stage.add("one"), lambda ipc: ipc.serve()):
        before = stage.turns
        time.sleep(1.2)
        assert 1 <= stage.turns - before <= 8


def test_waiting_requests_are_finished_after_the_stop(stage: Stage) -> None:
    told = threading.Event()
    answers: list[object] = []

    def worker(ipc: SmartIpc) -> None:
        @ipc.handler("slow")
        def _(number: int) -> int:
            assert told.wait(10)
            return number

        ipc.serve()

    ipc = stage.handle(stage.add("client"))

    def ask(number: int) -> None:
        answers.append(ipc.request("one.slow", number))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    with stage.running(stage.add("one"), worker) as one:
        for thread in threads:
            thread.start()
        until = time.monotonic() + 10
        while sum(link.outstanding for link in list(ipc._caller.links.values())) < 4:
            assert time.monotonic() < until
            time.sleep(0.001)
        one._begin_stop("told while all four wait")
        told.set()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [0, 1, 2, 3]
    ipc._close(1)


def test_what_the_grace_does_not_reach_was_never_run(stage: Stage) -> None:
    started = threading.Event()
    ran: list[int] = []
    failures: list[BaseException] = []
    ipc = stage.handle(stage.add("client"))

    def ask(number: int) -> None:
        try:
            ipc.request("one.slow", number, timeout=5)
        except Exception as error:
            failures.append(error)

    launch = stage.add("one")
    server = stage.handle(launch)

    @server.handler("slow")
    def _(number: int) -> None:
        ran.append(number)
        started.set()
        time.sleep(0.3)

    stage.set("one:0", "ready")
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while len(server._server._queue) < 3:
        server._server.read()
        assert time.monotonic() < deadline
    server._close(0.1)
    stage.set("one:0", "failed", control.ExitFacts(code=0))
    for thread in threads:
        thread.join()
    assert len(ran) == 1
    assert len(failures) == 2
    assert {error.processed for error in failures} == {"no"}  # type: ignore[attr-defined]
    ipc._close(1)


def test_on_stop_functions_can_still_send(stage: Stage) -> None:
    got: list[str] = []

    def keeper(ipc: SmartIpc) -> None:
        ipc.handler("keep")(got.append)
        ipc.serve()

    def worker(ipc: SmartIpc) -> None:
        @ipc.on_stop
        def _() -> None:
            ipc.request("keeper.keep", "last words")

        ipc.serve()

    with stage.running(stage.add("keeper"), keeper), stage.running(stage.add("one"), worker):
        pass
    assert got == ["last words"]


def test_a_failing_on_stop_function_is_seen_and_everything_is_closed(stage: Stage) -> None:
    def worker(ipc: SmartIpc) -> None:
        @ipc.on_stop
        def _() -> None:
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"), stage.running(stage.add("one"), worker):
        pass


def test_a_handler_that_exits_the_process_answers_first(stage: Stage) -> None:
    def worker(ipc: SmartIpc) -> None:
        @ipc.handler("exit")
        def _(code: int) -> None:
            raise SystemExit(code)

        ipc.serve()

    ipc = stage.handle(stage.add("client"))
    with pytest.raises(SystemExit) as code, stage.running(stage.add("one"), worker):
        with pytest.raises(RemoteError) as remote:
            ipc.request("one.exit", 4)
        assert remote.value.type_name == "SystemExit"
    assert code.value.code == 4
    ipc._close(1)


def test_a_successor_s_socket_is_not_unlinked(stage: Stage) -> None:
    launch = stage.add("one")
    ipc = stage.handle(launch)
    path = launch.address.removeprefix("unix://")
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        ipc._close(1)
        assert os.path.exists(path)
    os.unlink(path)


def test_a_silent_connection_is_closed_after_its_time(stage: Stage) -> None:
    launch = stage.add("one")
    with stage.running(launch, lambda ipc: ipc.serve()), socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(10)
        stranger.connect(launch.address.removeprefix("unix://"))
        began = time.monotonic()
        assert b"SIPC" in stranger.recv(4096)  # a FATAL frame
        assert 1.5 < time.monotonic() - began < 5


def test_a_caller_that_does_not_read_does_not_hold_the_others(stage: Stage) -> None:
    def worker(ipc: SmartIpc) -> None:
        @ipc.handler("big")
        def _(size: int) -> bytes:
            return bytes(size)

        ipc.serve()

    with stage.running(stage.add("one"), worker):
        lazy = stage.handle(stage.add("lazy"))
        busy = stage.handle(stage.add("busy"))
        assert busy.request("one.big", 1) == b"\0"
        entry = lazy._directory.state.entries["one:0"]
        link = lazy._caller.link_to(entry)
        ident = link.begin("one.big", b"\xce\x00\x80\x00\x00", timeout=30)
        began = time.monotonic()
        for _ in range(50):
            assert busy.request("one.big", 10) == bytes(10)
        assert time.monotonic() - began < 5
        assert len(link.finish(ident)) > 8 * 1024 * 1024
        with pytest.raises(RemoteError, match="exceeds"):
            busy.request("one.big", 17 * 1024 * 1024)
        lazy._close(1)
        busy._close(1)


def test_a_side_thread_that_waits_reads_but_never_runs_handlers(stage: Stage) -> None:
    idents: list[int] = []
    home: list[int] = []

    def worker(ipc: SmartIpc) -> None:
        home.append(threading.get_ident())

        @ipc.handler("who")
        def _(_payload: None) -> None:
            idents.append(threading.get_ident())

        side = threading.Thread(target=ipc.stopped)
        side.start()
        try:
            ipc.serve()
        finally:
            side.join()

    with stage.running(stage.add("one"), worker):
        ipc = stage.handle(stage.add("client"))
        began = time.monotonic()
        for _ in range(200):
            ipc.request("one.who", None)
        assert time.monotonic() - began < 20
        ipc._close(1)
    assert set(idents) == set(home)


def test_many_pipelined_requests_get_all_their_replies(stage: Stage) -> None:
    def worker(ipc: SmartIpc) -> None:
        ipc.handler("echo")(lambda payload: payload)
        ipc.serve()

    with stage.running(stage.add("one"), worker):
        ipc = stage.handle(stage.add("client"))
        echo = Method("one.echo", int, int)
        assert list(ipc.map(echo, range(2000), concurrency=200)) == list(range(2000))
        ipc._close(1)


def test_connection_lost_is_told_when_the_life_is_not_known_to_be_over(stage: Stage) -> None:
    def worker(ipc: SmartIpc) -> None:
        @ipc.handler("cut")
        def _(_payload: None) -> None:
            for link in list(ipc._server.links.values()):
                link.close("cut")

        ipc.serve()

    with stage.running(stage.add("one"), worker):
        ipc = stage.handle(stage.add("client"))
        with pytest.raises(ConnectionLost) as lost:
            ipc.request("one.cut", None)
        assert lost.value.processed == "maybe"
        ipc._close(1)


def test_a_process_that_the_directory_does_not_know_yet_waits_outside(stage: Stage) -> None:
    def worker(ipc: SmartIpc) -> None:
        ipc.handler("echo")(lambda value: value)
        ipc.serve()

    with stage.running(stage.add("one"), worker) as one:
        ipc = stage.handle(stage.add("client"))
        stage.set("one:0", "ready", pid=0)
        stage.set("client:0", "running", pid=1)
        answers: list[object] = []
        thread = threading.Thread(target=lambda: answers.append(ipc.request("one.echo", 4)))
        thread.start()
        until = time.monotonic() + 10
        while not one._server._strangers:
            assert time.monotonic() < until
            time.sleep(0.005)
        assert not one._server.links
        stage.set("client:0", "running", pid=os.getpid())
        thread.join(10)
        assert answers == [4]
        ipc._close(1)


def test_a_process_that_is_no_worker_or_claims_to_be_another_is_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smartipc.ipc.sync.serving.PATIENCE", 0.05)
    launch = stage.add("one")
    stage.add("client")
    with stage.running(launch, lambda ipc: ipc.serve()):
        for known, name in ((True, "one:1"), (True, "$supervisor"), (False, "client:0")):
            stage.set("one:0", "ready", pid=os.getpid() if known else 0)
            stage.set("client:0", "running", pid=1)
            sock = UnixSocketTransport(launch.address.removeprefix("unix://")).dial()
            link = Link(sock, Connection("client", Identity(name, os.getpid(), 1)), QuietHost())
            while not link.closed:
                link.pump(1.0)
            assert isinstance(link.error, AuthenticationFailed)
            assert ("is not generation 1 of" if known else "is no worker") in str(link.error)

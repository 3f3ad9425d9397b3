"""Requests of the blocking handle: answers, errors, choice of instance, deadlines, deaths and retries."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import msgspec
import pytest
from kit import wait_for

from smartipc.ipc.contracts import Method
from smartipc.ipc.control import ExitFacts, Launch
from smartipc.ipc.errors import (
    ConnectionLost,
    InvalidPayload,
    LocalProtocolError,
    NoSuchMethod,
    NoSuchWorker,
    Overloaded,
    RemoteError,
    RequestTimeout,
    WorkerDied,
)
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.sync import SmartIpc
from smartipc.ipc.sync.testing import Stage


class Number(msgspec.Struct, frozen=True):
    value: int


class Refused(Exception):
    """A declared error."""


double = Method("math.double", Number, Number, errors=(Refused,))
slow = Method("math.slow", float, str, timeout=10)
safe = Method("math.safe", float, str, idempotent=True)
who = Method("math.who", type(None), str)


def math(ipc: SmartIpc) -> None:
    @ipc.handler(double)
    def _(request: Number) -> Number:
        if request.value < 0:
            raise Refused("negative", request.value)
        if request.value == 0:
            raise ZeroDivisionError("nothing to double")
        return Number(request.value * 2)

    @ipc.handler("slow")
    def _slow(seconds: float) -> str:
        ipc._stop.wait(seconds)
        return ipc.name

    @ipc.handler(safe)
    def _safe(seconds: float) -> str:
        time.sleep(seconds)
        return ipc.name

    @ipc.handler(who)
    def _who(_nothing: None) -> str:
        return ipc.name

    @ipc.handler("about")
    def _about(payload: dict[str, int], message: IpcMessage[dict[str, int]]) -> dict[str, object]:
        assert message.remaining is not None
        return {
            "sender": message.sender, "headers": message.headers, "attempt": message.attempt,
            "payload": payload, "remaining": message.remaining, "id": message.id,
        }  # fmt: skip

    @ipc.handler("wrong")
    def _wrong(_payload: object) -> object:
        return object()

    ipc.serve()


@contextmanager
def pool(stage: Stage, size: int = 1, **more: int) -> Iterator[SmartIpc]:
    """Run `size` math workers in threads and give a client of this thread."""
    with ExitStack() as stack:
        for slot in range(size):
            stack.enter_context(stage.running(stage.add("math", slot, **more), math))
        ipc = stage.handle(stage.add("client"))
        stack.callback(ipc._close, 1.0)
        yield ipc


def under_way(ipc: SmartIpc) -> int:
    """Count the calls that are written and not answered."""
    return sum(link.outstanding for link in list(ipc._caller.links.values()))


@contextmanager
def forked(stage: Stage, launch: Launch, target: Callable[[SmartIpc], None] = math) -> Iterator[int]:
    """Run a worker in a child process, listening when the block begins; what is left of it is killed at the end."""
    ready, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ipc = stage.handle(launch)
            os.write(write, b"1")
            target(ipc)
        finally:
            os._exit(3)
    os.close(write)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    stage.set(f"{launch.worker}:{launch.slot}", "ready", pid=pid)
    try:
        yield pid
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        if os.path.exists(launch.address.removeprefix("unix://")):
            os.unlink(launch.address.removeprefix("unix://"))


def test_a_typed_request_and_its_reply(stage: Stage) -> None:
    with pool(stage) as ipc:
        assert ipc.request(double, Number(21)) == Number(42)
        assert ipc.request("math.double", {"value": 4}, reply_type=Number) == Number(8)
        assert ipc.request("math.double", {"value": 4}) == {"value": 8}


def test_a_handler_sees_the_message(stage: Stage) -> None:
    with pool(stage) as ipc:
        about = ipc.request("math.about", {"a": 1}, headers={"k": "v"}, timeout=5)
        assert 0 < about.pop("remaining") <= 5
        assert about == {"sender": "client:0", "headers": {"k": "v"}, "attempt": 1, "payload": {"a": 1}, "id": 1}


def test_errors_come_back_as_what_they_are(stage: Stage) -> None:
    with pool(stage) as ipc:
        with pytest.raises(Refused) as refused:
            ipc.request(double, Number(-1))
        assert refused.value.args == ("negative", -1)
        with pytest.raises(RemoteError, match="nothing to double") as remote:
            ipc.request(double, Number(0))
        assert remote.value.type_name == "ZeroDivisionError"
        assert "raise ZeroDivisionError" in (remote.value.remote_traceback or "")
        assert (remote.value.method, remote.value.instance) == ("math.double", "math:0")
        with pytest.raises(InvalidPayload) as ours:
            ipc.request(double, Number("x"))  # type: ignore[arg-type]
        assert ours.value.processed == "no" or ours.value.path
        with pytest.raises(InvalidPayload) as theirs:
            ipc.request("math.double", {"value": "x"})
        assert theirs.value.path == "$.value"
        with pytest.raises(NoSuchMethod) as nobody:
            ipc.request("math.triple", 1)
        assert "math.double" in nobody.value.known
        with pytest.raises(NoSuchWorker) as unknown:
            ipc.request("maths.double", 1)
        assert unknown.value.known == ("math", "client")
        with pytest.raises(NoSuchWorker):
            ipc.request(double, Number(1), slot=7)
        with pytest.raises(LocalProtocolError):
            ipc.request("nodot", 1)
        with pytest.raises(InvalidPayload, match="handler's result"):
            ipc.request("math.wrong", 1)
        assert ipc.request(double, Number(1)) == Number(2)


def test_the_deadline_passes_and_the_worker_serves_on(stage: Stage) -> None:
    with pool(stage) as ipc:
        began = time.monotonic()
        with pytest.raises(RequestTimeout) as late:
            ipc.request(slow, 0.5, timeout=0.1)
        assert time.monotonic() - began < 0.45
        assert (late.value.timeout, late.value.instance, late.value.processed) == (0.1, "math:0", "maybe")
        assert ipc.request(double, Number(1)) == Number(2)


def test_a_cancelled_request_that_waits_never_runs(stage: Stage) -> None:
    ran: list[int] = []
    running, go_on = threading.Event(), threading.Event()

    def target(ipc: SmartIpc) -> None:
        @ipc.handler("note")
        def _(number: int) -> None:
            ran.append(number)
            if number == 0:
                running.set()
                assert go_on.wait(10)

        ipc.serve()

    with stage.running(stage.add("notes"), target):
        ipc = stage.handle(stage.add("client"))
        first = threading.Thread(target=lambda: ipc.request("notes.note", 0))
        first.start()
        assert running.wait(10)
        with pytest.raises(RequestTimeout):
            ipc.request("notes.note", 1, timeout=0.05)
        go_on.set()
        first.join()
        ipc.request("notes.note", 2)
        ipc._close(1)
    assert ran == [0, 2]


def test_the_deadline_shrinks_along_a_chain(stage: Stage) -> None:
    def middle(ipc: SmartIpc) -> None:
        @ipc.handler("ask")
        def _(_payload: None) -> float:
            return float(ipc.request("math.about", {})["remaining"])

        ipc.serve()

    with stage.running(stage.add("math"), math), stage.running(stage.add("middle"), middle):
        ipc = stage.handle(stage.add("client"))
        assert ipc.request("middle.ask", None, timeout=1.5) <= 1.5
        ipc._close(1)


def test_too_many_waiting_requests_are_refused(stage: Stage) -> None:
    with pool(stage, concurrency_waiting=2) as ipc:
        outcomes: list[object] = []

        def ask() -> None:
            try:
                outcomes.append(ipc.request(slow, 0.3))
            except Overloaded as error:
                outcomes.append(error)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [one for one in outcomes if isinstance(one, Overloaded)]
        assert refused
        assert all(one.processed == "no" for one in refused)
        assert outcomes.count("math:0") >= 3


def test_round_robin_slot_and_key(stage: Stage) -> None:
    with pool(stage, 3) as ipc:
        assert {ipc.request(who, None) for _ in range(9)} == {"math:0", "math:1", "math:2"}
        assert {ipc.request(who, None, slot=1) for _ in range(5)} == {"math:1"}
        assert len({ipc.request(who, None, key="same") for _ in range(5)}) == 1
        assert len({ipc.request(who, None, key=str(one)) for one in range(40)}) == 3


def test_a_worker_that_is_not_ready_is_waited_for(stage: Stage) -> None:
    launch = stage.add("math", state="starting")
    ipc = stage.handle(stage.add("client"))
    with pytest.raises(RequestTimeout, match="starting") as early:
        ipc.request(double, Number(1), timeout=0.05)
    assert early.value.processed == "no"
    answers: list[Number] = []
    thread = threading.Thread(target=lambda: answers.append(ipc.request(double, Number(4), timeout=20)))
    thread.start()
    with stage.running(launch, math):
        thread.join()
        assert answers == [Number(8)]
        ipc._close(1)


def test_a_worker_that_will_not_come_fails_at_once(stage: Stage) -> None:
    stage.add("math", state="failed")
    stage.set("math:0", "failed", ExitFacts(code=7, reason="crashed"))
    ipc = stage.handle(stage.add("client"))
    with pytest.raises(WorkerDied) as died:
        ipc.request(double, Number(1))
    assert (died.value.exit_code, died.value.processed) == (7, "no")
    with pytest.raises(WorkerDied):
        ipc.notify(double, Number(1))
    ipc._close(1)


def test_a_killed_worker_is_named_with_its_exit_facts_in_time(stage: Stage) -> None:
    launch = stage.add("math")
    ipc = stage.handle(stage.add("client"))
    with forked(stage, launch) as pid:
        assert ipc.request(double, Number(1)) == Number(2)
        noticed: list[float] = []

        def kill() -> None:
            wait_for(lambda: under_way(ipc), "the call to be written")
            os.kill(pid, signal.SIGKILL)
            noticed.append(time.monotonic())
            os.waitpid(pid, 0)
            stage.set("math:0", "backoff", ExitFacts(signal="SIGKILL", oom=True))

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(WorkerDied) as died:
            ipc.request(slow, 30.0)
        killer.join()
        assert time.monotonic() - noticed[0] < 0.2
        assert (died.value.instance, died.value.signal, died.value.oom) == ("math:0", "SIGKILL", True)
        assert (died.value.processed, died.value.method) == ("maybe", "math.slow")
    ipc._close(1)


def test_a_lost_link_to_a_life_that_goes_on_is_no_death(stage: Stage) -> None:
    launch = stage.add("math")
    ipc = stage.handle(stage.add("client"))
    with forked(stage, launch) as pid:
        killed: list[float] = []

        def kill() -> None:
            wait_for(lambda: under_way(ipc), "the call to be written")
            killed.append(time.monotonic())
            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(ConnectionLost) as lost:
            ipc.request(slow, 30.0)
        assert 0.1 < time.monotonic() - killed[0] < 1.0
        killer.join()
        assert (lost.value.instance, lost.value.processed) == ("math:0", "maybe")
    ipc._close(1)


def test_an_idempotent_call_goes_on_at_another_instance(stage: Stage) -> None:
    first = stage.add("math", 0)
    ipc = stage.handle(stage.add("client"))
    with forked(stage, first) as pid:
        second = stage.add("math", 1, generation=2)

        def kill() -> None:
            wait_for(lambda: under_way(ipc), "the call to be written")
            with_second.set()
            assert up.wait(10)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            stage.set("math:0", "backoff", ExitFacts(signal="SIGKILL"))

        with_second, up = threading.Event(), threading.Event()
        killer = threading.Thread(target=kill)
        killer.start()
        answers: list[str] = []
        asking = threading.Thread(target=lambda: answers.append(ipc.request(safe, 0.5, slot=None)))
        asking.start()
        assert with_second.wait(10)
        with stage.running(second, math):
            up.set()
            asking.join()
            killer.join()
            assert answers == ["math:1"]
            ipc._close(1)


def test_goodbye_then_calls_are_refused_unprocessed_and_retried_elsewhere(stage: Stage) -> None:
    handles: list[SmartIpc] = []

    def remembered(ipc: SmartIpc) -> None:
        handles.append(ipc)
        math(ipc)

    with stage.running(stage.add("math", 0), remembered), stage.running(stage.add("math", 1), math):
        ipc = stage.handle(stage.add("client"))
        while "math:0" not in {ipc.request(who, None) for _ in range(2)}:
            pass
        for link in list(handles[0]._server.links.values()):
            link.goodbye("test")
        assert {ipc.request(who, None) for _ in range(10)} == {"math:1"}
        with pytest.raises(RequestTimeout):
            ipc.request(who, None, slot=0, timeout=0.3)
        ipc._close(1)


def test_broadcast_keeps_partial_results(stage: Stage) -> None:
    def failing(ipc: SmartIpc) -> None:
        @ipc.handler(who)
        def _(_payload: None) -> str:
            raise ValueError("not me")

        ipc.serve()

    with (
        stage.running(stage.add("math", 0), math),
        stage.running(stage.add("math", 1), failing),
        stage.running(stage.add("math", 2), math),
    ):
        stage.add("math", 3, state="backoff")
        ipc = stage.handle(stage.add("client"))
        outcomes = ipc.broadcast(who, None)
        assert [one.instance for one in outcomes] == ["math:0", "math:1", "math:2"]
        assert [one.value for one in outcomes] == ["math:0", None, "math:2"]
        assert isinstance(outcomes[1].error, RemoteError)
        with pytest.raises(NoSuchWorker):
            ipc.broadcast("nobody.who", None)
        late = ipc.broadcast("math.slow", 1.0, timeout=0.1)
        assert [type(one.error) for one in late] == [RequestTimeout, NoSuchMethod, RequestTimeout]
        ipc._close(1)


def test_broadcast_of_a_declared_error(stage: Stage) -> None:
    with pool(stage, 2) as ipc:
        outcomes = ipc.broadcast(double, Number(-3))
        assert [type(one.error) for one in outcomes] == [Refused, Refused]


@pytest.mark.parametrize("ordered", [True, False])
def test_map_pipelines_over_the_pool(stage: Stage, ordered: bool) -> None:
    with pool(stage, 3) as ipc:
        drawn = 0

        def payloads() -> Iterator[Number]:
            nonlocal drawn
            for value in range(1, 301):
                drawn += 1
                yield Number(value)

        results = []
        for result in ipc.map(double, payloads(), concurrency=8, ordered=ordered):
            results.append(result.value // 2)
            assert drawn - len(results) <= 8
        assert (results if ordered else sorted(results)) == list(range(1, 301))
        assert len(ipc._caller.links) == 3


def test_map_uses_the_whole_pool_at_once(stage: Stage) -> None:
    with pool(stage, 4) as ipc:
        began = time.monotonic()
        names = list(ipc.map(safe, [0.15] * 8, concurrency=8))
        assert time.monotonic() - began < 8 * 0.15 * 0.8
        assert {names.count(f"math:{slot}") for slot in range(4)} == {2}


def test_map_raises_the_first_failure_at_its_place_and_cancels_the_rest(stage: Stage) -> None:
    with pool(stage, 2) as ipc:
        mapping = ipc.map(double, map(Number, [1, 2, -1, 4, 5]), concurrency=4)
        assert [next(mapping).value, next(mapping).value] == [2, 4]
        with pytest.raises(Refused):
            next(mapping)
        assert all(link.outstanding == 0 for link in ipc._caller.links.values())
        with pytest.raises(LocalProtocolError):
            ipc.map(double, [], concurrency=0)
        assert list(ipc.map(double, [])) == []


def test_leaving_map_early_cancels_what_is_under_way(stage: Stage) -> None:
    with pool(stage, 2) as ipc:
        mapping = ipc.map(safe, [0.0] + [0.05] * 20, concurrency=10)
        assert next(mapping)
        mapping.close()  # type: ignore[attr-defined]
        assert all(link.outstanding == 0 for link in ipc._caller.links.values())
        assert ipc.request(double, Number(1)) == Number(2)


def test_map_survives_a_death_in_the_pool(stage: Stage) -> None:
    first, second = stage.add("math", 0), stage.add("math", 1)
    ipc = stage.handle(stage.add("client"))
    with forked(stage, first) as pid, forked(stage, second):

        def kill() -> None:
            wait_for(lambda: "math:0" in names, "an answer of the one to kill")
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            stage.set("math:0", "backoff", ExitFacts(signal="SIGKILL"))

        names: list[str] = []
        killer = threading.Thread(target=kill)
        killer.start()
        for name in ipc.map(safe, [0.02] * 60, concurrency=8):
            names.append(name)  # noqa: PERF402 - the killer looks on
        killer.join()
        assert len(names) == 60
        assert set(names) == {"math:0", "math:1"}
    ipc._close(1)


def test_several_threads_map_over_the_same_pool(stage: Stage) -> None:
    with pool(stage, 3) as ipc:
        sums: list[int] = []

        def work() -> None:
            sums.append(sum(one.value for one in ipc.map(double, map(Number, range(1, 501)), concurrency=16)))

        threads = [threading.Thread(target=work) for _ in range(3)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sums == [501 * 500] * 3
        assert time.monotonic() - began < 20


def test_notify_is_one_way(stage: Stage) -> None:
    got: list[tuple[int, str]] = []
    enough = threading.Event()

    def target(ipc: SmartIpc) -> None:
        @ipc.handler("note")
        def _(number: int, message: IpcMessage[int]) -> None:
            got.append((number, message.sender))
            if number == 1:
                raise ValueError("logged, never answered")
            if number == 3:
                enough.set()

        ipc.serve()

    with stage.running(stage.add("notes"), target):
        ipc = stage.handle(stage.add("client"))
        for number in range(4):
            ipc.notify("notes.note", number)
        ipc.notify("notes.unknown", 1)
        ipc.notify("notes.note", "not a number")
        assert enough.wait(10)
        assert got[:4] == [(number, "client:0") for number in range(4)]
        stage.add("later", state="starting")
        with pytest.raises(RequestTimeout):
            ipc.notify("later.note", 1, timeout=0.05)
        ipc._close(1)


def test_an_inherited_handle_refuses_after_fork(stage: Stage) -> None:
    with pool(stage) as ipc:
        assert ipc.request(double, Number(1)) == Number(2)
        pid = os.fork()
        if pid == 0:
            refused = 0
            try:
                for attempt in (
                    lambda: ipc.request(double, Number(1)),
                    lambda: ipc.publish("t.x", 1),
                    lambda: ipc.stopped(0.1),
                    lambda: ipc.notify("math.about", {}),
                ):
                    try:
                        attempt()
                    except LocalProtocolError:
                        refused += 1
                ipc._close(1)
            finally:
                os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
        assert ipc.request(double, Number(2)) == Number(4)


def test_an_interrupted_request_leaves_the_handle_usable(stage: Stage) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(_number: int, _frame: object) -> None:
        raise Interrupt

    with pool(stage) as ipc:
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Interrupt):
                ipc.request(slow, 0.5)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert ipc.request(double, Number(3), timeout=5) == Number(6)


def test_other_threads_read_while_a_handler_runs(stage: Stage) -> None:
    running, go_on = threading.Event(), threading.Event()

    def target(ipc: SmartIpc) -> None:
        @ipc.handler("wait")
        def _(_payload: None) -> str:
            running.set()
            go_on.wait(10)
            return "done"

        other = threading.Thread(target=ipc.stopped)
        other.start()
        ipc.serve()
        other.join()

    launch, client = stage.add("math"), stage.add("client")
    with stage.running(launch, target) as served:
        ipc = stage.handle(client)
        try:
            answers: list[str] = []
            asking = threading.Thread(target=lambda: answers.append(ipc.request("math.wait", None, reply_type=str)))
            asking.start()
            assert running.wait(10)
            second = stage.handle(stage.add("late"))
            try:
                link = second._caller.link_to(served._directory.state.by_worker["math"][0])
                assert link.wait(lambda: link.peer is not None, time.monotonic() + 10)  # who answers it is no handler
            finally:
                second._close(1)
            go_on.set()
            asking.join()
            assert answers == ["done"]
        finally:
            go_on.set()
            ipc._close(1)

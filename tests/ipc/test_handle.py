"""The async handle among its kind: several in one process, with a stage in the place of the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
import uvloop
from scenes import handle, play

from smartipc.ipc import control, serving
from smartipc.ipc.contracts import Method, Topic
from smartipc.ipc.control import ExitFacts
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.errors import (
    AuthenticationFailed,
    ConnectionLost,
    InvalidPayload,
    LocalProtocolError,
    NoSuchMethod,
    NoSuchWorker,
    Overloaded,
    RemoteError,
    RequestCancelled,
    RequestTimeout,
    WorkerDied,
)
from smartipc.ipc.handle import SmartIpc
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.sync.testing import Stage
from smartipc.ipc.transports.unix import UnixSocketTransport


class Job(msgspec.Struct, frozen=True):
    number: int


class Refused(Exception): ...


double = Method("w.double", Job, Job, errors=(Refused,))
sleepy = Method("w.sleepy", Job, int)
chain = Method("w.chain", type(None), float)
jobs = Topic("jobs.done", Job)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def live(request: pytest.FixtureRequest) -> Callable[[Callable[[Stage], Awaitable[None]]], None]:
    return functools.partial(play, loop_factory=request.param, tidy=True)


def with_methods(ipc: SmartIpc, started: asyncio.Event | None = None) -> list[str]:
    ended: list[str] = []

    @ipc.handler(double)
    def _(job: Job, message: IpcMessage[Job]) -> Job:
        if job.number < 0:
            raise Refused("below zero", job.number)
        if job.number == 13:
            raise ValueError("unlucky")
        assert message.sender == "c:0"
        assert message.remaining is not None
        return Job(job.number * 2)

    @ipc.handler(sleepy)
    async def _(job: Job) -> int:
        if started is not None:
            started.set()
        try:
            await asyncio.sleep(job.number)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return ipc.slot

    @ipc.handler("wrong")
    def _(_: None) -> object:
        return object()

    @ipc.handler("self_cancel")
    async def _(_: None) -> None:
        raise asyncio.CancelledError

    return ended


def test_requests_replies_and_errors(live: Callable[..., None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            with_methods(w)
            await w.ready()
            assert await c.request(double, Job(4)) == Job(8)
            assert await c.request("w.double", {"number": 5}, reply_type=Job) == Job(10)
            assert await c.request("w.double", {"number": 5}, headers={"a": "b"}) == {"number": 10}
            with pytest.raises(Refused) as refused:
                await c.request(double, Job(-1))
            assert refused.value.args == ("below zero", -1)
            with pytest.raises(RemoteError, match=r"w\.double on w:0 raised ValueError: unlucky") as unlucky:
                await c.request(double, Job(13))
            assert "test_handle.py" in (unlucky.value.remote_traceback or "")
            with pytest.raises(InvalidPayload, match=r"\$\.number"):
                await c.request("w.double", {"number": "x"})
            with pytest.raises(InvalidPayload) as local:
                await c.request(double, {"number": "x"})  # type: ignore[arg-type]
            assert local.value.processed == "no"
            with pytest.raises(InvalidPayload, match="result"):
                await c.request("w.wrong")
            with pytest.raises(RequestCancelled):
                await c.request("w.self_cancel")
            with pytest.raises(NoSuchMethod) as missing:
                await c.request("w.nothing")
            assert missing.value.known == ("w.double", "w.self_cancel", "w.sleepy", "w.wrong")
            with pytest.raises(NoSuchWorker):
                await c.request("x.y")
            with pytest.raises(LocalProtocolError, match=r"worker\.method"):
                await c.request("xy")
            assert [peer.name for peer in c.peers["w"]] == ["w:0"]

    live(scene)


def test_a_worker_is_waited_for_within_the_deadline(live: Callable[..., None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            with_methods(w)
            with pytest.raises(RequestTimeout, match="w:0 is running") as late:
                await c.request(double, Job(1), timeout=0.05)
            assert late.value.processed == "no"
            waiting = asyncio.ensure_future(c.request(double, Job(1)))
            await asyncio.sleep(0)
            await w.ready()
            await w.ready()
            assert await waiting == Job(2)

    live(scene)


def test_timeouts_and_cancels_reach_the_handler(live: Callable[..., None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            started = asyncio.Event()
            ended = with_methods(w, started)
            await w.ready()
            while not started.is_set():  # on a busy machine one may be over before it has begun
                with pytest.raises(RequestTimeout) as late:
                    await c.request(sleepy, Job(60), timeout=0.05)
                assert isinstance(late.value, TimeoutError)
            started.clear()
            task = asyncio.ensure_future(c.request(sleepy, Job(60)))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while len(ended) < 2:
                await asyncio.sleep(0)
            assert ended == ["cancelled", "cancelled"]

    live(scene)


def test_deadlines_shrink_along_a_chain(live: Callable[..., None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "v") as v, handle(stage, "c") as c:

            @v.handler("left")
            async def _(_: None, message: IpcMessage[None]) -> float:
                assert message.remaining is not None
                return message.remaining

            @w.handler(chain)
            async def _(_: None) -> float:
                return float(await w.request("v.left", timeout=60))

            await v.ready()
            await w.ready()
            assert await c.request(chain, None, timeout=2.0) < 2.0

    live(scene)


def test_choice_slot_key_broadcast_and_notify(live: Callable[..., None]) -> None:
    async def scene(stage: Stage) -> None:
        async with contextlib.AsyncExitStack() as stack:
            c = await stack.enter_async_context(handle(stage, "c"))
            pool = [await stack.enter_async_context(handle(stage, "w", slot)) for slot in range(3)]
            seen: list[int] = []
            for one in pool:
                with_methods(one)

                @one.handler("note")
                async def _(number: int) -> None:
                    seen.append(number)

                await one.ready()
            slots = await asyncio.gather(*(c.request(sleepy, Job(0)) for _ in range(9)))
            assert sorted(slots) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
            assert {await c.request(sleepy, Job(0), slot=2) for _ in range(5)} == {2}
            assert len({await c.request(sleepy, Job(0), key="k") for _ in range(5)}) == 1
            outcomes = await c.broadcast(double, Job(2))
            assert [(one.instance, one.value) for one in outcomes] == [(f"w:{n}", Job(4)) for n in range(3)]
            refused = await c.broadcast(double, Job(-2))
            assert [type(one.error) for one in refused] == [Refused] * 3
            with pytest.raises(NoSuchWorker):
                await c.broadcast("x.y")
            await c.notify("w.note", 7)
            await c.notify("w.nothing", 8)
            await c.notify("w.note", "not a number")
            while not seen:
                await asyncio.sleep(0)

    live(scene)


def test_map_is_ordered_bounded_and_stops_early(live: Callable[..., None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            with_methods(w)
            await w.ready()
            drawn = 0

            async def payloads() -> AsyncIterator[Job]:
                nonlocal drawn
                for number in range(1000):
                    drawn += 1
                    yield Job(number + 100)

            got = [job.number async for job in c.map(double, (Job(n) for n in range(20, 60)), concurrency=5)]
            assert got == [2 * n for n in range(20, 60)]
            unordered = {job.number async for job in c.map(double, [Job(n) for n in range(20, 60)], ordered=False)}
            assert unordered == set(got)
            results = c.map(double, payloads(), concurrency=4)
            assert await anext(results) == Job(200)
            await results.aclose()  # type: ignore[attr-defined]
            assert drawn <= 6
            with pytest.raises(Refused):
                async for _ in c.map(double, [Job(20), Job(-1), Job(21)]):
                    pass
            with pytest.raises(LocalProtocolError):
                await anext(c.map(double, [], concurrency=0))

    live(scene)


def test_concurrency_and_waiting_are_bounded(live: Callable[..., None]) -> None:
    async def scene(stage: Stage) -> None:
        limits = {"concurrency_running": 2, "concurrency_waiting": 1}
        async with handle(stage, "w", **limits) as w, handle(stage, "c") as c:
            with_methods(w)
            await w.ready()
            tasks = [asyncio.ensure_future(c.request(sleepy, Job(60), timeout=0.2)) for _ in range(4)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert sorted(type(one).__name__ for one in results) == ["Overloaded"] + ["RequestTimeout"] * 3
            assert await c.request(sleepy, Job(0)) == 0

    live(scene)


def test_cancelling_one_of_many_that_wait_costs_the_same_as_one_of_few() -> None:
    """The work is counted in steps of the interpreter within the file that keeps the queue, not in seconds."""

    async def steps(stage: Stage, waiting: int) -> int:
        count = 0

        def step(frame: types.FrameType, event: str, _arg: object) -> Any:
            nonlocal count
            if frame.f_code.co_filename != serving.__file__:
                return None
            frame.f_trace_opcodes = True
            count += event == "opcode"
            return step

        async def until_waiting(number: int) -> None:
            while w.snapshot().waiting != number:
                await asyncio.sleep(0)

        limits = {"concurrency_running": 1, "concurrency_waiting": waiting}
        async with handle(stage, "w", waiting, ready=True, **limits) as w, handle(stage, "c", waiting) as c:
            w.handler("sleep")(asyncio.sleep)
            calls = [asyncio.ensure_future(c.request("w.sleep", 60, slot=waiting)) for _ in range(waiting + 1)]
            await until_waiting(waiting)
            before = sys.gettrace()
            sys.settrace(step)
            try:
                for call in reversed(calls[1:]):
                    call.cancel()
                await until_waiting(0)
            finally:
                sys.settrace(before)
            calls[0].cancel()
            await asyncio.wait(calls)
        return count

    async def scene(stage: Stage) -> None:
        few, many = await steps(stage, 50), await steps(stage, 500)
        assert 5 * few < many < 20 * few

    play(scene)


def test_a_death_is_told_with_its_facts(live: Callable[..., None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c:
            async with handle(stage, "w") as w:
                started = asyncio.Event()
                with_methods(w, started)
                await w.ready()
                task = asyncio.ensure_future(c.request(sleepy, Job(60)))
                await started.wait()
                begun = time.monotonic()
                for link in tuple(w._server.links):
                    link.close("killed")
                stage.set("w:0", "failed", ExitFacts(signal="SIGKILL"))
                with pytest.raises(WorkerDied) as died:
                    await task
                assert time.monotonic() - begun < 0.2
                assert (died.value.instance, died.value.signal, died.value.processed) == ("w:0", "SIGKILL", "maybe")
            with pytest.raises(WorkerDied) as gone:
                await c.request(sleepy, Job(1))
            assert gone.value.processed == "no"

    live(scene)


def test_a_lost_connection_to_a_living_worker(live: Callable[..., None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            started = asyncio.Event()
            with_methods(w, started)
            await w.ready()
            task = asyncio.ensure_future(c.request(sleepy, Job(60)))
            await started.wait()
            for link in tuple(w._server.links):
                link.close("cut")
            with pytest.raises(ConnectionLost) as lost:
                await task
            assert lost.value.processed == "maybe"
            assert await c.request(double, Job(1)) == Job(2)

    live(scene)


def test_idempotent_calls_go_elsewhere(live: Callable[..., None]) -> None:
    again = Method("w.again", type(None), int, idempotent=True)

    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w", 0) as bad, handle(stage, "w", 1) as good:

            @bad.handler(again)
            async def _(_: None) -> int:
                for link in tuple(bad._server.links):
                    link.close("cut")
                await asyncio.sleep(60)
                return 0

            @good.handler(again)
            async def _(_: None, message: IpcMessage[None]) -> int:
                return message.attempt

            await bad.ready()
            await good.ready()
            attempts = {await c.request(again, None) for _ in range(6)}
            assert attempts <= {1, 2}
            assert 2 in attempts

    live(scene)


def test_topics(live: Callable[..., None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "s") as s, handle(stage, "p") as p:
            async with s.subscribe(jobs, max_pending=4) as messages, s.subscribe("jobs.*") as all_of_them:
                publishing = asyncio.ensure_future(_publish(p, 50))
                got = []
                while len(got) < 50:
                    message = await anext(messages)
                    assert (message.topic, message.sender, message.missed) == ("jobs.done", "p:0", 0)
                    got.append(message.payload.number)
                await publishing
                assert got == list(range(50))
                assert messages.dropped == 0
                assert (await anext(all_of_them)).payload == {"number": 0}
                await p.publish("jobs.done", {"number": "wrong"})
                with pytest.raises(InvalidPayload):
                    await anext(messages)
                assert p.publish_nowait(jobs, Job(1)) == 2
                assert p.publish_nowait("jobs.other", 1) == 1
                with pytest.raises(Overloaded):
                    for _ in range(4):
                        p.publish_nowait(jobs, Job(1))
            assert p.publish_nowait(jobs, Job(1)) == 0
            with pytest.raises(InvalidPayload):
                await p.publish(jobs, {"number": None})  # type: ignore[arg-type]

    live(scene)


async def _publish(ipc: SmartIpc, count: int) -> None:
    for number in range(count):
        await ipc.publish(jobs, Job(number))


def test_a_publisher_does_not_wait_for_the_dead(live: Callable[..., None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "s") as s, handle(stage, "p") as p, s.subscribe(jobs, max_pending=1):
            await p.publish(jobs, Job(0))
            stuck = asyncio.ensure_future(p.publish(jobs, Job(1)))
            await asyncio.sleep(0)
            assert not stuck.done()
            stage.set("s:0", "failed", ExitFacts(code=1))
            await stuck

    live(scene)


def test_subscribers_and_the_end(live: Callable[..., None]) -> None:
    async def scene(stage: Stage) -> None:
        seen: list[object] = []
        async with handle(stage, "p") as p, handle(stage, "s") as s:

            @s.subscriber(jobs)
            def _(job: Job) -> None:
                seen.append(job)
                if job.number == 1:
                    raise ValueError("logged, and the next one comes")

            @s.subscriber("jobs.>")
            async def _(payload: object, message: IpcMessage[object]) -> None:
                seen.append(message.topic)

            @s.on_stop
            async def _() -> None:
                seen.append("stopped")

            await s.ready()
            while len(stage._subscriptions) < 2:
                await asyncio.sleep(0)
            for number in range(3):
                await p.publish(jobs, Job(number))
            while len(seen) < 6:
                await asyncio.sleep(0)
            serving = asyncio.ensure_future(s.serve())
            await asyncio.sleep(0)
            assert not s.stopping
            s._begin_stop("told")
            await serving
            assert s.stopping
        assert seen[-1] == "stopped"
        assert [one for one in seen if isinstance(one, Job)] == [Job(0), Job(1), Job(2)]

    live(scene)


def test_a_stopping_worker_refuses_new_calls_and_finishes_old_ones(live: Callable[..., None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w", 1) as other:
            with_methods(other)
            async with handle(stage, "w", 0) as w:
                started = asyncio.Event()
                with_methods(w, started)
                await w.ready()
                old = asyncio.ensure_future(c.request(sleepy, Job(1), slot=0))
                await started.wait()
                await other.ready()
                w._server.goodbye()
                for _ in range(6):
                    assert await c.request(double, Job(3)) == Job(6)
                assert not old.done()
            assert await old == 0

    live(scene)


def test_misuse_is_refused(live: Callable[..., None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w:
            with pytest.raises(LocalProtocolError, match="runtime directory"):
                w.publish_nowait("a", 1, retain=True)
            with pytest.raises(LocalProtocolError, match="one of block, drop_oldest"):
                w.subscribe("a", overflow="drop")
            with pytest.raises(LocalProtocolError, match="must not be empty"):
                w.subscribe("a", queue="")
            with pytest.raises(LocalProtocolError, match="at least 1"):
                w.subscribe("a", max_pending=0)
            with pytest.raises(LocalProtocolError, match="another worker"):
                w.handler(Method("x.y", int, int))(lambda payload: payload)
            with pytest.raises(LocalProtocolError, match="must take"):
                w.handler("z")(lambda: None)
            w.handler("z")(lambda payload: payload)
            with pytest.raises(LocalProtocolError, match="has a handler already"):
                w.handler("z")(lambda payload: payload)
            w.beat()
            w.set_status("x")
            w.progress(1)
            assert [method for _, method, _ in stage.notified] == [control.status_text.name, control.progress.name]
            assert "<SmartIpc w:0 generation 1>" in repr(w)

    live(scene)


def test_a_burst_of_notifies_arrives_whole_and_in_order_and_a_bad_one_harms_no_other(
    live: Callable[[Callable[[Stage], Awaitable[None]]], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            seen: list[int] = []
            all_here = asyncio.Event()

            @w.handler("take")
            def _(number: int) -> None:
                if number == 7:
                    raise Refused
                seen.append(number)
                if number == 4999:
                    all_here.set()

            stage.set("w:0", "ready")
            assert await c.request("w.take", 0) is None
            for number in range(1, 5000):
                await c.notify("w.take", "wrong" if number == 2500 else number)
            await all_here.wait()
            assert seen == [number for number in range(5000) if number not in (7, 2500)]

    live(scene)
    assert "handler of one-way message w.take raised" in caplog.text
    assert "one-way message w.take of c:0 dropped" in caplog.text


def test_notifies_reach_async_handlers_and_those_that_want_the_message(
    live: Callable[[Callable[[Stage], Awaitable[None]]], None],
) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            seen: list[tuple[str, int]] = []
            done = asyncio.Event()

            @w.handler("wait")
            async def _(number: int) -> None:
                await asyncio.sleep(0)
                seen.append(("wait", number))

            @w.handler("look")
            def _(number: int, message: IpcMessage[int]) -> None:
                seen.append((message.sender, number))
                if number == 99:
                    done.set()

            @w.handler("ping")
            def _(_: None) -> None: ...

            stage.set("w:0", "ready")
            await c.request("w.ping")
            for number in range(100):
                await c.notify("w.wait", number)
            for number in range(100):
                await c.notify("w.look", number)
            await done.wait()
            await c.request("w.ping")
            assert [pair for pair in seen if pair[0] == "c:0"] == [("c:0", number) for number in range(100)]
            assert sorted(pair for pair in seen if pair[0] == "wait") == [("wait", number) for number in range(100)]

    live(scene)


def test_a_sender_waits_for_a_peer_that_does_not_read(
    live: Callable[[Callable[[Stage], Awaitable[None]]], None],
) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            taken = 0

            @w.handler("take")
            def _(data: bytes) -> int:
                nonlocal taken
                taken += 1
                return taken

            stage.set("w:0", "ready")
            await c.request("w.take", b"")
            (server,) = w._server.links
            w._loop.remove_reader(server.fileno())
            (link,) = c._caller.links.values()

            async def flood() -> None:
                for _ in range(20_000):
                    await c.notify("w.take", bytes(1000))

            def unsent() -> int:
                return link._unsent_bytes + link.connection.queued

            flooding = asyncio.create_task(flood())
            while not link.congested:
                await asyncio.sleep(0)
            before = unsent()
            for _ in range(100):
                await asyncio.sleep(0)
            assert not flooding.done()
            assert before <= unsent() < 3 * 1024 * 1024
            w._loop.add_reader(server.fileno(), server._readable)
            await flooding
            assert await c.request("w.take", b"") == 20_002

    live(scene)


def test_a_process_that_the_directory_does_not_know_yet_waits_outside(live: Callable[..., None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            with_methods(w)
            await w.ready()
            stage.set("w:0", "ready", pid=0)
            stage.set("c:0", "running", pid=1)
            call = asyncio.create_task(c.request(double, Job(4)))
            while not w._server._strangers:
                await asyncio.sleep(0.001)
            assert w._server.links == set()
            stage.set("c:0", "running", pid=os.getpid())
            assert await call == Job(8)

    live(scene)


def test_a_process_that_is_no_worker_or_claims_to_be_another_is_refused(
    live: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smartipc.ipc.serving.PATIENCE", 0.05)

    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w:
            with_methods(w)
            await w.ready()
            stage.add("c")
            for known, name in ((True, "w:1"), (True, "$supervisor"), (False, "c:0")):
                stage.set("w:0", "ready", pid=os.getpid() if known else 0)
                stage.set("c:0", "running", pid=1)
                sock = UnixSocketTransport(w._server._launch.address.removeprefix("unix://")).dial()
                link = Link(sock, Connection("client", Identity(name, os.getpid(), 1)), QuietHost())
                with pytest.raises(AuthenticationFailed, match="is not generation 1 of" if known else "is no worker"):
                    await link.opened()

    live(scene)

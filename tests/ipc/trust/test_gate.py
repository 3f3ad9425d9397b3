"""What a worker's configuration lets it say, hear and take, through handles of both flavours."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest
from scenes import until

from smartipc.ipc.contracts import Channel, Method, Stream
from smartipc.ipc.control import Allow, BreakerPlan
from smartipc.ipc.errors import (
    CircuitOpen,
    ConnectionLost,
    PermissionDenied,
    RateLimited,
    RequestTimeout,
    SmartIpcError,
)
from smartipc.ipc.handle import SmartIpc
from smartipc.ipc.resilience.budget import RESERVE
from smartipc.ipc.streaming import IpcChannel
from smartipc.ipc.sync.handle import SmartIpc as BlockingIpc
from smartipc.ipc.sync.testing import Stage, StagePort

Scene = Callable[[Stage], Awaitable[None]]
SOME = Allow(request=("w.open",), publish=("news.*",), subscribe=("news.>",))


@pytest.fixture
def live() -> Callable[[Scene], None]:
    def run(scene: Scene) -> None:
        with tempfile.TemporaryDirectory(prefix="g-") as folder:

            async def main() -> None:
                async with asyncio.timeout(30):
                    await scene(Stage(folder))

            asyncio.run(main())

    return run


@contextlib.asynccontextmanager
async def handle(stage: Stage, worker: str, slot: int = 0, **more: Any) -> AsyncIterator[SmartIpc]:
    launch = stage.add(worker, slot, **more)
    if launch.allow is not None:
        name = f"{worker}:{slot}"
        stage._entries[name] = msgspec.structs.replace(stage._entries[name], allow=launch.allow)
    ipc = SmartIpc(launch, stage.directory(), StagePort(stage, launch))
    await ipc._open()
    try:
        yield ipc
    finally:
        ipc._begin_stop("the end of the scene")
        await ipc._close(2.0)


def serve(ipc: SmartIpc) -> list[str]:
    ran: list[str] = []
    ipc.handler("open")(lambda _payload: ran.append("open"))
    ipc.handler("shut")(lambda _payload: ran.append("shut"))
    return ran


def test_a_worker_may_only_do_what_is_written(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c", allow=SOME) as c:
            ran = serve(w)
            await w.ready()
            for _ in range(2):  # the second time over the short way
                await c.request("w.open")
                for refused in (c.request("w.shut"), c.notify("w.shut"), c.broadcast("w.shut")):
                    with pytest.raises(PermissionDenied) as caught:
                        await refused
                    assert (caught.value.method, caught.value.processed) == ("w.shut", "no")
            await c.broadcast("w.open")
            await c.publish("news.a", 1)
            for wrong in ("news.a.b", "other"):
                with pytest.raises(PermissionDenied):
                    await c.publish(wrong, 1)
                with pytest.raises(PermissionDenied):
                    c.publish_nowait(wrong, 1)
            async with c.subscribe("news.*"):
                pass
            for pattern in (">", "other"):
                with pytest.raises(PermissionDenied):
                    c.subscribe(pattern)
            assert ran == ["open"] * 3

    live(scene)


def test_what_comes_is_checked_too(live: Callable[[Scene], None]) -> None:
    """A peer that does not keep to its own configuration is refused at the other end."""

    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            stage._entries["c:0"] = msgspec.structs.replace(stage._entries["c:0"], allow=SOME)
            stage.tell()
            ran = serve(w)
            await w.ready()
            await c.request("w.open")
            with pytest.raises(PermissionDenied) as caught:
                await c.request("w.shut")
            assert caught.value.instance == "w:0"
            for _ in range(3):
                await c.notify("w.shut")
            outcomes = await c.broadcast("w.shut")
            assert [type(one.error) for one in outcomes] == [PermissionDenied]
            for overflow in ("block", "drop_oldest"):
                async with w.subscribe(">", max_pending=2, overflow=overflow) as messages:
                    for number in range(5):  # more than the window: what is not heard is acknowledged all the same
                        await c.publish("other", number)
                    await c.publish("news.a", 1)
                    assert (await anext(messages)).topic == "news.a"
            assert ran == ["open"]

    live(scene)


def test_a_blocking_worker_is_held_to_the_same(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        errors: list[object] = []
        done = threading.Event()

        def caller(ipc: BlockingIpc) -> None:
            ipc.request("w.open")
            for attempt in (
                lambda: ipc.request("w.shut"),
                lambda: ipc.notify("w.shut"),
                lambda: ipc.broadcast("w.shut"),
                lambda: list(ipc.map(Method("w.shut", int, int), [1])),
                lambda: ipc.publish("other", 1),
                lambda: ipc.publish_nowait("other", 1),
                lambda: ipc.subscribe("other"),
            ):
                try:
                    attempt()
                except PermissionDenied as error:
                    errors.append(error.method)
            ipc.publish("news.a", 1)
            ipc.publish_nowait("news.a", 1)
            with ipc.subscribe("news.a"):
                pass
            ipc.notify("w.open")
            ipc.broadcast("w.open")
            done.set()

        async with handle(stage, "w") as w:
            serve(w)
            await w.ready()
            launch = stage.add("c", allow=SOME)
            with stage.running(launch, caller):
                await asyncio.to_thread(done.wait, 20)
        assert errors == ["w.shut"] * 4 + ["other"] * 3

    live(scene)


rows = Stream("w.rows", int, int)
chat = Channel("w.chat", send=int, receive=int)


def flows(ipc: SmartIpc | BlockingIpc, ran: list[str]) -> None:
    def each(count: int) -> Iterator[int]:
        ran.append("rows")
        yield from range(count)

    ipc.handler(rows)(each)
    if isinstance(ipc, SmartIpc):

        async def converse(_channel: IpcChannel[int, int]) -> None:
            ran.append("chat")

        ipc.handler(chat)(converse)
    else:
        ipc.handler(chat)(lambda _channel: ran.append("chat"))


async def opens(ipc: SmartIpc) -> list[str]:
    """Open one of each; return how each went."""
    went: list[str] = []
    for opener in (ipc.open_stream(rows, 2), ipc.open_channel(chat)):
        try:
            async with opener as flow:
                went.append(str([item async for item in flow]))
        except SmartIpcError as error:
            went.append(f"{type(error).__name__} {getattr(error, 'processed', '')}")
    return went


def opens_blocking(ipc: BlockingIpc) -> list[str]:
    went: list[str] = []
    for opener in (ipc.open_stream(rows, 2), ipc.open_channel(chat)):
        try:
            with opener as flow:
                went.append(str(list(flow)))
        except SmartIpcError as error:
            went.append(f"{type(error).__name__} {getattr(error, 'processed', '')}")
    return went


@pytest.mark.parametrize("serving", ["async", "blocking"])
def test_streams_and_channels_are_opened_by_the_same_rules(live: Callable[[Scene], None], serving: str) -> None:
    async def scene(stage: Stage) -> None:
        ran: list[str] = []
        here = threading.Event()

        def blocking(ipc: BlockingIpc) -> None:
            flows(ipc, ran)
            here.set()
            ipc.serve()

        async with contextlib.AsyncExitStack() as stack:
            c = await stack.enter_async_context(handle(stage, "c"))
            if serving == "async":
                w = await stack.enter_async_context(handle(stage, "w", rate_limit=4.0))
                flows(w, ran)
                await w.ready()
            else:
                stack.enter_context(stage.running(stage.add("w", rate_limit=4.0), blocking))
                await asyncio.to_thread(here.wait, 20)
            assert await opens(c) == ["[0, 1]", "[]"]

            # the opener keeps to its own configuration
            guarded = await stack.enter_async_context(handle(stage, "guarded", allow=SOME))
            assert await opens(guarded) == ["PermissionDenied no"] * 2
            went: list[str] = []
            with stage.running(stage.add("b", allow=SOME), lambda ipc: went.extend(opens_blocking(ipc))):
                await until(lambda: len(went) == 2)
            assert went == ["PermissionDenied no"] * 2

            # one that does not is refused at the other end
            stage._entries["c:0"] = msgspec.structs.replace(stage._entries["c:0"], allow=SOME)
            stage.tell()
            await until(lambda: c.peers["w"][0].ready)
            assert await opens(c) == ["PermissionDenied no"] * 2
            stage._entries["c:0"] = msgspec.structs.replace(stage._entries["c:0"], allow=None)
            stage.tell()

            # each opening is one of the calls that `rate_limit` counts: two of four are left, or more by now
            assert ran == ["rows", "chat"]
            went = await opens(c)
            assert went == ["[0, 1]", "[]"]
            while went[-1] != "RateLimited no":
                went = await opens(c)

    live(scene)


def test_a_rate_limit_answers_with_when_to_come_again(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        stopped = threading.Event()

        def limited(ipc: BlockingIpc) -> None:
            ipc.handler("open")(lambda payload: payload)
            ipc.serve()
            stopped.set()

        async with handle(stage, "w", rate_limit=5.0) as w, handle(stage, "c") as c:
            ran = serve(w)
            await w.ready()
            with stage.running(stage.add("b", rate_limit=5.0), limited):
                begun = time.monotonic()
                for worker in ("w", "b"):
                    for _ in range(5):
                        await c.request(f"{worker}.open")
                    with pytest.raises(RateLimited) as caught:
                        while True:  # a slow machine may have earned one more meanwhile
                            await c.request(f"{worker}.open")
                    assert 0 < caught.value.retry_after <= 0.2
                    assert caught.value.processed == "no"
                    for _ in range(3):
                        await c.notify(f"{worker}.open")
            before = len(ran)
            while len(ran) == before:
                try:
                    await c.request("w.open")
                except RateLimited as later:
                    await asyncio.sleep(later.retry_after)
            assert 6 <= len(ran) <= 5 + 5 * (time.monotonic() - begun)

    live(scene)


# the circuit breaker

PLAN = BreakerPlan(failures=0.5, of=4, open=0.3)


def test_a_circuit_opens_lets_a_probe_through_and_closes(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c", breaker=PLAN) as c:
            stuck = True
            calls: list[int] = []

            async def handler(_: None) -> str:
                calls.append(1)
                if stuck:
                    await asyncio.Event().wait()
                return "well"

            w.handler("m")(handler)
            w.handler("other")(lambda _payload: "fine")
            await w.ready()
            for _ in range(4):
                with pytest.raises(RequestTimeout):
                    await c.request("w.m", timeout=0.02)
            ran = len(calls)  # fewer than four if a busy machine let one be too late to begin with
            with pytest.raises(CircuitOpen) as caught:
                await c.request("w.m")
            assert 0 < caught.value.retry_after <= 0.3
            assert caught.value.instance == "w:0"
            assert len(calls) == ran
            assert await c.request("w.other") == "fine"
            await asyncio.sleep(caught.value.retry_after + 0.01)
            with pytest.raises(RequestTimeout):
                await c.request("w.m", timeout=0.02)
            with pytest.raises(CircuitOpen):
                await c.request("w.m")
            stuck = False
            await asyncio.sleep(0.31)
            assert await asyncio.gather(*(c.request("w.other") for _ in range(2)), c.request("w.m")) == [
                "fine", "fine", "well"
            ]  # fmt: skip
            assert await c.request("w.m") == "well"

    live(scene)


def test_a_circuit_is_told_how_openings_went(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        proceed = threading.Event()

        def busy(ipc: BlockingIpc) -> None:
            """Be ready, and do not turn."""
            flows(ipc, [])
            ipc.ready()
            proceed.wait(20)
            ipc.serve()

        def blocking(ipc: BlockingIpc) -> None:
            for _ in range(4):
                with pytest.raises(RequestTimeout), ipc.open_stream(rows, 1, timeout=0.02):
                    pass
            with pytest.raises(CircuitOpen), ipc.open_stream(rows, 1):
                pass

        def run() -> None:
            with stage.running(stage.add("b", breaker=PLAN), blocking):
                pass

        with stage.running(stage.add("w"), busy):
            async with handle(stage, "c", breaker=PLAN) as c:
                for _ in range(4):
                    with pytest.raises(RequestTimeout):
                        async with c.open_stream(rows, 1, timeout=0.02):
                            pass
                with pytest.raises(CircuitOpen) as caught:
                    async with c.open_stream(rows, 1):
                        pass
                assert (caught.value.instance, caught.value.method) == ("w:0", "w.rows")
                await asyncio.to_thread(run)
                proceed.set()
                await asyncio.sleep(0.31)  # the circuit's `open`
                for _ in range(2):  # the probe, and then as before
                    async with c.open_stream(rows, 2) as items:
                        assert [item async for item in items] == [0, 1]
                assert c._caller.circuits.states() == {}

    live(scene)


def test_calls_go_to_instances_whose_circuit_is_closed(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with (
            handle(stage, "w", 0) as bad,
            handle(stage, "w", 1) as good,
            handle(stage, "c", breaker=PLAN) as c,
        ):

            async def never(_: None) -> None:
                await asyncio.Event().wait()

            bad.handler("m")(never)
            good.handler("m")(lambda _payload: "well")
            await bad.ready()
            await good.ready()
            for _ in range(4):
                with pytest.raises(RequestTimeout):
                    await c.request("w.m", timeout=0.02, slot=0)
            assert [await c.request("w.m") for _ in range(6)] == ["well"] * 6
            with pytest.raises(CircuitOpen):
                await c.request("w.m", slot=0)

            def blocking(ipc: BlockingIpc) -> None:
                for _ in range(4):
                    with pytest.raises(RequestTimeout):
                        ipc.request("w.m", timeout=0.02, slot=0)
                assert [ipc.request("w.m") for _ in range(6)] == ["well"] * 6
                with pytest.raises(CircuitOpen):
                    ipc.request("w.m", slot=0)

            def run() -> None:
                with stage.running(stage.add("b", breaker=PLAN), blocking):
                    pass

            await asyncio.to_thread(run)

    live(scene)


def test_an_error_of_the_handler_is_no_reason_to_open(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c", breaker=PLAN) as c:

            def fails(_: None) -> None:
                raise ValueError("of its own")

            w.handler("m")(fails)
            await w.ready()
            for _ in range(10):
                with pytest.raises(Exception, match="of its own"):
                    await c.request("w.m")
            assert c._caller.circuits.states() == {}

    live(scene)


def test_retries_are_a_share_of_the_calls(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        flaky = Method("w.m", type(None), int, idempotent=True)
        async with handle(stage, "w") as w, handle(stage, "c", breaker=None) as c:
            calls: list[int] = []

            async def handler(_: None) -> int:
                calls.append(1)
                for link in tuple(w._server.links):
                    link.close("test")
                return 1

            w.handler(flaky)(handler)
            await w.ready()
            outcomes = await asyncio.gather(
                *(c.request(flaky, None, timeout=5) for _ in range(40)), return_exceptions=True
            )
            assert {type(one) for one in outcomes} == {ConnectionLost}
            assert len(c._caller.budget._spent) == RESERVE
            assert c._caller.budget.refused > 0
            assert len(calls) <= 40 + RESERVE

    live(scene)

"""Topics end to end, in both flavours: policies, queues, retained values; publisher and subscriber of either kind."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scenes import Scene, until
from scenes import handle as scene_handle

from smartipc.ipc.contracts import Topic
from smartipc.ipc.control import ExitFacts
from smartipc.ipc.errors import FrameTooLarge, InvalidPayload, Overloaded, SlowConsumer
from smartipc.ipc.handle import SmartIpc
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.sync import SmartIpc as BlockingIpc
from smartipc.ipc.sync.testing import Stage

ticks = Topic("ticks", int)


@pytest.fixture
def live() -> Callable[[Scene], None]:
    def run(scene: Scene) -> None:
        with tempfile.TemporaryDirectory(prefix="t-") as folder:
            stage = Stage(folder)

            async def main() -> None:
                async with asyncio.timeout(30):
                    await scene(stage)

            asyncio.run(main())
            assert [one.name for one in Path(folder).iterdir() if one.name != "retained"] == []

    return run


def handle(stage: Stage, worker: str, slot: int = 0, **more: Any) -> contextlib.AbstractAsyncContextManager[SmartIpc]:
    return scene_handle(stage, worker, slot, retained=f"{stage.folder}/retained", **more)


async def take(messages: Any, count: int) -> list[IpcMessage[Any]]:
    return [await anext(messages) for _ in range(count)]


def numbered(messages: list[IpcMessage[Any]]) -> list[tuple[Any, int]]:
    return [(message.payload, message.missed) for message in messages]


@pytest.mark.parametrize(
    ("overflow", "kept", "dropped"),
    [
        ("drop_oldest", [(997, 997), (998, 0), (999, 0)], 997),
        ("drop_newest", [(0, 0), (1, 0), (2, 0)], 997),
        ("latest", [(999, 999)], 999),
    ],
)
def test_a_slow_reader_loses_and_its_publisher_never_waits(
    live: Callable[[Scene], None], overflow: str, kept: list[tuple[int, int]], dropped: int
) -> None:
    async def scene(stage: Stage) -> None:
        async with (
            handle(stage, "s") as s,
            handle(stage, "p") as p,
            s.subscribe(ticks, max_pending=3, overflow=overflow) as messages,
        ):
            for number in range(1000):
                before = len(asyncio.all_tasks())
                await asyncio.wait_for(p.publish(ticks, number), 1)
                assert len(asyncio.all_tasks()) == before
            await until(lambda: messages.dropped == dropped)
            assert numbered(await take(messages, len(kept))) == kept
            await p.publish(ticks, 1000)
            assert numbered(await take(messages, 1)) == [(1000, 1000 - kept[-1][0] - 1)]

    live(scene)


def test_a_reader_that_does_not_turn_costs_the_publisher_nothing(live: Callable[[Scene], None]) -> None:
    """The subscriber is blocking and computes: its socket is not read at all."""

    async def scene(stage: Stage) -> None:
        go = threading.Event()
        entered = threading.Event()
        got: list[tuple[int, int]] = []

        def reader(ipc: BlockingIpc) -> None:
            with ipc.subscribe(ticks, max_pending=5, overflow="drop_oldest") as messages:
                entered.set()
                assert go.wait(20)
                while not got or got[-1][0] != 49_999:
                    message = next(messages)
                    got.append((message.payload, message.missed))

        async with handle(stage, "p") as p:
            launch = stage.add("s")
            with stage.running(launch, reader) as _:
                await asyncio.to_thread(entered.wait, 10)
                for number in range(50_000):
                    await p.publish(ticks, number)
                lane = next(iter(p._publisher._lanes.values()))
                assert (lane.load, len(lane.pending)) == (69, 5)
                go.set()
                await until(lambda: got and got[-1][0] == 49_999)
        assert sum(missed for _, missed in got) + len(got) == 50_000
        assert len(got) < 500

    live(scene)


def test_close_tells_the_subscriber(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with (
            handle(stage, "s") as s,
            handle(stage, "p") as p,
            s.subscribe(ticks, max_pending=3, overflow="close") as messages,
        ):
            for number in range(5):
                assert p.publish_nowait(ticks, number) == 1
            seen = []
            with pytest.raises(SlowConsumer) as caught:
                await until(lambda: messages.dropped)
                async for message in messages:
                    seen.append(message.payload)
            assert seen == [0, 1, 2]
            assert caught.value.topic == "ticks"
            with pytest.raises(StopAsyncIteration):
                await anext(messages)

    live(scene)


def test_a_blocking_subscriber_is_told_too(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        entered, go = threading.Event(), threading.Event()
        seen: list[object] = []

        def reader(ipc: BlockingIpc) -> None:
            with ipc.subscribe(ticks, max_pending=2, overflow="close") as messages:
                entered.set()
                assert go.wait(20)
                try:
                    for message in messages:
                        seen.append(message.payload)
                except SlowConsumer as error:
                    seen.append(type(error))
                seen.append(messages.receive(0))

        async with handle(stage, "p") as p:
            with stage.running(stage.add("s"), reader):
                await asyncio.to_thread(entered.wait, 10)
                for number in range(4):
                    await p.publish(ticks, number)
                go.set()
                await until(lambda: None in seen)
        # the reader may have begun before the last ones were written
        assert seen in ([0, 1, SlowConsumer, None], [0, 1, 2, SlowConsumer, None])

    live(scene)


def test_what_does_not_fit_is_one_error_and_the_reader_goes_on(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "s") as s, handle(stage, "p") as p, s.subscribe(ticks, overflow="drop_oldest") as of:
            for value in (1, "two", 3):
                await p.publish("ticks", value)
            assert (await anext(of)).payload == 1
            with pytest.raises(InvalidPayload):
                await anext(of)
            assert (await anext(of)).payload == 3
            with pytest.raises(FrameTooLarge):
                await p.publish("ticks", bytes(17 << 20))

    live(scene)


# queues


@pytest.mark.parametrize("overflow", ["block", "drop_oldest"])
def test_a_queue_gives_each_message_to_one_member(live: Callable[[Scene], None], overflow: str) -> None:
    async def scene(stage: Stage) -> None:
        got: dict[int, list[int]] = {0: [], 1: [], 2: []}
        everything: list[int] = []
        async with contextlib.AsyncExitStack() as stack:
            p = await stack.enter_async_context(handle(stage, "p"))
            members = [await stack.enter_async_context(handle(stage, "s", slot)) for slot in range(3)]
            for slot, one in enumerate(members):
                of = await stack.enter_async_context(one.subscribe("t.>", queue="work", overflow=overflow))
                stack.callback(asyncio.ensure_future(_collect(of, got[slot])).cancel)
            whole = await stack.enter_async_context(members[0].subscribe("t.*"))
            stack.callback(asyncio.ensure_future(_collect(whole, everything)).cancel)
            for number in range(300):
                await p.publish(f"t.{number % 7}", number)
            await until(lambda: sum(map(len, got.values())) == 300 and len(everything) == 300)
        assert sorted(number for of in got.values() for number in of) == list(range(300))
        assert everything == list(range(300))
        assert all(60 <= len(of) <= 140 for of in got.values())
        assert all(of == sorted(of) for of in got.values())

    live(scene)


async def _collect(messages: Any, into: list[int]) -> None:
    async for message in messages:
        into.append(message.payload)


def test_a_queue_prefers_the_idle_and_waits_when_all_are_full(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with (
            handle(stage, "p") as p,
            handle(stage, "s", 0) as s0,
            handle(stage, "s", 1) as s1,
            s0.subscribe(ticks, queue="q", max_pending=2) as slow,
            s1.subscribe(ticks, queue="q", max_pending=4) as quick,
        ):
            for number in range(6):
                assert p.publish_nowait(ticks, number) == 1
            with pytest.raises(Overloaded):
                p.publish_nowait(ticks, 6)
            stuck = asyncio.ensure_future(p.publish(ticks, 6))
            await asyncio.sleep(0.01)
            assert not stuck.done()
            first = await take(quick, 4)
            await stuck
            assert (await anext(quick)).payload == 6
            assert sorted(one.payload for one in [*first, *await take(slow, 2)]) == list(range(6))

    live(scene)


def test_what_waits_for_a_dead_member_goes_to_another(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "p") as p, handle(stage, "s", 0) as s0, handle(stage, "s", 1) as s1:
            got: list[int] = []
            async with s0.subscribe(ticks, queue="q", max_pending=100, overflow="drop_newest"):
                # s0 is full by its own account: nothing of what follows is ever written to it
                lane = p._publisher._lane(next(iter(p._directory.state.subscriptions)))
                lane.sent += lane.left
                for number in range(10):
                    await p.publish(ticks, number)
                assert len(lane.pending) == 10
                async with s1.subscribe(ticks, queue="q", overflow="block") as messages:
                    stack = asyncio.ensure_future(_collect(messages, got))
                    stage.set("s:0", "backoff", ExitFacts(signal="SIGKILL"))
                    await until(lambda: len(got) == 10)
                    await p.publish(ticks, 10)
                    await until(lambda: len(got) == 11)
                    stack.cancel()
            assert got == list(range(11))

    live(scene)


# retained values


def test_a_late_subscriber_gets_the_last_value_also_of_the_dead(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "p") as p:
            await p.publish("state.a", 1, retain=True)
            await p.publish("state.a", 2, retain=True)
            assert p.publish_nowait("state.b", 3, retain=True) == 0
            await p.publish("state.c", 4)
            await p.publish("state." + "x" * 240, 5, retain=True, headers={"colour": "blue"})
        stage.set("p:0", "failed", ExitFacts(code=1))
        async with handle(stage, "s") as s:
            async with s.subscribe("state.*") as messages:
                first = await take(messages, 3)
            assert [(one.payload, one.sender, one.missed) for one in first] == [
                (2, "p:0", 0), (3, "p:0", 0), (5, "p:0", 0)
            ]  # fmt: skip
            assert [one.headers for one in first] == [{}, {}, {"colour": "blue"}]
            assert abs(first[0].timestamp - time.time()) < 20
            async with s.subscribe(Topic("state.b", int), overflow="latest") as messages:
                assert (await anext(messages)).payload == 3
            async with handle(stage, "p", generation=2) as again, s.subscribe("state.a") as messages:
                await again.publish("state.a", 6, retain=True)
                assert [one.payload for one in await take(messages, 2)] == [2, 6]
                async with s.subscribe("state.a") as later:
                    assert (await anext(later)).payload == 6

    live(scene)


def test_retained_values_come_exactly_once_while_they_change(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "p") as p, handle(stage, "s") as s:
            done = asyncio.Event()

            async def publisher() -> int:
                number = 0
                while not done.is_set():
                    number += 1
                    await p.publish("state", number, retain=True)
                    await asyncio.sleep(0)
                return number

            work = asyncio.ensure_future(publisher())
            for _ in range(50):
                async with s.subscribe("state") as messages:
                    seen = [one.payload for one in await take(messages, 5)]
                    assert seen == list(range(seen[0], seen[0] + 5))
            done.set()
            await work

    live(scene)


def test_blocking_handles_retain_and_subscribe_too(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        got: list[object] = []

        def writer(ipc: BlockingIpc) -> None:
            ipc.publish("state.a", 1, retain=True)
            ipc.publish_nowait("state.b", 2, retain=True)

        def reader(ipc: BlockingIpc) -> None:
            @ipc.subscriber("state.>")
            def _(payload: object, message: IpcMessage[object]) -> None:
                got.append((payload, message.sender))

            ipc.serve()

        folder = f"{stage.folder}/retained"
        with stage.running(stage.add("p", retained=folder), writer):
            pass
        with stage.running(stage.add("s", retained=folder), reader):
            await until(lambda: len(got) == 2)
        assert got == [(1, "p:0"), (2, "p:0")]

    live(scene)


# blocking publishers


def test_a_blocking_publisher_never_waits_for_one_that_drops(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        published = threading.Event()

        def writer(ipc: BlockingIpc) -> None:
            for number in range(20_000):
                ipc.publish(ticks, number)
            published.set()
            ipc.stopped()  # and lets the rest go out while it waits

        async with handle(stage, "s") as s, s.subscribe(ticks, max_pending=4, overflow="drop_oldest") as messages:
            with stage.running(stage.add("p"), writer):
                # this loop does not turn until everything is published
                assert published.wait(20)
                got = []
                while not got or got[-1][0] != 19_999:
                    got += numbered(await take(messages, 1))
            assert sum(missed for _, missed in got) + len(got) == 20_000

    live(scene)


def test_what_waits_is_sent_before_a_publisher_ends(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        written = threading.Event()

        def writer(ipc: BlockingIpc) -> None:
            for number in range(500):
                ipc.publish(ticks, number)
            written.set()

        async with handle(stage, "s") as s, s.subscribe(ticks, max_pending=4, overflow="latest") as messages:
            with contextlib.ExitStack() as stack:
                thread = threading.Thread(target=lambda: stack.enter_context(stage.running(stage.add("p"), writer)))
                thread.start()
                assert written.wait(20)
                while (await anext(messages)).payload != 499:
                    pass
                thread.join()
        async with handle(stage, "s") as s, s.subscribe(ticks, max_pending=4, overflow="latest") as messages:
            async with handle(stage, "p", generation=2) as p:
                for number in range(500):
                    await p.publish(ticks, number)
            while (await anext(messages)).payload != 499:
                pass

    live(scene)


def test_a_blocking_queue_shares_and_waits(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        def writer(ipc: BlockingIpc) -> None:
            for number in range(200):
                ipc.publish(ticks, number)
            with pytest.raises(Overloaded):
                for _ in range(100):
                    ipc.publish_nowait(ticks, -1)

        got: list[int] = []
        async with (
            handle(stage, "s", 0) as s0,
            handle(stage, "s", 1) as s1,
            s0.subscribe(ticks, queue="q", max_pending=8) as first,
            s1.subscribe(ticks, queue="q", max_pending=8) as second,
        ):
            work = asyncio.to_thread(_run, stage, "p", writer)
            collectors = [asyncio.ensure_future(_collect(of, got)) for of in (first, second)]
            running = asyncio.ensure_future(work)
            await until(lambda: len([one for one in got if one >= 0]) == 200)
            for one in collectors:
                one.cancel()
            await running
        assert sorted(one for one in got if one >= 0) == list(range(200))

    live(scene)


def _run(stage: Stage, worker: str, target: Callable[[BlockingIpc], object]) -> None:
    with stage.running(stage.add(worker), target):
        pass

"""`map` without a task per call: what goes wrong on the short way goes on the long one, at its place."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import uvloop
from scenes import Scene, play, until
from scenes import handle as scene_handle

from smartipc.ipc.contracts import Method
from smartipc.ipc.errors import (
    FrameTooLarge,
    InvalidPayload,
    LocalProtocolError,
    NoSuchWorker,
    RemoteError,
    RequestTimeout,
    WorkerDied,
)
from smartipc.ipc.protocol.events import RequestsReceived
from smartipc.ipc.sync.testing import Stage


class Odd(Exception): ...


double = Method("w.double", int, int, errors=(Odd,))
again = Method("w.double", int, int, idempotent=True)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def live(request: pytest.FixtureRequest) -> Callable[[Scene], None]:
    return functools.partial(play, loop_factory=request.param)


handle = functools.partial(scene_handle, ready=True)


async def collected(replies: AsyncIterator[int]) -> list[int]:
    return [reply async for reply in replies]


@pytest.mark.parametrize("concurrency", [1, 7, 500])
def test_every_instance_takes_part_and_the_order_is_kept(live: Callable[[Scene], None], concurrency: int) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, contextlib.AsyncExitStack() as stack:
            counts = [0, 0, 0]
            for slot in range(3):
                w = await stack.enter_async_context(handle(stage, "w", slot))

                def answer(number: int, slot: int = slot) -> int:
                    counts[slot] += 1
                    return number * 2

                w.handler(double)(lambda number, answer=answer: answer(number))
            assert await collected(c.map(double, range(1000), concurrency=concurrency)) == list(range(0, 2000, 2))
            replies = await collected(c.map(double, range(1000), concurrency=concurrency, ordered=False))
            assert sorted(replies) == list(range(0, 2000, 2))
            assert min(counts) > 400

    live(scene)


@pytest.mark.parametrize("instances", [2, 3, 4])
def test_requests_one_by_one_reach_every_instance(live: Callable[[Scene], None], instances: int) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, contextlib.AsyncExitStack() as stack:
            for slot in range(instances):
                w = await stack.enter_async_context(handle(stage, "w", slot))
                w.handler(double)(lambda _number, slot=slot: slot)
            seen = [await c.request(double, 0) for _ in range(instances * 10)]
            assert [seen.count(slot) for slot in range(instances)] == [10] * instances

    live(scene)


@pytest.mark.parametrize("ordered", [True, False])
def test_no_more_than_concurrency_are_under_way(live: Callable[[Scene], None], ordered: bool) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:
            running = most = drawn = 0

            @w.handler(double)
            async def _(number: int) -> int:
                nonlocal running, most
                running += 1
                most = max(most, running)
                await asyncio.sleep(0)
                running -= 1
                return number

            def numbers() -> object:
                nonlocal drawn
                for number in range(100):
                    drawn += 1
                    yield number

            await c.request(double, 0)
            got = 0
            async for _ in c.map(double, numbers(), concurrency=5, ordered=ordered):  # type: ignore[arg-type]
                got += 1
                assert drawn <= got + 5
            assert got == 100
            assert 1 < most <= 5

    live(scene)


def test_failures_are_raised_at_their_place(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:

            @w.handler(double)
            def _(number: int) -> int:
                if number == 5:
                    raise Odd("five")
                return number if number != 8 else "eight"  # type: ignore[return-value]

            await c.request(double, 0)
            got = []
            with pytest.raises(Odd, match="five"):
                async for reply in c.map(double, range(20), concurrency=10):
                    got.append(reply)
            assert got == [0, 1, 2, 3, 4]
            with pytest.raises(InvalidPayload):
                await collected(c.map(double, [1, "two", 3]))  # type: ignore[list-item]
            with pytest.raises(InvalidPayload):
                await collected(c.map(double, [1, 8]))
            (link,) = c._caller.links.values()
            assert not link.outstanding

    live(scene)


def test_leaving_cancels_what_is_under_way(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:
            running: set[int] = set()

            @w.handler(double)
            async def _(number: int) -> int:
                if number:
                    running.add(number)
                    try:
                        await asyncio.sleep(60)
                    finally:
                        running.remove(number)
                return number

            await c.request(double, 0)
            replies = c.map(double, range(5), concurrency=3)
            assert await anext(replies) == 0
            await until(lambda: running)
            await replies.aclose()  # type: ignore[attr-defined]
            await until(lambda: not running)
            (link,) = c._caller.links.values()
            assert not link.outstanding

            waiting = asyncio.create_task(collected(c.map(double, range(1, 5))))
            await until(lambda: running == {1, 2, 3, 4})
            waiting.cancel()
            await until(lambda: not running)
            assert not link.outstanding

    live(scene)


def test_a_lost_instance_is_replaced_within_the_map_if_the_method_is_idempotent(
    live: Callable[[Scene], None],
) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w, handle(stage, "w", 1) as v:
            reached = asyncio.Event()

            @w.handler(again)
            async def _(number: int) -> int:
                reached.set()
                await asyncio.sleep(60)
                return number

            v.handler(again)(lambda number: number * 2)
            for slot in (0, 1):
                with contextlib.suppress(RequestTimeout):
                    await c.request(again, 0, slot=slot, timeout=0.05)
            reached.clear()
            working = asyncio.create_task(collected(c.map(again, range(50), concurrency=8)))
            await reached.wait()
            stage.set("w:0", "exited")
            for link in list(w._server.links):
                link.close("gone")
            assert await working == list(range(0, 100, 2))

    live(scene)


def test_deadlines_hold_and_unknown_workers_are_named(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:

            @w.handler(double)
            async def _(number: int) -> int:
                await asyncio.sleep(60 if number else 0)
                return number

            await c.request(double, 0)
            with pytest.raises(RequestTimeout):
                await collected(c.map(double, [0, 1], timeout=0.05))
            with pytest.raises(NoSuchWorker):
                await collected(c.map(Method("nobody.x", int, int), [1]))
            with pytest.raises(LocalProtocolError, match="concurrency"):
                await collected(c.map(double, [1], concurrency=0))
            assert await collected(c.map(double, [])) == []

    live(scene)


def test_what_goes_wrong_within_a_row_is_raised_at_its_place(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:

            @w.handler("say")
            def _(number: int) -> object:
                if number == 70:
                    raise Odd("seventy")
                return number if number != 50 else "fifty"

            await c.request("w.say", 0)
            for wrong, raised in ((50, InvalidPayload), (70, RemoteError)):
                got = []
                payloads = [number for number in range(100) if number in (wrong, 99) or number < 40]
                with pytest.raises(raised):
                    async for reply in c.map(Method("w.say", int, int), payloads, concurrency=64):
                        got.append(reply)
                assert got == list(range(40))
            (link,) = c._caller.links.values()
            assert not link.outstanding

    live(scene)


@pytest.mark.parametrize("ordered", [True, False])
def test_payloads_of_every_size_and_kind_in_one_map(live: Callable[[Scene], None], ordered: bool) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:
            length = Method("w.length", bytes, int)
            w.handler(length)(len)
            w.handler("same")(lambda value: value)
            await c.request("w.same")
            sizes = [1, 2, 70_000, 3, 40_000, 40_000, 4, 300_000, 5, *range(100)]
            got = await collected(c.map(length, (b"x" * size for size in sizes), ordered=ordered))
            assert (got if ordered else sorted(got)) == (sizes if ordered else sorted(sizes))
            odd: list[Any] = [1, "two", None, bytearray(b"3"), {4: [5]}, (6,)]
            replies = [reply async for reply in c.map("w.same", odd, ordered=True)]
            assert replies == [1, "two", None, b"3", {4: [5]}, [6]]
            with pytest.raises(InvalidPayload):
                await collected(c.map("w.same", [1, object(), 2]))
            with pytest.raises(FrameTooLarge):
                await collected(c.map(length, [b"1", bytes(17 * 1024 * 1024)]))

    live(scene)


def test_one_object_that_changes_is_sent_as_it_was(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:
            w.handler("first")(lambda value: value[0])
            box = [0]

            def changing() -> Iterator[list[int]]:
                for number in range(50):
                    box[0] = number
                    yield box

            assert await collected(c.map("w.first", changing())) == list(range(50))  # nothing is open yet
            assert await collected(c.map("w.first", changing())) == list(range(50))

    live(scene)


def test_a_source_that_breaks_is_the_maps_failure(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:
            w.handler(double)(lambda number: number * 2)
            await c.request(double, 0)

            def breaking() -> Iterator[int]:
                yield from range(100)
                raise TypeError("broken")

            got = []
            with pytest.raises(TypeError, match="broken"):
                async for reply in c.map(double, breaking(), concurrency=10):
                    got.append(reply)
            assert got == list(range(0, 2 * len(got), 2))
            (link,) = c._caller.links.values()
            assert not link.outstanding

    live(scene)


def test_a_slow_consumer_does_not_keep_the_workers_waiting(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:
            served = 0

            @w.handler(double)
            def _(number: int) -> int:
                nonlocal served
                served += 1
                return number * 2

            await c.request(double, 0)
            served = got = 0
            async for _ in c.map(double, range(200), concurrency=40):
                got += 1
                for _ in range(20):  # turns, in which the worker works ahead
                    await asyncio.sleep(0)
                assert served >= min(200, got + 29)
                assert served <= got + 40

    live(scene)


def test_slow_calls_are_dealt_out_evenly(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, contextlib.AsyncExitStack() as stack:
            going = asyncio.Event()
            running = [0, 0, 0, 0]
            for slot in range(4):
                w = await stack.enter_async_context(handle(stage, "w", slot))

                @w.handler(double)
                async def _(number: int, slot: int = slot) -> int:
                    running[slot] += number > 0
                    await asyncio.sleep(0.03)
                    if number:
                        await going.wait()
                    return number

                await c.request(double, 0, slot=slot)
            working = asyncio.create_task(collected(c.map(double, range(1, 65), concurrency=64)))
            while sum(running) < 64:
                await asyncio.sleep(0)
            assert running == [16] * 4
            going.set()
            assert await working == list(range(1, 65))

    live(scene)


def test_a_row_of_which_the_worker_answered_a_part(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:

            @w.handler(double)
            async def _(number: int) -> int:
                if number >= 5:
                    await asyncio.sleep(60)
                return number * 2

            await c.request(double, 0)
            got: list[int] = []

            async def work() -> None:
                async for reply in c.map(double, range(10)):
                    got.append(reply)

            working = asyncio.create_task(work())
            while len(got) < 5:
                await asyncio.sleep(0)
            stage.set("w:0", "exited")
            for link in list(w._server.links):
                link.close("gone")
            with pytest.raises(WorkerDied) as lost:
                await working
            assert lost.value.processed == "maybe"
            assert got == [0, 2, 4, 6, 8]

    live(scene)


def test_a_malformed_batch_of_replies_is_the_failure_of_each(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:

            def mangle(link: Any, event: RequestsReceived) -> None:
                link.reply_all(event.ids, b"\xdd" + len(event.ids).to_bytes(4, "big") + b"\xc1" * len(event.ids))

            w.handler(double)(lambda number: number * 2)
            await c.request(double, 0)
            w._server.on_requests = mangle  # type: ignore[method-assign]
            with pytest.raises(InvalidPayload, match="malformed batch"):
                await collected(c.map(double, range(10)))
            got = await asyncio.gather(*(c.request(double, 1) for _ in range(4)), return_exceptions=True)
            assert [type(one) for one in got] == [int, InvalidPayload, InvalidPayload, InvalidPayload]

    live(scene)


def test_replies_of_rows_and_single_requests_in_one_frame(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:
            free = asyncio.Event()

            @w.handler(double)
            async def _(number: int) -> int:
                if number:
                    await free.wait()
                return number * 2

            await c.request(double, 0)
            single = [asyncio.create_task(c.request(double, number)) for number in (1, 2)]
            mapping = [asyncio.create_task(collected(c.map(double, range(first, first + 5)))) for first in (10, 20)]
            while w.snapshot().handling < 12:
                await asyncio.sleep(0)
            free.set()
            assert await asyncio.gather(*single) == [2, 4]
            assert await asyncio.gather(*mapping) == [list(range(2 * first, 2 * first + 10, 2)) for first in (10, 20)]

    live(scene)

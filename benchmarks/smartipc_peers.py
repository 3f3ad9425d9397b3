"""smartipc itself, in both flavours, as contenders of every row."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import peers
from harness import Make, Measure
from peers import OUTSTANDING, PAYLOAD, echo, item, median_us, median_us_of, noop, outstanding, rate, topic, worker


@contextlib.contextmanager
def blocking_latency() -> Iterator[Measure]:
    """The blocking handle at both ends."""
    with peers.stage() as on, worker(on, peers.blocking_server(on)), peers.blocking_client(on) as ipc:
        yield median_us(lambda: ipc.request(echo, PAYLOAD))


@contextlib.contextmanager
def async_latency() -> Iterator[Measure]:
    """The async handle at both ends."""
    with peers.stage() as on, worker(on, peers.async_server(on)), peers.async_client(on) as (ipc, run):
        yield lambda number: run(median_us_of(lambda: ipc.request(echo, PAYLOAD), number))


@contextlib.contextmanager
def async_requests() -> Iterator[Measure]:
    """OUTSTANDING coroutines, one request each at a time."""
    with peers.stage() as on, worker(on, peers.async_server(on)), peers.async_client(on) as (ipc, run):
        yield rate(lambda number: run(outstanding(lambda: ipc.request(echo, PAYLOAD), number)))


@contextlib.contextmanager
def async_map() -> Iterator[Measure]:
    """The async handle's map with OUTSTANDING under way."""
    with peers.stage() as on, worker(on, peers.async_server(on)), peers.async_client(on) as (ipc, run):

        async def work(number: int) -> None:
            done = 0
            async for _ in ipc.map(echo, (PAYLOAD for _ in range(number)), concurrency=OUTSTANDING):
                done += 1
            assert done == number

        yield rate(lambda number: run(work(number)))


@contextlib.contextmanager
def blocking_map() -> Iterator[Measure]:
    """The blocking handle's map with OUTSTANDING under way."""
    with peers.stage() as on, worker(on, peers.blocking_server(on)), peers.blocking_client(on) as ipc:

        def work(number: int) -> None:
            done = sum(1 for _ in ipc.map(echo, (PAYLOAD for _ in range(number)), concurrency=OUTSTANDING))
            assert done == number

        yield rate(work)


# one way


@contextlib.contextmanager
def blocking_notify() -> Iterator[Measure]:
    """Call notify on a handler, until it has handled the last one."""
    with peers.stage() as on, worker(on, peers.blocking_server(on)), peers.blocking_client(on) as ipc:

        def work(number: int) -> None:
            goal = ipc.request("echo.count", None, reply_type=int) + number
            for _ in range(number):
                ipc.notify(item, PAYLOAD)
            while ipc.request("echo.count", None, reply_type=int) < goal:
                pass

        yield rate(work)


@contextlib.contextmanager
def async_notify() -> Iterator[Measure]:
    """Call notify on a handler, until it has handled the last one."""
    with peers.stage() as on, worker(on, peers.async_server(on)), peers.async_client(on) as (ipc, run):

        async def work(number: int) -> None:
            goal = await ipc.request("echo.count", None, reply_type=int) + number
            for _ in range(number):
                await ipc.notify(item, PAYLOAD)
            while await ipc.request("echo.count", None, reply_type=int) < goal:
                pass

        yield rate(lambda number: run(work(number)))


@contextlib.contextmanager
def blocking_publish() -> Iterator[Measure]:
    """Publish to a subscription of another process, until it has consumed the last one."""
    with peers.stage() as on:
        launch = on.add("echo", trust="user")
        with worker(on, peers.subscriber(on, launch, blocking=True)), peers.blocking_client(on) as ipc:
            peers.subscribed(on, launch)

            def work(number: int) -> None:
                goal = ipc.request("echo.count", None, reply_type=int) + number
                for _ in range(number):
                    ipc.publish(topic, PAYLOAD)
                while ipc.request("echo.count", None, reply_type=int) < goal:
                    pass

            yield rate(work)


def async_publish(processes: int = 1) -> Make:
    """Publish to subscriptions in that many processes, until each has consumed the last one; counts deliveries."""

    @contextlib.contextmanager
    def make() -> Iterator[Measure]:
        with peers.stage() as on, contextlib.ExitStack() as stack:
            launches = [on.add("echo", slot, trust="user") for slot in range(processes)]
            for slot, launch in enumerate(launches):
                stack.enter_context(worker(on, peers.subscriber(on, launch, blocking=False), slot))
            ipc, run = stack.enter_context(peers.async_client(on))
            for launch in launches:
                peers.subscribed(on, launch)

            goal = 0

            async def counts() -> list[int]:
                asked = (ipc.request("echo.count", None, slot=slot, reply_type=int) for slot in range(processes))
                return await asyncio.gather(*asked)

            async def work(number: int) -> None:
                nonlocal goal
                goal += number
                for _ in range(number):
                    await ipc.publish(topic, PAYLOAD)
                while min(have := await counts()) < goal:
                    pass
                assert max(have) == goal

            measure = rate(lambda number: run(work(number)))
            yield lambda number: processes * measure(number)

    return make


# pool


def _pool(on: Any, stack: contextlib.ExitStack, server: Any) -> None:
    for slot in range(4):
        stack.enter_context(worker(on, server(on, slot), slot))


@contextlib.contextmanager
def blocking_pool() -> Iterator[Measure]:
    """The blocking handle's map over four blocking workers."""
    with peers.stage() as on, contextlib.ExitStack() as stack:
        _pool(on, stack, peers.blocking_server)
        ipc = stack.enter_context(peers.blocking_client(on))

        def work(number: int) -> None:
            done = sum(1 for _ in ipc.map(noop, range(number), concurrency=1024))
            assert done == number

        yield rate(work)


@contextlib.contextmanager
def async_pool() -> Iterator[Measure]:
    """The async handle's map over four async workers."""
    with peers.stage() as on, contextlib.ExitStack() as stack:
        _pool(on, stack, peers.async_server)
        ipc, run = stack.enter_context(peers.async_client(on))

        async def work(number: int) -> None:
            done = 0
            async for _ in ipc.map(noop, range(number), concurrency=1024):
                done += 1
            assert done == number

        yield rate(lambda number: run(work(number)))

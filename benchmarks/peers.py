"""What every contender shares: child processes, timing, and smartipc's own ends on a stage without a supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import msgspec

from smartipc.ipc import control
from smartipc.ipc.contracts import Method, Topic
from smartipc.ipc.handle import SmartIpc as AsyncIpc
from smartipc.ipc.subscriptions import DEFAULT_WINDOW
from smartipc.ipc.sync import SmartIpc
from smartipc.ipc.sync.testing import Stage, StagePort

try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop

T = TypeVar("T")
Child = Callable[[Callable[[], None]], object]
"""Runs in a child until it is killed; calls its argument when it is ready."""


class Payload(msgspec.Struct, frozen=True):
    """What travels."""

    data: bytes


SIZE = 64
PAYLOAD = Payload(bytes(SIZE))
OUTSTANDING = 64
echo = Method("echo.echo", Payload, Payload)
noop = Method("echo.noop", int, int)
item = Method("echo.item", Payload, int)
topic = Topic("bench.items", Payload)


@contextlib.contextmanager
def child(run: Child) -> Iterator[int]:
    """Run `run(ready)` in a forked child until the block ends; the block begins when it called ready."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            run(lambda: os.close(writer))
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def median_us(once: Callable[[], object]) -> Callable[[int], float]:
    """Return a measure: the median duration of `once` in microseconds."""
    clock = time.perf_counter

    def measure(number: int) -> float:
        durations = []
        for _ in range(number):
            began = clock()
            once()
            durations.append(clock() - began)
        return statistics.median(durations) * 1e6

    return measure


async def median_us_of(once: Callable[[], Awaitable[object]], number: int) -> float:
    """Return the median duration of awaiting `once()` in microseconds."""
    clock = time.perf_counter
    durations = []
    for _ in range(number):
        began = clock()
        await once()
        durations.append(clock() - began)
    return statistics.median(durations) * 1e6


def rate(work: Callable[[int], object]) -> Callable[[int], float]:
    """Return a measure: operations per second of `work(n)`, which returns when all n are done."""

    def measure(number: int) -> float:
        began = time.perf_counter()
        work(number)
        return number / (time.perf_counter() - began)

    return measure


async def outstanding(once: Callable[[], Awaitable[object]], number: int) -> None:
    """Await `once()` that many times, OUTSTANDING at a time."""

    async def some() -> None:
        for _ in range(number // OUTSTANDING):
            await once()

    await asyncio.gather(*(some() for _ in range(OUTSTANDING)))


# smartipc


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """A stage in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        on = Stage(folder)
        on.add("client")  # before the servers fork: their copies of the stage know who will call
        yield on


@contextlib.contextmanager
def worker(on: Stage, run: Child, slot: int = 0) -> Iterator[None]:
    """Run an `echo` worker in a child until the block ends, listed as ready."""
    with child(run) as pid:
        on.set(f"echo:{slot}", "ready", pid=pid)
        yield


def blocking_server(on: Stage, slot: int = 0) -> Child:
    """A blocking worker `echo`."""
    launch = on.add("echo", slot, trust="user")  # its copy of the stage does not know the clients that come later

    def run(ready: Callable[[], None]) -> None:
        ipc = on.handle(launch)
        ipc.handler(echo)(lambda payload: payload)
        ipc.handler(noop)(lambda number: number)
        counted = Count()
        ipc.handler(item)(counted)
        ipc.handler("count")(lambda _payload: counted.value)
        ready()
        ipc.serve()

    return run


class Count:
    """Counts its calls."""

    def __init__(self) -> None:
        self.value = 0

    def __call__(self, _payload: Payload) -> int:
        self.value += 1
        return 0


def async_server(on: Stage, slot: int = 0) -> Child:
    """An async worker `echo` with plain `def` handlers, as the documentation recommends for short ones."""
    launch = on.add("echo", slot, trust="user")  # its copy of the stage does not know the clients that come later

    def run(ready: Callable[[], None]) -> None:
        async def life() -> None:
            ipc = AsyncIpc(launch, on.directory(), StagePort(on, launch))
            await ipc._open()  # noqa: SLF001
            ipc.handler(echo)(lambda payload: payload)
            ipc.handler(noop)(lambda number: number)
            counted = Count()
            ipc.handler(item)(counted)
            ipc.handler("count")(lambda _payload: counted.value)
            ready()
            await ipc.serve()

        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(life())

    return run


def subscriber(on: Stage, launch: Any, *, blocking: bool) -> Child:
    """A subscriber that answers "count" with how many messages it has consumed."""

    def run_blocking(ready: Callable[[], None]) -> None:
        ipc = on.handle(launch)
        counted = 0
        ipc.handler("count")(lambda _payload: counted)
        with ipc.subscribe(topic) as messages:
            ready()
            for _ in messages:
                counted += 1

    def run_async(ready: Callable[[], None]) -> None:
        async def life() -> None:
            ipc = AsyncIpc(launch, on.directory(), StagePort(on, launch))
            await ipc._open()  # noqa: SLF001
            counted = 0
            ipc.handler("count")(lambda _payload: counted)
            async with ipc.subscribe(topic) as messages:
                ready()
                async for _ in messages:
                    counted += 1

        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(life())

    return run_blocking if blocking else run_async


def subscribed(on: Stage, launch: Any) -> None:
    """Tell this process's copy of the stage what the subscriber says to its own copy."""
    on.asked(launch, control.subscribe, control.SubscribeRequest(1, topic.name, DEFAULT_WINDOW))


@contextlib.contextmanager
def async_client(on: Stage) -> Iterator[tuple[AsyncIpc, Callable[[Any], Any]]]:
    """Give an async client and a function that runs a coroutine on its loop."""
    launch = on.add("client")

    async def opened() -> AsyncIpc:
        ipc = AsyncIpc(launch, on.directory(), StagePort(on, launch))
        await ipc._open()  # noqa: SLF001
        return ipc

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        ipc = runner.run(opened())
        yield ipc, runner.run
        runner.run(ipc._close(1))  # noqa: SLF001


@contextlib.contextmanager
def blocking_client(on: Stage) -> Iterator[SmartIpc]:
    """Give a blocking client."""
    ipc = on.handle(on.add("client"))
    try:
        yield ipc
    finally:
        ipc._close(1)  # noqa: SLF001

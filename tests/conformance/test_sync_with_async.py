"""The blocking and the async handle together: what one says the other understands, on both event loops."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import msgspec
import pytest
import uvloop

from smartipc.ipc.contracts import Method, Topic
from smartipc.ipc.control import Launch
from smartipc.ipc.errors import InvalidPayload, NoSuchMethod, RemoteError, RequestTimeout
from smartipc.ipc.handle import SmartIpc as AsyncIpc
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.sync import SmartIpc
from smartipc.ipc.sync.testing import Stage, StagePort


class Job(msgspec.Struct, frozen=True):
    number: int


class Refused(Exception):
    """Declared by both."""


async_double = Method("aio.double", Job, Job, errors=(Refused,))
sync_double = Method("sync.double", Job, Job, errors=(Refused,))
jobs = Topic("jobs.done", Job)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="c-") as folder:
        yield Stage(folder)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return request.param  # type: ignore[no-any-return]


@contextmanager
def running_async(
    stage: Stage,
    launch: Launch,
    target: Callable[[AsyncIpc], Awaitable[object]],
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> Iterator[None]:
    opened: Future[AsyncIpc] = Future()
    failures: list[BaseException] = []

    async def life() -> None:
        ipc = AsyncIpc(launch, stage.directory(), StagePort(stage, launch))
        await ipc._open()
        opened.set_result(ipc)
        try:
            await target(ipc)
        finally:
            await ipc._close(5)

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(life())
        except BaseException as error:
            failures.append(error)
            if not opened.done():
                opened.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        ipc = opened.result(10)
        yield
        ipc._begin_stop("end of the block")
    finally:
        thread.join()
    assert failures == []


def double(request: Job) -> Job:
    if request.number < 0:
        raise Refused(request.number)
    if request.number == 0:
        raise ZeroDivisionError("zero")
    return Job(request.number * 2)


def sync_worker(ipc: SmartIpc) -> None:
    ipc.handler(sync_double)(double)

    @ipc.handler("forward")
    def _(number: int, message: IpcMessage[int]) -> list[object]:
        return [message.sender, ipc.request(async_double, Job(number)).number]

    ipc.serve()


async def async_worker(ipc: AsyncIpc) -> None:
    @ipc.handler(async_double)
    async def _(request: Job) -> Job:
        await asyncio.sleep(0)
        return double(request)

    @ipc.handler("hang")
    async def _hang(_payload: None) -> None:
        await asyncio.sleep(30)

    await ipc.serve()


def test_blocking_calls_async(stage: Stage, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with running_async(stage, stage.add("aio"), async_worker, new_loop):
        ipc = stage.handle(stage.add("client"))
        assert ipc.request(async_double, Job(4)) == Job(8)
        with pytest.raises(Refused):
            ipc.request(async_double, Job(-1))
        with pytest.raises(RemoteError, match="zero"):
            ipc.request(async_double, Job(0))
        with pytest.raises(NoSuchMethod):
            ipc.request("aio.nothing", 1)
        with pytest.raises(InvalidPayload):
            ipc.request("aio.double", "text")
        with pytest.raises(RequestTimeout):
            ipc.request("aio.hang", None, timeout=0.05)
        assert [job.number for job in ipc.map(async_double, map(Job, range(1, 200)))] == list(range(2, 400, 2))
        assert [one.value for one in ipc.broadcast(async_double, Job(1))] == [Job(2)]
        big = "x" * 1_000_000
        assert ipc.request("aio.double", {"number": 3, "note": big}) == {"number": 6}
        ipc._close(1)


def test_async_calls_blocking(stage: Stage, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    seen: list[object] = []

    async def client(ipc: AsyncIpc) -> None:
        seen.append(await ipc.request(sync_double, Job(4)))
        for number in (-1, 0):
            try:
                await ipc.request(sync_double, Job(number))
            except (Refused, RemoteError) as error:
                seen.append(type(error))
        seen.append([job.number async for job in ipc.map(sync_double, map(Job, range(1, 200)))])
        seen.append([one.value for one in await ipc.broadcast(sync_double, Job(1))])
        seen.append(await ipc.request("sync.forward", 5))

    with (
        stage.running(stage.add("sync"), sync_worker),
        running_async(stage, stage.add("aio"), async_worker, new_loop),
        running_async(stage, stage.add("client"), client, new_loop),
    ):
        pass
    assert seen == [Job(8), Refused, RemoteError, list(range(2, 400, 2)), [Job(2)], ["client:0", 10]]


def test_topics_cross_both_ways(stage: Stage, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async_got: list[int] = []
    sync_got: list[int] = []
    entered = threading.Barrier(3)

    async def reader(ipc: AsyncIpc) -> None:
        async with ipc.subscribe(jobs, max_pending=16) as messages:
            await asyncio.to_thread(entered.wait, 10)
            async for message in messages:
                async_got.append(message.payload.number)
                await ipc.publish("back.again", message.payload.number)
                if len(async_got) == 500:
                    return

    def listener(ipc: SmartIpc) -> None:
        with ipc.subscribe("back.>", max_pending=16) as messages:
            entered.wait(10)
            for message in messages:
                sync_got.append(message.payload)
                if len(sync_got) == 500:
                    done.set()

    done = threading.Event()
    with (
        running_async(stage, stage.add("reader"), reader, new_loop),
        stage.running(stage.add("listener"), listener),
    ):
        entered.wait(10)
        ipc = stage.handle(stage.add("writer"))
        for number in range(500):
            ipc.publish(jobs, Job(number))
        assert done.wait(20)
        ipc._close(1)
    assert async_got == sync_got == list(range(500))

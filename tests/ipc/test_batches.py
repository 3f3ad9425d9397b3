"""Batches of requests at an async worker: each member is served, refused and answered as if it were alone."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from scenes import Scene, play
from scenes import handle as scene_handle

from smartipc.ipc import batches
from smartipc.ipc.contracts import Method
from smartipc.ipc.errors import (
    CallError,
    ConnectionLost,
    InvalidPayload,
    NoSuchMethod,
    Overloaded,
    RateLimited,
    RemoteError,
    RequestCancelled,
    RequestTimeout,
)
from smartipc.ipc.handle import SmartIpc
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.protocol.events import RequestsReceived
from smartipc.ipc.sync.testing import Stage
from smartipc.ipc.tracing import current


class Odd(Exception): ...


double = Method("w.double", int, int, errors=(Odd,))
names = Method("w.names", int, list[str])
nothing = Method("w.nothing", int, None)
handle = functools.partial(scene_handle, ready=True)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def live(request: pytest.FixtureRequest) -> Callable[[Scene], None]:
    return functools.partial(play, loop_factory=request.param)


def batches_at(worker: SmartIpc) -> list[int]:
    """The sizes of the batches that come from here on."""
    sizes: list[int] = []
    arrived = worker._server.on_requests

    def count(link: Any, event: RequestsReceived) -> None:
        sizes.append(len(event.ids))
        arrived(link, event)

    worker._server.on_requests = count  # type: ignore[method-assign]
    return sizes


async def asked(client: SmartIpc, method: Any, payloads: Any, **more: Any) -> list[Any]:
    """Make requests within one turn; return their replies or errors. The link is open already."""
    return await asyncio.gather(*(client.request(method, one, **more) for one in payloads), return_exceptions=True)


def test_requests_of_one_turn_come_in_batches(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:
            w.handler(double)(lambda number: number * 2)
            await c.request(double, 0)
            sizes = batches_at(w)
            assert await asked(c, double, range(100)) == list(range(0, 200, 2))
            assert sizes == [99]  # the first one leaves at once
            assert w._registry.served == 101

    live(scene)


def test_members_fail_each_for_itself(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:

            @w.handler(double)
            def _(number: int) -> Any:
                match number:
                    case 3:
                        raise Odd("three")
                    case 5:
                        raise KeyError("five")
                    case 7:
                        return "seven"
                    case 9:
                        raise asyncio.CancelledError
                    case 11:
                        return True  # an int, but not of that very type
                return number * 2

            await c.request(double, 0)
            sizes = batches_at(w)
            got = await asked(c, double, range(20))
            assert sizes == [19]
            strange = {3: Odd, 5: RemoteError, 7: InvalidPayload, 9: RequestCancelled, 11: InvalidPayload}
            for number, reply in enumerate(got):
                if number in strange:
                    assert type(reply) is strange[number]
                else:
                    assert reply == number * 2
            assert got[7].processed == "yes"

    live(scene)


def test_a_payload_that_does_not_fit_harms_no_other(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:
            w.handler(double)(lambda number: number * 2)
            await c.request("w.double", 0)
            got = await asked(c, "w.double", [1, 2, "three", 4])
            assert got[:2] + got[3:] == [2, 4, 8]
            assert isinstance(got[2], InvalidPayload)
            assert got[2].processed == "no"
            assert all(isinstance(one, NoSuchMethod) for one in await asked(c, "w.nobody", [1, 2, 3]))

    live(scene)


def test_handlers_of_every_kind_take_batches(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:
            kept: list[str] = []

            @w.handler(names)
            def _(number: int) -> list[str]:
                kept.append(str(number))
                return kept  # the same list again and again: each reply is what it was then

            @w.handler("anything")
            def _(number: int) -> object:
                return {"number": number}

            @w.handler("later")
            async def _(number: int) -> int:
                await asyncio.sleep(0)
                return number

            @w.handler("message")
            def _(number: int, message: IpcMessage[int]) -> list[Any]:
                return [number, message.id, message.attempt]

            w.handler(nothing)(lambda _number: None)
            await c.request(nothing, 0)
            sizes = batches_at(w)
            assert await asked(c, names, range(5)) == [[str(n) for n in range(upto)] for upto in range(1, 6)]
            assert await asked(c, "w.anything", range(5)) == [{"number": number} for number in range(5)]
            assert await asked(c, "w.later", range(5)) == list(range(5))
            assert await asked(c, nothing, range(5)) == [None] * 5
            answers = await asked(c, "w.message", range(5))
            assert [answer[0] for answer in answers] == list(range(5))
            assert len({answer[1] for answer in answers}) == 5
            assert sizes == [4] * 5

    live(scene)


def test_each_has_its_own_trace_and_deadline(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:
            seen: list[Any] = []

            @w.handler(double)
            def _(number: int) -> int:
                seen.append(current.get())
                return number

            await c.request(double, 0)
            del seen[:]
            await asked(c, double, range(10))
            assert len({one[2] for one in seen}) == 10
            assert current.get() is None
            with pytest.raises(CallError):
                raise (await asked(c, double, [1], timeout=0.0))[0]

    live(scene)


def test_large_replies_find_their_way(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:

            @w.handler("blob")
            def _(size: int) -> bytes:
                return b"x" * size

            await c.request("w.blob", 0)
            sizes = [10, 20, 40_000, 40_000, 30, 200_000, 40, 50, 17 * 1024 * 1024, 60]
            got = await asked(c, "w.blob", sizes)
            assert [len(one) for one in got[:8]] == sizes[:8]
            assert "exceeds" in str(got[8])
            assert len(got[9]) == 60

    live(scene)


def stepping(worker: SmartIpc, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A handler after whose every call the row is interrupted."""
    done: list[int] = []
    monkeypatch.setattr(batches, "SLICE", 0.0005)

    @worker.handler(double)
    def _(number: int) -> int:
        until = time.monotonic() + 0.001
        while time.monotonic() < until:
            pass
        done.append(number)
        return number * 2

    return done


def test_a_long_row_lets_others_have_their_turn(live: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "d") as d, handle(stage, "w") as w:
            done = stepping(w, monkeypatch)
            w.handler("ping")(lambda _nothing: len(done))
            await c.request("w.ping")
            await d.request("w.ping")
            working = asyncio.create_task(asked(c, double, range(100)))
            other = asyncio.create_task(asked(d, double, range(100, 120)))
            await asyncio.sleep(0)
            while not done:
                await asyncio.sleep(0)
            assert await c.request("w.ping") < 100
            assert w.snapshot().waiting > 0
            assert await working == list(range(0, 200, 2))
            assert await other == list(range(200, 240, 2))
            assert w.snapshot().waiting == 0
            assert max(done.index(number) for number in range(100, 120)) < 119  # not behind all of the others

    live(scene)


def test_what_is_cancelled_while_it_waits_never_runs(
    live: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:
            done = stepping(w, monkeypatch)
            await c.request(double, -1)
            tasks = [asyncio.create_task(c.request(double, number)) for number in range(50)]
            while len(done) < 3:
                await asyncio.sleep(0)
            for task in tasks[40:]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert await c.request(double, -2) == -4
            assert set(done) == {*range(40), -1, -2}

    live(scene)


def test_what_expires_while_it_waits_never_runs(live: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:
            done = stepping(w, monkeypatch)
            await c.request(double, -1)
            got = await asked(c, double, range(200), timeout=0.05)
            assert isinstance(got[-1], RequestTimeout)
            while w.snapshot().waiting:
                await asyncio.sleep(0)
            assert 199 not in done

    live(scene)


def test_a_row_ends_with_its_link(live: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:
            done = stepping(w, monkeypatch)
            await c.request(double, -1)
            working = asyncio.create_task(asked(c, double, range(100)))
            while len(done) < 3:
                await asyncio.sleep(0)
            for link in list(w._server.links):
                link.close("gone")
            got = await working
            assert any(isinstance(one, ConnectionLost) and one.processed == "maybe" for one in got)
            assert w.snapshot().waiting == 0
            assert len(done) < 101

    live(scene)


@pytest.mark.parametrize("grace", [5.0, 0.0])
def test_a_worker_that_stops_finishes_its_rows_or_says_that_they_never_ran(
    live: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch, grace: float
) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c:
            w = await (ending := handle(stage, "w")).__aenter__()
            done = stepping(w, monkeypatch)
            await c.request(double, -1)
            working = asyncio.create_task(asked(c, double, range(100)))
            while len(done) < 3:
                await asyncio.sleep(0)
            stage.set("w:0", "stopping")
            await w._server.drain(grace)
            stage.set("w:0", "exited")
            got = await working
            if grace:
                assert got == list(range(0, 200, 2))
            else:
                ran = {number for number, reply in enumerate(got) if reply == number * 2}
                assert ran == set(done) - {-1}
                assert all(one.processed == "no" for number, one in enumerate(got) if number not in ran)
            await ending.__aexit__(None, None, None)

    live(scene)


def test_limits_hold_for_every_member(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with (
            handle(stage, "c") as c,
            handle(stage, "w", concurrency_running=1, concurrency_waiting=2) as w,
            handle(stage, "r", rate_limit=5.0) as r,
        ):
            free = asyncio.Event()

            @w.handler("slow")
            async def _(_number: int) -> None:
                await free.wait()

            w.handler(double)(lambda number: number * 2)
            r.handler("one")(lambda number: number)
            await c.request(double, 0)
            held = asyncio.create_task(asked(c, "w.slow", range(5)))
            while w.snapshot().waiting < 2:
                await asyncio.sleep(0)
            got = await asked(c, double, range(3))
            assert all(isinstance(one, Overloaded) for one in got)
            free.set()
            assert [type(one) for one in await held].count(Overloaded) >= 1
            await c.request("r.one", 0)
            got = await asked(c, "r.one", range(10))
            assert 1 <= [type(one) for one in got].count(RateLimited) < 10

    live(scene)


def test_a_peer_without_batches_is_answered_one_by_one(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c, handle(stage, "w") as w:
            w.handler(double)(lambda number: number * 2)
            await c.request(double, 0)
            (link,) = w._server.links
            link.connection.outbox.batching_calls = False
            assert await asked(c, double, range(10)) == list(range(0, 20, 2))

    live(scene)

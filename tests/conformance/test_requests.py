"""What is promised of requests, between handles of either flavour: each test runs for every pair."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import wait_for

from smartipc.ipc.contracts import Method
from smartipc.ipc.control import Entry
from smartipc.ipc.errors import (
    FrameTooLarge,
    NoSuchMethod,
    RequestCancelled,
    RequestTimeout,
    WorkerDied,
)
from smartipc.ipc.handle import SmartIpc as AsyncIpc
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.routing import balance
from smartipc.ipc.routing.directory import DirectoryState
from smartipc.ipc.sync.handle import SmartIpc as BlockingIpc
from smartipc.ipc.sync.testing import Stage, StagePort

MIB = 1 << 20


class Person:
    """A worker of either flavour in a thread of its own, driven from the test as if it were blocking."""

    def __init__(self, stage: Stage, worker: str, flavour: str, setup: Callable[[Any], None], **more: Any) -> None:
        self._stop = threading.Event()
        self._ready: Future[Any] = Future()
        self.ended: Future[None] = Future()
        self.loop: asyncio.AbstractEventLoop | None = None
        launch = stage.add(worker, **more)

        async def life() -> None:
            self.loop = asyncio.get_running_loop()
            ipc = AsyncIpc(launch, stage.directory(), StagePort(stage, launch))
            await ipc._open()
            setup(ipc)
            await ipc.ready()
            self._ready.set_result(ipc)
            await ipc.stopped()
            await ipc._close(5)

        def blocking() -> None:
            ipc = stage.handle(launch)
            setup(ipc)
            ipc.ready()
            self._ready.set_result(ipc)
            ipc.stopped()
            ipc._close(5)

        def run() -> None:
            try:
                asyncio.run(life()) if flavour == "async" else blocking()
            except BaseException as error:
                self.ended.set_exception(error)
                if not self._ready.done():
                    self._ready.set_exception(error)
            else:
                self.ended.set_result(None)

        self._thread = threading.Thread(target=run)
        self._thread.start()
        self.ipc: Any = self._ready.result(10)

    def begin(self, verb: str, *args: Any, **named: Any) -> Future[Any]:
        """Call a verb of the handle where the handle lives."""
        if self.loop is not None:

            async def call() -> Any:
                result = getattr(self.ipc, verb)(*args, **named)
                if inspect.isasyncgen(result):
                    return [one async for one in result]
                return await result

            return asyncio.run_coroutine_threadsafe(call(), self.loop)
        future: Future[Any] = Future()

        def call_blocking() -> None:
            try:
                result = getattr(self.ipc, verb)(*args, **named)
                future.set_result(list(result) if inspect.isgenerator(result) else result)
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=call_blocking, daemon=True).start()
        return future

    def call(self, verb: str, *args: Any, **named: Any) -> Any:
        return self.begin(verb, *args, **named).result(20)

    def close(self) -> None:
        self.ipc._begin_stop("the end")
        self._thread.join(20)
        self.ended.result(0)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="r-") as folder:
        yield Stage(folder)


@pytest.fixture(params=["async", "blocking"])
def server_flavour(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=["async", "blocking"])
def client_flavour(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]


@contextlib.contextmanager
def people(*many: Person) -> Iterator[None]:
    try:
        yield
    finally:
        for one in many:
            one.close()


def nobody(_: Any) -> None:
    """Serve nothing."""


# size


def test_sixteen_mebibytes_go_and_more_is_refused_at_the_caller(
    stage: Stage, client_flavour: str, server_flavour: str
) -> None:
    ran: list[int] = []

    def setup(ipc: Any) -> None:
        def size(data: bytes) -> int:
            ran.append(len(data))
            return len(data)

        def give(count: int) -> bytes:
            return bytes(count)

        ipc.handler("size")(size)
        ipc.handler("give")(give)

    server = Person(stage, "w", server_flavour, setup)
    client = Person(stage, "c", client_flavour, nobody)
    most = 16 * MIB - 5  # and five bytes of MessagePack around it
    with people(client, server):
        assert client.call("request", "w.size", bytes(most), reply_type=int) == most
        with pytest.raises(FrameTooLarge) as caught:
            client.call("request", "w.size", bytes(most + 1))
        assert caught.value.limit == 16 * MIB
        with pytest.raises(FrameTooLarge):
            client.call("notify", "w.size", bytes(most + 1))
        assert ran == [most]
        assert len(client.call("request", "w.give", most, reply_type=bytes)) == most
        with pytest.raises(Exception, match=r"limit") as refused:
            client.call("request", "w.give", most + 1)
        assert getattr(refused.value, "processed", "yes") == "yes"
        assert client.call("request", "w.size", b"still here") == 10


# what a handler sees


def test_the_message_tells_who_when_and_which_chain(stage: Stage, client_flavour: str, server_flavour: str) -> None:
    seen: dict[str, IpcMessage[Any]] = {}

    def far(ipc: Any) -> None:
        def handler(_: Any, message: IpcMessage[Any]) -> None:
            seen["far"] = message

        ipc.handler("m")(handler)

    def near(ipc: Any) -> None:
        if server_flavour == "async":

            async def handler(_: Any, message: IpcMessage[Any]) -> None:
                seen["near"] = message
                await ipc.request("far.m", headers={"own": "1"})
                await ipc.notify("far.note")
        else:

            def handler(_: Any, message: IpcMessage[Any]) -> None:  # type: ignore[misc]
                seen["near"] = message
                ipc.request("far.m", headers={"own": "1"})
                ipc.notify("far.note")

        ipc.handler("m")(handler)

    noted: list[IpcMessage[Any]] = []

    def with_note(ipc: Any) -> None:
        far(ipc)

        def note(_: Any, message: IpcMessage[Any]) -> None:
            noted.append(message)

        ipc.handler("note")(note)

    one = Person(stage, "far", client_flavour, with_note)
    two = Person(stage, "near", server_flavour, near)
    client = Person(stage, "c", client_flavour, nobody)
    with people(client, two, one):
        before = time.time()
        client.call("request", "near.m", None, headers={"who": "me"}, timeout=5)
        wait_for(lambda: noted, "the note")
        first, second = seen["near"], seen["far"]
        assert (first.sender, second.sender, noted[0].sender) == ("c:0", "near:0", "near:0")
        assert (first.headers, second.headers, noted[0].headers) == ({"who": "me"}, {"own": "1"}, {})
        assert first.attempt == 1
        assert before - 1 < first.timestamp < time.time() + 1
        assert first.trace is not None
        assert first.trace == second.trace == noted[0].trace
        assert first.remaining is not None
        assert second.remaining is not None
        assert second.deadline is not None
        assert first.deadline is not None
        # what each was given when it came: the rest of the first one's time, whatever the way took
        assert second.deadline - second.timestamp <= first.deadline - first.timestamp + 0.01
        earlier = first.trace
        client.call("request", "near.m")
        assert seen["near"].trace != earlier
        chosen = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        client.call("request", "near.m", None, headers={"traceparent": chosen})
        assert seen["far"].trace == chosen


def test_a_method_nobody_serves_names_those_there_are(stage: Stage, client_flavour: str, server_flavour: str) -> None:
    server = Person(stage, "w", server_flavour, lambda ipc: ipc.handler("known")(lambda payload: payload))
    client = Person(stage, "c", client_flavour, nobody)
    with people(client, server), pytest.raises(NoSuchMethod) as caught:
        client.call("request", "w.unknown")
    assert caught.value.known == ("w.known",)
    assert caught.value.processed == "no"


def test_what_a_handler_s_own_call_met_is_not_taken_for_its_own_fate(
    stage: Stage, client_flavour: str, server_flavour: str
) -> None:
    """The far one is gone: the near one has run, once, and says so. It is alive, and nobody asks it again."""
    ran: list[int] = []
    stage.add("far", state="failed")

    def near(ipc: Any) -> None:
        if server_flavour == "async":

            async def handler(_: None) -> None:
                ran.append(1)
                await ipc.request("far.m")
        else:

            def handler(_: None) -> None:  # type: ignore[misc]
                ran.append(1)
                ipc.request("far.m")

        ipc.handler("m")(handler)

    server = Person(stage, "near", server_flavour, near)
    client = Person(stage, "c", client_flavour, nobody)
    with people(client, server):
        for _ in range(25):
            with pytest.raises(WorkerDied) as caught:
                client.call("request", "near.m", timeout=5)
            assert (caught.value.instance, caught.value.processed) == ("far:0", "yes")
    assert len(ran) == 25


# deadlines and cancellation


def test_a_deadline_ends_a_chain_of_three_and_expired_work_never_starts(
    stage: Stage, client_flavour: str, server_flavour: str
) -> None:
    release = threading.Event()
    ran: list[str] = []
    left: list[float] = []

    def last(ipc: Any) -> None:
        def handler(what: str, message: IpcMessage[str]) -> None:
            ran.append(what)
            left.append(message.remaining or 0.0)
            if what == "hold":
                assert release.wait(20)

        ipc.handler("m")(handler)

    def middle(ipc: Any) -> None:
        if server_flavour == "async":

            async def handler(what: str) -> None:
                await ipc.request("last.m", what)
        else:

            def handler(what: str) -> None:  # type: ignore[misc]
                ipc.request("last.m", what)

        ipc.handler("m")(handler)

    third = Person(stage, "last", server_flavour, last)
    second = Person(stage, "middle", server_flavour, middle)
    client = Person(stage, "c", client_flavour, nobody)
    with people(client, second, third):
        began = time.monotonic()
        with pytest.raises(RequestTimeout):
            client.call("request", "middle.m", "hold", timeout=0.3)
        assert time.monotonic() - began < 1.5
        assert left[0] <= 0.3
        with pytest.raises(RequestTimeout):
            # the last one is still held, so this waits there until its time is over
            client.call("request", "last.m", "late", timeout=0.1)
        release.set()
        client.call("request", "last.m", "next", timeout=10)
        assert ran == ["hold", "next"]


def test_late_replies_are_dropped_and_counted(stage: Stage, client_flavour: str, server_flavour: str) -> None:
    """The reply to a call that was given up is on its way already when the cancel goes out."""
    stuck, go = threading.Event(), threading.Event()

    def setup(ipc: Any) -> None:
        def handler(what: str) -> str:
            if what == "slow":
                stuck.set()
                assert go.wait(20)
            return what

        ipc.handler("m")(handler)

    server = Person(stage, "w", server_flavour, setup)
    client = Person(stage, "c", client_flavour, nobody)
    with people(client, server):
        with pytest.raises(RequestTimeout):
            client.call("request", "w.m", "slow", timeout=0.1)
        assert stuck.is_set()
        assert client.ipc.snapshot().calls == 0
        go.set()
        assert client.call("request", "w.m", "quick") == "quick"
        # a plain handler cannot be stopped: its reply comes although nobody waits any more
        facts = client.ipc.snapshot()
        assert facts.late_replies == 1
        assert facts.links == 1
        server_facts = server.ipc.snapshot()
        assert (server_facts.instance, server_facts.waiting) == ("w:0", 0)


def test_cancelling_reaches_the_handler_and_its_own_calls(stage: Stage) -> None:
    """Three async workers in a row; every one of them sees the cancel."""
    events: list[str] = []
    reached = threading.Event()

    def link(name: str, following: str | None) -> Callable[[Any], None]:
        def setup(ipc: Any) -> None:
            async def handler(_: None) -> None:
                try:
                    if following is None:
                        reached.set()
                        await asyncio.Event().wait()
                    else:
                        await ipc.request(following)
                except asyncio.CancelledError:
                    events.append(name)
                    raise

            ipc.handler("m")(handler)

        return setup

    chain = [
        Person(stage, "c3", "async", link("c3", None)),
        Person(stage, "c2", "async", link("c2", "c3.m")),
        Person(stage, "c1", "async", link("c1", "c2.m")),
    ]
    client = Person(stage, "c", "async", nobody)
    with people(client, *reversed(chain)):
        call = client.begin("request", "c1.m", timeout=20)
        assert reached.wait(10)
        call.cancel()
        wait_for(lambda: len(events) == 3, f"all cancelled, only {events}")
        assert [one.ipc.snapshot().handling for one in chain] == [0, 0, 0]


def test_a_handler_that_cancels_itself_is_an_answer(stage: Stage, client_flavour: str) -> None:
    def setup(ipc: Any) -> None:
        async def handler(_: None) -> None:
            raise asyncio.CancelledError

        ipc.handler("m")(handler)

    server = Person(stage, "w", "async", setup)
    client = Person(stage, "c", client_flavour, nobody)
    with people(client, server), pytest.raises(RequestCancelled):
        client.call("request", "w.m")


# map


class Number(msgspec.Struct, frozen=True):
    value: int


square = Method("w.square", Number, Number)


@pytest.mark.parametrize("ordered", [True, False])
def test_map_draws_only_as_far_as_it_may(
    stage: Stage, client_flavour: str, server_flavour: str, *, ordered: bool
) -> None:
    drawn: list[int] = []
    ahead: list[int] = []
    answered: list[int] = []

    def setup(ipc: Any) -> None:
        def handler(number: Number) -> Number:
            ahead.append(len(drawn) - len(answered))
            answered.append(number.value)
            return Number(number.value**2)

        ipc.handler(square)(handler)

    def numbers() -> Iterator[Number]:
        for value in range(100):
            drawn.append(value)
            yield Number(value)

    server = Person(stage, "w", server_flavour, setup)
    client = Person(stage, "c", client_flavour, nobody)
    with people(client, server):
        found = client.call("map", square, numbers(), concurrency=4, ordered=ordered)
        values = [one.value for one in found]
        assert (values if ordered else sorted(values)) == [value**2 for value in range(100)]
        assert max(ahead) <= 5
        if client_flavour == "async":

            async def later() -> Any:
                for value in range(10):
                    await asyncio.sleep(0)
                    yield Number(value)

            found = client.call("map", square, later(), concurrency=4, ordered=ordered)
            assert sorted(one.value for one in found) == [value**2 for value in range(10)]


# keys


@given(st.sets(st.integers(0, 40), min_size=2, max_size=12), st.sets(st.text(max_size=8), min_size=30, max_size=60))
def test_only_keys_of_the_instance_that_left_move(slots: set[int], keys: set[str]) -> None:
    def choose(of: set[int], key: str) -> int:
        entries = [Entry(f"w:{slot}", "w", slot, 1, 1, "ready", "unix:///x") for slot in of]
        chosen = balance.select(DirectoryState(1, entries, ()), "w", key=key, outstanding=lambda _entry: 0)
        assert isinstance(chosen, Entry)
        return chosen.slot

    gone = min(slots)
    before = {key: choose(slots, key) for key in keys}
    after = {key: choose(slots - {gone}, key) for key in keys}
    assert all(before[key] == after[key] for key in keys if before[key] != gone)


def test_keys_spread_evenly() -> None:
    entries = [Entry(f"w:{slot}", "w", slot, 1, 1, "ready", "unix:///x") for slot in range(8)]
    state = DirectoryState(1, entries, ())
    counts = [0] * 8
    for number in range(4000):
        chosen = balance.select(state, "w", key=f"user-{number}", outstanding=lambda _entry: 0)
        assert isinstance(chosen, Entry)
        counts[chosen.slot] += 1
    assert min(counts) > 400
    assert max(counts) < 600


def test_blocking_is_the_twin() -> None:
    """Nothing of the one is missing in the other."""
    public = {name for name in dir(AsyncIpc) if not name.startswith("_")}
    assert public == {name for name in dir(BlockingIpc) if not name.startswith("_")}

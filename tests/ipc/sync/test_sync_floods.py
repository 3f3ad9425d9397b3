"""Blocking code that publishes without end: in batches, in order, within credit, and nothing stays behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from smartipc.ipc.contracts import Method, Topic
from smartipc.ipc.errors import InvalidPayload, LocalProtocolError, Overloaded
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.sync import SmartIpc, flushing
from smartipc.ipc.sync.flushing import Flood
from smartipc.ipc.sync.hearing import Messages
from smartipc.ipc.sync.testing import Stage


class Item(msgspec.Struct, frozen=True):
    number: int
    data: bytes = b""


items = Topic("items.new", Item)
ping = Method("reader.ping", type(None), int)
tell = Method("teller.tell", int, type(None))


class Reader:
    """A blocking worker that reads `count` messages once it is allowed to; a still one reads no socket before."""

    def __init__(self, stage: Stage, count: int, slot: int = 0, *, still: bool = False, **options: object) -> None:
        self.got: list[int] = []
        self.alone = 0
        self.entered = threading.Event()
        self.go = threading.Event()
        self.done = threading.Event()
        self._messages: Messages[Item] | None = None
        self._stage = stage
        self._count = count
        self._options = options
        self._still = still
        self._launch = stage.add("reader", slot)

    def _live(self, ipc: SmartIpc) -> None:
        ipc.handler(ping)(lambda _: len(self.got))
        with ipc.subscribe(items, **self._options) as messages:  # type: ignore[arg-type]
            self._watch(messages)
            ipc.ready()
            self.entered.set()
            while not (self.go.wait(20) if self._still else self.go.is_set()):
                if ipc.stopped(0.01):
                    return
            while len(self.got) < self._count:
                message = messages.receive(20)
                assert message is not None
                self.got.append(message.payload.number)
            self.done.set()
            ipc.stopped()

    @property
    def waiting(self) -> int:
        """Messages that have come and were not consumed."""
        assert self._messages is not None
        return sum(one.count for one in self._messages._inbox.waiting)

    def _watch(self, messages: Messages[Item]) -> None:
        self._messages = messages
        arrived = messages.arrived

        def count(event: object, link: object) -> bool:
            self.alone += 1
            return arrived(event, link)  # type: ignore[arg-type]

        messages.arrived = count  # type: ignore[method-assign]

    @contextmanager
    def reading(self, *, at_once: bool = True) -> Iterator[Reader]:
        with self._stage.running(self._launch, self._live):
            assert self.entered.wait(10)
            if at_once:
                self.go.set()
            yield self


@pytest.fixture
def writer(stage: Stage) -> Iterator[SmartIpc]:
    ipc = stage.handle(stage.add("writer"))
    try:
        yield ipc
    finally:
        ipc._close(2)


def flood(ipc: SmartIpc, numbers: range, data: bytes = b"") -> None:
    for number in numbers:
        ipc.publish(items, Item(number, data))


def stuck(ipc: SmartIpc) -> bool:
    return any(link.stuck for link in list(ipc._caller.links.values()))


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_flood_arrives_in_batches_whole_and_in_order(stage: Stage, writer: SmartIpc) -> None:
    with Reader(stage, 20_000).reading() as first, Reader(stage, 20_000, 1).reading() as second:
        flood(writer, range(20_000))
        for reader in (first, second):
            assert reader.done.wait(20)
            assert reader.got == list(range(20_000))
            assert reader.alone < 10_000


def test_floods_of_handlers_belong_to_their_traces(stage: Stage) -> None:
    seen: list[IpcMessage[Item]] = []
    traces: list[str | None] = []
    entered, done = threading.Event(), threading.Event()

    def read(ipc: SmartIpc) -> None:
        with ipc.subscribe(items) as messages:
            entered.set()
            while len(seen) < 4001 and (message := messages.receive(20)) is not None:
                seen.append(message)
        done.set()
        ipc.stopped()

    def write(ipc: SmartIpc) -> None:
        @ipc.handler(tell)
        def _(first: int, message: IpcMessage[int]) -> None:
            traces.append(message.trace)
            flood(ipc, range(first, first + 2000))

        ipc.serve()

    with stage.running(stage.add("reader"), read), stage.running(stage.add("teller"), write):
        assert entered.wait(10)
        ipc = stage.handle(stage.add("asker"))
        ipc.request(tell, 0)
        ipc.request(tell, 2000)
        ipc.publish(items, Item(4000))
        assert done.wait(20)
        ipc._close(1)
    assert [message.trace for message in seen if message.payload.number < 4000] == [traces[0]] * 2000 + [
        traces[1]
    ] * 2000
    assert [message.trace for message in seen if message.payload.number == 4000] == [None]
    assert len({*traces, None}) == 3


def test_the_last_of_a_flood_leave_although_nothing_else_is_said(stage: Stage, writer: SmartIpc) -> None:
    with Reader(stage, 300).reading() as reader:
        for end in (100, 200, 300):
            flood(writer, range(end - 100, end))
            until(lambda end=end: len(reader.got) == end)  # type: ignore[misc]
        assert reader.got == list(range(300))


def test_the_last_of_a_flood_leave_while_python_code_computes(stage: Stage, writer: SmartIpc) -> None:
    with Reader(stage, 300).reading() as reader:
        flood(writer, range(300))
        deadline = time.monotonic() + 20
        while not reader.done.is_set():  # without a pause
            assert time.monotonic() < deadline
        assert reader.got == list(range(300))


SAY: dict[str, Callable[[SmartIpc], object]] = {
    "request": lambda ipc: ipc.request(ping, None),
    "request by name": lambda ipc: ipc.request("reader.ping", reply_type=int),
    "notify": lambda ipc: ipc.notify(ping, None),
    "broadcast": lambda ipc: ipc.broadcast(ping, None),
    "map": lambda ipc: list(ipc.map(ping, [None])),
    "publish by name": lambda ipc: ipc.publish("others.new", 1),
    "publish_nowait": lambda ipc: ipc.publish_nowait("others.new", 1),
    "wait": lambda ipc: ipc.stopped(0.001),
    "beat": lambda ipc: ipc.beat(),
}


@pytest.mark.parametrize("say", SAY.values(), ids=SAY)
def test_what_was_published_is_written_before_anything_else(
    stage: Stage, writer: SmartIpc, monkeypatch: pytest.MonkeyPatch, say: Callable[[SmartIpc], object]
) -> None:
    monkeypatch.setattr(flushing, "PERIOD", 60.0)
    with Reader(stage, 10**9, max_pending=5000).reading(at_once=False) as reader:
        writer.request(ping, None)
        for end in (500, 1000, 1500):
            flood(writer, range(end - 500, end))
            assert writer._publisher._burst is not None
            say(writer)
            until(lambda end=end: reader.waiting == end)  # type: ignore[misc]


def test_credit_that_a_flood_did_not_need_is_given_back(stage: Stage, writer: SmartIpc) -> None:
    with Reader(stage, 1000, max_pending=1000).reading(at_once=False) as reader:
        flood(writer, range(600))
        room = 0
        while True:
            try:
                writer.publish_nowait(items, Item(600 + room))
            except Overloaded:
                if not stuck(writer):
                    break
                time.sleep(0.001)  # only the socket has no room
            else:
                room += 1
        assert room == 400
        reader.go.set()
        assert reader.done.wait(20)
        assert reader.got == list(range(1000))


@pytest.mark.parametrize("window", [1, 15, 16, 40, 300])
def test_a_flood_stays_within_the_window(stage: Stage, writer: SmartIpc, window: int) -> None:
    with Reader(stage, 2000, max_pending=window).reading(at_once=False) as reader:
        published = 0

        def publish() -> None:
            nonlocal published
            for number in range(2000):
                writer.publish(items, Item(number))
                published = number + 1

        thread = threading.Thread(target=publish)
        thread.start()
        until(lambda: published == window)
        time.sleep(0.02)  # it must not go on
        assert published == window
        reader.go.set()
        assert reader.done.wait(20)
        thread.join()
        assert reader.got == list(range(2000))


def test_a_subscription_entered_within_a_flood_misses_nothing_later(stage: Stage, writer: SmartIpc) -> None:
    with Reader(stage, 400).reading() as first:
        flood(writer, range(200))
        with Reader(stage, 200, 1).reading() as second:
            flood(writer, range(200, 400))
            assert first.done.wait(20)
            assert second.done.wait(20)
            assert first.got == list(range(400))
            assert second.got == list(range(200, 400))


def test_a_subscriber_that_is_lost_within_a_flood_costs_the_other_nothing(stage: Stage, writer: SmartIpc) -> None:
    with Reader(stage, 600).reading() as first:
        with Reader(stage, 10**9, 1, max_pending=100_000).reading(at_once=False):
            flood(writer, range(300))
        stage.set("reader:1", "exited")
        flood(writer, range(300, 600))
        assert first.done.wait(20)
        assert first.got == list(range(600))


def test_a_payload_that_does_not_fit_is_refused_within_a_flood(stage: Stage, writer: SmartIpc) -> None:
    with Reader(stage, 502).reading() as reader:
        for number in range(500):
            if number % 50 == 30:
                with pytest.raises(InvalidPayload):
                    writer.publish(items, "no item")  # type: ignore[arg-type]
                with pytest.raises(InvalidPayload):
                    writer.publish(items, Item(object()))  # type: ignore[arg-type]
            writer.publish(items, Item(number))
        writer.publish(items, Item(500, bytes(100_000)))
        writer.publish(items, Item(501))
        assert reader.done.wait(20)
        assert reader.got == list(range(502))


def test_what_is_published_last_leaves_before_a_worker_ends(stage: Stage) -> None:
    with Reader(stage, 500).reading() as reader:
        with stage.running(stage.add("writer"), lambda ipc: flood(ipc, range(500))):
            assert reader.done.wait(20)
        assert reader.got == list(range(500))


def test_a_flood_waits_for_a_socket_that_is_full(stage: Stage, writer: SmartIpc) -> None:
    with Reader(stage, 2000, still=True, max_pending=10_000).reading(at_once=False) as reader:
        published = 0

        def publish() -> None:
            nonlocal published
            for number in range(2000):
                writer.publish(items, Item(number, bytes(4000)))
                published = number + 1

        thread = threading.Thread(target=publish)
        thread.start()
        until(lambda: stuck(writer))
        time.sleep(0.05)  # it must not go on
        assert 0 < published < 500, "what the socket and the batch hold"
        reader.go.set()
        assert reader.done.wait(20)
        thread.join()
        assert reader.got == list(range(2000))


def test_threads_may_flood_together(stage: Stage, writer: SmartIpc) -> None:
    with Reader(stage, 4000).reading() as reader:
        threads = [
            threading.Thread(target=flood, args=(writer, range(begin, begin + 1000))) for begin in range(0, 4000, 1000)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert reader.done.wait(20)
        for begin in range(0, 4000, 1000):
            mine = [number for number in reader.got if begin <= number < begin + 1000]
            assert mine == list(range(begin, begin + 1000))


def test_a_forked_child_says_nothing_of_its_parents_flood(stage: Stage, writer: SmartIpc) -> None:
    with Reader(stage, 101).reading() as reader:
        flood(writer, range(100))
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                writer.publish(items, Item(-1))
            except LocalProtocolError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        writer.publish(items, Item(100))
        assert reader.done.wait(20)
        assert reader.got == list(range(101))


def test_a_function_gets_every_message_of_a_batch(stage: Stage, writer: SmartIpc) -> None:
    got: list[int] = []

    def live(ipc: SmartIpc) -> None:
        @ipc.subscriber(items)
        def _(item: Item) -> None:
            if item.number % 100 == 50:
                raise ValueError(item.number)
            got.append(item.number)

        ipc.serve()

    with stage.running(stage.add("reader"), live):
        until(lambda: bool(writer._directory.state.subscriptions))
        flood(writer, range(1000))
        until(lambda: len(got) == 990)
    assert got == [number for number in range(1000) if number % 100 != 50]


def test_only_many_quick_ones_of_a_kind_are_a_flood() -> None:
    said = Flood()
    assert not any(said.rises("a", number * 0.0001) for number in range(16))
    assert said.rises("a", 0.0016)
    assert said.rises("a", 0.0017)
    assert not said.rises("b", 0.0018), "another kind"
    assert not any(said.rises("b", 0.0018 + number * 0.0001) for number in range(1, 16))
    assert said.rises("b", 0.0034)
    assert not said.rises("b", 0.1), "after a pause"
    assert not any(said.rises("b", 0.1 + number * 0.001) for number in range(50)), "too slow"


def test_waiting_for_credit_does_not_end_a_flood() -> None:
    said = Flood()
    assert [said.rises("a", 0.0) for _ in range(17)][-1]
    said.waited = True
    assert said.rises("a", 5.0)
    assert not said.rises("a", 10.0)

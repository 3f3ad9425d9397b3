"""Topics of the blocking handle: nothing lost after entering, order, credit, serving meanwhile."""

from __future__ import annotations

import threading
import time

import msgspec
import pytest
from kit import wait_for

from smartipc.ipc.contracts import Topic
from smartipc.ipc.errors import FrameTooLarge, InvalidPayload, LocalProtocolError, Overloaded
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.sync import SmartIpc
from smartipc.ipc.sync.testing import Stage


class Item(msgspec.Struct, frozen=True):
    number: int


items = Topic("items.new", Item)


def test_messages_arrive_in_order_and_typed(stage: Stage) -> None:
    got: list[IpcMessage[Item]] = []
    entered = threading.Event()

    def subscriber(ipc: SmartIpc) -> None:
        with ipc.subscribe(items) as messages:
            entered.set()
            for message in messages:
                got.append(message)
                if len(got) == 3000:
                    return

    with stage.running(stage.add("reader"), subscriber):
        assert entered.wait(10)
        ipc = stage.handle(stage.add("writer"))
        for number in range(3000):
            ipc.publish(items, Item(number))
        wait_for(lambda: len(got) == 3000, "every message")
        ipc._close(1)
    assert [message.payload.number for message in got] == list(range(3000))
    assert (got[0].topic, got[0].sender, got[0].missed) == ("items.new", "writer:0", 0)


def test_what_a_subscriber_says_belongs_to_the_trace_of_its_message(stage: Stage) -> None:
    heard: list[str | None] = []
    traces: list[str | None] = []

    def reader(ipc: SmartIpc) -> None:
        @ipc.subscriber(items)
        def _(_item: Item, message: IpcMessage[Item]) -> None:
            heard.append(message.trace)
            ipc.notify("asked.note", None)

        ipc.serve()

    def asked(ipc: SmartIpc) -> None:
        ipc.handler("note")(lambda _payload, message: traces.append(message.trace))
        ipc.handler("tell")(lambda number: ipc.publish(items, Item(number)))
        ipc.serve()

    with stage.running(stage.add("asked"), asked), stage.running(stage.add("reader"), reader):
        ipc = stage.handle(stage.add("writer"))
        wait_for(lambda: ipc.peers["reader"][0].ready, "the subscriber")
        ipc.request("asked.tell", 1)
        wait_for(lambda: traces, "a note")
        ipc.publish(items, Item(2))
        wait_for(lambda: len(traces) == 2, "the other note")
        ipc._close(1)
    assert traces[0] == heard[0] is not None
    assert heard[1] is None
    assert traces[1] not in (None, traces[0])


def test_patterns_and_several_subscribers(stage: Stage) -> None:
    got: dict[str, list[str]] = {"one": [], "rest": [], "all": []}
    entered = threading.Barrier(4)

    def reader(name: str, pattern: str):
        def target(ipc: SmartIpc) -> None:
            with ipc.subscribe(pattern) as messages:
                entered.wait(10)
                for message in messages:
                    if message.topic == "end.now":
                        return
                    got[name].append(message.topic)

        return target

    with (
        stage.running(stage.add("one"), reader("one", "a.*")) as one,
        stage.running(stage.add("rest"), reader("rest", "a.>")) as rest,
        stage.running(stage.add("all"), reader("all", ">")),
    ):
        entered.wait(10)
        ipc = stage.handle(stage.add("writer"))
        for topic in ("a.b", "a.b.c", "b.a", "end.now"):
            ipc.publish(topic, None)
        wait_for(lambda: [len(one) for one in got.values()] == [1, 2, 3], "what each asked for")
        assert not one.stopping
        assert not rest.stopping
        ipc._close(1)
    assert got == {"one": ["a.b"], "rest": ["a.b", "a.b.c"], "all": ["a.b", "a.b.c", "b.a"]}


def test_publish_waits_for_a_slow_reader_and_nowait_refuses(stage: Stage) -> None:
    entered, go_on = threading.Event(), threading.Event()
    got: list[int] = []

    def slow(ipc: SmartIpc) -> None:
        with ipc.subscribe(items, max_pending=4) as messages:
            entered.set()
            assert go_on.wait(10)
            for message in messages:
                got.append(message.payload.number)
                if len(got) == 50:
                    return

    with stage.running(stage.add("reader"), slow):
        assert entered.wait(10)
        ipc = stage.handle(stage.add("writer"))
        for number in range(4):
            assert ipc.publish_nowait(items, Item(number)) == 1
        with pytest.raises(Overloaded):
            ipc.publish_nowait(items, Item(99))
        done = threading.Event()

        def publish() -> None:
            for number in range(4, 50):
                ipc.publish(items, Item(number))
            done.set()

        thread = threading.Thread(target=publish)
        thread.start()
        assert not done.wait(0.2)
        go_on.set()
        thread.join()
        wait_for(lambda: len(got) == 50, "every message")
        ipc._close(1)
    assert got == list(range(50))


def test_a_publisher_is_released_when_the_reader_leaves_or_dies(stage: Stage) -> None:
    entered, leave = threading.Event(), threading.Event()

    def reader(ipc: SmartIpc) -> None:
        with ipc.subscribe(items, max_pending=1):
            entered.set()
            assert leave.wait(10)

    with stage.running(stage.add("reader"), reader):
        assert entered.wait(10)
        ipc = stage.handle(stage.add("writer"))
        ipc.publish(items, Item(0))
        thread = threading.Thread(target=lambda: ipc.publish(items, Item(1)))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        leave.set()
        thread.join(10)
        assert not thread.is_alive()
        assert ipc.publish_nowait(items, Item(2)) == 0
        ipc._close(1)


def test_requests_are_served_while_a_subscription_is_iterated(stage: Stage) -> None:
    entered = threading.Event()

    def worker(ipc: SmartIpc) -> None:
        seen: list[int] = []

        @ipc.handler("seen")
        def _(_payload: None) -> list[int]:
            return seen

        with ipc.subscribe(items) as messages:
            ipc.ready()
            entered.set()
            for message in messages:
                number = message.payload.number
                seen.append(number)

    with stage.running(stage.add("reader"), worker):
        assert entered.wait(10)
        ipc = stage.handle(stage.add("client"))
        for number in range(3):
            ipc.publish(items, Item(number))
        deadline = time.monotonic() + 10
        while ipc.request("reader.seen", None) != [0, 1, 2]:
            assert time.monotonic() < deadline
        ipc._close(1)


@pytest.mark.parametrize("late", [False, True])
def test_subscriber_functions_run_in_the_home_thread(stage: Stage, late: bool) -> None:
    got: list[tuple[int, str, int]] = []
    plain: list[int] = []
    enough = threading.Event()
    home: list[int] = []

    def worker(ipc: SmartIpc) -> None:
        home.append(threading.get_ident())
        if late:
            ipc.ready()

        @ipc.subscriber(items)
        def _(item: Item, message: IpcMessage[Item]) -> None:
            got.append((item.number, message.sender, threading.get_ident()))
            if item.number == 1:
                raise ValueError("logged")

        @ipc.subscriber("items.>")
        def _plain(item: dict[str, int]) -> None:
            plain.append(item["number"])
            if len(plain) == 20:
                enough.set()

        ipc.serve()

    with stage.running(stage.add("reader"), worker) as reader:
        wait_for(lambda: len(reader._directory.state.subscriptions) == 2, "its subscriptions")
        ipc = stage.handle(stage.add("writer"))
        for number in range(20):
            ipc.publish(items, Item(number))
        assert enough.wait(10)
        ipc._close(1)
    assert [one[:2] for one in got] == [(number, "writer:0") for number in range(20)]
    assert {one[2] for one in got} == set(home)
    assert plain == list(range(20))


def test_iteration_ends_when_the_worker_is_told_to_stop(stage: Stage) -> None:
    entered, ended = threading.Event(), threading.Event()

    def worker(ipc: SmartIpc) -> None:
        with ipc.subscribe(items) as messages:
            entered.set()
            assert list(messages) == []
        with ipc.subscribe(items) as again:
            assert list(again) == []
        ended.set()

    with stage.running(stage.add("reader"), worker):
        assert entered.wait(10)
    assert ended.is_set()


def test_receive_with_a_timeout_and_wrong_payloads(stage: Stage) -> None:
    ipc = stage.handle(stage.add("both"))
    with ipc.subscribe(items) as messages, ipc.subscribe("items.*") as plain:
        assert messages.receive(0.01) is None
        ipc.publish("items.new", {"number": "one"})
        ipc.publish(items, Item(2))
        with pytest.raises(InvalidPayload) as wrong:
            next(messages)
        assert wrong.value.path == "$.number"
        assert next(messages).payload == Item(2)
        assert [next(plain).payload for _ in range(2)] == [{"number": "one"}, {"number": 2}]
        assert messages.dropped == 0
        with pytest.raises(LocalProtocolError, match="entered"):
            messages.__enter__()
    assert messages.receive(0.01) is None
    assert ipc.publish_nowait(items, Item(1)) == 0
    ipc._close(1)


def test_wrong_payloads_give_credit_back_too(stage: Stage) -> None:
    ipc = stage.handle(stage.add("both"))
    with ipc.subscribe(items, max_pending=2) as messages:
        for _ in range(10):
            ipc.publish("items.new", "wrong")
            with pytest.raises(InvalidPayload):
                next(messages)
    ipc._close(1)


def test_a_large_message_to_oneself_does_not_wait_for_oneself(stage: Stage) -> None:
    ipc = stage.handle(stage.add("both"))
    with ipc.subscribe("big.one") as messages:
        ipc.publish("big.one", bytes(2 * 1024 * 1024))
        assert len(next(messages).payload) == 2 * 1024 * 1024
        with pytest.raises(FrameTooLarge):
            ipc.publish("big.one", bytes(17 * 1024 * 1024))
        ipc.publish("big.one", b"after")
        assert next(messages).payload == b"after"
    ipc._close(1)


def test_threads_may_publish_and_iterate_at_the_same_time(stage: Stage) -> None:
    ipc = stage.handle(stage.add("both"))
    got: list[int] = []
    with ipc.subscribe(items, max_pending=8) as messages:

        def publish(start: int) -> None:
            for number in range(start, start + 200):
                ipc.publish(items, Item(number))

        writers = [threading.Thread(target=publish, args=(start,)) for start in (0, 1000)]
        for thread in writers:
            thread.start()
        while len(got) < 400:
            got.append(next(messages).payload.number)
        for thread in writers:
            thread.join()
    assert sorted(got) == [*range(200), *range(1000, 1200)]
    assert [one for one in got if one < 1000] == list(range(200))
    ipc._close(1)


def test_credit_starts_anew_with_a_new_link_to_the_same_life(stage: Stage) -> None:
    entered = threading.Event()
    got: list[int] = []

    def reader(ipc: SmartIpc) -> None:
        with ipc.subscribe(items, max_pending=4) as messages:
            entered.set()
            for message in messages:
                number = message.payload.number
                got.append(number)

    with stage.running(stage.add("reader"), reader):
        assert entered.wait(10)
        ipc = stage.handle(stage.add("writer"))
        for number in range(40):
            ipc.publish(items, Item(number))
            if number % 10 == 9:
                wait_for(lambda published=number + 1: len(got) == published, "what was published")
                next(iter(ipc._caller.links.values())).close("test")
        ipc._close(1)
    assert got == list(range(40))


def test_misuse_is_refused(stage: Stage) -> None:
    ipc = stage.handle(stage.add("both"))
    with pytest.raises(LocalProtocolError, match="runtime directory"):
        ipc.publish("a.b", 1, retain=True)
    with pytest.raises(LocalProtocolError, match="one of block, drop_oldest"):
        ipc.subscribe("a.b", overflow="drop")
    with pytest.raises(LocalProtocolError):
        ipc.subscribe("a.b", max_pending=0)
    with pytest.raises(ValueError, match="pattern"):
        ipc.subscribe("a..b")
    ipc._close(1)

"""Bursts of one-way messages between async handles: whole, in order, within credit, and bad ones harm no other."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

import msgspec
import pytest
import uvloop
from scenes import Scene, play, until
from scenes import handle as scene_handle

from smartipc.ipc.contracts import Method, Topic
from smartipc.ipc.errors import InvalidPayload
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.protocol.events import MessageReceived, MessagesReceived
from smartipc.ipc.sync.testing import Stage
from smartipc.ipc.tracing import TRACE_HEADER


class Item(msgspec.Struct, frozen=True):
    number: int
    data: bytes = b""


take = Method("w.take", Item, type(None))
ping = Method("w.ping", type(None), int)
items = Topic("items.new", Item)
others = Topic("items.old", Item)


@pytest.fixture
def live() -> Callable[[Scene], None]:
    return functools.partial(play, loop_factory=uvloop.new_event_loop)


handle = functools.partial(scene_handle, ready=True)


async def drained(messages: object, count: int) -> list[int]:
    return [(await anext(messages)).payload.number for _ in range(count)]  # type: ignore[call-overload]


def test_every_subscriber_gets_a_burst_whole_and_in_order(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with (
            handle(stage, "p") as p,
            handle(stage, "s") as s,
            handle(stage, "s", 1) as t,
            s.subscribe(items) as first,
            t.subscribe("items.>") as second,
        ):
            reading = asyncio.create_task(drained(first, 5000))
            seen: list[tuple[str, int]] = []

            async def read() -> None:
                for _ in range(5000):
                    message = await anext(second)
                    seen.append((message.topic, message.payload["number"]))

            also = asyncio.create_task(read())
            for number in range(5000):
                await p.publish(items, Item(number))
            assert await reading == list(range(5000))
            await also
            assert seen == [("items.new", number) for number in range(5000)]

    live(scene)


def test_batches_are_what_arrives(live: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "p") as p, handle(stage, "s") as s, s.subscribe(items) as messages:
            await p.publish(items, Item(-1))
            assert await drained(messages, 1) == [-1]
            (link,) = p._caller.links.values()
            await link.opened()
            batches = 0
            arrived = s._hub.on_messages

            def count(link: object, event: MessagesReceived) -> None:
                nonlocal batches
                batches += 1
                arrived(link, event)  # type: ignore[arg-type]

            s._hub.on_messages = count  # type: ignore[method-assign]
            for number in range(1000):
                await p.publish(items, Item(number))
            assert await drained(messages, 1000) == list(range(1000))
            assert 1 <= batches < 100

    live(scene)


@pytest.mark.parametrize("window", [100, 10_000])
def test_a_burst_goes_on_over_batches_and_after_waiting_for_credit(
    live: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "p") as p, handle(stage, "s") as s, s.subscribe(items, max_pending=window) as messages:
            await p.publish(items, Item(-1))
            assert await drained(messages, 1) == [-1]
            (link,) = p._caller.links.values()
            await link.opened()
            alone = 0
            arrived = messages.arrived

            def count(event: MessageReceived, link: object) -> None:
                nonlocal alone
                alone += 1
                arrived(event, link)

            monkeypatch.setattr(messages, "arrived", count)

            async def publish() -> None:
                for number in range(3000):
                    await p.publish(items, Item(number, bytes(40)))

            publishing = asyncio.create_task(publish())
            assert await drained(messages, 3000) == list(range(3000))
            await publishing
            assert alone <= 3 + 3000 // (window // 2)

    live(scene)


def test_topics_in_turn_keep_their_order(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "p") as p, handle(stage, "s") as s, s.subscribe("items.>") as messages:
            said = []
            for number in range(900):
                topic = others if number % 50 > 40 else items
                said.append((topic.name, number))
                if number % 100 == 7:
                    p.publish_nowait(topic, Item(number))
                else:
                    await p.publish(topic, Item(number))
            seen = []
            for _ in said:
                message = await anext(messages)
                seen.append((message.topic, message.payload["number"]))
            assert seen == said

    live(scene)


def test_what_was_published_comes_before_a_request_and_a_notify(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "p") as p, handle(stage, "w") as w, w.subscribe(items) as messages:
            arrived: list[int] = []
            w.handler(ping)(lambda _: (messages._inbox.waiting and len(arrived)) or 0)
            w.handler(take)(lambda item: arrived.append(item.number))
            seen_before: list[int] = []
            w.handler("look")(lambda _: seen_before.append(sum(one.count for one in messages._inbox.waiting)))
            await p.request(ping, None)
            for number in range(30):
                await p.publish(items, Item(number))
            await p.request("w.look")
            for number in range(30):
                await p.publish(items, Item(number))
            await p.notify("w.look", None)
            await p.request(ping, None)
            assert seen_before == [30, 60]

    live(scene)


def test_a_subscription_entered_within_a_burst_misses_nothing_later(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with (
            handle(stage, "p") as p,
            handle(stage, "s") as s,
            handle(stage, "s", 1) as t,
            s.subscribe(items) as first,
        ):
            for number in range(10):
                await p.publish(items, Item(number))
            async with t.subscribe(items) as second:
                for number in range(10, 30):
                    await p.publish(items, Item(number))
                assert await drained(second, 20) == list(range(10, 30))
            assert await drained(first, 30) == list(range(30))

    live(scene)


@pytest.mark.parametrize("window", [1, 2, 20, 200])
def test_a_burst_stays_within_the_window(live: Callable[[Scene], None], window: int) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "p") as p, handle(stage, "s") as s, s.subscribe(items, max_pending=window) as messages:
            published = 0

            async def publish() -> None:
                nonlocal published
                for number in range(1000):
                    await p.publish(items, Item(number))
                    published = number + 1

            publishing = asyncio.create_task(publish())
            for number in range(1000):
                message = await anext(messages)
                assert message.payload.number == number
                assert published <= number + 1 + window
            await publishing

    live(scene)


def test_a_payload_that_does_not_fit_is_refused_and_harms_no_other(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "p") as p, handle(stage, "s") as s, s.subscribe(items) as messages:
            for number in range(60):
                if number % 20 == 10:
                    with pytest.raises(InvalidPayload):
                        await p.publish(items, "no item")  # type: ignore[arg-type]
                    with pytest.raises(InvalidPayload):
                        await p.publish(items, Item(object()))  # type: ignore[arg-type]
                await p.publish(items, Item(number))
            await p.publish(items, Item(60, bytes(100_000)))
            await p.publish(items, Item(61))
            assert await drained(messages, 62) == list(range(62))

    live(scene)


def test_a_subscriber_of_another_type_gets_each_message_judged(live: Callable[[Scene], None]) -> None:
    narrow = Topic("items.new", int)

    async def scene(stage: Stage) -> None:
        async with handle(stage, "p") as p, handle(stage, "s") as s, s.subscribe(narrow) as messages:
            for number in range(50):
                await p.publish(Topic("items.new", object), number if number % 2 else str(number))
            wide = Topic("items.new", Item)
            for number in range(50):
                await p.publish(wide, Item(number))
            good, bad = [], 0
            for _ in range(100):
                try:
                    good.append((await anext(messages)).payload)
                except InvalidPayload:
                    bad += 1
            assert good == list(range(1, 50, 2))
            assert bad == 75

    live(scene)


def test_subscriptions_that_drop_see_every_gap_beside_one_that_blocks(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with (
            handle(stage, "p") as p,
            handle(stage, "s") as s,
            handle(stage, "s", 1) as t,
            s.subscribe(items) as all_of_them,
            t.subscribe(items, max_pending=10, overflow="drop_oldest") as newest,
        ):
            reading = asyncio.create_task(drained(all_of_them, 500))
            for number in range(500):
                await p.publish(items, Item(number))
            assert await reading == list(range(500))
            seen = missed = 0
            while seen + missed < 500:
                message = await anext(newest)
                seen, missed = seen + 1, missed + message.missed
            assert message.payload.number == 499

    live(scene)


def test_notifies_carry_payloads_of_any_size_and_refuse_what_does_not_fit(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "p") as p, handle(stage, "w") as w:
            seen: list[int] = []
            w.handler(take)(lambda item: seen.append(item.number))
            w.handler(ping)(lambda _: len(seen))
            await p.request(ping, None)
            for number in range(600):
                if number % 100 == 50:
                    with pytest.raises(InvalidPayload):
                        await p.notify(take, Item(object()))  # type: ignore[arg-type]
                    with pytest.raises(InvalidPayload):
                        await p.notify(take, "no item")  # type: ignore[arg-type]
                await p.notify(take, Item(number, bytes(90_000 if number % 100 == 70 else 100)))
            while await p.request(ping, None) < 600:
                pass
            assert seen == list(range(600))

    live(scene)


def test_published_messages_belong_to_the_trace_of_what_publishes_them(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with (
            handle(stage, "p") as p,
            handle(stage, "w") as w,
            handle(stage, "s") as s,
            s.subscribe(items) as messages,
        ):
            batches: list[int] = []
            arrived = s._hub.on_messages

            def count(link: object, event: MessagesReceived) -> None:
                batches.append(1)
                arrived(link, event)  # type: ignore[arg-type]

            s._hub.on_messages = count  # type: ignore[method-assign]
            traces: list[str | None] = []

            @w.handler("tell")
            async def _(first: int, message: IpcMessage[int]) -> None:
                traces.append(message.trace)
                for number in range(first, first + 300):
                    await w.publish(items, Item(number))

            await p.publish(items, Item(-1))
            assert [(one.trace, one.headers) for one in [await anext(messages)]] == [(None, {})]
            await w.publish(items, Item(-2))
            assert (await anext(messages)).trace is None
            await asyncio.gather(p.request("w.tell", 0), p.request("w.tell", 300))
            got = [await anext(messages) for _ in range(600)]
            assert [one.payload.number for one in got] == list(range(600))
            assert [one.trace for one in got] == [traces[0]] * 300 + [traces[1]] * 300
            assert traces[0] != traces[1]
            assert 1 <= len(batches) < 20, "one trace is one burst"

    live(scene)


def test_a_burst_ends_where_the_trace_changes(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "p") as p, handle(stage, "s") as s, s.subscribe(items) as messages:

            @p.handler("say")
            async def _(number: int, message: IpcMessage[int]) -> str | None:
                await p.publish(items, Item(number))
                return message.trace

            told = [await p.request("p.say", number) for number in range(20)]
            got = [await anext(messages) for _ in range(20)]
            assert [one.payload.number for one in got] == list(range(20))
            assert [one.trace for one in got] == told
            assert len(set(told)) == 20
            # and back to none
            for number in range(100):
                await p.publish(items, Item(number))
            assert {one.trace for one in [await anext(messages) for _ in range(100)]} == {None}

    live(scene)


def test_what_a_subscriber_says_belongs_to_the_trace_of_its_message(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "p") as p, handle(stage, "s") as s, handle(stage, "x") as x:
            seen: list[str | None] = []
            traces: list[str | None] = []
            x.handler("take")(lambda _payload, message: traces.append(message.trace))

            @s.subscriber(items)
            async def _(item: Item, message: IpcMessage[Item]) -> None:
                seen.append(message.trace)
                await s.request("x.take", item.number)

            @p.handler("tell")
            async def _(_: None) -> None:
                await p.publish(items, Item(1))

            s._deliver()
            await s._subscribers[0][0].registered.wait()
            await x.request("p.tell")
            await until(lambda: traces)
            await p.publish(items, Item(2))
            await until(lambda: len(traces) == 2)
            assert traces[0] == seen[0] is not None
            assert seen[1] is None
            assert traces[1] not in (None, traces[0])

    live(scene)


def test_a_burst_from_a_handler_carries_its_trace(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "p") as p, handle(stage, "w") as w, handle(stage, "x") as x:
            traces: list[str | None] = []
            x.handler("take")(lambda _payload, message: traces.append(message.trace))
            x.handler("ping")(lambda _: len(traces))

            @w.handler("relay")
            async def _(_: None) -> None:
                for _number in range(5):
                    await w.notify("x.take", None)

            await w.request("x.ping")
            for _ in range(5):
                await w.notify("x.take", None)
            trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            await p.request("w.relay", None, headers={TRACE_HEADER: trace})
            while await p.request("x.ping") < 10:
                pass
            assert traces.count(trace) == 5

    live(scene)

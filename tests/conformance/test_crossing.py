"""Many streams and calls that cross on one connection, and handlers that turn to their caller, over every transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from ends import WAIT, Pair
from kit import wait_for

from smartipc import Channel, ConnectionLost, IpcMessage, Method, Stream, StreamReset


class Row(msgspec.Struct, frozen=True):
    number: int
    body: bytes = b""


rows = Stream("rows", int, Row)
echo = Channel("echo", send=Row, receive=Row)
double = Method("double", int, int)
ask_back = Method("ask_back", int, int)


def serve(end: Any) -> None:
    end.handler(double)(lambda number: 2 * number)
    if end.flavour == "async":

        async def rows_later(count: int) -> AsyncIterator[Row]:
            for number in range(count):
                yield Row(number, b"x" * (number * 1009 % 20_000))

        async def echo_later(channel: Any) -> None:
            async for row in channel:
                await channel.send(row)

        end.handler(rows)(rows_later)
        end.handler(echo)(echo_later)
    else:

        def rows_now(count: int) -> Iterator[Row]:
            for number in range(count):
                yield Row(number, b"x" * (number * 1009 % 20_000))

        def echo_now(channel: Any) -> None:
            for row in channel:
                channel.send(row)

        end.handler(rows)(rows_now)
        end.handler(echo)(echo_now)


def turn_to(end: Any, to: dict[str, Any]) -> None:
    """Let `ask_back` of an end sum up a stream, a call and a channel of its caller."""
    if end.flavour == "async":

        async def back_later(count: int) -> int:
            async with end.it.open_stream(rows, count, **to) as items:
                total = sum([row.number async for row in items])
            total += await end.it.request(double, count, **to)
            async with end.it.open_channel(echo, **to) as channel:
                await channel.send(Row(total))
                return (await channel.receive()).number  # type: ignore[no-any-return]

        end.handler(ask_back)(back_later)
    else:

        def back_now(count: int) -> int:
            with end.it.open_stream(rows, count, **to) as items:
                total = sum(row.number for row in items)
            total += end.it.request(double, count, **to)
            with end.it.open_channel(echo, **to) as channel:
                channel.send(Row(total))
                return channel.receive().number  # type: ignore[no-any-return]

        end.handler(ask_back)(back_now)


def test_streams_channels_and_calls_cross_in_both_directions(pair: Pair) -> None:
    serve(pair.server)
    serve(pair.client)
    ways = [(pair.client, {}), (pair.server, {"to": pair.peer()})]

    def stream(caller: Any, to: dict[str, Any]) -> bool:
        with caller.open_stream(rows, 150, **to) as items:
            return [row.number for row in items] == list(range(150))

    def calls(caller: Any, to: dict[str, Any]) -> bool:
        return [caller.request(double, number, **to) for number in range(100)] == [2 * one for one in range(100)]

    with ThreadPoolExecutor(16) as pool:
        work = [pool.submit(one, caller, to) for _ in range(4) for caller, to in ways for one in (stream, calls)]
        assert all(one.result(WAIT) for one in work)


def test_a_handler_turns_to_its_caller(pair: Pair) -> None:
    to = {"to": pair.peer()}
    serve(pair.client)
    turn_to(pair.server, to)
    assert pair.client.request(ask_back, 100) == 4950 + 200
    serve(pair.server)
    turn_to(pair.client, {})
    assert pair.server.request(ask_back, 100, **to) == 4950 + 200


def test_a_stream_by_name_tells_its_handler_who_reads(pair: Pair) -> None:
    for opener, server, to, name in (
        (pair.client, pair.server, {}, "one"),
        (pair.server, pair.client, {"to": pair.peer()}, "srv"),
    ):

        def told(request: dict[str, int], message: IpcMessage) -> Iterator[Any]:
            yield {"number": request["stop"], "body": message.sender.encode()}
            yield {"number": message.attempt, "body": message.headers["colour"].encode()}
            yield {"number": len(message.headers), "body": message.trace.encode()}

        if server.flavour == "async":

            async def told_later(request: dict[str, int], message: IpcMessage, told: Any = told) -> AsyncIterator[Any]:
                for row in told(request, message):
                    yield row

            server.handler("told")(told_later)
        else:
            server.handler("told")(told)
        headers = {"colour": "blue", "traceparent": "00-abc-def-01"}
        with opener.open_stream("told", {"stop": 3}, item_type=Row, headers=headers, **to) as items:
            assert list(items) == [Row(3, name.encode()), Row(1, b"blue"), Row(1, b"00-abc-def-01")]


def test_a_channel_is_lost_with_its_server_and_a_stream_opened_at_the_next(pair: Pair) -> None:
    serve(pair.server)
    with pair.client.open_channel(echo) as channel:
        channel.send(Row(1))
        assert channel.receive() == Row(1)
        pair.server.close(0.0)
        with pytest.raises((ConnectionLost, StreamReset)):
            while True:
                channel.receive()
    if not pair.place.lasting:  # a pair of descriptors ends with its connection, and nothing can be opened any more
        wait_for(lambda: pair.client.state == "closed", "the client is closed")
        with pytest.raises(ConnectionLost), pair.client.open_stream(rows, 50):
            raise AssertionError("opened")
        return
    again = pair.successor()
    serve(again)
    with pair.client.open_stream(rows, 50) as items:
        assert [row.number for row in items] == list(range(50))


def test_what_a_stream_or_channel_handler_says_belongs_to_its_trace(pair: Pair) -> None:
    to = {"to": pair.peer()}
    it, seen, noted = pair.server.it, [], []
    for name, keep in (("seen", seen), ("noted", noted)):
        pair.client.handler(name)(lambda _payload, message, keep=keep: keep.append(message))
    if pair.server.flavour == "async":

        async def say_later() -> None:
            await it.request("seen", 1, **to)
            await it.notify("noted", 1, **to)
            await it.broadcast("seen", 1)
            assert [done async for done in it.map(Method("seen", int, None), [1], **to)] == [None]

        async def told_later(count: int) -> AsyncIterator[int]:
            for number in range(count):
                await say_later()
                yield number

        async def talk_later(channel: Any) -> None:
            async for row in channel:
                await say_later()
                await channel.send(row)

        pair.server.handler("told")(told_later)
        pair.server.handler(echo)(talk_later)
    else:

        def say_now() -> None:
            it.request("seen", 1, **to)
            it.notify("noted", 1, **to)
            it.broadcast("seen", 1)
            assert list(it.map(Method("seen", int, None), [1], **to)) == [None]

        def told_now(count: int) -> Iterator[int]:
            for number in range(count):
                say_now()
                yield number

        def talk_now(channel: Any) -> None:
            for row in channel:
                say_now()
                channel.send(row)

        pair.server.handler("told")(told_now)
        pair.server.handler(echo)(talk_now)

    def traces() -> set[str]:
        wait_for(lambda: 3 * len(noted) == len(seen) > 0, "the notes")
        found = {message.trace for message in (*seen, *noted)}
        assert all(message.remaining is None or message.remaining > 20 for message in seen)  # a stream has no deadline
        seen.clear()
        noted.clear()
        return found

    given = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    with pair.client.open_stream("told", 3, headers={"traceparent": given}) as items:
        assert list(items) == [0, 1, 2]
    assert traces() == {given}
    earlier: set[str] = set()
    for _ in range(2):
        with pair.client.open_channel(echo) as channel:
            for _ in range(2):
                channel.send(Row(1))
                channel.receive()
        (trace,) = traces()
        assert trace not in earlier
        earlier.add(trace)

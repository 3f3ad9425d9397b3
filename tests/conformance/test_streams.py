"""Streams and channels over every transport in both flavours and mixed, opened by either side."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
from ends import Pair
from kit import wait_for

from smartipc import (
    Channel,
    ConnectionLost,
    EndOfStream,
    InvalidPayload,
    NoSuchMethod,
    RemoteError,
    Stream,
    StreamReset,
)


class Range(msgspec.Struct, frozen=True):
    stop: int


class Row(msgspec.Struct, frozen=True):
    number: int
    body: bytes = b""


class Refused(Exception):
    """Declared by both."""


rows = Stream("rows", Range, Row, errors=(Refused,))
echo = Channel("echo", send=Row, receive=Row)


def asking(pair: Pair) -> list[tuple[Any, Any, dict[str, Any]]]:
    """Who opens at whom, and how."""
    return [(pair.client, pair.server, {}), (pair.server, pair.client, {"to": pair.peer()})]


def serve_rows(end: Any, ended: list[str]) -> None:
    def numbers(request: Range) -> Iterator[Row]:
        if request.stop == -1:
            raise Refused("minus one")
        try:
            for number in range(request.stop):
                if number == 5 and request.stop == 6:
                    raise ZeroDivisionError("five")
                yield Row(number, b"x" * (number % 7 * 5000))
        finally:
            ended.append("over")

    if end.flavour == "async":

        async def numbers_async(request: Range) -> AsyncIterator[Row]:
            for row in numbers(request):
                yield row

        end.handler(rows)(numbers_async)
    else:
        end.handler(rows)(numbers)


def serve_echo(end: Any) -> None:
    if end.flavour == "async":

        async def talk_async(channel: Any) -> None:
            async for row in channel:
                if row.number < 0:
                    raise ValueError("negative")
                await channel.send(row)

        end.handler(echo)(talk_async)
    else:

        def talk(channel: Any) -> None:
            for row in channel:
                if row.number < 0:
                    raise ValueError("negative")
                channel.send(row)

        end.handler(echo)(talk)


def test_streams_flow_both_ways(pair: Pair) -> None:
    for opener, server, to in asking(pair):
        ended: list[str] = []
        serve_rows(server, ended)
        with opener.open_stream(rows, Range(300), **to) as items:
            assert [row.number for row in items] == list(range(300))
            with pytest.raises(EndOfStream):
                items.receive()
        assert ended == ["over"]


def test_errors_and_refusals_of_streams(pair: Pair) -> None:
    for opener, server, to in asking(pair):
        serve_rows(server, [])
        with opener.open_stream(rows, Range(6), **to) as items:
            assert [items.receive().number for _ in range(5)] == list(range(5))
            with pytest.raises(RemoteError, match="five"):
                items.receive()
        with opener.open_stream(rows, Range(-1), **to) as items, pytest.raises(Refused, match="minus one"):
            items.receive()
        with pytest.raises(NoSuchMethod), opener.open_stream("nothing", None, **to):
            raise AssertionError("opened")
        with pytest.raises(InvalidPayload), opener.open_stream("rows", {"stop": "x"}, **to):
            raise AssertionError("opened")


def test_leaving_a_stream_ends_its_generator(pair: Pair) -> None:
    for opener, server, to in asking(pair):
        ended: list[str] = []
        serve_rows(server, ended)
        with opener.open_stream(rows, Range(1_000_000), **to) as items:
            assert items.receive().number == 0
        wait_for(lambda ended=ended: ended == ["over"], "the generator is closed")  # type: ignore[misc]


def test_channels_talk_both_ways(pair: Pair) -> None:
    for opener, server, to in asking(pair):
        serve_echo(server)
        sent = [Row(number, b"y" * (number * 997 % 80_000)) for number in range(60)]
        with opener.open_channel(echo, **to) as channel:

            def feed(channel: Any = channel, sent: list[Row] = sent) -> None:
                for row in sent:
                    channel.send(row)
                channel.close_sending()

            feeding = threading.Thread(target=feed)
            feeding.start()
            assert list(channel) == sent
            feeding.join()
        with opener.open_channel(echo, **to) as channel:
            channel.send(Row(-1))
            with pytest.raises(StreamReset, match="negative"):
                channel.receive()


def test_items_larger_than_the_window_pass(pair: Pair) -> None:
    serve_echo(pair.server)
    with pair.client.open_channel(echo) as channel:
        for size in (0, 70_000, 3_000_000):
            channel.send(Row(1, b"z" * size))
            assert len(channel.receive().body) == size


def test_the_end_of_the_server_ends_what_was_open(pair: Pair) -> None:
    serve_echo(pair.server)
    with pair.client.open_channel(echo) as channel:
        channel.send(Row(1))
        assert channel.receive() == Row(1)
        closing = threading.Thread(target=lambda: pair.server.close(0.2))
        closing.start()
        with pytest.raises((ConnectionLost, StreamReset, RemoteError)):
            while True:
                channel.receive()
        closing.join()


def test_a_stream_belongs_to_the_trace_it_was_opened_in(pair: Pair) -> None:
    seen: list[Any] = []

    def each(_payload: int, message: Any) -> Iterator[int]:
        seen.append(message)
        yield 1

    pair.server.handler("traced")(each)
    given = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    for headers in ({"k": "v"}, {"k": "v", "traceparent": given}):
        with pair.client.open_stream("traced", 1, headers=headers) as items:
            assert items.receive() == 1
    first, second = seen
    assert (first.headers, second.headers) == ({"k": "v"}, {"k": "v"})
    assert second.trace == given
    assert first.trace not in (None, given)
    assert second.sender == "one"

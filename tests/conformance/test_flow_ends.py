"""Slow readers, half-closed channels and resets from either side, over every transport, opened by either side."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
from ends import WAIT, Pair
from kit import wait_for

from smartipc import Channel, EndOfStream, LocalProtocolError, Method, Stream, StreamReset

ITEM = 1024
WINDOW = 256 * 1024


class Row(msgspec.Struct, frozen=True):
    number: int
    body: bytes = b""


class Quarrel(Exception):
    """Declared by both."""


rows = Stream("rows", int, Row)
ping = Method("ping", int, int)
talk = Channel("talk", send=Row, receive=Row, errors=(Quarrel,))


def asking(pair: Pair) -> list[tuple[Any, Any, dict[str, Any]]]:
    """Who opens at whom, and how."""
    return [(pair.client, pair.server, {}), (pair.server, pair.client, {"to": pair.peer()})]


class Handler:
    """A channel handler written once: a generator that yields what it wants of the channel, and is sent the result."""

    def __init__(self, end: Any, script: Any) -> None:
        self.failure: BaseException | None = None
        self.over = threading.Event()
        self._script = script
        end.handler(talk)(self._later if end.flavour == "async" else self._now)

    async def _later(self, channel: Any) -> None:
        steps = self._script()
        try:
            verb, *arguments = next(steps)
            while True:
                try:
                    result = getattr(channel, verb)(*arguments)
                    if inspect.isawaitable(result):
                        result = await result
                except Exception as error:
                    verb, *arguments = steps.throw(error)
                else:
                    verb, *arguments = steps.send(result)
        except StopIteration:
            pass
        except Exception as error:
            self.failure = error
            raise
        finally:
            self.over.set()

    def _now(self, channel: Any) -> None:
        with contextlib.suppress(StopIteration):
            self._later(channel).send(None)  # it never waits: a blocking channel's members return no awaitables


def test_a_slow_reader_slows_its_writer(pair: Pair) -> None:
    for opener, server, to in asking(pair):
        made: list[int] = []

        def numbers(count: int, made: list[int] = made) -> Iterator[Row]:
            for number in range(count):
                made.append(number)
                yield Row(number, b"x" * ITEM)

        async def numbers_async(count: int, numbers: Any = numbers) -> AsyncIterator[Row]:
            for row in numbers(count):
                yield row

        server.handler(rows)(numbers_async if server.flavour == "async" else numbers)
        server.handler(ping)(lambda number: number)
        with opener.open_stream(rows, 2000, **to) as items:
            assert items.receive().number == 0
            wait_for(lambda made=made: len(made) >= WINDOW // ITEM // 2, "the window fills")  # type: ignore[misc]
            for number in range(50):  # small requests pass, and give the writer every chance to go too far
                assert opener.request(ping, number, **to) == number
            assert len(made) <= 1.5 * WINDOW / ITEM
            assert [row.number for row in items] == list(range(1, 2000))


def test_an_opener_that_has_ended_its_sending_goes_on_receiving(pair: Pair) -> None:
    for opener, server, to in asking(pair):

        def sums_up() -> Iterator[tuple[Any, ...]]:
            total = 0
            try:
                while True:
                    total += (yield ("receive",)).number
            except EndOfStream:
                pass
            for number in range(300):
                yield ("send", Row(total + number))

        handler = Handler(server, sums_up)
        with opener.open_channel(talk, **to) as channel:
            for number in range(5):
                channel.send(Row(number))
            channel.close_sending()
            with pytest.raises(LocalProtocolError):
                channel.send(Row(5))
            assert [row.number for row in channel] == list(range(10, 310))
            with pytest.raises(EndOfStream):
                channel.receive()
        assert handler.over.wait(WAIT)
        assert handler.failure is None


def test_a_handler_that_has_ended_its_sending_goes_on_receiving(pair: Pair) -> None:
    for opener, server, to in asking(pair):
        seen: list[int] = []

        def listens(seen: list[int] = seen) -> Iterator[tuple[Any, ...]]:
            yield ("send", Row(7))
            yield ("close_sending",)
            try:
                while True:
                    seen.append((yield ("receive",)).number)
            except EndOfStream:
                pass

        handler = Handler(server, listens)
        with opener.open_channel(talk, **to) as channel:
            assert channel.receive() == Row(7)
            with pytest.raises(EndOfStream):
                channel.receive()
            for number in range(300):
                channel.send(Row(number))
            channel.close_sending()
            assert handler.over.wait(WAIT)
        assert handler.failure is None
        assert seen == list(range(300))


def test_leaving_a_channel_resets_it_for_the_handler(pair: Pair) -> None:
    for opener, server, to in asking(pair):

        def waits() -> Iterator[tuple[Any, ...]]:
            yield ("send", Row(1))
            yield ("receive",)

        handler = Handler(server, waits)
        with opener.open_channel(talk, **to) as channel:
            assert channel.receive() == Row(1)
        assert handler.over.wait(WAIT)
        assert isinstance(handler.failure, StreamReset)


def test_leaving_a_channel_resets_it_for_a_handler_that_sends(pair: Pair) -> None:
    for opener, server, to in asking(pair):

        def floods() -> Iterator[tuple[Any, ...]]:
            while True:
                yield ("send", Row(1, b"x" * 50_000))

        handler = Handler(server, floods)
        with opener.open_channel(talk, **to) as channel:
            assert channel.receive().number == 1
        assert handler.over.wait(WAIT)
        assert isinstance(handler.failure, StreamReset)


def test_a_handler_that_raises_resets_the_channel_behind_what_it_sent(pair: Pair) -> None:
    for opener, server, to in asking(pair):

        def quarrels() -> Iterator[tuple[Any, ...]]:
            yield ("send", Row(1))
            yield ("receive",)
            yield ("send", Row(2))
            raise Quarrel("enough", 3)

        Handler(server, quarrels)
        with opener.open_channel(talk, **to) as channel:
            assert channel.receive() == Row(1)
            channel.send(Row(0))
            assert channel.receive() == Row(2)
            with pytest.raises(Quarrel) as raised:
                channel.receive()
            assert raised.value.args == ("enough", 3)
            with pytest.raises((Quarrel, StreamReset)):
                channel.send(Row(1))


def test_what_is_sent_to_a_handler_that_has_returned_is_refused(pair: Pair) -> None:
    for opener, server, to in asking(pair):

        def leaves() -> Iterator[tuple[Any, ...]]:
            yield ("send", Row(1))

        Handler(server, leaves)
        with opener.open_channel(talk, **to) as channel:
            assert list(channel) == [Row(1)]
            with pytest.raises(StreamReset):
                for _ in range(10_000):  # until its leaving is known here, at the latest when the window is full
                    channel.send(Row(2, b"x" * ITEM))

"""Streams and channels of the async handle, with a stage in the place of the supervisor, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest
import uvloop
from scenes import Scene, handle, play, until

from smartipc.ipc import control
from smartipc.ipc.contracts import Channel, Method, Stream
from smartipc.ipc.control import ExitFacts
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.errors import (
    ConnectionLost,
    EndOfStream,
    FrameTooLarge,
    InvalidPayload,
    LocalProtocolError,
    NoSuchMethod,
    NoSuchWorker,
    RemoteError,
    RequestCancelled,
    RequestTimeout,
    StreamReset,
    WorkerDied,
)
from smartipc.ipc.flows import LEFT
from smartipc.ipc.handle import SmartIpc
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.streaming import IpcChannel
from smartipc.ipc.sync.testing import Stage
from smartipc.ipc.wire.buffer import Buffer


class Range(msgspec.Struct, frozen=True):
    stop: int


class Row(msgspec.Struct, frozen=True):
    number: int


class Refused(Exception):
    """Declared by the contracts."""


rows = Stream("w.rows", Range, Row, errors=(Refused,))
chat = Channel("w.chat", send=Range, receive=Row, errors=(Refused,))
echo = Channel("w.echo", send=bytes, receive=bytes)
ping = Method("w.ping", int, int)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def live(request: pytest.FixtureRequest) -> Callable[[Scene], None]:
    return functools.partial(play, loop_factory=request.param)


def the_link(ipc: SmartIpc) -> Link:
    (link,) = ipc._caller.links.values()
    return link


def serve_rows(ipc: SmartIpc) -> list[str]:
    ended: list[str] = []

    @ipc.handler(rows)
    async def _(request: Range, message: IpcMessage[Range]) -> AsyncIterator[Row]:
        assert message.sender == "c:0"
        if request.stop < 0:
            raise Refused(request.stop)
        try:
            for number in range(request.stop):
                if number == 13 and request.stop == 20:
                    raise ValueError("unlucky")
                if number == 7 and request.stop == 8:
                    raise Refused("eight")
                yield Row(number)
        except GeneratorExit:
            ended.append("closed")
            raise
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    return ended


def test_a_stream_yields_its_items(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            serve_rows(w)
            await w.ready()
            async with c.open_stream(rows, Range(5)) as items:
                assert [row async for row in items] == [Row(number) for number in range(5)]
                with pytest.raises(EndOfStream):
                    await items.receive()
            assert the_link(c).outstanding == 0
            async with c.open_stream("w.rows", {"stop": 2}, item_type=Row) as items:
                assert [row async for row in items] == [Row(0), Row(1)]
            async with c.open_stream("w.rows", {"stop": 2}) as plain:
                assert [row async for row in plain] == [{"number": 0}, {"number": 1}]

    live(scene)


def test_errors_come_behind_the_items(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            serve_rows(w)
            await w.ready()
            got: list[int] = []
            with pytest.raises(RemoteError, match="unlucky") as raised:
                async with c.open_stream(rows, Range(20)) as items:
                    async for row in items:
                        got.append(row.number)
            assert got == list(range(13))
            assert (raised.value.type_name, raised.value.processed) == ("ValueError", "yes")
            with pytest.raises(Refused, match="eight"):
                async with c.open_stream(rows, Range(8)) as items:
                    assert len([row async for row in items]) == 7
            with pytest.raises(Refused):
                async with c.open_stream(rows, Range(-1)) as items:
                    await items.receive()

    live(scene)


def test_what_cannot_be_opened_fails_on_entering(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            serve_rows(w)
            await w.ready()
            with pytest.raises(NoSuchMethod) as raised:
                await c.open_stream("w.nothing").__aenter__()
            assert raised.value.known == ("w.rows",)
            with pytest.raises(NoSuchMethod):
                await c.open_channel(Channel("w.rows", send=int, receive=int)).__aenter__()
            with pytest.raises(InvalidPayload, match="stop"):
                await c.open_stream("w.rows", {"stop": "x"}).__aenter__()
            with pytest.raises(InvalidPayload):
                c.open_stream(rows, Row(1))  # type: ignore[arg-type]
            with pytest.raises(NoSuchWorker):
                await c.open_stream("nobody.rows").__aenter__()
            with pytest.raises(FrameTooLarge):
                await c.open_stream("w.rows", b"x" * 17_000_000).__aenter__()
            opening = c.open_stream(rows, Range(1))
            async with opening:
                with pytest.raises(LocalProtocolError, match="entered already"):
                    await opening.__aenter__()
            stage.set("w:0", "starting")
            with pytest.raises(RequestTimeout) as late:
                await c.open_stream(rows, Range(1), timeout=0.05).__aenter__()
            assert late.value.processed == "no"
            assert the_link(c).flows == {}

    live(scene)


def test_leaving_the_block_closes_the_generator(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            ended = serve_rows(w)

            @w.handler("forever")
            async def _(_: None) -> AsyncIterator[int]:
                try:
                    yield 1
                    await asyncio.sleep(3600)
                finally:
                    ended.append("forever")

            await w.ready()
            async with c.open_stream(rows, Range(10_000_000)) as items:
                assert await items.receive() == Row(0)
            await until(lambda: ended != [])
            async with c.open_stream("w.forever") as items:
                assert await items.receive() == 1
            await until(lambda: len(ended) == 2)
            assert ended in (["closed", "forever"], ["cancelled", "forever"])
            with pytest.raises(LocalProtocolError, match="left already"):
                await items.receive()
            await until(lambda: not w._server.streams.tasks)
            assert all(len(link.connection.streams) == 0 for link in w._server.links)

    live(scene)


def test_plain_generators_and_other_iterables_serve_streams(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            closed: list[str] = []

            @w.handler("plain")
            def _(count: int) -> Iterator[int]:
                try:
                    yield from range(count)
                finally:
                    closed.append("plain")

            @w.handler(Stream("w.list", int, int))
            def _(count: int) -> list[int]:
                return list(range(count))

            @w.handler(Stream("w.late", int, int))
            async def _(count: int) -> list[int]:  # type: ignore[arg-type]
                await asyncio.sleep(0)
                return list(range(count))

            @w.handler(Stream("w.wrong", int, int))
            def _(_count: int) -> int:  # type: ignore[arg-type]
                return 3

            @w.handler(Stream("w.misfit", int, int))
            def _(_count: int) -> list[Any]:
                return ["text"]

            await w.ready()
            for name in ("w.plain", "w.list", "w.late"):
                async with c.open_stream(name, 5000) as items:
                    assert [item async for item in items] == list(range(5000))
            async with c.open_stream("w.plain", 10_000_000) as items:
                await items.receive()
            await until(lambda: closed == ["plain"] * 2)
            for name, error in (("w.wrong", RemoteError), ("w.misfit", InvalidPayload)):
                with pytest.raises(error):
                    async with c.open_stream(name, 1) as items:
                        await items.receive()

    live(scene)


def test_a_slow_reader_slows_its_writer_and_nothing_grows(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            produced = 0
            w.handler(ping)(lambda number: number)

            @w.handler("blocks")
            async def _(_: None) -> AsyncIterator[bytes]:
                nonlocal produced
                while True:
                    produced += 1
                    yield b"x" * 10_000

            await w.ready()
            async with c.open_stream("w.blocks", item_type=bytes) as items:
                (link,) = w._server.links
                for taken in range(1, 100):
                    await items.receive()
                    await asyncio.sleep(0)
                    ahead = (produced - taken) * 10_000
                    assert ahead <= 256 * 1024 + 2 * 10_000
                    assert link._unsent_bytes <= 256 * 1024
                    if taken % 10 == 0:
                        assert await c.request(ping, taken, timeout=1) == taken

    live(scene)


def test_a_channel_is_a_conversation(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            peers: list[str] = []

            @w.handler(chat)
            async def _(channel: IpcChannel[Row, Range]) -> None:
                peers.append(channel.peer)
                async for request in channel:
                    for number in range(request.stop):
                        await channel.send(Row(number))

            await w.ready()
            async with c.open_channel(chat) as channel:
                assert channel.peer == "w:0"
                await channel.send(Range(2))
                assert [await channel.receive(), await channel.receive()] == [Row(0), Row(1)]
                await channel.send(Range(1))
                await channel.close_sending()
                await channel.close_sending()
                with pytest.raises(LocalProtocolError, match="was closed"):
                    await channel.send(Range(1))
                assert [row async for row in channel] == [Row(0)]
                with pytest.raises(EndOfStream):
                    await channel.receive()
            assert peers == ["c:0"]
            assert len(the_link(c).connection.streams) == 0

    live(scene)


def test_the_ends_of_a_channel_handler(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:

            @w.handler(chat)
            async def _(channel: IpcChannel[Row, Range]) -> None:
                await channel.send(Row(1))
                match (await channel.receive()).stop:
                    case 0:
                        return
                    case 1:
                        raise ValueError("broken")
                    case 2:
                        raise Refused("no")
                    case 3:
                        await channel.receive()  # raises EndOfStream, which is a return
                    case _:
                        raise StreamReset("enough")

            await w.ready()
            async with c.open_channel(chat) as channel:
                await channel.send(Range(0))
                assert [row async for row in channel] == [Row(1)]
                with pytest.raises(StreamReset, match="takes no more"):
                    await channel.send(Range(0))
            for number, error, text in (
                (1, StreamReset, "ValueError: broken"),
                (2, Refused, "no"),
                (9, StreamReset, "enough"),
            ):
                with pytest.raises(error, match=text) as raised:
                    async with c.open_channel(chat) as channel:
                        await channel.send(Range(number))
                        assert await channel.receive() == Row(1)
                        await channel.receive()
                if number == 1:
                    assert isinstance(raised.value.__cause__, RemoteError)
            async with c.open_channel(chat) as channel:
                await channel.send(Range(3))
                await channel.close_sending()
                assert [row async for row in channel] == [Row(1)]

    live(scene)


@pytest.mark.parametrize("where", ["receive", "send", "elsewhere"])
def test_leaving_a_channel_reaches_its_handler(live: Callable[[Scene], None], where: str) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            seen: list[type[BaseException]] = []
            sends = 0

            @w.handler(echo)
            async def _(channel: IpcChannel[bytes, bytes]) -> None:
                nonlocal sends
                try:
                    await channel.send(b"hello")
                    while where == "send":
                        sends += 1
                        await channel.send(b"x" * 50_000)
                    if where == "receive":
                        await channel.receive()
                    await asyncio.sleep(3600)
                except BaseException as error:
                    seen.append(type(error))
                    raise

            await w.ready()
            async with c.open_channel(echo) as channel:
                assert await channel.receive() == b"hello"
                await until(lambda: where != "send" or sends >= 6)  # the window is full
            await until(lambda: not w._server.streams.tasks)
            assert seen == [asyncio.CancelledError if where == "elsewhere" else StreamReset]

    live(scene)


def test_both_directions_flow_at_once_in_order(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:

            @w.handler(echo)
            async def _(channel: IpcChannel[bytes, bytes]) -> None:
                async for item in channel:
                    await channel.send(item)

            await w.ready()
            sent = [bytes([number % 256]) * (number * 997 % 90_000) for number in range(300)]
            async with c.open_channel(echo) as channel:

                async def feed() -> None:
                    for item in sent:
                        await channel.send(item)
                    await channel.close_sending()

                feeding = asyncio.create_task(feed())
                got = [item async for item in channel]
                await feeding
            assert got == sent

    live(scene)


def test_items_larger_than_the_window_pass_and_larger_than_a_message_are_refused(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:

            @w.handler(echo)
            async def _(channel: IpcChannel[bytes, bytes]) -> None:
                async for item in channel:
                    await channel.send(item)

            await w.ready()
            async with c.open_channel(echo) as channel:
                for size in (300_000, 5_000_000, 0, 1, 16_000_000):
                    await channel.send(b"x" * size)
                    assert len(await channel.receive()) == size
                with pytest.raises(FrameTooLarge):
                    await channel.send(b"x" * 17_000_000)
                await channel.send(b"still open")
                assert await channel.receive() == b"still open"

    live(scene)


def test_cancelled_receives_lose_nothing_and_cancelled_sends_send_all_or_nothing(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            gate = asyncio.Event()

            @w.handler(Channel("w.count", send=int, receive=int))
            async def _(channel: IpcChannel[int, int]) -> None:
                for number in range(2000):
                    await channel.send(number)
                await channel.close_sending()
                await gate.wait()
                total = 0
                async for _number in channel:
                    total += 1
                w.set_status(str(total))

            await w.ready()
            got: list[int] = []
            sent = 0
            async with c.open_channel(Channel("w.count", send=int, receive=int)) as channel:
                while True:
                    try:
                        async with asyncio.timeout(0 if len(got) % 3 else None):
                            got.append(await channel.receive())
                    except TimeoutError:
                        await asyncio.sleep(0)
                        got.append(await channel.receive())
                    except EndOfStream:
                        break
                for number in range(5000):
                    if number == 3000:
                        gate.set()
                        await asyncio.sleep(0.01)
                    sending = asyncio.create_task(channel.send(number))
                    await asyncio.sleep(0)
                    sending.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await sending
                        sent += 1
                await channel.close_sending()
                await until(lambda: any(method == control.status_text.name for _, method, _ in stage.notified))
            assert got == list(range(2000))
            counted = [payload.text for _, method, payload in stage.notified if method == control.status_text.name]
            assert counted == [str(sent)]
            assert 2000 < sent <= 1024 + 2000  # while the gate was shut, all but a window's worth were cancelled

    live(scene)


def test_misfitting_items_are_named_and_the_next_ones_come(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:

            @w.handler("mixed")
            async def _(_: None) -> AsyncIterator[object]:
                yield {"number": 1}
                yield {"number": "x"}
                yield {"number": 3}

            await w.ready()
            async with c.open_stream("w.mixed", item_type=Row) as items:
                assert await items.receive() == Row(1)
                with pytest.raises(InvalidPayload, match="number"):
                    await items.receive()
                assert await items.receive() == Row(3)
            async with c.open_channel(chat_of(w)) as channel:
                with pytest.raises(InvalidPayload):
                    await channel.send("text")  # type: ignore[arg-type]
                await channel.send(4)
                assert await channel.receive() == 4

    def chat_of(ipc: SmartIpc) -> Channel[int, int]:
        contract = Channel("w.same", send=int, receive=int)

        @ipc.handler(contract)
        async def _(channel: IpcChannel[int, int]) -> None:
            async for item in channel:
                await channel.send(item)

        return contract

    live(scene)


def test_a_dead_worker_is_told_with_its_exit(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:

            @w.handler(echo)
            async def _(channel: IpcChannel[bytes, bytes]) -> None:
                await channel.send(b"last words")
                await asyncio.sleep(3600)

            await w.ready()
            async with c.open_channel(echo) as channel:
                await until(lambda: bool(the_link(c).connection.snapshot().bytes_received))
                for link in list(w._server.links):
                    await until(lambda link=link: not link._unsent)  # type: ignore[misc]
                    link.close()
                stage.set("w:0", "backoff", ExitFacts(None, "SIGKILL", False, "killed"))
                assert await channel.receive() == b"last words"
                for verb in (channel.receive, lambda: channel.send(b"x"), channel.receive):
                    with pytest.raises(WorkerDied) as raised:
                        await verb()
                    assert (raised.value.signal, raised.value.instance) == ("SIGKILL", "w:0")
            await until(lambda: not w._server.streams.tasks)

    live(scene)


def test_a_lost_link_to_a_living_worker(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            lost: list[BaseException] = []

            @w.handler(echo)
            async def _(channel: IpcChannel[bytes, bytes]) -> None:
                try:
                    await channel.receive()
                except ConnectionLost as error:
                    lost.append(error)
                    raise

            await w.ready()
            async with c.open_channel(echo) as channel:
                the_link(c).close()
                with pytest.raises(ConnectionLost) as raised:
                    await channel.receive()
                assert raised.value.processed == "maybe"
            await until(lambda: lost != [])

    live(scene)


def test_a_stopping_worker_finishes_what_it_can_and_cancels_the_rest(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "c") as c:
            stack = contextlib.AsyncExitStack()
            w = await stack.enter_async_context(handle(stage, "w"))
            go = asyncio.Event()

            @w.handler("finishing")
            async def _(_: None) -> AsyncIterator[bytes]:
                yield b"first"
                await go.wait()
                for _ in range(20):
                    yield b"x" * 100_000

            @w.handler("endless")
            async def _(_: None) -> AsyncIterator[int]:
                yield 0
                await asyncio.sleep(3600)

            await w.ready()
            async with c.open_stream("w.finishing", item_type=bytes) as good, c.open_stream("w.endless") as bad:
                await good.receive()
                await bad.receive()
                closing = asyncio.create_task(stack.aclose())
                await until(lambda: any(link.connection.streams.refuse for link in w._server.links))
                go.set()
                assert len([item async for item in good]) == 20
                with pytest.raises(RequestCancelled):
                    await bad.receive()
                await closing

    live(scene)


def test_what_is_given_up_before_its_handler_began_counts_no_more(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            serve_rows(w)
            w.handler(ping)(lambda number: number)
            await w.ready()
            await c.request(ping, 1)
            link, request = the_link(c), msgspec.msgpack.encode(Range(1))
            streams = link.connection.streams
            for number in range(link.connection.limits.streams + 1):
                ident = link.tell(lambda: streams.open("w.rows", request, duplex=False))
                link.tell(functools.partial(streams.reset, ident, LEFT))
                assert await c.request(ping, number) == number  # w has read both at once
            async with c.open_stream(rows, Range(1)) as items:
                assert [row async for row in items] == [Row(0)]

    live(scene)


def test_openings_go_to_the_instance_with_the_fewest(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w", 0) as one, handle(stage, "w", 1) as two, handle(stage, "c") as c:
            for ipc in (one, two):

                @ipc.handler("who")
                async def _(_: None, ipc: SmartIpc = ipc) -> AsyncIterator[int]:
                    yield ipc.slot
                    await asyncio.sleep(3600)

                await ipc.ready()
            async with contextlib.AsyncExitStack() as stack:
                slots = []
                for _ in range(6):
                    items = await stack.enter_async_context(c.open_stream("w.who"))
                    slots.append(await items.receive())
                assert sorted(slots) == [0, 0, 0, 1, 1, 1]
            for slot in (1, 0):
                async with c.open_stream("w.who", slot=slot) as items:
                    assert await items.receive() == slot
                async with c.open_stream("w.who", to=c.peers["w"][slot]) as items:
                    assert await items.receive() == slot
            keyed = []
            for _ in range(3):
                async with c.open_stream("w.who", key="k") as items:
                    keyed.append(await items.receive())
            assert len(set(keyed)) == 1

    live(scene)


def test_an_instance_that_refuses_is_passed_over(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w", 0) as one, handle(stage, "w", 1) as two, handle(stage, "c") as c:
            for ipc in (one, two):
                serve_rows(ipc)
                await ipc.ready()
            for slot in (0, 1):
                async with c.open_stream(rows, Range(1), slot=slot) as items:
                    await items.receive()
            one._server.goodbye()
            for _ in range(4):
                async with c.open_stream(rows, Range(1)) as items:
                    assert await items.receive() == Row(0)
            with pytest.raises(RequestTimeout, match="refused") as raised:
                await c.open_stream(rows, Range(1), slot=0, timeout=0.3).__aenter__()
            assert raised.value.processed == "no"

    live(scene)


def test_handlers_must_fit(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w:
            with pytest.raises(LocalProtocolError, match="must take \\(channel\\)"):
                w.handler(chat)(lambda: None)  # type: ignore[arg-type]
            with pytest.raises(LocalProtocolError, match="must take \\(payload\\)"):
                w.handler(rows)(list)  # type: ignore[arg-type]
            with pytest.raises(LocalProtocolError, match="another worker"):
                w.handler(Stream("x.rows", int, int))(lambda _: [])  # type: ignore[arg-type]
            serve_rows(w)
            with pytest.raises(LocalProtocolError, match="has a handler already"):
                w.handler("rows")(lambda _: None)

    live(scene)


def test_a_client_serves_nothing_and_says_so(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            serve_rows(w)

            @c.handler("numbers")
            async def _(count: int) -> AsyncIterator[int]:
                for number in range(count):
                    yield number

            await w.ready()
            await c.ready()
            async with c.open_stream(rows, Range(1)) as items, w.open_stream("c.numbers", 3) as back:
                assert await items.receive() == Row(0)
                assert [number async for number in back] == [0, 1, 2]

    live(scene)


def test_big_buffers_travel_in_items_and_openings(live: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async with handle(stage, "w") as w, handle(stage, "c") as c:
            pictures = Stream("w.pictures", Buffer, Buffer)
            passing = Channel("w.passing", send=Buffer, receive=Buffer)

            @w.handler(pictures)
            async def _(request: Buffer) -> AsyncIterator[Buffer]:
                for number in range(5):
                    yield Buffer(bytes(request.view[:1]) * (number * 300_000))

            @w.handler(passing)
            async def _(channel: IpcChannel[Buffer, Buffer]) -> None:
                async for item in channel:
                    await channel.send(item)

            await w.ready()
            async with c.open_stream(pictures, Buffer(b"a" * 200_000)) as items:
                assert [bytes(item.view) async for item in items] == [b"a" * (n * 300_000) for n in range(5)]
            async with c.open_channel(passing) as channel:
                for size in (1, 70_000, 40_000_000):  # buffers are no part of the 16 MiB of a message
                    await channel.send(Buffer(b"b" * size))
                    assert bytes((await channel.receive()).view) == b"b" * size

    live(scene)

"""Big buffers over every transport in both flavours: calls, topics, streams, channels; in place and copied; counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ends import Pair

from smartipc import Buffer, Channel, Method, Stream, Topic, connect, serve
from smartipc.ipc import sync
from smartipc.ipc.transports import memfd

np = pytest.importorskip("numpy")

MIB = 1 << 20


class Frame(msgspec.Struct):
    pixels: Buffer


total = Method("total", Frame, int)
frames = Stream("frames", int, Frame)
echo = Channel("echo", send=Frame, receive=Frame)


class Picture(msgspec.Struct, frozen=True):
    label: str
    layers: list[Buffer]
    notes: dict[str, Buffer] = {}


double = Method("double", Picture, Picture)
pictures = Stream("pictures", Picture, Picture)
swap = Channel("swap", send=Picture, receive=Picture)
shown = Topic("shown", Picture)


def arrays(mebibytes: int = 1) -> list[Any]:
    """Shapes and sizes on either side of the bound for shared memory; 17 MiB are more than a message may have."""
    return [
        np.zeros(0, "u1"),
        np.arange(12, dtype="f4").reshape(3, 4),
        np.arange(200_000, dtype="<i8").reshape(2, 100_000),
        np.full((mebibytes, MIB), 9, dtype="u1"),
    ]


def picture(label: str, layers: list[Any]) -> Picture:
    return Picture(label, [Buffer(layer) for layer in layers], {"raw": Buffer(b"plain " * 20_000)})


def assert_same(got: Picture, label: str, layers: list[Any]) -> None:
    assert got.label == label
    assert len(got.layers) == len(layers)
    for buffer, layer in zip(got.layers, layers, strict=True):
        array = np.asarray(buffer)
        assert (array.dtype, array.shape) == (layer.dtype, layer.shape)
        assert not array.flags.writeable
        np.testing.assert_array_equal(array, layer)
    assert bytes(got.notes["raw"].view) == b"plain " * 20_000


def asking(pair: Pair) -> list[tuple[Any, Any, dict[str, Any]]]:
    """Who calls whom, and how."""
    return [(pair.client, pair.server, {}), (pair.server, pair.client, {"to": pair.peer()})]


def twice(request: Picture) -> Picture:
    layers = [np.asarray(layer) * np.asarray(layer).dtype.type(2) for layer in request.layers]
    return Picture(request.label, [Buffer(layer) for layer in layers], request.notes)


def test_requests_and_replies_carry_arrays_of_any_size(pair: Pair) -> None:
    layers = arrays(17)
    for caller, server, to in asking(pair):
        server.handler(double)(twice)
        for label in ("first", "again"):
            got = caller.request(double, picture(label, layers), **to)
            assert_same(got, label, [layer * layer.dtype.type(2) for layer in layers])


def test_memory_is_sent_in_place(pair: Pair) -> None:
    for caller, server, to in asking(pair):
        server.handler(double)(twice)
        place = caller.buffer(2 * MIB)
        array = np.frombuffer(place.view, "<u2").reshape(1024, 1024)
        array[:] = 21
        for _ in range(3):
            got = caller.request(double, picture("in place", [array, array[512:]]), **to)
            assert_same(got, "in place", [array * np.uint16(2), array[512:] * np.uint16(2)])


def test_streams_carry_arrays(pair: Pair) -> None:
    for opener, server, to in asking(pair):

        def layers_of(request: Picture) -> Iterator[Picture]:
            for layer in request.layers:
                yield picture("layer", [np.asarray(layer)])

        async def layers_later(request: Picture, layers_of: Any = layers_of) -> AsyncIterator[Picture]:
            for layer in layers_of(request):
                yield layer

        server.handler(pictures)(layers_later if server.flavour == "async" else layers_of)
        layers = arrays(17)
        with opener.open_stream(pictures, picture("all", layers), **to) as items:
            for layer in layers:
                assert_same(items.receive(), "layer", [layer])
            assert list(items) == []


def test_channels_carry_arrays_both_ways(pair: Pair) -> None:
    for opener, server, to in asking(pair):
        if server.flavour == "async":

            async def back_later(channel: Any) -> None:
                async for one in channel:
                    await channel.send(one)

            server.handler(swap)(back_later)
        else:

            def back(channel: Any) -> None:
                for one in channel:
                    channel.send(one)

            server.handler(swap)(back)
        with opener.open_channel(swap, **to) as channel:
            for number, layer in enumerate(arrays()):
                channel.send(picture(str(number), [layer, layer]))
                assert_same(channel.receive(), str(number), [layer, layer])
            channel.close_sending()
            assert list(channel) == []


def test_topics_carry_arrays_from_either_side(pair: Pair) -> None:
    layers = arrays()
    reader = pair.join("two") if pair.place.lasting else pair.client  # a pair of descriptors has one client
    with reader.subscribe(shown) as messages, pair.server.subscribe(shown) as own:
        pair.server.publish(shown, picture("server", layers))
        assert_same(messages.receive().payload, "server", layers)
        pair.client.publish(shown, picture("client", layers))
        assert_same(own.receive().payload, "client", layers)
        if reader is not pair.client:  # nobody hears what it publishes itself
            assert_same(messages.receive().payload, "client", layers)


def test_what_was_received_outlives_its_connection(pair: Pair) -> None:
    layers = arrays()
    pair.server.handler(double)(twice)
    got = pair.client.request(double, picture("kept", layers))
    pair.client.close()
    assert_same(got, "kept", [layer * layer.dtype.type(2) for layer in layers])


@pytest.mark.parametrize("scheme", ["unix", "pipe"])
def test_async_ends(scheme: str, folder: Path) -> None:
    async def main() -> None:
        async with await serve(f"{scheme}://{folder}/s") as server:

            @server.handler(total)
            def _(frame: Frame) -> int:
                return int(np.asarray(frame.pixels).sum())

            @server.handler(frames)
            async def _(count: int):
                for number in range(count):
                    yield Frame(Buffer(np.full(MIB, number % 256, dtype="u1")))

            @server.handler(echo)
            async def _(channel) -> None:
                async for frame in channel:
                    await channel.send(Frame(frame.pixels))

            async with await connect(server.address) as client:
                place = client.buffer(MIB)
                place.view[:] = b"\x02" * MIB
                assert await client.request(total, Frame(place)) == 2 * MIB
                assert await client.request(total, Frame(Buffer(np.ones(MIB, "u1")))) == MIB
                seen = []
                async with client.open_stream(frames, 40) as items:
                    async for frame in items:
                        seen.append(int(np.asarray(frame.pixels)[-1]))
                assert seen == list(range(40))
                async with client.open_channel(echo) as channel:
                    for number in range(10):
                        await channel.send(Frame(Buffer(np.full(MIB, number, dtype="u1"))))
                        frame = await channel.receive()
                        assert int(np.asarray(frame.pixels)[0]) == number
                facts = client.snapshot()
                assert facts.state == "connected"
                assert facts.traffic.requests_sent >= 2
                assert len(server.snapshot().peers) == 1
                assert (facts.traffic.pool_bytes > 0) or scheme == "pipe"

    asyncio.run(main())


def test_blocking_ends(folder: Path) -> None:
    with sync.serve(f"unix://{folder}/s") as server:

        @server.handler(total)
        def _(frame: Frame) -> int:
            return int(np.asarray(frame.pixels).sum())

        @server.handler(frames)
        def _(count: int):
            for number in range(count):
                yield Frame(Buffer(np.full(MIB, number % 256, dtype="u1")))

        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with sync.connect(server.address) as client:
                array = np.frombuffer(client.buffer(MIB).view, "u1")
                array[:] = 3
                assert client.request(total, Frame(Buffer(array))) == 3 * MIB
                with client.open_stream(frames, 20) as items:
                    assert [int(np.asarray(frame.pixels)[7]) for frame in items] == list(range(20))
                assert client.snapshot().state == "connected"
                assert server.snapshot().state == "serving"
                assert memfd.pool().size <= 4 * memfd.SEGMENT_SIZE
        finally:
            server.close()
            thread.join()

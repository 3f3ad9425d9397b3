"""Big buffers through the public objects, in both flavours: calls, streams, channels; in place and copied; counted."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import msgspec
import pytest

from smartipc import Buffer, Channel, Method, Stream, connect, serve
from smartipc.ipc import sync
from smartipc.ipc.transports import memfd

np = pytest.importorskip("numpy")

MIB = 1 << 20


class Frame(msgspec.Struct):
    pixels: Buffer


total = Method("total", Frame, int)
frames = Stream("frames", int, Frame)
echo = Channel("echo", send=Frame, receive=Frame)


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

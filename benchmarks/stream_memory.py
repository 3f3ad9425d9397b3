"""Send 10 GiB through one stream, and show that memory stays constant and that small requests overtake it.

    python benchmarks/stream_memory.py [--gib 10] [--item 262144] [--reader async|blocking] [--json]

Two processes over a Unix socket. The reader samples the resident memory of both, and pings the writer all the while
over the same connection; it prints the throughput, how far memory rose after the first 64 MiB, and the slowest ping.
Exits with 1 when memory rose by more than 32 MiB or a ping took more than 50 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from typing import Any

import psutil
import uvloop

import smartipc
from smartipc.ipc import sync

MIB = 1024 * 1024
SETTLED = 64 * MIB
"""Bytes after which memory counts (a quarter of a smaller transfer): buffers are at their size by then."""
LOOK_EVERY = 4 * MIB
ALLOWED_RISE = 32 * MIB
ALLOWED_PING = 0.050

blocks = smartipc.Stream("blocks", tuple[int, int], bytes)
ping = smartipc.Method("ping", int, int)


async def write(address: str) -> None:
    """Serve blocks and pings until the standard input closes."""
    async with smartipc.serve(address) as server:

        @server.handler(blocks)
        async def _(request: tuple[int, int]) -> AsyncIterator[bytes]:
            size, total = request
            block = os.urandom(size)
            for _ in range(total // size):
                yield block

        server.handler(ping)(lambda number: number)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


class Watch:
    """Memory of both processes and the slowest ping."""

    def __init__(self, writer: int, total: int) -> None:
        self._settled = min(SETTLED, total // 4)
        self._processes = (psutil.Process(), psutil.Process(writer))
        self.base: list[int] | None = None
        self.rise = 0
        self.pings: list[float] = []

    def look(self, done: int) -> None:
        """Take a sample after `done` bytes."""
        now = [process.memory_info().rss for process in self._processes]
        if self.base is None:
            if done >= self._settled:
                self.base = now
            return
        self.rise = max(self.rise, *(after - before for after, before in zip(now, self.base, strict=True)))


async def read_async(address: str, request: tuple[int, int], watch: Watch) -> int:
    """Read everything on an event loop, with pings beside it."""
    done = 0
    async with smartipc.connect(address) as client, client.open_stream(blocks, request) as items:

        async def pings() -> None:
            while True:
                began = time.perf_counter()
                await client.request(ping, 1)
                watch.pings.append(time.perf_counter() - began)
                await asyncio.sleep(0.01)

        beside = asyncio.create_task(pings())
        sampled = 0
        async for item in items:
            done += len(item)
            if done - sampled >= LOOK_EVERY:
                sampled = done
                watch.look(done)
        beside.cancel()
    return done


def read_blocking(address: str, request: tuple[int, int], watch: Watch) -> int:
    """Read everything without an event loop; the same thread pings between items, while a window is under way."""
    done = sampled = 0
    with sync.connect(address) as client, client.open_stream(blocks, request) as items:
        for item in items:
            done += len(item)
            if done - sampled >= LOOK_EVERY:
                sampled = done
                watch.look(done)
                began = time.perf_counter()
                client.request(ping, 1)
                watch.pings.append(time.perf_counter() - began)
    return done


def measure(total: int, item: int, reader: str) -> dict[str, Any]:
    """Run one transfer and return its figures."""
    with tempfile.TemporaryDirectory(prefix="sm-") as folder:
        address = f"unix://{folder}/s"
        command = [sys.executable, __file__, "--serve", address]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdin is not None
            writer.stdout.readline()
            watch = Watch(writer.pid, total)
            began = time.perf_counter()
            if reader == "async":
                done = uvloop.run(read_async(address, (item, total), watch))
            else:
                done = read_blocking(address, (item, total), watch)
            seconds = time.perf_counter() - began
            writer.stdin.close()
            writer.wait(30)
    pings = sorted(watch.pings)
    return {
        "reader": reader,
        "bytes": done,
        "item": item,
        "seconds": round(seconds, 2),
        "mib_per_second": round(done / MIB / seconds),
        "memory_rise_mib": round(watch.rise / MIB, 1),
        "pings": len(pings),
        "ping_p50_ms": round(pings[len(pings) // 2] * 1000, 2) if pings else None,
        "ping_max_ms": round(pings[-1] * 1000, 2) if pings else None,
    }


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=10.0)
    parser.add_argument("--item", type=int, default=256 * 1024)
    parser.add_argument("--reader", choices=["async", "blocking"], default="async")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(write(options.serve))
        return 0
    figures = measure(int(options.gib * 1024) * MIB, options.item, options.reader)
    print(json.dumps(figures) if options.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))
    rise, slowest = figures["memory_rise_mib"] * MIB, (figures["ping_max_ms"] or 0) / 1000
    return int(rise > ALLOWED_RISE or slowest > ALLOWED_PING)


if __name__ == "__main__":
    sys.exit(main())

"""Is one connection enough? A blocking client used by several threads, and small requests beside bulk.

    python benchmarks/one_connection.py

Compares one client that all threads share with one client per thread, and measures what a small request waits while
large ones are on the same connection, and on one of their own. Prints medians; see docs/explanation/one-connection.md.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from smartipc.ipc import sync

SERVER = """
import asyncio, sys, smartipc
async def main():
    async with smartipc.serve(sys.argv[1]) as server:
        server.handler("echo")(lambda payload: payload)
        server.handler("size")(len)
        print("up", flush=True)
        await server.serve_forever()
asyncio.run(main())
"""
THREADS = 8
SECONDS = 2.0


def rate(clients: list[sync.IpcClient]) -> float:
    """Return requests per second of one thread per entry of `clients`."""
    counts = [0] * len(clients)
    until = time.perf_counter() + SECONDS

    def ask(index: int) -> None:
        client = clients[index]
        while time.perf_counter() < until:
            client.request("echo", index)
            counts[index] += 1

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / SECONDS


def latency(small: sync.IpcClient, bulk: sync.IpcClient | None) -> tuple[float, float]:
    """Return median and 99th percentile in milliseconds of small requests, beside 4 MiB requests without end."""
    over = threading.Event()

    def flood(client: sync.IpcClient) -> None:
        payload = bytes(4 * 1024 * 1024)
        while not over.is_set():
            client.request("size", payload)

    flooding = None
    if bulk is not None:
        flooding = threading.Thread(target=flood, args=(bulk,))
        flooding.start()
        time.sleep(0.2)
    times = []
    for number in range(300):
        began = time.perf_counter()
        small.request("echo", number)
        times.append(1000 * (time.perf_counter() - began))
    over.set()
    if flooding is not None:
        flooding.join()
    return statistics.median(times), sorted(times)[int(0.99 * len(times))]


def main() -> None:
    """Start a server, measure three rounds interleaved, print the medians."""
    with tempfile.TemporaryDirectory(prefix="b-") as folder, ExitStack() as stack:
        address = f"unix://{folder}/s.sock"
        process = subprocess.Popen([sys.executable, "-c", SERVER, address], stdout=subprocess.PIPE, text=True)
        stack.callback(process.kill)
        assert process.stdout is not None
        process.stdout.readline()
        many = [stack.enter_context(sync.connect(address)) for _ in range(THREADS)]
        cases: dict[str, Callable[[], object]] = {
            "1 thread": lambda: rate(many[:1]),
            f"{THREADS} threads, one client": lambda: rate([many[0]] * THREADS),
            f"{THREADS} threads, a client each": lambda: rate(many),
            "small, alone": lambda: latency(many[0], None),
            "small, bulk on the same": lambda: latency(many[0], many[0]),
            "small, bulk beside": lambda: latency(many[0], many[1]),
        }
        results: dict[str, list[object]] = {name: [] for name in cases}
        for _ in range(3):
            for name, case in cases.items():
                results[name].append(case())
        for name, values in results.items():
            middle = sorted(values)[1]  # type: ignore[type-var]
            if isinstance(middle, tuple):
                print(f"{name:32} p50 {middle[0]:8.3f} ms   p99 {middle[1]:8.3f} ms")
            else:
                print(f"{name:32} {middle:8.0f} requests/s")


if __name__ == "__main__":
    main()

"""Peers with a broker or a network stack of their own: Redis, NATS, Zenoh."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import peers
from harness import Make, Measure, Missing
from peers import OUTSTANDING, PAYLOAD, SIZE, Payload, child, outstanding, rate
from python_peers import folder, need


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _program(name: str, *arguments: str) -> Iterator[None]:
    path = shutil.which(name)
    if path is None:
        raise Missing(f"{name} is not installed")
    process = subprocess.Popen([path, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _until(happened: Callable[[], object], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > until:
            raise Missing("its server did not come up")
        time.sleep(0.02)


@contextlib.contextmanager
def redis_requests() -> Iterator[Measure]:
    """ECHO over a Unix socket, in pipelines of OUTSTANDING commands, parsed by hiredis if it is there."""
    redis = need("redis")
    with folder() as path, _program("redis-server", "--port", "0", "--unixsocket", f"{path}/redis", "--save", ""):
        _until(Path(f"{path}/redis").exists)
        client = redis.Redis(unix_socket_path=f"{path}/redis")
        data = bytes(SIZE)

        def work(number: int) -> None:
            for _ in range(number // OUTSTANDING):
                pipeline = client.pipeline(transaction=False)
                for _ in range(OUTSTANDING):
                    pipeline.echo(data)
                pipeline.execute()

        yield rate(work)
        client.close()


@contextlib.contextmanager
def nats_requests() -> Iterator[Measure]:
    """Request and reply between two nats-py clients over the broker."""
    nats = need("nats")
    port = free_port()
    url = f"nats://127.0.0.1:{port}"

    def run(ready: Callable[[], None]) -> None:
        async def life() -> None:
            client = await nats.connect(url)

            async def answer(message: Any) -> None:
                await message.respond(message.data)

            await client.subscribe("echo", cb=answer)
            await client.flush()
            ready()
            await asyncio.Event().wait()

        with asyncio.Runner(loop_factory=peers.new_event_loop) as runner:
            runner.run(life())

    def up() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with _program("nats-server", "-a", "127.0.0.1", "-p", str(port)):
        _until(up)
        with child(run), asyncio.Runner(loop_factory=peers.new_event_loop) as runner:
            client = runner.run(nats.connect(url))
            data = bytes(SIZE)

            async def once() -> None:
                await client.request("echo", data, timeout=10)

            yield rate(lambda number: runner.run(outstanding(once, number)))
            runner.run(client.close())


def zenoh_deliveries(processes: int) -> Make:
    """A publisher and that many subscriber processes, over Unix sockets where this build has them, else TCP."""

    @contextlib.contextmanager
    def make() -> Iterator[Measure]:
        zenoh = need("zenoh")
        encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Payload).decode
        address = f"tcp/127.0.0.1:{free_port()}"

        def session(**keys: str) -> Any:
            config = zenoh.Config()
            config.insert_json5("scouting/multicast/enabled", "false")
            for key, value in keys.items():
                config.insert_json5(key.replace("_", "/"), value)
            return zenoh.open(config)

        def run(ready: Callable[[], None]) -> None:
            opened = session(connect_endpoints=f'["{address}"]', listen_endpoints="[]")
            done = opened.declare_publisher("bench/done", congestion_control=zenoh.CongestionControl.BLOCK)

            def arrived(sample: Any) -> None:
                body = bytes(sample.payload)
                if body:
                    decode(body)
                else:
                    done.put(b"")

            opened.declare_subscriber("bench/items", arrived)
            time.sleep(0.5)  # zenoh tells a session's subscriptions in the background
            ready()
            threading.Event().wait()

        acknowledged = threading.Semaphore(0)
        with contextlib.ExitStack() as stack:
            # Forked before this process has threads; they connect when it listens.
            for _ in range(processes):
                stack.enter_context(_later(run))
            opened = session(listen_endpoints=f'["{address}"]')
            stack.callback(opened.close)
            opened.declare_subscriber("bench/done", lambda _sample: acknowledged.release())
            publisher = opened.declare_publisher("bench/items", congestion_control=zenoh.CongestionControl.BLOCK)
            time.sleep(3)

            def work(number: int) -> None:
                for _ in range(number):
                    publisher.put(encode(PAYLOAD))
                publisher.put(b"")
                for _ in range(processes):
                    if not acknowledged.acquire(timeout=60):
                        raise Missing("a subscriber did not get the last message")

            measure = rate(work)
            yield lambda number: processes * measure(number)

    return make


@contextlib.contextmanager
def _later(run: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """As peers.child, without waiting for it."""

    def start(ready: Callable[[], None]) -> None:
        ready()
        time.sleep(0.5)
        run(lambda: None)

    with child(start):
        yield

"""What both messaging benchmarks share: echo servers of every contender as child processes, and clients to them.

Each `*_server(near)` runs in a child until it is killed, each `*_client(near)` gives a function that does one request.
Sockets are made before the fork; everything is pinned by the caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from smartipc.ipc.contracts import Method, Topic
from smartipc.ipc.handle import SmartIpc as AsyncIpc
from smartipc.ipc.sync import SmartIpc
from smartipc.ipc.sync.testing import Stage, StagePort

try:
    import zmq
except ImportError:
    zmq = None  # type: ignore[assignment]

try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop


class Payload(msgspec.Struct, frozen=True):
    """What travels."""

    data: bytes


SIZE = 64
PAYLOAD = Payload(bytes(SIZE))
echo = Method("echo.echo", Payload, Payload)
topic = Topic("bench.items", Payload)


@contextlib.contextmanager
def child(run: Callable[[Callable[[], None]], object], cpu: int | None = None) -> Iterator[int]:
    """Run `run(ready)` in a forked child until the block ends; the block begins when it called ready."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})
            run(lambda: os.close(writer))
        finally:
            os._exit(0)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """A stage with an instance `echo:0`, ready, and a `client:0`."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield Stage(folder)


def sync_echo(ipc: SmartIpc) -> None:
    """Register the echo of a blocking worker."""
    ipc.handler(echo)(lambda payload: payload)


def blocking_server(on: Stage) -> Callable[[Callable[[], None]], object]:
    """A blocking worker."""
    launch = on.add("echo")
    on.set("echo:0", "ready")

    def run(ready: Callable[[], None]) -> None:
        ipc = on.handle(launch)
        sync_echo(ipc)
        ready()
        ipc.serve()

    return run


def async_server(on: Stage) -> Callable[[Callable[[], None]], object]:
    """An async worker with a plain `def` handler, as the documentation recommends for short ones."""
    launch = on.add("echo")
    on.set("echo:0", "ready")

    def run(ready: Callable[[], None]) -> None:
        async def life() -> None:
            ipc = AsyncIpc(launch, on.directory(), StagePort(on, launch))
            await ipc._open()  # noqa: SLF001
            ipc.handler(echo)(lambda payload: payload)
            ready()
            await ipc.serve()

        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(life())

    return run


def run_async(on: Stage, work: Callable[[AsyncIpc], Any]) -> Any:
    """Return what the coroutine function `work(ipc)` returns, on a fresh loop with a fresh client."""
    launch = on.add("client")

    async def life() -> Any:
        ipc = AsyncIpc(launch, on.directory(), StagePort(on, launch))
        await ipc._open()  # noqa: SLF001
        try:
            return await work(ipc)
        finally:
            await ipc._close(1)  # noqa: SLF001

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(life())


@contextlib.contextmanager
def run_blocking(on: Stage) -> Iterator[SmartIpc]:
    """Give a blocking client."""
    ipc = on.handle(on.add("client"))
    try:
        yield ipc
    finally:
        ipc._close(1)  # noqa: SLF001


def socket_pair_echo() -> tuple[socket.socket, Callable[[Callable[[], None]], object]]:
    """The floor: bytes back and forth over a Unix socket, no framing and no types."""
    near, far = socket.socketpair()

    def run(ready: Callable[[], None]) -> None:
        near.close()
        ready()
        while data := far.recv(65536):
            far.sendall(data)

    return near, run


def pipe_echo() -> tuple[Any, Callable[[Callable[[], None]], object]]:
    """multiprocessing.Pipe, the same payload as a dict."""
    near, far = multiprocessing.Pipe()

    def run(ready: Callable[[], None]) -> None:
        near.close()
        ready()
        with contextlib.suppress(EOFError):
            while True:
                far.send(far.recv())

    return near, run


def zmq_echo(folder: str) -> tuple[str, Callable[[Callable[[], None]], object]]:
    """A pyzmq ROUTER that answers each DEALER's [id, payload], decoded and encoded with msgspec as ours is."""
    address = f"ipc://{folder}/zmq"

    def run(ready: Callable[[], None]) -> None:
        decode = msgspec.msgpack.Decoder(Payload).decode
        encode = msgspec.msgpack.Encoder().encode
        router = zmq.Context().socket(zmq.ROUTER)
        router.bind(address)
        ready()
        while True:
            who, ident, body = router.recv_multipart()
            router.send_multipart((who, ident, encode(decode(body))))

    return address, run

"""Peers that need no broker: pipes, pyzmq, rpyc, gRPC, hand-written asyncio, xoscar, and process pools.

Packages are imported by the contender that needs them, in its own process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib
import json
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import peers
from harness import Make, Measure, Missing
from peers import OUTSTANDING, PAYLOAD, SIZE, Payload, child, median_us, median_us_of, outstanding, rate


def need(name: str) -> Any:
    """Import a peer's package.

    Raises:
        Missing: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Missing(f"{name} is not installed") from error


@contextlib.contextmanager
def folder() -> Iterator[str]:
    """A short path for sockets."""
    with tempfile.TemporaryDirectory(prefix="bench-") as path:
        yield path


# bare sockets and multiprocessing.Pipe


@contextlib.contextmanager
def bare_latency() -> Iterator[Measure]:
    """A Unix socket without framing or types: the floor."""
    near, far = socket.socketpair()

    def run(ready: Callable[[], None]) -> None:
        near.close()
        ready()
        while data := far.recv(65536):
            far.sendall(data)

    data = bytes(SIZE)
    with child(run), near:

        def once() -> None:
            near.sendall(data)
            near.recv(65536)

        yield median_us(once)


PLAIN = {"data": bytes(SIZE)}


@contextlib.contextmanager
def _pipe() -> Iterator[Any]:
    near, far = multiprocessing.Pipe()

    def run(ready: Callable[[], None]) -> None:
        near.close()
        ready()
        with contextlib.suppress(EOFError):
            while True:
                message = far.recv()
                if message is not False:  # False: one way
                    far.send(message)

    with child(run), near:
        yield near


@contextlib.contextmanager
def pipe_latency() -> Iterator[Measure]:
    """One dict there and back."""
    with _pipe() as near:

        def once() -> None:
            near.send(PLAIN)
            near.recv()

        yield median_us(once)


@contextlib.contextmanager
def pipe_requests() -> Iterator[Measure]:
    """OUTSTANDING sent ahead."""
    with _pipe() as near:

        def work(number: int) -> None:
            for _ in range(OUTSTANDING):
                near.send(PLAIN)
            for _ in range(number - OUTSTANDING):
                near.recv()
                near.send(PLAIN)
            for _ in range(OUTSTANDING):
                near.recv()

        yield rate(work)


@contextlib.contextmanager
def pipe_messages() -> Iterator[Measure]:
    """One way, until the last one is acknowledged."""
    near, far = multiprocessing.Pipe()

    def run(ready: Callable[[], None]) -> None:
        near.close()
        ready()
        with contextlib.suppress(EOFError):
            while True:
                if far.recv() is None:
                    far.send(None)

    def work(number: int) -> None:
        for _ in range(number):
            near.send(PLAIN)
        near.send(None)
        near.recv()

    with child(run), near:
        yield rate(work)


# pyzmq, with msgspec for the payloads as ours has


@contextlib.contextmanager
def _dealer() -> Iterator[tuple[Any, Callable[[Any], bytes], Callable[[bytes], Any]]]:
    zmq = need("zmq")
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Payload).decode
    with folder() as path:
        address = f"ipc://{path}/zmq"

        def run(ready: Callable[[], None]) -> None:
            router = zmq.Context().socket(zmq.ROUTER)
            router.bind(address)
            ready()
            while True:
                who, ident, body = router.recv_multipart()
                router.send_multipart((who, ident, encode(decode(body))))

        with child(run):
            context = zmq.Context()
            dealer = context.socket(zmq.DEALER)
            dealer.connect(address)
            try:
                yield dealer, encode, decode
            finally:
                dealer.close(0)
                context.term()


@contextlib.contextmanager
def zmq_latency() -> Iterator[Measure]:
    """DEALER to ROUTER."""
    with _dealer() as (dealer, encode, decode):

        def once() -> None:
            dealer.send_multipart((b"1", encode(PAYLOAD)))
            decode(dealer.recv_multipart()[1])

        yield median_us(once)


@contextlib.contextmanager
def zmq_requests() -> Iterator[Measure]:
    """DEALER to ROUTER, OUTSTANDING sent ahead."""
    with _dealer() as (dealer, encode, decode):

        def work(number: int) -> None:
            for ident in range(OUTSTANDING):
                dealer.send_multipart((b"%d" % ident, encode(PAYLOAD)))
            for ident in range(number - OUTSTANDING):
                decode(dealer.recv_multipart()[1])
                dealer.send_multipart((b"%d" % ident, encode(PAYLOAD)))
            for _ in range(OUTSTANDING):
                decode(dealer.recv_multipart()[1])

        yield rate(work)


@contextlib.contextmanager
def zmq_messages() -> Iterator[Measure]:
    """PUSH to PULL, nothing dropped."""
    zmq = need("zmq")
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Payload).decode
    with folder() as path:

        def run(ready: Callable[[], None]) -> None:
            context = zmq.Context()
            pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
            pull.bind(f"ipc://{path}/there")
            push.bind(f"ipc://{path}/back")
            ready()
            while True:
                body = pull.recv()
                if body:
                    decode(body)
                else:
                    push.send(b"")

        with child(run):
            context = zmq.Context()
            push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
            push.connect(f"ipc://{path}/there")
            pull.connect(f"ipc://{path}/back")

            def work(number: int) -> None:
                for _ in range(number):
                    push.send(encode(PAYLOAD))
                push.send(b"")
                pull.recv()

            try:
                yield rate(work)
            finally:
                push.close(0)
                pull.close(0)
                context.term()


def zmq_fanout(processes: int) -> Make:
    """PUB to that many SUB processes, high-water marks off so that nothing is dropped."""

    @contextlib.contextmanager
    def make() -> Iterator[Measure]:
        zmq = need("zmq")
        encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Payload).decode
        with folder() as path, contextlib.ExitStack() as stack:

            def run(ready: Callable[[], None]) -> None:
                context = zmq.Context()
                sub, push = context.socket(zmq.SUB), context.socket(zmq.PUSH)
                sub.set(zmq.RCVHWM, 0)
                sub.connect(f"ipc://{path}/there")
                sub.subscribe(b"")
                push.connect(f"ipc://{path}/back")
                ready()
                while True:
                    body = sub.recv()
                    if body:
                        decode(body)
                    else:
                        push.send(b"")

            for _ in range(processes):
                stack.enter_context(child(run))
            context = zmq.Context()
            pub, pull = context.socket(zmq.XPUB), context.socket(zmq.PULL)
            pub.set(zmq.SNDHWM, 0)
            pub.set(zmq.XPUB_VERBOSE, 1)  # each subscriber is reported, not only the first
            pub.bind(f"ipc://{path}/there")
            pull.bind(f"ipc://{path}/back")
            for _ in range(processes):
                pub.recv()

            def work(number: int) -> None:
                for _ in range(number):
                    pub.send(encode(PAYLOAD))
                pub.send(b"")
                for _ in range(processes):
                    pull.recv()

            measure = rate(work)
            try:
                yield lambda number: processes * measure(number)
            finally:
                pub.close(0)
                pull.close(0)
                context.term()

    return make


# remote procedure calls


@contextlib.contextmanager
def rpyc_latency() -> Iterator[Measure]:
    """A service over a Unix socket, one thread at each end."""
    rpyc = need("rpyc")
    need("rpyc.utils.server")

    class Echo(rpyc.Service):  # type: ignore[misc]
        def exposed_echo(self, data: bytes) -> bytes:
            return data

    with folder() as path:

        def run(ready: Callable[[], None]) -> None:
            server = rpyc.utils.server.OneShotServer(Echo, socket_path=f"{path}/rpyc", logger=_silent())
            ready()
            server.start()

        with child(run):
            connection = _patiently(lambda: rpyc.utils.factory.unix_connect(f"{path}/rpyc"))
            call, data = connection.root.echo, bytes(SIZE)
            yield median_us(lambda: call(data))
            connection.close()


def _patiently(connect: Callable[[], Any]) -> Any:
    until = time.monotonic() + 5
    while True:
        try:
            return connect()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _silent() -> Any:
    import logging

    log = logging.getLogger("bench.rpyc")
    log.disabled = True
    return log


@contextlib.contextmanager
def _grpc_server() -> Iterator[str]:
    with folder() as path:
        address = f"unix:{path}/grpc"

        def run(ready: Callable[[], None]) -> None:
            grpc = need("grpc")

            async def life() -> None:
                async def answer(data: bytes, _context: Any) -> bytes:
                    return data

                server = grpc.aio.server()
                handler = grpc.unary_unary_rpc_method_handler(answer)
                server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Echo", {"echo": handler}),))
                server.add_insecure_port(address)
                await server.start()
                ready()
                await server.wait_for_termination()

            asyncio.run(life())

        with child(run):
            yield address


@contextlib.contextmanager
def grpc_latency() -> Iterator[Measure]:
    """A blocking stub, bytes as they are."""
    with _grpc_server() as address:
        grpc = need("grpc")
        with grpc.insecure_channel(address) as channel:
            call, data = channel.unary_unary("/Echo/echo"), bytes(SIZE)
            yield median_us(lambda: call(data))


@contextlib.contextmanager
def _grpc_aio() -> Iterator[tuple[Any, Callable[[], Any]]]:
    with _grpc_server() as address:
        grpc = need("grpc")
        with asyncio.Runner() as runner:

            async def opened() -> Any:
                return grpc.aio.insecure_channel(address)

            channel = runner.run(opened())
            call, data = channel.unary_unary("/Echo/echo"), bytes(SIZE)

            async def once() -> None:
                await call(data)

            yield runner.run, once
            runner.run(channel.close())


@contextlib.contextmanager
def grpc_aio_latency() -> Iterator[Measure]:
    """grpc.aio at both ends."""
    with _grpc_aio() as (run, once):
        yield lambda number: run(median_us_of(once, number))


@contextlib.contextmanager
def grpc_aio_requests() -> Iterator[Measure]:
    """grpc.aio at both ends."""
    with _grpc_aio() as (run, once):
        yield rate(lambda number: run(outstanding(once, number)))


@contextlib.contextmanager
def streams_latency() -> Iterator[Measure]:
    """What people write by hand: asyncio streams, one JSON line each way, on uvloop."""
    with folder() as path:

        def run(ready: Callable[[], None]) -> None:
            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                while line := await reader.readline():
                    writer.write(json.dumps(json.loads(line)).encode() + b"\n")

            async def life() -> None:
                server = await asyncio.start_unix_server(answer, f"{path}/json")
                ready()
                await server.serve_forever()

            with asyncio.Runner(loop_factory=peers.new_event_loop) as runner:
                runner.run(life())

        with child(run), asyncio.Runner(loop_factory=peers.new_event_loop) as runner:
            reader, writer = runner.run(asyncio.open_unix_connection(f"{path}/json"))
            payload = {"data": "x" * SIZE}

            async def once() -> None:
                writer.write(json.dumps(payload).encode() + b"\n")
                json.loads(await reader.readline())

            yield lambda number: runner.run(median_us_of(once, number))
            writer.close()


@contextlib.contextmanager
def xoscar_latency() -> Iterator[Measure]:
    """An actor in a pool of its own process."""
    xoscar = need("xoscar")
    address = "127.0.0.1:{}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = address.format(probe.getsockname()[1])

    def run(ready: Callable[[], None]) -> None:
        async def life() -> None:
            pool = await xoscar.create_actor_pool(address, n_process=0)
            await xoscar.create_actor(_actor(xoscar), address=address, uid="echo")
            ready()
            await pool.join()

        asyncio.run(life())

    with child(run), asyncio.Runner() as runner:
        actor = runner.run(xoscar.actor_ref(address=address, uid="echo"))
        data = bytes(SIZE)

        async def once() -> None:
            await actor.echo(data)

        yield lambda number: runner.run(median_us_of(once, number))


def _actor(xoscar: Any) -> type:
    class Echo(xoscar.Actor):  # type: ignore[misc]
        def echo(self, data: bytes) -> bytes:
            return data

    return Echo


# pools


def same(number: int) -> int:
    """The no-op of the pools."""
    return number


@contextlib.contextmanager
def mpire_pool() -> Iterator[Measure]:
    """WorkerPool(4).map as it comes: it cuts the work into chunks by itself."""
    mpire = need("mpire")
    with mpire.WorkerPool(4, start_method="fork", keep_alive=True) as pool:
        yield rate(lambda number: pool.map(same, range(number)))


@contextlib.contextmanager
def executor_pool() -> Iterator[Measure]:
    """ProcessPoolExecutor(4).map as it comes."""
    with concurrent.futures.ProcessPoolExecutor(4) as pool:
        yield rate(lambda number: sum(1 for _ in pool.map(same, range(number))))


@contextlib.contextmanager
def multiprocessing_pool() -> Iterator[Measure]:
    """multiprocessing.Pool(4).apply_async, all results awaited."""
    with multiprocessing.Pool(4) as pool:

        def work(number: int) -> None:
            for result in [pool.apply_async(same, (one,)) for one in range(number)]:
                result.get()

        yield rate(work)

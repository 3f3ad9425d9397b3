"""Move big NumPy arrays to another process, against the peers that can: `python benchmarks/buffers.py [--json]`.

Each figure is GB/s over ARRAYS arrays, sent one after the other to a process of its own that looks at both ends of
each and confirms it. Rounds are interleaved over all contenders and medians are compared; the first round warms up and
does not count. Peers: iceoryx2 (copied into its loan, as one must with an array that exists), a Unix socket, pyzmq,
multiprocessing.shared_memory and Pipe.

"in place" fills `client.buffer` before the clock starts, as a program that computes into it does.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing import shared_memory
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

Send = Callable[[int], None]
Contender = Callable[[list[np.ndarray]], AbstractContextManager[Send]]
PATIENCE = 60.0


class Missing(Exception):  # noqa: N818 - a fact, not a failure
    """This peer cannot run here, and why."""


def look(data: Any, size: int) -> None:
    """Be sure that the array came: first and last byte."""
    view = memoryview(data).cast("B")
    if view.nbytes < size or view[0] != 1 or view[size - 1] != 2:
        raise RuntimeError("the array did not come as it was sent")


@contextmanager
def beside(work: Callable[..., None], *args: Any) -> Iterator[Connection]:
    """Run `work(connection, *args)` in a fresh process; its first word on the connection says that it is ready."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=work, args=(far, *args), daemon=True)
    process.start()
    far.close()
    try:
        hear(near)
        yield near
    finally:
        near.close()
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


def hear(connection: Connection) -> Any:
    if not connection.poll(PATIENCE):
        raise RuntimeError("the other process says nothing")
    return connection.recv()


# smartipc


def smartipc_receiver(said: Connection, address: str) -> None:
    from smartipc import Buffer
    from smartipc.ipc.sync import serve

    server = serve(address)

    @server.handler("take")
    def _(buffer: Buffer) -> None:
        look(buffer.view, len(buffer))

    said.send("ready")
    with server:
        server.serve_forever()


@contextmanager
def smartipc_client() -> Iterator[Any]:
    import smartipc  # noqa: F401 - its version is what is measured
    from smartipc import Buffer  # noqa: F401 - imported before the link is opened, as programs do
    from smartipc.ipc.sync import connect

    with tempfile.TemporaryDirectory(prefix="s-") as folder:
        address = f"unix://{folder}/s"
        context = multiprocessing.get_context("spawn")
        near, far = context.Pipe()
        process = context.Process(target=smartipc_receiver, args=(far, address), daemon=True)
        process.start()
        try:
            hear(near)
            with connect(address) as client:
                yield client
        finally:
            process.terminate()
            process.join()
            near.close()


@contextmanager
def smartipc_in_place(arrays: list[np.ndarray]) -> Iterator[Send]:
    with smartipc_client() as client:
        buffers = []
        for array in arrays:
            buffer = client.buffer(array.nbytes)
            buffer.view[:] = memoryview(array)
            buffers.append(buffer)
        yield lambda index: client.request("take", buffers[index])


@contextmanager
def smartipc_copied(arrays: list[np.ndarray]) -> Iterator[Send]:
    from smartipc import Buffer

    with smartipc_client() as client:
        yield lambda index: client.request("take", Buffer(arrays[index]))


# its peers


def iceoryx2_receiver(said: Connection, name: str, size: int) -> None:
    import iceoryx2 as iox2

    iox2.set_log_level(iox2.LogLevel.Error)
    node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
    service = (
        node.service_builder(iox2.ServiceName.new(name)).publish_subscribe(iox2.Slice[ctypes.c_uint8]).open_or_create()
    )
    subscriber = service.subscriber_builder().create()
    said.send("ready")
    with contextlib.suppress(EOFError, OSError):
        while True:
            said.recv()
            sample = subscriber.receive()
            look((ctypes.c_uint8 * size).from_address(sample.payload().as_ptr()), size)
            sample.delete()
            said.send("seen")


@contextmanager
def iceoryx2(arrays: list[np.ndarray]) -> Iterator[Send]:
    try:
        import iceoryx2 as iox2
    except ImportError as error:
        raise Missing(str(error)) from error
    iox2.set_log_level(iox2.LogLevel.Error)
    size = arrays[0].nbytes
    name = f"smartipc-benchmark-{os.getpid()}"
    node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
    service = (
        node.service_builder(iox2.ServiceName.new(name)).publish_subscribe(iox2.Slice[ctypes.c_uint8]).open_or_create()
    )
    publisher = service.publisher_builder().initial_max_slice_len(size).create()
    with beside(iceoryx2_receiver, name, size) as said:

        def send(index: int) -> None:
            sample = publisher.loan_slice_uninit(size)
            ctypes.memmove(sample.payload_ptr, arrays[index].ctypes.data, size)
            sample.assume_init().send()
            said.send("sent")
            hear(said)

        yield send


def socket_receiver(said: Connection, address: str, size: int) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        said.send("ready")
        data = bytearray(size)
        view = memoryview(data)
        with contextlib.suppress(OSError):
            while True:
                got = 0
                while got < size:
                    count = sock.recv_into(view[got:])
                    if not count:
                        return
                    got += count
                look(data, size)
                sock.send(b"!")


@contextmanager
def plain_socket(arrays: list[np.ndarray]) -> Iterator[Send]:
    with tempfile.TemporaryDirectory(prefix="s-") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/s")
        listener.listen()
        with beside(socket_receiver, f"{folder}/s", arrays[0].nbytes):
            sock, _ = listener.accept()
            with sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)

                def send(index: int) -> None:
                    sock.sendall(memoryview(arrays[index]))
                    sock.recv(1)

                yield send


def zmq_receiver(said: Connection, address: str, size: int) -> None:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PAIR) as sock:
        sock.connect(address)
        sock.linger = 0
        said.send("ready")
        while True:
            frame = sock.recv(copy=False)
            if not len(frame):
                return
            look(frame.buffer, size)
            sock.send(b"!")


@contextmanager
def pyzmq(arrays: list[np.ndarray]) -> Iterator[Send]:
    try:
        import zmq
    except ImportError as error:
        raise Missing(str(error)) from error
    with tempfile.TemporaryDirectory(prefix="s-") as folder, zmq.Context() as context, context.socket(zmq.PAIR) as sock:
        address = f"ipc://{folder}/s"
        sock.bind(address)
        sock.linger = 0
        sock.rcvtimeo = int(PATIENCE * 1000)
        with beside(zmq_receiver, address, arrays[0].nbytes):

            def send(index: int) -> None:
                sock.send(arrays[index], copy=False)
                sock.recv()

            yield send
            sock.send(b"")


def shared_memory_receiver(said: Connection, size: int) -> None:
    said.send("ready")
    with contextlib.suppress(EOFError, OSError):
        while True:
            segment = shared_memory.SharedMemory(said.recv())
            look(segment.buf, size)
            segment.close()
            said.send("seen")


@contextmanager
def shared(arrays: list[np.ndarray]) -> Iterator[Send]:
    with beside(shared_memory_receiver, arrays[0].nbytes) as said:

        def send(index: int) -> None:
            segment = shared_memory.SharedMemory(create=True, size=arrays[index].nbytes)
            segment.buf[: arrays[index].nbytes] = memoryview(arrays[index]).cast("B")
            said.send(segment.name)
            hear(said)
            segment.close()
            segment.unlink()

        yield send


def pipe_receiver(said: Connection, size: int) -> None:
    said.send("ready")
    with contextlib.suppress(EOFError, OSError):
        while True:
            look(said.recv_bytes(), size)
            said.send("seen")


@contextmanager
def pipe(arrays: list[np.ndarray]) -> Iterator[Send]:
    with beside(pipe_receiver, arrays[0].nbytes) as said:

        def send(index: int) -> None:
            said.send_bytes(memoryview(arrays[index]).cast("B"))
            hear(said)

        yield send


CONTENDERS: dict[str, Contender] = {
    "smartipc in place": smartipc_in_place,
    "smartipc copied": smartipc_copied,
    "iceoryx2": iceoryx2,
    "plain socket": plain_socket,
    "pyzmq": pyzmq,
    "SharedMemory": shared,
    "Pipe": pipe,
}
TARGETS = [("smartipc in place", "iceoryx2", 10.0), ("smartipc copied", "iceoryx2", 1.0)]


def measure(send: Send, arrays: list[np.ndarray]) -> float:
    begin = time.perf_counter()
    for index in range(len(arrays)):
        send(index)
    return sum(array.nbytes for array in arrays) / (time.perf_counter() - begin) / 1e9


def race(arrays: list[np.ndarray], rounds: int, only: list[str]) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return GB/s of every round by contender, and why others are missing."""
    figures: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        running: dict[str, Send] = {}
        for name, contender in CONTENDERS.items():
            if only and name not in only:
                continue
            try:
                running[name] = stack.enter_context(contender(arrays))
            except (Missing, OSError, RuntimeError) as error:
                missing[name] = str(error) or type(error).__name__
        for number in range(rounds + 1):
            for name, send in running.items():
                figure = measure(send, arrays)
                if number:
                    figures.setdefault(name, []).append(figure)
    return figures, missing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=128, help="size of an array")
    parser.add_argument("--arrays", type=int, default=8)
    parser.add_argument("--only", action="append", default=[], choices=list(CONTENDERS))
    arguments = parser.parse_args()

    arrays = []
    for _ in range(arguments.arrays):
        array = np.full(arguments.mib << 20, 7, dtype="u1")
        array[0], array[-1] = 1, 2
        arrays.append(array)
    figures, missing = race(arrays, arguments.rounds, arguments.only)
    medians = {name: statistics.median(values) for name, values in figures.items()}
    ratios = [
        {"ours": ours, "against": peer, "factor": factor, "ratio": medians[ours] / medians[peer]}
        for ours, peer, factor in TARGETS
        if ours in medians and peer in medians
    ]
    if arguments.json:
        print(json.dumps({"unit": "GB/s", "mib": arguments.mib, "arrays": arguments.arrays, "medians": medians,
                          "rounds": figures, "missing": missing, "targets": ratios}))  # fmt: skip
    else:
        print(f"{arguments.arrays} arrays of {arguments.mib} MiB, {arguments.rounds} rounds, GB/s")
        for name, values in figures.items():
            print(f"  {name:18} {medians[name]:10.2f}   ({min(values):.2f} to {max(values):.2f})")
        for name, reason in missing.items():
            print(f"  {name:18} not here: {reason}")
        for one in ratios:
            verdict = "reached" if one["ratio"] >= one["factor"] else "MISSED"
            print(f"  {one['ours']} / {one['against']}: {one['ratio']:.2f} (target {one['factor']:g}) {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Requests per second with 64 outstanding, and one-way messages per second, of 64 bytes, client and server on any CPU.

    python benchmarks/throughput.py [--rounds 3] [--requests 20000] [--messages 50000] [--json]

Contenders take turns in rounds; the table shows medians and ratios to pyzmq (to multiprocessing.Pipe without it). A
one-way run ends when the receiver has said that it got the last message.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent))

import peers
from peers import PAYLOAD, Payload, echo, topic

from smartipc.ipc import control
from smartipc.ipc.subscriptions import DEFAULT_WINDOW

OUTSTANDING = 64
Run = Callable[[int], None]
"""Do that many requests, or deliver that many messages, and return when all is done."""


# requests


@contextmanager
def pipe_requests() -> Iterator[Run]:
    """multiprocessing.Pipe, 64 sent ahead."""
    near, run = peers.pipe_echo()
    payload = {"data": bytes(peers.SIZE)}

    def work(number: int) -> None:
        for _ in range(OUTSTANDING):
            near.send(payload)
        for _ in range(number - OUTSTANDING):
            near.recv()
            near.send(payload)
        for _ in range(OUTSTANDING):
            near.recv()

    with peers.child(run), near:
        yield work


@contextmanager
def pyzmq_requests() -> Iterator[Run]:
    """Pyzmq DEALER to ROUTER, 64 sent ahead."""
    with peers.stage() as on:
        address, run = peers.zmq_echo(on.folder)
        with peers.child(run):
            context = peers.zmq.Context()
            dealer = context.socket(peers.zmq.DEALER)
            dealer.connect(address)
            encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Payload).decode

            def work(number: int) -> None:
                for ident in range(OUTSTANDING):
                    dealer.send_multipart((b"%d" % ident, encode(PAYLOAD)))
                for ident in range(number - OUTSTANDING):
                    decode(dealer.recv_multipart()[1])
                    dealer.send_multipart((b"%d" % ident, encode(PAYLOAD)))
                for _ in range(OUTSTANDING):
                    decode(dealer.recv_multipart()[1])

            yield work
            dealer.close(0)
            context.term()


@contextmanager
def blocking_requests() -> Iterator[Run]:
    """The blocking handle's map."""
    with peers.stage() as on, peers.child(peers.blocking_server(on)), peers.run_blocking(on) as ipc:

        def work(number: int) -> None:
            done = sum(1 for _ in ipc.map(echo, (PAYLOAD for _ in range(number)), concurrency=OUTSTANDING))
            assert done == number

        yield work


@contextmanager
def async_requests() -> Iterator[Run]:
    """64 coroutines on the async handle."""
    with peers.stage() as on, peers.child(peers.async_server(on)):

        def work(number: int) -> None:
            async def client(ipc: peers.AsyncIpc) -> None:
                async def one() -> None:
                    for _ in range(number // OUTSTANDING):
                        await ipc.request(echo, PAYLOAD)

                await asyncio.gather(*(one() for _ in range(OUTSTANDING)))

            peers.run_async(on, client)

        yield work


# one way


@contextmanager
def pipe_messages() -> Iterator[Run]:
    """multiprocessing.Pipe."""
    near, far = peers.multiprocessing.Pipe()
    payload = {"data": bytes(peers.SIZE)}

    def run(ready: Callable[[], None]) -> None:
        near.close()
        ready()
        while True:
            if far.recv() is None:
                far.send(None)

    def work(number: int) -> None:
        for _ in range(number):
            near.send(payload)
        near.send(None)
        near.recv()

    with peers.child(run), near:
        yield work


@contextmanager
def pyzmq_messages() -> Iterator[Run]:
    """Pyzmq PUSH to PULL, nothing dropped."""
    with peers.stage() as on:

        def run(ready: Callable[[], None]) -> None:
            decode = msgspec.msgpack.Decoder(Payload).decode
            context = peers.zmq.Context()
            pull, push = context.socket(peers.zmq.PULL), context.socket(peers.zmq.PUSH)
            pull.bind(f"ipc://{on.folder}/there")
            push.bind(f"ipc://{on.folder}/back")
            ready()
            while True:
                body = pull.recv()
                if body:
                    decode(body)
                else:
                    push.send(b"")

        with peers.child(run):
            context = peers.zmq.Context()
            push, pull = context.socket(peers.zmq.PUSH), context.socket(peers.zmq.PULL)
            push.connect(f"ipc://{on.folder}/there")
            pull.connect(f"ipc://{on.folder}/back")
            encode = msgspec.msgpack.Encoder().encode

            def work(number: int) -> None:
                for _ in range(number):
                    push.send(encode(PAYLOAD))
                push.send(b"")
                pull.recv()

            yield work
            push.close(0)
            pull.close(0)
            context.term()


@contextmanager
def blocking_messages() -> Iterator[Run]:
    """The blocking handle's publish to a subscription of another process."""
    with peers.stage() as on:
        subscriber = on.add("echo")
        on.set("echo:0", "ready")

        def run(ready: Callable[[], None]) -> None:
            ipc = on.handle(subscriber)
            with ipc.subscribe(topic) as messages:
                ipc.handler("count")(lambda _payload: counted)
                ready()
                counted = 0
                for _ in messages:
                    counted += 1  # noqa: SIM113 - a handler reads it

        # The child registers with its own copy of the stage: tell ours what it will say there.
        request = control.SubscribeRequest(1, topic.name, DEFAULT_WINDOW)
        with peers.child(run), peers.run_blocking(on) as ipc:
            on.asked(subscriber, control.subscribe, request)

            def work(number: int) -> None:
                before = ipc.request("echo.count", None, reply_type=int)
                for _ in range(number):
                    ipc.publish(topic, PAYLOAD)
                while ipc.request("echo.count", None, reply_type=int) < before + number:
                    pass

            yield work


@contextmanager
def async_messages() -> Iterator[Run]:
    """The async handle's publish to a subscription of another process."""
    with peers.stage() as on:
        subscriber = on.add("echo")
        on.set("echo:0", "ready")

        def run(ready: Callable[[], None]) -> None:
            async def life() -> None:
                ipc = peers.AsyncIpc(subscriber, on.directory(), peers.StagePort(on, subscriber))
                await ipc._open()  # noqa: SLF001
                async with ipc.subscribe(topic) as messages:
                    ipc.handler("count")(lambda _payload: counted)
                    ready()
                    counted = 0
                    async for _ in messages:
                        counted += 1

            with asyncio.Runner(loop_factory=peers.new_event_loop) as runner:
                runner.run(life())

        request = control.SubscribeRequest(1, topic.name, DEFAULT_WINDOW)
        with peers.child(run):
            on.asked(subscriber, control.subscribe, request)

            def work(number: int) -> None:
                async def client(ipc: peers.AsyncIpc) -> None:
                    before = await ipc.request("echo.count", None, reply_type=int)
                    for _ in range(number):
                        await ipc.publish(topic, PAYLOAD)
                    while await ipc.request("echo.count", None, reply_type=int) < before + number:
                        pass

                peers.run_async(on, client)

            yield work


REQUESTS = {
    "multiprocessing.Pipe": pipe_requests,
    "pyzmq": pyzmq_requests,
    "smartipc blocking": blocking_requests,
    "smartipc async": async_requests,
}
MESSAGES = {
    "multiprocessing.Pipe": pipe_messages,
    "pyzmq": pyzmq_messages,
    "smartipc blocking": blocking_messages,
    "smartipc async": async_messages,
}


def rates(contenders: dict[str, Callable[[], object]], number: int, rounds: int) -> dict[str, float]:
    """Return the median rate of each contender in 1/s."""
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        runs = {name: stack.enter_context(make()) for name, make in contenders.items()}  # type: ignore[arg-type]
        for run in runs.values():
            run(number // 10)
        for _ in range(rounds):
            for name, run in runs.items():
                began = time.perf_counter()
                run(number)
                measured[name].append(number / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in measured.items()}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    requests, messages = dict(REQUESTS), dict(MESSAGES)
    if peers.zmq is None:
        print("pyzmq is not installed: skipped", file=sys.stderr)
        del requests["pyzmq"], messages["pyzmq"]
    result = {
        "requests": rates(requests, options.requests // OUTSTANDING * OUTSTANDING, options.rounds),
        "messages": rates(messages, options.messages, options.rounds),
    }
    if options.json:
        print(json.dumps(result | {"cpus": os.cpu_count()}))
        return
    for title, values in (("requests/s, 64 outstanding", result["requests"]), ("one-way/s", result["messages"])):
        name_of_reference = "pyzmq" if "pyzmq" in values else "multiprocessing.Pipe"
        print(f"{title:<28}{'1/s':>10}  x {name_of_reference}")
        for name, value in sorted(values.items(), key=lambda item: -item[1]):
            print(f"{name:<28}{value:>10.0f}{value / values[name_of_reference]:>7.2f}")
        print()


if __name__ == "__main__":
    main()

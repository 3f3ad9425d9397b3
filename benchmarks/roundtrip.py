"""Latency of one request of 64 bytes, client and server pinned to the same CPU: the cost of the code path.

    python benchmarks/roundtrip.py [--rounds 5] [--requests 3000] [--json]

Contenders take turns in rounds, so that a slow moment of the machine hits all of them; the table shows the median over
the rounds of each round's median, and its ratio to multiprocessing.Pipe.
"""

from __future__ import annotations

import argparse
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
from peers import PAYLOAD, Payload, echo

Measure = Callable[[int], list[float]]


def timed(once: Callable[[], object]) -> Measure:
    """Return a function that runs `once` n times and gives the durations in seconds."""
    clock = time.perf_counter

    def measure(number: int) -> list[float]:
        durations = []
        for _ in range(number):
            began = clock()
            once()
            durations.append(clock() - began)
        return durations

    return measure


@contextmanager
def floor() -> Iterator[Measure]:
    """A bare Unix socket."""
    near, run = peers.socket_pair_echo()
    data = bytes(peers.SIZE)
    with peers.child(run), near:

        def once() -> None:
            near.sendall(data)
            near.recv(65536)

        yield timed(once)


@contextmanager
def pipe() -> Iterator[Measure]:
    """multiprocessing.Pipe."""
    near, run = peers.pipe_echo()
    payload = {"data": bytes(peers.SIZE)}
    with peers.child(run), near:

        def once() -> None:
            near.send(payload)
            near.recv()

        yield timed(once)


@contextmanager
def pyzmq() -> Iterator[Measure]:
    """Pyzmq DEALER to ROUTER."""
    with peers.stage() as on:
        address, run = peers.zmq_echo(on.folder)
        with peers.child(run):
            context = peers.zmq.Context()
            dealer = context.socket(peers.zmq.DEALER)
            dealer.connect(address)
            encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Payload).decode

            def once() -> None:
                dealer.send_multipart((b"1", encode(PAYLOAD)))
                decode(dealer.recv_multipart()[1])

            yield timed(once)
            dealer.close(0)
            context.term()


@contextmanager
def blocking() -> Iterator[Measure]:
    """The blocking handle at both ends."""
    with peers.stage() as on, peers.child(peers.blocking_server(on)), peers.run_blocking(on) as ipc:
        yield timed(lambda: ipc.request(echo, PAYLOAD))


@contextmanager
def asynchronous() -> Iterator[Measure]:
    """The async handle at both ends."""
    with peers.stage() as on, peers.child(peers.async_server(on)):

        def measure(number: int) -> list[float]:
            async def work(ipc: peers.AsyncIpc) -> list[float]:
                durations = []
                clock = time.perf_counter
                for turn in range(number + 200):
                    began = clock()
                    await ipc.request(echo, PAYLOAD)
                    if turn >= 200:  # the link and the caches are warm
                        durations.append(clock() - began)
                return durations

            durations: list[float] = peers.run_async(on, work)
            return durations

        yield measure


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    contenders = {
        "Unix socket, bare": floor,
        "multiprocessing.Pipe": pipe,
        "pyzmq": pyzmq,
        "smartipc blocking": blocking,
        "smartipc async": asynchronous,
    }
    if peers.zmq is None:
        print("pyzmq is not installed: skipped", file=sys.stderr)
        del contenders["pyzmq"]
    medians: dict[str, list[float]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        measures = {name: stack.enter_context(make()) for name, make in contenders.items()}
        for measure in measures.values():
            measure(500)
        for _ in range(options.rounds):
            for name, measure in measures.items():
                medians[name].append(statistics.median(measure(options.requests)) * 1e6)
    result = {name: statistics.median(values) for name, values in medians.items()}
    reference = result["multiprocessing.Pipe"]
    if options.json:
        print(json.dumps({name: {"p50_us": value, "to_pipe": value / reference} for name, value in result.items()}))
        return
    print(f"{'64 B request, one CPU':<24}{'p50 us':>8}{'x Pipe':>8}")
    for name, value in sorted(result.items(), key=lambda item: item[1]):
        print(f"{name:<24}{value:>8.1f}{value / reference:>8.2f}")


if __name__ == "__main__":
    main()

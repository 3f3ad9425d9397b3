"""Big buffers between real workers: many of them, passed on, held over deaths; and nothing is left of them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit import App, alive, wait_for

pytest.importorskip("numpy")
pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

TARGETS = """
import asyncio, gc, os
import msgspec
import numpy as np
from smartipc import Buffer, Method, SmartIpcError, Topic
from smartipc.ipc.transports import memfd

class Frame(msgspec.Struct):
    pixels: Buffer
    keep: bool = False

total = Method("sink.total", Frame, float)
passed = Method("relay.passed", Frame, Frame)
frames = Topic("frames", Frame)
MIB = 1 << 20

def facts():
    gc.collect()
    maps = open("/proc/self/maps").read()
    statm = open("/proc/self/statm").read().split()
    return {
        "pid": os.getpid(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mappings": maps.count("memfd:smartipc"),
        "named": maps.count("/dev/shm"),
        "private": int(statm[1]) - int(statm[2]),
        "pool": memfd.pool().size,
        "in_use": memfd.pool().in_use,
    }

def sink(ipc):
    kept = []
    @ipc.handler(total)
    def _(frame: Frame) -> float:
        array = np.asarray(frame.pixels)
        assert not array.flags.writeable
        if frame.keep:
            kept.append(array)
        return float(array[::4096].sum())
    @ipc.handler("again")
    def _(_):
        return [float(array.sum()) for array in kept]
    @ipc.handler("drop")
    def _(_):
        kept.clear()
    @ipc.handler("facts")
    def _(_):
        return facts()
    ipc.serve()

async def relay(ipc):
    seen = []
    @ipc.handler(passed)
    async def _(frame: Frame) -> Frame:
        await ipc.request(total, frame)
        return Frame(frame.pixels)
    @ipc.subscriber(frames)
    def _(frame: Frame):
        seen.append(float(np.asarray(frame.pixels).sum()))
    @ipc.handler("seen")
    def _(_):
        return seen
    @ipc.handler("facts")
    def _(_):
        return facts()
    await ipc.serve()

async def source(ipc):
    ones = np.ones(MIB // 8)
    @ipc.handler("run")
    async def _(count: int):
        place = np.frombuffer(ipc.buffer(MIB).view, "f8")
        place[:] = 1
        for number in range(count):
            assert await ipc.request(total, Frame(Buffer(place if number % 2 else ones))) == 32
        return facts()
    @ipc.handler("pass")
    async def _(_):
        back = await ipc.request(passed, Frame(Buffer(ones)))
        return float(np.asarray(back.pixels).sum())
    @ipc.handler("give")
    async def _(number: float):
        return await ipc.request(total, Frame(Buffer(np.full(MIB // 8, number)), keep=True))
    @ipc.handler("publish")
    async def _(number: float):
        await ipc.publish(frames, Frame(Buffer(np.full(MIB // 8, number))))
        return memfd.pool().in_use
    running = []
    async def storm():
        while True:
            try:
                await ipc.request(total, Frame(Buffer(ones)), timeout=20)
            except SmartIpcError:
                pass
    @ipc.handler("storm")
    async def _(on: bool):
        while running:
            running.pop().cancel()
        if on:
            running.extend(asyncio.create_task(storm()) for _ in range(4))
    @ipc.handler("facts")
    def _(_):
        return facts()
    await ipc.serve()
"""
WORKERS = """
app: b
python_path: [.]
defaults: {restart: {policy: always, delay: 10ms, max_delay: 50ms, jitter: 0, max_restarts: 1000}}
workers:
  sink: {target: 'targets:sink'}
  relay: {target: 'targets:relay', instances: 3}
  source: {target: 'targets:source', depends_on: [sink, relay]}
"""


@pytest.fixture
def one(app: Callable[..., App], folder: Path) -> App:
    (folder / "targets.py").write_text(TARGETS)
    started = app(WORKERS)
    started.wait_state("source:0", "ready")
    return started


def ask(one: App, method: str, payload: Any = None, *more: str) -> Any:
    done = one.ctl("request", method, json.dumps(payload), "--timeout", "60", *more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_memory_and_descriptors_are_flat_over_ten_thousand_buffers(one: App) -> None:
    before = ask(one, "source.run", 200)
    sink_before = ask(one, "sink.facts")
    after = ask(one, "source.run", 9800)
    sink_after = ask(one, "sink.facts")
    for first, last in ((before, after), (sink_before, sink_after)):
        assert last["descriptors"] <= first["descriptors"]
        assert last["mappings"] == first["mappings"] > 0
        assert last["named"] == 0
        assert last["pool"] == first["pool"] <= 2 * 64 << 20
        assert (last["private"] - first["private"]) * 4096 < 16 << 20
    wait_for(lambda: ask(one, "source.facts")["in_use"] == 0, "every lease has been given back")


def test_passed_on_published_and_held(one: App) -> None:
    assert ask(one, "source.pass") == (1 << 20) // 8
    wait_for(lambda: ask(one, "source.facts")["in_use"] == 0, "every lease has been given back")
    assert ask(one, "source.publish", 2.0) == 1 << 20, "one copy for all three subscribers"
    for slot in range(3):
        wait_for(lambda slot=slot: ask(one, "relay.seen", None, "--slot", str(slot)) == [262144.0], "it arrives")
    assert ask(one, "source.give", 3.0) == 3.0 * 32
    assert ask(one, "source.give", 4.0) == 4.0 * 32
    old = one.status()["source:0"]
    os.kill(old["pid"], signal.SIGKILL)
    one.wait_state("source:0", "ready", generation=old["generation"] + 1)
    ask(one, "source.run", 200)
    assert ask(one, "sink.again") == [3.0 * 131072, 4.0 * 131072], "what a dead sender sent stays readable"
    held = ask(one, "sink.facts")
    ask(one, "sink.drop")
    assert ask(one, "sink.facts")["mappings"] < held["mappings"], "and is freed with the last view"


def test_what_workers_carried_is_in_the_metrics(one: App) -> None:
    ask(one, "source.run", 200)
    ask(one, "source.give", 1.0)
    labels = '{instance="source:0",worker="source"}'

    def told(name: str, labels: str = labels) -> float:
        text = one.ctl("metrics").stdout
        return float(next((line.split()[-1] for line in text.splitlines() if line.startswith(name + labels)), "-1"))

    wait_for(lambda: told("smartipc_buffers_lent") == 1, "the one that is kept is counted")
    assert told("smartipc_requests_sent_total") >= 201
    assert told("smartipc_request_seconds_count") >= 12
    assert told("smartipc_buffer_pool_bytes") == 64 << 20
    assert told("smartipc_connections") >= 2
    sink = '{instance="sink:0",worker="sink"}'
    wait_for(lambda: told("smartipc_buffers_borrowed", sink) == 1, "at the other end as well")
    assert told("smartipc_requests_received_total", sink) >= 201


def test_kill_of_either_side_at_any_moment_leaves_nothing(one: App) -> None:
    ask(one, "source.run", 50)
    before = {name: ask(one, f"{name}.facts") for name in ("sink", "source")}
    for number in range(12):
        victim = ("sink:0", "source:0")[number % 2]
        ask(one, "source.storm", True)
        time.sleep(0.05 + 0.013 * number)  # at any moment is the point
        row = one.status()[victim]
        os.kill(row["pid"], signal.SIGKILL)
        wait_for(lambda pid=row["pid"]: not alive(pid), "it is dead")
        one.wait_state(victim, "ready", generation=row["generation"] + 1)
    ask(one, "source.storm", False)
    ask(one, "source.run", 50)
    after = {name: ask(one, f"{name}.facts") for name in ("sink", "source")}
    for name, first in before.items():
        assert after[name]["descriptors"] <= first["descriptors"] + 1, name
        assert after[name]["mappings"] <= first["mappings"] + 1, name
        assert after[name]["named"] == 0

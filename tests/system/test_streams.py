"""Streams and channels between real workers of one app: both flavours, and the death of either side."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit import App, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

TARGETS = """
import asyncio, os, time
from smartipc import Channel, Stream, WorkerDied

numbers = {name: Stream(f"{name}.numbers", int, int) for name in ("aio", "plain")}
echo = {name: Channel(f"{name}.echo", send=bytes, receive=bytes) for name in ("aio", "plain")}

async def aio(ipc):
    open_now = set()
    @ipc.handler(numbers["aio"])
    async def _(count):
        open_now.add(count)
        try:
            for number in range(count):
                yield number
        finally:
            open_now.discard(count)
    @ipc.handler(echo["aio"])
    async def _(channel):
        open_now.add(channel)
        try:
            async for item in channel:
                await channel.send(item)
        finally:
            open_now.discard(channel)
    @ipc.handler("facts")
    def _(_):
        return {"pid": os.getpid(), "open": len(open_now)}
    await ipc.serve()

def plain(ipc):
    @ipc.handler(numbers["plain"])
    def _(count):
        yield from range(count)
    @ipc.handler(echo["plain"])
    def _(channel):
        for item in channel:
            channel.send(item)
    @ipc.handler("facts")
    def _(_):
        return {"pid": os.getpid()}
    ipc.serve()

async def reader(ipc):
    @ipc.handler("read")
    async def _(name):
        total = 0
        async with ipc.open_stream(numbers[name], 20_000) as items:
            async for number in items:
                total += number
        async with ipc.open_channel(echo[name]) as channel:
            for size in (1, 300_000):
                await channel.send(b"x" * size)
                total += len(await channel.receive())
        return total
    @ipc.handler("cling")
    async def _(name):
        try:
            async with ipc.open_channel(echo[name]) as channel:
                await channel.send(b"x")
                await channel.receive()
                ipc.set_status("clinging")
                await channel.receive()
        except WorkerDied as death:
            return [death.instance, death.signal, time.time()]
    await ipc.serve()

def blocking_reader(ipc):
    @ipc.handler("read")
    def _(name):
        with ipc.open_stream(numbers[name], 20_000) as items:
            total = sum(items)
        with ipc.open_channel(echo[name]) as channel:
            for size in (1, 300_000):
                channel.send(b"x" * size)
                total += len(channel.receive())
        return total
    @ipc.handler("cling")
    def _(name):
        try:
            with ipc.open_channel(echo[name]) as channel:
                channel.send(b"x")
                channel.receive()
                ipc.set_status("clinging")
                channel.receive()
        except WorkerDied as death:
            return [death.instance, death.signal, time.time()]
    ipc.serve()
"""

CONFIG = """
app: streaming
python_path: [.]
workers:
  aio: {target: "streaming_targets:aio", restart: {policy: on-failure, delay: 100ms}}
  plain: {target: "streaming_targets:plain", restart: {policy: on-failure, delay: 100ms}}
  reader: {target: "streaming_targets:reader", restart: {policy: on-failure, delay: 100ms}}
  blocking_reader: {target: "streaming_targets:blocking_reader", restart: {policy: on-failure, delay: 100ms}}
"""

EXPECTED = sum(range(20_000)) + 300_001
READERS = ("reader", "blocking_reader")


@pytest.fixture
def running(folder: Path, app: Callable[..., App]) -> App:
    (folder / "streaming_targets.py").write_text(TARGETS)
    one = app(CONFIG)
    for worker in ("aio", "plain", *READERS):
        one.wait_state(f"{worker}:0", "ready")
    return one


def ask(app: App, address: str, payload: Any = None) -> Any:
    done = app.ctl("request", address, json.dumps(payload))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("server", ["aio", "plain"])
def test_every_flavour_reads_from_every_other(running: App, reader: str, server: str) -> None:
    assert ask(running, f"{reader}.read", server) == EXPECTED


@pytest.mark.parametrize("reader", READERS)
def test_a_killed_server_is_told_at_once_with_its_exit(running: App, reader: str) -> None:
    answers: list[Any] = []
    clinging = threading.Thread(target=lambda: answers.append(ask(running, f"{reader}.cling", "aio")))
    clinging.start()
    wait_for(lambda: running.status()[f"{reader}:0"]["status"] == "clinging", "the channel is open")
    pid = ask(running, "aio.facts")["pid"]
    killed = time.time()
    os.kill(pid, signal.SIGKILL)
    clinging.join()
    ((instance, name, noticed),) = answers
    assert (instance, name) == ("aio:0", "SIGKILL")
    assert noticed - killed < 1.0  # 200 ms are promised; other tests may load the machine
    running.wait_state("aio:0", "ready", generation=2)
    assert ask(running, f"{reader}.read", "aio") == EXPECTED


@pytest.mark.parametrize("reader", READERS)
def test_a_killed_reader_ends_its_handlers(running: App, reader: str) -> None:
    clinging = threading.Thread(target=lambda: running.ctl("request", f"{reader}.cling", '"aio"'))
    clinging.start()
    wait_for(lambda: ask(running, "aio.facts")["open"] == 1, "the channel is open")
    os.kill(running.status()[f"{reader}:0"]["pid"], signal.SIGKILL)
    wait_for(lambda: ask(running, "aio.facts")["open"] == 0, "its handler is over")
    clinging.join()

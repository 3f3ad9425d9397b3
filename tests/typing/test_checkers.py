"""What type checkers infer and refuse: snippets through mypy and pyright, each once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SNIPPETS = """
from typing import assert_type
import msgspec
from collections.abc import AsyncIterator, Iterator
from smartipc import Channel, IpcChannel, IpcMessage, Method, SmartIpc, Stream, Topic
from smartipc.ipc.sync import IpcChannel as BlockingChannel, SmartIpc as BlockingIpc

class Job(msgspec.Struct): number: int
class Done(msgspec.Struct): text: str

do = Method("w.do", Job, Done)
topic = Topic("t.x", Job)
rows = Stream("w.rows", Job, Done)
chat = Channel("w.chat", send=Job, receive=Done)

async def good(ipc: SmartIpc) -> None:
    assert_type(await ipc.request(do, Job(1)), Done)
    assert_type(await ipc.request("w.do", {"number": 1}, reply_type=Done), Done)
    async for done in ipc.map(do, [Job(1)]):
        assert_type(done, Done)
    async with ipc.subscribe(topic) as messages:
        async for message in messages:
            assert_type(message.payload, Job)
    @ipc.handler(do)
    def plain(job: Job) -> Done: return Done("x")
    @ipc.handler(do)
    async def full(job: Job, message: IpcMessage[Job]) -> Done: return Done("x")
    async with ipc.open_stream(rows, Job(1)) as items:
        async for item in items:
            assert_type(item, Done)
        assert_type(await items.receive(), Done)
    async with ipc.open_stream("w.rows", {"number": 1}, item_type=Done) as named:
        assert_type(await named.receive(), Done)
    async with ipc.open_channel(chat) as channel:
        await channel.send(Job(1))
        assert_type(await channel.receive(), Done)
    @ipc.handler(rows)
    async def generate(job: Job) -> AsyncIterator[Done]: yield Done("x")
    @ipc.handler(rows)
    def generate_plainly(job: Job, message: IpcMessage[Job]) -> Iterator[Done]: yield Done("x")
    @ipc.handler(chat)
    async def talk(channel: IpcChannel[Done, Job]) -> None:
        async for job in channel:
            assert_type(job, Job)
        await channel.send(Done("x"))

def good_blocking(ipc: BlockingIpc) -> None:
    assert_type(ipc.request(do, Job(1)), Done)
    with ipc.open_stream(rows, Job(1)) as items:
        for item in items:
            assert_type(item, Done)
    with ipc.open_channel(chat) as channel:
        channel.send(Job(1))
        assert_type(channel.receive(), Done)
    @ipc.handler(rows)
    def generate(job: Job) -> Iterator[Done]: yield Done("x")
    @ipc.handler(chat)
    def talk(channel: BlockingChannel[Done, Job]) -> None: channel.send(Done("x"))

async def bad(ipc: SmartIpc) -> None:
    await ipc.request(do, Done("x"))  # BAD payload
    @ipc.handler(do)  # BAD handler
    def wrong(job: str) -> Done: return Done("x")  # BAD handler
    @ipc.handler(do)  # BAD reply
    def wrong_reply(job: Job) -> int: return 1  # BAD reply
    ipc.open_stream(rows, Done("x"))  # BAD stream request
    @ipc.handler(rows)  # BAD item
    async def wrong_item(job: Job) -> AsyncIterator[int]: yield 1  # BAD item
    @ipc.handler(chat)  # BAD channel
    async def wrong_channel(channel: IpcChannel[Job, Done]) -> None: ...  # BAD channel
    async with ipc.open_channel(chat) as channel:
        await channel.send(Done("x"))  # BAD sent item
"""
BAD = {
    mark: [n for n, line in enumerate(SNIPPETS.splitlines(), 1) if f"# BAD {mark}" in line]
    for mark in ("payload", "handler", "reply", "stream request", "item", "channel", "sent item")
}


def judge(lines: set[int]) -> None:
    for mark, places in BAD.items():
        assert lines & set(places), f"the wrong {mark} was not refused"
    allowed = {place for places in BAD.values() for place in places}
    assert lines <= allowed, lines - allowed


@pytest.fixture(scope="module")
def snippet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("typing") / "snippet.py"
    path.write_text(SNIPPETS)
    return path


def test_mypy(snippet: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--cache-dir", str(snippet.parent / "c"), str(snippet)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=snippet.parent, timeout=110)
    lines = {
        int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line and "snippet.py" in line
    }
    judge(lines)


def test_pyright(snippet: Path) -> None:
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(snippet)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=snippet.parent, timeout=110)
    found = json.loads(done.stdout)["generalDiagnostics"]
    judge({one["range"]["start"]["line"] + 1 for one in found if one["severity"] == "error"})

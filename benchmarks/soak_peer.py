"""The worker of soak.py: talks to all its siblings at once and checks every answer.

What goes wrong is written as one line to the file SOAK_WRONG names; every deposit that a handler has carried out is one
line in SOAK_LEDGER. Lines are written with one O_APPEND write each, so a kill never leaves half of one.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from smartipc import Buffer, CallError, Method, SmartIpc, SmartIpcError, Stream, Topic


class Number(msgspec.Struct, frozen=True):
    """A number and who asks."""

    n: int


class Deposit(msgspec.Struct, frozen=True):
    """Something that must be carried out at most once."""

    ident: str


class Blob(msgspec.Struct):
    """A large piece of data."""

    seed: int
    data: Buffer


class Tick(msgspec.Struct, frozen=True):
    """The `seq`-th message of one life."""

    generation: int
    seq: int


double = Method("peer.double", Number, int, idempotent=True, timeout=20)
deposit = Method("peer.deposit", Deposit, str, timeout=20)
digest = Method("peer.digest", Blob, str, idempotent=True, timeout=20)
count = Stream("peer.count", Number, int)
ITEMS = 2000
BLOB = 256 * 1024


class Book:
    """What this life has seen, and where it writes what is wrong."""

    def __init__(self, ipc: SmartIpc) -> None:
        self.ipc = ipc
        self.done: dict[str, int] = {}
        self._wrong = os.open(os.environ["SOAK_WRONG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._ledger = os.open(os.environ["SOAK_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._answered = os.open(os.environ["SOAK_ANSWERED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def count(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1

    def wrong(self, what: str) -> None:
        os.write(self._wrong, f"{self.ipc.name} generation {self.ipc.generation}: {what}\n".encode())

    def carried_out(self, ident: str) -> None:
        os.write(self._ledger, f"{ident}\n".encode())

    def answered(self, ident: str, outcome: str) -> None:
        os.write(self._answered, f"{ident} {outcome}\n".encode())


async def requests(ipc: SmartIpc, book: Book) -> None:
    """Idempotent calls: each must come back right, however many of those that serve it die."""
    n = 0
    while not ipc.stopping:
        n += 1
        answer = await ipc.request(double, Number(n))
        if answer != 2 * n:
            book.wrong(f"double({n}) gave {answer}")
        book.count("requests")


async def deposits(ipc: SmartIpc, book: Book) -> None:
    """Calls that must never run twice."""
    n = 0
    while not ipc.stopping:
        n += 1
        ident = f"{ipc.name}/{ipc.generation}/{n}"
        try:
            if await ipc.request(deposit, Deposit(ident)) != ident:
                book.wrong(f"deposit {ident} gave another's receipt")
        except CallError as error:
            book.answered(ident, error.processed)
            book.count("deposits lost")
        else:
            book.answered(ident, "yes")
            book.count("deposits")


async def blobs(ipc: SmartIpc, book: Book) -> None:
    """Buffers, alternately written in place and copied."""
    chance = random.Random(os.getpid())
    while not ipc.stopping:
        data = chance.randbytes(BLOB)
        if chance.random() < 0.5:
            buffer = ipc.buffer(BLOB)
            buffer.view[:] = data
        else:
            buffer = Buffer(data)
        if await ipc.request(digest, Blob(1, buffer)) != hashlib.sha256(data).hexdigest():
            book.wrong("a buffer arrived changed")
        book.count("buffers")


async def streams(ipc: SmartIpc, book: Book) -> None:
    """Streams: whole and in order, or broken off by a death."""
    while not ipc.stopping:
        expected = 0
        try:
            async with ipc.open_stream(count, Number(ITEMS)) as items:
                async for item in items:
                    if item != expected:
                        book.wrong(f"stream item {item} in the place of {expected}")
                    expected += 1
        except SmartIpcError:
            book.count("streams broken")
        else:
            if expected != ITEMS:
                book.wrong(f"a stream ended well after {expected} of {ITEMS} items")
            book.count("streams")


async def publisher(ipc: SmartIpc, book: Book) -> None:
    """Publish to everybody."""
    topic = Topic(f"soak.{ipc.slot}", Tick)
    seq = 0
    while not ipc.stopping:
        seq += 1
        await ipc.publish(topic, Tick(ipc.generation, seq))
        book.count("published")
        if seq % 64 == 0:
            await asyncio.sleep(0)


async def subscriber(ipc: SmartIpc, book: Book) -> None:
    """In order and without a hole, for each life of each publisher."""
    last: dict[tuple[str, int], int] = {}
    async with ipc.subscribe("soak.*") as messages:
        async for message in messages:
            tick = msgspec.convert(message.payload, Tick)
            key = (message.sender, tick.generation)
            before = last.get(key)
            if before is not None and tick.seq != before + 1:
                book.wrong(f"{message.sender} generation {tick.generation}: message {tick.seq} after {before}")
            last[key] = tick.seq
            book.count("received")


async def peer(ipc: SmartIpc) -> None:
    """Serve and ask all at once until told to stop."""
    book = Book(ipc)

    @ipc.handler(double)
    def _(request: Number) -> int:
        return request.n * 2

    @ipc.handler(deposit)
    async def _(request: Deposit) -> str:
        book.carried_out(request.ident)
        await asyncio.sleep(0)
        return request.ident

    @ipc.handler(digest)
    def _(request: Blob) -> str:
        return hashlib.sha256(request.data.view).hexdigest()

    @ipc.handler(count)
    async def _(request: Number) -> AsyncIterator[int]:
        for n in range(request.n):
            yield n

    await ipc.ready()
    work: list[Any] = [requests, requests, deposits, blobs, streams, publisher, subscriber]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(ipc, book)) for one in work]
        report = group.create_task(_report(ipc, book))
        await ipc.stopped()
        for task in (*tasks, report):
            task.cancel()


async def _report(ipc: SmartIpc, book: Book) -> None:
    while True:
        await asyncio.sleep(1)
        ipc.set_status(msgspec.json.encode(book.done).decode())

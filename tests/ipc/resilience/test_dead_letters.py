"""Dead letters: the store, and what handles of both flavours put into it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scenes import Scene, play, until
from scenes import handle as scene_handle

from smartipc.ipc.contracts import Method, Topic
from smartipc.ipc.errors import RequestTimeout, WorkerDied
from smartipc.ipc.handle import SmartIpc
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.resilience import dead_letters
from smartipc.ipc.resilience.dead_letters import DeadLetters
from smartipc.ipc.sync.handle import SmartIpc as BlockingIpc
from smartipc.ipc.sync.testing import Stage
from smartipc.ipc.wire import codec


@pytest.fixture
def letters(tmp_path: Path) -> Any:
    store = DeadLetters(str(tmp_path / "state" / "letters.sqlite"))
    yield store
    store.close()


def add(store: DeadLetters, address: str = "w.m", **more: Any) -> None:
    store.add("notify", address, b"\x01", **{"sender": "c:0", "reason": "no", "attempts": 1, **more})


def test_letters_are_kept_in_order_and_removed_by_number(letters: DeadLetters, tmp_path: Path) -> None:
    assert letters.read() == []
    assert letters.remove([1]) == 0
    add(letters, "w.a")
    add(letters, "w.b", reason="x" * 5000, attempts=3)
    letters.add("message", "t", b"\x02", sender="p:0", reason="r", attempts=1, worker="s", pattern="t.>")
    assert [(one.id, one.address, one.attempts) for one in letters.read()] == [
        (1, "w.a", 1),
        (2, "w.b", 3),
        (3, "t", 1),
    ]
    (third,) = letters.read([3, 9])
    assert (third.kind, third.payload, third.worker, third.pattern, third.sender) == (
        "message",
        b"\x02",
        "s",
        "t.>",
        "p:0",
    )
    assert len(letters.read([2])[0].reason) == 2000
    assert letters.remove([1, 3, 9]) == 2
    assert [one.id for one in letters.read()] == [2]
    add(letters)
    assert [one.id for one in letters.read()] == [2, 4]
    path = tmp_path / "state" / "letters.sqlite"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert str(path) in repr(letters)


def test_only_so_many_are_kept(letters: DeadLetters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "KEPT", 3)
    for number in range(5):
        add(letters, f"w.{number}")
    assert [one.address for one in letters.read()] == ["w.2", "w.3", "w.4"]


def test_several_write_and_a_failure_to_write_is_only_logged(
    letters: DeadLetters, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = DeadLetters(letters._path)

    def write(store: DeadLetters) -> None:
        for _ in range(50):
            add(store)

    threads = [threading.Thread(target=write, args=(store,)) for store in (letters, other, letters)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert len(letters.read()) == 150
    (tmp_path / "file").write_text("no folder")
    broken = DeadLetters(str(tmp_path / "file" / "x.sqlite"))
    (tmp_path / "bad.sqlite").write_text("no database at all, and long enough to be looked at" * 100)
    with caplog.at_level(logging.WARNING):
        add(broken)
        add(DeadLetters(str(tmp_path / "bad.sqlite")))
    assert caplog.text.count("dead_letter.lost") == 2


def test_a_forked_child_opens_the_file_anew(letters: DeadLetters) -> None:
    add(letters)
    child = os.fork()
    if child == 0:
        add(letters)
        letters.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    add(letters)
    assert len(letters.read()) == 3


# what handles put in


@pytest.fixture
def live(letters: DeadLetters) -> Callable[[Scene], None]:
    return play


def handle(
    stage: Stage, worker: str, letters: DeadLetters, **more: Any
) -> contextlib.AbstractAsyncContextManager[SmartIpc]:
    return scene_handle(stage, worker, dead_letters=letters._path, **more)


safe = Method("w.safe", int, type(None), idempotent=True)
once = Method("w.once", int, type(None))
ticks = Topic("ticks", int)


def fail(attempts: list[int]) -> Callable[[Any, IpcMessage[Any]], None]:
    def handler(_: Any, message: IpcMessage[Any]) -> None:
        attempts.append(message.attempt)
        raise ValueError("of its own")

    return handler


def summary(letters: DeadLetters) -> list[tuple[str, str, str, int]]:
    return sorted((one.address, one.sender, one.reason, one.attempts) for one in letters.read())


@pytest.mark.parametrize("flavour", ["async", "plain", "blocking"])
def test_a_handler_that_fails_leaves_a_letter(
    live: Callable[[Scene], None], letters: DeadLetters, flavour: str
) -> None:
    attempts: list[int] = []

    def setup(ipc: Any) -> None:
        function = fail(attempts)
        if flavour == "async":

            async def handler(payload: Any, message: IpcMessage[Any]) -> None:
                function(payload, message)

            ipc.handler(safe)(handler)
            ipc.handler(once)(handler)
        else:
            ipc.handler(safe)(function)
            ipc.handler(once)(function)

        def short(_: Any) -> None:
            raise KeyError("short")

        ipc.handler("short")(short)

    async def scene(stage: Stage) -> None:
        async with handle(stage, "c", letters) as c:

            async def say() -> None:
                await c.notify(safe, 1)
                await c.notify(once, 2)
                for number in range(3):  # together, in one frame where they can be
                    await c.notify("w.short", number)
                await c.notify("w.unknown", 3)
                await c.notify("w.once", "no number")
                await until(lambda: len(letters.read()) == 7)

            if flavour == "blocking":

                def target(ipc: BlockingIpc) -> None:
                    setup(ipc)
                    ipc.serve()

                launch = stage.add("w", dead_letters=letters._path)
                with stage.running(launch, target):
                    await say()
            else:
                async with handle(stage, "w", letters) as w:
                    setup(w)
                    await w.ready()
                    await say()

    live(scene)
    found = summary(letters)
    assert [one[:2] for one in found] == [
        ("w.once", "c:0"), ("w.once", "c:0"), ("w.safe", "c:0"),
        ("w.short", "c:0"), ("w.short", "c:0"), ("w.short", "c:0"), ("w.unknown", "c:0"),
    ]  # fmt: skip
    by = {(address, tried): reason for address, _, reason, tried in found}
    assert by["w.safe", 3] == "ValueError: of its own"
    assert by["w.once", 1] == "ValueError: of its own"
    assert "int" in by["w.once", 0]
    assert by["w.short", 1] == "KeyError: 'short'"
    assert "w.unknown" in by["w.unknown", 0]
    assert sorted(attempts) == [1, 1, 2, 3]
    assert sorted(codec.plain(one.payload) for one in letters.read() if one.address == "w.short") == [0, 1, 2]


def test_a_second_attempt_that_succeeds_leaves_none(live: Callable[[Scene], None], letters: DeadLetters) -> None:
    async def scene(stage: Stage) -> None:
        done: list[int] = []

        def flaky(payload: int, message: IpcMessage[int]) -> None:
            if message.attempt == 1:
                raise ValueError("once")
            done.append(payload)

        async with handle(stage, "w", letters) as w, handle(stage, "c", letters) as c:
            w.handler(safe)(flaky)
            await w.ready()
            await c.notify(safe, 5)
            await until(lambda: done == [5])
        assert letters.read() == []

    live(scene)


def test_a_notify_that_found_nobody_is_a_letter_and_an_error(
    live: Callable[[Scene], None], letters: DeadLetters
) -> None:
    async def scene(stage: Stage) -> None:
        stage.add("slow", state="starting")
        stage.add("gone", state="failed")

        def blocking(ipc: BlockingIpc) -> None:
            with pytest.raises(RequestTimeout):
                ipc.notify("slow.m", 3, timeout=0.05)
            with pytest.raises(WorkerDied):
                ipc.notify("gone.m", 4)

        async with handle(stage, "c", letters) as c:
            with pytest.raises(RequestTimeout):
                await c.notify("slow.m", 1, timeout=0.05)
            with pytest.raises(WorkerDied):
                await c.notify("gone.m", 2)

            def run() -> None:
                with stage.running(stage.add("b", dead_letters=letters._path), blocking):
                    pass

            await asyncio.to_thread(run)

    live(scene)
    found = letters.read()
    assert [(one.address, one.sender, codec.plain(one.payload), one.attempts) for one in found] == [
        ("slow.m", "c:0", 1, 0), ("gone.m", "c:0", 2, 0), ("slow.m", "b:0", 3, 0), ("gone.m", "b:0", 4, 0)
    ]  # fmt: skip
    assert found[0].reason.startswith("RequestTimeout: ")
    assert found[1].reason.startswith("WorkerDied: ")


@pytest.mark.parametrize("flavour", ["async", "blocking"])
def test_a_subscriber_that_fails_leaves_a_letter_and_goes_on(
    live: Callable[[Scene], None], letters: DeadLetters, flavour: str
) -> None:
    seen: list[int] = []

    def setup(ipc: Any) -> None:
        @ipc.subscriber(ticks)
        def _(payload: int) -> None:
            seen.append(payload)
            if payload == 1:
                raise ValueError("one")

    async def scene(stage: Stage) -> None:
        async with handle(stage, "p", letters) as p:

            async def say() -> None:
                await until(lambda: stage._subscriptions)
                for value in (0, 1, "two", 3):
                    await p.publish("ticks", value)
                await until(lambda: seen == [0, 1, 3])

            if flavour == "async":
                async with handle(stage, "s", letters) as s:
                    setup(s)
                    await s.ready()
                    await say()
                    first, second = letters.read()
                    assert not await p._publisher.send_again("x", first.pattern, first.address, first.payload)
                    assert await p._publisher.send_again(first.worker, first.pattern, first.address, codec.encode(7))
                    await until(lambda: seen == [0, 1, 3, 7])
                    async with s.subscribe("ticks", queue="q", overflow="latest"):
                        pass
            else:

                def target(ipc: BlockingIpc) -> None:
                    setup(ipc)
                    ipc.serve()

                with stage.running(stage.add("s", dead_letters=letters._path), target):
                    await say()

    live(scene)
    first, second = letters.read()
    assert (first.kind, first.address, first.worker, first.pattern) == ("message", "ticks", "s", "ticks")
    assert (first.sender, first.reason, first.attempts) == ("p:0", "ValueError: one", 1)
    assert (codec.plain(second.payload), second.attempts) == ("two", 0)
    assert second.reason.startswith("InvalidPayload: ")

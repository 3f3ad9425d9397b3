"""The supervisor inside a program: started, waited for, ordered about and left, in the test's own event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from smartipc import ConfigError, LocalProtocolError, NoSuchWorker, OrderFailed, Supervisor
from smartipc.supervisor.host.rundir import AlreadyRunning

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

TARGETS = """
import os
async def pool(ipc, answer=1):
    @ipc.handler("pid")
    def _(_):
        return os.getpid()
    @ipc.handler("answer")
    def _(_):
        return answer
    await ipc.serve()
async def crash(ipc):
    raise ValueError("broken by design")
"""


@pytest.fixture
def pool(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    (folder / "embedded_targets.py").write_text(TARGETS)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))

    def config(**keys) -> dict:
        worker = {"target": "embedded_targets:pool", "instances": 2, "ready": "ipc", **keys}
        return {"python_path": [str(folder)], "workers": {"pool": worker}}

    return config


def run(test) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(limited())


def test_a_whole_life(pool) -> None:
    main = sys.modules["__main__"]
    pids: set[int] = set()

    async def test() -> None:
        async with Supervisor(pool()) as supervisor:
            rows = await supervisor.wait("pool")
            pids.update(row.pid for row in rows)
            assert [row.instance for row in rows] == ["pool:0", "pool:1"]
            assert await supervisor.ipc.request("pool.pid", slot=0) == rows[0].pid
            os.kill(rows[0].pid, signal.SIGKILL)
            await supervisor.wait("pool:0", "backoff", "starting", "running")
            fresh = (await supervisor.wait("pool:0"))[0]
            assert (fresh.generation, fresh.restarts, fresh.last_exit.signal) == (2, 1, "SIGKILL")
            await supervisor.reload("pool")
            await supervisor.scale({"pool": 3})
            await supervisor.stop("pool:2")
            assert [row.state for row in supervisor.instances("all")] == ["ready", "ready", "stopped"]
            await supervisor.start("pool:2")
            await supervisor.restart("pool:2")
            pids.update(row.pid for row in supervisor.status().workers)
            assert await supervisor.shutdown() == 0
            assert await supervisor.ended() == 0
            with pytest.raises(OrderFailed, match="the app has ended, it is stopped"):
                await supervisor.wait("pool")

    run(test)
    assert sys.modules["__main__"] is main
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_events_are_yielded_live_and_end_with_the_app(pool) -> None:
    async def test() -> None:
        async with Supervisor(pool()) as supervisor:
            moves = []

            async def follow() -> None:
                async for event in supervisor.events():
                    moves.append((event["instance"], event["to"] or event["event"]))

            following = asyncio.create_task(follow())
            await supervisor.wait("pool")
            await supervisor.shutdown()
            await following
            assert [to for instance, to in moves if instance == "pool:0"] == [
                "starting",
                "running",
                "ready",
                "stopping",
                "stopped",
            ]
            assert (None, "app.started") in moves

    run(test)


def test_apply_and_its_refusals(pool) -> None:
    async def test() -> None:
        async with Supervisor(pool()) as supervisor:
            await supervisor.wait("pool")
            outcome = await supervisor.apply(pool(kwargs={"answer": 2}, instances=1), dry_run=True)
            assert [(step.kind, step.what) for step in outcome.steps] == [
                ("restart", "kwargs"),
                ("scale", "2 -> 1 instance"),
            ]
            assert await supervisor.ipc.request("pool.answer") == 1
            await supervisor.apply(pool(kwargs={"answer": 2}, instances=1))
            assert await supervisor.ipc.request("pool.answer") == 2
            assert supervisor.status().config_generation == 2
            with pytest.raises(ConfigError, match="app cannot change"):
                await supervisor.apply({**pool(), "app": "other"})
            with pytest.raises(ConfigError, match="unknown key"):
                await supervisor.apply(pool(instnces=1))

    run(test)


def test_failures_are_raised_with_their_reasons(pool) -> None:
    async def test() -> None:
        with pytest.raises(LocalProtocolError, match="async with"):
            Supervisor(pool()).status()
        with pytest.raises(ConfigError):
            Supervisor({"workers": {}})
        config = pool(target="embedded_targets:crash", instances=1, restart="never")
        async with Supervisor(config) as supervisor:
            with pytest.raises(OrderFailed, match="ValueError: broken by design") as caught:
                await supervisor.wait("pool")
            assert list(caught.value.results) == ["pool:0"]
            assert [row.state for row in await supervisor.wait("pool", "failed")] == ["failed"]
            with pytest.raises(OrderFailed, match="broken by design"):
                await supervisor.start("pool")
            with pytest.raises(NoSuchWorker):
                await supervisor.wait("nobody")

    run(test)


def test_one_supervisor_per_app_and_two_apps_side_by_side(pool) -> None:
    async def test() -> None:
        async with Supervisor({**pool(), "app": "one"}) as one, Supervisor(pool()) as two:
            await asyncio.gather(one.wait("pool"), two.wait("pool"))
            with pytest.raises(AlreadyRunning):
                await Supervisor({**pool(), "app": "one"}).__aenter__()

    run(test)


def test_a_start_that_fails_leaves_nothing_open(pool, folder: Path) -> None:
    """The program goes on, and may try again for as long as the address is in use."""
    taken = folder / "taken"

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def test() -> None:
        config = {**pool(), "sockets": {"web": {"address": f"unix://{taken}"}}}
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(taken))
            sock.listen()
            before = open_files()
            for _ in range(2):
                with pytest.raises(OSError, match="Address already in use"):
                    await Supervisor(config).__aenter__()
            assert open_files() == before
        async with Supervisor({**pool(), "sockets": {"web": {"address": "tcp://127.0.0.1:0"}}}) as supervisor:
            await supervisor.wait("pool")

    run(test)


def test_an_error_in_the_block_ends_the_app(pool) -> None:
    pids: list[int] = []

    async def test() -> None:
        async with Supervisor(pool()) as supervisor:
            pids.extend(row.pid for row in await supervisor.wait("pool"))
            raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"):
        run(test)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)

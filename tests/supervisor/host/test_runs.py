"""Short programs: to their end, within a time, and when the supervisor itself is short of something."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Iterator

import pytest
from kit import marked, wait_for

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.host.launch import Launcher, LaunchError
from smartipc.supervisor.host.runs import Runs

pytestmark = [pytest.mark.system, pytest.mark.timeout(30)]


async def sh(runs: Runs, script: str, *, timeout: float = 10.0, mark: str = "") -> tuple[ExitFacts, list[bytes]]:
    said: list[bytes] = []
    env = {"PATH": os.environ["PATH"], "MARK": mark}
    facts = await runs.run(("sh", "-c", script), env, "/", said.extend, timeout=timeout)
    return facts, said


@pytest.fixture
def runs() -> Iterator[Runs]:
    launcher = Launcher()
    yield Runs(launcher, others := set())
    launcher.close()
    assert others == set()


@contextlib.contextmanager
def descriptors(left: int) -> Iterator[None]:
    """Let this process open only so many descriptors more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = max(map(int, os.listdir("/proc/self/fd")))
    fill = []
    while (one := os.dup(0)) <= top:
        fill.append(one)
    os.close(one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (one + left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filled in fill:
            os.close(filled)


def test_its_end_and_its_lines(runs: Runs) -> None:
    assert asyncio.run(sh(runs, "echo one; echo two >&2; exit 3")) == (ExitFacts(code=3), [b"one", b"two"])


def test_one_that_takes_too_long_is_killed_with_all_that_it_started(runs: Runs) -> None:
    mark = f"runs-{os.getpid()}"
    with pytest.raises(TimeoutError):
        asyncio.run(sh(runs, "sleep 50 & sleep 51", timeout=0.2, mark=mark))
    wait_for(lambda: not marked(mark), "it is gone", timeout=5)


@pytest.mark.parametrize("left", range(3))
def test_without_descriptors_it_is_told_that_it_cannot_start(left: int, runs: Runs) -> None:
    """Of whatever kind the failure is: a prober that ended of it would never ask again."""
    mark = f"runs-{os.getpid()}-{left}"

    async def run() -> tuple[ExitFacts, list[bytes]]:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(LaunchError), descriptors(left):
            await sh(runs, "exit 0", mark=mark)
        assert len(os.listdir("/proc/self/fd")) == before
        return await sh(runs, "exit 0")

    assert asyncio.run(run()) == (ExitFacts(code=0), [])
    wait_for(lambda: not marked(mark), "nothing is left", timeout=5)

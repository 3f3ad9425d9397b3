"""The process that waits to become the next program."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator

import psutil
import pytest
from kit import alive, wait_for

from smartipc.supervisor.host.launch import LaunchError, Program
from smartipc.supervisor.host.understudy import Understudy

pytestmark = pytest.mark.system


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def ended(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


def program(write: int, *argv: str, **more: object) -> Program:
    return Program(argv, {"PATH": os.environ["PATH"], "MARK": "m"}, "/", write, write, **more)  # type: ignore[arg-type]


def in_a_loop(test: Callable[[Understudy, tuple[int, int]], Awaitable[None]]) -> Callable[[tuple[int, int]], None]:
    """Run a test inside an event loop, with an understudy that is closed at the end."""

    def run(pipe: tuple[int, int]) -> None:
        async def inside() -> None:
            understudy = Understudy(wanted=True)
            try:
                await test(understudy, pipe)
            finally:
                understudy.close()

        asyncio.run(inside())

    return run


async def prepared(understudy: Understudy, pipe: tuple[int, int]) -> int:
    """Launch once, wait until the next one says that it is ready, and return its pid."""
    assert ended(understudy.launch(program(pipe[1], "true"))) == 0
    while not understudy.pids():
        await asyncio.sleep(0.01)
    assert understudy._waiting is not None
    pid, sock = understudy._waiting
    assert select.select([sock], [], [], 30)[0], "it says that it is ready"
    return pid


@in_a_loop
async def test_the_next_program_is_the_process_that_waited(understudy: Understudy, pipe: tuple[int, int]) -> None:
    waiting = await prepared(understudy, pipe)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        script = 'echo "$MARK $$ $PWD $(ls /proc/self/fd | wc -l)"; test -S /proc/self/fd/3'
        pid = understudy.launch(program(pipe[1], "sh", "-c", script, sockets=(listener.fileno(),)))
    assert pid == waiting
    assert ended(pid) == 0
    said = os.read(pipe[0], 1000).split()
    assert said[:3] == [b"m", str(pid).encode(), b"/"]
    assert int(said[3]) <= 6, "it holds nothing but its own descriptors"
    assert os.getpgid(0) != pid


@in_a_loop
async def test_a_program_that_is_missing_is_told_and_leaves_nothing(
    understudy: Understudy, pipe: tuple[int, int]
) -> None:
    waiting = await prepared(understudy, pipe)
    with pytest.raises(LaunchError, match="cannot run 'no-such-program': No such file"):
        understudy.launch(program(pipe[1], "no-such-program"))
    assert not alive(waiting)


@in_a_loop
async def test_one_that_was_killed_is_replaced_by_the_ordinary_way(
    understudy: Understudy, pipe: tuple[int, int]
) -> None:
    waiting = await prepared(understudy, pipe)
    os.kill(waiting, signal.SIGKILL)
    wait_for(lambda: not alive(waiting), "its death")
    pid = understudy.launch(program(pipe[1], "true"))
    assert pid != waiting
    assert ended(pid) == 0


@in_a_loop
async def test_closing_ends_it(understudy: Understudy, pipe: tuple[int, int]) -> None:
    waiting = await prepared(understudy, pipe)
    understudy.close()
    assert not psutil.pid_exists(waiting)
    assert understudy.pids() == set()


@in_a_loop
async def test_nothing_waits_where_no_command_is_configured(unused: Understudy, pipe: tuple[int, int]) -> None:
    unused.close()
    understudy = Understudy(wanted=False)
    assert ended(understudy.launch(program(pipe[1], "true"))) == 0
    assert understudy._timer is None
    assert understudy.pids() == set()

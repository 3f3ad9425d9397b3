"""Short programs beside the workers: hooks and exec probes. Run to their end within a time, with all that they start.

They are launched as commands are, and waited for by pidfd, so nothing here blocks or needs a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.core.process_spec import NO_LIMITS
from smartipc.supervisor.host import limits
from smartipc.supervisor.host.exits import facts_of
from smartipc.supervisor.host.launch import Launcher, LaunchError, Program, User
from smartipc.supervisor.host.output import Drain


class Runs:
    """Runs programs.

    Args:
        launcher: starts them.
        others: pids of running ones are kept in here, so that nobody else reaps them.
    """

    def __init__(self, launcher: Launcher, others: set[int]) -> None:
        self._launcher = launcher
        self._others = others

    def __repr__(self) -> str:
        return f"<Runs of {len(self._others)} programs>"

    async def run(
        self,
        argv: tuple[str, ...],
        env: Mapping[str, str],
        cwd: str,
        emit: Callable[[list[bytes]], None],
        *,
        timeout: float,
        user: User | None = None,
    ) -> ExitFacts:
        """Run a program to its end. Cancelling it kills the program.

        Args:
            argv: what to run.
            env: its complete environment.
            cwd: its working directory.
            emit: called with its lines of output.
            timeout: seconds after which it is killed.
            user: whom it runs as; None for us.

        Raises:
            LaunchError: it could not be started.
            TimeoutError: it took too long, and was killed.
        """
        with contextlib.ExitStack() as undo:
            try:
                pid, read = self._begin(argv, env, cwd, user)
                self._others.add(pid)
                undo.callback(self._others.discard, pid)
                drain = Drain(read, emit)
                undo.callback(drain.finish)
                undo.callback(_kill_group, pid)
                pidfd = os.pidfd_open(pid)
                undo.callback(os.close, pidfd)
            except OSError as error:
                raise LaunchError(f"cannot start: {error.strerror}") from error
            return await asyncio.wait_for(_ended(pid, pidfd), timeout)

    def _begin(self, argv: tuple[str, ...], env: Mapping[str, str], cwd: str, user: User | None) -> tuple[int, int]:
        """Start a program with a pipe for its output; return its pid and the reading end."""
        read, write = os.pipe()
        try:
            limited = limits.for_child(NO_LIMITS)
            return self._launcher.launch(Program(argv, env, cwd, write, write, limits=limited, user=user)), read
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)


async def _ended(pid: int, pidfd: int) -> ExitFacts:
    """Wait for its end. If that is cancelled the caller kills it, and it is reaped as any orphan is."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(pidfd, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(pidfd)
    return facts_of(os.waitpid(pid, os.WNOHANG)[1])  # noqa: ASYNC222 - it has ended, nothing blocks


def _kill_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)

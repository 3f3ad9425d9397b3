"""Warm processes: function workers that have imported their target and wait, without a name yet, for a crash.

They sit in their first request to the supervisor; whoever takes one over answers it. When they are taken is decided by
the core, which asks for a warm spawn.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from smartipc.supervisor.core.spec import WorkerSpec
from smartipc.supervisor.host import functions
from smartipc.supervisor.host.functions import Begun
from smartipc.supervisor.host.guard import Guard
from smartipc.supervisor.host.streams import Reads


@dataclass(eq=False, slots=True)
class Spare:
    """One warm process and the reading ends of its output."""

    begun: Begun
    reads: Reads


class Spares:
    """The warm processes of all workers.

    Args:
        guard: told of their groups.
        start: starts one.
    """

    def __init__(self, guard: Guard, start: Callable[[WorkerSpec, dict[str, str]], Spare]) -> None:
        self._guard = guard
        self._start = start
        self._loop = asyncio.get_running_loop()
        self._ready: dict[str, list[Spare]] = {}
        self._ending: set[Spare] = set()

    def __repr__(self) -> str:
        return f"<Spares {', '.join(f'{name} {len(some)}' for name, some in self._ready.items())}>"

    def pids(self) -> set[int]:
        """Return their pids."""
        return {one.begun.pid for some in (*self._ready.values(), self._ending) for one in some}

    def fill(self, worker: WorkerSpec, env: dict[str, str]) -> None:
        """Start as many as are missing; give up quietly where none can be started, the next fill tries again."""
        some = self._ready.setdefault(worker.name, [])
        with contextlib.suppress(OSError, EOFError, ValueError):
            while len(some) < worker.spares:
                spare = self._start(worker, env)
                some.append(spare)
                self._guard.add(spare.begun.pid, worker.stop.timeout)
                self._loop.add_reader(spare.begun.pidfd, self._died, worker.name, spare)

    def has(self, name: str) -> bool:
        """Tell whether there is one to take."""
        return bool(self._ready.get(name))

    def take(self, name: str) -> Spare | None:
        """Hand over the one that has waited longest; None if there is none."""
        some = self._ready.get(name)
        if not some:
            return None
        spare = some.pop(0)
        self._loop.remove_reader(spare.begun.pidfd)
        return spare

    def discard(self, name: str) -> None:
        """End those of a worker: their code or configuration may be old."""
        for spare in self._ready.pop(name, ()):
            self._ending.add(spare)
            self._kill(spare)

    def close(self) -> None:
        """End all, and wait for it."""
        for name in list(self._ready):
            self.discard(name)
        for spare in tuple(self._ending):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(spare.begun.pid, 0)  # where it is our child; the fork server reaps its own
            self._died("", spare)

    @staticmethod
    def _kill(spare: Spare) -> None:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(spare.begun.pidfd, signal.SIGKILL)

    def _died(self, name: str, spare: Spare) -> None:
        if spare in self._ready.get(name, ()):
            self._ready[name].remove(spare)
        self._ending.discard(spare)
        self._loop.remove_reader(spare.begun.pidfd)
        self._guard.remove(spare.begun.pid)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(spare.begun.pid, os.WNOHANG)
        functions.forget(spare.begun.process, 0)
        spare.begun.pipe.close()
        for descriptor in (spare.begun.pidfd, *(read for read, _ in spare.reads)):
            os.close(descriptor)

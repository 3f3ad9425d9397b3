"""What earlier runs of an app left behind, when supervisor and guardian were killed in the same instant.

Which runs are over is record.py's business. A process is theirs if its environment says so, and only then; ourselves
and whoever started us are spared, should an earlier run have started this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import time
from collections.abc import Collection
from pathlib import Path

from smartipc.supervisor.host.orphans import command_line, environment

_LOOK = 0.02
"""Seconds between two looks at what is ending."""
_KILLED = 2.0
"""Seconds after which a killed process that is still there is given up."""


class Predecessors:
    """Find and end the processes of runs that are over.

    Args:
        runs: their ids.
    """

    def __init__(self, runs: Collection[str]) -> None:
        self._marks = {f"SMARTIPC_RUN_ID={run}".encode() for run in runs}
        self._spared = _ourselves()

    def __repr__(self) -> str:
        return f"<Predecessors of {len(self._marks)} runs>"

    def find(self) -> dict[int, str]:
        """Return pid and command line of every living process of those runs."""
        found: dict[int, str] = {}
        if not self._marks:
            return found
        with contextlib.suppress(OSError):  # no /proc: nothing can be told
            for name in filter(str.isdigit, os.listdir("/proc")):
                pid = int(name)
                if pid not in self._spared and self._is_theirs(pid):
                    found[pid] = command_line(pid)
        return found

    async def end(self, grace: float) -> bool:
        """Ask them to end, and kill what is left after `grace` seconds; return whether all are gone.

        Cancelling it leaves those that have not ended yet.
        """
        now = time.monotonic()
        kill_at = now + grace
        asked: set[int] = set()
        while found := self.find():
            now = time.monotonic()
            if now > kill_at + _KILLED:
                return False
            for pid in found:
                if now >= kill_at:
                    self._signal(pid, signal.SIGKILL)
                elif pid not in asked:
                    asked.add(pid)
                    self._signal(pid, signal.SIGTERM)
            # What they start meanwhile is found by the next look, which is worth it only when these are gone.
            await _gone(found, kill_at if now < kill_at else now + _KILLED)
        return True

    def _is_theirs(self, pid: int) -> bool:
        try:
            environ = environment(pid)
        except OSError:
            return False
        return not self._marks.isdisjoint(environ.split(b"\0"))

    def _signal(self, pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                if self._is_theirs(pid):  # asked again with the descriptor in hand: the pid may be another's by now
                    signal.pidfd_send_signal(pidfd, number)
                    signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            finally:
                os.close(pidfd)


async def _gone(pids: Collection[int], until: float) -> None:
    with contextlib.ExitStack() as stack:
        poll = select.poll()
        waiting = set()
        for pid in pids:
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(pid)
                stack.callback(os.close, pidfd)
                poll.register(pidfd, select.POLLIN)
                waiting.add(pidfd)
        while waiting and time.monotonic() < until:
            await asyncio.sleep(_LOOK)
            for pidfd, _events in poll.poll(0):
                poll.unregister(pidfd)
                waiting.discard(pidfd)


def _ourselves() -> set[int]:
    """Return this process and its ancestors."""
    found: set[int] = set()
    pid = os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            break
    return found

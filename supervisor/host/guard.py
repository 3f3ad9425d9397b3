"""The supervisor's end of the guardian: start it, keep it informed, start another if it dies, dismiss it at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path

from smartipc.supervisor.host.guardian import start_time

log = logging.getLogger("smartipc.supervisor")
SCRIPT = Path(__file__).with_name("guardian.py")
_SOON = 0.01
"""Seconds within which it is told of groups. Waking it at once would take a core from the program that just begins.

Should we die before that: the program has its parent-death signal or its pipe, and all that descends from it the mark.
"""
_MANY = 64
"""Changes that are told at once; their lines go into one write (PIPE_BUF)."""
_AGAIN = 1.0
"""Seconds between two attempts to have a guardian."""
_LEAVE = 1.0
"""Seconds that a dismissed one may take to go."""


class Guard:
    """Registers process groups with a guardian process.

    Args:
        run_id: marks what descends from this supervisor and may have left its group.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._groups: dict[int, float] = {}
        """Graces by the pids of leaders."""
        self._untold: dict[int, bool] = {}
        """What has changed since it was told: whether a group is there."""
        self._soon: asyncio.TimerHandle | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._loop = asyncio.get_running_loop()
        self._started_at = 0.0
        self._later: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Guard of {len(self._groups)} groups>"

    @property
    def pid(self) -> int | None:
        """The guardian's pid."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the guardian, in a session of its own so that no terminal signal reaches it.

        Raises:
            OSError: there is no room for another process.
        """
        self._started_at = self._loop.time()
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and script
            [sys.executable, "-I", "-S", str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,  # it says nothing: the end of this pipe is its own
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdout is not None
        self._loop.add_reader(self._process.stdout, self._replace)
        self._write(f"run {self._run_id}\n")
        self._untold.clear()
        for pid in self._groups:
            self._write(self._line(pid))
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)

    def add(self, pid: int, grace: float) -> None:
        """Have this group ended, within `grace` seconds, should the supervisor die."""
        self._groups[pid] = grace
        self._change(pid, there=True)

    def remove(self, pid: int) -> None:
        """Forget a group that is gone."""
        self._groups.pop(pid, None)
        self._change(pid, there=False)

    def follow(self, pid: int, to: int) -> None:
        """Take another group for the one of a life, with the same grace; at once: nothing else ends that in peace."""
        grace = self._groups[pid]
        self.remove(pid)
        self.add(to, grace)
        self._tell()

    def _change(self, pid: int, *, there: bool) -> None:
        self._untold[pid] = there
        if len(self._untold) >= _MANY:
            self._tell()
        elif self._soon is None:
            self._soon = self._loop.call_later(_SOON, self._tell)

    def _tell(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._process is None:
            return  # the next one is told of all
        untold, self._untold = self._untold, {}
        if not self._write("".join(self._line(pid) if there else f"del {pid}\n" for pid, there in untold.items())):
            self._replace()

    def _line(self, pid: int) -> str:
        return f"add {pid} {start_time(pid) or 0} {self._groups[pid]}\n"

    def _replace(self) -> None:
        """Have another one in its place: at once, unless this one died young."""
        log.warning("the guardian, process %s, died or does not listen: another one is started", self.pid)
        self._reap()
        if self._loop.time() - self._started_at < _AGAIN:
            self._later = self._loop.call_later(_AGAIN, self._try)
        else:
            self._try()

    def _try(self) -> None:
        self._later = None
        try:
            self.start()
        except OSError as error:
            log.error("no guardian can be started: %s", error)
            self._later = self._loop.call_later(_AGAIN, self._try)

    def _write(self, lines: str) -> bool:
        """Write lines, whole or not at all (PIPE_BUF); False if it is dead, or stopped and its pipe full."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            return self._process.stdin.write(lines.encode()) is not None
        except OSError:
            return False

    def _reap(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        self._loop.remove_reader(process.stdout)
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        process.kill()
        process.wait()

    def dismiss(self) -> None:
        """Let the guardian end without acting; everything it guarded is gone."""
        for handle in (self._later, self._soon):
            if handle is not None:
                handle.cancel()
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            self._loop.remove_reader(process.stdout)
            with contextlib.suppress(OSError):
                process.stdin.write(b"quit\n")
                process.stdin.close()
            process.stdout.close()
            try:
                process.wait(_LEAVE)
            except subprocess.TimeoutExpired:
                process.kill()  # it is stopped, and there is nothing left to guard
                process.wait()

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
        self._groups: dict[int, str] = {}
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
        for line in self._groups.values():
            self._write(line)
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)

    def add(self, pid: int, grace: float) -> None:
        """Have this group ended, within `grace` seconds, should the supervisor die."""
        line = f"add {pid} {start_time(pid) or 0} {grace}\n"
        self._groups[pid] = line
        self._tell(line)

    def remove(self, pid: int) -> None:
        """Forget a group that is gone."""
        self._groups.pop(pid, None)
        self._tell(f"del {pid}\n")

    def _tell(self, line: str) -> None:
        if self._process is not None and not self._write(line):
            self._replace()

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

    def _write(self, line: str) -> bool:
        """Write a line, whole or not at all (PIPE_BUF); False if it is dead, or stopped and its pipe full."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            return self._process.stdin.write(line.encode()) is not None
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
        if self._later is not None:
            self._later.cancel()
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

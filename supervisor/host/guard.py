"""The supervisor's end of the guardian: start it, keep it informed, start another if it dies, dismiss it at the end."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from smartipc.supervisor.host.guardian import start_time

SCRIPT = Path(__file__).with_name("guardian.py")


class Guard:
    """Registers process groups with a guardian process.

    Args:
        run_id: marks what descends from this supervisor and may have left its group.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._groups: dict[int, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Guard of {len(self._groups)} groups>"

    @property
    def pid(self) -> int | None:
        """The guardian's pid."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the guardian, in a session of its own so that no terminal signal reaches it."""
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and script
            [sys.executable, "-I", "-S", str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        self._write(f"run {self._run_id}\n")
        for line in self._groups.values():
            self._write(line)

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
            self._reap()
            self.start()

    def _write(self, line: str) -> bool:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
        except OSError:
            return False
        return True

    def _reap(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()

    def dismiss(self) -> None:
        """Let the guardian end without acting; everything it guarded is gone."""
        if self._process is not None:
            self._write("quit\n")
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.wait()
            self._process = None

"""How a process ended, as the kernel tells it: wait status to ExitFacts, and whether memory ran out."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from smartipc.ipc.control import ExitFacts


def facts_of(status: int) -> ExitFacts:
    """Return the facts of a wait status."""
    if os.WIFSIGNALED(status):
        return ExitFacts(signal=signal_name(os.WTERMSIG(status)), core_dumped=os.WCOREDUMP(status))
    return ExitFacts(code=os.waitstatus_to_exitcode(status))


def facts_of_code(code: int) -> ExitFacts:
    """Return the facts of an exit code as multiprocessing has it: negative for a signal."""
    return ExitFacts(signal=signal_name(-code)) if code < 0 else ExitFacts(code=code)


def signal_name(number: int) -> str:
    """Return "SIGKILL" for 9; real-time signals by number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


class OomWatch:
    """Tells whether the kernel killed something of our control group for lack of memory since the last look."""

    def __init__(self) -> None:
        self._file = _events_file()
        self._last = self._count()

    def __repr__(self) -> str:
        return f"<OomWatch {self._last} kills>"

    def happened(self) -> bool:
        """Return whether the count rose; False where it cannot be read."""
        before, self._last = self._last, self._count()
        return self._last > before

    def _count(self) -> int:
        if self._file is None:
            return 0
        try:
            for line in self._file.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
        except (OSError, ValueError):
            return 0
        return 0


def _events_file() -> Path | None:
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            hierarchy, _, path = line.split(":", 2)
            if hierarchy == "0":
                file = Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.events"
                return file if file.exists() else None
    except (OSError, ValueError):
        return None
    return None

"""What our children leave behind: processes that escaped into sessions of their own and were reparented to us.

We are a subreaper (or process 1 of a container), so every orphan below us becomes our child. Whose it was is told by
the marks in its environment, by its session, or by an output pipe that it still holds. Strangers, which only process 1
gets, are reaped and never signalled while the app runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from smartipc.supervisor.host.life import Life

PROC = Path("/proc")
_READ = 64 * 1024
_LOOKS = 4
_MOMENT = 0.0005
"""Seconds between two looks at an environment that is empty."""
_WORDS = 120
"""Characters of a command line that are named."""


class Orphans:
    """Find, kill and reap what is nobody's any more.

    Args:
        run_id: value of SMARTIPC_RUN_ID in everything that descends from this app.
        known: returns the pids of our children that others look after.
        exclusive: this process does nothing but supervise, so whatever child is not known may be reaped.
    """

    def __init__(self, run_id: str, known: Callable[[], set[int]], *, exclusive: bool) -> None:
        self._run_id = run_id
        self._known = known
        self._exclusive = exclusive
        self._children: int | None = None
        """An open file: looking it up each time would fall between a death and its replacement."""

    def __repr__(self) -> str:
        return f"<Orphans of run {self._run_id}>"

    def close(self) -> None:
        """Let go of the kernel's list."""
        if self._children is not None:
            os.close(self._children)
            self._children = None

    def _adopted(self) -> list[int]:
        """Return at least those of our children that were adopted: the kernel gives them to our first thread."""
        try:
            if self._children is None:
                path = PROC / "self" / "task" / str(os.getpid()) / "children"
                self._children = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            text = piece = os.pread(self._children, _READ, 0)
            while piece:
                piece = os.pread(self._children, _READ, len(text))
                text += piece
        except OSError:  # no such lists here, or no descriptor left
            return children()
        return [int(word) for word in text.split()]

    def unknown(self) -> list[int]:
        """Return our living children that nobody looks after; the dead among them are reaped."""
        found = []
        known = self._known()
        for pid in self._adopted():
            if pid in known:
                continue
            if not self._exclusive and self._marks(pid) is None:
                continue
            try:
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    found.append(pid)
            except ChildProcessError:
                continue
        return found

    def kill_those_of(self, life: Life) -> bool:
        """Kill what a dead life left outside its group; return whether there was anything."""
        mine = [pid for pid in self.unknown() if self._belongs(pid, life)]
        for pid in mine:
            for one in (pid, *descendants(pid)):
                life.swept.setdefault(one, command_line(one))
                with contextlib.suppress(OSError):
                    os.kill(one, signal.SIGKILL)
        return bool(mine)

    def kill_all(self) -> dict[int, str]:
        """Kill every orphan of this app, attributable or not; return pid and command line of each."""
        killed = {}
        for pid in self.unknown():
            marks = self._marks(pid)
            if os.getpid() == 1 and marks is None:
                continue  # a stranger: it ends with the container
            killed[pid] = command_line(pid)
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        return killed

    def _belongs(self, pid: int, life: Life) -> bool:
        marks = self._marks(pid)
        if marks is not None and marks != ("", ""):
            return marks == (life.instance, str(life.generation))
        with contextlib.suppress(OSError):
            if os.getsid(pid) == life.group:
                return True
        return any(_inode(pid, number) in life.pipes for number in (1, 2))

    def _marks(self, pid: int) -> tuple[str, str] | None:
        """Return (instance, generation) from its environment; None if it is not of this run."""
        try:
            pairs = (entry.partition(b"=") for entry in environment(pid).split(b"\0"))
            found = {name: value.decode("utf-8", "replace") for name, _, value in pairs if name.startswith(b"SMARTIPC")}
        except OSError:
            return None
        if found.get(b"SMARTIPC_RUN_ID") != self._run_id:
            return None
        return found.get(b"SMARTIPC_INSTANCE", ""), found.get(b"SMARTIPC_GENERATION", "")

    def owner(self, pid: int, lives: Mapping[tuple[str, int], Life]) -> Life | None:
        """Return the life that a process belongs to: it is its main process, of its session, or marked as its own."""
        try:
            session = os.getsid(pid)
        except OSError:
            session = 0
        for life in lives.values():
            if pid == life.pid or (session and session == life.group):
                return life
        marks = self._marks(pid)
        if marks is None or not marks[1].isdigit():
            return None
        return lives.get((marks[0], int(marks[1])))


def children(pid: int | None = None) -> list[int]:
    """Return the children of a process, ours by default, the dead that are not reaped among them."""
    if pid is None:
        pid = os.getpid()
    if not (PROC / "self" / "task" / str(os.getpid()) / "children").exists():
        return _by_their_parent(pid)
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in (PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found


def _by_their_parent(pid: int) -> list[int]:
    """Look at every process: some kernels (CONFIG_PROC_CHILDREN) and systems keep no lists of children."""
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except (psutil.Error, OSError):
        return []


def descendants(pid: int) -> list[int]:
    """Return the children of a process, theirs, and so on."""
    found, todo = [], [pid]
    while todo:
        below = children(todo.pop())
        found += below
        todo += below
    return found


def environment(pid: int, *, proc: str = "/proc", pause: Callable[[float], None] = time.sleep) -> bytes:
    """Return the environment that a process was started with, entries ended by NUL; b"" for one that has ended.

    For a moment within exec the kernel has none to show, though the process is well alive: it is asked again then.

    Raises:
        OSError: there is no such process, or it is another user's.
    """
    folder = Path(proc, str(pid))
    for _ in range(_LOOKS):
        found = (folder / "environ").read_bytes()
        if found or not (folder / "exe").exists():
            return found
        pause(_MOMENT)
    return b""


def command_line(pid: int) -> str:
    """Return what a process runs, for a person."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        if words:
            return words[:_WORDS]
    return "a process"


def _inode(pid: int, descriptor: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/fd/{descriptor}").st_ino
    except OSError:
        return None

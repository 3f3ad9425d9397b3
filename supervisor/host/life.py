"""One life of an instance as the host knows it. Data only; process.py acts on it."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Any

from smartipc.ipc.control import Ending
from smartipc.supervisor.host.logfile import LogFile
from smartipc.supervisor.host.output import Drain


@dataclass(eq=False, slots=True)
class Life:
    """One living (or just dead) process of an instance."""

    instance: str
    generation: int
    pid: int
    """Its main process: the one whose end is the end of the life."""
    started_at: float
    pidfd: int
    group: int
    """Its process group; the pid it was started with, unless it has told of another main process."""
    pipe: socket.socket | None = None
    """Our end of the child-process pipe, until a link takes it over; None for commands."""
    sentinel: int | None = None
    process: Any = None
    """The object of multiprocessing; None for commands."""
    drains: list[Drain] = field(default_factory=list)
    files: list[LogFile] = field(default_factory=list)
    pipes: frozenset[int] = frozenset()
    """Inodes of its output pipes: what holds one came from it."""
    ending: Ending | None = None
    """What it said of its end."""
    complained: bool = False
    """Whether anything came on its stderr."""
    lines_after: int = 0
    """Number of the last line of output before it began."""
    stacks: tuple[str, ...] = ()
    """Of all its threads, if it wrote them when it was aborted."""
    killed: bool = False
    """Whether we sent SIGKILL."""
    swept: dict[int, str] = field(default_factory=dict)
    """What it left behind outside its group and was killed: pid and command line."""

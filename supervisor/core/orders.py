"""What the core wants done. Frozen, performed in sequence by runner.py and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from smartipc.ipc.control import ExitFacts, State


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process for this life; answer with Spawned or SpawnFailed. `warm`: a spare may take it over."""

    instance: str
    generation: int
    warm: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """Tell the life to end: StopOrder over the pipe, stop signal and SIGCONT to its group; Kill follows after grace."""

    instance: str
    generation: int
    grace: float
    cause: str


@dataclass(frozen=True, slots=True)
class Abort:
    """The life hangs: SIGABRT (+SIGCONT) so that faulthandler writes its stacks. Kill follows."""

    instance: str
    generation: int


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL the whole process group of the life, now."""

    instance: str
    generation: int


class Announce(msgspec.Struct, frozen=True):
    """A transition happened: make it an event and update the directory that workers see.

    `event` is "instance.state", "instance.hang" (from_state == to_state), or with instance "" one of "app.started",
    "app.stopping", "worker.scaled" and "config.applied"; the runner adds "instance.swept", "instance.stacks" and
    "app.swept". `details` are further members of the event.
    """

    event: str
    instance: str
    generation: int
    pid: int | None
    from_state: State | None
    to_state: State | None
    cause: str
    exit: ExitFacts | None = None
    attempt: int = 0
    next_restart_in: float | None = None
    details: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Forget:
    """The instance does not exist any more: take it out of the directory."""

    instance: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An order of a person is complete: "" for done, else why it failed, per instance."""

    order: int
    results: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class EndApp:
    """Everything is down: leave with this exit code."""

    code: int


Order: TypeAlias = Spawn | Stop | Abort | Kill | Announce | Forget | Answer | EndApp

"""What the core remembers of one slot. Data and its frozen view; decisions are in core.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from smartipc.ipc.control import ExitFacts, State
from smartipc.supervisor.core.budget import Budget
from smartipc.supervisor.core.spec import WorkerSpec
from smartipc.supervisor.core.states import LIVING


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One slot as status and tests see it. Times are monotonic seconds."""

    instance: str
    worker: str
    slot: int
    generation: int
    state: State
    pid: int | None
    since: float
    restarts: int
    last_exit: ExitFacts | None
    last_exit_generation: int
    next_restart_at: float | None
    waiting_for: tuple[str, ...]
    attempt: int
    last_beat_at: float | None


@dataclass(slots=True)
class Slot:
    """The core's memory of one slot over all its lives."""

    spec: WorkerSpec
    number: int
    instance: str
    budget: Budget
    state: State = "stopped"
    generation: int = 0
    pid: int | None = None
    since: float = 0.0
    restarts: int = 0
    attempt: int = 0
    """Failures in a row; the n of the backoff."""
    last_exit: ExitFacts | None = None
    last_exit_generation: int = 0
    waiting_for: tuple[str, ...] = ()
    then: Literal["stop", "restart"] = "stop"
    """What follows a planned end."""
    failing: str = ""
    """Why this life is being killed though nobody ordered it: a start timeout or a hang."""
    steady_since: float | None = None
    """Since when it is ready (or running, if it never says ready)."""
    watched: bool = False
    last_beat_at: float | None = None
    next_restart_at: float | None = None
    start_by: float | None = None
    kill_at: float | None = None
    orders: set[int] = field(default_factory=set)
    """Orders of persons that wait for this slot."""

    def view(self) -> InstanceView:
        """Return the frozen view."""
        return InstanceView(
            self.instance,
            self.spec.name,
            self.number,
            self.generation,
            self.state,
            self.pid if self.state in LIVING else None,
            self.since,
            self.restarts,
            self.last_exit,
            self.last_exit_generation,
            self.next_restart_at,
            self.waiting_for,
            self.attempt,
            self.last_beat_at,
        )

    def timers(self) -> list[float]:
        """Return every moment at which something is due."""
        due = [at for at in (self.next_restart_at, self.start_by, self.kill_at) if at is not None]
        hang = self.hang_at()
        if hang is not None:
            due.append(hang)
        return due

    def hang_at(self) -> float | None:
        """Return when its silence counts as a hang; None while nobody watches."""
        if self.state != "ready" or not self.watched or self.last_beat_at is None:
            return None
        return self.last_beat_at + self.spec.heartbeat.timeout

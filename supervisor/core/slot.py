"""What the core remembers of one slot. Data and its frozen view; decisions are in core.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from smartipc.ipc.control import ExitFacts, State
from smartipc.supervisor.core.budget import Budget
from smartipc.supervisor.core.health import Health
from smartipc.supervisor.core.spec import WorkerSpec

Then = Literal["stop", "restart", "group"]
"""What follows a planned end: nothing, another life, or another life together with its group."""


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
    """Automatic ones only; nothing sets it back."""
    last_exit: ExitFacts | None
    last_exit_generation: int
    next_restart_at: float | None
    waiting_for: tuple[str, ...]
    """Names of the workers whose condition is not met yet."""
    attempt: int
    """Failures in a row; the n of the backoff."""
    last_beat_at: float | None


@dataclass(slots=True)
class Slot:
    """The core's memory of one slot over all its lives."""

    # over all lives
    spec: WorkerSpec
    number: int
    instance: str
    budget: Budget
    state: State = "stopped"
    generation: int = 0
    since: float = 0.0
    restarts: int = 0
    attempt: int = 0
    last_exit: ExitFacts | None = None
    last_exit_generation: int = 0

    # between two lives
    waiting_for: tuple[str, ...] = ()
    next_restart_at: float | None = None
    automatic: bool = False
    """The coming spawn is nobody's order and counts against the budget."""
    group: str = ""
    """The group whose budget that spawn counts against, too."""
    awaits: str = ""
    """The instance whose failure made its group stop this one: they restart together."""
    retired: bool = False
    """It was stopped because the significant members of its group have ended."""

    # of the current life
    pid: int | None = None
    start_by: float | None = None
    kill_at: float | None = None
    killed: bool = False
    """A Kill was ordered; it is repeated until the end is reported."""
    failing: str = ""
    """Why this life is being killed though nobody ordered it: a start timeout or a hang."""
    going_down: str = ""
    """Why it is to be told to stop as soon as its dependents are down."""
    then: Then = "stop"
    """What follows a planned end."""
    steady_since: float | None = None
    """Since when it is ready (or running, if it need not say ready)."""
    watched: bool = False
    watch_from: float = 0.0
    doubted: bool = False
    """Its silence was noticed too late to be believed; the next time it is."""
    last_beat_at: float | None = None
    health: Health = field(default_factory=Health)

    def begin_life(self, now: float) -> None:
        """Forget the last life."""
        self.generation += 1
        self.pid = self.kill_at = self.steady_since = self.last_beat_at = None
        self.start_by = now + self.spec.start_timeout
        self.failing = self.going_down = ""
        self.killed = self.watched = self.doubted = self.automatic = self.retired = False
        self.group = self.awaits = ""
        self.then = "stop"
        liveness = self.spec.liveness
        self.health = Health(liveness.failures, liveness.successes) if liveness is not None else Health()

    def view(self) -> InstanceView:
        """Return the frozen view."""
        return InstanceView(
            instance=self.instance,
            worker=self.spec.name,
            slot=self.number,
            generation=self.generation,
            state=self.state,
            pid=self.pid,
            since=self.since,
            restarts=self.restarts,
            last_exit=self.last_exit,
            last_exit_generation=self.last_exit_generation,
            next_restart_at=self.next_restart_at,
            waiting_for=self.waiting_for,
            attempt=self.attempt,
            last_beat_at=self.last_beat_at,
        )

    def timers(self) -> list[float]:
        """Return every moment at which something is due."""
        due = (self.next_restart_at, self.start_by, self.kill_at, self.hang_at())
        return [at for at in due if at is not None]

    def hang_at(self) -> float | None:
        """Return when its silence counts as a hang; None while nobody watches."""
        if self.state not in ("ready", "degraded") or self.failing or not self.watched:
            return None
        heard = self.watch_from if self.last_beat_at is None else max(self.watch_from, self.last_beat_at)
        return heard + self.spec.heartbeat.timeout

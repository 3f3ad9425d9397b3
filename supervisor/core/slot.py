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
Retired = Literal["", "exited", "failed"]


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
    latest: int = 0
    """The last generation that was handed out; that of a replacement which failed is not used again."""
    since: float = 0.0
    restarts: int = 0
    attempt: int = 0
    last_exit: ExitFacts | None = None
    last_exit_generation: int = 0
    removing: bool = False
    """It is not wanted any more, and vanishes once it is down."""
    successor: Slot | None = None
    """The life that is to take its place, while it starts side by side with this one."""
    refused: str = ""
    """Why the last successor did not come to be."""

    # between two lives
    waiting_for: tuple[str, ...] = ()
    next_restart_at: float | None = None
    automatic: bool = False
    """The coming spawn is nobody's order and counts against the budget."""
    group: str = ""
    """The group whose budget that spawn counts against, too."""
    awaits: str = ""
    """The instance whose failure made its group stop this one: they restart together."""
    queued: bool = False
    """A job's run was due while the last one was not over, and is to follow it."""
    retired: Retired = ""
    """It was stopped because of how others in its group ended; an app that leaves when idle takes it for this."""

    # of the current life
    pid: int | None = None
    start_by: float | None = None
    quiet_at: float | None = None
    """When persons need not wait any longer for one that runs and may never say that it is ready."""
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
    share: float = 1.0
    """By how much the limits of its recycling differ for this life."""
    wants_recycling: str = ""
    """Why it must be recycled, until that has begun."""
    recycling: bool = False
    not_before: float = 0.0
    """The earliest moment of its next recycling, after one whose replacement failed."""

    def begin_life(self, now: float) -> None:
        """Forget the last life."""
        self.latest += 1
        self.generation = self.latest
        self.pid = self.kill_at = self.steady_since = self.last_beat_at = self.quiet_at = None
        self.start_by = now + self.spec.start_timeout
        self.failing = self.going_down = ""
        self.killed = self.watched = self.doubted = self.automatic = False
        self.group = self.awaits = self.wants_recycling = self.retired = ""
        self.recycling = False
        self.not_before = 0.0
        self.then = "stop"
        liveness = self.spec.liveness
        self.health = Health(liveness.failures, liveness.successes) if liveness is not None else Health()

    def follower(self) -> Slot:
        """Return a new life of the same slot, side by side with this one."""
        successor = Slot(self.spec, self.number, self.instance, self.budget, latest=self.latest)
        self.latest += 1
        self.successor, self.refused = successor, ""
        return successor

    def hand_over(self) -> Slot:
        """Give what belongs to the slot, rather than to this life of it, to the successor, and return that."""
        successor = self.successor
        assert successor is not None
        self.successor = None
        successor.latest = self.latest
        successor.restarts, successor.attempt = self.restarts, 0
        successor.last_exit, successor.last_exit_generation = self.last_exit, self.last_exit_generation
        successor.removing = self.removing
        return successor

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
        quiet_at = self.quiet_at if self.state == "running" else None
        due = (self.next_restart_at, self.start_by, quiet_at, self.kill_at, self.hang_at(), self.recycle_at())
        return [at for at in due if at is not None]

    def recycle_at(self) -> float | None:
        """Return when it is too old; None while nothing depends on that."""
        recycle = self.spec.recycle
        if recycle is None or recycle.age is None or self.recycling or self.steady_since is None:
            return None
        if self.state not in ("running", "ready") or self.going_down or self.removing:
            return None
        return max(self.not_before, self.steady_since + recycle.age * self.share)

    def hang_at(self) -> float | None:
        """Return when its silence counts as a hang; None while nobody watches."""
        if self.state not in ("ready", "degraded") or self.failing or not self.watched:
            return None
        heard = self.watch_from if self.last_beat_at is None else max(self.watch_from, self.last_beat_at)
        return heard + self.spec.heartbeat.timeout

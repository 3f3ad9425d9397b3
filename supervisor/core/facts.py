"""What the core is told. Frozen, one class per fact; identity is (instance, generation), never a pid alone.

Facts of a generation that is no longer the current one are ignored by the core, so hosts may report late.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.core.spec import AppSpec


@dataclass(frozen=True, slots=True)
class Spawned:
    """The process exists."""

    instance: str
    generation: int
    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """No process came to be; counts as a failed try."""

    instance: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Started:
    """Its code runs (targets: loaded and listening; commands: exec succeeded). `watched`: beats will come."""

    instance: str
    generation: int
    watched: bool = False


@dataclass(frozen=True, slots=True)
class BecameReady:
    """It said (or was seen to be) ready."""

    instance: str
    generation: int


@dataclass(frozen=True, slots=True)
class Beat:
    """Its heartbeat arrived."""

    instance: str
    generation: int


@dataclass(frozen=True, slots=True)
class Probed:
    """Its liveness was checked. `failure` says what was wrong, "" for nothing."""

    instance: str
    generation: int
    failure: str


@dataclass(frozen=True, slots=True)
class Unwell:
    """It says itself that it hangs (WATCHDOG=trigger)."""

    instance: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Extended:
    """It asks for more time to start or stop (EXTEND_TIMEOUT_USEC): so many seconds from now."""

    instance: str
    generation: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    """How many requests it has served, and how many bytes it uses, as far as somebody wants to know."""

    instance: str
    generation: int
    requests: int | None = None
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Exited:
    """The process is gone and reaped, its group swept."""

    instance: str
    generation: int
    exit: ExitFacts
    at: float | None = None
    """When it ended, monotonic, if that is known; the delay of a restart begins then, else with the fact itself."""


@dataclass(frozen=True, slots=True)
class Due:
    """The time of a job's run has come."""

    instance: str


@dataclass(frozen=True, slots=True)
class StartOrdered:
    """A person wants these instances started. `order` is echoed in orders.Answer, 0 for none."""

    instances: tuple[str, ...]
    order: int = 0


@dataclass(frozen=True, slots=True)
class StopOrdered:
    """A person wants these instances stopped, and kept so."""

    instances: tuple[str, ...]
    order: int = 0


@dataclass(frozen=True, slots=True)
class RestartOrdered:
    """A person wants a fresh life of these instances; planned, never counted."""

    instances: tuple[str, ...]
    order: int = 0


@dataclass(frozen=True, slots=True)
class ResetOrdered:
    """Clear the restart budget and backoff of these instances."""

    instances: tuple[str, ...]
    order: int = 0


@dataclass(frozen=True, slots=True)
class ReloadOrdered:
    """A person wants these instances replaced one after the other, each new life ready before the old one ends."""

    instances: tuple[str, ...]
    order: int = 0


@dataclass(frozen=True, slots=True)
class ScaleOrdered:
    """A person wants so many instances of these workers."""

    counts: tuple[tuple[str, int], ...]
    order: int = 0


@dataclass(frozen=True, slots=True)
class ApplyOrdered:
    """The configuration has changed. Whoever orders this has checked that plan.diff refuses nothing."""

    spec: AppSpec
    order: int = 0


@dataclass(frozen=True, slots=True)
class AppStart:
    """Begin: start every worker in dependency order."""


@dataclass(frozen=True, slots=True)
class ShutdownOrdered:
    """End the app in reverse start order. `fast` skips the grace (a second signal)."""

    cause: str
    code: int = 0
    fast: bool = False
    order: int = 0


Fact: TypeAlias = (
    Spawned | SpawnFailed | Started | BecameReady | Beat | Probed | Unwell | Extended | Measured | Exited | Due
    | StartOrdered | StopOrdered | RestartOrdered | ResetOrdered | ReloadOrdered | ScaleOrdered | ApplyOrdered
    | AppStart | ShutdownOrdered
)  # fmt: skip

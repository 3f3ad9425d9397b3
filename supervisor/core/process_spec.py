"""The frozen description of what surrounds a process: how it shows that it is well, what it is given, when it runs.

Part of the spec, as spec.py is: types, defaults, nothing that reads files or touches a process. Durations are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """A question asked every `interval` seconds; exactly one of the first four is set."""

    http: str | None = None
    """URL; any status from 200 to 399 is success."""
    tcp: tuple[str, int] | None = None
    """Host and port; being accepted is success."""
    exec: tuple[str, ...] | None = None
    """Command; exit code 0 is success."""
    request: str | None = None
    """Method "worker.method", asked of that very instance; any reply is success."""
    interval: float = 5.0
    timeout: float = 1.0
    failures: int = 3
    """In a row after which it is restarted."""
    successes: int = 1
    """In a row after which it is well."""

    @property
    def words(self) -> str:
        """What is asked, for messages: "http http://127.0.0.1/health"."""
        if self.http is not None:
            return f"http {self.http}"
        if self.tcp is not None:
            return f"tcp {self.tcp[0]}:{self.tcp[1]}"
        if self.exec is not None:
            return f"exec {' '.join(self.exec)}"
        return f"request {self.request}"


@dataclass(frozen=True, slots=True)
class LimitsSpec:
    """What the kernel allows a process; None leaves what it inherits."""

    open_files: int | None = None
    nice: int | None = None
    affinity: tuple[int, ...] | Literal["auto"] | None = None
    """Cores it may run on; "auto" gives each slot one of the usable cores in turn."""
    oom_score_adj: int | None = None

    @property
    def only_open_files(self) -> bool:
        """Whether nothing else is set."""
        return self.nice is None and self.affinity is None and self.oom_score_adj is None


NO_LIMITS = LimitsSpec()


@dataclass(frozen=True, slots=True)
class HooksSpec:
    """Commands around each life, in sequence; a failing `before_start` is a failed start."""

    before_start: tuple[tuple[str, ...], ...] = ()
    after_stop: tuple[tuple[str, ...], ...] = ()


NO_HOOKS = HooksSpec()


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """When a job runs: exactly one of cron and every is set."""

    cron: str | None = None
    every: float | None = None
    timezone: str | None = None
    """IANA name for cron; None is the host's local time."""
    overlap: Literal["skip", "queue"] = "skip"
    """What becomes of a run that is due while the last one is not over."""
    run_on_start: bool = False


@dataclass(frozen=True, slots=True)
class SocketSpec:
    """One listening socket that the supervisor holds: "tcp://host:port", "unix:///path" or "unix:@name"."""

    name: str
    address: str
    backlog: int = 512

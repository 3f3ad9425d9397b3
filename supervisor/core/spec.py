"""The frozen description of an app: what the configuration pipeline produces and the core is fed.

Only types, defaults and the arithmetic of names. Nothing here reads files or knows YAML. Durations are seconds,
sizes are bytes, paths are absolute.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from smartipc.supervisor.core.process_spec import (
    NO_HOOKS,
    NO_LIMITS,
    HooksSpec,
    LimitsSpec,
    ProbeSpec,
    ScheduleSpec,
    SocketSpec,
)

Condition = Literal["started", "ready", "completed", "succeeded"]
Policy = Literal["always", "on-failure", "never"]
Strategy = Literal["one-for-one", "one-for-all", "rest-for-one"]
OnFailed = Literal["ignore", "stop-group", "shutdown"]
AutoShutdown = Literal["never", "any-significant", "all-significant"]


@dataclass(frozen=True, slots=True)
class RestartSpec:
    """When and how soon a life is followed by another."""

    policy: Policy = "on-failure"
    delay: float = 0.2
    factor: float = 2.0
    max_delay: float = 30.0
    jitter: float = 0.2
    reset_after: float = 60.0
    max_restarts: int = 5
    window: float = 60.0
    success_codes: tuple[int, ...] = (0,)
    prevent_codes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class HeartbeatSpec:
    """Expected beats. `source` None: by the target's flavour (async: loop, blocking: process); commands: off."""

    interval: float = 1.0
    timeout: float = 10.0
    source: Literal["loop", "process", "off"] | None = None


@dataclass(frozen=True, slots=True)
class StopSpec:
    """How to end a life: the signal (name with SIG prefix) and the grace before SIGKILL."""

    signal: str = "SIGTERM"
    timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class RecycleSpec:
    """When a life is replaced though it is well; None: never. Limits differ by up to `jitter` from life to life."""

    age: float | None = None
    requests: int | None = None
    memory: int | None = None
    jitter: float = 0.1


@dataclass(frozen=True, slots=True)
class LogsSpec:
    """Where output goes instead of the supervisor's own streams. "inherit": raw onto them, unprefixed.

    A path may hold "{instance}".
    """

    stdout: str | None = None
    stderr: str | None = None
    max_bytes: int = 10 * 1024 * 1024
    backups: int = 5


@dataclass(frozen=True, slots=True)
class ConcurrencySpec:
    """Handlers running at once, and calls waiting for a place, per instance."""

    running: int = 64
    waiting: int = 1024


@dataclass(frozen=True, slots=True)
class AllowSpec:
    """Patterns of what a worker may say and hear; a kind that is missing permits nothing."""

    request: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BreakerSpec:
    """When calls to an instance are held back: a share of at least `of` failed within a minute; `open` is seconds."""

    failures: float = 0.5
    of: int = 20
    open: float = 10.0


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One named entry of `workers:`. Exactly one of target and command is set."""

    name: str
    target: str | None = None
    command: tuple[str, ...] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    instances: int = 1
    start_method: Literal["forkserver", "spawn", "fork"] = "forkserver"
    preload: tuple[str, ...] = ()
    depends_on: tuple[tuple[str, Condition], ...] = ()
    ready: Literal["ipc", "started", "notify", "log", "probe"] = "ipc"
    ready_log: str | None = None
    """For "log": the regular expression."""
    ready_probe: ProbeSpec | None = None
    """For "probe"."""
    says_ready: bool = False
    """`ready` is written out and not "started": the start timeout runs until it is ready. By default only until its
    code runs, because many a target never says that it is ready."""
    start_timeout: float = 30.0
    restart: RestartSpec = RestartSpec()
    on_failed: OnFailed = "ignore"
    significant: bool = False
    """Its own end may end its group: see GroupSpec.auto_shutdown."""
    heartbeat: HeartbeatSpec = HeartbeatSpec()
    stop: StopSpec = StopSpec()
    recycle: RecycleSpec | None = None
    spares: int = 0
    """Warm processes kept ready; then the first restart of a failed instance has no delay."""
    concurrency: ConcurrencySpec = ConcurrencySpec()
    allow: AllowSpec | None = None
    """None: everything."""
    breaker: BreakerSpec | None = BreakerSpec()
    """None: off."""
    own_breaker: bool = False
    """Whether `breaker` is written for this worker: then it holds for calls to it, whoever makes them."""
    rate_limit: float | None = None
    """Calls a second that an instance takes."""
    env: dict[str, str] = field(default_factory=dict)
    """Already merged: top env_file < top env < worker env_file < worker env. The inherited one is added by the host."""
    cwd: str = "."
    logs: LogsSpec = LogsSpec()
    limits: LimitsSpec = NO_LIMITS
    user: str | None = None
    """"name" or "name:group"; commands only."""
    umask: int | None = None
    liveness: ProbeSpec | None = None
    hooks: HooksSpec = NO_HOOKS
    schedule: ScheduleSpec | None = None
    """It is a job: it runs at its times, and `scheduled` in between."""
    watch: tuple[str, ...] = ()
    """Absolute files and directories whose change restarts it."""
    sockets: tuple[str, ...] = ()
    """Names of the listening sockets handed over, in the order of their descriptors."""

    @property
    def names(self) -> tuple[str, ...]:
        """Instance names by slot: ("hasher:0", "hasher:1")."""
        return tuple(f"{self.name}:{slot}" for slot in range(self.instances))


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """One entry of `groups:`. `members`: workers and other groups, in start order."""

    name: str
    members: tuple[str, ...]
    strategy: Strategy = "one-for-one"
    max_restarts: int = 5
    window: float = 60.0
    on_failed: OnFailed = "ignore"
    auto_shutdown: AutoShutdown = "never"


@dataclass(frozen=True, slots=True)
class LogSpec:
    """The supervisor's own log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"
    file: str | None = None


@dataclass(frozen=True, slots=True)
class SupervisorSpec:
    """Key `supervisor:`. Directories None: the defaults, resolved by host.rundir."""

    runtime_dir: str | None = None
    state_dir: str | None = None
    shutdown_timeout: float = 30.0
    log: LogSpec = LogSpec()
    on_idle: Literal["wait", "exit"] = "wait"
    http: tuple[str, int] | None = None
    """Where the dashboard, /metrics and /healthz are served."""
    trust: Literal["app", "user"] = "app"


@dataclass(frozen=True, slots=True)
class AppSpec:
    """A whole app. `workers` keeps the order of the file, which is the start order where depends_on is silent."""

    app: str
    workers: tuple[WorkerSpec, ...]
    supervisor: SupervisorSpec = SupervisorSpec()
    python_path: tuple[str, ...] = ()
    config_path: str = ""
    groups: tuple[GroupSpec, ...] = ()
    sockets: tuple[SocketSpec, ...] = ()

    def worker(self, name: str) -> WorkerSpec:
        """Return the worker of that name.

        Raises:
            KeyError: there is none.
        """
        for worker in self.workers:
            if worker.name == name:
                return worker
        raise KeyError(name)

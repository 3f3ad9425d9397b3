"""The control contract: what workers and commands say to the supervisor, and it to them.

Shared by `supervisor/control.py` (serves it), `workers/` (speak it over the child-process pipe) and the `smartipc`
command (speaks it over `<runtime_dir>/control.sock`). Only types and contracts: no I/O, no behaviour. Everything
travels as ordinary SIPC/1 requests and notifies under the reserved worker name `$sys`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from smartipc.ipc.contracts import Method

SUPERVISOR = "$supervisor"
"""Instance name of the supervisor as a peer (message.sender of what the command line sends)."""

State = Literal[
    "stopped", "waiting", "starting", "running", "ready", "degraded",
    "backoff", "stopping", "exited", "failed", "scheduled",
]  # fmt: skip
"""States of an instance as users see them."""

Overflow = Literal["block", "drop_oldest", "drop_newest", "latest", "close"]
"""What a subscription does when its reader is slow."""

COMING: frozenset[State] = frozenset(
    {"waiting", "starting", "running", "ready", "degraded", "backoff", "stopping", "scheduled"}
)
"""States from which an instance may become ready by itself: requests to it wait. In the others they fail at once."""


class ExitFacts(msgspec.Struct, frozen=True):
    """How a life ended. `signal` is a name such as "SIGKILL"; exactly one of code and signal is set, or neither."""

    code: int | None = None
    signal: str | None = None
    core_dumped: bool = False
    oom: bool = False
    reason: str = ""
    uptime: float = 0.0
    stderr_tail: tuple[str, ...] = ()


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One life in the directory, in general the only one of its slot. `address` is where it listens, "" if nowhere."""

    instance: str
    worker: str
    slot: int
    generation: int
    pid: int
    state: State
    address: str = ""
    last_exit: ExitFacts | None = None
    """How generation `last_exit_generation` ended."""
    last_exit_generation: int = 0
    current: bool = True
    """Whether it is the one that the slot's requests go to. A replacement that starts and a replaced life that drains
    are beside it."""
    allow: Allow | None = None
    """What its worker may say and hear; None for everything."""

    @property
    def ready(self) -> bool:
        """Whether requests may be routed to it."""
        return self.state == "ready"


FLIGHT = 64
"""Messages that may be under way to a subscription that drops, however few it keeps."""


def flight(window: int, overflow: Overflow) -> int:
    """Return how many messages of one publisher may be under way to a subscription.

    One that drops acknowledges what has arrived, not what was consumed: what lies in the socket between is no place
    to keep messages, only a way to have them arrive in numbers.
    """
    return window if overflow == "block" else max(window, FLIGHT)


class Subscription(msgspec.Struct, frozen=True, array_like=True):
    """One subscription of one life. `number` is chosen by the subscriber, unique within its life."""

    instance: str
    generation: int
    number: int
    pattern: str
    window: int
    """How many messages a publisher may have under way to it (credit): unconsumed ones for "block", see `overflow`."""
    queue: str = ""
    """Name of the queue it is a member of, "" for none: each message goes to one member."""
    overflow: Overflow = "block"
    """What happens when the reader is slow. With all but "block" the publisher never waits."""

    @property
    def flight(self) -> int:
        """How many messages of one publisher may be under way."""
        return flight(self.window, self.overflow)


class Allow(msgspec.Struct, frozen=True, array_like=True):
    """The written `allow` of one worker: patterns by kind. A kind that is missing permits nothing.

    `request` covers calls, one-way messages, broadcasts, streams and channels, by "worker.method"; `publish` and
    `subscribe` are about topics.
    """

    request: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()


class BreakerPlan(msgspec.Struct, frozen=True):
    """When a circuit breaker opens and for how long: a share of at least `of` calls failed; `open` is seconds."""

    failures: float = 0.5
    of: int = 20
    open: float = 10.0


class Directory(msgspec.Struct, frozen=True):
    """A change of the directory, or with `full` all of it. Revisions rise by one per message sent to a worker."""

    revision: int
    entries: tuple[Entry, ...] = ()
    subscriptions: tuple[Subscription, ...] = ()
    """Added (or all, with full). Those of a life vanish with it: drop them when its entry's generation is gone."""
    unsubscribed: tuple[tuple[str, int, int], ...] = ()
    """(instance, generation, number) removed."""
    removed: tuple[str, ...] = ()
    """Instances that do not exist any more."""
    full: bool = False


class HeartbeatPlan(msgspec.Struct, frozen=True):
    """What the supervisor expects. `source` "off" means no beats."""

    interval: float = 1.0
    source: Literal["loop", "process", "off"] | None = None
    """None: the default of the target's flavour (async: loop, blocking: process)."""


class Launch(msgspec.Struct, frozen=True):
    """Everything a fresh process must know to become an instance. Answer to `launch`."""

    app: str
    worker: str
    slot: int
    generation: int
    target: str
    run_id: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    env: dict[str, str] = {}
    """The complete environment of the worker, SMARTIPC_* included; replaces what the process inherited."""
    umask: int | None = None
    cwd: str = "."
    python_path: list[str] = []
    address: str = ""
    """Where to listen: a unix:// address inside the runtime directory."""
    grace: float = 10.0
    """Seconds between being told to stop (or losing the supervisor) and SIGKILL."""
    heartbeat: HeartbeatPlan = HeartbeatPlan()
    stop_signal: str = "SIGTERM"
    """The signal that comes with a stop order; the worker treats it, SIGTERM and SIGINT as such."""
    log_level: str = "info"
    counts_requests: bool = False
    """Whether beats are to say how many requests were served."""
    concurrency_running: int = 64
    concurrency_waiting: int = 1024
    trust: Literal["app", "user"] = "app"
    """Who may connect to the worker's socket besides the app itself: nobody, or every process of the user."""
    directory: Directory = Directory(revision=0, full=True)
    allow: Allow | None = None
    """What this worker may say and hear; None for everything."""
    breaker: BreakerPlan | None = BreakerPlan()
    """For calls of this worker to workers that have no entry in `breakers`; None for no breaker."""
    breakers: dict[str, BreakerPlan | None] = {}
    """By called worker: what its own configuration says."""
    rate_limit: float | None = None
    """Requests and one-way messages a second that it takes, with a burst of one second's worth."""
    dead_letters: str = ""
    """File of the one-way messages that nobody could handle, "" for none."""
    retained: str = ""
    """Folder of the last values of retained topics, "" for none."""


class LaunchRequest(msgspec.Struct, frozen=True):
    """First words of a worker process."""

    pid: int


class Started(msgspec.Struct, frozen=True):
    """The target is loaded and the socket listens: state running. Also says what the beats will mean."""

    heartbeat_source: Literal["loop", "process", "off"]
    flavour: Literal["async", "blocking"]


class Beat(msgspec.Struct, frozen=True):
    """Still turning. Sent every `interval` seconds, only while the watched loop (or process) turns."""

    requests: int | None = None
    """How many requests it has served, where the launch asks for that."""


class StatusText(msgspec.Struct, frozen=True):
    """`ipc.set_status`."""

    text: str


class Progress(msgspec.Struct, frozen=True):
    """`ipc.progress`."""

    done: float
    total: float | None = None


class Traffic(msgspec.Struct, frozen=True):
    """What all connections of a process have carried since it began, and have open now."""

    connections: int = 0
    requests_sent: int = 0
    requests_received: int = 0
    notifies_received: int = 0
    messages_received: int = 0
    """Published messages that came for subscriptions here."""
    messages_dropped: int = 0
    """Those that subscriptions which are open now have lost."""
    errors: dict[str, int] = {}
    """Requests of ours that failed, by the name of the error; beyond 32 names, "other"."""
    late_replies: int = 0
    bytes_received: int = 0
    streams: int = 0
    """Streams and channels that are open."""
    buffers_lent: int = 0
    """Big buffers of ours that others hold."""
    buffers_borrowed: int = 0
    """Big buffers of others that are held here."""
    pool_bytes: int = 0
    """Shared memory of ours for big buffers, in use or kept warm."""
    round_trips: tuple[tuple[float, int], ...] = ()
    """Of every 16th request that was answered: how many took at most so many seconds, by bucket."""
    round_trip_seconds: float = 0.0


class Ending(msgspec.Struct, frozen=True):
    """Told just before a worker process exits by itself: what its exit code cannot say."""

    code: int
    reason: str = ""
    """"completed", "stopped", or the exception as "ValueError: text"."""
    traceback: str = ""


class Acknowledge(msgspec.Struct, frozen=True):
    """The worker has applied the directory up to this revision."""

    revision: int


class SubscribeRequest(msgspec.Struct, frozen=True):
    """Register a subscription; answered when every live worker has acknowledged it."""

    number: int
    pattern: str
    window: int
    queue: str = ""
    overflow: Overflow = "block"

    def subscription(self, instance: str, generation: int) -> Subscription:
        """Return what the directory lists for it."""
        return Subscription(instance, generation, self.number, self.pattern, self.window, self.queue, self.overflow)


class UnsubscribeRequest(msgspec.Struct, frozen=True):
    """Remove a subscription."""

    number: int


class StopOrder(msgspec.Struct, frozen=True):
    """Stop now: drain, then end within `grace` seconds."""

    grace: float
    cause: str = ""


# worker -> supervisor, over the child-process pipe
launch = Method("$sys.launch", LaunchRequest, Launch, timeout=3600)
subscribe = Method("$sys.subscribe", SubscribeRequest, type(None), timeout=60)
unsubscribe = Method("$sys.unsubscribe", UnsubscribeRequest, type(None))
started = Method("$sys.started", Started, type(None))  # from here on: notifies
ready = Method("$sys.ready", type(None), type(None))
beat = Method("$sys.beat", Beat, type(None))
status_text = Method("$sys.status_text", StatusText, type(None))
progress = Method("$sys.progress", Progress, type(None))
traffic = Method("$sys.traffic", Traffic, type(None))
ending = Method("$sys.ending", Ending, type(None))
acknowledge = Method("$sys.acknowledge", Acknowledge, type(None))
# supervisor -> worker, notifies
directory = Method("$sys.directory", Directory, type(None))
stop = Method("$sys.stop", StopOrder, type(None))
hang = Method("$sys.hang", type(None), type(None))  # chaos: stand still


# command line -> supervisor, over the control socket
class LastExit(msgspec.Struct, frozen=True):
    """`last_exit` of `status --json`: `at` is ISO 8601 UTC."""

    code: int | None
    signal: str | None
    reason: str
    at: str


class WorkerStatus(msgspec.Struct, frozen=True):
    """One row of `status --json`."""

    instance: str
    worker: str
    slot: int
    generation: int
    state: State
    ready: bool
    pid: int | None
    uptime: float | None
    restarts: int
    last_exit: LastExit | None
    next_restart_in: float | None
    waiting_for: list[str]
    status: str | None
    progress: Progress | None
    memory: int | None
    cpu: float | None
    heartbeat_age: float | None
    next_run_in: float | None = None
    """Of a job: seconds to its next run."""


class AppStatus(msgspec.Struct, frozen=True):
    """`status --json`. `config` is the path, `state` starting, running or stopping, `http` where the pages are."""

    app: str
    pid: int
    state: Literal["starting", "running", "stopping"]
    config: str
    config_generation: int
    workers: list[WorkerStatus]
    http: str | None = None


class Names(msgspec.Struct, frozen=True):
    """Workers, instances ("hasher:2") or "all"; `wait` answers only when the order is done."""

    names: list[str]
    wait: bool = True


class OrderOutcome(msgspec.Struct, frozen=True):
    """How an order ended for each instance: "" for done, else the reason of the failure."""

    results: dict[str, str]


class LogsRequest(msgspec.Struct, frozen=True):
    """Last `lines` lines of the named worker's instances after `after` (a log sequence number); wait up to `wait` s."""

    name: str
    lines: int = 100
    after: int = 0
    wait: float = 0.0


class LogLine(msgspec.Struct, frozen=True):
    """One line of output. `seq` rises over the whole app; `at` is ISO 8601 UTC; `stream` stdout or stderr."""

    seq: int
    at: str
    level: str
    instance: str
    stream: str
    message: str


class EventsRequest(msgspec.Struct, frozen=True):
    """Events with seq > `since`, None: those of this supervisor; wait up to `wait` seconds for the first."""

    since: int | None = None
    wait: float = 0.0


class Events(msgspec.Struct, frozen=True):
    """`events` are ready-made JSON objects as `events --json` prints them; `lost` counts those no longer kept.

    `last` is the number of the newest event: what to ask for next if there was none.
    """

    events: list[dict[str, Any]]
    lost: int = 0
    last: int = 0


class CallRequest(msgspec.Struct, frozen=True):
    """`smartipc request` and `broadcast`: the supervisor calls on behalf of the command. Payload is plain data."""

    address: str
    payload: Any = None
    slot: int | None = None
    timeout: float | None = None


class CallOutcome(msgspec.Struct, frozen=True):
    """One instance's answer: value, or error type and sentence."""

    instance: str
    value: Any = None
    error_type: str | None = None
    error: str | None = None


class PublishRequest(msgspec.Struct, frozen=True):
    """`smartipc publish`."""

    topic: str
    payload: Any = None


class WatchRequest(msgspec.Struct, frozen=True):
    """`smartipc subscribe`: opens on first use within a connection, then returns messages, waiting up to `wait` s."""

    pattern: str
    wait: float = 1.0


class WatchedMessage(msgspec.Struct, frozen=True):
    """One published message as plain data."""

    topic: str
    payload: Any
    sender: str
    timestamp: float


cli_status = Method("$sys.cli.status", type(None), AppStatus)
cli_start = Method("$sys.cli.start", Names, OrderOutcome, timeout=3600)
cli_stop = Method("$sys.cli.stop", Names, OrderOutcome, timeout=3600)
cli_restart = Method("$sys.cli.restart", Names, OrderOutcome, timeout=3600)
cli_logs = Method("$sys.cli.logs", LogsRequest, list[LogLine], timeout=3600)
cli_events = Method("$sys.cli.events", EventsRequest, Events, timeout=3600)
cli_request = Method("$sys.cli.request", CallRequest, CallOutcome, timeout=3600)
cli_broadcast = Method("$sys.cli.broadcast", CallRequest, list[CallOutcome], timeout=3600)
cli_publish = Method("$sys.cli.publish", PublishRequest, type(None))
cli_subscribe = Method("$sys.cli.subscribe", WatchRequest, list[WatchedMessage], timeout=3600)
cli_metrics = Method("$sys.cli.metrics", type(None), str)
cli_shutdown = Method("$sys.cli.shutdown", Names, OrderOutcome, timeout=3600)

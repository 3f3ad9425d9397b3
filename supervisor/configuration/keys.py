"""Every key of the configuration: its type, default and meaning.

Data only. Decoding, the JSON schema and the reference page all come from here.
"""

from __future__ import annotations

from smartipc.supervisor.configuration.fields import (
    Boolean,
    Choice,
    Duration,
    Either,
    Field,
    ListOf,
    MapOf,
    Number,
    Plain,
    Record,
    SignalName,
    Text,
)
from smartipc.supervisor.configuration.process_keys import HOOKS, LIMITS, PROBE, READY, SCHEDULE, SOCKET, UMASK
from smartipc.supervisor.configuration.quantities import CronLine, HostPort, Rate, Size

NAME = r"[a-z][a-z0-9_-]*"
CONDITIONS = ("started", "ready", "completed", "succeeded")
_COUNT = Number(whole=True, least=0)
_CODES = ListOf(Number(whole=True, least=0, most=255))
_ENV = MapOf(Text(scalars=True), key=r"[A-Za-z_][A-Za-z0-9_]*", key_words="a name of letters, digits and _")
_NAME_WORDS = "a name: a lower-case letter, then letters, digits, - and _"
_PATH = Text(pattern=r"[\s\S]+", form="a path")

RESTART = Record(
    {
        "policy": Field(
            Choice(("always", "on-failure", "never")), "which ends are followed by another life", "on-failure"
        ),
        "delay": Field(Duration(), "wait before the first restart", "200ms"),
        "factor": Field(Number(least=1), "growth of the wait from one failure to the next", "2"),
        "max_delay": Field(Duration(), "longest wait", "30s"),
        "jitter": Field(Number(least=0, most=1), "random share by which a wait may differ", "0.2"),
        "reset_after": Field(Duration(), "time spent ready after which the wait starts over", "60s"),
        "max_restarts": Field(_COUNT, "automatic restarts allowed in a window; one more and it is failed", "5"),
        "window": Field(Duration(), "length of that window", "60s"),
        "success_codes": Field(_CODES, "exit codes that mean success", "[0]"),
        "prevent_codes": Field(_CODES, "exit codes after which it is never restarted", "[]"),
    }
)
HEARTBEAT = Record(
    {
        "interval": Field(Duration(), "time between two beats", "1s"),
        "timeout": Field(Duration(), "silence after which it counts as hung", "10s"),
        "from": Field(
            Choice(("loop", "process", "off")), "what must turn", "loop for async targets, process for blocking ones"
        ),
    }
)
STOP = Record(
    {
        "signal": Field(SignalName(), "signal that asks it to stop", "TERM"),
        "timeout": Field(Duration(), "grace before SIGKILL", "10s"),
    }
)
RECYCLE = Record(
    {
        "age": Field(Duration(), "time since it was ready"),
        "requests": Field(Number(whole=True, least=1), "requests served"),
        "memory": Field(Size(), "resident memory, looked at every second"),
        "jitter": Field(Number(least=0, most=1), "random share by which these differ from life to life", "0.1"),
    }
)
CONCURRENCY = Record(
    {
        "running": Field(Number(whole=True, least=1), "handlers running at once, per instance", "64"),
        "waiting": Field(_COUNT, "calls that may wait for a place", "1024"),
    }
)
LOGS = Record(
    {
        "stdout": Field(
            _PATH,
            "file for its output, `{instance}` in it is replaced; or `inherit` for the supervisor's own stdout",
            "the supervisor's, prefixed",
        ),
        "stderr": Field(_PATH, "the same for its errors", "the supervisor's, prefixed"),
        "max_bytes": Field(Size(), "size at which a file is rotated", "10MiB"),
        "backups": Field(_COUNT, "old files kept; 0 empties the file instead", "5"),
    }
)

_PATTERNS = ListOf(
    Text(
        pattern=r"([^\s.*>]+|\*)(\.([^\s.*>]+|\*))*(\.>)?|>",
        form="a pattern such as catalog.* or index.>",
    ),
    single=True,
)
ALLOW = Record(
    {
        "request": Field(_PATTERNS, "worker.method that it may call, notify, broadcast and stream to", "[]"),
        "publish": Field(_PATTERNS, "topics that it may publish", "[]"),
        "subscribe": Field(_PATTERNS, "topics that it may hear", "[]"),
    }
)
BREAKER = Record(
    {
        "failures": Field(Number(above=0, most=1), "share of recent calls that failed", "0.5"),
        "of": Field(Number(whole=True, least=1), "fewest calls in a minute that are judged", "20"),
        "open": Field(Duration(), "time without calls before one is tried", "10s"),
    }
)

WORKER_FIELDS = {
    "target": Field(Text(pattern=r"[^:\s]+:[^:\s]+", form="'package.module:function'"), "function to run"),
    "command": Field(ListOf(Text(), least=1), "program to run, as a list"),
    "args": Field(ListOf(Plain()), "positional arguments of the target", "[]"),
    "kwargs": Field(
        MapOf(Plain(), key=r"[A-Za-z_]\w*", key_words="an argument name"), "keyword arguments of the target", "{}"
    ),
    "instances": Field(Number(whole=True, least=1, most=10_000, word="auto"), "how many; auto: the usable cores", "1"),
    "start_method": Field(Choice(("forkserver", "spawn", "fork")), "how its process is made", "forkserver"),
    "preload": Field(
        ListOf(Text(pattern=r"[\w.]+", form="a module name")), "modules imported once, in the fork server", "[]"
    ),
    "depends_on": Field(
        Either(
            ListOf(Text(pattern=NAME, form="a worker's name"), single=True),
            MapOf(Choice(CONDITIONS), key=NAME, key_words=_NAME_WORDS),
        ),
        "workers that must be there first; a list means ready",
        "[]",
    ),
    "ready": Field(
        Either(Choice(("ipc", "started", "notify")), READY),
        "when it counts as ready; written out, start_timeout runs until then",
        "ipc for targets, started for commands",
    ),
    "start_timeout": Field(Duration(), "longest start", "30s"),
    "restart": Field(Either(RESTART.fields["policy"].kind, RESTART), "when and how soon it is restarted", "on-failure"),
    "on_failed": Field(Choice(("ignore", "stop-group", "shutdown")), "what follows when it is given up", "ignore"),
    "significant": Field(Boolean(), "its own end may end its group: see auto_shutdown", "false"),
    "heartbeat": Field(Either(Choice(("off",)), HEARTBEAT), "how a hang is noticed"),
    "stop": Field(STOP, "how it is ended"),
    "recycle": Field(RECYCLE, "when it is replaced though it is well"),
    "spares": Field(
        Number(whole=True, least=0, most=100),
        "warm processes that take over crashed lives at once",
        "0",
    ),
    "concurrency": Field(CONCURRENCY, "how much it does at once"),
    "allow": Field(ALLOW, "what it may say and hear; once written, nothing else", "everything"),
    "breaker": Field(
        Either(Choice(("off",)), BREAKER), "when calls to an instance are held back because too many of them fail"
    ),
    "rate_limit": Field(
        Rate(),
        "calls, one-way messages, streams and channels that an instance takes, with a burst of one second's worth",
        "none",
    ),
    "env": Field(_ENV, "environment variables", "{}"),
    "env_file": Field(_PATH, "file of NAME=value lines"),
    "cwd": Field(_PATH, "working directory, relative to the file", "."),
    "logs": Field(LOGS, "where its output goes"),
    "liveness": Field(PROBE, "check whose failures take it out of routing, and in a row restart it"),
    "schedule": Field(
        Either(CronLine(), SCHEDULE), "it is a job: when it runs; its restart policy is then `never` unless written"
    ),
    "watch": Field(
        ListOf(_PATH, single=True), "files and directories whose change restarts it, relative to the file", "[]"
    ),
    "limits": Field(LIMITS, "what the kernel allows it"),
    "user": Field(
        Text(pattern=r"[\w.-]+(:[\w.-]+)?", form="a user, or user:group"), "whom a command runs as; needs root", "ours"
    ),
    "umask": Field(UMASK, "mask of the modes of files that it makes", "inherited"),
    "hooks": Field(HOOKS, "commands run around each life"),
    "sockets": Field(
        ListOf(Text(pattern=NAME, form="a socket's name"), single=True),
        "listening sockets handed over from descriptor 3 on (LISTEN_FDS)",
        "[]",
    ),
}
WORKER = Record(WORKER_FIELDS)

GROUP = Record(
    {
        "members": Field(
            ListOf(Text(pattern=NAME, form="a worker's or group's name"), least=1), "workers and groups, in start order"
        ),
        "strategy": Field(
            Choice(("one-for-one", "one-for-all", "rest-for-one")),
            "who restarts when a member fails: it, all, or it and the later ones",
            "one-for-one",
        ),
        "max_restarts": Field(
            _COUNT, "automatic restarts of its members allowed in a window; one more and it stops", "5"
        ),
        "window": Field(Duration(), "length of that window", "60s"),
        "on_failed": Field(
            Choice(("ignore", "stop-group", "shutdown")),
            "what follows when its restarts are spent, unless a group around it restarts it",
            "ignore",
        ),
        "auto_shutdown": Field(
            Choice(("never", "any-significant", "all-significant")),
            "stop it when any, or all, of its significant workers have ended by themselves",
            "never",
        ),
    }
)

SUPERVISOR = Record(
    {
        "runtime_dir": Field(_PATH, "where its sockets are; made with mode 0700", "$XDG_RUNTIME_DIR/smartipc/<app>"),
        "state_dir": Field(_PATH, "where its event log is kept", "$XDG_STATE_HOME/smartipc/<app>"),
        "shutdown_timeout": Field(Duration(), "longest shutdown; then everything left is killed", "30s"),
        "log": Field(
            Record(
                {
                    "level": Field(
                        Choice(("debug", "info", "warning", "error")), "least severity that is logged", "info"
                    ),
                    "format": Field(Choice(("console", "json")), "text or one JSON object a line", "console"),
                    "file": Field(_PATH, "file instead of stderr"),
                }
            ),
            "its own log",
        ),
        "http": Field(
            HostPort(least=0), "dashboard, /metrics and /healthz; port 0: any that is free; needs the extra `web`"
        ),
        "on_idle": Field(Choice(("wait", "exit")), "exit: leave once every worker has completed", "wait"),
        "trust": Field(
            Choice(("app", "user")), "user: every process of this user may connect to the workers' sockets", "app"
        ),
    },
)

DEFAULTS = Record({n: f for n, f in WORKER_FIELDS.items() if n not in ("target", "command")})
_WORKERS = MapOf(WORKER, key=NAME, key_words=_NAME_WORDS)
APP = Record(
    {
        "app": Field(Text(pattern=NAME, form=_NAME_WORDS), "name of the app", "the file's stem"),
        "include": Field(ListOf(_PATH, single=True), "more files with workers, relative to this one; globs", "[]"),
        "python_path": Field(
            ListOf(_PATH, single=True), "added to sys.path of the workers, relative to this file", "[]"
        ),
        "env_file": Field(_PATH, "file of NAME=value lines for all workers"),
        "env": Field(_ENV, "environment of all workers", "{}"),
        "supervisor": Field(SUPERVISOR, "the supervisor itself"),
        "defaults": Field(DEFAULTS, "any worker key, for all workers"),
        "workers": Field(_WORKERS, "the workers, by name"),
        "groups": Field(MapOf(GROUP, key=NAME, key_words=_NAME_WORDS), "groups of workers, by name", "{}"),
        "sockets": Field(
            MapOf(SOCKET, key=NAME, key_words=_NAME_WORDS), "listening sockets that the supervisor holds, by name", "{}"
        ),
    }
)

"""The keys of what surrounds a process: probes, limits, hooks, schedules, sockets. Data only, like keys.py."""

from __future__ import annotations

from smartipc.supervisor.configuration.fields import (
    Boolean,
    Choice,
    Duration,
    Either,
    Field,
    ListOf,
    Number,
    Record,
    Text,
)
from smartipc.supervisor.configuration.quantities import (
    Command,
    CronLine,
    HostPort,
    ListenAddress,
    Mask,
    Pattern,
    Url,
)

_ARGV = ListOf(Text(), least=1)
_ADDRESS = Text(pattern=r"[a-z][a-z0-9_-]*\.[\w.-]+", form="worker.method")

PROBE = Record(
    {
        "http": Field(Url(), "URL that must answer with a status from 200 to 399"),
        "tcp": Field(HostPort(), "port that must accept a connection"),
        "exec": Field(_ARGV, "command that must exit with 0"),
        "request": Field(_ADDRESS, "method that this very instance must answer"),
        "interval": Field(Duration(), "time between two checks", "5s"),
        "timeout": Field(Duration(), "longest check; then it has failed", "1s"),
        "failures": Field(Number(whole=True, least=1), "failures in a row after which it is restarted", "3"),
        "successes": Field(Number(whole=True, least=1), "successes in a row after which it is well", "1"),
    },
    one_of=("http", "tcp", "exec", "request"),
)
READY = Record(
    {
        "log": Field(Pattern(), "regular expression that a line of its output must match"),
        "probe": Field(PROBE, "check that must succeed; keys as in `liveness`"),
    },
    one_of=("log", "probe"),
)
LIMITS = Record(
    {
        "open_files": Field(Number(whole=True, least=3), "most open files", "inherited"),
        "nice": Field(Number(whole=True, least=-20, most=19), "priority; higher is nicer to others", "inherited"),
        "affinity": Field(
            Either(Choice(("auto",)), ListOf(Number(whole=True, least=0), single=True, least=1), by_items=True),
            "cores it may run on; auto: one usable core for each slot",
            "inherited",
        ),
        "oom_score_adj": Field(
            Number(whole=True, least=-1000, most=1000),
            "how readily the kernel kills it when memory is short",
            "inherited",
        ),
    }
)
HOOKS = Record(
    {
        "before_start": Field(Command(), "command run before each life; if it fails, the start has failed", "[]"),
        "after_stop": Field(Command(), "command run after each life", "[]"),
    }
)
SCHEDULE = Record(
    {
        "cron": Field(CronLine(), "minute hour day month weekday"),
        "every": Field(Duration(), "time between two runs"),
        "timezone": Field(Text(form="a time zone such as Europe/Rome"), "time zone of cron", "the host's"),
        "overlap": Field(
            Choice(("skip", "queue")), "what becomes of a run that is due while the last one is not over", "skip"
        ),
        "run_on_start": Field(Boolean(), "also run when the app starts", "false"),
    },
    one_of=("cron", "every"),
)
SOCKET = Record(
    {
        "address": Field(ListenAddress(), "where to listen"),
        "backlog": Field(Number(whole=True, least=1), "connections that may wait to be accepted", "512"),
    },
    required=("address",),
)
UMASK = Mask()

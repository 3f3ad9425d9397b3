"""The control contract of looking closer: why an instance is as it is, and of disturbing it on purpose.

Types and contracts only, as control.py; kept apart from it because only the `smartipc` command speaks it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from smartipc.ipc.contracts import Method
from smartipc.ipc.control import ExitFacts, LogLine, OrderOutcome, State


class Why(msgspec.Struct, frozen=True):
    """Why one instance is as it is: its last transition, and all that bears on it."""

    instance: str
    state: State
    seconds: float
    """How long it has been in this state."""
    cause: str
    """Of the transition into it; "" if it has never been anything else."""
    generation: int
    pid: int | None
    restarts: int
    next_restart_in: float | None
    next_run_in: float | None
    status: str | None
    check: str | None
    """What was wrong at the last check of its probe; None while nothing is."""
    last_exit: ExitFacts | None
    last_exit_at: str | None
    waits_for: list[Why] = []
    """The instances that hold it back, and what holds those back."""
    events: list[dict[str, Any]] = []
    """Its newest events, oldest first."""
    lines: list[LogLine] = []
    """Its last lines of output, oldest first, without stacks."""
    stacks: list[str] = []
    """What faulthandler wrote of all threads when it was last aborted or crashed; empty if it never was."""
    hung_in: list[str] = []
    """Of that, the frames that tell where: the main thread's innermost first."""


class WhyReport(msgspec.Struct, frozen=True):
    """Answer to `why`. `holding`: while the app stops, the instances that are not down yet, with what they do."""

    app: str
    state: Literal["starting", "running", "stopping"]
    instances: list[Why]
    holding: list[str] = []


class WhyRequest(msgspec.Struct, frozen=True):
    """Workers, instances or "all"; so many events and lines of each. `wrong`: only what is not as it should be."""

    names: list[str]
    events: int = 10
    lines: int = 10
    wrong: bool = False


class Disturbance(msgspec.Struct, frozen=True):
    """`chaos`: kill (SIGKILL), stop (SIGSTOP) or hang (its loop stands still; a command is stopped)."""

    kind: Literal["kill", "stop", "hang"]
    names: list[str]


cli_why = Method("$sys.cli.why", WhyRequest, WhyReport)
cli_chaos = Method("$sys.cli.chaos", Disturbance, OrderOutcome)

"""The part of the control contract that changes what runs, beyond start and stop.

Only types and contracts, as in control.py: no I/O, no behaviour.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from smartipc.ipc.contracts import Method
from smartipc.ipc.control import Names, OrderOutcome


class ScaleRequest(msgspec.Struct, frozen=True):
    """How many instances each of these workers is to have; `wait` answers only when that is so."""

    counts: dict[str, int]
    wait: bool = True


class ApplyRequest(msgspec.Struct, frozen=True):
    """Read a configuration (None: the file that the app was started with) and go over to it."""

    path: str | None = None
    dry_run: bool = False
    wait: bool = True


class PlanStep(msgspec.Struct, frozen=True):
    """One step of a plan: what happens to a worker, to "group NAME" or to "supervisor"."""

    kind: Literal["add", "remove", "scale", "restart", "change"]
    name: str
    what: str


class ApplyOutcome(msgspec.Struct, frozen=True):
    """The plan; why nothing of it was done (`problems`); how it ended for each instance ("" for done)."""

    steps: list[PlanStep]
    problems: list[str] = []
    results: dict[str, str] = {}
    config_generation: int = 0


class SignalRequest(msgspec.Struct, frozen=True):
    """Send a signal, by name ("SIGUSR1"), to the process groups of these instances."""

    names: list[str]
    signal: str


class GraphWorker(msgspec.Struct, frozen=True):
    """One worker of `smartipc graph`."""

    name: str
    instances: int
    depends_on: dict[str, str]
    group: str | None
    significant: bool
    states: dict[str, int]
    """How many instances are in which state."""


class GraphGroup(msgspec.Struct, frozen=True):
    """One group of `smartipc graph`."""

    name: str
    members: list[str]
    strategy: str
    group: str | None


class Graph(msgspec.Struct, frozen=True):
    """What depends on what, and who restarts with whom; workers in start order."""

    app: str
    workers: list[GraphWorker]
    groups: list[GraphGroup]


cli_reload = Method("$sys.cli.reload", Names, OrderOutcome, timeout=3600)
cli_reset = Method("$sys.cli.reset", Names, OrderOutcome)
cli_scale = Method("$sys.cli.scale", ScaleRequest, OrderOutcome, timeout=3600)
cli_apply = Method("$sys.cli.apply", ApplyRequest, ApplyOutcome, timeout=3600)
cli_signal = Method("$sys.cli.signal", SignalRequest, OrderOutcome)
cli_graph = Method("$sys.cli.graph", type(None), Graph)

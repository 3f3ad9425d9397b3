"""The life of an instance, as data: its states, the steps between them, and nothing else.

Rules of this file:

- A step is what happened, in one word; the table alone says where it leads. Who takes a step never names the state.
- A step that the table does not have for a state is a bug of the core: `follow` refuses it.
- No state is entered but through the table.
- Whether a step is wise (policy, budget, dependencies) is decided in core.py, never here.

docs/explanation/supervision.md shows the diagram that `diagram` draws from the table; a test compares them.
"""

from __future__ import annotations

from typing import Literal

from smartipc.ipc.control import State

Step = Literal[
    "wait",  # its dependencies hold it back
    "spawn",  # a process is ordered
    "run",  # its code runs
    "ready",  # it may be given work
    "hang",  # its heartbeat failed
    "sicken",  # a liveness check failed
    "recover",  # enough liveness checks have passed again
    "stop",  # it was told to stop, or need not be told because nothing lives
    "end",  # it ended after having been told to
    "complete",  # it ended by itself, as it should
    "retry",  # it failed, another try follows
    "give up",  # it failed, no try follows
    "schedule",  # it is a job, and its time is yet to come
]

LIVING: frozenset[State] = frozenset({"starting", "running", "ready", "degraded", "stopping"})
"""States with a process, or one about to be."""

_START: dict[Step, State] = {"wait": "waiting", "spawn": "starting"}
_DEATH: dict[Step, State] = {"complete": "exited", "retry": "backoff", "give up": "failed"}

TRANSITIONS: dict[State, dict[Step, State]] = {
    "stopped": {**_START, "schedule": "scheduled"},
    "waiting": {"spawn": "starting", "stop": "stopped"},
    "starting": {"run": "running", "stop": "stopping", **_DEATH},
    "running": {"ready": "ready", "stop": "stopping", **_DEATH},
    "ready": {"hang": "degraded", "sicken": "degraded", "stop": "stopping", **_DEATH},
    "degraded": {"recover": "ready", "stop": "stopping", **_DEATH},
    "stopping": {"end": "stopped"},
    "backoff": {**_START, "stop": "stopped"},
    "exited": {**_START, "schedule": "scheduled", "stop": "stopped"},
    "failed": {**_START, "schedule": "scheduled", "stop": "stopped"},
    "scheduled": {**_START, "stop": "stopped"},
}
"""State x step -> state."""


def follow(state: State, step: Step) -> State:
    """Return where the step leads from that state.

    Raises:
        LookupError: the table has no such step; the caller is wrong.
    """
    try:
        return TRANSITIONS[state][step]
    except KeyError:
        raise LookupError(f"no step {step!r} from state {state!r}") from None


def diagram() -> str:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> stopped"]
    lines += [f"    {state} --> {to}: {step}" for state, row in TRANSITIONS.items() for step, to in row.items()]
    return "\n".join(lines) + "\n"

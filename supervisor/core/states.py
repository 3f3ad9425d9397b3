"""The life of an instance, as data: its states and which may follow which. Nothing else lives here.

stopped ──start──> waiting ──dependencies──> starting ──> running ──> ready <──> degraded
   ^                  │                         │            │          │            │
   └───── stop ───────┴───── stopping <─────────┴────────────┴──────────┴────────────┤
                                                                                     │ ends
        backoff <── failure, within the budget ──────────────────────────────────────┤
        exited  <── ended as it should ──────────────────────────────────────────────┤
        failed  <── given up ────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

from smartipc.ipc.control import State

LIVING: frozenset[State] = frozenset({"starting", "running", "ready", "degraded", "stopping"})
"""States with a process, or one about to be."""

ENDS: frozenset[State] = frozenset({"backoff", "exited", "failed"})

TRANSITIONS: dict[State, frozenset[State]] = {
    "stopped": frozenset({"waiting", "starting"}),
    "waiting": frozenset({"starting", "stopped"}),
    "starting": ENDS | {"running", "stopping"},
    "running": ENDS | {"ready", "stopping"},
    "ready": ENDS | {"degraded", "stopping"},
    "degraded": ENDS | {"ready", "stopping"},
    "stopping": frozenset({"stopped"}),
    "backoff": frozenset({"waiting", "starting", "stopped", "failed"}),
    "exited": frozenset({"waiting", "starting", "stopped"}),
    "failed": frozenset({"waiting", "starting", "stopped"}),
    "scheduled": frozenset(),
}
"""What may follow. A step that is not here is a bug of the core, which refuses to make it."""

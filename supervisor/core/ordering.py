"""The order that `depends_on` imposes: who waits for whom, cycles, dependents. Pure arithmetic on the spec."""

from __future__ import annotations

from collections.abc import Mapping

from smartipc.ipc.control import State
from smartipc.supervisor.core.spec import AppSpec, Condition, WorkerSpec

_SATISFIED: dict[Condition, frozenset[State]] = {
    "started": frozenset({"running", "ready", "degraded"}),
    "ready": frozenset({"ready"}),
    "completed": frozenset({"exited", "failed"}),
    "succeeded": frozenset({"exited"}),
}


def unmet(worker: WorkerSpec, spec: AppSpec, states: Mapping[str, State]) -> tuple[str, ...]:
    """Return the dependencies that still hold `worker` back, as "catalog: ready"; a pool satisfies when all do."""
    return tuple(
        f"{name}: {condition}"
        for name, condition in worker.depends_on
        if not all(states[instance] in _SATISFIED[condition] for instance in spec.worker(name).names)
    )


def dependents(spec: AppSpec) -> dict[str, tuple[str, ...]]:
    """Return for each worker those that depend on it directly."""
    found: dict[str, list[str]] = {worker.name: [] for worker in spec.workers}
    for worker in spec.workers:
        for name, _ in worker.depends_on:
            found[name].append(worker.name)
    return {name: tuple(names) for name, names in found.items()}


def find_cycle(edges: Mapping[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """Return the names along a cycle, the first repeated at the end, or None. `edges` maps a name to what it needs."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> tuple[str, ...] | None:
        if name in path:
            return (*path[path.index(name) :], name)
        if name in done:
            return None
        path.append(name)
        for need in edges.get(name, ()):
            cycle = visit(need)
            if cycle is not None:
                return cycle
        path.pop()
        done.add(name)
        return None

    for root in edges:
        cycle = visit(root)
        if cycle is not None:
            return cycle
    return None

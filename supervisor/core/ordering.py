"""The order that `depends_on` and groups impose: who waits for whom, who waits in vain, who goes first, cycles.

Pure arithmetic on the spec and the states of the instances; nothing here starts or stops anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

from smartipc.ipc.control import COMING, State
from smartipc.supervisor.core.spec import AppSpec, Condition, WorkerSpec
from smartipc.supervisor.core.strategy import start_edges

_SATISFIED: dict[Condition, frozenset[State]] = {
    # What has ended as it should has been started; who needs it alive says "ready".
    "started": frozenset({"running", "ready", "degraded", "exited"}),
    "ready": frozenset({"ready"}),
    "completed": frozenset({"exited", "failed"}),
    "succeeded": frozenset({"exited"}),
}


class Ordering:
    """The dependencies of one app.

    Args:
        spec: the app; every name in `depends_on` exists.
        former: the order so far; it still holds for workers that are not in `spec` any more, while they go down.

    Raises:
        ValueError: the dependencies go round in a circle (the configuration refuses that with a better sentence).
    """

    def __init__(self, spec: AppSpec, former: Ordering | None = None) -> None:
        self._workers = {worker.name: worker for worker in spec.workers}
        needs = before(spec)
        cycle = find_cycle(needs)
        if cycle is not None:
            raise ValueError(f"dependencies go round in a circle: {' -> '.join(cycle)}")
        self._order = _sorted(needs)
        self._dependents: dict[str, set[str]] = {} if former is None else former._dependents.copy()  # noqa: SLF001 - our own kind
        self._dependents.update((name, set()) for name in self._order)
        for name in reversed(self._order):
            for need in needs[name]:
                self._dependents[need] |= {name} | self._dependents[name]

    def __repr__(self) -> str:
        return f"<Ordering {' < '.join(self._order)}>"

    @property
    def order(self) -> tuple[str, ...]:
        """All workers in start order; where nothing is said, that of the file."""
        return self._order

    def dependents(self, name: str) -> frozenset[str]:
        """Return the workers that start after this one, by dependency or group: those that go down before it."""
        return frozenset(self._dependents[name])

    def unmet(self, worker: WorkerSpec, states: Mapping[str, State]) -> tuple[tuple[str, Condition], ...]:
        """Return the dependencies that still hold `worker` back; a pool satisfies when all its instances do."""
        return tuple(dict.fromkeys((name, condition) for name, condition, _ in self._open(worker, states)))

    def blocking(self, worker: WorkerSpec, states: Mapping[str, State]) -> tuple[str, ...]:
        """Return the instances that hold `worker` back."""
        return tuple(dict.fromkeys(instance for _, _, instance in self._open(worker, states)))

    def stuck(self, states: Mapping[str, State]) -> dict[str, str]:
        """Return the workers that wait for what will not come by itself, with the reason ("catalog:0 is failed")."""
        found: dict[str, str] = {}
        for name in self._order:
            worker = self._workers[name]
            if not any(states[instance] == "waiting" for instance in worker.names):
                continue
            for need, _, instance in self._open(worker, states):
                if states[instance] not in COMING:
                    found[name] = f"{instance} is {states[instance]}"
                elif states[instance] == "waiting" and need in found:
                    found[name] = found[need]
        return found

    def _open(self, worker: WorkerSpec, states: Mapping[str, State]) -> Iterator[tuple[str, Condition, str]]:
        for name, condition in worker.depends_on:
            for instance in self._workers[name].names:
                if states[instance] not in _SATISFIED[condition]:
                    yield name, condition, instance


def before(spec: AppSpec) -> dict[str, tuple[str, ...]]:
    """Return, for each worker, those that start before it: what it depends on, and what its groups put before it."""
    edges = start_edges(spec)
    return {
        worker.name: tuple(dict.fromkeys([*(name for name, _ in worker.depends_on), *edges[worker.name]]))
        for worker in spec.workers
    }


def _sorted(needs: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the names so that each comes after its needs, and otherwise as they were."""
    done: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in done:
            for need in needs[name]:
                visit(need)
            done[name] = None

    for name in needs:
        visit(name)
    return tuple(done)


def find_cycle(needs: Mapping[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """Return the names along a cycle, each needing the next, the first repeated at the end; None if there is none.

    Args:
        needs: for each name what it depends on; names that are only needed may be missing as keys.
    """
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        return tuple(reversed(error.args[1]))
    return None

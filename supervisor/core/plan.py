"""What a changed configuration means for a running app: the difference of two specs, in words and in instances. Pure.

Nothing here acts. core.py carries a plan out, and `smartipc apply` prints it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from smartipc.supervisor.core.spec import AppSpec, WorkerSpec

_IN_PLACE = frozenset(
    {
        "instances",
        "depends_on",
        "start_timeout",
        "restart",
        "on_failed",
        "significant",
        "recycle",
        "spares",
        "hooks",
        "schedule",
        "watch",
    }
)
"""Keys of workers that are looked at when they matter; all others are given to a process when it starts."""
_PARTLY_IN_PLACE = {"stop": ("timeout",), "heartbeat": ("timeout",)}
_NOT_KEYS = frozenset({"name", "says_ready", "own_breaker"})
_SUPERVISOR_IN_PLACE = frozenset({"shutdown_timeout", "on_idle"})

Kind = Literal["add", "remove", "scale", "restart", "change"]


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to one worker, or to a group ("group NAME") or the supervisor."""

    kind: Kind
    name: str
    what: str
    """In words: "env, args" for a restart or change, "2 -> 4 instances"."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps, and what cannot be done while the app runs; then nothing is done at all."""

    steps: tuple[Step, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def restarted(self) -> tuple[str, ...]:
        """Names of the workers whose instances are replaced."""
        return tuple(step.name for step in self.steps if step.kind == "restart")


def diff(old: AppSpec, new: AppSpec) -> Plan:
    """Compare the running spec with another."""
    steps: list[Step] = []
    before = {worker.name: worker for worker in old.workers}
    after = {worker.name: worker for worker in new.workers}
    path_changed = old.python_path != new.python_path
    for name, worker in before.items():
        if name not in after:
            steps.append(Step("remove", name, _instances(worker.instances)))
    for name, worker in after.items():
        if name not in before:
            steps.append(Step("add", name, _instances(worker.instances)))
            continue
        was = before[name]
        restart, change = _changed(was, worker)
        if path_changed and worker.target is not None:
            restart.append("python_path")
        if restart:
            steps.append(Step("restart", name, ", ".join([*restart, *change])))
        elif change:
            steps.append(Step("change", name, ", ".join(change)))
        if was.instances != worker.instances:
            steps.append(Step("scale", name, f"{was.instances} -> {_instances(worker.instances)}"))
    steps += _groups(old, new)
    ours = [name for name in _different(old.supervisor, new.supervisor) if name in _SUPERVISOR_IN_PLACE]
    if ours:
        steps.append(Step("change", "supervisor", ", ".join(ours)))
    return Plan(tuple(steps), tuple(_refused(old, new)))


def scaled(spec: AppSpec, counts: Iterable[tuple[str, int]]) -> AppSpec:
    """Return the spec with other numbers of instances."""
    wanted = dict(counts)
    workers = (replace(worker, instances=wanted.get(worker.name, worker.instances)) for worker in spec.workers)
    return replace(spec, workers=tuple(workers))


def _changed(old: WorkerSpec, new: WorkerSpec) -> tuple[list[str], list[str]]:
    """Return the keys that need new processes, and those that do not."""
    restart: list[str] = []
    change: list[str] = []
    for key in _different(old, new):
        if key == "instances" or key in _NOT_KEYS:
            continue
        parts = _PARTLY_IN_PLACE.get(key)
        in_place = key in _IN_PLACE or (
            parts is not None and all(part in parts for part in _different(getattr(old, key), getattr(new, key)))
        )
        (change if in_place else restart).append(key)
    if not restart and old.says_ready != new.says_ready:
        change.append("ready")
    return restart, change


def _groups(old: AppSpec, new: AppSpec) -> list[Step]:
    before = {group.name: group for group in old.groups}
    after = {group.name: group for group in new.groups}
    steps = [Step("remove", f"group {name}", "") for name in before if name not in after]
    for name, group in after.items():
        if name not in before:
            steps.append(Step("add", f"group {name}", ", ".join(group.members)))
        elif group != before[name]:
            steps.append(Step("change", f"group {name}", ", ".join(_different(before[name], group))))
    return steps


def _refused(old: AppSpec, new: AppSpec) -> list[str]:
    found = [
        f"{key} cannot change while the app runs"
        for key in _different(old, new)
        if key not in ("workers", "groups", "supervisor", "python_path", "config_path")
    ]
    found += [
        f"supervisor.{key} cannot change while the app runs"
        for key in _different(old.supervisor, new.supervisor)
        if key not in _SUPERVISOR_IN_PLACE
    ]
    return found


def _different(old: Any, new: Any) -> list[str]:
    return [one.name for one in fields(new) if getattr(old, one.name) != getattr(new, one.name)]


def _instances(count: int) -> str:
    return f"{count} instance{'s' if count != 1 else ''}"

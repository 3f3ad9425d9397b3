"""What single keys cannot know: rules between keys and between workers. One function per rule."""

from __future__ import annotations

import re

from smartipc.supervisor.configuration import groups, process_rules
from smartipc.supervisor.configuration.keys import NAME
from smartipc.supervisor.configuration.nodes import Mapping
from smartipc.supervisor.configuration.problems import Place, Problems, did_you_mean
from smartipc.supervisor.core.ordering import find_cycle
from smartipc.supervisor.core.spec import AppSpec, WorkerSpec

_TARGET_ONLY = frozenset({"args", "kwargs", "start_method", "preload", "heartbeat", "concurrency", "spares"})


def validate(spec: AppSpec, root: Mapping, problems: Problems) -> None:
    """Add a problem for every rule that is broken."""
    if not re.fullmatch(NAME, spec.app) and "app" not in root.keys:
        problems.add(root.place, "app", f"the file's stem {spec.app!r} is no app name", "add a key `app:`")
    workers = root.entries.get("workers")
    if not isinstance(workers, Mapping):
        return
    for worker in spec.workers:
        node = workers.entries[worker.name]
        assert isinstance(node, Mapping)
        if worker.name == "all":
            problems.add(workers.keys["all"], "workers.all", *groups.ALL)
        _kind(worker, node, workers.keys[worker.name], problems)
        _times(worker, node, problems)
        _recycling(worker, node, problems)
        process_rules.check(worker, node, spec, problems)
        _dependencies(worker, node, spec, problems)
    cyclic = _cycles(spec, workers, problems)
    groups.validate(spec, root, problems, ordered=not cyclic)


def _kind(worker: WorkerSpec, node: Mapping, place: Place, problems: Problems) -> None:
    path = f"workers.{worker.name}"
    has_target, has_command = "target" in node.entries, "command" in node.entries
    if has_target == has_command:
        both = "has both target and command" if has_target else "needs a target or a command"
        problems.add(place, path, both, "write exactly one of target and command")
        return
    if has_command:
        for key in sorted(_TARGET_ONLY - {"heartbeat"} if worker.ready == "notify" else _TARGET_ONLY):
            if key in node.keys:
                problems.add(node.keys[key], f"{path}.{key}", *_not_for_commands(key))
        if worker.ready == "ipc":
            problems.add(
                node.keys.get("ready", place), f"{path}.ready", "a command cannot say ready by ipc", "write started"
            )


def _not_for_commands(key: str) -> tuple[str, str]:
    if key == "heartbeat":
        return "of a command needs `ready: notify`", "a command beats by sd_notify (WATCHDOG=1)"
    return "is for targets, not for commands", "remove it"


def _times(worker: WorkerSpec, node: Mapping, problems: Problems) -> None:
    path = f"workers.{worker.name}"
    restart, heartbeat = worker.restart, worker.heartbeat
    if restart.max_delay < restart.delay:
        where = _below(node, "restart", "max_delay", "delay")
        problems.add(where, f"{path}.restart.max_delay", "is shorter than delay", "raise it or lower delay")
    if heartbeat.source != "off" and heartbeat.timeout <= heartbeat.interval:
        where = _below(node, "heartbeat", "timeout", "interval")
        problems.add(
            where, f"{path}.heartbeat.timeout", "must be longer than interval", "three intervals is a good start"
        )


def _recycling(worker: WorkerSpec, node: Mapping, problems: Problems) -> None:
    path, recycle = f"workers.{worker.name}.recycle", worker.recycle
    if recycle is None:
        return
    if recycle.age is None and recycle.requests is None and recycle.memory is None:
        problems.add(_below(node, "recycle"), path, "has no limit", "write age, requests or memory")
    counted = worker.target is not None and worker.heartbeat.source != "off"
    if recycle.requests is not None and not counted:
        hint = "use age or memory" if worker.target is None else "let it beat, or use age or memory"
        problems.add(_below(node, "recycle", "requests"), f"{path}.requests", "requests come with the heartbeats", hint)


def _below(node: Mapping, key: str, *names: str) -> Place:
    inner = node.entries.get(key)
    if isinstance(inner, Mapping):
        for name in names:
            if name in inner.keys:
                return inner.keys[name]
    return node.keys.get(key, node.place)


def _dependencies(worker: WorkerSpec, node: Mapping, spec: AppSpec, problems: Problems) -> None:
    known = [other.name for other in spec.workers]
    for name, _condition in worker.depends_on:
        path = f"workers.{worker.name}.depends_on"
        depends = node.entries["depends_on"]
        place = depends.keys.get(name, depends.place) if isinstance(depends, Mapping) else depends.place
        if name == worker.name:
            problems.add(place, path, "a worker cannot depend on itself", "remove it")
        elif name not in known:
            problems.add(place, path, f"there is no worker {name!r}", did_you_mean(name, known))


def _cycles(spec: AppSpec, workers: Mapping, problems: Problems) -> bool:
    edges = {
        worker.name: tuple(name for name, _ in worker.depends_on if name != worker.name) for worker in spec.workers
    }
    cycle = find_cycle({name: tuple(n for n in needs if n in edges) for name, needs in edges.items()})
    if cycle is not None:
        place = workers.keys[cycle[0]]
        problems.add(place, f"workers.{cycle[0]}.depends_on", f"the dependencies form a cycle: {' -> '.join(cycle)}")
    return cycle is not None

"""Rules between the keys of what surrounds a process. Part of validate.py's stage, one function per rule."""

from __future__ import annotations

import os
import sys
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from smartipc.supervisor.configuration.nodes import Mapping
from smartipc.supervisor.configuration.problems import Place, Problems, did_you_mean
from smartipc.supervisor.core.spec import AppSpec, WorkerSpec


def check(worker: WorkerSpec, node: Mapping, spec: AppSpec, problems: Problems) -> None:
    """Add a problem for every rule that is broken."""
    path = f"workers.{worker.name}"
    _sockets(worker, node, path, spec, problems)
    _user(worker, node, path, problems)
    _probes(worker, node, path, problems)
    _schedule(worker, node, path, problems)
    _watch(worker, node, path, problems)
    if worker.ready == "notify" and sys.platform != "linux":
        problems.add(node.keys["ready"], f"{path}.ready", "notify is for Linux", "use a log line or a probe")


def _sockets(worker: WorkerSpec, node: Mapping, path: str, spec: AppSpec, problems: Problems) -> None:
    known = [one.name for one in spec.sockets]
    for name in worker.sockets:
        if name not in known:
            problems.add(
                _place(node, "sockets"), f"{path}.sockets", f"there is no socket {name!r}", did_you_mean(name, known)
            )


def _user(worker: WorkerSpec, node: Mapping, path: str, problems: Problems) -> None:
    if worker.user is not None and worker.target is not None:
        problems.add(
            _place(node, "user"),
            f"{path}.user",
            "is for commands: a worker function shares the app's private directory",
            "run it as a command, or the whole app as that user",
        )


def _probes(worker: WorkerSpec, node: Mapping, path: str, problems: Problems) -> None:
    for key, probe in (("ready", worker.ready_probe), ("liveness", worker.liveness)):
        if probe is None or probe.request is None:
            continue
        if worker.target is None:
            problems.add(_place(node, key), f"{path}.{key}", "a command answers no requests", "use http, tcp or exec")
        elif probe.request.partition(".")[0] != worker.name:
            wanted = f"asks the worker itself, so it must begin with {worker.name + '.'!r}"
            problems.add(_place(node, key), f"{path}.{key}", wanted)


def _schedule(worker: WorkerSpec, node: Mapping, path: str, problems: Problems) -> None:
    if worker.schedule is None:
        return
    if worker.restart.policy == "always":
        hint = "write never (the default of a job) or on-failure"
        problems.add(_place(node, "restart"), f"{path}.restart", "a job that has ended waits for its next run", hint)
    zone = worker.schedule.timezone
    if zone is not None and not _is_zone(zone):
        problems.add(_place(node, "schedule"), f"{path}.schedule.timezone", f"there is no time zone {zone!r}")


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _watch(worker: WorkerSpec, node: Mapping, path: str, problems: Problems) -> None:
    if worker.watch and worker.preload and worker.start_method == "forkserver":
        problems.add(_place(node, "watch"), f"{path}.watch", "preloaded modules are not read again", "remove preload")
    for one in worker.watch:
        if not os.path.exists(one):
            problems.add(_place(node, "watch"), f"{path}.watch", f"{one} does not exist", "check the path")


def _place(node: Mapping, key: str) -> Place:
    return node.keys.get(key, node.place)

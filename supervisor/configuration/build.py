"""Decoded keys to the frozen spec: short forms, environment files, paths, `auto`.

Values here are sound already; what could not be decoded has its problem, and a default takes its place so that the
later checks can go on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping as AbstractMapping
from pathlib import Path
from typing import Any

from smartipc.supervisor.configuration.nodes import Mapping
from smartipc.supervisor.configuration.problems import Problems
from smartipc.supervisor.configuration.process_build import (
    heartbeat,
    readiness,
    restart_spec,
    sockets,
    sound,
    surroundings,
)
from smartipc.supervisor.core.spec import (
    AllowSpec,
    AppSpec,
    BreakerSpec,
    ConcurrencySpec,
    GroupSpec,
    LogSpec,
    LogsSpec,
    RecycleSpec,
    StopSpec,
    SupervisorSpec,
    WorkerSpec,
)


def app_spec(decoded: AbstractMapping[str, Any], root: Mapping, path: Path, problems: Problems) -> AppSpec:
    """Build the spec of the app."""
    base = path.absolute().parent
    decoded = sound(decoded)
    shared = _env(decoded, root, base, "", problems)
    workers_node = root.entries.get("workers")
    names = list(workers_node.entries) if isinstance(workers_node, Mapping) else []
    decoded_workers = decoded.get("workers", {})
    workers = []
    for name in names:
        assert isinstance(workers_node, Mapping)
        node = workers_node.entries[name]
        keys = sound(decoded_workers.get(name, {}))
        if isinstance(node, Mapping):
            workers.append(_worker(name, keys, node, base, shared, problems))
    return AppSpec(
        app=decoded.get("app", _stem(path)),
        workers=tuple(workers),
        supervisor=_supervisor(sound(decoded.get("supervisor", {})), base),
        python_path=tuple(str(base / one) for one in decoded.get("python_path", ())),
        config_path=str(path.absolute()),
        groups=tuple(
            GroupSpec(name=name, **{"members": (), **sound(keys)})
            for name, keys in sound(decoded.get("groups", {})).items()
        ),
        sockets=sockets(decoded),
    )


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _worker(
    name: str, keys: AbstractMapping[str, Any], node: Mapping, base: Path, shared: dict[str, str], problems: Problems
) -> WorkerSpec:
    depends = keys.get("depends_on", ())
    pairs: tuple[tuple[str, Any], ...] = (
        tuple(depends.items()) if isinstance(depends, dict) else tuple((one, "ready") for one in depends)
    )
    is_command = "command" in node.entries
    instances = keys.get("instances", 1)
    logs = sound(keys.get("logs", {}))
    return WorkerSpec(
        name=name,
        target=keys.get("target"),
        command=keys.get("command"),
        args=keys.get("args", ()),
        kwargs=keys.get("kwargs", {}),
        instances=usable_cores() if instances == "auto" else instances,
        start_method=keys.get("start_method", "forkserver"),
        preload=keys.get("preload", ()),
        depends_on=pairs,
        **readiness(keys, is_command=is_command),
        start_timeout=keys.get("start_timeout", 30.0),
        restart=restart_spec(keys),
        on_failed=keys.get("on_failed", "ignore"),
        significant=keys.get("significant", False),
        recycle=RecycleSpec(**recycle) if (recycle := sound(keys.get("recycle", {}))) else None,
        spares=keys.get("spares", 0),
        heartbeat=heartbeat(keys, is_command=is_command),
        stop=StopSpec(**sound(keys.get("stop", {}))),
        concurrency=ConcurrencySpec(**sound(keys.get("concurrency", {}))),
        allow=AllowSpec(**sound(keys["allow"])) if "allow" in keys else None,
        breaker=None if keys.get("breaker") == "off" else BreakerSpec(**sound(keys.get("breaker", {}))),
        own_breaker="breaker" in keys,
        rate_limit=keys.get("rate_limit"),
        env={**shared, **_env(keys, node, base, f"workers.{name}.", problems)},
        cwd=str(base / keys.get("cwd", ".")),
        **surroundings(keys),
        watch=tuple(str(base / path) for path in keys.get("watch", ())),
        logs=LogsSpec(**{**logs, **{stream: _log(logs.get(stream), base) for stream in ("stdout", "stderr")}}),
    )


def _supervisor(keys: AbstractMapping[str, Any], base: Path) -> SupervisorSpec:
    log = sound(keys.get("log", {}))
    if "file" in log:
        log = {**log, "file": str(base / log["file"])}
    runtime, state = keys.get("runtime_dir"), keys.get("state_dir")
    return SupervisorSpec(
        runtime_dir=str(base / runtime) if runtime is not None else None,
        state_dir=str(base / state) if state is not None else None,
        shutdown_timeout=keys.get("shutdown_timeout", 30.0),
        log=LogSpec(**log),
        on_idle=keys.get("on_idle", "wait"),
        http=keys.get("http"),
        trust=keys.get("trust", "app"),
    )


def _log(path: str | None, base: Path) -> str | None:
    return path if path is None or path == "inherit" else str(base / path)


def _stem(path: Path) -> str:
    return path.name.split(".")[0].lower()


def _env(keys: AbstractMapping[str, Any], node: Mapping, base: Path, prefix: str, problems: Problems) -> dict[str, str]:
    """Return env_file < env of one level."""
    found: dict[str, str] = {}
    file = keys.get("env_file")
    if file is not None:
        place = node.entries["env_file"].place
        try:
            lines = (base / file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            problems.add(place, f"{prefix}env_file", f"{file} cannot be read: {reason}", "check the path")
            lines = []
        for number, line in enumerate(lines, start=1):
            text = line.strip().removeprefix("export ")
            if not text or text.startswith("#"):
                continue
            name, equals, value = text.partition("=")
            if not equals or not name.strip().isidentifier():
                problems.add(place, f"{prefix}env_file", f"{file}, line {number}: expected NAME=value, got {line!r}")
                continue
            found[name.strip()] = _unquoted(value.strip())
    own: dict[str, str] = keys.get("env", {})
    return found | own


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value.partition(" #")[0].rstrip()

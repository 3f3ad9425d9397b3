"""Decoded keys of what surrounds a process to their specs. Part of build.py's stage; values here are sound already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smartipc.supervisor.configuration.fields import INVALID
from smartipc.supervisor.core.process_spec import HooksSpec, LimitsSpec, ProbeSpec, ScheduleSpec, SocketSpec
from smartipc.supervisor.core.spec import HeartbeatSpec, RestartSpec


def readiness(keys: Mapping[str, Any], *, is_command: bool) -> dict[str, Any]:
    """Return the fields of WorkerSpec that say when it is ready."""
    ready = keys.get("ready", "started" if is_command else "ipc")
    if isinstance(ready, dict):
        long = sound(ready)
        if "log" in long:
            return {"ready": "log", "ready_log": long["log"], "says_ready": True}
        return {"ready": "probe", "ready_probe": probe(long.get("probe")), "says_ready": True}
    return {"ready": ready, "says_ready": keys.get("ready") in ("ipc", "notify")}


def heartbeat(keys: Mapping[str, Any], *, is_command: bool) -> HeartbeatSpec:
    """Return the expected beats: those of a command are WATCHDOG=1, and expected only where they are written."""
    found = keys.get("heartbeat", "off" if is_command else {})
    found = {"from": "off"} if found == "off" else sound(found)
    source = found.get("from", "process" if is_command else None)
    return HeartbeatSpec(found.get("interval", 1.0), found.get("timeout", 10.0), source)


def restart_spec(keys: Mapping[str, Any]) -> RestartSpec:
    """Return the restart rules; a job is not tried again before its next run, unless that is written."""
    found = keys.get("restart", {})
    written = {"policy": found} if isinstance(found, str) else sound(found)
    return RestartSpec(**{**({"policy": "never"} if "schedule" in keys else {}), **written})


def probe(keys: Any) -> ProbeSpec | None:
    """Return a probe, or None if there is none or it is unsound."""
    found = sound(keys)
    return ProbeSpec(**found) if found else None


def surroundings(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of WorkerSpec that a process is given."""
    return {
        "liveness": probe(keys.get("liveness")),
        "schedule": schedule(keys.get("schedule")),
        "limits": LimitsSpec(**sound(keys.get("limits", {}))),
        "user": keys.get("user"),
        "umask": keys.get("umask"),
        "hooks": HooksSpec(**sound(keys.get("hooks", {}))),
        "sockets": keys.get("sockets", ()),
    }


def schedule(found: Any) -> ScheduleSpec | None:
    """Return when a job runs: the short form is a cron line."""
    if isinstance(found, str):
        return ScheduleSpec(cron=found)
    long = sound(found)
    return ScheduleSpec(**long) if long else None


def sockets(keys: Mapping[str, Any]) -> tuple[SocketSpec, ...]:
    """Return the listening sockets of the app."""
    found = keys.get("sockets", {})
    specs = [(name, sound(value)) for name, value in found.items()] if isinstance(found, dict) else []
    return tuple(SocketSpec(name, **value) for name, value in specs if "address" in value)


def sound(keys: Any) -> dict[str, Any]:
    """Leave out what could not be decoded."""
    return {k: v for k, v in keys.items() if k and v is not INVALID} if isinstance(keys, dict) else {}

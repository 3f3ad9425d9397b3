"""`status --json` from the core's views and what the host knows; computed only when asked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psutil

from smartipc.ipc.control import AppStatus, LastExit, WorkerStatus
from smartipc.supervisor.core.exits import describe
from smartipc.supervisor.events import iso

if TYPE_CHECKING:
    from smartipc.supervisor.core.slot import InstanceView
    from smartipc.supervisor.runner import App


class Meter:
    """Memory and CPU of processes; keeps psutil's objects, which measure CPU between two calls."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}

    def __repr__(self) -> str:
        return f"<Meter of {len(self._processes)} processes>"

    def read(self, pid: int | None) -> tuple[int | None, float | None]:
        """Return resident bytes and CPU percent since the last read, or None and None."""
        if pid is None:
            return None, None
        try:
            process = self._processes.get(pid)
            if process is None or not process.is_running():
                process = self._processes[pid] = psutil.Process(pid)
            with process.oneshot():
                return process.memory_info().rss, process.cpu_percent()
        except (psutil.Error, OSError):  # it has ended, or there is no descriptor left to look with
            self._processes.pop(pid, None)
            return None, None


def app_status(app: App) -> AppStatus:
    """Return the status of the app and all its instances."""
    return AppStatus(
        app.spec.app,
        app.pid,
        app.core.app_state,
        app.spec.config_path,
        app.core.config_generation,
        [_worker_status(app, view) for view in app.core.snapshot()],
        app.http,
    )


def _worker_status(app: App, view: InstanceView) -> WorkerStatus:
    now = time.monotonic()
    said = app.said.get((view.instance, view.generation))
    life = app.host.lives.get((view.instance, view.generation))
    memory, cpu = app.meter.read(view.pid)
    last = None
    if view.last_exit is not None:
        exit_ = view.last_exit
        ended = app.exit_times.get(view.instance)
        at = iso(ended) if ended is not None else ""
        last = LastExit(exit_.code, exit_.signal, exit_.reason or describe(exit_), at)
    return WorkerStatus(
        instance=view.instance,
        worker=view.worker,
        slot=view.slot,
        generation=view.generation,
        state=view.state,
        ready=view.state == "ready",
        pid=view.pid,
        uptime=round(now - life.started_at, 3) if life is not None and view.pid is not None else None,
        restarts=view.restarts,
        last_exit=last,
        next_restart_in=max(0.0, round(view.next_restart_at - now, 3)) if view.next_restart_at is not None else None,
        waiting_for=list(view.waiting_for),
        status=said.status if said is not None else None,
        progress=said.progress if said is not None else None,
        memory=memory,
        cpu=cpu,
        heartbeat_age=round(now - view.last_beat_at, 3)
        if view.last_beat_at is not None and view.pid is not None
        else None,
        next_run_in=_rounded(app.timetable.next_in(view.instance)) if view.state != "stopped" else None,
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)

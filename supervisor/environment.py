"""The environment of a life: what it inherits, what the configuration says, who it is, and what it is handed."""

from __future__ import annotations

import os
from collections.abc import Mapping

from smartipc.supervisor.core.spec import WorkerSpec
from smartipc.supervisor.host.sockets import environment as listen_environment

NOT_INHERITED = frozenset(
    {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}
)
"""What systemd gave to the supervisor itself."""


def inherited() -> dict[str, str]:
    """Return what every life gets of our own environment."""
    return {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}


def life_environment(
    inherited: Mapping[str, str],
    app: str,
    run_id: str,
    worker: WorkerSpec,
    instance: str,
    generation: int,
    notify_address: str,
) -> dict[str, str]:
    """Return the complete environment of a life."""
    env = {
        **inherited,
        **worker.env,
        "SMARTIPC_APP": app,
        "SMARTIPC_WORKER": worker.name,
        "SMARTIPC_INSTANCE": instance,
        "SMARTIPC_SLOT": instance.rpartition(":")[2],
        "SMARTIPC_GENERATION": str(generation),
        "SMARTIPC_RUN_ID": run_id,
        **listen_environment(worker.sockets),
    }
    if worker.ready == "notify":
        env["NOTIFY_SOCKET"] = notify_address
        if worker.heartbeat.source == "process" and worker.command is not None:
            env["WATCHDOG_USEC"] = str(int(worker.heartbeat.timeout * 1_000_000))
    return env

"""`check --import`: import every target in a process of its own, so that no user code runs in the checker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from smartipc.supervisor.configuration.problems import Place, Problem
from smartipc.supervisor.core.spec import AppSpec, WorkerSpec

_PROGRAM = (
    "import sys; from importlib import import_module; import_module('smartipc.workers.loading').check(sys.argv[1])"
)


def import_problems(spec: AppSpec, places: Mapping[str, Place]) -> list[Problem]:
    """Return one problem for every target that cannot be loaded.

    Args:
        spec: the app.
        places: where the target of each worker is written.
    """
    found = []
    for worker in spec.workers:
        if worker.target is not None:
            reason = _refusal(spec, worker, worker.target)
            if reason:
                found.append(Problem(places[worker.name], f"workers.{worker.name}.target", reason))
    return sorted(found)


def _refusal(spec: AppSpec, worker: WorkerSpec, target: str) -> str:
    """Return why a target cannot be loaded, "" if it can."""
    path = os.pathsep.join([*spec.python_path, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", _PROGRAM, target],
            env={**os.environ, **worker.env, "PYTHONPATH": path},
            cwd=worker.cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        return f"it cannot be tried in cwd {worker.cwd}: {error.strerror}"
    if not done.returncode:
        return ""
    return (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]

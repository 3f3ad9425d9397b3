"""`check --import`: import every target in a process of its own, so that no user code runs in the checker."""

from __future__ import annotations

import os
import subprocess
import sys

from smartipc.supervisor.core.spec import AppSpec

_PROGRAM = (
    "import sys; from importlib import import_module; import_module('smartipc.workers.loading').check(sys.argv[1])"
)


def import_problems(spec: AppSpec) -> list[str]:
    """Return one sentence for every target that cannot be loaded."""
    found = []
    for worker in spec.workers:
        if worker.target is None:
            continue
        path = os.pathsep.join([*spec.python_path, *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", _PROGRAM, worker.target],
            env={**os.environ, **worker.env, "PYTHONPATH": path},
            cwd=worker.cwd,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
            found.append(f"{spec.config_path}: workers.{worker.name}.target: {lines[-1]}")
    return found

"""The first function of a function worker's process, named when multiprocessing starts it.

Deliberately empty of logic: it imports the worker side by name, in the child, so that the supervisor itself never
imports it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

BOOTSTRAP = "smartipc.workers.bootstrap"


def run(*passed: Any, warm: dict[str, Any] | None = None) -> None:
    """Hand the passed descriptors to the bootstrap, which does not return: control, stdout, stderr, then sockets."""
    import_module(BOOTSTRAP).main(*(one.detach() for one in passed), warm=warm)

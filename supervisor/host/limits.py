"""What the kernel allows a process: open files, priority, cores, readiness to be killed when memory is short.

Everything here works on any process from outside, so commands get it between fork and exec, and function workers while
they wait for their launch facts.
"""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import replace
from pathlib import Path

from smartipc.supervisor.core.process_spec import LimitsSpec

_before: int | None = None
"""The soft limit of open files that we were started with, if we have raised it for ourselves."""


def raise_our_own() -> None:
    """Allow this process as many descriptors as the hard limit says: a supervisor holds several per instance.

    Children get back what we were started with (`for_child`), because a program that uses select() cannot have more.
    """
    global _before  # noqa: PLW0603 - limits are of the process, and so is this
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # macOS allows less than it says
            return
        _before = soft


def for_child(limits: LimitsSpec) -> LimitsSpec:
    """Return what a child is to be given: what is written, and our first limit of open files where nothing is."""
    return replace(limits, open_files=_before) if limits.open_files is None and _before is not None else limits


def is_allowed(open_files: int) -> bool:
    """Tell whether any process may set this as its soft limit of open files."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return hard == resource.RLIM_INFINITY or open_files <= hard


def apply(pid: int, limits: LimitsSpec, slot: int) -> None:
    """Set the limits of a process.

    Args:
        pid: which one; 0 is the caller.
        limits: what to set.
        slot: chooses the core of `affinity: auto`.

    Raises:
        OSError: the kernel refuses one of them; the text names it.
    """
    for name, set_one in (
        ("open_files", _open_files),
        ("nice", _nice),
        ("affinity", _affinity),
        ("oom_score_adj", _oom_score_adj),
    ):
        value = getattr(limits, name)
        if value is None:
            continue
        try:
            set_one(pid, value, slot)
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise OSError(0, f"{name} {value}: {reason}") from error


def _open_files(pid: int, value: int, _slot: int) -> None:
    if sys.platform == "linux":
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        raised = value if hard != resource.RLIM_INFINITY and value > hard else hard  # for root only
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (value, raised))
    elif pid == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (value, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def _nice(pid: int, value: int, _slot: int) -> None:
    os.setpriority(os.PRIO_PROCESS, pid, value)


def _affinity(pid: int, value: tuple[int, ...] | str, slot: int) -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("this platform does not bind processes to cores")
    if isinstance(value, str):
        usable = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(pid, {usable[slot % len(usable)]})
    else:
        os.sched_setaffinity(pid, value)


def _oom_score_adj(pid: int, value: int, _slot: int) -> None:
    Path(f"/proc/{pid or 'self'}/oom_score_adj").write_text(str(value))

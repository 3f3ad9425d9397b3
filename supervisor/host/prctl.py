"""Two calls of prctl(2): whom a process dies with, and who gets its orphans. Nothing where the system is not Linux."""

from __future__ import annotations

import ctypes
import signal
import sys

SET_PDEATHSIG = 1
_SET_CHILD_SUBREAPER = 36


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies. Whoever calls it looks at the parent afterwards."""
    _prctl(SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans(*, on: bool) -> None:
    """Become the parent of what the children of this process leave behind, or cease to."""
    _prctl(_SET_CHILD_SUBREAPER, int(on))


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _libc.prctl(option, value, 0, 0, 0)


_libc = ctypes.CDLL(None)  # once: this costs more than a call, and one of them falls between fork and exec

"""The fork server of function workers: what it has imported when it forks, and its replacement when that changes.

It is multiprocessing's own, one per process, reached through its module; what is asked of it is functions.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from smartipc.supervisor.core.spec import AppSpec
from smartipc.supervisor.host import entry, prepared
from smartipc.supervisor.host.passing import Passed

_CHILD_NEEDS = (
    entry.__name__, Passed.__module__, entry.BOOTSTRAP, "smartipc.workers.runtime", "smartipc.workers.sync_runtime",
    "uvloop", "concurrent.futures.thread",
)  # fmt: skip
"""What every child imports before its target, some of it where it may be missing: the fork server has it already."""
_PARTS = ("_forkserver_address", "_forkserver_alive_fd", "_forkserver_pid", "_forkserver_authkey", "_preload_modules")
"""What makes one fork server, in multiprocessing's object; the key is there from Python 3.14 on."""
_LOOK = 0.01
"""Seconds between two looks at a fork server that is being prepared, or that ends."""


class ForkServer:
    """Keep a fork server that has imported what the configuration says.

    Args:
        folder: a private directory.
        run_id: marks it, and by it whatever a worker forks without exec.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id
        self._modules: frozenset[str] = frozenset()
        self._path: tuple[str, ...] = ()
        self._made: os.stat_result | None = None
        self._others: set[int] = set()
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<ForkServer {sorted(self.pids())} with {len(self._modules)} modules>"

    def pids(self) -> set[int]:
        """Return its process, and those that are being prepared or end."""
        current = getattr(_ours(), "_forkserver_pid", None)
        return self._others if current is None else self._others | {current}

    def open(self, spec: AppSpec) -> None:
        """Tell it what to import, and start it if any worker needs it; it imports while we go on."""
        self._make_folder()
        self._adopt(spec)
        multiprocessing.get_context("forkserver").set_forkserver_preload(_preload(spec))
        if _wanted(spec):
            with self.environment(), no_main():
                multiprocessing.forkserver.ensure_running()

    async def renew(self, spec: AppSpec, *, anyway: bool = False) -> None:
        """Have another one, if this one lacks modules that a changed configuration wants preloaded.

        The old one serves until the new one has imported everything, and its children stay. Cancelling it leaves all
        as it was.

        Args:
            spec: what is to be preloaded.
            anyway: also if this one lacks nothing.

        Raises:
            OSError: no process could be started.
        """
        async with self._turn:
            lacking = frozenset(_preload(spec)) - self._modules or tuple(spec.python_path) != self._path
            if not ((lacking or anyway) and _wanted(spec)):
                return
            self._make_folder()
            fresh: Any = multiprocessing.forkserver.ForkServer()
            fresh.set_forkserver_preload([*_preload(spec), prepared.__name__])
            told = self._folder / "prepared"
            told.unlink(missing_ok=True)
            with self.environment(spec.python_path, SMARTIPC_PREPARED=str(told)), no_main():
                fresh.ensure_running()
            pids = {fresh._forkserver_pid, *self.pids()}  # noqa: SLF001
            self._others |= pids
            try:
                # One that dies of its imports is taken as it is: the next start tells why.
                await _until(lambda: told.exists() or _ended(fresh._forkserver_pid))  # noqa: SLF001
                _swap(fresh)
                self._adopt(spec)
            except asyncio.CancelledError:
                os.kill(fresh._forkserver_pid, signal.SIGKILL)  # noqa: SLF001 - it may be importing for long still
                raise
            finally:
                told.unlink(missing_ok=True)
                await _end(fresh)
                self._others -= pids

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._made = os.stat(self._folder)

    def remove_folder(self) -> None:
        """Remove the folder, if it is still the one that we have made."""
        with contextlib.suppress(OSError):
            if self._made is not None and os.path.samestat(self._made, os.stat(self._folder)):
                for left in self._folder.iterdir():
                    left.unlink()
                self._folder.rmdir()

    def _adopt(self, spec: AppSpec) -> None:
        self._modules, self._path = frozenset(_preload(spec)), tuple(spec.python_path)
        missing = [path for path in spec.python_path if path not in sys.path]
        sys.path[:0] = missing  # spawned children inherit it

    @contextlib.contextmanager
    def environment(self, python_path: Iterable[str] | None = None, **more: str) -> Iterator[None]:
        """Have in our own environment, meanwhile, what a fork server that is started now needs.

        Its mark, and where it finds the app's modules: before Python 3.12.4 it takes no sys.path from its parent.
        """
        before = os.environ.get("PYTHONPATH")
        path = [*(self._path if python_path is None else python_path), *([before] if before else [])]
        with environment(PYTHONPATH=os.pathsep.join(path), SMARTIPC_RUN_ID=self._run_id, **more):
            yield


def _ours() -> Any:
    return multiprocessing.forkserver._forkserver  # noqa: SLF001


def _wanted(spec: AppSpec) -> bool:
    return any(worker.target and worker.start_method == "forkserver" for worker in spec.workers)


def _preload(spec: AppSpec) -> list[str]:
    return list(dict.fromkeys([*_CHILD_NEEDS, *(name for worker in spec.workers for name in worker.preload)]))


async def _until(look: Callable[[], bool]) -> None:
    while not look():  # noqa: ASYNC110 - a file and a child that others may reap: nothing here could set an event
        await asyncio.sleep(_LOOK)


def _ended(pid: int) -> bool:
    """Tell whether a child has ended, and leave it to be reaped."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _swap(fresh: Any) -> None:
    """Exchange two fork servers; multiprocessing's functions are bound to the one object of its module."""
    ours = _ours()
    with ours._lock:  # noqa: SLF001
        for part in _PARTS:
            if hasattr(ours, part):
                mine, its = getattr(ours, part), getattr(fresh, part)
                setattr(ours, part, its)
                setattr(fresh, part, mine)


async def _end(server: Any) -> None:
    """End a fork server that is not the current one; its children become ours and are not touched."""
    pid, alive, address = server._forkserver_pid, server._forkserver_alive_fd, server._forkserver_address  # noqa: SLF001
    if pid is None:
        return
    os.close(alive)
    with contextlib.suppress(OSError, TypeError):
        os.unlink(address)
    await _until(lambda: _ended(pid))
    _reap(pid)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


@contextlib.contextmanager
def no_main() -> Iterator[None]:
    """Hide the main script: children would import it under multiprocessing's rules, and it is none of theirs."""
    ours = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = ours


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Have these variables in our own environment, for what is started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

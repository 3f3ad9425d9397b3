"""The fork server of function workers: what it has imported when it forks, and its replacement when that changes.

It is of multiprocessing's make and reached through its module; what is asked of it is functions.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import time
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from smartipc.supervisor.core.spec import AppSpec
from smartipc.supervisor.host import entry, prepared
from smartipc.supervisor.host.passing import Passed

log = logging.getLogger("smartipc.supervisor")
_CHILD_NEEDS = (
    entry.__name__, Passed.__module__, entry.BOOTSTRAP, "smartipc.workers.runtime", "smartipc.workers.sync_runtime",
    "uvloop", "concurrent.futures.thread",
)  # fmt: skip
"""What every child imports before its target, some of it where it may be missing: the fork server has it already."""
_PARTS = ("_forkserver_address", "_forkserver_alive_fd", "_forkserver_pid", "_forkserver_authkey", "_preload_modules")
"""What makes one fork server, in multiprocessing's object; the key is there from Python 3.14 on."""
_LOOK = 0.002
"""Seconds between two looks at a fork server that is being prepared, or that ends."""
_LONG = 5.0
"""Seconds of importing after which the log says what is waited for."""


class ForkServer:
    """Keep a fork server that has imported what the configuration says.

    It is not the one that multiprocessing keeps for the whole process: that belongs to whatever program we are in.

    Args:
        folder: a private directory.
        run_id: marks it, and by it whatever a worker forks without exec.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id
        self._spec: AppSpec
        self._modules: frozenset[str] = frozenset()
        self._path: tuple[str, ...] = ()
        self._made: os.stat_result | None = None
        self._server: _Server | None = None
        self._ending: set[int] = set()
        self._begun = 0
        self._turn = asyncio.Lock()
        self._preparing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<ForkServer {sorted(self.pids())} with {len(self._modules)} modules>"

    def pids(self) -> set[int]:
        """Return its process, and those that are being prepared or end."""
        return self._ending if self._server is None else self._ending | self._server.pids()

    def open(self, spec: AppSpec) -> None:
        """Start it, if any worker needs it; it imports while we go on."""
        self._make_folder()
        self._adopt(spec)
        if _wanted(spec):
            self._server = self._begin(spec)

    def close(self) -> None:
        """End it; its children are gone, or become ours."""
        if self._preparing is not None:
            self._preparing.cancel()
        if self._server is not None:
            self._server.tell_to_end()
            self._server.reap(wait=True)
            self._server = None
        self._remove_folder()

    @property
    def ready(self) -> bool:
        """Whether a start needs to wait for nothing: it is there, and has imported everything."""
        return self._server is not None and self._server.prepared() and not self._server.ended()

    async def prepared(self) -> None:
        """Wait until it is ready; it is started again, if it is not there any more. Cancelling changes nothing.

        Raises:
            OSError: it has died of what it was to import, or cannot be started.
        """
        if self._preparing is None or self._preparing.done():
            self._preparing = asyncio.get_running_loop().create_task(self._prepare())
        await asyncio.shield(self._preparing)

    async def _prepare(self) -> None:
        said, since = False, time.monotonic()
        while not self.ready:
            server = self._server  # a changed configuration may bring another one while we wait
            if server is None:
                self._server = self._begin(self._spec)
            elif server.ended():
                self._server = None
                await self._end(server)
                if not server.prepared():
                    raise ChildProcessError("the fork server has died of what it was to import")
            else:
                if not said and time.monotonic() - since > _LONG:
                    said = True
                    log.warning("the fork server is still importing; workers wait for: %s", _named(self._spec))
                await asyncio.sleep(_LOOK)

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
            if not ((lacking or anyway or self._server is None) and _wanted(spec)):
                return
            self._make_folder()
            fresh = self._begin(spec)
            self._ending |= fresh.pids()
            try:
                # One that dies of its imports is taken as it is: the next start tells why.
                while not (fresh.prepared() or fresh.ended()):  # noqa: ASYNC110 - a file, and a child as below
                    await asyncio.sleep(_LOOK)
            except asyncio.CancelledError:
                await self._end(fresh)
                raise
            old, self._server = self._server, fresh
            self._adopt(spec)
            self._ending -= fresh.pids()
            if old is not None:
                await self._end(old)

    def _begin(self, spec: AppSpec) -> _Server:
        """Start one.

        Raises:
            OSError: there is no room for a process.
        """
        self._begun += 1
        told = self._folder / f"prepared-{self._begun}"
        told.unlink(missing_ok=True)
        with self._environment(spec.python_path, SMARTIPC_PREPARED=str(told)), no_main(), self.tempdir():
            return _Server([*_preload(spec), prepared.__name__], told)

    async def _end(self, server: _Server) -> None:
        """End one that is not the current one any more; its children become ours and are not touched."""
        pids = server.pids()
        self._ending |= pids
        server.tell_to_end()
        try:
            while not server.ended():  # noqa: ASYNC110 - a child that others may reap: nothing here could set an event
                await asyncio.sleep(_LOOK)
        finally:
            server.reap()
            self._ending -= pids

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._made = os.stat(self._folder)

    def _remove_folder(self) -> None:
        """Remove the folder, if it is still the one that we have made."""
        with contextlib.suppress(OSError):
            if self._made is not None and os.path.samestat(self._made, os.stat(self._folder)):
                for left in self._folder.iterdir():
                    left.unlink()
                self._folder.rmdir()

    def _adopt(self, spec: AppSpec) -> None:
        self._spec = spec
        self._modules, self._path = frozenset(_preload(spec)), tuple(spec.python_path)
        missing = [path for path in spec.python_path if path not in sys.path]
        sys.path[:0] = missing  # spawned children inherit it

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let multiprocessing's functions, bound to the one object of its module, speak to ours meanwhile.

        One that has died since it was looked at is started again by them, as it was.
        """
        if self._server is None:
            self._server = self._begin(self._spec)
        mine = self._server.parts
        with self._environment(self._path):
            _swap(mine)
            try:
                yield
            finally:
                _swap(mine)

    @contextlib.contextmanager
    def tempdir(self) -> Iterator[None]:
        """Have multiprocessing put its sockets, and those of the children that are made meanwhile, into our folder."""
        config: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # noqa: SLF001
        before = config.get("tempdir")
        if len(os.fsencode(self._folder)) < 80:  # room for the socket's name in sun_path
            config["tempdir"] = str(self._folder)
        try:
            yield
        finally:
            config.pop("tempdir", None)
            if before is not None:
                config["tempdir"] = before

    @contextlib.contextmanager
    def _environment(self, python_path: Iterable[str], **more: str) -> Iterator[None]:
        """Have in our own environment, meanwhile, what a fork server that is started now needs.

        Its mark, and where it finds the app's modules: before Python 3.12.4 it takes no sys.path from its parent.
        """
        before = os.environ.get("PYTHONPATH")
        path = [*python_path, *([before] if before else [])]
        with environment(PYTHONPATH=os.pathsep.join(path), SMARTIPC_RUN_ID=self._run_id, **more):
            yield


class _Server:
    """One fork server, from its start to its end.

    Args:
        modules: what it imports.
        told: a file that is there once it has.
    """

    def __init__(self, modules: list[str], told: Path) -> None:
        self.parts: Any = multiprocessing.forkserver.ForkServer()
        self.parts.set_forkserver_preload(modules)
        self._told = told
        self._prepared = False
        self.parts.ensure_running()

    def pids(self) -> set[int]:
        """Return its pid; none where multiprocessing could not start it again."""
        pid: int | None = self.parts._forkserver_pid  # noqa: SLF001
        return set() if pid is None else {pid}

    def prepared(self) -> bool:
        """Tell whether it has imported everything."""
        if not self._prepared and self._told.exists():
            self._prepared = True
            self._told.unlink(missing_ok=True)
        return self._prepared

    def ended(self) -> bool:
        """Tell whether it has ended, and leave it to be reaped."""
        try:
            return all(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) for pid in self.pids())
        except ChildProcessError:
            return True

    def tell_to_end(self) -> None:
        """Close what it lives by; while it imports it would not notice."""
        if self.parts._forkserver_alive_fd is not None:  # noqa: SLF001
            os.close(self.parts._forkserver_alive_fd)  # noqa: SLF001
        for pid in () if self.prepared() else self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError, TypeError):
            os.unlink(self.parts._forkserver_address)  # noqa: SLF001

    def reap(self, *, wait: bool = False) -> None:
        """Take its exit status, if nobody has."""
        for pid in self.pids():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0 if wait else os.WNOHANG)


def _wanted(spec: AppSpec) -> bool:
    return any(worker.target and worker.start_method == "forkserver" for worker in spec.workers)


def _named(spec: AppSpec) -> str:
    return ", ".join(dict.fromkeys(name for worker in spec.workers for name in worker.preload)) or "nothing of the app"


def _preload(spec: AppSpec) -> list[str]:
    return list(dict.fromkeys([*_CHILD_NEEDS, *(name for worker in spec.workers for name in worker.preload)]))


def _swap(fresh: Any) -> None:
    """Exchange a fork server with that of multiprocessing's module."""
    ours: Any = multiprocessing.forkserver._forkserver  # noqa: SLF001
    with ours._lock:  # noqa: SLF001
        for part in _PARTS:
            if hasattr(ours, part):
                mine, its = getattr(ours, part), getattr(fresh, part)
                setattr(ours, part, its)
                setattr(fresh, part, mine)


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

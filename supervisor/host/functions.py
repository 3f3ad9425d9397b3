"""Function workers: started through multiprocessing's contexts, from a fork server unless the configuration says other.

Only the start and the exit code are here; the group, the pipes and the death are process.py's business.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.process
import multiprocessing.resource_tracker
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartipc.ipc.control import ExitFacts
from smartipc.ipc.transports.child import ChildProcessTransport
from smartipc.supervisor.core.spec import AppSpec, WorkerSpec
from smartipc.supervisor.host import entry
from smartipc.supervisor.host.exits import facts_of_code
from smartipc.supervisor.host.forkserver import ForkServer, environment, no_main
from smartipc.supervisor.host.launch import abandon
from smartipc.supervisor.host.passing import Passed

_DESCRIPTORS = 8
"""What multiprocessing needs for a start at most: a socket, two pipes, and then our own for its end."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A started function worker."""

    pid: int
    pidfd: int
    pipe: socket.socket
    sentinel: int
    process: Any


class FunctionStarter:
    """Starts processes for targets.

    Args:
        spec: the app.
        folder: a private directory for multiprocessing's own socket.
        run_id: marks the fork server, and by it whatever a worker forks without exec.
        exclusive: the process does nothing else, so multiprocessing's resource tracker is ours to end.
    """

    def __init__(self, spec: AppSpec, folder: Path, run_id: str, *, exclusive: bool) -> None:
        self._spec = spec
        self._run_id = run_id
        self._exclusive = exclusive
        self.fork_server = ForkServer(folder, run_id)

    def __repr__(self) -> str:
        return f"<FunctionStarter of {self._spec.app}>"

    def open(self) -> None:
        """Start the fork server, if it is needed."""
        if not self._exclusive and any(worker.target for worker in self._spec.workers):
            # The program's for as long as it lives, whoever needs it first: it must not carry the mark of the app.
            multiprocessing.resource_tracker.ensure_running()
        self.fork_server.open(self._spec)

    def close(self) -> None:
        """End the helpers; every life is over."""
        self.fork_server.close()
        stop = getattr(multiprocessing.resource_tracker._resource_tracker, "_stop", None)  # noqa: SLF001
        if self._exclusive and stop is not None:
            with contextlib.suppress(OSError):
                stop()

    def ready(self, worker: WorkerSpec) -> bool:
        """Tell whether a start would not wait: for the fork server to import what is preloaded."""
        return worker.target is None or worker.start_method != "forkserver" or self.fork_server.ready

    def helpers(self) -> set[int]:
        """Return the pids of multiprocessing's own processes."""
        tracker = getattr(multiprocessing.resource_tracker._resource_tracker, "_pid", None)  # noqa: SLF001
        return self.fork_server.pids() if tracker is None else self.fork_server.pids() | {tracker}

    def start(
        self, worker: WorkerSpec, instance: str, passed: Sequence[int], *, warm: dict[str, Any] | None = None
    ) -> Begun:
        """Start a process that runs the bootstrap.

        Args:
            worker: whose target it is to run.
            instance: its name.
            passed: descriptors for its stdout and stderr, then its listening sockets.
            warm: what a spare imports before it knows its name: `target`, `env`, `cwd` and `python_path`.

        Raises:
            OSError: it could not be started.
            EOFError: likewise: the fork server died.
            ValueError: likewise: this platform has no such start method.
        """
        if warm is not None and not self.ready(worker):
            raise BlockingIOError(errno.EAGAIN, "the fork server is not ready")  # it would have to be waited for
        pipe, child = ChildProcessTransport.pair()
        with child, contextlib.ExitStack() as undo:
            undo.callback(pipe.close)
            context: Any = multiprocessing.get_context(worker.start_method)
            arguments = tuple(Passed(descriptor) for descriptor in (child.fileno(), *passed))
            _make_sure_of_room()
            with self.fork_server.tempdir(), self._environment(worker), no_main():
                process = context.Process(
                    target=entry.run, args=arguments, kwargs={"warm": warm}, name=instance, daemon=False
                )
                process.start()
            undo.pop_all()
        # multiprocessing would reap it behind our back at the next start, and join it at exit.
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]  # noqa: SLF001
        pid: int = process.pid
        try:
            pidfd = _pidfd(pid, process.sentinel)
        except OSError:  # no descriptor left: without one its end would not be noticed
            abandon(pid)
            forget(process, None)
            pipe.close()
            raise
        return Begun(pid, pidfd, pipe, process.sentinel, process)

    def _environment(self, worker: WorkerSpec) -> contextlib.AbstractContextManager[None]:
        """Mark what is started from its exec on, or have our fork server asked."""
        if worker.start_method == "forkserver":
            return self.fork_server.in_place()
        return environment(SMARTIPC_RUN_ID=self._run_id)


def _make_sure_of_room() -> None:
    """Find out before a fork server is asked: a request that breaks off half-way ends it, with all it has imported.

    Raises:
        OSError: there are not enough descriptors left.
    """
    taken: list[int] = []
    try:
        for _ in range(_DESCRIPTORS):
            taken.append(os.dup(0))  # noqa: PERF401 - what was taken must be known when one fails
    finally:
        for descriptor in taken:
            os.close(descriptor)


def told_exit(sentinel: int) -> ExitFacts | None:
    """Return what the fork server said of its child's end; None if it died before it could."""
    try:
        return facts_of_code(multiprocessing.forkserver.read_signed(sentinel))
    except (OSError, EOFError):
        return None


def forget(process: Any, code: int | None) -> None:
    """Let the object of multiprocessing close its sentinel; it must believe that its process has ended."""
    with contextlib.suppress(AttributeError):
        process._popen.returncode = code if code is not None else -1  # noqa: SLF001
        process.close()


def _pidfd(pid: int, sentinel: int) -> int:
    """Open a pidfd; for a child of the fork server that is reaped already, its sentinel tells the same."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return os.dup(sentinel)

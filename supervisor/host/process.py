"""Processes: start them, notice their death, signal their groups, sweep what they leave.

Function workers come from multiprocessing's contexts, commands from subprocess. A life is identified by (instance,
generation); its pid equals its process group. What a death means is the core's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.process
import multiprocessing.resource_tracker
import os
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import msgspec

from smartipc.ipc.control import Ending, ExitFacts
from smartipc.ipc.transports.child import ChildProcessTransport
from smartipc.supervisor.core.spec import AppSpec, WorkerSpec
from smartipc.supervisor.host import entry
from smartipc.supervisor.host.exits import OomWatch, facts_of, facts_of_code
from smartipc.supervisor.host.guard import Guard
from smartipc.supervisor.host.logfile import LogFile, LogFiles
from smartipc.supervisor.host.output import Drain, Output, Stream

log = logging.getLogger("smartipc.supervisor")
TAIL_LINES = 10
"""Lines of stderr that travel with exit facts."""
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CODE_WAIT = 1.0
"""Seconds to wait for the fork server's word on how its child ended."""
_SWEEP_WAIT = 2.0
"""Seconds to wait for a killed group to vanish."""
_LOOK = 0.005
"""Seconds between two looks at a vanishing group."""


class SpawnError(Exception):
    """No process came to be; the text says why."""


@dataclass(eq=False, slots=True)
class Life:
    """One living (or just dead) process of an instance."""

    instance: str
    generation: int
    pid: int
    started_at: float
    pidfd: int
    pipe: socket.socket | None = None
    """Our end of the child-process pipe, until a link takes it over; None for commands."""
    sentinel: int | None = None
    process: Any = None
    drains: list[Drain] = field(default_factory=list)
    files: list[LogFile] = field(default_factory=list)
    ending: Ending | None = None
    """What it said of its end."""
    killed: bool = False
    """Whether we sent SIGKILL."""


class _Passed:
    """A descriptor that reaches a multiprocessing child under any start method; `detach` gives its number there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self._descriptor),)

    def detach(self) -> int:
        """Return the number: fork copies descriptors as they are."""
        return self._descriptor


def _received(passed: Any) -> Any:
    return passed


class ProcessHost:
    """Starts and ends the processes of one app.

    Args:
        spec: the app.
        folder: a private directory for multiprocessing's own socket.
        output: takes the lines of all instances.
        on_exit: called with (life, facts) when a life is over, reaped and its group swept.
    """

    def __init__(self, spec: AppSpec, folder: Path, output: Output, on_exit: Callable[[Life, ExitFacts], None]) -> None:
        self._spec = spec
        self._output = output
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._guard = Guard()
        self._oom = OomWatch()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._contexts: dict[str, BaseContext] = {}
        self._folder = folder
        self._log_files = LogFiles()
        self.lives: dict[str, Life] = {}

    def __repr__(self) -> str:
        return f"<ProcessHost of {self._spec.app}: {len(self.lives)} lives>"

    def open(self) -> None:
        """Prepare: adopt orphans, start the guardian, tell the fork server what to import."""
        if sys.platform == "linux":
            self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._guard.start()
        # Children import the parent's main script under multiprocessing's rules; ours is the command itself.
        sys.modules["__main__"] = types.ModuleType("__main__")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if len(os.fsencode(self._folder)) < 80:  # room for multiprocessing's socket name in sun_path
            multiprocessing.current_process()._config["tempdir"] = str(self._folder)  # type: ignore[attr-defined]  # noqa: SLF001
        preload = [entry.BOOTSTRAP, "smartipc.workers.runtime", "smartipc.workers.sync_runtime"]
        preload += [name for worker in self._spec.workers for name in worker.preload]
        multiprocessing.get_context("forkserver").set_forkserver_preload(list(dict.fromkeys(preload)))
        missing = [path for path in self._spec.python_path if path not in sys.path]
        sys.path[:0] = missing  # spawned children inherit it
        if any(worker.target and worker.start_method == "forkserver" for worker in self._spec.workers):
            self._start_fork_server()

    def _start_fork_server(self) -> None:
        """Start it where preload finds the app's modules: before Python 3.12.4 it takes no sys.path from its parent."""
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([*self._spec.python_path, *([before] if before else [])])
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before

    def close(self) -> None:
        """End the helpers; every life is over."""
        for stop in (
            getattr(multiprocessing.forkserver._forkserver, "_stop", None),  # noqa: SLF001
            getattr(multiprocessing.resource_tracker._resource_tracker, "_stop", None),  # noqa: SLF001
        ):
            if stop is not None:
                with contextlib.suppress(OSError):
                    stop()
        self._guard.dismiss()
        with contextlib.suppress(OSError):
            for left in self._folder.iterdir():
                left.unlink()
            self._folder.rmdir()

    # starting

    def spawn(self, worker: WorkerSpec, instance: str, generation: int, env: dict[str, str]) -> Life:
        """Start a process and watch it.

        Raises:
            SpawnError: no process came to be; nothing is left open.
        """
        with contextlib.ExitStack() as ours_on_failure, contextlib.ExitStack() as theirs:
            streams: tuple[tuple[Stream, str | None], ...] = (
                ("stdout", worker.logs.stdout),
                ("stderr", worker.logs.stderr),
            )
            files = [self._file(to, worker, instance, ours_on_failure) for _, to in streams]
            ends: list[int] = []
            reads: list[tuple[int, Stream, LogFile | None]] = []
            for (stream, to), file in zip(streams, files, strict=True):
                if to == "inherit":
                    ends.append(1 if stream == "stdout" else 2)
                    continue
                read, write = os.pipe()
                ours_on_failure.callback(os.close, read)
                theirs.callback(os.close, write)
                ends.append(write)
                reads.append((read, stream, file))
            if worker.target is not None:
                life = self._start_function(worker, instance, generation, ends, theirs)
            else:
                life = self._start_command(worker, instance, generation, ends, env)
            ours_on_failure.pop_all()
        life.files = [file for file in files if file is not None]
        life.drains = [Drain(read, self._emitter(instance, stream, file)) for read, stream, file in reads]
        self.lives[instance] = life
        self._guard.add(life.pid, worker.stop.timeout)
        self._loop.add_reader(life.pidfd, self._died, life)
        return life

    def _start_function(
        self, worker: WorkerSpec, instance: str, generation: int, ends: Sequence[int], theirs: contextlib.ExitStack
    ) -> Life:
        pipe, child = ChildProcessTransport.pair()
        theirs.callback(child.close)
        context: Any = multiprocessing.get_context(worker.start_method)
        arguments = tuple(_Passed(descriptor) for descriptor in (child.fileno(), *ends))
        process = context.Process(target=entry.run, args=arguments, name=instance, daemon=False)
        try:
            process.start()
        except (OSError, EOFError, ValueError) as error:
            pipe.close()
            raise SpawnError(f"{worker.start_method} failed: {str(error) or type(error).__name__}") from error
        # multiprocessing would reap it behind our back at the next start, and join it at exit.
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]  # noqa: SLF001
        pid: int = process.pid
        life = Life(instance, generation, pid, time.monotonic(), _pidfd(pid, process.sentinel), pipe)
        life.sentinel = process.sentinel
        life.process = process
        return life

    def _start_command(
        self, worker: WorkerSpec, instance: str, generation: int, ends: Sequence[int], env: dict[str, str]
    ) -> Life:
        assert worker.command is not None
        parent, libc = os.getpid(), self._libc

        def bind_to_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

        try:
            process = subprocess.Popen(  # noqa: S603 - the configuration's own words
                worker.command,
                stdin=subprocess.DEVNULL,
                stdout=ends[0],
                stderr=ends[1],
                cwd=worker.cwd,
                env=env,
                start_new_session=True,
                preexec_fn=bind_to_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - we have no threads
            )
        except (OSError, subprocess.SubprocessError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise SpawnError(f"cannot run {worker.command[0]!r}: {reason}") from error
        life = Life(instance, generation, process.pid, time.monotonic(), os.pidfd_open(process.pid))
        life.process = process
        return life

    def _file(self, to: str | None, worker: WorkerSpec, instance: str, stack: contextlib.ExitStack) -> LogFile | None:
        if to is None or to == "inherit":
            return None
        path = to.replace("{instance}", instance)
        try:
            file = self._log_files.open(path, worker.logs.max_bytes, worker.logs.backups)
        except OSError as error:
            raise SpawnError(f"cannot open log file {path}: {error.strerror}") from error
        stack.callback(self._log_files.release, file)
        return file

    def _emitter(self, instance: str, stream: Stream, file: LogFile | None) -> Callable[[list[bytes]], None]:
        return lambda lines: self._output.lines(instance, stream, lines, file)

    # signals

    def signal(self, life: Life, number: int) -> None:
        """Signal the whole group of a life, and let a stopped one act on it."""
        for one in (number, signal.SIGCONT):
            try:
                os.killpg(life.pid, one)
            except ProcessLookupError:
                # The child has not made its own session yet; the leader is hit by descriptor, never by a recycled pid.
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(life.pidfd, one)
            except PermissionError:
                log.warning("%s: some of its processes may not be signalled", life.instance)

    def kill(self, life: Life) -> None:
        """SIGKILL the whole group of a life."""
        life.killed = True
        self.signal(life, signal.SIGKILL)

    # death

    def _died(self, life: Life) -> None:
        self._loop.remove_reader(life.pidfd)
        facts = self._reap(life)
        if facts is not None:
            self._sweep(life, facts, self._loop.time() + _SWEEP_WAIT)
            return
        # A child of the fork server: its word on the exit code is on the sentinel, now or in a moment.
        assert life.sentinel is not None
        timer = self._loop.call_later(_CODE_WAIT, self._told, life, None)
        self._loop.add_reader(life.sentinel, self._told, life, timer)

    def _told(self, life: Life, timer: asyncio.TimerHandle | None) -> None:
        assert life.sentinel is not None
        self._loop.remove_reader(life.sentinel)
        facts = ExitFacts(reason="the fork server died before it could tell how this process ended")
        if timer is not None:
            timer.cancel()
            with contextlib.suppress(OSError, EOFError):
                facts = facts_of_code(multiprocessing.forkserver.read_signed(life.sentinel))
        if facts.code is None and facts.signal is None:
            facts = self._reap(life) or facts  # adopted from a dead fork server
        self._sweep(life, facts, self._loop.time() + _SWEEP_WAIT)

    def _reap(self, life: Life) -> ExitFacts | None:
        try:
            pid, status = os.waitpid(life.pid, os.WNOHANG)
        except ChildProcessError:
            return None
        if not pid:
            return None
        if isinstance(life.process, subprocess.Popen):
            life.process.returncode = os.waitstatus_to_exitcode(status)  # so that it neither waits nor warns
        return facts_of(status)

    def _sweep(self, life: Life, facts: ExitFacts, until: float) -> None:
        """Kill what the leader left in its group; report the end when the group is empty."""
        try:
            os.killpg(life.pid, signal.SIGKILL)
            while os.waitpid(-life.pid, os.WNOHANG)[0]:
                continue
        except (ProcessLookupError, ChildProcessError):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(life.pid, 0)
                if self._loop.time() < until:
                    self._loop.call_later(_LOOK, self._sweep, life, facts, until)
                    return
                log.warning("%s: processes of its group %d are left over", life.instance, life.pid)
        except PermissionError:
            log.warning("%s: processes of its group %d may not be killed", life.instance, life.pid)
        else:
            if self._loop.time() < until:
                self._loop.call_later(_LOOK, self._sweep, life, facts, until)
                return
        self._finish(life, facts)

    def _finish(self, life: Life, facts: ExitFacts) -> None:
        self._guard.remove(life.pid)
        for drain in life.drains:
            drain.finish()
        for file in life.files:
            self._log_files.release(file)
        os.close(life.pidfd)
        if life.sentinel is not None:
            # The object closes its sentinel when it is collected; it must believe that its process has ended.
            with contextlib.suppress(AttributeError):
                life.process._popen.returncode = facts.code if facts.code is not None else -1  # noqa: SLF001
                life.process.close()
        if self.lives.get(life.instance) is life:
            del self.lives[life.instance]
        self._on_exit(life, self._complete(life, facts))

    def _complete(self, life: Life, facts: ExitFacts) -> ExitFacts:
        ending = life.ending
        tail = self._output.tail(life.instance, lines=TAIL_LINES, stream="stderr")
        return msgspec.structs.replace(
            facts,
            oom=facts.signal == "SIGKILL" and not life.killed and self._oom.happened(),
            reason=facts.reason or (ending.reason if ending is not None and facts.signal is None else ""),
            uptime=round(time.monotonic() - life.started_at, 3),
            stderr_tail=tuple(line.message for line in tail) if facts.code != 0 else (),
        )


def _pidfd(pid: int, sentinel: int) -> int:
    """Open a pidfd; for a child of the fork server that is reaped already, its sentinel tells the same."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return os.dup(sentinel)

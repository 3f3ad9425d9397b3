"""Processes: start them, notice their death, signal their groups, sweep what they leave.

A life is identified by (instance, generation). How a process is made is functions.py's and launch.py's business; what
it leaves behind is found by orphans.py; what a death means is the core's affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.core import stacks
from smartipc.supervisor.core.spec import AppSpec, WorkerSpec
from smartipc.supervisor.host import functions, limits
from smartipc.supervisor.host.exits import OomWatch, facts_of
from smartipc.supervisor.host.functions import Begun, FunctionStarter
from smartipc.supervisor.host.guard import Guard
from smartipc.supervisor.host.launch import Launcher, LaunchError, Program, abandon, find_user
from smartipc.supervisor.host.life import Life
from smartipc.supervisor.host.logfile import LogFile, LogFiles
from smartipc.supervisor.host.orphans import Orphans
from smartipc.supervisor.host.output import TAIL, Drain, Output, Stream
from smartipc.supervisor.host.prctl import adopt_orphans
from smartipc.supervisor.host.sockets import Sockets
from smartipc.supervisor.host.spares import Spare, Spares
from smartipc.supervisor.host.streams import Reads, Streams

log = logging.getLogger("smartipc.supervisor")
TAIL_LINES = 10
"""Lines of stderr that travel with exit facts."""
_CODE_WAIT = 1.0
"""Seconds to wait for the fork server's word on how its child ended."""
_SWEEP_WAIT = 2.0
"""Seconds to wait for killed processes to vanish."""
_LOOK = 0.005
"""Seconds between two looks at them."""


class SpawnError(Exception):
    """No process came to be; the text says why."""


class ProcessHost:
    """Starts and ends the processes of one app.

    Args:
        spec: the app.
        folder: a private directory for multiprocessing's own socket.
        output: takes the lines of all instances.
        run_id: marks everything that descends from this app.
        on_exit: called with (life, facts, at) when a life is over, reaped and what it left is swept; `at` is when it
            ended, monotonic, or None if the sweeping took its time.
        exclusive: this process does nothing but supervise, so it may reap any child of its own.
    """

    def __init__(
        self,
        spec: AppSpec,
        folder: Path,
        output: Output,
        run_id: str,
        on_exit: Callable[[Life, ExitFacts, float | None], None],
        *,
        exclusive: bool = False,
    ) -> None:
        self._spec = spec
        self._output = output
        self._on_exit = on_exit
        self._exclusive = exclusive
        self._loop = asyncio.get_running_loop()
        self._guard = Guard(run_id)
        self._oom = OomWatch()
        self._starter = FunctionStarter(spec, folder, run_id, exclusive=exclusive)
        self._log_files = LogFiles()
        self.lives: dict[tuple[str, int], Life] = {}
        self.launcher = Launcher()
        self.sockets = Sockets()
        self.spares = Spares(self._guard, self._start_spare)
        self.others: set[int] = set()
        """Pids of children that are no lives but are looked after: hooks and probes."""
        self.orphans = Orphans(run_id, self._known, exclusive=exclusive)
        self.before_death: Callable[[Life], None] = lambda _life: None
        """Called before a death is judged: last words may still be unread."""
        self.on_line: dict[tuple[str, int], Callable[[bytes], None]] = {}
        """For (instance, generation): called with every line of its output."""

    def __repr__(self) -> str:
        return f"<ProcessHost of {self._spec.app}: {len(self.lives)} lives>"

    def open(self) -> None:
        """Prepare: adopt orphans, start the guardian and the fork server, open the sockets.

        Raises:
            OSError: a listening socket cannot be opened.
        """
        self.sockets.apply(self._spec.sockets)
        adopt_orphans(on=True)
        self._guard.start()
        self._starter.open()
        if self._exclusive:
            self._loop.add_signal_handler(signal.SIGCHLD, self.orphans.unknown)

    async def prepare(self, spec: AppSpec) -> None:
        """Make ready for a changed configuration, before any process of it is started. Cancelling it changes nothing.

        Raises:
            OSError: no other fork server can be started.
        """
        await self._starter.fork_server.renew(spec)

    async def renew(self) -> None:
        """Replace the fork server: nobody can connect to its socket any more. Errors and cancelling as prepare."""
        await self._starter.fork_server.renew(self._spec, anyway=True)

    def ready_for(self, worker: WorkerSpec, *, warm: bool) -> bool:
        """Tell whether spawn would not wait for the fork server's imports; nothing may hold up the loop for so long."""
        return self._starter.ready(worker) or (warm and self.spares.has(worker.name))

    async def prepared(self) -> None:
        """Wait until the fork server has imported what is preloaded. Cancelling changes nothing.

        Raises:
            OSError: it has died of it, or cannot be started.
        """
        await self._starter.fork_server.prepared()

    def adopt(self, spec: AppSpec) -> None:
        """Go over to a changed configuration."""
        self._spec = spec

    def close(self) -> None:
        """Sweep, and end the helpers; every life is over."""
        if self._exclusive:
            self._loop.remove_signal_handler(signal.SIGCHLD)
        self.spares.close()
        deadline = time.monotonic() + _SWEEP_WAIT
        while (killed := self.orphans.kill_all()) and time.monotonic() < deadline:
            for pid, words in killed.items():
                log.warning("process %d was left over and is killed: %s", pid, words)
            time.sleep(_LOOK)
        self._starter.close()
        if not self._exclusive:
            adopt_orphans(on=False)
        self._guard.dismiss()
        self.launcher.close()
        self.orphans.close()
        self.sockets.close()

    def _known(self) -> set[int]:
        known = {life.pid for life in self.lives.values()} | self.others | self._starter.helpers() | self.spares.pids()
        return known if self._guard.pid is None else known | {self._guard.pid}

    # starting

    def spawn(
        self, worker: WorkerSpec, instance: str, generation: int, env: dict[str, str], *, warm: bool = False
    ) -> Life:
        """Start a process and watch it; `warm` takes a spare if there is one.

        Raises:
            SpawnError: no process came to be; nothing is left open.
        """
        try:
            life = self._begin(worker, instance, generation, env, warm=warm)
        except OSError as error:  # no descriptor, no memory, no process: whatever it is, it is one failed try
            raise SpawnError(f"cannot start: {error.strerror or error}") from error
        self.lives[instance, generation] = life
        self._guard.add(life.group, worker.stop.timeout)
        self._loop.add_reader(life.pidfd, self._died, life)
        return life

    def _begin(self, worker: WorkerSpec, instance: str, generation: int, env: dict[str, str], *, warm: bool) -> Life:
        files = self._files(worker, instance)
        try:
            life, reads = self._start(worker, instance, generation, env, warm=warm)
        except BaseException:
            for _, file in files:
                self._log_files.release(file)
            raise
        life.lines_after = self._output.seq
        life.files = [file for _, file in files]
        life.pipes = frozenset(os.fstat(read).st_ino for read, _ in reads)
        to = dict(files)
        life.drains = [Drain(read, self._emitter(life, stream, to.get(stream))) for read, stream in reads]
        return life

    def _start(
        self, worker: WorkerSpec, instance: str, generation: int, env: dict[str, str], *, warm: bool
    ) -> tuple[Life, Reads]:
        """Start a process, or take a spare, and return its life with what we read of it."""
        spare = self.spares.take(worker.name) if warm else None
        if spare is not None:
            self._guard.remove(spare.begun.pid)
            return _life(instance, generation, spare.begun), spare.reads
        streams = Streams(worker)
        try:
            if worker.target is not None:
                life = self._start_function(worker, instance, generation, streams.ends)
            else:
                life = self._start_command(worker, instance, generation, streams.ends, env)
        except BaseException:
            streams.undo()
            raise
        streams.started()
        return life, streams.reads

    def _start_spare(self, worker: WorkerSpec, env: dict[str, str]) -> Spare:
        streams = Streams(worker)
        try:
            passed = (*streams.ends, *self.sockets.descriptors(worker.sockets))
            path = list(self._spec.python_path)
            warm = {"target": worker.target, "env": env, "cwd": worker.cwd, "python_path": path}
            begun = self._starter.start(worker, f"spare of {worker.name}", passed, warm=warm)
        except BaseException:
            streams.undo()
            raise
        streams.started()
        return Spare(begun, streams.reads)

    def _start_function(self, worker: WorkerSpec, instance: str, generation: int, ends: Sequence[int]) -> Life:
        try:
            begun = self._starter.start(worker, instance, (*ends, *self.sockets.descriptors(worker.sockets)))
        except (OSError, EOFError, ValueError) as error:
            raise SpawnError(f"{worker.start_method} failed: {str(error) or type(error).__name__}") from error
        return _life(instance, generation, begun)

    def _start_command(
        self, worker: WorkerSpec, instance: str, generation: int, ends: Sequence[int], env: dict[str, str]
    ) -> Life:
        assert worker.command is not None
        try:
            user = find_user(worker.user) if worker.user is not None else None
            pid = self.launcher.launch(
                Program(
                    worker.command,
                    env,
                    worker.cwd,
                    ends[0],
                    ends[1],
                    sockets=self.sockets.descriptors(worker.sockets),
                    limits=limits.for_child(worker.limits),
                    slot=int(instance.rpartition(":")[2]),
                    user=user,
                    umask=worker.umask,
                )
            )
        except (LaunchError, LookupError) as error:
            raise SpawnError(str(error)) from error
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:  # no descriptor left: without one its end would not be noticed
            abandon(pid)
            raise
        return Life(instance, generation, pid, time.monotonic(), pidfd, pid)

    def _files(self, worker: WorkerSpec, instance: str) -> list[tuple[Stream, LogFile]]:
        """Open the log files of a life; each is to be released."""
        logs, files = worker.logs, list[tuple[Stream, LogFile]]()
        to: tuple[tuple[Stream, str | None], ...] = (("stdout", logs.stdout), ("stderr", logs.stderr))
        for stream, name in to:
            if name is None or name == "inherit":
                continue
            path = name.replace("{instance}", instance)
            try:
                files.append((stream, self._log_files.open(path, logs.max_bytes, logs.backups)))
            except OSError as error:
                for _, file in files:
                    self._log_files.release(file)
                raise SpawnError(f"cannot open log file {path}: {error.strerror}") from error
        return files

    def _emitter(self, life: Life, stream: Stream, file: LogFile | None) -> Callable[[list[bytes]], None]:
        instance, key = life.instance, (life.instance, life.generation)

        def emit(lines: list[bytes]) -> None:
            life.complained = life.complained or stream == "stderr"
            self._output.lines(instance, stream, lines, file)
            look = self.on_line.get(key)
            if look is not None:
                for line in lines:
                    look(line)

        return emit

    # signals

    def signal(self, life: Life, number: int) -> None:
        """Signal the whole group of a life, and let a stopped one act on it."""
        for one in (number, signal.SIGCONT):
            try:
                os.killpg(life.group, one)
            except ProcessLookupError:
                # The child has not made its own session yet; the leader is hit by descriptor, never by a recycled pid.
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(life.pidfd, one)
            except PermissionError:
                log.warning(
                    "%s: some of its processes may not be signalled", life.instance, extra={"instance": life.instance}
                )

    def kill(self, life: Life) -> None:
        """SIGKILL the whole group of a life."""
        life.killed = True
        self.signal(life, signal.SIGKILL)

    def follow(self, life: Life, pid: int) -> None:
        """Take another process for the main one, as it has told: its end is the end of the life.

        Raises:
            OSError: there is no such process.
        """
        group = os.getpgid(pid)
        pidfd = os.pidfd_open(pid)
        self._loop.remove_reader(life.pidfd)
        os.close(life.pidfd)
        if group != life.group:
            self._guard.follow(life.group, group)
        life.pid, life.pidfd, life.group = pid, pidfd, group
        self._loop.add_reader(life.pidfd, self._died, life)

    # death

    def _died(self, life: Life) -> None:
        at, pid = time.monotonic(), life.pid
        self.before_death(life)
        if life.pid != pid:
            return  # its last word was that another process is the main one
        self._loop.remove_reader(life.pidfd)
        facts = self._reap(life)
        if facts is not None:
            self._sweep(life, facts, at, self._loop.time() + _SWEEP_WAIT)
        elif life.sentinel is None:
            self._sweep(life, ExitFacts(reason="its main process was no child of ours"), at, self._loop.time())
        else:
            # A child of the fork server: its word on the exit code is on the sentinel, now or in a moment.
            timer = self._loop.call_later(_CODE_WAIT, self._told, life, at, None)
            self._loop.add_reader(life.sentinel, self._told, life, at, timer)

    def _told(self, life: Life, at: float, timer: asyncio.TimerHandle | None) -> None:
        assert life.sentinel is not None
        self._loop.remove_reader(life.sentinel)
        facts = None
        if timer is not None:
            timer.cancel()
            facts = functions.told_exit(life.sentinel)
        if facts is None:  # perhaps adopted from a dead fork server
            unknown = ExitFacts(reason="the fork server died before it could tell how this process ended")
            facts = self._reap(life) or unknown
        self._sweep(life, facts, at, self._loop.time() + _SWEEP_WAIT)

    def _reap(self, life: Life) -> ExitFacts | None:
        try:
            pid, status = os.waitpid(life.pid, os.WNOHANG)
        except ChildProcessError:
            return None
        return facts_of(status) if pid else None

    def _sweep(self, life: Life, facts: ExitFacts, at: float | None, until: float) -> None:
        """Kill what the leader, which ended `at`, left in its group and outside; report the end when all is gone."""
        in_group = self._sweep_group(life)
        escaped = self.orphans.kill_those_of(life)
        if in_group or escaped:
            if self._loop.time() < until:
                self._loop.call_later(_LOOK, self._sweep, life, facts, None, until)
                return
            log.warning(
                "%s: processes that it left do not go away, group %d",
                life.instance,
                life.group,
                extra={"instance": life.instance},
            )
        self._finish(life, facts, at)

    def _sweep_group(self, life: Life) -> bool:
        """Kill and reap the group; return whether anything of it is left."""
        try:
            os.killpg(life.group, signal.SIGKILL)
            while os.waitpid(-life.group, os.WNOHANG)[0]:
                continue
        except ProcessLookupError:
            return False
        except ChildProcessError:  # whoever is left in it is no child of ours, yet
            try:
                os.killpg(life.group, 0)
            except OSError:
                return False
        except PermissionError:
            log.warning(
                "%s: processes of its group %d may not be killed",
                life.instance,
                life.group,
                extra={"instance": life.instance},
            )
            return False
        return True

    def _finish(self, life: Life, facts: ExitFacts, at: float | None) -> None:
        for drain in life.drains:
            drain.finish()
        for file in life.files:
            self._log_files.release(file)
        key = life.instance, life.generation
        self.on_line.pop(key, None)
        os.close(life.pidfd)
        if life.sentinel is not None:
            functions.forget(life.process, facts.code)
        self.lives.pop(key, None)
        self._on_exit(life, self._complete(life, facts), at)
        # Last, when a successor runs; and not if that, of all numbers, has got this one.
        if life.group not in self._known():
            self._guard.remove(life.group)

    def _complete(self, life: Life, facts: ExitFacts) -> ExitFacts:
        ending = life.ending
        return msgspec.structs.replace(
            facts,
            oom=facts.signal == "SIGKILL" and not life.killed and self._oom.happened(),
            reason=facts.reason or (ending.reason if ending is not None and facts.signal is None else ""),
            uptime=round(time.monotonic() - life.started_at, 3),
            stderr_tail=self._last_words(life, facts) if life.complained else (),
        )

    def _last_words(self, life: Life, facts: ExitFacts) -> tuple[str, ...]:
        """Return the end of its stderr, where it failed; stacks that a signal made it write become the life's."""
        lines = self._output.tail(life.instance, lines=TAIL, after=life.lines_after, stream="stderr")
        told = [line.message for line in lines]
        if facts.signal is not None:
            first, end = stacks.dump(told)
            life.stacks = tuple(told[first:end])
            told = [*told[:first], *told[end:], *stacks.essence(life.stacks)]
        return tuple(told[-TAIL_LINES:]) if facts.code != 0 else ()


def _life(instance: str, generation: int, begun: Begun) -> Life:
    now = time.monotonic()
    life = Life(instance, generation, begun.pid, now, begun.pidfd, begun.pid, pipe=begun.pipe)
    life.sentinel, life.process = begun.sentinel, begun.process
    return life

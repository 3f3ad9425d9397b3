"""Start a program: everything that happens between fork and exec, in the order that the kernel wants it.

A program that needs nothing special is started by vfork.py, which copies nothing of us. The others are forked: the pid
that LISTEN_PID and WATCHDOG_PID must carry is only known in the child, privileges are dropped after what needs them,
and the parent-death signal is set after that, because changing the user clears it. That is why this is a fork of our
own and not a list of arguments to subprocess. The child runs a few lines of Python and then exec; it allocates little,
touches no event loop and never returns.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from smartipc.supervisor.core.process_spec import NO_LIMITS, LimitsSpec
from smartipc.supervisor.core.spec import AppSpec
from smartipc.supervisor.host import limits
from smartipc.supervisor.host.prctl import die_with_parent
from smartipc.supervisor.host.vfork import Vfork

_FIRST = 3
"""Number of the first handed over socket (sd_listen_fds)."""
_REPORT = 4096
_ALL = signal.valid_signals()
_OURS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGCHLD", "SIGPIPE", "SIGXFSZ", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
"""What the supervisor or its interpreter may handle or ignore; looking at all sixty would cost a quarter of a fork."""
_PIDS = ("LISTEN_FDS", "WATCHDOG_USEC")
"""Variables beside which the child's own pid is told."""


class LaunchError(Exception):
    """The program does not run; the text says why."""


@dataclass(frozen=True, slots=True)
class User:
    """Whom a program runs as: resolved before the fork, because lookups may need a file or a network."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """What to run and with what. Descriptors stay the caller's."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    """Complete. LISTEN_PID and WATCHDOG_PID are added in the child."""
    cwd: str
    stdout: int
    stderr: int
    sockets: tuple[int, ...] = ()
    limits: LimitsSpec = NO_LIMITS
    slot: int = 0
    user: User | None = None
    umask: int | None = None


def find_user(text: str) -> User:
    """Look up "name", "name:group", or numbers.

    Raises:
        LookupError: there is no such user or group, with a sentence.
    """
    name, _, group = text.partition(":")
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        raise LookupError(f"there is no user {name!r}") from None
    gid = entry.pw_gid
    if group:
        try:
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise LookupError(f"there is no group {group!r}") from None
    return User(entry.pw_name, entry.pw_uid, gid, tuple(os.getgrouplist(entry.pw_name, gid)))


def refused_users(spec: AppSpec) -> list[str]:
    """Return one sentence for every worker whose `user` this process cannot give it."""
    found = []
    for worker in spec.workers:
        if worker.user is None:
            continue
        reason = ""
        try:
            if find_user(worker.user).uid != os.geteuid() and os.geteuid() != 0:
                reason = f"running as {worker.user} needs root, and this supervisor runs as user {os.geteuid()}"
        except LookupError as error:
            reason = str(error)
        if reason:
            found.append(f"{spec.config_path}: workers.{worker.name}.user: {reason}")
    return found


class Launcher:
    """Starts programs, by the cheapest way that gives each what it needs."""

    def __init__(self) -> None:
        self._vfork: Vfork | None = None
        if os.environ.get("SMARTIPC_VFORK") != "0":
            with contextlib.suppress(OSError):
                self._vfork = Vfork(_OURS)

    def __repr__(self) -> str:
        return f"<Launcher by {'vfork' if self._vfork is not None else 'fork'}>"

    def close(self) -> None:
        """Close its descriptors."""
        vfork, self._vfork = self._vfork, None
        if vfork is not None:
            vfork.close()

    def launch(self, program: Program) -> int:
        """Run it as the leader of a new session, and return its pid once exec has succeeded.

        Raises:
            LaunchError: it does not run; no process is left.
        """
        path = _plain_path(program) if self._vfork is not None else None
        if self._vfork is None or path is None:
            return _launch_by_fork(program)
        try:
            # With the dot, because whoever enters it must be allowed to.
            cwd = os.open(f"{program.cwd}/.", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise LaunchError(f"cwd {program.cwd}: {error.strerror}") from error
        try:
            return self._vfork.start(
                path,
                program.argv,
                program.env,
                cwd=cwd,
                stdout=program.stdout,
                stderr=program.stderr,
                open_files=program.limits.open_files,
            )
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise LaunchError(f"cannot run {program.argv[0]!r}: {reason}") from error
        finally:
            os.close(cwd)


def _plain_path(program: Program) -> str | None:
    """Return what to execute, if the program needs nothing that only a fork can give it, and is found at once."""
    files = program.limits.open_files
    special = program.sockets or program.user or program.umask is not None
    if special or not program.limits.only_open_files or any(name in program.env for name in _PIDS):
        return None
    if files is not None and not limits.is_allowed(files):
        return None
    inherited = (program.stdout, 1), (program.stderr, 2)
    if any(source <= 2 and source != wanted for source, wanted in inherited):
        return None  # they stand where another one is to go
    name = program.argv[0]
    if os.path.dirname(name):
        return name
    found = (os.path.join(folder, name) for folder in os.get_exec_path(program.env) if os.path.isabs(folder))
    return next((path for path in found if os.access(path, os.X_OK) and os.path.isfile(path)), None)


def _launch_by_fork(program: Program) -> int:
    read, write = os.pipe()  # closed by exec: an empty report is success
    parent = os.getpid()
    # A signal between fork and exec must not reach the handlers that the child still shares with us.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
    try:
        pid = os.fork()
        if not pid:
            _become(program, parent, write)
    except OSError as error:
        os.close(read)
        os.close(write)
        raise LaunchError(f"cannot fork: {error.strerror}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(write)
    with open(read, "rb") as reports:
        report = reports.read(_REPORT)
    if report:
        os.waitpid(pid, 0)
        raise LaunchError(report.decode("utf-8", "replace"))
    return pid


def abandon(pid: int) -> None:
    """End a process that was started and cannot be looked after, with its group, and reap it where it is our child."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _become(program: Program, parent: int, report: int) -> NoReturn:
    """Turn this process, a fresh fork of `parent`, into the program; a failure is written to `report`."""
    step = "cannot start"
    try:
        top = os.sysconf("SC_OPEN_MAX")  # before the limit is lowered: descriptors above it stay open
        os.setsid()
        _forget_handlers()
        step = "limits"
        limits.apply(0, program.limits, program.slot)
        if program.umask is not None:
            os.umask(program.umask)
        if program.user is not None:
            step = f"user {program.user.name}"
            if os.geteuid() == 0:
                os.setgroups(program.user.groups)
            os.setgid(program.user.gid)
            os.setuid(program.user.uid)
        step = f"cwd {program.cwd}"
        os.chdir(program.cwd)
        step = "cannot start"
        report = _arrange(program, report, top)
        die_with_parent()
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)
        env = dict(program.env)
        for name in _PIDS:
            if name in env:
                env[f"{name.partition('_')[0]}_PID"] = str(os.getpid())
        step = f"cannot run {program.argv[0]!r}"
        os.execvpe(program.argv[0], program.argv, env)  # noqa: S606 - the configuration's own words
    except BaseException as error:  # whatever it is, the supervisor is told and this process ends here
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        with contextlib.suppress(OSError):
            os.write(report, f"{step}: {reason}".encode()[:_REPORT])
    os._exit(127)


def _forget_handlers() -> None:
    """Drop ours before signals are let in again; exec itself keeps what is ignored."""
    signal.set_wakeup_fd(-1)
    for number in _OURS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _arrange(program: Program, report: int, top: int) -> int:
    """Put the descriptors where they belong and close all others, below `top`; return the report's new number."""
    above = _FIRST + len(program.sockets)
    # Copies out of the way first: a source may sit where another one is to go.
    sources = [os.open(os.devnull, os.O_RDONLY), program.stdout, program.stderr, *program.sockets]
    copies = [fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, above + 1) for source in sources]
    moved = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, above + 1)
    for number, copy in enumerate(copies):
        os.dup2(copy, number, inheritable=True)
    os.dup2(moved, above, inheritable=False)
    os.closerange(above + 1, top)
    return above

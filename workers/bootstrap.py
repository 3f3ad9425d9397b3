"""The first code of a worker process: make it its own session, learn what to be, run it, tell how it ended.

Called by name from supervisor/host/entry.py in the child. Knows processes and the control contract; what a worker
does is in the runtimes, and nothing of the supervisor is imported here.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import gc
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import socket
import sys
import traceback
from typing import Any, Literal, NoReturn

from smartipc.ipc import control
from smartipc.ipc.errors import SmartIpcError
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.wire.codec import decoder_for
from smartipc.ipc.wire.depth import is_open_ended
from smartipc.workers import logs, rehearsal
from smartipc.workers.control import ControlClient
from smartipc.workers.loading import TargetError, flavour, load_target

for _wanted in (control.Launch, control.Directory, control.StopOrder):
    # Once, in the fork server that imports this, instead of 20 ms in every worker: what their decoding needs to know.
    decoder_for(_wanted)
    is_open_ended(_wanted)

_MAX_TRACEBACK = 8 * 1024
"""Characters of a traceback that travel to the supervisor; the log has all of it."""


def main(
    control_fd: int, stdout_fd: int, stderr_fd: int, *socket_fds: int, warm: dict[str, Any] | None = None
) -> NoReturn:
    """Become the instance that the supervisor at the other end of `control_fd` names, and exit with its code.

    Args:
        control_fd: the child's end of the pipe; a connected socket.
        stdout_fd: becomes fd 1 and is closed.
        stderr_fd: becomes fd 2 and is closed.
        socket_fds: listening sockets; become fd 3 and so on, as sd_listen_fds expects them.
        warm: for a spare: what to import before it knows its name.
    """
    _isolate({control_fd, stdout_fd, stderr_fd, *socket_fds}, stdout_fd, stderr_fd)
    if socket_fds:
        control_fd = _place_sockets(control_fd, socket_fds)
    if warm is not None:
        _warm_up(**warm)
    port = ControlClient(socket.socket(fileno=control_fd))
    if warm is not None:
        port.prepare()
    try:
        launch = port.launch()
    except (SmartIpcError, OSError):
        # The supervisor died or withdrew before this process became anything: nobody waits for a word.
        raise SystemExit(0) from None
    ending = _live(launch, port)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    port.ending(ending)
    raise SystemExit(ending.code)


def _isolate(keep: set[int], stdout_fd: int, stderr_fd: int) -> None:
    if type(multiprocessing.current_process()).__name__ == "ForkProcess":
        _forget_parent(keep)
    _leave_fork_server()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if os.getpid() != os.getsid(0):
        os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for source, wanted in ((null, 0), (stdout_fd, 1), (stderr_fd, 2)):
        os.dup2(source, wanted)
    for descriptor in {null, stdout_fd, stderr_fd} - {0, 1, 2}:
        os.close(descriptor)
    # New objects: the inherited ones remember what kind of file these descriptors were.
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    faulthandler.enable(file=2, all_threads=True)


def _place_sockets(control_fd: int, socket_fds: tuple[int, ...]) -> int:
    """Move the listening sockets to where sd_listen_fds looks, and out of their way what is there; return the pipe."""
    above = 3 + len(socket_fds)
    control = fcntl.fcntl(control_fd, fcntl.F_DUPFD_CLOEXEC, above)
    copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, above) for descriptor in socket_fds]
    for descriptor in {control_fd, *socket_fds}:
        os.close(descriptor)
    tracker: Any = multiprocessing.resource_tracker._resource_tracker
    told = getattr(tracker, "_fd", None)
    if told is not None and told < above:
        tracker._fd = fcntl.fcntl(told, fcntl.F_DUPFD_CLOEXEC, above)
    for number, copy in enumerate(copies, start=3):
        os.dup2(copy, number, inheritable=True)
        os.close(copy)
    return control


def _warm_up(target: str, env: dict[str, str], cwd: str, python_path: list[str]) -> None:
    """Import what the target needs, and rehearse. What fails here fails again, and is told, when it matters."""
    with contextlib.suppress(Exception, SystemExit):
        os.environ.update(env)
        os.chdir(cwd)
        sys.path[:0] = [entry for entry in python_path if entry not in sys.path]
        kind = flavour(load_target(target))
        rehearsal.rehearse(_run, kind)
        if kind == "async":
            from smartipc.workers import runtime

            runtime.prepare()
        gc.freeze()  # a collection writes to every object it looks at, and each write to a shared page copies it


def _forget_parent(keep: set[int]) -> None:
    """Drop what fork copied: the wake-up descriptor of the supervisor's loop and every pipe of the siblings.

    A sibling's pipe held open here would hide the supervisor's death from that sibling.
    """
    signal.set_wakeup_fd(-1)
    low = 3
    for descriptor in sorted(keep):
        os.closerange(low, descriptor)
        low = max(low, descriptor + 1)
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def _leave_fork_server() -> None:
    """Let go of the supervisor's fork server, which lives for as long as anybody holds its pipe.

    Otherwise it would outlive a killed supervisor until the last worker is gone, and processes that a worker starts
    by itself would come from it instead of belonging to the worker.
    """
    server: Any = multiprocessing.forkserver._forkserver
    alive = getattr(server, "_forkserver_alive_fd", None)
    if alive is not None:
        with contextlib.suppress(OSError):
            os.close(alive)
        server._forkserver_alive_fd = server._forkserver_address = server._forkserver_pid = None


def _live(launch: control.Launch, port: ControlClient) -> control.Ending:
    try:
        _adopt_environment(launch.env)
        if "LISTEN_FDS" in launch.env:
            os.environ["LISTEN_PID"] = str(os.getpid())
        if launch.umask is not None:
            os.umask(launch.umask)
        os.chdir(launch.cwd)
        sys.path[:0] = [entry for entry in launch.python_path if entry not in sys.path]
        logs.configure(launch.log_level)
        function = load_target(launch.target)
        kind = flavour(function)
        started = control.Started(heartbeat_source=_source(launch, kind), flavour=kind)
        directory = Directory()
        directory.apply(launch.directory)
        interval = launch.heartbeat.interval
        port.start(directory, source=started.heartbeat_source, interval=interval)
        return control.Ending(code=0, reason=_run(function, launch, directory, port, started))
    except TargetError as error:
        print(f"{error}\n{error.detail}", file=sys.stderr)
        return control.Ending(code=1, reason=str(error), traceback=error.detail[-_MAX_TRACEBACK:])
    except SystemExit as error:
        return _exit_asked(error)
    except BaseException as error:  # the boundary of the worker's own code: everything becomes exit facts
        text = traceback.format_exc()
        print(text, file=sys.stderr, end="")
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return control.Ending(code=1, reason=reason, traceback=text[-_MAX_TRACEBACK:])


def _adopt_environment(env: dict[str, str]) -> None:
    """Make it ours; in a spare nearly all of it is, and each change is a call of the C library."""
    for name in os.environ.keys() - env.keys():
        del os.environ[name]
    for name, value in env.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _run(
    function: Any,
    launch: control.Launch,
    directory: Directory,
    port: ControlClient,
    started: control.Started,
) -> str:
    if started.flavour == "async":
        from smartipc.workers import runtime

        return runtime.run(function, launch, directory, port, started)
    from smartipc.workers import sync_runtime

    return sync_runtime.run(function, launch, directory, port, started)


def _source(launch: control.Launch, kind: Literal["async", "blocking"]) -> Literal["loop", "process", "off"]:
    if launch.heartbeat.source is not None:
        return launch.heartbeat.source
    return "loop" if kind == "async" else "process"


def _exit_asked(error: SystemExit) -> control.Ending:
    """Turn SystemExit into a code as the interpreter does: None is 0, text is printed and becomes 1."""
    if error.code is None or isinstance(error.code, int):
        code = (error.code or 0) & 0xFF
        return control.Ending(code=code, reason="completed" if code == 0 else f"SystemExit({code})")
    print(error.code, file=sys.stderr)
    return control.Ending(code=1, reason=f"SystemExit({error.code!r})")

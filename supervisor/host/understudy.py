"""A small process that waits to become the next program: a restart then costs an exec, not a fork.

Forking the supervisor takes milliseconds, most of them to copy its page tables, and they would fall between the death
of a program and its replacement. So a fresh interpreter is started ahead, when nothing else is to do. It is our child,
holds nothing but its end of one socket pair, dies with us, and takes exactly one program. Without one that is ready a
program is launched the ordinary way. What happens between fork and exec is launch.py's business either way.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
from typing import NoReturn

from smartipc.supervisor.host.launch import LaunchError, Program, become, launch

_PR_SET_PDEATHSIG = 1
_QUIET = 0.02
"""Seconds without a launch after which the next understudy is made."""
_SIZE = struct.Struct("!I")
_REPORT = 4096
_MOST_SOCKETS = 64
_SCRIPT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from smartipc.supervisor.host import understudy
understudy.main(int(sys.argv[2]), int(sys.argv[3]))
"""


class Understudy:
    """Launch programs, one of them from a process that was forked ahead.

    Args:
        wanted: whether to keep one ready at all.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted and sys.platform == "linux"
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: tuple[int, socket.socket] | None = None

    def __repr__(self) -> str:
        return f"<Understudy {self._waiting[0] if self._waiting else 'none'}>"

    def pids(self) -> set[int]:
        """Return the process that waits, if there is one."""
        return {self._waiting[0]} if self._waiting else set()

    def launch(self, program: Program) -> int:
        """Run a program as launch.launch does, and prepare for the next.

        Raises:
            LaunchError: it does not run; no process is left.
        """
        self._prepare_soon()
        if self._waiting is None or not _said_ready(self._waiting[1]):
            return launch(program)
        (pid, sock), self._waiting = self._waiting, None
        with sock:
            try:
                _send(sock, program)
            except OSError:  # it is gone, killed from outside
                _reap(pid)
                return launch(program)
            report = sock.recv(_REPORT)  # exec closes the other end: an empty report is success
        if report:
            _reap(pid)
            raise LaunchError(report.decode("utf-8", "replace"))
        return pid

    def close(self) -> None:
        """End the one that waits."""
        self._wanted = False
        if self._timer is not None:
            self._timer.cancel()
        if self._waiting is not None:
            pid, sock = self._waiting
            self._waiting = None
            sock.close()
            _reap(pid)

    def _prepare_soon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._wanted:
            self._timer = self._loop.call_later(_QUIET, self._prepare)

    def _prepare(self) -> None:
        if self._waiting is not None:
            return
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            return  # as below
        words = [sys.executable, "-I", "-c", _SCRIPT, json.dumps(sys.path), str(os.getpid()), str(theirs.fileno())]
        try:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])  # noqa: S603
        except OSError:  # no room for one more: the ordinary way will say so when it matters
            ours.close()
        else:
            process.returncode = 0  # reaped here or as the program that it becomes, never by subprocess
            self._waiting = process.pid, ours
        finally:
            theirs.close()


def _said_ready(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_DONTWAIT))
    except OSError:
        return False


def _send(sock: socket.socket, program: Program) -> None:
    descriptors = [program.stdout, program.stderr, *program.sockets]
    data = pickle.dumps(program)
    sent = socket.send_fds(sock, [_SIZE.pack(len(data)), data], descriptors)
    sock.sendall(memoryview(data)[max(0, sent - _SIZE.size) :])


def main(parent: int, number: int) -> NoReturn:
    """Be the understudy: wait at the socket `number` for a program, become it."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == parent:
            gc.disable()
            sock = socket.socket(fileno=number)
            sock.sendall(b"r")
            program = _receive(sock)
            if program is not None:
                become(program, parent, number)
    finally:
        os._exit(1)


def _receive(sock: socket.socket) -> Program | None:
    """Return the program with our numbers of its descriptors, None when nobody needs one any more."""
    data, descriptors, _flags, _address = socket.recv_fds(sock, 1 << 16, _MOST_SOCKETS)
    if len(data) < _SIZE.size:
        return None
    size = _SIZE.size + _SIZE.unpack_from(data)[0]
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            return None
        data += more
    program: Program = pickle.loads(data[_SIZE.size :])  # noqa: S301 - from the process that started this one
    out, err, *sockets = descriptors
    return dataclasses.replace(program, stdout=out, stderr=err, sockets=tuple(sockets))


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)

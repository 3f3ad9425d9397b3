"""Start a program by vfork and exec: nothing of the supervisor is copied, so it costs a tenth of a fork.

The child shares our memory, so no Python may run in it; posix_spawn(3), which is made for this, knows no parent-death
signal. Therefore the child runs calls of the C library, chained as contexts of makecontext(3): when one function
returns, the next begins, on its own stack, with its own signal mask. Nobody looks at their results, so what could fail
is looked at before; only exec itself may, and then the call after it is reached.

What a program is, and whether it can be started like this, is launch.py's business.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import resource
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from smartipc.supervisor.host.prctl import SET_PDEATHSIG

_CLONE_VM, _CLONE_VFORK = 0x100, 0x4000
_ALL = signal.valid_signals()
_ROOM = 8 * 1024
"""Bytes of a context and of a stack: twice what any platform's context takes, and what a call that is one needs."""
_MOST = 32
"""Calls in a chain at most."""
_KNOWN = 64
"""Programs whose arguments and environment are kept as execve wants them, for their next start."""

_Call = tuple[Any, ...]
"""A function of the C library and its arguments: numbers and addresses."""


class _Stack(ctypes.Structure):
    """Is stack_t."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


class _Context(ctypes.Structure):
    """The head of a ucontext_t, alike on every Linux; the rest belongs to the C library."""

    _fields_ = (("flags", ctypes.c_ulong), ("link", ctypes.c_void_p), ("stack", _Stack))


class Vfork:
    """Starts programs, one at a time, from any thread.

    Args:
        reset: signals that programs are not to find ignored.

    Raises:
        OSError: this system's C library or kernel lacks what it takes (musl has no contexts, for example), or a child
            that was tried did not do as told.
    """

    def __init__(self, reset: Sequence[int]) -> None:
        if sys.platform != "linux":
            raise OSError("only Linux has clone(2)")
        # The lock of the interpreter is kept: nobody else may run while a child is on our memory, and errno is its own.
        self._libc = libc = ctypes.PyDLL(None, use_errno=True)
        try:
            self._needs = (
                libc.setrlimit64,
                libc.getcontext,
                libc.makecontext,
                libc.setcontext,
                libc.clone,
                libc.close_range,
            )
        except AttributeError as error:
            raise OSError(str(error)) from error
        libc.makecontext.restype = None
        top = 2**31 - 1
        if libc.close_range(top, top, 0):  # glibc has it, the kernel may not: it would be noticed too late
            raise OSError(ctypes.get_errno(), "close_range")
        self._lock = threading.Lock()
        self._known: dict[tuple[str, tuple[str, ...]], _Strings] = {}
        self._memory = mmap.mmap(-1, 2 * _ROOM * _MOST + _ROOM)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._failed = ctypes.c_int()
        self._limit = (ctypes.c_uint64 * 2)()
        self._null = _above_standard(os.open(os.devnull, os.O_RDONLY))
        self._alive, self._sign = map(_above_standard, os.pipe())
        os.set_blocking(self._alive, False)
        self._calls = self._chain(reset)
        self._prepare()
        try:
            self._prove()
        except OSError:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Vfork at {self._base:#x}>"

    def close(self) -> None:
        """Close its descriptors."""
        for descriptor in (self._null, self._alive, self._sign):
            os.close(descriptor)

    def start(
        self,
        path: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        cwd: int,
        stdout: int,
        stderr: int,
        open_files: int | None = None,
    ) -> int:
        """Run a program in a session of its own, and return its pid once exec has succeeded.

        It dies with the thread that calls this, and holds nothing but its three standard descriptors.

        Args:
            path: absolute, or relative to `cwd`.
            argv: its arguments, with its name.
            env: its complete environment.
            cwd: a descriptor of its working directory, which it may enter.
            stdout: becomes 1; either that already or above 2.
            stderr: becomes 2; likewise.
            open_files: its soft limit, not above the hard one; None for ours.

        Raises:
            OSError: there is no room for a process, or exec failed; no process is left.
            ValueError: something contains a zero byte.
        """
        strings = self._strings(path, argv, env)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with self._lock:
            # Our -1 for "without limit" is the kernel's largest number.
            self._limit[:] = [(soft if open_files is None else open_files) % 2**64, hard % 2**64]
            self._make("fchdir", cwd)
            self._make("stdout", stdout, 1)
            self._make("stderr", stderr, 2)
            self._make("execve", *strings.addresses)
            pid, code = self._clone()
            failed, self._failed.value = self._failed.value, 0
            self._prepare()
        if pid > 0 and failed:
            os.waitpid(pid, 0)
        if pid < 0 or failed:
            raise OSError(code, os.strerror(code))
        return pid

    def _strings(self, path: str, argv: Sequence[str], env: Mapping[str, str]) -> _Strings:
        """Return what execve is given: what the program had last time, as far as that is the same."""
        key = path, tuple(argv)
        known = self._known.get(key)
        if known is not None and known.renew(env):
            return known
        if len(self._known) >= _KNOWN:
            del self._known[next(iter(self._known))]
        fresh = self._known[key] = _Strings(path, argv, env)
        return fresh

    def _prove(self) -> None:
        """Start what cannot be executed: the whole chain runs, up to its end, and must tell us the reason.

        It does not where a child has no part in our memory (an emulator of processors may copy it), or where contexts
        do not go together with what guards return addresses.
        """
        try:
            # Nobody looks whether fchdir succeeds.
            pid = self.start("/", ("/",), {}, cwd=self._null, stdout=self._null, stderr=self._null)
        except PermissionError:
            return
        os.waitpid(pid, 0)
        raise OSError("a child does not do what it is told")

    def _chain(self, reset: Sequence[int]) -> dict[str, tuple[int, _Call]]:
        """Return the calls in their order, by name: (number, call). Those without arguments get them at each start."""
        libc, word = self._libc, ctypes.addressof(self._failed)
        calls: dict[str, _Call] = {
            "setsid": (libc.setsid,),
            **{f"signal {number}": (libc.signal, number, 0) for number in reset},
            "setrlimit": (libc.setrlimit64, resource.RLIMIT_NOFILE, ctypes.addressof(self._limit)),
            "fchdir": (libc.fchdir,),
            "stdin": (libc.dup2, self._null, 0),
            "stdout": (libc.dup2,),
            "stderr": (libc.dup2,),
            "prctl": (libc.prctl, SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0),
            "close": (libc.close, self._alive),
            # If we died before the call of prctl, nobody reads this pipe: the write ends the child by SIGPIPE.
            "write": (libc.write, self._sign, word, 1),
            "close_range": (libc.close_range, 3, 2**32 - 1, 0),
            "execve": (libc.execve,),
            "memset": (libc.memset, word, 1, 1),
            "_exit": (libc._exit, 127),  # noqa: SLF001 - its name
        }
        return {name: (number, call) for number, (name, call) in enumerate(calls.items())}

    def _prepare(self) -> None:
        """Make the chain for the next start: each uses up its stacks. Done after a start, when nobody waits for it.

        Up to the write all signals are blocked, because up to there the handlers are ours.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
        try:
            for name, (number, call) in self._calls.items():
                if name == "write":
                    signal.pthread_sigmask(signal.SIG_SETMASK, [])
                context = _Context.from_address(self._base + number * _ROOM)
                self._libc.getcontext(ctypes.byref(context))
                context.link = self._base + (number + 1) * _ROOM if name != "_exit" else None
                context.stack.sp = self._base + (_MOST + number) * _ROOM
                context.stack.size = _ROOM
                self._make(name, *call[1:])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _make(self, name: str, *arguments: int) -> None:
        """Give a call its arguments."""
        number, call = self._calls[name]
        context = ctypes.c_void_p(self._base + number * _ROOM)
        self._libc.makecontext(context, call[0], len(arguments), *map(ctypes.c_void_p, arguments))

    def _clone(self) -> tuple[int, int]:
        """Let a child make the calls; return its pid and errno."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
        try:
            pid: int = self._libc.clone(
                self._libc.setcontext,
                ctypes.c_void_p(self._base + len(self._memory)),
                _CLONE_VM | _CLONE_VFORK | signal.SIGCHLD,
                ctypes.c_void_p(self._base),
            )
            code = ctypes.get_errno()
            os.sched_yield()  # we are woken in the midst of its exec, and often on the same core
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with contextlib.suppress(BlockingIOError):  # unless something killed it before it could write
            os.read(self._alive, 1)
        return pid, code


class _Strings:
    """What execve is given, in memory for as long as this object lives.

    Raises:
        ValueError: something contains a zero byte.
    """

    def __init__(self, path: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        words = [path, *argv, *map("=".join, env.items())]
        self._text = os.fsencode("\0".join(words))  # at once: some fifty variables, one by one, take their time
        parts = self._text.split(b"\0")
        if len(parts) != len(words):
            raise ValueError("embedded null byte")
        begin = _address(self._text)
        starts = list(accumulate((len(part) + 1 for part in parts[:-1]), initial=begin))
        after = 1 + len(argv)
        self._argv = _array(starts[1:after])
        self._env = _array(starts[after:])
        self._values = dict(env)
        self._places = {name: place for place, name in enumerate(env)}
        self._renewed: dict[str, bytes] = {}
        self.addresses: tuple[int, ...] = (starts[0], ctypes.addressof(self._argv), ctypes.addressof(self._env))

    def __repr__(self) -> str:
        return f"<_Strings {len(self._text)} bytes>"

    def renew(self, env: Mapping[str, str]) -> bool:
        """Change the values of variables; return False if there are others than before. Errors as at first."""
        values = self._values
        if env.keys() != values.keys():
            return False
        for name, value in env.items():
            if values[name] == value:
                continue
            text = os.fsencode(f"{name}={value}")
            if b"\0" in text:
                raise ValueError("embedded null byte")
            self._env[self._places[name]] = _address(text)
            self._renewed[name], values[name] = text, value
        return True


def _address(text: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(text), ctypes.c_void_p).value or 0


def _array(addresses: Sequence[int]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * (len(addresses) + 1))(*addresses, None)


def _above_standard(descriptor: int) -> int:
    """Return a copy that no standard descriptor of a child can overwrite, and close the original."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)

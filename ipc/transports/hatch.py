"""A hatch: two places in shared memory with a semaphore each, through which two processes hand each other small frames.

A semaphore wakes a waiting process in half the time of a socket, and waiting for it can be bounded to a fraction of a
millisecond. One process asks and the other answers, one frame each way at a time; both have a stream besides, for all
else. Only for processes that trust each other's memory. What the bytes mean is not known here.

The answering side opens the hatch while it stands behind it. State is written by that side only:

    SHUT ──open──> OPEN ──leave──> LEAVING (it will look once more) ──> SHUT (it will not look until it opens again)

A frame that is posted while the answering side leaves may be met by nobody. So the asking side waits in slices, and
takes back what lies in a hatch that is shut (`withdraw`), to send it by the stream. Nothing can be taken by both: the
asking side hangs out a sign before it looks whether the hatch is shut, and the answering side opens it before it looks
for the sign, so one of them sees what the other did and keeps its hands off. A place is only filled when it is empty.
Between a store here and the next load of what the other side stores lies a semaphore operation or a lock, which are
memory barriers. A frame is stored before its length, and the length before the semaphore is posted.

The order of loads and stores in every member is what the argument rests on: a test goes through all interleavings of a
model of them, and holds the model against what is here.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import re
import secrets
import stat
import sys
import threading
import time
from importlib import import_module
from typing import Any

FOLDER = "/dev/shm"  # noqa: S108 - where the platform keeps shared memory and semaphores
SHUT, OPEN, LEAVING = 0, 1, 2
_STATES = {SHUT: "shut", OPEN: "open", LEAVING: "leaving"}
ROOM = 2048
"""Bytes of the largest frame."""
_SIZE = 2 * 4096
_STATE = 0
_SIGN = 8
"""Not 0 while the asking side takes its request back."""
_ASKED, _ANSWERED = 16 + 4, 4096 + 4
"""Where the frames lie."""
_ASKED_SIZE, _ANSWERED_SIZE = 16 // 4, 4096 // 4
"""Words that hold their sizes, 0 for an empty place. Each is aligned, and read and written as a whole."""
_RINGS = 64
"""Calls that are forgotten at a time when the hatch is shut; more of them do no harm."""
_NAME = re.compile(r"smartipc-([0-9]+)-[0-9a-f]{16}\Z")
_STALE = 60.0
"""Seconds after which nobody joins any more."""
_SEMAPHORE = 1
"""The kind that the interpreter calls a semaphore, as opposed to a recursive mutex."""


def _semaphores() -> Any:
    """Return the interpreter's named semaphores, None where there are none that can be waited for with a timeout."""
    if sys.platform != "linux" or not os.path.isdir(FOLDER):
        return None
    try:
        module = import_module("_multiprocessing")
    except ImportError:
        return None
    return module if hasattr(module, "SemLock") else None


def available() -> bool:
    """Tell whether this platform has hatches."""
    return _semaphores() is not None


class Hatch:
    """One end. Made by `create` on the asking side, by `join` on the answering one."""

    __slots__ = ("_barrier", "_memory", "_mine", "_theirs", "_words", "name")

    def __init__(self, name: str, memory: mmap.mmap, mine: Any, theirs: Any) -> None:
        self.name = name
        self._memory = memory
        self._words = memoryview(memory).cast("I")
        self._mine = mine
        self._theirs = theirs
        self._barrier = threading.Lock()

    def __repr__(self) -> str:
        return f"<Hatch {self.name} {_STATES.get(self._memory[_STATE], 'odd')}>"

    @classmethod
    def create(cls) -> Hatch:
        """Make one under a new name.

        Raises:
            OSError: there is no room, or no shared memory.
        """
        _sweep()
        name = f"smartipc-{os.getpid()}-{secrets.token_hex(8)}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(f"{FOLDER}/{name}", flags, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _SIZE)  # now, for without room a later access would be fatal
            memory = mmap.mmap(descriptor, _SIZE)
            make = _semaphores().SemLock
            most = make.SEM_VALUE_MAX
            asked, answered = (make(_SEMAPHORE, 0, most, f"/{name}.{which}", False) for which in "qa")
        except BaseException:
            _unlink(name)
            raise
        finally:
            os.close(descriptor)
        return cls(name, memory, answered, asked)

    @classmethod
    def join(cls, name: str) -> Hatch:
        """Open the one that the peer made; it has no name any more then.

        Raises:
            OSError: it is not there, or not what it should be.
        """
        if _NAME.match(name) is None:
            raise OSError("not the name of a hatch")
        descriptor = os.open(f"{FOLDER}/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            facts = os.fstat(descriptor)
            if facts.st_uid != os.geteuid() or not stat.S_ISREG(facts.st_mode) or facts.st_size != _SIZE:
                raise OSError("not a hatch of this user")
            memory = mmap.mmap(descriptor, _SIZE)
            kind = _semaphores().SemLock
            by_name = kind._rebuild  # noqa: SLF001 - what multiprocessing opens them with in another process
            asked, answered = (by_name(0, _SEMAPHORE, kind.SEM_VALUE_MAX, f"/{name}.{which}") for which in "qa")
        finally:
            os.close(descriptor)
            _unlink(name)
        return cls(name, memory, asked, answered)

    def forget_name(self) -> None:
        """Remove the names, once both sides have it open or nobody will."""
        _unlink(self.name)

    # the asking side

    @property
    def state(self) -> int:
        """Whether somebody stands behind it."""
        state: int = self._memory[_STATE]
        return state

    def view_state(self) -> memoryview:
        """Return a view whose only item is the state, for whoever looks at it before each request."""
        return memoryview(self._memory)[_STATE : _STATE + 1]

    def post(self, frame: bytes) -> None:
        """Put a request there. The one before must have been taken or withdrawn; see also `give_up`."""
        size = len(frame)
        self._memory[_ASKED : _ASKED + size] = frame
        self._words[_ASKED_SIZE] = size
        try:  # noqa: SIM105 - a context manager would cost something each time
            self._theirs.release()
        except ValueError:
            pass  # the peer has counted it up to the most there can be, and so looks anyway

    def withdraw(self) -> bool:
        """Take back what was posted, if nobody has taken it, and nobody can: the hatch is shut."""
        memory, words = self._memory, self._words
        memory[_SIGN] = 1
        with self._barrier:
            shut = memory[_STATE] == SHUT
        lies = words[_ASKED_SIZE] > 0
        if lies and shut:
            words[_ASKED_SIZE] = 0
        memory[_SIGN] = 0
        if lies and not shut:
            self.beckon()  # who stands there may have seen the sign, and passed over it
        return lies and shut

    def give_up(self) -> bool:
        """Take away what was posted, whoever may have it; return whether the place may be read until it is shut."""
        words = self._words
        lies = words[_ASKED_SIZE] > 0
        words[_ASKED_SIZE] = 0
        return lies

    def collect(self, seconds: float) -> bytes | None:
        """Wait for an answer; b"" is a call to look at the stream, None that nothing came in time."""
        if not self._mine.acquire(True, seconds):
            return None
        words = self._words
        size = words[_ANSWERED_SIZE]
        if not size:
            return b""  # without a store: what is put there just now must not be wiped out
        if size > ROOM:  # noqa: PLR1730 - it is the peer's to write; a call of `min` takes as long as the rest
            size = ROOM
        frame = self._memory[_ANSWERED : _ANSWERED + size]
        words[_ANSWERED_SIZE] = 0
        return frame

    # the answering side

    def open(self) -> None:
        """Stand behind it."""
        with self._barrier:
            self._memory[_STATE] = OPEN

    def leave(self) -> bytes:
        """Go away, and return what was posted meanwhile; b"" for nothing."""
        self._memory[_STATE] = LEAVING
        for _ in range(_RINGS):
            if not self._mine.acquire(False):
                break
        last = self._look()
        self._memory[_STATE] = SHUT
        return last

    def take(self, seconds: float) -> bytes:
        """Wait for a request; b"" if none came in time."""
        return self._look() if self._mine.acquire(True, seconds) else b""

    def answer(self, frame: bytes) -> bool:
        """Put an answer there, if the one before has been taken."""
        words = self._words
        if words[_ANSWERED_SIZE]:
            return False  # of a call that was given up; its asker may be reading it
        size = len(frame)
        self._memory[_ANSWERED : _ANSWERED + size] = frame
        words[_ANSWERED_SIZE] = size
        try:  # noqa: SIM105 - as in `post`
            self._theirs.release()
        except ValueError:
            pass  # likewise
        return True

    def beckon(self) -> None:
        """Make the other side look, at the place and at the stream."""
        _ring(self._theirs)

    def wake(self) -> None:
        """Make a thread of this side look at the stream. Called in any thread."""
        _ring(self._mine)

    def _look(self) -> bytes:
        """Take the request, b"" for none."""
        memory = self._memory
        if memory[_SIGN]:
            return b""  # it may be taken back; whoever does and finds us here calls us again
        words = self._words
        size = words[_ASKED_SIZE]
        if not size:
            return b""  # without a store, as in `collect`
        if size > ROOM:  # noqa: PLR1730 - as in `collect`
            size = ROOM
        frame = memory[_ASKED : _ASKED + size]
        words[_ASKED_SIZE] = 0
        return frame


def _ring(semaphore: Any) -> None:
    """Let whoever waits look, or whoever comes next; more than one call would have to be waited for one by one."""
    if semaphore._is_zero():  # noqa: SLF001 - as multiprocessing asks it
        with contextlib.suppress(ValueError):  # the peer has made it negative, or counted it up meanwhile
            semaphore.release()


@functools.cache
def _sweep() -> None:
    """Remove, once, what processes left behind that were killed before their peer had joined."""
    for name in os.listdir(FOLDER):
        match = _NAME.match(name)
        if match is None:
            continue
        with contextlib.suppress(OSError):
            facts = os.stat(f"{FOLDER}/{name}", follow_symlinks=False)
            if facts.st_uid == os.geteuid() and time.time() - facts.st_mtime > _STALE and not _lives(int(match[1])):
                _unlink(name)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _unlink(name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(f"{FOLDER}/{name}")
    for which in "qa":
        with contextlib.suppress(OSError):
            _semaphores().sem_unlink(f"/{name}.{which}")

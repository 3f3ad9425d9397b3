"""Shared memory for big buffers on Linux: memfds, their seals and mappings, and the pool of this process.

Everything lives behind descriptors and mappings, nothing has a name: the kernel frees it when the last process has let
go, however that process ended. Who may read what, and for how long, is decided in protocol.buffers.

Mappings are made with mmap(2) itself: Python's mmap module keeps a descriptor for each one. A part is handed out as a
memoryview of a ctypes array at its address, because that array can carry an attribute: whoever holds a view, a slice of
one or a NumPy array made of one holds the array, and with it the mapping and the lease.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import socket
import stat
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from smartipc.ipc.errors import RemoteProtocolError
from smartipc.ipc.protocol.arena import Arena
from smartipc.ipc.transports.unix import peer_credentials

MIB = 1024 * 1024
SEGMENT_SIZE = 64 * MIB
"""Of the pool; pages that were never written take no memory."""
POOL_LIMIT = 2048 * MIB
"""Memory of the pool at most; beyond it buffers are copied into the socket."""
POOL_WARM = 1024 * MIB
"""Memory of unused segments that is kept for the next buffers."""
_PROT_READ, _PROT_WRITE, _MAP_SHARED = 1, 2, 1
_SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW, _SEAL_WRITE, _SEAL_FUTURE_WRITE = 1, 2, 4, 8, 16  # linux/fcntl.h
_ADD_SEALS, _GET_SEALS = 1033, 1034
_FIXED = _SEAL_SHRINK | _SEAL_GROW
_FAILED = ctypes.c_void_p(-1).value


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc


@functools.lru_cache(maxsize=256)
def _array_type(length: int) -> Any:
    return ctypes.c_ubyte * length


class _Mapping:
    """A mapped range. Unmapped when nothing refers to it any more; `close` is not needed, and there is none."""

    __slots__ = ("__weakref__", "address", "size")

    def __init__(self, descriptor: int, size: int, *, writable: bool) -> None:
        libc = _libc()
        protection = _PROT_READ | _PROT_WRITE if writable else _PROT_READ
        address = libc.mmap(None, size, protection, _MAP_SHARED, descriptor, 0)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.address: int = address
        self.size = size
        weakref.finalize(self, libc.munmap, address, size).atexit = False

    def __repr__(self) -> str:
        return f"<_Mapping of {self.size} bytes>"

    def array(self, offset: int, length: int) -> Any:
        """Return a ctypes array over a part. Whoever keeps it must keep this object: see the module's docstring."""
        return _array_type(length).from_address(self.address + offset)


class MappedRegion:
    """A segment of a peer's, mapped for reading only."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.size = size
        self._mapping = _Mapping(descriptor, size, writable=False)

    def __repr__(self) -> str:
        return f"<MappedRegion of {self.size} bytes>"

    def view(self, offset: int, length: int, released: Callable[[], None] | None) -> memoryview:
        """Return a part; see protocol.buffers.Region."""
        array = self._mapping.array(offset, length)
        array.smartipc_mapping = self._mapping
        if released is not None:
            weakref.finalize(array, released).atexit = False
        return memoryview(array).cast("B").toreadonly()


class MemfdSegment:
    """A segment of ours behind a descriptor, which is closed with it.

    Args:
        number: unique in this process; 0 and below are never used.
        size: bytes.
    """

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self.retired = False
        self.abandoned = False
        self.descriptor = os.memfd_create("smartipc", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._close = weakref.finalize(self, os.close, self.descriptor)
        self._close.atexit = False
        os.ftruncate(self.descriptor, size)

    def __repr__(self) -> str:
        state = " abandoned" if self.abandoned else " retired" if self.retired else ""
        return f"<MemfdSegment {self.number} of {self.size} bytes{state}>"

    def abandon(self) -> None:
        """Give no part of it out again; see protocol.buffers.Segment."""
        self.abandoned = True

    def retire(self) -> None:
        """Close it; peers are told to forget it when their links next look."""
        self.retired = True
        self._close()

    def forget(self) -> None:
        """Close the descriptor of a forked copy: the memory is the parent's."""
        self._close()

    def seal(self, seals: int) -> None:
        """Add seals for ever.

        Raises:
            OSError: the kernel does not know them, or a writable mapping is in the way.
        """
        fcntl.fcntl(self.descriptor, _ADD_SEALS, seals | _SEAL_SEAL)


class PoolPart:
    """A part of the pool. It is free again when nothing refers to it: no view, no message under way, no lease."""

    __slots__ = ("__weakref__", "_mapping", "nbytes", "offset", "segment")

    def __init__(self, segment: MemfdSegment, mapping: _Mapping, offset: int, nbytes: int) -> None:
        self.segment = segment
        self.offset = offset
        self.nbytes = nbytes
        self._mapping = mapping

    def __repr__(self) -> str:
        return f"<PoolPart {self.nbytes} bytes at {self.offset} of {self.segment!r}>"

    def view(self) -> memoryview:
        """Return its memory, writable; views and arrays made of it keep the part."""
        array = self._mapping.array(self.offset, self.nbytes)
        array.smartipc_locate = self._locate
        return memoryview(array).cast("B")

    def _locate(self, view: memoryview) -> PoolPart | _Within | None:
        """Tell where a view of this part begins; None when that cannot be found out."""
        try:
            address = ctypes.addressof(ctypes.c_ubyte.from_buffer(view))
        except (TypeError, ValueError):  # read-only, or empty
            return None
        offset = address - self._mapping.address
        if not self.offset <= offset or offset + view.nbytes > self.offset + self.nbytes:
            return None
        return self if offset == self.offset else _Within(self, offset)


class _Within:
    """A place inside a part."""

    __slots__ = ("_part", "offset", "segment")

    def __init__(self, part: PoolPart, offset: int) -> None:
        self.segment = part.segment
        self.offset = offset
        self._part = part


class Pool:
    """The warm memory of this process, from which every link may send. Several threads may use it.

    Parts come back by the garbage collection of their PoolPart, in whatever thread and at whatever moment: they are
    only noted then, and taken back by the next `part`.
    """

    def __init__(self, *, segment_size: int = SEGMENT_SIZE, limit: int = POOL_LIMIT, warm: int = POOL_WARM) -> None:
        self._arena = Arena(segment_size=segment_size, limit=limit, warm=warm)
        self._segments: dict[int, tuple[MemfdSegment, _Mapping]] = {}
        self._returned: deque[tuple[int, int, int]] = deque()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Pool {self._arena!r}>"

    @property
    def in_use(self) -> int:
        """Bytes given out."""
        with self._lock:
            self._collect()
            return self._arena.in_use

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        with self._lock:
            self._collect()
            return self._arena.size

    def part(self, nbytes: int) -> PoolPart | None:
        """Give out a part; None when the pool has no room."""
        with self._lock:
            self._collect()
            found = self._arena.take(nbytes)
            if found is None:
                if not self._grow(nbytes):
                    return None
                found = self._arena.take(nbytes)
                assert found is not None
            number, offset = found
            segment, mapping = self._segments[number]
            part = PoolPart(segment, mapping, offset, nbytes)
            weakref.finalize(part, self._returned.append, (number, offset, nbytes)).atexit = False
        return part

    def forget(self) -> None:
        """Close the descriptors of a forked copy: the pool is the parent's."""
        for segment, _mapping in self._segments.values():
            segment.forget()

    def _grow(self, nbytes: int) -> bool:
        grown = self._arena.grow(nbytes)
        if grown is None:
            return False
        number, size = grown
        try:
            segment = MemfdSegment(_next_number(), size)
            mapping = _Mapping(segment.descriptor, size, writable=True)
            segment.seal(_FIXED | _SEAL_FUTURE_WRITE)
        except OSError:  # no descriptor, no memory, or a kernel before 5.1: buffers travel as bytes
            self._arena.abandon(number)
            self._arena.retire()
            return False
        self._segments[number] = (segment, mapping)
        return True

    def _collect(self) -> None:
        """Take back what was given up; call under the lock."""
        if not self._returned:
            return
        while self._returned:
            number, offset, nbytes = self._returned.popleft()
            if self._segments[number][0].abandoned:
                self._arena.abandon(number)
            self._arena.give(number, offset, nbytes)
        for number, (segment, _mapping) in list(self._segments.items()):
            if segment.abandoned:
                self._arena.abandon(number)
        for number in self._arena.retire():
            self._segments.pop(number)[0].retire()


_numbers = iter(range(1, 1 << 62))
_numbers_lock = threading.Lock()
_pool: Pool | None = None
_pool_lock = threading.Lock()


def _next_number() -> int:
    with _numbers_lock:
        return next(_numbers)


def pool() -> Pool:
    """Return the pool of this process; a forked child begins with its own."""
    global _pool  # noqa: PLW0603 - one per process by nature
    with _pool_lock:
        if _pool is None:
            _pool = Pool()
        return _pool


def pool_size() -> int:
    """Return the bytes of the pool, 0 before it is first used."""
    return _pool.size if _pool is not None else 0


def _after_fork() -> None:
    global _pool, _pool_lock, _numbers_lock  # noqa: PLW0603 - see pool
    _pool_lock, _numbers_lock = threading.Lock(), threading.Lock()  # another thread may have held them
    if _pool is not None:
        _pool.forget()
        _pool = None


os.register_at_fork(after_in_child=_after_fork)


class SharedMemory:
    """What one link can do with memory; see protocol.buffers.Memory.

    Args:
        leases: both ends are of one user.
    """

    def __init__(self, *, leases: bool) -> None:
        self.leases = leases

    def __repr__(self) -> str:
        return f"SharedMemory(leases={self.leases})"

    def place(self, view: memoryview) -> PoolPart | None:
        """Copy into the pool; None when it has no room."""
        part = pool().part(view.nbytes)
        if part is not None:
            part.view()[:] = view
        return part

    def seal(self, view: memoryview) -> MemfdSegment | None:
        """Copy into a memfd of its own that nobody can change, ourselves included; None when there can be none."""
        try:
            segment = MemfdSegment(_next_number(), view.nbytes)
            written = 0
            while written < view.nbytes:
                written += os.pwrite(segment.descriptor, view[written:], written)
            segment.seal(_FIXED | _SEAL_WRITE)
        except OSError:
            return None
        return segment

    def adopt(self, descriptor: int, size: int, *, sealed: bool) -> MappedRegion:
        """Check and map what a peer sent; the descriptor is closed in any case.

        Raises:
            RemoteProtocolError: it is no memfd, smaller than promised, or can still be cut (or changed, if `sealed`).
        """
        try:
            status = os.fstat(descriptor)
            wanted = _FIXED | (_SEAL_WRITE if sealed else 0)
            # Seals first: without them the size that we see could change before we read.
            if fcntl.fcntl(descriptor, _GET_SEALS) & wanted != wanted:
                raise RemoteProtocolError("a segment is not sealed as promised")
            if not stat.S_ISREG(status.st_mode) or os.fstat(descriptor).st_size < size:
                raise RemoteProtocolError("a segment is smaller than promised")
            return MappedRegion(descriptor, size)
        except OSError as error:
            raise RemoteProtocolError(f"a segment cannot be mapped: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def discard(self, descriptors: Sequence[int]) -> None:
        """Close descriptors that nobody wants."""
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def memory_of(stream: socket.socket) -> SharedMemory | None:
    """Return what a Unix socket can do: leases between processes of one user, sealed memory between strangers."""
    try:
        uid = peer_credentials(stream).uid
    except OSError:
        return None
    return SharedMemory(leases=uid == os.geteuid())


@functools.cache
def available() -> bool:
    """Tell whether this kernel has what leases and sealed segments need: memfds with F_SEAL_FUTURE_WRITE, Linux 5.1."""
    try:
        segment = MemfdSegment(0, 4096)
        segment.seal(_FIXED | _SEAL_FUTURE_WRITE)
    except OSError:
        return False
    segment.retire()
    return True

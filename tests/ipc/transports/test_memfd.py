"""Shared memory as the kernel sees it: seals, mappings, descriptors, the pool, a forked child."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smartipc.ipc.errors import RemoteProtocolError
from smartipc.ipc.transports import memfd
from smartipc.ipc.transports.memory import memory_of, new_buffer
from smartipc.ipc.wire.attachments import THRESHOLD
from smartipc.ipc.wire.buffer import Buffer

np = pytest.importorskip("numpy")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfds are Linux")

K = 1024


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:smartipc")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    assert memfd.pool().part(1) is not None  # the pool of the process stays
    gc.collect()
    before = count_descriptors(), mappings()
    yield
    gc.collect()
    now = count_descriptors(), mappings()
    assert now[0] <= before[0]
    assert now[1] <= before[1]


@pytest.fixture
def pool() -> Iterator[memfd.Pool]:
    one = memfd.Pool(segment_size=1024 * K, limit=4096 * K, warm=2048 * K)
    yield one
    one._segments.clear()  # pytest keeps a fixture's value for longer


def region(segment: memfd.MemfdSegment, size: int, *, sealed: bool = False) -> memfd.MappedRegion:
    return memfd.SharedMemory(leases=True).adopt(os.dup(segment.descriptor), size, sealed=sealed)


def test_what_is_written_here_is_read_there(pool: memfd.Pool) -> None:
    part = pool.part(100 * K)
    assert part is not None
    part.view()[:] = b"ab" * (50 * K)
    mapped = region(part.segment, part.segment.size)
    assert bytes(mapped.view(part.offset, part.nbytes, None)) == b"ab" * (50 * K)
    part.view()[0] = ord("x")
    assert mapped.view(part.offset, 1, None)[0] == ord("x"), "it is the same memory"


def test_a_receiver_cannot_write(pool: memfd.Pool) -> None:
    part = pool.part(100 * K)
    assert part is not None
    view = region(part.segment, part.segment.size).view(0, K, None)
    with pytest.raises(TypeError, match="read-only"):
        view[0] = 1
    array = np.frombuffer(view, "u1")
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    with pytest.raises(PermissionError):
        mmap.mmap(part.segment.descriptor, K)  # a mapping for writing, made from the descriptor
    with pytest.raises(PermissionError):
        os.pwrite(part.segment.descriptor, b"x", 0)
    again = os.open(f"/proc/self/fd/{part.segment.descriptor}", os.O_RDWR)
    with pytest.raises(PermissionError):
        mmap.mmap(again, K)
    os.close(again)


def test_writing_behind_the_back_of_python_is_stopped_by_the_kernel(pool: memfd.Pool) -> None:
    part = pool.part(100 * K)
    assert part is not None
    view = region(part.segment, part.segment.size).view(0, K, None)
    pid = os.fork()
    if not pid:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ctypes.memset(ctypes.addressof(view.obj), 1, 1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGSEGV
    assert part.view()[0] == 0


def test_a_mapping_lives_as_long_as_any_view(pool: memfd.Pool) -> None:
    part = pool.part(100 * K)
    assert part is not None
    part.view()[:3] = b"abc"
    released: list[str] = []
    mapped = region(part.segment, part.segment.size)
    view = mapped.view(part.offset, part.nbytes, lambda: released.append("now"))
    piece = view[:3]
    array = np.frombuffer(piece, "u1")
    del part, mapped, view, piece
    gc.collect()
    assert array.tobytes() == b"abc"
    assert released == []
    del array
    gc.collect()
    assert released == ["now"]


def test_a_part_is_free_again_when_nothing_refers_to_it(pool: memfd.Pool) -> None:
    part = pool.part(1000 * K)
    assert part is not None
    first = part.offset
    view = part.view()[10:20]
    del part
    assert pool.in_use == 1000 * K
    del view
    assert pool.in_use == 0
    again = pool.part(1000 * K)
    assert again is not None
    assert again.offset == first, "warm memory is used again"
    assert pool.size == 1024 * K


def test_the_pool_is_bounded_and_lets_go_of_what_is_too_much(pool: memfd.Pool) -> None:
    parts = [pool.part(1024 * K) for _ in range(5)]
    assert [part is None for part in parts] == [False] * 4 + [True]
    before = count_descriptors()
    del parts
    assert pool.size == 2048 * K, "what is kept warm"
    assert count_descriptors() == before - 2


def test_an_abandoned_segment_is_never_given_out_again(pool: memfd.Pool) -> None:
    part = pool.part(100 * K)
    assert part is not None
    number = part.segment.number
    other = pool.part(100 * K)
    assert other is not None
    part.segment.abandon()
    del part
    third = pool.part(100 * K)
    assert third is not None
    assert third.segment.number != number
    assert bytes(other.view()[:1]) == b"\0"
    del other
    assert pool.size == 1024 * K


def test_memory_of_the_pool_is_found_again_behind_views_and_arrays() -> None:
    buffer = new_buffer(THRESHOLD * 4)
    assert not buffer.view.readonly
    array = np.frombuffer(buffer.view, "f4").reshape(-1, 16)
    place = Buffer(array)._place
    assert place.offset == buffer._place.offset
    assert place.segment is buffer._place.segment
    within = Buffer(array[100:])._place
    assert within.offset == buffer._place.offset + 100 * 16 * 4
    assert Buffer(buffer.view[8:])._place.offset == buffer._place.offset + 8
    assert Buffer(buffer.view.toreadonly())._place is None, "it is copied then"
    assert Buffer(buffer.view[:0])._place is None
    assert Buffer(np.zeros(3))._place is None


def test_small_buffers_and_wrong_sizes() -> None:
    assert new_buffer(10)._place is None
    assert len(new_buffer(0)) == 0
    with pytest.raises(ValueError, match="-1 bytes"):
        new_buffer(-1)


def test_a_full_pool_gives_private_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memfd, "_pool", memfd.Pool(segment_size=K, limit=K, warm=0))
    buffer = new_buffer(THRESHOLD)
    assert buffer._place is None
    assert not buffer.view.readonly


def test_no_descriptor_left_means_bytes(pool: memfd.Pool) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        assert pool.part(K) is None
        assert memfd.SharedMemory(leases=False).seal(memoryview(b"abc")) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert pool.size == 0


# what strangers send


def test_sealed_memory_cannot_be_changed_by_anybody() -> None:
    segment = memfd.SharedMemory(leases=False).seal(memoryview(b"abc" * K))
    assert segment is not None
    assert bytes(region(segment, 3 * K, sealed=True).view(0, 3, None)) == b"abc"
    with pytest.raises(PermissionError):
        os.pwrite(segment.descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(segment.descriptor, 0)


def test_refused_descriptors(tmp_path: Path, pool: memfd.Pool) -> None:
    memory = memfd.SharedMemory(leases=False)
    part = pool.part(K)
    assert part is not None
    open_memfd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(open_memfd, 4 * K)
    unsealable = os.memfd_create("x")
    read_end, write_end = os.pipe()
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    sealed = memory.seal(memoryview(b"abc"))
    assert sealed is not None
    for descriptor, size, is_sealed, says in [
        (open_memfd, K, False, "not sealed"),
        (open_memfd, K, True, "not sealed"),
        (unsealable, K, False, "not sealed"),
        (part.segment.descriptor, K, True, "not sealed"),
        (sealed.descriptor, 4, True, "smaller"),
        (read_end, K, False, "cannot be mapped"),
        (file, K, False, "cannot be mapped"),
    ]:
        copy = os.dup(descriptor)
        with pytest.raises(RemoteProtocolError, match=says):
            memory.adopt(copy, size, sealed=is_sealed)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(copy)
    for descriptor in (open_memfd, unsealable, read_end, write_end, file):
        os.close(descriptor)


def test_discarding_closes() -> None:
    read_end, write_end = os.pipe()
    memfd.SharedMemory(leases=True).discard([read_end, write_end, read_end])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(write_end)


# where it is used at all


def test_which_streams_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 0))
    with near, far, listener:
        memory = memory_of(near)
        assert memory is not None
        assert memory.leases
        assert memory_of(listener) is None
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        memory = memory_of(near)
        assert memory is not None
        assert not memory.leases, "another user is given sealed memory"
        monkeypatch.undo()
        monkeypatch.delitem(sys.modules, "smartipc.ipc.wire.buffer")
        assert memory_of(near) is None, "a program without buffers does not pay for them"


def test_a_forked_child_has_its_own_pool() -> None:
    part = memfd.pool().part(THRESHOLD)
    assert part is not None
    part.view()[:1] = b"p"
    number = part.segment.number
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        said = b"?"
        with contextlib.suppress(BaseException):
            mine = memfd.pool().part(THRESHOLD)
            fresh = mine is not None and mine.segment.number != number and bytes(mine.view()[:1]) == b"\0"
            said = b"y" if fresh and bytes(part.view()[:1]) == b"p" else b"n"
        os.write(write_end, said)
        os._exit(0)
    os.close(write_end)
    assert os.read(read_end, 1) == b"y"
    os.close(read_end)
    os.waitpid(pid, 0)
    assert bytes(part.view()[:1]) == b"p"

"""Hatches: handing over, standing behind one and leaving, what is refused, and that no name is left behind."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

from smartipc.ipc.transports import hatch
from smartipc.ipc.transports.hatch import OPEN, ROOM, SHUT, Hatch

pytestmark = pytest.mark.skipif(not hatch.available(), reason="no named semaphores here")


def names() -> set[str]:
    """Those that this process made: another may be at work beside it."""
    return {name for name in os.listdir(hatch.FOLDER) if f"smartipc-{os.getpid()}-" in name}


@pytest.fixture
def ends() -> tuple[Hatch, Hatch]:
    before = names()
    asking = Hatch.create()
    answering = Hatch.join(asking.name)
    assert names() == before
    return asking, answering


def test_a_request_and_its_answer_pass(ends: tuple[Hatch, Hatch]) -> None:
    asking, answering = ends
    assert asking.state == SHUT
    answering.open()
    assert asking.state == OPEN
    assert "open" in repr(asking)

    def serve() -> None:
        for _ in range(200):
            answering.answer(b"re: " + answering.take(10))

    thread = threading.Thread(target=serve)
    thread.start()
    for number in range(200):
        asking.post(b"%d" % number)
        assert asking.collect(10) == b"re: %d" % number
    thread.join()


def test_what_is_not_there_is_waited_for_no_longer_than_said(ends: tuple[Hatch, Hatch]) -> None:
    asking, answering = ends
    assert asking.collect(0.01) is None
    assert answering.take(0.01) == b""


def test_whoever_leaves_takes_what_was_posted_meanwhile(ends: tuple[Hatch, Hatch]) -> None:
    asking, answering = ends
    answering.open()
    asking.post(b"late")
    assert answering.leave() == b"late"
    assert asking.state == SHUT
    assert not asking.withdraw()
    assert answering.leave() == b""


def test_what_nobody_took_is_taken_back(ends: tuple[Hatch, Hatch]) -> None:
    asking, answering = ends
    asking.post(b"nobody is here")
    assert asking.withdraw()
    assert not asking.withdraw()
    answering.open()
    assert answering.take(0.01) == b""


def at_line(number: int, function: Callable[[], object], disturb: Callable[[], object]) -> tuple[object, bool]:
    """Call a function, and something else before the so-manieth of its lines, those of hatch.py; tell if it came."""
    left = [number, 0]

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename != hatch.__file__:
            return None
        if event == "line" and left[0] >= 0:
            left[0] -= 1
            if left[0] < 0:
                sys.settrace(None)
                left[1] = 1
                disturb()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return function(), bool(left[1])
    finally:
        sys.settrace(before)


def look(answering: Hatch) -> bytes:
    answering.open()
    return answering.take(0)


def visit(answering: Hatch) -> bytes:
    return look(answering) or answering.leave()


@pytest.mark.parametrize("come", [look, visit])
@pytest.mark.parametrize("asker_is_interrupted", [True, False])
def test_a_request_is_had_by_one_side_whenever_the_other_comes(
    ends: tuple[Hatch, Hatch], asker_is_interrupted: bool, come: Callable[[Hatch], bytes]
) -> None:
    asking, answering = ends

    def meet(number: int) -> bool:
        taken: list[bytes] = []
        withdrawn: list[bool] = []
        one, two = lambda: withdrawn.append(asking.withdraw()), lambda: taken.append(come(answering))
        asking.post(b"x")
        _, came = at_line(number, *((one, two) if asker_is_interrupted else (two, one)))
        taken.append(visit(answering))  # what nobody had lies there, and is found
        withdrawn.append(asking.withdraw())
        assert sum(withdrawn) + taken.count(b"x") == 1, f"before line {number}"
        answering.leave()
        return came

    number = 0
    while meet(number):
        number += 1
    assert number > 5


def test_an_answer_is_not_put_over_another(ends: tuple[Hatch, Hatch]) -> None:
    asking, answering = ends
    assert answering.answer(b"of a call that was given up")
    assert not answering.answer(b"next")
    assert asking.collect(1) == b"of a call that was given up"
    assert answering.answer(b"next")
    assert asking.collect(1) == b"next"


def test_calls_do_not_pile_up(ends: tuple[Hatch, Hatch]) -> None:
    asking, answering = ends
    for _ in range(1000):
        answering.beckon()
        answering.wake()
    assert asking.collect(0) == b""
    assert asking.collect(0) is None
    assert answering._mine.acquire(False)
    assert not answering._mine.acquire(False)


def test_what_is_given_up_may_be_read_still(ends: tuple[Hatch, Hatch]) -> None:
    asking, answering = ends
    answering.open()
    asking.post(b"x")
    assert not asking.withdraw()
    assert asking.give_up()
    assert not asking.give_up()
    assert answering.take(1) == b""


def test_calls_without_a_frame_wake_whoever_waits(ends: tuple[Hatch, Hatch]) -> None:
    asking, answering = ends
    answering.beckon()
    assert asking.collect(10) == b""
    asking.wake()
    assert asking.collect(10) == b""
    for _ in range(100):
        asking.post(b"x")
    assert answering.leave() == b"x"


def test_a_length_that_lies_is_bounded(ends: tuple[Hatch, Hatch]) -> None:
    asking, answering = ends
    asking.post(b"x")
    struct.pack_into("I", asking._memory, 16, 1 << 31)
    assert len(answering.take(1)) == ROOM
    answering.answer(b"x")
    struct.pack_into("I", asking._memory, 4096, 1 << 31)
    assert len(asking.collect(1) or b"") == ROOM


def test_a_semaphore_that_is_counted_up_to_the_end_does_no_harm(ends: tuple[Hatch, Hatch]) -> None:
    asking, answering = ends
    for semaphore in (asking._theirs, answering._theirs):
        ctypes.c_uint32.from_address(semaphore.handle).value = semaphore.maxvalue
    asking.post(b"x")
    assert answering.take(1) == b"x"
    assert answering.answer(b"y")
    answering.beckon()
    assert asking.collect(1) == b"y"


def test_a_state_that_is_none_does_no_harm(ends: tuple[Hatch, Hatch]) -> None:
    asking, _ = ends
    asking._memory[0] = 77
    assert "odd" in repr(asking)
    asking.post(b"x")
    assert not asking.withdraw()


@pytest.mark.parametrize("name", ["", "other", "smartipc-1-../../../etc/passwd", "smartipc-1-0123456789abcde"])
def test_only_names_of_hatches_are_opened(name: str) -> None:
    with pytest.raises(OSError, match="not the name of a hatch"):
        Hatch.join(name)


def test_only_hatches_are_joined(tmp_path: Path) -> None:
    name = "smartipc-1-0123456789abcdef"
    place = Path(hatch.FOLDER, name)
    place.write_bytes(b"too short")
    try:
        with pytest.raises(OSError, match="not a hatch of this user"):
            Hatch.join(name)
        assert not place.exists()
        place.symlink_to(tmp_path)
        with pytest.raises(OSError, match="symbolic"):
            Hatch.join(name)
    finally:
        place.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        Hatch.join(name)


def test_without_room_there_is_none_and_no_name_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = names()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        Hatch.create()
    assert names() == before


def test_an_interpreter_without_semaphores_has_no_hatches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hatch, "import_module", ModuleType)
    assert not hatch.available()


def test_names_that_the_dead_left_behind_are_removed() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    stale = Path(hatch.FOLDER, f"smartipc-{pid}-0123456789abcdef")
    fresh = Path(hatch.FOLDER, f"smartipc-{pid}-fedcba9876543210")
    mine = Path(hatch.FOLDER, f"smartipc-{os.getpid()}-0123456789abcdef")
    try:
        for place in (stale, fresh, mine):
            place.touch()
        for place in (stale, mine):
            os.utime(place, (1, 1))
        hatch._sweep.cache_clear()
        hatch._sweep()
        assert [place.exists() for place in (stale, fresh, mine)] == [False, True, True]
    finally:
        for place in (stale, fresh, mine):
            place.unlink(missing_ok=True)

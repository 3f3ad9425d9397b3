"""Gathering messages into one array: what is added, what is refused, and what an interrupt leaves."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from smartipc.ipc import control
from smartipc.ipc.contracts import Topic
from smartipc.ipc.gathering import Gathering
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.tracing import heard
from smartipc.ipc.wire import codec


class Sent(Gathering):
    """Keeps what leaves."""

    __slots__ = ("batches",)

    def __init__(self, payload: Any, room: int = 100, limit: int = 1000, directory: Directory | None = None) -> None:
        super().__init__(Topic("t.a", payload), directory or Directory(), room, limit)
        self.batches: list[list[Any]] = []

    def leave(self) -> None:
        count, body = self.take()
        self.batches.append(codec.plain(body))
        assert len(self.batches[-1]) == count


def test_what_is_enough_leaves_and_the_rest_waits() -> None:
    sent = Sent(bytes, limit=1000)
    assert all(sent.add(bytes([number]) * 300) for number in range(10))
    assert [len(batch) for batch in sent.batches] == [4, 4]
    assert sent.count == 2
    sent.leave()
    assert [one[0] for batch in sent.batches for one in batch] == list(range(10))


def test_no_more_than_there_is_room_for_and_nothing_of_another_type() -> None:
    sent = Sent(int, room=3)
    assert [sent.add(value) for value in (1, "2", 3, True, 4, 5)] == [True, False, True, False, True, False]
    sent.leave()
    assert sent.batches == [[1, 3, 4]]


def test_one_that_has_no_form_or_is_too_large_leaves_no_trace() -> None:
    sent = Sent(list, limit=10**6)
    assert sent.add([1])
    assert not sent.add([2, object()])
    assert not sent.add([bytes(70_000)])
    assert sent.add([3])
    sent.leave()
    assert sent.batches == [[[1], [3]]]


def test_nothing_is_added_once_the_directory_is_another() -> None:
    directory = Directory()
    sent = Sent(int, directory=directory)
    assert sent.add(1)
    directory.apply(control.Directory(1, (), (), full=True))
    assert not sent.add(2)


def test_a_gathering_is_of_one_trace() -> None:
    sent = Sent(int)
    assert sent.add(1)
    with heard("00-1-2-01"):
        assert not sent.add(2)
        within = Sent(int)
        assert within.add(3)
        assert within.headers == {"traceparent": "00-1-2-01"}
    assert sent.headers is None
    assert sent.add(4)
    assert not within.add(5)
    sent.leave()
    assert sent.batches == [[1, 4]]


def test_half_a_message_that_was_interrupted_does_not_leave() -> None:
    class Zone(dt.tzinfo):
        def utcoffset(self, _when: dt.datetime | None) -> dt.timedelta:
            raise KeyboardInterrupt

    sent = Sent(tuple)
    assert sent.add((1, 2))
    with pytest.raises(KeyboardInterrupt):
        sent.add((3, dt.datetime(2026, 1, 1, tzinfo=Zone())))
    sent.leave()
    assert sent.batches == [[[1, 2]]]

"""The door: how many may wait at it, and who goes when there are too many."""

from __future__ import annotations

from smartipc.ipc.trust.door import UNAUTHENTICATED, Door


def test_the_oldest_makes_room() -> None:
    door: Door[str] = Door(2)
    assert door.enter("a") is None
    assert door.enter("b") is None
    assert door.enter("c") == "a"
    assert (len(door), door.turned_away) == (2, 1)


def test_whoever_is_through_counts_no_more() -> None:
    door: Door[str] = Door(1)
    door.enter("a")
    door.leave("a")
    door.leave("a")
    assert door.enter("b") is None
    assert (len(door), door.turned_away) == (1, 0)
    assert repr(door) == "<Door 1 of 1 waiting, 0 turned away>"


def test_the_limit_is_the_documented_one() -> None:
    door: Door[int] = Door()
    assert [door.enter(one) for one in range(UNAUTHENTICATED)] == [None] * 64
    assert door.enter(64) == 0

"""Free parts of the shared segments: nothing overlaps, neighbours grow together, bounds hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartipc.ipc.protocol.arena import GRAIN, Arena

K = GRAIN


def arena(segment: int = 8, limit: int = 32, warm: int = 16) -> Arena:
    return Arena(segment_size=segment * K, limit=limit * K, warm=warm * K)


def test_grow_take_give() -> None:
    one = arena()
    assert one.take(1) is None
    assert one.grow(1) == (1, 8 * K)
    assert one.take(1) == (1, 0)
    assert one.take(K + 1) == (1, K)
    assert one.in_use == 3 * K
    one.give(1, 0, 1)
    assert one.take(K) == (1, 0), "the smallest part that fits, not the first of many"
    assert one.take(5 * K) == (1, 3 * K)
    assert one.take(1) is None
    assert repr(one) == f"<Arena {8 * K} of {8 * K} bytes in 1 segments in use>"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_neighbours_become_one(order: tuple[int, ...]) -> None:
    one = arena(segment=3)
    one.grow(1)
    parts = [one.take(K) for _ in range(3)]
    assert [part[1] for part in parts if part] == [0, K, 2 * K]
    for index in order:
        one.give(1, index * K, K)
    assert one.take(3 * K) == (1, 0)


def test_large_parts_get_segments_of_their_own_size_and_the_limit_holds() -> None:
    one = arena(segment=8, limit=32)
    assert one.grow(20 * K) == (1, 20 * K)
    assert one.grow(K) == (2, 8 * K)
    assert one.grow(K) == (3, K), "what is left of the limit is used"
    assert one.grow(4 * K) is None
    assert one.size == 29 * K


def test_only_so_much_is_kept_warm() -> None:
    one = arena(segment=8, limit=64, warm=16)
    for _ in range(4):
        number, size = one.grow(1) or (0, 0)
        assert one.take(size) == (number, 0)
    assert one.retire() == []
    for number in (1, 2, 3):
        one.give(number, 0, 8 * K)
    assert one.retire() == [3]
    assert one.size == 24 * K
    one.give(4, 0, 8 * K)
    assert one.retire() == [4]


def test_an_abandoned_segment_is_never_used_again_and_goes_when_it_is_free() -> None:
    one = arena()
    one.grow(1)
    first, second = one.take(K), one.take(K)
    assert first == (1, 0)
    assert second == (1, K)
    one.abandon(1)
    one.abandon(1)
    one.give(1, 0, K)
    assert one.take(K) is None
    assert one.retire() == []
    one.give(1, K, K)
    assert one.retire() == [1]
    assert one.size == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9 * K), st.integers(0, 1000)), max_size=60))
def test_no_part_is_given_out_twice(steps: list[tuple[bool, int, int]]) -> None:
    one = arena(segment=16, limit=64, warm=64)
    out: list[tuple[int, int, int]] = []
    for take, size, which in steps:
        if take:
            part = one.take(size) or (one.grow(size) and one.take(size))
            if not part:
                assert one.size + 16 * K > 64 * K
                continue
            number, offset = part
            assert offset % GRAIN == 0
            end = offset + size
            assert all(number != n or end <= o or o + s <= offset for n, o, s in out)
            out.append((number, offset, size))
        elif out:
            one.give(*out.pop(which % len(out)))
    for part in out:
        one.give(*part)
    assert one.in_use == 0
    for number in range(1, 5):
        one.abandon(number)
    one.retire()
    assert one.size == 0

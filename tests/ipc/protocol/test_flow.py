"""Credit arithmetic: tables, and that a sender within its credit is never refused and never waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartipc.ipc.errors import RemoteProtocolError
from smartipc.ipc.protocol.flow import ReceiveWindow, SendWindow


@pytest.mark.parametrize(
    ("window", "items", "size", "queued", "allowed"),
    [
        (1000, 10, 1000, 0, True),
        (1000, 10, 1001, 0, True),  # larger than the window: begins when half of it is free
        (1000, 10, 600, 500, True),
        (1000, 10, 600, 501, False),
        (1000, 10, 400, 600, True),
        (1000, 10, 401, 600, False),
        (1000, 0, 1, 0, False),
        (0, 1, 0, 0, True),
        (0, 1, 1, 0, False),
        (1, 1, 5, 0, True),
    ],
)
def test_what_a_sender_may_take_on(window: int, items: int, size: int, queued: int, allowed: bool) -> None:
    assert SendWindow(window, items, 10_000).allows(size, queued) is allowed


def test_pieces_follow_the_credit() -> None:
    window = SendWindow(1000, 10, 400)
    assert window.quantum == 400
    assert window.piece(5000, 400) == 400
    window.sent = 700
    assert window.piece(5000, 400) == -1
    assert window.piece(300, 400) == 300
    assert window.piece(0, 400) == 0
    window.raise_to(1500, 5)
    assert (window.max_bytes, window.max_items) == (1500, 10)
    window.raise_to(1400, 20)
    assert (window.max_bytes, window.max_items) == (1500, 20)
    assert window.piece(5000, 400) == 400
    assert "700/1500 bytes" in repr(window)


def test_credit_comes_back_by_halves() -> None:
    window = ReceiveWindow(1000, 10)
    for _ in range(5):
        window.arrived(100, begins=True)
    for _ in range(4):
        window.consume(100)
        assert not window.grant(0, incomplete=False)
    window.consume(100)
    assert window.grant(0, incomplete=False)
    assert (window.max_bytes, window.max_items) == (1500, 15)
    assert "500 consumed of 500 received" in repr(window)


def test_items_alone_bring_credit_too() -> None:
    window = ReceiveWindow(1000, 4)
    for _ in range(2):
        window.arrived(1, begins=True)
        window.consume(1)
    assert window.grant(0, incomplete=False)
    assert (window.max_bytes, window.max_items) == (1002, 6)


def test_pieces_of_an_item_count_as_consumed_while_nothing_else_waits() -> None:
    window = ReceiveWindow(1000, 10)
    window.arrived(10, begins=True)
    window.arrived(900, begins=True)
    assert not window.grant(900, incomplete=True)  # the first item still waits for the application
    window.consume(10)
    assert window.grant(900, incomplete=True)
    assert window.max_bytes == 1910


@pytest.mark.parametrize("pieces", [[(1001, True)], [(500, True), (501, False)], [(1, True)] * 11])
def test_more_than_the_credit_is_a_violation(pieces: list[tuple[int, bool]]) -> None:
    window = ReceiveWindow(1000, 10)
    with pytest.raises(RemoteProtocolError, match="more than its credit"):
        for size, begins in pieces:
            window.arrived(size, begins=begins)


def test_nobody_consumes_what_has_not_come() -> None:
    window = ReceiveWindow(1000, 10)
    window.arrived(5, begins=True)
    with pytest.raises(ValueError, match="consumed more"):
        window.consume(6)


@given(
    st.integers(1, 300),
    st.integers(1, 8),
    st.integers(1, 200),
    st.lists(st.integers(0, 1000), max_size=30),
    st.randoms(use_true_random=False),
)
def test_every_item_gets_through_any_window(
    window: int, items: int, chunk: int, sizes: list[int], random: object
) -> None:
    """Whatever the sizes and however lazily the application consumes, the sender is never refused and never stuck."""
    there = ReceiveWindow(window, items)
    here = SendWindow(window, items, chunk)
    waiting: list[int] = []
    received = 0
    for size in sizes:
        offset, partial, begins = 0, 0, True
        while True:
            stuck = False
            if begins and not here.allows(size, 0):
                stuck = True
            else:
                piece = here.piece(size - offset, chunk)
                stuck = piece < 0
            if not stuck:
                here.items += begins
                here.sent += piece
                there.arrived(piece, begins=begins)
                assert here.sent <= here.max_bytes
                begins = False
                offset += piece
                if offset == size:
                    waiting.append(size)
                    received += 1
                    break
                partial = offset
            elif waiting:
                there.consume(waiting.pop(0))
            incomplete = not begins
            granted = there.grant(partial if incomplete else 0, incomplete=incomplete)
            if granted:
                here.raise_to(there.max_bytes, there.max_items)
            assert not (stuck and not waiting and not granted and not _may(here, size, offset, begins, chunk))
            if waiting and random.random() < 0.3:  # type: ignore[attr-defined]
                there.consume(waiting.pop(0))
    assert received == len(sizes)


def _may(window: SendWindow, size: int, offset: int, begins: bool, chunk: int) -> bool:
    return window.allows(size, 0) if begins else window.piece(size - offset, chunk) >= 0

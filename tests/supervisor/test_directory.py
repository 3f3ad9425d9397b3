"""The supervisor's side of the directory: changes add up, for a reader of them, to what a fresh reader gets."""

from __future__ import annotations

from smartipc.ipc.control import Entry, Subscription
from smartipc.ipc.routing.directory import Directory
from smartipc.supervisor.directory import Book


def entry(slot: int, generation: int = 1, state: str = "ready", **more) -> Entry:
    return Entry(f"w:{slot}", "w", slot, generation, 100 + generation, state, **more)


def pair() -> tuple[Book, Directory]:
    book, reader = Book(), Directory()
    for slot in (0, 1):
        book.set(entry(slot))
    reader.apply(book.changes())
    return book, reader


def check(book: Book, reader: Directory) -> None:
    """Tell the reader the changes, and compare it with one that comes now."""
    if book.dirty:
        reader.apply(book.changes())
    fresh = Directory()
    fresh.apply(book.join(("w:9", 1)))
    assert reader.state.entries == fresh.state.entries
    assert reader.state.beside == fresh.state.beside
    assert reader.state.revision == fresh.state.revision


def test_a_rollout_is_told_life_by_life() -> None:
    book, reader = pair()
    book.set(entry(0, 2, "starting", current=False))
    check(book, reader)
    assert reader.state.lives("w:0", 2)
    book.set(entry(0, 1, "stopping", current=False))
    book.set(entry(0, 2))
    check(book, reader)
    assert [*reader.state.beside] == [("w:0", 1)]
    book.set(entry(0, 1, "stopped", current=False))
    check(book, reader)
    assert not reader.state.lives("w:0", 1)
    book.set(entry(0, 3, "starting", current=False))
    check(book, reader)
    assert [*reader.state.beside] == [("w:0", 3)]


def test_a_failed_replacement_leaves_the_current_life() -> None:
    book, reader = pair()
    book.set(entry(0, 2, "starting", current=False))
    book.set(entry(0, 2, "failed", current=False))
    check(book, reader)
    assert reader.state.lives("w:0", 1)
    assert not reader.state.lives("w:0", 2)


def test_subscriptions_of_lives_beside_are_kept_until_their_end() -> None:
    book, _ = pair()
    book.set(entry(0, 2, "running", current=False))
    for generation in (1, 2):
        book.subscribe(Subscription("w:0", generation, 1, "t", 1))
    book.set(entry(0, 1, "stopping", current=False))
    book.set(entry(0, 2))
    assert sorted(key[1] for key in book.subscriptions) == [1, 2]
    book.set(entry(0, 1, "stopped", current=False))
    assert [key[1] for key in book.subscriptions] == [2]


def test_a_removed_slot_is_forgotten_with_all_its_lives_and_may_come_back() -> None:
    book, reader = pair()
    book.set(entry(1, 2, "stopping", current=False))
    book.subscribe(Subscription("w:1", 1, 1, "t", 1))
    book.remove("w:1")
    check(book, reader)
    assert [*reader.state.entries] == ["w:0"]
    assert book.subscriptions == {}
    book.set(entry(1, 1, "starting"))
    check(book, reader)
    assert reader.state.lives("w:1", 1)


def test_removed_and_back_before_anybody_was_told() -> None:
    book, reader = pair()
    book.remove("w:1")
    book.set(entry(1, 1, "starting"))
    check(book, reader)
    assert [*reader.state.entries] == ["w:0", "w:1"]

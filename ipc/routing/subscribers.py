"""Who subscribes to what: every subscription of the app, found by topic, by key and by instance. Pure.

Which member of a queue gets a message, and how messages wait, is decided by the publisher (publications.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import msgspec

from smartipc.ipc.control import Subscription
from smartipc.ipc.routing.topics import Trie

Key: TypeAlias = tuple[str, int, int]
"""A subscription's identity: instance, generation, number."""

_MEMO = 4096
"""Topics whose targets are remembered until a subscription comes or goes."""


class Targets(msgspec.Struct, frozen=True, gc=False):
    """Where a message on one topic goes: to each of `plain`, and to one member of each queue."""

    plain: tuple[Subscription, ...] = ()
    queues: tuple[tuple[str, tuple[Subscription, ...]], ...] = ()
    """Name and members."""


def key_of(one: Subscription) -> Key:
    """Return the identity of a subscription."""
    return one.instance, one.generation, one.number


class Subscribers:
    """The subscriptions. One thread may change them while others look things up."""

    def __init__(self, subscriptions: Iterable[Subscription] = ()) -> None:
        self._by_key: dict[Key, Subscription] = {}
        self._by_instance: dict[str, set[Key]] = {}
        self._trie: Trie[Subscription] = Trie()
        self._memo: dict[str, Targets] = {}
        for one in subscriptions:
            self.add(one)

    def __repr__(self) -> str:
        return f"<Subscribers: {len(self._by_key)}>"

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Subscription]:
        return iter(tuple(self._by_key.values()))

    def __contains__(self, one: object) -> bool:
        return isinstance(one, Subscription) and self._by_key.get(key_of(one)) == one

    def get(self, key: Key) -> Subscription | None:
        """Return a subscription that is still there."""
        return self._by_key.get(key)

    def add(self, one: Subscription) -> None:
        """Put a subscription in; one of the same key is replaced."""
        key = key_of(one)
        self.remove(key)
        self._by_key[key] = one
        self._by_instance.setdefault(one.instance, set()).add(key)
        self._trie.add(one.pattern, one)
        self._memo = {}

    def remove(self, key: Key) -> None:
        """Take a subscription out, if it is there."""
        one = self._by_key.pop(key, None)
        if one is None:
            return
        of_instance = self._by_instance[one.instance]
        of_instance.discard(key)
        if not of_instance:
            del self._by_instance[one.instance]
        self._trie.discard(one.pattern, one)
        # Last, and a new one: a reader that began earlier keeps what it found in the old.
        self._memo = {}

    def keep(self, instance: str, lives: Callable[[str, int], bool]) -> None:
        """Take out an instance's subscriptions of lives that are over."""
        for key in tuple(self._by_instance.get(instance, ())):
            if not lives(instance, key[1]):
                self.remove(key)

    def targets(self, topic: str) -> Targets:
        """Return where a message on a concrete topic goes."""
        memo = self._memo
        known = memo.get(topic)
        if known is None:
            known = _targets(self._trie.match(topic))
            if len(memo) < _MEMO:
                memo[topic] = known
        return known


def _targets(found: list[Subscription]) -> Targets:
    queues: dict[str, list[Subscription]] = {}
    for one in found:
        if one.queue:
            queues.setdefault(one.queue, []).append(one)
    return Targets(
        tuple(one for one in found if not one.queue),
        tuple((name, tuple(members)) for name, members in queues.items()),
    )

"""The supervisor's side of the directory: what workers are told, in which revision, and who has acknowledged it.

Pure bookkeeping: the runner sends what `changes` returns and reports acknowledgements and deaths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from smartipc.ipc.control import Directory, Entry, Subscription

LifeKey = tuple[str, int]
LIVING = frozenset({"starting", "running", "ready", "degraded", "stopping"})


@dataclass(eq=False, slots=True)
class Barrier:
    """A revision that every living worker must acknowledge before `done` is called."""

    revision: int
    waiting: set[LifeKey]
    done: Callable[[], None]


class Book:
    """Entries, subscriptions and revisions."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.beside: dict[LifeKey, Entry] = {}
        """Lives that are to replace a current one, or were replaced and drain, or have just ended so."""
        self.subscriptions: dict[tuple[str, int, int], Subscription] = {}
        self.revision = 0
        self._members: dict[LifeKey, int] = {}
        self._changed: set[str] = set()
        self._changed_beside: set[LifeKey] = set()
        self._gone: set[str] = set()
        self._added: list[Subscription] = []
        self._removed: list[tuple[str, int, int]] = []
        self._barriers: list[Barrier] = []

    def __repr__(self) -> str:
        return f"<Book {self.revision}: {len(self.entries)} entries, {len(self.subscriptions)} subscriptions>"

    def set(self, entry: Entry) -> None:
        """Put an entry in; subscriptions of lives that are over are forgotten, as every reader does by itself."""
        life = (entry.instance, entry.generation)
        if entry.current:
            self.entries[entry.instance] = entry
            self._changed.add(entry.instance)
            self._gone.discard(entry.instance)
            self.beside.pop(life, None)
            self._changed_beside.discard(life)
        else:
            for key, other in list(self.beside.items()):
                if key[0] == entry.instance and key != life and other.state not in LIVING:
                    del self.beside[key]
                    self._changed_beside.discard(key)
            self.beside[life] = entry
            self._changed_beside.add(life)
        self._forget_subscriptions(entry.instance)

    def remove(self, instance: str) -> None:
        """Take an instance out that does not exist any more."""
        self.entries.pop(instance, None)
        self._changed.discard(instance)
        self._gone.add(instance)
        for life in [life for life in self.beside if life[0] == instance]:
            del self.beside[life]
            self._changed_beside.discard(life)
        self._forget_subscriptions(instance)

    def _forget_subscriptions(self, instance: str) -> None:
        beside = [entry for life, entry in self.beside.items() if life[0] == instance]
        lives = [*beside, self.entries[instance]] if instance in self.entries else beside
        living = {entry.generation for entry in lives if entry.state in LIVING}
        for key in [key for key in self.subscriptions if key[0] == instance and key[1] not in living]:
            del self.subscriptions[key]

    def subscribe(self, subscription: Subscription) -> None:
        """Add a subscription."""
        key = (subscription.instance, subscription.generation, subscription.number)
        self.subscriptions[key] = subscription
        self._added.append(subscription)

    def unsubscribe(self, key: tuple[str, int, int]) -> None:
        """Remove a subscription."""
        if self.subscriptions.pop(key, None) is not None:
            self._removed.append(key)

    @property
    def dirty(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._changed or self._changed_beside or self._gone or self._added or self._removed)

    def changes(self) -> Directory:
        """Return what changed since the last call, as the next revision."""
        self.revision += 1
        update = Directory(
            self.revision,
            (
                *(self.entries[name] for name in sorted(self._changed)),
                *(self.beside[life] for life in sorted(self._changed_beside)),
            ),
            tuple(one for one in self._added if (one.instance, one.generation, one.number) in self.subscriptions),
            tuple(self._removed),
            removed=tuple(sorted(self._gone)),
        )
        self._changed.clear()
        self._changed_beside.clear()
        self._gone.clear()
        self._added.clear()
        self._removed.clear()
        return update

    def join(self, life: LifeKey) -> Directory:
        """Return everything for a fresh life, which counts from here on.

        That includes changes that are not told yet; to be told of them again does it no harm.
        """
        self._members[life] = self.revision
        entries = (*self.entries.values(), *self.beside.values())
        return Directory(self.revision, entries, tuple(self.subscriptions.values()), full=True)

    def leave(self, life: LifeKey) -> None:
        """Stop waiting for a life that is over."""
        if self._members.pop(life, None) is not None:
            self._advance(life)

    def acknowledged(self, life: LifeKey, revision: int) -> None:
        """Note that a life has applied a revision."""
        if life in self._members:
            self._members[life] = max(self._members[life], revision)
            self._advance(life)

    def barrier(self, done: Callable[[], None]) -> None:
        """Call `done` when every living worker has applied the current revision."""
        waiting = {life for life, revision in self._members.items() if revision < self.revision}
        if waiting:
            self._barriers.append(Barrier(self.revision, waiting, done))
        else:
            done()

    def _advance(self, life: LifeKey) -> None:
        applied = self._members.get(life)
        for barrier in tuple(self._barriers):
            if applied is None or applied >= barrier.revision:
                barrier.waiting.discard(life)
            if not barrier.waiting:
                self._barriers.remove(barrier)
                barrier.done()

"""Who is where: the directory as the supervisor tells it, as one immutable state that is swapped whole.

Updates come from the control thread, readers are anywhere: a reader takes `state` once and sees one consistent
picture. Choosing among instances is balance.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from smartipc.ipc import control
from smartipc.ipc.control import COMING, Entry, ExitFacts, Subscription
from smartipc.ipc.routing.topics import matches

_MEMO = 4096
"""Topics whose subscriptions are remembered per state."""
_LIVING = frozenset({"starting", "running", "ready", "degraded", "stopping"})


class DirectoryState:
    """One consistent picture. Never changed after it was made, but for its memo."""

    __slots__ = ("_memo", "by_worker", "entries", "revision", "subscriptions")

    def __init__(self, revision: int, entries: Iterable[Entry], subscriptions: Iterable[Subscription]) -> None:
        self.revision = revision
        self.entries = {entry.instance: entry for entry in entries}
        workers: dict[str, list[Entry]] = {}
        for entry in self.entries.values():
            workers.setdefault(entry.worker, []).append(entry)
        self.by_worker = {name: tuple(sorted(of, key=lambda entry: entry.slot)) for name, of in workers.items()}
        self.subscriptions = tuple(one for one in subscriptions if self.lives(one.instance, one.generation))
        self._memo: dict[str, tuple[Subscription, ...]] = {}

    def __repr__(self) -> str:
        return f"<DirectoryState {self.revision}: {len(self.entries)} slots, {len(self.subscriptions)} subscriptions>"

    def lives(self, instance: str, generation: int) -> bool:
        """Tell whether that life of the instance is not known to be over."""
        entry = self.entries.get(instance)
        return entry is not None and entry.generation == generation and entry.state in _LIVING

    def exit_of(self, instance: str, generation: int) -> ExitFacts | None:
        """Return how a life ended, if the directory still knows."""
        entry = self.entries.get(instance)
        if entry is None or entry.last_exit_generation != generation:
            return None
        return entry.last_exit

    def workers(self) -> tuple[str, ...]:
        """Names of the app's workers; the library's own are left out."""
        return tuple(name for name in self.by_worker if not name.startswith("$"))

    def coming(self, worker: str) -> bool:
        """Tell whether an instance of the worker may become ready by itself."""
        return any(entry.state in COMING for entry in self.by_worker.get(worker, ()))

    def subscribed(self, topic: str) -> tuple[Subscription, ...]:
        """Return the subscriptions that a message on `topic` goes to."""
        known = self._memo.get(topic)
        if known is None:
            known = tuple(one for one in self.subscriptions if matches(one.pattern, topic))
            if len(self._memo) < _MEMO:
                self._memo[topic] = known
        return known


class Directory:
    """The current state and who wants to know when it changes."""

    def __init__(self) -> None:
        self.state = DirectoryState(0, (), ())
        self.listeners: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Directory {self.state!r}>"

    def apply(self, update: control.Directory) -> None:
        """Take an update and call the listeners; one thread at a time, readers need no lock."""
        old = self.state
        if update.full:
            self.state = DirectoryState(update.revision, update.entries, update.subscriptions)
        else:
            entries = old.entries | {entry.instance: entry for entry in update.entries}
            gone = set(update.unsubscribed)
            kept = [one for one in old.subscriptions if (one.instance, one.generation, one.number) not in gone]
            self.state = DirectoryState(update.revision, entries.values(), [*kept, *update.subscriptions])
        for listener in tuple(self.listeners):
            listener()

"""Who is where: the directory as the supervisor tells it, as one immutable state that is swapped whole.

Updates come from the control thread, readers are anywhere: a reader takes `state` once and sees one consistent
picture. Choosing among instances is balance.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from smartipc.ipc import control
from smartipc.ipc.control import COMING, Entry, ExitFacts, Subscription
from smartipc.ipc.routing.subscribers import Subscribers, Targets

_LIVING = frozenset({"starting", "running", "ready", "degraded", "stopping"})


class DirectoryState:
    """One consistent picture of who lives where. Never changed after it was made.

    Only `subscriptions` is shared from state to state and kept current in place: ten thousand of them are not copied
    because one comes or goes, and a publisher that sees a newer one early does nothing wrong.
    """

    __slots__ = ("by_worker", "entries", "revision", "subscribed", "subscriptions")

    def __init__(
        self, revision: int, entries: Iterable[Entry], subscriptions: Subscribers | Iterable[Subscription]
    ) -> None:
        self.revision = revision
        self.entries = {entry.instance: entry for entry in entries}
        workers: dict[str, list[Entry]] = {}
        for entry in self.entries.values():
            workers.setdefault(entry.worker, []).append(entry)
        self.by_worker = {name: tuple(sorted(of, key=lambda entry: entry.slot)) for name, of in workers.items()}
        if not isinstance(subscriptions, Subscribers):
            subscriptions = Subscribers(one for one in subscriptions if self.lives(one.instance, one.generation))
        self.subscriptions = subscriptions
        self.subscribed: Callable[[str], Targets] = subscriptions.targets
        """Where a message on a concrete topic goes."""

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


class Directory:
    """The current state and who wants to know when it changes."""

    def __init__(self) -> None:
        self.state = DirectoryState(0, (), ())
        self.listeners: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Directory {self.state!r}>"

    def apply(self, update: control.Directory) -> None:
        """Take an update and call the listeners; one thread at a time, readers need no lock."""
        if update.full:
            self.state = DirectoryState(update.revision, update.entries, update.subscriptions)
        else:
            old, subscriptions = self.state, self.state.subscriptions
            entries = old.entries | {entry.instance: entry for entry in update.entries}
            new = DirectoryState(update.revision, entries.values(), subscriptions)
            for entry in update.entries:
                subscriptions.keep(entry.instance, new.lives)
            for key in update.unsubscribed:
                subscriptions.remove(key)
            self.state = new
            for one in update.subscriptions:
                if new.lives(one.instance, one.generation):
                    subscriptions.add(one)
        for listener in tuple(self.listeners):
            listener()

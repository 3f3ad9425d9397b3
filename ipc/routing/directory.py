"""Who is where: the directory as the supervisor tells it, as one immutable state that is swapped whole.

Updates come from the control thread, readers are anywhere: a reader takes `state` once and sees one consistent
picture. Choosing among instances is balance.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from smartipc.ipc import control
from smartipc.ipc.control import COMING, Entry, ExitFacts, Subscription
from smartipc.ipc.routing.subscribers import Subscribers, Targets

_LIVING = frozenset({"starting", "running", "ready", "degraded", "stopping"})


class DirectoryState:
    """One consistent picture of who lives where. Never changed after it was made.

    Only `subscriptions` is shared from state to state and kept current in place: ten thousand of them are not copied
    because one comes or goes, and a publisher that sees a newer one early does nothing wrong.
    """

    __slots__ = ("beside", "by_worker", "entries", "restricted", "revision", "subscribed", "subscriptions")

    def __init__(
        self,
        revision: int,
        entries: Iterable[Entry],
        subscriptions: Subscribers | Iterable[Subscription],
        beside: Iterable[Entry] = (),
    ) -> None:
        self.revision = revision
        self.entries = {entry.instance: entry for entry in entries}
        self.beside = {(entry.instance, entry.generation): entry for entry in beside}
        self.restricted = any(entry.allow is not None for entry in self.entries.values())
        """Whether some worker may not say and hear everything."""
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
        entry = self.life(instance, generation)
        return entry is not None and entry.state in _LIVING

    def life(self, instance: str, generation: int) -> Entry | None:
        """Return what is known of one life: the current one of its slot, or one beside it that comes or drains."""
        entry = self.entries.get(instance)
        return (
            entry if entry is not None and entry.generation == generation else self.beside.get((instance, generation))
        )

    def leaving(self, one: Subscription) -> bool:
        """Tell whether a subscriber's life has been told to stop, or is over: it will not consume what it is sent."""
        entry = self.life(one.instance, one.generation)
        return entry is None or entry.state not in _LIVING or entry.state == "stopping"

    def staying(self, members: tuple[Subscription, ...]) -> tuple[Subscription, ...]:
        """Return the members of a queue that will consume what they are sent; all of them if none will."""
        return tuple(one for one in members if not self.leaving(one)) or members

    def successors(self, one: Subscription, topic: str, known: Collection[Subscription]) -> list[Subscription]:
        """Return the like subscriptions of later lives of the same slot that are not known yet."""
        return [
            other
            for other in self.subscribed(topic).plain
            if other.instance == one.instance
            and other.pattern == one.pattern
            and other.generation > one.generation
            and other not in known
        ]

    def exit_of(self, instance: str, generation: int) -> ExitFacts | None:
        """Return how a life ended, if the directory still knows."""
        for entry in (self.entries.get(instance), self.beside.get((instance, generation))):
            if entry is not None and entry.last_exit_generation == generation:
                return entry.last_exit
        return None

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
        self.lives: dict[tuple[str, int], int] = {}
        """The process of each (instance, generation) that lives, also beside the current one."""

    def __repr__(self) -> str:
        return f"<Directory {self.state!r}>"

    def apply(self, update: control.Directory) -> None:
        """Take an update and call the listeners; one thread at a time, readers need no lock."""
        current = [entry for entry in update.entries if entry.current]
        if update.full:
            beside = [entry for entry in update.entries if not entry.current]
            self.state = DirectoryState(update.revision, current, update.subscriptions, beside)
        else:
            old, subscriptions = self.state, self.state.subscriptions
            entries = old.entries | {entry.instance: entry for entry in current}
            for name in update.removed:
                entries.pop(name, None)
            new = DirectoryState(update.revision, entries.values(), subscriptions, _beside(old, update))
            for name in {*(entry.instance for entry in update.entries), *update.removed}:
                subscriptions.keep(name, new.lives)
            for key in update.unsubscribed:
                subscriptions.remove(key)
            self.state = new
            for one in update.subscriptions:
                if new.lives(one.instance, one.generation):
                    subscriptions.add(one)
        self.lives = _lives(self.state)
        for listener in tuple(self.listeners):
            listener()


def _beside(old: DirectoryState, update: control.Directory) -> list[Entry]:
    """Return the lives beside the current ones after an update.

    A life that is over stays, for its exit facts, until the next one beside the same slot is told of; one that has
    become current, or whose slot is gone, does not.
    """
    new = {(entry.instance, entry.generation): entry for entry in update.entries if not entry.current}
    current = {(entry.instance, entry.generation) for entry in update.entries if entry.current}
    told = {instance for instance, _ in new}
    kept = [
        entry
        for life, entry in old.beside.items()
        if life not in new
        and life not in current
        and entry.instance not in update.removed
        and (entry.state in _LIVING or entry.instance not in told)
    ]
    return [*kept, *new.values()]


def _lives(state: DirectoryState) -> dict[tuple[str, int], int]:
    return {
        (entry.instance, entry.generation): entry.pid
        for entry in (*state.entries.values(), *state.beside.values())
        if entry.state in _LIVING and entry.pid
    }

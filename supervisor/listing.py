"""The directory as the supervisor keeps it: what each transition changes in it, and when the workers are told.

Revisions and acknowledgements are directory.py's; what a life is called and where it listens is asked of the app.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from smartipc.ipc import control
from smartipc.ipc.control import Entry
from smartipc.ipc.errors import SmartIpcError
from smartipc.ipc.wire import codec
from smartipc.supervisor.core.orders import Announce
from smartipc.supervisor.pipe import allow_of

if TYPE_CHECKING:
    from smartipc.ipc.control import Allow
    from smartipc.supervisor.runner import App

log = logging.getLogger("smartipc.supervisor")
_TELL_PAUSE = 0.25e-3
"""Seconds per worker between two tellings of the directory; 200 workers are told at most every 50 ms."""
_LEAST_PAUSE = 2e-3
"""Shorter ones are not worth a timer."""


class Listing:
    """Enter every transition into the app's book, and send what changed to every living worker.

    Args:
        app: the running app.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._due: asyncio.TimerHandle | None = None
        self._told_at = 0.0
        self._after: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Listing {'due' if self._due is not None else 'told'}, {len(self._after)} wait for it>"

    def enter(self, order: Announce) -> None:
        """List a life as it is after a transition, and beside it one that drains or is about to take over."""
        app = self._app
        try:
            view = app.core.view(order.instance)
        except KeyError:
            return  # it has vanished since: Forget follows
        if order.to_state == "backoff" and order.generation != view.generation:
            return  # there is a successor by now, which is listed next
        entry = Entry(
            instance=order.instance,
            worker=view.worker,
            slot=view.slot,
            generation=view.generation,
            pid=view.pid or 0,
            state=view.state,
            address=app.address(order.instance, view.generation) if view.pid is not None else "",
            last_exit=view.last_exit,
            last_exit_generation=view.last_exit_generation,
            allow=self._allow_of(view.worker),
        )
        if order.generation not in (0, view.generation):
            assert order.to_state is not None
            beside = msgspec.structs.replace(
                entry,
                generation=order.generation,
                pid=order.pid or 0,
                state=order.to_state,
                address=app.address(order.instance, order.generation) if order.pid is not None else "",
                last_exit=order.exit,
                last_exit_generation=order.generation if order.exit is not None else 0,
                current=False,
            )
            app.book.set(beside)  # first: a life that is listed nowhere for a moment loses its subscriptions
        app.book.set(entry)
        self.tell_soon()

    def forget(self, instance: str) -> None:
        """Take an instance out of the directory."""
        self._app.book.remove(instance)
        self.tell_soon()

    def tell_soon(self, then: Callable[[], None] | None = None) -> None:
        """Send what changed in the directory to every living worker, in this turn of the loop or very soon.

        Each telling costs a message and an answer per worker, so when hundreds start, or die, at once, they are told
        at most every so often, the longer the more they are; a single change is told at once.

        Args:
            then: called when every worker has applied it.
        """
        if then is not None:
            self._after.append(then)
        if self._due is None:
            loop = asyncio.get_running_loop()
            pause = _TELL_PAUSE * len(self._app.links)
            at = max(loop.time(), self._told_at + pause) if pause >= _LEAST_PAUSE else loop.time()
            self._due = loop.call_at(at, self.tell)

    def tell(self) -> None:
        """Send what changed in the directory to every living worker, now."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        after, self._after = self._after, []
        self._tell_changes()
        for then in after:
            self._app.book.barrier(then)

    def _tell_changes(self) -> None:
        app = self._app
        if not app.book.dirty:
            return
        self._told_at = asyncio.get_running_loop().time()
        update = app.book.changes()
        encoded = codec.encode(update)
        app.operator.directory.apply(update)
        for link in tuple(app.links.values()):
            if link.peer is not None and not link.closed:
                try:
                    link.notify(control.directory.name, encoded)
                except SmartIpcError as error:
                    log.warning(
                        "directory update not sent to %s: %s", link.peer.name, error, extra={"instance": link.peer.name}
                    )

    def _allow_of(self, worker: str) -> Allow | None:
        """Return what a worker may say and hear; one that is being removed is no longer in the spec."""
        return next((allow_of(one) for one in self._app.spec.workers if one.name == worker), None)

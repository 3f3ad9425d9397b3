"""Running what a blocking handle was asked: the queue of work, and handlers one at a time, in the home thread.

Nothing here reads or waits: that is serving.py's, which fills the queue. What a request means is decided in dispatch.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from smartipc.ipc import tracing
from smartipc.ipc.dispatch import Handler, Registry, again
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import ConnectionLost, FrameTooLarge
from smartipc.ipc.protocol.events import NotifyReceived, RequestReceived
from smartipc.ipc.protocol.straight import Asked
from smartipc.ipc.resilience.dead_letters import DeadLetters
from smartipc.ipc.resilience.undelivered import Undelivered
from smartipc.ipc.routing import attempts
from smartipc.ipc.routing.port import ControlPort
from smartipc.ipc.tracing import current_deadline
from smartipc.ipc.wire.depth import SHALLOW
from smartipc.ipc.wire.heads import Fault

log = logging.getLogger("smartipc.serving")

_LOOK_EVERY = 0.005
"""Seconds of work after which the links are read in between, so that cancels and deadlines are seen."""
_NOTHING: Any = object()
_QUICK = 0.0001
"""Handlers that took less than these seconds may have their replies leave together with the next one's."""


class Work:
    """What waits for the home thread, and running it.

    Args:
        registry: the handlers.
        port: told that the home thread turns.
        look_after: called with a link that may have more to write than its socket took.
        letters: where one-way messages go that cannot be handled; None for nowhere.
    """

    def __init__(
        self, registry: Registry, port: ControlPort, look_after: Callable[[Link], None], letters: DeadLetters | None
    ) -> None:
        self.queue: deque[tuple[Link | None, RequestReceived | NotifyReceived | Callable[[], None]]] = deque()
        """Requests and one-way messages with their links, and other work without one. Any thread may append."""
        self.requests = 0
        """How many of them are requests."""
        self.current: tuple[Link, int] | None = None
        """The request whose handler runs."""
        self.running = False
        """Whether anything of the queue runs."""
        self._registry = registry
        self._port = port
        self._look_after = look_after
        self.undelivered = Undelivered(letters)
        """What becomes of one-way messages that cannot be handled."""
        self._cancelled: set[tuple[Link, int]] = set()
        self._durations: dict[str, float] = {}
        self._corked: set[Link] = set()

    def __repr__(self) -> str:
        return f"<Work {len(self.queue)} waiting{', running' if self.running else ''}>"

    def cancel(self, link: Link, ident: int) -> None:
        """Forget a request that has not started. One that runs goes on: its thread cannot be stopped."""
        if (link, ident) != self.current:
            self._cancelled.add((link, ident))

    def forget(self, link: Link) -> None:
        """Owe a closed link no bytes; what its peer had asked for is skipped when its turn comes."""
        self._corked.discard(link)

    def refuse(self, name: str) -> None:
        """Answer every waiting request as never run, and drop the rest: `name` is stopping."""
        while self.queue:
            link, what = self.queue.popleft()
            if link is not None and isinstance(what, RequestReceived):
                refused = ConnectionLost(name, "stopping", processed="no", retryable=True)
                link.fail(what.id, self._registry.fault(refused, ()))
        self.requests = 0
        self._cancelled.clear()

    def run(self, done: Callable[[], bool]) -> None:
        """Run what is queued, at least one item, until `done`, the queue is empty or the links want to be read."""
        began = time.monotonic()
        try:
            while self.queue:
                link, what = self.queue.popleft()
                self.running = True
                if link is None:
                    _run_posted(what)  # type: ignore[arg-type]
                elif isinstance(what, RequestReceived):
                    self.requests -= 1
                    self.current = (link, what.id)
                    self._serve(link, what)
                    self.current = None
                else:
                    self._one_way(link, what)  # type: ignore[arg-type]
                self.running = False
                self._port.turned()
                if done() or time.monotonic() - began > _LOOK_EVERY:
                    return
        finally:
            self.running = False
            self.current = None
            self._uncork()

    def run_at_once(self, link: Link, asked: Asked) -> None:
        """Run a request that nothing is queued before, as `run` does."""
        ident, head, payload, deadline, now = asked
        registry = self._registry
        handler = registry.handlers.get(head.method)
        argument = _NOTHING
        if handler is not None and handler.plain and len(payload) <= SHALLOW:
            try:  # noqa: SIM105 - suppress takes as long as the handler
                argument = handler.decode(payload)
            except Exception:  # noqa: S110 - what is wrong with it is found again on the long way
                pass
        self.running = True
        self.current = (link, ident)
        try:
            if handler is None or argument is _NOTHING:
                self._serve(link, RequestReceived(ident, head.method, payload, deadline, None, head.attempt, now))
            else:
                registry.served += 1
                self._call(handler, link, ident, (argument,), deadline, (link.connection.peer, None, ident, now), now)
        finally:
            self.running = False
            self.current = None
            if self._corked:
                self._uncork()

    def _serve(self, link: Link, event: RequestReceived) -> None:
        if (link, event.id) in self._cancelled:
            self._cancelled.discard((link, event.id))
            return
        if link.closed:
            return
        handler = self._registry.find(event.method)
        if isinstance(handler, Fault):
            link.fail(event.id, handler)
            return
        now = time.monotonic()
        arguments = self._registry.arguments(handler, event, link.peer, now)
        if isinstance(arguments, Fault):
            link.fail(event.id, arguments)
            return
        self._call(handler, link, event.id, arguments, event.deadline, tracing.handled(link.peer, event), now)

    def _call(
        self,
        handler: Handler,
        link: Link,
        ident: int,
        arguments: tuple[Any, ...],
        deadline: float | None,
        traced: tracing.Handled,
        now: float,
    ) -> None:
        token = current_deadline.set(deadline)
        handled = tracing.current.set(traced)
        try:
            value = handler.function(*arguments)
        except Exception as error:  # the boundary of the user's handler
            if not isinstance(error, handler.errors):
                log.debug("handler of %s raised", handler.name, exc_info=error)
            link.fail(ident, self._registry.failed(error, handler.errors))
        except BaseException as error:  # the worker ends by it, but its caller shall know
            link.fail(ident, self._registry.fault(error, ()))
            raise
        else:
            if self.queue:
                self._durations[handler.name] = time.monotonic() - now
            self._answer(handler, link, ident, value)
        finally:
            current_deadline.reset(token)
            tracing.current.reset(handled)
        if link.stuck:
            self._look_after(link)

    def _answer(self, handler: Handler, link: Link, ident: int, value: Any) -> None:
        reply = self._registry.reply(handler, value)
        if isinstance(reply, Fault):
            link.fail(ident, reply)
            return
        if not self.queue and not self._corked and link.answer(ident, reply):
            return
        cork = bool(self.queue) and self._next_is_quick()
        try:
            link.reply(ident, reply, flush=not cork)
        except FrameTooLarge as error:
            link.fail(ident, self._registry.fault(error, ()))
            return
        if cork:
            self._corked.add(link)
        else:
            self._corked.discard(link)
            if self._corked:
                self._uncork()

    def _next_is_quick(self) -> bool:
        """Tell whether a reply may wait for the next one: only if that is known to come at once."""
        try:
            what = self.queue[0][1]
        except IndexError:
            return False
        return isinstance(what, RequestReceived) and self._durations.get(what.method, 1.0) < _QUICK

    def _uncork(self) -> None:
        while self._corked:
            link = self._corked.pop()
            link.flush()
            self._look_after(link)

    def _one_way(self, link: Link, event: NotifyReceived, attempt: int = 1) -> None:
        """Run the handler of a one-way message; nobody waits for it, so its failure becomes a dead letter.

        An idempotent one is tried again, behind what has come meanwhile.
        """
        handler = self._registry.find(event.method)
        if isinstance(handler, Fault):
            self.undelivered.dropped(link.peer, event, handler.message)
            return
        arguments = self._registry.arguments(handler, event, link.peer, time.monotonic())
        if isinstance(arguments, Fault):
            self.undelivered.dropped(link.peer, event, arguments.message)
            return
        handled = tracing.current.set(tracing.handled(link.peer, event))
        try:
            handler.function(*again(arguments, attempt))
        except Exception as error:  # the boundary of the user's handler
            if handler.idempotent and attempt < attempts.ATTEMPTS:
                self.queue.append((None, functools.partial(self._one_way, link, event, attempt + 1)))
                return
            log.exception("handler of one-way message %s raised", handler.name)
            self.undelivered.failed(link.peer, event, error, attempt)
        finally:
            tracing.current.reset(handled)


def _run_posted(work: Callable[[], None]) -> None:
    work()

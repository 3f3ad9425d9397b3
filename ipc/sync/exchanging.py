"""What a blocking client and a blocking server have in common: calls, handlers and waiting over the same links.

In a worker, calls go out over links of their own and are read by whoever waits for them. Here one link carries both
directions, so whoever waits for an answer also reads what the peer asks, and the home thread answers it while it waits.
"""

from __future__ import annotations

import abc
import os
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from smartipc.ipc.contracts import Method
from smartipc.ipc.control import Launch
from smartipc.ipc.dispatch import Registry
from smartipc.ipc.drivers.base import RemoteFault, Resume
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import ConnectionLost, LocalProtocolError, RequestTimeout, SmartIpcError
from smartipc.ipc.protocol.events import MessageReceived, NotifyReceived, RequestReceived
from smartipc.ipc.sync.call import LONG, Call, never
from smartipc.ipc.sync.serving import IDLE, Server

_LONGEST_WAIT = 1.0
_LOOK = 0.02
"""Seconds between looks at calls under way in other threads, at the end."""


class NoSupervisor:
    """A ControlPort that ends nowhere."""

    def notify(self, method: Any, payload: Any) -> None:
        """Tell nobody."""

    def call(self, method: Any, payload: Any) -> Any:  # noqa: ARG002 - the shape of every port
        """Refuse: nobody is there to ask."""
        raise LocalProtocolError("there is no supervisor")

    def turned(self) -> None:
        """Note nothing."""


class Desk(Server, abc.ABC):
    """Links that carry calls both ways. `home` runs the handlers; see sync.serving."""

    def __init__(self, launch: Launch, registry: Registry) -> None:
        super().__init__(launch, registry, NoSupervisor())
        self._over = threading.Event()
        self._staying = threading.RLock()
        self._gone = False
        self._room = threading.Lock()
        self.finishing = threading.RLock()
        """Held by the thread that ends it; another one that would end it waits, and finds it ended."""

    @property
    def own(self) -> bool:
        """Whether this process made it, rather than having inherited it through fork."""
        return self._pid == os.getpid()

    @property
    def over(self) -> bool:
        """Whether the end has begun."""
        return self._over.is_set()

    def require_own(self) -> None:
        """Raise LocalProtocolError in a process that inherited this through fork."""
        if not self.own:
            raise LocalProtocolError("this was inherited through fork; it belongs to the parent process")

    def require_open(self) -> None:
        """Raise LocalProtocolError after `close`."""
        if self._gone:
            raise LocalProtocolError("this server is closed")

    # calls

    def ask(self, method: Method[Any, Any], payload: Any) -> Any:  # noqa: ARG002 - the shape of every router
        """Leave it to `request`: whoever waits here also serves."""
        return LONG

    def failed(self, call: Call, error: BaseException) -> None:
        """Decide on a call whose attempt failed. Here: nothing is tried again."""
        call.error = error

    def request(self, call: Call) -> bytes:
        """Carry a call to its end; see Router."""
        self.start(call)
        while not call.done:
            self.drive((call,))
        return call.result()

    def trial(self, link: Link, name: str) -> None:
        """Let everything pass: there is no other destination to turn to; see Router."""

    def mourn(self, lost: ConnectionLost, link: Link) -> ConnectionLost:  # noqa: ARG002 - the shape of every router
        """Return the loss as it is: no more can be known; see Router."""
        return lost

    @abc.abstractmethod
    def start(self, call: Call) -> None:
        """Send a call: it is on a link then, or done."""

    def restart(self, call: Call) -> None:
        """Start a call again that `failed` left open."""
        self.start(call)

    def resume(self, call: Call, resume: Resume) -> None:
        """Decide on a call that has failed over a direct link; see Router."""
        call.where = resume.target
        self._judge(call, resume.failure)

    def drive(self, calls: Collection[Call], links: Collection[Link] = (), enough: Callable[[], bool] = never) -> None:
        """Work on all the calls until at least one is done; serve meanwhile in the home thread; see Router."""
        while True:
            for call in calls:
                if call.link is not None and call.link.finished(call.ident):
                    self._settle(call)
                if call.link is None and not call.done:
                    self.restart(call)
            if any(call.done for call in calls) or enough():
                return
            try:
                self._await(calls, links, enough)
            except BaseException:
                for call in calls:
                    self.cancel(call)
                raise

    def cancel(self, call: Call) -> None:
        """Give a call up that is not done."""
        if call.link is not None:
            call.link.cancel(call.ident)
            call.link = None

    def _await(self, calls: Collection[Call], links: Collection[Link], enough: Callable[[], bool]) -> None:
        """Wait until something may have happened to one of the calls, or came over one of the links, or serve."""

        def happened() -> bool:
            return any(call.link is not None and call.link.finished(call.ident) for call in calls) or enough()

        serves = threading.get_ident() == self.home and not self.work.running
        if serves and self._queue:
            self.work.run(happened)
            return
        on = {call.link for call in calls if call.link is not None}.union(links)
        if len(on) == 1:
            until = time.monotonic() + _LONGEST_WAIT
            next(iter(on)).wait(lambda: happened() or (serves and bool(self._queue)), until)
        else:
            self._await_any(on, happened)

    def _await_any(self, on: Collection[Link], happened: Callable[[], bool]) -> None:
        """Read from every link, or be woken by another thread that read for us."""
        me = threading.get_ident()
        longest = IDLE
        for link in on:
            link.watchers[me] = self.wake
            timer = link.connection.next_timer()
            if timer is not None:
                longest = min(longest, max(0.0, timer - time.monotonic()))

        try:
            # Only now that everybody knows whom to wake is the last look safe.
            if not happened() and not self._turn_as_leader(longest):
                self._follow(longest, happened)
        finally:
            for link in on:
                link.watchers.pop(me, None)
        now = time.monotonic()
        for link in on:
            timer = link.connection.next_timer()
            if timer is not None and now >= timer:
                link.pump(0)

    def _settle(self, call: Call) -> None:
        link = call.link
        assert link is not None
        call.link = None
        try:
            call.reply = link.finish(call.ident)
        except (RemoteFault, RequestTimeout, ConnectionLost) as error:
            self._judge(call, error)

    def _judge(self, call: Call, failure: SmartIpcError) -> None:
        """Take what an attempt has failed with."""
        where = call.instance
        if isinstance(failure, RequestTimeout):
            call.error = RequestTimeout(call.timeout, method=call.method, instance=where, processed=failure.processed)
            return
        if isinstance(failure, ConnectionLost):
            failure.method, failure.instance = call.method, where
        if isinstance(failure, RemoteFault):
            self.failed(call, failure.error(method=call.method, instance=where, declared=call.declared))
        else:
            self.failed(call, failure)

    # arrivals: work for the home thread, which may sit in another wait than the thread that reads

    def on_request(self, link: Link, event: RequestReceived) -> None:
        """Queue it; see Server."""
        super().on_request(link, event)
        self.call_home()

    def on_notify(self, link: Link, event: NotifyReceived) -> None:
        """Queue it; see Server."""
        super().on_notify(link, event)
        self.call_home()

    def on_message(self, link: Link, event: MessageReceived) -> None:
        """Pass it to its subscription."""
        super().on_message(link, event)
        self.call_home()

    # slow readers

    def await_room(self, link: Link) -> None:
        """Watch for room in a link's socket, if it is full. Called in any thread that has said something on it."""
        if link.stuck and link not in self._writing:
            self._watch_writable(link)

    def _watch_writable(self, link: Link) -> None:
        with self._room:  # threads that send and the one that flushes come here at once
            if link.stuck is not (link in self._writing):
                super()._watch_writable(link)

    # staying and leaving

    def wait(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Read, and in the home thread serve, until `done`, the end, or for `timeout` seconds; return done()."""
        self.require_own()
        super().wait(lambda: done() or self._gone, timeout)
        return done()

    def stay(self, timeout: float | None) -> bool:
        """Read, and in the home thread serve, until it is over or for `timeout` seconds; tell whether it is over."""
        if threading.get_ident() != self.home:
            return self.wait(self._over.is_set, timeout)
        with self._staying:
            return self.wait(self._over.is_set, timeout)

    def finish(self, grace: float) -> None:
        """Let whoever serves leave, then finish what is queued and under way, for at most `grace` seconds."""
        until = time.monotonic() + grace
        self._over.set()
        self.wake()
        if self._staying.acquire(timeout=max(0.0, grace)):
            self._staying.release()
        while (left := until - time.monotonic()) > 0 and any(link.outstanding for link in list(self.links.values())):
            self._turn_as_leader(min(left, _LOOK))
        self.drain(until)

    def close(self) -> None:
        """Close everything at once; whoever waits is woken."""
        if self._gone:
            return
        self._gone = True
        if not self.own:
            super().close()  # a forked copy: its locks may be held by threads that are not here; descriptors only
            return
        self._over.set()
        self.wake()
        with self._turning:  # nobody may be waiting on descriptors that are closed
            super().close()


def late(call: Call, reason: str = "") -> RequestTimeout:
    """Return the RequestTimeout of a call that was not sent, or not sent again, in time."""
    return RequestTimeout(call.timeout, reason, method=call.method, processed="no" if call.attempt == 1 else "maybe")

"""The incoming half of the blocking handle: accept, check who it is, read, and queue what arrives.

Reading and running are apart. Any thread that waits may read, one at a time; what arrives is queued. Only the home
thread (the one that opened the handle or called `serve`) runs what is queued, so that handlers never meet each other
and may keep thread-bound things such as SQLite connections. Running is in running.py.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable

from smartipc.ipc import links
from smartipc.ipc.control import Launch
from smartipc.ipc.dispatch import Registry
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.drivers.blocking import FEATURES, Link
from smartipc.ipc.errors import LocalProtocolError, Overloaded, PermissionDenied
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import (
    CancelReceived,
    Closed,
    MessageReceived,
    MessagesReceived,
    NotifyReceived,
    OpenReceived,
    RequestReceived,
)
from smartipc.ipc.protocol.straight import Asked
from smartipc.ipc.resilience.dead_letters import DeadLetters
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.routing.port import ControlPort
from smartipc.ipc.sync.polling import IN, OUT, Readiness, Waker
from smartipc.ipc.sync.producing import StreamServer
from smartipc.ipc.sync.running import Work
from smartipc.ipc.transports.base import Listener, Stream
from smartipc.ipc.transports.hatch import Hatch
from smartipc.ipc.transports.unix import UnixSocketTransport, same_user
from smartipc.ipc.trust.door import UNAUTHENTICATED
from smartipc.ipc.trust.gate import Gate
from smartipc.ipc.trust.neighbours import PATIENCE, Admit, Neighbours

log = logging.getLogger("smartipc.serving")

IDLE = 0.5
"""Longest sleep in seconds: how often an idle worker shows that it turns, and looks at slow handshakes."""
_ACCEPTS_PER_TURN = 64
_READS_PER_TURN = 16
_ALONE_PER_TURN = 64
_SOON = 0.001
_STREAK = 4
_BACKLOG = 8192
"""Queued work above which nothing more is read: the kernel's buffers then slow the senders down."""


class Server(QuietHost):
    """One listening socket, its links, the queue of work, and waiting itself.

    Args:
        launch: who we are and how much may wait.
        registry: the handlers.
        port: told that the home thread turns.
        directory: who is where: who may connect, and as whom. Needed to listen.
        gate: which requests may come in; None for all.
        letters: where one-way messages go that cannot be handled; None for nowhere.
    """

    def __init__(
        self,
        launch: Launch,
        registry: Registry,
        port: ControlPort,
        directory: Directory | None = None,
        gate: Gate | None = None,
        letters: DeadLetters | None = None,
    ) -> None:
        self._gate = gate
        self.links: dict[int, Link] = {}
        self.home = threading.get_ident()
        self.on_published: Callable[[Link, MessageReceived], None] = lambda _link, _event: None
        self.on_published_together: Callable[[Link, MessagesReceived], None] = lambda _link, _event: None
        self.on_lost: Callable[[Link], None] = lambda _link: None
        self.before_sleep: Callable[[], None] = lambda: None
        self.streams = StreamServer(registry, links.instance_name(launch), self, gate)
        self._launch = launch
        self._registry = registry
        self._port = port
        self._identity = links.identity(launch)
        self._pid = os.getpid()
        self._listener: Listener | None = None
        self._directory = directory if directory is not None else Directory()
        self._neighbours = Neighbours(self._directory, launch.trust)
        self._strangers: dict[Stream, float] = {}
        self._ready = Readiness()
        self._waker = Waker()
        self._ready.register(self._waker.fileno())
        self.work = Work(registry, port, self.look_after, letters)
        """What waits to be run, and running it."""
        self._queue = self.work.queue  # the same one, looked at in every turn
        self._turning = threading.Lock()
        self._changed = threading.Condition(threading.Lock())
        self._followers = 0
        self._writing: set[Link] = set()
        self._held: set[Link] = set()
        """Links that are not read because their peers do not read what they are told."""
        self._swept = 0.0
        self._alone: Link | None = None
        """The link whose request was the only thing that came last; since when, and how often in a row."""
        self._alone_at = 0.0
        self._streak = 0
        self._hatch: Hatch | None = None
        """Where the home thread waits, if not for descriptors."""
        self._watched: dict[int, Link] = {}

    def __repr__(self) -> str:
        return f"<Server {len(self.links)} links, {self.work!r}>"

    @property
    def load(self) -> tuple[int, int]:
        """Handlers that run, and requests that wait for their turn."""
        return int(self.work.current is not None), self.work.requests

    def open(self) -> None:
        """Listen at the launch's address.

        Raises:
            ConnectFailed: the address cannot be bound.
        """
        if not self._launch.address:
            return
        self._listener = UnixSocketTransport(links.path_of(self._launch.address)).listen()
        self._ready.register(self._listener.fileno())

    def adopt(self, link: Link) -> None:
        """Read a link, too, from here on."""
        self.links[link.fileno()] = link
        self._ready.register(link.fileno())

    # waiting: what every blocking member of the handle ends in

    def wait(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Read, and in the home thread run what is queued, until `done` or for `timeout` seconds; return done().

        Raises:
            LocalProtocolError: the handle was inherited through fork.
        """
        if self._pid != os.getpid():
            raise LocalProtocolError("this handle was inherited through fork; it belongs to the parent process")
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            home = threading.get_ident() == self.home and not self.work.running
            if home:
                self._port.turned()
                if self._queue:
                    self.work.run(done)
            if done():
                return True
            left = IDLE if until is None else min(IDLE, until - time.monotonic())
            if left <= 0:
                return False
            if home and not self._queue:
                turned = self._turn_and_run(left, done)
            else:
                turned = self._turn_as_leader(0.0 if home else left)
            if not turned:
                self._follow(left, lambda home=home: done() or (home and bool(self._queue)))  # type: ignore[misc]

    def passing(self) -> bool:
        """Tell whether `wait` would find nothing to run before what a caller has at hand already; note the turn."""
        if threading.get_ident() == self.home and not self.work.running:
            if self._queue:
                return False
            self._port.turned()
        return True

    def await_on(self, link: Link, done: Callable[[], bool], until: float | None = None) -> bool:
        """Wait as `wait` does for something that comes over `link`, until `done`, its end, or the time."""
        me = threading.get_ident()
        before = link.watchers.get(me)
        link.watchers[me] = self.wake  # another thread may read for us without being in `wait`
        try:
            self.look_after(link)
            left = None if until is None else max(0.0, until - time.monotonic())
            self.wait(lambda: done() or link.closed, left)
        finally:
            if before is None:
                link.watchers.pop(me, None)
            else:
                link.watchers[me] = before
        return done()

    def look_after(self, link: Link) -> None:
        """Begin or end waiting for room for what its socket did not take."""
        if link.stuck is not (link in self._writing):
            self._watch_writable(link)

    def call_home(self) -> None:
        """Make sure that the home thread looks at its queue, wherever it waits."""
        if threading.get_ident() != self.home or self._followers:
            self.wake()

    def wake(self) -> None:
        """Make every waiting thread look at its condition again. Called in any thread."""
        self._waker.wake()
        if (hatch := self._hatch) is not None:
            hatch.wake()
        self._announce()

    def read(self) -> None:
        """Read what is there into the queue, without waiting and without running anything."""
        self._turn_as_leader(0.0)

    def post(self, work: Callable[[], None]) -> None:
        """Let the home thread run `work` in its turn. Called where links are read."""
        self._queue.append((None, work))

    def watch(self, link: Link) -> None:
        """From now on, read a link that we dialled as well: its peer owes credit to messages that wait here."""
        fd = link.fileno()
        if fd >= 0 and self._watched.get(fd) is not link:
            self._watched[fd] = link
            with contextlib.suppress(FileExistsError):
                self._ready.register(fd)

    def _read_watched(self, fd: int) -> None:
        link = self._watched[fd]
        if link.fileno() == fd:
            link.pump(0)
        if link.fileno() != fd:
            del self._watched[fd]
            if fd not in self.links:  # else the number is a new link's by now
                self._ready.unregister(fd)

    def _turn_and_run(self, timeout: float, done: Callable[[], bool]) -> bool:
        """Turn as `_turn_as_leader`; a request that comes alone is run at once, when others may read already.

        As long as only such requests come it goes on, but for a bounded number of them.
        """
        turning, queue, gate = self._turning, self._queue, self._gate
        for _ in range(_ALONE_PER_TURN):
            if not turning.acquire(False):
                return False
            asked = link = None
            try:
                self.before_sleep()
                ready = self._ready.wait(timeout)
                if len(ready) == 1 and ready[0][1] == IN and (gate is None or gate.open):
                    link = self.links.get(ready[0][0])
                if link is None or link in self._held:
                    self._take(ready)
                else:
                    asked = link.hear()
                    if asked is None:
                        self._read_on(link)
                self._look_around(time.monotonic() if asked is None else asked[4])
            finally:
                turning.release()
                if self._followers:
                    self._announce()
            if asked is None or link is None:
                return True
            if self._comes_often(link, asked):
                self._stand_behind_hatch(link, asked, done)
                return True
            self.work.run_at_once(link, asked)
            self._port.turned()
            if queue or done():
                return True
        return True

    def _comes_often(self, link: Link, asked: Asked) -> bool:
        """Tell whether nothing else has come for a while than requests over this link, each soon after the last."""
        soon = link is self._alone and asked[4] - self._alone_at < _SOON
        self._alone, self._alone_at = link, asked[4]
        self._streak = self._streak + 1 if soon else 0
        return self._streak >= _STREAK and link.answering is not None

    def _stand_behind_hatch(self, link: Link, asked: Asked | None, done: Callable[[], bool]) -> None:
        """Answer a request, and what comes by the hatch then, as long as there is nothing else to do.

        Other threads may read meanwhile. Other links are looked at every millisecond while requests come, and when
        `hear` has waited for one in vain.
        """
        end, queue, directory = link.answering, self._queue, self._directory
        assert end is not None
        known = directory.state  # with another one the gate may be shut
        looked = before = 0.0 if asked is None else asked[4]
        turned = self._port.turned
        try:
            self._hatch = end.hatch
            end.hatch.open()
            while asked is not None and asked[4] - before < _SOON:
                before = asked[4]
                self.work.run_at_once(link, asked)
                asked = None
                if queue or done() or link.stuck or directory.state is not known:
                    return
                if before - looked > _SOON:
                    looked = before
                    turned()
                    self.before_sleep()
                    self._turn_as_leader(0.0)
                    if queue:
                        return
                asked = end.hear()
            if asked is not None:
                self.work.run_at_once(link, asked)
        finally:
            turned()
            self._streak = 0
            self._hatch = None
            if self._pid == os.getpid():  # a handler may fork, and the child come by here
                end.leave()

    def _turn_as_leader(self, timeout: float) -> bool:
        if timeout and len(self._queue) > _BACKLOG:
            return False  # not the home thread's business to read on: the home thread has enough to do
        if not self._turning.acquire(blocking=False):
            return False
        try:
            self._turn(timeout)
        finally:
            self._turning.release()
            if self._followers:
                self._announce()
        return True

    def _follow(self, timeout: float, enough: Callable[[], bool]) -> None:
        """Sleep while another thread reads. It announces after it released; we are counted before we look."""
        with self._changed:
            self._followers += 1
            try:
                full = len(self._queue) > _BACKLOG
                if (full or self._turning.locked()) and not enough():
                    self._changed.wait(min(timeout, 0.05) if full else timeout)
            finally:
                self._followers -= 1

    def _announce(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _turn(self, timeout: float) -> None:
        """Wait for descriptors once and read what is ready into the queue."""
        if timeout:
            self.before_sleep()
        self._take(self._ready.wait(timeout))
        self._look_around(time.monotonic())

    def _take(self, ready: list[tuple[int, int]]) -> None:
        listener = self._listener.fileno() if self._listener is not None else -1
        reading = len(self._queue) <= _BACKLOG
        for fd, mask in ready:
            link = self.links.get(fd)
            if link is not None:
                if mask & OUT:
                    self._written(link)
                if mask & ~OUT and reading and (link not in self._held or mask & ~(IN | OUT)):
                    self._read(link)
            elif fd == listener:
                self._accept()
            elif fd in self._watched:
                self._read_watched(fd)
            else:
                self._waker.clear()

    def _look_around(self, now: float) -> None:
        if self._strangers:
            self._look_at_strangers(now)
        if now - self._swept >= IDLE:
            self._swept = now
            self._sweep(now)

    def _read(self, link: Link) -> None:
        """Take all that a link has, within reason: a cancel behind its request must be seen before the request runs."""
        link.pump(0)
        self._read_on(link)

    def _read_on(self, link: Link) -> None:
        for _ in range(_READS_PER_TURN):
            if not link.more or link.closed:
                break
            link.pump(0)
        if link.stuck is not (link in self._writing):
            self._watch_writable(link)
        if link.stuck and link.connection.congested and link not in self._held and not link.closed:
            self._held.add(link)
            if link.fileno() == link.write_fileno():
                self._ready.modify(link.fileno(), OUT)
            else:
                self._ready.unregister(link.fileno())

    def _sweep(self, now: float) -> None:
        for link in list(self.links.values()):
            timer = link.connection.next_timer()
            if timer is not None and now >= timer:
                link.pump(0)

    def _watch_writable(self, link: Link) -> None:
        """Begin or end waiting for room for a slow reader's bytes; nobody else waits for it."""
        if link.closed:
            return
        near, far = link.fileno(), link.write_fileno()
        if link in self._writing:
            self._writing.discard(link)
            if near == far:
                self._ready.modify(near, IN)
            else:
                self._ready.unregister(far)
                self.links.pop(far, None)
        else:
            self._writing.add(link)
            if near == far:
                self._ready.modify(near, IN | OUT)
            else:
                self._ready.register(far, OUT)
                self.links[far] = link

    def _written(self, link: Link) -> None:
        link.flush()
        if link.stuck is not (link in self._writing):
            self._watch_writable(link)
        if link in self._held and not link.connection.congested and not link.closed:
            self._held.discard(link)
            if link.fileno() == link.write_fileno():
                self._ready.modify(link.fileno(), IN | OUT if link in self._writing else IN)
            else:
                self._ready.register(link.fileno())

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                log.warning("cannot accept a connection: %s", error)
                return
            if not same_user(sock):
                log.warning("connection of another user refused")
                sock.close()
                continue
            self._let_in(sock)

    def _let_in(self, stream: Stream) -> None:
        try:
            admit = self._neighbours.admission(stream)
        except OSError:
            stream.close()
            return
        if admit is not None:
            self._begin(stream, admit)
        elif len(self._strangers) < UNAUTHENTICATED:
            # Nothing of it is read: what it sends waits in the kernel until the directory knows its process.
            self._strangers[stream] = time.monotonic() + PATIENCE
        else:
            self._begin(stream, self._neighbours.refusal(stream))

    def _begin(self, stream: Stream, admit: Admit) -> None:
        self.adopt(
            Link(stream, Connection("server", self._identity, links.LIMITS, admit=admit, features=FEATURES), self)
        )

    def directory_changed(self) -> None:
        """Look again at arrivals whose process the directory did not know. Called in any thread."""
        if self._strangers:
            self.wake()

    def _look_at_strangers(self, now: float) -> None:
        for stream, until in list(self._strangers.items()):
            admit = self._neighbours.admission(stream)
            if admit is None and now >= until:
                admit = self._neighbours.refusal(stream)
            if admit is not None:
                del self._strangers[stream]
                self._begin(stream, admit)

    # LinkHost: called where a link is read

    def on_request(self, link: Link, event: RequestReceived) -> None:
        """Queue it, or refuse: one runs, the rest waits."""
        refused = self._gate.refusal(link.peer, event.method, event.received_at) if self._gate is not None else None
        if refused is not None:
            link.fail(event.id, self._registry.fault(refused, ()))
            return
        work = self.work
        if work.requests < self._launch.concurrency_waiting + (not work.running):
            work.requests += 1
            self._queue.append((link, event))
        else:
            link.fail(event.id, self._registry.fault(Overloaded(method=event.method), ()))

    def on_notify(self, link: Link, event: NotifyReceived) -> None:
        """Queue it; too many of them stop the reading, see _BACKLOG."""
        refused = self._gate.refusal(link.peer, event.method, event.received_at) if self._gate is not None else None
        if refused is not None:
            self.work.undelivered.dropped(
                link.peer, event, str(refused), keep=not isinstance(refused, PermissionDenied)
            )
            return
        self._queue.append((link, event))

    def on_open(self, link: Link, event: OpenReceived) -> None:
        """Queue it, or refuse."""
        self.streams.on_open(link, event)

    def on_cancel(self, link: Link, event: CancelReceived) -> None:
        """Forget a request that has not started."""
        self.work.cancel(link, event.id)

    def on_message(self, link: Link, event: MessageReceived) -> None:
        """Pass it to its subscription."""
        self.on_published(link, event)

    def on_messages(self, link: Link, event: MessagesReceived) -> None:
        """Pass them to their subscription."""
        self.on_published_together(link, event)

    def on_closed(self, link: Link, event: Closed) -> None:  # noqa: ARG002 - the shape of every host
        """Forget the link; what its peer had asked for is skipped when its turn comes."""
        for fd in {link.fileno(), link.write_fileno()}:
            if self.links.get(fd) is link:
                del self.links[fd]
                self._ready.unregister(fd)
        self._writing.discard(link)
        self._held.discard(link)
        if link is self._alone:
            self._alone = None
        self.work.forget(link)
        self.on_lost(link)

    # the end

    def goodbye(self) -> None:
        """Stop accepting, and tell every caller to go elsewhere with new calls. What had arrived is still ours."""
        self.read()
        self._stop_listening()
        for link in list(self.links.values()):
            link.goodbye("the worker is stopping")

    def drain(self, until: float) -> None:
        """Finish queued requests and unsent replies until that time, refuse the rest as never run, close."""
        self.home = threading.get_ident()
        while (self._queue or self.streams.active) and (left := until - time.monotonic()) > 0:
            if self._queue:
                self.work.run(lambda: time.monotonic() >= until)
            self._turn_as_leader(0.0 if self._queue else min(left, 0.05))
        self.streams.cancel()
        self.work.refuse(self._identity.name)
        # Once more: what peers sent before they knew is refused by the connection itself, as not processed.
        self._turn_as_leader(0.0)
        while (
            any(link.stuck or link.connection.streams.unsent for link in list(self.links.values()))
            and (left := until - time.monotonic()) > 0
        ):
            for link in list(self.links.values()):
                self._written(link)
            self._turn_as_leader(min(left, 0.05))
        self.close()

    def close(self) -> None:
        """Close everything at once."""
        self._stop_listening()
        for link in list(self.links.values()):
            link.close()
        self.links.clear()
        self._waker.close()
        self._ready.close()

    def _stop_listening(self) -> None:
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        if self._pid == os.getpid():
            self._ready.unregister(listener.fileno())
        listener.close()
        for stream in self._strangers:
            stream.close()
        self._strangers.clear()

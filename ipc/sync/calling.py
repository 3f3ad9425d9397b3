"""The outgoing half of the blocking handle: links to other instances, and calls over them with retries.

A single `Call` (call.py) is driven by blocking on its link; several are driven together, by polling the links they are
on, so that `map` and `broadcast` need no threads. Which instance, and what a failure means, is decided in routing.
"""

from __future__ import annotations

import logging
import os
import random
import select
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from smartipc.ipc import links, tracing
from smartipc.ipc.contracts import Method
from smartipc.ipc.control import Entry, Launch
from smartipc.ipc.dispatch import pinned, worker_of
from smartipc.ipc.drivers.base import Direct, QuietHost, RemoteFault, Resume
from smartipc.ipc.drivers.blocking import FEATURES, Link
from smartipc.ipc.errors import (
    CallError,
    CircuitOpen,
    ConnectFailed,
    ConnectionLost,
    LocalProtocolError,
    NoSuchWorker,
    RequestTimeout,
    SmartIpcError,
)
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import Closed, ConsumedReceived
from smartipc.ipc.resilience.breaker import Breaker, Breakers, Trial
from smartipc.ipc.resilience.budget import RetryBudget
from smartipc.ipc.routing import attempts, balance
from smartipc.ipc.routing.directory import Directory, DirectoryState
from smartipc.ipc.sync.call import LONG, Call, Life, never
from smartipc.ipc.sync.polling import OUT
from smartipc.ipc.sync.sleeping import Sleepers
from smartipc.ipc.trust.neighbours import dial_life, is_life
from smartipc.ipc.wire import codec

log = logging.getLogger("smartipc.calling")

DIAL_AGAIN = 0.01
"""Seconds before dialling a peer again that listens but has a full queue, or does not listen yet."""
_LAST_WORDS = 0.05
"""Seconds to read what a process that is gone still said; callers hear of a death within 200 ms."""
_LONGEST_SLEEP = 1.0
_DIRECTS = 1024
"""Methods whose only instance is remembered; the table is emptied when it is full."""
_MOST_READS = 256
"""Reads of a link that ends: as much as the kernel holds, and no spinning while another thread does the reading."""
_AVOIDED = 1 << 30
"""Added to the outstanding calls of a life that just failed this call: others come first."""


class Caller(QuietHost):
    """Links by life, opened when first needed, and the calls over them. For any number of threads.

    Args:
        launch: who we are.
        directory: who is where.
    """

    def __init__(self, launch: Launch, directory: Directory) -> None:
        self.links: dict[Life, Link] = {}
        self.on_credit: Callable[[Life, ConsumedReceived], None] = lambda _life, _event: None
        self.on_lost: Callable[[Life], None] = lambda _life: None
        self.while_stalled: Callable[[], None] | None = None
        self._lives: dict[Link, Life] = {}
        self._identity = links.identity(launch)
        self._directory = directory
        self._pid = os.getpid()
        self._lock = threading.RLock()  # closing a replaced link reports back while it is held
        self._changed = threading.Condition(threading.Lock())
        self._sleepers = Sleepers()
        self._turn = 0
        self._directs: dict[str, tuple[DirectoryState, Link, Entry, Breaker | None]] = {}
        self._late = 0
        self.circuits = Breakers(launch.breaker, launch.breakers)
        self.budget = RetryBudget()

    def __repr__(self) -> str:
        return f"<Caller with {len(self.links)} links>"

    # links

    def link_to(self, entry: Entry) -> Link:
        """Return the link to a life, dialled if there is none.

        Raises:
            ConnectFailed: nobody listens there (any more).
            BlockingIOError: its queue of connections is full; try again soon.
            LocalProtocolError: the handle was inherited through fork.
        """
        life = (entry.instance, entry.generation)
        link = self.links.get(life)
        if link is not None and not link.closed and not link.broken:
            return link
        self.require_own()
        with self._lock:
            link = self.links.get(life)
            if link is not None and link.broken:
                _drain(link)
                link.close("it takes no more bytes")
                link = None
            if link is None or link.closed:
                sock = dial_life(entry)
                connection = Connection("client", self._identity, links.LIMITS, admit=is_life(entry), features=FEATURES)
                link = self.links[life] = Link(sock, connection, self)
                link.while_stalled = self.while_stalled
                self._lives[link] = life
            return link

    def require_own(self) -> None:
        """Raise LocalProtocolError in a process that inherited the handle through fork."""
        if self._pid != os.getpid():
            raise LocalProtocolError("this handle was inherited through fork; it belongs to the parent process")

    @property
    def late_replies(self) -> int:
        """Answers that came after their request had been given up, over all links there were."""
        return self._late + sum(link.connection.late_replies for link in list(self.links.values()))

    def outstanding(self, entry: Entry) -> int:
        """Count our unanswered calls at an instance."""
        link = self.links.get((entry.instance, entry.generation))
        return link.outstanding if link is not None else 0

    def directory_changed(self) -> None:
        """Wake whoever waits for an instance, and end links to lives that are over. Called in any thread."""
        state = self._directory.state
        with self._lock:
            gone = [link for life, link in self.links.items() if not state.lives(*life)]
        until = time.monotonic() + _LAST_WORDS
        for link in gone:
            # A reply that it still sent is a reply, and another thread may be about to read it: the end of the bytes
            # comes by itself, unless a grandchild holds the socket open.
            while not link.closed and (left := until - time.monotonic()) > 0:
                link.pump(left)
            link.close("its process is gone")
        with self._changed:
            self._changed.notify_all()
        self._sleepers.wake()

    def flush(self) -> None:
        """Write what links have left over."""
        for link in list(self.links.values()):
            if link.stuck:
                link.flush()

    def close(self, grace: float) -> None:
        """Write what is unsent, for at most `grace` seconds, and close every link."""
        until = time.monotonic() + grace
        while self._pid == os.getpid() and (waiting := [link for link in list(self.links.values()) if link.stuck]):
            poller = select.poll()
            for link in waiting:
                poller.register(link.write_fileno(), OUT)
            left = until - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000):
                break
            self.flush()
        for link in list(self.links.values()):
            link.close()
        self.links.clear()
        self._lives.clear()
        self._sleepers.close()

    # LinkHost

    def on_consumed(self, link: Link, event: ConsumedReceived) -> None:
        """Pass credit to the publisher."""
        life = self._lives.get(link)
        if life is not None:
            self.on_credit(life, event)

    def on_closed(self, link: Link, event: Closed) -> None:  # noqa: ARG002 - the shape of every host
        """Forget the link."""
        with self._lock:
            life = self._lives.pop(link, None)
            if life is None:
                return
            self._late += link.connection.late_replies
            if self.links.get(life) is link:
                del self.links[life]
        self.on_lost(life)

    # calls

    def request(self, call: Call) -> bytes:
        """Carry one call to its end and return the reply's payload.

        Raises:
            CallError: see Endpoint.request; declared errors as themselves.
        """
        direct = self._direct(call)
        if direct is None:
            self.start(call)
        else:
            link, call.entry, call.circuit = direct
            self._conclude(
                call, lambda: link.ask(call.method, call.payload, timeout=call.timeout, headers=call.headers)
            )
        return self._to_the_end(call)

    def _to_the_end(self, call: Call) -> bytes:
        while not call.done:
            self._settle_or_rest(call)
        return call.result()

    def ask(self, method: Method[Any, Any], payload: Any) -> Any:
        """Carry a call without options to its end as `request` does, if it would go straight to the only instance.

        Raises:
            CallError: as request.
        """
        known = self._directs.get(method.name)
        if (
            known is None
            or known[0] is not self._directory.state
            or type(payload) is not method.request
            or self.circuits.trouble
            or tracing.current_deadline.get() is not None
            or tracing.current.get() is not None
        ):
            return LONG
        _, link, entry, circuit = known
        if link.closed or link.broken:
            return LONG
        name, timeout = method.name, method.timeout
        try:
            encoded = codec.encode_plain(payload)
        except codec.UNFIT:
            encoded = codec.encode(payload, method=name)
        began = time.monotonic()
        try:
            reply = link.ask(name, encoded, timeout=timeout, now=began)
        except (RemoteFault, RequestTimeout, ConnectionLost) as error:
            call = Call(name, encoded, timeout=timeout, idempotent=method.idempotent, declared=method.errors)
            call.deadline = began + timeout
            call.entry, call.circuit = entry, circuit
            self._judge(call, error)
            return codec.decode(self._to_the_end(call), method.reply, method=name)
        except BaseException:
            if circuit is not None:
                circuit.abandon()
            raise
        if circuit is not None:
            circuit.passed(began)
        return codec.decode(reply, method.reply, method=name)

    def _direct(self, call: Call) -> tuple[Link, Entry, Breaker | None] | None:
        """Return the open link to the only instance that is ready, for a call that has nothing special."""
        if self.circuits.trouble or call.slot is not None or call.to is not None or call.fixed is not None:
            return None
        state = self._directory.state
        known = self._directs.get(call.method)
        if known is not None and known[0] is state and not known[1].closed and not known[1].broken:
            return known[1:]
        worker = worker_of(call.method)
        ready = [one for one in state.by_worker.get(worker, ()) if one.ready]
        if len(ready) != 1:
            return None
        entry = ready[0]
        link = self.links.get((entry.instance, entry.generation))
        if link is None or link.closed or link.broken:
            return None
        circuit = self.circuits.of(entry.instance, entry.generation, call.method)
        if len(self._directs) >= _DIRECTS:
            self._directs.clear()
        self._directs[call.method] = state, link, entry, circuit
        return link, entry, circuit

    def start(self, call: Call) -> None:
        """Make the first attempt, or the next: send it, or let the call rest, or end it."""
        now = time.monotonic()
        left = call.deadline - now
        if left <= 0:
            self._expired(call)
            return
        entry = call.fixed or self._choose(call)
        if entry is None:
            return
        call.entry = entry
        try:
            call.circuit = self.circuits.enter(entry.instance, entry.generation, call.method, now)
            link = self.link_to(entry)
            call.ident = link.begin(call.method, call.payload, timeout=left, headers=call.headers, attempt=call.attempt)
            call.link = link
        except CircuitOpen as refused:
            call.error = refused
        except ConnectionLost as lost:
            self._mourn(call, lost)
        except (ConnectFailed, BlockingIOError) as failed:
            self._mourn(call, ConnectionLost(entry.instance, str(failed), processed="no"))
        except BaseException:  # never sent: nothing is known of the other side
            if call.circuit is not None:
                call.circuit.abandon()
            raise

    def direct(self, name: str) -> Direct | None:
        """Return the open link that a call with nothing special goes to now; see Router."""
        if self.circuits.trouble or self._pid != os.getpid():
            return None
        state, worker = self._directory.state, worker_of(name)
        self._turn += 1
        entry = balance.select(state, worker, outstanding=self.outstanding, turn=self._turn)
        if not isinstance(entry, Entry):
            return None
        link = self.links.get((entry.instance, entry.generation))
        if link is None or link.closed or link.broken:
            self._turn -= 1  # it is still that one's turn: the long way dials it
            return None
        only = sum(one.ready for one in state.by_worker[worker]) == 1
        circuit = self.circuits.of(entry.instance, entry.generation, name)
        return Direct(link, (entry, circuit), only, circuit)

    def resume(self, call: Call, resume: Resume) -> None:
        """Decide on a call that has failed over a direct link; see Router."""
        call.entry, call.circuit = resume.target
        self._judge(call, resume.failure)

    def drive(self, calls: Collection[Call], links: Collection[Link] = (), enough: Callable[[], bool] = never) -> None:
        """Work on all the calls until at least one is done; returns at once when one is; see Router."""
        while True:
            now = time.monotonic()
            state = self._directory.state
            for call in calls:
                if call.link is not None:
                    if call.link.finished(call.ident):
                        self._settle(call)
                elif not call.done and (state is not call.seen or now >= call.rest_until):
                    self._again(call)
            if any(call.done for call in calls) or enough():
                return
            self._sleep(calls, links, enough)

    def cancel(self, call: Call) -> None:
        """Give a call up that is not done."""
        if call.link is not None:
            call.link.cancel(call.ident)
            call.link = None
            if call.circuit is not None:
                call.circuit.abandon()

    def everyone(self, call: Call) -> list[Call]:
        """Return one call for every living instance of the address's worker, by slot.

        Raises:
            NoSuchWorker: there is no such worker.
        """
        worker, state = worker_of(call.method), self._directory.state
        if worker not in state.by_worker:
            raise NoSuchWorker(worker, state.workers(), method=call.method)
        return [
            Call(
                call.method,
                call.payload,
                timeout=call.timeout,
                headers=call.headers,
                declared=call.declared,
                entry=entry,
            )
            for entry in state.by_worker[worker]
            if state.lives(entry.instance, entry.generation)
        ]

    def notify(self, call: Call) -> None:
        """Write one one-way message to the instance that `call` would be sent to.

        Raises:
            RequestTimeout: none became ready in time.
            CallError: none will.
            FrameTooLarge: the payload exceeds a limit.
        """
        while True:
            link = self.reach(call)
            try:
                link.notify(call.method, call.payload, headers=call.headers)
            except ConnectionLost:
                self._rest(call, time.monotonic() + DIAL_AGAIN)
                self._change(call.seen, call.rest_until)
            else:
                return

    def reach(self, call: Call) -> Link:
        """Return a link to the instance that `call` would be sent to, waiting until it is ready; raises as notify."""
        while True:
            if time.monotonic() >= call.deadline:
                self._expired(call)
            entry = self._choose(call) if call.error is None else None
            if call.error is not None:
                raise call.error
            if entry is not None:
                try:
                    return self.link_to(entry)
                except (ConnectFailed, BlockingIOError):
                    self._rest(call, time.monotonic() + DIAL_AGAIN)
            self._change(call.seen, call.rest_until)

    def trial(self, link: Link, name: str) -> Trial | None:
        """Ask the circuit breaker whether something may be opened over a link that `reach` gave.

        Raises:
            CircuitOpen: not now.
        """
        for (instance, generation), known in list(self.links.items()):
            if known is link:
                return self.circuits.trial(instance, generation, name, time.monotonic())
        return None

    def mourn(self, lost: ConnectionLost, link: Link) -> CallError:
        """Turn the loss of a link into WorkerDied with its exit facts, where they are known now or very soon."""
        peer, until = link.peer, time.monotonic() + attempts.FACTS_WAIT
        while peer is not None:
            state = self._directory.state
            death = attempts.lost(lost, state, peer.name, peer.generation, lost.method or "")
            if death is not None:
                return death
            if lost.processed == "no" or time.monotonic() >= until:
                break
            self._change(state, until)
        return lost

    def await_on(self, link: Link, done: Callable[[], bool], until: float | None = None) -> bool:
        """Read the link until `done`, its end, or the time; return done()."""
        return link.wait(done, until)

    def _settle_or_rest(self, call: Call) -> None:
        if call.link is not None:
            self._settle(call)
        else:
            self._change(call.seen, call.rest_until)
            self._again(call)

    def _settle(self, call: Call) -> None:
        """Take the answer of the attempt under way, waiting for it."""
        link = call.link
        assert link is not None
        call.link = None
        self._conclude(call, lambda: link.finish(call.ident))

    def _conclude(self, call: Call, answer: Callable[[], bytes]) -> None:
        """Take what `answer` returns as the reply, or what it raises as the attempt's failure."""
        try:
            call.reply = answer()
            if call.circuit is not None:
                call.circuit.passed(time.monotonic())
        except (RemoteFault, RequestTimeout, ConnectionLost) as error:
            self._judge(call, error)
        except BaseException:  # interrupted
            if call.circuit is not None:
                call.circuit.abandon()
            raise

    def _judge(self, call: Call, error: SmartIpcError) -> None:
        """Take what an attempt has failed with."""
        if isinstance(error, ConnectionLost):
            call.link = None
            self._mourn(call, error)
        elif isinstance(error, RemoteFault):
            assert call.entry is not None
            instance = call.entry.instance
            self._failed(call, error.error(method=call.method, instance=instance, declared=call.declared))
        else:
            self._failed(call, error)

    def _again(self, call: Call) -> None:
        """Go on with a call that rests: its instance's fate may be known now, or another one is ready."""
        if call.lost is None:
            self.start(call)
            return
        lost, entry = call.lost, call.entry
        assert entry is not None
        call.seen = self._directory.state
        death = attempts.lost(lost, call.seen, entry.instance, entry.generation, call.method)
        if death is not None or time.monotonic() >= call.rest_until:
            call.lost = None
            self._failed(call, death or lost)

    def _mourn(self, call: Call, lost: ConnectionLost) -> None:
        """Turn a lost link into WorkerDied if the directory says so, now or very soon."""
        entry = call.entry
        assert entry is not None
        lost.method, lost.instance = call.method, entry.instance
        state = self._directory.state
        death = attempts.lost(lost, state, entry.instance, entry.generation, call.method)
        if death is not None or lost.processed == "no":
            self._failed(call, death or lost)
            return
        call.lost = lost
        call.seen = state
        call.rest_until = time.monotonic() + attempts.FACTS_WAIT

    def _failed(self, call: Call, error: BaseException) -> None:
        """End the call, or prepare its next attempt: elsewhere at once, at the same place after a pause."""
        entry = call.entry
        assert entry is not None
        if self.circuits.failed(call.circuit, error, time.monotonic()):
            state = call.circuit.state if call.circuit is not None else ""
            log.warning("circuit.changed: %s on %s is %s", call.method, entry.instance, state)
        call.circuit = None
        if isinstance(error, RequestTimeout):
            call.error = RequestTimeout(
                call.timeout, error.waiting_for, method=call.method, instance=entry.instance, processed=error.processed
            )
            return
        decision = "raise" if call.fixed else attempts.after(error, idempotent=call.idempotent, attempt=call.attempt)
        if decision == "retry" and not self.budget.spend(time.monotonic(), self.circuits.calls):
            decision = "raise"
        if decision == "raise":
            call.error = error
            return
        call.avoid = (call.avoid or set()) | {(entry.instance, entry.generation)}
        pause = attempts.pause(call.attempt, random.random())  # noqa: S311 - jitter
        if decision == "retry":
            call.attempt += 1
        self._rest(call, time.monotonic() + pause)
        if self._elsewhere(call):
            self.start(call)
        else:
            call.avoid = None

    def _elsewhere(self, call: Call) -> bool:
        """Tell whether an instance that has not failed this call is ready."""
        if call.slot is not None or call.key is not None or call.avoid is None:
            return False
        entries = self._directory.state.by_worker.get(worker_of(call.method), ())
        return any(one.ready and (one.instance, one.generation) not in call.avoid for one in entries)

    def _choose(self, call: Call) -> Entry | None:
        """Return the instance for the next attempt; else the call rests or has its error."""
        state = self._directory.state
        worker = worker_of(call.method)
        if call.to is not None:
            call.slot = pinned(worker, call.to, call.slot)
        self._turn += 1
        chosen = balance.select(
            state,
            worker,
            slot=call.slot,
            key=call.key,
            method=call.method,
            outstanding=(
                self.outstanding
                if call.avoid is None and not self.circuits.trouble
                else lambda entry: self._rank(call, entry)
            ),
            turn=self._turn,
        )
        if isinstance(chosen, Entry):
            return chosen
        if isinstance(chosen, SmartIpcError):
            call.error = chosen
        else:
            call.waiting_for = chosen.reason
            call.seen = state
            call.rest_until = call.deadline
        return None

    def _rank(self, call: Call, entry: Entry) -> int:
        avoided = call.avoid is not None and (entry.instance, entry.generation) in call.avoid
        avoided = avoided or not self.circuits.closed(entry.instance, entry.generation, call.method)
        return self.outstanding(entry) + (_AVOIDED if avoided else 0)

    def _rest(self, call: Call, until: float) -> None:
        call.seen = self._directory.state
        call.rest_until = min(until, call.deadline)

    def _expired(self, call: Call) -> None:
        instance = call.entry.instance if call.entry is not None else None
        processed: Any = "no" if call.attempt == 1 else "maybe"
        call.error = RequestTimeout(
            call.timeout, call.waiting_for, method=call.method, instance=instance, processed=processed
        )

    # waiting

    def _change(self, seen: DirectoryState | None, until: float) -> None:
        """Wait until the directory is another than `seen`, or until the time."""
        with self._changed:
            while self._directory.state is seen and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)

    def change(self, seen: DirectoryState, timeout: float) -> None:
        """Wait until the directory is another than `seen`, for at most `timeout` seconds."""
        self._change(seen, time.monotonic() + timeout)

    def wait(self, link: Link, done: Callable[[], bool]) -> None:
        """Wait until something came over `link` or the directory changed, unless `done` already."""
        self._sleepers.poll({link}, done, _LONGEST_SLEEP)

    def wait_any(self, on: Collection[Link], done: Callable[[], bool], longest: float = _LONGEST_SLEEP) -> None:
        """Wait until something came over one of the links, or the directory changed, unless `done` already."""
        self._sleepers.poll(on, done, min(longest, _LONGEST_SLEEP))

    def _sleep(self, calls: Collection[Call], links: Collection[Link], enough: Callable[[], bool]) -> None:
        """Wait until something may have happened to one of the calls, or came over one of the links."""
        on = {call.link for call in calls if call.link is not None}.union(links)
        resting = [call for call in calls if call.link is None]
        state = self._directory.state
        left = min((call.rest_until for call in resting), default=float("inf")) - time.monotonic()

        def happened() -> bool:
            return (
                any(call.link.finished(call.ident) for call in calls if call.link is not None)
                or any(call.seen is not state for call in resting)
                or enough()
            )

        if len(on) == 1 and not resting:
            next(iter(on)).wait(happened, time.monotonic() + _LONGEST_SLEEP)
            return
        self._sleepers.poll(on, happened, min(left, _LONGEST_SLEEP))


def _drain(link: Link) -> None:
    """Read all that is there."""
    link.pump(0)
    for _ in range(_MOST_READS):
        if not link.more or link.closed:
            return
        link.pump(0)

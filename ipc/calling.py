"""The outgoing half of the async handle: links to other instances, and calls over them with retries.

Which instance, and what a failure means, is decided in routing; this file waits and sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import Any

from smartipc.ipc import links
from smartipc.ipc.control import Entry, Launch
from smartipc.ipc.dispatch import pinned, worker_of
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import Direct, LinkHost, RemoteFault, Resume
from smartipc.ipc.errors import CallError, ConnectFailed, ConnectionLost, NoSuchWorker, RequestTimeout, SmartIpcError
from smartipc.ipc.message import Peer
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.resilience.breaker import Breakers, Trial
from smartipc.ipc.resilience.budget import RetryBudget
from smartipc.ipc.routing import attempts, balance
from smartipc.ipc.routing.directory import Directory, DirectoryState
from smartipc.ipc.trust.neighbours import dial_life, is_life

log = logging.getLogger("smartipc.calling")

_LAST_WORDS = 0.05
"""Seconds for the last answers of a process that is gone; a descendant may hold its socket open for ever."""
_AVOIDED = 1 << 30
"""Added to the outstanding calls of an instance whose circuit is open: others come first."""
_AT_ONCE = 3
"""Refusals in a row that are tried elsewhere without a pause."""
DIAL_AGAIN = 0.01
"""Seconds before dialling a peer again that listens but has a full queue, or does not listen yet."""
_DIRECTS = 1024
"""Methods whose only instance is remembered; the table is emptied when it is full."""


class Caller:
    """Links by life, opened when first needed.

    Args:
        launch: who we are.
        directory: who is where.
        host: told what arrives on the links besides answers.
    """

    def __init__(self, launch: Launch, directory: Directory, host: LinkHost) -> None:
        self.links: dict[tuple[str, int], Link] = {}
        self._identity = links.identity(launch)
        self._directory = directory
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._changed: asyncio.Future[None] | None = None
        self._turn = 0
        self._directs: dict[str, tuple[DirectoryState, Direct]] = {}
        self._late = 0
        self.circuits = Breakers(launch.breaker, launch.breakers)
        self.budget = RetryBudget()
        self._ending: set[Link] = set()

    def __repr__(self) -> str:
        return f"<Caller with {len(self.links)} links>"

    def directory_changed(self) -> None:
        """Wake whoever waits for an instance, and end links to lives that are over."""
        state = self._directory.state
        for (instance, generation), link in list(self.links.items()):
            if not state.lives(instance, generation) and link not in self._ending:
                # What the process still said may be in the socket; its end is normally seen there first.
                self._ending.add(link)
                self._loop.call_later(_LAST_WORDS, self._end, link)
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
        self._changed = None

    def _end(self, link: Link) -> None:
        self._ending.discard(link)
        link.close("its process is gone")

    async def change(self, deadline: float) -> bool:
        """Wait for the next change of the directory until `deadline` (loop time); tell whether there was one."""
        if self._changed is None:
            self._changed = self._loop.create_future()
        done, _ = await asyncio.wait({self._changed}, timeout=max(0.0, deadline - self._loop.time()))
        return bool(done)

    @property
    def late_replies(self) -> int:
        """Answers that came after their request had been given up, over all links there were."""
        return self._late + sum(link.connection.late_replies for link in list(self.links.values()))

    def outstanding(self, entry: Entry) -> int:
        """Count our unanswered calls at an instance."""
        link = self.links.get(links.life(entry))
        return link.outstanding if link is not None else 0

    def link_to(self, entry: Entry) -> Link:
        """Return the link to a life, dialled if there is none.

        Raises:
            ConnectFailed: nobody listens there (any more).
            BlockingIOError: its queue of connections is full; try again soon.
        """
        life = links.life(entry)
        link = self.links.get(life)
        if link is None or link.closed:
            sock = dial_life(entry)
            connection = Connection("client", self._identity, links.LIMITS, admit=is_life(entry))
            link = self.links[life] = Link(sock, connection, self._host)
        return link

    async def request(
        self,
        name: str,
        encoded: bytes,
        *,
        timeout: float,
        to: Peer | None = None,
        slot: int | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        idempotent: bool = False,
        declared: tuple[type[BaseException], ...] = (),
        resume: Resume | None = None,
    ) -> bytes:
        """Call an instance of the address's worker and return the reply's payload.

        Args:
            resume: the first attempt was made over a `direct` link and failed: go on from there.

        Raises:
            CallError: see Endpoint.request; declared errors as themselves.
        """
        worker = worker_of(name)
        if to is not None:
            slot = pinned(worker, to, slot)
        deadline = (self._loop.time() if resume is None else resume.began) + timeout
        attempt = 1
        refused = 0
        while True:
            if resume is None:
                entry = await self._pick(name, worker, slot, key, deadline, timeout)
                outcome = self.call(
                    entry, name, encoded, deadline=deadline, headers=headers, attempt=attempt, declared=declared
                )
            else:
                entry = resume.target
                outcome = self._fail(resume.failure, entry, name, declared)
                resume = None
            try:
                return await outcome
            except RequestTimeout as error:
                raise RequestTimeout(timeout, method=name, instance=entry.instance, processed=error.processed) from None
            except (CallError, ConnectFailed) as error:
                decision = attempts.after(error, idempotent=idempotent, attempt=attempt)
                if decision == "raise":
                    raise
                if decision == "retry":
                    if not self.budget.spend(self._loop.time(), self.circuits.calls):
                        raise
                    attempt += 1
            if not self._another_ready(worker, slot, entry):
                await self.change(min(deadline, self._loop.time() + attempts.pause(attempt, random.random())))  # noqa: S311 - only jitter
            refused = refused + 1 if decision == "again" else 0
            if refused > _AT_ONCE:  # all of them refuse: do not spin until one leaves or comes
                await asyncio.sleep(attempts.BACKOFF)

    def direct(self, name: str) -> Direct | None:
        """Return the open link that a call with nothing special goes to now, if there is nothing to wait for."""
        if self.circuits.trouble:
            return None
        known = self._directs.get(name)
        state = self._directory.state
        if known is not None and known[0] is state and not known[1].link.closed:
            return known[1]
        worker = worker_of(name)
        self._turn += 1
        entry = balance.select(state, worker, outstanding=self.outstanding, turn=self._turn)
        if not isinstance(entry, Entry):
            return None
        link = self.links.get((entry.instance, entry.generation))
        if link is None or link.closed:
            self._turn -= 1  # it is still that one's turn: the long way dials it
            return None
        only = sum(one.ready for one in state.by_worker[worker]) == 1
        direct = Direct(link, entry, only, self.circuits.of(entry.instance, entry.generation, name))
        if only:
            if len(self._directs) >= _DIRECTS:
                self._directs.clear()
            self._directs[name] = state, direct
        return direct

    async def reach(self, name: str, *, timeout: float, to: Peer | None, slot: int | None, key: str | None) -> Link:
        """Choose an instance, wait until it is ready, and return an open link to it.

        Raises:
            RequestTimeout: none became ready in time.
            NoSuchWorker, WorkerDied: none will.
        """
        worker = worker_of(name)
        if to is not None:
            slot = pinned(worker, to, slot)
        deadline = self._loop.time() + timeout
        while True:
            entry = await self._pick(name, worker, slot, key, deadline, timeout)
            link = await self.link_when_possible(entry)
            if link is not None:
                return link

    def trial(self, link: Link, name: str) -> Trial | None:
        """Ask the circuit breaker whether something may be opened over a link that `reach` gave.

        Raises:
            CircuitOpen: not now.
        """
        for (instance, generation), known in self.links.items():
            if known is link:
                return self.circuits.trial(instance, generation, name, self._loop.time())
        return None

    async def mourn(self, lost: ConnectionLost, link: Link) -> CallError:
        """Turn the loss of a link into WorkerDied with its exit facts, where they are known now or very soon."""
        peer = link.peer
        if peer is None:
            return lost
        return await self._facts(lost, peer.name, peer.generation, lost.method or "")

    async def broadcast(
        self,
        name: str,
        encoded: bytes,
        *,
        timeout: float,
        headers: dict[str, str] | None,
        declared: tuple[type[BaseException], ...],
    ) -> list[tuple[str, bytes | BaseException]]:
        """Ask every living instance of the address's worker, and return what each one answered, by slot.

        Raises:
            NoSuchWorker: there is no such worker.
        """
        worker, state = worker_of(name), self._directory.state
        if worker not in state.by_worker:
            raise NoSuchWorker(worker, state.workers(), method=name)
        deadline = self._loop.time() + timeout
        entries = [one for one in state.by_worker[worker] if state.lives(one.instance, one.generation)]
        expected: tuple[type[BaseException], ...] = (SmartIpcError, *declared)

        async def one(entry: Entry) -> tuple[str, bytes | BaseException]:
            try:
                return entry.instance, await self.call(
                    entry, name, encoded, deadline=deadline, headers=headers, declared=declared
                )
            except expected as error:
                return entry.instance, error

        return list(await asyncio.gather(*(one(entry) for entry in entries)))

    async def call(
        self,
        entry: Entry,
        method: str,
        payload: bytes,
        *,
        deadline: float,
        headers: dict[str, str] | None = None,
        attempt: int = 1,
        declared: tuple[type[BaseException], ...] = (),
    ) -> bytes:
        """Make one attempt at one life; a lost link becomes WorkerDied with its exit facts where they are known."""
        now = self._loop.time()
        left = deadline - now
        if left <= 0:
            raise RequestTimeout(None, method=method, instance=entry.instance, processed="no")
        circuit = self.circuits.enter(entry.instance, entry.generation, method, now)
        try:
            link = self.link_to(entry)
            reply = await link.call(method, payload, timeout=left, headers=headers, attempt=attempt)
        except (RemoteFault, RequestTimeout, ConnectionLost) as error:
            failure: SmartIpcError = error
        except (ConnectFailed, BlockingIOError) as failed:
            failure = ConnectionLost(
                entry.instance, str(failed), method=method, instance=entry.instance, processed="no"
            )
        except BaseException:  # cancelled, or never sent: nothing is known of the other side
            if circuit is not None:
                circuit.abandon()
            raise
        else:
            if circuit is not None:
                circuit.passed(now)
            return reply
        return await self._fail(failure, entry, method, declared)

    async def _fail(
        self, failure: SmartIpcError, entry: Entry, method: str, declared: tuple[type[BaseException], ...]
    ) -> bytes:
        """Raise what a link's failure means for the caller, and tell the destination's circuit."""
        error: BaseException = failure
        if isinstance(failure, RemoteFault):
            error = failure.error(method=method, instance=entry.instance, declared=declared)
        elif isinstance(failure, ConnectionLost):
            error = await self._lost(failure, entry, method)
        circuit = self.circuits.of(entry.instance, entry.generation, method)
        if self.circuits.failed(circuit, error, self._loop.time()):
            log.warning("circuit.changed: %s on %s is %s", method, entry.instance, circuit.state if circuit else "")
        raise error

    def _another_ready(self, worker: str, slot: int | None, lost: Entry) -> bool:
        """Tell whether the next attempt would go elsewhere: then it need not wait."""
        if slot is not None:
            return False
        entries = self._directory.state.by_worker.get(worker, ())
        return any(entry.ready and entry.instance != lost.instance for entry in entries)

    async def _lost(self, error: ConnectionLost, entry: Entry, method: str) -> CallError:
        return await self._facts(error, entry.instance, entry.generation, method)

    async def _facts(self, error: ConnectionLost, instance: str, generation: int, method: str) -> CallError:
        until = self._loop.time() + attempts.FACTS_WAIT
        while True:
            death = attempts.lost(error, self._directory.state, instance, generation, method)
            if death is not None:
                return death
            if error.processed == "no" or not await self.change(until):
                return error

    async def _pick(
        self, method: str, worker: str, slot: int | None, key: str | None, deadline: float, timeout: float
    ) -> Entry:
        while True:
            self._turn += 1
            chosen = balance.select(
                self._directory.state,
                worker,
                slot=slot,
                key=key,
                method=method,
                outstanding=self.outstanding if not self.circuits.trouble else self._rank(method),
                turn=self._turn,
            )
            if isinstance(chosen, Entry):
                return chosen
            if isinstance(chosen, SmartIpcError):
                raise chosen
            if not await self.change(deadline):
                raise RequestTimeout(timeout, chosen.reason, method=method, processed="no")

    def _rank(self, method: str) -> Callable[[Entry], int]:
        """Return how instances are preferred while a circuit is open: such ones last."""

        def outstanding(entry: Entry) -> int:
            closed = self.circuits.closed(entry.instance, entry.generation, method)
            return self.outstanding(entry) + (0 if closed else _AVOIDED)

        return outstanding

    async def link_when_possible(self, entry: Entry) -> Link | None:
        """Return a link to a life, waiting out a full queue; None when the life is over."""
        while self._directory.state.lives(entry.instance, entry.generation):
            with contextlib.suppress(ConnectFailed, BlockingIOError):
                return self.link_to(entry)
            await asyncio.sleep(DIAL_AGAIN)
        return None

    def forget(self, link: Any) -> tuple[str, int] | None:
        """Drop a closed link and return the life it led to, None if it was not one of ours."""
        for life, known in list(self.links.items()):
            if known is link:
                del self.links[life]
                self._late += link.connection.late_replies
                return life
        return None

    async def aclose(self, grace: float) -> None:
        """Close every link, letting unsent bytes out first."""
        closing = [link.aclose(grace) for link in self.links.values()]
        if closing:
            await asyncio.gather(*closing)
        self.links.clear()

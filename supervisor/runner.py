"""The supervisor's loop: gather facts, ask the core, perform its orders in one `match`.

Everything that decides is in core/; everything that touches the system is in host/; this file connects them. It runs
on asyncio's own loop on purpose: one turn of it handles readable descriptors before due timers, so after a stall the
heartbeats that wait in the pipes are read before anything is declared hung.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias, assert_never

import msgspec

from smartipc.ipc import control
from smartipc.ipc.control import Entry, ExitFacts
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.resilience.dead_letters import NAME as LETTERS
from smartipc.ipc.steering import ApplyRequest
from smartipc.ipc.wire import codec
from smartipc.supervisor import logs
from smartipc.supervisor.control import ControlServer
from smartipc.supervisor.core.core import Core
from smartipc.supervisor.core.facts import (
    ApplyOrdered,
    AppStart,
    Due,
    Exited,
    Fact,
    ScaleOrdered,
    ShutdownOrdered,
)
from smartipc.supervisor.core.orders import Abort, Announce, Answer, EndApp, Forget, Kill, Order, Spawn, Stop
from smartipc.supervisor.core.spec import AppSpec, WorkerSpec
from smartipc.supervisor.core.stacks import essence
from smartipc.supervisor.directory import Book
from smartipc.supervisor.events import EventLog
from smartipc.supervisor.hooks import Hooks
from smartipc.supervisor.host.journal import open_journal, state_directory
from smartipc.supervisor.host.life import Life
from smartipc.supervisor.host.limits import raise_our_own
from smartipc.supervisor.host.output import Output
from smartipc.supervisor.host.predecessors import Predecessors
from smartipc.supervisor.host.process import ProcessHost
from smartipc.supervisor.host.rundir import CONTROL_SOCKET, RETAINED, RuntimeDirectory
from smartipc.supervisor.host.runs import Runs
from smartipc.supervisor.letters import LetterOffice
from smartipc.supervisor.listing import Listing
from smartipc.supervisor.measuring import Measuring
from smartipc.supervisor.operator import GENERATION, Operator
from smartipc.supervisor.premises import Premises
from smartipc.supervisor.probing import Probing
from smartipc.supervisor.readiness import LogReadiness
from smartipc.supervisor.spawning import Spawning
from smartipc.supervisor.status import Meter
from smartipc.supervisor.steering import Steering
from smartipc.supervisor.telling import Telling
from smartipc.supervisor.timetable import Timetable
from smartipc.supervisor.watching import Watching

log = logging.getLogger("smartipc.supervisor")
_LEFT_WAIT = 0.5
"""Seconds after which a life is stopped though some worker has not acknowledged that it is out of routing."""


@dataclass(slots=True)
class Said:
    """What a life said of itself, for status."""

    status: str | None = None
    progress: control.Progress | None = None
    traffic: control.Traffic | None = None


def run_app(spec: AppSpec, services: Sequence[Service] = ()) -> int:
    """Run the app until it ends and return the exit code.

    Args:
        spec: what to run.
        services: entered with the app before its first worker starts, left when the last is down.

    Raises:
        AlreadyRunning: another supervisor runs it.
        UnsafeDirectory: the runtime directory cannot be used.
    """
    raise_our_own()
    handler = logs.configure(spec.supervisor.log)
    try:
        with (
            RuntimeDirectory(spec.app, spec.supervisor.runtime_dir) as directory,
            asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner,  # see the top of this file
        ):
            return runner.run(App(spec, directory, exclusive=True).run(services))
    finally:
        logging.getLogger("smartipc").removeHandler(handler)
        handler.close()


Service: TypeAlias = "Callable[[App], AbstractAsyncContextManager[Any]]"
"""Something that runs beside the app in its loop, such as the dashboard."""


class App:
    """One running app.

    Args:
        spec: what to run.
        directory: the locked runtime directory.
        exclusive: the process does nothing else, so every child of its own is ours to reap.
    """

    def __init__(self, spec: AppSpec, directory: RuntimeDirectory, *, exclusive: bool = False) -> None:
        self.pid = os.getpid()
        self.run_id = uuid.uuid4().hex
        self.core = Core(spec, jitter=random.random)
        self.book = Book()
        self._journal = open_journal(state_directory(spec.app, spec.supervisor.state_dir))
        self.events = EventLog(self._journal)
        self.output = Output(json=spec.supervisor.log.format == "json")
        self.meter = Meter()
        self.http: str | None = None
        """Where the pages are served, "host:port"."""
        self.said: dict[tuple[str, int], Said] = {}
        self.exit_times: dict[str, float] = {}
        """When the last life of an instance ended, epoch seconds."""
        self.stacks: dict[str, tuple[str, ...]] = {}
        """Of the last life of an instance that was aborted or crashed."""
        self.links: dict[tuple[str, int], Link] = {}
        self.host: ProcessHost
        self.operator: Operator
        self.control: ControlServer
        self.premises = Premises(self)
        self.hooks: Hooks
        self.probing: Probing
        self.listing = Listing(self)
        self.telling = Telling(self)
        self.timetable: Timetable
        self.watching = Watching(self)
        self.log_readiness = LogReadiness(self)
        self._exclusive = exclusive
        self.spawning = Spawning(self)
        self.steering = Steering(self)
        self.letters = LetterOffice(self.dead_letters, lambda: self.operator)
        self._measuring = Measuring(self)
        self.directory = directory
        self._workers = {worker.name: worker for worker in spec.workers}
        """Every worker there has been: its lives may outlast it."""
        self._work: deque[tuple[Order, float]] = deque()
        """What is to be done, and when that was decided, epoch seconds."""
        self._working = False
        self._timer: asyncio.TimerHandle | None = None
        self._answers: dict[int, asyncio.Future[tuple[tuple[str, str], ...]]] = {}
        self._next_order = 1
        self._background: set[asyncio.Task[Any]] = set()
        self._signals = 0
        self.loop: asyncio.AbstractEventLoop
        self._ended: asyncio.Future[int]

    def __repr__(self) -> str:
        return f"<App {self.spec.app} of process {self.pid}: {self.core.app_state}>"

    async def run(self, services: Sequence[Service] = ()) -> int:
        """Run to the end and return the exit code."""
        self.loop = asyncio.get_running_loop()
        self._ended = self.loop.create_future()
        if self._exclusive:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                self.loop.add_signal_handler(number, self._on_signal, number)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
        try:
            await self._end_predecessors()  # first of all: they may hold our sockets
            code = self._ended.result() if self._ended.done() else await self._run(services)
        finally:
            self.output.flush(1.0)
            if self._journal is not None:
                self._journal.close()
        log.info("app %s ended with code %d", self.spec.app, code)
        return code

    async def _run(self, services: Sequence[Service]) -> int:
        async with contextlib.AsyncExitStack() as opened:
            await self._open(opened)
            if self._exclusive:
                self.loop.add_signal_handler(signal.SIGHUP, lambda: self.keep(self._reread()))
            log.info("app %s starts, supervisor %d, configuration %s", self.spec.app, self.pid, self.spec.config_path)
            for worker in self.spec.workers:
                for slot, name in enumerate(worker.names):
                    self.book.set(Entry(name, worker.name, slot, 0, 0, "stopped"))
            async with contextlib.AsyncExitStack() as stack:
                for service in services:
                    await stack.enter_async_context(service(self))
                self.feed(AppStart())
                self._measuring.begin()
                self.premises.begin()
                self.timetable.apply(self.spec.workers)
                self.watching.apply(self.spec.workers)
                code = await self._ended
                await self.hooks.finish()
        return code

    async def _open(self, opened: contextlib.AsyncExitStack) -> None:
        """Open everything; `opened` closes it in reverse, as far as it got: an embedding program may try again."""
        folder = self.directory.path / "mp"
        self.host = ProcessHost(self.spec, folder, self.output, self.run_id, self._on_exit, exclusive=self._exclusive)
        opened.callback(self.host.close)
        self.host.open()
        for name, where in self.host.sockets.addresses().items():
            log.info("socket %s listens at %s", name, where)
        opened.callback(self._cancel_background)
        opened.callback(self.letters.close)
        self.telling.open()
        opened.callback(self.telling.close)
        await self.listen_as_operator()
        opened.push_async_callback(lambda: self.operator.close())  # noqa: PLW0108 - there may be another one by then
        self.control = ControlServer(self, str(self.directory.path / CONTROL_SOCKET))
        opened.push_async_callback(self.control.close)
        runs = Runs(self.host.launcher, self.host.others)
        self.hooks, self.probing = Hooks(self, runs), Probing(self, runs)
        self.timetable = Timetable(lambda instance: self.feed(Due(instance)))
        opened.callback(self._disarm)
        for part in (self.probing, self._measuring, self.watching, self.timetable, self.premises):
            opened.callback(part.close)

    def _cancel_background(self) -> None:
        for task in self._background:
            task.cancel()

    async def listen_as_operator(self) -> None:
        """Have a handle of our own, for what commands call and publish; again, where its socket was deleted."""
        address = f"unix://{self.directory.path}/supervisor.sock"
        key = (control.SUPERVISOR, GENERATION)
        if hasattr(self, "operator"):
            await self.operator.close()
        self.operator = Operator(self.spec.app, address, self.pid, self.book, self.listing.tell, self.retained)
        self.operator.directory.apply(self.book.join(key))
        self.book.leave(key)
        await self.operator.open()

    async def _end_predecessors(self) -> None:
        """End what a killed run of this app left, before anything of this one starts."""
        directory = self.directory
        directory.record(self.run_id, self.spec.config_path)
        left = Predecessors(directory.earlier)
        found = left.find()
        if found:
            cause = "left by an earlier run: " + ", ".join(f"{words} ({pid})" for pid, words in found.items())
            log.warning("%s; they are ended before anything starts", cause)
            self.events.append(Announce("app.swept", "", 0, None, None, None, cause))
            grace = max(worker.stop.timeout for worker in self.spec.workers)
            ending = asyncio.ensure_future(left.end(min(grace, self.spec.supervisor.shutdown_timeout)))
            either: set[asyncio.Future[Any]] = {ending, self._ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():  # told to stop meanwhile: the next run finds them again
                ending.cancel()
                return
            if not ending.result():
                log.error("some of them do not go away: %s", ", ".join(map(str, left.find())))
        directory.earlier = ()
        directory.record(self.run_id, self.spec.config_path)

    # facts in

    def feed(self, fact: Fact) -> None:
        """Give the core a fact and perform what it orders."""
        now, at = time.monotonic(), time.time()
        orders = self.core.handle(fact, now)
        if isinstance(fact, Exited) and not self._working:
            self.spawning.launch_ahead(orders, now)
        self._work.extend((order, at) for order in orders)
        if isinstance(fact, ApplyOrdered):
            self._workers |= {worker.name: worker for worker in self.spec.workers}
            self.host.adopt(self.spec)
            self.timetable.apply(self.spec.workers)
            self.watching.apply(self.spec.workers)
            self._measuring.begin()
            for worker in self.spec.workers:
                self.host.spares.discard(worker.name)
                self.loop.call_soon(self.spawning.warm_up, worker.names[0])
        elif isinstance(fact, ScaleOrdered):
            self.timetable.apply(self.spec.workers)
        self._start_working()
        self._arm()

    def order(self, fact: Callable[[int], Fact]) -> asyncio.Future[tuple[tuple[str, str], ...]]:
        """Give the core an order of a person; the future gets its answer."""
        number = self._next_order
        self._next_order += 1
        future: asyncio.Future[tuple[tuple[str, str], ...]] = self.loop.create_future()
        self._answers[number] = future
        self.feed(fact(number))
        return future

    def _on_signal(self, number: signal.Signals) -> None:
        self._signals += 1
        log.info("%s: %s", number.name, "stopping" if self._signals == 1 else "stopping at once")
        self.feed(ShutdownOrdered(number.name, fast=self._signals > 1))

    async def _reread(self) -> None:
        """Apply the configuration file as it is now."""
        outcome = await self.steering.apply(ApplyRequest(wait=False))
        for problem in outcome.problems:
            log.error("SIGHUP: %s", problem)
        log.info("SIGHUP: %s", "nothing was changed" if outcome.problems else f"{len(outcome.steps)} steps")

    def _on_exit(self, life: Life, facts: ExitFacts, at: float | None) -> None:
        key = (life.instance, life.generation)
        link = self.links.pop(key, None)
        if link is not None:
            link.close("its process ended")
            self.directory.forget(self.address(*key))
        self.book.leave(key)
        self.exit_times[life.instance] = time.time()
        if life.swept:
            self._tell_swept(life)
        if life.stacks:
            self._tell_stacks(life)
        if life.ending is not None and life.ending.code != 0 and not facts.reason:
            facts = msgspec.structs.replace(facts, reason=life.ending.reason)
        self.hooks.after(self.worker_of(life.instance), life.instance, life.generation, facts)
        self.feed(Exited(*key, facts, at))

    def _tell_swept(self, life: Life) -> None:
        left = ", ".join(f"{words} ({pid})" for pid, words in life.swept.items())
        log.warning("%s: left behind and killed: %s", life.instance, left, extra={"instance": life.instance})
        state = self.core.view(life.instance).state
        cause = f"left behind and killed: {left}"
        self.events.append(Announce("instance.swept", life.instance, life.generation, life.pid, state, state, cause))

    def _tell_stacks(self, life: Life) -> None:
        self.stacks[life.instance] = life.stacks
        state = self.core.view(life.instance).state
        where = "".join(essence(life.stacks)[:1]).strip().removeprefix("File ") or "no Python code"
        cause = f"its threads have written their stacks; it was in {where}"
        log.warning("%s: %s", life.instance, cause, extra={"instance": life.instance})
        details = (("stacks", list(life.stacks)),)
        one = Announce(
            "instance.stacks", life.instance, life.generation, life.pid, state, state, cause, details=details
        )
        self.events.append(one)

    def _arm(self) -> None:
        at = self.core.next_timer()
        self._disarm()
        if at is not None:
            self._timer = self.loop.call_at(at, self._on_timer)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        at = time.time()
        self._work.extend((order, at) for order in self.core.handle_timer(time.monotonic()))
        self._start_working()
        self._arm()

    # orders out

    def _start_working(self) -> None:
        if not self._working and self._work:
            self._working = True
            self._perform_some()

    def _perform_some(self) -> None:
        """Perform orders; after each spawn the loop turns, so that status answers while hundreds start."""
        while self._work:
            order, at = self._work.popleft()
            try:
                self._perform(order, at)
            except Exception as error:  # one order must not keep the others from being performed, the shutdown least
                log.exception("an order cannot be performed: %r", order)
                self._give_up(order, error)
            if isinstance(order, Spawn) and self._work:
                self.loop.call_soon(self._perform_some)
                return
        self._working = False

    def _give_up(self, order: Order, error: Exception) -> None:
        if isinstance(order, Spawn):
            life = self._life(order.instance, order.generation)
            if life is None:
                self.spawning.failed(order.instance, order.generation, f"{type(error).__name__}: {error}")
            else:
                self.host.kill(life)

    def _perform(self, order: Order, at: float) -> None:
        match order:
            case Spawn():
                self.spawning.perform(order)
            case Stop():
                life = self._life(order.instance, order.generation)
                if life is not None:
                    self._stop_when_left(life, order)
                else:
                    self.hooks.withdraw(order.instance, order.generation)
            case Abort():
                life = self._life(order.instance, order.generation)
                if life is not None:
                    self.host.signal(life, signal.SIGABRT)
            case Kill():
                life = self._life(order.instance, order.generation)
                if life is not None:
                    self.host.kill(life)
                else:
                    self.hooks.withdraw(order.instance, order.generation)
            case Announce():
                self._announce(order, at)
            case Forget():
                self.listing.forget(order.instance)
                self.output.forget(order.instance)
                self.said = {key: said for key, said in self.said.items() if key[0] != order.instance}
                self.exit_times.pop(order.instance, None)
                self.stacks.pop(order.instance, None)
            case Answer():
                future = self._answers.pop(order.order, None)
                if future is not None and not future.done():
                    future.set_result(order.results)
            case EndApp():
                self._ended.set_result(order.code)
            case _:
                assert_never(order)

    def _life(self, instance: str, generation: int) -> Life | None:
        return self.host.lives.get((instance, generation))

    def _stop_when_left(self, life: Life, order: Stop) -> None:
        """Stop a life once every worker knows that it stops, so that no request is on its way to it any more."""
        if self.core.app_state == "stopping":
            self._stop(life, order)
            return
        due = self.loop.call_later(_LEFT_WAIT, lambda: self._stop(life, order))

        def left() -> None:
            if not due.cancelled() and due.when() > self.loop.time():
                due.cancel()
                self._stop(life, order)

        self.listing.tell()
        self.book.barrier(left)

    def _stop(self, life: Life, order: Stop) -> None:
        if self._life(life.instance, life.generation) is not life:
            return
        link = self.links.get((life.instance, life.generation))
        if link is not None and not link.closed:
            link.notify(control.stop.name, codec.encode(control.StopOrder(order.grace, order.cause)))
        self.host.signal(life, signal.Signals[self.worker_of(life.instance).stop.signal])

    def _announce(self, order: Announce, at: float) -> None:
        self.events.append(order, at)
        level = (
            logging.WARNING
            if order.to_state in ("backoff", "failed") or order.event == "instance.hang"
            else logging.INFO
        )
        later = f", next try in {order.next_restart_in:.2f} s" if order.next_restart_in is not None else ""
        did = order.to_state if order.event == "instance.state" else order.event
        told = f"{order.instance}: {did}" if order.instance else did
        log.log(level, "%s (%s)%s", told, order.cause, later, extra={"instance": order.instance})
        if order.exit is not None and order.to_state in ("backoff", "failed"):
            for line in order.exit.stderr_tail[-3:]:
                log.debug("%s: its stderr ended with: %s", order.instance, line, extra={"instance": order.instance})
        self.telling.follow(order)
        if order.event == "instance.state":
            self.listing.enter(order)
            self.probing.follow(order)
            self.log_readiness.follow(order)
            if order.to_state in ("running", "ready"):
                self.spawning.refill_soon(order.instance)

    # what a life is given

    def worker_of(self, instance: str) -> WorkerSpec:
        """Return the worker of an instance."""
        name = instance.rpartition(":")[0]
        return self._workers[name]

    @property
    def spec(self) -> AppSpec:
        """The configuration as it holds now."""
        return self.core.spec

    def begin_saying(self, instance: str, generation: int) -> None:
        """Have room for what a new life says of itself; what dead ones said is forgotten."""
        self.said = {key: said for key, said in self.said.items() if key[0] != instance or key in self.host.lives}
        self.said[instance, generation] = Said()

    def address(self, instance: str, generation: int) -> str:
        """Return where a life listens."""
        worker, _, slot = instance.rpartition(":")
        return f"unix://{self.directory.path}/{worker}.{slot}.{generation}.sock"

    @property
    def dead_letters(self) -> str:
        """File of the one-way messages that nobody could handle."""
        return str(state_directory(self.spec.app, self.spec.supervisor.state_dir) / LETTERS)

    @property
    def retained(self) -> str:
        """Folder of the last values of retained topics."""
        return str(self.directory.path / RETAINED)

    def keep(self, work: asyncio.Task[Any] | Coroutine[Any, Any, Any]) -> None:
        """Hold a background task until it is done."""
        task = work if isinstance(work, asyncio.Task) else self.loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

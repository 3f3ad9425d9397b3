"""Thousands of random lives: a simulated host obeys the core, misbehaves within what hosts may do, and checks it."""

from __future__ import annotations

import math

from hosts import LIVES, Host
from hypothesis import strategies as st
from hypothesis import target
from hypothesis.stateful import initialize, invariant, precondition, rule

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.core.core import Core
from smartipc.supervisor.core.facts import (
    AppStart,
    Beat,
    BecameReady,
    Exited,
    ResetOrdered,
    RestartOrdered,
    ShutdownOrdered,
    Spawned,
    SpawnFailed,
    Started,
    StartOrdered,
    StopOrdered,
)
from smartipc.supervisor.core.orders import Abort, Announce, Kill, Spawn, Stop
from smartipc.supervisor.core.spec import AppSpec, HeartbeatSpec, RestartSpec, StopSpec, SupervisorSpec, WorkerSpec
from smartipc.supervisor.core.states import LIVING, TRANSITIONS

NAMES = ("a", "b", "c", "d")
LATE = (None, 0.0, 0.3, 60.0)
"""By how much the report of an end is later than the end, in seconds; None where it does not say."""
EXITS = (
    ExitFacts(code=0),
    ExitFacts(code=1, reason="ValueError: no"),
    ExitFacts(code=3),
    ExitFacts(code=4),
    ExitFacts(signal="SIGKILL", oom=True),
    ExitFacts(),
)

restarts = st.builds(
    RestartSpec,
    policy=st.sampled_from(("always", "on-failure", "on-failure", "never")),
    delay=st.sampled_from((0.0, 0.1, 1.0)),
    factor=st.sampled_from((1.0, 2.0)),
    max_delay=st.sampled_from((0.5, 5.0)),
    jitter=st.sampled_from((0.0, 0.2, 1.0)),
    reset_after=st.sampled_from((1.0, 10.0)),
    max_restarts=st.integers(0, 4),
    window=st.sampled_from((2.0, 20.0)),
    prevent_codes=st.sampled_from(((), (4,))),
)


@st.composite
def apps(draw: st.DrawFn) -> AppSpec:
    workers = []
    for number, name in enumerate(NAMES[: draw(st.integers(1, 4))]):
        needs = draw(st.lists(st.sampled_from(NAMES[:number]), unique=True)) if number else []
        conditions = st.sampled_from(("started", "ready", "ready", "completed", "succeeded"))
        workers.append(
            WorkerSpec(
                name,
                instances=draw(st.integers(1, 2)),
                depends_on=tuple((need, draw(conditions)) for need in needs),
                ready=draw(st.sampled_from(("ipc", "ipc", "started"))),
                says_ready=draw(st.booleans()),
                start_timeout=draw(st.sampled_from((1.0, 30.0))),
                restart=draw(restarts),
                on_failed=draw(st.sampled_from(("ignore", "ignore", "shutdown"))),
                heartbeat=HeartbeatSpec(interval=0.5, timeout=draw(st.sampled_from((1.0, 10.0)))),
                stop=StopSpec(timeout=draw(st.sampled_from((0.5, 10.0)))),
            )
        )
    workers = draw(st.permutations(workers))
    on_idle = draw(st.sampled_from(("wait", "exit")))
    return AppSpec("app", tuple(workers), SupervisorSpec(shutdown_timeout=5.0, on_idle=on_idle))


class Lives(Host):
    """What a host may do, in any order."""

    @initialize(spec=apps(), jitters=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5))
    def begin(self, spec: AppSpec, jitters: list[float]) -> None:
        self.spec = spec
        self.workers = {name: worker for worker in spec.workers for name in worker.names}
        self.jitters = jitters
        self.drawn = 0
        self.surround(Core(spec, jitter=self.jitter))
        self.ordered: dict[str, int] = {}  # spawns that the host has not reported on
        self.alive: dict[str, int] = {}
        self.killed: set[tuple[str, int]] = set()
        self.gone: list[tuple[str, int]] = []
        self.states = dict.fromkeys(self.workers, "stopped")
        self.generations = dict.fromkeys(self.workers, 0)
        self.automatic: dict[str, list[float]] = {name: [] for name in self.workers}
        self.restarts = dict.fromkeys(self.workers, 0)
        self.kept_down: set[str] = set()
        self.begun = False

    def jitter(self) -> float:
        self.drawn += 1
        return self.jitters[self.drawn % len(self.jitters)]

    # what the core wants

    def take(self, order) -> None:
        match order:
            case Spawn(instance, generation):
                assert not self.shutdown, "spawned after the shutdown"
                assert instance not in self.ordered, "two lives of one slot"
                assert instance not in self.alive, "two lives of one slot"
                assert instance not in self.kept_down, "spawned though a person stopped it"
                assert generation == self.generations[instance] + 1
                self.generations[instance] = generation
                self.ordered[instance] = generation
                self.count(instance)
            case Stop(instance, generation, grace, cause):
                assert self.lives(instance, generation)
                assert 0 <= grace <= self.workers[instance].stop.timeout
                assert cause
                self.told.add((instance, generation))
            case Abort(instance, generation):
                assert self.lives(instance, generation)
                self.told.add((instance, generation))
            case Kill(instance, generation):
                self.told.add((instance, generation))
                self.killed.add((instance, generation))

    def lives(self, instance: str, generation: int) -> bool:
        return generation in (self.ordered.get(instance), self.alive.get(instance))

    def check(self, announce: Announce) -> None:
        assert announce.cause
        if announce.event != "instance.state":
            return
        before = announce.from_state
        assert before == self.states[announce.instance]
        assert announce.to_state in TRANSITIONS[before].values()
        assert (announce.to_state == "backoff") == (announce.next_restart_in is not None)
        self.states[announce.instance] = announce.to_state

    def count(self, instance: str) -> None:
        restarts = self.core.view(instance).restarts
        if restarts > self.restarts[instance]:
            assert restarts == self.restarts[instance] + 1
            restart = self.workers[instance].restart
            times = self.automatic[instance]
            times.append(self.now)
            assert sum(time >= self.now - restart.window for time in times) <= restart.max_restarts
        self.restarts[instance] = restarts

    # what a host does

    @rule()
    def start_app(self) -> None:
        if not self.begun:
            self.kept_down.clear()
        self.begun = True
        self.tell(AppStart())

    @precondition(lambda self: self.ordered)
    @rule(data=st.data(), fails=st.integers(0, 5))
    def spawn(self, data, fails: int) -> None:
        instance = data.draw(st.sampled_from(sorted(self.ordered)))
        generation = self.ordered.pop(instance)
        if fails == 0:
            self.gone.append((instance, generation))
            self.tell(SpawnFailed(instance, generation, "no such file"))
            return
        self.alive[instance] = generation
        life = (instance, generation)
        killed = life in self.killed
        self.told.discard(life)
        self.killed.discard(life)
        stopping = self.states[instance] == "stopping"
        self.tell(Spawned(instance, generation, 1000 + generation))
        assert (life in self.told) == (stopping or killed), "what was ordered before it existed is ordered again"
        assert (life in self.killed) == killed

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), watched=st.booleans())
    def run(self, data, watched: bool) -> None:
        instance = data.draw(st.sampled_from(sorted(self.alive)))
        self.tell(Started(instance, self.alive[instance], watched))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def all_ready(self, data) -> None:
        for instance, generation in sorted(self.alive.items()):
            self.tell(Started(instance, generation, data.draw(st.booleans())), BecameReady(instance, generation))

    @precondition(lambda self: self.alive)
    @rule()
    def beats(self) -> None:
        for instance, generation in self.alive.items():
            self.tell(Beat(instance, generation))
            assert self.core.view(instance).last_beat_at == self.now

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), exit_=st.sampled_from(EXITS))
    def die(self, data, exit_: ExitFacts) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.alive))), exit_)

    @precondition(lambda self: self.ordered or self.alive)
    @rule(data=st.data(), times=st.integers(2, 8), exit_=st.sampled_from(EXITS))
    def crash_again_and_again(self, data, times: int, exit_: ExitFacts) -> None:
        """Die as soon as it lives, as far as the core and time go along."""
        instance = data.draw(st.sampled_from(sorted({*self.ordered, *self.alive})))
        for _ in range(times):
            if instance in self.ordered:
                self.alive[instance] = self.ordered.pop(instance)
                self.tell(Spawned(instance, self.alive[instance], 1))
            if instance in self.alive:
                self.end(instance, exit_)
            due = self.core.view(instance).next_restart_at
            if due is not None:
                self.run_timers(due)

    @precondition(lambda self: self.told)
    @rule(exit_=st.sampled_from(EXITS))
    def obey(self, exit_: ExitFacts) -> None:
        for instance, generation in sorted(self.told):
            if self.alive.get(instance) == generation:
                self.end(instance, exit_)

    def end(self, instance: str, exit_: ExitFacts) -> None:
        generation = self.alive.pop(instance)
        self.told.discard((instance, generation))
        self.gone.append((instance, generation))
        late = LATE[len(self.gone) % len(LATE)]
        self.tell(Exited(instance, generation, exit_, None if late is None else self.now - late))
        view = self.core.view(instance)
        assert view.last_exit_generation == generation
        assert view.pid is None

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def hear_late(self, data) -> None:
        instance, generation = data.draw(st.sampled_from(self.gone[-5:]))
        before = self.core.snapshot()
        for fact in (
            Started(instance, generation),
            BecameReady(instance, generation),
            Beat(instance, generation),
            Exited(instance, generation, ExitFacts(code=1)),
        ):
            assert self.core.handle(fact, self.now) == []
        assert self.core.snapshot() == before
        assert self.core.handle(Spawned(instance, generation, 7), self.now) == [Kill(instance, generation)]
        assert self.core.snapshot() == before

    @rule(seconds=st.sampled_from((0.01, 0.3, 1.0, 3.0, 12.0)))
    def wait(self, seconds: float) -> None:
        """Let time pass as a runner does: every timer at its moment."""
        until = self.now + seconds
        self.run_timers(until)
        self.now = until

    @rule(seconds=st.sampled_from((1.0, 12.0, 100.0)))
    def oversleep(self, seconds: float) -> None:
        """Let time pass as on a suspended machine: all timers too late."""
        self.now += seconds
        self.run_timers(self.now)

    # what persons do

    def names(self, data) -> tuple[str, ...]:
        return tuple(data.draw(st.lists(st.sampled_from(sorted(self.workers)), max_size=3)))

    def order(self, kind, data) -> tuple[str, ...]:
        names = self.names(data)
        if kind is StopOrdered:
            self.kept_down.update(names)
        elif kind is not ResetOrdered and not self.shutdown:
            self.kept_down.difference_update(self.with_needs(names))
        elif kind is ResetOrdered and not self.shutdown:
            for name in names:
                self.automatic[name].clear()
        self.ask(lambda number: kind(names, number), names)
        return names

    def with_needs(self, names) -> set[str]:
        found: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += [i for need, _ in self.workers[name].depends_on for i in self.spec.worker(need).names]
        return found

    @rule(data=st.data())
    def order_start(self, data) -> None:
        for name in self.order(StartOrdered, data):
            assert self.shutdown or self.core.view(name).state not in ("stopped", "backoff", "failed", "exited")

    @rule(data=st.data())
    def order_stop(self, data) -> None:
        for name in self.order(StopOrdered, data):
            assert self.core.view(name).state in LIVING | {"stopped"}

    @rule(data=st.data())
    def order_restart(self, data) -> None:
        self.order(RestartOrdered, data)

    @rule(data=st.data())
    def order_reset(self, data) -> None:
        self.order(ResetOrdered, data)
        assert self.orders not in self.unanswered

    @rule(rare=st.integers(0, 7), fast=st.booleans(), code=st.integers(0, 1))
    def order_shutdown(self, rare: int, fast: bool, code: int) -> None:
        if rare:
            return
        self.ask(lambda number: ShutdownOrdered("a person", code=code, fast=fast, order=number))
        if fast:
            assert all((instance, generation) in self.told for instance, generation in self.alive.items())

    # what holds at all times

    @invariant()
    def facts_agree(self) -> None:
        if not hasattr(self, "core"):
            return
        due = self.core.next_timer()
        assert due is None or math.isfinite(due)
        for view in self.core.snapshot():
            assert view.state == self.states[view.instance]
            assert (view.state in LIVING) == (view.instance in self.ordered or view.instance in self.alive)
            assert (view.next_restart_at is not None) == (view.state == "backoff")
            assert bool(view.waiting_for) == (view.state == "waiting")
            if view.state in ("stopping", "backoff", "degraded"):
                assert due is not None, "nothing would ever happen to it"
        if self.ends:
            assert due is None
        else:
            assert not (self.shutdown and not self.ordered and not self.alive), "all is down, and no end"

    def anything_there(self) -> bool:
        return bool(self.ordered or self.alive)

    def make_all(self) -> None:
        for instance in sorted(self.ordered):
            self.alive[instance] = self.ordered.pop(instance)
            self.tell(Spawned(instance, self.alive[instance], 1))

    def teardown(self) -> None:
        if hasattr(self, "core"):
            target(float(sum(self.restarts.values())), label="automatic restarts")
        super().teardown()


TestLives = Lives.TestCase
TestLives.settings = LIVES

"""Random apps with groups, rollouts, scaling and changing configurations: what must hold whatever comes.

The lives of single instances have a machine of their own, with closer checks: test_supervisor_lives.py.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from hosts import LIVES, Host
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.core import plan
from smartipc.supervisor.core.core import Core
from smartipc.supervisor.core.facts import (
    ApplyOrdered,
    AppStart,
    BecameReady,
    Exited,
    Measured,
    ReloadOrdered,
    ResetOrdered,
    RestartOrdered,
    ScaleOrdered,
    ShutdownOrdered,
    Spawned,
    SpawnFailed,
    Started,
    StartOrdered,
    StopOrdered,
)
from smartipc.supervisor.core.orders import Abort, Announce, Forget, Kill, Spawn, Stop
from smartipc.supervisor.core.spec import (
    AppSpec,
    GroupSpec,
    RecycleSpec,
    RestartSpec,
    StopSpec,
    SupervisorSpec,
    WorkerSpec,
)
from smartipc.supervisor.core.states import LIVING, TRANSITIONS

NAMES = ("a", "b", "c", "d")
ENDS = (ExitFacts(code=0), ExitFacts(code=1, reason="ValueError: no"), ExitFacts(signal="SIGKILL"))
SUPERVISOR = SupervisorSpec(shutdown_timeout=5.0)
COUNT = re.compile(r"(?:restart )?(\d+) of (\d+) in [\d.]+ s")

strategies = st.sampled_from(("one-for-one", "one-for-all", "rest-for-one"))
afters = st.sampled_from(("ignore", "ignore", "stop-group", "shutdown"))


@st.composite
def groups_of(draw: st.DrawFn, names: tuple[str, ...]) -> tuple[GroupSpec, ...]:
    """Nothing, one group, or one inside another; members in an order that dependencies allow."""
    if not names or draw(st.integers(0, 4)) == 0:
        return ()

    def group(name: str, members: tuple[str, ...]) -> GroupSpec:
        return GroupSpec(
            name,
            members,
            draw(strategies),
            max_restarts=draw(st.integers(0, 3)),
            window=draw(st.sampled_from((2.0, 20.0))),
            on_failed=draw(st.sampled_from(("ignore", "ignore", "shutdown"))),
            auto_shutdown=draw(st.sampled_from(("never", "any-significant", "all-significant"))),
        )

    low = draw(st.integers(0, len(names) - 1))
    high = draw(st.integers(low + 1, len(names)))
    inner = group("inner", names[low:high])
    if draw(st.booleans()):
        return (inner,)
    return (group("outer", (*names[:low], "inner", *names[high:])), inner)


@st.composite
def apps(draw: st.DrawFn) -> AppSpec:
    names = tuple(sorted(draw(st.sets(st.sampled_from(NAMES), min_size=1))))
    workers = []
    for number, name in enumerate(names):
        needs = draw(st.lists(st.sampled_from(names[:number]), unique=True)) if number else []
        conditions = st.sampled_from(("started", "ready", "completed"))
        workers.append(
            WorkerSpec(
                name,
                args=draw(st.sampled_from(((), (1,)))),
                instances=draw(st.integers(1, 3)),
                depends_on=tuple((need, draw(conditions)) for need in needs),
                says_ready=draw(st.booleans()),
                start_timeout=draw(st.sampled_from((1.0, 30.0))),
                restart=RestartSpec(
                    policy=draw(st.sampled_from(("on-failure", "on-failure", "always", "never"))),
                    delay=draw(st.sampled_from((0.0, 0.5))),
                    max_restarts=draw(st.integers(0, 4)),
                    window=draw(st.sampled_from((2.0, 20.0))),
                ),
                on_failed=draw(afters),
                significant=draw(st.booleans()),
                recycle=draw(st.sampled_from((None, None, RecycleSpec(age=5.0, requests=10)))),
                spares=draw(st.integers(0, 1)),
                stop=StopSpec(timeout=draw(st.sampled_from((0.5, 10.0)))),
            )
        )
    groups = draw(groups_of(names))
    return AppSpec("app", tuple(draw(st.permutations(workers))), SUPERVISOR, groups=groups)


class Crowd(Host):
    """What hosts and persons may do, in any order."""

    @initialize(spec=apps())
    def begin(self, spec: AppSpec) -> None:
        self.surround(Core(spec, jitter=lambda: 0.5))
        self.there: dict[tuple[str, int], bool] = {}  # life -> whether its process exists
        self.latest: dict[str, int] = {}
        self.replacing: set[str] = set()
        self.granted: set[str] = set()  # restarts that an earlier configuration has allowed already
        self.tell(AppStart())

    # what the core wants

    def take(self, order) -> None:
        match order:
            case Spawn(instance, generation):
                self.spawned(instance, generation)
            case Stop(instance, generation, grace):
                assert (instance, generation) in self.there
                assert grace >= 0
                self.told.add((instance, generation))
                if order.cause == "the app stops":
                    self.check_stop_order(instance, generation)
            case Kill(instance, generation) | Abort(instance, generation):
                self.told.add((instance, generation))
            case Forget(instance):
                assert not self.lives_of(instance)
                assert self.latest.pop(instance, 0) >= 0

    def spawned(self, instance: str, generation: int) -> None:
        assert not self.shutdown, "spawned after the shutdown"
        assert generation > self.latest.get(instance, 0), "a generation was used twice"
        self.latest[instance] = generation
        others = self.lives_of(instance)
        assert len(others) <= 1, "three lives of one slot"
        assert instance in self.replacing or all(life in self.told for life in others), "two lives outside of a rollout"
        self.replacing.discard(instance)
        self.there[instance, generation] = False

    def lives_of(self, instance: str) -> list[tuple[str, int]]:
        return [life for life in self.there if life[0] == instance]

    def check(self, announce: Announce) -> None:
        assert announce.cause or announce.to_state == "starting"
        if announce.event != "instance.state":
            return
        assert announce.to_state in TRANSITIONS[announce.from_state].values()
        if "replaces generation" in announce.cause:
            self.replacing.add(announce.instance)
        if announce.to_state == "starting" and announce.instance not in self.granted:
            for count, most in COUNT.findall(announce.cause):
                assert int(count) <= int(most), "a budget was exceeded"
        if announce.to_state == "starting":
            self.granted.discard(announce.instance)

    def check_stop_order(self, instance: str, generation: int) -> None:
        worker = instance.partition(":")[0]
        later = self.core._lives.ordering.dependents(worker)
        if self.core.view(instance).generation != generation:
            return  # it serves nobody
        for name, of in self.there:
            if name.partition(":")[0] in later and self.core.view(name).generation == of:
                raise AssertionError(f"{instance} was told to stop while {name} is there")

    # what a host does

    @precondition(lambda self: not all(self.there.values()))
    @rule(data=st.data(), fails=st.integers(0, 5))
    def spawn(self, data, fails: int) -> None:
        life = data.draw(st.sampled_from(sorted(life for life, exists in self.there.items() if not exists)))
        if fails:
            self.there[life] = True
            self.tell(Spawned(*life, 1000))
        else:
            del self.there[life]
            self.told.discard(life)
            self.tell(SpawnFailed(*life, "no such file"))

    @precondition(lambda self: any(self.there.values()))
    @rule(data=st.data(), ready=st.booleans())
    def come_up(self, data, ready: bool) -> None:
        life = data.draw(st.sampled_from(sorted(life for life, exists in self.there.items() if exists)))
        self.tell(Started(*life), *([BecameReady(*life)] if ready else []))

    @rule()
    def all_come_up(self) -> None:
        for life in sorted(self.there):
            if life in self.there:
                self.there[life] = True
                self.tell(Spawned(*life, 1000), Started(*life), BecameReady(*life))

    @precondition(lambda self: any(self.there.values()))
    @rule(data=st.data(), exit_=st.sampled_from(ENDS))
    def die(self, data, exit_: ExitFacts) -> None:
        self.end(data.draw(st.sampled_from(sorted(life for life, exists in self.there.items() if exists))), exit_)

    @precondition(lambda self: self.told)
    @rule(exit_=st.sampled_from(ENDS))
    def obey(self, exit_: ExitFacts) -> None:
        for life in sorted(self.told):
            if life in self.there:
                self.there[life] = True
                self.end(life, exit_)

    def end(self, life: tuple[str, int], exit_: ExitFacts) -> None:
        del self.there[life]
        self.told.discard(life)
        self.tell(Exited(*life, exit_, self.now - 60 if life[1] % 2 else None))

    @precondition(lambda self: self.there)
    @rule(data=st.data(), requests=st.integers(0, 20))
    def measured(self, data, requests: int) -> None:
        self.tell(Measured(*data.draw(st.sampled_from(sorted(self.there))), requests=requests))

    @rule(seconds=st.sampled_from((0.01, 0.3, 1.0, 3.0, 12.0, 70.0)))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        self.run_timers(until)
        self.now = until

    # what persons do

    @rule(data=st.data(), kind=st.sampled_from((StartOrdered, StopOrdered, RestartOrdered, ResetOrdered)))
    def order(self, data, kind) -> None:
        self.give(kind, self.names(data))

    @rule(data=st.data())
    def reload(self, data) -> None:
        self.give(ReloadOrdered, self.names(data))

    @precondition(lambda self: self.core.snapshot())
    @rule()
    def reload_all(self) -> None:
        self.give(ReloadOrdered, tuple(view.instance for view in self.core.snapshot()))

    def names(self, data) -> tuple[str, ...]:
        known = [f"{name}:{slot}" for name in NAMES for slot in range(3)]
        return tuple(data.draw(st.lists(st.sampled_from(known), max_size=3)))

    def give(self, kind, names: tuple[str, ...]) -> None:
        self.ask(lambda number: kind(names, number), names)

    @rule(data=st.data(), count=st.integers(1, 3))
    def scale(self, data, count: int) -> None:
        worker = data.draw(st.sampled_from([worker.name for worker in self.core.spec.workers]))
        self.ask(lambda number: ScaleOrdered(((worker, count),), number))
        if not self.shutdown:
            assert len([v for v in self.core._lives.of(worker) if not v.removing]) == count

    @rule(spec=apps())
    def apply(self, spec: AppSpec) -> None:
        assert not plan.diff(self.core.spec, spec).refused
        self.granted |= {view.instance for view in self.core.snapshot() if view.state in ("backoff", "waiting")}
        self.ask(lambda number: ApplyOrdered(spec, number))
        assert self.shutdown or self.core.spec == spec

    @precondition(lambda self: len(self.core.spec.workers) > 1)
    @rule(data=st.data())
    def change_one(self, data) -> None:
        spec = self.core.spec
        name = data.draw(st.sampled_from([worker.name for worker in spec.workers]))
        before = {view.instance: view.generation for view in self.core.snapshot() if view.worker != name}
        workers = tuple(replace(one, cwd=f"{one.cwd}x") if one.name == name else one for one in spec.workers)
        self.ask(lambda number: ApplyOrdered(replace(spec, workers=workers), number))
        for instance, generation in before.items():
            assert self.core.view(instance).generation == generation, "a change of one touched another"

    @rule(rare=st.integers(0, 15), fast=st.booleans())
    def end_it(self, rare: int, fast: bool) -> None:
        if not rare:
            self.ask(lambda number: ShutdownOrdered("a person", fast=fast, order=number))

    # what holds at all times

    @invariant()
    def facts_agree(self) -> None:
        if not hasattr(self, "core"):
            return
        due = self.core.next_timer()
        assert due is None or math.isfinite(due)
        everyone = self.core._lives.everyone()
        assert {(s.instance, s.generation) for s in everyone if s.state in LIVING} == set(self.there)
        views = {view.instance: view for view in self.core.snapshot()}
        for view in views.values():
            assert (view.next_restart_at is not None) == (view.state == "backoff")
            assert bool(view.waiting_for) == (view.state == "waiting")
        for worker in self.core.spec.workers:
            assert set(worker.names) <= set(views)
        if self.ends:
            assert due is None
        else:
            assert not (self.shutdown and not self.there), "all is down, and no end"

    def anything_there(self) -> bool:
        return bool(self.there)

    def make_all(self) -> None:
        for life in [life for life, exists in self.there.items() if not exists]:
            self.there[life] = True
            self.tell(Spawned(*life, 1))


TestCrowd = Crowd.TestCase
TestCrowd.settings = LIVES

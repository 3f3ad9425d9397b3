"""The supervisor core: what to do, given what happened. Pure: facts and `now` in, orders out.

`handle` takes a fact, `handle_timer` the passing of time, `next_timer` says when to come back. Nothing here spawns,
signals, sleeps or draws random numbers. The rules are in docs/explanation/supervision.md; where it is silent, OTP's:

- at most one living generation of a slot; a Spawn is ordered only after the end of the last life was reported;
- after a shutdown was ordered nothing is spawned any more;
- planned ends (orders of persons, the shutdown) never count against the budget;
- every order of a person is answered exactly once.

Single lives are in lifecycle.py; here are orders of persons, the app as a whole, and the one way in and out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, assert_never

from smartipc.ipc.control import ExitFacts, State
from smartipc.supervisor.core import plan
from smartipc.supervisor.core.answers import Aim
from smartipc.supervisor.core.ends import Ends
from smartipc.supervisor.core.facts import (
    ApplyOrdered,
    AppStart,
    Beat,
    BecameReady,
    Due,
    Exited,
    Extended,
    Fact,
    Measured,
    Probed,
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
    Unwell,
)
from smartipc.supervisor.core.lifecycle import Lives
from smartipc.supervisor.core.orders import Announce, Answer, EndApp, Order
from smartipc.supervisor.core.rollout import Rollouts
from smartipc.supervisor.core.schedule import Schedule
from smartipc.supervisor.core.slot import InstanceView, Slot
from smartipc.supervisor.core.spec import AppSpec
from smartipc.supervisor.core.states import LIVING
from smartipc.supervisor.core.wellbeing import Wellbeing

_Ordered: TypeAlias = StartOrdered | RestartOrdered | StopOrdered | ResetOrdered
_UP: Aim = "up"
_GONE: Aim = "gone"
_REPLACED: Aim = "replaced"
_AT_REST: frozenset[State] = frozenset({"ready", "exited", "failed", "stopped", "scheduled"})


class Core:
    """Decide for one app.

    Args:
        spec: the app.
        jitter: returns a number in [0, 1); drawn once per failure, and per life that is to be recycled.

    Raises:
        ValueError: the dependencies of the spec go round in a circle.
    """

    def __init__(self, spec: AppSpec, *, jitter: Callable[[], float]) -> None:
        self.spec = spec
        self.app_state: Literal["starting", "running", "stopping"] = "starting"
        self.config_generation = 1
        self._lives = Lives(spec, jitter)
        self._wellbeing = Wellbeing(self._lives)
        self._schedule = Schedule(self._lives)
        self._ends = Ends(self._lives)
        self._rollouts = Rollouts(self._lives)
        self._slots = self._lives.slots
        self._answers = self._lives.answers
        self._shutdown_orders: list[int] = []
        self._begun = False
        self._ended = False
        self._exit_code = 0
        self._kill_all_at: float | None = None
        self._due: float | None = None

    def __repr__(self) -> str:
        return f"<Core of {self.spec.app}: {self.app_state}, {len(self._slots)} slots>"

    def snapshot(self) -> tuple[InstanceView, ...]:
        """Return the view of every slot, in the order of the configuration."""
        return tuple(slot.view() for slot in self._slots.values())

    def view(self, instance: str) -> InstanceView:
        """Return the view of one slot.

        Raises:
            KeyError: there is none of that name.
        """
        return self._slots[instance].view()

    # facts and time

    def handle(self, fact: Fact, now: float) -> list[Order]:
        """Take a fact and return what must be done, in this order."""
        match fact:
            case Beat():
                # The most frequent fact by far. It only postpones, so the known timer stays a lower bound.
                self._lives.on_beat(fact, now)
                return []
            case Measured():
                if not self._rollouts.measured(fact):
                    return []
            case AppStart():
                self._on_app_start(now)
            case Spawned():
                self._lives.on_spawned(fact, now)
            case Started() | BecameReady():
                self._lives.on_progress(fact, now)
            case SpawnFailed():
                self._ends.on_end(fact.instance, fact.generation, ExitFacts(reason=fact.reason), now)
            case Due():
                if self.app_state != "stopping":
                    self._schedule.on_due(fact, now)
            case Probed() | Unwell() | Extended():
                self._wellbeing.take(fact, now)
            case Exited():
                self._ends.on_end(fact.instance, fact.generation, fact.exit, now, ended_at=fact.at)
            case StartOrdered() | RestartOrdered() | StopOrdered() | ResetOrdered():
                self._on_ordered(fact, now)
            case ReloadOrdered():
                self._on_reload(fact)
            case ScaleOrdered():
                self._on_scale(fact, now)
            case ApplyOrdered():
                self._on_apply(fact, now)
            case ShutdownOrdered():
                self._on_shutdown(fact, now)
            case _:
                assert_never(fact)
        return self._settle(now)

    def next_timer(self) -> float | None:
        """Return when handle_timer is due at the earliest, in monotonic seconds; None for never.

        A lower bound: after heartbeats it may find nothing to do, and then knows better.
        """
        return self._due

    def handle_timer(self, now: float) -> list[Order]:
        """Let time pass."""
        if self._kill_all_at is not None and now >= self._kill_all_at:
            self._kill_all_at = None
            self._lives.kill_all(now, "the time for the shutdown is over")
        self._lives.on_time(now)
        return self._settle(now)

    def _on_app_start(self, now: float) -> None:
        if self._begun or self.app_state == "stopping":
            return
        self._begun = True
        for name in self._lives.ordering.order:
            for slot in self._lives.of(name):
                if slot.state == "stopped" and not self._schedule.on_app_start(slot, now):
                    self._lives.try_start(slot, now, "the app starts")

    # orders of persons

    def _on_ordered(self, fact: _Ordered, now: float) -> None:
        refused = self.app_state == "stopping" and not isinstance(fact, StopOrdered)
        names = dict.fromkeys(fact.instances)
        for name in names:
            if not refused:
                self._overtake(fact, name)
        self._answers.open(fact.order, dict.fromkeys(names, "down" if isinstance(fact, StopOrdered) else "up"))
        for name in names:
            slot = self._slots.get(name)
            if slot is None:
                self._answers.say(fact.order, name, "there is no such instance")
            elif refused:
                self._answers.say(fact.order, name, "the app is stopping")
            elif slot.removing and not isinstance(fact, StopOrdered):
                self._answers.say(fact.order, name, "it is being removed")
            elif self._obey(fact, slot, now):
                self._answers.say(fact.order, name, "")

    def _overtake(self, fact: _Ordered, instance: str) -> None:
        """Answer the orders that this one makes void."""
        match fact:
            case StartOrdered():
                self._answers.settle(instance, "down", "overtaken by a start")
            case RestartOrdered():
                self._answers.settle(instance, "down", "overtaken by a restart")
                self._answers.settle(instance, "replaced", "overtaken by a restart")
            case StopOrdered():
                self._answers.settle(instance, "up", "overtaken by a stop")
                self._answers.settle(instance, "replaced", "overtaken by a stop")
            case ResetOrdered():
                pass
            case _:
                assert_never(fact)

    def _obey(self, fact: _Ordered, slot: Slot, now: float) -> bool:
        """Set out to do what was ordered; return whether that is all."""
        match fact:
            case StartOrdered():
                self._order_up(slot, now)
                return self._lives.is_up(slot)
            case RestartOrdered():
                if slot.state in LIVING:
                    self._lives.go_down(slot, now, "ordered restart", then="restart")
                self._order_up(slot, now)
                return False
            case StopOrdered():
                self._lives.go_down(slot, now, "ordered stop")
                return slot.state == "stopped" and self._lives.alone(slot.instance)
            case ResetOrdered():
                slot.budget.clear()
                self._lives.groups.clear_around(slot.spec.name)
                slot.attempt = 0
                return True
            case _:
                assert_never(fact)

    def _bring_up(self, slot: Slot, now: float, cause: str) -> None:
        """Start it as soon as its dependencies allow; it is not for us to start those."""
        if slot.state == "stopping":
            slot.then, slot.awaits = "restart", ""
        elif slot.going_down:
            slot.going_down = slot.going_down if slot.then == "restart" else ""
            slot.awaits = ""
        elif slot.state not in LIVING:
            slot.automatic = False
            if slot.state != "waiting":
                self._lives.try_start(slot, now, cause)

    def _order_up(self, ordered: Slot, now: float) -> None:
        """Start it, and what it waits for, and what that waits for."""
        todo, seen = [ordered], {ordered.instance}
        while todo:
            slot = todo.pop()
            self._bring_up(slot, now, "ordered start")
            if slot.state in LIVING and slot.state != "stopping" and not slot.going_down:
                continue
            needs = self._lives.ordering.blocking(slot.spec, self._lives.states())
            leader = self._slots.get(slot.awaits)
            if leader is not None and leader.state == "backoff":
                needs = (*needs, leader.instance)
            for name in needs:
                if name not in seen:
                    seen.add(name)
                    self._answers.settle(name, "down", f"overtaken by a start of {ordered.instance}")
                    todo.append(self._slots[name])

    def _on_reload(self, fact: ReloadOrdered) -> None:
        names = tuple(dict.fromkeys(fact.instances))
        self._answers.open(fact.order, dict.fromkeys(names, "replaced"))
        for name in names:
            slot = self._slots.get(name)
            if slot is None:
                self._answers.say(fact.order, name, "there is no such instance")
            elif self.app_state == "stopping" or slot.removing:
                self._answers.say(fact.order, name, "it is being stopped")
        if self.app_state != "stopping":
            self._rollouts.begin(fact.order, "reload", names)

    # another configuration

    def _on_scale(self, fact: ScaleOrdered, now: float) -> None:
        self._adopt(plan.scaled(self.spec, fact.counts), fact.order, now, "scaled")

    def _on_apply(self, fact: ApplyOrdered, now: float) -> None:
        changes = plan.diff(self.spec, fact.spec)
        assert not changes.refused, "whoever orders it has looked"
        if self.app_state != "stopping":
            self._announce_applied(fact.spec, changes)
        self._adopt(fact.spec, fact.order, now, "the configuration has changed", changes.restarted)

    def _adopt(self, spec: AppSpec, order: int, now: float, cause: str, changed: tuple[str, ...] = ()) -> None:
        """Go over to another spec: start what is new, stop what is gone, replace what has changed, leave the rest."""
        there = {slot.instance for slot in self._slots.values() if not slot.removing}
        wanted = [name for worker in spec.workers for name in worker.names]
        added = [name for name in wanted if name not in there]
        gone = sorted(there.difference(wanted))
        replaced = [name for worker in changed for name in spec.worker(worker).names if name in there]
        aims: dict[str, Aim] = {}
        for names, aim in ((replaced, _REPLACED), (added, _UP), (gone, _GONE)):
            aims.update(dict.fromkeys(names, aim))
        self._answers.open(order, aims)
        if self.app_state == "stopping":
            for name in aims:
                self._answers.say(order, name, "the app is stopping")
            return
        self._announce_scaling(spec)
        self.spec = spec
        self._lives.respec(spec)
        for name in gone:
            slot = self._slots[name]
            slot.removing = True
            for aim in (_UP, _REPLACED):
                self._answers.settle(name, aim, "it is removed")
            self._lives.go_down(slot, now, cause)
        for name in added:
            self._answers.settle(name, "gone", "it is wanted again")
            self._answers.settle(name, "down", "it is wanted again")
            slot = self._slots[name]
            slot.removing = False
            if self._begun and slot.state == "stopped" and self._schedule.on_app_start(slot, now):
                self._answers.settle(name, "up", "")
            elif self._begun:
                self._bring_up(slot, now, cause)
        if replaced:
            self._rollouts.begin(order, cause, replaced)

    def _announce_applied(self, spec: AppSpec, changes: plan.Plan) -> None:
        steps = [f"{step.kind} {step.name} {step.what}".rstrip() for step in changes.steps]
        self.config_generation += 1
        details = (("config_generation", self.config_generation), ("plan", steps))
        cause = spec.config_path or "another spec"
        self._lives.orders.append(Announce("config.applied", "", 0, None, None, None, cause, details=details))

    def _announce_scaling(self, spec: AppSpec) -> None:
        before = {worker.name: worker.instances for worker in self.spec.workers}
        for worker in spec.workers:
            was = before.get(worker.name, worker.instances)
            if was != worker.instances:
                cause = f"{worker.name}: {was} -> {worker.instances} instances"
                details = (("worker", worker.name), ("from", was), ("to", worker.instances))
                self._lives.orders.append(Announce("worker.scaled", "", 0, None, None, None, cause, details=details))

    # the app as a whole

    def _on_shutdown(self, fact: ShutdownOrdered, now: float) -> None:
        if self._ended:
            if fact.order:
                self._lives.orders.append(Answer(fact.order, ()))
            return
        if fact.order:
            self._shutdown_orders.append(fact.order)
        self._begin_shutdown(fact.cause, fact.code, now)
        if fact.fast:
            self._lives.kill_all(now, "the app stops at once")

    def _begin_shutdown(self, cause: str, code: int, now: float) -> None:
        if self.app_state == "stopping":
            return
        self.app_state = "stopping"
        self._exit_code = code
        self._kill_all_at = now + self.spec.supervisor.shutdown_timeout
        self._rollouts.abandon()
        self._lives.orders.append(Announce("app.stopping", "", 0, None, None, None, cause))
        for slot in self._slots.values():
            for aim in (_UP, _REPLACED):
                self._answers.settle(slot.instance, aim, "the app is stopping")
            if slot.state in LIVING or slot.state in ("waiting", "backoff", "scheduled"):
                self._lives.go_down(slot, now, "the app stops")

    def _notice_end(self) -> None:
        if self._ended or self._lives.any_living:
            return
        self._ended = True
        self._kill_all_at = None
        self._lives.orders += [Answer(order, ()) for order in self._shutdown_orders]
        self._lives.orders.append(EndApp(self._exit_code))

    # after every step

    def _settle(self, now: float) -> list[Order]:
        """Let the consequences of a step unfold, and hand out the orders."""
        if self._ends.fatal is not None:
            self._begin_shutdown(f"{self._ends.fatal} failed", 1, now)
        if self.app_state != "stopping":
            self._rollouts.advance(now)
            self._lives.release_waiting(now)
            self._schedule.settle(now)
            self._notice_stuck()
            self._notice_idle(now)
        self._lives.tell_those_going_down(now, self._kill_all_at)
        self._lives.drop_removed()
        self._lives.orders += self._answers.collect()
        if self.app_state == "stopping":
            self._notice_end()
        due = [at for slot in self._lives.everyone() for at in slot.timers()]
        if self._kill_all_at is not None:
            due.append(self._kill_all_at)
        self._due = min(due, default=None)
        orders, self._lives.orders = self._lives.orders, []
        return orders

    def _notice_stuck(self) -> None:
        """Answer starts that wait in vain, and say once that the app has started."""
        starting = self.app_state == "starting" and self._begun
        if not starting and not self._answers.waits("up"):
            return
        stuck = self._lives.ordering.stuck(self._lives.states())
        for name, reason in stuck.items():
            for instance in self.spec.worker(name).names:
                if self._slots[instance].state == "waiting":
                    self._answers.settle(instance, "up", f"it waits, but {reason}")
        if starting and all(self._is_settled(slot, stuck) for slot in self._slots.values()):
            self.app_state = "running"
            self._lives.orders.append(Announce("app.started", "", 0, None, None, None, "every worker is settled"))

    @staticmethod
    def _is_settled(slot: Slot, stuck: dict[str, str]) -> bool:
        if slot.state == "waiting":
            return slot.spec.name in stuck
        return slot.state in _AT_REST or (slot.state == "running" and not slot.spec.says_ready)

    def _notice_idle(self, now: float) -> None:
        if self.spec.supervisor.on_idle != "exit" or not self._begun:
            return
        states = {
            slot.retired if slot.retired and slot.state == "stopped" else slot.state for slot in self._slots.values()
        }
        if states <= {"exited"}:
            self._begin_shutdown("every worker has completed", 0, now)
        elif states <= {"exited", "failed", "waiting"}:
            self._begin_shutdown("nothing is left to run, and not all has completed", 1, now)

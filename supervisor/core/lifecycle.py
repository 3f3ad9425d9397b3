"""The lives of all slots: spawning, progress, failing, going down. Pure, like all of the core.

Only what happens to single lives is here. What their ends mean is in ends.py; what persons order, and what becomes of
the app as a whole, in core.py, which owns the one instance of `Lives` and is all that the outside sees.
"""

from __future__ import annotations

from collections.abc import Callable

from smartipc.ipc.control import ExitFacts, State
from smartipc.supervisor.core import exits
from smartipc.supervisor.core.answers import Answers
from smartipc.supervisor.core.budget import Budget
from smartipc.supervisor.core.facts import Beat, BecameReady, Spawned, Started
from smartipc.supervisor.core.ordering import Ordering
from smartipc.supervisor.core.orders import Abort, Announce, Forget, Kill, Order, Spawn, Stop
from smartipc.supervisor.core.slot import Slot, Then
from smartipc.supervisor.core.spec import AppSpec, WorkerSpec
from smartipc.supervisor.core.states import LIVING, Step, follow
from smartipc.supervisor.core.strategy import Groups

ABORT_GRACE = 1.0
"""Seconds between SIGABRT, which writes the stacks, and SIGKILL."""
PATIENCE = 5.0
"""Seconds that a person who starts it waits for one that runs, and may never say that it is ready, to say so."""
KILL_AGAIN = 1.0
"""Seconds after which a SIGKILL that showed no effect is repeated."""


class Lives:
    """The slots of one app, and the orders that their lives give rise to.

    Args:
        spec: the app.

    Raises:
        ValueError: the dependencies of the spec go round in a circle.
    """

    def __init__(self, spec: AppSpec, jitter: Callable[[], float]) -> None:
        self.slots = {slot.instance: slot for worker in spec.workers for slot in _slots(worker)}
        self.ordering = Ordering(spec)
        self.groups = Groups(spec)
        self.answers = Answers()
        self.orders: list[Order] = []
        """What is to be done, in sequence, until core.py hands it out."""
        self.leaving: list[Slot] = []
        """Lives whose place another one has taken; they are stopping."""
        self.jitter = jitter

    def __repr__(self) -> str:
        return f"<Lives {', '.join(f'{slot.instance} {slot.state}' for slot in self.slots.values())}>"

    @property
    def any_living(self) -> bool:
        """Whether any process is, or may be, there."""
        return any(slot.state in LIVING for slot in self.everyone())

    def everyone(self) -> tuple[Slot, ...]:
        """Return all that may live: the current lives, those that are to replace them, and those that were replaced."""
        successors = [slot.successor for slot in self.slots.values() if slot.successor is not None]
        return (*self.slots.values(), *successors, *self.leaving)

    def states(self) -> dict[str, State]:
        """Return the states as dependents see them: what is about to go down satisfies nobody any more."""
        return {name: "stopping" if slot.going_down else slot.state for name, slot in self.slots.items()}

    def on_time(self, now: float) -> None:
        """Do what is due."""
        for slot in self.everyone():
            if slot.kill_at is not None and now >= slot.kill_at:
                self._kill(slot, now)
            if slot.start_by is not None and now >= slot.start_by:
                self._on_start_timeout(slot, now)
            if slot.state == "running" and slot.quiet_at is not None and now >= slot.quiet_at:
                self._on_quiet(slot)
            hang_at = slot.hang_at()
            if hang_at is not None and now >= hang_at:
                self._on_silence(slot, now, late=now - hang_at)
            if slot.next_restart_at is not None and now >= slot.next_restart_at:
                self.try_start(slot, now, "")

    def try_start(self, slot: Slot, now: float, cause: str) -> None:
        """Spawn, or wait for dependencies."""
        slot.next_restart_at = None
        mates = tuple(dict.fromkeys(mate.spec.name for mate in self._mates(slot.instance) if mate is not slot))
        if mates:
            slot.awaits = slot.instance
            self.wait_for_mates(slot, now, mates, f"restarts together with {', '.join(mates)}")
            return
        unmet = self.ordering.unmet(slot.spec, self.states())
        slot.waiting_for = tuple(dict.fromkeys(name for name, _ in unmet))
        if unmet:
            self.move(slot, "wait", now, f"waits for {_listed(unmet)}")
        else:
            self._spawn(slot, now, cause)

    def wait_for_mates(self, slot: Slot, now: float, workers: tuple[str, ...], cause: str) -> None:
        """Wait for the others of a group: they start together, in their order, once all of them are down."""
        slot.waiting_for = workers
        self.move(slot, "wait", now, cause)

    def _spawn(self, slot: Slot, now: float, cause: str) -> None:
        if slot.automatic:
            restart = slot.spec.restart
            slot.restarts += 1
            count = f"restart {slot.budget.record(now)} of {restart.max_restarts} in {restart.window:g} s"
            if slot.group:
                count += f", {self.groups.record(slot.group, now)}"
            cause = f"{cause}; {count}" if cause else count
        elif slot.then == "group":
            slot.restarts += 1
        self._begin(slot, now, cause)

    def _begin(self, slot: Slot, now: float, cause: str) -> None:
        warm = slot.automatic and slot.spec.spares > 0
        slot.begin_life(now)
        if slot.spec.recycle is not None:
            slot.share = 1 + slot.spec.recycle.jitter * (2 * self.jitter() - 1)
        self.move(slot, "spawn", now, cause)
        self.orders.append(Spawn(slot.instance, slot.generation, warm))

    # side by side

    def replace(self, slot: Slot, now: float, cause: str) -> None:
        """Start a life that is to take the place of one that serves."""
        self._begin(slot.follower(), now, f"{cause}: replaces generation {slot.generation}")

    def promote(self, slot: Slot, now: float, cause: str) -> None:
        """Let the replacement take over; the old life is told to stop, and drains."""
        successor = slot.hand_over()
        self.slots[slot.instance] = successor
        self.leaving.append(slot)
        slot.going_down = ""
        self._tell(slot, now, f"{cause}: replaced by generation {successor.generation}", None)
        self.answers.settle(slot.instance, "up", "")

    def take_over(self, slot: Slot) -> Slot:
        """Let the replacement take over from a life that has just ended, however far it is."""
        successor = self.slots[slot.instance] = slot.hand_over()
        return successor

    def alone(self, instance: str) -> bool:
        """Tell whether no other life of the slot is there than its current one."""
        slot = self.slots.get(instance)
        return (slot is None or slot.successor is None) and not any(one.instance == instance for one in self.leaving)

    def is_up(self, slot: Slot) -> bool:
        """Tell whether a start has nothing to wait for."""
        if slot.going_down:
            return False
        quiet = slot.state == "running" and not slot.spec.says_ready and slot.quiet_at is None
        return slot.state == "ready" or (quiet and not slot.failing)

    @staticmethod
    def last_words(slot: Slot) -> str:
        """Return how the last life of the slot ended."""
        return exits.describe(slot.last_exit) if slot.last_exit is not None else "how is not known"

    # another spec

    def respec(self, spec: AppSpec) -> None:
        """Take over a changed spec: slots for all of its instances, in its order. Who is not in it is left to go."""
        groups = Groups(spec)
        groups.adopt(self.groups)
        self.groups, self.ordering = groups, Ordering(spec, self.ordering)
        old = dict(self.slots)
        self.slots.clear()
        for worker in spec.workers:
            for slot in _slots(worker):
                slot = old.pop(slot.instance, slot)  # noqa: PLW2901 - the one that is there already
                for one in (slot, slot.successor):
                    if one is not None:
                        one.spec = worker
                if slot.group not in {group.name for group in spec.groups}:
                    slot.group = ""
                slot.budget.limit(worker.restart.max_restarts, worker.restart.window)
                self.slots[slot.instance] = slot
            for one in self.leaving:
                if one.spec.name == worker.name:
                    one.spec = worker
        self.slots.update(old)

    def drop_removed(self) -> None:
        """Let those vanish that are not wanted any more and are down."""
        for slot in [one for one in self.slots.values() if one.removing]:
            if slot.state not in LIVING and self.alone(slot.instance):
                del self.slots[slot.instance]
                self.orders.append(Forget(slot.instance))
                for aim in ("gone", "down"):
                    self.answers.settle(slot.instance, aim, "")

    def release_waiting(self, now: float) -> None:
        """Spawn what has waited and need not wait any more."""
        waiting = [slot for slot in self.slots.values() if slot.state == "waiting"]
        if not waiting:
            return
        held = {leader for leader in {slot.awaits for slot in waiting} if leader and self._regrouping(leader)}
        states = self.states()
        for name in self.ordering.order if waiting else ():
            for slot in [one for one in waiting if one.spec.name == name and one.awaits not in held]:
                unmet = self.ordering.unmet(slot.spec, states)
                slot.waiting_for = tuple(dict.fromkeys(name for name, _ in unmet))
                cause = f"together with {slot.awaits}" if slot.awaits else ""
                slot.awaits = ""
                if not unmet:
                    after = f"dependency {_listed(slot.spec.depends_on)}" if slot.spec.depends_on else ""
                    self._spawn(slot, now, cause or after)

    def on_spawned(self, fact: Spawned, now: float) -> None:
        """Take note of the process, or have it killed if nobody wants it any more."""
        slot = self.current(fact.instance, fact.generation)
        if slot is None:
            self.orders.append(Kill(fact.instance, fact.generation))
            return
        slot.pid = fact.pid
        # What was ordered before there was a process may have reached nobody.
        if slot.killed:
            self._kill(slot, now)
        elif slot.state == "stopping":
            assert slot.kill_at is not None, "whatever is stopping is killed in the end"
            grace = max(0.0, min(slot.spec.stop.timeout, slot.kill_at - now))
            self.orders.append(Stop(slot.instance, slot.generation, grace, "ordered before it was spawned"))

    def on_progress(self, fact: Started | BecameReady, now: float) -> None:
        """Take note that a life has got further."""
        slot = self.current(fact.instance, fact.generation)
        if slot is None or slot.failing:
            return
        match fact:
            case Started() if slot.state == "starting":
                slot.watched = fact.watched
                if not slot.spec.says_ready:
                    slot.steady_since = now
                    slot.quiet_at = now + min(PATIENCE, slot.spec.start_timeout)
                self.move(slot, "run", now, "its code runs")
                if slot.spec.ready == "started":
                    self._make_ready(slot, now, "ready once its code runs")
            case BecameReady() if slot.state == "running":
                self._make_ready(slot, now, "says it is ready")
            case _:
                pass  # said twice, or while it is being stopped

    def _make_ready(self, slot: Slot, now: float, cause: str) -> None:
        slot.start_by = None
        slot.steady_since = slot.watch_from = now
        self.move(slot, "ready", now, cause)
        if not slot.going_down and self.slots.get(slot.instance) is slot:
            self.answers.settle(slot.instance, "up", "")

    def on_beat(self, fact: Beat, now: float) -> None:
        """Take note of a heartbeat."""
        slot = self.current(fact.instance, fact.generation)
        if slot is not None:
            slot.last_beat_at = now
            slot.doubted = False

    def _on_quiet(self, slot: Slot) -> None:
        slot.quiet_at = None
        if not slot.going_down and self.slots.get(slot.instance) is slot:
            self.answers.settle(slot.instance, "up", "")

    def _on_start_timeout(self, slot: Slot, now: float) -> None:
        slot.start_by = None
        if slot.state == "running" and not slot.spec.says_ready:
            return  # it runs, and many a target never says that it is ready
        what = "ready" if slot.state == "running" else "running"
        slot.failing = f"start timeout: not {what} within {slot.spec.start_timeout:g} s"
        self._kill(slot, now)

    def _on_silence(self, slot: Slot, now: float, *, late: float) -> None:
        heartbeat = slot.spec.heartbeat
        if late > heartbeat.interval and not slot.doubted:
            # The timer came late, so it was the supervisor that slept or was busy, and beats may lie unread: a busy
            # supervisor never kills a healthy worker. One more interval, once.
            slot.doubted = True
            slot.watch_from = now + heartbeat.interval - heartbeat.timeout
            return
        self.abort(slot, now, f"hang: no heartbeat for {heartbeat.timeout:g} s")

    def abort(self, slot: Slot, now: float, why: str) -> None:
        """End a life that hangs: with its stacks on stderr, then by force."""
        slot.failing = why
        state, generation = slot.state, slot.generation
        self.orders.append(Announce("instance.hang", slot.instance, generation, slot.pid, state, state, slot.failing))
        if state == "ready":
            self.move(slot, "hang", now, slot.failing)
        self.orders.append(Abort(slot.instance, slot.generation))
        slot.kill_at = now + ABORT_GRACE

    def _kill(self, slot: Slot, now: float) -> None:
        slot.killed = True
        slot.kill_at = now + KILL_AGAIN
        self.orders.append(Kill(slot.instance, slot.generation))

    def _mates(self, leader: str) -> list[Slot]:
        """Return the slots that restart together with a failed instance."""
        return [slot for slot in self.slots.values() if slot.awaits == leader]

    def _regrouping(self, leader: str) -> bool:
        """Tell whether those who restart together have to wait still: for the delay, or for one that goes down."""
        slot = self.slots.get(leader)
        if slot is not None and slot.state == "backoff":
            return True
        return any(mate.state in LIVING for mate in self._mates(leader))

    def of(self, worker: str) -> list[Slot]:
        """Return the slots of a worker, lowest first."""
        return [slot for slot in self.slots.values() if slot.spec.name == worker]

    def go_down(self, slot: Slot, now: float, cause: str, *, then: Then = "stop") -> None:
        """Have it stopped: at once if nothing lives, else once its dependents that also go down are down."""
        slot.then = then
        slot.automatic = False
        slot.group = slot.awaits = slot.retired = ""
        slot.next_restart_at = None
        slot.waiting_for = ()
        if slot.successor is not None and slot.successor.state != "stopping":
            self._tell(slot.successor, now, cause, None)  # it serves nobody: no dependents to wait for
        if slot.state in LIVING:
            if slot.state != "stopping":
                slot.going_down = cause
        elif slot.state != "stopped":
            self.move(slot, "stop", now, cause)

    def tell_those_going_down(self, now: float, latest: float | None) -> None:
        """Tell those to stop whose dependents, as far as they go down too, are down.

        Args:
            now: monotonic seconds.
            latest: when they are killed at the latest, whatever their grace.
        """
        wanted = [slot for slot in self.everyone() if slot.going_down]
        if not wanted:
            return
        busy = {s.spec.name for s in self.slots.values() if s.going_down or s.state == "stopping"}
        for slot in wanted:
            if busy.isdisjoint(self.ordering.dependents(slot.spec.name)):
                cause, slot.going_down = slot.going_down, ""
                self._tell(slot, now, cause, latest)

    def _tell(self, slot: Slot, now: float, cause: str, latest: float | None) -> None:
        slot.start_by = None
        grace = slot.spec.stop.timeout
        # A kill that is already on its way (a hang) is not put off by being told to stop.
        for by in (slot.kill_at, latest):
            grace = grace if by is None else max(0.0, min(grace, by - now))
        slot.kill_at = now + grace
        slot.failing = ""
        self.move(slot, "stop", now, cause)
        self.orders.append(Stop(slot.instance, slot.generation, grace, cause))

    def kill_all(self, now: float, cause: str) -> None:
        """Kill whatever lives; its end is planned."""
        for slot in self.everyone():
            if slot.state in LIVING:
                if slot.state != "stopping":
                    slot.going_down = slot.failing = ""
                    slot.start_by = None
                    self.move(slot, "stop", now, cause)
                self._kill(slot, now)

    def move(
        self,
        slot: Slot,
        step: Step,
        now: float,
        cause: str,
        exit_: ExitFacts | None = None,
        *,
        delay: float | None = None,
    ) -> None:
        """Take a step of the table and announce it."""
        before = slot.state
        slot.state, slot.since = follow(before, step), now
        self.orders.append(
            Announce(
                event="instance.state",
                instance=slot.instance,
                generation=slot.generation,
                pid=slot.pid,
                from_state=before,
                to_state=slot.state,
                cause=cause,
                exit=exit_,
                attempt=slot.attempt,
                next_restart_in=delay,
            )
        )

    def current(self, instance: str, generation: int) -> Slot | None:
        """Return the life if it is there; facts of others come too late."""
        slot = self.slots.get(instance)
        if slot is not None and slot.generation != generation:
            slot = slot.successor
        if slot is None or slot.generation != generation:
            slot = next((one for one in self.leaving if (one.instance, one.generation) == (instance, generation)), None)
        return slot if slot is not None and slot.state in LIVING else None


def _slots(worker: WorkerSpec) -> list[Slot]:
    restart = worker.restart
    return [
        Slot(worker, number, name, Budget(restart.max_restarts, restart.window))
        for number, name in enumerate(worker.names)
    ]


def _listed(conditions: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{name} {condition}" for name, condition in conditions)

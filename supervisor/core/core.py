"""The supervisor core: what to do, given what happened. Pure: facts and `now` in, orders out.

`handle` takes a fact, `handle_timer` the passing of time, `next_timer` says when to come back. Nothing here spawns,
signals, sleeps or draws random numbers. The rules are SPEC 7 and 11; OTP's where they are silent:

- at most one living generation of a slot; a Spawn is ordered only after the end of the last life was reported;
- after a shutdown was ordered nothing is spawned any more;
- planned ends (orders of persons, the shutdown) never count against the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, assert_never

from smartipc.ipc.control import ExitFacts, State
from smartipc.supervisor.core import backoff, exits, ordering
from smartipc.supervisor.core.budget import Budget
from smartipc.supervisor.core.exits import Verdict
from smartipc.supervisor.core.facts import (
    AppStart,
    Beat,
    BecameReady,
    Exited,
    Fact,
    ResetOrdered,
    RestartOrdered,
    ShutdownOrdered,
    Spawned,
    SpawnFailed,
    StartOrdered,
    Started,
    StopOrdered,
)
from smartipc.supervisor.core.orders import Abort, Announce, Answer, EndApp, Kill, Order, Spawn, Stop
from smartipc.supervisor.core.slot import InstanceView, Slot
from smartipc.supervisor.core.spec import AppSpec, WorkerSpec
from smartipc.supervisor.core.states import LIVING, TRANSITIONS

ABORT_GRACE = 1.0
"""Seconds between SIGABRT, which writes the stacks, and SIGKILL."""
KILL_AGAIN = 1.0
"""Seconds after which a SIGKILL that showed no effect is repeated."""
_SETTLED: frozenset[State] = frozenset({"ready", "exited", "failed", "stopped"})


class Core:
    """Decide for one app.

    Args:
        spec: the app.
        jitter: returns a number in [0, 1); drawn once per automatic restart.
    """

    def __init__(self, spec: AppSpec, *, jitter: Callable[[], float]) -> None:
        self.spec = spec
        self.app_state: Literal["starting", "running", "stopping"] = "starting"
        self._jitter = jitter
        self._dependents = ordering.dependents(spec)
        self._slots = {slot.instance: slot for worker in spec.workers for slot in _slots(worker)}
        self._orders: list[Order] = []
        self._open: dict[int, dict[str, str | None]] = {}
        self._shutdown_orders: list[int] = []
        self._begun = False
        self._ended = False
        self._exit_code = 0
        self._kill_all_at: float | None = None

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

    # facts

    def handle(self, fact: Fact, now: float) -> list[Order]:
        """Take a fact and return what must be done, in this order."""
        match fact:
            case Beat():
                slot = self._current(fact.instance, fact.generation)
                if slot is not None:
                    slot.last_beat_at = now
                return []
            case AppStart():
                self._begun = True
                self._start(self._slots.values(), now, "the app starts")
            case Spawned():
                self._on_spawned(fact, now)
            case SpawnFailed():
                slot = self._current(fact.instance, fact.generation)
                if slot is not None:
                    self._end_of_life(slot, ExitFacts(reason=fact.reason), now)
            case Started():
                self._on_started(fact, now)
            case BecameReady():
                slot = self._current(fact.instance, fact.generation)
                if slot is not None and slot.state == "running":
                    self._make_ready(slot, now, "says it is ready")
            case Exited():
                slot = self._current(fact.instance, fact.generation)
                if slot is not None:
                    self._end_of_life(slot, fact.exit, now)
            case StartOrdered() | RestartOrdered() | StopOrdered() | ResetOrdered():
                self._on_ordered(fact, now)
            case ShutdownOrdered():
                self._on_shutdown(fact, now)
            case _:
                assert_never(fact)
        return self._settle(now)

    def next_timer(self) -> float | None:
        """Return when handle_timer is due, in monotonic seconds; None for never."""
        due = [at for slot in self._slots.values() for at in slot.timers()]
        if self._kill_all_at is not None:
            due.append(self._kill_all_at)
        return min(due, default=None)

    def handle_timer(self, now: float) -> list[Order]:
        """Let time pass."""
        if self._kill_all_at is not None and now >= self._kill_all_at:
            self._kill_all_at = None
            self._kill_all(now)
        for slot in self._slots.values():
            if slot.kill_at is not None and now >= slot.kill_at:
                slot.kill_at = now + KILL_AGAIN
                self._orders.append(Kill(slot.instance, slot.generation))
            if slot.start_by is not None and now >= slot.start_by:
                self._on_start_timeout(slot, now)
            hang = slot.hang_at()
            if hang is not None and now >= hang:
                self._on_hang(slot, now)
            if slot.next_restart_at is not None and now >= slot.next_restart_at:
                slot.restarts += 1
                self._try_start(slot, now, f"automatic restart {slot.restarts}")
        return self._settle(now)

    # starting

    def _start(self, slots: Iterable[Slot], now: float, cause: str) -> None:
        for slot in slots:
            if slot.state not in LIVING and slot.state != "waiting":
                self._try_start(slot, now, cause)

    def _try_start(self, slot: Slot, now: float, cause: str) -> None:
        """Spawn, or wait for dependencies."""
        slot.next_restart_at = None
        unmet = ordering.unmet(slot.spec, self.spec, self._states())
        if unmet:
            slot.waiting_for = unmet
            if slot.state != "waiting":
                self._move(slot, "waiting", now, f"waits for {', '.join(unmet)}")
            return
        slot.waiting_for = ()
        slot.generation += 1
        slot.pid = None
        slot.failing = ""
        slot.steady_since = slot.last_beat_at = None
        slot.watched = False
        slot.start_by = now + slot.spec.start_timeout
        self._move(slot, "starting", now, cause)
        self._orders.append(Spawn(slot.instance, slot.generation))

    def _release_waiting(self, now: float) -> None:
        if self.app_state == "stopping":
            return
        for slot in self._slots.values():
            if slot.state == "waiting":
                self._try_start(slot, now, "its dependencies are met")

    def _on_spawned(self, fact: Spawned, now: float) -> None:
        slot = self._current(fact.instance, fact.generation)
        if slot is None:
            self._orders.append(Kill(fact.instance, fact.generation))
            return
        slot.pid = fact.pid
        if slot.state == "stopping" and slot.kill_at is not None:
            slot.kill_at = min(slot.kill_at, now + slot.spec.stop.timeout)

    def _on_started(self, fact: Started, now: float) -> None:
        slot = self._current(fact.instance, fact.generation)
        if slot is None or slot.state != "starting":
            return
        slot.watched = fact.watched
        slot.steady_since = now
        if not slot.spec.says_ready:
            slot.start_by = None
        self._move(slot, "running", now, "its code runs")
        if slot.spec.ready == "started":
            self._make_ready(slot, now, "ready once started")

    def _make_ready(self, slot: Slot, now: float, cause: str) -> None:
        slot.start_by = None
        slot.steady_since = slot.last_beat_at = now
        self._move(slot, "ready", now, cause)

    # failing

    def _on_start_timeout(self, slot: Slot, now: float) -> None:
        slot.start_by = None
        what = "ready" if slot.state == "running" else "running"
        slot.failing = f"not {what} within {slot.spec.start_timeout:g} s"
        slot.kill_at = now + KILL_AGAIN
        self._orders.append(Kill(slot.instance, slot.generation))

    def _on_hang(self, slot: Slot, now: float) -> None:
        slot.failing = f"no heartbeat for {slot.spec.heartbeat.timeout:g} s"
        self._orders.append(
            Announce("instance.hang", slot.instance, slot.generation, slot.pid, slot.state, slot.state, slot.failing)
        )
        self._move(slot, "degraded", now, slot.failing)
        self._orders.append(Abort(slot.instance, slot.generation))
        slot.kill_at = now + ABORT_GRACE

    def _end_of_life(self, slot: Slot, exit_: ExitFacts, now: float) -> None:
        planned = slot.state == "stopping"
        if slot.failing:
            exit_ = _with_reason(exit_, slot.failing)
        slot.last_exit = exit_
        slot.last_exit_generation = slot.generation
        slot.start_by = slot.kill_at = None
        slot.watched = False
        cause = f"{slot.failing}; {exits.describe(exit_)}" if slot.failing else exits.describe(exit_)
        if planned:
            self._move(slot, "stopped", now, cause, exit_)
            if slot.then == "restart" and self.app_state != "stopping":
                self._try_start(slot, now, "ordered restart")
            return
        verdict = Verdict.FAILURE if slot.failing else exits.judge(exit_, slot.spec.restart)
        if self.app_state == "stopping":
            self._move(slot, "exited" if verdict is Verdict.SUCCESS else "failed", now, cause, exit_)
        elif exits.restarts(verdict, slot.spec.restart):
            self._back_off(slot, cause, exit_, now)
        elif verdict is Verdict.SUCCESS:
            slot.attempt = 0
            self._move(slot, "exited", now, cause, exit_)
        else:
            why = "must not be restarted" if verdict is Verdict.PREVENTED else "restart policy never"
            self._give_up(slot, f"{cause}; {why}", exit_, now)

    def _back_off(self, slot: Slot, cause: str, exit_: ExitFacts, now: float) -> None:
        restart = slot.spec.restart
        if slot.steady_since is not None and now - slot.steady_since >= restart.reset_after:
            slot.attempt = 0
        if not slot.budget.spend(now):
            spent = f"{cause}; restart budget spent: {restart.max_restarts} in {restart.window:g} s"
            self._give_up(slot, spent, exit_, now)
            return
        slot.attempt += 1
        delay = backoff.delay(restart, slot.attempt, self._jitter())
        slot.next_restart_at = now + delay
        self._move(slot, "backoff", now, cause, exit_, delay=delay)

    def _give_up(self, slot: Slot, cause: str, exit_: ExitFacts, now: float) -> None:
        self._move(slot, "failed", now, cause, exit_)
        if slot.spec.on_failed == "shutdown" and self.app_state != "stopping":
            self._begin_shutdown(f"{slot.instance} failed", 1, now)

    # orders of persons

    def _on_ordered(self, fact: StartOrdered | RestartOrdered | StopOrdered | ResetOrdered, now: float) -> None:
        slots = [self._slots[name] for name in fact.instances]
        stopping = self.app_state == "stopping"
        if fact.order:
            refused = "the app is stopping" if stopping and not isinstance(fact, StopOrdered) else None
            self._open[fact.order] = {slot.instance: refused for slot in slots}
        if stopping and not isinstance(fact, StopOrdered):
            return
        for slot in slots:
            match fact:
                case StartOrdered():
                    self._overtake(slot, "overtaken by a start", {fact.order})
                    self._order_start(slot, now)
                case RestartOrdered():
                    self._overtake(slot, "overtaken by a restart", {fact.order})
                    self._order_restart(slot, now)
                case StopOrdered():
                    self._overtake(slot, "overtaken by a stop", {fact.order})
                    self._order_stop(slot, now, "ordered stop")
                case ResetOrdered():
                    slot.budget.clear()
                    slot.attempt = 0
                    self._done(slot, "", {fact.order})
                case _:
                    assert_never(fact)
            if fact.order and not isinstance(fact, ResetOrdered):
                slot.orders.add(fact.order)

    def _order_start(self, slot: Slot, now: float) -> None:
        if slot.state == "stopping":
            slot.then = "restart"
            return
        for name, _condition in slot.spec.depends_on:
            for instance in self.spec.worker(name).names:
                needed = self._slots[instance]
                if needed.state in ("stopped", "failed"):
                    self._order_start(needed, now)
        if slot.state not in LIVING and slot.state != "waiting":
            self._try_start(slot, now, "ordered start")

    def _order_restart(self, slot: Slot, now: float) -> None:
        if slot.state in LIVING:
            self._order_stop(slot, now, "ordered restart")
            slot.then = "restart"
        else:
            self._order_start(slot, now)

    def _order_stop(self, slot: Slot, now: float, cause: str) -> None:
        slot.then = "stop"
        slot.next_restart_at = None
        slot.waiting_for = ()
        if slot.state == "stopping" or slot.state == "stopped":
            return
        if slot.state not in LIVING:
            self._move(slot, "stopped", now, cause)
            return
        slot.start_by = None
        slot.failing = ""
        grace = slot.spec.stop.timeout
        slot.kill_at = now + grace
        self._move(slot, "stopping", now, cause)
        self._orders.append(Stop(slot.instance, slot.generation, grace, cause))

    # the end of the app

    def _on_shutdown(self, fact: ShutdownOrdered, now: float) -> None:
        if fact.order:
            self._shutdown_orders.append(fact.order)
        if self.app_state != "stopping":
            self._begin_shutdown(fact.cause, fact.code, now)
        if fact.fast:
            self._kill_all(now)

    def _begin_shutdown(self, cause: str, code: int, now: float) -> None:
        self.app_state = "stopping"
        self._exit_code = code
        self._kill_all_at = now + self.spec.supervisor.shutdown_timeout
        self._orders.append(Announce("app.stopping", "", 0, None, None, None, cause))
        for slot in self._slots.values():
            slot.then = "stop"
            if slot.state in ("waiting", "backoff"):
                self._order_stop(slot, now, "the app stops")

    def _advance_shutdown(self, now: float) -> None:
        """Stop every worker whose dependents are all down; dependencies go last."""
        living = {slot.spec.name for slot in self._slots.values() if slot.state in LIVING}
        for slot in self._slots.values():
            if slot.state in LIVING and not living.intersection(self._dependents[slot.spec.name]):
                self._order_stop(slot, now, "the app stops")
        if not living and not self._ended:
            self._ended = True
            self._kill_all_at = None
            for order in self._shutdown_orders:
                self._orders.append(Answer(order, ()))
            self._orders.append(EndApp(self._exit_code))

    def _kill_all(self, now: float) -> None:
        for slot in self._slots.values():
            if slot.state in LIVING:
                self._order_stop(slot, now, "the app stops at once")
                slot.kill_at = now + KILL_AGAIN
                self._orders.append(Kill(slot.instance, slot.generation))

    # after every step

    def _settle(self, now: float) -> list[Order]:
        """Let the consequences of a step unfold, and hand out the orders."""
        if self.app_state == "stopping":
            self._advance_shutdown(now)
        else:
            self._release_waiting(now)
            self._notice_started()
            self._notice_idle(now)
        self._answer()
        orders, self._orders = self._orders, []
        return orders

    def _notice_started(self) -> None:
        if self.app_state == "starting" and self._begun and all(map(_is_settled, self._slots.values())):
            self.app_state = "running"
            self._orders.append(Announce("app.started", "", 0, None, None, None, "every worker is settled"))

    def _notice_idle(self, now: float) -> None:
        if self.spec.supervisor.on_idle != "exit" or not self._begun:
            return
        states = set(self._states().values())
        if states <= {"exited", "failed", "waiting"}:
            code = 0 if states == {"exited"} else 1
            self._begin_shutdown("every worker has completed" if code == 0 else "nothing is left to run", code, now)
            self._advance_shutdown(now)

    def _move(
        self,
        slot: Slot,
        to: State,
        now: float,
        cause: str,
        exit_: ExitFacts | None = None,
        *,
        delay: float | None = None,
    ) -> None:
        assert to in TRANSITIONS[slot.state], (slot.instance, slot.state, to)
        before, slot.state, slot.since = slot.state, to, now
        self._orders.append(
            Announce(
                "instance.state",
                slot.instance,
                slot.generation,
                slot.pid,
                before,
                to,
                cause,
                exit_,
                slot.attempt,
                delay,
            )
        )
        match to:
            case "ready" | "exited":
                self._done(slot, "")
            case "failed":
                self._done(slot, cause)
            case "stopped" if slot.then == "stop":
                self._done(slot, "")

    def _done(self, slot: Slot, result: str, orders: set[int] | None = None) -> None:
        for order in list(slot.orders) if orders is None else orders:
            if order in self._open:
                self._open[order][slot.instance] = result
            slot.orders.discard(order)

    def _overtake(self, slot: Slot, why: str, but: set[int]) -> None:
        self._done(slot, why, slot.orders - but)

    def _answer(self) -> None:
        for order, results in list(self._open.items()):
            for name, result in results.items():
                slot = self._slots[name]
                if result is None and (order not in slot.orders or self._is_done(slot)):
                    results[name] = ""
                    slot.orders.discard(order)
            if all(result is not None for result in results.values()):
                del self._open[order]
                self._orders.append(Answer(order, tuple((name, result or "") for name, result in results.items())))

    def _is_done(self, slot: Slot) -> bool:
        """Tell whether an order that found the slot as it should be has nothing to wait for."""
        return slot.state in ("ready", "exited") or (slot.state == "stopped" and slot.then == "stop")

    def _current(self, instance: str, generation: int) -> Slot | None:
        slot = self._slots.get(instance)
        if slot is None or slot.generation != generation or slot.state not in LIVING:
            return None
        return slot

    def _states(self) -> dict[str, State]:
        return {name: slot.state for name, slot in self._slots.items()}


def _is_settled(slot: Slot) -> bool:
    return slot.state in _SETTLED or (slot.state == "running" and not slot.spec.says_ready)


def _slots(worker: WorkerSpec) -> list[Slot]:
    restart = worker.restart
    return [
        Slot(worker, number, name, Budget(restart.max_restarts, restart.window))
        for number, name in enumerate(worker.names)
    ]


def _with_reason(exit_: ExitFacts, reason: str) -> ExitFacts:
    return ExitFacts(exit_.code, exit_.signal, exit_.core_dumped, exit_.oom, reason, exit_.uptime, exit_.stderr_tail)

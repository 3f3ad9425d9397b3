"""Rollouts: new lives take the place of old ones, one at a time, the new one in place before the old one ends. Pure.

A rollout is what a person's reload, a changed configuration or a recycling leads to. It looks at the states after
every step and decides what is next; the steps themselves are in lifecycle.py. Only here do two lives of a slot live
side by side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from smartipc.ipc.control import State
from smartipc.supervisor.core.facts import Measured
from smartipc.supervisor.core.lifecycle import Lives
from smartipc.supervisor.core.slot import Slot

_SERVING: frozenset[State] = frozenset({"running", "ready", "degraded"})
_TRY_AGAIN = 60.0
"""Seconds until a recycling whose replacement failed is tried again."""


@dataclass(slots=True)
class Rollout:
    """One rollout: whose turn it is, and who follows."""

    order: int
    """Of the person who waits for it; 0 for a recycling."""
    cause: str
    todo: deque[str]
    turn: str = ""
    before: int = 0
    """The generation that is being replaced."""


class Rollouts:
    """All rollouts under way.

    Args:
        lives: the slots.
    """

    def __init__(self, lives: Lives) -> None:
        self._lives = lives
        self._rollouts: list[Rollout] = []

    def __repr__(self) -> str:
        return f"<Rollouts {[(one.turn, *one.todo) for one in self._rollouts]}>"

    def begin(self, order: int, cause: str, instances: Iterable[str]) -> None:
        """Begin one; its answers have the aim "replaced"."""
        self._rollouts.append(Rollout(order, cause, deque(instances)))

    def abandon(self) -> None:
        """Forget all of them: the app stops."""
        self._rollouts.clear()

    def measured(self, fact: Measured) -> bool:
        """Take note of what a life has served and uses; tell whether it must be recycled."""
        slot = self._lives.slots.get(fact.instance)
        recycle = slot.spec.recycle if slot is not None and slot.generation == fact.generation else None
        if slot is None or recycle is None or slot.recycling:
            return False
        for what, value, most in (
            ("requests", fact.requests, recycle.requests),
            ("memory", fact.memory, recycle.memory),
        ):
            if value is not None and most is not None and value >= most * slot.share:
                slot.wants_recycling = f"recycle: {what} {value} of {most}"
        return bool(slot.wants_recycling)

    def advance(self, now: float) -> None:
        """Take every step that can be taken."""
        for slot in self._lives.slots.values():
            at = slot.recycle_at()
            assert slot.spec.recycle is not None or at is None
            if at is not None and now >= at and slot.spec.recycle is not None:
                slot.wants_recycling = f"recycle: age {slot.spec.recycle.age:g} s"
            if slot.wants_recycling and not slot.recycling:
                if now >= slot.not_before:
                    slot.recycling = True
                    self.begin(0, slot.wants_recycling, (slot.instance,))
                slot.wants_recycling = ""
        while any(self._step(rollout, now) for rollout in tuple(self._rollouts)):
            self._rollouts = [one for one in self._rollouts if one.turn or one.todo]

    def _step(self, rollout: Rollout, now: float) -> bool:
        """Take one step, and tell whether there was one to take."""
        if rollout.turn:
            return self._follow(rollout, now)
        return bool(rollout.todo) and self._next(rollout, now)

    def _next(self, rollout: Rollout, now: float) -> bool:
        instance = rollout.todo[0]
        slot = self._lives.slots.get(instance)
        if slot is not None and self._wanted(rollout, instance) and (rollout.order or slot.recycling):
            if slot.spec.schedule is not None:
                self._lives.answers.say(rollout.order, instance, "")  # the run goes on; the next one is all new
            elif slot.state in _SERVING and not slot.going_down:
                if self._busy(slot.spec.name):
                    return False
                rollout.turn, rollout.before = instance, slot.generation
                self._lives.replace(slot, now, rollout.cause)
            else:
                self._renew(rollout, slot, now)
        rollout.todo.popleft()
        return True

    def _busy(self, worker: str) -> bool:
        """Tell whether an instance of that worker is being replaced."""
        return any(slot.successor is not None for slot in self._lives.of(worker)) or any(
            slot.spec.name == worker for slot in self._lives.leaving
        )

    def _wanted(self, rollout: Rollout, instance: str) -> bool:
        return self._lives.answers.unsaid(rollout.order, instance)

    def _renew(self, rollout: Rollout, slot: Slot, now: float) -> None:
        """Deal with one that does not serve: there is nothing to preserve, and nothing to bring up that is down."""
        self._lives.answers.aim(rollout.order, slot.instance, "up")
        if slot.state == "starting" and not slot.going_down:
            self._lives.go_down(slot, now, rollout.cause, then="restart")
        elif slot.state in ("backoff", "failed") and rollout.order:
            slot.automatic, slot.group = False, ""
            self._lives.try_start(slot, now, rollout.cause)
        else:
            self._lives.answers.say(rollout.order, slot.instance, "")

    def _follow(self, rollout: Rollout, now: float) -> bool:
        slot = self._lives.slots.get(rollout.turn)
        if slot is None or not self._wanted(rollout, rollout.turn):
            rollout.turn = ""  # removed, or overtaken by another order
            return True
        if slot.generation == rollout.before:
            return self._watch(rollout, slot, now)
        if any(one.instance == slot.instance for one in self._lives.leaving):
            return False
        if slot.state in ("starting", "running") and not self._lives.is_up(slot) and slot.steady_since is None:
            return False  # the old one died early, and this one had to take over
        failed = slot.state in ("backoff", "failed")
        self._done(rollout, f"its replacement failed: {self._lives.last_words(slot)}" if failed else "")
        return True

    def _watch(self, rollout: Rollout, slot: Slot, now: float) -> bool:
        """Look whether the replacement is in place, or has failed."""
        successor = slot.successor
        if successor is None:
            slot.recycling, slot.not_before = False, now + _TRY_AGAIN
            self._done(rollout, f"its replacement failed: {slot.refused}")
            return True
        if successor.going_down or successor.state == "stopping":
            return False
        # As far as the life that it replaces had come, or as far as it has to come.
        enough = successor.state == "ready" or (
            successor.state == "running"
            and (slot.state == "running" or (successor.start_by is None and not successor.failing))
        )
        if enough:
            self._lives.promote(slot, now, rollout.cause)
        return enough

    def _done(self, rollout: Rollout, result: str) -> None:
        """Answer for the one whose turn it was; after a failure for all that follow, too."""
        answers = self._lives.answers
        answers.say(rollout.order, rollout.turn, result)
        if result:
            for instance in rollout.todo:
                answers.say(rollout.order, instance, f"not replaced, because the replacement of {rollout.turn} failed")
            rollout.todo.clear()
        rollout.turn = ""

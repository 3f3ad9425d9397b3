"""What a running life says, or is found, to be like: liveness checks, its own word that it hangs, pleas for time. Pure.

Silence is lifecycle.py's business; thresholds are health.py's.
"""

from __future__ import annotations

from typing import assert_never

from smartipc.supervisor.core.facts import Extended, Probed, Unwell
from smartipc.supervisor.core.lifecycle import Lives
from smartipc.supervisor.core.orders import Announce, Stop
from smartipc.supervisor.core.slot import Slot


class Wellbeing:
    """Judge how lives are.

    Args:
        lives: whose.
    """

    def __init__(self, lives: Lives) -> None:
        self.lives = lives

    def __repr__(self) -> str:
        return f"<Wellbeing of {self.lives!r}>"

    def take(self, fact: Probed | Unwell | Extended, now: float) -> None:
        """Take a fact about the current life of an instance."""
        slot = self.lives.current(fact.instance, fact.generation)
        if slot is None:
            return
        match fact:
            case Extended():
                self._extend(slot, now + fact.seconds)
            case Unwell():
                if slot.state in ("ready", "degraded") and not slot.failing:
                    self.lives.abort(slot, now, fact.reason)
            case Probed():
                if slot.state in ("ready", "degraded") and not slot.failing and not slot.going_down:
                    self._on_probed(slot, fact.failure, now)
            case _:
                assert_never(fact)

    @staticmethod
    def _extend(slot: Slot, until: float) -> None:
        """Put the end of a start or a grace off; never nearer, and never after a kill (systemd's rule)."""
        if slot.start_by is not None:
            slot.start_by = max(slot.start_by, until)
        elif slot.state == "stopping" and slot.kill_at is not None and not slot.killed:
            slot.kill_at = max(slot.kill_at, until)

    def _on_probed(self, slot: Slot, failure: str, now: float) -> None:
        match slot.health.take(ok=not failure):
            case "":
                return
            case "sicken":
                slot.steady_since = None
                self.lives.move(slot, "sicken", now, f"liveness: {failure}")
            case "recover":
                slot.steady_since = slot.watch_from = now
                self.lives.move(slot, "recover", now, "liveness: well again")
            case "give up":
                self._end(slot, f"liveness: {slot.health.failed} failed in a row: {failure}", now)
            case turn:
                assert_never(turn)

    def _end(self, slot: Slot, why: str, now: float) -> None:
        """End a life past hope. A function worker writes its stacks; a command gets its stop signal and its grace."""
        if slot.spec.target is not None:
            self.lives.abort(slot, now, why)
            return
        slot.failing = why
        state, grace = slot.state, slot.spec.stop.timeout
        self.lives.orders.append(
            Announce("instance.hang", slot.instance, slot.generation, slot.pid, state, state, slot.failing)
        )
        if state == "ready":
            self.lives.move(slot, "hang", now, why)
        slot.kill_at = now + grace
        self.lives.orders.append(Stop(slot.instance, slot.generation, grace, why))

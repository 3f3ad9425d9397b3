"""The ends of lives: how they are judged, and what follows for the instance, its group and the app. Pure.

Only what follows from an end is here. Starting, progress and going down are in lifecycle.py, arithmetic of groups in
strategy.py, orders of persons in core.py.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.core import backoff, exits
from smartipc.supervisor.core.exits import Verdict
from smartipc.supervisor.core.lifecycle import Lives
from smartipc.supervisor.core.slot import Retired, Slot
from smartipc.supervisor.core.states import LIVING
from smartipc.supervisor.core.strategy import Reaction


class Ends:
    """Judge ends.

    Args:
        lives: whose.
    """

    def __init__(self, lives: Lives) -> None:
        self.lives = lives
        self.fatal: str | None = None
        """The first instance or group that failed for good and takes the app with it."""

    def __repr__(self) -> str:
        return f"<Ends of {self.lives!r}>"

    def on_end(
        self, instance: str, generation: int, exit_: ExitFacts, now: float, *, ended_at: float | None = None
    ) -> None:
        """Judge the end of a life, or of the attempt to begin one."""
        slot = self.lives.current(instance, generation)
        if slot is None:
            return
        cause = exits.describe(exit_)
        if slot.failing:
            cause = f"{slot.failing}; {cause}"
            exit_ = msgspec.structs.replace(exit_, reason=slot.failing)
        slot.last_exit, slot.last_exit_generation = exit_, generation
        slot.start_by = slot.kill_at = None
        if slot.going_down:
            self.lives.move(slot, "stop", now, f"{slot.going_down}; it ended before it was told")
            slot.going_down = ""
        current = self.lives.slots[instance]  # a slot vanishes only when no life of it is left
        if slot is not current:
            self._on_end_beside(slot, current, cause, exit_, now)
        elif slot.state == "stopping":
            self._on_planned_end(slot, cause, exit_, now)
        elif slot.successor is not None and slot.successor.state != "stopping":
            self._on_end_while_replaced(slot, cause, exit_, now)
        else:
            self._on_unplanned_end(slot, cause, exit_, now)
        slot.pid = None
        if ended_at is not None and slot.state == "backoff":
            self._restart_if_due(slot, ended_at, now)

    def _on_end_beside(self, slot: Slot, current: Slot, cause: str, exit_: ExitFacts, now: float) -> None:
        """Deal with the end of a life that was replaced, or of one that was to replace another."""
        self.lives.move(slot, "end" if slot.state == "stopping" else "give up", now, cause, exit_)
        if slot in self.lives.leaving:
            self.lives.leaving.remove(slot)
        if current.successor is slot:
            current.successor, current.refused = None, cause
        if slot.generation > current.last_exit_generation:
            current.last_exit, current.last_exit_generation = exit_, slot.generation
        self._settle_down(current)

    def _on_end_while_replaced(self, slot: Slot, cause: str, exit_: ExitFacts, now: float) -> None:
        """Let the replacement take over at once; the end counts as planned, as it was about to be."""
        successor = self.lives.take_over(slot)
        taken = f"{cause}; generation {successor.generation}, which was to replace it, takes over"
        self.lives.move(slot, "stop", now, taken)
        self.lives.move(slot, "end", now, cause, exit_)

    def _settle_down(self, slot: Slot) -> None:
        """Answer those who wait for its end once no life of it is left."""
        if slot.state == "stopped" and self.lives.alone(slot.instance):
            self.lives.answers.settle(slot.instance, "down", "")

    def _on_planned_end(self, slot: Slot, cause: str, exit_: ExitFacts, now: float) -> None:
        self.lives.move(slot, "end", now, cause, exit_)
        slot.pid = None
        if slot.then == "restart":
            self.lives.try_start(slot, now, "ordered restart")
        elif slot.then == "group":
            self.lives.wait_for_mates(
                slot, now, (slot.awaits.rpartition(":")[0],), f"restarts together with {slot.awaits}"
            )
        else:
            self._settle_down(slot)

    def _on_unplanned_end(self, slot: Slot, cause: str, exit_: ExitFacts, now: float) -> None:
        restart = slot.spec.restart
        verdict = Verdict.FAILURE if slot.failing else exits.judge(exit_, restart)
        if exits.restarts(verdict, restart):
            self._back_off(slot, cause, exit_, now)
        elif verdict is Verdict.SUCCESS:
            slot.attempt = 0
            self.lives.move(slot, "complete", now, cause, exit_)
            self.lives.answers.settle(slot.instance, "up", "")
            self._notice_significant(slot, now)
        else:
            why = "this exit code must not be repeated" if verdict is Verdict.PREVENTED else "restart policy never"
            self._give_up(slot, f"{cause}; {why}", exit_, now)

    def _back_off(self, slot: Slot, cause: str, exit_: ExitFacts, now: float) -> None:
        restart = slot.spec.restart
        if slot.steady_since is not None and now - slot.steady_since >= restart.reset_after:
            slot.attempt = 0
        delay = backoff.delay(restart, slot.attempt + 1, self.lives.jitter())
        if slot.spec.spares and not slot.attempt:
            delay = 0.0  # a warm process waits for this; if it fails as well, the delays begin
        reaction = Reaction()
        if self.lives.groups.parent(slot.spec.name) is not None:
            granted = Counter(one.group for one in self.lives.slots.values() if one.automatic and one is not slot)
            reaction = self.lives.groups.react(slot.spec.name, now + delay, granted)
        if reaction.spent:
            group = self.lives.groups[reaction.spent]
            spent = f"restart budget of group {group.name} spent: {group.max_restarts} in {group.window:g} s"
            self._give_up(slot, f"{cause}; {spent}", exit_, now)
            self.stop_group(group.name, now, spent)
            if group.on_failed == "shutdown" and self.fatal is None:
                self.fatal = f"group {group.name}"
            return
        if reaction.escalated:
            self._refresh(reaction.escalated)
        elif not slot.budget.allows(now + delay):
            spent = f"restart budget spent: {restart.max_restarts} in {restart.window:g} s"
            self._give_up(slot, f"{cause}; {spent}", exit_, now)
            return
        slot.attempt += 1
        slot.automatic, slot.group = True, reaction.group
        slot.next_restart_at = now + delay
        self.lives.move(slot, "retry", now, cause, exit_, delay=delay)
        self._take_along(slot, reaction, now)

    def _restart_if_due(self, slot: Slot, ended_at: float, now: float) -> None:
        """Let the delay begin with the end; where it is over already, nobody has to come back for it."""
        assert slot.next_restart_at is not None, "whatever backs off tries again"
        slot.next_restart_at -= max(0.0, now - ended_at)
        if slot.next_restart_at <= now:
            self.lives.try_start(slot, now, "")

    def _give_up(self, slot: Slot, cause: str, exit_: ExitFacts, now: float) -> None:
        self.lives.move(slot, "give up", now, cause, exit_)
        self.lives.answers.settle(slot.instance, "up", cause)
        self._notice_significant(slot, now)
        group = self.lives.groups.parent(slot.spec.name)
        if slot.spec.on_failed == "shutdown" and self.fatal is None:
            self.fatal = slot.instance
        elif slot.spec.on_failed == "stop-group" and group is not None:
            self.stop_group(group.name, now, f"{slot.instance} failed")

    # groups

    def _refresh(self, group: str) -> None:
        """Let a nested group start afresh, as a new supervisor process does in OTP."""
        self.lives.groups.clear(group)
        for name in self.lives.groups.workers(group):
            for slot in self.lives.of(name):
                slot.budget.clear()

    def _take_along(self, leader: Slot, reaction: Reaction, now: float) -> None:
        """Stop what the strategy restarts together with a failed instance. What is down by itself stays as it is."""
        cause = f"group {reaction.group}: {leader.instance} failed"
        for name in reaction.mates:
            for slot in self.lives.of(name):
                if slot is leader:
                    continue
                if slot.awaits:
                    slot.awaits = leader.instance
                    if slot.state == "waiting":
                        slot.waiting_for = (leader.spec.name,)
                elif slot.state in LIVING and slot.state != "stopping" and not slot.going_down:
                    if slot.spec.restart.policy == "never":
                        self.lives.answers.settle(slot.instance, "up", cause)
                        self.lives.go_down(slot, now, cause)
                        slot.retired = "failed"
                    else:
                        self.lives.go_down(slot, now, cause, then="group")
                        slot.awaits = leader.instance

    def stop_group(self, name: str, now: float, cause: str, *, retired: Retired = "failed") -> None:
        """Stop all that lives or is about to in a group, in reverse order; `retired`: as what it counts then."""
        for worker in self.lives.groups.workers(name):
            for slot in self.lives.of(worker):
                if slot.state in LIVING or slot.state in ("waiting", "backoff", "scheduled"):
                    self.lives.answers.settle(slot.instance, "up", cause)
                    self.lives.go_down(slot, now, cause)
                    slot.retired = retired

    def _notice_significant(self, slot: Slot, now: float) -> None:
        """Stop the group if the end of this instance, which will not be followed by another life, says so."""
        group = self.lives.groups.parent(slot.spec.name)
        if group is None or group.auto_shutdown == "never" or not slot.spec.significant:
            return
        significant = [one for name in group.members for one in self.lives.of(name) if one.spec.significant]
        if group.auto_shutdown == "any-significant" or all(one.state in ("exited", "failed") for one in significant):
            self.stop_group(
                group.name, now, f"{slot.instance} has ended, group {group.name} ends with it", retired="exited"
            )

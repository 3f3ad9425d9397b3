"""Jobs: what becomes of a slot between its runs, and of a run that is due while the last one is not over. Pure.

When a run is due is the clock's business (supervisor/timetable.py); starting and ending are those of any life.
"""

from __future__ import annotations

from smartipc.supervisor.core.facts import Due
from smartipc.supervisor.core.lifecycle import Lives
from smartipc.supervisor.core.orders import Announce
from smartipc.supervisor.core.slot import Slot


class Schedule:
    """The jobs of an app.

    Args:
        lives: all its slots.
    """

    def __init__(self, lives: Lives) -> None:
        self.lives = lives

    def __repr__(self) -> str:
        return f"<Schedule of {self.lives!r}>"

    def on_app_start(self, slot: Slot, now: float) -> bool:
        """Leave a job for its time; return whether there is nothing to start."""
        schedule = slot.spec.schedule
        if schedule is None or schedule.run_on_start:
            return False
        self.lives.move(slot, "schedule", now, "its first run is yet to come")
        return True

    def on_due(self, fact: Due, now: float) -> None:
        """Run it, or treat the overlap as the configuration says. A stopped job stays stopped."""
        slot = self.lives.slots.get(fact.instance)
        if slot is None or slot.spec.schedule is None or slot.state == "stopped":
            return
        if slot.state == "scheduled":
            self.lives.try_start(slot, now, "its time has come")
            return
        queue = slot.spec.schedule.overlap == "queue"
        slot.queued = slot.queued or queue
        cause = "due while the last run is not over: " + ("it runs right after" if queue else "left out")
        event = "instance.queued" if queue else "instance.skipped"
        self.lives.orders.append(
            Announce(event, slot.instance, slot.generation, slot.pid, slot.state, slot.state, cause)
        )

    def settle(self, now: float) -> None:
        """Put jobs that have ended, and are to have no further try, back to wait for their time."""
        for slot in self.lives.slots.values():
            if slot.spec.schedule is not None and slot.state in ("exited", "failed"):
                self.lives.move(slot, "schedule", now, "until its next run")
                if slot.queued:
                    slot.queued = False
                    self.lives.try_start(slot, now, "it was due during the last run")
            elif slot.spec.schedule is None and slot.state == "scheduled":
                self.lives.try_start(slot, now, "it is no job any more")

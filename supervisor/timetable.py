"""When jobs run: periods on the monotonic clock, cron lines on the wall clock. What a due run leads to is the core's.

Cron is looked at again at least twice a minute, so that a clock that is set, or a machine that slept, is noticed. Runs
missed while the machine slept are not made up for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from smartipc.supervisor.core.process_spec import ScheduleSpec
from smartipc.supervisor.core.spec import WorkerSpec

_LOOK = 30.0


class Timetable:
    """Calls `due` with the name of an instance whenever a run of it is due.

    Args:
        due: told.
    """

    def __init__(self, due: Callable[[str], None]) -> None:
        self._due = due
        self._loop = asyncio.get_running_loop()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._specs: dict[str, ScheduleSpec] = {}
        self._next: dict[str, float] = {}
        """When each runs next, on the loop's clock."""

    def __repr__(self) -> str:
        return f"<Timetable of {len(self._specs)} jobs>"

    def apply(self, workers: Iterable[WorkerSpec]) -> None:
        """Have exactly the jobs of these workers; those whose schedule has not changed keep their time."""
        wanted = {name: worker.schedule for worker in workers if worker.schedule is not None for name in worker.names}
        for name in [name for name, spec in self._specs.items() if wanted.get(name) != spec]:
            self._timers.pop(name).cancel()
            del self._specs[name], self._next[name]
        for name, spec in wanted.items():
            if name not in self._specs:
                self._specs[name] = spec
                self._plan(name, spec)

    def close(self) -> None:
        """Forget all."""
        self.apply(())

    def next_in(self, instance: str) -> float | None:
        """Return the seconds until its next run; None if it is no job."""
        at = self._next.get(instance)
        return None if at is None or at == float("inf") else max(0.0, at - self._loop.time())

    def _plan(self, name: str, spec: ScheduleSpec) -> None:
        now = self._loop.time()
        if spec.every is not None:
            at = self._next.get(name, now) + spec.every
            if at <= now:  # asleep for more than a period: the rhythm goes on, without what was missed
                at += ((now - at) // spec.every + 1) * spec.every
        else:
            at = now + seconds_to_next(spec)
        self._next[name] = at
        self._arm(name, spec)

    def _arm(self, name: str, spec: ScheduleSpec) -> None:
        at = self._next[name]
        if spec.cron is not None:
            at = min(at, self._loop.time() + _LOOK)
        self._timers[name] = self._loop.call_at(at, self._on_time, name, spec)

    def _on_time(self, name: str, spec: ScheduleSpec) -> None:
        now = self._loop.time()
        if now < self._next[name]:
            self._next[name] = now + seconds_to_next(spec)
            self._arm(name, spec)
            return
        self._plan(name, spec)
        self._due(name)


def seconds_to_next(spec: ScheduleSpec, now: datetime | None = None) -> float:
    """Return how long it is until a cron line matches next.

    Args:
        spec: has a cron line.
        now: aware; default the present.
    """
    assert spec.cron is not None
    moment = datetime.now(UTC) if now is None else now
    # A job at 02:30 runs once on the days when clocks change: cronsim's rule is Debian cron's.
    local = moment.astimezone(ZoneInfo(spec.timezone) if spec.timezone else None)
    try:
        return (next(CronSim(spec.cron, local)) - local).total_seconds()
    except (CronSimError, StopIteration):  # a date that never comes, such as 30 February
        return float("inf")

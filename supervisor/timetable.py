"""When jobs run: periods on the monotonic clock, cron lines on the wall clock. What a due run leads to is the core's.

Cron is looked at again at least twice a minute, so that a clock that is set, or a machine that slept, is noticed. Runs
missed while the machine slept are not made up for. The two clocks never quite agree, so the next run is planned from
the moment of the last one if the wall clock has not got there yet: once is once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from smartipc.supervisor.core.process_spec import ScheduleSpec
from smartipc.supervisor.core.spec import WorkerSpec

_LOOK = 30.0
"""Seconds between two looks at the wall clock."""
_EARLY = 1.0
"""Seconds by which the wall clock may be behind ours when a run begins; by more it was set back."""
_LOCALTIME = "/etc/localtime"


class Timetable:
    """Calls `due` with the name of an instance whenever a run of it is due.

    Args:
        due: told.
        wall: returns the time of the wall clock, aware.
    """

    def __init__(self, due: Callable[[str], None], wall: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._due = due
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._specs: dict[str, ScheduleSpec] = {}
        self._next: dict[str, float] = {}
        """When each runs next, on the loop's clock."""
        self._moments: dict[str, datetime | None] = {}
        """Likewise on the wall clock, for cron lines; None for never."""

    def __repr__(self) -> str:
        return f"<Timetable of {len(self._specs)} jobs>"

    def apply(self, workers: Iterable[WorkerSpec]) -> None:
        """Have exactly the jobs of these workers; those whose schedule has not changed keep their time."""
        wanted = {name: worker.schedule for worker in workers if worker.schedule is not None for name in worker.names}
        for name in [name for name, spec in self._specs.items() if wanted.get(name) != spec]:
            self._timers.pop(name).cancel()
            del self._specs[name], self._next[name]
            self._moments.pop(name, None)
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
            self._next[name] = at
            self._timers[name] = self._loop.call_at(at, self._on_time, name, spec)
        else:
            self._look(name, spec)

    def _look(self, name: str, spec: ScheduleSpec, after: datetime | None = None) -> None:
        """Plan the next moment of a cron line from the wall clock, but not before `after`."""
        wall, now = self._wall(), self._loop.time()
        moment = next_run(spec, wall if after is None else max(wall, after))
        self._moments[name] = moment
        self._next[name] = float("inf") if moment is None else now + (moment - wall).total_seconds()
        self._timers[name] = self._loop.call_at(min(self._next[name], now + _LOOK), self._on_time, name, spec)

    def _on_time(self, name: str, spec: ScheduleSpec) -> None:
        if spec.every is not None:
            self._plan(name, spec)
        else:
            moment = self._moments[name]
            if (
                moment is None
                or self._loop.time() < self._next[name]
                or (moment - self._wall()).total_seconds() > _EARLY
            ):
                self._look(name, spec)
                return
            self._look(name, spec, moment)
        self._due(name)


def next_run(spec: ScheduleSpec, after: datetime) -> datetime | None:
    """Return the first moment after another at which a cron line matches, in UTC; None for never.

    A daily job at an hour that is skipped, or comes twice, when clocks change, runs once that day: Debian cron's rule.

    Args:
        spec: has a cron line.
        after: aware.
    """
    assert spec.cron is not None
    local = after.astimezone(ZoneInfo(spec.timezone) if spec.timezone else _zone_of_the_host())
    try:
        # Reckoned in UTC: differences of local times ignore clock changes, and in the hour that comes twice cronsim
        # may return its first half while we are in the second.
        moments = (moment.astimezone(UTC) for moment in CronSim(spec.cron, local))
        return next(moment for moment in moments if moment > after)
    except (CronSimError, StopIteration):  # a date that never comes, such as 30 February
        return None


def _zone_of_the_host() -> tzinfo:
    """Return the zone with its rules; where they cannot be read, what they come to at present."""
    name = os.environ.get("TZ", "").removeprefix(":")
    with contextlib.suppress(OSError, ValueError, KeyError):
        if name and not name.startswith("/"):
            return ZoneInfo(name)
        with open(name or _LOCALTIME, "rb") as file:
            return ZoneInfo.from_file(file)
    return datetime.now().astimezone().tzinfo or UTC

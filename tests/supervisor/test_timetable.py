"""When jobs run."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from smartipc.supervisor.core.process_spec import ScheduleSpec
from smartipc.supervisor.core.spec import WorkerSpec
from smartipc.supervisor.timetable import Timetable, next_run


def seconds_to_next(spec: ScheduleSpec, now: datetime) -> float | None:
    moment = next_run(spec, now)
    return None if moment is None else (moment - now).total_seconds()


def job(schedule: ScheduleSpec | None, name: str = "j", instances: int = 1) -> WorkerSpec:
    return WorkerSpec(name, command=("x",), schedule=schedule, instances=instances)


@pytest.mark.parametrize(
    ("cron", "zone", "now", "seconds"),
    [
        ("*/5 * * * *", "UTC", datetime(2026, 1, 1, 10, 3, 20, tzinfo=UTC), 100.0),
        ("0 12 * * *", "Europe/Rome", datetime(2026, 7, 1, 9, 0, tzinfo=UTC), 3600.0),
        ("0 0 30 2 *", "UTC", datetime(2026, 1, 1, tzinfo=UTC), None),
        ("0 0 * * MON", "UTC", datetime(2026, 1, 4, 23, 59, 59, tzinfo=UTC), 1.0),
    ],
)
def test_cron_on_the_wall_clock(cron: str, zone: str, now: datetime, seconds: float | None) -> None:
    assert seconds_to_next(ScheduleSpec(cron=cron, timezone=zone), now) == seconds


@pytest.mark.parametrize("zone", ["Europe/Berlin", None])
@pytest.mark.parametrize(
    ("cron", "now", "seconds"),
    [
        ("0 3 * * *", datetime(2026, 3, 29, 0, 59, 45, tzinfo=UTC), 15.0),  # 01:59:45, and 15 s later it is 03:00
        ("0 12 * * *", datetime(2026, 3, 28, 11, 0, tzinfo=UTC), 23 * 3600.0),
        ("0 12 * * *", datetime(2026, 10, 24, 10, 0, tzinfo=UTC), 25 * 3600.0),
        ("*/20 * * * *", datetime(2026, 10, 25, 0, 50, tzinfo=UTC), 600.0),  # 02:50, and 10 min later it is 02:00 again
        ("30 2 * * *", datetime(2026, 10, 25, 0, 10, tzinfo=UTC), 1200.0),  # the first 02:30
        ("30 2 * * *", datetime(2026, 10, 25, 1, 10, tzinfo=UTC), 86400 + 1200.0),  # the second is left out
    ],
)
def test_hours_that_are_skipped_or_come_twice(
    cron: str, now: datetime, seconds: float, zone: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if zone is None:
        monkeypatch.setenv("TZ", "Europe/Berlin")
    assert seconds_to_next(ScheduleSpec(cron=cron, timezone=zone), now) == seconds


@pytest.mark.parametrize("zone", ["", ":/usr/share/zoneinfo/Europe/Berlin", "CET-1CEST,M3.5.0,M10.5.0/3", "No/Where"])
def test_whatever_the_host_says_of_its_zone_there_is_one(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    assert 0 < (seconds_to_next(ScheduleSpec(cron="* * * * *"), datetime.now(UTC)) or 0) <= 60


def test_a_wall_clock_that_is_slower_than_ours_does_not_double_a_run() -> None:
    """Ours says that the moment has come, the wall clock is still before it: it is slewed all the time."""

    async def run() -> None:
        due = asyncio.Event()
        begun, base = time.monotonic(), datetime(2026, 1, 1, 11, 59, 59, 900_000, tzinfo=UTC)
        wall = lambda: base + timedelta(seconds=(time.monotonic() - begun) / 2)  # noqa: E731
        table = Timetable(lambda _name: due.set(), wall)
        table.apply([job(ScheduleSpec(cron="* * * * *", timezone="UTC"))])
        await asyncio.wait_for(due.wait(), 5)
        assert wall() < datetime(2026, 1, 1, 12, tzinfo=UTC)
        assert (table.next_in("j:0") or 0) > 50
        table.close()

    asyncio.run(run())


def test_a_wall_clock_that_is_set_back_puts_the_run_off() -> None:
    async def run() -> None:
        due: list[str] = []
        looked = asyncio.Event()
        moments = iter([datetime(2026, 1, 1, 11, 59, 59, 950_000, tzinfo=UTC)])

        def wall() -> datetime:
            moment = next(moments, None)
            if moment is None:
                looked.set()
            return moment or datetime(2026, 1, 1, 11, 30, tzinfo=UTC)

        table = Timetable(due.append, wall)
        table.apply([job(ScheduleSpec(cron="0 * * * *", timezone="UTC"))])
        await asyncio.wait_for(looked.wait(), 5)
        assert (table.next_in("j:0") or 0) > 1700
        assert due == []
        table.close()

    asyncio.run(run())


def test_clocks_that_change_neither_lose_nor_double_a_daily_run() -> None:
    spec = ScheduleSpec(cron="30 2 * * *", timezone="Europe/Rome")
    lost_hour = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)  # 02:30 does not exist on the 29th
    assert 12 * 3600 < (seconds_to_next(spec, lost_hour) or 0) < 15 * 3600


def test_every_keeps_its_rhythm_and_each_instance_runs() -> None:
    async def run() -> list[str]:
        due: list[str] = []
        third = asyncio.Event()

        def note(name: str) -> None:
            due.append(name)
            if len(due) == 6:
                third.set()

        table = Timetable(note)
        table.apply([job(ScheduleSpec(every=0.02), instances=2), job(None, "w")])
        assert table.next_in("w:0") is None
        assert 0 < (table.next_in("j:0") or 0) <= 0.02
        await asyncio.wait_for(third.wait(), 5)
        table.close()
        assert table.next_in("j:0") is None
        assert "0 jobs" in repr(table)
        return due

    assert sorted(asyncio.run(run())) == ["j:0"] * 3 + ["j:1"] * 3


def test_periods_that_were_slept_through_are_left_out() -> None:
    async def run() -> int:
        count = 0

        def note(_name: str) -> None:
            nonlocal count
            count += 1

        table = Timetable(note)
        table.apply([job(ScheduleSpec(every=0.01))])
        import time

        time.sleep(0.1)  # noqa: ASYNC251 - the loop is to be late
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        table.close()
        return count

    assert asyncio.run(run()) == 1


def test_an_unchanged_schedule_keeps_its_time() -> None:
    async def run() -> None:
        table = Timetable(lambda _name: None)
        spec = ScheduleSpec(every=100.0)
        table.apply([job(spec)])
        before = table._next["j:0"]
        await asyncio.sleep(0.01)
        table.apply([job(spec), job(ScheduleSpec(cron="0 0 30 2 *"), "never")])
        assert table._next["j:0"] == before
        assert table.next_in("never:0") is None
        table.apply([job(ScheduleSpec(every=50.0))])
        assert table._next["j:0"] < before
        assert table.next_in("never:0") is None
        table.close()

    asyncio.run(run())

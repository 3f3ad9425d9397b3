"""When jobs run."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from smartipc.supervisor.core.process_spec import ScheduleSpec
from smartipc.supervisor.core.spec import WorkerSpec
from smartipc.supervisor.timetable import Timetable, seconds_to_next


def job(schedule: ScheduleSpec | None, name: str = "j", instances: int = 1) -> WorkerSpec:
    return WorkerSpec(name, command=("x",), schedule=schedule, instances=instances)


@pytest.mark.parametrize(
    ("cron", "zone", "now", "seconds"),
    [
        ("*/5 * * * *", "UTC", datetime(2026, 1, 1, 10, 3, 20, tzinfo=UTC), 100.0),
        ("0 12 * * *", "Europe/Rome", datetime(2026, 7, 1, 9, 0, tzinfo=UTC), 3600.0),
        ("0 0 30 2 *", "UTC", datetime(2026, 1, 1, tzinfo=UTC), float("inf")),
        ("0 0 * * MON", "UTC", datetime(2026, 1, 4, 23, 59, 59, tzinfo=UTC), 1.0),
    ],
)
def test_cron_on_the_wall_clock(cron: str, zone: str, now: datetime, seconds: float) -> None:
    assert seconds_to_next(ScheduleSpec(cron=cron, timezone=zone), now) == seconds


def test_clocks_that_change_neither_lose_nor_double_a_daily_run() -> None:
    spec = ScheduleSpec(cron="30 2 * * *", timezone="Europe/Rome")
    lost_hour = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)  # 02:30 does not exist on the 29th
    assert 12 * 3600 < seconds_to_next(spec, lost_hour) < 15 * 3600


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

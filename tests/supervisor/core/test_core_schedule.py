"""Jobs: between their runs, due, overlapping, failing, stopped."""

from __future__ import annotations

import pytest

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.core.facts import (
    ApplyOrdered,
    AppStart,
    Due,
    ScaleOrdered,
    ShutdownOrdered,
    StartOrdered,
    StopOrdered,
)
from smartipc.supervisor.core.orders import Answer, Spawn
from smartipc.supervisor.core.process_spec import ScheduleSpec
from smartipc.supervisor.core.spec import AppSpec, RestartSpec, WorkerSpec

OK = ExitFacts(code=0)
BAD = ExitFacts(code=1)


def job(name: str = "j", policy: str = "never", **keys) -> WorkerSpec:
    schedule = ScheduleSpec(every=60.0, **keys.pop("schedule", {}))
    restart = RestartSpec(policy=policy, jitter=0, max_restarts=1)
    return WorkerSpec(name, command=("x",), ready="started", restart=restart, schedule=schedule, **keys)


def test_it_waits_for_its_time_and_waits_again(desk) -> None:
    it = desk(job())
    assert it.begin() == []
    assert it["j:0"].state == "scheduled"
    assert it.core.app_state == "running"
    assert it.tell(Due("j:0")) == [Spawn("j:0", 1)]
    it.run("j:0")
    it.die("j:0", OK)
    assert it.path("j:0") == ["scheduled", "starting", "running", "ready", "exited", "scheduled"]
    assert it.tell(Due("j:0")) == [Spawn("j:0", 2)]


def test_run_on_start(desk) -> None:
    it = desk(job(schedule={"run_on_start": True}))
    assert it.begin() == [Spawn("j:0", 1)]


def test_a_failed_run_is_told_and_the_next_one_comes(desk) -> None:
    it = desk(job())
    it.begin()
    it.tell(Due("j:0"))
    it.run("j:0")
    it.die("j:0", BAD)
    assert it.path("j:0")[-2:] == ["failed", "scheduled"]
    assert it["j:0"].last_exit.code == 1
    assert it.tell(Due("j:0")) == [Spawn("j:0", 2)]


def test_a_failed_run_may_be_tried_again_before_the_next(desk) -> None:
    it = desk(job(policy="on-failure"))
    it.begin()
    it.tell(Due("j:0"))
    it.run("j:0")
    it.die("j:0", BAD)
    assert it["j:0"].state == "backoff"
    assert it.wait(1) == [Spawn("j:0", 2)]
    it.run("j:0")
    it.die("j:0", BAD)
    assert it.path("j:0")[-2:] == ["failed", "scheduled"], "the budget is spent"


def test_a_failed_run_may_end_the_app(desk) -> None:
    it = desk(job(on_failed="shutdown"))
    it.begin()
    it.tell(Due("j:0"))
    it.run("j:0")
    it.die("j:0", BAD)
    assert it.ends() == [1]


@pytest.mark.parametrize(
    ("overlap", "event", "after"), [("skip", "instance.skipped", 0), ("queue", "instance.queued", 1)]
)
def test_what_is_due_during_a_run(desk, overlap: str, event: str, after: int) -> None:
    it = desk(job(schedule={"overlap": overlap}))
    it.begin()
    it.tell(Due("j:0"))
    it.run("j:0")
    assert it.tell(Due("j:0"), Due("j:0")) == []
    assert len(it.announced(event)) == 2
    spawned = it.die("j:0", OK)
    assert spawned == [Spawn("j:0", 2)] * after
    if after:
        it.run("j:0")
        assert it.die("j:0", OK) == [], "queued once, however often it was due"


def test_a_stopped_job_stays_stopped_until_it_is_started(desk) -> None:
    it = desk(job())
    it.begin()
    it.tell(StopOrdered(("j:0",), 1))
    assert it["j:0"].state == "stopped"
    assert it.answers() == {1: {"j:0": ""}}
    assert it.tell(Due("j:0")) == []
    assert it.tell(StartOrdered(("j:0",), 2)) == [Spawn("j:0", 1)]
    it.run("j:0")
    it.die("j:0", OK)
    assert it["j:0"].state == "scheduled"
    assert it.answers()[2] == {"j:0": ""}


def test_a_start_runs_it_at_once(desk) -> None:
    it = desk(job())
    it.begin()
    assert it.tell(StartOrdered(("j:0",), 1)) == [Spawn("j:0", 1)]


def test_the_end_of_the_app_is_not_put_off_by_jobs(desk) -> None:
    it = desk(job())
    it.begin()
    it.tell(ShutdownOrdered("enough"))
    assert it.ends() == [0]
    assert it["j:0"].state == "stopped"
    assert it.tell(Due("j:0"), AppStart()) == []


def test_who_waits_for_its_completion_starts_after_the_first_run(desk) -> None:
    it = desk(job(), WorkerSpec("after", command=("x",), ready="started", depends_on=(("j", "succeeded"),)))
    it.begin()
    assert it["after:0"].state == "waiting"
    it.tell(Due("j:0"))
    it.run("j:0")
    assert it.die("j:0", OK) == [Spawn("after:0", 1)]


def test_on_idle_exit_waits_for_ever_where_there_are_jobs(desk) -> None:
    it = desk(job(), on_idle="exit")
    it.begin()
    it.tell(Due("j:0"))
    it.run("j:0")
    it.die("j:0", OK)
    assert it.ends() == []


def test_what_is_no_job_is_never_due(desk) -> None:
    it = desk(WorkerSpec("w", command=("x",), ready="started"))
    it.begin()
    assert it.tell(Due("w:0"), Due("nobody:0")) == []
    assert "w:0 starting" in repr(it.core._schedule)


def test_a_job_that_becomes_a_service_starts(desk) -> None:
    it = desk(job())
    it.begin()
    service = WorkerSpec("j", command=("x",), ready="started")
    assert it.tell(ApplyOrdered(AppSpec("app", (service,)))) == [Spawn("j:0", 1)]


def test_a_job_that_is_added_waits_for_its_time(desk) -> None:
    it = desk(job())
    it.begin()
    assert it.tell(ScaleOrdered((("j", 2),), 7)) == [Answer(7, (("j:1", ""),))]
    assert it["j:1"].state == "scheduled"

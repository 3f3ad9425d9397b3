"""Reload, recycling, scaling and changed configurations: lives side by side, and everybody else left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.core import plan
from smartipc.supervisor.core.facts import (
    ApplyOrdered,
    AppStart,
    BecameReady,
    Due,
    Exited,
    Measured,
    ReloadOrdered,
    RestartOrdered,
    ScaleOrdered,
    ShutdownOrdered,
    Spawned,
    SpawnFailed,
    Started,
    StartOrdered,
    StopOrdered,
)
from smartipc.supervisor.core.orders import Answer, EndApp, Forget, Kill, Spawn, Stop
from smartipc.supervisor.core.process_spec import ScheduleSpec
from smartipc.supervisor.core.spec import (
    AppSpec,
    GroupSpec,
    HeartbeatSpec,
    RecycleSpec,
    RestartSpec,
    StopSpec,
    SupervisorSpec,
    WorkerSpec,
)

OK = ExitFacts(code=0)
BAD = ExitFacts(code=1, reason="ValueError: no")
RESTART = RestartSpec(jitter=0)


def worker(name: str, *needs: str, **keys) -> WorkerSpec:
    keys.setdefault("restart", RESTART)
    return WorkerSpec(name, depends_on=tuple((need, "ready") for need in needs), **keys)


def pool(desk, instances: int = 2, **keys):
    it = desk(worker("a", instances=instances, **keys), worker("lone"))
    it.begin()
    it.ready(*(f"a:{slot}" for slot in range(instances)), "lone:0")
    return it


def come(it, instance: str, generation: int, *, ready: bool = True):
    """Bring one life up, whichever it is."""
    facts = [Spawned(instance, generation, 5000 + generation), Started(instance, generation)]
    return it.tell(*facts, *([BecameReady(instance, generation)] if ready else []))


def go(it, instance: str, generation: int, exit_: ExitFacts = OK):
    return it.tell(Exited(instance, generation, exit_))


# reload


def test_a_reload_replaces_one_after_the_other_each_ready_before_the_old_one_goes(desk) -> None:
    it = pool(desk)
    assert it.tell(ReloadOrdered(("a:0", "a:1"), 7)) == [Spawn("a:0", 2)]
    assert (it["a:0"].state, it["a:0"].generation) == ("ready", 1)
    assert it.last("a:0").cause == "reload: replaces generation 1"
    assert come(it, "a:0", 2) == [Stop("a:0", 1, 10.0, "reload: replaced by generation 2")]
    assert (it["a:0"].state, it["a:0"].generation, it["a:0"].pid) == ("ready", 2, 5002)
    assert it.answers() == {}
    assert go(it, "a:0", 1) == [Spawn("a:1", 2)]
    come(it, "a:1", 2)
    go(it, "a:1", 1)
    assert it.answers() == {7: {"a:0": "", "a:1": ""}}
    assert (it["a:0"].restarts, it["a:0"].last_exit_generation) == (0, 1)
    assert it["lone:0"].generation == 1
    moves = [(one.generation, one.to_state) for one in it.announced("instance.state") if one.instance == "a:0"]
    assert moves == [
        (1, "starting"), (1, "running"), (1, "ready"), (2, "starting"), (2, "running"), (2, "ready"),
        (1, "stopping"), (1, "stopped"),
    ]  # fmt: skip


def test_the_old_one_is_killed_when_it_does_not_drain(desk) -> None:
    it = pool(desk, 1, stop=StopSpec(timeout=3))
    it.tell(ReloadOrdered(("a:0",), 7))
    come(it, "a:0", 2)
    assert it.wait(3) == [Kill("a:0", 1)]
    go(it, "a:0", 1, ExitFacts(signal="SIGKILL"))
    assert it.answers() == {7: {"a:0": ""}}
    assert it["a:0"].state == "ready"


@pytest.mark.parametrize("how", ["exit", "spawn", "timeout"])
def test_a_first_replacement_that_fails_leaves_everything_as_it_was(desk, how) -> None:
    it = pool(desk, says_ready=True, start_timeout=5.0)
    it.tell(ReloadOrdered(("a:0", "a:1"), 7))
    match how:
        case "exit":
            come(it, "a:0", 2, ready=False)
            go(it, "a:0", 2, BAD)
            why = "exit code 1 (ValueError: no)"
        case "spawn":
            it.tell(SpawnFailed("a:0", 2, "no such file"))
            why = "no such file"
        case "timeout":
            come(it, "a:0", 2, ready=False)
            assert it.wait(5) == [Kill("a:0", 2)]
            go(it, "a:0", 2, ExitFacts(signal="SIGKILL"))
            why = "start timeout: not ready within 5 s; killed by SIGKILL"
    assert it.states() == "ready ready ready"
    assert [it[name].generation for name in ("a:0", "a:1")] == [1, 1]
    assert it.answers() == {
        7: {
            "a:0": f"its replacement failed: {why}",
            "a:1": "not replaced, because the replacement of a:0 failed",
        }
    }
    assert it["a:0"].restarts == 0
    assert it.tell(ReloadOrdered(("a:0",), 8)) == [Spawn("a:0", 3)], "its generation is not used again"


def test_who_never_says_ready_is_in_place_once_it_has_come_as_far_as_the_old_one(desk) -> None:
    it = desk(worker("a"))
    it.begin()
    it.run("a:0")
    it.tell(ReloadOrdered(("a:0",), 7))
    assert it.tell(Spawned("a:0", 2, 1)) == []
    assert it.tell(Started("a:0", 2)) == [Stop("a:0", 1, 10.0, "reload: replaced by generation 2")]


def test_or_when_its_start_timeout_is_over(desk) -> None:
    it = pool(desk, 1, start_timeout=5.0)
    it.tell(ReloadOrdered(("a:0",), 7))
    come(it, "a:0", 2, ready=False)
    assert it.wait(5) == [Stop("a:0", 1, 10.0, "reload: replaced by generation 2")]


def test_when_the_old_one_dies_early_the_new_one_takes_over_at_once(desk) -> None:
    it = pool(desk, 1)
    it.tell(ReloadOrdered(("a:0",), 7))
    assert go(it, "a:0", 1, BAD) == []
    assert (it["a:0"].state, it["a:0"].generation, it["a:0"].restarts) == ("starting", 2, 0)
    assert it.answers() == {}
    come(it, "a:0", 2)
    assert it.answers() == {7: {"a:0": ""}}


def test_and_fails_as_any_life_does(desk) -> None:
    it = pool(desk, 2)
    it.tell(ReloadOrdered(("a:0", "a:1"), 7))
    go(it, "a:0", 1, BAD)
    go(it, "a:0", 2, BAD)
    assert it["a:0"].state == "backoff"
    assert it.answers()[7]["a:0"] == "its replacement failed: exit code 1 (ValueError: no)"
    assert it.wait(1) == [Spawn("a:0", 3)]


def test_a_stop_overtakes_a_reload_and_waits_for_both_lives(desk) -> None:
    it = pool(desk)
    it.tell(ReloadOrdered(("a:0", "a:1"), 7))
    come(it, "a:0", 2, ready=False)
    assert it.tell(StopOrdered(("a:0",), 8)) == [
        Stop("a:0", 2, 10.0, "ordered stop"),
        Stop("a:0", 1, 10.0, "ordered stop"),
    ]
    go(it, "a:0", 1)
    assert it.answers() == {}
    assert go(it, "a:0", 2)[0] == Spawn("a:1", 2)
    assert it.answers() == {8: {"a:0": ""}}
    come(it, "a:1", 2)
    go(it, "a:1", 1)
    assert it.answers()[7] == {"a:0": "overtaken by a stop", "a:1": ""}


def test_a_stop_after_the_change_waits_for_the_draining_life(desk) -> None:
    it = pool(desk, 1)
    it.tell(ReloadOrdered(("a:0",), 7))
    come(it, "a:0", 2)
    it.tell(StopOrdered(("a:0",), 8))
    go(it, "a:0", 2)
    assert 8 not in it.answers()
    it.tell(StopOrdered(("a:0",), 9))
    go(it, "a:0", 1)
    assert it.answers() == {7: {"a:0": "overtaken by a stop"}, 8: {"a:0": ""}, 9: {"a:0": ""}}


def test_a_restart_overtakes_a_reload(desk) -> None:
    it = pool(desk, 1)
    it.tell(ReloadOrdered(("a:0",), 7), RestartOrdered(("a:0",), 8))
    it.tell(Spawned("a:0", 2, 9))
    assert go(it, "a:0", 1) == [Spawn("a:0", 3)]
    go(it, "a:0", 2)
    come(it, "a:0", 3)
    assert it.answers() == {7: {"a:0": "overtaken by a restart"}, 8: {"a:0": ""}}


def test_a_replacement_that_was_withdrawn_takes_nothing_over(desk) -> None:
    it = pool(desk, 1)
    it.tell(ReloadOrdered(("a:0",), 7))
    come(it, "a:0", 2, ready=False)
    it.tell(RestartOrdered(("a:0",), 8))
    assert go(it, "a:0", 1) == [Spawn("a:0", 3)]
    come(it, "a:0", 3)
    assert go(it, "a:0", 3, BAD) == []
    assert (it["a:0"].state, it["a:0"].generation) == ("backoff", 3), "the stopping generation 2 is no successor"
    assert it.wait(0.2) == [Spawn("a:0", 4)]
    go(it, "a:0", 2)
    come(it, "a:0", 4)
    assert (it["a:0"].state, it["a:0"].restarts) == ("ready", 1)


def test_a_run_of_a_job_is_not_replaced_midway(desk) -> None:
    job = worker("a", command=("x",), ready="started", schedule=ScheduleSpec(every=60.0))
    it = desk(job)
    it.begin()
    it.tell(Due("a:0"))
    it.run("a:0")
    assert [type(one) for one in it.tell(ReloadOrdered(("a:0",), 7))] == [Answer]
    assert [type(one) for one in apply(it, replace(job, cwd="/elsewhere"), order=8)] == [Answer]
    assert it.answers() == {7: {"a:0": ""}, 8: {"a:0": ""}}
    it.die("a:0", OK)
    assert it["a:0"].state == "scheduled", "no run but at its times"
    assert it.tell(Due("a:0")) == [Spawn("a:0", 2)]


def test_the_shutdown_takes_all_lives_along(desk) -> None:
    it = pool(desk, 2)
    it.tell(ReloadOrdered(("a:0",), 7))
    come(it, "a:0", 2)
    it.tell(ReloadOrdered(("a:1",), 8))
    it.tell(Exited("a:0", 1, OK))
    it.tell(ReloadOrdered(("a:0",), 9))
    assert Stop("a:0", 2, 10.0, "the app stops") in it.tell(ShutdownOrdered("SIGTERM"))
    assert it.answers()[8] == {"a:1": "the app is stopping"}
    for instance, generation in (("lone:0", 1), ("a:0", 2), ("a:1", 1), ("a:1", 2)):
        assert it.ends() == []
        go(it, instance, generation)
    assert it.ends() == [0]
    assert it.tell(ReloadOrdered(("a:0",), 10))[-1].results == (("a:0", "it is being stopped"),)


def test_a_fast_shutdown_kills_all_lives(desk) -> None:
    it = pool(desk, 2)
    it.tell(ReloadOrdered(("a:0",), 7))
    come(it, "a:0", 2)
    killed = {
        (one.instance, one.generation) for one in it.tell(ShutdownOrdered("x", fast=True)) if isinstance(one, Kill)
    }
    assert killed == {("a:0", 1), ("a:0", 2), ("a:1", 1), ("lone:0", 1)}


def test_what_does_not_serve_is_renewed_or_left_alone(desk) -> None:
    it = desk(*(worker(name) for name in "abcdef"), worker("w", "f"))
    it.begin()
    it.ready("b:0", "c:0", "d:0", "e:0")
    it.die("b:0", BAD)
    it.die("c:0", OK)
    it.tell(StopOrdered(("d:0",)), StopOrdered(("e:0",)))
    it.die("d:0", OK)
    assert it.states() == "starting backoff exited stopped stopping starting waiting"
    names = ("a:0", "b:0", "c:0", "d:0", "e:0", "w:0", "nobody:0")
    assert it.tell(ReloadOrdered(names, 7)) == [Spawn("b:0", 2), Stop("a:0", 1, 10.0, "reload")]
    assert it.states() == "stopping starting exited stopped stopping starting waiting"
    assert go(it, "a:0", 1) == [Spawn("a:0", 2)]
    come(it, "a:0", 2)
    come(it, "b:0", 2)
    assert it.answers() == {7: dict.fromkeys(names, "") | {"nobody:0": "there is no such instance"}}


def test_two_reloads_take_turns(desk) -> None:
    it = pool(desk)
    it.tell(ReloadOrdered(("a:0",), 7))
    assert it.tell(ReloadOrdered(("a:1",), 8)) == []
    come(it, "a:0", 2)
    assert go(it, "a:0", 1)[0] == Spawn("a:1", 2)
    assert it.tell(ReloadOrdered(("lone:0",), 9)) == [Spawn("lone:0", 2)], "of another worker: at the same time"
    assert "a:1" in repr(it.core._rollouts)


def test_a_failed_group_is_not_moved_by_a_failed_replacement(desk) -> None:
    it = desk(worker("a"), worker("b"), groups=(GroupSpec("g", ("a", "b"), "one-for-all"),))
    it.begin()
    it.ready("a:0", "b:0")
    it.tell(ReloadOrdered(("a:0",)))
    assert go(it, "a:0", 2, BAD) == []
    assert it.states() == "ready ready"


# recycling


def test_age_recycles_by_replacement_with_jitter_and_counts_nowhere(desk) -> None:
    it = desk(worker("a", instances=2, recycle=RecycleSpec(age=100.0, jitter=0.1)), jitter=0.75)
    it.begin()
    it.ready("a:0")
    it.wait(1)
    it.ready("a:1")
    assert it.wait(103.9) == []
    assert it.wait(0.2) == [Spawn("a:0", 2)]
    assert it.last("a:0").cause == "recycle: age 100 s: replaces generation 1"
    assert it.wait(5) == [], "one at a time"
    come(it, "a:0", 2)
    assert go(it, "a:0", 1) == [Spawn("a:1", 2)]
    assert (it["a:0"].restarts, it.answers()) == (0, {})


def test_requests_and_memory_recycle(desk) -> None:
    it = pool(desk, 1, recycle=RecycleSpec(requests=100, memory=1000, jitter=0))
    assert it.tell(Measured("a:0", 1, requests=99, memory=999)) == []
    assert it.tell(Measured("a:0", 9, requests=999), Measured("b:0", 1, 999), Measured("lone:0", 1, 999)) == []
    assert it.tell(Measured("a:0", 1, requests=100)) == [Spawn("a:0", 2)]
    assert it.tell(Measured("a:0", 1, requests=120)) == []
    come(it, "a:0", 2)
    go(it, "a:0", 1)
    assert it.tell(Measured("a:0", 2, memory=1000)) == [Spawn("a:0", 3)]
    assert it.last("a:0").cause == "recycle: memory 1000 of 1000: replaces generation 2"


def test_a_recycling_that_fails_is_tried_again_after_a_while(desk) -> None:
    it = pool(desk, 1, recycle=RecycleSpec(age=100.0, requests=5, jitter=0))
    assert it.wait(100) == [Spawn("a:0", 2)]
    go(it, "a:0", 2, BAD)
    assert it["a:0"].state == "ready"
    assert it.tell(Measured("a:0", 1, requests=5)) == []
    assert it.wait(59) == []
    assert it.wait(1) == [Spawn("a:0", 3)]


def test_a_stop_ends_a_recycling_and_its_replacement(desk) -> None:
    it = pool(desk, 1, recycle=RecycleSpec(age=100.0, jitter=0))
    assert it.wait(100) == [Spawn("a:0", 2)]
    it.tell(StopOrdered(("a:0",), 7))
    assert it["a:0"].state == "stopping"
    go(it, "a:0", 2)
    go(it, "a:0", 1)
    assert it.answers() == {7: {"a:0": ""}}
    assert it.wait(500) == []


def test_age_does_not_count_while_it_goes_down(desk) -> None:
    it = desk(worker("a", recycle=RecycleSpec(age=1.0, jitter=0)), worker("b", "a", stop=StopSpec(timeout=99)))
    it.begin()
    it.ready("a:0")
    it.ready("b:0")
    it.tell(StopOrdered(("a:0", "b:0")))
    assert it["a:0"].state == "ready", "it waits for its dependent"
    assert it.wait(50) == []


def test_a_spare_takes_over_at_once_and_delays_begin_with_the_second_failure(desk) -> None:
    it = pool(desk, 1, spares=1)
    assert it.die("a:0", BAD) == []
    assert it.wait(0) == [Spawn("a:0", 2, warm=True)]
    it.run("a:0")
    it.die("a:0", BAD)
    assert it["a:0"].next_restart_at == it.now + 0.4


def test_a_spare_needs_no_timer_where_the_moment_of_the_end_is_told(desk) -> None:
    it = pool(desk, 1, spares=1)
    assert it.tell(Exited("a:0", 1, BAD, it.now)) == [Spawn("a:0", 2, warm=True)]


# scaling


def test_scaling_up_starts_what_is_new(desk) -> None:
    it = pool(desk, 2)
    assert it.tell(ScaleOrdered((("a", 4),), 7)) == [Spawn("a:2", 1), Spawn("a:3", 1)]
    assert [view.instance for view in it.core.snapshot()] == ["a:0", "a:1", "a:2", "a:3", "lone:0"]
    scaled = it.announced("worker.scaled")[0]
    assert (scaled.cause, dict(scaled.details)) == ("a: 2 -> 4 instances", {"worker": "a", "from": 2, "to": 4})
    it.ready("a:2")
    assert it.answers() == {}
    it.ready("a:3")
    assert it.answers() == {7: {"a:2": "", "a:3": ""}}


def test_scaling_up_starts_nothing_that_a_person_has_stopped(desk) -> None:
    it = desk(worker("a"), worker("b", "a"))
    it.begin()
    it.ready("a:0", "b:0")
    it.tell(StopOrdered(("a:0",), 6))
    it.die("a:0", OK)
    assert it.tell(ScaleOrdered((("b", 2),), 7))[:-1] == []
    assert (it["a:0"].state, it["b:0"].state, it["b:1"].state) == ("stopped", "ready", "waiting")
    assert it.answers()[7] == {"b:1": "it waits, but a:0 is stopped"}
    assert it.tell(StartOrdered(("a:0",))) == [Spawn("a:0", 2)]
    assert Spawn("b:1", 1) in it.ready("a:0")


def test_what_a_changed_configuration_adds_leaves_the_backoff_of_what_it_needs_alone(desk) -> None:
    it = desk(worker("a"))
    it.begin()
    it.ready("a:0")
    it.die("a:0", BAD)
    assert apply(it, worker("a"), worker("b", "a")) == []
    assert (it["a:0"].state, it["b:0"].state) == ("backoff", "waiting")
    assert it.wait(1) == [Spawn("a:0", 2)]
    assert Spawn("b:0", 1) in it.ready("a:0")


def test_what_is_added_together_waits_for_each_other_in_any_order(desk) -> None:
    it = desk(worker("a"))
    it.begin()
    assert apply(it, worker("a"), worker("c", "b"), worker("b")) == [Spawn("b:0", 1)]
    assert it.ready("b:0") == [Spawn("c:0", 1)]


def test_scaling_down_removes_the_highest_and_touches_no_survivor(desk) -> None:
    it = pool(desk, 4)
    orders = it.tell(ScaleOrdered((("a", 2),), 7))
    assert orders == [Stop("a:2", 1, 10.0, "scaled"), Stop("a:3", 1, 10.0, "scaled")]
    assert it.states() == "ready ready ready stopping stopping" or it.states().count("stopping") == 2
    assert it.tell(StartOrdered(("a:3",), 8))[-1].results == (("a:3", "it is being removed"),)
    assert it.tell(StopOrdered(("a:3",), 9)) == []
    assert go(it, "a:3", 1)[0] == Forget("a:3")
    assert go(it, "a:2", 1)[0] == Forget("a:2")
    assert it.answers() == {7: {"a:2": "", "a:3": ""}, 8: {"a:3": "it is being removed"}, 9: {"a:3": ""}}
    assert [view.instance for view in it.core.snapshot()] == ["a:0", "a:1", "lone:0"]
    assert it.tell(ScaleOrdered((("a", 2),), 10))[-1].results == ()
    assert len(it.announced("worker.scaled")) == 1


def test_what_is_down_vanishes_at_once(desk) -> None:
    it = pool(desk, 3)
    it.die("a:1", BAD)
    it.tell(StopOrdered(("a:2",)))
    it.die("a:2", OK)
    assert [one for one in it.tell(ScaleOrdered((("a", 1),), 7)) if isinstance(one, Forget)] == [
        Forget("a:1"),
        Forget("a:2"),
    ]
    assert it.answers() == {7: {"a:1": "", "a:2": ""}}
    assert it.wait(100) == []


def test_scaling_back_before_it_was_gone(desk) -> None:
    it = pool(desk, 2)
    it.tell(ScaleOrdered((("a", 1),), 7), ScaleOrdered((("a", 2),), 8))
    assert it.answers() == {7: {"a:1": "it is wanted again"}}
    assert go(it, "a:1", 1) == [Spawn("a:1", 2)]
    it.ready("a:1")
    assert it.answers()[8] == {"a:1": ""}


def test_a_stop_is_overtaken_when_its_instance_is_removed_and_wanted_again(desk) -> None:
    it = pool(desk, 2)
    it.tell(StopOrdered(("a:1",), 6), ScaleOrdered((("a", 1),), 7), ScaleOrdered((("a", 2),), 8))
    assert it.answers() == {6: {"a:1": "it is wanted again"}, 7: {"a:1": "it is wanted again"}}


def test_a_group_that_is_gone_is_not_charged(desk) -> None:
    it = desk(worker("a"), groups=(GroupSpec("g", ("a",)),))
    it.begin()
    it.ready("a:0")
    it.die("a:0", BAD)
    apply(it, worker("a"))
    assert it.wait(1) == [Spawn("a:0", 2)]
    assert it.last("a:0").cause == "restart 1 of 5 in 60 s"


def test_a_crash_in_the_queue_for_recycling_makes_it_needless(desk) -> None:
    it = pool(desk, 2, recycle=RecycleSpec(requests=5, jitter=0))
    assert it.tell(Measured("a:0", 1, 5), Measured("a:1", 1, 5)) == [Spawn("a:0", 2)]
    it.die("a:1", BAD)
    assert it.wait(1) == [Spawn("a:1", 2)]
    come(it, "a:0", 2)
    assert go(it, "a:0", 1) == []
    it.ready("a:1")
    assert it.tell(Measured("a:1", 2, 5)) == [Spawn("a:1", 3)]


def test_scaling_down_while_it_is_replaced(desk) -> None:
    it = pool(desk, 2)
    it.tell(ReloadOrdered(("a:1",), 6))
    come(it, "a:1", 2)
    it.tell(ScaleOrdered((("a", 1),), 7))
    assert go(it, "a:1", 2) == []
    assert it["a:1"].state == "stopped"
    assert go(it, "a:1", 1)[0] == Forget("a:1")
    assert it.answers() == {6: {"a:1": "it is removed"}, 7: {"a:1": ""}}


def test_a_condition_counts_the_instances_that_are_wanted(desk) -> None:
    it = desk(worker("a", instances=2), worker("w", "a"))
    it.begin()
    it.ready("a:0")
    assert it["w:0"].state == "waiting"
    assert Spawn("w:0", 1) in it.tell(ScaleOrdered((("a", 1),)))


def test_no_scaling_while_the_app_stops(desk) -> None:
    it = pool(desk, 2)
    it.tell(ShutdownOrdered("SIGTERM"))
    assert it.tell(ScaleOrdered((("a", 3),), 7))[-1].results == (("a:2", "the app is stopping"),)
    assert [view.instance for view in it.core.snapshot()] == ["a:0", "a:1", "lone:0"]


def test_no_configuration_is_applied_while_the_app_stops(desk) -> None:
    it = pool(desk, 1)
    it.tell(ShutdownOrdered("SIGTERM"))
    spec = replace(it.core.spec, workers=(*it.core.spec.workers, worker("new")))
    assert it.tell(ApplyOrdered(spec, 7)) == [Answer(7, (("new:0", "the app is stopping"),))]
    assert it.announced("config.applied") == []
    assert (it.core.config_generation, it.core.spec.workers[-1].name) == (1, "lone")


# apply


def apply(it, *workers: WorkerSpec, order: int = 7, groups=(), **supervisor):
    spec = AppSpec("app", workers, SupervisorSpec(**supervisor), groups=groups, config_path="/x/app.yaml")
    return it.tell(ApplyOrdered(spec, order))


def test_only_what_changed_restarts(desk) -> None:
    it = desk(worker("keep"), worker("change", instances=2), worker("gone"), worker("place"))
    it.begin()
    it.ready("keep:0", "change:0", "change:1", "gone:0", "place:0")
    orders = apply(
        it,
        worker("new"),
        worker("change", instances=2, env={"A": "1"}),
        worker("keep"),
        worker("place", restart=RestartSpec(max_restarts=1)),
    )
    assert orders == [Spawn("new:0", 1), Spawn("change:0", 2), Stop("gone:0", 1, 10.0, "the configuration has changed")]
    it.ready("new:0")
    go(it, "gone:0", 1)
    for name in ("change:0", "change:1"):
        assert it.answers() == {}
        come(it, name, 2)
        go(it, name, 1)
    assert it.answers() == {7: dict.fromkeys(("change:0", "change:1", "new:0", "gone:0"), "")}
    assert [view.instance for view in it.core.snapshot()] == ["new:0", "change:0", "change:1", "keep:0", "place:0"]
    assert (it["keep:0"].generation, it["place:0"].generation) == (1, 1)
    assert it.core.config_generation == 2
    applied = it.announced("config.applied")[0]
    assert dict(applied.details) == {
        "config_generation": 2,
        "plan": ["remove gone 1 instance", "add new 1 instance", "restart change env", "change place restart"],
    }
    it.die("place:0", BAD)
    it.wait(1)
    it.die("place:0", BAD)
    assert it["place:0"].state == "failed", "its budget is the new one"


def test_nothing_to_do(desk) -> None:
    it = pool(desk, 2)
    before = it.core.spec
    assert it.tell(ApplyOrdered(before, 7))[-1].results == ()
    assert it.core.config_generation == 2


def test_groups_and_dependencies_change_in_place_and_budgets_go_on(desk) -> None:
    it = desk(worker("a"), worker("b"), groups=(GroupSpec("g", ("a", "b"), max_restarts=1),))
    it.begin()
    it.ready("a:0", "b:0")
    it.die("a:0", BAD)
    it.wait(1)
    it.ready("a:0")
    group = GroupSpec("g", ("a", "b"), "one-for-all", max_restarts=2)
    assert apply(it, worker("a"), worker("b", "a"), groups=(group,))[-1].results == ()
    it.die("a:0", BAD)
    assert it["b:0"].state == "stopping"
    it.die("b:0", OK)
    assert it.wait(1) == [Spawn("a:0", 3)]
    assert it["b:0"].waiting_for == ("a",)
    it.ready("a:0", "b:0")
    it.die("b:0", BAD)
    assert it.last("b:0").cause.endswith("restart budget of group g spent: 2 in 60 s")
    it.die("a:0", OK)
    apply(it, worker("a"), worker("b"), groups=(GroupSpec("new", ("a", "b"), max_restarts=0),))
    it.tell(StartOrdered(("b:0",)))
    it.die("b:0", BAD)
    assert it.last("b:0").cause.endswith("restart budget of group new spent: 0 in 60 s")


def test_a_pending_restart_is_charged_to_its_group_over_an_apply(desk) -> None:
    groups = (GroupSpec("g", ("a", "b"), max_restarts=1),)
    it = desk(worker("a"), worker("b"), groups=groups)
    it.begin()
    it.ready("a:0", "b:0")
    it.die("a:0")
    apply(it, worker("a"), worker("b", start_timeout=9.0), groups=groups)
    assert it.wait(1) == [Spawn("a:0", 2)]
    assert "1 of 1 in 60 s of group g" in it.last("a:0").cause
    it.die("b:0")
    assert it["b:0"].state == "failed"


def test_a_removed_dependency_goes_after_its_removed_dependents(desk) -> None:
    it = desk(worker("low"), worker("top", "low"), worker("keep"))
    it.begin()
    it.ready("low:0", "keep:0")
    it.ready("top:0")
    assert apply(it, worker("keep")) == [Stop("top:0", 1, 10.0, "the configuration has changed")]
    assert go(it, "top:0", 1)[0] == Stop("low:0", 1, 10.0, "the configuration has changed")


def test_a_failed_worker_gets_a_life_with_its_new_configuration(desk) -> None:
    it = desk(worker("a", restart=RestartSpec(policy="never")))
    it.begin()
    it.die("a:0", BAD)
    assert apply(it, worker("a", restart=RestartSpec(policy="never"), args=(1,))) == [Spawn("a:0", 2)]


def test_a_configuration_before_the_start_is_the_one_that_starts(desk) -> None:
    it = desk(worker("a"))
    apply(it, worker("a"), worker("b"), order=0)
    assert it.tell(AppStart()) == [Spawn("a:0", 1), Spawn("b:0", 1)]


def test_the_draining_life_obeys_the_new_configuration_and_the_idle_app_ends(desk) -> None:
    it = desk(worker("a"))
    it.begin()
    it.ready("a:0")
    it.tell(ReloadOrdered(("a:0",)))
    come(it, "a:0", 2)
    apply(it, worker("a", stop=StopSpec(timeout=1)), on_idle="exit")
    it.die("a:0", OK)
    assert go(it, "a:0", 1) == [EndApp(0)] or it.ends() == [0]


# plan


BASE = AppSpec("app", (worker("a"), worker("b", target="m:f")), groups=(GroupSpec("g", ("a",)),))


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, []),
        ({"args": (1,)}, ["restart b args"]),
        ({"instances": 3}, ["scale b 1 -> 3 instances"]),
        ({"instances": 3, "env": {"A": "b"}, "on_failed": "shutdown"},
         ["restart b env, on_failed", "scale b 1 -> 3 instances"]),
        ({"stop": StopSpec(timeout=3)}, ["change b stop"]),
        ({"stop": StopSpec(signal="SIGINT")}, ["restart b stop"]),
        ({"heartbeat": HeartbeatSpec(timeout=99)}, ["change b heartbeat"]),
        ({"heartbeat": HeartbeatSpec(interval=2, timeout=99)}, ["restart b heartbeat"]),
        ({"says_ready": True}, ["change b ready"]),
        ({"recycle": RecycleSpec(age=1), "spares": 2}, ["change b recycle, spares"]),
    ],
)  # fmt: skip
def test_what_a_key_needs(changes, steps) -> None:
    new = replace(BASE, workers=(BASE.workers[0], replace(BASE.workers[1], **changes)))
    found = plan.diff(BASE, new)
    assert [f"{step.kind} {step.name} {step.what}" for step in found.steps] == steps
    assert found.refused == ()


def test_the_plan_of_everything_else() -> None:
    new = replace(
        BASE,
        app="other",
        python_path=("/x",),
        supervisor=SupervisorSpec(shutdown_timeout=1, runtime_dir="/y"),
        groups=(GroupSpec("h", ("b", "a")),),
    )
    found = plan.diff(BASE, new)
    assert [(step.kind, step.name, step.what) for step in found.steps] == [
        ("restart", "b", "python_path"),
        ("remove", "group g", ""),
        ("add", "group h", "b, a"),
        ("change", "supervisor", "shutdown_timeout"),
    ]
    assert found.refused == (
        "app cannot change while the app runs",
        "supervisor.runtime_dir cannot change while the app runs",
    )
    assert found.restarted == ("b",)
    changed = plan.diff(BASE, replace(BASE, groups=(GroupSpec("g", ("a",), "one-for-all"),)))
    assert [(step.kind, step.name, step.what) for step in changed.steps] == [("change", "group g", "strategy")]

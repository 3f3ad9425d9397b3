"""Liveness checks, one's own word of a hang, pleas for time."""

from __future__ import annotations

import pytest

from smartipc.supervisor.core.facts import (
    Beat,
    BecameReady,
    Extended,
    Probed,
    RestartOrdered,
    Spawned,
    Started,
    StopOrdered,
    Unwell,
)
from smartipc.supervisor.core.health import Health
from smartipc.supervisor.core.orders import Abort, Kill, Spawn, Stop
from smartipc.supervisor.core.process_spec import ProbeSpec
from smartipc.supervisor.core.spec import HeartbeatSpec, RestartSpec, StopSpec, WorkerSpec


def command(**keys) -> WorkerSpec:
    keys.setdefault("liveness", ProbeSpec(tcp=("h", 1), failures=3, successes=2))
    restart = RestartSpec(jitter=0)
    return WorkerSpec("w", command=("x",), ready="started", restart=restart, stop=StopSpec(timeout=4.0), **keys)


def probed(desk, *results: bool) -> list:
    orders = []
    for ok in results:
        orders += desk.tell(Probed("w:0", desk["w:0"].generation, "" if ok else "no answer"))
    return orders


@pytest.mark.parametrize(
    ("failures", "successes", "results", "turns"),
    [
        (3, 1, "-+-+-", ["sicken", "recover", "sicken", "recover", "sicken"]),
        (3, 1, "---", ["sicken", "", "give up"]),
        (1, 1, "-", ["give up"]),
        (2, 2, "-++-+-", ["sicken", "", "recover", "sicken", "", ""]),
        (2, 3, "++++", ["", "", "", ""]),
        (3, 2, "--+--", ["sicken", "", "", "", ""]),
    ],
)
def test_thresholds(failures: int, successes: int, results: str, turns: list[str]) -> None:
    health = Health(failures, successes)
    assert [health.take(ok=one == "+") for one in results] == turns


def test_from_the_first_failed_check_it_is_degraded_until_enough_pass(desk) -> None:
    it = desk(command())
    it.begin()
    it.run("w:0")
    assert probed(it, True, True) == []
    assert it["w:0"].state == "ready"
    probed(it, False)
    assert it.last("w:0").cause == "liveness: no answer"
    probed(it, False, True)
    assert it["w:0"].state == "degraded"
    probed(it, True)
    assert it.path("w:0") == ["starting", "running", "ready", "degraded", "ready"]


def test_failures_in_a_row_restart_a_command_with_its_grace(desk) -> None:
    it = desk(command())
    it.begin()
    it.run("w:0")
    orders = probed(it, False, False, False)
    assert orders == [Stop("w:0", 1, 4.0, "liveness: 3 failed in a row: no answer")]
    assert [one.cause for one in it.announced("instance.hang")] == ["liveness: 3 failed in a row: no answer"]
    assert probed(it, False, True, True) == [], "its end is decided"
    assert it.wait(4.0) == [Kill("w:0", 1)]
    it.die("w:0")
    assert it["w:0"].state == "backoff"
    assert it["w:0"].last_exit.reason == "liveness: 3 failed in a row: no answer"
    assert it.wait(0.2) == [Spawn("w:0", 2)]


def test_a_single_failure_may_be_enough(desk) -> None:
    it = desk(command(liveness=ProbeSpec(tcp=("h", 1), failures=1)))
    it.begin()
    it.run("w:0")
    assert [type(order) for order in probed(it, False)] == [Stop]
    assert it["w:0"].state == "degraded"


def test_a_function_worker_past_hope_writes_its_stacks(desk) -> None:
    probe = ProbeSpec(request="w.ping", failures=2)
    it = desk(WorkerSpec("w", target="m:f", liveness=probe, restart=RestartSpec(jitter=0)))
    it.begin()
    it.ready("w:0")
    assert probed(it, False, False) == [Abort("w:0", 1)]
    assert it.path("w:0")[-1] == "degraded"
    assert it.wait(1.0) == [Kill("w:0", 1)]


def test_every_life_is_judged_afresh(desk) -> None:
    it = desk(command())
    it.begin()
    it.run("w:0")
    probed(it, False, False)
    it.die("w:0")
    it.wait(0.2)
    it.run("w:0")
    assert probed(it, False, False) == []
    assert it["w:0"].state == "degraded"


def test_a_degraded_instance_may_end_as_it_should(desk) -> None:
    it = desk(command())
    it.begin()
    it.run("w:0")
    probed(it, False)
    it.tell(StopOrdered(("w:0",), 1))
    assert probed(it, False, False) == []
    assert it["w:0"].state == "stopping"
    assert "w:0 stopping" in repr(it.core._wellbeing)


def test_steadiness_begins_anew_with_recovery(desk) -> None:
    it = desk(command())
    it.begin()
    it.run("w:0")
    it.wait(59)
    probed(it, False, True, True)
    it.wait(30)
    it.die("w:0")
    assert it["w:0"].attempt == 1
    it.wait(0.2)
    it.run("w:0")
    it.wait(59)
    probed(it, False)
    it.wait(30)
    it.die("w:0")
    assert it["w:0"].attempt == 2, "degraded time is not steady"


def test_a_heartbeat_is_watched_while_degraded_too(desk) -> None:
    it = desk(command(heartbeat=HeartbeatSpec(1.0, 5.0, "process")))
    it.begin()
    it.run("w:0", watched=True)
    probed(it, False)
    assert it.wait(5.0) == [Abort("w:0", 1)]
    assert it.path("w:0")[-1] == "degraded"


def test_its_own_word_that_it_hangs_is_taken(desk) -> None:
    it = desk(command())
    it.begin()
    assert it.tell(Unwell("w:0", 1, "says so")) == [], "before it is ready the start timeout judges"
    it.run("w:0")
    assert it.tell(Unwell("w:0", 1, "says so"), Unwell("w:0", 1, "again")) == [Abort("w:0", 1)]


def test_a_start_is_extended_never_shortened(desk) -> None:
    it = desk(WorkerSpec("w", command=("x",), ready="notify", says_ready=True, start_timeout=10.0))
    it.begin()
    it.tell(Spawned("w:0", 1, 7), Started("w:0", 1), Extended("w:0", 1, 5.0))
    it.wait(9)
    it.tell(Extended("w:0", 1, 5.0))
    assert it.wait(4.9) == []
    assert it.wait(0.2) == [Kill("w:0", 1)]


def test_a_stop_is_extended_but_not_after_the_kill(desk) -> None:
    it = desk(command())
    it.begin()
    it.run("w:0")
    it.tell(StopOrdered(("w:0",), 1), Extended("w:0", 1, 20.0))
    assert it.wait(19.9) == []
    assert it.wait(0.2) == [Kill("w:0", 1)]
    it.tell(Extended("w:0", 1, 100.0))
    assert it.wait(1.0) == [Kill("w:0", 1)]


def test_extending_a_ready_life_means_nothing(desk) -> None:
    it = desk(command())
    it.begin()
    it.run("w:0")
    it.tell(Extended("w:0", 1, 100.0), Beat("w:0", 1), BecameReady("w:0", 1))
    assert it.core.next_timer() is None


def test_words_about_an_earlier_life_come_too_late(desk) -> None:
    it = desk(command())
    it.begin()
    it.run("w:0")
    it.tell(RestartOrdered(("w:0",), 1))
    it.die("w:0")
    it.run("w:0")
    assert it.tell(Probed("w:0", 1, "late"), Unwell("w:0", 1, "late"), Extended("w:0", 1, 9.0)) == []
    assert it["w:0"].state == "ready"


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        (ProbeSpec(http="http://h/x"), "http http://h/x"),
        (ProbeSpec(tcp=("h", 80)), "tcp h:80"),
        (ProbeSpec(exec=("a", "b")), "exec a b"),
        (ProbeSpec(request="w.ping"), "request w.ping"),
    ],
)
def test_a_probe_says_what_it_asks(probe: ProbeSpec, words: str) -> None:
    assert probe.words == words

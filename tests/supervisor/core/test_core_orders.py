"""Orders of persons: start, stop, restart, reset; each is answered exactly once."""

from __future__ import annotations

import pytest

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.core.facts import (
    BecameReady,
    ResetOrdered,
    RestartOrdered,
    ShutdownOrdered,
    StartOrdered,
    StopOrdered,
)
from smartipc.supervisor.core.lifecycle import PATIENCE
from smartipc.supervisor.core.orders import Abort, Kill, Spawn, Stop
from smartipc.supervisor.core.spec import HeartbeatSpec, RestartSpec, StopSpec, WorkerSpec

OK = ExitFacts(code=0)
BAD = ExitFacts(code=1)
W = ("w:0",)


def worker(name: str = "w", **keys) -> WorkerSpec:
    keys.setdefault("restart", RestartSpec(jitter=0, max_restarts=99))
    return WorkerSpec(name, **keys)


def test_stop_tells_waits_the_grace_kills_and_reports_when_it_is_gone(desk) -> None:
    it = desk(worker(stop=StopSpec(timeout=4)))
    it.begin()
    it.ready("w:0")
    assert it.tell(StopOrdered(W, 1)) == [Stop("w:0", 1, 4, "ordered stop")]
    assert it.wait(3.9) == []
    assert it.wait(0.1) == [Kill("w:0", 1)]
    assert it.wait(1) == [Kill("w:0", 1)]
    assert it["w:0"].state == "stopping"
    assert it.answers() == {}
    it.die("w:0", ExitFacts(signal="SIGKILL"))
    assert it["w:0"].state == "stopped"
    assert it.last("w:0").pid == 4001
    assert it.answers() == {1: {"w:0": ""}}
    assert it.wait(1000) == []
    assert it["w:0"].restarts == 0


def test_a_word_of_readiness_while_stopping_changes_nothing(desk) -> None:
    it = desk(worker())
    it.begin()
    it.run("w:0")
    it.tell(StopOrdered(W), BecameReady("w:0", 1))
    assert it["w:0"].state == "stopping"


@pytest.mark.parametrize("state", ["stopped", "waiting", "backoff", "exited", "failed"])
def test_stop_of_what_does_not_live_is_done_at_once_and_keeps_it_down(desk, state) -> None:
    it = in_state(desk, state)
    it.tell(StopOrdered(W, 1))
    assert it["w:0"].state == "stopped"
    assert it.answers() == {1: {"w:0": ""}}
    it.ready("dep:0")
    it.wait(100)
    assert it["w:0"].state == "stopped"


def in_state(desk, state: str):
    """Bring w:0 into a state without a process; dep:0 is spawned and not ready."""
    needs = (("dep", "ready"),) if state == "waiting" else ()
    policy = "never" if state == "failed" else "on-failure"
    it = desk(worker("dep"), worker(depends_on=needs, restart=RestartSpec(policy=policy, jitter=0)))
    it.begin()
    match state:
        case "backoff" | "failed":
            it.die("w:0", BAD)
        case "exited":
            it.die("w:0", OK)
        case "stopped":
            it.tell(StopOrdered(W))
            it.die("w:0")
    assert it["w:0"].state == state
    return it


@pytest.mark.parametrize("state", ["stopped", "backoff", "exited", "failed"])
@pytest.mark.parametrize("order", [StartOrdered, RestartOrdered])
def test_start_and_restart_of_what_does_not_live_start_at_once(desk, state, order) -> None:
    it = in_state(desk, state)
    assert it.tell(order(W, 1)) == [Spawn("w:0", 2)]
    assert it.answers() == {}
    it.ready("w:0")
    assert it.answers() == {1: {"w:0": ""}}
    assert it["w:0"].restarts == 0
    assert it.tell(order(W)) == [] or order is RestartOrdered


def test_start_of_what_is_ready_is_done(desk) -> None:
    it = desk(worker())
    it.begin()
    it.ready("w:0")
    it.tell(StartOrdered(W, 1))
    assert it.answers() == {1: {"w:0": ""}}


def test_start_of_a_job_is_done_when_it_has_completed(desk) -> None:
    it = desk(worker())
    it.tell(StartOrdered(W, 1))
    it.run("w:0")
    it.die("w:0", OK)
    assert it.answers() == {1: {"w:0": ""}}


def test_start_goes_on_through_backoff_until_ready_or_failed(desk) -> None:
    it = desk(worker(restart=RestartSpec(jitter=0, max_restarts=1)))
    it.tell(StartOrdered(W, 1))
    it.die("w:0")
    assert it.answers() == {}
    it.wait(1)
    it.die("w:0")
    assert it.answers() == {1: {"w:0": "exit code 1; restart budget spent: 1 in 60 s"}}


def test_start_of_what_never_says_ready_is_done_when_its_start_time_is_over(desk) -> None:
    it = desk(worker(start_timeout=3))
    it.tell(StartOrdered(W, 1))
    it.run("w:0")
    it.wait(2)
    assert it.answers() == {}
    it.wait(1)
    assert it.answers() == {1: {"w:0": ""}}
    it.tell(StartOrdered(W, 2))
    assert it.answers()[2] == {"w:0": ""}


def test_but_at_the_latest_some_seconds_after_its_code_runs(desk) -> None:
    it = desk(worker(start_timeout=30))
    it.tell(StartOrdered(W, 1))
    it.wait(8)
    it.run("w:0")
    it.wait(PATIENCE - 0.1)
    assert it.answers() == {}
    it.wait(0.1)
    assert it.answers() == {1: {"w:0": ""}}
    assert it["w:0"].state == "running"
    it.ready("w:0")
    assert it["w:0"].state == "ready", "it may say so whenever it likes"


def test_one_that_is_to_say_that_it_is_ready_is_waited_for(desk) -> None:
    it = desk(worker(start_timeout=30, says_ready=True))
    it.tell(StartOrdered(W, 1))
    it.run("w:0")
    it.wait(29)
    assert it.answers() == {}
    it.ready("w:0")
    assert it.answers() == {1: {"w:0": ""}}


def test_a_start_time_that_ends_while_a_restart_waits_its_turn_answers_nobody(desk) -> None:
    it = desk(worker(start_timeout=3), worker("top", depends_on=(("w", "started"),)))
    it.begin()
    it.run("w:0")
    it.ready("top:0")
    it.tell(RestartOrdered(("w:0", "top:0"), 1))
    it.wait(3)
    assert it["w:0"].state == "running"
    assert it.answers() == {}


def test_restart_stops_then_starts_and_does_not_count(desk) -> None:
    it = desk(worker(restart=RestartSpec(max_restarts=0)))
    it.begin()
    it.ready("w:0")
    assert it.tell(RestartOrdered(W, 1)) == [Stop("w:0", 1, 10, "ordered restart")]
    assert it.die("w:0", BAD) == [Spawn("w:0", 2)]
    assert it.answers() == {}
    it.ready("w:0")
    assert it.answers() == {1: {"w:0": ""}}
    assert it["w:0"].restarts == 0
    assert it.path("w:0")[-5:] == ["stopping", "stopped", "starting", "running", "ready"]


@pytest.mark.parametrize(
    ("first", "second", "reason", "state"),
    [
        (StartOrdered, StopOrdered, "overtaken by a stop", "stopped"),
        (RestartOrdered, StopOrdered, "overtaken by a stop", "stopped"),
        (StopOrdered, StartOrdered, "overtaken by a start", "starting"),
        (StopOrdered, RestartOrdered, "overtaken by a restart", "starting"),
    ],
)
def test_an_order_that_is_overtaken_is_answered_with_the_reason(desk, first, second, reason, state) -> None:
    it = desk(worker())
    it.begin()
    it.run("w:0")
    it.tell(first(W, 1))
    it.tell(second(W, 2))
    assert it.answers() == {1: {"w:0": reason}}
    it.die("w:0", OK)
    assert it["w:0"].state == state
    if state == "starting":
        it.ready("w:0")
    assert it.answers() == {1: {"w:0": reason}, 2: {"w:0": ""}}


def test_orders_with_the_same_aim_wait_together(desk) -> None:
    it = desk(worker())
    it.begin()
    it.tell(StartOrdered(W, 1), RestartOrdered(W, 2), StartOrdered(W, 3))
    it.die("w:0")
    it.ready("w:0")
    assert it.answers() == {1: {"w:0": ""}, 2: {"w:0": ""}, 3: {"w:0": ""}}


def test_orders_that_name_nobody_or_strangers_are_answered_at_once(desk) -> None:
    it = desk(worker())
    it.tell(StartOrdered((), 1), StopOrdered(("x:0",), 2), ResetOrdered(("w:0", "w:0"), 3))
    assert it.answers() == {1: {}, 2: {"x:0": "there is no such instance"}, 3: {"w:0": ""}}


def test_start_of_a_waiting_one_starts_what_it_waits_for(desk) -> None:
    it = desk(
        worker("low"),
        worker("mid", depends_on=(("low", "ready"),)),
        worker("top", depends_on=(("mid", "ready"),)),
    )
    everything = ("low:0", "mid:0", "top:0")
    assert it.tell(StartOrdered(("top:0",), 1)) == [Spawn("low:0", 1)]
    assert it.states() == "starting waiting waiting"
    assert it.ready("low:0") == [Spawn("mid:0", 1)]
    assert it.ready("mid:0") == [Spawn("top:0", 1)]
    assert it.last("top:0").cause == "dependency mid ready"
    it.ready("top:0")
    assert it.answers() == {1: {"top:0": ""}}

    # A stop under way is overtaken as well.
    it.tell(StopOrdered(everything, 2))
    it.die("top:0", OK)
    assert it["mid:0"].state == "stopping"
    it.tell(StartOrdered(("top:0",), 3))
    assert it.answers().get(2) == {
        "low:0": "overtaken by a start of top:0",
        "mid:0": "overtaken by a start of top:0",
        "top:0": "",
    }
    it.die("mid:0", OK)
    assert it.states() == "ready starting waiting"


def test_start_does_not_touch_a_dependency_whose_condition_is_met(desk) -> None:
    it = desk(
        worker("job", restart=RestartSpec(policy="never")),
        worker("after", depends_on=(("job", "completed"),)),
    )
    it.begin()
    it.die("job:0", BAD)
    it.tell(StopOrdered(("after:0",)))
    it.die("after:0")
    assert it.tell(StartOrdered(("after:0",), 1)) == [Spawn("after:0", 2)]
    assert it["job:0"].state == "failed"


def test_start_of_one_that_waits_after_a_failure_is_no_automatic_restart(desk) -> None:
    it = desk(worker("dep"), worker(depends_on=(("dep", "ready"),)))
    it.begin()
    it.ready("dep:0", "w:0")
    it.tell(StopOrdered(("dep:0",)))
    it.die("dep:0", OK)
    it.die("w:0", BAD)
    it.wait(1)
    assert (it["w:0"].state, it["w:0"].waiting_for) == ("waiting", ("dep",))
    assert it.tell(StartOrdered(W)) == [Spawn("dep:0", 2)]
    assert it.ready("dep:0") == [Spawn("w:0", 2)]
    assert it["w:0"].restarts == 0


def test_an_automatic_restart_that_had_to_wait_is_counted_when_it_happens(desk) -> None:
    it = desk(worker("dep"), worker(depends_on=(("dep", "ready"),)))
    it.begin()
    it.ready("dep:0", "w:0")
    it.die("dep:0")
    it.die("w:0")
    it.wait(0.3)
    assert it.states() == "starting waiting"
    assert it["w:0"].restarts == 0
    it.ready("dep:0")
    assert it.last("w:0").cause == "dependency dep ready; restart 1 of 99 in 60 s"
    assert it["w:0"].restarts == 1


def test_a_start_that_waits_in_vain_says_so(desk) -> None:
    it = desk(worker("dep", restart=RestartSpec(policy="never")), worker(depends_on=(("dep", "ready"),)))
    it.tell(StartOrdered(W, 1))
    it.die("dep:0")
    assert it.answers() == {1: {"w:0": "it waits, but dep:0 is failed"}}
    assert it["w:0"].state == "waiting"
    assert it.tell(StartOrdered(("dep:0",))) == [Spawn("dep:0", 2)]
    assert it.ready("dep:0") == [Spawn("w:0", 1)], "it still wants to run"


def test_a_pool_that_waits_in_part_is_answered_in_part(desk) -> None:
    it = desk(
        worker("dep", restart=RestartSpec(policy="never")),
        worker(depends_on=(("dep", "ready"),), instances=2),
    )
    it.begin()
    it.ready("dep:0", "w:0", "w:1")
    it.die("dep:0")
    it.tell(StopOrdered(("w:1",)))
    it.die("w:1", OK)
    it.tell(StartOrdered(("w:0", "w:1"), 1))
    it.die("dep:0")
    assert it.answers() == {1: {"w:0": "", "w:1": "it waits, but dep:0 is failed"}}


def test_stop_goes_down_in_reverse_order_and_outsiders_do_not_delay_it(desk) -> None:
    it = desk(
        worker("low"),
        worker("mid", depends_on=(("low", "ready"),)),
        worker("top", depends_on=(("mid", "ready"),)),
    )
    it.begin()
    it.ready("low:0")
    it.ready("mid:0")
    it.ready("top:0")
    assert it.tell(StopOrdered(("low:0", "mid:0"), 1)) == [Stop("mid:0", 1, 10, "ordered stop")]
    assert it.die("mid:0", OK) == [Stop("low:0", 1, 10, "ordered stop")]
    it.die("low:0", OK)
    assert it.states() == "stopped stopped ready"
    assert it.answers() == {1: {"low:0": "", "mid:0": ""}}


def test_restart_of_all_goes_down_in_reverse_order_and_up_in_order(desk) -> None:
    it = desk(worker("low"), worker("top", depends_on=(("low", "ready"),)))
    it.begin()
    it.ready("low:0")
    it.ready("top:0")
    assert it.tell(RestartOrdered(("low:0", "top:0"), 1)) == [Stop("top:0", 1, 10, "ordered restart")]
    assert it.die("top:0", OK) == [Stop("low:0", 1, 10, "ordered restart")]
    assert it.states() == "stopping waiting"
    assert it.die("low:0", OK) == [Spawn("low:0", 2)]
    assert it.ready("low:0") == [Spawn("top:0", 2)]
    it.ready("top:0")
    assert it.answers() == {1: {"low:0": "", "top:0": ""}}


def test_a_start_calls_off_a_stop_whose_turn_has_not_come_but_not_a_restart(desk) -> None:
    it = desk(worker("low"), worker("top", depends_on=(("low", "ready"),)))
    it.begin()
    it.ready("low:0")
    it.ready("top:0")
    it.tell(StopOrdered(("low:0", "top:0"), 1), StartOrdered(("low:0",), 2))
    assert it.answers() == {2: {"low:0": ""}}
    it.die("top:0", OK)
    assert it.states() == "ready stopped"
    assert it.answers()[1] == {"low:0": "overtaken by a start", "top:0": ""}

    it = desk(worker("low"), worker("top", depends_on=(("low", "ready"),)))
    it.begin()
    it.ready("low:0")
    it.ready("top:0")
    it.tell(RestartOrdered(("low:0", "top:0"), 1), StartOrdered(("low:0",), 2))
    assert it.answers() == {}
    assert it.die("top:0", OK) == [Stop("low:0", 1, 10, "ordered restart")]


def test_what_becomes_ready_while_its_restart_waits_answers_nobody(desk) -> None:
    it = desk(worker("low"), worker("top", depends_on=(("low", "started"),)))
    it.begin()
    it.run("low:0")
    it.ready("top:0")
    it.tell(RestartOrdered(("low:0", "top:0"), 1))
    it.tell(BecameReady("low:0", 1))
    it.die("top:0", OK)
    it.die("low:0", OK)
    assert it.answers() == {}


def test_what_ends_before_its_turn_to_stop_ends_as_planned(desk) -> None:
    it = desk(worker("low", on_failed="shutdown"), worker("top", depends_on=(("low", "ready"),)))
    it.begin()
    it.ready("low:0")
    it.ready("top:0")
    it.tell(StopOrdered(("low:0", "top:0"), 1))
    it.die("low:0", BAD)
    assert it["low:0"].state == "stopped"
    assert it.path("low:0")[-2:] == ["stopping", "stopped"]
    it.die("top:0", OK)
    assert it.answers() == {1: {"low:0": "", "top:0": ""}}
    assert it.core.app_state == "running"


def test_a_stop_does_not_put_off_the_kill_of_what_hangs(desk) -> None:
    it = desk(worker(heartbeat=HeartbeatSpec(timeout=5)))
    it.begin()
    it.ready("w:0", watched=True)
    assert it.wait(5) == [Abort("w:0", 1)]
    assert it.tell(StopOrdered(W, 1)) == [Stop("w:0", 1, 1.0, "ordered stop")]
    assert it.wait(1) == [Kill("w:0", 1)]
    it.die("w:0")
    assert it["w:0"].state == "stopped"


def test_once_the_app_stops_starts_are_refused_and_open_ones_are_answered(desk) -> None:
    it = desk(worker())
    it.begin()
    it.tell(StartOrdered(W, 1))
    it.tell(ShutdownOrdered("a person", order=2))
    it.tell(StartOrdered(W, 3), RestartOrdered(W, 4), ResetOrdered(W, 5), StopOrdered(W, 6))
    refused = {"w:0": "the app is stopping"}
    assert it.answers() == {1: refused, 3: refused, 4: refused, 5: refused}
    it.die("w:0", OK)
    assert it.answers()[6] == {"w:0": ""}
    assert it.answers()[2] == {}


def test_what_two_need_is_started_once(desk) -> None:
    needs = (("left", "ready"), ("right", "ready"))
    it = desk(
        worker("low"),
        worker("left", depends_on=(("low", "ready"),)),
        worker("right", depends_on=(("low", "ready"),)),
        worker("top", depends_on=needs),
    )
    assert it.tell(StartOrdered(("top:0",))) == [Spawn("low:0", 1)]
    assert it.ready("low:0") == [Spawn("left:0", 1), Spawn("right:0", 1)]
    assert it.ready("left:0") == []
    assert it["top:0"].waiting_for == ("right",)
    assert it.ready("right:0") == [Spawn("top:0", 1)]

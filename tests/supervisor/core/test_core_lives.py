"""Single lives: starting, failing, backing off, hanging, and facts that come late."""

from __future__ import annotations

import pytest

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.core.core import Core
from smartipc.supervisor.core.facts import (
    Beat,
    BecameReady,
    Exited,
    ResetOrdered,
    ShutdownOrdered,
    Spawned,
    SpawnFailed,
    Started,
    StartOrdered,
    StopOrdered,
)
from smartipc.supervisor.core.orders import Abort, Kill, Spawn, Stop
from smartipc.supervisor.core.spec import AppSpec, HeartbeatSpec, RestartSpec, WorkerSpec

OK = ExitFacts(code=0)
BAD = ExitFacts(code=1)


def worker(name: str = "w", **keys) -> WorkerSpec:
    keys.setdefault("restart", RestartSpec(jitter=0))
    return WorkerSpec(name, **keys)


def test_a_life_from_spawn_to_ready(desk) -> None:
    it = desk(worker())
    assert it.begin() == [Spawn("w:0", 1)]
    assert it["w:0"].pid is None
    it.tell(Spawned("w:0", 1, 77), Started("w:0", 1), BecameReady("w:0", 1), BecameReady("w:0", 1))
    assert it.path("w:0") == ["starting", "running", "ready"]
    assert it["w:0"].pid == 77
    assert it.begin() == []
    assert "running" in repr(it.core)
    assert "w:0 ready" in repr(it.core._lives)


def test_ready_started_is_ready_as_soon_as_the_code_runs(desk) -> None:
    it = desk(worker(ready="started"))
    it.begin()
    it.run("w:0")
    assert it.path("w:0") == ["starting", "running", "ready"]


def test_ten_crashes_at_start_go_through_backoff_to_failed(desk) -> None:
    restart = RestartSpec(jitter=0, max_restarts=9, window=600)
    it = desk(worker(restart=restart), worker("other"))
    it.begin()
    it.ready("other:0")
    delays = []
    for _ in range(9):
        it.run("w:0")
        it.die("w:0")
        delays.append(it.last("w:0").next_restart_in)
        assert it.wait(delays[-1] - 0.001) == []
        assert it.wait(0.002) == [Spawn("w:0", it["w:0"].generation)]
    it.run("w:0")
    it.die("w:0")
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30])
    assert (it["w:0"].state, it["w:0"].restarts, it["w:0"].generation) == ("failed", 9, 10)
    assert it.last("w:0").cause == "exit code 1; restart budget spent: 9 in 600 s"
    assert it["other:0"].state == "ready"
    assert it.core.next_timer() is None


def test_a_delay_begins_with_the_end_where_that_is_told(desk) -> None:
    it = desk(worker(restart=RestartSpec(jitter=0, delay=0.2)))
    it.begin()
    it.run("w:0")
    assert it.tell(Exited("w:0", 1, BAD, it.now - 0.15)) == []
    assert it["w:0"].next_restart_at == pytest.approx(it.now + 0.05)
    assert it.wait(0.1) == [Spawn("w:0", 2)]
    it.run("w:0")
    assert it.tell(Exited("w:0", 2, BAD, it.now + 5)) == [], "the clocks of a host may differ: no delay grows by that"
    assert it["w:0"].next_restart_at == it.now + 0.4


def test_a_delay_that_is_over_when_the_end_is_told_needs_no_timer(desk) -> None:
    it = desk(worker(restart=RestartSpec(jitter=0, delay=0.2, max_restarts=2)))
    it.begin()
    it.run("w:0")
    assert it.tell(Exited("w:0", 1, BAD, it.now - 0.2)) == [Spawn("w:0", 2)]
    assert it.path("w:0")[-2:] == ["backoff", "starting"]
    assert (it["w:0"].pid, it["w:0"].restarts, it["w:0"].last_exit_generation) == (None, 1, 1)
    assert it.last("w:0").cause == "restart 1 of 2 in 60 s"
    it.run("w:0")
    assert it.tell(Exited("w:0", 2, BAD, it.now - 60)) == [Spawn("w:0", 3)]
    assert it.tell(Exited("w:0", 3, BAD, it.now - 60)) == [], "the budget is spent as ever"
    assert it["w:0"].state == "failed"


def test_max_restarts_two_means_three_lives_in_the_window(desk) -> None:
    it = desk(worker(restart=RestartSpec(jitter=0, max_restarts=2, window=60)))
    it.begin()
    for _ in range(3):
        it.tell(SpawnFailed("w:0", it["w:0"].generation, "no such file"))
        it.wait(1)
    assert (it["w:0"].state, it["w:0"].generation) == ("failed", 3)
    assert it["w:0"].last_exit == ExitFacts(reason="no such file")
    assert [a.cause for a in it.announced("instance.state") if a.to_state == "starting"] == [
        "the app starts",
        "restart 1 of 2 in 60 s",
        "restart 2 of 2 in 60 s",
    ]


def test_restarts_out_of_the_window_are_forgotten_but_stay_visible(desk) -> None:
    it = desk(worker(restart=RestartSpec(jitter=0, max_restarts=1, window=10, reset_after=1)))
    it.begin()
    for _ in range(5):
        it.ready("w:0")
        it.wait(11)
        it.die("w:0")
        it.wait(1)
    assert it["w:0"].restarts == 5


def test_the_budget_counts_restarts_when_they_happen(desk) -> None:
    """The end that a long delay belongs to has left the window before the restart has."""
    restart = RestartSpec(jitter=0, delay=8, max_delay=8, max_restarts=1, window=10)
    it = desk(worker(restart=restart))
    it.begin()
    it.run("w:0")
    it.die("w:0")
    it.wait(8)
    it.run("w:0")
    it.wait(1)
    it.die("w:0")
    assert it["w:0"].state == "failed", "8 s and 17 s lie within 10 s"


def test_backoff_starts_over_after_stable_readiness_only(desk) -> None:
    restart = RestartSpec(jitter=0, reset_after=5, max_restarts=99)
    it = desk(worker(restart=restart, says_ready=True))
    it.begin()

    def next_delay() -> float:
        it.die("w:0")
        delay = it.last("w:0").next_restart_in
        it.wait(delay)
        return delay

    it.ready("w:0")
    assert next_delay() == pytest.approx(0.2)
    it.ready("w:0")
    it.wait(4.9)
    assert next_delay() == pytest.approx(0.4)
    it.run("w:0")
    it.wait(20)  # running does not count where it says when it is ready
    assert next_delay() == pytest.approx(0.8)
    it.ready("w:0")
    it.wait(5)
    assert next_delay() == pytest.approx(0.2)
    assert it["w:0"].restarts == 4
    assert it["w:0"].attempt == 1


def test_running_counts_as_stable_for_those_that_need_not_say_ready(desk) -> None:
    it = desk(worker(restart=RestartSpec(jitter=0, reset_after=5)))
    it.begin()
    for _ in range(3):
        it.run("w:0")
        it.wait(5)
        it.die("w:0")
        assert it.last("w:0").next_restart_in == pytest.approx(0.2)
        it.wait(1)


@pytest.mark.parametrize(
    ("policy", "exit_", "state", "cause"),
    [
        ("on-failure", OK, "exited", "exit code 0"),
        ("on-failure", BAD, "backoff", "exit code 1"),
        ("always", OK, "backoff", "exit code 0"),
        ("always", ExitFacts(code=9), "failed", "exit code 9; this exit code must not be repeated"),
        ("on-failure", ExitFacts(code=9), "failed", "exit code 9; this exit code must not be repeated"),
        ("never", OK, "exited", "exit code 0"),
        ("never", BAD, "failed", "exit code 1; restart policy never"),
        ("never", ExitFacts(signal="SIGKILL"), "failed", "killed by SIGKILL; restart policy never"),
    ],
)
def test_the_end_and_the_policy_decide_the_state(desk, policy, exit_, state, cause) -> None:
    it = desk(worker(restart=RestartSpec(policy=policy, prevent_codes=(9,))))
    it.begin()
    it.ready("w:0")
    it.die("w:0", exit_)
    assert it["w:0"].state == state
    told = it.last("w:0")
    assert (told.cause, told.exit, told.pid) == (cause, exit_, 4001)
    assert it["w:0"].pid is None
    assert it["w:0"].last_exit == exit_


@pytest.mark.parametrize(("says_ready", "what"), [(True, "ready"), (True, "running"), (False, "running")])
def test_a_start_that_takes_too_long_is_a_failed_try(desk, says_ready, what) -> None:
    it = desk(worker(start_timeout=3, says_ready=says_ready))
    it.begin()
    it.tell(Spawned("w:0", 1, 5))
    if what == "ready":
        it.tell(Started("w:0", 1))
    assert it.wait(3) == [Kill("w:0", 1)]
    # A word that comes now comes too late.
    assert it.tell(Started("w:0", 1), BecameReady("w:0", 1)) == []
    assert it["w:0"].state in ("starting", "running")
    assert it.wait(1) == [Kill("w:0", 1)], "repeated until it works"
    it.die("w:0", ExitFacts(signal="SIGKILL"))
    assert it["w:0"].state == "backoff"
    assert it.last("w:0").cause == f"start timeout: not {what} within 3 s; killed by SIGKILL"
    assert it["w:0"].last_exit.reason == f"start timeout: not {what} within 3 s"


def test_a_process_that_appears_after_its_start_timeout_is_killed_at_once(desk) -> None:
    it = desk(worker(start_timeout=3))
    it.begin()
    it.wait(3)
    assert it.tell(Spawned("w:0", 1, 5)) == [Kill("w:0", 1)]


def test_running_without_ever_saying_ready_is_no_failed_try(desk) -> None:
    it = desk(worker(start_timeout=3))
    it.begin()
    it.run("w:0")
    assert it.wait(100) == []
    assert it["w:0"].state == "running"


HEART = HeartbeatSpec(interval=1, timeout=10)


def test_a_hang_is_aborted_killed_and_restarted_as_a_failure(desk) -> None:
    it = desk(worker(heartbeat=HEART, restart=RestartSpec(policy="on-failure", jitter=0)))
    it.begin()
    it.ready("w:0", watched=True)
    assert it.wait(10) == [Abort("w:0", 1)]
    hang = it.announced("instance.hang")[0]
    assert (hang.from_state, hang.to_state, hang.cause) == ("ready", "ready", "hang: no heartbeat for 10 s")
    assert it["w:0"].state == "degraded"
    assert it.tell(Beat("w:0", 1)) == []
    assert it.wait(1) == [Kill("w:0", 1)]
    it.die("w:0", OK)
    assert it["w:0"].state == "backoff", "a hang is a failure whatever the exit code"
    assert it["w:0"].last_exit.reason == "hang: no heartbeat for 10 s"


def test_a_hang_under_policy_never_is_given_up(desk) -> None:
    it = desk(worker(heartbeat=HEART, restart=RestartSpec(policy="never")))
    it.begin()
    it.ready("w:0", watched=True)
    it.wait(10)
    it.die("w:0", OK)
    assert it["w:0"].state == "failed"


def test_beats_put_the_hang_off(desk) -> None:
    it = desk(worker(heartbeat=HEART))
    it.begin()
    it.ready("w:0", watched=True)
    for _ in range(30):
        assert it.wait(9) == []
        it.tell(Beat("w:0", 1))
        assert it["w:0"].last_beat_at == it.now
    assert it["w:0"].state == "ready"


def test_the_watch_begins_when_it_is_ready_and_only_if_beats_will_come(desk) -> None:
    it = desk(worker("slow", heartbeat=HEART), worker("quiet", heartbeat=HEART))
    it.begin()
    it.run("slow:0", watched=True)
    it.ready("quiet:0", watched=False)
    it.tell(Beat("slow:0", 1))
    assert it.wait(25) == []
    it.tell(BecameReady("slow:0", 1))
    assert it.wait(9.9) == []
    assert it.wait(0.1) == [Abort("slow:0", 1)]


def test_a_supervisor_that_slept_does_not_believe_the_silence_at_once(desk) -> None:
    it = desk(worker(heartbeat=HEART))
    it.begin()
    it.ready("w:0", watched=True)
    it.now += 100
    assert it.core.handle_timer(it.now) == []
    assert it.core.next_timer() == it.now + 1
    it.tell(Beat("w:0", 1))
    assert it.wait(9.9) == []
    it.now += 100
    assert it.core.handle_timer(it.now) == []
    assert it.wait(1) == [Abort("w:0", 1)], "asleep or not, the second time it counts"


def test_late_facts_of_an_old_life_change_nothing_and_a_late_process_is_killed(desk) -> None:
    it = desk(worker())
    it.begin()
    it.ready("w:0")
    it.die("w:0")
    it.wait(1)
    assert it["w:0"].generation == 2
    before = it.core.snapshot()
    late = (Started("w:0", 1), BecameReady("w:0", 1), Beat("w:0", 1), Exited("w:0", 1, OK), SpawnFailed("w:0", 1, ""))
    assert it.tell(*late) == []
    assert it.tell(Spawned("w:0", 1, 9)) == [Kill("w:0", 1)]
    assert it.tell(Spawned("nobody:0", 1, 9)) == [Kill("nobody:0", 1)]
    assert it.core.snapshot() == before


def test_an_exit_may_be_the_first_that_is_heard_of_a_life(desk) -> None:
    it = desk(worker())
    it.begin()
    it.die("w:0")
    assert it["w:0"].state == "backoff"


def test_stop_and_shutdown_of_a_spawn_under_way_reach_the_process_when_it_appears(desk) -> None:
    it = desk(worker())
    it.begin()
    assert it.tell(StopOrdered(("w:0",))) == [Stop("w:0", 1, 10.0, "ordered stop")]
    it.wait(4)
    assert it.tell(Spawned("w:0", 1, 5)) == [Stop("w:0", 1, 6.0, "ordered before it was spawned")]
    assert it["w:0"].state == "stopping"
    it.wait(6)
    assert it.tell(Spawned("w:0", 1, 5)) == [Kill("w:0", 1)]

    it = desk(worker())
    it.begin()
    it.tell(ShutdownOrdered("a person", fast=True))
    assert it.tell(Spawned("w:0", 1, 5)) == [Kill("w:0", 1)]


def test_a_manual_start_resets_the_delay_and_nothing_else_and_reset_clears_the_rest(desk) -> None:
    it = desk(worker(restart=RestartSpec(jitter=0, max_restarts=2, window=600)))
    it.begin()
    for _ in range(2):
        it.run("w:0")
        it.die("w:0")
        it.wait(5)
    assert it["w:0"].restarts == 2
    it.run("w:0")
    it.die("w:0")
    assert it["w:0"].state == "failed"
    assert it.tell(StartOrdered(("w:0",))) == [Spawn("w:0", 4)]
    it.run("w:0")
    it.die("w:0")
    assert it["w:0"].state == "failed", "the budget is still spent"
    it.tell(ResetOrdered(("w:0",)), StartOrdered(("w:0",)))
    it.run("w:0")
    it.die("w:0")
    assert it["w:0"].state == "backoff"
    assert it.last("w:0").next_restart_in == pytest.approx(0.2)
    assert it["w:0"].restarts == 2


def test_a_restart_that_a_person_forestalls_costs_nothing(desk) -> None:
    it = desk(worker(restart=RestartSpec(jitter=0, max_restarts=1, window=600)))
    it.begin()
    for _ in range(5):
        it.run("w:0")
        it.die("w:0")
        assert it["w:0"].state == "backoff"
        it.tell(StartOrdered(("w:0",)))
    assert it["w:0"].restarts == 0


def test_jitter_is_drawn_once_per_restart() -> None:
    drawn = []

    def jitter() -> float:
        drawn.append(0.0)
        return 0.0

    core = Core(AppSpec("app", (worker(restart=RestartSpec(delay=1, jitter=0.5)),)), jitter=jitter)
    core.handle(StartOrdered(("w:0",)), 0)
    core.handle(Exited("w:0", 1, BAD), 10)
    assert core.next_timer() == pytest.approx(10.5)
    assert len(drawn) == 1

"""The app as a whole: starting in order, ending in reverse, being idle."""

from __future__ import annotations

import pytest

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.core.facts import AppStart, Beat, ShutdownOrdered, StartOrdered, StopOrdered
from smartipc.supervisor.core.orders import EndApp, Kill, Spawn, Stop
from smartipc.supervisor.core.spec import RestartSpec, StopSpec, WorkerSpec

OK = ExitFacts(code=0)
BAD = ExitFacts(code=1)


def worker(name: str, *needs: str, **keys) -> WorkerSpec:
    keys.setdefault("restart", RestartSpec(jitter=0))
    conditions = tuple((need.partition("=")[0], need.partition("=")[2] or "ready") for need in needs)
    return WorkerSpec(name, depends_on=conditions, **keys)


def chain(desk, **supervisor):
    """An app of three, each needing the one before, and a fourth on its own; all ready."""
    it = desk(worker("low"), worker("mid", "low"), worker("top", "mid"), worker("lone"), **supervisor)
    it.begin()
    it.ready("low:0")
    it.ready("mid:0")
    it.ready("top:0", "lone:0")
    assert it.states() == "ready ready ready ready"
    return it


def stopped(orders) -> list[str]:
    return [order.instance for order in orders if isinstance(order, Stop)]


def test_workers_start_in_the_order_of_their_dependencies(desk) -> None:
    it = desk(worker("top", "mid"), worker("mid", "low"), worker("low"), worker("lone"))
    assert it.begin() == [Spawn("low:0", 1), Spawn("lone:0", 1)]
    assert it["top:0"].waiting_for == ("mid",)
    assert it.last("top:0").cause == "waits for mid ready"
    assert it.run("low:0") == []
    assert it.ready("low:0") == [Spawn("mid:0", 1)]
    assert it["mid:0"].waiting_for == ()
    assert it.ready("mid:0") == [Spawn("top:0", 1)]


@pytest.mark.parametrize(
    ("condition", "exit_", "state"),
    [
        ("succeeded", OK, "starting"),
        ("succeeded", BAD, "waiting"),
        ("completed", OK, "starting"),
        ("completed", BAD, "starting"),
    ],
)
def test_jobs_are_waited_for(desk, condition, exit_, state) -> None:
    it = desk(worker("job", restart=RestartSpec(policy="never")), worker("w", f"job={condition}"))
    it.begin()
    it.ready("job:0")
    assert it["w:0"].state == "waiting"
    it.die("job:0", exit_)
    assert it["w:0"].state == state


def test_a_running_dependent_is_left_alone_when_its_dependency_goes(desk) -> None:
    it = chain(desk)
    it.die("low:0", BAD)
    assert it.states() == "backoff ready ready ready"
    it.die("mid:0", BAD)
    it.wait(0.25)
    assert it.states() == "starting waiting ready ready"
    assert it.ready("low:0") == [Spawn("mid:0", 2)]


def test_the_app_has_started_when_everybody_is_settled(desk) -> None:
    it = desk(
        worker("ready"),
        worker("job"),
        worker("bad", restart=RestartSpec(policy="never")),
        worker("vain", "bad"),
        worker("running"),
        worker("saying", says_ready=True),
    )
    it.begin()
    it.ready("ready:0")
    it.die("job:0", OK)
    it.die("bad:0", BAD)
    it.run("running:0", "saying:0")
    assert it.core.app_state == "starting"
    it.ready("saying:0")
    assert it.core.app_state == "running"
    assert it.states() == "ready exited failed waiting running ready"
    it.tell(StopOrdered(("ready:0",)))
    assert len(it.announced("app.started")) == 1


def test_shutdown_goes_in_waves_in_reverse_order_and_side_by_side(desk) -> None:
    it = chain(desk)
    assert stopped(it.tell(ShutdownOrdered("SIGTERM"))) == ["top:0", "lone:0"]
    assert it.core.app_state == "stopping"
    assert it.announced("app.stopping")[0].cause == "SIGTERM"
    assert stopped(it.die("lone:0", OK)) == []
    assert stopped(it.die("top:0", OK)) == ["mid:0"]
    assert stopped(it.die("mid:0", BAD)) == ["low:0"]
    assert it.ends() == []
    assert it.die("low:0", OK) == [EndApp(0)]
    assert it.states() == "stopped stopped stopped stopped"
    assert it.core.next_timer() is None


def test_the_whole_shutdown_is_capped(desk) -> None:
    it = chain(desk, shutdown_timeout=8)
    it.tell(ShutdownOrdered("SIGTERM"))
    it.wait(5)
    assert it.die("top:0", OK) == [Stop("mid:0", 1, 3.0, "the app stops")]
    assert {(order.instance, type(order)) for order in it.wait(3)} == {
        ("low:0", Kill),
        ("mid:0", Kill),
        ("lone:0", Kill),
    }
    for name in ("low:0", "mid:0", "lone:0"):
        it.die(name, ExitFacts(signal="SIGKILL"))
    assert it.ends() == [0]


def test_each_gets_its_own_grace(desk) -> None:
    it = desk(worker("slow", stop=StopSpec(timeout=20)), worker("quick", stop=StopSpec(timeout=2)))
    it.begin()
    it.ready("slow:0", "quick:0")
    it.tell(ShutdownOrdered("SIGTERM"))
    assert it.wait(2) == [Kill("quick:0", 1)]
    it.die("quick:0")
    assert it.wait(17.9) == []
    assert it.wait(0.1) == [Kill("slow:0", 1)]


def test_a_fast_shutdown_kills_everything_at_once_also_as_a_second_thought(desk) -> None:
    it = chain(desk)
    orders = it.tell(ShutdownOrdered("SIGINT", fast=True))
    assert orders == [Kill(f"{name}:0", 1) for name in ("low", "mid", "top", "lone")]

    it = chain(desk)
    it.tell(ShutdownOrdered("SIGINT", order=1))
    assert len(it.tell(ShutdownOrdered("SIGINT", fast=True, order=2))) == 4
    for name in ("low:0", "mid:0", "top:0", "lone:0"):
        it.die(name, ExitFacts(signal="SIGKILL"))
    assert it.answers() == {1: {}, 2: {}}
    assert isinstance(it.orders[-1], EndApp), "nothing comes after the end"
    it.tell(ShutdownOrdered("SIGINT", order=3), ShutdownOrdered("SIGINT"))
    assert it.answers()[3] == {}
    assert it.ends() == [0]


def test_nothing_is_spawned_once_the_app_stops(desk) -> None:
    it = desk(worker("low"), worker("w", "low"), worker("crash"), worker("gone"))
    it.begin()
    it.run("low:0")
    it.die("crash:0", BAD)
    it.die("gone:0", OK)
    it.tell(ShutdownOrdered("SIGTERM", code=3))
    assert it.states() == "stopping stopped stopped exited"
    it.die("low:0", BAD)
    it.tell(AppStart(), StartOrdered(("w:0",), 1))
    it.wait(1000)
    assert it.states() == "stopped stopped stopped exited"
    assert it.ends() == [3]


def test_a_shutdown_before_the_start_ends_at_once(desk) -> None:
    it = desk(worker("w"))
    assert it.tell(ShutdownOrdered("SIGTERM"), AppStart()) == [EndApp(0)]


def test_on_failed_shutdown_ends_the_app_in_order_with_code_1(desk) -> None:
    failing = worker("vital", restart=RestartSpec(policy="never"), on_failed="shutdown", instances=2)
    it = desk(failing, worker("low"), worker("top", "low"))
    it.begin()
    it.ready("vital:0", "vital:1", "low:0")
    it.ready("top:0")
    it.tell(StartOrdered(("vital:0",)))
    assert stopped(it.die("vital:0", BAD)) == ["vital:1", "top:0"]
    assert it.announced("app.stopping")[0].cause == "vital:0 failed"
    it.die("vital:1", BAD)
    it.tell(ShutdownOrdered("SIGTERM", code=0))
    it.die("top:0", OK)
    it.die("low:0", OK)
    assert it.ends() == [1]


def test_on_failed_ignore_goes_on(desk) -> None:
    it = desk(worker("w", restart=RestartSpec(policy="never")), worker("other"))
    it.begin()
    it.ready("other:0")
    it.die("w:0", BAD)
    assert it.states() == "failed ready"
    assert it.core.app_state == "running"


@pytest.mark.parametrize(
    ("ends", "code"),
    [((OK, OK), 0), ((OK, BAD), 1), ((BAD, BAD), 1)],
)
def test_on_idle_exit_leaves_when_all_have_ended(desk, ends, code) -> None:
    never = RestartSpec(policy="never")
    it = desk(worker("a", restart=never), worker("b", restart=never), worker("c", "b=succeeded"), on_idle="exit")
    it.begin()
    it.die("a:0", ends[0])
    assert it.ends() == []
    it.die("b:0", ends[1])
    if ends[1] is OK:
        it.die("c:0", OK)
    assert it.ends() == [code]
    assert len(it.announced("app.stopping")) == 1


def test_on_idle_wait_stays(desk) -> None:
    it = desk(worker("a"))
    it.begin()
    it.die("a:0", OK)
    assert it.core.app_state == "running"
    assert it.ends() == []


def test_what_a_person_stopped_keeps_the_app_alive(desk) -> None:
    it = desk(worker("a"), worker("b"), on_idle="exit")
    it.begin()
    it.tell(StopOrdered(("a:0",)))
    it.die("a:0", OK)
    it.die("b:0", OK)
    assert it.ends() == []
    it.tell(StartOrdered(("a:0",)))
    it.die("a:0", OK)
    assert it.ends() == [0]


def test_beats_do_not_make_the_core_look_around(desk) -> None:
    """Two hundred beating workers cost two hundred dictionary look-ups a second."""
    it = desk(*(worker(f"w{n}") for n in range(3)))
    it.begin()
    it.ready("w0:0", "w1:0", "w2:0", watched=True)
    due = it.core.next_timer()
    it.wait(5)
    for n in range(3):
        it.core.handle(Beat(f"w{n}:0", 1), it.now)
    assert it.core.next_timer() == due, "a lower bound"
    assert it.wait(5.5) == []
    assert it.core.next_timer() == due + 5


def test_what_a_person_started_before_the_app_began_is_left_alone(desk) -> None:
    it = desk(worker("early"), worker("other"))
    it.tell(StartOrdered(("early:0",)))
    assert it.begin() == [Spawn("other:0", 1)]


def test_a_worker_is_found_by_its_name(desk) -> None:
    spec = desk(worker("a"), worker("b")).core.spec
    assert spec.worker("b").names == ("b:0",)
    with pytest.raises(KeyError):
        spec.worker("c")

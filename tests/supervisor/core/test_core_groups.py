"""Groups: who restarts with whom, what a group may spend, and what its end takes along."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.core.facts import (
    ResetOrdered,
    RestartOrdered,
    ShutdownOrdered,
    Spawned,
    Started,
    StartOrdered,
    StopOrdered,
)
from smartipc.supervisor.core.orders import EndApp, Spawn, Stop
from smartipc.supervisor.core.spec import GroupSpec, RestartSpec, WorkerSpec
from smartipc.supervisor.core.strategy import Groups

OK = ExitFacts(code=0)
BAD = ExitFacts(code=1)
RESTART = RestartSpec(jitter=0, max_restarts=9)


def worker(name: str, *needs: str, **keys) -> WorkerSpec:
    keys.setdefault("restart", RESTART)
    return WorkerSpec(name, depends_on=tuple((need, "ready") for need in needs), **keys)


def group(name: str, *members: str, strategy="one-for-one", **keys) -> GroupSpec:
    return GroupSpec(name, members, strategy, **keys)


def trio(desk, strategy: str, *, workers=None, **keys):
    """a, b and c in one group, listed in another order in the file, and a fourth on its own; all ready."""
    workers = workers or (worker("c"), worker("b"), worker("a"))
    it = desk(*workers, worker("lone"), groups=(group("g", "a", "b", "c", strategy=strategy, **keys),))
    it.begin()
    it.ready("a:0", "b:0", "c:0", "lone:0")
    return it


def stops(orders) -> list[str]:
    return [order.instance for order in orders if isinstance(order, Stop)]


def spawns(orders) -> list[str]:
    return [order.instance for order in orders if isinstance(order, Spawn)]


def states(it, *names: str) -> str:
    return " ".join(it[f"{name}:0"].state for name in names)


def test_members_start_in_their_order(desk) -> None:
    it = desk(worker("c"), worker("b"), worker("a"), groups=(group("g", "a", "b", "c"),))
    assert it.begin() == [Spawn("a:0", 1), Spawn("b:0", 1), Spawn("c:0", 1)]


def test_members_stop_in_reverse_order(desk) -> None:
    it = trio(desk, "one-for-one")
    assert stops(it.tell(ShutdownOrdered("SIGTERM"))) == ["c:0", "lone:0"]
    assert stops(it.die("c:0", OK)) == ["b:0"]
    assert stops(it.die("b:0", OK)) == ["a:0"]


def test_one_for_one_restarts_the_failed_one(desk) -> None:
    it = trio(desk, "one-for-one")
    assert it.die("b:0") == []
    assert it.wait(0.2) == [Spawn("b:0", 2)]
    assert it.last("b:0").cause == "restart 1 of 9 in 60 s, 1 of 5 in 60 s of group g"


def test_rest_for_one_stops_the_later_ones_and_restarts_them_together(desk) -> None:
    it = trio(desk, "rest-for-one")
    assert it.die("b:0") == [Stop("c:0", 1, 10.0, "group g: b:0 failed")]
    assert states(it, "a", "b", "c", "lone") == "ready backoff stopping ready"
    assert it.die("c:0", BAD) == []
    assert states(it, "a", "b", "c") == "ready backoff waiting"
    assert it["c:0"].waiting_for == ("b",)
    assert it.wait(0.2) == [Spawn("b:0", 2), Spawn("c:0", 2)]
    assert it.last("c:0").cause == "together with b:0"
    assert (it["b:0"].restarts, it["c:0"].restarts, it["a:0"].restarts) == (1, 1, 0)


def test_one_for_all_waits_for_the_slowest_to_end(desk) -> None:
    it = trio(desk, "one-for-all")
    assert stops(it.die("b:0")) == ["c:0"]
    assert stops(it.die("c:0", OK)) == ["a:0"]
    assert it.wait(5) == []
    assert states(it, "a", "b", "c") == "stopping waiting waiting"
    assert it["b:0"].waiting_for == ("a", "c") or it["b:0"].waiting_for == ("c", "a")
    assert spawns(it.die("a:0", OK)) == ["a:0", "b:0", "c:0"]
    assert states(it, "a", "b", "c", "lone") == "starting starting starting ready"


def test_dependencies_hold_within_a_group_restart(desk) -> None:
    it = trio(desk, "one-for-all", workers=(worker("a"), worker("b", "a"), worker("c", "b")))
    it.die("c:0")
    it.ready("b:0")
    it.ready("c:0")
    it.die("c:0")
    it.die("b:0", OK)
    it.die("a:0", OK)
    assert spawns(it.wait(1)) == ["a:0"]
    assert states(it, "a", "b", "c") == "starting waiting waiting"
    assert spawns(it.ready("a:0")) == ["b:0"]
    assert spawns(it.ready("b:0")) == ["c:0"]


def test_a_pool_is_one_member_of_rest_for_one_and_all_of_it_restarts_in_one_for_all(desk) -> None:
    for strategy, along in (("rest-for-one", ["b:0"]), ("one-for-all", ["a:1", "b:0"])):
        it = desk(worker("a", instances=2), worker("b"), groups=(group("g", "a", "b", strategy=strategy),))
        it.begin()
        it.ready("a:0", "a:1", "b:0")
        it.die("a:0")
        it.die("b:0", OK)
        assert sorted(one for one in along if it[one].state in ("waiting", "stopping")) == along
        if strategy == "one-for-all":
            it.die("a:1", OK)
        assert spawns(it.wait(1)) == ["a:0", *along]


@pytest.mark.parametrize("strategy", ["one-for-all", "rest-for-one"])
def test_orders_and_good_ends_move_nobody_else(desk, strategy) -> None:
    it = trio(desk, strategy)
    it.die("a:0", OK)
    assert it["a:0"].state == "exited"
    it.tell(StopOrdered(("b:0",)))
    it.die("b:0", BAD)
    assert states(it, "a", "b", "c") == "exited stopped ready"
    it.tell(RestartOrdered(("c:0",)))
    it.die("c:0", BAD)
    it.ready("c:0")
    assert states(it, "a", "b", "c") == "exited stopped ready"
    it.die("c:0")
    it.wait(1)
    assert states(it, "a", "b", "c") == "exited stopped starting", "what is down by itself is not brought back"


def test_a_never_mate_stays_down(desk) -> None:
    it = trio(desk, "one-for-all", workers=(worker("a"), worker("b", restart=RestartSpec(policy="never")), worker("c")))
    it.die("a:0")
    it.die("c:0", OK)
    it.die("b:0", OK)
    assert spawns(it.wait(1)) == ["a:0", "c:0"]
    assert states(it, "a", "b", "c") == "starting stopped starting"


def test_a_never_member_that_fails_takes_nobody_along(desk) -> None:
    it = trio(desk, "one-for-all", workers=(worker("a"), worker("b", restart=RestartSpec(policy="never")), worker("c")))
    assert it.die("b:0") == []
    assert states(it, "a", "b", "c") == "ready failed ready"


def test_another_failure_while_they_go_down_changes_nothing(desk) -> None:
    it = trio(desk, "one-for-all")
    it.die("a:0")
    it.die("b:0", BAD)
    assert it["b:0"].state == "waiting", "it was going down already: planned"
    assert stops(it.die("c:0", BAD)) == []
    assert spawns(it.wait(1)) == ["a:0", "b:0", "c:0"]


def test_another_failure_during_the_restart_begins_it_again(desk) -> None:
    it = trio(desk, "one-for-all")
    it.die("a:0")
    it.die("c:0", OK)
    it.die("b:0", OK)
    it.wait(0.2)
    it.run("a:0")
    assert stops(it.die("b:0")) == ["c:0"]
    it.die("c:0", OK)
    it.die("a:0", OK)
    assert spawns(it.wait(1)) == ["a:0", "b:0", "c:0"]
    assert it.last("b:0").cause.endswith("2 of 5 in 60 s of group g") or it["b:0"].restarts == 2


def test_an_earlier_failure_takes_over_those_who_wait_already(desk) -> None:
    it = trio(desk, "rest-for-one")
    it.die("b:0")
    it.die("c:0", OK)
    it.die("a:0")
    assert states(it, "a", "b", "c") == "backoff backoff waiting"
    assert it["c:0"].waiting_for == ("a",)
    assert spawns(it.tell(StartOrdered(("b:0",)))) == ["b:0"]
    assert spawns(it.wait(1)) == ["a:0", "c:0"]


def test_an_earlier_failure_takes_over_those_who_go_down_already(desk) -> None:
    it = trio(desk, "rest-for-one")
    it.die("b:0")
    it.die("a:0")
    assert it["c:0"].state == "stopping"
    it.die("c:0", OK)
    assert it["c:0"].waiting_for == ("a",)


def test_in_rest_for_one_only_the_failed_one_and_the_later_are_tried_again(desk) -> None:
    it = trio(desk, "rest-for-one")
    it.die("a:0")
    it.die("c:0", OK)
    it.die("b:0", OK)
    it.wait(0.2)
    it.ready("a:0")
    it.ready("b:0")
    it.die("c:0")
    assert states(it, "a", "b", "c") == "ready ready backoff"


def test_a_mate_in_backoff_keeps_its_own_time(desk) -> None:
    it = trio(
        desk, "one-for-all", workers=(worker("a"), worker("b", restart=RestartSpec(delay=5, jitter=0)), worker("c"))
    )
    it.die("b:0")
    it.die("c:0", OK)
    it.die("a:0", OK)
    assert states(it, "a", "b", "c") == "waiting backoff waiting"
    assert it.wait(4) == []
    assert spawns(it.wait(1)) == ["a:0", "b:0", "c:0"]


def test_a_stopped_leader_lets_its_mates_go_on(desk) -> None:
    it = trio(desk, "rest-for-one")
    it.die("a:0")
    it.die("c:0", OK)
    it.die("b:0", OK)
    assert spawns(it.tell(StopOrdered(("a:0",), 1))) == ["b:0", "c:0"]
    assert it.answers() == {1: {"a:0": ""}}


def test_a_start_of_a_mate_starts_the_leader_at_once(desk) -> None:
    it = trio(desk, "rest-for-one")
    it.die("a:0")
    it.die("c:0", OK)
    it.die("b:0", OK)
    assert spawns(it.tell(StartOrdered(("c:0",), 1))) == ["a:0", "b:0", "c:0"]
    it.ready("c:0")
    assert it.answers() == {1: {"c:0": ""}}
    assert it["a:0"].restarts == 0, "nobody's automatic restart"


def test_a_start_or_stop_of_a_mate_that_goes_down_is_obeyed(desk) -> None:
    it = trio(desk, "one-for-all")
    it.die("a:0")
    it.tell(StopOrdered(("b:0",), 1), StartOrdered(("c:0",), 2))
    it.die("c:0", OK)
    assert it["c:0"].state == "starting"
    it.die("b:0", OK)
    assert spawns(it.wait(1)) == ["a:0"]
    assert it["b:0"].state == "stopped"


# budgets


def test_a_spent_group_is_stopped_in_reverse_order(desk) -> None:
    it = trio(desk, "one-for-one", max_restarts=2, window=60.0)
    for name in ("a:0", "b:0"):
        it.die(name)
        it.wait(1)
        it.ready(name)
    assert stops(it.die("a:0")) == ["c:0"]
    assert it.last("a:0").cause == "exit code 1; restart budget of group g spent: 2 in 60 s"
    assert stops(it.die("c:0", OK)) == ["b:0"]
    it.die("b:0", OK)
    assert states(it, "a", "b", "c", "lone") == "failed stopped stopped ready"
    assert it.wait(100) == []


def test_failures_at_the_same_time_share_one_budget(desk) -> None:
    it = trio(desk, "one-for-one", max_restarts=1)
    assert it.die("a:0") == []
    assert stops(it.die("b:0")) == ["c:0"], "the one restart that there is has been granted to a"
    assert states(it, "a", "b", "c") == "stopped failed stopping"


def test_a_reset_gives_the_group_its_restarts_back(desk) -> None:
    it = desk(worker("a"), worker("b"), groups=(group("g", "a", "b", max_restarts=1),))
    it.begin()
    it.ready("a:0", "b:0")
    it.die("a:0")
    it.wait(1)
    it.ready("a:0")
    it.tell(ResetOrdered(("b:0",)))
    it.die("a:0")
    assert it["a:0"].state == "backoff"


def test_and_the_groups_around_it(desk) -> None:
    it = nested(desk, "one-for-one", outer=1, inner=0)
    it.die("a:0")
    it.die("b:0", OK)
    it.wait(1)
    it.ready("a:0", "b:0")
    it.tell(ResetOrdered(("b:0",)))
    assert stops(it.die("a:0")) == ["b:0"]
    assert it["a:0"].state == "backoff", "the outer group may pay again"


def test_the_idle_app_ends_when_a_failure_has_stopped_what_was_left(desk) -> None:
    it = desk(worker("a"), worker("b"), worker("c"), groups=(group("g", "a", "b", max_restarts=0),), on_idle="exit")
    it.begin()
    it.ready("a:0", "b:0", "c:0")
    it.die("c:0", OK)
    assert stops(it.die("a:0", BAD)) == ["b:0"]
    assert it.die("b:0", OK) == [EndApp(1)]


def test_the_idle_app_ends_when_a_never_mate_stays_down(desk) -> None:
    never = replace(RESTART, policy="never")
    it = desk(
        worker("a"), worker("b", restart=never), groups=(group("g", "a", "b", strategy="one-for-all"),), on_idle="exit"
    )
    it.begin()
    it.ready("a:0", "b:0")
    assert stops(it.die("a:0", BAD)) == ["b:0"]
    it.die("b:0", OK)
    it.wait(1)
    it.ready("a:0")
    assert it.die("a:0", OK) == [EndApp(1)]


def test_a_group_forgets_after_its_window(desk) -> None:
    it = trio(desk, "one-for-one", max_restarts=1, window=10.0)
    for _ in range(4):
        it.die("a:0")
        it.wait(20)
        it.ready("a:0")
    assert it["a:0"].state == "ready"


def test_its_on_failed_acts(desk) -> None:
    it = trio(desk, "one-for-one", max_restarts=0, on_failed="shutdown")
    assert stops(it.die("a:0")) == ["c:0", "lone:0"]
    assert it.announced("app.stopping")[0].cause == "group g failed"
    it.die("c:0", OK)
    it.die("lone:0", OK)
    assert it.die("b:0", OK) == [EndApp(1)]


def test_a_worker_that_is_given_up_may_stop_its_group(desk) -> None:
    it = trio(
        desk,
        "one-for-all",
        workers=(worker("a"), worker("b"), worker("c", restart=RestartSpec(policy="never"), on_failed="stop-group")),
    )
    it.tell(StartOrdered(("b:0",), 1), RestartOrdered(("b:0",), 2))
    it.die("b:0", OK)
    assert stops(it.die("c:0")) == ["b:0"]
    assert it.answers()[2] == {"b:0": "c:0 failed"}
    assert stops(it.die("b:0", OK)) == ["a:0"]
    it.die("a:0", OK)
    assert states(it, "a", "b", "c") == "stopped stopped failed"


def nested(desk, outer_strategy: str, *, outer: int = 1, inner: int = 0, **keys):
    """x, then the group in (a, b), then y."""
    it = desk(
        *(worker(name) for name in ("x", "a", "b", "y")),
        groups=(
            group("out", "x", "in", "y", strategy=outer_strategy, max_restarts=outer, **keys),
            group("in", "a", "b", max_restarts=inner),
        ),
    )
    it.begin()
    it.ready("x:0", "a:0", "b:0", "y:0")
    return it


@pytest.mark.parametrize(
    ("strategy", "downs"),
    [("one-for-one", ["b:0"]), ("rest-for-one", ["y:0", "b:0"]), ("one-for-all", ["y:0", "b:0", "x:0"])],
)
def test_a_spent_nested_group_is_restarted_as_a_whole_by_the_one_around_it(desk, strategy, downs) -> None:
    it = nested(desk, strategy)
    told = stops(it.die("a:0"))
    for name in downs:
        assert told == [name]
        told = stops(it.die(name, OK))
    order = [name for name in ("x:0", "a:0", "b:0", "y:0") if name in downs or name == "a:0"]
    assert spawns(it.wait(1)) == order
    assert it["a:0"].restarts == 1
    assert "of group out" in next(one.cause for one in it.announced("instance.state") if "restart 1" in one.cause)


def test_it_starts_afresh_then(desk) -> None:
    it = nested(desk, "one-for-one", outer=1, inner=1)
    for _ in range(3):
        it.die("a:0")
        if it["b:0"].state == "stopping":
            it.die("b:0", OK)
        it.wait(20)
        it.ready("a:0", *(["b:0"] if it["b:0"].state == "starting" else []))
    assert states(it, "x", "a", "b", "y") == "ready ready ready ready"
    assert it["b:0"].restarts == 1
    assert stops(it.die("a:0")) == ["y:0"], (
        "one by its own group, one by the outer one, one by its own: now all is spent"
    )


def test_when_nobody_can_pay_the_outermost_is_stopped_and_its_on_failed_acts(desk) -> None:
    it = nested(desk, "one-for-one", outer=0, on_failed="shutdown")
    it.die("a:0")
    assert it.last("a:0").cause == "exit code 1; restart budget of group out spent: 0 in 60 s"
    for name in ("y:0", "b:0", "x:0"):
        assert it[name].state == "stopping"
        it.die(name, OK)
    assert it.ends() == [1]


# significant workers


def significant(desk, auto_shutdown: str, **keys):
    it = desk(
        worker("a", significant=True),
        worker("b", instances=2, significant=True),
        worker("c"),
        groups=(group("g", "a", "b", "c", auto_shutdown=auto_shutdown),),
        **keys,
    )
    it.begin()
    it.ready("a:0", "b:0", "b:1", "c:0")
    return it


def test_any_significant_end_stops_the_group(desk) -> None:
    it = significant(desk, "any-significant")
    assert it.die("c:0", OK) == []
    assert sorted(stops(it.die("b:1", OK))) == ["b:0"]
    assert stops(it.die("b:0", OK)) == ["a:0"]
    it.die("a:0", OK)
    assert it.states() == "stopped stopped exited exited"


def test_the_last_significant_end_stops_the_group(desk) -> None:
    it = significant(desk, "all-significant", on_idle="exit")
    assert it.die("a:0", OK) == []
    assert it.die("b:1", OK) == []
    assert stops(it.die("b:0", OK)) == ["c:0"]
    assert it.die("c:0", OK) == [EndApp(0)], "what the group stopped counts as completed"


@pytest.mark.parametrize("first", ["a:0", "b:0"])
def test_one_that_is_given_up_has_ended_for_good_too(desk, first) -> None:
    """Whichever comes first: the end as it should, or the spent budget."""
    it = desk(
        worker("a", significant=True),
        worker("b", significant=True, restart=replace(RESTART, max_restarts=0)),
        worker("c"),
        groups=(group("g", "a", "b", "c", auto_shutdown="all-significant"),),
    )
    it.begin()
    it.ready("a:0", "b:0", "c:0")
    ends = {"a:0": OK, "b:0": BAD}
    assert it.die(first, ends.pop(first)) == []
    assert [stops(it.die(name, exit_)) for name, exit_ in ends.items()] == [["c:0"]]
    assert states(it, "a", "b") == "exited failed"


def test_a_restart_is_no_end_and_an_order_neither(desk) -> None:
    it = significant(desk, "any-significant")
    assert it.die("a:0", BAD) == []
    it.tell(StopOrdered(("b:0",)))
    assert it.die("b:0", OK) == []
    assert it.states() == "backoff stopped ready ready"


# what is left of a process that was never spawned


def test_a_spawn_that_is_under_way_is_told_to_stop_when_it_appears(desk) -> None:
    it = desk(worker("a"), worker("b"), groups=(group("g", "a", "b", strategy="one-for-all"),))
    it.begin()
    it.die("a:0")
    assert it["b:0"].state == "stopping"
    assert stops(it.tell(Spawned("b:0", 1, 77), Started("b:0", 1))) == ["b:0"]
    it.die("b:0", OK)
    assert spawns(it.wait(1)) == ["a:0", "b:0"]


def test_the_words_of_a_group(desk) -> None:
    it = desk(worker("a"), groups=(group("g", "a"),))
    assert repr(it.core._ends).startswith("<Ends of <Lives a:0 stopped")


def test_arithmetic(desk) -> None:
    it = nested(desk, "one-for-one")
    groups = Groups(it.core.spec)
    assert groups.workers("out") == ("x", "a", "b", "y")
    assert groups.parent("in").name == "out"
    assert groups.parent("out") is None
    groups.record("in", 5.0)
    changed = Groups(
        replace(
            it.core.spec, groups=(group("in", "a", "b", max_restarts=0), group("out", "x", "in", "y", max_restarts=7))
        )
    )
    groups.clear("out")
    groups.record("in", 5.0)
    changed.adopt(groups)
    assert repr(changed) == "<Groups in <Budget 1 of 0 in 60 s>, out <Budget 0 of 7 in 60 s>>"
    changed.clear("out")
    assert repr(changed) == "<Groups in <Budget 0 of 0 in 60 s>, out <Budget 0 of 7 in 60 s>>"

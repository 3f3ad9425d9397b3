"""The pure pieces under the core: states, exits, backoff, budget, ordering, answers."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import get_args

import pytest

from smartipc.ipc.control import ExitFacts, State
from smartipc.supervisor.core import backoff, exits
from smartipc.supervisor.core.answers import Answers
from smartipc.supervisor.core.budget import Budget
from smartipc.supervisor.core.exits import Verdict
from smartipc.supervisor.core.ordering import Ordering, find_cycle
from smartipc.supervisor.core.orders import Answer
from smartipc.supervisor.core.spec import AppSpec, RestartSpec, WorkerSpec
from smartipc.supervisor.core.states import LIVING, TRANSITIONS, Step, diagram, follow

EXPLANATION = Path(__file__).parents[3] / "docs" / "explanation" / "supervision.md"


def test_the_table_has_a_row_for_every_state_and_knows_every_step() -> None:
    assert set(TRANSITIONS) == set(get_args(State))
    assert {step for row in TRANSITIONS.values() for step in row} == set(get_args(Step))


def test_every_state_can_be_reached_and_left() -> None:
    reached = {to for row in TRANSITIONS.values() for to in row.values()}
    assert reached == set(get_args(State))
    assert all(TRANSITIONS.values())


def test_a_life_can_only_begin_by_spawning_and_only_living_states_end() -> None:
    for state, row in TRANSITIONS.items():
        for step, to in row.items():
            assert (state not in LIVING and to in LIVING) == (step == "spawn")
            assert (state in LIVING and to not in LIVING) == (step in {"end", "complete", "retry", "give up"})


def test_follow_refuses_what_is_not_in_the_table() -> None:
    assert follow("ready", "hang") == "degraded"
    with pytest.raises(LookupError, match="no step 'hang' from state 'stopped'"):
        follow("stopped", "hang")


def test_the_documentation_shows_the_diagram_of_the_table() -> None:
    shown = re.search(r"```mermaid\n(.*?)```", EXPLANATION.read_text(), re.DOTALL)
    assert shown is not None
    assert shown[1] == diagram()


@pytest.mark.parametrize(
    ("exit_", "verdict"),
    [
        (ExitFacts(code=0), Verdict.SUCCESS),
        (ExitFacts(code=7), Verdict.SUCCESS),
        (ExitFacts(code=1), Verdict.FAILURE),
        (ExitFacts(code=9), Verdict.PREVENTED),
        (ExitFacts(code=8), Verdict.PREVENTED),
        (ExitFacts(signal="SIGTERM"), Verdict.FAILURE),
        (ExitFacts(reason="no such file"), Verdict.FAILURE),
    ],
)
def test_an_end_is_judged_by_the_codes_of_the_worker(exit_: ExitFacts, verdict: Verdict) -> None:
    restart = RestartSpec(success_codes=(0, 7, 8), prevent_codes=(9, 8))
    assert exits.judge(exit_, restart) is verdict


@pytest.mark.parametrize(
    ("policy", "success", "failure", "prevented"),
    [("always", True, True, False), ("on-failure", False, True, False), ("never", False, False, False)],
)
def test_the_policy_decides_which_ends_are_followed_by_a_life(policy, success, failure, prevented) -> None:
    restart = RestartSpec(policy=policy)
    found = [exits.restarts(v, restart) for v in (Verdict.SUCCESS, Verdict.FAILURE, Verdict.PREVENTED)]
    assert found == [success, failure, prevented]


@pytest.mark.parametrize(
    ("exit_", "words"),
    [
        (ExitFacts(code=0), "exit code 0"),
        (ExitFacts(code=1, reason="ValueError: no"), "exit code 1 (ValueError: no)"),
        (ExitFacts(signal="SIGKILL"), "killed by SIGKILL"),
        (ExitFacts(signal="SIGKILL", oom=True), "killed by SIGKILL, probably out of memory"),
        (ExitFacts(signal="SIGSEGV", core_dumped=True), "killed by SIGSEGV, core dumped"),
        (ExitFacts(reason="no such file"), "no such file"),
        (ExitFacts(), "ended, how is not known"),
    ],
)
def test_an_end_is_described_in_a_few_words(exit_: ExitFacts, words: str) -> None:
    assert exits.describe(exit_) == words


def test_delays_grow_by_the_factor_up_to_the_cap() -> None:
    restart = RestartSpec()
    delays = [backoff.delay(restart, n, 0.5) for n in range(1, 11)]
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30])
    assert backoff.delay(restart, 100_000, 0.5) == 30


def test_jitter_goes_both_ways_and_stays_inside_the_cap() -> None:
    restart = RestartSpec(delay=1, max_delay=4, jitter=0.2)
    assert backoff.delay(restart, 1, 0.0) == pytest.approx(0.8)
    assert backoff.delay(restart, 1, 1.0) == pytest.approx(1.2)
    assert backoff.delay(restart, 3, 0.0) == pytest.approx(3.2)
    assert backoff.delay(restart, 3, 1.0) == 4
    assert backoff.delay(RestartSpec(delay=0), 5, 0.9) == 0


def test_the_budget_slides_and_both_ends_of_its_window_count() -> None:
    budget = Budget(2, 10)
    assert budget.allows(0)
    assert budget.record(0) == 1
    assert budget.record(5) == 2
    assert not budget.allows(10)
    assert budget.allows(10.001)
    assert budget.record(10.001) == 2
    assert not budget.allows(15)
    assert repr(budget) == "<Budget 2 of 2 in 10 s>"
    budget.clear()
    assert budget.allows(15)
    assert not Budget(0, 10).allows(0)


def app(**needs: dict[str, str] | int) -> AppSpec:
    return AppSpec(
        "app",
        tuple(
            WorkerSpec(name, instances=2 if name == "pool" else 1, depends_on=tuple(conditions.items()))
            for name, conditions in needs.items()
        ),
    )


@pytest.mark.parametrize(
    ("condition", "satisfied"),
    [
        ("started", {"running", "ready", "degraded", "exited"}),
        ("ready", {"ready"}),
        ("completed", {"exited", "failed"}),
        ("succeeded", {"exited"}),
    ],
)
def test_a_condition_is_met_in_these_states(condition: str, satisfied: set[str]) -> None:
    spec = app(db={}, web={"db": condition})
    ordering = Ordering(spec)
    met = {state for state in get_args(State) if not ordering.unmet(spec.worker("web"), {"db:0": state})}
    assert met == satisfied


def test_a_pool_satisfies_when_all_its_instances_do() -> None:
    spec = app(pool={}, web={"pool": "ready"})
    ordering = Ordering(spec)
    states = {"pool:0": "ready", "pool:1": "running", "web:0": "waiting"}
    assert ordering.unmet(spec.worker("web"), states) == (("pool", "ready"),)
    assert ordering.blocking(spec.worker("web"), states) == ("pool:1",)
    assert not ordering.unmet(spec.worker("web"), {**states, "pool:1": "ready"})


def test_dependents_are_found_through_others_and_in_any_order_of_the_file() -> None:
    ordering = Ordering(app(top={"mid": "ready"}, other={}, mid={"low": "ready"}, low={}))
    assert ordering.dependents("low") == {"mid", "top"}
    assert ordering.dependents("mid") == {"top"}
    assert ordering.dependents("top") == ordering.dependents("other") == frozenset()
    assert repr(ordering).startswith("<Ordering ")


def test_who_waits_in_vain_is_found_through_others() -> None:
    ordering = Ordering(app(low={}, mid={"low": "ready"}, top={"mid": "ready"}, job={"low": "completed"}))
    states = {"low:0": "failed", "mid:0": "waiting", "top:0": "waiting", "job:0": "ready"}
    assert ordering.stuck(states) == {"mid": "low:0 is failed", "top": "low:0 is failed"}
    assert ordering.stuck({**states, "low:0": "backoff"}) == {}
    assert ordering.stuck({**states, "mid:0": "starting"}) == {}


@pytest.mark.parametrize(
    ("needs", "cycle"),
    [
        ({}, None),
        ({"a": ("b", "c"), "b": ("c",)}, None),
        ({"a": ("a",)}, ("a", "a")),
        ({"a": ("b",), "b": ("c",), "c": ("b",), "d": ("a",)}, ("b", "c", "b")),
    ],
)
def test_a_cycle_is_shown_as_who_needs_whom(needs, cycle) -> None:
    found = find_cycle(needs)
    assert (found is None) == (cycle is None)
    if found is not None:
        assert set(found) == set(cycle)
        assert found[0] == found[-1]
        assert all(need in needs[name] for name, need in itertools.pairwise(found))


def test_a_long_chain_is_no_cycle_and_no_recursion() -> None:
    assert find_cycle({f"w{n}": (f"w{n + 1}",) for n in range(5000)}) is None


def test_an_ordering_refuses_a_cycle() -> None:
    with pytest.raises(ValueError, match=r"a -> b -> a|b -> a -> b"):
        Ordering(app(a={"b": "ready"}, b={"a": "ready"}))


def test_an_order_is_answered_once_when_all_instances_have_a_result() -> None:
    answers = Answers()
    answers.open(1, dict.fromkeys(("a:0", "b:0"), "up"))
    answers.open(2, dict.fromkeys(("a:0",), "down"))
    answers.say(1, "nobody:0", "is not asked for")
    answers.say(9, "a:0", "no such order")
    answers.aim(9, "a:0", "up")
    answers.open(0, dict.fromkeys(("a:0",), "up"))
    answers.say(0, "a:0", "")
    assert answers.waits("up")
    answers.settle("a:0", "up", "")
    answers.settle("a:0", "up", "too late, the first stands")
    assert answers.collect() == []
    answers.say(1, "b:0", "it failed")
    assert answers.collect() == [Answer(1, (("a:0", ""), ("b:0", "it failed")))]
    assert answers.collect() == []
    assert not answers.waits("up")
    assert repr(answers) == "<Answers 1 open>"
    answers.open(3, dict.fromkeys((), "up"))
    assert answers.collect() == [Answer(3, ())]

"""Who gets a message: tables for the directory, the choice, the topics and the attempts."""

from __future__ import annotations

import pytest

from smartipc.ipc import control
from smartipc.ipc.control import Entry, ExitFacts, Subscription
from smartipc.ipc.errors import ConnectionLost, NoSuchWorker, Overloaded, WorkerDied
from smartipc.ipc.routing import attempts, balance
from smartipc.ipc.routing.directory import Directory, DirectoryState
from smartipc.ipc.routing.subscribers import Targets
from smartipc.ipc.routing.topics import matches


def entry(slot: int, state: control.State = "ready", generation: int = 1, worker: str = "w", **more: object) -> Entry:
    return Entry(f"{worker}:{slot}", worker, slot, generation, 100 + slot, state, **more)  # type: ignore[arg-type]


def state(*entries: Entry, subscriptions: tuple[Subscription, ...] = ()) -> DirectoryState:
    return DirectoryState(1, entries, subscriptions)


def chosen(of: DirectoryState, **how: object) -> object:
    arguments = {"outstanding": lambda _: 0, **how}
    return balance.select(of, "w", **arguments)  # type: ignore[arg-type]


# topics


@pytest.mark.parametrize(
    ("pattern", "topic", "match"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.b", "a", False),
        ("a", "a.b", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("*.b", "a.b", True),
        ("*", "a", True),
        ("a.>", "a", False),
        ("a.>", "a.b", True),
        ("a.>", "a.b.c", True),
        (">", "a", True),
        ("*.>", "a.b", True),
    ],
)
def test_patterns(pattern: str, topic: str, match: bool) -> None:
    assert matches(pattern, topic) is match


# the directory


def test_an_update_swaps_the_state_and_tells_the_listeners() -> None:
    directory = Directory()
    told: list[int] = []
    directory.listeners.append(lambda: told.append(directory.state.revision))
    directory.apply(control.Directory(3, (entry(0), entry(1, "starting")), full=True))
    before = directory.state
    directory.apply(control.Directory(4, (entry(1),)))
    assert told == [3, 4]
    assert [one.state for one in before.by_worker["w"]] == ["ready", "starting"]
    assert [one.state for one in directory.state.by_worker["w"]] == ["ready", "ready"]
    assert "2 slots" in repr(directory)


def test_the_librarys_own_names_are_no_workers() -> None:
    own = Entry(control.SUPERVISOR, control.SUPERVISOR, 0, 1, 1, "ready")
    assert state(entry(0), own).workers() == ("w",)


def test_subscriptions_come_go_and_die_with_their_life() -> None:
    directory = Directory()
    one, two = Subscription("w:0", 1, 1, "t.*", 10), Subscription("w:0", 1, 2, "t.a", 10)
    directory.apply(control.Directory(1, (entry(0),), (one,), full=True))
    directory.apply(control.Directory(2, (), (two,)))
    assert set(directory.state.subscribed("t.a").plain) == {one, two}
    assert set(directory.state.subscribed("t.a").plain) == {one, two}
    assert directory.state.subscribed("t.b").plain == (one,)
    directory.apply(control.Directory(3, unsubscribed=(("w:0", 1, 1),)))
    assert directory.state.subscribed("t.a").plain == (two,)
    directory.apply(control.Directory(4, (entry(0, generation=2),)))
    assert directory.state.subscribed("t.a") == Targets()
    directory.apply(control.Directory(5, subscriptions=(one,)))  # of a life that is over
    assert directory.state.subscribed("t.a") == Targets()


def test_remembered_topics_are_bounded() -> None:
    of = state(entry(0))
    for number in range(5000):
        assert of.subscribed(f"t.{number}") == Targets()
    assert len(of.subscriptions._memo) == 4096


@pytest.mark.parametrize(
    ("known", "lives"),
    [("ready", True), ("starting", True), ("stopping", True), ("backoff", False), ("exited", False), ("failed", False)],
)
def test_a_life_is_over_when_the_directory_says_so(known: control.State, lives: bool) -> None:
    of = state(entry(0, known))
    assert of.lives("w:0", 1) is lives
    assert not of.lives("w:0", 2)
    assert not of.lives("x:0", 1)


def test_exit_facts_belong_to_one_generation() -> None:
    facts = ExitFacts(signal="SIGKILL")
    of = state(entry(0, "starting", 2, last_exit=facts, last_exit_generation=1))
    assert of.exit_of("w:0", 1) is facts
    assert of.exit_of("w:0", 2) is None
    assert of.exit_of("x:0", 1) is None


def test_two_lives_of_a_slot_are_both_known_and_only_the_current_one_is_chosen() -> None:
    directory = Directory()
    directory.apply(control.Directory(1, (entry(0), entry(0, "running", 2, current=False)), full=True))
    assert chosen(directory.state) == entry(0)
    assert directory.state.lives("w:0", 1)
    assert directory.state.lives("w:0", 2)
    directory.apply(control.Directory(2, (entry(0, "ready", 2), entry(0, "stopping", 1, current=False))))
    assert chosen(directory.state) == entry(0, "ready", 2)
    assert directory.state.lives("w:0", 1), "it drains: links to it stay open"
    assert list(directory.state.beside) == [("w:0", 1)]
    facts = ExitFacts(signal="SIGKILL")
    ended = entry(0, "stopped", 1, current=False, last_exit=facts, last_exit_generation=1)
    directory.apply(control.Directory(3, (ended,)))
    assert not directory.state.lives("w:0", 1)
    assert directory.state.exit_of("w:0", 1) == facts
    directory.apply(control.Directory(4, (entry(0, "starting", 3, current=False),)))
    assert list(directory.state.beside) == [("w:0", 3)], "the dead are forgotten when the next one is told of"
    assert directory.state.exit_of("w:0", 1) is None


def test_subscriptions_of_both_lives_hold_and_end_with_them() -> None:
    directory = Directory()
    both = tuple(Subscription("w:0", generation, 1, "t", 1) for generation in (1, 2))
    directory.apply(control.Directory(1, (entry(0), entry(0, "running", 2, current=False)), both, full=True))
    assert len(directory.state.subscriptions) == 2
    directory.apply(control.Directory(2, (entry(0, "ready", 2), entry(0, "stopped", 1, current=False))))
    assert len(directory.state.subscriptions) == 1


def test_who_leaves_is_sent_nothing_new_and_who_replaces_it_is_found() -> None:
    directory = Directory()
    entries = entry(0, "ready", 2), entry(0, "stopping", 1, current=False), entry(1, "stopping"), entry(2)
    subscriptions = (
        old := Subscription("w:0", 1, 1, "t", 1),
        new := Subscription("w:0", 2, 1, "t", 1),
        Subscription("w:0", 2, 2, "t.>", 1),
        Subscription("w:1", 1, 1, "t", 1),
        queued := Subscription("w:2", 1, 1, "t", 1, "q"),
    )
    directory.apply(control.Directory(1, entries, subscriptions, full=True))
    of = directory.state
    assert [of.leaving(one) for one in subscriptions] == [True, False, False, True, False]
    assert of.leaving(Subscription("w:0", 3, 1, "t", 1)), "of a life that nobody knows"
    assert of.leaving(Subscription("x:0", 1, 1, "t", 1))
    assert of.life("w:0", 1) == entries[1]
    assert of.life("w:0", 3) is None
    assert of.staying((old, new, queued)) == (new, queued)
    assert of.staying((old,)) == (old,), "all of them leave"
    assert of.successors(old, "t", [old]) == [new]
    assert of.successors(old, "t", [old, new]) == []
    assert of.successors(new, "t", [new]) == []


def test_a_removed_slot_is_unknown() -> None:
    directory = Directory()
    directory.apply(control.Directory(1, (entry(0), entry(1), entry(1, "stopping", 1, current=False)), full=True))
    directory.apply(control.Directory(2, removed=("w:1",)))
    assert [one.instance for one in directory.state.by_worker["w"]] == ["w:0"]
    assert not directory.state.lives("w:1", 1)
    assert directory.state.beside == {}
    assert isinstance(chosen(directory.state, slot=1), NoSuchWorker)


def test_coming() -> None:
    assert state(entry(0, "backoff")).coming("w")
    assert not state(entry(0, "failed")).coming("w")
    assert not state().coming("w")


# the choice


def test_unknown_names_are_certain_errors() -> None:
    unknown = chosen(state(entry(0, worker="v")))
    assert isinstance(unknown, NoSuchWorker)
    assert unknown.known == ("v",)
    slot = chosen(state(entry(0)), slot=3)
    assert isinstance(slot, NoSuchWorker)
    assert (slot.worker, slot.known) == ("w:3", ("w:0",))


def test_nobody_ready_is_waited_for_if_somebody_may_come() -> None:
    assert chosen(state(entry(0, "failed"), entry(1, "backoff"))) == balance.Wait("w:1 is backoff")
    assert chosen(state(entry(0, "degraded"))) == balance.Wait("w:0 is degraded")


def test_nobody_to_come_fails_at_once_with_the_last_exit() -> None:
    facts = ExitFacts(code=3)
    died = chosen(state(entry(0, "failed", last_exit=facts)), method="w.m")
    assert isinstance(died, WorkerDied)
    assert (died.instance, died.exit_code, died.processed, died.method) == ("w:0", 3, "no", "w.m")
    stopped = chosen(state(entry(0, "stopped")))
    assert isinstance(stopped, WorkerDied)
    assert "it is stopped" in str(stopped)


def test_least_outstanding_then_in_turn() -> None:
    of = state(entry(0), entry(1), entry(2), entry(3, "running"))
    busy = {"w:0": 2, "w:1": 1, "w:2": 1}
    picks = [chosen(of, outstanding=lambda one: busy[one.instance], turn=turn) for turn in range(4)]
    assert [one.instance for one in picks if isinstance(one, Entry)] == ["w:1", "w:2", "w:1", "w:2"]


def test_a_slot_is_pinned() -> None:
    of = state(entry(0), entry(1), entry(2, "starting"))
    assert chosen(of, slot=1) == entry(1)
    assert isinstance(chosen(of, slot=2), balance.Wait)


def test_equal_keys_go_together_and_few_move() -> None:
    ten = state(*(entry(slot) for slot in range(10)))
    nine = state(*(entry(slot) for slot in range(9)))
    keys = [f"key{number}" for number in range(1000)]
    before = {key: chosen(ten, key=key) for key in keys}
    after = {key: chosen(nine, key=key) for key in keys}
    moved = [key for key in keys if before[key] != after[key]]
    assert all(before[key] == entry(9) for key in moved)
    assert 50 < len(moved) < 200


# attempts


def test_a_lost_link_is_a_death_only_if_the_directory_says_so() -> None:
    error = ConnectionLost("w:0", processed="maybe")
    assert attempts.lost(error, state(entry(0)), "w:0", 1, "w.m") is None
    facts = ExitFacts(signal="SIGKILL", oom=True)
    died = attempts.lost(error, state(entry(0, "backoff", last_exit=facts, last_exit_generation=1)), "w:0", 1, "w.m")
    assert isinstance(died, WorkerDied)
    assert (died.signal, died.oom, died.processed, died.method) == ("SIGKILL", True, "maybe", "w.m")
    unknown = attempts.lost(error, state(), "w:0", 1, "w.m")
    assert isinstance(unknown, WorkerDied)
    assert "exit facts unknown" in str(unknown)


@pytest.mark.parametrize(
    ("error", "idempotent", "attempt", "what"),
    [
        (WorkerDied("w:0"), True, 1, "retry"),
        (WorkerDied("w:0"), True, 3, "raise"),
        (WorkerDied("w:0"), False, 1, "raise"),
        (WorkerDied("w:0", processed="no"), False, 3, "again"),
        (ConnectionLost(processed="maybe"), True, 2, "retry"),
        (ConnectionLost(processed="no"), False, 1, "again"),
        (Overloaded(), True, 1, "raise"),
        (ValueError(), True, 1, "raise"),
    ],
)
def test_what_follows_a_failed_attempt(error: BaseException, idempotent: bool, attempt: int, what: str) -> None:
    assert attempts.after(error, idempotent=idempotent, attempt=attempt) == what

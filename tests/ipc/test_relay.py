"""The relay of a server: who gets what, what waits for whom, and that nothing waits for ever or without bound."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartipc.ipc import relay as relay_module
from smartipc.ipc.control import Subscription
from smartipc.ipc.protocol.events import SubscribeReceived
from smartipc.ipc.protocol.topics import OWED, WINDOW
from smartipc.ipc.publications import Outgoing
from smartipc.ipc.relay import Note, Origin, Relay, asked, is_topic


@dataclass
class World:
    """A relay whose links are lists."""

    got: dict[tuple[str, int], list[bytes]] = field(default_factory=dict)
    senders: list[str] = field(default_factory=list)
    full: set[str] = field(default_factory=set)
    refuses: set[str] = field(default_factory=set)
    news: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.relay = Relay(self._send, lambda one: one.instance not in self.full, lambda o: self.news.append(o.name))

    def _send(self, one: Subscription, message: Outgoing, note: Note) -> bool:
        if one.instance in self.refuses:
            return False
        self.got.setdefault((one.instance, one.number), []).append(message.payload)
        self.senders.append(note.sender)
        return True

    def sub(self, instance: str, number: int = 1, pattern: str = "a.>", **more: object) -> Subscription:
        one = Subscription(instance, 0, number, pattern, **{"window": 2, **more})  # type: ignore[arg-type]
        self.relay.subscribe(one)
        return one

    def heard(self, instance: str, number: int = 1) -> list[bytes]:
        return self.got.get((instance, number), [])


def test_everybody_but_the_publisher_gets_a_message() -> None:
    world, me = World(), Origin("#1", "me")
    for instance in ("#1", "#2", "#3"):
        world.sub(instance)
    world.sub("#4", pattern="b")
    ticket, count = world.relay.publish(me, "a.b", b"x")
    assert ticket.done
    assert count == 2
    assert (world.heard("#1"), world.heard("#2"), world.heard("#3"), world.heard("#4")) == ([], [b"x"], [b"x"], [])
    assert set(world.senders) == {"me"}


def test_a_slow_one_holds_the_publisher_and_no_other() -> None:
    world, me = World(), Origin("#1", "me")
    world.sub("#2", window=1)
    world.sub("#3", window=100)
    tickets = [world.relay.publish(me, "a.b", bytes([number]))[0] for number in range(5)]
    assert [ticket.done for ticket in tickets] == [True, False, False, False, False]
    assert len(world.heard("#3")) == 5
    assert world.relay.waiting == 4
    assert (me.settled, me.bytes) == (1, 4)
    for count in range(1, 6):
        world.relay.acknowledged(("#2", 0, 1), count)
    assert all(ticket.done for ticket in tickets)
    assert world.heard("#2") == [bytes([number]) for number in range(5)]
    assert (me.settled, me.bytes, world.relay.waiting) == (5, 0, 0)
    world.relay.acknowledged(("#9", 0, 1), 1)
    assert "2 subscriptions" in repr(world.relay)


def test_settling_keeps_the_order_of_publishing() -> None:
    world, me = World(), Origin("#1", "me")
    world.sub("#2", pattern="a.slow", window=1)
    world.relay.publish(me, "a.slow", b"1")
    world.relay.publish(me, "a.slow", b"2")
    world.relay.publish(me, "a.quick", b"3")
    assert me.settled == 1, "the third is through, but the second is before it"
    world.relay.acknowledged(("#2", 0, 1), 1)
    assert me.settled == 3


@pytest.mark.parametrize("how", ["unsubscribe", "leave"])
def test_whoever_leaves_releases_its_publishers(how: str) -> None:
    world, me = World(), Origin("#1", "me")
    one = world.sub("#2", window=1)
    tickets = [world.relay.publish(me, "a.b", b"x")[0] for _ in range(3)]
    assert not tickets[-1].done
    if how == "leave":
        world.relay.leave("#2")
    else:
        world.relay.unsubscribe((one.instance, 0, one.number))
        world.relay.unsubscribe((one.instance, 0, one.number))
    assert all(ticket.done for ticket in tickets)
    assert world.relay.publish(me, "a.b", b"x")[1] == 0


def test_a_full_link_keeps_what_is_for_it_until_it_has_room() -> None:
    world, me = World(), Origin("#1", "me")
    world.sub("#2", window=10)
    world.full.add("#2")
    ticket, _ = world.relay.publish(me, "a.b", b"x")
    assert not ticket.done
    world.relay.flush("#2")
    assert world.heard("#2") == []
    world.full.clear()
    world.relay.flush("#2")
    assert (world.heard("#2"), ticket.done) == ([b"x"], True)


def test_one_that_drops_holds_nobody() -> None:
    world, me = World(), Origin("#1", "me")
    world.sub("#2", window=2, overflow="drop_oldest")
    world.full.add("#2")
    tickets = [world.relay.publish(me, "a.b", bytes([number]))[0] for number in range(100)]
    assert all(ticket.done for ticket in tickets)
    assert world.relay.waiting == 2
    world.full.clear()
    world.relay.flush("#2")
    assert world.heard("#2") == [bytes([98]), bytes([99])]


def test_what_is_too_large_for_one_reaches_the_others() -> None:
    world, me = World(), Origin("#1", "me")
    world.sub("#2")
    world.sub("#3", window=100)
    world.refuses.add("#2")
    for _ in range(5):
        assert world.relay.publish(me, "a.b", b"x")[0].done
    assert len(world.heard("#3")) == 5
    world.refuses.clear()
    world.relay.publish(me, "a.b", b"y")
    assert world.heard("#2") == [b"y"]


def test_a_queue_shares_and_passes_on_what_a_member_left() -> None:
    world, me = World(), Origin("#1", "me")
    for instance in ("#1", "#2", "#3"):
        world.sub(instance, queue="crew", window=1)
    tickets = [world.relay.publish(me, "a.b", bytes([number]))[0] for number in range(4)]
    assert world.heard("#1") == []
    assert sorted(world.heard("#2") + world.heard("#3")) == [b"\0", b"\1"]
    assert world.relay.waiting == 2
    assert world.relay.blocked(me, "a.b") == "#2"
    world.relay.leave("#2")
    for count in (1, 2, 3):
        world.relay.acknowledged(("#3", 0, 1), count)
    assert sorted(world.heard("#3")) == sorted({b"\0", b"\1", b"\2", b"\3"} - set(world.heard("#2")))
    assert all(ticket.done for ticket in tickets)
    world.relay.leave("#3")
    assert world.relay.publish(me, "a.b", b"x")[1] == 0
    assert world.relay.blocked(me, "a.b") is None


def test_blocked_names_whom_one_would_wait_for() -> None:
    world, me = World(), Origin("#1", "me")
    assert world.relay.blocked(me, "a.b") is None
    world.sub("#1", window=1)
    world.sub("#2", window=1)
    world.sub("#3", window=1, overflow="latest")
    assert world.relay.blocked(me, "a.b") is None
    world.relay.publish(me, "a.b", b"x")
    assert world.relay.blocked(me, "a.b") == "#2"


def test_retained_values_reach_late_subscribers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "MOST_RETAINED", 2)
    monkeypatch.setattr(relay_module, "MOST_RETAINED_BYTES", 100)
    world, me = World(), Origin("#1", "me")
    world.sub("#2", window=50)
    for topic, value in (("a.y", b"1"), ("a.x", b"2"), ("a.y", b"3"), ("a.z", b"too many"), ("a.x", bytes(200))):
        world.relay.publish(me, topic, value, retain=True)
    assert len(world.heard("#2")) == 5, "what cannot be kept is still sent"
    world.sub("#3")
    world.sub("#4", queue="crew")
    world.sub("#5", pattern="a.x")
    assert world.heard("#3") == [b"2", b"3"]
    assert world.heard("#4") == []
    assert world.heard("#5") == [b"2"]
    world.full.add("#6")
    world.sub("#6")
    world.relay.leave("#6")
    assert me.bytes == 0


def test_credit_is_owed_in_batches() -> None:
    world, me = World(), Origin("#1", "me")
    assert me.room
    told = []
    for _ in range(3 * OWED):
        world.relay.publish(me, "a.b", b"")
        owed = me.owed()
        if owed is not None:
            told.append(owed)
    assert told == [OWED, 2 * OWED, 3 * OWED]
    world.relay.publish(me, "a.b", bytes(2_000_000))
    assert me.owed() == 3 * OWED + 1
    world.relay.refuse(me, 10)
    assert me.settled == 3 * OWED + 2
    world.sub("#2", window=1)
    for _ in range(WINDOW + 1):
        world.relay.publish(me, "a.b", b"")
    assert not me.room
    assert "unsettled" in repr(me)


@pytest.mark.parametrize(
    ("event", "found"),
    [
        (SubscribeReceived(7, "a.*", 5, "q", "latest"), Subscription("#1", 0, 7, "a.*", 5, "q", "latest")),
        (SubscribeReceived(7, "a.*", 0, "", "block"), "max_pending"),
        (SubscribeReceived(7, "a.*", 1 << 40, "", "block"), "max_pending"),
        (SubscribeReceived(7, "a.*", 5, "", "explode"), "policy"),
        (SubscribeReceived(7, "a..b", 5, "", "block"), "pattern"),
        (SubscribeReceived(7, "$sys.>", 5, "", "block"), "$sys"),
    ],
)
def test_what_clients_ask_for_is_checked(event: SubscribeReceived, found: Subscription | str) -> None:
    result = asked(event, "#1")
    if isinstance(found, str):
        assert isinstance(result, str)
        assert found in result
    else:
        assert result == found


def test_topics_of_clients_are_checked() -> None:
    assert is_topic("a.b")
    assert not any(is_topic(name) for name in ("", "a.*", ">", "$sys.x", "a" * 1000, "a b"))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_nothing_is_lost_or_waits_for_ever(data: st.DataObject) -> None:
    """Whatever the order of publishing, acknowledging and full links, blocking subscribers get all, in order."""
    world = World()
    origins = [Origin(f"#{number}", str(number)) for number in (1, 2)]
    subs = [world.sub(f"#{number}", window=data.draw(st.integers(1, 3))) for number in (3, 4)]
    sent: dict[str, list[bytes]] = {"#1": [], "#2": []}
    tickets = []
    for step in range(data.draw(st.integers(1, 40))):
        match data.draw(st.sampled_from(["publish", "acknowledge", "fill", "free"])):
            case "publish":
                origin = data.draw(st.sampled_from(origins))
                payload = f"{origin.name}:{step}".encode()
                sent[origin.name].append(payload)
                tickets.append(world.relay.publish(origin, "a.b", payload)[0])
            case "acknowledge":
                one = data.draw(st.sampled_from(subs))
                world.relay.acknowledged((one.instance, 0, 1), len(world.heard(one.instance)))
            case "fill":
                world.full.add(data.draw(st.sampled_from(subs)).instance)
            case "free":
                one = data.draw(st.sampled_from(subs))
                world.full.discard(one.instance)
                world.relay.flush(one.instance)
        for origin in origins:
            assert origin.settled + len(origin.tickets) == len(sent[origin.name])
    world.full.clear()
    for _ in range(100):
        for one in subs:
            world.relay.flush(one.instance)
            world.relay.acknowledged((one.instance, 0, 1), len(world.heard(one.instance)))
    assert all(ticket.done for ticket in tickets)
    assert world.relay.waiting == 0
    for one in subs:
        for name, payloads in sent.items():
            assert [got for got in world.heard(one.instance) if got.startswith(name.encode())] == payloads

"""The publisher's end: credit, what waits by each policy, who of a queue comes next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartipc.ipc.contracts import Topic
from smartipc.ipc.control import FLIGHT, Overflow, Subscription
from smartipc.ipc.errors import InvalidPayload
from smartipc.ipc.publications import FLIGHT_BYTES, Lane, Outgoing, member, published
from smartipc.ipc.wire import attachments


def lane(overflow: Overflow = "block", window: int = 3, number: int = 1) -> Lane:
    return Lane(Subscription("w:0", 1, number, "t.>", window, "", overflow))


def offer(of: Lane, *topics: str) -> list[str]:
    """Publish, and return what would be sent at once."""
    sent = []
    for topic in topics:
        if of.room:
            sent.append(of.take(topic, topic.encode()).topic)
        else:
            of.keep(topic, topic.encode())
    return sent


def rest(of: Lane) -> list[tuple[str, int]]:
    """Return what follows when everything under way is acknowledged, with its numbers."""
    found = []
    while of.acknowledged(of.sent) or of.left:
        message = of.next()
        if message is None:
            return found
        found.append((message.topic, message.sequence))
    return found


def test_a_blocking_lane_counts_credit() -> None:
    of = lane()
    assert offer(of, "t.a", "t.b", "t.c") == ["t.a", "t.b", "t.c"]
    assert (of.room, of.left, of.load) == (False, 0, 3)
    assert not of.acknowledged(0)
    assert not of.acknowledged(4)
    assert of.acknowledged(2)
    assert not of.acknowledged(2)
    assert (of.room, of.left, of.load) == (True, 2, 1)
    assert of.take("t.d", b"").sequence == 0
    of.give_back(Outgoing("t.d", b""))
    assert of.left == 2
    of.renew()
    assert (of.left, of.load) == (3, 0)
    assert "3 left, 0 pending" in repr(of)


@pytest.mark.parametrize(
    ("overflow", "kept"),
    [
        ("drop_oldest", [("t.8", FLIGHT + 8), ("t.9", FLIGHT + 9), ("t.10", FLIGHT + 10)]),
        ("drop_newest", [("t.1", FLIGHT + 1), ("t.2", FLIGHT + 2), ("t.3", FLIGHT + 3), ("", FLIGHT + 10)]),
        ("close", [("t.1", FLIGHT + 1), ("t.2", FLIGHT + 2), ("t.3", FLIGHT + 3), ("", FLIGHT + 10)]),
        ("latest", [("t.8", FLIGHT + 8), ("t.9", FLIGHT + 9), ("t.10", FLIGHT + 10)]),
    ],
)
def test_what_waits_when_nothing_may_fly(overflow: Overflow, kept: list[tuple[str, int]]) -> None:
    of = lane(overflow)
    assert len(offer(of, *(["t.0"] * FLIGHT))) == FLIGHT
    assert offer(of, *(f"t.{number}" for number in range(1, 11))) == []
    assert of.next() is None
    assert len(of.pending) == 3
    assert rest(of) == kept
    assert offer(of, "t.last") == ["t.last"]


def test_latest_keeps_one_of_each_topic_in_order_of_publishing() -> None:
    of = lane("latest")
    offer(of, *(["t.0"] * FLIGHT))
    offer(of, "t.a", "t.b", "t.a", "t.a")
    assert rest(of) == [("t.b", FLIGHT + 2), ("t.a", FLIGHT + 4)]
    offer(of, *(["t.0"] * FLIGHT), "t.a", "t.a")
    assert [topic for topic, _ in rest(of)] == ["t.a"]


def test_bytes_under_way_are_bounded_too() -> None:
    of = lane("drop_oldest", window=10)
    big = bytes(FLIGHT_BYTES // 2)
    assert [of.take("t", big).sequence for _ in range(2)] == [1, 2]
    assert not of.room
    of.keep("t", b"small")
    assert of.next() is None
    assert of.acknowledged(1)
    assert of.next() == Outgoing("t", b"small", 0, 3)


def test_what_could_not_be_sent_is_told_as_lost() -> None:
    of = lane("drop_newest")
    of.give_back(of.take("t", b"too large"))
    assert of.next() == Outgoing("", b"", 0, 1)


def test_a_new_link_counts_anew_and_keeps_what_waits() -> None:
    of = lane("drop_oldest")
    offer(of, *(["t.0"] * FLIGHT), "t.a", "t.b")
    of.renew()
    assert [of.next(), of.next(), of.next()] == [Outgoing("t.a", b"t.a", 0, 1), Outgoing("t.b", b"t.b", 0, 2), None]
    blocking = lane()
    blocking.keep("t.x", b"", anyway=True)
    blocking.renew()
    assert not blocking.room
    assert blocking.next() == Outgoing("t.x", b"", 0, 0)
    assert blocking.left == 2


@given(st.sampled_from(["drop_oldest", "drop_newest", "latest"]), st.lists(st.integers(0, 4)), st.integers(1, 5))
def test_every_loss_is_a_gap(overflow: Overflow, acknowledgements: list[int], window: int) -> None:
    """However acknowledgements and publishing interleave: numbers rise, and the last one told is the last published."""
    of = lane(overflow, window)
    seen: list[int] = []
    for step, extra in enumerate(acknowledgements * 20):
        for number in range(extra * 7):
            if of.room:
                seen.append(of.take(f"t.{number % 3}", b"").sequence)
            else:
                of.keep(f"t.{number % 3}", b"")
        assert len(of.pending) <= window
        if step % 3 == 0:
            of.acknowledged(of.consumed + extra)
            while (message := of.next()) is not None:
                seen.append(message.sequence)
    seen += [number for _, number in rest(of)]
    assert seen == sorted(set(seen))
    assert (seen[-1] if seen else 0) == of.sequence


def test_who_of_a_queue_comes_next() -> None:
    lanes = {one.one: one for one in (lane(number=1), lane(number=2), lane("drop_newest", number=3))}
    members = list(lanes)

    def choose(turn: int, of: list[Subscription] = members) -> int | None:
        one = member(of, lanes.__getitem__, turn)
        return None if one is None else one.number

    assert [choose(turn) for turn in range(4)] == [1, 2, 3, 1]
    lanes[members[0]].take("t", b"")
    assert [choose(turn) for turn in range(3)] == [2, 3, 2]
    for _ in range(3):
        lanes[members[1]].take("t", b"")
    offer(lanes[members[2]], *(["t"] * (FLIGHT + 1)))
    assert choose(0) == 1
    for _ in range(2):
        lanes[members[0]].take("t", b"")
    assert choose(0) == 3
    assert choose(0, members[:2]) is None
    assert choose(0, []) is None


def test_what_is_published_is_checked() -> None:
    assert published("a.b", {"x": 1}) == ("a.b", b"\x81\xa1x\x01")
    with pytest.raises(InvalidPayload):
        published(Topic("a.b", int), "one")
    for wrong in ("a.*", "$sys.a", "a..b"):
        with pytest.raises(ValueError, match="topic"):
            published(wrong, 1)


def test_what_waits_does_not_change_and_buffers_count() -> None:
    one = lane("drop_oldest", window=3)
    source = bytearray(FLIGHT_BYTES)
    big = attachments.payload(b"x", [attachments.Attachment(memoryview(source))])
    one.take("t", big)
    assert not one.room, "a buffer is under way like any other bytes"
    one.keep("t", big)
    source[:1] = b"y"
    assert bytes(big.attachments[0].view[:1]) == b"\0"

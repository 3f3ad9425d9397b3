"""The subscriber's end: what is kept by each policy, every loss counted, credit given back."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartipc.ipc.contracts import Topic
from smartipc.ipc.control import FLIGHT, Overflow
from smartipc.ipc.errors import InvalidPayload, LocalProtocolError, SlowConsumer
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.protocol.events import MessageReceived, MessagesReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.subscriptions import Inbox, Kept, subscription_of
from smartipc.ipc.wire import codec

LINK = Kept(Identity("p:0", 1, 1))  # only its peer matters here


class Other:
    peer = Identity("p:1", 1, 1)


def inbox(overflow: Overflow = "block", window: int = 3, payload_type: object = int) -> Inbox:
    return Inbox(1, "t.>", payload_type, window, overflow)


def event(value: object, topic: str = "t.a", sequence: int = 0, stamp: int = 0) -> MessageReceived:
    return MessageReceived(1, topic, codec.encode(value), None, 0.0, stamp, sequence)


def taken(of: Inbox) -> list[tuple[object, int]]:
    found = []
    while of.waiting:
        message, _, _ = of.take()
        assert isinstance(message, IpcMessage)
        found.append((message.payload, message.missed))
    return found


def fill(of: Inbox, numbers: range, topic: str = "t.a") -> None:
    for number in numbers:
        of.arrived(event(number, topic, number), Other)


def test_block_acknowledges_what_was_consumed() -> None:
    of = inbox(window=4)
    assert [of.arrived(event(number), Other) for number in range(6)] == [None] * 6
    assert [of.take()[2] for _ in range(6)] == [None, 2, None, 4, None, 6]
    assert of.dropped == 0


def together(values: list[object], topic: str = "t.a") -> MessagesReceived:
    return MessagesReceived(1, topic, codec.encode(values), 0.0)


def test_a_batch_that_fills_the_window_gives_credit_back_before_its_end() -> None:
    of = inbox(window=8)
    assert of.arrived_together(together(list(range(7))), Other)
    assert not of.batch.rest
    owed = [of.take()[2] for _ in range(7)]
    assert owed == [None, None, None, 4, None, None, None]
    assert of.arrived_together(together([7]), Other)
    assert of.take()[2] == 8
    assert not of.waiting


def test_messages_of_a_batch_and_single_ones_come_in_order_and_say_where_from() -> None:
    of = inbox(window=4)
    of.arrived(event(0, "t.b"), Other)
    assert of.arrived_together(together([1, 2, 3]), Other)
    of.arrived(event(4, "t.b"), Other)
    seen = []
    while of.waiting:
        while of.batch.rest:  # as the iteration does
            seen.append((of.batch.topic, of.batch.rest.pop(), of.batch.sender))
        message, _, _ = of.take()
        assert isinstance(message, IpcMessage)
        seen.append((message.topic, message.payload, message.sender))
    assert seen == [("t.b", 0, "p:1"), *(("t.a", number, "p:1") for number in (1, 2, 3)), ("t.b", 4, "p:1")]


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", "latest", "close"])
def test_a_batch_is_looked_at_one_by_one_where_something_may_be_dropped(overflow: Overflow) -> None:
    of = inbox(overflow)
    assert not of.arrived_together(together([1, 2]), Other)
    assert not of.waiting


def test_a_batch_with_one_that_does_not_fit_is_looked_at_one_by_one() -> None:
    of = inbox()
    assert not of.arrived_together(together([1, "two"]), Other)
    assert not of.arrived_together(together([]), Other)
    assert not of.waiting


@pytest.mark.parametrize(
    ("overflow", "kept", "missed"),
    [
        ("drop_oldest", [(8, 7), (9, 0), (10, 0)], 7),
        ("drop_newest", [(1, 0), (2, 0), (3, 0)], 7),
        ("latest", [(10, 9)], 9),
    ],
)
def test_what_is_kept(overflow: Overflow, kept: list[tuple[int, int]], missed: int) -> None:
    of = inbox(overflow)
    fill(of, range(1, 11))
    assert of.dropped == missed
    assert taken(of) == kept
    fill(of, range(11, 12))
    assert taken(of) == [(11, 7 if overflow == "drop_newest" else 0)]


def test_latest_is_per_topic_and_keeps_the_order_of_arrival() -> None:
    of = inbox("latest")
    for number, topic in enumerate(("t.a", "t.b", "t.a", "t.c", "t.b", "t.d"), 1):
        of.arrived(event(number, topic, number), Other)
    # a and b were replaced; d had no place, so the oldest topic went
    assert of.dropped == 3
    assert taken(of) == [(4, 3), (5, 0), (6, 0)]


def test_latest_stays_small_however_often_topics_are_replaced() -> None:
    of = inbox("latest", window=100)
    fill(of, range(1, 2), "t.first")
    for number in range(2, 10_000):
        of.arrived(event(number, f"t.{number % 3}", number), Other)
    assert len(of.waiting) <= 2 * 4 + 65
    assert taken(of) == [(1, 0), (9997, 9995), (9998, 0), (9999, 0)]


def test_gaps_at_the_publisher_are_counted() -> None:
    of = inbox("drop_oldest", window=10)
    of.arrived(event(1, sequence=1), Other)
    of.arrived(event(5, sequence=5), Other)
    assert of.dropped == 3
    of.arrived(event(None, "", 9), Other)
    assert of.dropped == 7
    of.arrived(event(10, sequence=10), Other)
    assert taken(of) == [(1, 0), (5, 3), (10, 4)]


def test_close_returns_what_was_kept_and_then_fails() -> None:
    of = inbox("close")
    fill(of, range(1, 4))
    assert of.error is None
    fill(of, range(4, 6))
    assert isinstance(of.error, SlowConsumer)
    assert (of.error.topic, of.error.missed) == ("t.>", 2)
    assert [value for value, _ in taken(of)] == [1, 2, 3]
    fill(of, range(6, 7))
    assert not of.waiting
    gap = inbox("close")
    gap.arrived(event(2, sequence=2), Other)
    assert gap.error is not None
    assert not gap.waiting


def test_dropping_acknowledges_what_has_arrived() -> None:
    of = inbox("drop_oldest")
    owed = [of.arrived(event(number, sequence=number), Other) for number in range(1, FLIGHT + 1)]
    assert [count for count in owed if count is not None] == [FLIGHT // 2, FLIGHT]
    assert of.take()[2] is None
    big = event(bytes(300_000), sequence=FLIGHT + 1)
    assert of.arrived(big, Other) == FLIGHT + 1
    of.forget(Other)
    assert of.arrived(event(bytes(300_000), sequence=1), Other) == 1


def test_one_warning_an_episode(caplog: pytest.LogCaptureFixture) -> None:
    of = inbox("drop_oldest", window=4)
    with caplog.at_level(logging.WARNING):
        fill(of, range(1, 9))
        assert len(caplog.records) == 1
        of.take()
        fill(of, range(9, 13))
        assert len(caplog.records) == 1
        of.take()
        of.take()
        fill(of, range(13, 17))
    assert len(caplog.records) == 2
    assert "topic.messages_dropped" in caplog.text


def test_what_does_not_fit_is_returned_as_its_error() -> None:
    of = inbox("drop_oldest")
    of.arrived(event("text", sequence=3), Other)
    of.arrived(event(4, sequence=4), Other)
    wrong, link, _ = of.take()
    assert isinstance(wrong, InvalidPayload)
    assert link is Other
    assert taken(of) == [(4, 2)]
    of.arrived(event("text", sequence=6), Other)
    of.take()
    of.arrived(event(7, sequence=7), Other)
    assert taken(of) == [(7, 1)]
    with pytest.raises(IndexError):
        of.take()


@pytest.mark.parametrize("overflow", ["block", "drop_oldest", "latest"])
def test_a_retained_value_comes_once(overflow: Overflow) -> None:
    of = inbox(overflow, window=10)
    of.arrived(event(1, "t.early", 1, stamp=4), Other)
    other = Kept(Other.peer)
    of.restore([(event(1, "t.early", stamp=4), other), (event(2, "t.late", stamp=6), other), (event(3, stamp=1), LINK)])
    of.arrived(event(0, "t.late", 2, stamp=5), Other)
    of.arrived(event(2, "t.late", 3, stamp=6), Other)
    of.arrived(event(4, "t.a", 4, stamp=7), Other)
    # the latest policy keeps one of t.a, whoever published it
    assert [value for value, _ in taken(of)] == ([1, 2, 4] if overflow == "latest" else [1, 2, 3, 4])


def test_a_publisher_without_a_name_is_never_taken_for_another() -> None:
    class Anonymous:
        peer = None

    of = inbox()
    for _ in range(2):
        of.arrived(event(1, stamp=1), Anonymous)
    assert of.take()[0].sender == ""
    assert len(of.waiting) == 1


@given(
    st.sampled_from(["drop_oldest", "drop_newest", "latest"]),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=60),
    st.integers(1, 4),
)
def test_every_loss_is_counted_once(overflow: Overflow, steps: list[tuple[int, int, bool]], window: int) -> None:
    """Of all that was published each is delivered, or in somebody's `missed`, or still to be told."""
    of = inbox(overflow, window)
    sequence, delivered, missed = 0, [], 0
    for gap, topic, read in steps:
        sequence += 1 + gap
        of.arrived(event(sequence, f"t.{topic}", sequence), Other)
        assert of._live <= window
        if read and of.waiting:
            value, lost = _one(of)
            delivered.append(value)
            missed += lost
    for value, lost in taken(of):
        delivered.append(value)
        missed += lost
    assert delivered == sorted(set(delivered))
    assert len(delivered) + of.dropped == sequence
    assert missed + of._lost == of.dropped


def _one(of: Inbox) -> tuple[object, int]:
    message, _, _ = of.take()
    assert isinstance(message, IpcMessage)
    return message.payload, message.missed


def test_arguments_are_checked() -> None:
    of = subscription_of(7, Topic("a.b", int), queue="q", max_pending=5, overflow="latest")
    assert (of.number, of.pattern, of.payload_type, of.window, of.overflow, of.queue) == (
        7,
        "a.b",
        int,
        5,
        "latest",
        "q",
    )
    assert of.request.subscription("w:0", 3).queue == "q"
    assert subscription_of(1, "a.*", queue=None, max_pending=None, overflow="block").window == 1024
    for wrong in ({"overflow": "drop"}, {"queue": ""}, {"max_pending": 0}):
        with pytest.raises(LocalProtocolError):
            subscription_of(1, "a", **{"queue": None, "max_pending": None, "overflow": "block", **wrong})
    for pattern in ("a..b", "$sys.>", "a.>.b"):
        with pytest.raises(ValueError, match="topic"):
            subscription_of(1, pattern, queue=None, max_pending=None, overflow="block")


def test_a_message_without_headers_has_an_empty_dict_that_stays_empty() -> None:
    of = inbox(window=4)
    of.arrived(event(1), Other)
    assert of.arrived_together(together([2, 3]), Other)
    messages = [of.take()[0] for _ in range(3)]
    for message in messages:
        assert isinstance(message, IpcMessage)
        headers = message.headers
        assert headers == {}
        assert isinstance(headers, dict)
        for change in (
            lambda headers=headers: headers.update(a="b"),
            lambda headers=headers: headers.__setitem__("a", "b"),
            lambda headers=headers: headers.setdefault("a", "b"),
        ):
            with pytest.raises(TypeError, match="cannot be changed"):
                change()
        assert codec.decode(codec.encode(headers), dict[str, str]) == {}
        assert copy.deepcopy(headers) == pickle.loads(pickle.dumps(headers)) == {}
        assert {**headers, "a": "b"} == dict(headers, a="b") == headers | {"a": "b"} == {"a": "b"}

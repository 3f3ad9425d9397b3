"""Publish and subscribe without a supervisor, over every transport in both flavours and mixed."""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
import pytest
from ends import Pair
from kit import wait_for

from smartipc import ConnectionLost, FrameTooLarge, InvalidPayload, LocalProtocolError, Overloaded, SlowConsumer, Topic


class Job(msgspec.Struct, frozen=True):
    number: int


jobs = Topic("jobs.done", Job)
SOON = 0.2
"""Seconds in which a message that must not come would have come."""


def take(messages: Any, count: int) -> list[Any]:
    got = []
    for _ in range(count):
        message = messages.receive()
        assert message is not None, f"only {len(got)} of {count} messages came"
        got.append(message)
    return got


def test_a_server_reaches_its_clients_at_once_and_in_order(pair: Pair) -> None:
    with pair.client.subscribe(jobs) as messages:
        for number in range(300):
            pair.server.publish(jobs, Job(number))
        got = take(messages, 300)
    assert [message.payload.number for message in got] == list(range(300))
    assert {(message.topic, message.sender, message.missed) for message in got} == {("jobs.done", "srv", 0)}


def test_headers_and_a_trace_travel_with_a_message(pair: Pair) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with pair.server.subscribe("jobs.*") as at_server, pair.client.subscribe(jobs) as at_client:
        for end in (pair.client, pair.server):
            end.publish(jobs, Job(1), headers={"colour": "blue", "traceparent": trace})
            end.publish(jobs, Job(2))
            end.publish_nowait(jobs, Job(3), headers={"colour": "red"})
        for messages in (at_server, at_client):
            got = take(messages, 3)
            assert [dict(message.headers) for message in got] == [{"colour": "blue"}, {}, {"colour": "red"}]
            assert [message.trace for message in got] == [trace, None, None]
            with pytest.raises(TypeError):
                got[0].headers["colour"] = "green"
            with pytest.raises(TypeError):
                del got[0].headers["colour"]
            assert pickle.loads(pickle.dumps(got[0].headers)) == {"colour": "blue"}
        with pytest.raises(FrameTooLarge):
            pair.client.publish(jobs, Job(4), headers={"colour": "blue" * 2000})
        with pytest.raises(LocalProtocolError):
            pair.server.publish(jobs, Job(4), headers={"colour": 1})
        pair.client.publish(jobs, Job(5))
        assert take(at_server, 1)[0].payload == {"number": 5}


def test_a_client_reaches_the_server_and_not_itself(pair: Pair) -> None:
    with pair.server.subscribe("jobs.*") as at_server, pair.client.subscribe("jobs.>") as own:
        for number in range(300):
            pair.client.publish(jobs, Job(number))
        got = take(at_server, 300)
        assert [message.payload["number"] for message in got] == list(range(300))
        assert {message.sender for message in got} == {"one"}
        pair.server.publish("jobs.last", "end")
        assert own.receive().payload == "end", "what it published itself would have come before"


def test_a_client_reaches_the_others_through_the_server(pair: Pair) -> None:
    if not pair.place.lasting:
        return  # a descriptor has one client
    two, three = pair.join("two"), pair.join("three")
    with two.subscribe(jobs) as at_two, three.subscribe(">") as at_three, pair.client.subscribe(jobs) as at_one:
        for number in range(100):
            pair.client.publish(jobs, Job(number))
            two.publish(jobs, Job(1000 + number))
        for messages, expected in (
            (at_two, {"one": range(100)}),
            (at_one, {"two": range(1000, 1100)}),
            (at_three, {"one": range(100), "two": range(1000, 1100)}),
        ):
            got = take(messages, 100 * len(expected))
            for sender, numbers in expected.items():
                payloads = [message.payload for message in got if message.sender == sender]
                of = [one["number"] if isinstance(one, dict) else one.number for one in payloads]
                assert of == list(numbers)


def test_a_subscriber_function_gets_each_message(pair: Pair) -> None:
    got: dict[str, list[int]] = {"server": [], "client": []}

    def at_server(job: Job) -> None:
        got["server"].append(job.number)

    def at_client(job: Job, message: object) -> None:
        got["client"].append(job.number)

    pair.server.subscriber(jobs)(at_server)
    pair.client.subscriber(jobs)(at_client)
    wait_for(lambda: pair.server.publish_nowait(jobs, Job(-1)) == 1, "the client is subscribed")
    wait_for(lambda: pair.client.publish(jobs, Job(-1)) or got["server"], "the server is subscribed")
    for number in range(50):
        pair.client.publish(jobs, Job(number))
    pair.server.publish(jobs, Job(50))
    wait_for(lambda: 49 in got["server"] and 50 in got["client"], "all messages")
    assert [one for one in got["server"] if one >= 0] == list(range(50))
    assert [one for one in got["client"] if one >= 0] == [50], "nobody gets what it published itself"


def test_a_publisher_waits_for_a_slow_reader_and_no_longer(pair: Pair) -> None:
    published: list[int] = []

    def publish() -> None:
        for number in range(40):
            pair.server.publish(jobs, Job(number))
            published.append(number)

    with pair.client.subscribe(jobs, max_pending=8) as messages:
        publishing = pair.server.submit(publish)
        wait_for(lambda: len(published) == 8, "the window is full")
        assert not publishing.join(SOON)
        assert len(published) == 8
        with pytest.raises(Overloaded):
            pair.server.publish_nowait(jobs, Job(99))
        assert [message.payload.number for message in take(messages, 40)] == list(range(40))
        publishing.join(20)
    assert len(published) == 40


def test_leaving_releases_a_publisher(pair: Pair) -> None:
    with pair.client.subscribe(jobs, max_pending=1):
        pair.server.publish(jobs, Job(0))
        publishing = pair.server.submit(lambda: pair.server.publish(jobs, Job(1)))
        publishing.join(SOON)
        assert publishing.is_alive()
    publishing.join(20)
    assert not publishing.is_alive()


def test_a_slow_client_holds_its_publisher_but_no_other_subscriber(pair: Pair) -> None:
    """The relay keeps at most the publisher's credit, whatever waits for the slow one."""
    sent = []
    total = 1500

    def publish() -> None:
        for number in range(total):
            pair.client.publish("n.x", number)
            sent.append(number)

    with pair.server.subscribe("n.x", max_pending=4) as slow, pair.server.subscribe("n.x", max_pending=4096) as quick:
        publishing = pair.client.submit(publish)
        assert [message.payload for message in take(quick, 1000)] == list(range(1000)), "nobody waits for the slow one"
        wait_for(lambda: len(sent) >= 1024, "the credit is used up")
        publishing.join(SOON)
        assert len(sent) <= 1024 + 8, "the publisher waits once its credit is used up"
        assert [message.payload for message in take(slow, total)] == list(range(total))
        publishing.join(20)
        assert not publishing.is_alive()


@pytest.mark.parametrize(
    ("overflow", "expected", "missed"),
    [("drop_oldest", [7, 8, 9], 7), ("drop_newest", [0, 1, 2], 7), ("latest", [9], 9)],
)
def test_a_subscription_that_drops_says_what_it_missed(
    pair: Pair, overflow: str, expected: list[int], missed: int
) -> None:
    reader = pair.server  # its inbox is filled while nobody reads, in either flavour
    with reader.subscribe(jobs, max_pending=3, overflow=overflow) as messages:
        for number in range(10):
            pair.client.publish(jobs, Job(number))
        wait_for(lambda: messages.dropped >= (missed if overflow != "latest" else 9), "the losses are known")
        got = take(messages, len(expected))
        assert [message.payload.number for message in got] == expected
        pair.client.publish(jobs, Job(10))
        got += take(messages, 1)
        assert sum(message.missed for message in got) == messages.dropped == missed


def test_a_subscription_that_closes_ends_behind_what_it_kept(pair: Pair) -> None:
    with pair.server.subscribe(jobs, max_pending=2, overflow="close") as messages:
        for number in range(5):
            pair.client.publish(jobs, Job(number))
        wait_for(lambda: messages.dropped == 3, "the losses are known")
        assert [message.payload.number for message in take(messages, 2)] == [0, 1]
        with pytest.raises(SlowConsumer):
            messages.receive()


def test_a_queue_shares_the_work(pair: Pair) -> None:
    if not pair.place.lasting:
        return  # a descriptor has one client
    two = pair.join("two")
    with (
        pair.client.subscribe(jobs, queue="crew") as at_one,
        two.subscribe(jobs, queue="crew") as at_two,
        two.subscribe(jobs) as all_of_them,
    ):
        for number in range(100):
            pair.server.publish(jobs, Job(number))
        assert [message.payload.number for message in take(all_of_them, 100)] == list(range(100))
        shared = [[message.payload.number for message in take(messages, 50)] for messages in (at_one, at_two)]
    assert sorted(shared[0] + shared[1]) == list(range(100))


def test_a_late_subscriber_gets_the_last_retained_value(pair: Pair) -> None:
    pair.client.publish("state.a", 1, retain=True)
    pair.client.publish("state.a", 2, retain=True)
    pair.server.publish("state.b", 3, retain=True)
    with pair.server.subscribe("state.a") as first:
        assert take(first, 1)[0].payload in (1, 2)  # the client's publish may still be under way
    wait_for(lambda: _retained(pair, "state.a") == 2, "the second value is the last one")
    with pair.client.subscribe("state.>") as messages:
        got = take(messages, 2)
        assert sorted((message.topic, message.payload) for message in got) == [("state.a", 2), ("state.b", 3)]
        pair.server.publish("state.a", 4)
        assert take(messages, 1)[0].payload == 4


def _retained(pair: Pair, topic: str) -> object:
    with pair.server.subscribe(topic) as messages:
        return messages.receive().payload


def test_what_does_not_fit_is_told_and_the_next_one_comes(pair: Pair) -> None:
    with pair.client.subscribe(jobs) as messages:
        pair.server.publish("jobs.done", "no job")
        pair.server.publish("jobs.done", {"number": 5})
        with pytest.raises(InvalidPayload):
            messages.receive()
        assert messages.receive().payload == Job(5)
        with pytest.raises(InvalidPayload):
            pair.client.publish(jobs, "no job")
    with pytest.raises(FrameTooLarge):
        pair.client.publish("big.one", bytes(17 * 1024 * 1024))
    with pytest.raises(ValueError, match="pattern"):
        pair.client.subscribe("a.>.b").__enter__()
    with pytest.raises(LocalProtocolError, match="max_pending"), pair.client.subscribe("a.b", max_pending=100_000):
        pass


def test_large_messages_are_relayed_whole(pair: Pair) -> None:
    big = bytes(range(256)) * 8192
    with pair.server.subscribe("big.>") as at_server, pair.client.subscribe("big.>") as at_client:
        for number in range(8):
            pair.client.publish("big.up", [number, big])
            pair.server.publish("big.down", [number, big])
        for messages, topic in ((at_server, "big.up"), (at_client, "big.down")):
            got = take(messages, 8)
            assert [message.payload for message in got] == [[number, big] for number in range(8)]
            assert {message.topic for message in got} == {topic}


def test_subscriptions_are_restored_before_anything_new_flows(pair: Pair) -> None:
    if not pair.place.lasting:
        return  # a descriptor cannot be dialled again
    with pair.client.subscribe(jobs) as messages:
        pair.server.publish(jobs, Job(1))
        assert messages.receive().payload == Job(1)
        address = pair.client.it.address
        pair.server.close()
        wait_for(lambda: pair.client.state != "connected", "the client sees the end")
        again = pair._made(pair.server.flavour, "server", address, name="srv2", **pair.place.server_options)

        def seen() -> bool:
            return pair.client.state == "connected" and any(one.name == "one" for one in again.clients)

        again.handler("echo")(lambda payload: payload)
        assert pair.client.request("echo", 1, timeout=15) == 1
        wait_for(seen, "the client is back")
        again.publish(jobs, Job(2))
        message = messages.receive()
        assert (message.payload, message.sender) == (Job(2), "srv2")


def test_iteration_ends_when_the_end_closes(pair: Pair) -> None:
    with pair.client.subscribe(jobs) as messages:
        pair.server.publish(jobs, Job(1))
        assert messages.receive().payload == Job(1)
        ended: list[object] = []
        waiting = pair.client.submit(lambda: ended.append(messages.receive()))
        pair.client.close()
        waiting.join(20)
        assert not waiting.is_alive()
        assert ended == [None]
    with pytest.raises(ConnectionLost), pair.client.subscribe(jobs):
        pass

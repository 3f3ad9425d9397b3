"""What a newcomer gets wrong is said at once, with the place and the remedy, in both flavours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ends import Pair, Place

import smartipc
from smartipc import Channel, ConnectionLost, InvalidPayload, LocalProtocolError, Method, RequestTimeout, Stream, Topic
from smartipc.ipc import sync

method = Method("m", int, int)
stream = Stream("s", int, int)
channel = Channel("c", send=int, receive=int)
topic = Topic("t", int)


@pytest.fixture(params=["async", "sync"])
def pair(request: pytest.FixtureRequest, folder: Path) -> Iterator[Pair]:
    pair = Pair(Place("unix", folder), request.param, request.param)
    pair.server.handler("echo")(lambda payload: payload)
    yield pair
    pair.close()


CALLS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a number as a method": (lambda it: it.request(5, 1), "expected a Method or a name such as 'worker.method', got 5"),
    "a stream requested": (lambda it: it.request(stream, 1), "s is a Stream, and goes with open_stream"),
    "a channel notified": (lambda it: it.notify(channel, 1), "c is a Channel, and goes with open_channel"),
    "a stream mapped": (lambda it: list(it.map(stream, [1])), "s is a Stream, and goes with open_stream"),
    "a topic requested": (lambda it: it.request(topic, 1), "t is a Topic, and goes with publish or subscribe"),
    "a method published": (lambda it: it.publish(method, 1), "m is a Method, and goes with request"),
    "a method published now": (lambda it: it.publish_nowait(method, 1), "m is a Method, and goes with request"),
    "headers with a number": (lambda it: it.request("echo", 1, headers={"a": 1}), "headers must be a dict of strings"),
    "headers by number": (lambda it: it.notify("echo", 1, headers={1: "a"}), "headers must be a dict of strings"),
    "headers that are text": (lambda it: it.request("echo", 1, headers="a"), "headers must be a dict of strings"),
    "a timeout of text": (
        lambda it: it.request("echo", 1, timeout="3"),
        "must be a number of seconds, got '3'",
    ),
    "no timeout ever": (lambda it: it.request("echo", 1, timeout=float("inf")), "every call has a deadline"),
    "a timeout of nothing": (lambda it: it.request("echo", 1, timeout=float("nan")), "must be a number of seconds"),
    "a queue by number": (lambda it: it.it.subscribe("a", queue=5), "queue must be a name, got 5"),
    "a reply of no type": (
        lambda it: it.request("echo", 1, reply_type=5),
        "reply_type must be a type of payloads, got 5",
    ),
    "replies of no type": (lambda it: list(it.map("echo", [1], reply_type=5)), "reply_type must be a type of payloads"),
    "items of no type": (
        lambda it: it.it.open_stream("s", 1, item_type=5),
        "item_type must be a type of payloads",
    ),
    "half a place": (lambda it: it.it.subscribe("a", max_pending=1.5), "max_pending must be a whole number"),
    "places in words": (lambda it: it.it.subscribe("a", max_pending="5"), "max_pending must be a whole number"),
    "no place": (lambda it: it.it.subscribe("a", max_pending=0), "of at least 1, got 0"),
    "half a call": (lambda it: list(it.map("echo", [1], concurrency=1.5)), "concurrency must be a whole number"),
    "a method subscribed": (lambda it: it.it.subscribe(method), "m is a Method, and goes with request"),
    "a method opened": (lambda it: it.it.open_stream(method, 1), "m is a Method, and goes with request"),
    "a stream with bad headers": (lambda it: it.it.open_stream("s", 1, headers={"a": 1}), "headers must be a dict"),
    "a stream opened as a channel": (lambda it: it.it.open_channel(stream), "s is a Stream, and goes with open_stream"),
    "a channel by name": (lambda it: it.it.open_channel("c"), "expected a Channel: both ends need its types, got 'c'"),
    "a handler without a name": (
        lambda it: it.it.handler(print),
        re.escape('in @ipc.handler("name"), got <'),
    ),
    "a handler of a topic": (lambda it: it.it.handler(topic), "t is a Topic"),
    "a subscriber without a topic": (lambda it: it.it.subscriber(print), "as in @ipc.subscriber"),
    "no function": (lambda it: it.it.handler("x")(5), "a handler must be a function, got 5"),
    "a subscriber that takes nothing": (
        lambda it: it.it.subscriber("x")(lambda: None),
        r"subscriber .*test_misuse.py:\d+\) must take \(payload\) or \(payload, message\)",
    ),
    "a handler that takes nothing": (
        lambda it: it.it.handler("x")(lambda: None),
        r"handler .*test_misuse.py:\d+\) must take \(payload\) or \(payload, message\)",
    ),
    "a channel handler that takes two": (
        lambda it: it.it.handler(channel)(lambda a, b: (a, b)),
        r"channel handler .*test_misuse.py:\d+\) must take \(channel\)",
    ),
}


@pytest.mark.parametrize("wrong", CALLS)
def test_it_is_said_at_once_and_harms_nothing(pair: Pair, wrong: str) -> None:
    attempt, said = CALLS[wrong]
    assert pair.client.request("echo", 1) == 1
    with pytest.raises(LocalProtocolError, match=said):
        attempt(pair.client)
    assert pair.client.request("echo", 2) == 2
    assert pair.client.state == "connected"


def test_a_generator_serves_no_method(pair: Pair) -> None:
    def generator(payload: int) -> Iterator[int]:
        yield payload

    with pytest.raises(LocalProtocolError, match=r"m is a Method, but its handler .* is a generator: return the reply"):
        pair.server.it.handler(method)(generator)


def test_a_timeout_that_is_over_is_a_timeout(pair: Pair) -> None:
    for timeout in (0, -1):
        with pytest.raises(RequestTimeout) as caught:
            pair.client.request("echo", 1, timeout=timeout)
        assert caught.value.processed == "no"


@pytest.mark.parametrize("timeout", [1e9, 1e18, 2**63, 10**400, 1e300], ids=str)
def test_a_timeout_of_ages_is_one_of_weeks(pair: Pair, timeout: float) -> None:
    assert pair.client.request("echo", 1, timeout=timeout) == 1
    assert list(pair.client.map("echo", [1, 2], timeout=timeout)) == [1, 2]
    pair.client.notify("echo", 1, timeout=timeout)
    assert [one.value for one in pair.client.broadcast("echo", 1, timeout=timeout)] == [1]


def test_a_server_asks_peers(pair: Pair) -> None:
    for to in (5, "one"):
        with pytest.raises(LocalProtocolError, match=r"to= must be a Peer, .* got"):
            pair.server.request("echo", 1, to=to)


def test_a_closed_client_says_so(pair: Pair) -> None:
    pair.client.close()
    with pytest.raises(Exception, match="this client is closed"):
        pair.client.request("echo", 1)


def test_whoever_publishes_at_a_closed_end_is_told(pair: Pair) -> None:
    pair.client.close()
    for publish in (pair.client.publish, pair.client.publish_nowait):
        with pytest.raises(ConnectionLost, match="this client is closed"):
            publish("t", 1)
    pair.server.close()
    for say in (pair.server.publish, pair.server.publish_nowait, pair.server.broadcast):
        with pytest.raises(LocalProtocolError, match="this server is closed"):
            say("t", 1)


@pytest.mark.parametrize("flavour", [smartipc, sync])
def test_wrong_options_are_refused_before_anything_happens(flavour: Any, folder: Path) -> None:
    address = f"unix://{folder}/s"
    for open_one in (flavour.serve, flavour.connect):
        for options, said in (({"name": 5}, "name must be a text"), ({"limits": 5}, "must be a smartipc.Limits")):
            with pytest.raises(LocalProtocolError, match=said):
                open_one(address, **options)
    for timeout in ("1", None, float("nan"), -1):
        with pytest.raises(LocalProtocolError, match="timeout must be a number of seconds"):
            flavour.connect(address, timeout=timeout)
    assert list(folder.iterdir()) == []


def test_a_subscription_that_was_not_entered_says_so(pair: Pair) -> None:
    messages = pair.client.it.subscribe("a.b") if pair.client.flavour == "sync" else None
    if messages is not None:
        with pytest.raises(LocalProtocolError, match=r"'a.b' was not entered: with ipc.subscribe\(...\) as messages"):
            next(iter(messages))
        with messages:
            pass
        with pytest.raises(LocalProtocolError, match="was entered before"), messages:
            pass
        return

    async def main() -> None:
        messages = pair.client.it.subscribe("a.b")
        with pytest.raises(LocalProtocolError, match=r"'a.b' was not entered: async with"):
            await anext(messages)
        async with messages:
            pass
        with pytest.raises(LocalProtocolError, match="was entered before"):
            async with messages:
                pass

    pair.client._loop.run(main())


def test_a_method_is_mapped_by_its_name(pair: Pair) -> None:
    assert list(pair.client.map("echo", [1, "a", None], concurrency=2)) == [1, "a", None]
    assert list(pair.client.map("echo", [[1, 2], [3]], reply_type=set[int], ordered=True)) == [{1, 2}, {3}]
    with pytest.raises(InvalidPayload):
        list(pair.client.map("echo", ["a"], reply_type=int))

"""Every pattern over every transport in both flavours and mixed: what works in one place works in all."""

from __future__ import annotations

import threading
import time

import msgspec
import pytest
from ends import Pair
from kit import wait_for

from smartipc import (
    ConnectionLost,
    FrameTooLarge,
    InvalidPayload,
    IpcMessage,
    Method,
    NoSuchMethod,
    RemoteError,
    RequestTimeout,
)


class Job(msgspec.Struct, frozen=True):
    number: int


class Refused(Exception):
    """Declared by both."""


double = Method("double", Job, Job, errors=(Refused,))
MIB = 1024 * 1024


def handle(end: object, name: str, function: object) -> None:
    end.handler(name)(function)  # type: ignore[attr-defined]


def test_a_request_is_answered_in_both_directions(pair: Pair) -> None:
    def doubled(job: Job) -> Job:
        return Job(job.number * 2)

    def who(payload: int, message: IpcMessage[int]) -> list[object]:
        return [payload, message.sender, message.headers, message.attempt, message.deadline is not None]

    for end in (pair.server, pair.client):
        end.handler(double)(doubled)
        handle(end, "who", who)
    assert pair.client.request(double, Job(4)) == Job(8)
    assert pair.server.request(double, Job(5), to=pair.peer()) == Job(10)
    assert pair.client.request("who", 1, headers={"a": "b"}) == [1, "one", {"a": "b"}, 1, True]
    assert pair.server.request("who", 2, to=pair.peer()) == [2, "srv", {}, 1, True]
    assert pair.client.state == "connected"
    assert pair.client.request("double", {"number": 3}, reply_type=Job) == Job(6)


def test_errors_come_back_as_themselves(pair: Pair) -> None:
    def fails(job: Job) -> Job:
        if job.number < 0:
            raise Refused(job.number)
        raise ZeroDivisionError("zero")

    for end in (pair.server, pair.client):
        end.handler(double)(fails)
    for asking, to in ((pair.client, {}), (pair.server, {"to": pair.peer()})):
        with pytest.raises(Refused) as refused:
            asking.request(double, Job(-1), **to)
        assert refused.value.args == (-1,)
        with pytest.raises(RemoteError, match="zero"):
            asking.request(double, Job(0), **to)
        with pytest.raises(NoSuchMethod) as missing:
            asking.request("nothing", None, **to)
        assert "double" in missing.value.known
        with pytest.raises(InvalidPayload) as wrong:
            asking.request("double", {"number": "text"}, **to)
        assert wrong.value.path == "$.number"


def test_a_request_times_out_and_a_late_reply_harms_nobody(pair: Pair) -> None:
    let_go = threading.Event()

    def slow(_: None) -> str:
        let_go.wait(10)
        return "late"

    if pair.server.flavour == "async":

        async def slow_async(payload: None) -> str:
            import asyncio

            return await asyncio.to_thread(slow, payload)

        handle(pair.server, "slow", slow_async)
    else:
        handle(pair.server, "slow", slow)
    handle(pair.server, "echo", lambda payload: payload)
    began = time.monotonic()
    with pytest.raises(RequestTimeout):
        pair.client.request("slow", None, timeout=0.1)
    assert time.monotonic() - began < 5
    let_go.set()
    assert pair.client.request("echo", 7) == 7


def test_a_notify_arrives_in_order(pair: Pair) -> None:
    got: dict[str, list[int]] = {"server": [], "client": []}

    def hear(where: str) -> object:
        def on(payload: int) -> None:
            got[where].append(payload)

        return on

    handle(pair.server, "told", hear("server"))
    handle(pair.client, "told", hear("client"))
    peer = pair.peer()
    for number in range(200):
        pair.client.notify("told", number)
        pair.server.notify("told", number, to=peer)
    wait_for(lambda: len(got["server"]) == len(got["client"]) == 200, "all one-way messages")
    assert got == {"server": list(range(200)), "client": list(range(200))}


def test_map_keeps_order_and_draws_no_more_than_it_needs(pair: Pair) -> None:
    handle(pair.server, "double", lambda payload: {"number": payload["number"] * 2})
    assert [job.number for job in pair.client.map(double, map(Job, range(300)))] == list(range(0, 600, 2))
    unordered = pair.client.map(double, map(Job, range(100)), concurrency=8, ordered=False)
    assert sorted(job.number for job in unordered) == list(range(0, 200, 2))


def test_broadcast_asks_every_client_and_keeps_partial_results(pair: Pair) -> None:
    handle(pair.client, "name", lambda _: "one")
    expected: list[object] = ["one"]
    if pair.place.lasting:
        two, three = pair.join("two"), pair.join("three")
        handle(two, "name", lambda _: "two")
        handle(three, "other", lambda _: "three")
        pair.peer("two"), pair.peer("three")
        expected += ["two", NoSuchMethod]
    else:
        pair.peer()
    outcomes = pair.server.broadcast("name", None)
    assert [one.instance for one in outcomes] == ["one", "two", "three"][: len(expected)]
    assert [type(one.error) if one.error else one.value for one in outcomes] == expected
    handle(pair.server, "name", lambda _: "srv")
    assert [(one.instance, one.value) for one in pair.client.broadcast("name", None)] == [("srv", "srv")]


def test_large_messages_cross_whole(pair: Pair) -> None:
    handle(pair.server, "echo", lambda payload: payload)
    handle(pair.client, "echo", lambda payload: payload)
    big = bytes(range(256)) * (4 * MIB // 256)
    assert pair.client.request("echo", big) == big
    assert pair.server.request("echo", big, to=pair.peer()) == big
    with pytest.raises(FrameTooLarge):
        pair.client.request("echo", bytes(16 * MIB + 1))
    assert pair.client.request("echo", 1) == 1


def test_a_small_request_overtakes_a_large_one(pair: Pair) -> None:
    handle(pair.server, "echo", lambda payload: payload)
    handle(pair.server, "size", len)
    big = bytes(15 * MIB)
    sizes: list[int] = []
    threads = [pair.client.submit(lambda: sizes.append(pair.client.request("size", big))) for _ in range(2)]
    for number in range(20):
        assert pair.client.request("echo", number) == number
    for thread in threads:
        thread.join(20)
    assert sizes == [len(big)] * 2


def test_a_handler_may_ask_back_while_it_is_asked(pair: Pair) -> None:
    peer = pair.peer()
    handle(pair.client, "back", lambda payload: payload + 1)
    if pair.server.flavour == "async":

        async def forth(payload: int) -> int:
            return await pair.server.it.request("back", payload, to=peer) * 10  # type: ignore[no-any-return]

        handle(pair.server, "forth", forth)
    else:
        handle(pair.server, "forth", lambda payload: pair.server.it.request("back", payload, to=peer) * 10)
    assert pair.client.request("forth", 3) == 40


def test_several_threads_share_one_client(pair: Pair) -> None:
    handle(pair.server, "echo", lambda payload: payload)
    wrong: list[object] = []

    def ask(which: int) -> None:
        for number in range(50):
            reply = pair.client.request("echo", [which, number])
            if reply != [which, number]:
                wrong.append(reply)

    threads = [pair.client.submit(lambda which=which: ask(which)) for which in range(8)]
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_closing_the_server_ends_calls_and_says_so(pair: Pair) -> None:
    handle(pair.server, "echo", lambda payload: payload)
    assert pair.client.request("echo", 1) == 1
    states: list[str] = []
    pair.client.on_state(states.append)
    pair.server.close()
    wait_for(lambda: pair.client.state != "connected", "the client sees the end")
    with pytest.raises((ConnectionLost, RequestTimeout)) as lost:
        pair.client.request("echo", 2, timeout=0.3)
    assert lost.value.processed == "no"
    assert pair.client.state == ("reconnecting" if pair.place.lasting else "closed")
    wait_for(lambda: states, "the listeners hear what can be read already")
    assert states[0] == pair.client.state


def test_closing_a_client_takes_it_off_the_list(pair: Pair) -> None:
    peer = pair.peer()
    pair.client.close()
    wait_for(lambda: not pair.server.clients, "the client is forgotten")
    assert pair.client.it.state == "closed"
    with pytest.raises(ConnectionLost) as lost:
        pair.server.request("echo", 1, to=peer)
    assert lost.value.processed == "no"


def test_closing_lets_what_runs_finish(pair: Pair) -> None:
    began, let_go = threading.Event(), threading.Event()

    def slow(payload: int) -> int:
        began.set()
        let_go.wait(10)
        return payload

    if pair.server.flavour == "async":

        async def slow_async(payload: int) -> int:
            import asyncio

            return await asyncio.to_thread(slow, payload)

        handle(pair.server, "slow", slow_async)
    else:
        handle(pair.server, "slow", slow)
    replies: list[int] = []
    asking = pair.client.submit(lambda: replies.append(pair.client.request("slow", 5)))
    assert began.wait(10)
    closing = pair.server.submit(pair.server.close)
    wait_for(lambda: pair.server.it.state == "closed", "the end has begun")
    let_go.set()
    closing.join(20)
    asking.join(20)
    assert replies == [5]


def test_a_client_comes_back_when_its_server_does(pair: Pair) -> None:
    handle(pair.server, "echo", lambda payload: payload)
    assert pair.client.request("echo", 1) == 1
    pair.server.close()
    if not pair.place.lasting:  # a descriptor cannot be dialled again: the client is closed, and says so at once
        with pytest.raises(ConnectionLost, match="no"):
            pair.client.request("echo", 2)
        assert pair.client.state == "closed"
        return
    with pytest.raises((ConnectionLost, RequestTimeout)):
        pair.client.request("echo", 2, timeout=0.2)
    replies: list[int] = []
    waiting = pair.client.submit(lambda: replies.append(pair.client.request("echo", 3, timeout=15)))
    again = pair.successor("srv2")
    handle(again, "echo", lambda payload: payload * 100)
    waiting.join(20)
    assert replies == [300]
    assert pair.client.state == "connected"
    assert pair.client.it.server == "srv2"

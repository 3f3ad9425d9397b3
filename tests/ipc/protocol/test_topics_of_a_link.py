"""Topics of one connection: what each side sees of SUB, SUB_OK, UNSUB, PUB, and what ends a peer that breaks them."""

from __future__ import annotations

import msgspec
import pytest
from cores import move

from smartipc.ipc.errors import FrameTooLarge, LocalProtocolError, RemoteProtocolError
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import (
    Closed,
    ConsumedReceived,
    Event,
    MessageReceived,
    PublishReceived,
    SubscribedReceived,
    SubscribeReceived,
    UnsubscribeReceived,
)
from smartipc.ipc.protocol.handshake import RELAYED, Identity
from smartipc.ipc.protocol.topics import WINDOW, WINDOW_BYTES, Unsettled
from smartipc.ipc.wire import heads
from smartipc.ipc.wire.frames import Kind, frame
from smartipc.ipc.wire.limits import Limits


def pair(limits: Limits = Limits(), *, features: tuple[str, ...] | None = RELAYED) -> tuple[Connection, Connection]:
    client = Connection("client", Identity("c"), limits, features=features)
    server = Connection("server", Identity("s"), limits, features=RELAYED)
    client.start(0.0)
    server.start(0.0)
    move(client, server)
    move(server, client)
    return client, server


def sent(server: Connection, kind: Kind, ident: int, head: msgspec.Struct, payload: bytes = b"") -> list[Event]:
    return server.receive_data(frame(kind, ident, heads.encoder.encode(head), payload), 0.0)


def refusal(events: list[Event]) -> str:
    assert isinstance(events[-1], Closed)
    assert isinstance(events[-1].error, RemoteProtocolError)
    return str(events[-1].error)


def test_a_subscription_lives_and_ends() -> None:
    client, server = pair()
    client.topics.subscribe(1, "a.*", 16, "crew", "latest")
    assert move(client, server) == [SubscribeReceived(1, "a.*", 16, "crew", "latest")]
    server.topics.subscribed(1)
    server.publish(1, "a.b", b"x", sender="them")
    assert move(server, client, 3.0) == [
        SubscribedReceived(1, ""),
        MessageReceived(1, "a.b", b"x", None, 3.0, sender="them"),
    ]
    assert len(client.topics) == len(server.topics) == 1
    client.topics.unsubscribe(1)
    client.topics.unsubscribe(1)
    assert move(client, server) == [UnsubscribeReceived(1)]
    assert len(client.topics) == len(server.topics) == 0
    client.topics.subscribe(1, "a.*", 16, "", "block")
    assert move(client, server) == [SubscribeReceived(1, "a.*", 16, "", "block")]
    assert "1 subscriptions" in repr(client.topics)


def test_a_refused_subscription_is_none() -> None:
    client, server = pair()
    client.topics.subscribe(1, "a..b", 16, "", "block")
    move(client, server)
    server.topics.subscribed(1, "malformed " + "x" * 500)
    (answer,) = move(server, client)
    assert isinstance(answer, SubscribedReceived)
    assert answer.reason.startswith("malformed")
    assert len(answer.reason) == 200
    assert len(client.topics) == len(server.topics) == 0
    client.topics.unsubscribe(1)
    assert not client.has_data


def test_an_answer_that_crosses_an_unsubscribe_is_no_news() -> None:
    client, server = pair()
    client.topics.subscribe(1, "a", 1, "", "block")
    move(client, server)
    server.topics.subscribed(1)
    client.topics.unsubscribe(1)
    assert move(server, client) == []


def test_too_many_subscriptions_are_refused_one_by_one() -> None:
    client, server = pair(Limits(subscriptions=2))
    for number in (1, 2, 3):
        client.topics.subscribe(number, "a", 1, "", "block")
    assert [event.number for event in move(client, server)] == [1, 2]  # type: ignore[union-attr]
    assert move(server, client) == [SubscribedReceived(3, "more than 2 subscriptions")]
    assert sent(server, Kind.UNSUB, 3, heads.SubOkHead()) == []


@pytest.mark.parametrize("number", [0, 1])
def test_a_number_that_is_not_free_ends_the_peer(number: int) -> None:
    client, server = pair()
    client.topics.subscribe(1, "a", 1, "", "block")
    move(client, server)
    assert "not free" in refusal(sent(server, Kind.SUB, number, heads.SubHead("a", 1)))


def test_published_messages_arrive_and_are_settled_in_order() -> None:
    client, server = pair()
    client.topics.publish("a.b", b"1", headers={"k": "v"}, retain=True)
    client.topics.publish("a.b", b"2" * 100_000, retain=False)
    client.topics.publish("a.b", b"3", retain=False)
    assert move(client, server, 2.0) == [
        PublishReceived("a.b", b"1", {"k": "v"}, retain=True, received_at=2.0),
        PublishReceived("a.b", b"2" * 100_000, None, retain=False, received_at=2.0),
        PublishReceived("a.b", b"3", None, retain=False, received_at=2.0),
    ]
    server.topics.settled(2)
    server.topics.settled(1)
    server.topics.settled(4)
    assert move(server, client) == [ConsumedReceived(0, 2)]
    assert "1 published" in repr(client.topics)


def test_credit_runs_out_and_comes_back() -> None:
    client, server = pair()
    for _ in range(WINDOW):
        assert client.topics.room
        client.topics.publish("a", b"", retain=False)
    assert not client.topics.room
    with pytest.raises(LocalProtocolError, match="credit"):
        client.topics.publish("a", b"", retain=False)
    assert len(move(client, server)) == WINDOW
    server.topics.settled(1)
    move(server, client)
    assert client.topics.room


def test_the_message_that_crosses_the_bytes_may_be_of_any_size() -> None:
    count = Unsettled()
    count.add(WINDOW_BYTES - 1)
    assert count.room
    count.add(10 * WINDOW_BYTES)
    assert not count.room
    assert not count.settle(3), "more than were ever published"
    assert count.settle(2)
    assert not count.settle(2)
    assert count.room
    assert (count.bytes, count.total) == (0, 2)
    assert "0 messages" in repr(count)


def test_publishing_beyond_the_credit_ends_the_peer() -> None:
    _, server = pair()
    for _ in range(WINDOW):
        sent(server, Kind.PUB, 0, heads.PubHead("a"))
    assert "without credit" in refusal(sent(server, Kind.PUB, 0, heads.PubHead("a")))


def test_what_is_too_large_is_refused_before_it_is_sent() -> None:
    client, _ = pair(Limits(message=1000))
    with pytest.raises(FrameTooLarge):
        client.topics.publish("a", bytes(1001), retain=False)
    with pytest.raises(FrameTooLarge):
        client.topics.publish("a", b"", headers={"k": "v" * 10_000}, retain=False)
    assert client.topics.room
    assert not client.has_data


def test_a_peer_that_relays_nothing_is_told_nothing() -> None:
    client, server = pair(features=None)
    with pytest.raises(LocalProtocolError, match="relays no topics"):
        client.topics.subscribe(1, "a", 1, "", "block")
    with pytest.raises(LocalProtocolError, match="relays no topics"):
        client.topics.publish("a", b"", retain=False)
    assert "not negotiated" in refusal(sent(server, Kind.SUB, 1, heads.SubHead("a", 1)))

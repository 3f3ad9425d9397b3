"""One-way messages that differ only in their payloads share a frame; order, limits and counts stay what they were."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest

from smartipc.ipc.errors import FrameTooLarge
from smartipc.ipc.protocol import handshake
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import (
    ErrorReceived,
    Event,
    MessageReceived,
    MessagesReceived,
    NotifiesReceived,
    NotifyReceived,
    Opened,
    RequestReceived,
)
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.frames import HEADER, PREFACE, Kind
from smartipc.ipc.wire.heads import Fault
from smartipc.ipc.wire.limits import Limits


def move(source: Connection, target: Connection) -> list[Event]:
    events: list[Event] = []
    while source.has_data:
        events += target.receive_data(b"".join(source.data_to_send()), 0.0)
    return events


@pytest.fixture
def ends() -> tuple[Connection, Connection]:
    return pair()


def pair(limits: Limits = Limits()) -> tuple[Connection, Connection]:
    client = Connection("client", Identity("c:0"), limits)
    server = Connection("server", Identity("s:0"), limits)
    client.start(0.0)
    server.start(0.0)
    move(client, server)
    assert [type(event) for event in move(server, client)] == [Opened]
    return client, server


def apart(events: list[Event]) -> list[tuple[str, object]]:
    """What arrived, as (address, value), batches taken apart."""
    out: list[tuple[str, object]] = []
    for event in events:
        match event:
            case NotifiesReceived():
                out += [(event.method, codec.plain(one)) for one in codec.pieces(event.payload)]
            case MessagesReceived():
                out += [(event.topic, codec.plain(one)) for one in codec.pieces(event.payload)]
            case NotifyReceived() | RequestReceived():
                out.append((event.method, codec.plain(event.payload)))
            case MessageReceived():
                out.append((event.topic, codec.plain(event.payload)))
    return out


def kinds(data: bytes) -> list[int]:
    found, at = [], 0
    while at < len(data):
        size, kind, *_ = HEADER.unpack_from(data, at)
        found.append(kind)
        at += HEADER.size + size
    return found


def test_notifies_that_wait_together_are_one_frame(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    for number in range(3):
        client.notify("w.m", codec.encode(number))
    (event,) = move(client, server)
    assert isinstance(event, NotifiesReceived)
    assert codec.decode_all(event.payload, int) == [0, 1, 2]


def test_one_alone_stays_what_it_was(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    client.notify("w.m", codec.encode(1))
    assert move(client, server) == [NotifyReceived("w.m", codec.encode(1), None, 0.0)]
    client.notify("w.m", codec.encode(2))
    assert move(client, server) == [NotifyReceived("w.m", codec.encode(2), None, 0.0)]


def test_messages_are_batched_per_subscription_and_topic(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    for number, topic in ((5, "a.b"), (5, "a.b"), (6, "a.b"), (6, "a.b"), (6, "a.c"), (5, "a.b")):
        client.publish(number, topic, codec.encode(topic))
    events = move(client, server)
    assert [(type(event), event.number, event.topic) for event in events] == [
        (MessagesReceived, 5, "a.b"),
        (MessagesReceived, 6, "a.b"),
        (MessageReceived, 6, "a.c"),
        (MessageReceived, 5, "a.b"),
    ]
    assert len(apart(events)) == 6


def test_nothing_overtakes_anything(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    said: list[tuple[str, object]] = []
    for number in range(40):
        if number % 7 == 3:
            client.request("w.r", codec.encode(number), 0.0, timeout=1)
            said.append(("w.r", number))
        elif number % 5 == 2:
            client.notify("w.h", codec.encode(number), headers={"a": "b"})
            said.append(("w.h", number))
        else:
            client.notify("w.m" if number < 20 else "w.n", codec.encode(number))
            said.append(("w.m" if number < 20 else "w.n", number))
    assert apart(move(client, server)) == said


def test_an_error_between_two_messages_is_neither_lost_nor_overtaken(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    first, second = (client.request("w.r", b"\x01", 0.0, timeout=1) for _ in range(2))
    move(client, server)
    server.notify("c.m", b"\x01")
    server.fail(first, Fault(1, "E", "one"))
    server.notify("c.m", b"\x02")
    server.notify("c.m", b"\x03")
    server.fail(second, Fault(1, "E", "two"))
    server.notify("c.m", b"\x04")
    events = move(server, client)
    assert [event.fault.message for event in events if isinstance(event, ErrorReceived)] == ["one", "two"]
    assert [value for _, value in apart(events)] == [1, 2, 3, 4]


def test_a_batch_is_no_larger_than_a_chunk_and_large_messages_keep_their_place() -> None:
    client, server = pair(Limits(chunk=1000))
    said = [b"a" * 300, b"b" * 300, b"c" * 300, b"d" * 300, b"E" * 5000, b"f", b"g"]
    for data in said:
        client.notify("w.m", codec.encode(data))
    data = b""
    while client.has_data:
        data += b"".join(client.data_to_send())
    assert kinds(data)[:2] == [Kind.NOTIFY_BATCH, Kind.NOTIFY]
    assert [value for _, value in apart(server.receive_data(data, 0.0))] == said


def test_a_peer_that_does_not_know_batches_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "FEATURES", ("streams",))
    client, server = pair()
    for number in range(3):
        client.notify("w.m", codec.encode(number))
    events = move(client, server)
    assert [type(event) for event in events] == [NotifyReceived] * 3


def test_a_batch_from_a_peer_that_did_not_negotiate_it_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = pair()
    client.notify("w.m", b"\x01")
    client.notify("w.m", b"\x02")
    data = b"".join(client.data_to_send())
    monkeypatch.setattr(handshake, "FEATURES", ("streams",))
    _, server = pair()
    server.receive_data(data, 0.0)
    assert "not negotiated" in bytes(b"".join(server.data_to_send())).removeprefix(PREFACE).decode("latin1")


def test_a_refused_message_leaves_the_batch_whole() -> None:
    client, server = pair(Limits(message=2000))
    client.notify("w.m", codec.encode(1))
    client.notify("w.m", codec.encode(2))
    with pytest.raises(FrameTooLarge):
        client.notify("w.m", codec.encode(b"x" * 3000))
    client.notify("w.m", codec.encode(3))
    assert [value for _, value in apart(move(client, server))] == [1, 2, 3]


def test_what_waits_is_counted(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    client.notify("w.m", b"\x01")
    client.notify("w.m", b"\x02")
    client.request("w.r", b"\x03", 0.0, timeout=1)
    assert client.queued == 3
    move(client, server)
    assert client.queued == 0
    client.notify("w.m", b"\x01")
    client.notify("w.m", b"\x02")
    client.close()
    assert client.queued == 0
    assert not client.has_data


def test_a_request_can_be_withdrawn_among_batches(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    client.notify("w.m", b"\x01")
    client.notify("w.m", b"\x02")
    ident = client.request("w.r", b"\x03", 0.0, timeout=1)
    client.notify("w.m", b"\x04")
    client.notify("w.m", b"\x05")
    client.cancel(ident)
    assert [value for _, value in apart(move(client, server))] == [1, 2, 4, 5]


def test_heads_that_repeat_are_decoded_once_and_the_table_is_bounded(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    for round_ in range(2):
        for number in range(1500):
            client.request(f"w.m{number}", b"\x01", 0.0, timeout=1)
            (event,) = move(client, server)
            assert isinstance(event, RequestReceived)
            assert event.method == f"w.m{number}", round_
            server.reply(event.id, b"\x01")
            move(server, client)
    assert len(server._requests.heads) <= 1024
    assert len(client._heads) <= 1024


@pytest.mark.parametrize(
    "payload", [b"", b"\xdd\x00\x00\x00\x05\x01", b"\xdd\xff\xff\xff\xff", b"\xc1", b"\x93\x01\x02"]
)
def test_a_malformed_batch_is_refused_by_whoever_takes_it_apart(payload: bytes) -> None:
    assert codec.decode_all(payload, int) is None
    with pytest.raises(codec.InvalidPayload):
        codec.pieces(payload)


def test_a_batch_with_one_wrong_payload_is_taken_apart() -> None:
    payload = b"\xdd\x00\x00\x00\x03\x01\xa1x\x03"
    assert codec.decode_all(payload, int) is None
    assert codec.pieces(payload) == [b"\x01", b"\xa1x", b"\x03"]


def test_a_type_that_is_not_hashable_is_taken_apart() -> None:
    strange = Annotated[int, msgspec.Meta(ge=0), {"not": "hashable"}]
    assert codec.decode_all(b"\xdd\x00\x00\x00\x01\x01", strange) is None


def test_a_batch_can_be_made_elsewhere(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    assert client.batching
    client.publish(5, "a.b", b"\x01")
    client.publish_batch(5, "a.b", b"\xdd\x00\x00\x00\x02\x02\x03")
    client.publish(5, "a.b", b"\x04")
    assert [value for _, value in apart(move(client, server))] == [1, 2, 3, 4]


def test_whoever_appends_to_the_open_batch_counts(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    client.notify("w.m", codec.encode(1))
    assert not client.batch_is_open
    client.notify("w.m", codec.encode(2))
    assert client.batch_is_open
    batch = client.outbox.batch
    assert batch is not None
    codec.append(3, batch, -1)
    client.outbox.count += 1
    size = len(batch)
    with pytest.raises(codec.UNFIT):
        codec.append([4, object()], batch, -1)
    del batch[size:]
    assert [value for _, value in apart(move(client, server))] == [1, 2, 3]
    assert not client.batch_is_open


def test_a_peer_with_a_tiny_message_limit_gets_no_batches_from_elsewhere() -> None:
    client, server = pair(Limits(message=2000))
    assert not client.batching
    client.notify("w.m", b"\x01")
    client.notify("w.m", b"\x02")
    assert not client.batch_is_open
    assert [value for _, value in apart(move(client, server))] == [1, 2]

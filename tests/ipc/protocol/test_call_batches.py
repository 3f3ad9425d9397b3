"""Requests and replies that wait together share a frame; each of them stays a call of its own."""

from __future__ import annotations

import pytest
from cores import move

from smartipc.ipc.errors import FrameTooLarge, InvalidPayload, LocalProtocolError
from smartipc.ipc.protocol import handshake
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import (
    CallExpired,
    CancelReceived,
    Closed,
    ErrorReceived,
    Opened,
    RepliesReceived,
    ReplyReceived,
    RequestReceived,
    RequestsReceived,
)
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.wire import codec, heads
from smartipc.ipc.wire.frames import ARRAY, ARRAY_MARK, HEADER, MEMBERS, Kind, frame, ids_of
from smartipc.ipc.wire.heads import Fault
from smartipc.ipc.wire.limits import Limits


def pair(limits: Limits = Limits()) -> tuple[Connection, Connection]:
    client = Connection("client", Identity("c:0"), limits)
    server = Connection("server", Identity("s:0"), limits)
    client.start(0.0)
    server.start(0.0)
    move(client, server)
    assert [type(event) for event in move(server, client)] == [Opened]
    return client, server


@pytest.fixture
def ends() -> tuple[Connection, Connection]:
    return pair()


def array(*values: object) -> bytes:
    return ARRAY.pack(ARRAY_MARK, len(values)) + b"".join(map(codec.encode, values))


def ask(client: Connection, count: int, method: str = "w.m", timeout: float = 1.0) -> list[int]:
    return [client.request(method, codec.encode(number), 0.0, timeout=timeout) for number in range(count)]


def asked(client: Connection, server: Connection, count: int) -> RequestsReceived:
    ask(client, count)
    (event,) = move(client, server)
    assert isinstance(event, RequestsReceived)
    return event


def kinds(data: bytes) -> list[int]:
    found, at = [], 0
    while at < len(data):
        size, kind, *_ = HEADER.unpack_from(data, at)
        found.append(kind)
        at += HEADER.size + size
    return found


def written(end: Connection) -> bytes:
    data = b""
    while end.has_data:
        data += b"".join(end.data_to_send())
    return data


def test_requests_that_wait_together_are_one_frame_and_so_are_their_replies(
    ends: tuple[Connection, Connection],
) -> None:
    client, server = ends
    idents = ask(client, 3)
    (event,) = move(client, server)
    assert isinstance(event, RequestsReceived)
    assert (list(event.ids), event.method, event.deadline, event.attempt) == (idents, "w.m", 1.0, 1)
    assert codec.decode_all(event.payload, int) == [0, 1, 2]
    for ident in idents:
        server.reply(ident, codec.encode(ident))
    (replies,) = move(server, client)
    assert replies == RepliesReceived(event.ids, array(*idents))
    assert client.snapshot().calls == server.snapshot().serving == 0
    assert (client.tally.sent, server.tally.received) == (3, 3)


def test_one_alone_stays_what_it_was(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    for _ in range(2):
        (ident,) = ask(client, 1)
        (event,) = move(client, server)
        assert isinstance(event, RequestReceived)
        server.reply(ident, b"\x01")
        assert move(server, client) == [ReplyReceived(ident, b"\x01")]


@pytest.mark.parametrize(
    "second",
    [
        lambda end: end.request("w.n", b"\x01", 0.0, timeout=1),
        lambda end: end.request("w.m", b"\x01", 0.0, timeout=2),
        lambda end: end.request("w.m", b"\x01", 0.0, timeout=1, attempt=2),
        lambda end: end.request("w.m", b"\x01", 0.0, timeout=1, headers={"a": "b"}),
        lambda end: end.request("w.m", codec.encode(bytes(100_000)), 0.0, timeout=1),
        lambda end: end.notify("w.m", b"\x01"),
        lambda end: end.streams.open("w.s", b"\x01", duplex=False),
    ],
)
def test_what_differs_is_no_member_and_overtakes_nothing(ends: tuple[Connection, Connection], second: object) -> None:
    client, _ = ends
    ask(client, 2)
    second(client)  # type: ignore[operator]
    ask(client, 2)
    found = kinds(written(client))
    assert found[0] == Kind.REQUEST_BATCH
    assert Kind.REQUEST_BATCH in found[1:]
    assert len(found) >= 3


def test_replies_out_of_order_are_each_for_their_own_call(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    first, second, third, fourth = asked(client, server, 4).ids
    for ident in (third, fourth, first, second):
        server.reply(ident, codec.encode(ident))
    assert move(server, client) == [
        RepliesReceived(range(third, fourth + 2, 2), array(third, fourth)),
        RepliesReceived(range(first, second + 2, 2), array(first, second)),
    ]


def test_an_error_in_the_midst_is_one_members_own(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    ids = asked(client, server, 5).ids
    for ident in ids:
        if ident == ids[2]:
            server.fail(ident, Fault(2, "E", "no"))
        else:
            server.reply(ident, codec.encode(ident))
    events = move(server, client)
    assert [type(event) for event in events] == [RepliesReceived, ErrorReceived, RepliesReceived]
    assert client.snapshot().calls == 0


def test_a_peer_that_does_not_know_them_gets_plain_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "FEATURES", ("streams", "batch"))
    client, server = pair()
    assert not client.batching_calls
    idents = ask(client, 3)
    events = move(client, server)
    assert [type(event) for event in events] == [RequestReceived] * 3
    for ident in idents:
        server.reply(ident, b"\x01")
    assert move(server, client) == [ReplyReceived(ident, b"\x01") for ident in idents]


def test_requests_behind_a_hello_are_plain() -> None:
    client = Connection("client", Identity("c:0"))
    client.start(0.0)
    ask(client, 3)
    assert kinds(written(client)[8:]) == [Kind.HELLO, *[Kind.REQUEST] * 3]


def test_a_batch_has_no_more_members_than_it_may(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    ask(client, MEMBERS + 2)
    data = written(client)
    assert kinds(data) == [Kind.REQUEST_BATCH] * 2
    (event,) = server.receive_data(data, 0.0)
    assert isinstance(event, RequestsReceived)
    assert len(event.ids) == MEMBERS


def test_a_batch_is_no_larger_than_a_chunk() -> None:
    client, _ = pair(Limits(chunk=1000))
    for _ in range(6):
        client.request("w.m", codec.encode(b"x" * 300), 0.0, timeout=1)
    data = written(client)
    assert kinds(data) == [Kind.REQUEST_BATCH] * 2


# made elsewhere, in one go


def test_several_at_once(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    assert client.batching_calls
    (before,) = ask(client, 1)
    ids = client.request_all("w.m", array(7, 8, 9), 3, 0.0, timeout=2.0)
    assert list(ids) == [before + 2, before + 4, before + 6]
    assert client.next_timer() == 1.0
    _, event = move(client, server)
    assert isinstance(event, RequestsReceived)
    assert (event.ids, event.deadline) == (ids, 2.0)
    server.reply_all(event.ids, array(70, 80, 90))
    assert move(server, client) == [RepliesReceived(ids, array(70, 80, 90))]


def test_several_at_once_are_timed_like_others(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    for _ in range(4):
        ids = client.request_all("w.m", array(*range(16)), 16, 0.0, timeout=2.0)
        move(client, server)
        server.reply_all(ids, array(*range(16)))
        move(server, client, 0.5)
    assert sum(client.tally.round_trips) == 4
    assert client.tally.seconds == 2.0
    (timed,) = client.request_all("w.m", array(1), 1, 0.0, timeout=2.0)
    assert client.tally.timed == timed
    client.cancel(timed)
    client.request_all("w.m", array(1), 1, 0.0, timeout=2.0)
    assert client.tally.timed == timed


def test_more_at_once_than_a_chunk() -> None:
    client, server = pair(Limits(chunk=100))
    with pytest.raises(FrameTooLarge):
        client.request_all("w.m", array(bytes(60), bytes(60)), 2, 0.0, timeout=2.0)
    ids = asked(client, server, 2).ids
    server.reply_all(ids, array(bytes(60), bytes(60)))
    assert [type(event) for event in move(server, client)] == [ReplyReceived] * 2


def test_several_at_once_over_a_closed_connection(ends: tuple[Connection, Connection]) -> None:
    client, _ = ends
    client.close()
    with pytest.raises(LocalProtocolError):
        client.request_all("w.m", array(1, 2), 2, 0.0, timeout=2.0)


def test_a_row_of_replies_leaves_out_what_was_cancelled(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    ids = asked(client, server, 3).ids
    client.cancel(ids[1])
    assert move(client, server) == [CancelReceived(ids[1])]
    server.reply_all(ids, array(1, 2, 3))
    assert [type(event) for event in move(server, client)] == [ReplyReceived] * 2
    assert client.late_replies == 0


# limits, deadlines, cancels and the end: per member


def test_members_for_which_there_is_no_room_are_refused_one_by_one() -> None:
    client, server = pair(Limits(inflight=3))
    busy = client.request("w.x", b"\x01", 0.0, timeout=1)
    move(client, server)
    idents = ask(client, 4)
    (event,) = move(client, server)
    assert isinstance(event, RequestsReceived)
    assert list(event.ids) == idents[:2]
    refused = move(server, client)
    assert [one.id for one in refused if isinstance(one, ErrorReceived)] == idents[2:]
    assert all(one.fault.name == "Overloaded" for one in refused if isinstance(one, ErrorReceived))
    for ident in (busy, *event.ids):
        server.reply(ident, b"\x01")
    ask(client, 3)
    (event,) = move(client, server)
    assert isinstance(event, RequestsReceived)
    assert len(event.ids) == 3
    ask(client, 2)
    assert move(client, server) == []


def test_who_has_said_goodbye_refuses_every_member(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    idents = ask(client, 2)
    server.goodbye()
    assert move(client, server) == []
    events = move(server, client)[1:]
    assert [(event.id, event.fault.processed) for event in events if isinstance(event, ErrorReceived)] == [
        (ident, 0) for ident in idents
    ]


def test_each_expires_and_late_answers_are_counted_each(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    ids = asked(client, server, 4).ids
    client.cancel(ids[0])
    assert client.handle_timer(1.5) == [CallExpired(ident) for ident in ids[1:]]
    server.reply_all(ids, array(0, 1, 2, 3))
    assert move(server, client) == []
    assert client.late_replies == 4


def test_an_answer_that_comes_with_late_ones_arrives(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    ids = asked(client, server, 3).ids
    client.cancel(ids[1])
    server.reply_all(ids, array(0, 1, 2))
    assert move(server, client) == [RepliesReceived(ids, array(0, 1, 2))]
    assert (client.late_replies, client.snapshot().calls) == (1, 0)


def test_a_timed_call_that_was_given_up_is_not_timed(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    ids = asked(client, server, 17).ids
    timed = client.tally.timed
    assert timed in ids
    client.cancel(timed)
    server.reply_all(ids, array(*range(17)))
    move(server, client)
    assert sum(client.tally.round_trips) == 0


def test_a_member_that_was_not_written_is_cancelled_behind_its_batch(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    idents = ask(client, 3)
    client.cancel(idents[1])
    assert client.cancel(idents[1]) is None
    data = written(client)
    assert kinds(data) == [Kind.REQUEST_BATCH, Kind.CANCEL]
    (event,) = server.receive_data(data, 0.0)
    assert isinstance(event, RequestsReceived)
    assert event.withdrawn == {idents[1]}
    server.reply(idents[1], b"\x01")
    assert not server.has_data


def test_a_cancel_finds_its_batch_among_others(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    idents = ask(client, 3)
    ask(client, 2, "w.n")
    data = written(client)
    client.cancel(idents[0])
    first, second = server.receive_data(data + written(client), 0.0)
    assert isinstance(first, RequestsReceived)
    assert isinstance(second, RequestsReceived)
    assert (first.withdrawn, second.withdrawn) == ({idents[0]}, set())


def test_one_that_was_not_written_is_forgotten_and_joined_by_none(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    (first,) = ask(client, 1)
    client.cancel(first)
    idents = ask(client, 2)
    (event,) = move(client, server)
    assert isinstance(event, RequestsReceived)
    assert list(event.ids) == idents


def test_what_is_known_of_each_at_the_end(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    sent = asked(client, server, 3).ids
    server.reply(sent[0], b"\x01")
    move(server, client)
    waiting = ask(client, 2)
    (closed,) = client.receive_eof(0.0)
    assert isinstance(closed, Closed)
    assert closed.lost == (*((ident, "maybe") for ident in sent[1:]), *((ident, "no") for ident in waiting))


# malformed


HEAD = heads.encoder.encode(heads.RequestHead("w.m", 1000))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (frame(Kind.REQUEST_BATCH, 1, HEAD, b""), "a batch of 0 members"),
        (frame(Kind.REQUEST_BATCH, 1, HEAD, b"\x92\x01\x02"), "a batch of"),
        (frame(Kind.REQUEST_BATCH, 1, HEAD, b"\xdc\x00\x00\x00\x01\x01"), "a batch of"),
        (frame(Kind.REQUEST_BATCH, 1, HEAD, array()), "a batch of 0 members"),
        (frame(Kind.REQUEST_BATCH, 1, HEAD, array(*range(MEMBERS + 1))), "a batch of 1025 members"),
        (frame(Kind.REQUEST_BATCH, 2**64 - 1, HEAD, array(1, 2)), "a batch of 2 members"),
        (frame(Kind.REQUEST_BATCH, 2, HEAD, array(1, 2)), "not the peer's to use"),
        (frame(Kind.REQUEST_BATCH, 0, HEAD, array(1, 2)), "not the peer's to use"),
        (frame(Kind.REQUEST, 3, HEAD, b"\x01") + frame(Kind.REQUEST_BATCH, 1, HEAD, array(1, 2)), "not the peer's"),
        (frame(Kind.REQUEST_BATCH, 1, HEAD, array(1, 2)) + frame(Kind.REQUEST, 3, HEAD, b"\x01"), "not the peer's"),
        (
            frame(Kind.REQUEST_BATCH, 1, heads.encoder.encode(heads.RequestHead("w.m", 1, 1, {})), array(1)),
            "with headers",
        ),
        (frame(Kind.RESPONSE_BATCH, 1, b"", array(1)), "never sent"),
        (frame(Kind.RESPONSE_BATCH, 2, b"", array(1)), "never sent"),
        (frame(Kind.RESPONSE_BATCH, 2, b"", array()), "a batch of 0 members"),
        (frame(Kind.RESPONSE_BATCH, 2, b"", b"\x01"), "a batch of"),
    ],
)
def test_batches_that_break_a_rule_end_the_connection(
    ends: tuple[Connection, Connection], data: bytes, reason: str
) -> None:
    _, server = ends
    *_, closed = server.receive_data(data, 0.0)
    assert isinstance(closed, Closed)
    assert reason in str(closed.error)


def test_answers_to_more_than_was_asked(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    idents = asked(client, server, 2).ids
    (closed,) = client.receive_data(frame(Kind.RESPONSE_BATCH, idents[0], b"", array(1, 2, 3)), 0.0)
    assert isinstance(closed, Closed)
    assert [ident for ident, _ in closed.lost] == list(idents)


@pytest.mark.parametrize("kind", [Kind.REQUEST_BATCH, Kind.RESPONSE_BATCH])
def test_batches_that_were_not_negotiated_end_the_connection(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "FEATURES", ("streams", "batch"))
    _, server = pair()
    (closed,) = server.receive_data(frame(kind, 1, b"", array(1)), 0.0)
    assert "not negotiated" in str(closed.error)  # type: ignore[union-attr]


def test_heads_of_batches_that_repeat_are_decoded_once(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    for _ in range(3):
        for ident in asked(client, server, 2).ids:
            server.reply(ident, b"\x01")
        move(server, client)
    assert len(server._requests.heads) == 1


@pytest.mark.parametrize("first", [0, 1, 2**64 - 2])
def test_the_ids_of_a_batch(first: int) -> None:
    assert list(ids_of(first, array(5))) == [first]


def test_a_row_that_is_no_array_cannot_be_answered(ends: tuple[Connection, Connection]) -> None:
    client, server = ends
    ids = asked(client, server, 2).ids
    client.cancel(ids[0])
    move(client, server)
    with pytest.raises(InvalidPayload):
        server.reply_all(ids, b"\x01")

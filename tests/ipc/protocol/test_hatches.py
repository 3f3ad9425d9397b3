"""The hatch of a connection: its offer and answer, and what may come by it."""

from __future__ import annotations

import pytest

from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import (
    Closed,
    ErrorReceived,
    HatchAnswered,
    HatchOffered,
    ReplyReceived,
    RequestReceived,
)
from smartipc.ipc.protocol.handshake import FEATURES, Identity
from smartipc.ipc.protocol.states import ConnectionState
from smartipc.ipc.wire import heads
from smartipc.ipc.wire.frames import HEADER, Flag, Kind, frame

HEAD = heads.encoder.encode(heads.RequestHead("s.m", 1000))


def bytes_of(end: Connection) -> bytes:
    data = b""
    while end.has_data:
        data += b"".join(bytes(piece) for piece in end.data_to_send())
    return data


def pair(*features: str) -> tuple[Connection, Connection]:
    client = Connection("client", Identity("c"), features=(*FEATURES, *features))
    server = Connection("server", Identity("s"), features=(*FEATURES, *features))
    for end in (client, server):
        end.start(0.0)
    server.receive_data(bytes_of(client), 0.0)
    client.receive_data(bytes_of(server), 0.0)
    return client, server


def test_an_offer_is_told_and_so_is_its_answer() -> None:
    client, server = pair("hatch")
    assert client.hatches.negotiated
    assert "none" in repr(client.hatches)
    client.hatches.offer("here")
    assert "offered" in repr(client.hatches)
    assert server.receive_data(bytes_of(client), 0.0) == [HatchOffered("here")]
    server.hatches.answer("no room")
    assert client.receive_data(bytes_of(server), 0.0) == [HatchAnswered("no room")]


@pytest.mark.parametrize("kind", [Kind.HATCH, Kind.HATCH_OK])
def test_without_the_feature_there_are_no_such_frames(kind: Kind) -> None:
    for end in pair():
        (closed,) = end.receive_data(frame(kind, 0, heads.encoder.encode(heads.Reason("x"))), 0.0)
        assert isinstance(closed, Closed)
        assert "was not negotiated" in closed.reason


def test_what_the_wrong_side_says_or_says_twice_is_refused() -> None:
    offer = frame(Kind.HATCH, 0, heads.encoder.encode(heads.HatchHead("x")))
    answer = frame(Kind.HATCH_OK, 0, heads.encoder.encode(heads.Reason("")))
    client, server = pair("hatch")
    assert "once, by the client" in client.receive_data(offer, 0.0)[-1].reason  # type: ignore[union-attr]
    assert "once, by the client" in server.receive_data(offer + offer, 0.0)[-1].reason  # type: ignore[union-attr]
    client, server = pair("hatch")
    assert "not offered" in client.receive_data(answer, 0.0)[-1].reason  # type: ignore[union-attr]
    assert "not offered" in server.receive_data(offer + answer, 0.0)[-1].reason  # type: ignore[union-attr]


def test_a_request_and_its_reply_come_aside_of_a_half_frame() -> None:
    client, server = pair("hatch")
    half = frame(Kind.NOTIFY, 0, HEAD, b"later")
    assert server.receive_data(half[:9], 1.0) == []
    begun = client.straight.request("s.m", b"\x01", 1.0, 2.0)
    assert begun is not None
    (event,) = server.receive_aside(begun[1], 1.5)
    assert event == RequestReceived(begun[0], "s.m", b"\x01", 3.5, None, 1, 1.5)
    (late,) = server.receive_data(half[9:], 2.0)
    assert late.payload == b"later"  # type: ignore[union-attr]
    piece = server.straight.reply(begun[0], b"\x02")
    assert piece is not None
    assert client.receive_aside(piece, 2.0) == [ReplyReceived(begun[0], b"\x02")]
    assert client.receive_aside(piece, 2.0) == []
    assert client.late_replies == 1
    assert client.bytes_received > 2 * len(piece)


def test_a_server_that_leaves_refuses_what_comes_aside() -> None:
    client, server = pair("hatch")
    begun = client.straight.request("s.m", b"\x01", 1.0, 2.0)
    assert begun is not None
    server.goodbye()
    assert server.receive_aside(begun[1], 1.0) == []
    assert any(isinstance(event, ErrorReceived) for event in client.receive_data(bytes_of(server), 1.0))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        frame(Kind.REQUEST, 1, HEAD, b"x")[:-1],
        frame(Kind.REQUEST, 1, HEAD, b"x") * 2,
        frame(Kind.REQUEST, 1, HEAD, b"x", Flag.MORE),
        frame(Kind.NOTIFY, 0, HEAD, b"x"),
        frame(Kind.HELLO, 0, b""),
        frame(Kind.REQUEST, 1, b"\xc1", b""),
        frame(Kind.REQUEST, 2, HEAD, b""),
        frame(Kind.RESPONSE, 2, b"", b""),
        HEADER.pack(4, Kind.REQUEST, 0, 9, 1) + b"four",
    ],
)
def test_anything_else_that_comes_aside_ends_the_connection(data: bytes) -> None:
    _, server = pair("hatch")
    (closed,) = server.receive_aside(data, 0.0)
    assert isinstance(closed, Closed)
    assert closed.error is not None
    assert server.state is ConnectionState.CLOSED
    assert server.receive_aside(frame(Kind.REQUEST, 1, HEAD, b"x"), 0.0) == []


def test_nothing_comes_aside_without_the_feature() -> None:
    _, server = pair()
    (closed,) = server.receive_aside(frame(Kind.REQUEST, 1, HEAD, b"x"), 0.0)
    assert isinstance(closed, Closed)

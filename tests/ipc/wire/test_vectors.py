"""The golden vectors: what is on the wire today is what was on it, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from smartipc.ipc.protocol.auth import Auth
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import (
    Closed,
    DataReceived,
    MessageReceived,
    MessagesReceived,
    NotifiesReceived,
    NotifyReceived,
    Opened,
    OpenReceived,
    RepliesReceived,
    RequestReceived,
    RequestsReceived,
    StreamAccepted,
    StreamEnded,
    StreamFailed,
    StreamStopped,
)
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.wire import codec, heads
from smartipc.ipc.wire.frames import ARRAY, ARRAY_MARK, HEADER, PREFACE, Flag, Kind, frame

VECTORS = {
    name: bytes.fromhex(text)
    for name, text in json.loads((Path(__file__).parents[2] / "corpus" / "wire-vectors.json").read_text()).items()
}


def _proof(role: Literal["client", "server"]) -> bytes:
    """The proof over the two hello vectors, with the token "correct horse" at tcp://127.0.0.1:7000."""
    auth = Auth("correct horse", bytes(range(32)), "tcp:127.0.0.1:7000")
    auth.bind(PREFACE + VECTORS["hello with a token"], PREFACE + VECTORS["welcome with a token"])
    return auth.proof(role)


HEADS = {
    "hello": (Kind.HELLO, 0, heads.Hello(0, 0, ["streams"], "scanner:0", 41, 2, "indexer", 16777216), b""),
    "welcome": (Kind.WELCOME, 0, heads.Welcome(0, [], "hasher:1", 42, 1, "indexer", 16777216), b""),
    "reject": (Kind.REJECT, 0, heads.Reject("no common version", 0, 0), b""),
    "reject a token": (Kind.REJECT, 0, heads.Reject("the token is wrong", 0, 0, True), b""),
    "hello with a token": (
        Kind.HELLO,
        0,
        heads.Hello(0, 0, ["streams"], "laptop", 41, 0, "", 16777216, bytes(range(32)), ("token",)),
        b"",
    ),
    "welcome with a token": (
        Kind.WELCOME,
        0,
        heads.Welcome(0, ["streams"], "server", 42, 0, "", 16777216, bytes(range(32, 64)), "token"),
        b"",
    ),
    "auth": (Kind.AUTH, 0, heads.Proof(_proof("client")), b""),
    "auth ok": (Kind.AUTH_OK, 0, heads.Proof(_proof("server")), b""),
    "request": (
        Kind.REQUEST,
        1,
        heads.RequestHead("hasher.hash_file", 30000),
        codec.encode({"path": "/etc/hosts"}),
    ),
    "request with headers": (Kind.REQUEST, 3, heads.RequestHead("a.b", 1500, 2, {"trace": "x"}), codec.EMPTY),
    "notify": (Kind.NOTIFY, 0, heads.RequestHead("a.poke"), codec.encode(7)),
    "message": (Kind.MSG, 5, heads.MessageHead("index.progress"), codec.encode({"done": 1})),
    "message, retained and numbered": (
        Kind.MSG,
        5,
        heads.MessageHead("index.progress", None, True, 7, 41),
        codec.encode({"done": 1}),
    ),
    "notify batch": (
        Kind.NOTIFY_BATCH,
        0,
        heads.RequestHead("a.poke"),
        ARRAY.pack(ARRAY_MARK, 2) + codec.encode(7) + codec.encode(8),
    ),
    "message batch": (
        Kind.MSG_BATCH,
        5,
        heads.MessageHead("index.progress"),
        ARRAY.pack(ARRAY_MARK, 2) + codec.encode({"done": 1}) + codec.encode({"done": 2}),
    ),
    "request batch": (
        Kind.REQUEST_BATCH,
        1,
        heads.RequestHead("a.double", 30000),
        ARRAY.pack(ARRAY_MARK, 2) + codec.encode(7) + codec.encode(8),
    ),
    "gap": (Kind.MSG, 5, heads.MessageHead("", sequence=43), b""),
    "message, relayed": (
        Kind.MSG,
        5,
        heads.MessageHead("index.progress", sender="scanner"),
        codec.encode({"done": 1}),
    ),
    "subscribe": (Kind.SUB, 5, heads.SubHead("index.*", 1024), b""),
    "subscribe, shared and dropping": (Kind.SUB, 6, heads.SubHead("jobs.>", 16, "crew", "drop_oldest"), b""),
    "subscribed": (Kind.SUB_OK, 5, heads.SubOkHead(), b""),
    "not subscribed": (Kind.SUB_OK, 6, heads.SubOkHead("more than 16384 subscriptions"), b""),
    "publish": (Kind.PUB, 0, heads.PubHead("index.progress"), codec.encode({"done": 1})),
    "publish, retained": (Kind.PUB, 0, heads.PubHead("index.progress", None, True), codec.encode({"done": 1})),
    "settle": (Kind.ACK, 0, heads.AckHead(256), b""),
    "acknowledge": (Kind.ACK, 5, heads.AckHead(512), b""),
    "open a stream": (
        Kind.OPEN,
        3,
        heads.OpenHead("hasher.walk", False, 262144, 1024),
        codec.encode({"path": "/etc"}),
    ),
    "open a channel": (Kind.OPEN, 5, heads.OpenHead("chat.talk", True, 262144, 1024, {"room": "1"}), codec.EMPTY),
    "accept and credit": (Kind.CREDIT, 5, heads.CreditHead(262144, 1024), b""),
    "accept a stream": (Kind.CREDIT, 3, heads.CreditHead(0, 0), b""),
    "ping": (Kind.PING, 0, heads.PingHead(9), b""),
    "goaway": (Kind.GOAWAY, 0, heads.Reason("the worker is stopping"), b""),
    "fatal": (Kind.FATAL, 0, heads.Reason("unknown frame kind 0x7e"), b""),
}


@pytest.mark.parametrize("name", sorted(HEADS))
def test_frames_are_encoded_and_decoded_as_ever(name: str) -> None:
    kind, ident, head, payload = HEADS[name]
    assert frame(kind, ident, heads.encoder.encode(head), payload) == VECTORS[name]
    size, found, _, head_size, found_id = HEADER.unpack_from(VECTORS[name])
    body = VECTORS[name][HEADER.size :]
    assert (found, found_id, size) == (kind, ident, len(body))
    assert heads.decode(body[:head_size], type(head)) == head
    assert body[head_size:] == payload


def test_headless_frames() -> None:
    assert VECTORS["preface"] == PREFACE
    assert VECTORS["response"] == frame(Kind.RESPONSE, 1, b"", codec.encode([1, 2.5, "text", None, True]))
    assert VECTORS["unsubscribe"] == frame(Kind.UNSUB, 5)
    assert VECTORS["cancel"] == frame(Kind.CANCEL, 3)
    assert VECTORS["response batch"] == frame(
        Kind.RESPONSE_BATCH, 1, b"", ARRAY.pack(ARRAY_MARK, 2) + codec.encode(14) + codec.encode(16)
    )
    fault = heads.Fault(8, "Overloaded", "a.b refused: overloaded", True, 0, 0, "a:0")
    assert VECTORS["error"] == frame(Kind.ERROR, 3, b"", heads.encoder.encode(fault))
    assert heads.decode(VECTORS["error"][HEADER.size :], heads.Fault) == fault
    assert VECTORS["first piece"][5] == Flag.MORE
    assert VECTORS["item"] == frame(Kind.DATA, 3, b"", codec.encode("one"))
    assert VECTORS["first piece of an item"] == frame(Kind.DATA, 3, b"", codec.encode("two")[:2], Flag.MORE)
    assert VECTORS["last piece of an item"] == frame(Kind.DATA, 3, b"", codec.encode("two")[2:])
    assert VECTORS["end"] == frame(Kind.DATA, 3, flags=Flag.END)
    assert VECTORS["stop"] == frame(Kind.STOP, 3)
    reset = heads.Fault(10, "StreamReset", "left", processed=2)
    assert VECTORS["reset"] == frame(Kind.RESET, 5, b"", heads.encoder.encode(reset))


def test_a_connection_understands_the_vectors() -> None:
    server = Connection("server", Identity())
    server.start(0.0)
    order = ("preface", "hello", "request", "request with headers", "notify", "message", "first piece", "last piece")
    events = server.receive_data(b"".join(VECTORS[name] for name in order), 0.0)
    kinds = [type(event) for event in events]
    assert kinds == [Opened, RequestReceived, RequestReceived, NotifyReceived, MessageReceived, NotifyReceived]
    assert events[-1].payload == b"\x01\x02\x03"  # type: ignore[union-attr]
    (closed,) = server.receive_data(VECTORS["fatal"], 0.0)
    assert isinstance(closed, Closed)


def test_a_connection_understands_a_stream_and_a_channel() -> None:
    client, server = Connection("client", Identity()), Connection("server", Identity())
    client.start(0.0)
    server.start(0.0)
    server.receive_data(b"".join(client.data_to_send()), 0.0)
    client.receive_data(b"".join(server.data_to_send()), 0.0)
    events = server.receive_data(VECTORS["open a stream"] + VECTORS["open a channel"], 0.0)
    assert events == [
        OpenReceived(3, "hasher.walk", False, codec.encode({"path": "/etc"}), None, 0.0),
        OpenReceived(5, "chat.talk", True, codec.EMPTY, {"room": "1"}, 0.0),
    ]
    server.streams.accept(3)
    server.streams.accept(5)
    assert b"".join(server.data_to_send()) == VECTORS["accept a stream"] + VECTORS["accept and credit"]
    assert client.request("a.b", b"", 0.0, timeout=1.0) == 1
    assert client.streams.open("a.b", b"", duplex=False) == 3
    order = ("accept a stream", "item", "first piece of an item", "last piece of an item", "end")
    events = client.receive_data(b"".join(VECTORS[name] for name in order), 0.0)
    assert events == [
        StreamAccepted(3),
        DataReceived(3, codec.encode("one")),
        DataReceived(3, codec.encode("two")),
        StreamEnded(3),
    ]
    assert server.receive_data(VECTORS["stop"] + VECTORS["reset"], 0.0) == [
        StreamStopped(3),
        StreamFailed(5, heads.Fault(10, "StreamReset", "left", processed=2)),
    ]


def test_a_connection_writes_and_understands_batches() -> None:
    client, server = Connection("client", Identity()), Connection("server", Identity())
    client.start(0.0)
    server.start(0.0)
    server.receive_data(b"".join(client.data_to_send()), 0.0)
    client.receive_data(b"".join(server.data_to_send()), 0.0)
    for number in (7, 8):
        client.notify("a.poke", codec.encode(number))
    for number in (1, 2):
        client.publish(5, "index.progress", codec.encode({"done": number}))
    data = b"".join(client.data_to_send())
    assert data == VECTORS["notify batch"] + VECTORS["message batch"]
    notifies, messages = server.receive_data(data, 0.0)
    assert isinstance(notifies, NotifiesReceived)
    assert isinstance(messages, MessagesReceived)
    assert codec.decode_all(notifies.payload, int) == [7, 8]
    assert codec.pieces(messages.payload) == [codec.encode({"done": 1}), codec.encode({"done": 2})]


def test_a_connection_writes_and_understands_batches_of_calls() -> None:
    client, server = Connection("client", Identity()), Connection("server", Identity())
    client.start(0.0)
    server.start(0.0)
    server.receive_data(b"".join(client.data_to_send()), 0.0)
    client.receive_data(b"".join(server.data_to_send()), 0.0)
    for number in (7, 8):
        client.request("a.double", codec.encode(number), 0.0, timeout=30.0)
    data = b"".join(client.data_to_send())
    assert data == VECTORS["request batch"]
    (requests,) = server.receive_data(data, 0.0)
    assert isinstance(requests, RequestsReceived)
    assert (list(requests.ids), requests.method, requests.deadline) == ([1, 3], "a.double", 30.0)
    for ident, value in zip(requests.ids, codec.pieces(requests.payload), strict=True):
        server.reply(ident, codec.encode(codec.decode(value, int) * 2))
    data = b"".join(server.data_to_send())
    assert data == VECTORS["response batch"]
    (replies,) = client.receive_data(data, 0.0)
    assert isinstance(replies, RepliesReceived)
    assert (list(replies.ids), codec.decode_all(replies.payload, int)) == ([1, 3], [14, 16])


def test_fields_of_a_newer_peer_are_ignored_and_of_an_older_one_defaulted() -> None:
    newer = codec.encode(["a.b", 5, 1, None, None, "new", {"more": 1}])
    assert heads.decode(newer, heads.RequestHead) == heads.RequestHead("a.b", 5)
    assert heads.decode(codec.encode(["a.b"]), heads.RequestHead) == heads.RequestHead("a.b")

"""The golden vectors: what is on the wire today is what was on it, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import Closed, MessageReceived, NotifyReceived, Opened, RequestReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.wire import codec, heads
from smartipc.ipc.wire.frames import HEADER, PREFACE, Flag, Kind, frame

VECTORS = {
    name: bytes.fromhex(text)
    for name, text in json.loads((Path(__file__).parents[2] / "corpus" / "wire-vectors.json").read_text()).items()
}

HEADS = {
    "hello": (Kind.HELLO, 0, heads.Hello(0, 0, ["streams"], "scanner:0", 41, 2, "indexer", 16777216), b""),
    "welcome": (Kind.WELCOME, 0, heads.Welcome(0, [], "hasher:1", 42, 1, "indexer", 16777216), b""),
    "reject": (Kind.REJECT, 0, heads.Reject("no common version", 0, 0), b""),
    "request": (
        Kind.REQUEST,
        1,
        heads.RequestHead("hasher.hash_file", 30000),
        codec.encode({"path": "/etc/hosts"}),
    ),
    "request with headers": (Kind.REQUEST, 3, heads.RequestHead("a.b", 1500, 2, {"trace": "x"}), codec.EMPTY),
    "notify": (Kind.NOTIFY, 0, heads.RequestHead("a.poke"), codec.encode(7)),
    "message": (Kind.MSG, 5, heads.MessageHead("index.progress"), codec.encode({"done": 1})),
    "acknowledge": (Kind.ACK, 5, heads.AckHead(512), b""),
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
    assert VECTORS["cancel"] == frame(Kind.CANCEL, 3)
    fault = heads.Fault(8, "Overloaded", "a.b refused: overloaded", True, 0, 0, "a:0")
    assert VECTORS["error"] == frame(Kind.ERROR, 3, b"", heads.encoder.encode(fault))
    assert heads.decode(VECTORS["error"][HEADER.size :], heads.Fault) == fault
    assert VECTORS["first piece"][5] == Flag.MORE


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


def test_fields_of_a_newer_peer_are_ignored_and_of_an_older_one_defaulted() -> None:
    newer = codec.encode(["a.b", 5, 1, None, None, "new", {"more": 1}])
    assert heads.decode(newer, heads.RequestHead) == heads.RequestHead("a.b", 5)
    assert heads.decode(codec.encode(["a.b"]), heads.RequestHead) == heads.RequestHead("a.b")

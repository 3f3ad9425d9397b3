"""The short way of single requests and replies does what the long one does: same bytes, events, counts and refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartipc.ipc.errors import FrameTooLarge
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import Event, ReplyReceived, RequestReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.wire.frames import HEADER, Kind
from smartipc.ipc.wire.heads import Fault
from smartipc.ipc.wire.limits import Limits

LIMITS = Limits(chunk=64, inflight=3, message=300, frame=200)
SIZES = st.one_of(st.integers(0, 70), st.integers(0, 350))
OPS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(["s.a", "s.bb"]), SIZES, st.sampled_from([0.001, 1.5, 30.0])),
    st.tuples(st.just("notify"), SIZES),
    st.tuples(st.just("carry"), st.integers(0, 1), st.one_of(st.just(10_000), st.integers(1, 60))),
    st.tuples(st.just("reply"), st.integers(0, 3), SIZES),
    st.tuples(st.just("fail"), st.integers(0, 3)),
    st.tuples(st.just("cancel"), st.integers(0, 3)),
    st.tuples(st.just("goodbye")),
    st.tuples(st.just("wait"), st.sampled_from([0.001, 2.0])),
    st.tuples(st.just("forge"), st.integers(0, 6), st.integers(0, 3)),
    st.tuples(st.just("stray")),
    st.tuples(st.just("close")),
)


class Pair:
    """A client and a server, and the bytes between them."""

    def __init__(self, *, straight: bool) -> None:
        self.straight = straight
        self.ends = Connection("client", Identity("c"), LIMITS), Connection("server", Identity("s"), LIMITS)
        self.wire = bytearray(), bytearray()
        self.now = 100.0
        self.asked: list[int] = []
        self.sent: list[int] = []
        self.trace: list[Any] = []
        for end in self.ends:
            end.start(self.now)
        for _ in range(3):
            for side in (0, 1):
                self.flush(side)
                self.carry(side, 10_000)

    def flush(self, side: int) -> None:
        end = self.ends[side]
        while end.has_data:
            for piece in end.data_to_send():
                self.wire[side].extend(piece)

    def carry(self, side: int, count: int) -> None:
        """Let bytes that `side` has said arrive."""
        data = bytes(self.wire[side][:count])
        del self.wire[side][:count]
        if data:
            self.trace.append(self.take(1 - side, data))
        self.flush(1 - side)

    def take(self, side: int, data: bytes) -> list[Event]:
        end = self.ends[side]
        if self.straight:
            asked = end.straight.requested(data, self.now)
            if asked is not None:
                ident, head, payload, deadline, now = asked
                self.asked.append(ident)
                return [RequestReceived(ident, head.method, payload, deadline, None, head.attempt, now)]
            for ident in list(self.sent):
                payload = end.straight.answered(ident, data, self.now)
                if payload is not None:
                    return [ReplyReceived(ident, payload)]
        events = end.receive_data(data, self.now)
        self.asked.extend(one.id for one in events if isinstance(one, RequestReceived))
        return events

    def ask(self, method: str, size: int, timeout: float) -> None:
        client = self.ends[0]
        payload = bytes(size)
        begun = client.straight.request(method, payload, self.now, timeout) if self.straight else None
        if begun is not None:
            self.wire[0].extend(begun[1])
            self.sent.append(begun[0])
        else:
            self.sent.append(client.request(method, payload, self.now, timeout=timeout))

    def reply(self, ident: int, size: int) -> None:
        server = self.ends[1]
        piece = server.straight.reply(ident, bytes(size)) if self.straight else None
        if piece is not None:
            self.wire[1].extend(piece)
        else:
            server.reply(ident, bytes(size))

    def do(self, op: tuple[Any, ...]) -> None:
        client, server = self.ends
        match op:
            case ("ask", method, size, timeout):
                self.ask(method, size, timeout)
                self.flush(0)
            case ("notify", size):
                client.notify("s.n", bytes(size))
            case ("carry", side, count):
                self.flush(side)
                self.carry(side, count)
            case ("reply", index, size) if self.asked:
                self.reply(self.asked[index % len(self.asked)], size)
                self.flush(1)
            case ("fail", index) if self.asked:
                server.fail(self.asked[index % len(self.asked)], Fault(2, "RemoteError", "boom"))
            case ("cancel", index) if self.sent:
                client.cancel(self.sent[index % len(self.sent)])
            case ("goodbye",):
                server.goodbye("leaving")
            case ("wait", seconds):
                self.now += seconds
                self.trace.append([end.handle_timer(self.now) for end in self.ends])
            case ("forge", number, lie):  # ids that are not the peer's, heads that lie, sizes beyond limits
                head = b"\x93\xa3s.a\xcd\x05\xdc\x01"
                head_size = len(head) + (0, 9, -3, 0)[lie]
                body = head + bytes(250 if lie == 3 else 4)
                self.wire[0].extend(HEADER.pack(len(body), Kind.REQUEST, 0, head_size, number) + body)
            case ("stray",):
                self.wire[1].extend(HEADER.pack(0, Kind.RESPONSE, 0, 0, 1))
            case ("close",):
                self.trace.append(client.close())

    def facts(self) -> list[Any]:
        tallies = [
            (one.sent, one.received, one.round_trips, one.seconds, one.timed, one.errors)
            for one in (end.tally for end in self.ends)
        ]
        timers = [end.next_timer() for end in self.ends]
        return [[end.snapshot() for end in self.ends], tallies, timers, bytes(self.wire[0]), bytes(self.wire[1])]


@given(st.lists(OPS, max_size=40))
def test_the_short_way_is_the_long_way(ops: list[tuple[Any, ...]]) -> None:
    pairs = Pair(straight=False), Pair(straight=True)
    for op in ops:
        outcomes: list[str] = []
        for pair in pairs:
            try:
                pair.do(op)
                outcomes.append("")
            except Exception as error:
                outcomes.append(repr(error))
        assert outcomes[0] == outcomes[1]
        assert pairs[0].facts() == pairs[1].facts()
        assert repr(pairs[0].trace) == repr(pairs[1].trace)  # errors are equal by what they say


def test_a_plain_call_goes_the_short_way_at_both_ends() -> None:
    pair = Pair(straight=True)
    pair.do(("ask", "s.a", 8, 30.0))
    pair.do(("carry", 0, 10_000))
    pair.do(("reply", 0, 8))
    pair.do(("carry", 1, 10_000))
    client, server = pair.ends
    begun = client.straight.request("s.a", b"12345678", pair.now, 30.0)
    assert begun is not None
    asked = server.straight.requested(begun[1], pair.now)
    assert asked is not None
    assert asked[1].method == "s.a"
    assert asked[2:] == (b"12345678", pair.now + 30.0, pair.now)
    piece = server.straight.reply(asked[0], b"yes")
    assert piece is not None
    assert client.straight.answered(begun[0], piece, pair.now) == b"yes"
    assert "open" in repr(client.straight)


def test_a_head_that_is_too_large_is_refused_and_nothing_has_happened() -> None:
    pair = Pair(straight=True)
    before = pair.facts()
    with pytest.raises(FrameTooLarge):
        pair.ends[0].straight.request("s." + "x" * 9000, b"", pair.now, 30.0)
    assert pair.facts() == before


def test_what_is_given_up_or_not_alone_goes_the_long_way() -> None:
    pair = Pair(straight=True)
    pair.do(("ask", "s.a", 8, 30.0))
    pair.do(("carry", 0, 10_000))
    client, server = pair.ends
    server.notify("c.n", b"first")
    assert server.straight.reply(pair.asked[0], b"behind it") is None
    pair.flush(1)
    assert server.straight.reply(pair.asked[0], bytes(301)) is None
    piece = server.straight.reply(pair.asked[0], b"late")
    assert piece is not None
    assert server.straight.reply(pair.asked[0], b"again") is None
    client.receive_data(bytes(pair.wire[1]), pair.now)
    client.cancel(pair.sent[0])
    assert client.straight.answered(pair.sent[0], piece, pair.now) is None
    assert client.straight.answered(pair.sent[0], piece[:7], pair.now) is None
    assert server.straight.requested(b"short", pair.now) is None

"""Hostile peers against the protocol core, in tables that cover every kind there is, those of tomorrow included.

The oracle, for whatever bytes: nothing is raised, what is kept stays within bounds, a peer gets at most one error
frame, nothing follows the end, and nothing is heard of a peer that has not shown who it is.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from typing import Literal

import msgspec
import pytest

from smartipc.ipc.protocol.auth import Auth
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import CancelReceived, Closed, Event, Opened, RequestReceived, RequestsReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.protocol.states import ConnectionState
from smartipc.ipc.wire import codec, heads
from smartipc.ipc.wire.frames import FEATURES, HEADER, HEADER_SIZE, PREFACE, Flag, Kind, frame
from smartipc.ipc.wire.limits import Limits

Role = Literal["client", "server"]
ROLES: tuple[Role, ...] = ("client", "server")
LAST_WORDS = {Kind.FATAL, Kind.REJECT}
STATES = ("fresh", "waiting for a proof", "open", "draining", "closed")
FIELDS = [0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF]

HEADS: dict[Kind, msgspec.Struct] = {
    Kind.HELLO: heads.Hello(0, 0, sorted(FEATURES), "evil", 1, 1, "", 1 << 24),
    Kind.WELCOME: heads.Welcome(0, ["streams", "batch", "call-batch"], "evil", 1, 1, "", 1 << 24),
    Kind.AUTH: heads.Proof(b"x" * 32),
    Kind.AUTH_OK: heads.Proof(b"x" * 32),
    Kind.REJECT: heads.Reject("no"),
    Kind.PING: heads.PingHead(1),
    Kind.PONG: heads.PingHead(1),
    Kind.GOAWAY: heads.Reason("bye"),
    Kind.FATAL: heads.Reason("bye"),
    Kind.REQUEST: heads.RequestHead("a.b", 1000),
    Kind.REQUEST_BATCH: heads.RequestHead("a.b", 1000),
    Kind.NOTIFY: heads.RequestHead("a.b"),
    Kind.OPEN: heads.OpenHead("a.b", True, 1 << 18, 1024),
    Kind.CREDIT: heads.CreditHead(1 << 18, 1024),
    Kind.MSG: heads.MessageHead("a.b"),
    Kind.ACK: heads.AckHead(1),
}
"""A head that fits, where a kind has one; a kind that is not here is tried with heads of its neighbours and garbage."""

PAYLOADS: dict[Kind, bytes] = {
    Kind.ERROR: heads.encoder.encode(heads.Fault(2, "x", "y")),
    Kind.RESET: heads.encoder.encode(heads.Fault(2, "x", "y")),
    Kind.REQUEST_BATCH: b"\xdd\x00\x00\x00\x02\xc0\xc0",
    Kind.RESPONSE_BATCH: b"\xdd\x00\x00\x00\x02\xc0\xc0",
}


def valid(kind: int, ident: int, flags: int = 0) -> bytes:
    head = HEADS.get(Kind(kind))
    return frame(kind, ident, heads.encoder.encode(head) if head else b"", PAYLOADS.get(Kind(kind), b"\xc0"), flags)


def bodies(kind: Kind) -> Iterator[tuple[bytes, bytes]]:
    """Heads and payloads for a kind: fitting, missing, another kind's, and garbage."""
    every = [heads.encoder.encode(head) for head in HEADS.values()]
    for head in (
        *every,
        b"",
        b"\xc1",
        b"\x90",
        b"\x91\xc0",
        b"\x9a" + b"\xff" * 9,
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000,
    ):
        for payload in (b"", b"\xc0", PAYLOADS.get(kind, b"\x01"), b"\xdd\xff\xff\xff\xff", b"\x91" * 5000):
            yield head, payload


class Victim:
    """A connection and what must hold of it whatever arrives."""

    def __init__(self, role: Role = "server", state: str = "open", limits: Limits = Limits()) -> None:
        auth = Auth("secret", b"v" * 32, "") if state == "waiting for a proof" else None
        self.connection = Connection(role, Identity("victim"), limits, auth=auth)
        self.connection.start(0.0)
        self.now = 0.0
        self.ended = False
        self.last_words = 0
        self.said = b""
        self.events: list[Event] = []
        self.listen()
        if state == "fresh":
            return
        hello: msgspec.Struct = HEADS[Kind.HELLO if role == "server" else Kind.WELCOME]
        if auth is not None:
            mechanism = {"mechanisms": ("token",)} if role == "server" else {"mechanism": "token"}
            hello = msgspec.structs.replace(hello, nonce=b"e" * 32, **mechanism)
        kind = Kind.HELLO if role == "server" else Kind.WELCOME
        self.feed(PREFACE + frame(kind, 0, heads.encoder.encode(hello)))
        if state == "open" or state == "draining":
            assert any(isinstance(event, Opened) for event in self.events), self.events
        if state == "draining":
            self.feed(valid(Kind.GOAWAY, 0))
        if state == "closed":
            self.feed(frame(0xFF, 0))
            assert self.ended

    def feed(self, data: bytes) -> list[Event]:
        self.now += 0.001
        events = self.connection.receive_data(data, self.now)
        assert not (self.ended and events), "something followed the end"
        self.ended = self.ended or any(isinstance(event, Closed) for event in events)
        assert not any(isinstance(event, Closed) for event in events[:-1]), "something followed the end"
        if self.connection.peer is None:
            assert all(isinstance(event, Closed) for event in events), "a stranger was heard"
        self.events += events
        self.listen()
        assert len(self.connection._in) <= self.connection.limits.frame + HEADER_SIZE
        return events

    def listen(self) -> None:
        """Read what it answers: at most one error frame, and it is the last."""
        while self.connection.has_data:
            self.said += b"".join(self.connection.data_to_send())
        self.said = self.said.removeprefix(PREFACE)
        while len(self.said) >= HEADER_SIZE:
            size, kind, *_ = HEADER.unpack_from(self.said)
            self.said = self.said[HEADER_SIZE + size :]
            assert not self.last_words, "something was said after the error frame"
            self.last_words += kind in LAST_WORDS


# every kind, in every state, with every body


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("role", ROLES)
def test_every_kind_in_every_state(role: Role, state: str, kind: Kind) -> None:
    for ident in (0, 1, 2, 7, 1 << 63, (1 << 64) - 1):
        victim = Victim(role, state)
        preface = PREFACE if state == "fresh" else b""
        victim.feed(preface + valid(kind, ident))
        victim.feed(valid(kind, ident))
        victim.feed(valid(Kind.REQUEST, ident + 2 & (1 << 64) - 1))
    for head, payload in bodies(kind):
        victim = Victim(role, state)
        victim.feed((PREFACE if state == "fresh" else b"") + frame(kind, 1, head, payload))
        victim.feed(frame(kind, 3, head, payload))


@pytest.mark.parametrize("role", ROLES)
def test_kinds_that_nobody_knows(role: Role) -> None:
    for kind in set(range(256)) - set(Kind):
        victim = Victim(role)
        victim.feed(frame(kind, 1, b"", b"x"))
        assert victim.ended
        victim = Victim(role)
        victim.feed(frame(kind, 1, b"", b"x", Flag.IGNORABLE))
        assert victim.ended is (kind in (0, 255))
        victim.feed(valid(Kind.PING, 0))


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("state", ["fresh", "open"])
@pytest.mark.parametrize("role", ROLES)
def test_every_field_of_a_header_mutated(role: Role, state: str, kind: Kind) -> None:
    good = valid(kind, 1)
    body = good[HEADER_SIZE:]
    fields = list(HEADER.unpack_from(good))
    for index, width in enumerate((4, 1, 1, 2, 8)):
        for value in (*FIELDS, fields[index] + 1, max(0, fields[index] - 1)):
            mutated = fields.copy()
            mutated[index] = value & ((1 << 8 * width) - 1)
            victim = Victim(role, state)
            victim.feed((PREFACE if state == "fresh" else b"") + HEADER.pack(*mutated) + body)
            victim.feed(valid(Kind.PING, 0) * 3)


@pytest.mark.parametrize("flags", range(256))
def test_every_combination_of_flags(flags: int) -> None:
    for kind in Kind:
        victim = Victim()
        victim.feed(valid(kind, 1, flags))
        victim.feed(valid(kind, 1, flags & ~Flag.MORE))


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("role", ROLES)
def test_cut_at_every_byte(role: Role, kind: Kind) -> None:
    good = valid(kind, 1)
    for cut in range(len(good)):
        victim = Victim(role)
        victim.feed(good[:cut])
        events = victim.connection.receive_eof(1.0)
        assert victim.ended or isinstance(events[-1], Closed)


@pytest.mark.parametrize("first", [HEADS[Kind.HELLO], HEADS[Kind.WELCOME]])
def test_a_handshake_cut_at_every_byte_or_dripping_in(first: heads.Hello | heads.Welcome) -> None:
    kind = Kind.HELLO if isinstance(first, heads.Hello) else Kind.WELCOME
    role: Role = "server" if isinstance(first, heads.Hello) else "client"
    whole = PREFACE + frame(kind, 0, heads.encoder.encode(first))
    for cut in range(len(whole)):
        victim = Victim(role, "fresh")
        victim.feed(whole[:cut])
        assert victim.connection.peer is None
        victim.connection.receive_eof(1.0)
        assert victim.connection.state is ConnectionState.CLOSED
    victim = Victim(role, "fresh")
    for one in whole:
        victim.feed(bytes([one]))
    assert victim.connection.peer is not None


# randomness


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("role", ROLES)
def test_random_bytes(role: Role, state: str) -> None:
    source = random.Random(f"{role}{state}")
    for _ in range(150):
        victim = Victim(role, state)
        victim.feed((PREFACE if state == "fresh" and source.random() < 0.7 else b"") + source.randbytes(300))
        victim.feed(source.randbytes(5000))


@pytest.mark.parametrize("role", ROLES)
def test_random_conversations(role: Role) -> None:
    source = random.Random(f"talk {role}")
    kinds = sorted(set(Kind) - LAST_WORDS)
    for _ in range(300):
        victim = Victim(role)
        mine = victim.connection.request("x.y", b"", victim.now, timeout=5.0)
        for _ in range(40):
            flags = source.choice((0, 0, 0, Flag.MORE, Flag.END, Flag.OOB, Flag.MORE | Flag.OOB))
            victim.feed(valid(source.choice(kinds), source.choice((0, 1, 2, 3, 4, 5, mine)), flags))
            if victim.ended:
                break


# floods: what a peer makes us keep stays bounded, read or unread


def growth(victim: Victim, data: list[bytes], *, reading: bool) -> int:
    """Feed until the data, the connection or its patience ends; return the bytes that it then holds more."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        connection = victim.connection
        for one in data:
            if not reading and connection.congested:
                break
            victim.now += 0.001
            for event in connection.receive_data(one, victim.now):
                if isinstance(event, RequestReceived):
                    connection.reply(event.id, b"r" * 100)
                elif isinstance(event, RequestsReceived):
                    for ident in event.ids:
                        connection.reply(ident, b"r" * 100)
            if reading:
                victim.listen()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("reading", [True, False], ids=["read", "unread"])
@pytest.mark.parametrize("same", [True, False], ids=["one id", "new ids"])
@pytest.mark.parametrize("kind", list(Kind))
def test_a_flood_of_any_kind(kind: Kind, same: bool, reading: bool) -> None:
    for flags in (0, Flag.MORE):
        data = [valid(kind, 1 if same else 2 * number + 1, flags) for number in range(20_000)]
        assert growth(Victim(), data, reading=reading) < 24 * 1024 * 1024


def test_requests_are_counted_in_bytes_too() -> None:
    limits = Limits()
    victim = Victim(limits=limits)
    piece = b"p" * limits.chunk
    held = served = 0
    for number in range(64):
        ident = 2 * number + 1
        head = heads.encoder.encode(HEADS[Kind.REQUEST])
        frames = [frame(Kind.REQUEST, ident, head, piece, Flag.MORE)]
        frames += [frame(Kind.REQUEST, ident, b"", piece, Flag.MORE)] * 254
        frames.append(frame(Kind.REQUEST, ident, b"", piece))
        for one in frames:
            for event in victim.feed(one):
                if isinstance(event, RequestReceived):
                    served += 1
                    held += len(event.payload)
        victim.events.clear()
    assert not victim.ended
    assert held <= limits.heavy
    assert served == limits.heavy // limits.message
    victim.connection.reply(1, b"")
    for one in (frame(Kind.REQUEST, 1001, head, piece, Flag.MORE), frame(Kind.REQUEST, 1001, b"", piece)):
        events = victim.feed(one)
    assert [type(event) for event in events] == [RequestReceived]


def test_half_sent_messages_are_bounded_in_bytes() -> None:
    victim = Victim()
    limits = victim.connection.limits
    piece = b"p" * limits.chunk
    head = heads.encoder.encode(HEADS[Kind.REQUEST])
    sent = 0
    for number in range(limits.partial):
        for index in range(limits.message // limits.chunk - 1):
            victim.feed(frame(Kind.REQUEST, 2 * number + 1, head if index == 0 else b"", piece, Flag.MORE))
            sent += len(piece)
            if victim.ended:
                break
        if victim.ended:
            break
    assert victim.ended
    assert sent <= limits.halves + limits.chunk


# slowness


def test_a_started_frame_must_be_finished_however_it_drips() -> None:
    """Also behind a finished frame that is smaller than what waits, which once started the clock anew each time."""
    big = frame(Kind.NOTIFY, 0, heads.encoder.encode(HEADS[Kind.NOTIFY]), b"x" * 10_000)
    for before in (b"", valid(Kind.PING, 0), big):
        victim = Victim()
        victim.feed(before[:1])
        victim.feed(before[1:] + big[:9000])
        for one in range(9000, 9100):
            victim.now += 0.2
            victim.connection.receive_data(big[one : one + 1], victim.now)
            due = victim.connection.next_timer()
            if due is not None and due <= victim.now:
                break
        else:
            pytest.fail("twenty seconds, and the frame may go on")
        assert isinstance(victim.connection.handle_timer(victim.now)[-1], Closed)


def test_a_frame_that_we_do_not_read_on_ourselves_may_take_its_time() -> None:
    victim = Victim(limits=Limits(unsent=1000))
    connection = victim.connection
    connection.receive_data(valid(Kind.REQUEST, 1) + valid(Kind.REQUEST, 3)[:20], 1.0)
    connection.reply(1, b"r" * 2000)
    assert connection.congested
    assert connection.handle_timer(11.0) == []
    assert connection.next_timer() == 21.0
    victim.listen()
    assert not connection.congested
    assert isinstance(connection.handle_timer(21.0)[-1], Closed)


def test_a_handshake_must_be_finished_however_it_drips() -> None:
    victim = Victim("server", "fresh")
    hello = PREFACE + valid(Kind.HELLO, 0)
    for index in range(20):
        victim.now = 0.1 * index
        victim.connection.receive_data(hello[index : index + 1], victim.now)
    assert victim.connection.next_timer() == 2.0
    assert isinstance(victim.connection.handle_timer(2.0)[-1], Closed)


def test_a_cancel_finds_its_request_among_others_that_were_read_with_it() -> None:
    victim = Victim()
    several = [valid(Kind.REQUEST, 1), valid(Kind.REQUEST, 3), valid(Kind.NOTIFY, 0), valid(Kind.CANCEL, 1)]
    events = victim.feed(b"".join(several))
    assert [getattr(event, "id", None) for event in events] == [3, None]
    many = valid(Kind.REQUEST, 5) + valid(Kind.NOTIFY, 0) * 1000 + valid(Kind.CANCEL, 5)
    events = victim.feed(many)
    assert (type(events[0]), events[-1]) == (RequestReceived, CancelReceived(5))


# words


@pytest.mark.parametrize(
    "name", ["a\nERROR all is lost", "\x1b[2J", "\u202egnp", "x" * 5000, "\x00", "\u2028", "\x9b31m"]
)
def test_what_a_peer_says_is_shown_on_one_line(name: str) -> None:
    victim = Victim("server", "fresh")
    hello = msgspec.structs.replace(HEADS[Kind.HELLO], name=name[:2000], mechanisms=(name[:500],))  # type: ignore[type-var]
    victim.feed(PREFACE + frame(Kind.HELLO, 0, heads.encoder.encode(hello)))
    assert victim.ended
    named = Victim("server", "fresh")
    hello = msgspec.structs.replace(hello, mechanisms=("peer",), app=name[:1000])
    named.feed(PREFACE + frame(Kind.HELLO, 0, heads.encoder.encode(hello)))
    assert named.connection.peer is not None
    assert (named.connection.peer.name + named.connection.peer.app).isprintable()
    victim = Victim()
    victim.feed(frame(Kind.FATAL, 0, heads.encoder.encode(heads.Reason(name))))
    closed = victim.events[-1]
    assert isinstance(closed, Closed)
    for text in (str(closed.error), closed.reason):
        assert text.isprintable()
        assert len(text) < 300


def test_the_payload_of_a_codec_is_no_matter_of_the_core() -> None:
    victim = Victim()
    (event,) = victim.feed(frame(Kind.REQUEST, 1, heads.encoder.encode(HEADS[Kind.REQUEST]), codec.encode("any")))
    assert isinstance(event, RequestReceived)

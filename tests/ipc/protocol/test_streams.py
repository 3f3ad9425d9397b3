"""Streams and channels of the protocol core: each frame in each state, and what the integrator is told."""

from __future__ import annotations

import msgspec
import pytest
from cores import move

from smartipc.ipc import errors
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import (
    Closed,
    DataReceived,
    Event,
    OpenReceived,
    ReplyReceived,
    RequestReceived,
    StreamAccepted,
    StreamEnded,
    StreamFailed,
    StreamLost,
    StreamStopped,
)
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.wire import heads
from smartipc.ipc.wire.frames import HEADER, Flag, Kind, frame
from smartipc.ipc.wire.heads import Fault
from smartipc.ipc.wire.limits import Limits

GONE = Fault(10, "StreamReset", "left")
SMALL = Limits(window=100, window_items=4, chunk=40, streams=2, message=1000)


def pair(limits: Limits = SMALL) -> tuple[Connection, Connection]:
    client, server = Connection("client", Identity("c:0"), limits), Connection("server", Identity("s:0"), limits)
    client.start(0.0)
    server.start(0.0)
    move(client, server)
    move(server, client)
    return client, server


def opened(limits: Limits = SMALL, *, duplex: bool = False) -> tuple[Connection, Connection, int]:
    client, server = pair(limits)
    ident = client.streams.open("w.s", b"in", duplex=duplex)
    move(client, server)
    server.streams.accept(ident)
    assert move(server, client) == [StreamAccepted(ident)]
    return client, server, ident


def fatal(connection: Connection) -> str:
    data = b"".join(connection.data_to_send())
    assert data[4] == Kind.FATAL
    return heads.decode(data[HEADER.size :], heads.Reason).reason


def encoded(head: msgspec.Struct) -> bytes:
    return heads.encoder.encode(head)


def kinds(data: bytes) -> list[tuple[Kind, int, int]]:
    """Kind, flags and payload size of every frame."""
    found = []
    while data:
        size, kind, flags, head, _ = HEADER.unpack_from(data)
        found.append((Kind(kind), flags, size - head))
        data = data[HEADER.size + size :]
    return found


# the ordinary life


def test_a_stream_from_opening_to_end() -> None:
    client, server = pair()
    ident = client.streams.open("w.s", b"in", duplex=False, headers={"a": "b"})
    assert client.streams.opening(ident)
    assert move(client, server, 3.0) == [OpenReceived(ident, "w.s", False, b"in", {"a": "b"}, 3.0)]
    server.streams.accept(ident)
    server.streams.accept(ident)  # a second time does nothing
    assert server.streams.send(ident, b"one")
    assert server.streams.send(ident, b"")
    server.streams.end(ident)
    assert not client.streams.writable
    assert move(server, client) == [
        StreamAccepted(ident),
        DataReceived(ident, b"one"),
        DataReceived(ident, b""),
        StreamEnded(ident),
    ]
    assert not client.streams.opening(ident)
    assert (len(client.streams), len(server.streams)) == (0, 0)
    client.streams.consumed(ident, 3)  # too late to matter
    assert not client.has_data
    assert (client.snapshot().streams, client.snapshot().late_stream_frames) == (0, 0)


def test_a_channel_goes_both_ways_and_each_way_ends_by_itself() -> None:
    client, server = pair()
    ident = client.streams.open("w.c", b"", duplex=True)
    assert not client.streams.send(ident, b"early")  # nothing may be sent before it is accepted
    assert client.streams.writable == []
    move(client, server)
    server.streams.accept(ident)
    assert move(server, client) == [StreamAccepted(ident)]
    assert client.streams.writable == [ident]
    client.streams.writable.clear()
    assert client.streams.send(ident, b"to server")
    client.streams.end(ident)
    client.streams.end(ident)  # a second time does nothing
    assert move(client, server) == [DataReceived(ident, b"to server"), StreamEnded(ident)]
    assert server.streams.send(ident, b"to client")
    assert move(server, client) == [DataReceived(ident, b"to client")]
    with pytest.raises(errors.LocalProtocolError, match="is over"):
        client.streams.send(ident, b"after the end")
    server.streams.end(ident)
    assert move(server, client) == [StreamEnded(ident)]
    assert (len(client.streams), len(server.streams)) == (0, 0)


def test_either_side_opens_with_ids_of_its_own() -> None:
    client, server = pair()
    request = client.request("w.m", b"", 0.0, timeout=5.0)
    ours = client.streams.open("w.s", b"", duplex=False)
    theirs = server.streams.open("c.s", b"", duplex=False)
    assert (request, ours, theirs) == (1, 3, 2)
    assert [type(event) for event in move(client, server)] == [RequestReceived, OpenReceived]
    assert [type(event) for event in move(server, client)] == [OpenReceived]


def test_an_end_said_before_it_was_accepted_waits_for_that() -> None:
    client, server = pair()
    ident = client.streams.open("w.c", b"", duplex=True)
    client.streams.end(ident)
    assert [type(event) for event in move(client, server)] == [OpenReceived]
    server.streams.accept(ident)
    move(server, client)
    assert move(client, server) == [StreamEnded(ident)]


# credit


def test_a_writer_waits_for_the_reader() -> None:
    client, server, ident = opened()
    assert [server.streams.send(ident, b"x" * 30) for _ in range(4)] == [True, True, False, False]
    move_events = move(server, client)  # two wait already: more than a chunk
    assert server.streams.writable == [ident]
    server.streams.writable.clear()
    assert server.streams.send(ident, b"x" * 30)
    assert not server.streams.send(ident, b"x" * 30)  # 90 of 100 bytes are used up
    move_events += move(server, client)
    assert move_events == [DataReceived(ident, b"x" * 30)] * 3
    assert server.streams.writable == []
    client.streams.consumed(ident, 30)
    assert not client.has_data
    client.streams.consumed(ident, 30)
    assert kinds(b"".join(client.data_to_send())) == [(Kind.CREDIT, 0, 0)]
    client.streams.consumed(ident, 30)
    server.receive_data(frame(Kind.CREDIT, ident, encoded(heads.CreditHead(160, 6))), 0.0)
    assert server.streams.writable == [ident]


def test_items_have_a_credit_too() -> None:
    client, server, ident = opened()
    assert [server.streams.send(ident, b"") for _ in range(5)] == [True] * 4 + [False]
    assert move(server, client) == [DataReceived(ident, b"")] * 4
    client.streams.consumed(ident, 0)
    client.streams.consumed(ident, 0)
    move(client, server)
    assert server.streams.writable == [ident]


def test_a_large_item_is_cut_and_put_together() -> None:
    client, server, ident = opened(Limits(chunk=40))
    item = bytes(range(100))
    assert server.streams.send(ident, item)
    assert server.streams.send(ident, b"small") is False  # more than a chunk waits
    pieces = b""
    while server.has_data:
        pieces += b"".join(server.data_to_send())
    assert kinds(pieces) == [(Kind.DATA, Flag.MORE, 40), (Kind.DATA, Flag.MORE, 40), (Kind.DATA, 0, 20)]
    assert client.receive_data(pieces, 0.0) == [DataReceived(ident, item)]


def test_small_items_leave_together() -> None:
    _, server, ident = opened(Limits(chunk=400))
    for _ in range(8):
        assert server.streams.send(ident, b"x" * 10)
    assert kinds(b"".join(server.data_to_send())) == [(Kind.DATA, 0, 10)] * 8
    server.streams.send(ident, b"x" * 350)
    server.streams.send(ident, b"x" * 380)
    assert kinds(b"".join(server.data_to_send())) == [(Kind.DATA, 0, 350)]
    assert kinds(b"".join(server.data_to_send())) == [(Kind.DATA, 0, 380)]


def test_an_item_larger_than_the_window_passes_when_nothing_else_waits() -> None:
    client, server, ident = opened()
    assert server.streams.send(ident, b"a")
    assert server.streams.send(ident, b"b" * 500)
    assert move(server, client) == [DataReceived(ident, b"a")]
    assert not client.has_data  # the first item waits for the application: no more than the window comes
    client.streams.consumed(ident, 1)
    events: list[Event] = []
    while client.has_data:
        move(client, server)
        events += move(server, client)
    assert events == [DataReceived(ident, b"b" * 500)]
    client.streams.consumed(ident, 500)
    move(client, server)
    assert server.streams.send(ident, b"c")


@pytest.mark.parametrize("give_up", ["complete", "stop", "fail", "reset", "peer resets"])
def test_few_items_larger_than_the_window_are_under_way_at_a_time(give_up: str) -> None:
    """A window per stream and eight large items are all that a peer can make us hold."""
    client, server = pair(Limits(window=100, chunk=40, streams=50, message=10_000))
    idents = [client.streams.open("w.s", b"", duplex=True) for _ in range(10)]
    move(client, server)
    for ident in idents:
        server.streams.accept(ident)
    move(server, client)
    for ident in idents:
        assert client.streams.send(ident, b"x" * 5000)
    held: dict[int, int] = dict.fromkeys(idents, 0)

    def turn() -> list[Event]:
        events: list[Event] = []
        while client.has_data and max(held.values()) < 400:
            for piece in client.data_to_send():
                size, kind, flags, _, ident = HEADER.unpack_from(piece)
                held[ident] = held[ident] + size if flags & Flag.MORE else 0
                events += server.receive_data(piece, 0.0)
            client.receive_data(b"".join(server.data_to_send()), 0.0)
        return events

    turn()
    waiting = [ident for ident in idents if held[ident] <= 100]
    assert len(waiting) == 2
    done = next(ident for ident in idents if held[ident] > 100)
    if give_up == "peer resets":
        client.streams.reset(done, GONE)
    elif give_up == "stop":
        server.streams.stop(done)
    elif give_up != "complete":
        getattr(server.streams, give_up)(done, GONE)
    held = dict.fromkeys(idents, -100_000)
    assert len([event for event in turn() if isinstance(event, DataReceived)]) == 10 - (give_up != "complete")
    assert not client.streams.unsent


def test_a_peer_that_overruns_its_credit_is_fatal() -> None:
    client, _, ident = opened()
    events = client.receive_data(frame(Kind.DATA, ident, b"", b"x" * 101), 0.0)
    assert [type(event) for event in events] == [StreamLost, Closed]
    assert "more than its credit" in fatal(client)


def test_limits_of_items_and_openings() -> None:
    client, server, ident = opened()
    with pytest.raises(errors.FrameTooLarge, match="item"):
        server.streams.send(ident, b"x" * 1001)
    with pytest.raises(errors.FrameTooLarge, match="message"):
        client.streams.open("w.s", b"x" * 1001, duplex=False)
    with pytest.raises(errors.FrameTooLarge, match="head"):
        client.streams.open("w.s", b"", duplex=False, headers={"a": "x" * 9000})
    assert len(client.streams) == 1


@pytest.mark.parametrize("last", [0, Flag.MORE])
def test_an_item_larger_than_a_message_is_fatal(last: int) -> None:
    client, _, ident = opened(Limits(message=1000, window=10_000))
    client.receive_data(frame(Kind.DATA, ident, b"", b"x" * 900, Flag.MORE), 0.0)
    (_, closed) = client.receive_data(frame(Kind.DATA, ident, b"", b"x" * 101, last), 0.0)
    assert isinstance(closed, Closed)
    assert isinstance(closed.error, errors.FrameTooLarge)


def test_small_requests_overtake_a_stream() -> None:
    client, server, ident = opened(Limits(chunk=1000, window=100_000))
    assert server.streams.send(ident, b"x" * 50_000)
    first = b"".join(server.data_to_send())
    request = server.request("c.m", b"", 0.0, timeout=1.0)
    then = b"".join(server.data_to_send())
    assert kinds(first) == [(Kind.DATA, Flag.MORE, 1000)]
    assert kinds(then)[:2] == [(Kind.REQUEST, 0, 0), (Kind.DATA, Flag.MORE, 1000)]
    assert [event.id for event in client.receive_data(first + then, 0.0)] == [request]  # type: ignore[union-attr]


def test_streams_and_large_messages_take_turns() -> None:
    client, server, first = opened(Limits(chunk=100))
    second = client.streams.open("w.s", b"", duplex=False)
    request = client.request("w.m", b"", 0.0, timeout=1.0)
    move(client, server)
    server.streams.accept(second)
    server.reply(request, b"r" * 250)
    for ident in (first, second):
        server.streams.send(ident, b"x" * 250)
    turns = []
    while server.has_data:
        data = server.data_to_send()[-1]
        turns.append(HEADER.unpack_from(data)[4])
        client.receive_data(data, 0.0)
    assert turns == [request, first, second] * 3


# cancel and failure, from either side


def test_a_reader_stops_a_stream() -> None:
    client, server, ident = opened()
    server.streams.send(ident, b"x" * 60)
    assert not server.streams.send(ident, b"x" * 90)
    client.streams.stop(ident)
    client.streams.stop(ident)  # a second time does nothing
    assert move(client, server) == [StreamStopped(ident)]
    assert not server.has_data
    assert (len(client.streams), len(server.streams), server.streams.writable) == (0, 0, [])
    server.streams.end(ident)
    server.streams.fail(ident, GONE)
    server.streams.reset(ident, GONE)
    server.streams.stop(ident)
    assert not server.has_data
    with pytest.raises(errors.LocalProtocolError):
        server.streams.send(ident, b"")


def test_a_handler_stops_reading_its_channel_and_may_still_send() -> None:
    client, server, ident = opened(duplex=True)
    client.streams.send(ident, b"x" * 70)  # in pieces: one is here when it stops
    piece = b"".join(client.data_to_send())
    assert server.receive_data(piece, 0.0) == []
    server.streams.stop(ident)
    assert move(client, server) == []
    assert server.streams.late_frames == 1
    assert move(server, client) == [StreamStopped(ident)]
    client.streams.end(ident)
    assert not client.has_data
    assert server.streams.send(ident, b"bye")
    server.streams.end(ident)
    assert move(server, client) == [DataReceived(ident, b"bye"), StreamEnded(ident)]
    assert (len(client.streams), len(server.streams)) == (0, 0)


def test_stop_behind_an_end_changes_nothing() -> None:
    client, server, ident = opened(duplex=True)
    client.streams.end(ident)
    late = b"".join(client.data_to_send())
    server.streams.stop(ident)
    assert move(server, client) == []  # our direction is over already: nothing to tell the application
    assert server.receive_data(late, 0.0) == []
    assert server.streams.late_frames == 1
    assert len(server.streams) == 1


def test_a_fault_comes_behind_the_items() -> None:
    client, server, ident = opened(duplex=True)
    server.streams.send(ident, b"x" * 30)
    server.streams.send(ident, b"y" * 90)
    server.streams.fail(ident, GONE)
    assert move(server, client) == [DataReceived(ident, b"x" * 30)]
    client.streams.consumed(ident, 30)
    events: list[Event] = []
    while client.has_data:
        move(client, server)
        events += move(server, client)
    assert events == [DataReceived(ident, b"y" * 90), StreamFailed(ident, GONE)]
    assert (len(client.streams), len(server.streams)) == (0, 0)


def test_a_fault_replaces_an_end_that_is_not_out_and_follows_one_that_is() -> None:
    client, server, ident = opened(duplex=True)
    server.streams.end(ident)
    server.streams.fail(ident, GONE)
    assert move(server, client) == [StreamFailed(ident, GONE)]
    client, server, ident = opened(duplex=True)
    server.streams.end(ident)
    assert move(server, client) == [StreamEnded(ident)]
    server.streams.fail(ident, GONE)
    assert move(server, client) == [StreamFailed(ident, GONE)]
    assert (len(client.streams), len(server.streams)) == (0, 0)


def test_an_opener_that_fails_before_it_was_accepted_does_not_wait_for_that() -> None:
    client, server = pair()
    ident = client.streams.open("w.c", b"", duplex=True)
    move(client, server)
    server.streams.accept(ident)
    client.streams.fail(ident, GONE)
    assert move(server, client) == []
    assert client.streams.late_frames == 1
    assert move(client, server) == [StreamFailed(ident, GONE)]


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_drops_what_waits(who: str) -> None:
    client, server, ident = opened(duplex=True)
    one, other = (client, server) if who == "client" else (server, client)
    one.streams.send(ident, b"x")
    one.streams.reset(ident, GONE)
    assert move(one, other) == [StreamFailed(ident, GONE)]
    assert (len(client.streams), len(server.streams)) == (0, 0)


def test_a_refusal_is_a_reset_without_credit() -> None:
    client, server = pair()
    ident = client.streams.open("w.s", b"", duplex=False)
    move(client, server)
    server.streams.fail(ident, GONE)
    assert move(server, client) == [StreamFailed(ident, GONE)]
    server.streams.accept(ident)
    assert not server.has_data


@pytest.mark.parametrize("give_up", ["reset", "stop"])
def test_what_was_given_up_before_it_was_written_never_leaves(give_up: str) -> None:
    client, server = pair()
    small = client.streams.open("w.s", b"", duplex=False)
    large = client.streams.open("w.s", b"x" * 500, duplex=False)
    behind = client.streams.open("w.s", b"", duplex=False)
    for ident in (small, large):
        if give_up == "reset":
            client.streams.reset(ident, GONE)
        else:
            client.streams.stop(ident)
    assert [event.id for event in move(client, server)] == [behind]  # type: ignore[union-attr]
    assert (len(client.streams), client.streams.opening(small)) == (1, False)


@pytest.mark.parametrize("give_up", ["reset", "stop"])
def test_a_half_sent_opening_that_is_given_up_is_forgotten_by_the_peer(give_up: str) -> None:
    client, server = pair()
    ident = client.streams.open("w.s", b"x" * 500, duplex=False)
    server.receive_data(b"".join(client.data_to_send()), 0.0)
    if give_up == "reset":
        client.streams.reset(ident, GONE)
    else:
        client.streams.stop(ident)
    behind = client.streams.open("w.s", b"", duplex=False)
    assert [event.id for event in move(client, server)] == [behind]  # type: ignore[union-attr]
    assert server.streams.late_frames == 1


def test_a_channel_stopped_before_it_was_accepted_is_given_up_as_a_whole() -> None:
    client, server = pair()
    ident = client.streams.open("w.c", b"x" * 500, duplex=True)
    server.receive_data(b"".join(client.data_to_send()), 0.0)  # a piece of it
    client.streams.end(ident)
    client.streams.stop(ident)
    assert move(client, server) == []
    assert (len(client.streams), len(server.streams), client.streams.unsent) == (0, 0, False)


def test_openings_never_overtake_each_other() -> None:
    client, server = pair()
    large = client.streams.open("w.s", b"x" * 500, duplex=False)
    small = client.streams.open("w.s", b"", duplex=False)
    assert [event.id for event in move(client, server)] == [large, small]  # type: ignore[union-attr]


# bounds, and peers that break the rules


def test_too_many_open_streams_are_refused_until_their_handlers_are_gone() -> None:
    client, server = pair()
    first, second, third = (client.streams.open("w.s", b"", duplex=False) for _ in range(3))
    assert [event.id for event in move(client, server)] == [first, second]  # type: ignore[union-attr]
    (failed,) = move(server, client)
    assert isinstance(failed, StreamFailed)
    assert (failed.id, failed.fault.name, failed.fault.processed) == (third, "Overloaded", 0)
    client.streams.reset(first, GONE)
    assert move(client, server) == [StreamFailed(first, GONE)]
    client.streams.open("w.s", b"", duplex=False)
    assert move(client, server) == []  # its handler still runs
    move(server, client)
    server.streams.released(first)
    client.streams.open("w.s", b"", duplex=False)
    assert [type(event) for event in move(client, server)] == [OpenReceived]
    assert "served here" in repr(server.streams)


def test_a_draining_side_refuses_openings() -> None:
    client, server = pair()
    server.goodbye("stopping")
    client.streams.open("w.s", b"", duplex=False)
    assert move(client, server) == []
    failed = move(server, client)[-1]
    assert isinstance(failed, StreamFailed)
    assert (failed.fault.name, failed.fault.processed) == ("ConnectionLost", 0)


def test_late_frames_of_ended_streams_are_counted() -> None:
    client, server, ident = opened()
    client.streams.stop(ident)
    move(client, server)
    client.receive_data(frame(Kind.DATA, ident, b"", b"late"), 0.0)
    client.receive_data(frame(Kind.RESET, ident, b"", encoded(GONE)), 0.0)
    server.receive_data(frame(Kind.CREDIT, ident, encoded(heads.CreditHead(1, 1))), 0.0)
    server.receive_data(frame(Kind.STOP, ident), 0.0)
    assert (client.streams.late_frames, server.streams.late_frames) == (2, 2)


def test_nothing_is_given_back_for_items_before_the_end() -> None:
    client, server, ident = opened(duplex=True)
    assert server.streams.send(ident, b"x" * 60)
    server.streams.end(ident)
    assert move(server, client) == [DataReceived(ident, b"x" * 60), StreamEnded(ident)]
    client.streams.consumed(ident, 60)
    assert not client.has_data


def test_credit_after_the_end_is_harmless() -> None:
    client, server, ident = opened(duplex=True)
    server.streams.end(ident)
    move(server, client)
    assert server.receive_data(frame(Kind.CREDIT, ident, encoded(heads.CreditHead(999, 999))), 0.0) == []
    client2, _, stream = opened()
    assert client2.receive_data(frame(Kind.CREDIT, stream, encoded(heads.CreditHead(9, 9))), 0.0) == []


OPEN = encoded(heads.OpenHead("w.s", False, 100, 4))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (frame(Kind.OPEN, 2, OPEN), "not the peer's to use"),
        (frame(Kind.OPEN, 0, OPEN), "not the peer's to use"),
        (frame(Kind.OPEN, 5, OPEN) + frame(Kind.OPEN, 5, OPEN), "not the peer's to use"),
        (frame(Kind.OPEN, 5, OPEN) + frame(Kind.OPEN, 3, OPEN), "not the peer's to use"),
        (frame(Kind.OPEN, 5, b"\x90"), "malformed head"),
        (frame(Kind.DATA, 5, b"", b"x"), "never opened"),
        (frame(Kind.DATA, 2, b"", b"x"), "never opened"),
        (frame(Kind.CREDIT, 5, encoded(heads.CreditHead(1, 1))), "never opened"),
        (frame(Kind.STOP, 5), "never opened"),
        (frame(Kind.RESET, 5, b"", encoded(GONE)), "never opened"),
        (frame(Kind.RESET, 5), "malformed head"),
        (frame(Kind.OPEN, 5, OPEN) + frame(Kind.DATA, 5, b"", b"x"), "takes none"),
        (frame(Kind.OPEN, 1, OPEN, b"", Flag.END), "flags 0x01"),
        (frame(Kind.STOP, 1, b"", b"", Flag.MORE), "cannot be cut"),
    ],
)
def test_broken_frames(data: bytes, says: str) -> None:
    _, server = pair()
    events = server.receive_data(data, 0.0)
    assert isinstance(events[-1], Closed)
    assert says in fatal(server)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (lambda i: frame(Kind.DATA, i, b"", b"x", Flag.END), "carries data"),
        (lambda i: frame(Kind.DATA, i, b"", b"", Flag.END | Flag.MORE), "carries data"),
        (lambda i: frame(Kind.DATA, i, b"", b"x", Flag.MORE) + frame(Kind.DATA, i, flags=Flag.END), "carries data"),
        (lambda i: frame(Kind.DATA, i, b"", b"", Flag.MORE), "empty piece"),
        (lambda i: frame(Kind.DATA, i, b"\x90", b"x"), "takes none"),
        (lambda i: frame(Kind.DATA, i, flags=Flag.END) + frame(Kind.DATA, i, b"", b"x"), "takes none"),
        (lambda i: frame(Kind.DATA, i, b"", b"x", Flag.FDS), "flags 0x08"),
        (lambda i: frame(Kind.DATA, i, b"", b"x", Flag.OOB), "no table"),
        (
            lambda i: frame(Kind.DATA, i, b"", b"x", Flag.MORE) + frame(Kind.DATA, i, b"", b"x", Flag.OOB),
            "other flags",
        ),
    ],
)
def test_broken_data(data: object, says: str) -> None:
    client, _, ident = opened(duplex=True)
    events = client.receive_data(data(ident), 0.0)  # type: ignore[operator]
    assert isinstance(events[-1], Closed)
    assert says in fatal(client)


def test_streams_need_the_handshake_and_the_feature() -> None:
    client = Connection("client", Identity())
    client.start(0.0)
    with pytest.raises(errors.LocalProtocolError, match="does not know streams"):
        client.streams.open("w.s", b"", duplex=False)
    server = Connection("server", Identity())
    server.start(0.0)
    server.receive_data(
        b"\x89SIPC\r\n\x01" + frame(Kind.HELLO, 0, encoded(heads.Hello(0, 0, [], "", 0, 0, "", 9))), 0.0
    )
    assert server.features == frozenset()
    assert isinstance(server.receive_data(frame(Kind.OPEN, 1, OPEN), 0.0)[-1], Closed)


def test_the_end_of_the_connection_ends_every_stream() -> None:
    client, server, written = opened()
    unwritten = client.streams.open("w.s", b"", duplex=False)
    half = client.streams.open("w.s", b"x" * 500, duplex=False)
    assert client.streams.writable == []
    events = client.receive_eof(0.0)
    assert events[:3] == [StreamLost(written, True), StreamLost(unwritten, False), StreamLost(half, False)]
    assert isinstance(events[3], Closed)
    assert [type(event) for event in server.close()] == [StreamLost, Closed]
    client.streams.stop(written)
    client.streams.reset(written, GONE)
    client.streams.consumed(written, 1)
    assert not client.has_data


def test_requests_go_on_beside_streams() -> None:
    client, server, ident = opened()
    server.streams.send(ident, b"x" * 30)
    request = client.request("w.m", b"in", 0.0, timeout=1.0)
    move(client, server)
    server.reply(request, b"out")
    assert move(server, client) == [ReplyReceived(request, b"out"), DataReceived(ident, b"x" * 30)]

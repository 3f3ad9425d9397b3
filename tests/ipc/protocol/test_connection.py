"""The protocol core: what each side sees, what ends it, and that nothing follows the end."""

from __future__ import annotations

import msgspec
import pytest
from cores import move

from smartipc.ipc import errors
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import (
    CallExpired,
    CancelReceived,
    Closed,
    ConsumedReceived,
    ErrorReceived,
    GoodbyeReceived,
    MessageReceived,
    NotifyReceived,
    Opened,
    PongReceived,
    ReplyReceived,
    RequestReceived,
)
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.protocol.states import ConnectionState
from smartipc.ipc.wire import heads
from smartipc.ipc.wire.frames import HEADER, PREFACE, Flag, Kind, frame
from smartipc.ipc.wire.heads import Fault
from smartipc.ipc.wire.limits import Limits


def pair(limits: Limits = Limits()) -> tuple[Connection, Connection]:
    client = Connection("client", Identity("c:0", 1, 2, "app"), limits)
    server = Connection("server", Identity("s:0", 3, 4, "app"), limits)
    client.start(0.0)
    server.start(0.0)
    assert move(client, server) == [Opened(Identity("c:0", 1, 2, "app"))]
    assert move(server, client) == [Opened(Identity("s:0", 3, 4, "app"))]
    return client, server


def fatal(connection: Connection) -> str:
    """The reason of the one FATAL frame that a connection leaves behind."""
    data = b"".join(connection.data_to_send()).removeprefix(PREFACE)
    size, kind, flags, head_size, ident = HEADER.unpack_from(data)
    assert (kind, flags, ident, head_size, len(data)) == (Kind.FATAL, 0, 0, size, HEADER.size + size)
    return heads.decode(data[HEADER.size :], heads.Reason).reason


def encoded(head: msgspec.Struct) -> bytes:
    return heads.encoder.encode(head)


# the ordinary life


def test_a_request_and_its_reply() -> None:
    client, server = pair()
    ident = client.request("w.m", b"in", 1.0, timeout=2.0, headers={"k": "v"}, attempt=2)
    assert move(client, server, 5.0) == [RequestReceived(ident, "w.m", b"in", 7.0, {"k": "v"}, 2, 5.0)]
    server.reply(ident, b"out")
    assert move(server, client) == [ReplyReceived(ident, b"out")]
    assert client.snapshot().calls == 0
    assert server.snapshot().serving == 0


def test_requests_may_follow_the_hello_at_once() -> None:
    client, server = Connection("client", Identity()), Connection("server", Identity())
    client.start(0.0)
    server.start(0.0)
    client.request("w.m", b"", 0.0, timeout=1.0)
    opened, request = move(client, server)
    assert isinstance(opened, Opened)
    assert isinstance(request, RequestReceived)


def test_either_side_may_call_and_ids_never_clash() -> None:
    client, server = pair()
    mine, theirs = client.request("a.b", b"", 0, timeout=1), server.request("c.d", b"", 0, timeout=1)
    assert mine % 2 == 1
    assert theirs % 2 == 0
    (event,) = move(server, client)
    assert isinstance(event, RequestReceived)
    client.reply(event.id, b"x")
    assert ReplyReceived(theirs, b"x") in move(client, server)


def test_an_error_comes_back_as_its_fault() -> None:
    client, server = pair()
    ident = client.request("w.m", b"", 0, timeout=1)
    move(client, server)
    fault = Fault(8, "Overloaded", "full", retryable=True, processed=0)
    server.fail(ident, fault)
    assert move(server, client) == [ErrorReceived(ident, fault)]


def test_a_huge_fault_is_shortened() -> None:
    client, server = pair()
    ident = client.request("w.m", b"", 0, timeout=1)
    move(client, server)
    server.fail(ident, Fault(2, "RemoteError", "m" * 10_000, traceback="t" * 100_000))
    (event,) = move(server, client)
    assert isinstance(event, ErrorReceived)
    assert (len(event.fault.message), event.fault.traceback) == (4096, None)


def test_notify_publish_acknowledge_ping_goodbye() -> None:
    client, server = pair()
    client.notify("w.n", b"1", headers={"a": "b"})
    client.publish(7, "t.x", b"2", headers={"c": "d"}, stamp=3, sequence=9)
    assert move(client, server, 3.0) == [
        NotifyReceived("w.n", b"1", {"a": "b"}, 3.0),
        MessageReceived(7, "t.x", b"2", {"c": "d"}, 3.0, stamp=3, sequence=9),
    ]
    server.consumed(7, 1)
    sequence = server.ping(4.0)
    server.goodbye("stopping")
    server.goodbye("again")
    events = move(server, client)
    assert events == [ConsumedReceived(7, 1), GoodbyeReceived("stopping")]
    assert client.state is ConnectionState.DRAINING
    assert move(client, server, 4.5) == [PongReceived(sequence, 0.5)]


def test_after_goodbye_new_requests_are_refused_unprocessed_and_old_ones_finished() -> None:
    client, server = pair()
    old = client.request("w.m", b"", 0, timeout=1)
    move(client, server)
    server.goodbye()
    new = client.request("w.m", b"", 0, timeout=1)
    assert move(client, server) == []
    server.reply(old, b"done")
    events = move(server, client)
    assert ReplyReceived(old, b"done") in events
    (refused,) = [event for event in events if isinstance(event, ErrorReceived)]
    assert (refused.id, refused.fault.processed, refused.fault.retryable) == (new, 0, True)


# deadlines and cancellation


def test_an_expired_call_fails_locally_and_is_cancelled_at_the_peer() -> None:
    client, server = pair()
    slow = client.request("w.m", b"", 0.0, timeout=1.0)
    client.request("w.m", b"", 0.0, timeout=9.0)
    move(client, server)
    assert client.next_timer() == 1.0
    assert client.handle_timer(0.5) == []
    assert client.handle_timer(1.0) == [CallExpired(slow)]
    assert client.next_timer() == 9.0
    assert move(client, server) == [CancelReceived(slow)]
    server.reply(slow, b"late")
    assert move(server, client) == []


def test_a_reply_that_crosses_the_cancel_is_dropped_and_counted() -> None:
    client, server = pair()
    ident = client.request("w.m", b"", 0, timeout=1)
    move(client, server)
    server.reply(ident, b"late")
    client.cancel(ident)
    client.cancel(ident)
    assert move(server, client) == []
    assert client.late_replies == 1
    assert move(client, server) == []


def test_a_request_that_is_read_together_with_its_cancel_is_never_seen() -> None:
    client, server = pair()
    first, second = (client.request(f"w.{name}", b"", 0, timeout=1) for name in "mn")
    data = b"".join(client.data_to_send())
    client.cancel(second)
    data += b"".join(client.data_to_send())
    assert [event.id for event in server.receive_data(data, 0.0) if isinstance(event, RequestReceived)] == [first]
    server.reply(second, b"")
    assert not server.has_data
    client.cancel(first)
    assert move(client, server) == [CancelReceived(first)]


def test_a_cancelled_request_that_was_not_written_is_never_sent() -> None:
    client, server = pair()
    first = client.request("w.a", b"", 0, timeout=1)
    second = client.request("w.b", b"", 0, timeout=1)
    client.cancel(second)
    big = client.request("w.c", b"x" * 200_000, 0, timeout=1)
    client.cancel(big)
    (event,) = move(client, server)
    assert isinstance(event, RequestReceived)
    assert event.id == first


def test_a_large_request_cancelled_half_way_leaves_nothing() -> None:
    client, server = pair()
    other = client.request("w.o", b"y" * 200_000, 0, timeout=1)
    ident = client.request("w.c", b"x" * 200_000, 0, timeout=1)
    server.receive_data(b"".join(client.data_to_send()), 0)
    server.receive_data(b"".join(client.data_to_send()), 0)
    client.cancel(ident)
    events = move(client, server)
    assert [event.id for event in events if isinstance(event, RequestReceived)] == [other]


# large messages


def test_a_large_message_is_cut_and_small_ones_overtake_it() -> None:
    client, server = pair()
    big = client.request("w.big", b"b" * 1_000_000, 0, timeout=1)
    server.receive_data(b"".join(client.data_to_send()), 0)
    small = client.request("w.small", b"s", 0, timeout=1)
    order = [event.id for event in move(client, server) if isinstance(event, RequestReceived)]
    assert order == [small, big]
    server.reply(big, b"r" * 3_000_000)
    (event,) = move(server, client)
    assert event == ReplyReceived(big, b"r" * 3_000_000)


def test_messages_of_one_subscription_and_notifies_keep_their_order() -> None:
    client, server = pair()
    client.publish(1, "t", b"L" * 300_000)
    client.publish(1, "t", b"small")
    client.publish(2, "t", b"other")
    client.notify("w.n", b"N" * 300_000)
    client.notify("w.n", b"after")
    events = move(client, server)
    of_one = [len(event.payload) for event in events if isinstance(event, MessageReceived) and event.number == 1]
    notifies = [len(event.payload) for event in events if isinstance(event, NotifyReceived)]
    assert of_one == [300_000, 5]
    assert notifies == [300_000, 5]
    first = events[0]
    assert isinstance(first, MessageReceived)
    assert first.number == 2


def test_many_large_messages_are_interleaved_within_the_receivers_bound() -> None:
    client, server = pair()
    sent = [client.request("w.m", bytes([n]) * 150_000, 0, timeout=1) for n in range(60)]
    got = [event.id for event in move(client, server) if isinstance(event, RequestReceived)]
    assert sorted(got) == sent


def test_what_is_too_large_is_refused_before_anything_is_queued() -> None:
    client, server = pair(Limits(message=1000))
    for attempt in (
        lambda: client.request("w.m", b"x" * 1001, 0, timeout=1),
        lambda: client.notify("w.m", b"x" * 1001),
        lambda: client.publish(1, "t", b"x" * 1001),
        lambda: client.notify("w.m", b"", headers={"k": "v" * 10_000}),
    ):
        with pytest.raises(errors.FrameTooLarge):
            attempt()
    assert not client.has_data
    ident = client.request("w.m", b"", 0, timeout=1)
    move(client, server)
    with pytest.raises(errors.FrameTooLarge, match="reply of 1001 bytes"):
        server.reply(ident, b"x" * 1001)
    server.reply(ident, b"fits")
    assert move(server, client) == [ReplyReceived(ident, b"fits")]


def test_head_cache_is_bounded() -> None:
    client, server = pair()
    for number in range(1500):
        client.request(f"w.m{number}", b"", 0, timeout=1)
        client.data_to_send()
    assert len(client._heads) <= 1024
    assert repr(client).startswith("<Connection client open with s:0")
    assert server.snapshot().state is ConnectionState.OPEN


# the end


def test_eof_tells_which_calls_were_written() -> None:
    client, server = pair()
    written = client.request("w.m", b"", 0, timeout=1)
    move(client, server)
    queued = client.request("w.m", b"", 0, timeout=1)
    (closed,) = client.receive_eof(1.0)
    assert isinstance(closed, Closed)
    assert dict(closed.lost) == {written: "maybe", queued: "no"}
    assert client.receive_eof(1.0) == []
    assert client.receive_data(b"x", 1.0) == []
    assert client.handle_timer(99.0) == []
    assert client.close() == []
    assert client.next_timer() is None


def test_a_call_whose_reply_had_begun_was_processed() -> None:
    client, server = pair()
    asked = [client.request("w.m", b"", 0, timeout=1) for _ in range(2)]
    move(client, server)
    server.reply(asked[0], bytes(200_000))
    client.receive_data(b"".join(server.data_to_send()), 1.0)
    (closed,) = client.receive_eof(1.0)
    assert isinstance(closed, Closed)
    assert dict(closed.lost) == {asked[0]: "yes", asked[1]: "maybe"}


def test_after_the_end_nothing_can_be_said() -> None:
    client, _ = pair()
    ident = client.request("w.m", b"", 0, timeout=1)
    (closed,) = client.close("bye")
    assert isinstance(closed, Closed)
    assert closed.reason == "bye"
    with pytest.raises(errors.LocalProtocolError, match="closed"):
        client.request("w.m", b"", 0, timeout=1)
    client.consumed(1, 1)
    client.goodbye()
    client.reply(ident, b"")
    client.fail(ident, Fault(2, "x", "y"))
    client.cancel(ident)
    assert not client.has_data


def test_a_silent_peer_is_given_up() -> None:
    server = Connection("server", Identity())
    server.start(0.0)
    assert server.next_timer() == 2.0
    (closed,) = server.handle_timer(2.0)
    assert isinstance(closed, Closed)
    assert isinstance(closed.error, errors.RemoteProtocolError)
    assert fatal(server) == "no handshake in time"


def test_eof_within_the_handshake_is_an_error_only_after_bytes() -> None:
    for data, error in ((b"", type(None)), (PREFACE[:3], errors.RemoteProtocolError)):
        server = Connection("server", Identity())
        server.start(0.0)
        assert server.receive_data(data, 0.0) == [] if data else True
        (closed,) = server.receive_eof(0.0)
        assert isinstance(closed, Closed)
        assert isinstance(closed.error, error)


def test_a_started_frame_must_be_finished_in_time() -> None:
    client, server = pair()
    client.request("w.m", b"x" * 100, 0, timeout=50)
    data = b"".join(client.data_to_send())
    assert server.receive_data(data[:30], 1.0) == []
    assert server.receive_data(data[30:40], 5.0) == []
    assert server.next_timer() == 11.0
    assert server.handle_timer(10.9) == []
    (closed,) = server.handle_timer(11.0)
    assert isinstance(closed, Closed)
    assert "not finished in time" in fatal(server)


# bad peers


def hostile(data: bytes, *, role: str = "server", opened: bool = True, limits: Limits = Limits()) -> str:
    """Feed bytes to a connection and return the reason it gives for ending."""
    connection = Connection("client" if role == "client" else "server", Identity(), limits)
    other = Connection("server" if role == "client" else "client", Identity(), limits)
    for one in (connection, other):
        one.start(0.0)
    if opened:
        move(connection, other)
        move(other, connection)
        move(connection, other)
    else:
        connection.data_to_send()
        data = data if data.startswith(PREFACE[:1]) else PREFACE + data
    events = connection.receive_data(data, 0.0)
    closed = events[-1]
    assert isinstance(closed, Closed)
    assert isinstance(closed.error, errors.RemoteProtocolError)
    assert connection.receive_data(b"more", 0.0) == []
    return fatal(connection)


HELLO = encoded(heads.Hello(0, 0, [], "", 0, 0, "", 1000))
WELCOME = encoded(heads.Welcome(0, [], "", 0, 0, "", 1000))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (frame(0x00, 1), "invalid frame kind 0x00"),
        (frame(0xFF, 1), "invalid frame kind 0xff"),
        (frame(0x7E, 1), "unknown frame kind 0x7e"),
        (frame(Kind.SETTINGS, 1), "not negotiated"),
        (frame(Kind.FD_ACK, 1), "not negotiated"),
        (HEADER.pack(300_000, Kind.REQUEST, 0, 0, 1), "frame of 300000 bytes exceeds"),
        (HEADER.pack(2**32 - 1, Kind.REQUEST, 0, 0, 1), "exceeds the limit"),
        (HEADER.pack(4, Kind.REQUEST, 0, 5, 1), "head of 5 bytes in a frame of 4"),
        (HEADER.pack(10_000, Kind.REQUEST, 0, 9000, 1), "head of 9000 bytes"),
        (frame(Kind.REQUEST, 1, flags=0x40), "flags 0x40 are not negotiated"),
        (frame(Kind.REQUEST, 1, flags=Flag.FDS), "flags 0x08 are not negotiated"),
        (frame(Kind.PING, 0, encoded(heads.PingHead(1)), flags=Flag.MORE), "cannot be cut"),
        (frame(Kind.REQUEST, 1, b"\xc1"), "malformed head"),
        (frame(Kind.REQUEST, 1, b"\x91\xa2\xff\xfe"), "malformed head"),
        (frame(Kind.REQUEST, 1, encoded(heads.AckHead(3))), "malformed head"),
        (frame(Kind.REQUEST, 2, encoded(heads.RequestHead("w.m"))), "not the peer's to use"),
        (frame(Kind.REQUEST, 0, encoded(heads.RequestHead("w.m"))), "not the peer's to use"),
        (frame(Kind.RESPONSE, 2), "never sent"),
        (frame(Kind.RESPONSE, 1), "never sent"),
        (frame(Kind.ERROR, 2, b"", encoded(Fault(2, "x", "y"))), "never sent"),
        (frame(Kind.HELLO, 0, HELLO), "a second handshake"),
        (frame(Kind.WELCOME, 0, WELCOME), "a second handshake"),
        (frame(Kind.REJECT, 0, encoded(heads.Reject("no"))), "a second handshake"),
        (frame(Kind.PING, 0, encoded(heads.PingHead(1))) * 21, "too many pings"),
        (
            b"".join(
                frame(Kind.REQUEST, 2 * n + 1, encoded(heads.RequestHead("w.m")), b"x", Flag.MORE) for n in range(33)
            ),
            "too many half-sent",
        ),
        (
            frame(Kind.NOTIFY, 0, encoded(heads.RequestHead("w.m")), b"x", Flag.MORE)
            + frame(Kind.NOTIFY, 0, encoded(heads.RequestHead("w.m")), b"x"),
            "later piece of a message has a head",
        ),
    ],
)
def test_a_broken_frame_ends_it_with_one_fatal(data: bytes, says: str) -> None:
    assert says in hostile(data)


def test_a_message_in_pieces_may_not_exceed_the_limit_either() -> None:
    piece = frame(Kind.NOTIFY, 0, encoded(heads.RequestHead("w.m")), b"x" * 600, Flag.MORE)
    rest = frame(Kind.NOTIFY, 0, b"", b"x" * 600)
    assert "message of 1200 bytes exceeds" in hostile(piece + rest, limits=Limits(message=1000))


def test_one_request_id_twice() -> None:
    once = frame(Kind.REQUEST, 1, encoded(heads.RequestHead("w.m")))
    assert "not the peer's to use" in hostile(once + once)


@pytest.mark.parametrize(
    ("data", "role", "says"),
    [
        (b"\x89SIPX\r\n\x01", "server", "not SIPC/1"),
        (frame(Kind.REQUEST, 1), "server", "before the handshake"),
        (frame(Kind.WELCOME, 0, WELCOME), "server", "before the handshake"),
        (frame(Kind.HELLO, 0, HELLO), "client", "before the handshake"),
        (frame(Kind.HELLO, 0, b"", b"x" * 5000), "server", "handshake frame of 5000 bytes"),
        (frame(Kind.HELLO, 0, HELLO, flags=Flag.FDS), "server", "not negotiated"),
        (frame(0x7E, 0, flags=Flag.IGNORABLE), "server", "before the handshake"),
        (frame(Kind.HELLO, 0, b"\x90"), "server", "malformed head"),
        (frame(Kind.WELCOME, 0, encoded(heads.Welcome(9, [], "", 0, 0, "", 1))), "client", "not offered"),
        (frame(Kind.WELCOME, 0, encoded(heads.Welcome(0, ["x"], "", 0, 0, "", 1))), "client", "not offered"),
    ],
)
def test_a_broken_handshake(data: bytes, role: str, says: str) -> None:
    assert says in hostile(data, role=role, opened=False)


@pytest.mark.parametrize(
    ("hello", "says"),
    [
        (heads.Hello(1, 3, [], "", 0, 0, "", 1), "no common version"),
        (heads.Hello(0, -1, [], "", 0, 0, "", 1), "no common version"),
        (heads.Hello(0, 0, [], "", 0, 0, "", 1, b"", ("token",)), "no token is used here"),
    ],
)
def test_a_hello_without_common_ground_is_rejected(hello: heads.Hello, says: str) -> None:
    server, client = Connection("server", Identity()), Connection("client", Identity())
    server.start(0.0)
    client.start(0.0)
    client.data_to_send()
    (closed,) = server.receive_data(PREFACE + frame(Kind.HELLO, 0, encoded(hello)), 0.0)
    assert isinstance(closed, Closed)
    assert says in str(closed.error)
    (seen,) = move(server, client)
    assert isinstance(seen, Closed)
    assert says in seen.reason


def test_the_peers_fatal_is_told_as_our_fault() -> None:
    client, _ = pair()
    (closed,) = client.receive_data(frame(Kind.FATAL, 0, encoded(heads.Reason("bad frame"))), 0.0)
    assert isinstance(closed, Closed)
    assert isinstance(closed.error, errors.LocalProtocolError)
    assert "bad frame" in str(closed.error)


def test_ignorable_frames_are_skipped_and_counted() -> None:
    client, _ = pair()
    assert client.receive_data(frame(0x7E, 5, b"", b"future", Flag.IGNORABLE), 0.0) == []
    assert client.snapshot().ignored_frames == 1


def test_too_many_requests_in_flight_are_refused() -> None:
    client, server = pair(Limits(inflight=2))
    idents = [client.request(f"w.m{number}", b"", 0, timeout=1) for number in range(3)]
    assert len(move(client, server)) == 2
    (event,) = move(server, client)
    assert isinstance(event, ErrorReceived)
    assert (event.id, event.fault.name, event.fault.processed) == (idents[2], "Overloaded", 0)


def test_unknown_pongs_and_cancels_mean_nothing() -> None:
    client, _ = pair()
    assert client.receive_data(frame(Kind.PONG, 0, encoded(heads.PingHead(9))), 0.0) == []
    assert client.receive_data(frame(Kind.CANCEL, 8), 0.0) == []


def test_a_ping_window_starts_anew_each_second() -> None:
    client, _ = pair()
    ping = frame(Kind.PING, 0, encoded(heads.PingHead(1)))
    for second in range(5):
        assert client.receive_data(ping * 15, float(second)) == []


@pytest.mark.parametrize("cut", range(0, 120, 1))
def test_bytes_may_be_cut_anywhere(cut: int) -> None:
    client, server = Connection("client", Identity("c")), Connection("server", Identity("s"))
    client.start(0.0)
    server.start(0.0)
    ident = client.request("w.m", b"payload", 0.0, timeout=1.0)
    client.notify("w.n", b"x")
    data = bytearray(b"".join(client.data_to_send()))
    events = server.receive_data(data[:cut], 0.0) + server.receive_data(memoryview(data)[cut:], 0.0)
    assert [type(event) for event in events] == [Opened, RequestReceived, NotifyReceived]
    request = events[1]
    assert isinstance(request, RequestReceived)
    assert (request.id, request.payload) == (ident, b"payload")


def test_one_byte_at_a_time() -> None:
    client, server = Connection("client", Identity("c")), Connection("server", Identity("s"))
    client.start(0.0)
    server.start(0.0)
    for number in range(50):
        client.request("w.m", bytes([number]) * number, 0.0, timeout=1.0)
    data = b"".join(client.data_to_send())
    events = [event for byte in data for event in server.receive_data(bytes([byte]), 0.0)]
    assert len(events) == 51
    assert repr(server._in).startswith("<ReceiveBuffer 0 bytes waiting")


def test_the_timer_is_the_earliest_of_all() -> None:
    client = Connection("client", Identity(), Limits(handshake_timeout=5.0, frame_timeout=1.0))
    client.start(0.0)
    client.request("w.m", b"", 0.0, timeout=3.0)
    assert client.next_timer() == 3.0
    client.request("w.m", b"", 0.0, timeout=9.0)
    client.receive_data(PREFACE + b"x", 0.5)
    assert client.next_timer() == 1.5


def test_a_finished_frame_leaves_no_timer() -> None:
    client, server = pair()
    client.notify("w.m", b"x" * 50)
    data = b"".join(client.data_to_send())
    server.receive_data(data[:20], 1.0)
    assert server.next_timer() == 11.0
    server.receive_data(data[20:], 2.0)
    assert server.next_timer() is None


def test_the_receive_buffer_moves_each_byte_at_most_once() -> None:
    client, server = pair()
    for _ in range(20):
        client.notify("w.m", b"y" * 1000, headers={"a": "frame each"})
    data = b"".join(client.data_to_send())
    events = []
    for start in range(0, len(data), 1500):
        events += server.receive_data(data[start : start + 1500], 0.0)
    assert len(events) == 20
    assert len(server._in) == 0


def test_parts_describe_themselves() -> None:
    client, _ = pair()
    client.request("w.m", b"x" * 200_000, 0.0, timeout=1.0)
    assert repr(client._out) == "<Outbox 0 control, 0 frames, 1 large>"
    assert repr(client._calls) == "<Calls 1 pending, next id 3>"
    assert repr(client._parts) == "<Reassembly 0 half-received messages>"
    assert repr(client._requests) == "<Requests 0 unanswered>"
    assert repr(client._pings) == "<Pings 0 unanswered>"
    assert repr(client._greeting) == "<Greeting client done>"


def test_large_messages_of_one_key_wait_for_each_other() -> None:
    client, server = pair()
    client.publish(1, "t", b"a" * 150_000)
    client.publish(1, "t", b"b" * 150_000)
    client.request("w.m", b"c" * 150_000, 0.0, timeout=1.0)
    order = [event.payload[:1] for event in move(client, server) if isinstance(event, MessageReceived)]
    assert order == [b"a", b"b"]


def test_a_call_may_be_due_before_an_unfinished_frame() -> None:
    client, server = pair()
    client.request("w.m", b"", 0.0, timeout=3.0)
    server.notify("w.m", b"x" * 50)
    client.receive_data(b"".join(server.data_to_send())[:20], 0.5)
    assert client.next_timer() == 3.0

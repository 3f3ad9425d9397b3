"""Leases, segments and descriptors between two protocol cores, with memory that is only a dict."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from smartipc.ipc.errors import FrameTooLarge, LocalProtocolError, RemoteProtocolError
from smartipc.ipc.protocol.buffers import BATCH, HELD, IN_FLIGHT, REGIONS, DescriptorFrame
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import (
    Closed,
    DataReceived,
    Event,
    MessageReceived,
    NotifiesReceived,
    NotifyReceived,
    Opened,
    ReplyReceived,
    RequestReceived,
)
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.protocol.states import ConnectionState
from smartipc.ipc.wire import heads
from smartipc.ipc.wire.attachments import (
    IN_TAIL,
    LEASED,
    SEALED,
    Attachment,
    Payload,
    Place,
    pack,
    payload,
)
from smartipc.ipc.wire.frames import HEADER, PREFACE, Flag, Kind, frame
from smartipc.ipc.wire.limits import Limits

K = 1024


class Bytes:
    """A segment whose descriptor is the object itself."""

    def __init__(self, number: int, size: int, *, sealed: bool = False) -> None:
        self.number = number
        self.size = size
        self.content = bytearray(size)
        self.retired = False
        self.abandoned = False
        self.sealed = sealed

    @property
    def descriptor(self) -> Bytes:
        return self

    def abandon(self) -> None:
        self.abandoned = True


class Part:
    def __init__(self, segment: Bytes, offset: int) -> None:
        self.segment = segment
        self.offset = offset


class Mapped:
    def __init__(self, segment: Bytes, size: int) -> None:
        self.segment = segment
        self.size = size

    def view(self, offset: int, length: int, released: Callable[[], None] | None) -> memoryview:
        part = LeaseView(self.segment.content[offset : offset + length])
        part.released = released
        return memoryview(part).toreadonly()


class LeaseView(bytearray):
    released: Callable[[], None] | None = None

    def __del__(self) -> None:
        if self.released is not None:
            self.released()


class Stage:
    """The memory of one process."""

    def __init__(self, *, leases: bool = True, room: int = 1 << 20) -> None:
        self.leases = leases
        self.room = room
        self.made: list[Bytes] = []
        self.discarded: list[Any] = []
        self.adopted: list[Bytes] = []
        self.refuse = ""

    def place(self, view: memoryview) -> Part | None:
        if view.nbytes > self.room:
            return None
        self.room -= view.nbytes
        segment = Bytes(len(self.made) + 1, view.nbytes + 64)
        segment.content[64:] = view
        self.made.append(segment)
        return Part(segment, 64)

    def seal(self, view: memoryview) -> Bytes | None:
        if view.nbytes > self.room:
            return None
        self.room -= view.nbytes
        segment = Bytes(len(self.made) + 1, view.nbytes, sealed=True)
        segment.content[:] = view
        self.made.append(segment)
        return segment

    def adopt(self, descriptor: Bytes, size: int, *, sealed: bool) -> Mapped:
        if self.refuse or sealed is not descriptor.sealed:
            raise RemoteProtocolError(self.refuse or "wrong seals")
        self.adopted.append(descriptor)
        return Mapped(descriptor, size)

    def discard(self, descriptors: Sequence[Any]) -> None:
        self.discarded += descriptors


def move(source: Connection, target: Connection, now: float = 0.0) -> list[Event]:
    """Carry everything across as drivers do: descriptors beside the frame that they belong to."""
    events: list[Event] = []
    while source.has_data:
        pieces = source.data_to_send()
        if type(pieces[0]) is DescriptorFrame:
            assert len(pieces) == 1
            target.buffers.receive_descriptors(pieces[0].descriptors)
        events += target.receive_message(b"".join(pieces), now)
    return events


def pair(
    ours: Stage | None, theirs: Stage | None, limits: Limits = Limits(), *, opened: bool = True
) -> tuple[Connection, Connection, list[str]]:
    client = Connection("client", Identity("c"), limits)
    server = Connection("server", Identity("s"), limits)
    woken: list[str] = []
    client.buffers.connect(ours, lambda: woken.append("client"))
    server.buffers.connect(theirs, lambda: woken.append("server"))
    client.start(0.0)
    server.start(0.0)
    if opened:
        both(client, server)
    return client, server, woken


def both(client: Connection, server: Connection) -> list[Event]:
    events: list[Event] = []
    while client.has_data or server.has_data:
        events += move(client, server)
        events += move(server, client)
    return [event for event in events if not isinstance(event, Opened)]


def big(content: bytes = b"x" * 100_000, value: bytes = b"\xc0") -> Payload:
    return payload(value, [Attachment(memoryview(content))])


def attached(event: Event) -> list[bytes]:
    assert isinstance(event, RequestReceived | ReplyReceived | NotifyReceived | MessageReceived)
    assert isinstance(event.payload, Payload)
    return [bytes(one.view) for one in event.payload.attachments]


def flags_of(piece: bytes) -> tuple[int, int]:
    _size, kind, flags, _head, _ident = HEADER.unpack_from(piece)
    return kind, flags


# the three ways


@pytest.mark.parametrize(
    ("ours", "theirs", "way"),
    [
        (Stage(), Stage(), "leased"),
        (Stage(leases=False), Stage(), "sealed"),
        (Stage(), Stage(leases=False), "sealed"),
        (Stage(leases=False), Stage(leases=False), "sealed"),
        (None, Stage(), "bytes"),
        (Stage(), None, "bytes"),
        (None, None, "bytes"),
    ],
)
@pytest.mark.parametrize("early", [False, True], ids=["opened", "before the handshake"])
def test_every_verb_by_every_way(ours: Stage | None, theirs: Stage | None, way: str, early: bool) -> None:
    client, server, _ = pair(ours, theirs, opened=not early)
    client.request("m", big(b"1" * 100_000), 0.0, timeout=5)
    client.notify("n", big(b"2" * 100_000))
    client.notify("n", b"\xc0")
    client.notify("n", b"\xc0", headers={"a": "b"})
    client.publish(3, "t", big(b"3" * 100_000))
    events = both(client, server)
    [request] = [one for one in events if isinstance(one, RequestReceived)]
    first, second, _third = [one for one in events if isinstance(one, NotifyReceived)]
    [message] = [one for one in events if isinstance(one, MessageReceived)]
    assert attached(request) == [b"1" * 100_000]
    assert attached(first) == [b"2" * 100_000]
    assert second.payload == b"\xc0", "notifies keep their order, with and without buffers"
    assert attached(message) == [b"3" * 100_000]
    assert request.payload == b"\xc0"
    lent = client.buffers.lent
    assert lent == server.buffers.borrowed == (3 if way == "leased" else 0)
    server.reply(request.id, big(b"4" * 100_000))
    [reply] = both(client, server)
    assert attached(reply) == [b"4" * 100_000]
    del events, request, first, second, message, reply
    gc.collect()
    client.buffers.flush()
    server.buffers.flush()
    assert both(client, server) == []
    assert client.buffers.lent == server.buffers.lent == client.buffers.borrowed == server.buffers.borrowed == 0


def test_features_say_what_can_be_shared() -> None:
    assert pair(Stage(), Stage())[0].features >= {"buffers", "memfd", "leases"}
    assert "leases" not in pair(Stage(), Stage(leases=False))[1].features
    assert "memfd" not in pair(Stage(), None)[0].features
    assert "buffers" in pair(None, None)[0].features


def test_a_message_with_buffers_joins_no_batch() -> None:
    client, server, _ = pair(Stage(), Stage())
    for one in (b"\x01", b"\x02", big(), b"\x03", b"\x04"):
        client.notify("n", one)
    events = both(client, server)
    assert [type(one) for one in events] == [NotifiesReceived, *[NotifyReceived] * 3]
    assert attached(events[1]) == [b"x" * 100_000]


def test_a_segment_is_announced_once_alone_and_confirmed() -> None:
    ours = Stage()
    client, server, _ = pair(ours, Stage())
    segment = Bytes(9, 200_000)
    one = payload(b"\xc0", [Attachment(memoryview(b"x" * 70_000), Part(segment, 10))])
    client.notify("a", one)
    client.notify("b", one)
    client.ping(0.0)
    sent = []
    while client.has_data:
        pieces = client.data_to_send()
        sent.append([Kind(flags_of(piece)[0]).name for piece in pieces])
        if type(pieces[0]) is DescriptorFrame:
            assert pieces[0].owner is segment
            server.buffers.receive_descriptors(pieces[0].descriptors)
        server.receive_message(b"".join(pieces), 0.0)
    assert sent == [["PING"], ["FDS"], ["NOTIFY"], ["NOTIFY"]]
    assert "2 lent" in repr(client.buffers)
    assert "1 segments mapped" in repr(server.buffers)


def test_memory_is_copied_before_the_call_returns() -> None:
    for ours in (Stage(), Stage(leases=False), None):
        client, server, _ = pair(ours, Stage())
        source = bytearray(b"x" * 100_000)
        client.notify("n", payload(b"\xc0", [Attachment(memoryview(source))]))
        source[:] = b"y" * 100_000
        [event] = both(client, server)
        assert attached(event) == [b"x" * 100_000]


def test_one_copy_for_every_link() -> None:
    ours = Stage()
    one = big()
    for _ in range(3):
        client, server, _ = pair(ours, Stage())
        client.publish(1, "t", one)
        assert attached(both(client, server)[0]) == [b"x" * 100_000]
    assert len(ours.made) == 1
    sealing = Stage(leases=False)
    one = big()
    for _ in range(3):
        client, server, _ = pair(sealing, Stage())
        client.publish(1, "t", one)
        both(client, server)
    assert len(sealing.made) == 1


@pytest.mark.parametrize("leases", [True, False])
def test_without_room_buffers_travel_as_bytes(leases: bool) -> None:
    client, server, _ = pair(Stage(leases=leases, room=0), Stage())
    client.notify("n", big())
    assert attached(both(client, server)[0]) == [b"x" * 100_000]
    assert client.buffers.lent == 0


def test_descriptors_in_flight_are_bounded() -> None:
    ours = Stage(room=1 << 30)
    client, server, _ = pair(ours, Stage())
    for _ in range(IN_FLIGHT + 3):
        client.notify("n", big(b"x" * K))
    events = move(client, server)
    kinds = [server.buffers.borrowed, len(events)]
    assert kinds == [IN_FLIGHT, IN_FLIGHT + 3], "those beyond the bound came as bytes"
    move(server, client)
    client.notify("n", big(b"x" * K))
    again = move(client, server)
    assert server.buffers.borrowed == IN_FLIGHT + 1
    del again, events


def test_segments_known_are_bounded() -> None:
    ours = Stage(room=1 << 30)
    client, server, _ = pair(ours, Stage())
    events = []
    for _ in range(REGIONS):
        client.notify("n", big(b"x" * K))
        events += both(client, server)
    assert server.buffers.borrowed == REGIONS - IN_FLIGHT
    assert client.buffers.lent == REGIONS - IN_FLIGHT
    assert len(events) == REGIONS


def test_the_tail_is_bounded_before_anything_is_queued() -> None:
    client, _, _ = pair(None, None, Limits(buffers=1000))
    with pytest.raises(FrameTooLarge, match="sum of buffers"):
        client.notify("n", payload(b"", [Attachment(memoryview(bytes(600)))] * 2))
    assert not client.has_data


def test_buffers_do_not_count_against_the_message_limit() -> None:
    client, server, _ = pair(None, None, Limits(message=100_000))
    client.notify("n", big(bytes(300_000)))
    assert attached(both(client, server)[0]) == [bytes(300_000)]
    with pytest.raises(FrameTooLarge):
        client.notify("n", big(value=bytes(100_001)))


# what does not arrive


def test_a_message_withdrawn_before_it_left_lends_nothing() -> None:
    client, server, _ = pair(Stage(), Stage())
    ident = client.request("m", big(), 0.0, timeout=5)
    client.cancel(ident)
    assert both(client, server) == []
    assert client.buffers.lent == 0


@pytest.mark.parametrize("leases", [True, False])
def test_a_message_withdrawn_half_way_takes_its_buffers_back(leases: bool) -> None:
    client, server, _ = pair(Stage(leases=leases), Stage(), Limits(chunk=100))
    ident = client.request("m", big(value=bytes(1000)), 0.0, timeout=5)
    for _ in range(2):  # the descriptor, then a first piece
        pieces = client.data_to_send()
        if type(pieces[0]) is DescriptorFrame:
            server.buffers.receive_descriptors(pieces[0].descriptors)
        assert server.receive_message(b"".join(pieces), 0.0) == []
    assert "1 segments" in repr(server.buffers)
    client.cancel(ident)
    gc.collect()
    assert client.buffers.lent == 0
    assert both(client, server) == []
    assert server.state is ConnectionState.OPEN
    assert ("1 segments" if leases else "0 segments") in repr(server.buffers), "sealed ones would never be used"


def test_leases_end_with_the_last_view_from_wherever() -> None:
    client, server, woken = pair(Stage(), Stage())
    client.notify("n", big())
    [event] = both(client, server)
    assert isinstance(event, NotifyReceived)
    assert isinstance(event.payload, Payload)
    part = event.payload.attachments[0].view[10:20]
    del event
    gc.collect()
    assert woken == []
    assert server.buffers.borrowed == 1
    del part
    gc.collect()
    assert woken == ["server"]
    server.buffers.flush()
    both(client, server)
    assert (client.buffers.lent, server.buffers.borrowed) == (0, 0)


def test_many_leases_are_given_back_in_frames_of_bounded_size() -> None:
    client, server, _ = pair(Stage(), Stage())
    segment = Bytes(5, 100_000)
    attachments = [Attachment(memoryview(b"x"), Part(segment, 0)) for _ in range(1000)]
    client.notify("n", payload(b"", attachments))
    both(client, server)
    gc.collect()
    server.buffers.flush()
    assert both(client, server) == []
    assert client.buffers.lent == 0
    assert client.state is ConnectionState.OPEN


def test_a_late_reply_gives_its_buffers_back() -> None:
    client, server, woken = pair(Stage(), Stage())
    ident = client.request("m", b"\xc0", 0.0, timeout=5)
    [request] = both(client, server)
    assert isinstance(request, RequestReceived)
    server.reply(request.id, big())
    client.cancel(ident)
    assert both(client, server) == []
    gc.collect()
    assert woken == ["client"]
    client.buffers.flush()
    both(client, server)
    assert server.buffers.lent == 0


def test_the_end_abandons_what_is_out_and_keeps_what_is_here() -> None:
    ours = Stage()
    client, server, woken = pair(ours, Stage())
    client.notify("n", big())
    [event] = both(client, server)
    client.close()
    server.close()
    assert ours.made[0].abandoned
    assert attached(event) == [b"x" * 100_000], "the receiver's view stays valid"
    del event
    gc.collect()
    assert woken == [], "nobody is left to tell"


def test_a_retired_segment_is_forgotten_by_the_peer() -> None:
    ours = Stage()
    client, server, _ = pair(ours, Stage())
    client.notify("n", big())
    both(client, server)
    gc.collect()
    server.buffers.flush()
    both(client, server)
    ours.made[0].retired = True
    client.buffers.flush()
    both(client, server)
    assert "0 segments" in repr(server.buffers)


def test_what_waits_unsent_at_the_end_is_forgotten() -> None:
    client, server, _ = pair(Stage(), Stage(), Limits(chunk=100))
    client.notify("n", big(value=bytes(1000)))
    assert "waiting" in repr(client._out.bulk[0].late)
    client.data_to_send()
    client.data_to_send()
    assert "Pieces" in repr(client._out.bulk[0].late)
    client.close()
    gc.collect()
    assert (client.buffers.lent, server.buffers.borrowed) == (0, 0)


def test_descriptors_that_come_too_late_are_closed() -> None:
    theirs = Stage()
    _, server, _ = pair(Stage(), theirs)
    server.buffers.receive_descriptors(["one"])
    server.close()
    server.buffers.receive_descriptors(["two"])
    assert server.receive_message(b"", 0.0) == []
    assert theirs.discarded == ["one", "two"]


# what no peer may do


def segments(*announced: tuple[int, int, bool]) -> bytes:
    head = heads.SegmentsHead(tuple(heads.Segment(*one) for one in announced))
    return frame(Kind.FDS, 0, heads.encoder.encode(head))


def oob(*places: Place, tail: bytes = b"") -> bytes:
    packed = pack(b"\xc0", places, [memoryview(tail)] if tail else [])
    head = heads.encoder.encode(heads.RequestHead("n"))
    return frame(Kind.NOTIFY, 0, head, packed[0 : len(packed)], Flag.OOB)


def plain(size: int = K, *, sealed: bool = False) -> Bytes:
    return Bytes(0, size, sealed=sealed)


LEASE = Place(LEASED, 10, 1, 0, 5)
RELEASE = frame(Kind.BUFFER_RELEASE, 0, heads.encoder.encode(heads.LeasesHead((7,))))


@pytest.mark.parametrize(
    ("descriptors", "data", "says"),
    [
        ([], segments((1, K, False)), "0 descriptors for 1"),
        ([plain()] * 2, segments((1, K, False)), "2 descriptors for 1"),
        ([], segments(), "0 descriptors for 0"),
        ([plain()] * (BATCH + 1), segments(*((n, K, False) for n in range(BATCH + 1))), "17 descriptors"),
        ([plain()] * 2, segments((1, K, False), (1, K, False)), "announced twice"),
        ([plain()], segments((1, 0, False)), "announced twice, empty"),
        ([plain()], segments((1, K, True)), "wrong seals"),
        ([plain()], frame(Kind.PING, 0, heads.encoder.encode(heads.PingHead(1))), "without an FDS frame"),
        ([], oob(LEASE), "segment 1, which was not announced"),
        ([plain()], segments((1, K, False)) + oob(Place(SEALED, 10, 1)), "not announced for it"),
        ([plain(sealed=True)], segments((1, K, True)) + oob(LEASE), "not announced for it"),
        ([plain(sealed=True)], segments((1, K, True)) + oob(*[Place(SEALED, 10, 1)] * 2), "not announced"),
        ([plain()], segments((1, K, False)) + oob(Place(LEASED, K + 1, 1, 0, 5)), "exceeds its segment"),
        ([plain()], segments((1, K, False)) + oob(Place(LEASED, 1, 1, K, 5)), "exceeds its segment"),
        ([plain()], segments((1, K, False)) + oob(Place(LEASED, 1, 1, -1, 5)), "exceeds its segment"),
        ([plain()], segments((1, K, False)) + oob(Place(LEASED, 0, 1, 0, 5)), "exceeds its segment"),
        ([plain()], segments((1, K, False)) + oob(LEASE, LEASE), "a lease is given twice"),
        ([], RELEASE, "lease 7 is not the peer's"),
        ([], frame(Kind.FD_ACK, 0, heads.encoder.encode(heads.AckHead(1))), "we did not send"),
        ([], frame(Kind.FD_ACK, 0, heads.encoder.encode(heads.AckHead(0))), "we did not send"),
        ([], frame(Kind.BUFFER_RETIRE, 4), "segment 4 is not known"),
        ([], oob(Place(IN_TAIL, 5), tail=b"abc"), "do not make up"),
        ([], frame(Kind.PING, 0, heads.encoder.encode(heads.PingHead(1)), b"", Flag.OOB), "flags 0x04"),
    ],
)
def test_violations(descriptors: list[Bytes], data: bytes, says: str) -> None:
    theirs = Stage()
    _, server, _ = pair(Stage(), theirs)
    if descriptors:
        server.buffers.receive_descriptors(descriptors)
    events = server.receive_message(data, 0.0)
    assert isinstance(events[-1], Closed)
    assert says in str(events[-1].error)
    gc.collect()
    assert len(theirs.discarded) + len(theirs.adopted) + (says == "wrong seals") == len(descriptors)


def test_a_refused_descriptor_closes_the_others_too() -> None:
    theirs = Stage()
    _, server, _ = pair(Stage(), theirs)
    theirs.refuse = "no memfd"
    server.buffers.receive_descriptors([plain(), "second"])
    events = server.receive_message(segments((1, K, False), (2, K, False)), 0.0)
    assert isinstance(events[-1], Closed)
    assert theirs.discarded == ["second"]


def test_one_batch_may_wait_for_the_rest_of_its_frame_but_not_two() -> None:
    theirs = Stage()
    _, server, _ = pair(Stage(), theirs)
    announcement = segments((1, K, False))
    server.buffers.receive_descriptors([plain()])
    assert server.receive_message(announcement[:5], 0.0) == []
    assert server.receive_data(announcement[5:-1], 0.0) == []
    server.buffers.receive_descriptors([plain()])
    assert server.receive_message(announcement[-1:] + segments((2, K, False))[:7], 0.0) == []
    server.buffers.receive_descriptors([plain()])
    events = server.receive_message(b"\x00", 0.0)
    assert isinstance(events[-1], Closed)
    assert "without an FDS frame" in str(events[-1].error)


def test_leases_held_are_bounded() -> None:
    _, server, _ = pair(Stage(), Stage())
    server.buffers.receive_descriptors([plain()])
    server.receive_message(segments((1, K, False)), 0.0)
    kept: list[Event] = []
    lease = 0
    while lease < HELD:
        places = [Place(LEASED, 1, 1, 0, lease + index) for index in range(1024)]
        kept += server.receive_message(oob(*places), 0.0)
        lease += len(places)
    assert server.buffers.borrowed == HELD
    events = server.receive_message(oob(Place(LEASED, 1, 1, 0, lease)), 0.0)
    assert isinstance(events[-1], Closed)
    assert "too many" in str(events[-1].error)


@pytest.mark.parametrize("kind", [Kind.FDS, Kind.FD_ACK, Kind.BUFFER_RELEASE, Kind.BUFFER_RETIRE])
def test_frames_of_what_was_not_negotiated(kind: Kind) -> None:
    _, server, _ = pair(Stage(), None)
    events = server.receive_data(frame(kind, 0), 0.0)
    assert isinstance(events[-1], Closed)
    assert "not negotiated" in str(events[-1].error)


def test_half_received_messages_are_bounded_together_and_keep_their_flags() -> None:
    limits = Limits(message=1000, buffers=3000)
    head = heads.encoder.encode(heads.RequestHead("m"))

    def piece(ident: int, flags: int, data: bytes = bytes(1500)) -> bytes:
        return frame(Kind.REQUEST, ident, head if flags & Flag.MORE else b"", data, flags)

    _, server, _ = pair(None, None, limits)
    assert server.receive_data(piece(1, Flag.MORE | Flag.OOB) + piece(3, Flag.MORE | Flag.OOB), 0.0) == []
    server.receive_data(frame(Kind.CANCEL, 1), 0.0)
    assert server.receive_data(piece(5, Flag.MORE | Flag.OOB), 0.0) == []
    events = server.receive_data(piece(7, Flag.MORE | Flag.OOB), 0.0)
    assert isinstance(events[-1], Closed)
    assert isinstance(events[-1].error, FrameTooLarge)

    _, server, _ = pair(None, None, limits)
    server.receive_data(piece(1, Flag.MORE | Flag.OOB), 0.0)
    events = server.receive_data(piece(1, 0, b"x"), 0.0)
    assert isinstance(events[-1], Closed)
    assert "other flags" in str(events[-1].error)


def test_a_peer_without_the_feature_sees_no_such_flag() -> None:
    server = Connection("server", Identity("s"))
    server.start(0.0)
    hello = heads.Hello(0, 0, [], "c", 1, 0, "", 1 << 20)
    server.receive_data(PREFACE + frame(Kind.HELLO, 0, heads.encoder.encode(hello)), 0.0)
    with pytest.raises(LocalProtocolError, match="does not understand"):
        server.notify("n", big())
    events = server.receive_data(oob(Place(IN_TAIL, 1), tail=b"x"), 0.0)
    assert isinstance(events[-1], Closed)
    assert "flags 0x04" in str(events[-1].error)


# streams


def channel(ours: Stage | None, theirs: Stage | None, limits: Limits = Limits()) -> tuple[Connection, Connection, int]:
    client, server, _ = pair(ours, theirs, limits)
    ident = client.streams.open("c", b"\xc0", duplex=True)
    both(client, server)
    server.streams.accept(ident)
    both(client, server)
    return client, server, ident


def data(events: list[Event]) -> list[bytes]:
    received = [one.payload for one in events if isinstance(one, DataReceived)]
    return [b"".join(bytes(a.view) for a in one.attachments) if isinstance(one, Payload) else one for one in received]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(Stage(room=1 << 30), Stage()), (Stage(leases=False, room=1 << 30), Stage()), (None, None)],
    ids=["leased", "sealed", "bytes"],
)
def test_items_with_buffers_keep_their_order_and_their_credit(ours: Stage | None, theirs: Stage | None) -> None:
    client, server, ident = channel(ours, theirs)
    sent, received = [], []
    for index in range(40):
        content = bytes([index]) * 100_000
        for item, expected in ((b"\x01", b"\x01"), (big(content), content)):
            assert client.streams.send(ident, item), f"item {index}: no credit was lost"
            sent.append(expected)
            events = both(client, server)
            received += data(events)
            for one in events:
                assert isinstance(one, DataReceived)
                server.streams.consumed(ident, len(one.payload))
            del events, one
            server.buffers.flush()
            both(client, server)
    assert received == sent
    gc.collect()
    server.buffers.flush()
    assert both(client, server) == []
    assert (client.buffers.lent, server.buffers.borrowed) == (0, 0)


def test_an_item_with_buffers_waits_for_credit_like_any_other() -> None:
    client, server, ident = channel(None, None, Limits(window=100_000))
    taken: list[Event] = []
    while client.streams.send(ident, big(bytes(90_000))):
        taken += both(client, server)
        assert len(taken) < 4, "what nobody consumes is bounded"
    server.streams.consumed(ident, 1)
    both(client, server)
    assert client.streams.writable == [ident]
    assert client.streams.send(ident, big(bytes(90_000)))


@pytest.mark.parametrize("leases", [True, False])
def test_shared_memory_counts_against_the_credit(leases: bool) -> None:
    """A slow reader slows its writer, wherever the bytes are."""
    client, server, ident = channel(Stage(leases=leases, room=1 << 30), Stage())
    taken: list[Event] = []
    while client.streams.send(ident, big(bytes(100_000))):
        taken += both(client, server)
        assert len(taken) < 4
    for _ in range(10):
        for one in taken:
            assert isinstance(one, DataReceived)
            server.streams.consumed(ident, len(one.payload))
        taken = both(client, server)
        assert client.streams.send(ident, big(bytes(900_000))), "one that is larger than the window passes alone"
        taken += both(client, server)
        assert not client.streams.send(ident, b"\xc0")


def test_items_queued_behind_a_big_one_wait_for_its_credit() -> None:
    client, server, ident = channel(Stage(room=1 << 30), Stage(), Limits(window=200_000))
    assert client.streams.send(ident, b"\x01")
    assert client.streams.send(ident, big(bytes(150_000)))
    assert data(both(client, server)) == [b"\x01", bytes(150_000)]


def test_a_stream_given_up_takes_unsent_buffers_back() -> None:
    client, server, ident = channel(Stage(), Stage())
    assert client.streams.send(ident, big())
    assert client.buffers.lent == 1
    client.streams.reset(ident, heads.Fault(1, "x", "x"))
    gc.collect()
    assert client.buffers.lent == 0
    both(client, server)
    assert server.state is ConnectionState.OPEN


def test_half_received_items_are_bounded_together() -> None:
    limits = Limits(message=1000, buffers=3000, chunk=2000, window=1 << 20)
    client, server, ident = channel(None, None, limits)
    second = client.streams.open("c", b"\xc0", duplex=True)
    both(client, server)
    server.streams.accept(second)
    both(client, server)

    def piece(stream: int) -> list[Event]:
        return server.receive_data(frame(Kind.DATA, stream, b"", bytes(1500), Flag.MORE | Flag.OOB), 0.0)

    assert piece(ident) == piece(second) == piece(ident) == []
    events = piece(ident)
    assert isinstance(events[-1], Closed)
    assert isinstance(events[-1].error, FrameTooLarge)

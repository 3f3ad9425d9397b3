"""What a connection counts of itself."""

from __future__ import annotations

import pytest

from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import Event, RequestReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.protocol.tally import BOUNDS, NAMES, Tally, count_of
from smartipc.ipc.wire.heads import Fault


def move(source: Connection, target: Connection, now: float) -> list[Event]:
    events: list[Event] = []
    while source.has_data:
        events += target.receive_data(b"".join(source.data_to_send()), now)
    return events


def pair() -> tuple[Connection, Connection]:
    client, server = Connection("client", Identity("c")), Connection("server", Identity("s"))
    client.start(0.0)
    server.start(0.0)
    move(client, server, 0.0)
    move(server, client, 0.0)
    return client, server


def test_requests_and_every_sixteenth_round_trip() -> None:
    client, server = pair()
    for number in range(40):
        client.request("m", b"\xc0", float(number), timeout=5)
        for event in move(client, server, number + 0.001):
            assert isinstance(event, RequestReceived)
            server.reply(event.id, b"\xc0" if number < 30 else bytes(200_000))
        move(server, client, number + 0.003)
    assert (client.tally.sent, server.tally.received) == (40, 40)
    assert (client.tally.received, server.tally.sent) == (0, 0)
    assert sum(client.tally.round_trips) == 3
    assert client.tally.round_trips[BOUNDS.index(0.005)] == 3
    assert client.tally.seconds == pytest.approx(0.009)
    assert repr(client.tally) == "<Tally 40 requests sent, 0 received, 0 failed>"
    assert client.bytes_received > 2_000_000


def test_a_large_reply_is_timed_too() -> None:
    client, server = pair()
    client.request("m", b"\xc0", 0.0, timeout=50)
    [event] = move(client, server, 0.0)
    assert isinstance(event, RequestReceived)
    server.reply(event.id, bytes(200_000))
    move(server, client, 20.0)
    assert client.tally.round_trips[-1] == 1


def test_failures_by_name() -> None:
    client, server = pair()
    client.request("m", b"\xc0", 0.0, timeout=5)
    [event] = move(client, server, 0.0)
    assert isinstance(event, RequestReceived)
    server.fail(event.id, Fault(2, "RemoteError", "boom"))
    move(server, client, 0.0)
    client.request("m", b"\xc0", 0.0, timeout=5)
    client.handle_timer(6.0)
    client.request("m", b"\xc0", 6.0, timeout=5)
    client.close()
    assert client.tally.errors == {"RemoteError": 1, "RequestTimeout": 1, "ConnectionLost": 1}


def test_names_of_errors_are_bounded() -> None:
    tally = Tally()
    for number in range(NAMES + 5):
        tally.failed(f"error {number}")
    tally.failed("error 0")
    assert len(tally.errors) == NAMES + 1
    assert tally.errors["other"] == 5
    assert tally.errors["error 0"] == 2


def test_one_way_messages_alone_and_in_batches() -> None:
    client, server = pair()
    client.notify("n", b"\xc0", headers={"a": "b"})
    client.publish(1, "t", b"\xc0", headers={"a": "b"})
    for _ in range(3):
        client.notify("n", b"\xc0")
    for _ in range(4):
        client.publish(1, "t", b"\xc0")
    move(client, server, 0.0)
    assert (server.tally.notifies, server.tally.messages) == (4, 5)


@pytest.mark.parametrize(
    ("batch", "count"), [(b"", 0), (b"\xdd\xff\xff\xff\xff\x00", 6), (b"\xdd\x00\x00\x00\x01\xc0", 1)]
)
def test_a_batch_cannot_claim_more_than_it_has_bytes(batch: bytes, count: int) -> None:
    assert count_of(batch) == count

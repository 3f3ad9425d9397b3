"""Throw mutated and random bytes at the protocol core until told to stop: `python fuzz/wire.py [seconds] [seed]`.

The oracle: receive_data never raises, the memory of the connection stays bounded, nothing follows a Closed event.
"""

from __future__ import annotations

import random
import sys
import time

from smartipc.ipc.protocol.auth import Auth
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import Closed
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.wire import heads
from smartipc.ipc.wire.frames import FEATURES, PREFACE, Flag, Kind, frame

encode = heads.encoder.encode
GOOD = [
    frame(Kind.HELLO, 0, encode(heads.Hello(0, 0, sorted(FEATURES), "f", 1, 1, "f", 1 << 24))),
    frame(Kind.REQUEST, 1, encode(heads.RequestHead("a.b", 100)), b"\x80"),
    frame(Kind.REQUEST_BATCH, 3, encode(heads.RequestHead("a.b", 100)), b"\xdd\x00\x00\x00\x03\x01\x02\x03"),
    frame(Kind.RESPONSE_BATCH, 2, b"", b"\xdd\x00\x00\x00\x02\x01\x02"),
    frame(Kind.NOTIFY, 0, encode(heads.RequestHead("a.b")), b"\xc0"),
    frame(Kind.MSG, 7, encode(heads.MessageHead("t.x")), b"\x01"),
    frame(Kind.ACK, 7, encode(heads.AckHead(3))),
    frame(Kind.CANCEL, 1),
    frame(Kind.PING, 0, encode(heads.PingHead(1))),
    frame(Kind.GOAWAY, 0, encode(heads.Reason("x"))),
    frame(Kind.RESPONSE, 2, b"", b"\x01"),
    frame(Kind.ERROR, 2, b"", encode(heads.Fault(2, "x", "y"))),
    frame(Kind.OPEN, 1, encode(heads.OpenHead("a.b", True, 1 << 18, 1024)), b"\xc0"),
    frame(Kind.DATA, 1, b"", b"x"),
    frame(Kind.CREDIT, 1, encode(heads.CreditHead(1 << 19, 2048))),
]
GOOD += [
    frame(kind, ident, b"", b"\x91\xc0", flags) for kind in Kind for ident in (0, 1, 2) for flags in (0, Flag.MORE)
]


def once(source: random.Random) -> int:
    """Play one hostile peer; return how many bytes it sent."""
    auth = Auth("secret", b"n" * 32, "") if source.random() < 0.2 else None
    connection = Connection("server", Identity("target"), auth=auth)
    connection.start(0.0)
    data = bytearray(PREFACE + GOOD[0] if source.random() < 0.9 else b"")
    for _ in range(source.randrange(1, 30)):
        data += source.choice(GOOD) if source.random() < 0.8 else source.randbytes(source.randrange(64))
    for _ in range(source.randrange(4)):
        place = source.randrange(len(data) or 1)
        data[place : place + 1] = source.choice((b"", b"\x00", b"\xff", source.randbytes(1), source.randbytes(4)))
    closed, sent, now, start = False, bytearray(), 0.0, 0
    while start < len(data):
        size = source.randrange(1, 200)
        now += source.random()
        events = connection.receive_data(bytes(data[start : start + size]), now)
        assert not (closed and events), "something followed the end"
        assert auth is None or all(isinstance(event, Closed) for event in events), "a stranger was heard"
        closed = closed or any(isinstance(event, Closed) for event in events)
        while connection.has_data:
            sent += b"".join(connection.data_to_send())
        start += size
    assert len(connection._in) <= 300 * 1024  # noqa: SLF001 - the bound under test
    return len(data)


def main() -> None:
    """Run for some seconds and say how much was thrown."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    until = time.monotonic() + seconds
    peers = size = 0
    while time.monotonic() < until:
        size += once(source)
        peers += 1
    print(f"{peers} hostile peers, {size} bytes, no violation")


if __name__ == "__main__":
    main()

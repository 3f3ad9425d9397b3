"""The layout of payloads with attachments, and every way in which it can be wrong."""

from __future__ import annotations

import msgspec
import pytest

from smartipc.ipc.errors import RemoteProtocolError
from smartipc.ipc.wire.attachments import (
    IN_TAIL,
    LEASED,
    MOST,
    SEALED,
    Attachment,
    Pieces,
    Place,
    Table,
    own,
    pack,
    payload,
    size_of,
    unpack,
)


def whole(pieces: Pieces) -> bytes:
    return pieces[0 : len(pieces)]


def test_there_and_back() -> None:
    places = [Place(IN_TAIL, 3), Place(LEASED, 10, 1, 4096, 7), Place(SEALED, 9, 2), Place(IN_TAIL, 2)]
    packed = pack(b"value", places, [memoryview(b"abc"), memoryview(b"de")])
    value, got, tail = unpack(memoryview(whole(packed)))
    assert (value, got, bytes(tail)) == (b"value", tuple(places), b"abcde")


def test_pieces_are_cut_like_one_whole() -> None:
    pieces = Pieces([b"ab", b"", memoryview(b"cdef"), b"g"])
    assert len(pieces) == 7
    for start in range(8):
        for stop in range(start, 9):
            assert pieces[start:stop] == b"abcdefg"[start:stop]
    assert repr(pieces) == "<Pieces 7 bytes in 3 parts>"
    assert repr(Attachment(memoryview(b"abc"))) == "<Attachment of 3 bytes in private memory>"
    assert repr(Attachment(memoryview(b"abc"), object())) == "<Attachment of 3 bytes in place>"
    sealed = Attachment(memoryview(b"abc"))
    sealed.sealed = object()
    assert repr(sealed) == "<Attachment of 3 bytes sealed>"


def test_a_payload_is_bytes_for_everybody_else() -> None:
    one = payload(b"value", [Attachment(memoryview(b"abc"))])
    assert one == b"value"
    assert len(one) == 5
    assert len(one.attachments) == 1


def test_sizes_and_copies_of_what_waits() -> None:
    assert size_of(b"abc") == 3
    own(b"abc")
    source = bytearray(b"12345")
    one = payload(b"ab", [Attachment(memoryview(source)), Attachment(memoryview(source), object())])
    assert size_of(one) == 12
    own(one)
    source[:] = b"xxxxx"
    assert [bytes(part.view) for part in one.attachments] == [b"12345", b"xxxxx"], "in place stays in place"
    copied = one.attachments[0].view
    own(one)
    assert one.attachments[0].view is copied


def table(*fields: object) -> bytes:
    encoded = msgspec.msgpack.encode(fields)
    return len(encoded).to_bytes(4, "little") + encoded


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no table"),
        (b"\x01\x00\x00", "no table"),
        (b"\xff\xff\xff\xff", "is cut"),
        (b"\x02\x00\x00\x00\x90", "is cut"),
        (table(1, []), "do not make up"),
        (table(-1, []), "do not make up"),
        (table(-3, [[0, 3]]), "do not make up"),
        (table(1, [[0, 3]]) + b"vab", "do not make up"),
        (table(1, [[0, 1]]) + b"vab", "do not make up"),
        (table(1, [[3, 1]]) + b"v", "no place that is known"),
        (table(1, [[0, -1]]) + b"v", "no place that is known"),
        (table(0, [[1, 1]] * (MOST + 1)), "1025 attachments"),
    ],
)
def test_wrong_layouts(data: bytes, says: str) -> None:
    with pytest.raises(RemoteProtocolError, match=says):
        unpack(memoryview(data))


def test_a_malformed_table() -> None:
    for body in (b"\xc1", b"\x90", msgspec.msgpack.encode([1, [["x", 1]]])):
        with pytest.raises(msgspec.DecodeError):
            unpack(memoryview(len(body).to_bytes(4, "little") + body))


def test_golden_bytes() -> None:
    """What other languages must write: docs/reference/wire-protocol.md shows it."""
    packed = pack(b"\xc0", [Place(IN_TAIL, 2), Place(LEASED, 65536, 1, 4096, 9)], [memoryview(b"hi")])
    assert whole(packed).hex(" ") == (
        "15 00 00 00 92 01 92 95 00 02 00 00 00 95 01 ce 00 01 00 00 01 cd 10 00 09 c0 68 69"
    )
    assert Table(1, ()).value_size == 1

"""Buffers in payloads: what they are made of, what travels inside the value and what beside it, what is refused."""

from __future__ import annotations

import array
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

import smartipc
from smartipc.ipc.errors import InvalidPayload
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.attachments import THRESHOLD, Payload
from smartipc.ipc.wire.buffer import ATTACHED, INLINE, Buffer

np = pytest.importorskip("numpy")


class Frame(msgspec.Struct):
    pixels: Buffer
    number: int = 0


@dataclass
class Plain:
    pixels: Buffer
    more: list[Buffer]


def test_it_is_the_public_name() -> None:
    assert smartipc.Buffer is Buffer


@pytest.mark.parametrize(
    ("source", "content"),
    [
        (b"abc", b"abc"),
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"xabc")[1:], b"abc"),
        (array.array("H", [1, 2]), array.array("H", [1, 2]).tobytes()),
        (np.arange(3, dtype="u1"), b"\x00\x01\x02"),
        (memoryview(b"abcd").cast("B", (2, 2)), b"abcd"),
        (b"", b""),
    ],
)
def test_sources(source: object, content: bytes) -> None:
    buffer = Buffer(source)
    assert bytes(buffer) == bytes(buffer.view) == content
    assert len(buffer) == buffer.nbytes == len(content)
    assert (buffer.view.format, buffer.view.ndim) == ("B", 1)


def test_a_source_is_not_copied() -> None:
    source = bytearray(b"abc")
    buffer = Buffer(source)
    source[0] = ord("x")
    assert bytes(buffer) == b"xbc"


@pytest.mark.parametrize(
    ("source", "kind", "says"),
    [
        (memoryview(b"abcd")[::2], ValueError, "not C-contiguous"),
        (np.zeros((4, 4))[:, ::2], ValueError, "ascontiguousarray"),
        (np.zeros((4, 4), order="F"), ValueError, "ascontiguousarray"),
        (np.array([object()]), TypeError, "Python objects"),
        ("text", TypeError, "bytes-like"),
    ],
)
def test_sources_refused(source: object, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        Buffer(source)


@pytest.mark.parametrize("size", [0, 1, THRESHOLD - 1, THRESHOLD, 3 * THRESHOLD])
def test_small_ones_are_inside_the_value_and_big_ones_beside_it(size: int) -> None:
    encoded = codec.encode(Frame(Buffer(bytes(size)), 7))
    if size < THRESHOLD:
        assert type(encoded) is bytes
    else:
        assert isinstance(encoded, Payload)
        assert len(encoded) < 100
        assert [one.view.nbytes for one in encoded.attachments] == [size]
    decoded = codec.decode(encoded, Frame)
    assert (bytes(decoded.pixels), decoded.number) == (bytes(size), 7)
    assert decoded.pixels.view.readonly


@pytest.mark.parametrize(
    "source",
    [
        np.arange(12, dtype="<f4").reshape(3, 4),
        np.arange(100_000, dtype=">i8").reshape(10, -1),
        np.array(5.0),
        np.zeros((0, 3)),
        np.array(["2024-01-01"], dtype="M8[us]"),
        np.array([True, False]),
        np.array(["ab", "cde"]),
        np.array([b"ab", b"cde"]),
        np.array([1 + 2j]),
    ],
    ids=lambda source: f"{source.dtype.str} {source.shape}",
)
def test_arrays_come_back_as_arrays(source: Any) -> None:
    received = codec.decode(codec.encode(Frame(Buffer(source))), Frame).pixels
    got = np.asarray(received)
    assert (got.dtype, got.shape) == (source.dtype, source.shape)
    assert np.array_equal(got, source)
    assert not got.flags.writeable or not got.size


def test_plain_bytes_are_an_array_of_bytes_and_records_come_as_bytes() -> None:
    assert np.asarray(Buffer(b"ab")).tolist() == [97, 98]
    records = np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
    received = codec.decode(codec.encode(Frame(Buffer(records))), Frame).pixels
    assert received.dtype == ""
    assert np.frombuffer(received.view, records.dtype)["b"][0] == 2.0


def test_numpy_may_ask_for_another_type_or_a_copy() -> None:
    buffer = Buffer(np.arange(3, dtype="i4"))
    assert np.asarray(buffer, dtype="f8").dtype == np.float64
    assert np.shares_memory(np.asarray(buffer), np.asarray(buffer, dtype="i4"))
    assert not np.shares_memory(np.array(buffer, copy=True), np.asarray(buffer))
    with pytest.raises(ValueError, match="without a copy"):
        buffer.__array__(np.dtype("f8"), copy=False)


def test_buffers_anywhere_in_a_payload() -> None:
    big = bytes(range(256)) * 512
    value = Plain(Buffer(b"small"), [Buffer(big), Buffer(b"x" * THRESHOLD)])
    encoded = codec.encode(value)
    assert isinstance(encoded, Payload)
    decoded = codec.decode(encoded, Plain)
    assert [bytes(one) for one in (decoded.pixels, *decoded.more)] == [b"small", big, b"x" * THRESHOLD]
    plain = codec.plain(encoded)
    assert bytes(plain["more"][0]) == big
    array = np.zeros(THRESHOLD)
    assert np.array_equal(np.asarray(codec.plain(codec.encode({"a": [array]}))["a"][0]), array)


def test_binary_data_of_others_is_a_buffer_too() -> None:
    assert bytes(codec.decode(msgspec.msgpack.encode({"pixels": b"abc"}), Frame).pixels) == b"abc"


def test_other_extension_values_stay_what_they_are() -> None:
    strange = msgspec.msgpack.Ext(77, b"x")
    assert codec.plain(msgspec.msgpack.encode([strange])) == [strange]
    with pytest.raises(InvalidPayload, match=r"Expected `Buffer`, got `msgspec\.msgpack\.Ext`") as caught:
        codec.decode(msgspec.msgpack.encode({"pixels": strange}), Frame)
    assert caught.value.path == "$.pixels"


def test_what_has_no_form_is_refused() -> None:
    with pytest.raises(InvalidPayload, match="type object is unsupported"):
        codec.encode({"a": object()})
    with pytest.raises(InvalidPayload, match="type float32 is unsupported"):
        codec.encode([np.float32(1)])
    with pytest.raises(InvalidPayload, match="Expected `Buffer`, got `int`"):
        codec.decode(msgspec.msgpack.encode({"pixels": 3}), Frame)
    with pytest.raises(InvalidPayload, match="Expected `int`"):
        codec.decode(codec.encode({"a": Buffer(bytes(THRESHOLD))}), dict[str, int])


def meta(*fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


def inline(described: bytes, content: bytes = b"") -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(INLINE, len(described).to_bytes(2, "little") + described + content)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (msgspec.msgpack.Ext(INLINE, b""), "without description"),
        (msgspec.msgpack.Ext(INLINE, b"\x05\x00a"), "is cut"),
        (inline(b"\xc1"), "malformed description"),
        (inline(meta(7)), "malformed description"),
        (inline(meta("<f4", (2,)), b"1234"), "has not 4 bytes"),
        (inline(meta("<f4", (-1,)), b"1234"), "claims to be"),
        (inline(meta("<f4", (1,) * 40), b"1234"), "claims to be"),
        (inline(meta("|O8", (1,)), b"12345678"), "claims to be"),
        (inline(meta("f", (1,)), b"1234"), "claims to be"),
        (inline(meta("<fx", (1,)), b"1234"), "claims to be"),
        (inline(meta("<f٤", (1,)), b"1234"), "claims to be"),
        (msgspec.msgpack.Ext(ATTACHED, b""), "malformed description"),
        (msgspec.msgpack.Ext(ATTACHED, meta("", (), 0, 5)), "attachment 0 of 0"),
        (msgspec.msgpack.Ext(ATTACHED, meta("", (), -1, 5)), "attachment -1 of 0"),
    ],
)
def test_lies_about_buffers(value: msgspec.msgpack.Ext, says: str) -> None:
    with pytest.raises(InvalidPayload, match=says):
        codec.decode(msgspec.msgpack.encode({"pixels": value}), Frame)


def test_buffers_in_a_batch() -> None:
    batch = msgspec.msgpack.encode([msgspec.Raw(codec.encode(Frame(Buffer(b"ab")))) for _ in range(2)])
    assert codec.decode_all(batch, Frame) is None, "one by one, then"
    assert codec.decode_all(batch, object) is None
    assert [bytes(codec.decode(one, Frame).pixels) for one in codec.pieces(batch)] == [b"ab"] * 2


def test_a_lie_about_the_size_of_an_attachment() -> None:
    encoded = codec.encode(Frame(Buffer(bytes(THRESHOLD))))
    assert isinstance(encoded, Payload)
    encoded.attachments[0].view = memoryview(bytes(10))
    with pytest.raises(InvalidPayload, match=f"{THRESHOLD} bytes came with 10"):
        codec.decode(encoded, Frame)


def test_memory_that_is_shared_already_says_where() -> None:
    buffer = Buffer.in_place(memoryview(bytearray(THRESHOLD)), "there")
    encoded = codec.encode(Frame(buffer))
    assert isinstance(encoded, Payload)
    assert encoded.attachments[0].place == "there"


def test_what_is_kept_stands_on_its_own() -> None:
    assert codec.self_contained(b"\xc0") == b"\xc0"
    array = np.arange(THRESHOLD)
    kept = codec.self_contained(codec.encode(Frame(Buffer(array), 3)))
    assert type(kept) is bytes
    again = codec.decode(kept, Frame)
    assert np.array_equal(np.asarray(again.pixels), array)
    assert again.number == 3


def test_reprs_tell() -> None:
    assert repr(Buffer(b"abc")) == "<Buffer 3 bytes read-only>"
    assert repr(Buffer(np.zeros((2, 3)))) == "<Buffer 48 bytes <f8 (2, 3)>"
